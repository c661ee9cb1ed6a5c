"""What methods are shown of the vision tower: which of its blocks, the order of its tokens, and their scores.

A score is the attention that a key receives. It is computed again from a block's queries and keys, a chunk of queries
at a time, so that the block itself may use any fused attention. Memory grows with a chunk times the patches of a frame.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppe_npu.backends import device
from ppe_npu.engine.pixels import Chosen
from ppe_npu.engine.spans import PromptLayout, VisionTokens
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.methods.choosing import exact

KEYS, SALIENCY, GROUPS = "tower_keys", "tower_saliency", "tower_groups"
_OF_BLOCKS = {KEYS, SALIENCY}
NEEDS = {*_OF_BLOCKS, GROUPS}
_SCORES_AT_ONCE = 2**22  # this many fit a CPU's caches
_MORE_ON_A_DEVICE = 8  # times as many, because launches cost more than memory there


@dataclass(frozen=True)
class TowerBlocks:
    """The blocks of the vision tower that a compression looks at, counted from 0.

    Args:
        of: the blocks of each method. keys: the blocks whose keys are shown. saliency: those whose scores are shown.
        all: the blocks of both, rising.
    """

    of: Mapping[Method, tuple[int, ...]]
    keys: frozenset[int]
    saliency: frozenset[int]
    all: tuple[int, ...]

    @classmethod
    def wanted(cls, methods: Sequence[Method], vision: VisionTokens) -> TowerBlocks:
        """The blocks that these methods declare.

        Raises:
            InputError: the tower has no such block, or the block attends in windows and the method refuses that.
        """
        own = {method: _blocks(method, vision) for method in methods if method.needs & _OF_BLOCKS}
        keys = frozenset(blocks[0] for method, blocks in own.items() if KEYS in method.needs)
        looking = (blocks for method, blocks in own.items() if SALIENCY in method.needs)
        saliency = frozenset(itertools.chain(*looking))
        return cls(own, keys, saliency, tuple(sorted(keys | saliency)))


@dataclass(frozen=True)
class TowerTokens:
    """The values that the blocks give for R tokens, as these pass through the rounds of a stage.

    Args:
        blocks: the blocks that are looked at.
        parts: for ("tower_keys", block) [R, D] fp32, for ("tower_saliency", block) [R] fp32, for ("tower_groups", 0)
            [R] int64, as in View.
    """

    blocks: TowerBlocks
    parts: Mapping[tuple[str, int], torch.Tensor]

    @staticmethod
    def together(join: Callable[[list[torch.Tensor]], torch.Tensor], *tokens: TowerTokens) -> TowerTokens:
        """Several TowerTokens joined: join([values [R, ...] of each]) for each part."""
        first = tokens[0]
        return replace(first, parts={name: join([one.parts[name] for one in tokens]) for name in first.parts})

    def shown(self, method: Method) -> dict[str, torch.Tensor]:
        """The fields of a method's View, from parts [F, N, ...]."""
        out, blocks = {}, self.blocks.of.get(method, ())
        if KEYS in method.needs:
            out[KEYS] = self.parts[KEYS, blocks[0]]
        if SALIENCY in method.needs:
            parts = [self.parts[SALIENCY, block] for block in blocks]
            out[SALIENCY] = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)
        if GROUPS in method.needs:
            out[GROUPS] = self.parts[GROUPS, 0]
        return out


def _blocks(method: Method, vision: VisionTokens) -> tuple[int, ...]:
    by = getattr(method, "by", None)
    name, setting = (method.name, "") if by is None else (f"{method.name} by={by.name}", " of that method")
    if not vision.tower_blocks:
        raise InputError(
            f"{name} looks into the vision tower, which is not built for this family yet: use a method that "
            "looks at tokens, or at a decoder layer"
        )
    blocks = method.blocks(vision.tower_blocks)
    whole = range(vision.tower_blocks) if vision.whole_blocks is None else sorted(vision.whole_blocks)
    left = tuple(block for block in blocks if block in whole)
    if left == blocks or not whole or SALIENCY not in method.needs or method.tower_windows == "frame":
        return blocks
    if not left or method.tower_windows == "refuse":
        windows = ", ".join(str(block) for block in blocks if block not in whole)
        raise InputError(
            f"{name} looks at attention in block {windows} of the vision tower, which attends in windows: give "
            f'one that attends to whole frames ({", ".join(map(str, whole))}), or tower_windows="frame"{setting}'
        )
    return left


def frame_patches(layout: PromptLayout, merge_size: int, chosen: Chosen | None = None) -> list[int]:
    """The number of patches of every frame, in the tower's order. chosen: which tokens the tower is given."""
    spans = sorted(layout.spans, key=lambda span: span.feature)
    frames = [(span.feature + t * span.frame_tokens, span.frame_tokens) for span in spans for t in range(span.grid[0])]
    counts = [tokens for _, tokens in frames] if chosen is None else chosen.counts(*zip(*frames)).tolist()
    return [tokens * merge_size**2 for tokens in counts]


def tower_order(layout: PromptLayout, window: int, chosen: Chosen | None = None) -> np.ndarray:
    """[V] the index of each feature in a tower that goes through every frame window by window. chosen: which tokens the
    tower is given."""
    order = np.zeros(int(layout.visual.sum()), dtype=np.int64)
    for span in layout.spans:
        frame, row, column = np.indices(span.grid).reshape(3, -1)
        walked = np.lexsort((column, row, column // window, row // window, frame))
        order[span.feature + walked] = span.feature + np.arange(span.tokens)
    if chosen is None:
        return order
    walked = np.argsort(order)
    return np.argsort(walked[chosen.on_host[walked]])


def kept_in_tower(layout: PromptLayout, window: int, chosen: Chosen) -> np.ndarray:
    """[kept] int64, the indices of the kept tokens in a tower that is given all tokens, rising. window: as in
    tower_order(); 0: there are no windows."""
    places = chosen.on_host.nonzero()[0]
    return np.sort(tower_order(layout, window)[places]) if window else places


def received(query: torch.Tensor, key: torch.Tensor, frames: Sequence[int], scale: float) -> torch.Tensor:
    """The attention that each key receives within its frame, the mean over heads and queries.

    Args:
        query, key: [H, T, D] of all frames, one after the other. frames: the length of each. scale: that of the scores.

    Returns:
        [T] fp32, with a sum of 1 over each frame.
    """
    parts, at = [], 0
    heads = len(query)
    with exact(query):
        for length, run in itertools.groupby(frames):
            end = at + length * sum(1 for _ in run)
            # [G, H, n, D] of G consecutive frames of one length
            q, k = (part[:, at:end].float().unflatten(1, (-1, length)).transpose(0, 1) for part in (query, key))
            together = max(1, _at_once(query.device) // (heads * length**2))
            parts += [_received(some * scale, others) for some, others in zip(q.split(together), k.split(together))]
            at = end
    return torch.cat(parts) if parts else query.new_zeros(0, dtype=torch.float32)


def _received(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[G * n] the attention received in frames [G, H, n, D] of one length; query is scaled already."""
    frames, heads, length, _ = query.shape
    chunk = max(1, _at_once(query.device) // (frames * heads * length))
    turned = key.transpose(-1, -2)
    sums = [torch.softmax(part @ turned, dim=-1).sum((1, 2)) for part in query.split(chunk, dim=2)]
    return (functools.reduce(torch.add, sums) / (heads * length)).flatten()


def _at_once(where: torch.device) -> int:
    return _SCORES_AT_ONCE * (1 if device.on_cpu(where) else _MORE_ON_A_DEVICE)
