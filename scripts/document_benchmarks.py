"""Rewrites the generated sections of docs/benchmarks-data.md, which follow the part that is written by hand."""

from pathlib import Path

from ppe_npu.evaluation.benchmarks.table import markdown
from ppe_npu.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-data.md"
MARK = "<!-- scripts/document_benchmarks.py writes what follows -->\n\n"

if __name__ == "__main__":
    print(write_text(PAGE, PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + markdown()))
