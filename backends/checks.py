"""What the operations take, checked before an implementation is chosen: none would say it as plainly.

What stands in tensors of integers is looked at where the host may look, on CPUs: some operators read or write beside
their memory by an index that is out of range.
"""

from numbers import Integral, Real

import torch
from torch import Tensor

from ppe_npu.errors import InputError, shown

from . import device, segments

_MEANT = {  # what the arguments of every operator are
    "attention": {
        "query": "floating", "key": "floating", "value": "floating", "mask": "tensor or None", "causal": "flag",
        "scale": "number or None", "dropout": "number",
    },
    "rotary": {"query": "floating", "key": "floating", "cos": "floating", "sin": "floating"},
    "dpc_knn": {
        "tokens": "floating", "valid": "tensor or None", "budgets": "integers", "num_neighbors": "integers",
        "max_groups": "whole", "strict": "flag", "most_neighbors": "whole",
    },
    "group_mean": {"tokens": "floating", "labels": "integers", "counts": "integers"},
    "rms_norm": {"x": "floating", "weight": "floating", "eps": "number"},
    "swiglu": {"gate": "floating", "up": "floating"},
    "linear_cross_entropy": {
        "hidden": "floating", "weight": "floating", "labels": "integers",
        "ignore_index": "whole", "chunk_size": "whole",
    },
}  # fmt: skip
_DTYPES = {
    "floating": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "integers": (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
_CAST = {"floating": "floating point, such as {}.float()", "integers": "integers, such as {}.long()"}
_PLAIN = {"flag": "True or False", "whole": "a whole number", "number": "a finite number"}  # all else are tensors


def meant(op: str, **arguments: object) -> None:
    """Raise InputError, naming the argument and what was given, for one that is not what it is meant to be: a dense
    tensor, on the device of the others, of floating point (16 bits or more) or of integers; or a finite number, a whole
    one, or True or False, Python's or NumPy's."""
    first: tuple[str, Tensor] | None = None
    for name, kind in _MEANT[op].items():
        given, (kind, _, optional) = arguments[name], kind.partition(" or ")
        if given is None and optional:
            continue
        if isinstance(given, Tensor) and kind not in _PLAIN:
            if given.layout is not torch.strided:
                raise InputError(f"{op}: {name} has the layout {given.layout}: give a dense tensor, {name}.to_dense()")
            first = first or (name, given)
            if given.device != first[1].device:
                where, there = given.device, first[1].device
                raise InputError(f"{op}: {name} is on {where}, {first[0]} on {there}: bring both to one device")
            if given.dtype not in _DTYPES.get(kind, (given.dtype,)):
                raise InputError(f"{op}: {name} is {given.dtype}: give {_CAST[kind].format(name)}")
            continue
        fits = isinstance(given, bool)
        if kind == "flag" and not fits:
            fits = getattr(given, "shape", None) == () and getattr(getattr(given, "dtype", None), "kind", "") == "b"
        elif kind in ("whole", "number"):
            if torch.compiler.is_compiling():  # then they may be symbols
                continue
            type_ = Integral if kind == "whole" else Real
            fits = isinstance(given, type_) and not fits and -(2**63) <= given < 2**63  # type: ignore[operator]
        if not fits or kind not in _PLAIN:
            remedy = _PLAIN.get(kind, "a torch tensor")
            raise InputError(f"{op}: {name} is {shown(given)}, a {type(given).__name__}: give {remedy}")


def require(condition: bool, expected: str, got: object) -> None:
    """Raise InputError, of what was expected and what was got, unless the condition holds."""
    if not condition:
        raise InputError(f"{expected} {_short(got) if isinstance(got, list) else got}")


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> None:
    """Raise InputError unless the arguments of attention() fit together."""
    given = {"query": query, "key": key, "value": value, "mask": mask}
    meant("attention", **given, causal=causal, scale=scale, dropout=dropout)
    shapes = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
    fits = query.dim() == key.dim() == 4 and key.shape == value.shape and query.shape[0] == key.shape[0]
    fits = fits and query.shape[3] == key.shape[3]
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
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool,
    most_neighbors: int,
) -> None:
    """Raise InputError unless the arguments of dpc_knn() fit together."""
    given = {"tokens": tokens, "valid": valid, "budgets": budgets, "num_neighbors": num_neighbors}
    meant("dpc_knn", **given, max_groups=max_groups, strict=strict, most_neighbors=most_neighbors)
    require(tokens.dim() == 3 and tokens.shape[2] > 0, "dpc_knn: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    shape = (frames, length) if valid is None else tuple(valid.shape)
    require(shape == (frames, length), f"dpc_knn: valid must be {[frames, length]}, got", shape)
    for name, vector in (("budgets", budgets), ("num_neighbors", num_neighbors)):
        require(vector.shape == (frames,), f"dpc_knn: {name} must be [{frames}], got", tuple(vector.shape))
    require(1 <= max_groups <= length, f"dpc_knn: max_groups must be from 1 to {length}, got", max_groups)
    boolean = valid is None or valid.dtype is torch.bool
    require(boolean, "dpc_knn: valid must be bool (True = a token), got", None if valid is None else valid.dtype)
    if not device.asks_freely(tokens.device):
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
    meant("group_mean", tokens=tokens, labels=labels, counts=counts)
    require(tokens.dim() == 3, "group_mean: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    fits = labels.shape == (frames, length)
    require(fits, f"group_mean: labels must be {[frames, length]}, got", tuple(labels.shape))
    fits = counts.dim() == 2 and counts.shape[0] == frames
    require(fits, f"group_mean: counts must be [{frames}, M], got", tuple(counts.shape))
    if not device.asks_freely(labels.device):
        return
    groups = counts.shape[1]
    slots = labels.long().clamp(-1, groups) + 1 + (groups + 2) * torch.arange(frames, device=labels.device)[:, None]
    found = torch.bincount(slots.flatten(), minlength=frames * (groups + 2)).view(frames, groups + 2)
    if found[:, -1].any() or not torch.equal(found[:, 1:-1], counts.long()):
        raise InputError("group_mean: counts are not how many labels of each frame are 0, 1, ...: count them anew")


def check_labels(labels: Tensor, classes: int, ignored: int) -> None:
    """Raise InputError unless each label is that of a class, or the ignored one."""
    if not device.asks_freely(labels.device):
        return
    strange = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        expected = f"linear_cross_entropy: labels must be from 0 to {classes - 1}, or {ignored}, got"
        require(False, expected, int(strange[0]))
