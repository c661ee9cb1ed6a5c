"""Attention within segments (windows, images) of one packed row of tokens, by batches of segments of equal length.

Qwen2.5-VL's vision tower cuts a video into a thousand windows or more, of a handful of lengths. A loop over windows
would launch a thousand kernels per layer; here there is one batched call per distinct length.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ppe_npu.backends import device as devices
from ppe_npu.backends.dispatch import require, short
from ppe_npu.errors import shown


@dataclass(frozen=True)
class SegmentOrder:
    """How packed tokens are sorted so that segments of equal length are adjacent.

    Attributes:
        shapes: (number of segments, queries in each, keys in each) per distinct pair of lengths, in order of first
            appearance. Segments without queries are left out.
        order: int64 [S], the packed index of each sorted token; None if the packed order is already right.
        inverse: int64 [S], the sorted index of each packed token; None if `order` is None.
        key_order: int64, the packed index of each sorted key; the same as `order` if keys have the same borders.
    """

    shapes: tuple[tuple[int, int, int], ...]
    order: Tensor | None
    inverse: Tensor | None
    key_order: Tensor | None


@functools.lru_cache(maxsize=16)
def _rise(cu_seqlens: tuple[int, ...]) -> bool:
    """Whether the borders never decrease. Cached, because every layer checks the same borders."""
    return all(start <= end for start, end in itertools.pairwise(cu_seqlens))


@functools.lru_cache(maxsize=16)
def _have_keys(queries: tuple[int, ...], keys: tuple[int, ...]) -> bool:
    """Whether every segment with queries also has keys."""
    sides = zip(itertools.pairwise(queries), itertools.pairwise(keys))
    return all(own[0] == own[1] or others[0] < others[1] for own, others in sides)


def check(
    cu_seqlens: list[int] | None,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    cu_seqlens_k: list[int] | None = None,
    causal: bool = False,
) -> None:
    """Raise InputError unless cu_seqlens and cu_seqlens_k, if given, divide the arguments of attention() validly."""
    if cu_seqlens is None:
        require(cu_seqlens_k is None, "attention: cu_seqlens_k needs cu_seqlens, too, got", cu_seqlens)
        return
    length, keys = query.shape[2], key.shape[2]
    for borders in (cu_seqlens, cu_seqlens_k):
        host = borders is None or isinstance(borders, (list, tuple))
        if host and borders is not None and not torch.compiler.is_compiling():  # borders may be symbols then
            host = all(issubclass(kind, Integral) for kind in set(map(type, borders)))
        require(host, "attention: cu_seqlens must be a host list of int, got", shown(borders))
    fits = query.shape[0] == 1 and (keys == length or cu_seqlens_k is not None) and mask is None
    require(
        fits, "attention: cu_seqlens needs B = 1, S = T and no mask, got", (query.shape, key.shape, mask is not None)
    )
    _check_borders(cu_seqlens, length)
    if cu_seqlens_k is None:
        return
    require(not causal, "attention: cu_seqlens_k is for attention that is not causal, got causal =", causal)
    _check_borders(cu_seqlens_k, keys)
    fits = len(cu_seqlens) == len(cu_seqlens_k) and _have_keys(tuple(cu_seqlens), tuple(cu_seqlens_k))
    require(fits, "attention: every segment that has queries needs keys, got", (short(cu_seqlens), short(cu_seqlens_k)))


def _check_borders(borders: list[int], length: int) -> None:
    fits = len(borders) > 0 and borders[0] == 0 and borders[-1] == length
    fits = fits and _rise(tuple(borders))
    require(fits, f"attention: cu_seqlens must rise from 0 to {length}, got", borders)


def plan(cu_seqlens: list[int], device: torch.device, cu_seqlens_k: list[int] | None = None) -> SegmentOrder:
    """The SegmentOrder of the segments between the borders in `cu_seqlens` (the first is 0), on `device`. Keys have the
    same borders unless `cu_seqlens_k` is given."""
    return _plan(tuple(cu_seqlens), None if cu_seqlens_k is None else tuple(cu_seqlens_k), device)


@functools.lru_cache(maxsize=16)
def _plan(cu_seqlens: tuple[int, ...], others: tuple[int, ...] | None, device: torch.device) -> SegmentOrder:
    # Cached, because every layer needs the same plan, and building it copies from the host to the device.
    starts: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for (start, end), (key, last) in zip(itertools.pairwise(cu_seqlens), itertools.pairwise(others or cu_seqlens)):
        if end > start:
            starts[end - start, last - key].append((start, key))
    shapes = tuple((len(group), *lengths) for lengths, group in starts.items())
    dense = others is None or (sum(count * keys for count, _, keys in shapes) == others[-1])
    if len(shapes) <= 1 and dense:
        return SegmentOrder(shapes, None, None, None)
    # An index created in inference_mode could not be saved for a later backward pass.
    with torch.inference_mode(False):
        order, key_order = (_order(starts, side) for side in (0, 1))
        on_device = order.to(device)
        keys_there = on_device if others is None else key_order.to(device)
        return SegmentOrder(shapes, on_device, order.argsort().to(device), keys_there)


def _order(starts: dict[tuple[int, int], list[tuple[int, int]]], side: int) -> Tensor:
    """int64, the packed index of every query (side 0) or key (side 1), with segments of equal lengths adjacent."""
    spans = [torch.tensor(group)[:, side, None] + torch.arange(lengths[side]) for lengths, group in starts.items()]
    return torch.cat([torch.empty(0, dtype=torch.long), *(span.flatten() for span in spans)])


def borders(cu_seqlens: list[int], device: torch.device) -> tuple[Tensor, int]:
    """Inputs of kernels for packed segments: cu_seqlens as int32 on `device`, and the length of the longest segment."""
    return _borders(tuple(cu_seqlens), device)


@functools.lru_cache(maxsize=16)
def _borders(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    # Cached, and created outside inference_mode, for the reasons given in _plan.
    with torch.inference_mode(False):
        on_device = torch.tensor(cu_seqlens, dtype=torch.int32, device=device)
    return on_device, max((end - start for start, end in itertools.pairwise(cu_seqlens)), default=0)


def prepare(cu_seqlens: list[int], device: torch.device, dtype: torch.dtype) -> None:
    """Uploads in advance what attention within these segments needs, so that no layer has to wait for the device.

    Args:
        dtype: the dtype of the model's weights; under autocast, the autocast dtype is used instead.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if devices.takes_borders(device, dtype):
        borders(cu_seqlens, device)
    elif not devices.takes_host_lists(device):
        plan(cu_seqlens, device)


