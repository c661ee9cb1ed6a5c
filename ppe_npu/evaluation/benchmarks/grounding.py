"""Locating things in pictures: RefCOCO, RefCOCO+, RefCOCOg (Yu et al. 2016, arXiv 1608.00272; Mao et al. 2016,
arXiv 1511.02283) and ScreenSpot-v2 and -Pro (Wu et al. 2024, arXiv 2410.23218; Li et al. 2025, arXiv 2504.07981).

These benchmarks are sensitive to positions: pruning that keeps 95 % of a VQA score keeps 7 to 47 % of these scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ppe_npu.data.pictures import image_size
from ppe_npu.evaluation.benchmarks.dataset import ByType, Pictured, Row, Sample, several
from ppe_npu.evaluation.benchmarks.readers import Parquet, read_json
from ppe_npu.evaluation.metrics import boxes


class Grounding(ByType):
    """A benchmark whose answers are boxes, in the format of the model's family (metrics/boxes.py).

    meet() provides the family and the size of a picture as the model sees it; before that, numbers are thousandths.
    """

    modality = "image"
    form = "Locate {expression}, output its bbox coordinates using JSON format."
    edition = 3
    max_new_tokens = 64
    _answers: Any = None

    def meet(self, answers: Any) -> None:
        """Use the family and seen_size() of the model whose answers will be scored."""
        self._answers = answers

    def said(self, answer: str, size: tuple[int, int]) -> tuple[float, ...]:
        """The box or point of an answer about a picture of size (width, height), as fractions of its sides."""
        family = getattr(self._answers, "family", "")
        seen = self._answers.seen_size(*size) if family in boxes.PIXELS else size
        return boxes.shares(boxes.written(answer), family, seen)

    def fields(self, index: str, expression: str, box: tuple[float, ...], size: tuple[int, int], kind: str) -> Row:
        """A sample without its picture. box: left, top, right, bottom in pixels."""
        target = tuple(number / size[at % 2] for at, number in enumerate(box))
        prompt = self.form.format(expression=expression)
        return {"index": index, "prompt": prompt, "GT": str(list(box)), "type": kind, "box": target, "size": size}


class RefCOCO(Pictured, Grounding):
    """Every expression of every object; the type is the split (val, testA: people, testB: other things).

    The data set's test, and 5,000 of the 8,811 objects of its val, belong to Google's split of the same objects, which
    papers do not report. So test is left out, and numbers on val are not comparable with papers'. The same holds for
    5,000 of RefCOCOg's 7,573 objects in val.
    """

    name = "refcoco"
    folder = "refcoco"
    needs = ("**/*.parquet",)
    splits: tuple[str, ...] = ("val", "testA", "testB")
    home = "data set lmms-lab/RefCOCO on the Hugging Face Hub (testA and testB as in papers, a larger val)"
    metric = "Acc@0.5: the box's overlap with the right one is at least half of their union"

    def read(self) -> Iterable[Row]:
        paths = [path for path in self.files(self.needs[0]) if _split(path) in self.splits]
        self._refuse([] if paths else [f"data/{split}-*.parquet" for split in self.splits])
        self._table = Parquet(paths, large=self.columns)
        for number, row in enumerate(self._table.rows):
            split = _split(self._table.path(number))
            for at, expression in enumerate(several(row["answer"])):
                yield {
                    **row,
                    "number": number,
                    "expression": expression,
                    "index": f"{split}/{number}/{at}",
                    "split": split,
                }

    def sample(self, row: Row) -> Row:
        left, top, width, height = row["bbox"]
        box = (left, top, left + width, top + height)
        size = self.picture(row["number"]).size
        fields = self.fields(row["index"], row["expression"], box, size, row["split"])
        return Sample(fields, image=partial(self.picture, row["number"]))

    def score(self, answer: str, sample: Row) -> float:
        said = self.said(answer, sample["size"])
        return float(len(said) == 4 and boxes.overlap(said, sample["box"]) >= 0.5)


def _split(path: Path) -> str:
    """The split of a file named like val-00000-of-00004.parquet, or like val/0000.parquet as converted by the hub."""
    return path.parent.name if path.stem.isdigit() else path.stem.split("-")[0]


class RefCOCOPlus(RefCOCO):
    """RefCOCO+: expressions without words for locations."""

    name = folder = "refcoco_plus"
    home = "data set lmms-lab/RefCOCOplus on the Hugging Face Hub (val, testA, testB)"


class RefCOCOg(RefCOCO):
    """RefCOCOg: longer expressions; the splits are val and test."""

    name = folder = "refcocog"
    splits = ("val", "test")
    home = "data set lmms-lab/RefCOCOg on the Hugging Face Hub (test as in papers, a larger val)"


class ScreenSpotV2(Grounding):
    """Elements of screens of phones, desktops and the web; the type is text or icon."""

    name = folder = "screenspot_v2"
    needs = ("screenspot_*_v2.json", "screenspotv2_image")
    home = "data set OS-Copilot/ScreenSpot-v2 on the Hugging Face Hub (boxes as x, y, width, height)"
    metric = "accuracy: the point, or the centre of the box, lies in the element's box"
    form = 'Locate the element that "{expression}" is about, output its bbox coordinates using JSON format.'
    pictures = "screenspotv2_image"

    def read(self) -> Iterable[Row]:
        for path in self.files(self.needs[0]):
            for number, row in enumerate(read_json(path)):
                yield {**row, "index": f"{path.stem}/{number}"}

    def target(self, row: Row) -> tuple[float, ...]:
        """Left, top, right, bottom in pixels."""
        left, top, width, height = row["bbox"]
        return left, top, left + width, top + height

    def sample(self, row: Row) -> Row:
        path = self.root / self.pictures / row["img_filename"]
        size = image_size(path)[::-1] if path.is_file() else (1, 1)  # _check_rows names the file that is missing
        kind = str(row.get("data_type") or row.get("ui_type") or "all")
        fields = self.fields(row["index"], row["instruction"], self.target(row), size, kind)
        return {**fields, "image_path": str(path)}

    def score(self, answer: str, sample: Row) -> float:
        said = self.said(answer, sample["size"])
        return float(bool(said) and boxes.hits(said, sample["box"]))


class ScreenSpotPro(ScreenSpotV2):
    """Small elements of large professional screens; the type is text or icon."""

    name = folder = "screenspot_pro"
    needs = ("annotations/*.json", "images")
    home = "data set likaixin/ScreenSpot-Pro on the Hugging Face Hub (boxes as left, top, right, bottom)"
    pictures = "images"

    def target(self, row: Row) -> tuple[float, ...]:
        return tuple(row["bbox"])
