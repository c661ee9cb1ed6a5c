"""The inputs on which implementations are compared.

A case builds its tensors in fp64 on the CPU from a generator, so every device and dtype sees the same numbers; the run
rounds floating-point tensors to the dtype under test. Sizes are odd and small, because mistakes occur at edges.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from ppe_npu.backends.common import IGNORED


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes:
        op: name of a function of ppe_npu.backends.
        name: what is special about it, for the table.
        build: generator -> positional arguments; floating-point tensors in fp64, on the CPU.
        options: keyword arguments other than tensors.
        grads: positions of the arguments whose gradients are compared; () if the op has none.
        clustering: whether results are (centers, labels), compared as partitions, not as numbers.
    """

    op: str
    name: str
    build: Callable[[Generator], tuple]
    options: dict[str, Any] = field(default_factory=dict)
    grads: tuple[int, ...] = ()
    clustering: bool = False


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _attention(
    name: str,
    query: tuple,
    key: tuple,
    mask: Callable | None = None,
    key_bias: Callable | None = None,
    grads: tuple = (0, 1, 2),
    **options: Any,
) -> Case:
    """A case of attention. query, key: shapes. mask, key_bias: generator -> tensor, which the run passes by keyword."""

    def build(generator: Generator) -> tuple:
        tensors = tuple(_normal(generator, *shape) for shape in (query, key, key))
        named = {"mask": mask, "key_bias": key_bias}
        named = {name: made(generator) for name, made in named.items() if made is not None}
        return (*tensors, named) if named else tensors

    return Case("attention", name, build, options, grads=grads)


def _transposed(query: tuple, key: tuple) -> Callable:
    """Query, key and value that are [B, S, H, D] in memory, as projections return them."""

    def build(generator: Generator) -> tuple:
        return tuple(_normal(generator, b, s, h, d).transpose(1, 2) for b, h, s, d in (query, key, key))

    return build


def _log_sizes(batch: int, keys: int) -> Callable[[Generator], Tensor]:
    """[batch, keys] logarithms of sizes from 1 to 40."""
    return lambda generator: torch.randint(1, 41, (batch, keys), generator=generator).double().log()


def _left_padding(generator: Generator) -> Tensor:
    """bool [3, 1, 1, 13]: none, four and twelve of the keys are padding. If causal, padded queries see nothing."""
    return torch.arange(13)[None, :] >= torch.tensor([0, 4, 12])[:, None, None, None]


def _sparse(*shape: int, rows: slice = slice(None)) -> Callable[[Generator], Tensor]:
    """A random mask that differs by head and has a row that sees nothing, cut to some of its rows."""

    def build(generator: Generator) -> Tensor:
        mask = torch.rand(shape, generator=generator) > 0.4
        mask[0, 0, 1] = False
        return mask[:, :, rows]

    return build


def _additive(*shape: int) -> Callable[[Generator], Tensor]:
    def build(generator: Generator) -> Tensor:
        return _normal(generator, *shape).masked_fill(_sparse(*shape)(generator), float("-inf"))

    return build


