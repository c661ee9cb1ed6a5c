"""Grouping: a plan of which token of a cell goes to which group, made once and then applied to any tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ppe_npu import backends
from ppe_npu.methods.view import View

_SIMILARITIES_AT_ONCE = 2**26


@dataclass(frozen=True)
class Grouping:
    """The tokens of F cells, each divided into at most M groups. A group becomes one token.

    Args:
        labels: [F, N] int64, group of each token; -1 where a cell has no token, and for a token that is dropped.
        counts: [F, M] int64, number of tokens in each group; 0 for unused groups, which come last.
        representatives: [F, M] int64, the token whose place each group takes.
        weights: [F, N] bool or floating point, at least 0: the weight of each token's features in the mean of its
            group; None where all are equal. A token of weight 0 lends its position and not its features. Every group
            has at least one token of positive weight.
        summed: a group becomes the weighted sum of its tokens instead of their weighted mean, as in published
            implementations that average wrongly.
        alone: whether the host knows that every group has exactly one token of positive weight.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    representatives: torch.Tensor
    weights: torch.Tensor | None = None
    summed: bool = False
    alone: bool = False

    @classmethod
    def of(
        cls,
        labels: torch.Tensor,
        representatives: torch.Tensor,
        weights: torch.Tensor | None = None,
        summed: bool = False,
    ) -> Grouping:
        """A grouping whose counts are computed from its labels."""
        groups = representatives.shape[1]
        counts = group_sizes(torch.where(labels < 0, groups, labels), groups)
        return cls(labels, counts, representatives, weights, summed)

    @classmethod
    def from_centers(cls, centers: torch.Tensor, labels: torch.Tensor, budgets: torch.Tensor, order: str) -> Grouping:
        """A grouping from centers [F, M] in descending order of score, and labels [F, N]. `order`: "raster" renumbers
        the groups by the place of their representatives, "score" does not. centers[f, budgets[f]:] are ignored."""
        slots = torch.arange(centers.shape[1], device=centers.device)
        used = slots < budgets[:, None]
        if order == "raster":
            beyond = labels.shape[1]
            centers, place = torch.where(used, centers, beyond).sort(dim=1, stable=True)
            new_label = torch.empty_like(place).scatter_(1, place, slots.expand_as(place))
            labels = torch.where(labels < 0, -1, new_label.gather(1, labels.clamp_min(0)))
        return cls.of(labels, torch.where(used, centers, 0))

    @classmethod
    def of_kept(cls, view: View, kept: torch.Tensor, dropped: str = "lend") -> Grouping:
        """A grouping from the tokens that a pruning method keeps.

        Args:
            kept: [F, most] int64, indices of the tokens that each cell keeps, in any order; entries from
                view.num_kept[f] on are ignored.
            dropped: what becomes of the others. Each joins the kept token that is most like it (by cosine, ties to the
                first) and lends it only its position ("lend"), or its features, too ("merge"). With "drop", or on a
                view without tokens (a method that is run alone), they join no group.
        """
        used = torch.arange(kept.shape[1], device=kept.device) < view.num_kept[:, None]
        count = view.present.shape[1]
        kept = torch.where(used, kept, count).sort(dim=1).values
        mask = torch.zeros(len(kept), count + 1, dtype=torch.bool, device=kept.device).scatter_(1, kept, True)[:, :-1]
        own = mask.long().cumsum(1) - 1
        representatives = torch.where(used, kept, 0)
        if dropped == "drop" or view.tokens is None:
            return replace(cls.of(torch.where(mask, own, -1), representatives), alone=True)
        labels = cls._joining(view, torch.where(mask, own, -1), representatives, used, count - view.least)
        lends = dropped == "lend"
        return replace(cls.of(labels, representatives, mask if lends else None), alone=lends)

    def with_dropped(self, view: View, dropped: str, most: int | None = None) -> Grouping:
        """A grouping in which every token without a group joins the one whose representative is most like it, as in
        of_kept(). With "merge" its features get the weight of the representative's; with "drop" nothing changes.
        most: an upper bound, known to the host, on the tokens without a group in a cell."""
        if dropped == "drop":
            return self
        heard, most = self.labels >= 0, self.labels.shape[1] if most is None else most
        labels = self._joining(view, self.labels, self.representatives, self.counts > 0, most)
        if dropped == "merge" and self.weights is None:
            return Grouping.of(labels, self.representatives)
        weights = heard if self.weights is None else torch.where(heard, self.weights, 0)
        if dropped == "merge":
            own = weights.gather(1, self.representatives).gather(1, labels.clamp_min(0))
            weights = torch.where(heard, weights, own)
        return Grouping.of(labels, self.representatives, weights, self.summed)

    @staticmethod
    def _joining(
        view: View, labels: torch.Tensor, representatives: torch.Tensor, used: torch.Tensor, most: int
    ) -> torch.Tensor:
        """[F, N] int64 labels in which each token without a group, at most `most` per cell, joins the nearest one."""
        count = labels.shape[1]
        places = torch.arange(count, device=labels.device)
        others = torch.where((labels >= 0) | ~view.present, count, places).sort(dim=1).values[:, :most]
        nearest = _nearest(view.tokens, representatives, used, others.clamp_max(count - 1))
        return torch.cat([labels, labels[:, :1]], dim=1).scatter(1, others, nearest)[:, :-1]

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """[F, M, C] means of the groups of tokens [F, N, C]; differentiable, accumulated in fp32."""
        if self.weights is None:
            return backends.group_mean(tokens, self.labels, self.counts)
        heard = Grouping.of(torch.where(self.weights > 0, self.labels, -1), self.representatives)
        if self.weights.dtype != torch.bool:
            tokens = heard._weighted(tokens, self.weights, self.summed)
        return backends.group_mean(tokens, heard.labels, heard.counts)

    def _weighted(self, tokens: torch.Tensor, weights: torch.Tensor, summed: bool) -> torch.Tensor:
        """[F, N, C] tokens whose plain mean over a group is its weighted mean, or if `summed` its weighted sum. For a
        mean, the weights of a group are scaled to sum to its size."""
        has_group, place = self.labels >= 0, self.labels.clamp_min(0)
        weights = torch.where(has_group, weights, 0).to(torch.promote_types(tokens.dtype, torch.float32))
        sums = torch.zeros_like(self.counts, dtype=weights.dtype).scatter_add_(1, place, weights)
        scaled = weights * (self.counts if summed else self.counts / sums).gather(1, place)
        return torch.where(has_group[:, :, None], tokens * scaled[:, :, None], 0).to(tokens.dtype)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """[F, M] sums of values [F, N] over the tokens of positive weight in each group."""
        heard = self.labels >= 0 if self.weights is None else (self.labels >= 0) & (self.weights > 0)
        sums = values.new_zeros(self.counts.shape)
        return sums.scatter_add_(1, self.labels.clamp_min(0), torch.where(heard, values, 0))

    def at_representatives(self, values: torch.Tensor) -> torch.Tensor:
        """[F, M, ...] the values [F, N, ...] of each group's representative."""
        index = self.representatives.view(*self.representatives.shape, *[1] * (values.dim() - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    def to(self, device: torch.device) -> Grouping:
        """This grouping on another device."""
        parts = (self.labels, self.counts, self.representatives, self.weights)
        labels, counts, representatives, weights = (
            None if part is None else part.to(device, non_blocking=True) for part in parts
        )
        return Grouping(labels, counts, representatives, weights, self.summed, self.alone)


def group_sizes(labels: torch.Tensor, groups: int) -> torch.Tensor:
    """[F, groups] int64, how many of the labels [F, N] name each group; the label `groups` stands for no group."""
    # Summed in fp32, where sums of ones are exact in any order; comparing all labels with all groups is far slower.
    sizes = torch.zeros(len(labels), groups + 1, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels, dtype=sizes.dtype))[:, :-1].long()


@torch.no_grad()
def _nearest(tokens: torch.Tensor, kept: torch.Tensor, used: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """[F, P] int64, which of the kept tokens [F, M] is most like each of the tokens `asked` [F, P], by cosine; ties go
    to the first."""
    unit = torch.nn.functional.normalize(tokens.detach().float(), dim=-1)
    centers = unit.gather(1, kept[:, :, None].expand(-1, -1, unit.shape[-1])).transpose(1, 2)
    unit = unit.gather(1, asked[:, :, None].expand(-1, -1, unit.shape[-1]))
    step = max(1, _SIMILARITIES_AT_ONCE // max(1, kept.numel()))
    slots = torch.arange(kept.shape[1], dtype=torch.int32, device=kept.device)  # half as much to read as int64
    out = []
    for part in unit.split(step, dim=1):
        alike = torch.bmm(part, centers).masked_fill_(~used[:, None], -2.0)
        best = alike.amax(-1, keepdim=True)
        out.append(torch.where(alike == best, slots, kept.shape[1]).amin(-1))
    return torch.cat(out, dim=1).long()
