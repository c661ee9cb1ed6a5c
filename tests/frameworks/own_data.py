"""A few questions about drawn pictures in a file that both frameworks read, our own loss on them, and the code that
docs/compatibility.md gives to users."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import ppe_npu
from ppe_npu import CompressionConfig, compress
from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.training.collator import NOTES, Collator
from ppe_npu.training.data import Record

PPE, DENSE = CompressionConfig.preset("ppe", ratio=0.25, k=4), CompressionConfig.preset("dense")
QUESTIONS = [("row red", "3"), ("shape blue", "ring"), ("count green", "5")]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


def written(framework: str) -> str:
    """The file's text on the page, found by a word in its first line."""
    for text in re.findall(r"(?:(?<=\n)(?: {4}.*)?\n)+", PAGE.read_text(encoding="utf-8")):
        if framework in text.strip().split("\n")[0]:
            return "\n".join(line[4:] for line in text.split("\n"))
    raise AssertionError(f"{PAGE.name} has no text for {framework}")


class Data:
    """Questions, written to a file of messages.

    Args:
        folder: where the file is written. sizes: the size of each question's picture in pixels; None: no picture.
    """

    def __init__(self, folder: Path, sizes: Sequence[tuple[int, int] | None]):
        self.folder, self.file, self.records, rows = folder, folder / "own.json", [], []
        for number, ((question, answer), size) in enumerate(zip(QUESTIONS, sizes)):
            images = []
            if size is not None:
                images = [str(folder / f"{number}.png")]
                Image.radial_gradient("L").rotate(30 * number).resize(size).convert("RGB").save(images[0])
            question = "<image>" * len(images) + question
            turns = (("user", question), ("assistant", answer))
            rows.append({"messages": [{"role": role, "content": text} for role, text in turns], "images": images})
            self.records.append(Record(str(number), tuple(images), (), turns))
        self.file.write_text(json.dumps(rows))

    def loss(self, checkpoint: str, config: CompressionConfig) -> float:
        """The loss of all questions in one batch of our own collator."""
        model = compress(load_model(checkpoint), config)
        batch = Collator(load_processor(checkpoint), model.compression.vision)(self.records)
        with torch.no_grad():
            return model(**{name: value for name, value in batch.items() if name not in NOTES}).loss.item()


def watched(monkeypatch, config: CompressionConfig) -> list[float]:
    """A list that collects the loss of every pass of models compressed from now on. They are compressed by `config`
    instead of the page's configuration, which must be PPE."""
    losses: list[float] = []

    def watch(model, said: CompressionConfig):
        assert said == PPE
        compress(model, config)
        model.register_forward_hook(lambda _, args, output: losses.append(output.loss.item()))
        return model

    monkeypatch.setattr(ppe_npu, "compress", watch)
    return losses
