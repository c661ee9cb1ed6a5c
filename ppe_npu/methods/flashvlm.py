"""FlashVLM: keeps salient tokens related to the text, and diverse others (Cai et al., arXiv 2512.20561, section 3)."""

from dataclasses import dataclass

import torch

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import cosines, dropped, share_of, tower_windows
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.thinning import important_and_diverse
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_LEAST = 1e-6


@register("flashvlm")
@dataclass(frozen=True)
class FlashVLM(Method):
    """Scores tokens by A^(1 - eta) T^eta. Of the M tokens that stay, floor(M * alpha) have the largest scores, and the
    others are thinned as in VisPruner (thinning.py).

    A is the attention that a token receives in the tower, scaled to 0..1. T is its similarity to the text: with c_l its
    cosine to text token l times |w_l| / max |w|, take the sum over l of c_l softmax_l(c_l / 0.05), then the softmax
    over the frame's tokens at temperature 0.01, to the power of 2.5, scaled to 0..1, multiplied by 0.1 if it is below
    the 99.5 % quantile, and scaled to 0..1 again. Both A and T are at least 1e-6.

    The published code for Qwen keeps 196 tokens, whatever is asked for, and reads the text before the image, where the
    question usually is not; its saliency extends across images. The one for LLaVA scales text to unit length before the
    norm is taken, so that |w_l| / max |w| is 1. Here M follows the ratio, all text of a prompt is read, and frames are
    independent.

    Args:
        ratio: fraction of a frame's tokens to keep.
        alpha: the fraction of these that is kept by score alone.
        eta: the exponent of T, that is, the influence of the text.
        gate: whether to use |w_l| / max |w|, so that text tokens of larger norm count more.
        reads: the text to use: "all", or the text "before" or "after" the frame.
        tower_block: the block of the vision tower whose attention is used; negative: counted from the end.
        tower_windows: what to do if that block attends in windows, see choosing.tower_windows.
        released: use the text before the frame, as with reads="before".
        dropped: what becomes of the other tokens, see choosing.dropped.
    """

    ratio: float = share(2 / 9)
    alpha: float = setting(0.5, least=0, most=1)
    eta: float = setting(0.5, least=0, most=1)
    gate: bool = True
    reads: str = setting("all", choices=("all", "before", "after"))
    tower_block: int = -1
    tower_windows: str = tower_windows()
    released: bool = False
    dropped: str = dropped()

    needs = frozenset({"tokens", "text", "tower_saliency"})

    def __post_init__(self):
        super().__post_init__()
        if self.released and self.reads == "after":
            raise InputError('flashvlm reads="after" with released=true, which reads the text before: leave one out')

    @torch.no_grad()
    def group(self, view: View) -> Grouping:
        view.require("flashvlm", "tokens", "tower_saliency")
        important = share_of(view.num_kept, self.alpha)
        return Grouping.of_kept(view, important_and_diverse(view, self.scores(view), important), self.dropped)

    def scores(self, view: View) -> torch.Tensor:
        """[F, N] fp32 scores A^(1 - eta) T^eta."""
        salient = _spread(view.tower_saliency.float(), view.present).clamp_min(_LEAST)
        alike = self.likeness(view).clamp_min(_LEAST)
        return torch.exp((1 - self.eta) * salient.log() + self.eta * alike.log())

    def likeness(self, view: View) -> torch.Tensor:
        """[F, N] fp32 similarity T to the text; 0 where there is no text to read."""
        present = view.present
        if view.text is None or not view.text.shape[1]:
            return torch.zeros_like(present, dtype=torch.float32)
        read = self._read(view)
        alike = cosines(view.tokens, view.text)
        if self.gate:
            norms = view.text.float().norm(dim=-1).masked_fill(~read, 0)
            alike = alike * (norms / (norms.amax(1, keepdim=True) + _LEAST))[:, None]
        alike = alike.masked_fill(~read[:, None], -torch.inf)
        some = read.any(1)[:, None]
        alike = torch.where(some[:, :, None], alike, 0)
        likest = (torch.softmax(alike / 0.05, dim=-1) * torch.where(read[:, None], alike, 0)).sum(-1)
        sharp = torch.softmax((likest / 0.01).masked_fill(~present, -torch.inf), dim=-1) ** 2.5
        spread = _spread(sharp, present)
        strong = spread >= _quantile(spread, present, 0.995)
        return torch.where(some, _spread(torch.where(strong, spread, spread * 0.1), present), 0)

    def _read(self, view: View) -> torch.Tensor:
        """[F, T] bool, which text tokens are used."""
        read = torch.ones_like(view.text[..., 0], dtype=torch.bool) if view.text_valid is None else view.text_valid
        reads = "before" if self.released else self.reads
        if reads == "all" or view.text_after is None:
            return read
        return read & (view.text_after if reads == "after" else ~view.text_after)


def _spread(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """[F, N] values scaled to 0..1 in each cell; 0 where there is no token."""
    least = values.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    most = values.masked_fill(~present, -torch.inf).amax(1, keepdim=True)
    return torch.where(present, (values - least) / (most - least + _LEAST), 0)


def _quantile(values: torch.Tensor, present: torch.Tensor, share: float) -> torch.Tensor:
    """[F, 1] quantile of each cell's values, interpolated linearly."""
    rising = values.masked_fill(~present, torch.inf).sort(dim=1).values
    place = share * (present.sum(1, keepdim=True) - 1).float()
    low = place.floor()
    below, above = (rising.gather(1, at.long()) for at in (low, place.ceil()))
    return torch.lerp(below, above, place - low)
