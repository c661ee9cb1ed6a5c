"""The choice of the original tokens whose positions a merged token keeps (PPE, arXiv 2510.22936).

A rule chooses them from all original tokens that the tokens of the group hold. Before the first merge every token
holds only itself. A merged token holds several original tokens, and a group of merged tokens draws from all that its
members hold. So the choice is made among entries: entry h * N + n is the h-th original token that token n holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppe_npu.backends import device
from ppe_npu.backends.reference.dpc_knn import flat_square
from ppe_npu.methods.grouping import Grouping, group_sizes
from ppe_npu.methods.positions.base import Rule, rule_named


@dataclass(frozen=True)
class Entries:
    """The entries of F frames of N tokens, H for each token.

    Args:
        labels: [F, H * N] int64, group of each entry; `groups` if it has none. Unless the rule `repeats`, an entry that
            repeats an earlier one of the same token has none.
        held: [F, H * N] int64, the original token of each entry; these numbers increase in raster order.
        groups: the largest number of groups in a frame.
        width: H.
        sizes: [F, groups, 1] int64, number of entries in each group; 0 for groups that a frame with fewer lacks, so
            clamp before dividing by it.
        distance: [F, N] distance of each token to the representative of its group, for rules with by_nearness; -1 for
            the representative, which is first.
        representatives: [F, groups] int64, the token whose place each group takes.
        positions: [axes, originals] int64, positions of the original tokens, for rules that look at positions.
    """

    labels: torch.Tensor
    held: torch.Tensor
    groups: int
    width: int
    sizes: torch.Tensor
    distance: torch.Tensor | None = None
    representatives: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        labels: torch.Tensor,
        held: torch.Tensor | None,
        groups: int,
        repeats: bool = False,
        **known: torch.Tensor | None,
    ) -> Entries:
        """Entries from labels [F, N] (-1 for no group) and held [F, N, H] (None if each token holds only itself).
        repeats: as in Rule. known: the optional fields."""
        if held is None:
            held = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)[:, :, None]
        width, by_turn = held.shape[-1], held.transpose(1, 2)
        labels = torch.where(labels < 0, groups, labels).repeat(1, width)
        if width > 1 and not repeats:
            earlier = torch.ones(width, width, dtype=torch.bool, device=held.device).tril(-1)
            repeated = ((by_turn[:, :, None] == by_turn[:, None]) & earlier[:, :, None]).any(2).flatten(1)
            labels = torch.where(repeated, groups, labels)
        return cls(labels, by_turn.flatten(1), groups, width, group_sizes(labels, groups)[:, :, None], **known)

    # -- choices ------------------------------------------------------------------------------------------------------

    def evenly(self, used: torch.Tensor, k: int) -> torch.Tensor:
        """[F, groups, k] int64, `used` [F, groups, 1] original tokens of each group, repeated cyclically to k. They are
        evenly spaced in raster order, last first: of s entries the round(i * (s - 1) / (n - 1))-th, for i = n - 1 .. 0,
        where n is `used`."""
        last, pick = self.sizes - 1, torch.arange(k, device=used.device)
        step = (used - 1).clamp_min(1)
        place = (2 * (used - 1 - pick % used) * last + step) // (2 * step)  # in integers
        return self.listed(torch.where(used > 1, place, last), self.by_raster())

    def listed(self, place: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[F, groups, k] int64, the original token of the place-th entry of every group when entries are sorted by
        `order`; place: [F, groups, k], from 0 and below the group's size."""
        by_group = order.gather(1, self.labels.gather(1, order).sort(dim=1, stable=True).indices)
        index = (self.sizes.cumsum(1) - self.sizes + place).clamp(0, self.labels.shape[1] - 1)
        return self.held.gather(1, by_group.gather(1, index.flatten(1))).view(index.shape)

    def of_representatives(self) -> torch.Tensor:
        """[F, groups, 1] int64, the first original token that each representative holds."""
        assert self.representatives is not None, "a grouping has representatives"
        return self.held.gather(1, self.representatives)[:, :, None]

    def coordinates(self, axis: int) -> torch.Tensor:
        """[F, H * N] int64 position of each entry on one axis."""
        assert self.positions is not None, "entries in a pass have positions"
        return self.positions[axis][self.held]

    # -- orders: [F, H * N] permutations of the entries ---------------------------------------------------------------

    def by_token(self) -> torch.Tensor:
        """Token by token; the entries of a token in reverse, because a token lists its last original token first."""
        entries, tokens = self.labels.shape[1], self.labels.shape[1] // self.width
        order = torch.arange(entries, device=self.labels.device).view(self.width, tokens).flip(0).T
        return order.flatten().expand_as(self.labels)

    def by_raster(self) -> torch.Tensor:
        return self.held.sort(dim=1, stable=True).indices

    def by_turns(self) -> torch.Tensor:
        """The first entry of every token, in order of distance; then the second of every token; and so on."""
        assert self.distance is not None, "rules by nearness get distances"
        tokens = self.distance.sort(dim=1, stable=True).indices
        return torch.cat([tokens + turn * tokens.shape[1] for turn in range(self.width)], dim=1)

    def by_value(self, values: torch.Tensor) -> torch.Tensor:
        """In ascending order of values [F, H * N]; ties in raster order."""
        raster = self.by_raster()
        return raster.gather(1, values.gather(1, raster).sort(dim=1, stable=True).indices)


