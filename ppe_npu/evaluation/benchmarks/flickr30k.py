"""Captions of Flickr30k (Young et al. 2014), Karpathy's test split of 1000 pictures (arXiv 1412.2306)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_json
from ppe_npu.evaluation.metrics import cider


class Flickr30k(Dataset):
    """One caption per picture, five references. Prompt: lmms-eval tasks/flickr30k, which uses all 31,783 pictures."""

    name = "flickr30k"
    modality = "image"
    folder = "flickr30k"
    needs = ("dataset_flickr30k.json", "flickr30k-images")
    home = "shannon.cs.illinois.edu/DenotationGraph (pictures) and Karpathy's caption_datasets.zip (splits)"
    metric = "CIDEr-D of the corpus, as pycocoevalcap computes it (10 at best; shown times 100, as papers quote it)"
    form = "Provide a one-sentence caption for the provided image."
    max_new_tokens = 64
    headline = "CIDEr"
    maximum = 10.0
    edition = 2  # the second edition tokenizes like PTBTokenizer

    def read(self) -> list[Row]:
        return [row for row in read_json(self.file("dataset_flickr30k.json"))["images"] if row["split"] == "test"]

    def sample(self, row: Row) -> Row:
        return {
            "index": row["imgid"],
            "prompt": self.form,
            "GT": [sentence["raw"] for sentence in row["sentences"]],
            "image_path": str(self.root / "flickr30k-images" / row["filename"]),
        }

    def score(self, answer: str, sample: Row) -> None:
        """None, because CIDEr's weights depend on all references, so that no caption has a score of its own."""

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        """Each caption's CIDEr and a 1. Document frequencies are those of all pictures, not of a resample's."""
        rows = list(rows)
        scores = cider([row["answer"] for row in rows], [row["GT"] for row in rows])
        return {row["index"]: [score, 1.0] for row, score in zip(rows, scores)}

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        found = list(self.addends(rows).values())
        return {"CIDEr": sum(score for score, _ in found) / len(found) if found else 0.0}
