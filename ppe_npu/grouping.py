"""Grouping: which token of a frame goes to which group. A plan that is made once and then applied to any tensor."""

from dataclasses import dataclass

import torch

from ppe_npu import backends


@dataclass(frozen=True)
class Grouping:
    """A partition of the tokens of F frames into at most M groups a frame.

    Args:
        labels: [F, N] int64, group of each token, -1 where a frame has no token.
        counts: [F, M] int64, tokens in each group; 0 from a frame's budget on.
        representatives: [F, M] int64, token index of each group's centre.
    """

    labels: torch.Tensor
    counts: torch.Tensor
    representatives: torch.Tensor

    @classmethod
    def from_centers(cls, centers: torch.Tensor, labels: torch.Tensor, budgets: torch.Tensor, order: str) -> "Grouping":
        """From centres [F, M] and labels [F, N] by rank of score; `order` "raster" renumbers the groups by the place of
        their representatives, "score" keeps the ranks. Entries of `centers` from budgets[f] on are ignored."""
        slots = torch.arange(centers.shape[1], device=centers.device)
        used = slots < budgets[:, None]
        if order == "raster":
            beyond = labels.shape[1]
            centers, place = torch.where(used, centers, beyond).sort(dim=1, stable=True)
            new_label = torch.empty_like(place).scatter_(1, place, slots.expand_as(place))
            labels = torch.where(labels < 0, -1, new_label.gather(1, labels.clamp_min(0)))
        centers = torch.where(used, centers, 0)
        counts = (labels[:, None, :] == slots[:, None]).sum(-1)
        return cls(labels, counts, centers)

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of the groups: [F, N, C] -> [F, M, C], differentiable, accumulated in fp32."""
        return backends.group_mean(tokens, self.labels, self.counts)

    def members(self, k: int, rule: str, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """k members of every group: [F, M, k] int64 token indices, repeated in turn where a group has fewer.

        Args:
            rule: "last", the last members in raster order, last first; "spread", evenly over the raster-sorted members,
                last first; "nearest", the members nearest to the representative (itself first among equals), listed in
                raster order, last first; "nearest_first", the same listed by nearness.
            tokens: [F, N, C], needed by the two rules of nearness.
        """
        pick = torch.arange(k, device=self.labels.device)
        size = self.counts.clamp(1, k)[:, :, None]
        cyclic = pick % size
        if rule == "last":
            return self._listed(self.labels, self.counts[:, :, None] - 1 - pick % self.counts.clamp_min(1)[:, :, None])
        if rule == "spread":
            # Members round(i * (s - 1) / (n - 1)) of s, for i = n - 1 .. 0, in whole numbers.
            step = (size - 1).clamp_min(1)
            place = (2 * (size - 1 - cyclic) * (self.counts[:, :, None] - 1) + step) // (2 * step)
            return self._listed(self.labels, torch.where(size > 1, place, self.counts[:, :, None] - 1))
        by_nearness = self._squared_distance(tokens).sort(dim=1, stable=True).indices
        if rule == "nearest_first":
            return self._listed(self.labels, cyclic, by_nearness)
        # Rank of each token within its group by nearness; only the k nearest stay, and are listed by raster order.
        labels = self._without_padding(self.labels).gather(1, by_nearness)
        in_groups, order = labels.sort(dim=1, stable=True)
        index = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        rank = index - self._offsets(self.counts).gather(1, in_groups)
        token = by_nearness.gather(1, order)
        near = torch.zeros_like(self.labels, dtype=torch.bool).scatter_(1, token, rank < k) & (self.labels >= 0)
        return self._listed(torch.where(near, self.labels, -1), size - 1 - cyclic)

    def _listed(self, labels: torch.Tensor, place: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
        """The place-th token of every group among the tokens with a label, in raster order or in a given one."""
        keys = self._without_padding(labels)
        sorted_by_group = (keys if order is None else keys.gather(1, order)).sort(dim=1, stable=True).indices
        if order is not None:
            sorted_by_group = order.gather(1, sorted_by_group)
        slots = torch.arange(self.counts.shape[1], device=labels.device)
        counts = (labels[:, None, :] == slots[:, None]).sum(-1)
        index = self._offsets(counts)[:, : counts.shape[1], None] + place
        index = index.clamp(0, labels.shape[1] - 1)
        return sorted_by_group.gather(1, index.flatten(1)).view(index.shape)

    def _without_padding(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels with M in place of -1, so that tokens of no group sort last."""
        return torch.where(labels < 0, self.counts.shape[1], labels)

    @staticmethod
    def _offsets(counts: torch.Tensor) -> torch.Tensor:
        """[F, M + 1] how many tokens stand before each group, and before the tokens of no group."""
        return torch.cat([torch.zeros_like(counts[:, :1]), counts.cumsum(1)], dim=1)

    def _squared_distance(self, tokens: torch.Tensor) -> torch.Tensor:
        """[F, N] squared distance of each token to the representative of its group; -1 for the representative itself,
        which comes before tokens that are equal to it."""
        wide = tokens.double() if tokens.dtype == torch.float64 else tokens.float()
        center = self.representatives.gather(1, self.labels.clamp_min(0))
        distance = (wide - wide.gather(1, center[:, :, None].expand_as(wide))).square().sum(-1)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where(index == center, -1, distance)
