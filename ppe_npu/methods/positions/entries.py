"""Which original tokens speak for a group: those whose positions its merged token keeps (PPE, arXiv 2510.22936).

A rule chooses them from all original tokens that the tokens of the group hold. Before the first merge every token
stands for itself. A merged token holds several original tokens, and a group of merged tokens draws from all that its
members hold. So the choice is made among entries: one for each token and each place of what it holds, entry h * N + n
being the h-th original token that token n holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.backends import device
from ppe_npu.backends.reference.dpc_knn import flat_square
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions.base import Rule, rule_named


@dataclass(frozen=True)
class Entries:
    """The entries of F frames of N tokens, H each.

    Args:
        labels: [F, H * N] int64, group of each entry, `groups` for none.
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
        """From labels [F, N], -1 for none, and held [F, N, H], or None where each token stands for itself."""
        labels = torch.where(labels < 0, groups, labels)
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
        return torch.where(repeated, self.groups, self.labels)

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
        by_group = order.gather(1, labels.gather(1, order).sort(dim=1, stable=True).indices)
        size = self.sizes(labels)
        index = (size.cumsum(1) - size + place).clamp(0, labels.shape[1] - 1)
        return self.held.gather(1, by_group.gather(1, index.flatten(1))).view(index.shape)

    def ranks(self, labels: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[F, H * N] how many entries of its group come before each one in that order."""
        groups, by_group = labels.gather(1, order).sort(dim=1, stable=True)
        starts = torch.nn.functional.pad(self.sizes(labels)[:, :, 0].cumsum(1), (1, 0))  # of no group, too
        rank = torch.arange(labels.shape[1], device=labels.device) - starts.gather(1, groups)
        return torch.zeros_like(labels).scatter_(1, order.gather(1, by_group), rank)

    def sizes(self, labels: torch.Tensor) -> torch.Tensor:
        """[F, groups, 1] how many entries each group has."""
        # In fp32, whose sums of ones are exact in any order: of whole videos a comparison of all entries with all
        # groups is as dear as the merge itself.
        sizes = torch.zeros(len(labels), self.groups + 1, device=labels.device)
        ones = torch.ones_like(labels, dtype=sizes.dtype)
        return sizes.scatter_add_(1, labels, ones)[:, :-1, None].long()


def members(
    grouping: Grouping,
    k: int,
    rule: Rule | str,
    tokens: torch.Tensor | None = None,
    held: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """k members of every group, repeated in turn where a group has fewer: [F, M, k] int64; of a rule that chooses for
    each axis by itself [F, M, axes * k], an axis after the other.

    Tokens that were merged before hold several original tokens each, and a group of them draws its k from all that
    its members hold. Without `held` a token stands for itself.

    Args:
        rule: one of ppe_npu.methods.positions, or its name.
        tokens: [F, N, C], needed by the two rules of nearness.
        held: [F, N, H] int64, the original tokens that each token holds, repeated in turn; rising with the raster.
        positions: [axes, originals] int64, of each original token, needed by the rules that look at places.

    Returns:
        token indices, or values of `held`.
    """
    rule = rule_named(rule) if isinstance(rule, str) else rule
    distance = None
    if tokens is not None and rule.by_nearness:
        # All members of a small group are listed, in raster order, however near they are.
        width = 1 if held is None else held.shape[-1]
        distance = _distance(grouping, tokens, k // width if rule.name == "nearest" else 0)
    known = {"distance": distance, "representatives": grouping.representatives, "positions": positions}
    return chosen(rule, k, grouping.labels, held, grouping.counts.shape[1], **known)


def chosen(
    rule: Rule,
    k: int,
    labels: torch.Tensor,
    held: torch.Tensor | None,
    groups: int,
    positions: torch.Tensor | None = None,
    **known: torch.Tensor | None,
) -> torch.Tensor:
    """members() of groups by their labels [F, N]; what else is known of them as Entries has it."""
    if not rule.by_axis:
        return rule.choose(Entries.of(labels, held, groups, positions=positions, **known), k)
    assert positions is not None, "a pass hands on the prompt's positions"
    axes, parts = len(positions), []
    for axis in range(axes):
        own = held if held is None or held.shape[-1] == 1 else held.chunk(axes, dim=-1)[axis]
        entries = Entries.of(labels, own, groups, positions=positions, **known)
        parts.append(rule.along(entries, k, axis, axes))
    return torch.cat(parts, dim=-1)


def among_equals(rule: Rule) -> Rule:
    """The rule for members that are alike: by nearness none goes before another, so that rules of nearness spread the
    k over the group."""
    return rule_named("spread") if rule.by_nearness else rule


def _distance(grouping: Grouping, tokens: torch.Tensor, known: int) -> torch.Tensor:
    """[F, N] distance of each token to the representative of its group; -1 for the representative itself, which comes
    before tokens that are equal to it. What a vision tower rounds the tokens of a flat area by is no distance
    (docs/numerics.md): in every batch, and on every machine, it is another.

    Args:
        known: of groups of at most so many tokens any other number will do; where the host can see which these are,
            they are left out.
    """
    own = grouping.labels.clamp_min(0)
    center = grouping.representatives.gather(1, own)
    (frames, count), groups, on = center.shape, grouping.counts.shape[1], tokens.device
    number = torch.arange(frames, device=on)[:, None]
    flat, slots = tokens.flatten(0, 1), (own + groups * number).flatten()
    heads, rows, asked = (grouping.representatives + count * number).flatten(), flat, None
    if device.asks_freely(on):
        large = (grouping.counts > known).flatten()
        asked = large[slots].nonzero()[:, 0]
        heads, slots, rows = heads[large], (large.cumsum(0) - 1)[slots[asked]], flat.index_select(0, asked)
    heads = flat.index_select(0, heads)
    rounding, wide = flat_square(heads[:, None]).sqrt(), torch.promote_types(tokens.dtype, torch.float32)
    # A norm reads the differences once, where squares would be written.
    distance = torch.linalg.vector_norm(heads.index_select(0, slots).to(wide).sub_(rows.to(wide)), dim=-1)
    distance = torch.where(distance <= rounding[slots], 0, distance)
    if asked is not None:
        distance = distance.new_zeros(frames * count).index_copy_(0, asked, distance)
    return torch.where(torch.arange(count, device=on) == center, -1, distance.view_as(center))
