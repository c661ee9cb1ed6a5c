"""What the operations take, checked before an implementation is chosen: none would say it as plainly."""

import torch
from torch import Tensor

from ppe_npu.errors import InputError

from . import segments

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def floating(op: str, **tensors: Tensor) -> None:
    """Raise InputError, naming the argument and its dtype, for one that is not floating point."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{op}: {name} is {tensor.dtype}: give floating point, such as {name}.float()")


def integers(op: str, **tensors: Tensor) -> None:
    """Raise InputError, naming the argument and its dtype, for one that is not of integers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _INTEGERS:
            raise InputError(f"{op}: {name} is {tensor.dtype}: give integers, such as {name}.long()")


def require(condition: bool, expected: str, got: object) -> None:
    """Raise ValueError, of what was expected and what was got, unless the condition holds."""
    if not condition:
        raise ValueError(f"{expected} {_short(got) if isinstance(got, list) else got}")


def check_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> None:
    """Raise ValueError unless the arguments of attention() fit together."""
    shapes = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
    fits = query.dim() == key.dim() == 4 and key.shape == value.shape and query.shape[0] == key.shape[0]
    fits = fits and query.shape[3] == key.shape[3]
    require(fits, "attention: takes query [B, H, S, D], key and value [B, Hkv, T, D], got", shapes)
    heads, kv_heads = query.shape[1], key.shape[1]
    divides = kv_heads > 0 and heads % kv_heads == 0
    require(divides, "attention: query heads must be a multiple of key heads, got", (heads, kv_heads))
    floating("attention", query=query, key=key, value=value)
    dtypes = (query.dtype, key.dtype, value.dtype)
    require(len(set(dtypes)) == 1, "attention: query, key and value must share a dtype, got", dtypes)
    queries, keys = query.shape[2], key.shape[2]
    require(
        not causal or queries <= keys, "attention: causal needs at most as many queries as keys, got", (queries, keys)
    )
    if mask is None:
        return
    target = (query.shape[0], heads, queries, keys)
    sizes = zip(mask.shape[::-1], target[::-1])
    fits = mask.dim() <= 4 and all(size in (1, wanted) for size, wanted in sizes)
    require(fits, f"attention: mask must be broadcastable to {target}, got", tuple(mask.shape))
    known = mask.dtype is torch.bool or mask.is_floating_point()
    require(known, "attention: mask must be bool (True = attend) or floating point, got", mask.dtype)


def check_segments(
    cu_seqlens: list[int] | None,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    cu_seqlens_k: list[int] | None = None,
    causal: bool = False,
) -> None:
    """Raise ValueError unless cu_seqlens, and cu_seqlens_k, part the arguments of attention() in segments."""
    if cu_seqlens is None:
        require(cu_seqlens_k is None, "attention: cu_seqlens_k needs cu_seqlens beside it, got", cu_seqlens)
        return
    length, keys = query.shape[2], key.shape[2]
    for borders in (cu_seqlens, cu_seqlens_k):
        host = not isinstance(borders, torch.Tensor)
        require(host, "attention: cu_seqlens must be a host list of int, got", type(borders))
    fits = query.shape[0] == 1 and (keys == length or cu_seqlens_k is not None) and mask is None
    require(
        fits, "attention: cu_seqlens needs B = 1, S = T and no mask, got", (query.shape, key.shape, mask is not None)
    )
    _check_borders(cu_seqlens, length)
    if cu_seqlens_k is None:
        return
    require(not causal, "attention: cu_seqlens_k is for attention that is not causal, got causal =", causal)
    _check_borders(cu_seqlens_k, keys)
    fits = len(cu_seqlens) == len(cu_seqlens_k) and segments.have_keys(tuple(cu_seqlens), tuple(cu_seqlens_k))
    require(
        fits, "attention: every segment that has queries needs keys, got", (_short(cu_seqlens), _short(cu_seqlens_k))
    )


def _check_borders(borders: list[int], length: int) -> None:
    fits = len(borders) > 0 and borders[0] == 0 and borders[-1] == length
    fits = fits and segments.rise(tuple(borders))
    require(fits, f"attention: cu_seqlens must rise from 0 to {length}, got", borders)


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"{values[:4]} ... {values[-3:]}"
