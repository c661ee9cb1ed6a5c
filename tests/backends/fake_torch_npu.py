"""torch_npu's operators on CPU tensors, after their documentation: what that forbids is an error here, and what it
defines is computed in fp32 and rounded once. This stands in for the contract, not for the hardware."""

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse=None,
    padding_mask=None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix=None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
) -> tuple:
    _check(query.dtype in DTYPES and query.dtype == key.dtype == value.dtype, "dtype")
    _check(key.shape == value.shape and 1 <= query.shape[-1] <= 768 and query.shape[-1] == key.shape[-1], "widths")
    _check(0 < keep_prob <= 1 and query.numel() > 0, "keep_prob or empty")
    _check(atten_mask is None or atten_mask.dtype in (torch.bool, torch.uint8), "atten_mask must be bool or uint8")
    if input_layout == "TND":
        _check(query.dim() == 3 and query.shape[1] == head_num <= 256, "TND")
        same = actual_seq_qlen == actual_seq_kvlen
        _check(same or atten_mask is None, "this stand-in knows causality of self attention only")
        parts = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
        own, others = _segments(actual_seq_qlen, len(query)), _segments(actual_seq_kvlen, len(key))
        _check(len(actual_seq_qlen) == len(actual_seq_kvlen), "as many segments of queries as of keys")
        blocked = own[:, None] != others[None, :]
        if atten_mask is not None:
            # A segment has as many queries as keys, so its bottom-right causality is that of the whole row.
            blocked = blocked | _blocked(atten_mask, sparse_mode, *parts[:2], packed=True)
        return _softmax_attention(*parts, blocked, scale, keep_prob)[0].transpose(0, 1), None
    _check(input_layout == "BNSD" and query.dim() == 4 and query.shape[1] == head_num <= 256, "BNSD")
    _check(actual_seq_qlen is None and actual_seq_kvlen is None, "lengths belong to TND")
    blocked = _blocked(atten_mask, sparse_mode, query, key, packed=False)
    return _softmax_attention(query, key, value, blocked, scale, keep_prob), None


def _segments(ends: list[int] | None, total: int) -> Tensor:
    """[T] int64 segment of each token."""
    _check(type(ends) is list and all(type(end) is int for end in ends), "lengths must be a host list of int")
    _check(0 < len(ends) <= 1024, "1 to 1,024 lengths")
    _check(ends[0] != 0, "no leading 0")
    _check(ends == sorted(ends) and ends[-1] == total, "lengths are cumulative and end at T")
    return torch.bucketize(torch.arange(total), torch.tensor(ends), right=True)


def _blocked(mask: Tensor | None, mode: int, query: Tensor, key: Tensor, packed: bool) -> Tensor | None:
    """bool mask, True where a key is masked out; None without a mask, in which case the mode is ignored."""
    if mask is None:
        return None
    (batch, heads, rows, _), columns = query.shape, key.shape[2]
    if mode == 3:
        _check(tuple(mask.shape) == (2048, 2048), "sparse_mode 3 takes the compressed mask")
        _check(torch.equal(mask.bool(), torch.ones(2048, 2048).bool().triu(1)), "compressed mask must be triu(1)")
        return torch.ones(rows, columns).bool().triu(1 + columns - rows)
    _check(mode in (0, 1) and not packed, "this stand-in knows modes 0, 1 and 3")
    shapes = {(batch, heads), (batch, 1), (1, 1)}
    fits = tuple(mask.shape) == (rows, columns) or (mask.dim() == 4 and tuple(mask.shape[:2]) in shapes)
    _check(fits and tuple(mask.shape[-2:]) == (rows, columns), f"mask shape {tuple(mask.shape)}")
    return mask.bool()


def _softmax_attention(query, key, value, blocked, scale, keep_prob) -> Tensor:
    copies = query.shape[1] // key.shape[1]
    wide_key, wide_value = (tensor.float().repeat_interleave(copies, 1) for tensor in (key, value))
    scores = query.float() @ wide_key.mT * scale
    if blocked is not None:
        # A finite number, so that a row without any allowed key averages all values.
        scores = torch.where(blocked, -1e30, scores)
    return (torch.dropout(scores.softmax(-1), 1 - keep_prob, keep_prob < 1) @ wide_value).to(query.dtype)


def npu_fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
) -> tuple[Tensor, Tensor]:
    _check(query.dtype in (torch.float16, torch.bfloat16) and query.dtype == key.dtype == value.dtype, "16 bits")
    _check(not any(tensor.requires_grad for tensor in (query, key, value)), "it has no gradient")
    _check(input_layout == "BNSD" and query.shape[2] == 1 and sparse_mode == 0, "this stand-in decodes BNSD")
    _check(query.shape[1] == num_heads <= 256 and key.shape[1] == (num_key_value_heads or num_heads), "heads")
    _check(query.shape[3] % 16 == 0 and query.shape[3] <= 512, "width")
    _check(all(tensor.is_contiguous() for tensor in (query, key, value)), "contiguity")
    _check(query.shape[1] // key.shape[1] <= 64, "at most 64 query heads to a key head")
    if atten_mask is not None:
        _check(atten_mask.dtype in (torch.bool, torch.int8, torch.uint8), "atten_mask must be bool, int8 or uint8")
        _check(
            tuple(atten_mask.shape) in ((len(query), 1, 1, key.shape[2]), (len(query), 1, key.shape[2])), "mask shape"
        )
        atten_mask = atten_mask.bool().view(len(query), 1, 1, -1)
    return _softmax_attention(query, key, value, atten_mask, scale, 1.0), torch.zeros(1)


def npu_rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate=None) -> Tensor:
    batch, heads, length, width = input.shape
    _check(input.dtype in DTYPES and input.dtype == r1.dtype == r2.dtype, "one dtype")
    _check(width % 2 == 0 and width < 896 and batch < 1000 and heads < 1000, "limits of the half mode")
    _check(not (r1.requires_grad or r2.requires_grad) or batch * heads <= 1024, "gradients of cos and sin")
    for table in (r1, r2):
        tables = [(1, 1, length, width), (batch, 1, length, width), (batch, heads, length, width)]
        _check(tuple(table.shape) in tables, f"table {tuple(table.shape)}")
        block_skip = table.shape[0] != batch and table.shape[1] != heads and length > 1
        _check(not (block_skip and batch * heads > 8 * length), "561002: B*N is large")
    first, second = input.float().chunk(2, -1)
    return (input.float() * r1.float() + torch.cat((-second, first), -1) * r2.float()).to(input.dtype)


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    _check(input.dtype in DTYPES and gamma.dtype in (input.dtype, torch.float32), "dtype pair")
    _check(2 <= input.dim() <= 8 and gamma.shape == input.shape[-1:], "dimensions")
    rstd = torch.rsqrt(input.float().square().mean(-1, keepdim=True) + epsilon)
    return (input.float() * rstd * gamma.float()).to(input.dtype), rstd


def npu_swiglu(input: Tensor, dim: int = -1) -> Tensor:
    _check(input.dtype in DTYPES and 1 <= input.dim() <= 8, "dtype or dimensions")
    _check(input.is_contiguous() and input.numel() > 0, "contiguous and not empty")
    gate, up = input.float().chunk(2, dim)
    return (gate * gate.sigmoid() * up).to(input.dtype)
