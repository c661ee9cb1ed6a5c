"""For methods whose cell is a whole image or video: the frames in it, and unequal shares of an exact total."""

from dataclasses import replace

import torch

from ppe_npu import backends
from ppe_npu.methods.choosing import best
from ppe_npu.methods.view import View


def frame_of(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """[F, N] int64, the frame of each token, counted from 0 in its cell (-1: there is no token); [F, T] int64, tokens in
    each frame, 0 where a cell has no such frame. T is the most frames that any cell has, empty ones in between too."""
    frame, absent = view.places[..., 0], ~view.present
    first = frame.masked_fill(absent, torch.iinfo(torch.long).max).amin(1, keepdim=True)
    labels = (frame - first).masked_fill(absent, -1)
    most = getattr(view, "frames", None) or int(labels.max()) + 1
    return labels, (labels[:, None] == torch.arange(most, device=labels.device)[:, None]).sum(-1)


def frame_means(values: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[F, N, C] fp32 -> [F, T, C], the mean of each frame; 0 where there is none."""
    return backends.group_mean(values, labels, counts)


def of_frame(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[F, T, ...] -> [F, N, ...], of each token's frame."""
    index = labels.clamp_min(0).view(*labels.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(*labels.shape, *values.shape[2:]))


def rank_in_frame(scores: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[F, N] int64, how many tokens of its frame come before each one: those of higher scores [F, N], or of equal ones
    with a lower index."""
    falling = scores.sort(dim=1, descending=True, stable=True).indices
    by_frame = torch.where(labels < 0, counts.shape[1], labels).gather(1, falling).sort(dim=1, stable=True).indices
    order = falling.gather(1, by_frame)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return place - of_frame(counts.cumsum(1) - counts, labels)


def shared_out(view: View, quotas: torch.Tensor, labels: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """[F, most] int64, view.num_kept tokens of each cell, the first by `rank` [F, N] of each frame.

    The quotas [F, T] (real numbers) are rounded by largest remainder to numbers that sum to the total: of a frame with
    quota q the token of rank r is worth q - r - 1, and the most worth are kept. So no frame gets more than it has, and
    what one cannot take the others share. Each gets at least one, as long as there are as many as frames. Of equal
    remainders that of the earlier frame is rounded up.
    """
    quota = of_frame(quotas, labels)
    worth = quota - rank - 1
    return best(torch.where(rank == 0, worth + rank.shape[1], worth), view)


def by_frame(view: View, numbers: torch.Tensor, labels: torch.Tensor, rank: torch.Tensor) -> tuple[View, torch.Tensor]:
    """Where each frame keeps a number [F, T] of its own, whatever they sum to: the view with these sums as its budgets,
    and [F, N] the tokens, those that are kept first."""
    stays = view.present & (rank < of_frame(numbers, labels))
    order = stays.float().masked_fill(~view.present, -1.0).sort(dim=1, descending=True, stable=True).indices
    return replace(view, num_kept=stays.sum(1), most=stays.shape[1]), order
