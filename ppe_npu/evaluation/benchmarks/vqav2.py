"""VQAv2 (Goyal et al. 2017, arXiv 1612.00837), validation: 214,354 open questions about COCO's pictures."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import vqa_accuracy_by


class VQAv2(Dataset):
    """The type is the type of the answer (yes/no, number, other). Most published numbers are on test-dev, whose answers
    are not public, and not on this split. Prompt: lmms-eval tasks/vqav2."""

    name = "vqav2"
    modality = "image"
    folder = "vqav2"
    needs = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014")
    home = "visualqa.org/download (validation questions and annotations) and cocodataset.org (val2014.zip)"
    metric = "VQA accuracy over ten answers, as in GT-Vision-Lab's vqaEval.py"
    form = "{question}\n" + SHORT
    edition = 2

    def read(self) -> list[Row]:
        questions = {row["question_id"]: row for row in read_json(self.file(self.needs[0]))["questions"]}
        return [{**questions[row["question_id"]], **row} for row in read_json(self.file(self.needs[1]))["annotations"]]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["question_id"],
            "prompt": self.form.format(question=row["question"]),
            "GT": [answer["answer"] for answer in row["answers"]],
            "type": row["answer_type"],
            "image_path": str(self.root / "val2014" / f"COCO_val2014_{row['image_id']:012d}.jpg"),
        }

    def score(self, answer: str, sample: Row) -> float:
        return vqa_accuracy_by("vqa", answer, sample["GT"])