def attend(
    dense: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: list[int],
    cu_seqlens_k: list[int] | None = None,
    **options,
) -> Tensor:
    """Applies `dense(query, key, value, **options)` to each segment separately.

    Args:
        dense: attention of queries [n, H, L, D] to keys and values [n, Hkv, M, D], returning [n, H, L, D].
        query: [1, H, S, D]. key, value: [1, Hkv, T, D].
        cu_seqlens: host list of segment borders; the first is 0 and the last is S.
        cu_seqlens_k: the borders of keys and values; the last is T. None if they are the same.

    Returns:
        [1, H, S, D] in the order of the packed tokens.
    """
    cut = plan(cu_seqlens, query.device, cu_seqlens_k)
    tokens = [query[0], key[0], value[0]]
    if cut.order is not None and cut.key_order is not None:
        orders = (cut.order, cut.key_order, cut.key_order)
        tokens = [tensor.index_select(1, order) for tensor, order in zip(tokens, orders)]
    sizes = [[shape[0] * shape[side] for shape in cut.shapes] for side in (1, 2, 2)]
    outputs = []
    for shape, *parts in zip(cut.shapes, *(tensor.split(size, dim=1) for tensor, size in zip(tokens, sizes))):
        lengths = (shape[1], shape[2], shape[2])
        batches = (part.unflatten(1, (shape[0], length)).transpose(0, 1) for part, length in zip(parts, lengths))
        outputs.append(dense(*batches, **options).transpose(0, 1).flatten(1, 2))
    packed = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(tokens[0])
    if cut.inverse is not None:
        packed = packed.index_select(1, cut.inverse)
    return packed.unsqueeze(0)
