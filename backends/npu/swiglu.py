"""swiglu by torch_npu.npu_swiglu, which takes gate and up as the two halves of one contiguous tensor."""

import torch
from torch import Tensor


def refusal(gate: Tensor, up: Tensor) -> str | None:
    """fp16, bf16, fp32; 1 to 8 dimensions; nothing empty."""
    if gate.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"npu_swiglu takes fp16, bf16 and fp32, not {gate.dtype}"
    if not 1 <= gate.dim() <= 8:
        return "npu_swiglu takes 1 to 8 dimensions"
    if gate.numel() == 0:
        return "npu_swiglu takes no empty tensor"
    return None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `ppe_npu.backends.swiglu`. gate and up come from two projections, hence the copy."""
    import torch_npu

    return torch_npu.npu_swiglu(torch.cat((gate, up), dim=-1), dim=-1)
