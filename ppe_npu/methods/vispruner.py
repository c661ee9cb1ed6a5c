"""VisPruner: keeps important tokens, and diverse ones among the others (Zhang et al., arXiv 2412.01818v2, 4)."""

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
    """Keeps M tokens. floor(M * important_ratio) of them are those that receive the most attention in the tower; the
    others are thinned until M are left (thinning.py): even ones are compared with odd ones, and 8 at a time, those with
    the largest best cosine are removed.

    The published code reads attention from the class token of a CLIP tower; here it is the attention that a token
    receives in a block of the tower, the mean over queries. The published code crashes if an odd number of tokens is
    left at some step; here there is then one more even token than odd ones.

    Args:
        ratio: fraction of a frame's tokens to keep.
        important_ratio: the fraction of these that is kept by attention alone.
        tower_block: the block of the vision tower whose attention is used; negative: counted from the end.
        tower_windows: what to do if that block attends in windows, see choosing.tower_windows.
        dropped: what becomes of the other tokens, see choosing.dropped.
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
