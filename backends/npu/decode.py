"""attention in decode by torch_npu.npu_fused_infer_attention_score, which has no gradient.

npu_fusion_attention, the training operator, supports such calls as well; this one is made for them. According to
op-plugin's page of the operator, scale is 1.0 unless passed, and True in a mask means masked out.
"""

import torch
from torch import Tensor

from ppe_npu.backends.common import refused_dtype
from ppe_npu.backends.npu.attention import full_mask, without_blind_rows


def concerns(query: Tensor, *others: Tensor, cu_seqlens: list[int] | None = None, **options) -> bool:
    """Whether this is decode: one query per sample, not packed."""
    return query.shape[2] == 1 and cu_seqlens is None


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
    """Limits: fp16, bf16; head widths to 512 in steps of 16; 256 query heads, 64 per key head; one bool mask; no
    dropout; nothing empty."""
    operator = "npu_fused_infer_attention_score"
    if reason := refused_dtype(f"{operator} takes", query.dtype, narrow=True):
        return reason
    if query.shape[3] % 16 or not 16 <= query.shape[3] <= 512:
        return f"{operator} takes head widths up to 512 in steps of 16"
    if query.shape[1] > 256 or query.shape[1] // key.shape[1] > 64:
        return f"{operator} takes at most 256 query heads, and at most 64 per key head"
    if query.shape[0] == 0 or key.shape[2] == 0:
        return f"{operator} takes no empty tensor"
    if mask is not None and mask.dtype is not torch.bool:
        return f"{operator} takes bool masks; an additive one cannot be turned into one"
    if mask is not None and mask.dim() >= 3 and mask.shape[-3] > 1:
        return f"{operator} takes one mask for all heads"
    if dropout:
        return f"{operator} has no dropout"
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
    """See `ppe_npu.backends.attention`. There is one query per sample, so causality forbids nothing."""
    import torch_npu

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = {"num_heads": query.shape[1], "num_key_value_heads": key.shape[1], "scale": scale, "input_layout": "BNSD"}
    allowed = None
    if mask is not None:
        allowed = full_mask(mask, query, key.shape[2])
        options["atten_mask"] = ~allowed.expand(query.shape[0], -1, -1, -1)
    tensors = (tensor.contiguous() for tensor in (query, key, value))
    output = torch_npu.npu_fused_infer_attention_score(*tensors, **options)[0]
    return without_blind_rows(output, allowed)
