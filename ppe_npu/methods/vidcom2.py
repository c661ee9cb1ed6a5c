"""VidCom2, Video Compression Commander: keeps more of distinct frames (Liu et al., arXiv 2505.14454, section 3)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import dropped
from ppe_npu.methods.frames import by_frame, frame_means, frame_of, of_frame, rank_in_frame, shared_out
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("vidcom2")
@dataclass(frozen=True)
class VidCom2(Method):
    """Only the half of the channels with the least variance over a video is used, with each token scaled to unit
    length. With g(x, c) = sum over a = 1/8, 1/4, ..., 2 of exp(-|x - c|^2 / 2a), a token has a video score, where c is
    the mean of the video, and a frame score, where c is the mean of its frame. With p the softmax over frames of -mean
    video score / temperature, frame f keeps the fraction r_f = ratio (1 + p_f - mean p) of its tokens, at most 1: those
    of least video + frame score.

    The published code rounds in each frame separately and keeps at least one token, so that the total differs from what
    was asked for: the more frames reach a fraction of 1, the smaller it is. Here the frames' numbers are rounded by
    largest remainder to the exact total, and what a full frame cannot take is divided among the others.

    Args:
        ratio: fraction of the tokens of an image or video to keep: ceil(n * ratio) of n.
        temperature: that of the softmax over frames.
        dropped: what becomes of the other tokens, see choosing.dropped.
        released: round(r_f N) of each frame's N tokens, as in the published code; the total then depends on the video.
    """

    ratio: float = share(0.25)
    temperature: float = setting(0.01, above=0)
    dropped: str = dropped()
    released: bool = False

    needs = frozenset({"tokens", "places"})
    scope = "span"

    @property
    def counts(self) -> str:
        return "late" if self.released else "exact"

    def kept(self, tokens: int) -> int:
        return tokens if self.released else max(math.ceil(tokens * self.ratio), 1)

    def group(self, view: View) -> Grouping:
        view.require("vidcom2", "tokens", "places")
        labels, sizes = frame_of(view)
        video, frame = scores(view, labels, sizes)
        ratio = self.ratio if self.released else (view.num_kept / view.present.sum(1))[:, None]
        ratios = frame_ratios(video, labels, sizes, ratio, self.temperature)
        rank = rank_in_frame(-(video + frame), labels, sizes)
        if self.released:
            view, kept = by_frame(view, (ratios * sizes).round().clamp_min(1), labels, rank)
        else:
            kept = shared_out(view, ratios * sizes, labels, rank)
        return Grouping.of_kept(view, kept, self.dropped)


def scores(view: View, labels: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[F, N] fp32 video scores, and [F, N] fp32 frame scores."""
    tokens, present = view.tokens.detach().float(), view.present[:, :, None]
    count = present.sum(1, keepdim=True)
    mean = tokens.sum(1, keepdim=True) / count
    variance = (tokens - mean).square().masked_fill(~present, 0).sum(1)
    quiet = variance.sort(dim=1, stable=True).indices[:, : tokens.shape[2] // 2].sort(dim=1).values
    tokens = tokens.gather(2, quiet[:, None].expand(-1, tokens.shape[1], -1))
    tokens = torch.nn.functional.normalize(tokens, dim=-1)
    middle = tokens.sum(1, keepdim=True) / count
    return _near(tokens, middle), _near(tokens, of_frame(frame_means(tokens, labels, sizes), labels))


def frame_ratios(
    video: torch.Tensor, labels: torch.Tensor, sizes: torch.Tensor, ratio: float | torch.Tensor, temperature: float
) -> torch.Tensor:
    """[F, T] the fraction of its tokens that each frame keeps; meaningless where there is no frame."""
    exists = sizes > 0
    mean = frame_means(video[:, :, None], labels, sizes)[:, :, 0]
    part = (-mean / temperature).masked_fill(~exists, -math.inf).softmax(1)
    return (ratio * (1 + part - 1 / exists.sum(1, keepdim=True))).clamp_max(1)


def _near(tokens: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """[F, N] g(x, c) of each token x [F, N, C] and its middle c [F, N or 1, C]."""
    away = (tokens - middle).square().sum(-1)
    parts = (torch.exp(away / (-2 * width)) for width in (0.125, 0.25, 0.5, 1.0, 2.0))
    return sum(parts, start=torch.zeros_like(away))
