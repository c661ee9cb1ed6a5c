"""python -m ppe_npu.serving.conformance [ENGINE ...]: lists the cases that installed engines get right and wrong."""

from __future__ import annotations

import sys

from ppe_npu.serving.conformance import Answer, ConformanceCase, load
from ppe_npu.serving.conformance.engines import ENGINES


def difference(case: ConformanceCase, found: Answer) -> str:
    """What is wrong with an engine's answer, in words; empty if it is right."""
    right = case.answer
    assert right is not None, "a case that was loaded has its answer"
    if found.text_start != right.text_start:
        return f"text goes on at {found.text_start}, not {right.text_start}"
    wrong = [n for n, (a, b) in enumerate(zip(zip(*found.ids), zip(*right.ids))) if a != b]
    if wrong:
        own, theirs = ([ids[wrong[0]] for ids in answer.ids] for answer in (right, found))
        return f"{len(wrong)} tokens stand elsewhere, the first at {theirs}, not {own}"
    return f"delta {found.delta}, not {right.delta}" if found.delta != right.delta else ""


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        print(f"{', '.join(unknown)}: use some of {', '.join(ENGINES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or ["ours", "vllm_plug_in", "transformers"]:
        answers = [(case, ENGINES[name](case)) for case in load()]
        asked = [(case, difference(case, answer)) for case, answer in answers if answer is not None]
        wrong = [(case, said) for case, said in asked if said]
        print(f"{name}: {len(asked) - len(wrong)} of {len(asked)} right; {len(answers) - len(asked)} cannot be asked")
        for case, said in wrong:
            print(f"    {case.name}: {said}")
        failed += len(wrong)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
