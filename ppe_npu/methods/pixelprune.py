"""PixelPrune: what neighbours predict is dropped before the vision tower (arXiv 2604.00886)."""

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
    """Cells (the patches of one visual token) that what is left of them or above predicts are dropped. Of
    pictures alone: videos are left as they are.

    Every dropped cell's chain of predictions ends in a kept one, its source: the group of a kept cell is those that end
    in it. Cells are compared by their pixel values in [0, 1], in fp32.

    Args:
        predictor: "pred_2d", from the left, or from above at an edge that runs down; "raster" and "serpentine", the
            first cell of the run that goes on, row by row or turning at the end of each; "connected", a component of
            like neighbours is one; "random", a control: as many cells as pred_2d keeps, drawn.
        metric: of two cells: the largest difference ("max"), the mean of the differences ("mae"), or the root of the
            mean of their squares ("rmse"); "exact" is "max" at threshold 0.
        threshold: a cell is predicted where its distance is at most this, rounded to fp32; 0: where it is equal.
        anchored: cells are compared with the kept cell that stands for the one beside them, so that errors do not add
            up; else with the cell beside them itself. Only of pred_2d, raster and serpentine.
        max_kept: at most so many cells of a picture are kept, those of the largest prediction error; null: no limit.
        fill: so many are kept wherever there are as many: the number is exact, and known from a picture's size.
        min_share: the least share of a picture's cells that is kept, those of the largest error; max_kept goes before.
        skip_ratio: of "connected": the share of a component that goes; at least one cell stays.
        rand: of "connected": which of them stay is drawn; else they stand evenly in raster order.
        align_compression: of "connected": as many stay as pred_2d would keep. In place of `skip_ratio` that share goes
            of each component, and what is missing or too many then is drawn.
        seed: of "random", `rand` and `align_compression`.
        leave_after: how many blocks of the vision tower run on all cells before the dropped ones leave; 0: they never
            enter it; -1: they leave behind the tower. What is kept has seen the others by then.
        numbering: of the text behind a picture: "prompt", as if nothing were dropped; "kept", from the largest position
            of a cell that is kept on, as the published code's port to vLLM has it.
    """

    predictor: Literal["pred_2d", "raster", "serpentine", "connected", "random"] = "pred_2d"
    metric: Literal["max", "mae", "rmse", "exact"] = "max"
    threshold: float = setting(0.0, least=0, remedy="give the largest difference of like cells, at least 0")
    anchored: bool = True
    max_kept: int | None = setting(None, least=1, remedy="give how many cells may stay, at least 1, or null")
    fill: bool = False
    min_share: float = setting(0.0, least=0, most=1, remedy="give a share of the cells, in [0, 1]")
    skip_ratio: float = setting(1.0, least=0, most=1, remedy="give a share of a component's cells, in [0, 1]")
    rand: bool = False
    align_compression: bool = False
    seed: int = setting(42, least=0, remedy="give a whole number, at least 0 and below 2**63")
    leave_after: int = setting(0, least=-1, remedy="give a number of the tower's blocks, or -1: behind the tower")
    numbering: Literal["prompt", "kept"] = "prompt"

    needs = frozenset({"pixels"})
    places = ("pixels",)

    def __post_init__(self):
        super().__post_init__()
        if self.fill and self.max_kept is None:
            raise InputError("pixelprune fill=True without max_kept: say how many cells shall stay")

    def to_dict(self) -> dict:
        values = super().to_dict()
        if not self.leave_after:  # as files of an earlier edition have it
            del values["leave_after"]
        return values

    @property
    def counts(self) -> str:
        return "exact" if self.fill else "late"

    def kept(self, tokens: int) -> int:
        """How many cells of `tokens` stay; at most, unless it fills."""
        return tokens if self.max_kept is None else min(self.max_kept, tokens)

    @torch.no_grad()
    def select(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose cells of one picture.

        Args:
            cells: [H, W, D] floating point, pixel values in [0, 1] of each cell, its normalisation undone.

        Returns:
            kept: [H, W] bool.
            source: [H, W] int64, the raster index of the kept cell that each one leans on; of a kept one itself.
            Both where the cells are; of "connected", "random" and anchored runs, which are the host's work, there.

        Raises:
            InputError: no such tensor.
        """
        if cells.ndim != 3 or not cells.numel() or not cells.is_floating_point():
            raise InputError(
                f"cells are {cells.dtype} {list(cells.shape)}: give floating point values [rows, columns, values]"
            )
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
        """Of the cells [N, D] of a picture that is `width` cells wide."""
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
            if self.anchored and threshold > 0 and not cells.on_host:  # where a run ends says where the next begins
                cells = Cells(flat.cpu(), width, metric, threshold, errors=self._limited)
            order = cells.numbers.view(-1, width).clone()
            if self.predictor == "serpentine":
                order[1::2] = order[1::2].flip(1)
            return runs(cells, order.flatten(), self.anchored)
        found = pred_2d(cells, self.anchored)
        if self.predictor == "random":
            return scattered(int(found.kept.sum()), len(cells), width, self.seed)
        return found
