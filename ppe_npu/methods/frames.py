"""Helpers for methods whose cell is a whole image or video: its frames, and unequal budgets with an exact total."""

from dataclasses import replace
from typing import Any

import torch

from ppe_npu import backends
from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.methods.choosing import best
from ppe_npu.methods.grouping import Grouping, group_sizes
from ppe_npu.methods.view import View

# Parts of a view with one entry per token, in the second axis; tower_saliency, which may be [F, B, N], is apart.
PER_TOKEN = (
    "tokens",
    "places",
    "sizes",
    "tower_keys",
    "layer_queries",
    "layer_keys",
    "layer_plain_queries",
    "layer_plain_keys",
    "layer_row",
)


def frame_of(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """[F, N] int64 frame of each token, counted from 0 in its cell (-1: no token); [F, T] int64 number of tokens in
    each frame, 0 where a cell has fewer frames. T is the largest number of frames in a cell, or an upper bound."""
    frame, absent = view.places[..., 0], ~view.present
    first = frame.masked_fill(absent, torch.iinfo(torch.long).max).amin(1, keepdim=True)
    labels = (frame - first).masked_fill(absent, -1)
    most = labels.shape[1] if view.frames is None else view.frames
    return labels, group_sizes(torch.where(absent, most, labels), most)


def frame_means(values: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[F, T, C] mean over each frame of values [F, N, C] fp32; 0 where there is no frame."""
    return backends.group_mean(values, labels, counts)


def of_frame(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[F, N, ...] value of each token's frame, from values [F, T, ...]."""
    index = labels.clamp_min(0).view(*labels.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(*labels.shape, *values.shape[2:]))


def rank_in_frame(scores: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[F, N] int64 rank of each token in its frame, in descending order of scores [F, N]; ties by index."""
    falling = scores.sort(dim=1, descending=True, stable=True).indices
    by_frame = torch.where(labels < 0, counts.shape[1], labels).gather(1, falling).sort(dim=1, stable=True).indices
    order = falling.gather(1, by_frame)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return place - of_frame(counts.cumsum(1) - counts, labels)


def shared_out(view: View, quotas: torch.Tensor, labels: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """[F, most] int64, view.num_kept tokens of each cell, which are the first of each frame by `rank` [F, N].

    The quotas [F, T] (real numbers) are rounded by largest remainder to numbers that sum to num_kept: in a frame with
    quota q the token of rank r has the value q - r - 1, and the tokens of largest value are kept. So no frame gets more
    than it has, and what it cannot take is divided among the others. Each frame gets at least one token, if there are
    enough. Of equal remainders that of the earlier frame is rounded up.
    """
    quota = of_frame(quotas, labels)
    worth = quota - rank - 1
    return best(torch.where(rank == 0, worth + rank.shape[1], worth), view)


def by_frame(view: View, numbers: torch.Tensor, labels: torch.Tensor, rank: torch.Tensor) -> tuple[View, torch.Tensor]:
    """For frames that keep independent numbers of tokens [F, T]: the view with their sums as num_kept, and [F, N]
    int64, all tokens with those that are kept first."""
    stays = view.present & (rank < of_frame(numbers, labels))
    order = stays.float().masked_fill(~view.present, -1.0).sort(dim=1, descending=True, stable=True).indices
    return replace(view, num_kept=stays.sum(1), most=stays.shape[1]), order


def group_frames(method: Method, view: View, labels: torch.Tensor, sizes: torch.Tensor, numbers: torch.Tensor):
    """A Grouping of cells that are whole images or videos, by a method whose cells are frames.

    labels: [F, N] and sizes: [F, T], as frame_of gives them; numbers: [F, T] int64, how many tokens each frame keeps,
    at least one where there is a frame; they sum to view.num_kept.
    """
    cells, frames = numbers.shape
    count = labels.shape[1]
    # The host reads the width if it does not know it, since a width of N would need room for frames * N tokens.
    width = int(sizes.max()) if view.frame_tokens is None else view.frame_tokens
    order = torch.where(labels < 0, frames, labels).sort(dim=1, stable=True).indices
    slots = torch.arange(width, device=labels.device)
    valid = (slots < sizes[:, :, None]).flatten(1)  # [F, T * P]
    at = ((sizes.cumsum(1) - sizes)[:, :, None] + slots).flatten(1).clamp_max(count - 1)
    index = order.gather(1, at)
    # A frame that does not exist gets a token, so that no cell is empty; its group is removed below.
    shown = (valid.view(cells, frames, width) | ((sizes == 0)[:, :, None] & (slots == 0))).flatten(0, 1)
    parts: dict[str, Any] = {name: _of_tokens(getattr(view, name), index, width) for name in PER_TOKEN}
    if view.tower_saliency is not None:
        rows = _of_tokens(view.tower_saliency.movedim(-1, 1), index, width)
        parts["tower_saliency"] = rows.movedim(1, -1)
    parts |= {name: _repeated(getattr(view, name), frames) for name in ("text", "text_valid", "text_after")}
    made = method.group(View(numbers.flatten().clamp_min(1), min(width, view.most), valid=shown, **parts))
    if type(made) is not Grouping:
        raise InputError(f"{method.name} released=true: its groups, which are no means, cannot be joined; leave it out")
    before = (numbers.cumsum(1) - numbers)[:, :, None]
    local = made.labels.reshape(cells, frames, width)
    groups = torch.where((local < 0) | (numbers[:, :, None] == 0), -1, local + before).flatten(1)
    place = torch.where(valid, index, count)
    out = torch.full((cells, count + 1), -1, device=labels.device).scatter(1, place, groups)[:, :count]
    slots = torch.arange(made.counts.shape[1], device=labels.device)
    slots = torch.where(slots < numbers[:, :, None], slots + before, view.most).flatten(1)
    heads = index.gather(1, _local(made.representatives, cells, frames, width))
    representatives = order.new_zeros(cells, view.most + 1).scatter(1, slots, heads)[:, : view.most]
    weights = None
    if made.weights is not None:
        weights = made.weights.new_zeros(cells, count + 1).scatter(1, place, made.weights.reshape(cells, -1))[:, :count]
    return Grouping.of(out, representatives, weights)


def _of_tokens(values: torch.Tensor | None, index: torch.Tensor, width: int) -> torch.Tensor | None:
    """[F * T, P, ...] values [F, N, ...] at the tokens `index` [F, T * P]."""
    if values is None:
        return None
    place = index.view(*index.shape, *[1] * (values.dim() - 2)).expand(*index.shape, *values.shape[2:])
    return values.gather(1, place).view(-1, width, *values.shape[2:])


def _repeated(values: torch.Tensor | None, frames: int) -> torch.Tensor | None:
    return None if values is None else values.repeat_interleave(frames, dim=0)


def _local(representatives: torch.Tensor, cells: int, frames: int, width: int) -> torch.Tensor:
    """[F, T * M] int64 indices into all frames of a cell, from indices into one frame [F * T, M]."""
    first = torch.arange(frames, device=representatives.device)[:, None] * width
    return (representatives.reshape(cells, frames, -1) + first).flatten(1)
