"""Rewrites the comparison in docs/pvc.md from results of `ppe-npu demo --motion`, in runs/motion or another folder."""

import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "pvc.md"
END = "<!-- motion end -->\n"


def start(tokens: int) -> str:
    """The line before the table for this number of tokens per frame."""
    return f"<!-- motion, tokens per frame: {tokens}; scripts/document_motion.py writes this -->\n"


def written(page: str, results: list[dict]) -> str:
    """The page with the table and the findings of these results, replacing those for the same tokens per frame."""
    from ppe_npu.demo.motion import findings, table

    tokens = results[0].get("tokens")
    if tokens is None:
        sys.exit("these results are of an earlier edition: run the demo again, which trains no model that is there")
    mark = start(tokens)
    if mark not in page:
        sys.exit(f"{PAGE} has no place for {tokens} tokens per frame: add a line {mark.strip()} and one {END.strip()}")
    before, rest = page.split(mark)
    _, after = rest.split(END, 1)
    said = "\n".join(textwrap.fill(line, 150, break_on_hyphens=False) for line in findings(results).split("\n"))
    return before + mark + table(results) + "\n" + said + END + after


def main(folder: str = "runs/motion") -> None:
    results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
