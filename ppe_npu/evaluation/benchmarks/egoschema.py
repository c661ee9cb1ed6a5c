"""EgoSchema (Mangalam et al. 2023, arXiv 2308.09126): the 500 questions whose answers are public."""

from __future__ import annotations

from ppe_npu.evaluation.benchmarks.dataset import LETTER, LETTERS, Choice, Row, lettered
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import egoschema_letter


class EgoSchema(Choice):
    """Three minutes of video, five options. Prompt and letter: lmms-eval tasks/egoschema."""

    name = "egoschema"
    modality = "video"
    folder = "egoschema"
    needs = ("questions.json", "subset_answers.json", "videos")
    home = "github.com/egoschema/EgoSchema (questions.json, subset_answers.json, its download script for videos)"
    metric = "accuracy; letters as lmms-eval 0.7.3 reads them; an answer without one is wrong, or drawn (--draws)"
    edition = 2
    form = "{question}\n{options}\n" + LETTER

    def read(self) -> list[Row]:
        answers = read_json(self.file("subset_answers.json"))
        questions = read_json(self.file("questions.json"))
        return [{**row, "answer": answers[row["q_uid"]]} for row in questions if row["q_uid"] in answers]

    def sample(self, row: Row) -> Row:
        options = [row[f"option {number}"] for number in range(5)]
        return {
            "index": row["q_uid"],
            "prompt": self.form.format(question=row["question"], options=lettered(options)),
            "GT": LETTERS[int(row["answer"])],
            "video_path": self.video("videos", row["q_uid"]),
            "options": options,
        }

    def letter(self, answer: str, sample: Row) -> str:
        return egoschema_letter(answer, sample["options"])
