"""Which original tokens speak for a group: those whose positions its merged token keeps (PPE, arXiv 2510.22936).

Before the first merge every token stands for itself. A merged token holds several original tokens, and a group of
merged tokens draws from all that its members hold. So the choice is made among entries: one for each token and each
place of what it holds, entry h * N + n being the h-th original token that token n holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.methods.grouping import Grouping


def members(
    grouping: Grouping, k: int, rule: str, tokens: torch.Tensor | None = None, held: torch.Tensor | None = None
) -> torch.Tensor:
    """k members of every group, repeated in turn where a group has fewer: [F, M, k] int64.

    Tokens that were merged before hold several original tokens each, and a group of them draws its k from all that
    its members hold. Without `held` a token stands for itself.

    Args:
        rule: "last", the last ones in order, last first; "spread", evenly over the raster-sorted ones, last first;
            "nearest", those of the members nearest to the representative (itself first among equals), one of each
            member in turn, listed in raster order, last first; "nearest_first", the same listed by nearness.
        tokens: [F, N, C], needed by the two rules of nearness.
        held: [F, N, H] int64, the original tokens that each token holds, repeated in turn; rising with the raster.

    Returns:
        token indices, or values of `held`.
    """
    distance = None if tokens is None or not rule.startswith("nearest") else _distance(grouping, tokens)
    return Entries.of(grouping.labels, held, grouping.counts.shape[1]).choose(k, rule, distance)


def among_equals(rule: str) -> str:
    """The rule for members that are alike: by nearness none goes before another, so that rules of nearness spread the
    k over the group."""
    return "last" if rule == "last" else "spread"


def _distance(grouping: Grouping, tokens: torch.Tensor) -> torch.Tensor:
    """[F, N] distance of each token to the representative of its group; -1 for the representative itself, which comes
    before tokens that are equal to it."""
    wide = tokens.double() if tokens.dtype == torch.float64 else tokens.float()
    center = grouping.representatives.gather(1, grouping.labels.clamp_min(0))
    frames, count = center.shape
    first = count * torch.arange(frames, device=tokens.device)[:, None]
    # Whole rows are copied, not numbers; and a norm reads the differences once, where squares would be written.
    centers = wide.flatten(0, 1).index_select(0, (center + first).flatten()).view_as(wide)
    distance = torch.linalg.vector_norm(centers.sub_(wide), dim=-1)
    return torch.where(torch.arange(count, device=tokens.device) == center, -1, distance)


@dataclass(frozen=True)
class Entries:
    """The entries of F frames of N tokens, H each.

    Args:
        labels: [F, H * N] int64, group of each entry, -1 for none.
        held: [F, H * N] int64, the original token that it stands for; rising with the raster order.
        groups: how many groups there may be.
        width: H.
    """

    labels: torch.Tensor
    held: torch.Tensor
    groups: int
    width: int

    @classmethod
    def of(cls, labels: torch.Tensor, held: torch.Tensor | None, groups: int) -> Entries:
        """From labels [F, N] and held [F, N, H], or None where each token stands for itself."""
        if held is None:
            return cls(labels, torch.arange(labels.shape[1], device=labels.device).expand_as(labels), groups, 1)
        width = held.shape[-1]
        return cls(labels.repeat(1, width), held.transpose(1, 2).flatten(1), groups, width)

    def choose(self, k: int, rule: str, distance: torch.Tensor | None) -> torch.Tensor:
        """k original tokens for every group, repeated in turn where it holds fewer: [F, groups, k].

        Args:
            rule: as members().
            distance: [F, N] of each token to the representative of its group, for the rules of nearness.
        """
        pick = torch.arange(k, device=self.labels.device)
        if rule == "last":
            # All that merged tokens hold counts, repeated or not: the last k of it are those of the last member.
            size = self._sizes(self.labels)
            return self._listed(self.labels, size - 1 - pick % size.clamp_min(1), self._by_token())
        labels = self._distinct()
        size = self._sizes(labels)
        used = size.clamp(1, k)
        cyclic = pick % used
        if rule == "spread":
            # The round(i * (s - 1) / (n - 1))-th of s, for i = n - 1 .. 0, in whole numbers.
            step = (used - 1).clamp_min(1)
            place = (2 * (used - 1 - cyclic) * (size - 1) + step) // (2 * step)
            return self._listed(labels, torch.where(used > 1, place, size - 1), self._by_raster())
        assert distance is not None, "the rules of nearness are given distances"
        by_nearness = self._by_turns(distance)
        if rule == "nearest_first":
            return self._listed(labels, cyclic, by_nearness)
        # Only the k nearest of each group stay, and are listed in raster order.
        near = torch.where(self._ranks(labels, by_nearness) < k, labels, -1)
        return self._listed(near, used - 1 - cyclic, self._by_raster())

    # -- orders: [F, H * N] permutations of the entries ---------------------------------------------------------------

    def _by_token(self) -> torch.Tensor:
        """Tokens in their order; of each, what it lists last comes first, because a list starts with the last."""
        entries, tokens = self.labels.shape[1], self.labels.shape[1] // self.width
        order = torch.arange(entries, device=self.labels.device).view(self.width, tokens).flip(0).T
        return order.flatten().expand_as(self.labels)

    def _by_raster(self) -> torch.Tensor:
        return self.held.sort(dim=1, stable=True).indices

    def _by_turns(self, distance: torch.Tensor) -> torch.Tensor:
        """First what every token lists first, the nearest token's before; then what it lists second; and so on."""
        tokens = distance.sort(dim=1, stable=True).indices
        return torch.cat([tokens + turn * distance.shape[1] for turn in range(self.width)], dim=1)

    # -- groups of entries --------------------------------------------------------------------------------------------

    def _distinct(self) -> torch.Tensor:
        """Labels without the entries that repeat what their token lists before."""
        if self.width == 1:
            return self.labels
        held = self.held.unflatten(1, (self.width, -1))
        earlier = torch.ones(self.width, self.width, dtype=torch.bool, device=held.device).tril(-1)
        repeated = ((held[:, :, None] == held[:, None]) & earlier[:, :, None]).any(2).flatten(1)
        return torch.where(repeated, -1, self.labels)

    def _listed(self, labels: torch.Tensor, place: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """The original token of the place-th entry of every group, among the entries with a label, in that order."""
        by_group = order.gather(1, self._last_without_label(labels).gather(1, order).sort(dim=1, stable=True).indices)
        index = (self._offsets(labels)[:, :-1, None] + place).clamp(0, labels.shape[1] - 1)
        return self.held.gather(1, by_group.gather(1, index.flatten(1))).view(index.shape)

    def _ranks(self, labels: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[F, H * N] how many entries of its group come before each one in that order."""
        groups, by_group = self._last_without_label(labels).gather(1, order).sort(dim=1, stable=True)
        place = torch.arange(labels.shape[1], device=labels.device)
        rank = place - self._offsets(labels).gather(1, groups)
        return torch.zeros_like(labels).scatter_(1, order.gather(1, by_group), rank)

    def _sizes(self, labels: torch.Tensor) -> torch.Tensor:
        """[F, groups, 1] how many entries each group has."""
        # In fp32, whose sums of ones are exact in any order: of whole videos a comparison of all entries with all
        # groups is as dear as the merge itself.
        sizes = torch.zeros(len(labels), self.groups + 1, device=labels.device)
        ones = torch.ones_like(labels, dtype=sizes.dtype)
        return sizes.scatter_add_(1, self._last_without_label(labels), ones)[:, :-1, None].long()

    def _offsets(self, labels: torch.Tensor) -> torch.Tensor:
        """[F, groups + 1] how many entries stand before each group, and before those of no group."""
        sizes = self._sizes(labels)[:, :, 0]
        return torch.cat([torch.zeros_like(sizes[:, :1]), sizes.cumsum(1)], dim=1)

    def _last_without_label(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels < 0, self.groups, labels)
