"""Counts the files and functions of ppe_npu and backends that one forward pass enters.

    python scripts/count_forward.py [--list]

One image, preset ppe, a tiny random Qwen2.5-VL on the CPU. The second pass is counted, when everything is loaded.
Comprehensions, lambdas and generator expressions are not counted apart from the function that contains them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def entered() -> dict[str, set[str]]:
    """{file: names of the functions that one forward pass enters}."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from support import Prompt, batch, random_model

    from ppe_npu import CompressionConfig, compress

    model = compress(random_model(), CompressionConfig.preset("ppe", k=4))
    inputs, found = batch(Prompt([2, ("image", (1, 4, 5)), 3])), defaultdict(set)

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_qualname
        if event == "call" and path.is_relative_to(ROOT) and "<" not in name.rsplit(".", 1)[-1]:
            file = path.relative_to(ROOT)
            if file.parts[0] in ("ppe_npu", "backends"):
                found[str(file)].add(name)

    with torch.no_grad():
        model(**inputs)
        sys.setprofile(note)
        model(**inputs)
        sys.setprofile(None)
    return dict(found)


if __name__ == "__main__":
    found = entered()
    if "--list" in sys.argv:
        for file, names in sorted(found.items()):
            print(f"{file}: {', '.join(sorted(names))}")
    print(f"one forward pass enters {len(found)} files and {sum(map(len, found.values()))} functions")
