"""PACT: prunes unimportant tokens, clusters the others by their keys (Dhouib et al., arXiv 2504.08966, section 3)."""

from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, at_layer, register
from ppe_npu.methods.choosing import DROPPED, best, exact, floors, row, unit
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.view import View
from ppe_npu.settings import setting

_DISTANCES_AT_ONCE = 2**24
_STEPS_UNASKED = 32
_REMEMBERED = 2**13  # the most tokens of a cell for which the [W, W] mask of close pairs is stored


@register("pact")
@dataclass(frozen=True)
class PACT(Method):
    """Prunes by importance (EUTI), then clusters by distance-bounded density peaks (DBDPC).

    EUTI: with q the mean query of the visual tokens, head by head, a token's score is |h_i| times the mean over heads
    of softmax_i(q k_i / sqrt(d)), with queries and keys before their rotary embedding; the floor(N keep) best stay.
    DBDPC uses the keys of these tokens after their rotary embedding: with d_ij one minus the cosine over all heads at
    once, the density of i is sum_j exp(-(d_ij / dc)^2). In descending order of density a token becomes a centre if it
    is farther than the cutoff from all centres so far. Every other token joins the nearest centre, and so do the tokens
    that EUTI pruned, if they are within coef_pruned times the cutoff. A group becomes its mean.

    The number of centres depends on the features. With a ratio it is fixed: the first M centres, or, if there are
    fewer, the densest of the other tokens in addition. Ties of densities go to the first token. The published EUTI
    takes the mean query and the softmax over the text before the image as well, and computes in fp16.

    Args:
        ratio: fraction of the tokens to keep: ceil(N * ratio) of N; null: as many as the cutoff makes centres.
        keep: fraction of the tokens that stay after EUTI.
        cutoff: the largest distance from a centre to a token that is not one. The authors' script for Qwen2-VL uses
            0.1, and keep 0.8.
        coef_pruned: the factor by which tokens that EUTI pruned may be farther from a centre.
        dc: scale of distances in a density.
        released: EUTI includes the text before the image, if there is any.
        dropped: what becomes of tokens that are farther away; the published code drops them ("drop").
    """

    ratio: float | None = setting(0.3, above=0, most=1, remedy="give the kept share, in (0, 1], or null")
    keep: float = setting(0.55, above=0, most=1)
    cutoff: float = setting(0.21, above=0)
    coef_pruned: float = setting(1.5, least=0)
    dc: float = setting(2.0, above=0)
    released: bool = False
    dropped: str = setting("drop", choices=DROPPED)
    layer: int | tuple[int, ...] | None = at_layer(4)

    scope = "span"
    places = ("layer",)

    @property
    def needs(self) -> frozenset[str]:
        euti = {"layer_plain"} if self.keep < 1 else set()
        return frozenset({"tokens", "layer_keys", *euti, *(["layer_text"] if self.released and euti else [])})

    @property
    def counts(self) -> str:
        return "late" if self.ratio is None else "exact"

    def kept(self, tokens: int) -> int:
        return tokens if self.ratio is None else super().kept(tokens)

    def group(self, view: View) -> Grouping:
        view.require("pact", "tokens", "layer_keys")
        keys = unit(view.layer_keys.flatten(2))
        stays = view.present if self.keep == 1 else self._important(view)
        with exact(keys):
            some, there = self._some(view, stays)
            own = keys.gather(1, some[:, :, None].expand(-1, -1, keys.shape[-1]))
            rank, close = self._rank(own, there)
            found, number = self._centers(own, there, rank, close, view)
            centers = torch.cat([some, some.new_full((len(some), 1), stays.shape[1])], dim=1).gather(1, found)
            return self._grouping(keys, stays, centers, number, view)

    def _some(self, view: View, stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[F, W] int64, the tokens that stay, in raster order, and [F, W] bool, False where there are fewer. W is an
        upper bound that the host knows."""
        length = stays.shape[1]
        least = 1 if self.ratio is None else view.most
        most = length if self.keep == 1 else min(max(int(length * self.keep), least), length)
        place = torch.arange(length, device=stays.device)
        some = torch.where(stays, place, length).sort(dim=1).values[:, :most]
        return some.clamp_max(length - 1), some < length

    def _important(self, view: View) -> torch.Tensor:
        """[F, N] bool, the tokens that stay after EUTI; at least num_kept of each cell."""
        length = view.present.shape[1]
        count = floors(length, self.keep, view.tokens.device).gather(0, view.present.sum(1))
        if self.ratio is not None:
            count = torch.maximum(count, view.num_kept)
        order = best(importance(view, self.released), view, length)
        slots = torch.arange(length, device=order.device)
        return torch.zeros_like(view.present).scatter(1, order, slots < count[:, None])

    def _rank(self, keys: torch.Tensor, stays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[F, W] int64 rank of each token by descending density among those that stay, with the others last; and
        [F, W, W] bool, which pairs are within the cutoff, or None for more than _REMEMBERED tokens."""
        step, parts, close = max(1, _DISTANCES_AT_ONCE // max(1, stays.numel())), [], []
        for part in keys.split(step, dim=1):
            away = 1 - torch.bmm(part, keys.mT)
            close.append(away <= self.cutoff if stays.shape[1] <= _REMEMBERED else None)
            near = (away / self.dc).square().neg_().exp_()
            parts.append((near * stays[:, None]).sum(-1))
        order = torch.cat(parts, dim=1).masked_fill(~stays, -1.0).sort(dim=1, descending=True, stable=True).indices
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        return rank, torch.cat(close, dim=1) if stays.shape[1] <= _REMEMBERED else None

    def _centers(
        self, keys: torch.Tensor, stays: torch.Tensor, rank: torch.Tensor, close: torch.Tensor | None, view: View
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[F, M] int64 centres in raster order, W where a cell has fewer; and [F] int64, how many it has."""
        length, found, late = stays.shape[1], [], self.ratio is None
        # The smallest value is the next centre: first tokens far from all centres, by rank, then others that stay.
        closed = rank + length
        left = torch.where(stays, rank, closed + length)
        number = torch.zeros_like(view.num_kept) if late else view.num_kept
        for step in range(view.most):
            if late:
                more = (left < length).any(1) & (number < view.num_kept)
                if step % _STEPS_UNASKED == 0 and not more.any():
                    break
                number = number + more
            center = left.argmin(1, keepdim=True)
            if close is None:
                near = 1 - torch.bmm(keys, row(keys, center)[:, :, None])[:, :, 0] <= self.cutoff
            else:
                near = row(close, center)
            left = torch.maximum(left, closed * near).scatter_(1, center, 4 * length)
            found.append(center)
        centers = torch.cat(found, dim=1)[:, : int(number.max()) if late else None]
        slots = torch.arange(centers.shape[1], device=centers.device)
        return torch.where(slots < number[:, None], centers, length).sort(dim=1).values, number

    def _grouping(
        self, keys: torch.Tensor, stays: torch.Tensor, centers: torch.Tensor, number: torch.Tensor, view: View
    ) -> Grouping:
        slots = torch.arange(centers.shape[1], device=centers.device)
        unused = slots >= number[:, None]
        representatives = centers.masked_fill(unused, 0)
        those = keys.gather(1, representatives[:, :, None].expand(-1, -1, keys.shape[-1])).mT
        step, labels, alike = max(1, _DISTANCES_AT_ONCE // max(1, centers.numel())), [], []
        for part in keys.split(step, dim=1):
            nearest = torch.bmm(part, those).masked_fill(unused[:, None], -2.0).max(-1)
            labels.append(nearest.indices)
            alike.append(nearest.values)
        heard = stays | (1 - torch.cat(alike, dim=1) <= self.coef_pruned * self.cutoff)
        spare = torch.zeros_like(centers[:, :1])
        label = torch.cat([*labels, spare], dim=1).scatter(1, centers, slots.expand_as(centers))[:, :-1]
        joins = view.present & heard if self.dropped == "drop" else view.present
        return Grouping.of(torch.where(joins, label, -1), representatives, heard if self.dropped == "lend" else None)


def importance(view: View, with_text: bool = False) -> torch.Tensor:
    """[F, N] fp32 EUTI score of each token. with_text: include the text before the image."""
    view.require("pact", "layer_plain_queries", "layer_plain_keys")
    queries, keys, there = view.layer_plain_queries, view.layer_plain_keys, view.present
    if with_text and view.text_plain_queries is not None:
        before = ~view.text_after if view.text_valid is None else ~view.text_after & view.text_valid
        queries = torch.cat([queries, view.text_plain_queries], dim=1)
        keys, there = torch.cat([keys, view.text_plain_keys], dim=1), torch.cat([there, before], dim=1)
    with exact(keys):
        mean = (queries.float() * there[:, :, None, None]).sum(1) / there.sum(1)[:, None, None]
        mean = mean.unflatten(1, (keys.shape[2], -1)) * mean.shape[-1] ** -0.5  # [F, K, G, D]
        scores = torch.matmul(mean, keys.float().permute(0, 2, 3, 1)).masked_fill(~there[:, None, None], -torch.inf)
        attention = scores.softmax(-1).mean((1, 2))[:, : view.present.shape[1]]
        return attention * view.tokens.float().norm(dim=-1)
