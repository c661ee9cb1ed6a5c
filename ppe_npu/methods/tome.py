"""ToMe: merges the most similar pairs of even and odd tokens (Bolya et al., arXiv 2210.09461, section 3)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """Bipartite soft matching: each even token a_i has its most similar odd token b_j, by the cosine of their keys; the
    r pairs of largest cosine are joined, and a group becomes the mean of its tokens, weighted by their sizes.

    A matching joins at most half of the tokens. If fewer are to be kept, the published code stops there; here the
    remaining tokens, in raster order, are matched again by the means of their keys, until as many are left as were
    asked for. Ties of cosines go to the first token. The published code puts the remaining even tokens before all odd
    ones; here raster order is kept. In its published use, every block of a vision transformer takes such a step.

    Args:
        ratio: fraction of a frame's tokens to keep: ceil(n * ratio) of n.
        r: in place of ratio, how many tokens to remove, at most half of them, as in the published code.
        metric: what to compare: "keys", of the vision tower's last block or, on entry to a layer, of that layer; or the
            "tokens" themselves.
        class_token: whether the first token of each frame is never joined with another.
    """

    ratio: float = share(0.5)
    r: int | None = setting(None, least=1, remedy="give how many tokens to remove, at least 1, or null")
    metric: Literal["keys", "tokens"] = "keys"
    class_token: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.either("ratio", "r")

    @property
    def needs(self) -> frozenset[str]:
        keys = "layer_keys" if self.layers else "tower_keys"
        return frozenset({"tokens", "sizes", *([keys] if self.metric == "keys" else [])})

    def kept(self, tokens: int) -> int:
        if self.r is not None:
            return tokens - min(self.r, (tokens - self.class_token) // 2)
        return max(math.ceil(tokens * self.ratio), min(tokens, 1 + self.class_token))

    def group(self, view: View) -> Grouping:
        keys, sizes = self._keys(view), view.sizes
        length = keys.shape[1]
        labels = torch.arange(length, device=keys.device).expand(keys.shape[:2])
        grouping = Grouping.of(torch.where(view.present, labels, -1), labels, sizes)
        left = length
        while left > view.least:
            metric = keys if left == length else grouping.apply(keys)
            left -= max((left - self.class_token) // 2, 1)  # an upper bound on the tokens left in a cell
            grouping = self._matched(metric, grouping, view, max(left, view.most))
        return grouping

    def _keys(self, view: View) -> torch.Tensor:
        if self.metric == "tokens":
            view.require("tome", "tokens")
            return view.tokens.detach().float()
        if view.tower_keys is None and view.layer_keys is not None:
            return view.layer_keys.detach().float().mean(2)
        view.require("tome", "tower_keys")
        return view.tower_keys.detach().float()

    def _matched(self, metric: torch.Tensor, grouping: Grouping, view: View, most: int) -> Grouping:
        """One matching of the tokens [F, M] that a grouping produces, after which at most `most` are left in a cell."""
        alive = grouping.counts > 0
        left = alive.sum(1, keepdim=True)
        keep = view.num_kept[:, None]
        kept_apart = (keep > 1).long() * self.class_token
        joined = torch.minimum(left - keep, (left - kept_apart) // 2)
        alike = cosines(metric[:, ::2], metric[:, 1::2])
        alike = alike.masked_fill(~(alive[:, ::2, None] & alive[:, None, 1::2]), -math.inf)
        alike[:, 0].masked_fill_(kept_apart > 0, -math.inf)
        best, odd = alike.max(-1)
        rank = best.sort(dim=1, descending=True, stable=True).indices.argsort(1)
        slots = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
        head = slots.clone()
        head[:, ::2] = torch.where(rank < joined, 2 * odd + 1, head[:, ::2])
        stays = alive & (head == slots)
        place = torch.where(stays, stays.long().cumsum(1) - 1, most)
        beyond = torch.zeros(len(place), most + 1, dtype=torch.long, device=place.device)
        representatives = beyond.scatter(1, place, torch.where(stays, grouping.representatives, 0))[:, :most]
        labels = place.gather(1, head).gather(1, grouping.labels.clamp_min(0))
        return Grouping.of(torch.where(grouping.labels < 0, -1, labels), representatives, grouping.weights)
