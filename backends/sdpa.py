"""attention by torch's scaled_dot_product_attention: on the CPU, and on CUDA where flash-attn is missing or refuses."""

import functools
import importlib
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import device, masks, segments
from .reference.attention import repeat_heads


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
    """See `ppe_npu.backends.attention`."""
    options = {"causal": causal, "scale": scale, "dropout": dropout}
    if cu_seqlens is None:
        return _dense(query, key, value, mask=mask, **options)
    varlen = _varlen_attn() if _takes_segments(query, dropout) else None
    if varlen is not None:
        return _packed(varlen, query, key, value, cu_seqlens, cu_seqlens_k or cu_seqlens, causal, scale)
    return segments.attend(_dense, query, key, value, cu_seqlens, cu_seqlens_k, **options)


def _dense(query: Tensor, key: Tensor, value: Tensor, *, mask=None, causal, scale, dropout) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    # torch aligns is_causal top-left, which is right only for equal numbers of queries and keys.
    square = causal and mask is None and queries == keys > 1
    if not square:
        mask = masks.join(mask, queries, keys, causal, query.device)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    options = {"attn_mask": mask, "dropout_p": dropout, "is_causal": square, "scale": scale}
    if not grouped or _takes_groups(query.device, query.dtype, query.shape[3], mask is not None):
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped, **options)
    if queries == 1 and (mask is None or mask.dim() < 3 or mask.shape[-3] == 1):
        # In decode, the query heads that share a key head become queries of that one head, so nothing is repeated.
        query = query.view(*key.shape[:2], -1, query.shape[3])
        return F.scaled_dot_product_attention(query, key, value, **options).flatten(1, 2).unsqueeze(2)
    key, value = (repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    return F.scaled_dot_product_attention(query, key, value, **options)


def _takes_segments(query: Tensor, dropout: float) -> bool:
    """Whether torch's flash kernel supports these packed segments as they are, in one launch without sorting."""
    width = query.shape[3]
    if dropout or width % 8 or width > 256 or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return device.runs_flash_attention(query.device)


@functools.cache
def _varlen_attn() -> Callable | None:
    """torch's varlen_attn, or None in releases without it or without the arguments used here (2.13 has all of them)."""
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    return function if {"scale", "enable_gqa", "window_size"} <= set(inspect.signature(function).parameters) else None


def _packed(
    varlen: Callable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: list[int],
    cu_seqlens_k: list[int],
    causal: bool,
    scale: float | None,
) -> Tensor:
    (borders, longest), (others, most) = (segments.borders(b, query.device) for b in (cu_seqlens, cu_seqlens_k))
    options = {"window_size": (-1, 0) if causal else (-1, -1), "enable_gqa": query.shape[1] != key.shape[1]}
    tokens = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output = varlen(*tokens, borders, others, longest, most, scale=scale, **options)
    return output.transpose(0, 1).unsqueeze(0)


def _takes_groups(where: torch.device, dtype: torch.dtype, width: int, masked: bool) -> bool:
    """Whether a fused kernel supports grouped heads without repeating them.

    On CUDA only flash attention does. For calls that it refuses, torch would silently use the unfused path, which
    stores S x T scores per head (pull requests pytorch 191085, transformers 46960). Repeating the heads is far cheaper.
    """
    fits_flash = dtype in (torch.float16, torch.bfloat16) and width <= 256 and not masked
    return fits_flash or device.fuses_few_key_heads(where)
