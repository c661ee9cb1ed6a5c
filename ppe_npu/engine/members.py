"""Which original tokens speak for a group: those whose positions its merged token keeps (PPE, arXiv 2510.22936).

How they are chosen is a rule's matter, one file each in ppe_npu/methods/positions.
"""

from __future__ import annotations

import torch

from ppe_npu.backends import device
from ppe_npu.backends.reference.dpc_knn import flat_square
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.positions.base import Rule, rule_named
from ppe_npu.methods.positions.entries import Entries


def members(
    grouping: Grouping,
    k: int,
    rule: str,
    tokens: torch.Tensor | None = None,
    held: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """k members of every group, repeated in turn where a group has fewer: [F, M, k] int64; of a rule that chooses for
    each axis by itself [F, M, axes * k], an axis after the other.

    Tokens that were merged before hold several original tokens each, and a group of them draws its k from all that
    its members hold. Without `held` a token stands for itself.

    Args:
        rule: a name of ppe_npu.methods.positions.
        tokens: [F, N, C], needed by the two rules of nearness.
        held: [F, N, H] int64, the original tokens that each token holds, repeated in turn; rising with the raster.
        positions: [axes, originals] int64, of each original token, needed by the rules that look at places.

    Returns:
        token indices, or values of `held`.
    """
    how = rule_named(rule)
    distance = None
    if tokens is not None and how.by_nearness:
        # All members of a small group are listed, in raster order, however near they are.
        width = 1 if held is None else held.shape[-1]
        distance = _distance(grouping, tokens, k // width if rule == "nearest" else 0)
    known = {"distance": distance, "representatives": grouping.representatives, "positions": positions}
    return chosen(how, k, grouping.labels, held, grouping.counts.shape[1], **known)


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


def among_equals(rule: str) -> str:
    """The rule for members that are alike: by nearness none goes before another, so that rules of nearness spread the
    k over the group."""
    return "spread" if rule_named(rule).by_nearness else rule


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
    frames, count = center.shape
    first = count * torch.arange(frames, device=tokens.device)[:, None]
    rows, centers = tokens.flatten(0, 1), (center + first).flatten()
    if device.asks_freely(tokens.device):
        asked = (grouping.counts.gather(1, own) > known).flatten().nonzero()[:, 0]
        some = _apart(rows.index_select(0, asked), rows.index_select(0, centers[asked]))
        distance = some.new_zeros(frames * count).index_copy_(0, asked, some)
    else:
        distance = _apart(rows, rows.index_select(0, centers))
    places, distance = torch.arange(count, device=tokens.device), distance.view_as(center)
    heads = tokens.gather(1, grouping.representatives[:, :, None].expand(-1, -1, tokens.shape[-1]))
    rounding = flat_square(heads.flatten(0, 1)[:, None]).sqrt().view(frames, -1)
    distance = torch.where(distance <= rounding.gather(1, own), 0, distance)
    return torch.where(places == center, -1, distance)


def _apart(tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[n] distance of each of tokens [n, C] to the one of the others [n, C]."""
    wide = torch.promote_types(tokens.dtype, torch.float32)
    # A norm reads the differences once, where squares would be written.
    return torch.linalg.vector_norm(others.to(wide).sub_(tokens.to(wide)), dim=-1)
