"""ToMe between the blocks of the vision tower, where its paper has it (Bolya et al., arXiv 2210.09461, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.tome import ToMe
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


def _rising(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if not blocks or len(set(blocks)) != len(blocks):
        raise InputError("give different blocks of the vision tower, counted from 0, or from the end where negative")
    return tuple(sorted(blocks))


@register("tome_tower")
@dataclass(frozen=True)
class ToMeTower(Method):
    """In some blocks of the vision tower, between attention and MLP, the most similar cells of a frame are joined, as
    ToMe joins tokens: by the cosine of the keys with which they have just attended. A cell is what becomes one visual
    token, a square of patches, so that the tower's patch merger stands as it is.

    A group's cell holds the means of its members' patches, each member counted as often as it stands for others, and
    goes on at the place of one of them; the others leave. The decoder is given as many tokens as there are groups: what
    a tower's output says of their members (as many as ever, alike in a group) is joined before the first layer, where
    other steps may follow. With positions="ppe" the K positions of a group are spread over its members.

    The published code joins patches, r in every block, and adds the logarithm of sizes to attention; here cells are
    joined in few blocks, and attention counts each once.

    Args:
        ratio: share of a frame's cells that is left: ceil(n * ratio) of n.
        merge_blocks: in which blocks cells are joined, the same number in each as far as it can be.
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
        """merge_blocks in a tower of `depth` blocks, counted from 0, rising.

        Raises:
            InputError: there is no such block, or two are the same one.
        """
        blocks = sorted(block % depth for block in self.merge_blocks if -depth <= block < depth)
        if len(set(blocks)) < len(self.merge_blocks):
            raise InputError(
                f"{self.name} merge_blocks={list(self.merge_blocks)}: the vision tower has {depth} blocks; give "
                f"different ones of 0 to {depth - 1}"
            )
        return tuple(blocks)

    @property
    def matching(self) -> Method:
        """What groups a frame's cells by their keys, which it is shown as tokens."""
        return ToMe(metric="tokens")

    def group(self, view: View) -> Grouping:
        """The groups that were found inside the tower."""
        view.require(self.name, "tower_groups")
        groups, present = view.tower_groups, view.present
        here = torch.arange(groups.shape[1], device=groups.device)
        stands = present & (groups == 0)
        number = stands.long().cumsum(1) - 1
        own = number.gather(1, (here + groups).clamp(0, len(here) - 1))
        kept = torch.where(stands, here, len(here)).sort(dim=1).values[:, : view.most]
        return Grouping.of(torch.where(present, own, -1), torch.where(kept < len(here), kept, 0))


def groups_of(stands: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """View.tower_groups of a batch's tokens [V], from the cell that each cell's group goes on at.

    Args:
        stands: [V] int64, as the tower counts cells. order: [V] where each token stands in the tower; None: as here.
    """
    here = torch.arange(len(stands), device=stands.device)
    if order is None:
        return stands - here
    return order.argsort().index_select(0, stands.index_select(0, order)) - here
