"""The specification of attention: two matrix products in the inputs' dtype with an fp32 softmax between them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ppe_npu.backends import masks, segments


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: list[int] | None = None,
    cu_seqlens_k: list[int] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """See `ppe_npu.backends.attention`. Rounds as transformers' eager attention does; fp64 stays fp64."""
    options = {"causal": causal, "scale": scale, "dropout": dropout}
    if cu_seqlens is not None:
        return segments.attend(_dense, query, key, value, cu_seqlens, cu_seqlens_k, **options)
    return _dense(query, key, value, mask=mask, **options)


def _dense(query: Tensor, key: Tensor, value: Tensor, *, mask=None, causal, scale, dropout) -> Tensor:
    heads, queries, width = query.shape[1:]
    keys = key.shape[2]
    key, value = (repeat_heads(tensor, heads) for tensor in (key, value))
    scale = width**-0.5 if scale is None else scale

    scores = (query @ key.transpose(2, 3)).to(torch.promote_types(query.dtype, torch.float32)) * scale
    mask = masks.join(mask, queries, keys, causal, query.device)
    allowed = mask
    if mask is not None and mask.dtype is not torch.bool:
        scores = scores + mask
        allowed = mask > float("-inf")
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if allowed is not None:
        # This changes only rows that may attend to nothing. softmax made them uniform; with -inf they would be NaN.
        weights = weights.masked_fill(~allowed, 0.0)
    return F.dropout(weights.to(query.dtype), dropout) @ value


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """[B, Hkv, T, D] -> [B, H, T, D]: query head h reads key head h // (H / Hkv)."""
    batch, kv_heads, length, width = tensor.shape
    copies = heads // kv_heads
    return tensor[:, :, None].expand(batch, kv_heads, copies, length, width).reshape(batch, heads, length, width)
