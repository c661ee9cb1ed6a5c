"""DART: tokens that repeat a few pivots least (Wen et al., arXiv 2502.11494, section 4)."""

import math
from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, at_layer, register, share
from ppe_npu.methods.choosing import best, cosines, dropped
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("dart")
@dataclass(frozen=True)
class DART(Method):
    """Keeps a few pivots and the tokens that are least like them. Pivots are the visual and the text tokens whose keys
    have the largest L1 norm, summed over heads. For each in turn, visual ones first, by falling norm, the q tokens
    least like it (cosine of the layer's input) are taken that were not taken before, until the visual pivots P and all
    that was taken are M: q = ceil((M - |P|) / all pivots).

    The published code walks through its pivots in the order of a Python set of their places, and keeps |P| + q pivots
    with q = floor(N * ratio / pivots), not as many as it was asked for. It looks at one image of one sample. Here, as
    in AngelSlim's form of it, the order is fixed, the count is exact, and text before the image may be a pivot, too.
    Equal norms and cosines: the first token's.

    Args:
        ratio: share of the tokens that is kept, N * ratio of N, rounded.
        pivot_image, pivot_text: how many pivots there are, fewer where there are fewer tokens.
        released: the published order and count, keys of the layer before, which has just run, and text after the image
            alone; of each prompt the first image or video alone, to which the tokens of the others are text; the host
            waits for the pivots.
        walk: in which order pivots choose, visual ones first: "norm", by falling norm, or, with `released`, the
            published one; "place", as they stand in the prompt, for which nobody waits.
        dropped: what becomes of the others, see choosing.dropped.
    """

    ratio: float = share(0.222)
    pivot_image: int = setting(4, least=1)
    pivot_text: int = setting(4, least=0)
    released: bool = False
    dropped: str = dropped()
    walk: str = setting("norm", choices=("norm", "place"))
    layer: int | tuple[int, ...] | None = at_layer(3)

    needs = frozenset({"tokens", "text", "layer_keys", "layer_text"})
    scope = "span"
    places = ("layer",)

    @property
    def layer_before(self) -> bool:
        return self.released

    @property
    def first_only(self) -> bool:
        return self.released

    def kept(self, tokens: int) -> int:
        if not self.released:
            return max(round(tokens * self.ratio), 1)
        pivots = self.pivot_image + self.pivot_text
        return min(self.pivot_image + int(tokens * self.ratio / pivots) * pivots, tokens)

    def group(self, view: View) -> Grouping:
        view.require("dart", *(["text", "text_keys"] if self._reads else []), "tokens", "layer_keys")
        return Grouping.of_kept(view, self._chosen(view), self.dropped)

    @property
    def _reads(self) -> bool:
        """Whether text is looked at: for pivots, or, as published, for where the image stands in the prompt."""
        return self.pivot_text > 0 or (self.released and self.walk == "norm")

    def _chosen(self, view: View) -> torch.Tensor:
        """[F, most] int64, what is kept of each cell."""
        present, slots = view.present, torch.arange(view.tokens.shape[1], device=view.tokens.device)
        pivots = best(_norms(view.layer_keys), view, self.pivot_image)
        image = pivots.shape[1]
        first = slots[:image] < torch.minimum(present.sum(1), view.num_kept)[:, None]
        pivots = self._in_turn(pivots, first)
        used, alike = first, cosines(view.tokens, _rows(view.tokens, pivots))
        if self._reads:
            text, there = self._text_pivots(view)
            used = torch.cat([first, there], dim=1)
            alike = torch.cat([alike, cosines(view.tokens, _rows(view.text, text))], dim=2)
            if self.released and self.walk == "norm":
                alike, used = self._walk(view, pivots, text, alike, used)
        taken = torch.zeros_like(present).scatter(1, pivots, first)
        left = view.num_kept - taken.sum(1)
        share = (left + used.sum(1) - 1) // used.sum(1)
        for number in range(alike.shape[2]):
            away = alike[:, :, number].masked_fill(taken | ~present, math.inf)
            order = away.sort(dim=1, stable=True).indices
            count = torch.minimum(share, left) * used[:, number]
            taken = taken.scatter(1, order, taken.gather(1, order) | (slots < count[:, None]))
            left = left - count
        return torch.where(taken, slots, len(slots)).sort(dim=1).values[:, : view.most]

    def _text_pivots(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """[F, P] which of the text tokens, as they choose, and whether there are so many."""
        norms = _norms(view.text_keys)
        there = torch.ones_like(norms, dtype=torch.bool) if view.text_valid is None else view.text_valid
        if self.released:
            there = there & view.text_after
        norms, text = norms.masked_fill(~there, -1.0).sort(dim=1, descending=True, stable=True)
        there = norms[:, : self.pivot_text] >= 0
        return self._in_turn(text[:, : self.pivot_text], there), there

    def _in_turn(self, pivots: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """[F, P] pivots of one kind, given by falling norm, in the order in which they choose; those that are not used
        are the last."""
        if self.walk == "norm":
            return pivots
        order = pivots.masked_fill(~used, torch.iinfo(pivots.dtype).max).argsort(dim=1, stable=True)
        return pivots.gather(1, order)

    @staticmethod
    def _walk(
        view: View, image: torch.Tensor, text: torch.Tensor, alike: torch.Tensor, used: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pivots in the order of a Python set of their places in the prompt, of which this cell is the only image.

        Args:
            image: [F, P] and text: [F, Q], the pivots. alike: [F, N, P + Q]. used: [F, P + Q].
        """
        before = ~view.text_after if view.text_valid is None else ~view.text_after & view.text_valid
        start, size = before.sum(1, keepdim=True), view.present.sum(1, keepdim=True)
        places = torch.cat([image + start, text + size], dim=1).tolist()
        orders = []
        for row, there in zip(places, used.tolist()):
            number = {place: number for number, place in enumerate(row) if there[number]}
            listed = list(number)  # a set that is made of a dict is another table, in another order
            walked = [number[place] for place in set(listed)]
            orders.append(walked + [other for other in range(len(row)) if not there[other]])
        order = torch.tensor(orders, device=used.device)
        return alike.gather(2, order[:, None].expand_as(alike)), used.gather(1, order)


def _norms(keys: torch.Tensor) -> torch.Tensor:
    """[F, N] fp32 L1 norm of keys [F, N, H, D]."""
    return keys.detach().float().abs().sum((2, 3))


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[F, N, C] and [F, P] -> [F, P, C]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
