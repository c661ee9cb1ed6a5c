"""Attention within segments (windows, images) of one packed row of tokens, by batches of segments of equal length.

Qwen2.5-VL's vision tower cuts a video into a thousand windows or more, of a handful of lengths. A loop over windows
would launch a thousand kernels per layer; here there is one batched call per distinct length.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppe_npu.backends import device as devices


@dataclass(frozen=True)
class SegmentOrder:
    """How packed tokens are sorted so that segments of equal length stand together.

    Attributes:
        shapes: (number of segments, length) per distinct length, in order of first appearance; no empty segments.
        order: int64 [T], the packed index of each sorted token; None if the packed order is right already.
        inverse: int64 [T], the sorted index of each packed token; None with `order`.
    """

    shapes: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None


@functools.lru_cache(maxsize=16)
def rise(cu_seqlens: tuple[int, ...]) -> bool:
    """Whether the borders never fall. Cached, because every layer asks it of the same borders."""
    return all(start <= end for start, end in itertools.pairwise(cu_seqlens))


def plan(cu_seqlens: list[int], device: torch.device) -> SegmentOrder:
    """The SegmentOrder of the segments between the borders in `cu_seqlens` (the first is 0), on `device`."""
    return _plan(tuple(cu_seqlens), device)


@functools.lru_cache(maxsize=16)
def _plan(cu_seqlens: tuple[int, ...], device: torch.device) -> SegmentOrder:
    # Cached, because every layer asks for the same one, and making it copies from the host to the device.
    starts: dict[int, list[int]] = defaultdict(list)
    for start, end in itertools.pairwise(cu_seqlens):
        if end > start:
            starts[end - start].append(start)
    shapes = tuple((len(group), length) for length, group in starts.items())
    if len(shapes) <= 1:
        return SegmentOrder(shapes, None, None)
    # An index made under inference_mode could not be saved for a later backward pass.
    with torch.inference_mode(False):
        spans = [torch.tensor(group)[:, None] + torch.arange(length) for length, group in starts.items()]
        order = torch.cat([span.flatten() for span in spans])
        return SegmentOrder(shapes, order.to(device), order.argsort().to(device))


def borders(cu_seqlens: list[int], device: torch.device) -> tuple[Tensor, int]:
    """What kernels for packed segments need: cu_seqlens as int32 on `device`, and the length of the longest segment."""
    return _borders(tuple(cu_seqlens), device)


@functools.lru_cache(maxsize=16)
def _borders(cu_seqlens: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    # Cached, and made outside inference_mode, for the reasons given above.
    with torch.inference_mode(False):
        on_device = torch.tensor(cu_seqlens, dtype=torch.int32, device=device)
    return on_device, max((end - start for start, end in itertools.pairwise(cu_seqlens)), default=0)


def prepare(cu_seqlens: list[int], device: torch.device, dtype: torch.dtype) -> None:
    """Uploads now what attention within these segments will need, so that no layer has to wait for the device.

    Args:
        dtype: that of the model's weights; under autocast its dtype counts instead.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if devices.takes_borders(device, dtype):
        borders(cu_seqlens, device)
    elif not devices.takes_host_lists(device):
        plan(cu_seqlens, device)


def attend(
    dense: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, cu_seqlens: list[int], **options
) -> Tensor:
    """Applies `dense(query, key, value, **options)` to each segment separately.

    Args:
        dense: attention of [n, H, L, D] with [n, Hkv, L, D], giving [n, H, L, D].
        query: [1, H, T, D]. key, value: [1, Hkv, T, D].
        cu_seqlens: host list of segment borders; the first is 0 and the last is T.

    Returns:
        [1, H, T, D] in the order of the packed tokens.
    """
    cut = plan(cu_seqlens, query.device)
    tokens = [query[0], key[0], value[0]]
    if cut.order is not None:
        tokens = [tensor.index_select(1, cut.order) for tensor in tokens]
    sizes = [count * length for count, length in cut.shapes]
    outputs = []
    for shape, *parts in zip(cut.shapes, *(tensor.split(sizes, dim=1) for tensor in tokens)):
        batches = (part.unflatten(1, shape).transpose(0, 1) for part in parts)
        outputs.append(dense(*batches, **options).transpose(0, 1).flatten(1, 2))
    packed = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(tokens[0])
    if cut.inverse is not None:
        packed = packed.index_select(1, cut.inverse)
    return packed.unsqueeze(0)
