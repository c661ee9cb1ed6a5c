"""Selection of important tokens and of diverse ones among the others, shared by VisPruner and FlashVLM."""

from collections.abc import Iterator

import torch

from ppe_npu.methods.choosing import best, cosines
from ppe_npu.methods.view import View

_AT_ONCE = 8


@torch.no_grad()
def important_and_diverse(view: View, scores: torch.Tensor, important: torch.Tensor) -> torch.Tensor:
    """The most important tokens, and those of the others that remain after similar ones are removed.

    The others start in descending order of score. In each step every token at an even place is compared with all tokens
    at odd places, and the 8 even ones with the largest best cosine are removed (fewer if fewer are to go). The next
    order is the remaining even ones, in descending order of that cosine, followed by the odd ones in their old order.

    Args:
        scores: [F, N]. important: [F] int64, how many tokens of each cell are kept by score alone.

    Returns:
        [F, most] int64, the kept tokens of each cell, ascending; entries beyond num_kept are to be ignored.
    """
    cells, count = view.present.shape
    alike, order = cosines(view.tokens), best(scores, view, count)
    slots = torch.arange(count, device=order.device).expand(cells, -1)
    others = order.gather(1, (slots + important[:, None]).clamp_max(count - 1))
    left, wanted = view.present.sum(1) - important, view.num_kept - important
    for most in _most_left(count, view.most):
        others, left = _thinned(alike, others, left, wanted)
        others = others[:, :most]
    kept = torch.zeros(cells, count + 1, dtype=torch.bool, device=order.device)
    kept.scatter_(1, torch.where(slots < important[:, None], order, count), True)
    kept.scatter_(1, torch.where(slots[:, : others.shape[1]] < wanted[:, None], others, count), True)
    return kept[:, :-1].long().sort(dim=1, descending=True, stable=True).indices[:, : view.most]


def _most_left(count: int, wanted: int) -> Iterator[int]:
    """Yield an upper bound on the tokens left after each step, from `count`, if at most `wanted` are to be left.

    The host does not know how few tokens a cell is to keep, so there are as many steps as it takes to reach one.
    """
    fewest, most = count, count
    while fewest > 1:
        fewest -= min(_AT_ONCE, fewest - 1, (fewest + 1) // 2)
        most -= min(_AT_ONCE, max(most - wanted, 0), (most + 1) // 2)
        yield most


def _thinned(
    alike: torch.Tensor, others: torch.Tensor, left: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of thinning. alike: [F, N, N] cosines; others: [F, R] tokens, the first `left` [F] of which remain."""
    count = alike.shape[1]
    even, odd = others[:, ::2], others[:, 1::2]
    if not odd.shape[1]:
        return others, left
    evens, odds = (left + 1) // 2, left // 2
    going = torch.minimum((left - wanted).clamp(0, _AT_ONCE), evens)
    slots = torch.arange(others.shape[1], device=others.device)
    there = slots[: odd.shape[1]] < odds[:, None]
    held_against = torch.zeros(len(others), count + 1, dtype=torch.bool, device=others.device)
    held_against = held_against.scatter_(1, torch.where(there, odd, count), True)[:, :-1]
    rows = alike.gather(1, even[:, :, None].expand(-1, -1, alike.shape[-1]))
    likest = rows.masked_fill_(~held_against[:, None], -2.0).amax(-1)
    likest = likest.masked_fill_(slots[: even.shape[1]] >= evens[:, None], -torch.inf)
    even = even.gather(1, likest.sort(dim=1, descending=True, stable=True).indices)
    # The even ones without the first `going`, then the odd ones.
    rest = (evens - going)[:, None]
    from_even = even.gather(1, (slots + going[:, None]).clamp_max(even.shape[1] - 1))
    from_odd = odd.gather(1, (slots - rest).clamp(0, odd.shape[1] - 1))
    thinned = torch.where(slots < rest, from_even, from_odd)
    return torch.where((going > 0)[:, None], thinned, others), left - going
