"""EVS, Efficient Video Sampling: keeps what differs from the previous frame (arXiv 2510.14624, section 3)."""

from dataclasses import dataclass, replace

import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import best, dropped, rounding, unit
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_NEW = 255.0  # the published code's dissimilarity of a token without an earlier one; all others are at most 2


@register("evs")
@dataclass(frozen=True)
class EVS(Method):
    """Keeps the tokens of a video with the largest dissimilarity 1 - cos(x_{t,p}, x_{t-1,p}) to the token at the same
    place one frame before; ties go to the earlier token. Tokens of the first frame take precedence over all others.

    If fewer tokens are asked for than the first frame has, the published code keeps all of that frame and nothing else.
    Here exactly the number asked for is kept: an even share of the first frame, at a uniform stride (for an image, all
    of the tokens to keep), and the rest by dissimilarity. Tokens whose place was empty one frame before are treated
    like those of the first frame. Differences within rounding error count as 0.

    Args:
        ratio: fraction of the tokens of an image or video to keep: int(n * ratio) of n.
        pruning_rate: in place of ratio, the fraction to drop, as in the published code.
        dropped: what becomes of the other tokens, see choosing.dropped.
        released: keep at least as many tokens as the first frame has, as in the published code. The number then depends
            on the video's frames, and counts as one that depends on the features.
    """

    ratio: float = share(0.5)
    pruning_rate: float | None = setting(None, least=0, below=1, remedy="give the share to drop, in [0, 1), or null")
    dropped: str = dropped()
    released: bool = False

    needs = frozenset({"tokens", "places"})
    scope = "span"

    def __post_init__(self):
        super().__post_init__()
        self.either("ratio", "pruning_rate")

    @property
    def counts(self) -> str:
        return "late" if self.released else "exact"

    def kept(self, tokens: int) -> int:
        return tokens if self.released else self._share(tokens)

    def _share(self, tokens: int) -> int:
        share = self.ratio if self.pruning_rate is None else 1 - self.pruning_rate
        return max(int(tokens * share), 1)

    def group(self, view: View) -> Grouping:
        view.require("evs", "tokens", "places")
        frame, absent = view.places[..., 0], ~view.present
        first = frame == frame.masked_fill(absent, torch.iinfo(torch.long).max).amin(1, keepdim=True)
        first, sizes = first & ~absent, view.present.sum(1)
        changed = dissimilarity(view)
        if self.released:
            shares = torch.tensor([self._share(size) for size in range(first.shape[1] + 1)], device=first.device)
            number = torch.maximum(shares[sizes], first.sum(1))
            view = replace(view, num_kept=number, most=first.shape[1])
        else:
            changed = torch.where(first & ~_even_share(first, view, frame), -1.0, changed)
        return Grouping.of_kept(view, best(changed, view), self.dropped)


def dissimilarity(view: View) -> torch.Tensor:
    """[F, N] fp32, 1 - cosine to the token at the same place one frame before, or 255 where there is none."""
    place = (view.places[..., 1] << 40) + (view.places[..., 2] << 20) + view.places[..., 0]
    place = torch.where(view.present, place, torch.iinfo(torch.long).max)
    order = place.sort(dim=1, stable=True).indices
    follows = place.gather(1, order).diff(dim=1) == 1  # the same row and column, one frame later
    tokens = unit(view.tokens)
    before, after = order[:, :-1], order[:, 1:]
    earlier = torch.zeros_like(order).scatter_(1, after, before)
    known = torch.zeros_like(view.present).scatter_(1, after, follows)
    away = 1 - (tokens * tokens.gather(1, earlier[:, :, None].expand_as(tokens))).sum(-1)
    away = torch.where(away > rounding(tokens.shape[-1]), away, 0)
    return torch.where(known, away, _NEW)


def _even_share(first: torch.Tensor, view: View, frame: torch.Tensor) -> torch.Tensor:
    """[F, N] bool, which tokens of the first frame [F, N] bool take precedence: all of them if that many are kept, else
    as many as each frame would get on average, at a uniform stride."""
    count = first.sum(1, keepdim=True)
    frames = torch.where(view.present, frame, -1).amax(1, keepdim=True) - torch.where(first, frame, 0).amax(1, True) + 1
    kept = view.num_kept[:, None]
    even = torch.minimum(torch.maximum((2 * kept + frames) // (2 * frames), torch.ones_like(kept)), count)
    even = torch.where(kept < count, even, count)
    number = first.long().cumsum(1)
    return first & (number * even // count > (number - 1) * even // count)
