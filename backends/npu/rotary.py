"""rotary by torch_npu.npu_rotary_mul. (npu_mrope and npu_apply_rotary_pos_emb have no gradient.)"""

from torch import Tensor

from ppe_npu.backends.common import refused_dtype


def refusal(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; even head widths below 896; fewer than 1,000 samples and heads; nothing empty; no
    gradient for the table."""
    if reason := refused_dtype("npu_rotary_mul takes", query.dtype):
        return reason
    if query.shape[-1] % 2 or query.shape[-1] >= 896:
        return "npu_rotary_mul takes even head widths below 896"
    if query.shape[0] >= 1000 or max(query.shape[1], key.shape[1]) >= 1000:
        return "npu_rotary_mul takes fewer than 1,000 samples and heads"
    if 0 in query.shape or 0 in key.shape:
        return "npu_rotary_mul takes no empty tensors"
    if cos.requires_grad or sin.requires_grad:
        # The operator allows it up to batch * heads = 1,024, but saves more tensors then; tables are not trained.
        return "npu_rotary_mul is not used where cos or sin need a gradient"
    return None


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`."""
    import torch_npu

    cos, sin = tables(query, cos, sin)
    return torch_npu.npu_rotary_mul(query, cos, sin), torch_npu.npu_rotary_mul(key, cos, sin)


def tables(query: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin in the shape that CANN takes: [B, 1, S, D], even if one table serves the whole batch.

    With [1, 1, S, D] and B > 1, CANN refuses batch * heads > 8 * S, which short prompts have, for all S but 1
    (CheckBnsdBlockSkip in rope_rotate_half_tiling.cpp).
    """
    batch = query.shape[0]
    return cos.expand(batch, -1, -1).unsqueeze(1), sin.expand(batch, -1, -1).unsqueeze(1)
