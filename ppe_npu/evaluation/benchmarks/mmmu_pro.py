"""MMMU-Pro (Yue et al. 2024, arXiv 2409.02813): MMMU's questions with ten options, or as a picture of all of it."""

from __future__ import annotations

from functools import partial

from ppe_npu.evaluation.benchmarks.dataset import LETTER, Row, Sample, lettered
from ppe_npu.evaluation.benchmarks.mmmu import MMMU, listed, place
from ppe_npu.evaluation.metrics import mmmu_pro_letter


class MMMUPro(MMMU):
    """Ten options; the prompt asks for the letter ("direct"). The paper's numbers are the better of direct and chain of
    thought, averaged over this and the vision setting."""

    name = "mmmu_pro"
    folder = "mmmu_pro"
    needs = ("standard (10 options)/test-*.parquet",)
    home = "data set MMMU/MMMU_Pro on the Hugging Face Hub (standard (10 options), parquet)"
    metric = "accuracy; the letter after the last Answer:, else as in mmmu (mmmu-pro/evaluate.py); no letter is wrong"
    form = "{question}\n{options}\n" + LETTER

    def sample(self, row: Row) -> Row:
        options = listed(row["options"])
        prompt, pictures = place(self.form.format(question=row["question"], options=lettered(options)), self.shown)
        return Sample(self.fields(row, prompt, options), image=partial(self._images, row["number"], pictures))

    def fields(self, row: Row, prompt: str, options: list[str]) -> Row:
        """The fields of a sample except its pictures."""
        kind = row.get("subject") or row["id"].split("_", 1)[1].rsplit("_", 1)[0]
        return {"index": row["id"], "prompt": prompt, "GT": row["answer"], "type": kind, "options": options}

    def score(self, answer: str, sample: Row) -> float:
        return float(mmmu_pro_letter(answer, sample["options"]) == sample["GT"])


class MMMUProVision(MMMUPro):
    """Question and options are inside the picture."""

    name = "mmmu_pro_vision"
    needs = ("vision/test-*.parquet",)
    home = "data set MMMU/MMMU_Pro on the Hugging Face Hub (vision, parquet)"
    form = (
        "Answer with the option letter from the given choices directly. The last line of your response should be of "
        "the following format: 'Answer: LETTER' (without quotes) where LETTER is one of options."
    )

    columns = ("image",)

    def sample(self, row: Row) -> Row:
        fields = self.fields(row, self.form, listed(row["options"]))
        return Sample(fields, image=partial(self.picture, row["number"]))
