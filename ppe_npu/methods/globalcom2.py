"""GlobalCom2: keeps more tokens of crops that matter to the whole picture (Liu et al., arXiv 2501.05179, section 3).

The paper divides a budget among the crops of one high-resolution picture by the attention in its thumbnail. Here a
picture with its crops, or a video with its frames, is one cell, which is given in one of two forms.

With `crops`, the published form: frame 0 is the thumbnail and frames 1, 2, ... are the crops, row by row; places are
(frame, row, column) in the grid of the thumbnail or crop; a crop's padding has no tokens; and tower_saliency is the
attention of the CLS token.

Without `crops`, for models that have no thumbnail: the frames of a video are treated like crops. The thumbnail's
attention is replaced by a token's distinctness, 1 - cosine to the mean of the video, and a crop's own attention by
1 - cosine to the mean of the frame. An image is one frame and keeps the plain ratio.

The method divides the budget and prunes; or, with `by`, it only divides the budget, and that method of frames chooses
the tokens of each frame.
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
    """With s_c the sum of global scores over a crop's area, and p the softmax of s / temperature, a crop keeps the
    fraction r_c = ratio (1 + p_c - mean p) of its tokens, at most 1. These are the ones of largest score, the sum of
    the crop's own scores and the global scores, each scaled to unit length. The thumbnail keeps the plain ratio.

    At temperature 10, scores that sum to 1, like the attention of one head, hardly change these fractions. The
    published code truncates each crop's number separately; here the numbers are rounded by largest remainder to the
    exact total. Areas are whole rows and columns of the thumbnail, and the last crop in each direction may get more, as
    published.

    Args:
        ratio: fraction of the tokens of an image or video to keep: ceil(n * ratio) of n.
        temperature: of the softmax over crops or frames.
        by: the method that chooses the tokens of each frame, or null. Its own ratio is ignored. What both see of the
            vision tower is of the blocks that it names.
        crops: rows and columns of crops; null: there is no thumbnail.
        original_size: width and height of the picture, which is centred in the crops and padded on two sides.
        dropped: what becomes of the other tokens, see choosing.dropped; only without `by`.
        released: int(r_c n) of each crop's n tokens, as in the published code; the total then depends on the scores.
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
        if by is not None:
            what = (by.scope, by.counts, by.layers, by.levels, "input" in by.places)
            if what != ("frame", "exact", (), (), True):
                raise InputError(
                    f"globalcom2 by={shown(by)}: give a method of frames that runs before the decoder, with exact "
                    "counts and no layer"
                )
            if self.dropped != "lend":
                raise InputError(
                    f"globalcom2 dropped={shown(self.dropped)} with by={by.name}: that method chooses the tokens; give "
                    "dropped to it, or leave it out"
                )
        if (self.crops is None) != (self.original_size is None):
            raise InputError(
                f"globalcom2 crops={self.crops} with original_size={self.original_size}: give both or neither"
            )

    @property
    def _own(self) -> frozenset[str]:
        """What the budgets are divided by."""
        return frozenset({"tokens", "places", *([] if self.crops is None else ["tower_saliency"])})

    @property
    def needs(self) -> frozenset[str]:
        return self._own if self.by is None else self._own | self.by.needs

    def blocks(self, count: int) -> tuple[int, ...]:
        return super().blocks(count) if self.by is None else self.by.blocks(count)

    @property
    def tower_windows(self) -> str:
        return "refuse" if self.by is None else self.by.tower_windows

    @property
    def counts(self) -> str:
        return "late" if self.released else "exact"

    def kept(self, tokens: int) -> int:
        return tokens if self.released else super().kept(tokens)

    def group(self, view: View) -> Grouping:
        view.require("globalcom2", *sorted(self._own), blocks=None)
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
        """[F, T] the fraction that each crop or frame keeps, from the sums [F, T]; the thumbnail keeps the ratio."""
        exists = sizes > 0
        if self.crops is not None:
            exists = exists & (torch.arange(sizes.shape[1], device=sizes.device) > 0)
        part = (sums / self.temperature).masked_fill(~exists, -math.inf).softmax(1)
        moved = (ratio * (1 + part - 1 / exists.sum(1, keepdim=True))).clamp_max(1)
        return torch.where(exists, moved, ratio)

    def _of_crops(self, view: View, labels: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[F, T] sums over areas, [F, N] crops' own scores, and [F, N] the thumbnail's scores at each token's place."""
        own, (rows, columns) = view.tower_saliency.float(), self.crops
        own = own if own.dim() == 2 else own.sum(1)  # of several blocks, as the method `by` may look at
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
        """[F, 1] each: height and width of the picture within the crops, padding above and on the left, in tokens."""
        (rows, columns), (width, height) = self.crops, self.original_size
        tall, wide = rows * side, columns * side
        if width * rows > height * columns:
            above = (tall - height * wide // width) // 2
            return tall - 2 * above, wide, above, torch.zeros_like(side)
        left = (wide - width * tall // height) // 2
        return tall, wide - 2 * left, torch.zeros_like(side), left


def _truncated(quotas: torch.Tensor, sizes: torch.Tensor, ratio: float) -> torch.Tensor:
    """[F, T] quotas truncated as in the published code. Its softmax adds 1e-8 to the sum, so that a quota above the
    plain ratio never quite reaches an integer, and is truncated to the one below."""
    whole = quotas.floor()
    just_below = (quotas == whole) & (quotas > ratio * sizes) & (quotas < sizes)
    return (whole - just_below.float()).clamp_min(1)


def _of_frames(view: View, labels: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As _of_crops for a video without a thumbnail, by how distinct tokens are from the video and from their frame."""
    tokens = unit(view.tokens)
    means = frame_means(tokens, labels, sizes)
    mean = unit((means * sizes[:, :, None]).sum(1, keepdim=True))
    whole = 1 - (tokens * mean).sum(-1)
    own = 1 - (tokens * of_frame(unit(means), labels)).sum(-1)
    return frame_means(whole[:, :, None], labels, sizes)[:, :, 0] * sizes, own, whole


def _unit_length(scores: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """[F, N] scores divided by the Euclidean length of all scores in the same frame."""
    squares = frame_means(scores.square()[:, :, None], labels, sizes)[:, :, 0] * sizes
    return scores / of_frame(squares.sqrt().clamp_min(1e-12), labels)


def _bilinear(
    values: torch.Tensor, labels: torch.Tensor, side: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> torch.Tensor:
    """[F, N] the thumbnail's values at real (row, column) [F, N], interpolated as torch's bilinear interpolate does."""
    first = labels.masked_fill(labels != 0, 1).argmin(1, keepdim=True)  # the thumbnail's first token

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        place = torch.minimum(row, side - 1) * side + torch.minimum(column, side - 1)
        return values.gather(1, first + place)

    row, column = (part.clamp_min(0) for part in (row, column))
    row, column = (torch.minimum(part, side - 1.0) for part in (row, column))
    up, left = row.long(), column.long()
    down, right = row - up, column - left
    top = (1 - right) * at(up, left) + right * at(up, left + 1)
    return (1 - down) * top + down * ((1 - right) * at(up + 1, left) + right * at(up + 1, left + 1))
