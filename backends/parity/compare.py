"""How far a result may be from the fp64 reference.

Numbers are compared by the relative RMS error |actual - expected| / |expected| over a whole tensor. Allowed errors:

* for an implementation: twice the error of plain PyTorch, that is, of the reference on the CPU in the same dtype,
  but never less than `floor`. In 16 bits the floor is eps/4, about one rounding of the result, for tensors where plain
  PyTorch is nearly exact by chance. In fp32 it is 4 eps, and 8 eps for gradients, because sums in another order vary by
  that much (measured: torch's own fused CPU attention has 3.7 eps in gradients, eager attention 1.4).
* for the reference on the CPU, which would otherwise be compared with itself: `own_bound`, 4 eps in fp32 and 1 eps in
  16 bits, where only a few roundings of inputs and results matter; twice that for gradients (measured: 2.7 and 0.5).

eps is the distance from 1 to the next number: 1.2e-7 in fp32, 7.8e-3 in bf16, 9.8e-4 in fp16. A wrong scale, mask or
alignment is off by far more in every dtype.

NaN and inf are errors, unless the fp64 reference has them at the same places. A bound that is not finite fails, because
it would allow anything.

Clusterings are compared as partitions, without tolerance: where distances are fp32-exact the groups are the same.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def within(error: float, bound: float) -> bool:
    """Whether an error is within its bound; False if either is not finite."""
    return math.isfinite(error) and math.isfinite(bound) and error <= bound


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of `expected` (or over 1 if that is zero); inf for a wrong shape.

    Where `expected` is NaN or infinite, `actual` must be the same, and only the rest is compared. Anywhere else, a
    number that is not finite makes the error inf.
    """
    if actual.shape != expected.shape:
        return math.inf
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return math.inf
    if not torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num()):  # NaN -> 0, inf -> largest
        return math.inf
    actual, expected = actual[finite], expected[finite]
    if expected.numel() == 0:
        return 0.0
    size = expected.square().mean().sqrt().item()
    error = (actual - expected).square().mean().sqrt().item() / (size or 1.0)
    return error if math.isfinite(error) else math.inf


def allowed(plain: float, dtype: torch.dtype, gradient: bool) -> float:
    """The error an implementation may have, given that of plain PyTorch in the same dtype."""
    return max(2 * plain, floor(dtype, gradient))


def floor(dtype: torch.dtype, gradient: bool) -> float:
    """The error that is allowed even where plain PyTorch has none."""
    return own_bound(dtype, gradient) if dtype is torch.float32 else torch.finfo(dtype).eps / 4


def own_bound(dtype: torch.dtype, gradient: bool) -> float:
    """The error that the reference itself may have on the CPU."""
    return (2 if gradient else 1) * (4 if dtype is torch.float32 else 1) * torch.finfo(dtype).eps


def partition_distance(first: Tensor, second: Tensor) -> float:
    """1 - Jaccard index over pairs of tokens that share a group; labels are [F, N], -1 for tokens in no group.

    0 for equal partitions, however groups are numbered; 1 if the two disagree on which tokens are in any group.
    """
    if first.shape != second.shape or not torch.equal(first < 0, second < 0):
        return 1.0
    inside = (first >= 0)[:, :, None] & (first >= 0)[:, None, :]
    one, two = ((labels[:, :, None] == labels[:, None, :]) & inside for labels in (first, second))
    either = (one | two).sum().item()
    return 1 - (one & two).sum().item() / either if either else 0.0


def clustering_error(actual: Sequence[Tensor], expected: Sequence[Tensor], budgets: Tensor) -> float:
    """Largest of: partition distance; fraction of centres that differ, as sets; 1 if a centre is not in its own group.

    Both clusterings are (centers [F, M], labels [F, N]) as `dpc_knn` returns them.
    """
    if any(one.shape != two.shape for one, two in zip(actual, expected)):
        return math.inf
    (centers, labels), (true_centers, true_labels) = ([part.cpu() for part in pair] for pair in (actual, expected))
    if not all(part.min() >= 0 and part.max() < labels.shape[1] for part in (centers, true_centers)):
        return math.inf  # a centre that is not a token
    ranks = torch.arange(centers.shape[1])
    used = ranks < budgets.cpu()[:, None]
    if not torch.equal(labels.gather(1, centers)[used], ranks.expand_as(centers)[used]):
        return 1.0
    ours, theirs = (torch.zeros_like(labels, dtype=torch.bool) for _ in range(2))
    for marks, picked in ((ours, centers), (theirs, true_centers)):
        marks[torch.arange(len(marks))[:, None].expand_as(picked)[used], picked[used]] = True
    moved = (ours & ~theirs).sum().item() / used.sum().item()
    return max(moved, partition_distance(labels, true_labels))
