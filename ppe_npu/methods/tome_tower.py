"""ToMe between the blocks of the vision tower, as in its paper (Bolya et al., arXiv 2210.09461, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from ppe_npu.errors import InputError
from ppe_npu.methods.base import register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.tome import ToMe
from ppe_npu.methods.tower_methods import JoiningMethod
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_BY_KEYS = ToMe(metric="tokens")  # the tokens that it is given are keys


def _rising(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if not blocks or len(set(blocks)) != len(blocks):
        raise InputError(f"merge_blocks={list(blocks)}: give different tower blocks, from 0, or backwards from -1")
    return tuple(sorted(blocks))


@register("tome_tower")
@dataclass(frozen=True)
class ToMeTower(JoiningMethod):
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

    blanks = False  # ToMe is given a blanked view

    def match(self, view: View) -> Grouping:
        return _BY_KEYS.group(view)
