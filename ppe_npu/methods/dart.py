"""DART: keeps the tokens that duplicate a few pivots least (Wen et al., arXiv 2502.11494, section 4)."""

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
    have the largest L1 norm, summed over heads. Each pivot chooses q tokens, those least like it (by cosine of the
    layer's input) that no pivot has chosen before. Visual pivots come first, and larger norms first, until the visual
    pivots P and the chosen tokens are M in total: q = ceil((M - |P|) / number of pivots).

    In the published code pivots choose in the order of a Python set of their places, and |P| + q * pivots tokens stay,
    with q = floor(N * ratio / pivots), which is not the number asked for. It handles one image of one sample. Here, as
    in AngelSlim's version, the order is fixed, the count is exact, and text before the image may be a pivot, too. Ties
    of norms and of cosines go to the first token.

    Args:
        ratio: fraction of the tokens to keep: round(N * ratio) of N.
        pivot_image, pivot_text: how many pivots there are, fewer where there are fewer tokens.
        released: the published order and count; keys of the layer before, which has just run; pivots only from text
            after the image; and of each prompt only the first image or video is pruned, with the tokens of the others
            treated as text. The host waits for the pivots.
        walk: the order in which pivots choose, visual ones first: "norm", in descending order of norm, or, with
            `released`, the published order; "place", in the order of the prompt, for which the host need not wait.
        dropped: what becomes of the other tokens, see choosing.dropped.
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
        """Whether text is needed: for pivots, or, with the published order, for the image's place in the prompt."""
        return self.pivot_text > 0 or (self.released and self.walk == "norm")

    def _chosen(self, view: View) -> torch.Tensor:
        """[F, most] int64, the tokens that each cell keeps."""
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
        """[F, P] int64 text pivots in the order in which they choose, and [F, P] bool, False where there are fewer."""
        norms = _norms(view.text_keys)
        there = torch.ones_like(norms, dtype=torch.bool) if view.text_valid is None else view.text_valid
        if self.released:
            there = there & view.text_after
        norms, text = norms.masked_fill(~there, -1.0).sort(dim=1, descending=True, stable=True)
        there = norms[:, : self.pivot_text] >= 0
        return self._in_turn(text[:, : self.pivot_text], there), there

    def _in_turn(self, pivots: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """[F, P] int64 pivots of one kind in the order in which they choose, given in descending order of norm; unused
        ones are last."""
        if self.walk == "norm":
            return pivots
        order = pivots.masked_fill(~used, torch.iinfo(pivots.dtype).max).argsort(dim=1, stable=True)
        return pivots.gather(1, order)

    @staticmethod
    def _walk(
        view: View, image: torch.Tensor, text: torch.Tensor, alike: torch.Tensor, used: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sort pivots in the order of a Python set of their places in the prompt, where this cell is the only image.

        Args:
            image: [F, P] and text: [F, Q], the pivots. alike: [F, N, P + Q]. used: [F, P + Q].
        """
        before = ~view.text_after if view.text_valid is None else ~view.text_after & view.text_valid
        start, size = before.sum(1, keepdim=True), view.present.sum(1, keepdim=True)
        places = torch.cat([image + start, text + size], dim=1).tolist()
        orders = []
        for row, there in zip(places, used.tolist()):
            number = {place: number for number, place in enumerate(row) if there[number]}
            listed = list(number)  # a set made from a dict is ordered differently from one made from a list
            walked = [number[place] for place in set(listed)]
            orders.append(walked + [other for other in range(len(row)) if not there[other]])
        order = torch.tensor(orders, device=used.device)
        return alike.gather(2, order[:, None].expand_as(alike)), used.gather(1, order)


def _norms(keys: torch.Tensor) -> torch.Tensor:
    """[F, N] fp32 L1 norm of keys [F, N, H, D]."""
    return keys.detach().float().abs().sum((2, 3))


def _rows(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[F, P, C] the rows `index` [F, P] of values [F, N, C]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
