"""Counts the files and functions of ppe_npu and backends that one forward pass enters.

    python scripts/count_forward.py [--list]

One image, preset ppe, a tiny random Qwen2.5-VL on the CPU, in a process that has run another prompt before. Two passes
are counted: on a prompt of a new layout (here a picture of another size), which is planned first, and on the same one
again, as on any prompt laid out like an earlier one, whose plan is reused. --list marks with + what only the former
enters. Comprehensions, lambdas and generator expressions count as part of the function that contains them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEW, KNOWN = "a prompt of a new layout", "a prompt laid out like an earlier one"


def entered() -> dict[str, dict[str, set[str]]]:
    """For both kinds of pass {file: names of the functions that it enters}."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from support import Prompt, batch, random_model

    from ppe_npu import CompressionConfig, compress

    model = compress(random_model(), CompressionConfig.preset("ppe", k=4))
    before, inputs = (batch(Prompt([2, ("image", (1, rows, 5)), 3])) for rows in (4, 6))
    passes: dict[str, dict[str, set[str]]] = {}

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_qualname
        if event == "call" and path.is_relative_to(ROOT) and "<" not in name.rsplit(".", 1)[-1]:
            file = path.relative_to(ROOT)
            if file.parts[0] in ("ppe_npu", "backends"):
                found[str(file)].add(name)

    with torch.no_grad():
        model(**before)
        for kind in (NEW, KNOWN):
            found = passes[kind] = defaultdict(set)
            sys.setprofile(note)
            model(**inputs)
            sys.setprofile(None)
    return passes


def main() -> None:
    passes = entered()
    if "--list" in sys.argv:
        for file, names in sorted(passes[NEW].items()):
            known = passes[KNOWN].get(file, set())
            print(f"{file}: {', '.join(name if name in known else f'+{name}' for name in sorted(names))}")
    for kind in (KNOWN, NEW):
        print(f"{kind}: a pass enters {len(passes[kind])} files and {sum(map(len, passes[kind].values()))} functions")


if __name__ == "__main__":
    main()
