"""rotary by a Triton kernel, which reads and writes query and key once."""

from torch import Tensor

from .turn import refusal, turned

__all__ = ["refusal", "rotary"]


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`."""
    return turned(query, key, cos, sin, None, 1.0)
