"""npu_cross_entropy_loss: log-softmax and negative log-likelihood in one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ascend_emulator import limits
from ascend_emulator.operators import emulates


@emulates("npu_cross_entropy_loss")
def cross_entropy_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the loss ([1], or [N] without reduction), log probabilities [N, C], and two empty tensors for z-loss."""
    limits.cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing)
    logits = input.float()
    options = {"reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    loss = F.cross_entropy(logits, target, weight, **options).reshape(-1)
    log_prob = torch.log_softmax(logits, -1)
    return loss.to(input.dtype), log_prob.to(input.dtype), input.new_empty(0), input.new_empty(0)


@emulates("npu_cross_entropy_loss_backward", ignores=("grad_zloss", "lse_for_zloss"))
def cross_entropy_loss_backward(
    grad_loss: Tensor, log_prob: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore_index: int
) -> Tensor:
    """The gradient of the input, [N, C]. `grad_loss` is [1], or [N] without reduction."""
    scale = (target != ignore_index).float()
    if weight is not None:
        scale = scale * weight[target]
    error = log_prob.float().exp() - F.one_hot(target, log_prob.shape[1])
    total = scale.sum() if reduction == "mean" else 1
    return (error * scale[:, None] * grad_loss.float().reshape(-1, 1) / total).to(log_prob.dtype)
