"""What the documents forbid and torch_npu's C++ does not check: a real machine would complain, or compute nonsense.

Sources: the operators' pages in Ascend/op-plugin (docs/zh/custom_APIs/torch_npu), the docstrings of torch_npu 2.13
(torch_npu/_op_plugin_docs.py), and CANN's tiling code where a page is silent. Where two differ, the narrower one holds.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
UNLIMITED = 2147483647  # pre_tockens and next_tockens: no band
VECTOR_CORES = 48  # of an Ascend 910B1


class LimitError(RuntimeError):
    """A call that the documents forbid."""


def require(condition: bool, operator: str, rule: str) -> None:
    """Raises LimitError, with the operator's name and the rule, unless the condition holds."""
    if not condition:
        raise LimitError(f"ascend_emulator: {operator}: {rule}")


# ---- attention ----


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, layout: str) -> None:
    """Limits of npu_fusion_attention on its tensors. `layout` is one of BSH, SBH, BSND, BNSD, TND."""
    name = "npu_fusion_attention"
    require(query.dtype in DTYPES, name, f"takes fp16, bf16 and fp32, not {query.dtype}")
    require(query.dtype == key.dtype == value.dtype, name, "query, key and value share a dtype")
    rank = len(layout)
    require(query.dim() == key.dim() == value.dim() == rank, name, f"{layout} means {rank} dimensions")
    batch = {"SBH": 1, "TND": None}.get(layout, 0)
    if batch is not None:
        require(query.shape[batch] == key.shape[batch] == value.shape[batch], name, "one batch size for all")
    require(1 <= heads <= 256, name, "takes 1 to 256 query heads")
    axis = {"BNSD": 1, "BSND": 2, "TND": 1}.get(layout)
    width = query.shape[-1] // heads if axis is None else query.shape[-1]
    require(1 <= width <= 768, name, f"takes head widths from 1 to 768, not {width}")
    query_heads = query.shape[-1] / width if axis is None else query.shape[axis]
    key_heads = key.shape[-1] / width if axis is None else key.shape[axis]
    require(query_heads == heads, name, f"head_num is {heads}, the query has {query_heads} heads")
    require(key_heads > 0 and heads % key_heads == 0, name, f"{heads} query heads are no multiple of {key_heads}")
    require(key.shape == value.shape, name, "key and value share a shape")
    require(axis is None or query.shape[-1] == key.shape[-1], name, "query and key share a head width")
    require(query.numel() > 0 and key.numel() > 0, name, "takes nothing empty")
    sequence = {"BSH": 1, "SBH": 0, "BSND": 1, "BNSD": 2, "TND": 0}[layout]
    longest = max(query.shape[sequence], key.shape[sequence])
    require(longest <= 2**20, name, f"takes lengths up to 2**20, not {longest}")


def lengths(name: str, ends: Sequence[int], total: int) -> None:
    """Limits on actual_seq_qlen and actual_seq_kvlen: the ends of the sequences, counted from the first token.

    That they are there, and a host list of int, is checked by torch_npu and by the operator's schema.
    """
    require(1 <= len(ends) <= 1024, name, f"takes 1 to 1,024 sequences, not {len(ends)}")
    require(ends[0] != 0, name, "sequence lengths have no leading 0")
    used = list(itertools.dropwhile(lambda end: end == 0, reversed(ends)))[::-1]  # trailing zeros: unused batches
    rising = all(start <= end for start, end in itertools.pairwise(used))
    require(rising and used[-1] == total, name, f"sequence lengths are cumulative and end at {total}")


def attention_mask(mask: Tensor, mode: int, shape: tuple[int, int, int, int], packed: bool) -> None:
    """Limits of npu_fusion_attention on atten_mask, True = masked out.

    Args:
        mask: what was passed.
        mode: sparse_mode. 0 takes a mask of the scores' size, within a band; 1 the same without a band; 2, 3 and 4 take
            the compressed triangle.
        shape: batch, heads, queries, keys; if packed, the longest sequence of queries and of keys.
        packed: whether the layout is TND.
    """
    name = "npu_fusion_attention"
    require(mask.dtype in (torch.bool, torch.uint8), name, f"atten_mask is bool or uint8, not {mask.dtype}")
    require(mode in (0, 1, 2, 3, 4), name, f"no emulation of sparse_mode {mode}")
    if mode in (2, 3, 4):
        require(mask.shape == (2048, 2048), name, f"sparse_mode {mode} takes the compressed 2048 x 2048 mask")
        require(bool((mask.bool() == _triangle()).all()), name, "the compressed mask is triu(1), True = masked out")
        return
    batch, heads, queries, keys = shape
    shapes = {(queries, keys)}
    if not packed:
        shapes |= {(first, second, queries, keys) for first, second in ((batch, heads), (batch, 1), (1, 1))}
    wanted = "[S, S]" if packed else "[B, N, S, S], [B, 1, S, S], [1, 1, S, S] or [S, S]"
    require(tuple(mask.shape) in shapes, name, f"atten_mask is {wanted} of {shape}, not {tuple(mask.shape)}")
    if packed:
        require(not bool(mask.bool().all(-1).any()), name, "in TND no row of atten_mask is all masked out")


