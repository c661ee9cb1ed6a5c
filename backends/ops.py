"""The operations: their arguments, results and meaning. `dispatch` picks the implementation. The two operations that
merge tokens are in merging.py.

All take `implementation=None`. A name selects the implementation for this call (see `dispatch.using`), which raises
ImplementationError if that one cannot be used. Arguments that no implementation supports raise InputError.
"""

import torch
from torch import Tensor

from . import device, dispatch, segments
from .common import IGNORED
from .dispatch import check_kinds, require
from .key_bias import widened
from .merging import dpc_knn as dpc_knn
from .merging import group_mean as group_mean


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    cu_seqlens: list[int] | None = None,
    cu_seqlens_k: list[int] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    implementation: str | None = None,
) -> Tensor:
    """softmax(scale * query key^T) value, per head. Key heads that several query heads share need not be repeated.

    Args:
        query: [B, H, S, D], floating point.
        key, value: [B, Hkv, T, D], the same dtype; H is a multiple of Hkv, query head h reads key head h // (H / Hkv).
        mask: broadcastable to [B, H, S, T]; bool (True = attend), or floating point, added to the scaled scores
            (some implementations first round it to the inputs' dtype). A row that may attend to nothing gives zeros.
        key_bias: [B, T], finite, added to the scaled scores of each key, by up to 18 more channels of a head: no mask.
        cu_seqlens: the borders of packed segments, a non-decreasing list [0, ..., S] on the host. Each segment attends
            only to itself. Requires B = 1, S = T and no mask. Build it once per forward pass, not per layer.
        cu_seqlens_k: separate borders for the keys, [0, ..., T], as many as in cu_seqlens: the queries of the i-th
            segment attend to the keys of the i-th segment. A segment with queries must have keys. Not with causal.
        causal: the last query sees all keys, each earlier one a key fewer (bottom-right alignment). Requires S <= T.
        scale: 1/sqrt(D) if None.
        dropout: probability of dropping an attention weight. Implementations do not drop the same ones.

    Returns:
        [B, H, S, D] in the inputs' dtype, not necessarily contiguous.

    Raises:
        InputError: shapes, dtypes or options that do not fit together.
    """
    _check_attention(query, key, value, mask, key_bias, causal, scale, dropout)
    segments.check(cu_seqlens, query, key, mask, cu_seqlens_k, causal)
    mask, width = None if mask is None else torch.atleast_2d(mask), query.shape[3]
    if key_bias is not None:
        query, key, value, scale = widened(query, key, value, key_bias, scale)
    options = {"causal": bool(causal), "scale": scale, "dropout": dropout, "mask": mask, "cu_seqlens": cu_seqlens}
    options |= {} if cu_seqlens_k is None else {"cu_seqlens_k": cu_seqlens_k}
    output = dispatch.call("attention", query, key, value, **options, implementation=implementation)
    return output if key_bias is None else output[..., :width]


def _check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    key_bias: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> None:
    """Raise InputError unless the arguments of attention() fit together."""
    given = {"query": query, "key": key, "value": value, "mask": mask, "key_bias": key_bias}
    check_kinds("attention", **given, causal=causal, scale=scale, dropout=dropout)
    shapes = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
    fits = query.dim() == key.dim() == 4 and key.shape == value.shape and query.shape[0] == key.shape[0]
    fits = fits and query.shape[3] == key.shape[3] > 0
    require(fits, "attention: takes query [B, H, S, D], key and value [B, Hkv, T, D], got", shapes)
    heads, kv_heads = query.shape[1], key.shape[1]
    divides = kv_heads > 0 and heads % kv_heads == 0
    require(divides, "attention: query heads must be a multiple of key heads, got", (heads, kv_heads))
    dtypes = (query.dtype, key.dtype, value.dtype)
    require(len(set(dtypes)) == 1, "attention: query, key and value must share a dtype, got", dtypes)
    queries, keys = query.shape[2], key.shape[2]
    require(
        not causal or queries <= keys, "attention: causal needs at most as many queries as keys, got", (queries, keys)
    )
    require(0 <= dropout <= 1, "attention: dropout must be a probability, from 0 to 1, got", dropout)
    fits = key_bias is None or tuple(key_bias.shape) == (key.shape[0], keys)
    require(fits, f"attention: key_bias must be {[key.shape[0], keys]}, got", getattr(key_bias, "shape", None))
    if mask is None:
        return
    target = (query.shape[0], heads, queries, keys)
    sizes = zip(mask.shape[::-1], target[::-1])
    fits = mask.dim() <= 4 and all(size in (1, wanted) for size, wanted in sizes)
    require(fits, f"attention: mask must be broadcastable to {target}, got", tuple(mask.shape))
    known = mask.dtype is torch.bool or mask.is_floating_point()
    require(known, "attention: mask must be bool (True = attend) or floating point, got", mask.dtype)


def rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, implementation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Rotates the pairs (x[i], x[i + D/2]) by the table's angles: x * cos + cat(-x2, x1) * sin, as in transformers.

    Args:
        query: [B, H, S, D]. key: [B, Hkv, S, D]. D is even.
        cos, sin: [B, S, D] or [1, S, D], full width (both halves), in the dtype of query and key.

    Returns:
        The rotated query and key.

    Raises:
        InputError: a shape or dtype that does not fit.
    """
    check_kinds("rotary", query=query, key=key, cos=cos, sin=sin)
    dtypes = {tensor.dtype for tensor in (query, key, cos, sin)}
    require(len(dtypes) == 1, "rotary: query, key, cos and sin must share a dtype, got", [str(d) for d in dtypes])
    shapes = (tuple(query.shape), tuple(key.shape))
    require(query.dim() == key.dim() == 4, "rotary: query and key must be [B, H, S, D], got", shapes)
    batch, _, length, width = query.shape
    require(width % 2 == 0, "rotary: the head width must be even, got", width)
    fits = (key.shape[0], *key.shape[2:]) == (batch, length, width)
    require(fits, "rotary: key must be like query, except for the number of heads, got", shapes)
    for table in (cos, sin):
        fits = table.dim() == 3 and table.shape[0] in (1, batch) and table.shape[1:] == (length, width)
        require(fits, f"rotary: cos and sin must be {[batch, length, width]} (or batch 1), got", tuple(table.shape))
    return dispatch.call("rotary", query, key, cos, sin, implementation=implementation)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, implementation: str | None = None) -> Tensor:
    """weight * (x / sqrt(mean(x^2) + eps)) over the last dimension, as in transformers' RMSNorm modules.

    Args:
        x: [..., D], floating point; upcast to fp32 for the mean unless it is fp64.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., D] in the wider of the two dtypes.

    Raises:
        InputError: the weight does not fit.
    """
    check_kinds("rms_norm", x=x, weight=weight, eps=eps)
    fits = x.dim() > 0 and weight.shape == x.shape[-1:]
    require(fits, "rms_norm: weight must be as wide as x, got", (tuple(weight.shape), tuple(x.shape)))
    return dispatch.call("rms_norm", x, weight, eps, implementation=implementation)


def swiglu(gate: Tensor, up: Tensor, *, implementation: str | None = None) -> Tensor:
    """silu(gate) * up, elementwise. Both arguments and the result are [..., D], of the same shape and dtype.

    Raises:
        InputError: shapes or dtypes differ.
    """
    check_kinds("swiglu", gate=gate, up=up)
    fits = gate.shape == up.shape and gate.dtype == up.dtype
    require(fits, "swiglu: gate and up must have one shape and dtype, got", [(t.shape, t.dtype) for t in (gate, up)])
    return dispatch.call("swiglu", gate, up, implementation=implementation)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    chunk_size: int = 1024,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """Cross entropy of hidden @ weight^T against labels, without storing all logits at once.

    Args:
        hidden: [T, D], floating point, already aligned with the labels.
        weight: [V, D], the same dtype.
        labels: int64 [T], each in [0, V) or `ignore_index`.
        ignore_index: the label of tokens without a loss.
        chunk_size: tokens whose logits ([chunk_size, V], fp32) are in memory at the same time.
        reduction: "mean" over the tokens with a loss (0 with zero gradients if there are none), or "sum".

    Returns:
        Scalar, fp32 (fp64 for fp64), differentiable in hidden and weight.

    Raises:
        InputError: a shape, dtype or option that does not fit; on a CPU also a label that is out of range.
    """
    given = {"hidden": hidden, "weight": weight, "labels": labels}
    check_kinds("linear_cross_entropy", **given, ignore_index=ignore_index, chunk_size=chunk_size)
    shapes = (tuple(hidden.shape), tuple(weight.shape), tuple(labels.shape))
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1] and labels.shape == hidden.shape[:1]
    require(fits, "linear_cross_entropy: takes hidden [T, D], weight [V, D] and labels [T], got", shapes)
    labels = labels.long()  # in uint8, -100 would be class 156
    dtypes = (hidden.dtype, weight.dtype)
    require(len(set(dtypes)) == 1, "linear_cross_entropy: hidden and weight must share a dtype, got", dtypes)
    require(reduction in ("mean", "sum"), "linear_cross_entropy: reduction must be 'mean' or 'sum', got", reduction)
    require(chunk_size >= 1, "linear_cross_entropy: chunk_size must be at least 1, got", chunk_size)
    _check_labels(labels, len(weight), ignore_index)
    options = {"ignore_index": ignore_index, "chunk_size": chunk_size, "reduction": reduction}
    return dispatch.call("linear_cross_entropy", hidden, weight, labels, **options, implementation=implementation)


def _check_labels(labels: Tensor, classes: int, ignored: int) -> None:
    """Raise InputError unless every label is a class or the ignored label. Checked where the host may read labels."""
    if not device.asks_freely(labels.device):
        return
    strange = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        expected = f"linear_cross_entropy: labels must be from 0 to {classes - 1}, or {ignored}, got"
        require(False, expected, int(strange[0]))
