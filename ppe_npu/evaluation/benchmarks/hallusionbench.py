"""HallusionBench (Guan et al. 2024, arXiv 2310.14566): yes/no questions with true or altered figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import mean_by, word_label


class HallusionBench(Dataset):
    """The type is the subcategory. Papers score with GPT-4 or, as done here, by VLMEvalKit's rule without a judge.

    aAcc is the fraction of right answers; fAcc of figures whose questions are all answered right; qAcc of questions
    that are answered right for all their figures. OpenCompass's leaderboard shows the mean of the three, "average".
    """

    name = "hallusionbench"
    modality = "image"
    folder = "hallusionbench"
    needs = ("HallusionBench.json", "hallusion_bench")
    home = "github.com/tianyi-lab/HallusionBench (HallusionBench.json; hallusion_bench.zip)"
    metric = (
        "aAcc, fAcc and qAcc; an answer is yes or no if only one of them is among its words (VLMEvalKit "
        "YOrN_Extraction); no GPT judge"
    )
    form = "{question} Please answer yes or no."
    headline = "aAcc"

    def read(self) -> list[Row]:
        return [row for row in read_json(self.file(self.needs[0])) if str(row["visual_input"]) != "0"]

    def sample(self, row: Row) -> Row:
        keys = ("category", "subcategory", "set_id", "figure_id", "question_id")
        return {
            "index": "/".join(str(row[key]) for key in keys),
            "prompt": self.form.format(question=row["question"]),
            "GT": "yes" if str(row["gt_answer"]) == "1" else "no",
            "type": row["subcategory"],
            "image_path": str(self.root / row["filename"].removeprefix("./")),
        }

    def score(self, answer: str, sample: Row) -> float:
        return float(word_label(answer) == sample["GT"])

    def unit(self, row: Mapping[str, Any]) -> str:
        """The set, whose figures and questions are judged together."""
        return row["index"].rsplit("/", 2)[0]

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """aAcc, fAcc, qAcc and their mean, then the accuracy per subcategory."""
        rows = list(rows)

        def together(key: Callable[[list[str]], tuple]) -> float:
            groups: dict[Any, list[float]] = {}
            for row in rows:
                groups.setdefault((key(row["index"].split("/")), row.get("copy")), []).append(row["score"] or 0.0)
            return sum(float(all(group)) for group in groups.values()) / max(len(groups), 1)

        every = sum(row["score"] or 0.0 for row in rows) / max(len(rows), 1)
        figures, questions = together(lambda at: (*at[:3], at[3])), together(lambda at: (*at[:3], at[4]))
        found = {"aAcc": every, "fAcc": figures, "qAcc": questions, "average": (every + figures + questions) / 3}
        return {**found, **mean_by(rows, lambda row: str(row["type"]))}
