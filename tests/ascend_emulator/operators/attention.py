"""npu_fusion_attention and npu_fusion_attention_v3, the operator behind F.scaled_dot_product_attention.

softmax(scale * query key^T, masked) value. Unlike in other attention operators, the scale is 1 unless it is passed,
True in a mask means masked out, and without a mask the sparse mode is ignored and attention is full.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import emulates

_STATISTICS = 8  # copies of each row's maximum and sum, for the vector unit
_MASKED = -1e30  # finite: a row in which all is masked out averages all values


@dataclass(frozen=True)
class Layout:
    """How a call's tensors are laid out.

    Attributes:
        name: BSH, SBH, BSND, BNSD or TND.
        width: of a head.
        ends: of the sequences packed in a TND tensor; None for the others.
    """

    name: str
    width: int
    ends: tuple[int, ...] | None = None

    def split(self, tensor: Tensor) -> list[Tensor]:
        """[b, heads, length, D] views: one of the whole batch, or one per packed sequence."""
        if self.name == "TND":
            used = [end for end in self.ends if end > 0]
            return [tensor[start:end].transpose(0, 1)[None] for start, end in itertools.pairwise([0, *used])]
        if self.name in ("BSH", "SBH"):
            tensor = tensor.unflatten(-1, (-1, self.width))
        order = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3), "BSH": (0, 2, 1, 3), "SBH": (1, 2, 0, 3)}[self.name]
        return [tensor.permute(order)]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        if self.name == "TND":
            return torch.cat([part[0].transpose(0, 1) for part in parts])
        order = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3), "BSH": (0, 2, 1, 3), "SBH": (2, 0, 1, 3)}[self.name]
        tensor = parts[0].permute(order)
        return tensor.flatten(-2) if self.name in ("BSH", "SBH") else tensor

    def join_statistics(self, parts: list[Tensor]) -> Tensor:
        """[b, heads, length, 1] each -> [B, heads, length, 8], or [T, heads, 8]."""
        wide = [part.expand(-1, -1, -1, _STATISTICS) for part in parts]
        return self.join(wide) if self.name == "TND" else wide[0]

    def split_statistics(self, tensor: Tensor) -> list[Tensor]:
        return [part[..., :1] for part in (self.split(tensor) if self.name == "TND" else [tensor])]


@dataclass(frozen=True)
class Options:
    """What the scores go through: see the operator's parameters of these names."""

    mask: Tensor | None
    mode: int
    before: int
    after: int
    scale: float
    keep_prob: float = 1.0
    seed: int = 0
    zero_dead_rows: bool = False

    def blocked(self, queries: int, keys: int) -> Tensor | None:
        """bool, broadcastable to [b, heads, queries, keys]; True = masked out."""
        if self.mask is None:
            return None
        row, column = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
        late = column - row  # counted from the top left corner
        if self.mode == 2:
            return late > 0
        if self.mode in (3, 4):
            late = late - (keys - queries)  # from the bottom right corner
            return late > 0 if self.mode == 3 else (late > self.after) | (-late > self.before)
        blocked = self.mask.bool()[..., :queries, :keys]
        if self.mode == 0:
            outside = (late > self.after) | (-late > self.before)
            contradiction = bool((outside & ~blocked).any())
            limits.require(not contradiction, "sparse_mode 0", "atten_mask keeps what pre/next_tockens exclude")
        return blocked

    def kept(self, shape: torch.Size, generator: torch.Generator) -> Tensor | float:
        """What a weight is multiplied by: 1, or with dropout 0 or 1 / keep_prob."""
        if self.keep_prob == 1:
            return 1.0
        return (torch.rand(shape, generator=generator) < self.keep_prob) / self.keep_prob

    def scores(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scaled and masked, [b, heads, queries, keys]; and which rows are masked out altogether."""
        scores = query.float() @ _repeated(key, query).mT * self.scale
        blocked = self.blocked(*scores.shape[-2:])
        if blocked is None:
            return scores, None
        return scores.masked_fill(blocked, _MASKED), blocked.all(-1, keepdim=True)


def _repeated(tensor: Tensor, query: Tensor) -> Tensor:
    """Keys or values in fp32, once for each query head: head h reads head h / (N / Nkv)."""
    return tensor.float().repeat_interleave(query.shape[1] // tensor.shape[1], 1)


def _weights(scores: Tensor, dead: Tensor | None, maximum: Tensor, total: Tensor, options: Options) -> Tensor:
    weights = torch.exp(scores - maximum) / total
    return weights.masked_fill(dead, 0.0) if dead is not None and options.zero_dead_rows else weights


def attend(
    query: Tensor, key: Tensor, value: Tensor, options: Options, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Output, and maximum and sum of each row, of [b, heads, length, D] tensors."""
    if 0 in (query.shape[2], key.shape[2]):
        limits.require(query.shape[2] == 0, "npu_fusion_attention", "no queries without keys")
        nothing = query.new_zeros(*query.shape[:3], 1, dtype=torch.float32)
        return torch.zeros_like(query), nothing, nothing
    scores, dead = options.scores(query, key)
    maximum = scores.amax(-1, keepdim=True)
    total = torch.exp(scores - maximum).sum(-1, keepdim=True)
    weights = _weights(scores, dead, maximum, total, options)
    weights = weights * options.kept(weights.shape, generator)
    return (weights @ _repeated(value, query)).to(query.dtype), maximum, total


def _differentiate(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, maximum: Tensor, total: Tensor, options: Options,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of query, key and value."""
    if query.shape[2] == 0:
        return torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    scores, dead = options.scores(query, key)
    weights = _weights(scores, dead, maximum, total, options)
    kept, upstream = options.kept(weights.shape, generator), dy.float()
    dweights = upstream @ _repeated(value, query).mT * kept
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdim=True)) * options.scale
    if dead is not None:
        dscores = dscores.masked_fill(dead, 0.0)  # constants took the place of these scores
    dquery = dscores @ _repeated(key, query)
    dkey, dvalue = dscores.mT @ query.float(), (weights * kept).mT @ upstream
    groups = (key.shape[1], query.shape[1] // key.shape[1])
    dkey, dvalue = (tensor.unflatten(1, groups).sum(2) for tensor in (dkey, dvalue))
    return dquery.to(query.dtype), dkey.to(key.dtype), dvalue.to(value.dtype)


# The parameters of the operators that say how to attend, and are the same in all four of them.
_FORM = (
    "head_num", "input_layout", "atten_mask", "keep_prob", "pre_tockens", "next_tockens", "inner_precise",
    "actual_seq_qlen", "actual_seq_kvlen", "sparse_mode",
)  # fmt: skip
# How the dropout mask is made, and what backward does not need because it computes it again.
_IRRELEVANT = ("gen_mask_parallel", "sync", "offset", "numels", "softmax_in", "attention_in")


@dataclass(frozen=True)
class _Call:
    """One call, its limits checked."""

    query: Layout
    key: Layout
    options: Options

    @staticmethod
    def check(
        query: Tensor, key: Tensor, value: Tensor, *, scale: float, seed: int, head_num: int, input_layout: str,
        atten_mask: Tensor | None, keep_prob: float, pre_tockens: int, next_tockens: int, inner_precise: int,
        actual_seq_qlen: object, actual_seq_kvlen: object, sparse_mode: int,
    ) -> "_Call":  # fmt: skip
        name, layout = "npu_fusion_attention", input_layout.upper()
        limits.attention(query, key, value, head_num, layout)
        packed = layout == "TND"
        for ends, tensor in ((actual_seq_qlen, query), (actual_seq_kvlen, key)):
            if packed:
                limits.lengths(name, ends, len(tensor))
            limits.require(packed or ends is None, name, "sequence lengths belong to TND")
        width = query.shape[-1] // head_num if layout in ("BSH", "SBH") else query.shape[-1]
        ends = (tuple(value) if packed else None for value in (actual_seq_qlen, actual_seq_kvlen))
        rows, columns = (Layout(layout, width, value) for value in ends)
        if atten_mask is not None:
            limits.attention_mask(atten_mask, sparse_mode, _extent(rows.split(query), columns.split(key)), packed)
        # Rows in which all is masked out cost an extra pass that has to be asked for, except where they are expected.
        zero_dead_rows = inner_precise == 2 or sparse_mode == 3
        options = Options(atten_mask, sparse_mode, pre_tockens, next_tockens, scale, keep_prob, seed, zero_dead_rows)
        return _Call(rows, columns, options)

    def generator(self) -> torch.Generator:
        """The generator of the dropout mask: the same for the forward and the backward pass."""
        return torch.Generator().manual_seed(self.options.seed)


def _extent(queries: list[Tensor], keys: list[Tensor]) -> tuple[int, int, int, int]:
    longest, columns = (max(part.shape[2] for part in parts) for parts in (queries, keys))
    return queries[0].shape[0], queries[0].shape[1], longest, columns


def _forward(query: Tensor, key: Tensor, value: Tensor, call: _Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = call.generator()
    parts = zip(call.query.split(query), call.key.split(key), call.key.split(value))
    outputs, maxima, totals = zip(*(attend(*part, call.options, generator) for part in parts))
    statistics = (call.query.join_statistics(list(values)) for values in (maxima, totals))
    return call.query.join(list(outputs)), *statistics, query.new_empty(0)


def _backward(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, maximum: Tensor, total: Tensor, call: _Call
) -> tuple[Tensor, Tensor, Tensor, None, Tensor]:
    generator = call.generator()
    rows, columns = call.query, call.key
    parts = zip(rows.split(query), columns.split(key), columns.split(value), rows.split(dy),
                rows.split_statistics(maximum), rows.split_statistics(total))  # fmt: skip
    grads = [_differentiate(*part, call.options, generator) for part in parts]
    dquery, dkey, dvalue = (list(values) for values in zip(*grads))
    return rows.join(dquery), columns.join(dkey), columns.join(dvalue), None, torch.empty(0)


def _drawn(keep_prob: float, seed: int) -> int:
    """A seed for the dropout mask: that of the caller, else one from the CPU's generator."""
    return seed or (int(torch.randint(1, 2**31, ())) if keep_prob < 1 else 0)


@emulates("npu_fusion_attention", passes_on=_FORM, ignores=_IRRELEVANT)
def fusion_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, seed: int, **form: Any) -> tuple:
    """Output in the layout of the query, maximum and sum of each row, a reserved tensor, and seed, offset and size of
    the dropout mask, of which only the seed means something here."""
    seed = _drawn(form["keep_prob"], seed)
    call = _Call.check(query, key, value, scale=scale, seed=seed, **form)
    return *_forward(query, key, value, call), seed, 0, 0


@emulates("npu_fusion_attention_grad", passes_on=_FORM, ignores=_IRRELEVANT)
def fusion_attention_grad(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, softmax_max: Tensor, softmax_sum: Tensor,
    scale_value: float, seed: int, **form: Any,
) -> tuple:  # fmt: skip
    """The gradients of query, key, value, pse (none) and sink (empty), by the row statistics of the forward pass."""
    call = _Call.check(query, key, value, scale=scale_value, seed=seed, **form)
    return _backward(query, key, value, dy, softmax_max, softmax_sum, call)


def _listed(form: dict[str, Any]) -> dict[str, Any]:
    """The third version has sequence lengths in tensors."""
    names = ("actual_seq_qlen", "actual_seq_kvlen")
    return form | {name: form[name].tolist() for name in names if form[name] is not None}


@emulates("npu_fusion_attention_v3", passes_on=_FORM, ignores=_IRRELEVANT)
def fusion_attention_v3(query: Tensor, key: Tensor, value: Tensor, scale: float, **form: Any) -> tuple:
    """As npu_fusion_attention, with seed and offset in tensors."""
    seed = _drawn(form["keep_prob"], 0)
    call = _Call.check(query, key, value, scale=scale, seed=seed, **_listed(form))
    return *_forward(query, key, value, call), torch.tensor([seed]), torch.tensor([0])


@emulates("npu_fusion_attention_grad_v3", passes_on=_FORM, ignores=_IRRELEVANT)
def fusion_attention_grad_v3(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, softmax_max: Tensor, softmax_sum: Tensor,
    scale_value: float, seed: Tensor | None, **form: Any,
) -> tuple:  # fmt: skip
    """As npu_fusion_attention_grad."""
    drawn = 0 if seed is None else int(seed)
    call = _Call.check(query, key, value, scale=scale_value, seed=drawn, **_listed(form))
    return _backward(query, key, value, dy, softmax_max, softmax_sum, call)
