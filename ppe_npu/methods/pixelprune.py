"""PixelPrune: drops what neighbours predict, before the vision tower (arXiv 2604.00886)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register
from ppe_npu.methods.predicting import Cells, Prediction, Thinning, connected, pred_2d, runs, scattered, sources
from ppe_npu.settings import setting


@register("pixelprune")
@dataclass(frozen=True)
class PixelPrune(Method):
    """Drops the cells (the patches of one visual token) of pictures that a cell to the left or above predicts. Videos
    are left as they are.

    Every dropped cell's chain of predictions ends in a kept cell, its source. The group of a kept cell consists of all
    cells with that source. Cells are compared by their pixel values in [0, 1], in fp32.

    Args:
        predictor: "pred_2d", the cell to the left, or above at an edge that runs down; "raster" and "serpentine", the
            first cell of a run, where rows are walked in one direction or alternately; "connected", any cell of the
            same component of like neighbours; "random", a control that draws as many cells as pred_2d keeps.
        metric: distance of two cells: the largest difference ("max"), the mean difference ("mae"), or the root mean
            square of the differences ("rmse"); "exact" is "max" at threshold 0.
        threshold: a cell is predicted if its distance, in fp32, is at most this; at 0, if it is equal.
        anchored: compare with the kept cell that represents the neighbour, so that errors do not add up; else with the
            neighbour itself. Only for pred_2d, raster and serpentine.
        max_kept: the most cells of a picture to keep, those of largest prediction error; null: no limit.
        fill: always keep max_kept cells, or all if there are fewer, so that the number follows from a picture's size.
        min_share: the smallest share of a picture's cells to keep, those of largest error; max_kept takes precedence.
        skip_ratio: for "connected", the fraction of a component to drop; at least one cell stays.
        rand: for "connected", whether the cells that stay are drawn; else they are evenly spaced in raster order.
        align_compression: for "connected", keep as many cells as pred_2d would: the fraction that this implies replaces
            `skip_ratio`, and missing or surplus cells are drawn.
        seed: for "random", `rand` and `align_compression`.
        leave_after: how many blocks of the vision tower run on all cells before the dropped ones leave; 0: they never
            enter it; -1: they leave after the tower. Until then the kept cells attend to the others.
        numbering: positions of the text after a picture: "prompt", as if nothing were dropped; "kept", starting after
            the largest position of a kept cell, as in the port of the published code to vLLM.
    """

    predictor: Literal["pred_2d", "raster", "serpentine", "connected", "random"] = "pred_2d"
    metric: Literal["max", "mae", "rmse", "exact"] = "max"
    threshold: float = setting(0.0, least=0, remedy="give the largest difference of equal cells, at least 0")
    anchored: bool = True
    max_kept: int | None = setting(None, least=1, remedy="give how many cells may stay, at least 1, or null")
    fill: bool = False
    min_share: float = setting(0.0, least=0, most=1, remedy="give a share of the cells, in [0, 1]")
    skip_ratio: float = setting(1.0, least=0, most=1, remedy="give a share of a component's cells, in [0, 1]")
    rand: bool = False
    align_compression: bool = False
    seed: int = setting(42, least=0, remedy="give a whole number, at least 0 and below 2**63")
    leave_after: int = setting(0, least=-1, remedy="give a number of tower blocks, or -1 for after the tower")
    numbering: Literal["prompt", "kept"] = "prompt"

    needs = frozenset({"pixels"})
    places = ("pixels",)

    def __post_init__(self):
        super().__post_init__()
        if self.fill and self.max_kept is None:
            raise InputError("pixelprune fill=true without max_kept: give max_kept, the number of cells to keep")

    def to_dict(self) -> dict:
        values = super().to_dict()
        if not self.leave_after:  # files of earlier versions do not have this key
            del values["leave_after"]
        return values

    @property
    def counts(self) -> str:
        return "exact" if self.fill else "late"

    def kept(self, tokens: int) -> int:
        """How many of `tokens` cells stay: exactly if `fill` is set, else at most."""
        return tokens if self.max_kept is None else min(self.max_kept, tokens)

    @torch.no_grad()
    def select(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose cells of one picture.

        Args:
            cells: [H, W, D] floating point, pixel values in [0, 1] of each cell, with the normalisation undone.

        Returns:
            kept: [H, W] bool.
            source: [H, W] int64, the raster index of the kept cell that represents each cell; a kept cell's own.
            Both are on the device of the cells, or, for "connected", "random" and anchored runs, on the host.
        """
        height, width, _ = cells.shape
        found = self._predicted(cells.detach().float().reshape(height * width, -1), width)
        kept, total = found.kept, height * width
        if self._limited:
            most = self.kept(total)
            kept = found.limited(most if self.fill else min(math.ceil(total * self.min_share), most), most)
        return kept.view(height, width), sources(found.leans(kept), kept).view(height, width)

    @property
    def _limited(self) -> bool:
        return self.max_kept is not None or self.min_share > 0

    def _predicted(self, flat: torch.Tensor, width: int) -> Prediction:
        """The prediction for the cells `flat` [N, D] of a picture that is `width` cells wide."""
        exact = self.metric == "exact"
        metric, threshold = ("max", 0.0) if exact else (self.metric, self.threshold)
        cells = Cells(flat, width, metric, threshold, errors=self._limited)
        if self.predictor == "connected":
            share, total = self.skip_ratio, None
            if self.align_compression:
                total = int(pred_2d(cells, self.anchored).kept.sum())
                share = 1 - total / len(cells)
            return connected(cells, Thinning(share, self.rand, self.seed, total))
        if self.predictor in ("raster", "serpentine"):
            if self.anchored and threshold > 0 and not cells.on_host:  # a run starts where the last one ends
                cells = Cells(flat.cpu(), width, metric, threshold, errors=self._limited)
            order = cells.numbers.view(-1, width).clone()
            if self.predictor == "serpentine":
                order[1::2] = order[1::2].flip(1)
            return runs(cells, order.flatten(), self.anchored)
        found = pred_2d(cells, self.anchored)
        if self.predictor == "random":
            return scattered(int(found.kept.sum()), len(cells), width, self.seed)
        return found
