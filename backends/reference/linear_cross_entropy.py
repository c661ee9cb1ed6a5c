"""The specification of the language-model loss: a linear layer and cross entropy, a chunk of tokens at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppe_npu.backends.common import IGNORED


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORED,
    chunk_size: int = 1024,
    reduction: str = "mean",
) -> Tensor:
    """See `ppe_npu.backends.linear_cross_entropy`.

    Each chunk's logits are computed twice, in the forward and in the backward pass, and never kept. With a vocabulary
    of 150,000 and 8,192 tokens, all logits would take 5 GB in fp32, several times over.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    for some, targets in zip(hidden.split(chunk_size), labels.split(chunk_size)):
        total = total + checkpoint(
            _chunk_loss, some, weight, targets, ignore_index, use_reentrant=False, preserve_rng_state=False
        )
    if reduction == "sum":
        return total
    counted = (labels != ignore_index).sum()
    return total / counted.clamp(min=1)  # if all labels are ignored, the loss is 0, not 0/0


def _chunk_loss(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    logits = hidden @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
