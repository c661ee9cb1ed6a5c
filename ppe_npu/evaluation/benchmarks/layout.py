"""The embedded benchmarks, with one-word answers: coloured figures on a grid (drawn and asked about by
ppe_npu.demo.scenes), and clips of a board whose squares change (ppe_npu.demo.clips).

Data: a .jsonl split of packed records like those for training, or a folder with test.jsonl. There is one sample per
question; its type is the question's first word (shape, row, col, barlen, count; towards, times, changed).
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
        path: a .jsonl file, a folder with test.jsonl, or a data root with such a folder of the benchmark's name.

    Raises:
        InputError: there is no data, or it has another form.
    """

    name = "layout"
    modality = "image"
    _made_by = "`ppe-npu train` without arguments"

    def __init__(self, path: str | Path) -> None:
        named = Path(path) / self.name
        path = named if named.is_dir() else Path(path)
        file = path / "test.jsonl" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"benchmark data {file} does not exist: run {self._made_by}, which makes it")
        self._samples: list[dict[str, Any]] = []
        for record in read_records(file):
            found = record.images if self.modality == "image" else record.videos
            if len(found) != 1:
                raise InputError(f"{record.where} has {len(found)} {self.modality}s: this benchmark asks about one")
            number = len(self._samples)
            questions = enumerate(record.questions() if record.independent else [record.messages()])
            self._samples += [self._sample(number + at, found[0], messages) for at, messages in questions]

    def _sample(self, index: int, path: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        prompt = next(item["text"] for item in messages[0]["content"] if item["type"] == "text")
        answer = messages[1]["content"][0]["text"]
        return {
            "index": index,
            "prompt": prompt,
            "GT": answer,
            "type": prompt.split()[0],
            f"{self.modality}_path": path,
        }

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._samples[number]

    def score(self, answer: str, sample: dict[str, Any]) -> float:
        """1 if the answer is the expected word, else 0."""
        return exact_match(answer, sample["GT"])


class Motion(Layout):
    """Every question of every clip of a split; arguments as for Layout."""

    name = "motion"
    modality = "video"
    _made_by = "`ppe-npu demo --motion`"
