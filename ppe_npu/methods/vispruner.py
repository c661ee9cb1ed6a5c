"""VisPruner: important tokens, and diverse ones among the others (Zhang et al., arXiv 2412.01818v2, section 4)."""

from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import dropped, share_of, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.thinning import important_and_diverse
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """Of the M tokens that stay floor(M * important_ratio) are those that receive the most attention in the tower; the
    others are thinned until M are left (thinning.py): of even against odd ones, 8 at a time, those whose best cosine is
    the largest go.

    The published code reads attention from the class token of a CLIP tower; here it is what a token receives in a block
    of the tower, the mean over queries. It crashes where the number that is left is odd at some step: here the even
    ones are then one more.

    Args:
        ratio: share of a frame's tokens that is kept.
        important_ratio: the share of these that is kept by attention alone.
        tower_block: the block of the vision tower whose attention counts, from the end where negative.
        tower_windows: what is done where that block attends in windows, see choosing.tower_windows.
        dropped: what becomes of the others, see choosing.dropped.
    """

    ratio: float = share(1 / 9)
    important_ratio: float = setting(0.5, least=0, most=1)
    tower_block: int = -1
    tower_windows: str = tower_windows()
    dropped: str = dropped()

    needs = frozenset({"tokens", "tower_saliency"})

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("vispruner", *sorted(self.needs))
        important = share_of(view.num_kept, self.important_ratio)
        kept = important_and_diverse(view, view.tower_saliency, important)
        return Grouping.of_kept(view, kept, self.dropped)
