"""POPE (Li et al. 2023, arXiv 2305.10355): is an object in the picture? Three ways of choosing absent objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_jsonl
from ppe_npu.evaluation.metrics import pope_label, pope_recalled, pope_scores
from ppe_npu.evaluation.protocols import Protocol

_SPLITS = ("random", "popular", "adversarial")


class POPE(Dataset):
    """The type is the split. Prompt: lmms-eval tasks/pope."""

    name = "pope"
    modality = "image"
    folder = "pope"
    needs = (*(f"coco_pope_{split}.json" for split in _SPLITS), "val2014")
    home = "github.com/AoiDragon/POPE (output/coco) and cocodataset.org (val2014.zip)"
    metric = (
        "accuracy, precision, recall, F1 and fraction of yes (POPE evaluate.py), averaged over the splits; lmms-eval "
        "and VLMEvalKit count all questions together; lmms-eval leaves answers that are neither yes nor no out of "
        "recall and F1, and its fraction of yes is that of the true labels"
    )
    form = "{question}\n" + SHORT
    max_new_tokens = 128
    headline = "f1"
    together = False  # whether the questions of all splits are counted together
    as_lmms_eval = False  # see pope_scores()

    def use(self, protocol: Protocol) -> None:
        super().use(protocol)
        self.together = protocol.rules in ("lmms-eval", "vlmevalkit")
        self.as_lmms_eval = protocol.rules == "lmms-eval"

    def read(self) -> Iterable[Row]:
        for split in _SPLITS:
            yield from ({**row, "split": split} for row in read_jsonl(self.file(f"coco_pope_{split}.json")))

    def sample(self, row: Row) -> Row:
        return {
            "index": f"{row['split']}/{row['question_id']}",
            "prompt": self.form.format(question=row["text"].strip()),
            "GT": row["label"],
            "type": row["split"],
            "image_path": str(self.root / "val2014" / row["image"]),
        }

    def score(self, answer: str, sample: Row) -> float:
        return float(pope_label(answer) == sample["GT"])

    def metrics(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The five numbers of pope_scores() for each split, and their means over the splits (LLaVA reports the mean F1)
        or, as in lmms-eval and VLMEvalKit, those of all questions together."""
        splits: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            splits.setdefault(row["type"], []).append((self.said(row), row["GT"]))
        found = {split: pope_scores(labels, self.as_lmms_eval) for split, labels in splits.items()}
        every = pope_scores((pair for labels in splits.values() for pair in labels), self.as_lmms_eval)
        parts = [every] if self.together else list(found.values())
        means = {name: sum(part[name] for part in parts) / max(len(parts), 1) for name in every}
        return {**means, **{f"{split} {name}": value for split in found for name, value in found[split].items()}}

    def said(self, row: Mapping[str, Any]) -> str:
        """The label of an answer: "yes", "no", another word, or "failed" for a failed sample, as "" would mean yes."""
        if row.get("error"):
            return "failed"
        if self.official is None:
            return pope_label(row["answer"])
        return next((word for word in ("yes", "no") if self.official(row["answer"], word, ()) == 1.0), "other")

    def addends(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, list[float]]:
        """{index: for each split, hits, said yes, counted by recall, rows}; zeros for other splits."""
        found = {}
        for row in rows:
            said, true = self.said(row), row["GT"]
            recalled = pope_recalled(said, true, self.as_lmms_eval)
            counts = [float(said == true == "yes"), float(said == "yes"), float(recalled), 1.0]
            found[row["index"]] = [n * (row["type"] == split) for split in _SPLITS for n in counts]
        return found

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """The mean over the splits of F1 = 2 hits / (said yes + recalled), or the F1 of all questions together."""
        counts = sums.reshape(*sums.shape[:-1], len(_SPLITS), 4)
        counts = counts.sum(-2, keepdims=True) if self.together else counts
        hits, said, recalled, rows = np.moveaxis(counts, -1, 0)
        scores = 2 * hits / np.maximum(said + recalled, 1)
        return scores.sum(-1) / np.maximum((rows > 0).sum(-1), 1)
