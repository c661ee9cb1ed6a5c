"""For methods that compare tokens by their cosines, and choose by scores: in full fp32, and in a fixed order.

All tensors are batched over F cells of up to N tokens. Nothing here makes the host wait for a device.
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
    """A pruning method's field for what becomes of the tokens that it does not keep (Grouping.of_kept): "lend", each
    lends its position to the kept token that is most like it; "merge", its features, too; "drop", neither."""
    return setting("lend", choices=DROPPED)


def tower_windows(default: str = "refuse") -> Any:
    """A field for a block of the vision tower that attends in windows, where a method looks at attention: "refuse" it,
    for what a token receives in its window says nothing of the frame; "frame", take the attention over the whole frame
    that the block's queries and keys would make; "skip" it. Where all blocks attend in windows there is no other one to
    name, and it is "frame"."""
    return setting(default, choices=("refuse", "frame", "skip"))


@contextlib.contextmanager
def exact(tensor: torch.Tensor) -> Iterator[None]:
    """Products keep all of fp32, whatever autocast, TF32 and HF32 are set to; nothing is differentiated."""
    with torch.no_grad(), device.exact_matmul(), torch.autocast(tensor.device.type, enabled=False):
        yield


def unit(tokens: torch.Tensor) -> torch.Tensor:
    """[..., C] in fp32, at length 1; zeros stay zeros."""
    return torch.nn.functional.normalize(tokens.detach().float(), dim=-1)


def cosines(tokens: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """[F, N, K] fp32 cosine of each token [F, N, C] to each of the others [F, K, C] (None: to each of the tokens)."""
    one = unit(tokens)
    with exact(one):
        return torch.bmm(one, (one if others is None else unit(others)).transpose(1, 2))


def rounding(channels: int) -> float:
    """Probable bound of a cosine's rounding error in fp32: two cosines that are nearer are taken as equal."""
    return 2 * torch.finfo(torch.float32).eps * channels**0.5


def best(scores: torch.Tensor, view: View, count: int | None = None) -> torch.Tensor:
    """[F, count] int64, the tokens of the highest scores [F, N] first; of equal ones the first; absent ones last.

    count: view.most, the largest number that any cell keeps, if None.
    """
    scores = scores.float().masked_fill(~view.present, -torch.inf)
    return scores.sort(dim=1, descending=True, stable=True).indices[:, : view.most if count is None else count]


def row(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of values [F, N, ...] the entry index[f, 0] of each cell: [F, ...]. index: [F, 1] int64."""
    place = index.view(-1, 1, *[1] * (values.dim() - 2)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, place)[:, 0]


def share_of(counts: torch.Tensor, part: float, nearest: bool = False) -> torch.Tensor:
    """counts * part in whole numbers, [F] int64: the part of it that is whole, or the nearest (of two the even one).

    `part` is taken for the fraction that it is written as, so that no device rounds otherwise: 0.1 is a tenth.
    """
    over, under = Fraction(part).limit_denominator(10**6).as_integer_ratio()
    if not nearest:
        return counts * over // under
    twice = 2 * counts * over + under
    up = twice // (2 * under)
    return up - ((twice % (2 * under) == 0) & (up % 2 == 1)).long()


def spread(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """[F, N] fp32 brought to 0..1 in each cell; all 0 where they are equal."""
    least = values.masked_fill(~present, torch.inf).amin(1, keepdim=True)
    most = values.masked_fill(~present, -torch.inf).amax(1, keepdim=True)
    return (values - least) / (most - least).clamp_min(torch.finfo(values.dtype).tiny)


@device.uploaded_once
def floors(most: int, share: float, device: torch.device) -> torch.Tensor:
    """[most + 1] int64, floor(n * share) of each n, at least 1."""
    return torch.tensor([max(int(n * share), 1) for n in range(most + 1)], device=device)
