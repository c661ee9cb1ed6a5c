"""Perception Test (Patraucean et al. 2023, arXiv 2305.13786), validation, multiple-choice video questions."""

from __future__ import annotations

from collections.abc import Iterable

from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, Choice, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import lone_letter


class PerceptionTest(Choice):
    """Three options; the type is the area (memory, abstraction, physics, semantics). Prompt: lmms-eval."""

    name = "perceptiontest"
    modality = "video"
    folder = "perceptiontest"
    needs = ("mc_question_valid*.json", "videos")
    home = "github.com/google-deepmind/perception_test (validation: videos, mc_question_valid annotations)"
    metric = "top-1 accuracy; the first capital that stands alone (lmms-eval)"
    form = "{question}\n{options}\n" + LETTER

    def read(self) -> Iterable[Row]:
        for video, entry in read_json(self.file(self.needs[0])).items():
            yield from ({**row, "video": video} for row in entry["mc_question"])

    def sample(self, row: Row) -> Row:
        return {
            "index": f"{row['video']}/{row['id']}",
            "prompt": self.form.format(question=row["question"], options=lettered(row["options"])),
            "GT": LETTERS[int(row["answer_id"])],
            "type": row.get("area", "all"),
            "video_path": self.video("videos", row["video"]),
        }

    def letter(self, answer: str, sample: Row) -> str:
        return lone_letter(answer)
