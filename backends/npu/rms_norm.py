"""rms_norm by torch_npu.npu_rms_norm, which rounds once where the specification rounds twice."""

from torch import Tensor

from ppe_npu.backends.common import refused_dtype


def refusal(x: Tensor, weight: Tensor, eps: float) -> str | None:
    """Limits: fp16, bf16, fp32, the weight in the same dtype; 2 to 8 dimensions; nothing empty."""
    if reason := refused_dtype("npu_rms_norm takes", x.dtype):
        return reason
    if weight.dtype != x.dtype:
        # With an fp32 weight and a 16-bit input the operator returns 16 bits, where the specification returns fp32.
        return "npu_rms_norm is not used where weight and input differ in dtype"
    if not 2 <= x.dim() <= 8:
        return "npu_rms_norm takes 2 to 8 dimensions"
    if x.numel() == 0:
        return "npu_rms_norm takes no empty tensor"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `ppe_npu.backends.rms_norm`. The operator also returns 1/rms, which is dropped."""
    import torch_npu

    return torch_npu.npu_rms_norm(x, weight, epsilon=eps)[0]
