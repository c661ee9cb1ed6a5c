"""swiglu by torch_npu.npu_swiglu, which takes gate and up as the two halves of one contiguous tensor."""

import torch
from torch import Tensor

from ppe_npu.backends.common import refused_dtype


def refusal(gate: Tensor, up: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; 1 to 8 dimensions; nothing empty."""
    if reason := refused_dtype("npu_swiglu takes", gate.dtype):
        return reason
    if not 1 <= gate.dim() <= 8:
        return "npu_swiglu takes 1 to 8 dimensions"
    if gate.numel() == 0:
        return "npu_swiglu takes no empty tensor"
    return None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `ppe_npu.backends.swiglu`. gate and up come from two projections, so they are copied into one tensor."""
    import torch_npu

    return torch_npu.npu_swiglu(torch.cat((gate, up), dim=-1), dim=-1)
