"""group_mean on Ascend by a one-hot product: torch_npu 2.12 lists no bf16 index_add and no scatter_reduce."""

from torch import Tensor

from ppe_npu.backends.common import refused_dtype
from ppe_npu.backends.onehot import group_mean

__all__ = ["group_mean", "refusal"]


def refusal(tokens: Tensor, labels: Tensor, counts: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32, because an Ascend device has no fp64 matrix product."""
    return refused_dtype("matrix products take", tokens.dtype)
