"""LVBench (Wang et al. 2024, arXiv 2406.08035): questions about videos of an hour and more."""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.evaluation.benchmarks.dataset import ByType, Choice, Row
from ppe_npu.evaluation.benchmarks.readers import read_jsonl
from ppe_npu.evaluation.metrics.lmms import extracted_letter


class LVBench(ByType, Choice):
    """The type is the first of a question's types. Questions contain their options, as published. Prompt and letter:
    lmms-eval tasks/lvbench, because the authors' own extraction of letters is not known."""

    name = "lvbench"
    modality = "video"
    folder = "lvbench"
    needs = ("video_info.meta.jsonl", "videos")
    home = "data set THUDM/LVBench on the Hugging Face Hub (video_info.meta.jsonl); videos named by their YouTube key"
    metric = "accuracy; letters as lmms-eval 0.7.3 extracts them"
    form = "{question}\nAnswer the question with the option letter."

    def read(self) -> Iterable[Row]:
        for video in read_jsonl(self.file(self.needs[0])):
            yield from ({**row, "key": video["key"]} for row in video["qa"])

    def sample(self, row: Row) -> Row:
        kinds = row.get("question_type") or ["all"]
        return {
            "index": str(row["uid"]),
            "prompt": self.form.format(question=row["question"]),
            "GT": row["answer"],
            "type": kinds if isinstance(kinds, str) else kinds[0],
            "types": [kinds] if isinstance(kinds, str) else list(kinds),
            "video_path": self.video("videos", row["key"]),
        }

    def letter(self, answer: str, sample: Row) -> str:
        return extracted_letter(answer)