def members(
    grouping: Grouping,
    k: int,
    rule: Rule | str,
    tokens: torch.Tensor | None = None,
    held: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """[F, M, k] int64 members of every group, repeated cyclically if it has fewer than k; for a rule that chooses for
    each axis separately [F, M, axes * k], one axis after the other.

    A token that was merged before holds several original tokens, and a group draws its k from all that its tokens
    hold. Without `held` each token holds only itself.

    Args:
        rule: one of ppe_npu.methods.positions, or its name.
        tokens: [F, N, C], needed by rules with by_nearness.
        held: [F, N, H] int64, the original tokens that each token holds, repeated cyclically to H. These numbers
            increase in raster order.
        positions: [axes, originals] int64, positions of the original tokens, needed by rules that look at positions.

    Returns:
        Token indices, or values of `held`.
    """
    rule = rule_named(rule) if isinstance(rule, str) else rule
    distance = None
    if tokens is not None and rule.by_nearness:
        # "nearest" takes all members of a small group, in raster order, so their distances do not matter.
        width = 1 if held is None else held.shape[-1]
        distance = _distance(grouping, tokens, k // width if rule.name == "nearest" else 0)
    known = {"distance": distance, "representatives": grouping.representatives, "positions": positions}
    return chosen_entries(rule, k, grouping.labels, held, grouping.counts.shape[1], **known)


def chosen_entries(
    rule: Rule,
    k: int,
    labels: torch.Tensor,
    held: torch.Tensor | None,
    groups: int,
    positions: torch.Tensor | None = None,
    **known: torch.Tensor | None,
) -> torch.Tensor:
    """members() of groups that are given by their labels [F, N]. known: other fields of Entries."""
    if not rule.by_axis:
        return rule.choose(Entries.of(labels, held, groups, rule.repeats, positions=positions, **known), k)
    assert positions is not None, "entries in a pass have positions"
    axes, parts = len(positions), []
    for axis in range(axes):
        own = held if held is None or held.shape[-1] == 1 else held.chunk(axes, dim=-1)[axis]
        entries = Entries.of(labels, own, groups, rule.repeats, positions=positions, **known)
        parts.append(rule.along(entries, k, axis, axes))
    return torch.cat(parts, dim=-1)


def among_equals(rule: Rule) -> Rule:
    """The rule to use for groups of equal members: "spread" in place of a rule with by_nearness, since no member is
    nearer than another."""
    return rule_named("spread") if rule.by_nearness else rule


def _distance(grouping: Grouping, tokens: torch.Tensor, known: int) -> torch.Tensor:
    """[F, N] distance of each token to the representative of its group; -1 for the representative itself, so that it
    precedes tokens equal to it. Distances as small as the rounding errors of a vision tower on a flat area count as 0
    (docs/numerics.md), because these errors differ between batches and between machines.

    Args:
        known: groups of at most this many tokens need no distances. Where the host can tell at no cost which groups
            these are, they are skipped.
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
    # vector_norm reads the differences once; squaring them first would write another tensor.
    distance = torch.linalg.vector_norm(heads.index_select(0, slots).to(wide).sub_(rows.to(wide)), dim=-1)
    distance = torch.where(distance <= rounding[slots], 0, distance)
    if asked is not None:
        distance = distance.new_zeros(frames * count).index_copy_(0, asked, distance)
    return torch.where(torch.arange(count, device=on) == center, -1, distance.view_as(center))
