"""VizWiz-VQA (Gurari et al. 2018, arXiv 1802.08218), validation."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import vqa_accuracy


class VizWiz(Dataset):
    """Questions of blind people about their photographs; the type is the type of the answer. Prompt: lmms-eval."""

    name = "vizwiz"
    modality = "image"
    folder = "vizwiz"
    needs = ("val.json", "val")
    home = "vizwiz.org, visual question answering (val.zip, Annotations.zip)"
    metric = "VQA accuracy over ten answers, with mmf's normaliser (lmms-eval)"
    form = "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT

    def read(self) -> list[Row]:
        return read_json(self.file("val.json"))

    def sample(self, row: Row) -> Row:
        return {
            "index": row["image"],
            "prompt": self.form.format(question=row["question"].capitalize()),
            "GT": [answer["answer"] for answer in row["answers"]],
            "type": row.get("answer_type", "all"),
            "image_path": str(self.root / "val" / row["image"]),
        }

    def score(self, answer: str, sample: Row) -> float:
        return vqa_accuracy(answer, sample["GT"])
