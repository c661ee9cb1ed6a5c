"""Temporal merging (Chat-UniVi, arXiv 2311.08046, section 3.2): similar frames become one event.

The frames of a video are grouped by the means of their tokens into ceil(frames * ratio) events, and the tokens of an
event's frames are merged into as many as one frame has. It usually follows a step that merges each frame:

    CompressionConfig(steps=[DPCKNN(ratio=0.45), Events(ratio=0.5)])

If the method that groups frames looks at features, the events are known only once the features are, so the host waits
for the device once for all videos of a batch. How many tokens stay is known in advance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.dpc_knn import DPCKNN
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_OF_MEANS = {"tokens", "places"}


@register("events")
@dataclass(frozen=True)
class Events(Method):
    """Groups the frames of a video, then the tokens of each group of frames. Images are left alone.

    Args:
        ratio: fraction of a video's frames that is kept as events: ceil(T * ratio) of T.
        by: the method that groups the frames, and then the tokens of each event; its own ratio is ignored.
        keep: fraction of the tokens of all frames that the events keep in total, divided in proportion to their frames
            as in the released code; None: each event keeps as many tokens as one frame.
    """

    ratio: float = share(0.5)
    by: Method = field(default_factory=DPCKNN)
    keep: float | None = setting(None, above=0, most=1, remedy="give a share in (0, 1], or null")

    scope = "segment"

    def __post_init__(self):
        super().__post_init__()
        by = self.by
        if not by.needs <= _OF_MEANS or by.counts == "late" or not {"input", "layer"} & set(by.places):
            raise InputError(
                f"events by={by.name}: frames are grouped by the means of their tokens; give a method that looks "
                "only at tokens or places, such as dpc_knn"
            )
        if by.levels:
            raise InputError(f"events by={by.name}: give a single method, such as dpc_knn")
        if by.layers:
            raise InputError(f"events by={by.name} with layer={by.layer}: give the layer to events itself")

    @property
    def needs(self) -> frozenset[str]:
        return self.by.needs

    def group(self, view: View) -> Grouping:
        return self.by.group(view)

    def segment(self, view: View) -> Grouping:
        return self.by.group(view)

    def segments(self, frames: int) -> int | None:
        return None if frames == 1 else max(math.ceil(frames * self.ratio), 1)

    def segment_budgets(self, frames: Sequence[int], tokens: int) -> list[int]:
        if self.keep is None:
            return [tokens] * len(frames)
        return shared(self._total(sum(frames), tokens), frames, tokens)

    def kept_cells(self, cells: Sequence[int]) -> list[int]:
        if self.segments(len(cells)) is None:
            return list(cells)
        # With `keep`, the sizes of events depend on features: for the steps that follow they are one cell.
        return [cells[0]] * self.segments(len(cells)) if self.keep is None else [self._total(len(cells), cells[0])]

    def _total(self, frames: int, tokens: int) -> int:
        return max(math.ceil(frames * tokens * self.keep), self.segments(frames))


def shared(total: int, frames: Sequence[int], frame_tokens: int) -> list[int]:
    """Divide `total` tokens among the events of a video in proportion to their frames, by largest remainders.

    Args:
        total: at least the number of events, at most the number of tokens in all frames.
        frames: how many frames each event has.
        frame_tokens: how many tokens each frame has. An event keeps at least one token and at most all of its own.
    """
    quota = np.array(frames) * (total / sum(frames))
    out = np.clip(np.floor(quota + 1e-9).astype(np.int64), 1, np.array(frames) * frame_tokens)
    while out.sum() != total:
        step = 1 if out.sum() < total else -1
        open_ = out < np.array(frames) * frame_tokens if step > 0 else out > 1
        out[np.where(open_, step * (quota - out), -np.inf).argmax()] += step
    return out.tolist()
