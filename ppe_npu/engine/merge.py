"""One merge: groups found from the tokens that stand at a stage, then applied to any tensor that stands as they do."""

from dataclasses import dataclass

import torch

from ppe_npu.config import CompressionConfig
from ppe_npu.engine.plan import BucketOnDevice, EventsOnDevice, StageOnDevice
from ppe_npu.methods import METHODS
from ppe_npu.methods.events import event_layout, frame_labels
from ppe_npu.methods.grouping import Grouping

Grouped = tuple[tuple[BucketOnDevice, tuple[Grouping, ...]], ...]


@dataclass(frozen=True)
class Merge:
    """How a stage merges its cells.

    Args:
        buckets: each bucket with its groupings, one a ratio; none where tokens are only gathered.
        events: the same of the events that videos are merged to after that, made of what the buckets keep.
        order: [G] which of the events' kept tokens stands where, or None without events.
        held: [G, K] int64, the original tokens whose positions each kept token holds.
    """

    buckets: Grouped
    events: Grouped
    order: torch.Tensor | None
    held: torch.Tensor

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        """Means of the groups: [R, C] -> [G, C]; differentiable."""
        kept = _apply(self.buckets, tokens)
        if self.order is None:
            return kept
        return torch.cat([kept, _apply(self.events, kept).index_select(0, self.order)])


def merge(stage: StageOnDevice, tokens: torch.Tensor, held: torch.Tensor, config: CompressionConfig) -> Merge:
    """Group the tokens of a stage; nothing is differentiated.

    Args:
        tokens: [R, C], those that the stage's buckets index.
        held: [R, H] int64, the original tokens that each of them holds.
    """
    with torch.no_grad():
        tokens = tokens.detach()
        buckets, held = _merge_buckets(stage.buckets, tokens, held, config, stage.merges)
        if not stage.videos:
            return Merge(buckets, (), None, held)
        events = stage.events
        if events is None:
            labels = frame_labels(stage.videos, tokens, config)
            events = EventsOnDevice.of(event_layout(stage.videos, labels, config), tokens.device)
        grouped, event_held = _merge_buckets(events.buckets, _apply(buckets, tokens), held, config, True)
        held = torch.cat([held, event_held.index_select(0, events.order)])
        return Merge(buckets, grouped, events.order, held)


def _merge_buckets(
    buckets: tuple[BucketOnDevice, ...],
    tokens: torch.Tensor,
    held: torch.Tensor,
    config: CompressionConfig,
    merges: bool,
) -> tuple[Grouped, torch.Tensor]:
    """Every bucket with its groupings, and what all their kept tokens hold [G, K]."""
    parts = [_merge_bucket(bucket, tokens, held, config, merges) for bucket in buckets]
    grouped = tuple((bucket, groupings) for bucket, (groupings, _) in zip(buckets, parts))
    return grouped, torch.cat([part for _, part in parts]) if parts else held[:0]


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
        if bucket.groupings:
            grouping = bucket.groupings[ratio]
        else:
            grouping = METHODS[config.method](values, valid, budgets, most, config.order, ratio, config.ties)
        if config.positions == "ppe":
            held = grouping.members(config.k, config.members, values, held)
        else:
            held = held.gather(1, grouping.representatives[:, :, None].expand(-1, -1, held.shape[-1]))
        groupings.append(grouping)
        parts.append(held)
    return tuple(groupings), bucket.keep(parts)


def _apply(buckets: Grouped, tokens: torch.Tensor) -> torch.Tensor:
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
