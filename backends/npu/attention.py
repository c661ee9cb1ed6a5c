"""attention by torch_npu.npu_fusion_attention; decode.py has the operator for decode.

Differences from other attention functions, according to op-plugin's page of the operator:
* `scale` is 1.0 unless passed.
* In a mask True means masked out; the shapes are [B,N,S,T], [B,1,S,T], [1,1,S,T] and [S,T].
* Causality is sparse_mode 3 (bottom-right) with a fixed, compressed 2,048 x 2,048 mask; without a mask the mode is
  silently ignored and attention is full.
* Packed layout (TND): borders are a host list without the leading 0, of at most 1,024 entries.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppe_npu.backends import masks, segments
from ppe_npu.backends.common import refused_dtype

MAX_SEGMENTS = 1024


def refusal(
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
) -> str | None:
    """Limits: fp16, bf16, fp32; head widths to 768; 256 query heads; lengths to 2**20; bool masks; dropout below 1."""
    if reason := refused_dtype("npu_fusion_attention takes", query.dtype):
        return reason
    if not 1 <= query.shape[-1] <= 768 or value.shape[-1] != query.shape[-1]:
        return "npu_fusion_attention takes head widths from 1 to 768, the same for values"
    if query.shape[1] > 256:
        return "npu_fusion_attention takes at most 256 query heads"
    if not all(1 <= length <= 2**20 for length in (query.shape[2], key.shape[2])) or query.shape[0] == 0:
        return "npu_fusion_attention takes lengths from 1 to 2**20 and no empty batch"
    if mask is not None and mask.dtype is not torch.bool:
        return "npu_fusion_attention takes bool masks; an additive one cannot be turned into one"
    if not 0.0 <= dropout < 1.0:
        return "npu_fusion_attention takes dropout from 0 to below 1"
    return None


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
    import torch_npu

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attend(
        torch_npu.npu_fusion_attention, query, key, value,
        mask=mask, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, causal=causal, scale=scale, dropout=dropout,
    )  # fmt: skip


def attend(
    operator: Callable,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    cu_seqlens: list[int] | None,
    cu_seqlens_k: list[int] | None,
    causal: bool,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention by an operator with the arguments of npu_fusion_attention.

    Segments of equal length are passed as a batch. Others are passed packed, in several calls if there are more than
    1,024 of them, as in 64 frames of the released recipe, which have 1,536 vision windows.
    """
    options: dict[str, Any] = {"operator": operator, "causal": causal, "scale": scale, "keep_prob": 1.0 - dropout}
    if cu_seqlens is None:
        return _dense(query, key, value, mask=mask, **options)
    parts = _parts(tuple(cu_seqlens), tuple(cu_seqlens_k or cu_seqlens))
    if parts is None:
        return segments.attend(_dense, query, key, value, cu_seqlens, cu_seqlens_k, **options)
    return _packed(query, key, value, parts, **options)


@functools.lru_cache(maxsize=16)
def _parts(queries: tuple[int, ...], keys: tuple[int, ...]) -> list[tuple[tuple[slice, list[int]], ...]] | None:
    """For each call of the packed layout, (slice of tokens, ends of the segments in it) of queries and of keys; None if
    all segments have equal lengths. Segments without queries are left out, because no query attends to their keys.

    Cached, because every layer needs the same parts: for 1,537 borders, building takes 0.2 ms and a look-up 0.01 ms.
    """
    pairs = zip(itertools.pairwise(queries), itertools.pairwise(keys))
    runs = [(own, others) for own, others in pairs if own[1] > own[0]]
    if len({(own[1] - own[0], others[1] - others[0]) for own, others in runs}) == 1:
        return None
    parts, at = [], 0
    while at < len(runs):
        # One call takes contiguous keys, so it ends before a gap left by the keys of a segment that was left out.
        stop = at + 1
        while stop < min(at + MAX_SEGMENTS, len(runs)) and runs[stop][1][0] == runs[stop - 1][1][1]:
            stop += 1
        sides = zip(*runs[at:stop])
        parts.append(tuple((slice(side[0][0], side[-1][1]), [end - side[0][0] for _, end in side]) for side in sides))
        at = stop
    return parts


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    operator: Callable,
    mask: Tensor | None = None,
    causal: bool,
    **options,
) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if mask is None and causal and queries > 1:
        options |= {"atten_mask": _compressed_causal(query.device), "sparse_mode": 3}
    allowed = None
    if mask is not None:
        allowed = full_mask(masks.join(mask, queries, keys, causal, query.device), query, keys)
        options |= {"atten_mask": ~allowed, "sparse_mode": 1}
    output = operator(query, key, value, query.shape[1], "BNSD", **options)[0]
    return without_blind_rows(output, allowed)


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[tuple[tuple[slice, list[int]], ...]],
    *,
    operator: Callable,
    causal: bool,
    **options,
) -> Tensor:
    if causal:
        options |= {"atten_mask": _compressed_causal(query.device), "sparse_mode": 3}
    tokens = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    outputs = []
    for (rows, ends), (others, key_ends) in parts:
        lengths = {"actual_seq_qlen": ends, "actual_seq_kvlen": key_ends}
        part = (tensor[side] for tensor, side in zip(tokens, (rows, others, others)))
        outputs.append(operator(*part, query.shape[1], "TND", **lengths, **options)[0])
    return torch.cat(outputs).transpose(0, 1).unsqueeze(0)


def without_blind_rows(output: Tensor, allowed: Tensor | None) -> Tensor:
    """`output` with zeros, as specified, in rows that may attend to nothing; the operators average all values there."""
    return output if allowed is None else output.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)


def full_mask(mask: Tensor, query: Tensor, keys: int) -> Tensor:
    """The mask in a shape that the operators take: [B or 1, 1, S, T], or [B, N, S, T] if it differs between heads."""
    batch, heads, queries, _ = query.shape
    mask = mask[(None,) * (4 - mask.dim())]
    per_head = mask.shape[1] > 1
    return mask.expand(batch if per_head else -1, heads if per_head else 1, queries, keys)


@functools.lru_cache(maxsize=8)
def _compressed_causal(device: torch.device) -> Tensor:
    # One per device, created outside inference_mode: an inference tensor cannot be saved for a later backward pass.
    with torch.inference_mode(False):
        return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)
