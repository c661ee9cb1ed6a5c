"""ToMe between the blocks of the vision tower, as in its paper (Bolya et al., arXiv 2210.09461, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.backends import device
from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.tome import ToMe
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


def _rising(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if not blocks or len(set(blocks)) != len(blocks):
        raise InputError(f"merge_blocks={list(blocks)}: give different tower blocks, from 0, or backwards from -1")
    return tuple(sorted(blocks))


@register("tome_tower")
@dataclass(frozen=True)
class ToMeTower(Method):
    """In some blocks of the vision tower, between attention and MLP, the most similar cells of a frame are joined, as
    ToMe joins tokens: by the cosine of the keys in the attention that has just run. A cell is a square of patches that
    becomes one visual token, so that the tower's patch merger works unchanged.

    The cell of a group holds the means of its members' patches, weighted by how many original cells each member stands
    for, and continues at the place of one member; the others leave. The tower still outputs one token per original
    cell, equal within a group. Each group is merged into one token before the first layer, where other steps may
    follow. With positions="ppe" the K positions of a group are spread over its members.

    The published code joins patches, r in every block, and adds the logarithm of sizes to attention; here cells are
    joined in few blocks, and attention counts each joined cell once.

    Args:
        ratio: fraction of a frame's cells to keep: ceil(n * ratio) of n.
        merge_blocks: the blocks in which cells are joined, about equally many in each.
    """

    ratio: float = share(0.5)
    merge_blocks: tuple[int, ...] = setting((4, 8, 12), convert=_rising)

    needs = frozenset({"tower_groups"})
    places = ("tower",)

    def left(self, cells: int) -> tuple[int, ...]:
        """How many of a frame's cells are left after each of merge_blocks."""
        gone, steps = cells - self.kept(cells), len(self.merge_blocks)
        return tuple(cells - gone * step // steps for step in range(1, steps + 1))

    def joins(self, depth: int) -> tuple[int, ...]:
        """merge_blocks in a tower of `depth` blocks, counted from 0, in ascending order.

        Raises:
            InputError: a block does not exist, or two are the same.
        """
        blocks = sorted(block % depth for block in self.merge_blocks if -depth <= block < depth)
        if len(set(blocks)) < len(self.merge_blocks):
            raise InputError(
                f"{self.name} merge_blocks={list(self.merge_blocks)}: the vision tower has {depth} blocks; give "
                f"different ones from 0 to {depth - 1}"
            )
        return tuple(blocks)

    @property
    def matching(self) -> Method:
        """The method that groups a frame's cells by their keys, which it gets as tokens."""
        return ToMe(metric="tokens")

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


def groups_of(stands: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """[V] int64 View.tower_groups of a batch's tokens, from the cell at which each cell's group continues.

    Args:
        stands: [V] int64, that cell, by index in the tower. order: [V] each token's index in the tower; None: the same.
    """
    here = torch.arange(len(stands), device=stands.device)
    if order is None:
        return stands - here
    return order.argsort().index_select(0, stands.index_select(0, order)) - here
