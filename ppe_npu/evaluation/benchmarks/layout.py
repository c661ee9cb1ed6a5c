"""The embedded benchmark: coloured figures on a grid, one-word answers (ppe_npu.demo.scenes draws and asks).

Data: a .jsonl split of packed records as training reads them, or a folder that holds test.jsonl. One sample a question;
its type is the question's first word (shape, row, col, barlen, count).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.metrics import exact_match
from ppe_npu.training.data import read_records


class Layout:
    """Every question of every scene of a split.

    Args:
        path: a .jsonl file, the folder of test.jsonl, or the data root that holds such a folder under the name layout.

    Raises:
        InputError: no data there, or data of another form.
    """

    name = "layout"
    modality = "image"

    def __init__(self, path: str | Path) -> None:
        named = Path(path) / "layout"
        path = named if named.is_dir() else Path(path)
        file = path / "test.jsonl" if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                f"benchmark data {file} does not exist: run `ppe-npu train` without arguments, which makes it"
            )
        self._samples: list[dict[str, Any]] = []
        for record in read_records(file):
            if len(record.images) != 1:
                raise InputError(f"{record.where} has {len(record.images)} images: this benchmark asks about one")
            number = len(self._samples)
            questions = enumerate(record.questions() if record.independent else [record.messages()])
            self._samples += [self._sample(number + at, record.images[0], messages) for at, messages in questions]

    @staticmethod
    def _sample(index: int, image: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        prompt = next(item["text"] for item in messages[0]["content"] if item["type"] == "text")
        answer = messages[1]["content"][0]["text"]
        return {"index": index, "prompt": prompt, "GT": answer, "type": prompt.split()[0], "image_path": image}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._samples[number]

    def score(self, answer: str, sample: dict[str, Any]) -> float:
        """1 if the answer is the expected word, else 0."""
        return exact_match(answer, sample["GT"])
