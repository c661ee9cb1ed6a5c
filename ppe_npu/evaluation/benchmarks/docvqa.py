"""Validation of DocVQA (Mathew et al. 2021, arXiv 2007.00398) and InfographicVQA (2022, arXiv 2104.12756)."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import anls


class DocVQA(Dataset):
    """Questions about pages; the type is the first of the published question types. Prompt: lmms-eval tasks/docvqa."""

    name = "docvqa"
    modality = "image"
    folder = "docvqa"
    needs = ("val_v1.0*.json", "documents")
    home = "task 1 of DocVQA at rrc.cvc.uab.es (spdocvqa_qas.zip, spdocvqa_images.zip)"
    metric = "ANLS at 0.5, as the Robust Reading Competition computes it"
    form = "{question}\n" + SHORT
    max_new_tokens = 32

    def read(self) -> list[Row]:
        return read_json(self.file(self.needs[0]))["data"]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["questionId"],
            "prompt": self.form.format(question=row["question"]),
            "GT": row["answers"],
            "type": (row.get("question_types") or ["all"])[0],
            "image_path": str(self.root / row["image"]),
        }

    def score(self, answer: str, sample: Row) -> float:
        return anls(answer, sample["GT"])


class InfoVQA(DocVQA):
    """Questions about infographics; the type is the source of the answer. Prompt: lmms-eval tasks/infovqa."""

    name = "infovqa"
    folder = "infovqa"
    needs = ("infographicsVQA_val_v1.0*.json", "infographicsvqa_images")
    home = "task 3 of DocVQA at rrc.cvc.uab.es (infographicsvqa_qas.zip, infographicsvqa_images.zip)"

    def sample(self, row: Row) -> Row:
        picture = f"infographicsvqa_images/{row['image_local_name']}"
        return super().sample({**row, "image": picture, "question_types": row.get("answer_type")})
