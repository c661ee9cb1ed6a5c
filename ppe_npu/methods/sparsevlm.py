"""SparseVLM: keeps tokens that words about the picture attend to (Zhang et al., arXiv 2410.04417, section 3)."""

from dataclasses import dataclass

import torch

from ppe_npu.methods.base import Method, at_layer, register, share
from ppe_npu.methods.choosing import best, dropped, exact, floors
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.peaks import density_peaks
from ppe_npu.methods.view import View

_SCORES_AT_ONCE = 2**24


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(Method):
    """Keeps the tokens that raters attend to, and clusters some others.

    Raters are those text tokens t after the image for which the mean over visual tokens v of softmax_t(v . t), of
    hidden states, is above its mean over t. A visual token's score is the attention that raters pay to it in the layer,
    softmax(q k / sqrt(d)) over the prompt before each rater, the mean over heads and raters. The K best stay as they
    are. Of the N - K others the floor(0.3 (N - K)) + 1 best, say R, are clustered into floor(R / 10) + 1 clusters
    (DPC-KNN with as many neighbours), and each cluster becomes its mean. K is such that M tokens stay in all.

    The published code clusters the layer's output, which does not exist yet on entry to the layer; here its input is
    clustered. That code has budgets for 576 tokens only, adds the clusters to them, puts the clusters after all other
    tokens, renumbers what stays, and breaks ties by noise. Here the count is exact, tokens stay in raster order, and
    ties go to the first token. Attention is over this image or video and the text, without the prompt's other images.

    Args:
        ratio: fraction of the tokens to keep in each stage: floor(N * ratio) of N.
        dropped: what becomes of the other tokens, see choosing.dropped.
        released: K is floor(N * ratio), at most N - 1, and the clusters are added to it, as published.
        layer: the decoder layers on entry of which it runs; the defaults are published for 32 layers.
    """

    ratio: float = share(0.5)
    dropped: str = dropped()
    released: bool = False
    layer: int | tuple[int, ...] | None = at_layer((2, 6, 15))

    needs = frozenset({"tokens", "text", "layer_keys", "layer_text"})
    scope = "span"
    places = ("layer",)

    def kept(self, tokens: int) -> int:
        number = max(int(tokens * self.ratio), 1)
        if not self.released:
            return number
        whole = min(number, tokens - 1)
        return whole + _recycled(tokens - whole) // 10 + 1

    def group(self, view: View) -> Grouping:
        view.require("sparsevlm", "tokens", "text", "layer_keys", "text_queries", "text_keys")
        length = view.tokens.shape[1]
        asked = floors(length, self.ratio, view.tokens.device).gather(0, view.present.sum(1)) if self.released else None
        order, (whole, recycled) = best(rated(view), view, length), split(view, asked)
        slots = torch.arange(length, device=order.device)
        widest, most_left = _most(length, view.least - self.released)
        # The recycled tokens are those next in score after the whole ones; here in raster order, `length` if absent.
        at = slots[:widest]
        there = at < recycled[:, None]
        some = order.gather(1, (whole[:, None] + at).clamp_max(length - 1))
        some = torch.where(there, some, length).sort(dim=1).values
        inside = view.tokens.gather(1, some.clamp_max(length - 1)[:, :, None].expand(-1, -1, view.tokens.shape[-1]))
        clusters, most = view.num_kept - whole, widest // 10 + 1
        centers, labels = density_peaks(inside, there, clusters, most, clusters, most)
        centers = torch.where(slots[:most] < clusters[:, None], some.gather(1, centers), length)
        kept = torch.zeros(len(order), length + 1, dtype=torch.bool, device=order.device)
        kept = kept.scatter(1, order, slots < whole[:, None]).scatter(1, centers, True)
        group = kept.long().cumsum(1) - 1
        of_some = group.gather(1, centers.gather(1, labels.clamp_min(0)))
        labels = torch.where(kept, group, -1).scatter(1, some, of_some)[:, :-1]
        heads = torch.where(kept[:, :-1], slots, length).sort(dim=1).values[:, : view.most]
        made = Grouping.of(labels, torch.where(slots[: view.most] < view.num_kept[:, None], heads, 0))
        return made.with_dropped(view, self.dropped, most_left)


def _most(length: int, least: int) -> tuple[int, int]:
    """Upper bounds on how many tokens of a cell are clustered and how many are left out, if cells have at most `length`
    tokens and keep at least `least`. Both numbers are largest for the most tokens and the fewest kept."""
    whole = least
    while 0 < whole < length and whole + _recycled(length - whole) // 10 + 1 > least:
        whole -= 1
    left = length - whole
    return max(_recycled(left), 1), left - _recycled(left)


