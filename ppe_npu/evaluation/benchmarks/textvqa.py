"""TextVQA (Singh et al. 2019, arXiv 1904.08920), validation."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import vqa_accuracy


class TextVQA(Dataset):
    """Questions about text in photographs. Prompt: lmms-eval tasks/textvqa, without OCR tokens."""

    name = "textvqa"
    modality = "image"
    folder = "textvqa"
    needs = ("TextVQA_0.5.1_val.json", "train_images")
    home = "textvqa.org/dataset (TextVQA_0.5.1_val.json, train_val_images.zip)"
    metric = "VQA accuracy over ten answers, with mmf's normaliser"
    form = "{question}\n" + SHORT

    def read(self) -> list[Row]:
        return read_json(self.file("TextVQA_0.5.1_val.json"))["data"]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["question_id"],
            "prompt": self.form.format(question=row["question"].capitalize()),
            "GT": row["answers"],
            "image_path": str(self.root / "train_images" / f"{row['image_id']}.jpg"),
        }

    def score(self, answer: str, sample: Row) -> float:
        return vqa_accuracy(answer, sample["GT"])
