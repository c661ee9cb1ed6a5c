"""VTC-CLS: keeps tokens by attention summed over later tower blocks (Wang et al., arXiv 2412.05819, section 3.3)."""

from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, dropped, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View


@register("vtc_cls")
@dataclass(frozen=True)
class VTCCLS(Method):
    """Keeps the tokens that receive the most attention, summed over the blocks of the vision tower from start_layer to
    the last but one.

    The published code reads the class token's row of a CLIP tower; here it is the attention that a token receives, the
    mean over queries. Blocks that attend in windows are left out, because the attention that a token receives in its
    window says nothing about the frame. The published code handles one image at a time; here each frame is a cell.

    Args:
        ratio: fraction of a frame's tokens to keep.
        start_layer: the first block that is used, counted from the end if negative; None: the middle one.
        tower_windows: how blocks that attend in windows are treated, see choosing.tower_windows.
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(1 / 9)
    start_layer: int | None = None
    tower_windows: str = tower_windows("skip")
    dropped: str = dropped()

    needs = frozenset({"tokens", "tower_saliency"})

    @property
    def tower_blocks(self) -> tuple[int, ...]:
        return () if self.start_layer is None else (self.start_layer,)

    def blocks(self, count: int) -> tuple[int, ...]:
        first = next(iter(super().blocks(count)), count // 2)
        return tuple(range(first, max(count - 1, first + 1)))

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("vtc_cls", "tower_saliency", blocks=None)
        rows = view.tower_saliency.float()
        scores = rows if rows.dim() == 2 else rows.sum(1)
        return Grouping.of_kept(view, best(scores, view), self.dropped)