def _recycled(left: int) -> int:
    return 3 * left // 10 + 1 if left > 0 else 0


def split(view: View, asked: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """[F] int64, how many tokens stay as they are, and [F] int64, how many are clustered into the rest of num_kept. As
    many as possible stay as they are; or `asked` [F] (at most all but one), where that gives the same total."""
    present = view.present.sum(1)
    whole = torch.arange(view.present.shape[1] + 1, device=present.device)
    left = present[:, None] - whole
    recycled = torch.where(left > 0, 3 * left // 10 + 1, 0)
    total = whole + torch.where(left > 0, recycled // 10 + 1, 0)
    fits = (total <= view.num_kept[:, None]) & (left >= 0)
    most = torch.where(fits, whole, 0).amax(1)
    if asked is not None:
        asked = torch.minimum(asked, present - 1)
        most = torch.where(total.gather(1, asked[:, None])[:, 0] == view.num_kept, asked, most)
    return most, recycled.gather(1, most[:, None])[:, 0]


def rated(view: View) -> torch.Tensor:
    """[F, N] fp32 attention that the raters pay to each token, the mean over heads and raters."""
    count = min(part.shape[1] for part in (view.text, view.text_queries, view.text_keys))
    scores = torch.zeros(view.present.shape, device=view.tokens.device)
    if count == 0:
        return scores
    with exact(view.tokens):
        chosen = raters(view)[:, -count:]
        weights = chosen.float() / chosen.sum(1, keepdim=True)
        heads, groups = view.text_queries.shape[2], view.layer_keys.shape[2]
        keys = torch.cat([view.layer_keys, view.text_keys], dim=1).float().permute(0, 2, 3, 1)  # [F, K, D, N + T]
        length, texts = view.present.shape[1], view.text_keys.shape[1]
        hidden = ~torch.cat([view.present, _valid(view, view.text_keys)], dim=1)[:, None]
        place, step = torch.arange(texts, device=keys.device), max(1, _SCORES_AT_ONCE // (heads * hidden.numel()))
        queries = view.text_queries[:, -count:].float() * view.text_queries.shape[-1] ** -0.5
        for at in range(0, count, step):
            part = queries[:, at : at + step].unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)  # [F, K, G, n, D]
            later = place > place[texts - count :][at : at + step, None]  # a rater attends to text up to itself
            later = torch.cat([later.new_zeros(len(later), length), later], dim=1)
            # One product for all rows of a key head, and one sum over all heads: neither keys nor rows are copied.
            rows = torch.matmul(part.flatten(2, 3), keys).view(len(keys), heads, len(later), -1)
            rows = rows.masked_fill_((hidden | later)[:, None], -torch.inf).softmax(-1).flatten(1, 2)
            part = (weights[:, at : at + step] / heads).repeat(1, heads)
            scores = scores + torch.bmm(part[:, None], rows)[:, 0, :length]
    return scores.nan_to_num(0)  # a prompt without any text has no raters


def raters(view: View) -> torch.Tensor:
    """[F, T] bool, which text tokens are raters: those after the image that are more like it than the average one."""
    valid, text = _valid(view, view.text), view.text.float().mT
    after = valid if view.text_after is None else valid & view.text_after[:, -text.shape[-1] :]
    asked = torch.where(after.any(1, keepdim=True), after, valid)  # all text if none comes after the image
    step = max(1, _SCORES_AT_ONCE // max(1, asked.numel()))
    sums = torch.zeros_like(asked, dtype=torch.float32)
    for at in range(0, view.tokens.shape[1], step):
        alike = torch.bmm(view.tokens[:, at : at + step].float(), text).masked_fill(~asked[:, None], -torch.inf)
        sums = sums + (alike.softmax(-1) * view.present[:, at : at + step, None]).sum(1)
    mean = sums.sum(1, keepdim=True) / asked.sum(1, keepdim=True)
    above = asked & (sums > mean)
    return torch.where(above.any(1, keepdim=True), above, asked)


def _valid(view: View, values: torch.Tensor) -> torch.Tensor:
    """[F, T] bool, where there is a text token. values: [F, T, ...] of all text tokens, or of the last ones."""
    if view.text_valid is not None:
        return view.text_valid[:, -values.shape[1] :]
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
