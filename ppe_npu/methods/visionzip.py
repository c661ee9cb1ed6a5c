"""VisionZip: dominant tokens, and the others merged to contextual ones (Yang et al., arXiv 2412.04467, section 3)."""

from dataclasses import dataclass

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, cosines, share_of, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Of the M tokens that stay all but C are dominant: those that receive the most attention in the tower, as they
    are. Of the R others in raster order every s-th is a target, the first C of them, s = max(1, R // C); each of the
    rest joins the target whose key is most like its own (cosine), and a group becomes its mean.

    In CLIP towers the attention is that of the class token; elsewhere, and here, what a token receives, the mean over
    queries. The published code makes of a group its target plus the mean of the rest, which is about twice as long as a
    token; here it is the plain mean, as in later ports. A port takes one mean query in place of all from 6,144 patches
    on, which is another score; here it is always the same. Where C is more than R / 2 all targets lie at the top.

    Args:
        ratio: share of a frame's tokens that is kept: n * ratio of n, rounded.
        zip_ratio: C is the share of M that is contextual, rounded, at least 1.
        contextual: C itself, in place of zip_ratio.
        dominant: beside contextual: M is the sum of both, in place of ratio.
        tower_block: the block of the vision tower whose attention and keys count, from the end where negative.
        tower_windows: what is done where that block attends in windows, see choosing.tower_windows.
        released: target plus mean, as in the published code.
    """

    ratio: float = share(1 / 9)
    zip_ratio: float = setting(10 / 64, above=0, most=1)
    contextual: int | None = setting(None, least=1)
    dominant: int | None = setting(None, least=0)
    tower_block: int = -1
    tower_windows: str = tower_windows()
    released: bool = False

    needs = frozenset({"tokens", "tower_keys", "tower_saliency"})

    def __post_init__(self):
        super().__post_init__()
        if self.dominant is not None and self.contextual is None:
            raise InputError(f"visionzip dominant={self.dominant}: give contextual, too")

    def kept(self, tokens: int) -> int:
        if self.dominant is not None:
            return min(tokens, self.dominant + self.contextual)
        return max(round(tokens * self.ratio), 1)

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("visionzip", "tower_keys", "tower_saliency")
        if self.contextual is None:
            contextual = share_of(view.num_kept, self.zip_ratio, nearest=True).clamp_min(1)
        else:
            contextual = view.num_kept.clamp_max(self.contextual)
        dominant = _dominant(view, view.num_kept - contextual)
        target = _targets(view.present & ~dominant, contextual)
        kept = dominant | target
        slots = torch.where(kept, kept.long().cumsum(1) - 1, -1)
        labels = torch.where(view.present & ~kept, _likest(view.tower_keys, target, slots), slots)
        representatives = (~kept).long().sort(dim=1, stable=True).indices[:, : view.most]
        used = torch.arange(view.most, device=kept.device) < view.num_kept[:, None]
        grouping = Grouping.of(labels, torch.where(used, representatives, 0))
        return TargetPlusMean(**vars(grouping)) if self.released else grouping


@dataclass(frozen=True)
class TargetPlusMean(Grouping):
    """Groups that become their representative plus the mean of the rest."""

    def apply(self, tokens: torch.Tensor) -> torch.Tensor:
        counts = self.counts[:, :, None].to(tokens.dtype)
        means, targets = super().apply(tokens), self.at_representatives(tokens)
        return torch.where(counts > 1, targets + (means * counts - targets) / (counts - 1).clamp_min(1), means)


def _dominant(view: View, count: torch.Tensor) -> torch.Tensor:
    """[F, N] bool, the tokens that receive the most. count: [F]."""
    order = best(view.tower_saliency, view, view.present.shape[1])
    first = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(first).scatter(1, order, first)


def _targets(others: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[F, N] bool, of the others [F, N] at a uniform stride the first ones. count: [F]."""
    step = torch.div(others.sum(1), count.clamp_min(1), rounding_mode="floor").clamp_min(1)[:, None]
    place = others.long().cumsum(1) - 1
    return others & (place % step == 0) & (place < step * count[:, None])


def _likest(keys: torch.Tensor, target: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[F, N] the slot of the target with the most similar key; of equal ones the first. keys: [F, N, D]."""
    alike = cosines(keys).masked_fill_(~target[:, None], -torch.inf)
    return slots.gather(1, alike.argmax(-1))
