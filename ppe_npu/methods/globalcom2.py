"""GlobalCom2: crops that matter to the whole picture keep more tokens (Liu et al., arXiv 2501.05179, section 3).

The paper shares out a budget among the crops of one high-resolution picture by what its thumbnail attends to. Here a
picture with its crops, or a video with its frames, is one cell, which is given in one of two forms.

With `crops`, the published one: frame 0 is the thumbnail and frames 1, 2, ... are the crops, row by row; places are
(frame, row, column) in the thumbnail's or the crop's own grid, where what a crop is padded with has no token; and
tower_saliency is the attention of the CLS token.

Without, for models that have no thumbnail: the frames of a video take the crops' part. In place of the thumbnail's
attention a token has what it stands out by: 1 - cosine to the mean of the video, in place of a crop's own attention
1 - cosine to the mean of its frame. An image is one frame and keeps its share.

It shares out and prunes; or it shares out alone and leaves the tokens of each frame to any method of frames, `by`.
"""

import math
from dataclasses import dataclass

import torch

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import dropped, unit
from ppe_npu.methods.frames import by_frame, frame_means, frame_of, group_frames, of_frame, rank_in_frame, shared_out
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("globalcom2")
@dataclass(frozen=True)
class GlobalCom2(Method):
    """With s_c the sum of global scores over a crop's area and p the softmax of s / temperature a crop keeps the share
    r_c = ratio (1 + p_c - mean p), at most 1: its tokens of largest score, which is the crop's own scores at unit
    length plus the global ones at unit length. The thumbnail keeps the plain ratio of its own.

    At temperature 10 scores that sum to 1, as one head's attention does, move the shares hardly at all; the published
    code truncates each crop's number by itself. Here the numbers are rounded by largest remainder to the exact total.
    Areas are whole rows and columns of the thumbnail, of which the last crop of each may get more, as published.

    Args:
        ratio: share of the tokens of an image or video that is kept: ceil(n * ratio) of n.
        temperature: of the softmax over crops or frames.
        by: the method of frames that chooses within each, or null. Its ratio means nothing here.
        crops: rows and columns of crops; null: there is no thumbnail.
        original_size: width and height of the picture, which the crops hold centred, padded on two sides.
        dropped: what becomes of the others, see choosing.dropped; without `by` alone.
        released: int(r_c n) of each crop's n tokens, as the published code has it; how many stay hangs on the scores.
    """

    ratio: float = share(0.25)
    temperature: float = setting(10.0, above=0)
    by: Method | None = None
    crops: tuple[int, int] | None = setting(None, least=1, remedy="give rows and columns of crops, or null")
    original_size: tuple[int, int] | None = setting(None, least=1, remedy="give width and height in pixels, or null")
    dropped: str = dropped()
    released: bool = False

    scope = "span"

    def __post_init__(self):
        super().__post_init__()
        by = self.by
        if by is not None and (by.scope, by.counts, by.layers, by.levels) != ("frame", "exact", (), ()):
            raise InputError(f"globalcom2 by={shown(by)}: give a method of frames with exact counts and no layer")
        if (self.crops is None) != (self.original_size is None):
            raise InputError(
                f"globalcom2 crops={self.crops} with original_size={self.original_size}: give both or none of them"
            )

    @property
    def needs(self) -> frozenset[str]:
        own = {"tokens", "places", *([] if self.crops is None else ["tower_saliency"])}
        return frozenset(own | (set() if self.by is None else self.by.needs))

    @property
    def counts(self) -> str:
        return "late" if self.released else "exact"

    def kept(self, tokens: int) -> int:
        return tokens if self.released else max(math.ceil(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require("globalcom2", *sorted(self.needs))
        labels, sizes = frame_of(view)
        sums, own, whole = (
            _of_frames(view, labels, sizes) if self.crops is None else self._of_crops(view, labels, sizes)
        )
        scores = _unit_length(own, labels, sizes) + _unit_length(whole, labels, sizes)
        ratio = self.ratio if self.released else (view.num_kept / view.present.sum(1))[:, None]
        quotas = self._shares(sums, sizes, ratio) * sizes
        rank = rank_in_frame(scores, labels, sizes)
        if self.released:
            view, kept = by_frame(view, _truncated(quotas, sizes, self.ratio), labels, rank)
        else:
            kept = shared_out(view, quotas, labels, rank)
        if self.by is None:
            return Grouping.of_kept(view, kept, self.dropped)
        stays = torch.arange(kept.shape[1], device=kept.device) < view.num_kept[:, None]
        frame = torch.where(stays, labels.gather(1, kept), -1)
        numbers = (frame[:, None] == torch.arange(sizes.shape[1], device=kept.device)[:, None]).sum(-1)
        return group_frames(self.by, view, labels, sizes, numbers)

    def _shares(self, sums: torch.Tensor, sizes: torch.Tensor, ratio: float | torch.Tensor) -> torch.Tensor:
        """[F, T] the share of each crop or frame, by the sums [F, T]; the plain ratio of the thumbnail."""
        exists = sizes > 0
        if self.crops is not None:
            exists = exists & (torch.arange(sizes.shape[1], device=sizes.device) > 0)
        part = (sums / self.temperature).masked_fill(~exists, -math.inf).softmax(1)
        moved = (ratio * (1 + part - 1 / exists.sum(1, keepdim=True))).clamp_max(1)
        return torch.where(exists, moved, ratio)

    def _of_crops(self, view: View, labels: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[F, T] sums over areas, [F, N] scores of each crop's own, [F, N] of the thumbnail at each token's place."""
        own, (rows, columns) = view.tower_saliency.detach().float(), self.crops
        side = sizes[:, :1].float().sqrt().round().long()
        row, column = view.places[..., 1], view.places[..., 2]
        area = 1 + (row // (side // rows)).clamp_max(rows - 1) * columns
        area = torch.where(labels == 0, area + (column // (side // columns)).clamp_max(columns - 1), -1)
        areas = (area[:, None] == torch.arange(sizes.shape[1], device=area.device)[:, None]).sum(-1)
        sums = frame_means(own[:, :, None], area, areas)[:, :, 0] * areas
        crop = (labels - 1).clamp_min(0)
        height, width, above, left = self._picture(side)
        down = row + crop // columns * side - above
        right = column + crop % columns * side - left
        global_ = _bilinear(own, labels, side, (down + 0.5) * side / height - 0.5, (right + 0.5) * side / width - 0.5)
        return sums, own, torch.where(labels == 0, own, global_)

    def _picture(self, side: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[F, 1] height and width, in tokens, of the picture on the crops, and how much padding is above and left."""
        (rows, columns), (width, height) = self.crops, self.original_size
        tall, wide = rows * side, columns * side
        if width * rows > height * columns:
            above = (tall - height * wide // width) // 2
            return tall - 2 * above, wide, above, torch.zeros_like(side)
        left = (wide - width * tall // height) // 2
        return tall, wide - 2 * left, torch.zeros_like(side), left


def _truncated(quotas: torch.Tensor, sizes: torch.Tensor, ratio: float) -> torch.Tensor:
    """[F, T] whole numbers, as int() makes them of the published code's: its softmax adds 1e-8 to the sum, so that what
    is more than the plain ratio is never quite the whole number that it would be."""
    whole = quotas.floor()
    just_below = (quotas == whole) & (quotas > ratio * sizes) & (quotas < sizes)
    return (whole - just_below.float()).clamp_min(1)


def _of_frames(view: View, labels: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same of a video without a thumbnail: by what stands out of the video, and of the frame."""
    tokens = unit(view.tokens).masked_fill(~view.present[:, :, None], 0)
    means = frame_means(tokens, labels, sizes)
    mean = unit((means * sizes[:, :, None]).sum(1, keepdim=True))
    whole = 1 - (tokens * mean).sum(-1)
    own = 1 - (tokens * of_frame(unit(means), labels)).sum(-1)
    return frame_means(whole[:, :, None], labels, sizes)[:, :, 0] * sizes, own, whole


def _unit_length(scores: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """[F, N] scores over the length of all of their frame."""
    squares = frame_means(scores.square()[:, :, None], labels, sizes)[:, :, 0] * sizes
    return scores / of_frame(squares.sqrt().clamp_min(1e-12), labels)


def _bilinear(
    values: torch.Tensor, labels: torch.Tensor, side: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """[F, N] of the thumbnail's values at (row, column) [F, N], real numbers: bilinear, as torch's interpolate is."""
    first = labels.masked_fill(labels != 0, 1).argmin(1, keepdim=True)  # where the thumbnail begins

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        place = torch.minimum(row, side - 1) * side + torch.minimum(column, side - 1)
        return values.gather(1, first + place)

    row, column = (part.clamp_min(0) for part in (row, column))
    row, column = (torch.minimum(part, side - 1.0) for part in (row, column))
    up, left = row.long(), column.long()
    down, right = row - up, column - left
    top = (1 - right) * at(up, left) + right * at(up, left + 1)
    return (1 - down) * top + down * ((1 - right) * at(up + 1, left) + right * at(up + 1, left + 1))
