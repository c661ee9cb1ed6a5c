"""One merge: groups found from the tokens that stand at a stage, then applied to any tensor that stands as they do."""

from dataclasses import dataclass

import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.events import Events, find_events
from ppe_npu.grouping import Grouping
from ppe_npu.methods import METHODS
from ppe_npu.plan import BucketOnDevice, StageOnDevice


@dataclass(frozen=True)
class Merge:
    """How a stage merges its cells.

    Args:
        buckets: each bucket with its groupings, one a ratio; none where tokens are only gathered.
        events: the events that videos are merged to after that, or None.
        held: [G, K] int64, the original tokens whose positions each kept token holds.
    """

    buckets: tuple[tuple[BucketOnDevice, tuple[Grouping, ...]], ...]
    events: Events | None
    held: torch.Tensor

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of the groups: [R, C] -> [G, C]; differentiable."""
        kept = _apply(self.buckets, tokens)
        return kept if self.events is None else torch.cat([kept, self.events.apply(kept)])


def merge(stage: StageOnDevice, tokens: torch.Tensor, held: torch.Tensor, config: CompressionConfig) -> Merge:
    """Group the tokens of a stage; nothing is differentiated.

    Args:
        tokens: [R, C], those that the stage's buckets index.
        held: [R, H] int64, the original tokens that each of them holds.
    """
    with torch.no_grad():
        tokens = tokens.detach()
        parts = [_merge_bucket(bucket, tokens, held, config, stage.merges) for bucket in stage.buckets]
        buckets = tuple((bucket, groupings) for bucket, (groupings, _) in zip(stage.buckets, parts))
        held = torch.cat([part for _, part in parts]) if parts else held[:0]
        if not stage.videos:
            return Merge(buckets, None, held)
        kept = _apply(buckets, tokens)
        events = find_events(stage.videos, tokens, config)
        parts = [_merge_bucket(bucket, kept, held, config, True) for bucket in events.buckets]
        events = events.grouped([grouping for (grouping,), _ in parts])
        return Merge(buckets, events, torch.cat([held, events.arranged([part for _, part in parts])]))


def _merge_bucket(
    bucket: BucketOnDevice, tokens: torch.Tensor, held: torch.Tensor, config: CompressionConfig, merges: bool
) -> tuple[tuple[Grouping, ...], torch.Tensor]:
    """One grouping a ratio, and what each kept token holds [G, K]."""
    held = bucket.take(held)
    if not merges:
        return (), bucket.keep([held])
    values, valid = bucket.take(tokens), bucket.valid
    groupings, parts = [], []
    for ratio, (budgets, most) in enumerate(zip(bucket.budgets, bucket.most)):
        if groupings:
            values = groupings[-1].apply(values)
            valid = torch.arange(values.shape[1], device=values.device) < bucket.budgets[ratio - 1][:, None]
        grouping: Grouping = METHODS[config.method](values, valid, budgets, most, config.order, ratio, config.ties)
        if config.positions == "ppe":
            held = grouping.members(config.k, config.members, values, held)
        else:
            held = held.gather(1, grouping.representatives[:, :, None].expand(-1, -1, held.shape[-1]))
        groupings.append(grouping)
        parts.append(held)
    return tuple(groupings), bucket.keep(parts)


def _apply(buckets: tuple[tuple[BucketOnDevice, tuple[Grouping, ...]], ...], tokens: torch.Tensor) -> torch.Tensor:
    """Means of the groups of every bucket, one bucket after the other: [R, C] -> [G, C]."""
    out = []
    for bucket, groupings in buckets:
        values = bucket.take(tokens)
        parts = [] if groupings else [values]
        for grouping in groupings:
            values = grouping.apply(values)
            parts.append(values)
        out.append(bucket.keep(parts))
    return torch.cat(out) if out else tokens[:0]
