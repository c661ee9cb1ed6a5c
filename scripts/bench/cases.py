"""The calls that bench_ops.py times, by op. A new op of the registry needs a line in `_BUILDERS`, sizes in `SIZES` and
a formula in counting.WORK.

The sizes "device" are those of Qwen2.5-VL-3B with 64 frames of 256 tokens (16,450 tokens dense, 7,490 at ratio 0.45),
and frames of 256 to 4,096 tokens; "cpu" takes about a minute on two cores; "tiny" is for tests.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import released_loop
from bench.counting import groups
from ppe_npu.backends import dispatch

RATIO, NEIGHBORS, K = 0.45, 5, 8

SIZES: dict[str, dict[str, tuple]] = {
    # (heads, key heads, queries, keys, head width), causal
    "attention": {
        "tiny": ((4, 2, 16, 16, 16), (4, 2, 1, 17, 16)),
        "cpu": ((8, 2, 994, 994, 128), (8, 2, 1, 994, 128)),
        "device": ((16, 2, 16450, 16450, 128), (16, 2, 7490, 7490, 128), (16, 2, 1, 7490, 128)),
    },
    # (heads, windows, tokens of a window, head width), packed; each window attends to itself
    "windows": {"tiny": ((2, 3, 8, 16),), "cpu": ((16, 32, 64, 80),), "device": ((16, 1024, 64, 80),)},
    # (heads, key heads, tokens, head width)
    "rotary": {
        "tiny": ((4, 2, 16, 16),),
        "cpu": ((8, 2, 994, 128), (8, 2, 2114, 128)),
        "device": ((16, 2, 7490, 128), (16, 2, 16450, 128), (28, 4, 16450, 128)),
    },
    # (frames, tokens of a frame, channels)
    "frames": {
        "tiny": ((2, 24, 16),),
        "cpu": ((16, 256, 2048), (8, 1024, 2048), (1, 4096, 2048)),
        "device": ((32, 768, 2048), (64, 256, 2048), (64, 256, 3584), (1, 1280, 2048), (1, 4096, 2048)),
    },
    # (tokens, channels)
    "rms_norm": {"tiny": ((16, 16),), "cpu": ((994, 1024), (2114, 1024)), "device": ((7490, 2048), (16450, 2048))},
    "swiglu": {"tiny": ((16, 32),), "cpu": ((994, 2816), (2114, 2816)), "device": ((7490, 11008), (16450, 11008))},
    # (tokens, channels, words)
    "linear_cross_entropy": {"tiny": ((16, 16, 32),), "cpu": ((512, 256, 8192),), "device": ((7490, 2048, 151936),)},
}


@dataclass(frozen=True)
class Case:
    """One call.

    Args:
        op: a function of ppe_npu.backends, or "merge": clustering, means and positions, as the engine runs them.
        shape: description for the table.
        arguments, options: positional and keyword arguments of the op.
        gradients: indices of the arguments that are differentiated; () if the op has no gradient.
        loop: the same computation as a loop over frames, or None.
    """

    op: str
    shape: str
    arguments: tuple
    options: dict[str, Any]
    gradients: tuple[int, ...] = ()
    loop: Callable[[], object] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.arguments[0].dtype


@dataclass(frozen=True)
class Maker:
    """Makes the tensors of cases on a device, in a dtype, with the same numbers in every run."""

    device: torch.device
    dtype: torch.dtype

    def normal(self, *shape: int) -> Tensor:
        if self.device == torch.device("meta"):
            return torch.empty(shape, dtype=self.dtype, device="meta")
        return torch.randn(shape, generator=torch.Generator(self.device).manual_seed(0), device=self.device).to(
            self.dtype
        )

    def integers(self, most: int, *shape: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel(), device=self.device).remainder(most).view(shape)

    def full(self, value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, device=self.device)


def _attention(make: Maker, heads: int, kv_heads: int, queries: int, keys: int, width: int) -> Case:
    tensors = make.normal(1, heads, queries, width), *(make.normal(1, kv_heads, keys, width) for _ in range(2))
    shape = f"causal {queries} x {keys}, {heads}/{kv_heads} heads of {width}"
    return Case("attention", shape, tensors, {"causal": True}, () if queries < keys else (0, 1, 2))


def _windows(make: Maker, heads: int, windows: int, tokens: int, width: int) -> Case:
    tensors = tuple(make.normal(1, heads, windows * tokens, width) for _ in range(3))
    borders = list(itertools.accumulate([tokens] * windows, initial=0))
    return Case(
        "attention", f"{windows} windows of {tokens}, {heads} heads of {width}", tensors, {"cu_seqlens": borders}
    )


def _rotary(make: Maker, heads: int, kv_heads: int, tokens: int, width: int) -> Case:
    tensors = make.normal(1, heads, tokens, width), make.normal(1, kv_heads, tokens, width)
    tables = make.normal(1, tokens, width), make.normal(1, tokens, width)
    return Case("rotary", f"{tokens} tokens, {heads}/{kv_heads} heads of {width}", (*tensors, *tables), {}, (0, 1))


def _dpc_knn(make: Maker, frames: int, tokens: int, channels: int) -> Case:
    x, budget = make.normal(frames, tokens, channels), groups(tokens, RATIO)
    arguments = x, None, make.full(budget, frames), budget, make.full(NEIGHBORS, frames)
    loop = lambda: released_loop.cluster_frames(x, budget, NEIGHBORS)  # noqa: E731
    return Case("dpc_knn", f"{frames} x {tokens} x {channels}", arguments, {}, loop=loop)


def _group_mean(make: Maker, frames: int, tokens: int, channels: int) -> Case:
    x, budget = make.normal(frames, tokens, channels), groups(tokens, RATIO)
    # Members of a group are far apart in memory, as they may be in practice; sizes of groups differ by one at most.
    labels = make.integers(budget, 1, tokens).expand(frames, -1).contiguous()
    counts = tokens // budget + (make.integers(budget, 1, budget) < tokens % budget).long().expand(frames, -1)
    loop = lambda: released_loop.means_of_frames(x, labels, budget)  # noqa: E731
    return Case("group_mean", f"{frames} x {tokens} x {channels}", (x, labels, counts), {}, (0,), loop)


def _merge(make: Maker, frames: int, tokens: int, channels: int) -> Case:
    x, budget = make.normal(frames, tokens, channels), groups(tokens, RATIO)
    rows = make.integers(tokens, frames, 3, tokens)
    loop = lambda: released_loop.merge(x, rows, budget, NEIGHBORS, K)  # noqa: E731
    return Case("merge", f"{frames} x {tokens} x {channels}", (x, make.full(budget, frames), budget), {}, loop=loop)


def _rms_norm(make: Maker, tokens: int, channels: int) -> Case:
    return Case(
        "rms_norm", f"{tokens} x {channels}", (make.normal(tokens, channels), make.normal(channels), 1e-6), {}, (0, 1)
    )


def _swiglu(make: Maker, tokens: int, channels: int) -> Case:
    return Case(
        "swiglu", f"{tokens} x {channels}", (make.normal(tokens, channels), make.normal(tokens, channels)), {}, (0, 1)
    )


def _linear_cross_entropy(make: Maker, tokens: int, channels: int, words: int) -> Case:
    arguments = make.normal(tokens, channels), make.normal(words, channels), make.integers(words, tokens)
    return Case("linear_cross_entropy", f"{tokens} x {channels} x {words}", arguments, {}, (0, 1))


# op -> (key of SIZES, builder), ...
_BUILDERS: dict[str, tuple[tuple[str, Callable[..., Case]], ...]] = {
    "merge": (("frames", _merge),),
    "dpc_knn": (("frames", _dpc_knn),),
    "group_mean": (("frames", _group_mean),),
    "rotary": (("rotary", _rotary),),
    "attention": (("attention", _attention), ("windows", _windows)),
    "rms_norm": (("rms_norm", _rms_norm),),
    "swiglu": (("swiglu", _swiglu),),
    "linear_cross_entropy": (("linear_cross_entropy", _linear_cross_entropy),),
}
# The ops with a case that this installation has.
OPS = tuple(op for op in _BUILDERS if op == "merge" or op in dispatch.ops())


def makers(op: str, sizes: str, device: torch.device, dtype: torch.dtype) -> list[Callable[[], Case]]:
    """A function for each case of an op that makes the case; all of them at once would not fit into memory.

    Args:
        sizes: "tiny", "cpu" or "device".
    """
    make = Maker(device, dtype)
    return [
        lambda builder=builder, size=size: builder(make, *size)
        for key, builder in _BUILDERS.get(op, ())
        for size in SIZES[key][sizes]
    ]
