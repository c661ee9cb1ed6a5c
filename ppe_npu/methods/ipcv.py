"""IPCV: removes patches in early blocks of the vision tower and rebuilds them at its end (arXiv 2512.18747)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import register
from ppe_npu.methods.choosing import exact
from ppe_npu.methods.leaving import Leaving
from ppe_npu.methods.tower_methods import RebuildingMethod
from ppe_npu.settings import setting


@register("ipcv")
@dataclass(frozen=True)
class IPCV(RebuildingMethod):
    """Before block K of the vision tower, the patches that block K - 1 changed most, by |h(K) - h(K-1)|, stay, and the
    others leave. At the end of the tower each of these is rebuilt as h_i = h_i(K) + mean over N(i) of (h_j - h_j(K)),
    where N(i) are the staying patches nearest to it before block K. So the decoder gets all tokens.

    In the first blocks from K on, rebuilt patches still serve as keys and values; only their queries and MLP are saved.
    Patches compete, and find neighbours, among all images of a prompt, and likewise among all of its videos. Positions
    of merged tokens are not affected: the tower's output may be merged before the decoder or at its layers.

    The published code supports Qwen2-VL with one prompt at a time. It counts the first patch of each frame as part of
    the frame before, so that attention crosses frames once patches have left; here it does so only with `released`.

    Args:
        keep: fraction of the patches that stay: int(L * keep) of L, at least one. 1: the tower is left as it is.
        prune_block: K, counted from 0. A tower with K or fewer blocks is left as it is.
        stabilized_blocks: how many blocks from K on have the rebuilt patches as keys and values.
        neighbors: number of staying patches from which each of the others is rebuilt, fewer where fewer stay.
        per_image: whether patches compete only within one image or video.
        released: frames start and end as in the published code.
    """

    keep: float = setting(0.35, above=0, most=1, remedy="give the kept share of the patches, in (0, 1]")
    prune_block: int = setting(3, least=1, remedy="give a block of the vision tower, 1 or a later one")
    stabilized_blocks: int = setting(7, least=0)
    neighbors: int = setting(10, least=1)
    per_image: bool = False
    released: bool = False

    @property
    def pool(self) -> str:
        return "image" if self.per_image else "prompt"

    def stay(self, patches: int) -> int:
        return max(int(patches * self.keep), 1)

    def choose(self, before: torch.Tensor, now: torch.Tensor, pools: Sequence[int]) -> Leaving:
        with exact(now):
            wide = torch.promote_types(now.dtype, torch.float32)
            changes = (now.to(wide) - before.to(wide)).norm(dim=-1)
        return Leaving.of_scores(changes, now, pools, list(map(self.stay, pools)), self.neighbors)

    def borders(self, rows: np.ndarray, borders: Sequence[int], pools: Sequence[int] = ()) -> np.ndarray:
        """The published code also counts the row at a border, except at the end of a pool, where its call ends."""
        counts = super().borders(rows, borders, pools)
        if self.released:
            inner = ~np.isin(borders, [0, borders[-1], *np.cumsum(pools)])
            counts[inner] = np.searchsorted(rows, np.array(borders)[inner], side="right")
        return counts

    def check_tower(self, blocks: int, tiles: bool) -> None:
        super().check_tower(blocks, tiles)
        if self.released and tiles:
            raise InputError(
                f"{self.name} released=true: the published borders are those of frames in Qwen2-VL's tower, but this "
                "one has tiles with a class token each; leave released out"
            )
