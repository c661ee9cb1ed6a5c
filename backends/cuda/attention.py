"""attention by flash-attn 2 (2.1 or later; earlier ones align causal masks top-left). Not yet run on a GPU."""

from torch import Tensor

from ppe_npu.backends import device, segments
from ppe_npu.backends.common import refused_dtype


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
    """Limits: fp16, bf16; head widths up to 256; no mask; compute capability 8.0 or later."""
    if mask is not None:
        return "flash-attn takes no mask"
    if reason := refused_dtype("flash-attn takes", query.dtype, narrow=True):
        return reason
    if query.shape[-1] > 256:
        return "flash-attn takes head widths up to 256"
    if device.too_old(query.device):
        return "flash-attn 2 is made for compute capability 8.0 and later"
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
    """See `ppe_npu.backends.attention`.

    flash-attn takes [B, S, H, D], or [T, H, D] with int32 cu_seqlens on the device.
    """
    import flash_attn

    options = {"dropout_p": dropout, "softmax_scale": scale, "causal": causal}
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if cu_seqlens is None:
        return flash_attn.flash_attn_func(query, key, value, **options).transpose(1, 2)
    borders, longest = segments.borders(cu_seqlens, query.device)
    others, most = segments.borders(cu_seqlens_k or cu_seqlens, query.device)
    output = flash_attn.flash_attn_varlen_func(query[0], key[0], value[0], borders, others, longest, most, **options)
    return output.unsqueeze(0).transpose(1, 2)
