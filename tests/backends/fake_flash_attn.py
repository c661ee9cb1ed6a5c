"""flash-attn 2's functions on CPU tensors, after their documentation; what that forbids is an error here."""

import torch
from torch import Tensor


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """q [B, S, H, D], k and v [B, T, Hkv, D]; causality is bottom-right aligned."""
    assert q.dim() == k.dim() == v.dim() == 4
    return _attend(q, k, v, dropout_p, softmax_scale, _causal(q.shape[1], k.shape[1]) if causal else None)


def _causal(rows: int, columns: int) -> Tensor:
    return torch.ones(rows, columns).bool().triu(1 + columns - rows)


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float | None, blocked: Tensor | None) -> Tensor:
    for tensor in (q, k, v):
        assert tensor.dtype in (torch.float16, torch.bfloat16)
        assert tensor.stride(-1) == 1
        assert tensor.shape[-1] <= 256
    query, key, value = (tensor.transpose(1, 2).float() for tensor in (q, k, v))
    copies = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(copies, 1).mT * (scale or q.shape[-1] ** -0.5)
    if blocked is not None:
        scores = scores.masked_fill(blocked, float("-inf"))
    weights = torch.dropout(scores.softmax(-1), dropout_p, dropout_p > 0)
    return (weights @ value.repeat_interleave(copies, 1)).transpose(1, 2).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """q [T, H, D], k and v [T, Hkv, D]; borders are int32 with a leading 0, on the tokens' device."""
    for borders, longest, tokens in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
        assert borders.dtype is torch.int32
        assert borders.device == tokens.device
        assert borders[0] == 0
        assert borders[-1] == len(tokens)
        assert borders.diff().max() == longest
    assert len(cu_seqlens_q) == len(cu_seqlens_k)
    own, others = (
        torch.bucketize(torch.arange(len(tokens)), borders[1:], right=True)
        for tokens, borders in ((q, cu_seqlens_q), (k, cu_seqlens_k))
    )
    blocked = own[:, None] != others[None, :]
    if causal:
        assert torch.equal(cu_seqlens_q, cu_seqlens_k), "this stand-in knows causality of self attention only"
        blocked = blocked | _causal(len(q), len(q))
    return _attend(q[None], k[None], v[None], dropout_p, softmax_scale, blocked)[0]
