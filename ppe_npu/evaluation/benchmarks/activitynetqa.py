"""ActivityNet-QA (Yu et al. 2019, arXiv 1906.02467), test: short open answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import mean_by, same_words

_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
_FREE = _TYPES[3:]


class ActivityNetQA(Dataset):
    """The type is the published one. Prompt: lmms-eval tasks/activitynetqa.

    In recent papers a GPT model judges the answers (0 to 5, and yes or no). Here there is no judge: the numbers are the
    data set's own accuracy, which is lower than judged ones.
    """

    name = "activitynetqa"
    modality = "video"
    folder = "activitynetqa"
    needs = ("test_q.json", "test_a.json", "all_test")
    home = "github.com/MILVLG/activitynet-qa (dataset/) and the ActivityNet videos (v_NAME.mp4)"
    metric = "exact match, ignoring case and punctuation, per type (evaluation/eval.py); no GPT judge"
    form = "{question} " + SHORT
    max_new_tokens = 64

    def read(self) -> Iterable[Row]:
        answers = {row["question_id"]: row for row in read_json(self.file("test_a.json"))}
        return [{**row, **answers[row["question_id"]]} for row in read_json(self.file("test_q.json"))]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["question_id"],
            "prompt": self.form.format(question=f"{row['question'].capitalize()}?"),
            "GT": str(row["answer"]),
            "type": _TYPES[int(row["type"])],
            "video_path": self.video("all_test", f"v_{row['video_name']}"),
        }

    def score(self, answer: str, sample: Row) -> float:
        return same_words(answer, sample["GT"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy over the six free types together."""
        return mean_by([row for row in rows if row["type"] in _FREE], lambda row: "free")
