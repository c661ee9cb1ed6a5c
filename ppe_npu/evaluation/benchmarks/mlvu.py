"""MLVU (Zhou et al. 2024, arXiv 2406.04264), dev: the seven multiple-choice tasks (M-Avg)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import LETTERS, Choice, Row, bracketed
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import mean_by, mlvu_letter

_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")


class MLVU(Choice):
    """The type is the task. The two generation tasks, judged by a GPT model, are left out. Prompt: choice_bench.py."""

    name = "mlvu"
    modality = "video"
    folder = "mlvu"
    needs = (*(f"json/{task}.json" for task in _TASKS), *(f"video/{task}" for task in _TASKS))
    home = "data set MLVU/MVLU on the Hugging Face Hub (MLVU/json, MLVU/video)"
    metric = "M-Avg: mean of the tasks' accuracies; the character before the first bracket (choice_bench.py)"
    form = (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\nQuestion: {question}\nOptions:\n{options}\n"
        "Only give the best option."
    )
    headline = "M-Avg"
    edition = 2

    def read(self) -> Iterable[Row]:
        for task in _TASKS:
            for number, row in enumerate(read_json(self.file(f"json/{task}.json"))):
                yield {**row, "task": task, "number": number}

    def sample(self, row: Row) -> Row:
        return {
            "index": f"{row['task']}/{row['number']}",
            "prompt": self.form.format(question=row["question"], options=bracketed(row["candidates"])),
            "GT": LETTERS[row["candidates"].index(row["answer"])],
            "options": [str(option) for option in row["candidates"]],
            "type": row["task"].split("_", 1)[1],
            "video_path": str(self.root / "video" / row["task"] / row["video"]),
        }

    def letter(self, answer: str, sample: Row) -> str:
        return mlvu_letter(answer)

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Accuracy per task, and "M-Avg", their mean."""
        tasks = mean_by(rows, lambda row: str(row["type"]))
        return {**tasks, "M-Avg": sum(tasks.values()) / max(len(tasks), 1)}
