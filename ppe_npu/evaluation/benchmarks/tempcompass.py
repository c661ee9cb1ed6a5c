"""TempCompass (Liu et al. 2024, arXiv 2403.00476), multiple choice: five aspects of time in short videos."""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.evaluation.benchmarks.dataset import ByType, Choice, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import tempcompass_letter


class TempCompass(ByType, Choice):
    """The type is the aspect (action, attribute_change, direction, order, speed).

    In the published script a GPT model judges answers that no rule matches; here they are wrong. Prompt: lmms-eval
    tasks/tempcompass.
    """

    name = "tempcompass"
    modality = "video"
    folder = "tempcompass"
    needs = ("questions/multi-choice.json", "videos")
    home = "github.com/llyx97/TempCompass (questions/multi-choice.json) and lmms-lab/TempCompass on the Hub (videos)"
    metric = "accuracy; a letter alone or before a full stop or bracket (eval_multi-choice.py), no GPT judge"
    form = "{question}\nPlease directly give the best option:"
    edition = 2

    def read(self) -> Iterable[Row]:
        for video, aspects in read_json(self.file(self.needs[0])).items():
            for aspect, rows in aspects.items():
                for number, row in enumerate(rows):
                    yield {**row, "video": video, "aspect": aspect, "number": number}

    def sample(self, row: Row) -> Row:
        return {
            "index": f"{row['video']}/{row['aspect']}/{row['number']}",
            "prompt": self.form.format(question=row["question"]),
            "GT": row["answer"].strip()[:1],
            "type": row["aspect"],
            "video_path": self.video("videos", row["video"]),
        }

    def letter(self, answer: str, sample: Row) -> str:
        return tempcompass_letter(answer)
