"""The contract of a method inside the vision tower, in addition to base.py's. There are two kinds:

* RebuildingMethod: from some block on, blocks run only on the patches that stay. The others are rebuilt at the end, so
  that the tower outputs all tokens (ipcv.py).
* JoiningMethod: in some blocks the cells of a frame are joined. A cell is a square of patches that becomes one visual
  token; cells that were joined become one token before the decoder's first layer (tome_tower.py).

A method decides on plain tensors which patches stay, or which cells are joined. Everything else follows from that:
which rows the blocks run on, attention between them, gradients, the work in the report, and the decoder's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppe_npu.backends import device
from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method
from ppe_npu.methods.checked_calls import with_num_kept
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.leaving import Leaving
from ppe_npu.methods.view import View


class TowerMethod(Method):
    """What both kinds have.

    Class attributes:
        pool: which patches compete with each other, or which cells may be joined: those of a "frame"; of an "image" or
            video; or of all images of a "prompt", and likewise of all its videos.
    """

    places = ("tower",)
    if TYPE_CHECKING:  # as in Method

        @property
        def pool(self) -> str: ...

    def check_tower(self, blocks: int, tiles: bool) -> None:
        """Raise InputError if it cannot work in a vision tower with this many blocks. tiles: whether the tower has
        tiles with a class token each, in place of frames."""
        raise NotImplementedError


class RebuildingMethod(TowerMethod):
    """Patches leave before block `prune_block`. At the end of the tower, and wherever all patches are needed, each of
    them is rebuilt from patches that stayed: it has changed since as these have changed on average.

    Class attributes:
        prune_block: the block before which patches leave, at least 1. A tower with that many blocks or fewer is left as
            it is.
        stabilized_blocks: how many blocks from there on still have the rebuilt patches as keys and values.
    """

    must_define = ("prune_block", "stay", "choose")
    tower_pass = "rebuilding"
    restores = True
    if TYPE_CHECKING:

        @property
        def prune_block(self) -> int: ...
        @property
        def stabilized_blocks(self) -> int: ...
        @property
        def scope(self) -> str: ...
    else:
        pool, stabilized_blocks = "prompt", 0
        scope = property(lambda self: "frame" if self.pool == "frame" else "span")

    def kept(self, tokens: int) -> int:
        """All tokens, since the tower outputs all of them."""
        return tokens

    def stay(self, patches: int) -> int:
        """How many patches of a pool stay, at least one."""
        raise NotImplementedError

    def choose(self, before: torch.Tensor, now: torch.Tensor, pools: Sequence[int]) -> Leaving:
        """Choose the patches that stay, stay(size) of each pool, and what the others are rebuilt from. A pool's choice
        must depend on that pool alone. See Leaving.of_scores().

        Args:
            before, now: [L, C] inputs of block prune_block - 1 and of block prune_block.
            pools: the sizes of consecutive pools of patches that compete with each other; they sum to L.
        """
        raise NotImplementedError

    @torch.no_grad()
    def leaving(self, before: torch.Tensor, now: torch.Tensor, pools: Sequence[int]) -> Leaving:
        """What choose() returns, of which only the shapes are checked."""
        found, total, stay = self.choose(before, now, pools), sum(pools), sum(map(self.stay, pools))
        if not isinstance(found, Leaving):
            raise TypeError(f"{self.name}.choose() returned {type(found).__name__}: return a Leaving")
        if (len(found.rows), len(found.removed)) != (stay, total - stay):
            raise ValueError(
                f"{self.name}.choose() returned {len(found.rows)} rows that stay and {len(found.removed)} that leave: "
                f"give {stay} and {total - stay}, as stay() says"
            )
        return found

    def borders(self, rows: np.ndarray, borders: Sequence[int], pools: Sequence[int] = ()) -> np.ndarray:
        """The borders of frames or windows among the staying rows [n] (ascending), as the number of rows before each.
        pools: the number of rows in each pool; they sum to L."""
        return np.searchsorted(rows, borders)

    def check_tower(self, blocks: int, tiles: bool) -> None:
        if self.prune_block < 1:
            raise InputError(f"{self.name} prune_block={self.prune_block}: there is no block before it; give 1 or more")


class JoiningMethod(TowerMethod):
    """In the blocks `merge_blocks`, between attention and MLP, cells are joined by the keys of the attention that has
    just run. A group continues at the place of its representative with the means of its cells' patches; the others
    leave. kept() says how many cells are left at the end, by default ceil(n * ratio) of n.

    The tower still outputs one token per original cell, equal within a group. Each group is merged into one token
    before the decoder's first layer, where other steps may follow.

    Class attributes:
        merge_blocks: the blocks in which cells are joined; negative numbers count from the end.
        scope: what joins: the cells of a "frame", or those of an image or video ("span").
    """

    must_define = ("merge_blocks", "match")
    tower_pass = "joining"
    if TYPE_CHECKING:

        @property
        def merge_blocks(self) -> tuple[int, ...]: ...
    else:
        needs = frozenset({"tower_groups"})

    @property
    def pool(self) -> str:
        return "frame" if self.scope == "frame" else "image"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "match" in vars(cls):
            cls.match = with_num_kept(cls.match)  # type: ignore[assignment]

    def match(self, view: View) -> Grouping:
        """The groups of the cells of some frames; every cell is in a group. It is called for each of merge_blocks.

        Args:
            view: with tokens [F, N, D], for each cell the mean of its patches' keys over heads; sizes, how many
                original cells each of them stands for; and num_kept, how many must be left after this block.
        """
        raise NotImplementedError

    def left(self, cells: int) -> tuple[int, ...]:
        """How many of a frame's cells are left after each of merge_blocks: about equally many go in each."""
        gone, steps = cells - self.kept(cells), len(self.merge_blocks)
        return tuple(cells - gone * step // steps for step in range(1, steps + 1))

    def joins(self, blocks: int) -> tuple[int, ...]:
        """merge_blocks in a tower of this many blocks, counted from 0, in ascending order.

        Raises:
            InputError: a block does not exist, or two are the same.
        """
        found = sorted(block % blocks for block in self.merge_blocks if -blocks <= block < blocks)
        if len(set(found)) < len(self.merge_blocks):
            raise InputError(
                f"{self.name} merge_blocks={list(self.merge_blocks)}: the vision tower has {blocks} blocks; give "
                f"different ones from 0 to {blocks - 1}"
            )
        return tuple(found)

    def check_tower(self, blocks: int, tiles: bool) -> None:
        self.joins(blocks)

    @property
    def matching(self) -> Method:
        """match() as a method that groups tokens, which are the keys of cells."""
        return _Matching(self)

    def group(self, view: View) -> Grouping:
        """The groups that were found inside the tower. As many are kept: a view made by hand has this as num_kept."""
        view.require(self.name, "tower_groups")
        groups, present = view.tower_groups, view.present
        here = torch.arange(groups.shape[1], device=groups.device)
        stands = present & (groups == 0)
        if device.asks_freely(groups.device) and not torch.equal(stands.sum(1), view.num_kept):
            raise InputError(
                f"{self.name} num_kept={shown(view.num_kept.tolist())}, tower_groups has "
                f"{shown(stands.sum(1).tolist())} groups: give View.of these as num_kept"
            )
        number = stands.long().cumsum(1) - 1
        own = number.gather(1, (here + groups).clamp(0, len(here) - 1))
        kept = torch.where(stands, here, len(here)).sort(dim=1).values[:, : view.most]
        return Grouping.of(torch.where(present, own, -1), torch.where(kept < len(here), kept, 0))


@dataclass(frozen=True)
class _Matching(Method):
    by: JoiningMethod

    needs = frozenset({"tokens", "sizes"})
    blanks = False  # match() is given a blanked view

    def group(self, view: View) -> Grouping:
        found = self.by.match(view)
        if device.asks_freely(found.labels.device) and ((found.labels < 0) & view.present).any():
            raise ValueError(f"{self.by.name}.match() left cells without a group: let each of them join one")
        return found


def group_offsets(stands: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """[V] int64 View.tower_groups of a batch's tokens, from the cell at which each cell's group continues.

    Args:
        stands: [V] int64, that cell, by index in the tower. order: [V] each token's index in the tower; None: the same.
    """
    here = torch.arange(len(stands), device=stands.device)
    if order is None:
        return stands - here
    return order.argsort().index_select(0, stands.index_select(0, order)) - here
