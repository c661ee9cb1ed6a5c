"""What the operations take, checked before an implementation is chosen: none would say it as plainly.

What stands in tensors of integers is looked at where the host may look, on CPUs: some operators read or write beside
their memory by an index that is out of range.
"""

from numbers import Integral, Real

import torch
from torch import Tensor

from ppe_npu.errors import InputError, shown

from . import device, segments

_FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def plain(op: str, **tensors: Tensor) -> None:
    """Raise InputError, naming the argument, unless all are dense tensors on one device."""
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} is {shown(tensor)}, a {type(tensor).__name__}: give a torch tensor")
        if tensor.layout is not torch.strided:
            raise InputError(f"{op}: {name} has the layout {tensor.layout}: give a dense tensor, {name}.to_dense()")
        first = first or (name, tensor)
        if tensor.device != first[1].device:
            where, there = tensor.device, first[1].device
            raise InputError(f"{op}: {name} is on {where}, {first[0]} on {there}: bring both to one device")


def floating(op: str, **tensors: Tensor) -> None:
    """Raise InputError, naming the argument and its dtype, for one that is not floating point of 16 bits or more."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATING:
            raise InputError(f"{op}: {name} is {tensor.dtype}: give floating point, such as {name}.float()")


def number(op: str, kind: type, **numbers: object) -> None:
    """Raise InputError, naming the argument, for one that is no finite number of Python's or NumPy's.

    Args:
        kind: float, or int for whole numbers.
    """
    if torch.compiler.is_compiling():  # they may be symbols
        return
    wanted = Integral if kind is int else Real
    for name, given in numbers.items():
        fits = isinstance(given, wanted) and not isinstance(given, bool)
        if not (fits and -(2**63) <= given < 2**63):  # type: ignore[operator]
            what = "whole number" if kind is int else "finite number"
            raise InputError(f"{op}: {name} is {shown(given)}, a {type(given).__name__}: give a {what}")


def flag(op: str, **flags: object) -> None:
    """Raise InputError, naming the argument, for one that is not True or False, Python's or NumPy's."""
    for name, given in flags.items():
        numpys = getattr(given, "shape", None) == () and getattr(getattr(given, "dtype", None), "kind", "") == "b"
        if not (isinstance(given, bool) or numpys):
            raise InputError(f"{op}: {name} is {shown(given)}, a {type(given).__name__}: give True or False")


def looks(values: Tensor) -> bool:
    """Whether the numbers of a tensor may be looked at: on a CPU, and not while a graph is made."""
    return device.asks_freely(values.device) and not torch.compiler.is_compiling()


def integers(op: str, **tensors: Tensor) -> None:
    """Raise InputError, naming the argument and its dtype, for one that is not of integers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _INTEGERS:
            raise InputError(f"{op}: {name} is {tensor.dtype}: give integers, such as {name}.long()")


def require(condition: bool, expected: str, got: object) -> None:
    """Raise InputError, of what was expected and what was got, unless the condition holds."""
    if not condition:
        raise InputError(f"{expected} {_short(got) if isinstance(got, list) else got}")


def check_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> None:
    """Raise InputError unless the arguments of attention() fit together."""
    plain("attention", query=query, key=key, value=value, **({} if mask is None else {"mask": mask}))
    flag("attention", causal=causal)
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
    """Raise InputError unless cu_seqlens, and cu_seqlens_k, part the arguments of attention() in segments."""
    if cu_seqlens is None:
        require(cu_seqlens_k is None, "attention: cu_seqlens_k needs cu_seqlens beside it, got", cu_seqlens)
        return
    length, keys = query.shape[2], key.shape[2]
    for borders in (cu_seqlens, cu_seqlens_k):
        host = borders is None or isinstance(borders, (list, tuple))
        if host and borders is not None and not torch.compiler.is_compiling():  # then they may be symbols
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


