"""olmOCR-Bench (Poznanski et al. 2025, arXiv 2502.18443): PDF pages are transcribed and tested for facts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row, Sample, mean_of_shares
from ppe_npu.evaluation.benchmarks.pdf import page_images
from ppe_npu.evaluation.benchmarks.readers import read_jsonl
from ppe_npu.evaluation.metrics.page_facts import fact_fault, keeps

LONGEST = 2048  # pixels of a page's longer side, as in the published runs of general models
_MATH = "math"
_BASELINE = "baseline"


class OlmOCRBench(Dataset):
    """A sample is a page; its score is the fraction of its tests that pass, without those of formulas.

    The overall score is, as published, the mean over the files of tests, but files with formulas alone are left out:
    in the published rule a formula passes if a browser renders it alike. `math, same characters` is a lower bound for
    these tests.
    """

    name = "olmocr_bench"
    modality = "image"
    folder = "olmocr_bench"
    needs = ("bench_data/*.jsonl", "bench_data/pdfs")
    home = "data set allenai/olmOCR-bench on the Hugging Face Hub (bench_data)"
    metric = (
        "fraction of tests passed, averaged over the .jsonl files (olmocr 0.4.27 bench); formulas, which KaTeX renders "
        "in a browser, are left out, and so are files that contain nothing else"
    )
    form = (
        "Below is the image of one page of a PDF document. Just return the plain text representation of this document "
        "as if you were reading it naturally.\n"
        "Turn equations into a LaTeX representation, and tables into markdown format. Remove the headers and footers, "
        "but keep references and footnotes.\n"
        "Read any natural handwriting.\n"
        "This is likely one page out of several in the document, so be sure to preserve any sentences that come from "
        "the previous page, or continue onto the next page, exactly as they are.\n"
        "If there is no text at all that you think you should read, you can output null.\n"
        "Do not hallucinate."
    )
    max_new_tokens = 3000
    headline = "overall"

    def read(self) -> list[Row]:
        facts = [fact for path in self.files(self.needs[0]) for fact in self._facts(path)]
        room = self.room()
        for fact in facts:
            room.check(self._document(fact["pdf"]), f"{self.name}: the document of test {fact['id']}")
        named = sorted({fact["pdf"] for fact in facts if not self._document(fact["pdf"]).is_file()})
        self._refuse([f"bench_data/pdfs/{name}" for name in named])
        pages: dict[tuple[str, int], list[Row]] = {}
        for fact in facts:
            pages.setdefault((fact["pdf"], (fact.get("page") or 1)), []).append(fact)
        asked = {fact["pdf"] for fact in facts if fact["type"] == _BASELINE}
        for pdf in dict.fromkeys(fact["pdf"] for fact in facts):
            if pdf not in asked:  # every document has this test, for its first page
                fact = {"pdf": pdf, "page": 1, "id": f"{pdf}_baseline", "type": _BASELINE, "file": _BASELINE}
                pages.setdefault((pdf, 1), []).append(fact)
        self._files = sorted({fact["file"] for found in pages.values() for fact in found if fact["type"] != _MATH})
        rows = [{"pdf": pdf, "page": page, "facts": found} for (pdf, page), found in pages.items()]
        return [row for row in rows if any(fact["type"] != _MATH for fact in row["facts"])]

    def _facts(self, path: Path) -> list[Row]:
        found = [{**fact, "file": path.stem} for fact in read_jsonl(path)]
        for number, fact in enumerate(found, 1):
            if fault := fact_fault(fact):
                raise InputError(f"{path}: test {number} {fault}: download the data again")
        return found

    def _document(self, name: str) -> Path:
        return self.root / "bench_data" / "pdfs" / name

    def sample(self, row: Row) -> Row:
        fields = {
            "index": f"{row['pdf']}_pg{row['page']}",
            "prompt": self.form,
            "GT": [json.dumps(fact, ensure_ascii=False) for fact in row["facts"]],
            "type": row["facts"][0]["file"],
        }
        return Sample(fields, image=partial(self._picture, row))

    def _picture(self, row: Row) -> Any:
        return page_images(self._document(row["pdf"]), [row["page"]], longest=LONGEST)[0]

    def score(self, answer: str, sample: Row) -> float:
        passed = [kept for kind, _, kept in (_test(answer, fact) for fact in sample["GT"]) if kind != _MATH]
        return sum(passed) / len(passed)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Fractions of tests passed: "overall", of each file of tests and of each kind of test."""
        files: dict[str, list[bool]] = {}
        kinds: dict[str, list[bool]] = {}
        for row in rows:
            for kind, file, kept in _tests(row):
                kinds.setdefault(f"{_MATH}, same characters" if kind == _MATH else f"kind {kind}", []).append(kept)
                if kind != _MATH:
                    files.setdefault(file, []).append(kept)
        shares = {name: sum(kept) / len(kept) for name, kept in sorted(files.items())}
        overall = sum(shares.values()) / len(shares) if shares else 0.0
        return {"overall": overall, **shares, **{name: sum(kept) / len(kept) for name, kept in sorted(kinds.items())}}

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        """{index: (tests passed, tests) for each file}."""
        found = {}
        for row in rows:
            sums = found.setdefault(row["index"], [0.0] * (2 * len(self._files)))
            for kind, file, kept in _tests(row):
                if kind != _MATH:
                    at = 2 * self._files.index(file)
                    sums[at], sums[at + 1] = sums[at] + kept, sums[at + 1] + 1.0
        return found

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """The mean over the files that have tests in the resample."""
        return mean_of_shares(sums)


def _tests(row: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(kind, file, whether it passed) of every test of a page; none passes if the sample failed."""
    found = [_test(row["answer"], fact) for fact in row["GT"]]
    return [(kind, file, False) for kind, file, _ in found] if row.get("error") else found


@lru_cache(maxsize=1 << 15)
def _test(answer: str, fact: str) -> tuple[str, str, bool]:
    found = json.loads(fact)
    return found["type"], found["file"], keeps(answer, found)
