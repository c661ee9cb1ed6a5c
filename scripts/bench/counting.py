"""The least FLOPs and bytes of an op, by formula from the shapes of its arguments.

FLOPs: multiplications and additions count as one each, so a product of [n, k] and [k, m] has 2nkm. Exponentials, roots
and divisions count as one. Bytes: every input is read once and every result is written once; what a cache could save
between two calls is ignored. A backward pass counts as twice the forward's FLOPs; it reads the incoming gradient and
what the gradient's formula needs, and writes the gradients. An implementation that does less than is counted here (the
Gram matrix of `dpc_knn` is symmetric, so half of it is enough) may exceed 100 % of the limit.

The functions take an op's own arguments but use only their shapes and dtypes, so meta tensors are enough.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INDEX = 8  # bytes of an int64


@dataclass(frozen=True)
class Work:
    """flops: number of operations. bytes: moved between memory and chip. dtype: that of the products."""

    flops: float
    bytes: int
    dtype: torch.dtype

    def seconds(self, peaks: "Peaks") -> float:
        """The least time that a chip with these peaks needs, if computation and transfers overlap."""
        return max(self.flops / peaks.flops[self.dtype], self.bytes / peaks.bandwidth)


@dataclass(frozen=True)
class Peaks:
    """flops: FLOP/s of a large matrix product, by dtype. bandwidth: bytes per second that a copy reads and writes."""

    flops: dict[torch.dtype, float]
    bandwidth: float


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _work(flops: float, forward: int, backward: int, tensor: Tensor, training: bool) -> Work:
    return Work(3 * flops if training else flops, forward + backward if training else forward, tensor.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: list[int] | None = None,
    causal: bool = False,
    training: bool = False,
    **_,
) -> Work:
    """Two products over the pairs that attend, including pairs that a mask excludes. The softmax is not counted."""
    batch, heads, queries, width = query.shape
    segments = [(end - start,) * 2 for start, end in itertools.pairwise(cu_seqlens or ())] or [(queries, key.shape[2])]
    # Causal: the last query sees all keys, each earlier query one key less.
    pairs = sum(s * t - (s * (s - 1) // 2 if causal else 0) for s, t in segments)
    forward = _bytes(query, key, value, mask, query)
    backward = _bytes(query, key, value, mask, query, query) + _bytes(query, key, value)  # output and its gradient
    return _work(4 * batch * heads * pairs * width, forward, backward, query, training)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, training: bool = False, **_) -> Work:
    """Two products and a sum for each number of query and key."""
    moved = _bytes(query, key, cos, sin, query, key)
    return _work(3 * (query.numel() + key.numel()), moved, moved, query, training)


def dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    *,
    training: bool = False,
    **_,
) -> Work:
    """The product of all pairs of a frame's tokens, from which the distances follow; the steps after it, about N / C of
    it, are not counted. The matrix need not be stored: tokens are read, centres and labels written. No gradient."""
    frames, count, channels = tokens.shape
    written = INDEX * frames * (max_groups + count)
    return Work(2 * frames * count**2 * channels, _bytes(tokens, valid, budgets, num_neighbors) + written, tokens.dtype)


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor, *, training: bool = False, **_) -> Work:
    """An addition for each number of the tokens, and a division for each number of the means."""
    frames, count, channels = tokens.shape
    means = frames * counts.shape[1] * channels
    moved = _bytes(tokens, labels, counts) + means * tokens.element_size()  # the same in the backward pass
    return _work(frames * count * channels + means, moved, moved, tokens, training)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, training: bool = False, **_) -> Work:
    """A square, a sum and two products for each number; a mean, a sum and a root for each row."""
    result = x.numel() * torch.promote_types(x.dtype, weight.dtype).itemsize
    rows = x.numel() // x.shape[-1]
    forward, backward = _bytes(x, weight) + result, result + 2 * _bytes(x, weight)
    return _work(4 * x.numel() + 3 * rows, forward, backward, x, training)


def swiglu(gate: Tensor, up: Tensor, *, training: bool = False, **_) -> Work:
    """gate / (1 + exp(-gate)) * up: five operations per number (sign, exponential, sum, division, product)."""
    return _work(5 * gate.numel(), _bytes(gate, up, gate), _bytes(gate, gate, up, gate, up), gate, training)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, *, training: bool = False, **_) -> Work:
    """The product with the vocabulary; logits need not be stored. The softmax is not counted."""
    tokens, width = hidden.shape
    wide = torch.promote_types(hidden.dtype, torch.float32).itemsize
    forward, backward = _bytes(hidden, weight, labels) + wide, 2 * _bytes(hidden, weight) + _bytes(labels) + wide
    return _work(2 * tokens * width * weight.shape[0], forward, backward, hidden, training)


def merge(tokens: Tensor, budgets: Tensor, max_groups: int, *, training: bool = False, **_) -> Work:
    """Clustering and means, with the tokens read once; choosing positions is negligible."""
    frames, count, channels = tokens.shape
    means = frames * max_groups * channels
    written = means * tokens.element_size() + INDEX * frames * (max_groups + count)
    flops = 2 * frames * count**2 * channels + frames * count * channels + means
    return Work(flops, _bytes(tokens, budgets) + written, tokens.dtype)


# op of ppe_npu.backends, or "merge", which consists of several -> its formula
WORK: dict[str, Callable[..., Work]] = {
    "merge": merge,
    "attention": attention,
    "rotary": rotary,
    "dpc_knn": dpc_knn,
    "group_mean": group_mean,
    "rms_norm": rms_norm,
    "swiglu": swiglu,
    "linear_cross_entropy": linear_cross_entropy,
}


def groups(tokens: int, ratio: float) -> int:
    """How many tokens a frame keeps."""
    return math.ceil(tokens * ratio)