def check_dpc_knn(
    tokens: Tensor, valid: Tensor | None, budgets: Tensor, max_groups: int, num_neighbors: Tensor, most_neighbors: int
) -> None:
    """Raise InputError unless the arguments of dpc_knn() fit together."""
    plain("dpc_knn", tokens=tokens, budgets=budgets, num_neighbors=num_neighbors)
    plain("dpc_knn", tokens=tokens, **({} if valid is None else {"valid": valid}))
    require(tokens.dim() == 3 and tokens.shape[2] > 0, "dpc_knn: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    shape = (frames, length) if valid is None else tuple(valid.shape)
    require(shape == (frames, length), f"dpc_knn: valid must be {[frames, length]}, got", shape)
    for name, vector in (("budgets", budgets), ("num_neighbors", num_neighbors)):
        require(vector.shape == (frames,), f"dpc_knn: {name} must be [{frames}], got", tuple(vector.shape))
    number("dpc_knn", int, max_groups=max_groups, most_neighbors=most_neighbors)
    require(1 <= max_groups <= length, f"dpc_knn: max_groups must be from 1 to {length}, got", max_groups)
    floating("dpc_knn", tokens=tokens)
    integers("dpc_knn", budgets=budgets, num_neighbors=num_neighbors)
    boolean = valid is None or valid.dtype is torch.bool
    require(boolean, "dpc_knn: valid must be bool (True = a token), got", None if valid is None else valid.dtype)
    if not looks(tokens):
        return
    if valid is not None:
        late = (valid[:, 1:] > valid[:, :-1]).any(1).nonzero().flatten().tolist()
        require(not late, "dpc_knn: valid must be False on what comes last in a frame alone, and is not so in", late)
    tokens_of = torch.full_like(budgets, length, dtype=torch.int64) if valid is None else valid.sum(1)
    limits = {"max_groups": max_groups, "most_neighbors": min(most_neighbors, length)}
    for (limit, most), (name, vector) in zip(limits.items(), (("budgets", budgets), ("num_neighbors", num_neighbors))):
        least, largest = tokens_of.clamp(max=1), tokens_of.clamp(1, most)  # a frame without tokens may say 0 or 1
        fits = not ((vector < least) | (vector > largest)).any()
        expected = f"dpc_knn: {name} must be from 1 to {most} ({limit}) and to a frame's tokens, got"
        require(fits, expected, vector.tolist() if not fits else None)


def check_group_mean(tokens: Tensor, labels: Tensor, counts: Tensor) -> None:
    """Raise InputError unless the arguments of group_mean() fit together."""
    plain("group_mean", tokens=tokens, labels=labels, counts=counts)
    require(tokens.dim() == 3, "group_mean: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    fits = labels.shape == (frames, length)
    require(fits, f"group_mean: labels must be {[frames, length]}, got", tuple(labels.shape))
    fits = counts.dim() == 2 and counts.shape[0] == frames
    require(fits, f"group_mean: counts must be [{frames}, M], got", tuple(counts.shape))
    floating("group_mean", tokens=tokens)
    integers("group_mean", labels=labels, counts=counts)
    if looks(labels) and not _are_counts(counts, labels):
        raise InputError("group_mean: counts are not how many labels of each frame are 0, 1, ...: count them anew")


def _are_counts(counts: Tensor, labels: Tensor) -> bool:
    """Whether [F, M] counts are how many labels of each row are 0, 1, ..., M - 1, and none is larger."""
    frames, groups = counts.shape
    slots = labels.long().clamp(-1, groups) + 1 + (groups + 2) * torch.arange(frames, device=labels.device)[:, None]
    found = torch.bincount(slots.flatten(), minlength=frames * (groups + 2)).view(frames, groups + 2)
    return not found[:, -1].any() and torch.equal(found[:, 1:-1], counts.long())


def check_labels(labels: Tensor, classes: int, ignored: int) -> None:
    """Raise InputError unless each label is that of a class, or the ignored one."""
    if not looks(labels):
        return
    strange = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        expected = f"linear_cross_entropy: labels must be from 0 to {classes - 1}, or {ignored}, got"
        require(False, expected, int(strange[0]))
