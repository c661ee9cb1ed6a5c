"""dpc_knn by six Triton kernels, for all frames of a batch at once; every frame has its own length and budget.

    centred -> gram -> first_equal -> knn_density -> denser_distance -> (sort) -> assign

Products are made once, half of them by symmetry, and read by the three passes after: at [32, 768, 2048] in bf16 these
are 45 GFLOP, 72 MiB written and at most 2.5 times as much read. Making them again in each pass would be 190 GFLOP: a
product costs as much time as 20 bytes do (4,096 operations at 1 PFLOP/s, 4.8 TB/s), so 4 bytes are cheap beside it.
Where a channel needs low parts (`gram`), its step of 64 channels has three products more, in a launch of its own that
otherwise ends at once: with all steps flagged 190 GFLOP, too.
What is stored is bounded (`tiles.STORED_AT_ONCE`), whatever the batch: frames are worked on some at a time, and of
frames too large for that (more than 5,792 tokens) nothing is: there each pass makes its tiles again.
"""

import torch
from torch import Tensor

from ppe_npu.backends import device

from . import tiles
from .assign import assign
from .denser_distance import denser_distance
from .first_equal import checksums, first_equal
from .gram import centred, gram
from .knn_density import knn_density


def refusal(
    tokens: Tensor,
    valid: Tensor | None,
    budgets: Tensor,
    max_groups: int,
    num_neighbors: Tensor,
    *,
    strict: bool = False,
) -> str | None:
    """fp16, bf16, fp32; compute capability 8.0 or later; a frame's padded tokens below 2**31 numbers."""
    if tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take fp16, bf16 and fp32, not {tokens.dtype}"
    if tokens.numel() == 0:
        return "the Triton kernels take no empty tensor"
    plan = tiles.plan(*tokens.shape, tokens.dtype)
    if plan.pitch * plan.width >= 2**31:
        return "the Triton kernels take frames of less than 2**31 numbers"
    return device.triton_problem(tokens.device, tiles.shared_bytes(plan, tokens.dtype))


@torch.no_grad()
def dpc_knn(
    tokens: Tensor, valid: Tensor | None, budgets: Tensor, max_groups: int, num_neighbors: Tensor, strict: bool = False
) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.dpc_knn`."""
    frames, count, channels = tokens.shape
    plan = tiles.plan(frames, count, channels, tokens.dtype)
    if valid is None:
        lengths = torch.full((frames,), count, dtype=torch.int32, device=tokens.device)
    else:
        lengths = valid.sum(1, dtype=torch.int32)
    budgets, num_neighbors = budgets.contiguous(), num_neighbors.contiguous()
    centers = torch.empty(frames, max_groups, dtype=torch.int64, device=tokens.device)
    labels = torch.empty(frames, count, dtype=torch.int64, device=tokens.device)
    with torch.cuda.device_of(tokens):
        for start in range(0, frames, plan.frames):
            part = slice(start, start + plan.frames)
            arguments = (tokens[part], lengths[part], budgets[part], num_neighbors[part], strict)
            _cluster(*arguments, centers[part], labels[part], plan)
    return centers, labels


def _cluster(
    tokens: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    num_neighbors: Tensor,
    strict: bool,
    centers: Tensor,
    labels: Tensor,
    plan: tiles.Plan,
) -> None:
    """Writes centers and labels of some frames."""
    count, channels = tokens.shape[1:]
    moved = centred(tokens, lengths, plan)
    found, norms = gram(moved, lengths, plan)
    first, copies = first_equal(found, moved, norms, lengths, checksums(tokens), channels, plan)
    pairs = tiles.Pairs(found, *moved, norms, lengths, first, copies)
    density = knn_density(pairs, num_neighbors, channels, plan)
    nearest = denser_distance(pairs, density, channels, strict, plan)
    # Where there is no token, the log of zero puts it last.
    score = torch.add(density, nearest.log(), alpha=0.5)[:, :count]
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    centers.copy_(order[:, : centers.shape[1]])
    assign(pairs, centers, budgets, labels, channels, plan)
