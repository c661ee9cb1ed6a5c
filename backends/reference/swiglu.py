"""The specification of SwiGLU."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `ppe_npu.backends.swiglu`."""
    return F.silu(gate) * up