def _triangle() -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def inference_attention(
    name: str, query: Tensor, key: Tensor, value: Tensor, heads: int, key_heads: int, layout: str
) -> None:
    """Limits of the attention operators for inference: 16 bits, contiguous, head width up to 512, mostly aligned."""
    sixteen = (torch.float16, torch.bfloat16)
    require(query.dtype in sixteen and query.dtype == key.dtype == value.dtype, name, "takes fp16 or bf16, all alike")
    require(layout in ("BSH", "BSND", "BNSD"), name, f"no emulation of input_layout {layout}")
    require(key.shape == value.shape and query.shape[0] == key.shape[0], name, "batch, key and value fit")
    contiguous = all(tensor.is_contiguous() for tensor in (query, key, value))
    require(contiguous, name, "query, key and value are contiguous")
    key_heads = key_heads or heads
    require(
        heads % key_heads == 0 and heads // key_heads <= 64, name, "num_heads / num_key_value_heads is whole, to 64"
    )
    axis = {"BSH": None, "BSND": 2, "BNSD": 1}[layout]
    if axis is not None:
        require(
            query.shape[axis] == heads and key.shape[axis] == key_heads, name, "head counts are those of the shapes"
        )
    width = query.shape[-1] if axis is not None else query.shape[-1] // heads
    require(1 <= width <= 512 and heads <= 256, name, "takes head widths to 512 and 256 heads")
    require(layout == "BNSD" or heads * width < 65535, name, f"{layout} takes num_heads * width below 65,535")
    aligned = width % 16 == 0  # 32 bytes
    require(aligned or "fused_infer" not in name, name, "takes head widths in steps of 16")
    require(aligned or width <= 128, name, "takes head widths above 128 in steps of 16 only")


# ---- rotary ----


def rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> None:
    """Limits of npu_rotary_mul, where jit_compile is off. `x` is BNSD, BSND or SBND."""
    name = "npu_rotary_mul"
    require(x.dtype in DTYPES, name, f"takes fp16, bf16 and fp32, not {x.dtype}")
    require(x.dtype == cos.dtype == sin.dtype, name, "input, cos and sin share a dtype")
    require(x.dim() == cos.dim() == sin.dim() == 4, name, "takes 4 dimensions")
    require(cos.shape == sin.shape, name, "cos and sin share a shape")
    width = x.shape[-1]
    require(width % 2 == 0 and 0 < width < 896, name, f"takes even head widths below 896, not {width}")
    require(cos.shape[-1] == width, name, "cos and sin have the full head width, both halves")
    require(x.numel() > 0, name, "takes nothing empty")
    layouts = _layouts(tuple(x.shape[:3]), tuple(cos.shape[:3]))
    known = ", ".join(_AXES)
    require(bool(layouts), name, f"cos of {tuple(cos.shape)} fits no layout of {tuple(x.shape)}: {known}")
    if mode == "half":
        learned = cos.requires_grad or sin.requires_grad
        small = any(max(batch, heads) < 1000 for batch, heads, _ in layouts)
        require(small, name, "half takes fewer than 1,000 samples and heads")
        small = any(batch * heads <= 1024 for batch, heads, _ in layouts)
        require(small or not learned, name, "half takes B * N <= 1,024 where cos and sin need gradients")
        _block_skip(name, x, cos)
    else:
        small = any(batch * heads < 1000 and shared for batch, heads, shared in layouts)
        require(small, name, "interleave takes one cos for all samples and heads, and B * N < 1,000")


_AXES = {"BNSD": (0, 1, 2), "BSND": (0, 2, 1), "SBND": (1, 2, 0)}  # of batch, heads, length