def _borders(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


_WINDOWS = _borders([16, 16, 4, 0, 16, 7, 4, 1])
_SOME = _borders([5, 16, 0, 0, 3, 2, 1, 1])  # queries for some of the tokens of these windows
_MANY = _borders([1, 2, 1] * 367)  # 1,101 segments: more than one call of a fused operator takes

ATTENTION = (
    _attention("dense", (2, 4, 7, 16), (2, 4, 7, 16)),
    _attention("cross, own scale", (1, 3, 5, 24), (1, 3, 31, 24), scale=0.3),
    _attention("causal, grouped heads", (2, 6, 33, 20), (2, 2, 33, 20), causal=True),
    _attention("causal, longer keys", (2, 4, 5, 16), (2, 2, 12, 16), causal=True),
    _attention("decoding", (3, 4, 1, 32), (3, 2, 19, 32), causal=True),
    _attention("a decoding step", (3, 4, 1, 32), (3, 2, 19, 32), grads=(), causal=True),
    _attention("a padded decoding step", (3, 4, 1, 32), (3, 2, 13, 32), _left_padding, grads=(), causal=True),
    _attention("a masked decoding step", (2, 4, 1, 16), (2, 1, 7, 16), _sparse(2, 1, 2, 7, rows=slice(0, 1)), grads=()),
    Case("attention", "a decoding step, transposed", _transposed((3, 4, 1, 32), (3, 2, 19, 32)), {"causal": True}),
    _attention("left padding, causal", (3, 4, 13, 16), (3, 2, 13, 16), _left_padding, causal=True),
    _attention("mask by head", (2, 4, 9, 16), (2, 4, 11, 16), _sparse(2, 4, 9, 11)),
    _attention("additive mask", (2, 4, 9, 16), (2, 2, 11, 16), _additive(1, 1, 9, 11)),
    _attention("windows", (1, 2, _WINDOWS[-1], 80), (1, 2, _WINDOWS[-1], 80), cu_seqlens=_WINDOWS),
    _attention("equal windows", (1, 4, 48, 16), (1, 2, 48, 16), cu_seqlens=_borders([16] * 3)),
    _attention(
        "segments, causal", (1, 4, _WINDOWS[-1], 16), (1, 2, _WINDOWS[-1], 16), cu_seqlens=_WINDOWS, causal=True
    ),
    _attention(
        "some of the windows", (1, 2, _SOME[-1], 80), (1, 2, _WINDOWS[-1], 80), cu_seqlens=_SOME, cu_seqlens_k=_WINDOWS
    ),
    _attention("key bias", (2, 4, 13, 20), (2, 2, 13, 20), key_bias=_log_sizes(2, 13), causal=True),
    _attention("key bias, decoding", (3, 4, 1, 32), (3, 2, 19, 32), key_bias=_log_sizes(3, 19), grads=(), causal=True),
    _attention(
        "key bias in segments",
        (1, 4, _WINDOWS[-1], 16),
        (1, 2, _WINDOWS[-1], 16),
        key_bias=_log_sizes(1, _WINDOWS[-1]),
        cu_seqlens=_WINDOWS,
        causal=True,
    ),
    _attention("many segments", (1, 1, _MANY[-1], 8), (1, 1, _MANY[-1], 8), cu_seqlens=_MANY),
)


def _rotary(batch: int, heads: int, kv_heads: int, length: int, width: int, tables: int) -> Callable:
    def build(generator: Generator) -> tuple:
        angles = 100 * torch.rand(tables, length, width // 2, generator=generator, dtype=torch.float64)
        angles = torch.cat((angles, angles), dim=-1)
        query, key = (_normal(generator, batch, count, length, width) for count in (heads, kv_heads))
        return query, key, angles.cos(), angles.sin()

    return build


ROTARY = (
    Case("rotary", "grouped heads", _rotary(2, 6, 2, 13, 32, tables=2), grads=(0, 1)),
    Case("rotary", "one table for all", _rotary(3, 16, 2, 5, 80, tables=1), grads=(0, 1)),
    Case("rotary", "decoding", _rotary(4, 8, 2, 1, 16, tables=4), grads=(0, 1)),
)


def _frames(lengths: list[int], width: int, offset: float = 0.0) -> Callable[[Generator], tuple[Tensor, Tensor]]:
    """Tokens around a few centres per frame, padded to the longest, and which of them are valid."""

    def build(generator: Generator) -> tuple[Tensor, Tensor]:
        frames, longest = len(lengths), max(lengths)
        valid = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        blobs = 3 * _normal(generator, frames, 4, width)
        member = torch.randint(0, 4, (frames, longest, 1), generator=generator).expand(-1, -1, width)
        tokens = blobs.gather(1, member) + _normal(generator, frames, longest, width) + offset
        return torch.where(valid[:, :, None], tokens, 0.0), valid

    return build


def _dpc_knn(
    name: str, lengths: list[int], budgets: list[int], neighbors: list[int], offset: float = 0.0, **options: Any
) -> Case:
    """With the option "copies", every third token is a copy of another; "massive" is added to every eighth channel of
    all tokens but the third. All other options are the op's."""
    copies, massive = options.pop("copies", False), options.pop("massive", 0.0)

    def build(generator: Generator) -> tuple:
        tokens, valid = _frames(lengths, 48, offset)(generator)
        if copies:
            of = torch.arange(max(lengths)) - 3 * (torch.arange(max(lengths)) % 3 == 2).long()
            tokens = torch.where(valid[:, :, None], tokens[:, of.clamp(min=0)], 0.0)
        if massive:
            raised = valid & (torch.arange(max(lengths)) != 2)
            tokens = tokens + massive * (raised[:, :, None] & (torch.arange(48) % 8 == 3))
        padded = valid if min(lengths) < max(lengths) else None
        return tokens, padded, torch.tensor(budgets), max(budgets), torch.tensor(neighbors)

    return Case("dpc_knn", name, build, options, clustering=True)


DPC_KNN = (
    _dpc_knn("frames", [37] * 3, [12, 9, 1], [5, 5, 5]),
    _dpc_knn("ragged", [41, 30, 9, 1], [20, 7, 3, 1], [5, 4, 3, 1]),
    _dpc_knn("common offset", [64, 50], [21, 16], [5, 5], offset=20.0),
    _dpc_knn("massive channels, one outlier", [150, 120], [50, 31], [5, 5], massive=1000.0),
    _dpc_knn("every token kept", [17], [17], [5]),
    _dpc_knn("density all equal", [23, 11], [6, 5], [1, 1]),
    _dpc_knn("more than a tile", [150, 131], [60, 13], [5, 3]),
    _dpc_knn("copies", [40, 31], [12, 9], [5, 5], copies=True),
    _dpc_knn("of equals none is denser", [24, 20], [10, 7], [2, 2], strict=True),
)


def _group_mean(lengths: list[int], groups: int) -> Callable:
    """The last group is empty and every seventh token is in none."""

    def build(generator: Generator) -> tuple:
        tokens, valid = _frames(lengths, 24)(generator)
        labels = torch.randint(0, groups - 1, valid.shape, generator=generator)
        dropped = ~valid | (torch.arange(valid.shape[1]) % 7 == 3)
        labels = labels.masked_fill(dropped, -1)
        counts = (labels[:, :, None] == torch.arange(groups)).sum(1)
        return tokens, labels, counts

    return build


GROUP_MEAN = (
    Case("group_mean", "ragged, an empty group", _group_mean([41, 29, 3], 9), grads=(0,)),
    Case("group_mean", "mostly singletons", _group_mean([50], 45), grads=(0,)),
    Case("group_mean", "one large group", _group_mean([700, 650], 2), grads=(0,)),
)


def _rms_norm(*shape: int, size: float = 1.0, eps: float = 1e-6) -> Callable:
    return lambda generator: (size * _normal(generator, *shape), 1 + 0.2 * _normal(generator, shape[-1]), eps)


RMS_NORM = (
    Case("rms_norm", "batch", _rms_norm(2, 13, 96), grads=(0, 1)),
    Case("rms_norm", "per head, odd width", _rms_norm(2, 5, 3, 37), grads=(0, 1)),
    Case("rms_norm", "large values", _rms_norm(7, 64, size=300.0), grads=(0, 1)),
    Case("rms_norm", "small values, large eps", _rms_norm(5, 48, size=0.1, eps=1e-2), grads=(0, 1)),
)

SWIGLU = (
    Case(
        "swiglu",
        "batch",
        lambda generator: (_normal(generator, 2, 13, 40), _normal(generator, 2, 13, 40)),
        grads=(0, 1),
    ),
    Case(
        "swiglu",
        "large gate",
        lambda generator: (30 * _normal(generator, 7, 5), _normal(generator, 7, 5)),
        grads=(0, 1),
    ),
)


def _loss(tokens: int, ignored: int) -> Callable:
    def build(generator: Generator) -> tuple:
        labels = torch.randint(0, 53, (tokens,), generator=generator)
        labels[:ignored] = IGNORED
        return _normal(generator, tokens, 24), 0.3 * _normal(generator, 53, 24), labels

    return build


LINEAR_CROSS_ENTROPY = (
    Case("linear_cross_entropy", "odd chunks, some ignored", _loss(37, 11), {"chunk_size": 8}, grads=(0, 1)),
    Case("linear_cross_entropy", "sum", _loss(9, 2), {"reduction": "sum"}, grads=(0, 1)),
    Case("linear_cross_entropy", "all ignored", _loss(5, 5), grads=(0, 1)),
)

CASES = (*ATTENTION, *ROTARY, *DPC_KNN, *GROUP_MEAN, *RMS_NORM, *SWIGLU, *LINEAR_CROSS_ENTROPY)
