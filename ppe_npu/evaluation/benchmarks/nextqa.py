"""NExT-QA (Xiao et al. 2021, arXiv 2105.08276), test: five options, or open answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, Choice, Dataset, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json, read_table
from ppe_npu.evaluation.metrics import Taxonomy, WordNet, mean_by, mmmu_letter, wups

_GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def _type(row: Row) -> str:
    """The type of a row; raises KeyError if it belongs to none of the groups."""
    _ = _GROUPS[row["type"][:1]]
    return row["type"]


class NExTQA(Choice):
    """The type is the published one: CW, CH, TN, TP, TC, DB, DC, DL, DO. Prompt: lmms-eval tasks/nextqa."""

    name = "nextqa_mc"
    modality = "video"
    folder = "nextqa"
    needs = ("MC/test.csv", "NExTVideo")
    home = "github.com/doc-doc/NExT-QA (dataset/nextqa/test.csv as MC/test.csv; NExTVideo with map_vid_vidorID.json)"
    metric = "accuracy; letters as in MMMU (lmms-eval)"
    form = "{question}\n{options}\n" + LETTER

    def read(self) -> list[Row]:
        known = self.files("map_vid_vidorID.json")
        self._places = read_json(known[0]) if known else {}
        return read_table(self.file(self.needs[0]))

    def path(self, row: Row) -> str:
        """Path of the video, from the data set's map if it is there, else directly in NExTVideo."""
        return self.video("NExTVideo", self._places.get(row["video"], row["video"]))

    def sample(self, row: Row) -> Row:
        options = [row[f"a{number}"].strip() for number in range(5)]
        return {
            "index": f"{row['video']}_{row['qid']}",
            "prompt": self.form.format(question=row["question"].strip(), options=lettered(options)),
            "GT": LETTERS[int(row["answer"])],
            "type": _type(row),
            "video_path": self.path(row),
            "options": options,
        }

    def letter(self, answer: str, sample: Row) -> str:
        return mmmu_letter(answer, sample["options"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy of causal, temporal and descriptive questions."""
        return mean_by(rows, lambda row: _GROUPS[row["type"][0]])


class NExTOE(NExTQA):
    """Open answers, with a second reference if there is one. NLTK's WordNet, which WUPS needs, is loaded at once."""

    name = "nextqa_oe"
    needs = ("OE/test.csv", "OE/add_reference_answer_test.json", "NExTVideo")
    home = "github.com/doc-doc/NExT-OE (dataset/nextqa as OE); videos as for nextqa_mc"
    metric = "WUPS@0 and WUPS@0.9 as in NExT-OE's eval_oe.py (with NLTK's WordNet)"
    form = "{question}\nAnswer a question using a short phrase or sentence."
    headline = "WUPS@0"

    def __init__(self, data_root: Any, taxonomy: Taxonomy | None = None) -> None:
        Dataset.__init__(self, data_root)
        self.taxonomy = taxonomy or WordNet()

    def read(self) -> list[Row]:
        self._more = read_json(self.file("OE/add_reference_answer_test.json"))
        return super().read()

    def sample(self, row: Row) -> Row:
        second = self._more.get(row["video"], {}).get(row["qid"])
        return {
            "index": f"{row['video']}_{row['qid']}",
            "prompt": self.form.format(question=row["question"].strip()),
            "GT": [row["answer"], *([second] if second else [])],
            "type": "TN" if _type(row) == "TP" else _type(row),
            "video_path": self.path(row),
        }

    def score(self, answer: str, sample: Row) -> float:
        """WUPS@0."""
        return wups(answer, sample["GT"], sample["type"], self.taxonomy, threshold=0.0)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """WUPS@0 and WUPS@0.9 over all questions, and WUPS@0 for each of the three groups."""
        rows = list(rows)
        strict = [wups(row["answer"], row["GT"], row["type"], self.taxonomy, threshold=0.9) for row in rows]
        groups = mean_by(rows, lambda row: f"WUPS@0 {_GROUPS[row['type'][0]]}")
        return {
            **mean_by(rows, lambda row: "WUPS@0"),
            "WUPS@0.9": sum(strict) / len(strict) if strict else 0.0,
            **groups,
        }

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        """WUPS@0, which is each row's score, and a 1."""
        return {row["index"]: [row["score"] or 0.0, 1.0] for row in rows}
