"""A naive IPCV, against which the tower's passes are checked: one row at a time, dense masks, nothing left out.

The plain tower runs twice: once to record what its blocks are called with, and once with the naive outputs in place of
its own, so that window order, merger and taps are transformers' own work. Gradients flow.
"""

from __future__ import annotations

import torch
from support import Prompt, batch

from ppe_npu import CompressionConfig
from ppe_npu.methods import IPCV

TOWERS = {
    "qwen2_vl": {"depth": 8},
    "qwen2_5_vl": {"depth": 8, "fullatt_block_indexes": [3, 7], "window_size": 16},  # windows of 2 x 2 tokens
    "qwen3_vl": {"depth": 8, "deepstack_visual_indexes": [2, 4, 6]},
}


METHOD = IPCV(keep=0.35, prune_block=2, stabilized_blocks=3, neighbors=4)
PROMPTS = [
    Prompt([2, ("image", (1, 5, 7)), 3, ("image", (1, 2, 3)), 1], seed=1),
    Prompt([3], seed=2),
    Prompt([1, ("image", (1, 1, 1)), 2, ("image", (1, 5, 6)), 4], seed=3),
]


def config(*steps, **settings):
    return CompressionConfig(steps=steps or [METHOD], **{"positions": "keep_one"} | settings)


def clip(family):
    return Prompt([1, ("frames" if family == "qwen3_vl" else "video", (3, 3, 4)), 2], seed=4)


def given(family, *prompts, **settings):
    inputs = batch(*(prompts or (*PROMPTS, clip(family))), **settings)
    return {name: value for name, value in inputs.items() if family == "qwen2_5_vl" or name != "second_per_grid_ts"}


def features(output):
    return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]


def run(model, inputs, kind="image"):
    """Runs the tower by itself."""
    pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"]
    return model.model.visual(pixels.to(model.model.visual.dtype), grid_thw=inputs[f"{kind}_grid_thw"])


def naive(visual, pixels, grid, method, pools, score=None):
    """The tower's output under a method's settings.

    Args:
        pools: the sizes of the runs of patches that compete, in order.
        score: score(row of the block before, row), in place of IPCV's.
    """
    return with_blocks(visual, pixels, grid, lambda calls: _blocks(visual, calls, method, pools, score or changed))


def with_blocks(visual, pixels, grid, made):
    """The output of a tower whose blocks give made([(hidden states, other arguments) of each block])."""
    calls: list = []
    hooks = [
        block.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True)
        for block in visual.blocks
    ]
    visual(pixels.to(visual.dtype), grid_thw=grid)
    for hook in hooks:
        hook.remove()
    outs = made(calls)
    hooks = [block.register_forward_hook(lambda _m, _a, _o, out=out: out) for block, out in zip(visual.blocks, outs)]
    output = visual(pixels.to(visual.dtype), grid_thw=grid)
    for hook in hooks:
        hook.remove()
    return output


def _blocks(visual, calls, method, pools, score):
    """The output of each block."""
    state, before, out, first = calls[0][0], None, [], method.prune_block
    kept = leaving = start = None
    for number, (block, (_, given)) in enumerate(zip(visual.blocks, calls)):
        segments = segments_of(given["cu_seqlens"].tolist())
        rows = torch.arange(len(state))
        if number == first:
            kept, leaving = _chosen(before, state, method, pools, score)
            start = state
        before = state
        if number < first:
            state = block(state, **given)
        else:
            asked = rows if number < first + method.stabilized_blocks else kept
            mid = state[kept] + attention(block, state, given["position_embeddings"], kept, asked, segments)
            mid = mid + block.mlp(block.norm2(mid))
            state = _rebuilt(start, mid, kept, leaving)
        out.append(state)
    return out


def segments_of(borders):
    """[L] index of each row's segment."""
    return torch.tensor([n for n in range(len(borders) - 1) for _ in range(borders[n + 1] - borders[n])])


def changed(before, now):
    return (now - before).norm()


def _chosen(before, state, method, pools, score=changed):
    """The rows that stay, and for each pool (the rows that leave [R], their nearest kept rows [R, k])."""
    kept, leaving, at = [], [], 0
    for size in pools:
        rows = list(range(at, at + size))
        scores = {row: float(score(before[row].detach(), state[row].detach())) for row in rows}
        own = sorted(sorted(rows, key=lambda row: -scores[row])[: max(int(size * method.keep), 1)])
        left = [row for row in rows if row not in own]
        away = torch.cdist(state[left].detach(), state[own].detach(), compute_mode="donot_use_mm_for_euclid_dist")
        near = torch.tensor(own)[away.argsort(dim=1)[:, : method.neighbors]]
        kept, at = kept + own, at + size
        leaving.append((torch.tensor(left), near))
    return torch.tensor(kept), leaving


def _rebuilt(start, now, kept, leaving):
    state = start.index_put((kept,), now)
    moved = state - start
    for rows, near in leaving:
        state = state.index_put((rows,), start[rows] + moved[near].mean(1))
    return state


def heads_of(block, state, table):
    """Query, key and value [L, H, D] of a block."""
    heads = block.attn.qkv(block.norm1(state)).unflatten(-1, (3, block.attn.num_heads, -1))
    query, key, value = heads.unbind(1)
    query, key = (_turned(part, *(part.to(state.dtype) for part in table)) for part in (query, key))
    return query, key, value


def attention(block, state, table, asking, asked, segments):
    """[n, C] what attention adds to the rows `asking`, which attend to the rows `asked`."""
    query, key, value = heads_of(block, state, table)
    scores = torch.einsum("shd,thd->hst", query[asking], key[asked]) * block.attn.scaling
    apart = segments[asking][:, None] != segments[asked][None, :]
    weights = scores.masked_fill(apart, float("-inf")).softmax(-1)
    return block.attn.proj(torch.einsum("hst,thd->shd", weights, value[asked]).flatten(1))


def _turned(heads, cos, sin):
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
