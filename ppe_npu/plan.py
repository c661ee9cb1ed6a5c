"""A prompt's plan: all that is known of it before the vision tower has run, on the host and uploaded to the device.

Uploads of index lists make the host wait for the device's queue. They are done before the tower is started, so that
nothing between the tower and the first decoder layer has to wait.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ppe_npu.spans import Bucket, CompressedLayout, PromptLayout


@dataclass(frozen=True)
class BucketOnDevice:
    """A Bucket's indices as tensors: features [F, N], valid [F, N] or None, budgets [F], kept [G]; the largest budget
    stays a host number."""

    features: torch.Tensor
    valid: torch.Tensor | None
    budgets: torch.Tensor
    kept: torch.Tensor
    max_groups: int

    @classmethod
    def of(cls, bucket: Bucket, device: torch.device) -> "BucketOnDevice":
        valid = None if bucket.valid is None else upload(bucket.valid, device)
        features, budgets, kept = (upload(array, device) for array in (bucket.features, bucket.budgets, bucket.kept))
        return cls(features, valid, budgets, kept, int(bucket.budgets.max()))


@dataclass(frozen=True)
class PlanOnDevice:
    """A PromptPlan's indices as tensors.

    Args:
        text: [T] index of each kept text token in the flattened [B * S].
        rows: [B, L] which kept row stands where. real: [B, L] bool. sources: [B, L], see CompressedLayout.
        text_positions: [3, T] (t, h, w) of the text tokens. visual_positions: [3, V] of the visual ones, by feature.
        following: [B] the position after each sample's largest.
    """

    text: torch.Tensor
    rows: torch.Tensor
    real: torch.Tensor
    sources: torch.Tensor
    text_positions: torch.Tensor
    visual_positions: torch.Tensor
    following: torch.Tensor
    buckets: tuple[BucketOnDevice, ...]


@dataclass(frozen=True)
class PromptPlan:
    """A batch of prompts before compression. Everything but `on` is on the host.

    Args:
        layout, compressed: where tokens stand before and after.
        positions: [3, B, S] (t, h, w) of every token before compression.
        following: [B] the position after each sample's largest.
    """

    layout: PromptLayout
    compressed: CompressedLayout
    positions: np.ndarray
    following: np.ndarray
    _uploaded: dict[torch.device, PlanOnDevice] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, device: torch.device) -> PlanOnDevice:
        """The plan on a device; uploaded when first asked for."""
        if device not in self._uploaded:
            positions, compressed = self.positions.reshape(3, -1), self.compressed
            arrays = {
                "text": compressed.text,
                "rows": compressed.rows,
                "real": compressed.real,
                "sources": compressed.sources,
                "text_positions": positions[:, compressed.text],
                "visual_positions": positions[:, _visual_order(self.layout)],
                "following": self.following,
            }
            buckets = tuple(BucketOnDevice.of(bucket, device) for bucket in compressed.buckets)
            tensors = {name: upload(array, device) for name, array in arrays.items()}
            self._uploaded[device] = PlanOnDevice(**tensors, buckets=buckets)
        return self._uploaded[device]

    @property
    def padded(self) -> bool:
        """Whether the compressed batch holds padding."""
        return not self.compressed.real.all()

    def labels(self, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
        """[B, S] labels -> [B, L]: text labels follow their tokens; merged tokens and padding are ignored."""
        if labels.shape != self.layout.real.shape:
            raise ValueError(f"labels have shape {list(labels.shape)} but input_ids {list(self.layout.real.shape)}")
        on = self.on(labels.device)
        kept = labels.flatten().index_select(0, on.text)
        return torch.cat([kept, kept.new_full((1,), ignore_index)])[on.rows.clamp_max(len(kept))]


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of a host array on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _visual_order(layout: PromptLayout) -> np.ndarray:
    """[V] index in the flattened [B * S] of each feature: features come images first, then videos."""
    length = layout.real.shape[1]
    spans = sorted(layout.spans, key=lambda span: span.feature)
    return np.concatenate(
        [np.zeros(0, np.int64), *(span.sample * length + span.start + np.arange(span.tokens) for span in spans)]
    )
