"""attention and rotary by MindSpeed's operators, taken only when requested by name.

They are the same CANN operators as torch_npu's. MindSpeed compiles them at the first call, which needs CANN, and no
longer maintains them (its README: prefer torch_npu since the end of 2025). They are tested only against their
documented signatures, with a stand-in (tests/backends/fake_mindspeed.py).
"""

from torch import Tensor

from ppe_npu.backends.npu.attention import attend
from ppe_npu.backends.npu.attention import refusal as attention_refusal
from ppe_npu.backends.npu.rotary import refusal as rotary_refusal
from ppe_npu.backends.npu.rotary import tables

__all__ = ["attention", "attention_refusal", "rotary", "rotary_refusal"]


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
    """See `ppe_npu.backends.attention`. MindSpeed's second version has the arguments of npu_fusion_attention."""
    from mindspeed.ops.fusion_attention_v2 import npu_fusion_attention

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return attend(
        npu_fusion_attention, query, key, value,
        mask=mask, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k, causal=causal, scale=scale, dropout=dropout,
    )  # fmt: skip


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`; mode 0 is the half mode."""
    from mindspeed.ops.npu_rotary_position_embedding import npu_rotary_position_embedding

    cos, sin = tables(query, cos, sin)
    return tuple(npu_rotary_position_embedding(tensor, cos, sin, 0) for tensor in (query, key))
