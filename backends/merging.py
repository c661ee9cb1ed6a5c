"""The operations that merge tokens: clustering, and the means of groups. All others are in ops.py.

The values of integer tensors are checked only on CPUs, where the host may read them. The checks are needed because an
index that is out of range makes some implementations access memory out of bounds.
"""

import torch
from torch import Tensor

from ppe_npu.errors import InputError

from . import device, dispatch
from .common import MAX_NEIGHBORS
from .compiling import traced_once
from .dispatch import check_kinds, require


def dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    *,
    strict: bool = False,
    most_neighbors: int = MAX_NEIGHBORS,
    implementation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Density-peak clustering of every frame at once (DPC-KNN: Du, Ding and Jia 2016; as in Chat-UniVi).

    A token's density falls with the mean squared distance to its nearest neighbours, and its delta is the distance to
    the nearest denser token. The tokens with the highest density * delta are the centres, and every token joins the
    nearest centre. Distances keep full fp32 on every device (TF32 and HF32 are off); there is no gradient.

    Args:
        tokens: [F, N, C], floating point, padded to N.
        valid: bool [F, N], False on padding, which comes last in a frame; None if there is none.
        budgets: int64 [F], groups to make per frame, from 1 to min(max_groups, valid tokens).
        max_groups: the largest budget, known to the host.
        num_neighbors: int64 [F], number of neighbours that define a density, including the token itself; from 1 to
            min(most_neighbors, valid tokens). For a frame without valid tokens, this and the budget are 0 or 1.
        strict: if true, no token is denser than an equally dense one; otherwise the one with the lower index is.
        most_neighbors: an upper bound of num_neighbors, known to the host; above 5 no Triton kernel is used.

    Returns:
        centers: int64 [F, max_groups], token index of each centre in descending score; entries from budgets[f] on are
            in range but meaningless.
        labels: int64 [F, N], the rank of each token's centre; -1 where not valid.

    Raises:
        InputError: a shape that does not fit; on a CPU also a number that is out of its range.
    """
    _check_dpc_knn(tokens, valid, budgets, max_groups, num_neighbors, strict, most_neighbors)
    options = bool(strict), implementation, most_neighbors
    arguments = tokens.detach(), valid, budgets.long(), max_groups, num_neighbors.long(), *options
    if torch.compiler.is_compiling():
        _register_dpc_knn()
        return torch.ops.ppe_npu.dpc_knn(*arguments)
    return _exact_dpc_knn(*arguments)


def _check_dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool,
    most_neighbors: int,
) -> None:
    """Raise InputError unless the arguments of dpc_knn() fit together."""
    given = {"tokens": tokens, "valid": valid, "budgets": budgets, "num_neighbors": num_neighbors}
    check_kinds("dpc_knn", **given, max_groups=max_groups, strict=strict, most_neighbors=most_neighbors)
    require(tokens.dim() == 3 and tokens.shape[2] > 0, "dpc_knn: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    shape = (frames, length) if valid is None else tuple(valid.shape)
    require(shape == (frames, length), f"dpc_knn: valid must be {[frames, length]}, got", shape)
    for name, vector in (("budgets", budgets), ("num_neighbors", num_neighbors)):
        require(vector.shape == (frames,), f"dpc_knn: {name} must be [{frames}], got", tuple(vector.shape))
    require(1 <= max_groups <= length, f"dpc_knn: max_groups must be from 1 to {length}, got", max_groups)
    boolean = valid is None or valid.dtype is torch.bool
    require(boolean, "dpc_knn: valid must be bool (True = a token), got", None if valid is None else valid.dtype)
    if not device.asks_freely(tokens.device):
        return
    if valid is not None:
        late = (valid[:, 1:] > valid[:, :-1]).any(1).nonzero().flatten().tolist()
        require(not late, "dpc_knn: valid may be False only at the end of a frame, not as in frames", late)
    tokens_of = torch.full_like(budgets, length, dtype=torch.int64) if valid is None else valid.sum(1)
    limits = {"max_groups": max_groups, "most_neighbors": min(most_neighbors, length)}
    for (limit, most), (name, vector) in zip(limits.items(), (("budgets", budgets), ("num_neighbors", num_neighbors))):
        least, largest = tokens_of.clamp(max=1), tokens_of.clamp(1, most)  # a frame without tokens may have 0 or 1
        fits = not ((vector < least) | (vector > largest)).any()
        expected = f"dpc_knn: {name} must be from 1 to {most} ({limit}) and at most a frame's tokens, got"
        require(fits, expected, vector.tolist() if not fits else None)


def _exact_dpc_knn(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    strict: bool,
    implementation: str | None,
    most_neighbors: int = MAX_NEIGHBORS,
) -> tuple[Tensor, Tensor]:
    # Autocast would compute products of fp32 tokens in bf16.
    with torch.no_grad(), device.exact_matmul(), torch.autocast(tokens.device.type, enabled=False):
        arguments = tokens, valid, budgets, max_groups, num_neighbors
        options = {"strict": strict, "most_neighbors": most_neighbors}
        centers, labels = dispatch.call("dpc_knn", *arguments, **options, implementation=implementation)
    return centers.contiguous(), labels.contiguous()  # as _shapes_of_dpc_knn says


@traced_once
def _register_dpc_knn() -> None:
    """Registers torch.ops.ppe_npu.dpc_knn, a single node of a graph under torch.compile.

    Traced operations would run in the precision that is set at run time, and TF32 would give other groups.
    """
    if not hasattr(torch.ops.ppe_npu, "dpc_knn"):
        operator = torch.library.custom_op("ppe_npu::dpc_knn", _exact_dpc_knn, mutates_args=())
        operator.register_fake(_shapes_of_dpc_knn)


def _shapes_of_dpc_knn(tokens: Tensor, valid, budgets: Tensor, max_groups: int, *_) -> tuple[Tensor, Tensor]:
    frames, length = tokens.shape[:2]
    return budgets.new_empty(frames, max_groups), budgets.new_empty(frames, length)


def group_mean(tokens: Tensor, labels: Tensor, counts: Tensor, *, implementation: str | None = None) -> Tensor:
    """The mean of every group of tokens; differentiable in `tokens`.

    Args:
        tokens: [F, N, C], floating point.
        labels: int64 [F, N], the group of each token, in [0, M), or -1 for no group.
        counts: integer [F, M], tokens per group; must agree with `labels`.

    Returns:
        [F, M, C] in the tokens' dtype, accumulated in fp32 (fp64 for fp64); empty groups are zero.

    Raises:
        InputError: a shape that does not fit; on a CPU also counts that do not match the labels.
    """
    check_kinds("group_mean", tokens=tokens, labels=labels, counts=counts)
    require(tokens.dim() == 3, "group_mean: tokens must be [F, N, C], got", tuple(tokens.shape))
    frames, length = tokens.shape[:2]
    fits = labels.shape == (frames, length)
    require(fits, f"group_mean: labels must be {[frames, length]}, got", tuple(labels.shape))
    fits = counts.dim() == 2 and counts.shape[0] == frames
    require(fits, f"group_mean: counts must be [{frames}, M], got", tuple(counts.shape))
    labels, counts = labels.long(), counts.long()
    if device.asks_freely(labels.device):
        groups = counts.shape[1]
        slots = labels.clamp(-1, groups) + 1 + (groups + 2) * torch.arange(frames, device=labels.device)[:, None]
        found = torch.bincount(slots.flatten(), minlength=frames * (groups + 2)).view(frames, groups + 2)
        if found[:, -1].any() or not torch.equal(found[:, 1:-1], counts):
            raise InputError("group_mean: counts must be how many labels of each frame are 0, 1, ...: count them again")
    with torch.autocast(tokens.device.type, enabled=False):
        return dispatch.call("group_mean", tokens, labels, counts, implementation=implementation)
