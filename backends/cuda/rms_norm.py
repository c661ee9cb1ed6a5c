"""rms_norm by liger-kernel, in its "llama" mode, which rounds where the specification does."""

from torch import Tensor

from ppe_npu.backends import device
from ppe_npu.backends.common import refused_dtype

WIDEST = 65536  # because one program holds a whole row


def refusal(x: Tensor, weight: Tensor, eps: float) -> str | None:
    """Limits: fp16, bf16, fp32, the weight in the same dtype; widths up to 65,536; nothing empty."""
    if reason := refused_dtype("Liger's rms_norm takes", x.dtype):
        return reason
    if weight.dtype != x.dtype:
        # Liger returns the dtype of x, but the specification returns the wider one.
        return "Liger's rms_norm is not used where weight and input differ in dtype"
    if x.shape[-1] > WIDEST:
        return f"Liger's rms_norm takes widths up to {WIDEST:,}"
    if x.numel() == 0:
        return "Liger's rms_norm takes no empty tensor"
    return device.triton_problem(x.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `ppe_npu.backends.rms_norm`."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Not in place: other code may use the incoming gradient too, as in a residual connection.
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