def _layouts(sizes: tuple[int, ...], table: tuple[int, ...]) -> list[tuple[int, int, bool]]:
    """(batch, heads, whether one table serves all) for each layout that cos fits: spread over heads, or over all."""
    found = []
    for batch, heads, length in _AXES.values():
        by_sample, by_head = table[batch] == sizes[batch], table[heads] == sizes[heads]
        fits = table[length] == sizes[length] and (by_sample or table[batch] == 1) and (by_head or table[heads] == 1)
        if fits and (by_sample or not by_head or table[heads] == 1):
            found.append((sizes[batch], sizes[heads], table[batch] == table[heads] == 1))
    return found


def _block_skip(name: str, x: Tensor, cos: Tensor) -> None:
    """CheckBnsdBlockSkip in CANN's rope_rotate_half_tiling.cpp: what would be slow is refused.

    It holds for what ChooseTilingMode takes for BNSD: cos spread over both samples and heads, and not over the length.
    """
    batch, heads, length, width = x.shape
    if cos.shape[0] == batch or cos.shape[1] == heads or cos.shape[:3] == (1, 1, 1):
        return
    rows = batch * heads
    if (width // 2 * x.element_size()) % 32 == 0:
        require(rows <= 8 * length, name, f"half, BNSD: B * N is large (561002): {batch} * {heads} > 8 * {length}")
    else:
        slow = 2 * rows > math.ceil(length / VECTOR_CORES) and width < 80
        require(not slow, name, "half, BNSD: a width below 80 that is not aligned, and 2 * B * N > S / cores (561002)")


# ---- norm, activation, loss ----


def rms_norm(x: Tensor, gamma: Tensor) -> None:
    """Limits of npu_rms_norm."""
    name = "npu_rms_norm"
    half, brain, full = DTYPES
    pairs = {(half, half), (half, full), (brain, brain), (brain, full), (full, full)}
    require((x.dtype, gamma.dtype) in pairs, name, f"does not take {x.dtype} with {gamma.dtype}")
    require(2 <= x.dim() <= 8, name, f"takes 2 to 8 dimensions, not {x.dim()}")
    fits = 1 <= gamma.dim() <= x.dim() and gamma.shape == x.shape[x.dim() - gamma.dim() :]
    require(fits, name, "gamma has the shape of the last dimensions")
    require(x.numel() > 0, name, "takes nothing empty")


def swiglu(x: Tensor, dim: int) -> None:
    """Limits of npu_swiglu."""
    name = "npu_swiglu"
    require(x.dtype in DTYPES, name, f"takes fp16, bf16 and fp32, not {x.dtype}")
    require(1 <= x.dim() <= 8, name, f"takes 1 to 8 dimensions, not {x.dim()}")
    require(x.is_contiguous(), name, "takes a contiguous tensor")
    require(x.numel() > 0, name, "takes nothing empty")
    require(x.shape[dim] % 2 == 0, name, f"halves dimension {dim}, whose size {x.shape[dim]} is odd")


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignored: int, smoothing: float
) -> None:
    """Limits of npu_cross_entropy_loss."""
    name = "npu_cross_entropy_loss"
    require(logits.dtype in DTYPES, name, f"takes fp16, bf16 and fp32, not {logits.dtype}")
    require(logits.dim() == 2 and 0 < len(logits) <= 200000 and logits.shape[1] > 0, name, "input is [N <= 200000, C]")
    require(target.dtype == torch.int64 and target.shape == logits.shape[:1], name, "target is int64 [N]")
    classes = logits.shape[1]
    require(reduction in ("mean", "sum", "none"), name, f"reduction is mean, sum or none, not {reduction}")
    require(ignored < classes, name, "ignore_index is below C")
    require(0 <= smoothing < 1, name, "label_smoothing is in [0, 1)")
    inside = bool(((target >= 0) & (target < classes)).all())
    require(inside, name, "targets are in [0, C), ignored ones too: a negative ignore_index ignores nothing")
    fits = weight is None or (weight.dtype == torch.float32 and weight.shape == (classes,))
    require(fits, name, "weight is fp32 [C]")
    if logits.requires_grad:
        require(smoothing == 0, name, "no label_smoothing where a gradient is needed")
        plain = weight is None and ignored == -100
        require(reduction != "mean" or plain, name, "mean with a gradient takes neither weight nor ignore_index")
