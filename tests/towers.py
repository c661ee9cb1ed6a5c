"""Methods that record what they see of a vision tower's blocks, and a naive attention to compare that with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from support import Prompt, batch
from tolerances import exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View

TOWERS = {
    "qwen2_vl": {"depth": 3},
    "qwen2_5_vl": {"depth": 3, "fullatt_block_indexes": [1, 2], "window_size": 16},  # windows of 2 x 2 tokens
    "qwen3_vl": {"depth": 3},
}
PROMPTS = [
    Prompt([2, ("image", (1, 5, 7)), 3, ("image", (1, 2, 3)), 1], seed=1),
    Prompt([3], seed=2),
    Prompt([1, ("image", (1, 1, 1)), 2, ("image", (1, 5, 7)), 4], seed=3),
]
VIEWS = []


@register("toy_looks")
@dataclass(frozen=True)
class Looks(Method):
    """Keeps the most salient tokens of the first block that it names, and notes what it was shown."""

    ratio: float = share(0.5)
    named: tuple[int, ...] = (1, -1)
    windows: str = "refuse"
    needs = frozenset({"tokens", "places", "tower_keys", "tower_saliency"})

    @property
    def tower_blocks(self):
        return self.named

    @property
    def tower_windows(self):
        return self.windows

    def group(self, view: View) -> Grouping:
        VIEWS.append(view)
        scores = view.tower_saliency if view.tower_saliency.dim() == 2 else view.tower_saliency[:, 0]
        kept = scores.masked_fill(~view.present, -1).sort(dim=1, descending=True, stable=True).indices
        return Grouping.of_kept(view, kept[:, : view.most])


@register("toy_keys")
@dataclass(frozen=True)
class Keys(Looks):
    """Looks at keys alone."""

    needs = frozenset({"tokens", "tower_keys"})

    def group(self, view: View) -> Grouping:
        VIEWS.append(view)
        return Grouping.of_kept(view, torch.arange(view.most).expand(len(view.tokens), -1))


def clip(family):
    return Prompt([1, ("frames" if family == "qwen3_vl" else "video", (2, 3, 4)), 2], seed=4)


def given(family, **settings):
    inputs = batch(*PROMPTS, clip(family), **settings)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def config(*methods, **settings):
    return CompressionConfig(steps=methods or [Looks()], **{"positions": "ppe", "k": 4} | settings)


def looked(model, inputs, method=None, **settings):
    """The (keys [N, D], saliency [N] or [B, N]) of every frame that a method was shown, in the order of the prompt."""
    VIEWS.clear()
    compress(model, config(method or Looks(), **settings))
    with torch.no_grad():
        model(**inputs)
    return shown()


def shown():
    frames = []
    for view in VIEWS:
        for cell in range(len(view.tokens)):
            there = view.present[cell]
            saliency = None if view.tower_saliency is None else view.tower_saliency[cell][..., there]
            frames.append((view.tower_keys[cell, there], saliency))
    return frames


def naive(model, inputs, blocks, whole=True):
    """The same by definition: one frame, head and query at a time, in the precision of the model's weights.

    The tower's rows of a token's patches are found by its features: the merger gives one row for each token in the
    order of the tower, and the tower's output has them in the order of the prompt.
    """
    visual, caught, made = model.model.visual, {}, []
    pixels = [inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs]
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs]
    hooks = [visual.merger.register_forward_hook(lambda _m, _a, out: made.append(out))]
    for block in blocks:

        def catch(_module, args, kwargs, block=block):
            hidden = args[0] if args else kwargs["hidden_states"]
            caught[block] = hidden, kwargs["position_embeddings"]

        hooks.append(visual.blocks[block].register_forward_pre_hook(catch, with_kwargs=True))
    with torch.no_grad():
        out = visual(torch.cat(pixels).to(visual.dtype), grid_thw=torch.cat(grids), return_dict=True)
        for hook in hooks:
            hook.remove()
        features = out.pooler_output
        apart = (features[:, None] - made[-1][None]).abs().sum(-1)
        order = apart.argmin(1)
        assert sorted(order.tolist()) == list(range(len(order)))
        assert (apart.gather(1, order[:, None]) == 0).all()
        scores = [_naive_block(visual.blocks[block], *caught[block], torch.cat(grids), order) for block in blocks]
    return [
        (frames[0][0], frames[0][1] if len(blocks) == 1 else torch.stack([scored for _, scored in frames]))
        for frames in zip(*scores)
    ]


def naives(model, inputs, blocks=(1, 2)):
    """`naive`, flattened, of an untouched model as it is and in fp64: what a method was shown is compared with both."""
    return flat(naive(model, inputs, blocks)), flat(exact(model, lambda: naive(model, inputs, blocks)))


def _naive_block(block, hidden, table, grids, order):
    attention = block.attn
    query, key, _ = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    query, key = (_turned(part, *(part.to(hidden.dtype) for part in table)) for part in (query, key))
    frames, at = [], 0
    for t, h, w in grids.tolist():
        for _ in range(t):
            tokens = order[at : at + h * w // 4]
            at += h * w // 4
            rows = (4 * tokens[:, None] + torch.arange(4)).flatten()
            received = torch.zeros(len(rows), dtype=hidden.dtype)
            for head in range(attention.num_heads):
                for row in rows:
                    scores = key[rows, head] @ query[row, head] / math.sqrt(query.shape[-1])
                    received += torch.softmax(scores, dim=0)
            received /= attention.num_heads * len(rows)
            frames.append((key[rows].mean(1).unflatten(0, (-1, 4)).mean(1), received.unflatten(0, (-1, 4)).sum(1)))
    return frames


def _turned(heads, cos, sin):
    """Rotary, [T, H, D]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def by_size(frames):
    """Frames in an order that does not depend on how cells were gathered: by size, then by the first score."""
    return sorted(frames, key=lambda frame: (frame[1].shape[-1], round(float(frame[1].flatten()[0]), 4)))


def flat(frames):
    return [part.double() for frame in by_size(frames) for part in frame]
