"""Helpers for methods that compare tokens by cosine and choose them by score, in full fp32 and in a fixed order.

All tensors are batched over F cells of up to N tokens. None of these functions makes the host wait for a device.
"""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch

from ppe_npu.backends import device
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

DROPPED = ("lend", "merge", "drop")


def dropped() -> Any:
    """A pruning method's field for the tokens that it does not keep (see Grouping.of_kept): "lend", each lends its
    position to the kept token that is most like it; "merge", it lends its features, too; "drop", neither."""
    return setting("lend", choices=DROPPED)


def tower_windows(default: str = "refuse") -> Any:
    """A field for methods that look at attention in the vision tower, for blocks that attend in windows: "refuse" them,
    because the attention that a token receives in its window says nothing about the frame; "frame", compute attention
    over the whole frame from the block's queries and keys; "skip" them. If all blocks attend in windows, "frame" is
    used whatever is set."""
    return setting(default, choices=("refuse", "frame", "skip"))


@contextlib.contextmanager
def exact(tensor: torch.Tensor) -> Iterator[None]:
    """Compute matrix products in full fp32, whatever autocast, TF32 and HF32 are set to, and without gradients."""
    with torch.no_grad(), device.exact_matmul(), torch.autocast(tensor.device.type, enabled=False):
        yield


def unit(tokens: torch.Tensor) -> torch.Tensor:
    """[..., C] fp32 tokens scaled to length 1; zeros stay zeros."""
    return torch.nn.functional.normalize(tokens.detach().float(), dim=-1)


def cosines(tokens: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """[F, N, K] fp32 cosine of each token [F, N, C] to each of the others [F, K, C] (None: to each of the tokens, the
    same for a pair in both orders, which a product is only up to rounding)."""
    one = unit(tokens)
    with exact(one):
        alike = torch.bmm(one, (one if others is None else unit(others)).mT)
    return alike if others is not None else torch.maximum(alike, alike.mT)


def rounding(channels: int) -> float:
    """A probable bound on a cosine's rounding error in fp32; cosines that differ by less are taken as equal."""
    return 2 * torch.finfo(torch.float32).eps * channels**0.5


def best(scores: torch.Tensor, view: View, count: int | None = None) -> torch.Tensor:
    """[F, count] int64 tokens in descending order of scores [F, N]; ties go to the first, and absent tokens come last.

    count: if None, view.most, the largest number that any cell keeps.
    """
    scores = scores.float().masked_fill(~view.present, -torch.inf)
    return scores.sort(dim=1, descending=True, stable=True).indices[:, : view.most if count is None else count]


def row(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[F, ...] values[f, index[f, 0]] of each cell f, from values [F, N, ...] and index [F, 1] int64."""
    place = index.view(-1, 1, *[1] * (values.dim() - 2)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, place)[:, 0]


def share_of(counts: torch.Tensor, part: float, nearest: bool = False) -> torch.Tensor:
    """[F] int64, counts * part rounded down, or if `nearest` to the nearest integer (ties to even).

    `part` is taken as a fraction with a denominator of at most a million (0.1 is a tenth): all devices round alike.
    """
    over, under = Fraction(part).limit_denominator(10**6).as_integer_ratio()
    if not nearest:
        return counts * over // under
    twice = 2 * counts * over + under
    up = twice // (2 * under)
    return up - ((twice % (2 * under) == 0) & (up % 2 == 1)).long()


def spread(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """[F, N] fp32 values scaled to 0..1 in each cell; all 0 where they are equal."""
    least = values.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    most = values.masked_fill(~present, -torch.inf).amax(1, keepdim=True)
    return (values - least) / (most - least).clamp_min(torch.finfo(values.dtype).tiny)


@device.uploaded_once
def floors(most: int, share: float, device: torch.device) -> torch.Tensor:
    """[most + 1] int64, max(floor(n * share), 1) for n = 0..most."""
    return torch.tensor([max(int(n * share), 1) for n in range(most + 1)], device=device)
