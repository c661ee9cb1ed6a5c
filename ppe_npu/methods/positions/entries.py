"""What a rule of positions chooses from: the original tokens that the tokens of each group hold.

Before the first merge every token stands for itself. A merged token holds several original tokens, and a group of
merged tokens draws from all that its members hold. So the choice is made among entries: one for each token and each
place of what it holds, entry h * N + n being the h-th original token that token n holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entries:
    """The entries of F frames of N tokens, H each.

    Args:
        labels: [F, H * N] int64, group of each entry, -1 for none.
        held: [F, H * N] int64, the original token that it stands for; rising with the raster order.
        groups: how many groups there may be.
        width: H.
        distance: [F, N] of each token to the representative of its group, for rules of nearness.
        representatives: [F, groups] int64, the token at the place of each group.
        positions: [axes, originals] int64, of each original token, for rules that look at where tokens stand.
    """

    labels: torch.Tensor
    held: torch.Tensor
    groups: int
    width: int
    distance: torch.Tensor | None = None
    representatives: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @classmethod
    def of(cls, labels: torch.Tensor, held: torch.Tensor | None, groups: int, **known: torch.Tensor | None) -> Entries:
        """From labels [F, N] and held [F, N, H], or None where each token stands for itself."""
        if held is None:
            own = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
            return cls(labels, own, groups, 1, **known)
        width = held.shape[-1]
        return cls(labels.repeat(1, width), held.transpose(1, 2).flatten(1), groups, width, **known)

    def distinct(self) -> torch.Tensor:
        """Labels without the entries that repeat what their token lists before."""
        if self.width == 1:
            return self.labels
        held = self.held.unflatten(1, (self.width, -1))
        earlier = torch.ones(self.width, self.width, dtype=torch.bool, device=held.device).tril(-1)
        repeated = ((held[:, :, None] == held[:, None]) & earlier[:, :, None]).any(2).flatten(1)
        return torch.where(repeated, -1, self.labels)

    # -- choices ------------------------------------------------------------------------------------------------------

    def evenly(self, labels: torch.Tensor, used: torch.Tensor, k: int) -> torch.Tensor:
        """[F, groups, k]: `used` [F, groups, 1] entries of each group, evenly over the raster order and last first,
        repeated in turn: the round(i * (s - 1) / (n - 1))-th of s, for i = n - 1 .. 0."""
        size, pick = self.sizes(labels), torch.arange(k, device=labels.device)
        step = (used - 1).clamp_min(1)
        place = (2 * (used - 1 - pick % used) * (size - 1) + step) // (2 * step)  # in whole numbers
        return self.listed(labels, torch.where(used > 1, place, size - 1), self.by_raster())

    def of_representatives(self) -> torch.Tensor:
        """[F, groups, 1] the original token that the representative lists first."""
        assert self.representatives is not None, "a grouping names the representatives"
        return self.held.gather(1, self.representatives)[:, :, None]

    def coordinates(self, axis: int) -> torch.Tensor:
        """[F, H * N] where each entry stands on an axis."""
        assert self.positions is not None, "a pass hands on the prompt's positions"
        return self.positions[axis][self.held]

    # -- orders: [F, H * N] permutations of the entries ---------------------------------------------------------------

    def by_token(self) -> torch.Tensor:
        """Tokens in their order; of each, what it lists last comes first, because a list starts with the last."""
        entries, tokens = self.labels.shape[1], self.labels.shape[1] // self.width
        order = torch.arange(entries, device=self.labels.device).view(self.width, tokens).flip(0).T
        return order.flatten().expand_as(self.labels)

    def by_raster(self) -> torch.Tensor:
        return self.held.sort(dim=1, stable=True).indices

    def by_turns(self, distance: torch.Tensor) -> torch.Tensor:
        """First what every token lists first, the nearest token's before; then what it lists second; and so on."""
        tokens = distance.sort(dim=1, stable=True).indices
        return torch.cat([tokens + turn * distance.shape[1] for turn in range(self.width)], dim=1)

    def by_value(self, values: torch.Tensor) -> torch.Tensor:
        """By rising values [F, H * N], of equal ones by raster."""
        raster = self.by_raster()
        return raster.gather(1, values.gather(1, raster).sort(dim=1, stable=True).indices)

    # -- groups of entries --------------------------------------------------------------------------------------------

    def listed(self, labels: torch.Tensor, place: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """The original token of the place-th entry of every group, among the entries with a label, in that order."""
        by_group = order.gather(1, self.last_without_label(labels).gather(1, order).sort(dim=1, stable=True).indices)
        size = self.sizes(labels)
        index = (size.cumsum(1) - size + place).clamp(0, labels.shape[1] - 1)
        return self.held.gather(1, by_group.gather(1, index.flatten(1))).view(index.shape)

    def ranks(self, labels: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[F, H * N] how many entries of its group come before each one in that order."""
        groups, by_group = self.last_without_label(labels).gather(1, order).sort(dim=1, stable=True)
        starts = torch.nn.functional.pad(self.sizes(labels)[:, :, 0].cumsum(1), (1, 0))  # of no group, too
        rank = torch.arange(labels.shape[1], device=labels.device) - starts.gather(1, groups)
        return torch.zeros_like(labels).scatter_(1, order.gather(1, by_group), rank)

    def sizes(self, labels: torch.Tensor) -> torch.Tensor:
        """[F, groups, 1] how many entries each group has."""
        # In fp32, whose sums of ones are exact in any order: of whole videos a comparison of all entries with all
        # groups is as dear as the merge itself.
        sizes = torch.zeros(len(labels), self.groups + 1, device=labels.device)
        ones = torch.ones_like(labels, dtype=sizes.dtype)
        return sizes.scatter_add_(1, self.last_without_label(labels), ones)[:, :-1, None].long()

    def last_without_label(self, labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels < 0, self.groups, labels)
