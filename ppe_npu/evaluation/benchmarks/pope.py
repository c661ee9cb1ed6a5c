"""POPE (Li et al. 2023, arXiv 2305.10355): is an object in the picture? Three ways of choosing absent objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks.dataset import SHORT, Dataset, Row
from ppe_npu.evaluation.benchmarks.readers import read_jsonl
from ppe_npu.evaluation.metrics import pope_label, pope_scores

_SPLITS = ("random", "popular", "adversarial")


class POPE(Dataset):
    """The type is the split. Prompt: lmms-eval tasks/pope."""

    name = "pope"
    modality = "image"
    folder = "pope"
    needs = (*(f"coco_pope_{split}.json" for split in _SPLITS), "val2014")
    home = "github.com/AoiDragon/POPE (output/coco) and cocodataset.org (val2014.zip)"
    metric = "accuracy, precision, recall, F1, share of yes (POPE evaluate.py)"
    form = "{question}\n" + SHORT
    max_new_tokens = 128
    headline = "f1"

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
        """The five numbers of each split, and their means over the splits (LLaVA reports the mean F1)."""
        splits: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            said = "failed" if row.get("error") else pope_label(row["answer"])  # an empty answer would say yes
            splits.setdefault(row["type"], []).append((said, row["GT"]))
        found = {split: pope_scores(labels) for split, labels in splits.items()}
        names = pope_scores([])
        means = {name: sum(scores[name] for scores in found.values()) / max(len(found), 1) for name in names}
        return {**means, **{f"{split} {name}": value for split in found for name, value in found[split].items()}}
