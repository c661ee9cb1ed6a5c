"""FlashVID: keeps salient tokens, merges others along trees in time (arXiv 2602.08024, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.methods.base import Method, register, share
from ppe_npu.methods.choosing import dropped, exact, unit
from ppe_npu.methods.frames import rank_in_frame
from ppe_npu.methods.grids import Grid, at_heads, by_head
from ppe_npu.methods.grouping import Grouping
from ppe_npu.methods.peaks import density_peaks
from ppe_npu.methods.view import View
from ppe_npu.settings import setting


@register("flashvid")
@dataclass(frozen=True)
class FlashVID(Method):
    """The part of FlashVID before the decoder. (Its other part keeps, in layer 20, the 30 % of tokens to which the last
    token attends most. That is a separate step, FastV(ratio=0.3, layer=20).)

    A video is cut into segments between frames whose mean features have a cosine below segment_threshold, and further
    where the cosine is lowest, until there are min_segment_num. Of a frame's n tokens, b = ceil(n ratio expansion) are
    to stay. c = ceil(b alpha) of them are selected by max-min distance, where the distance to a token is one minus the
    cosine, times the attention that it receives (attn_div_v2: and times its mean product with all frames' mean
    features). Each other token follows the most similar token of the frame before, in the same segment, if their cosine
    is above temporal_threshold (or above a higher one that leaves b tokens per frame). A tree of such tokens becomes
    its mean, at its first token. In a segment of t frames, the trees that are left are clustered by density peaks,
    frame by frame, into (b - c) t.

    The published code averages trees wrongly (a token passes on the sum of what it has taken up, and counts as one),
    clusters a frame that is a segment by itself together with its selected tokens, may select a token twice (v2), and
    adds noise to densities. Here means are plain, selected tokens are excluded, and ties go to the lower index.

    Args:
        ratio: fraction of the tokens to keep; retention_ratio: its published name.
        expansion: the factor by which more tokens are kept before the decoder.
        alpha: fraction of a frame's budget for selected tokens.
        token_selection_method: "attn_div", or "attn_div_v2".
        temporal_threshold: smallest cosine of a token to the one that it follows.
        do_segment, segment_threshold, min_segment_num, complementary_segment: how a video is cut. Without
            complementary_segment it is cut only by the threshold, without do_segment not at all.
        released: the published averages; and centres among all tokens of a frame that is a segment by itself. (There
            the published clusters also average selected tokens, which are kept as well; here a token has one group.)
        dropped: what becomes of tokens in no group, see choosing.dropped.
    """

    ratio: float = share(0.25)
    retention_ratio: float | None = setting(None, above=0, most=1, remedy="give the kept share, in (0, 1], or null")
    expansion: float = setting(1.25, above=0)
    alpha: float = setting(0.7, above=0, most=1)
    token_selection_method: str = setting("attn_div", choices=("attn_div", "attn_div_v2"))
    temporal_threshold: float = setting(0.8, least=-1, most=1)
    do_segment: bool = True
    segment_threshold: float = setting(0.9, least=-1, most=1)
    min_segment_num: int = setting(8, least=1)
    complementary_segment: bool = True
    released: bool = False
    dropped: str = dropped()

    needs = frozenset({"tokens", "places", "tower_saliency"})
    scope, counts = "span", "late"

    def __post_init__(self):
        super().__post_init__()
        self.either("ratio", "retention_ratio")

    def kept(self, tokens: int) -> int:
        return tokens

    def kept_cells(self, cells) -> list[int]:
        """An upper bound: the budget of each frame, plus one because the number of its clusters is rounded up."""
        return [sum(min(tokens, self._budget(tokens)[0] + 1) for tokens in cells)]

    def _budget(self, tokens: int) -> tuple[int, int]:
        """How many of a frame's tokens stay, and how many of these are selected."""
        ratio = self.ratio if self.retention_ratio is None else self.retention_ratio
        budget = math.ceil(min(tokens * ratio * self.expansion, tokens))
        return budget, math.ceil(budget * self.alpha)

    def group(self, view: View) -> Grouping:
        view.require("flashvid", "tokens", "places", "tower_saliency")
        grid = Grid.of(view)
        tokens, there, received = grid.lay(view.tokens), grid.there, grid.lay(view.tower_saliency)
        sizes = there.sum(-1)
        budgets = np.array([self._budget(size) for size in range(grid.places + 1)])[sizes.cpu().numpy()]
        budget, top = torch.from_numpy(budgets).to(tokens.device).unbind(-1)
        means = tokens.sum(2) / sizes.clamp_min(1)[:, :, None]
        segment = self._segments(means, sizes)
        selected = self._selected(tokens, there, received, means, top)
        follows = self._follows(unit(tokens), there & ~selected, segment, budget, sizes)
        place = torch.arange(grid.places, device=tokens.device)
        rooted = [place.expand_as(follows[:, 0])]
        for frame in range(1, grid.frames):
            before = rooted[-1].gather(1, follows[:, frame].clamp_min(0))
            rooted.append(torch.where(follows[:, frame] >= 0, before, frame * grid.places + place))
        roots = torch.stack(rooted, dim=1).masked_fill(~there, -1)
        return self._grouping(view, grid, tokens, roots, follows, selected, segment, budget - top)

    def _segments(self, means: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """[F, T] int64, the number of each frame's segment."""
        real = sizes[:, 1:] > 0
        if not self.do_segment:
            return torch.zeros_like(sizes)
        one = unit(means)
        alike = (one[:, 1:] * one[:, :-1]).sum(-1)
        cut = real & (alike < self.segment_threshold)
        if self.complementary_segment:
            missing = self.min_segment_num - 1 - cut.sum(1, keepdim=True)
            order = alike.masked_fill(cut | ~real, torch.inf).sort(dim=1, stable=True).indices
            rank = torch.empty_like(order).scatter_(
                1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
            )
            cut = cut | (real & ~cut & (rank < missing))
        return torch.nn.functional.pad(cut.long(), (1, 0)).cumsum(1)

    def _selected(self, tokens, there, received, means, top) -> torch.Tensor:
        """[F, T, U] bool, `top` [F, T] tokens of each frame, selected by max-min distance."""
        worth = received
        if self.token_selection_method == "attn_div_v2":
            worth = worth * torch.einsum("ftuc,fc->ftu", tokens, means.sum(1) / (top > 0).sum(1)[:, None])
        one, there, worth, top = unit(tokens).flatten(0, 1), there.flatten(0, 1), worth.flatten(0, 1), top.flatten()
        with exact(one):
            away = (1 - torch.bmm(one, one.mT)) * worth[:, None]  # from each token to each
        away.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        nearest = away.masked_fill(~there[:, :, None], torch.inf).amin(1)
        nearest = nearest.masked_fill(torch.isinf(nearest), torch.finfo(nearest.dtype).max)  # a token alone
        chosen, limit = torch.zeros_like(there), torch.full_like(nearest, torch.inf)
        for step in range(int(top.max())):
            pick = nearest.masked_fill(~there | chosen, -torch.inf).argmax(1, keepdim=True)
            chosen = chosen | torch.zeros_like(chosen).scatter(1, pick, (step < top)[:, None])
            limit = torch.minimum(limit, away.gather(1, pick[:, :, None].expand(-1, 1, away.shape[2]))[:, 0])
            nearest = limit
        return chosen.view(*tokens.shape[:3])

    def _follows(self, one, free, segment, budget, sizes) -> torch.Tensor:
        """[F, T, U] int64, the place of the token that each one follows in the frame before; -1 for none."""
        frames = free.shape[1]
        likeness, anchor = (
            [torch.full_like(free[:, 0], -1.0, dtype=torch.float32)],
            [torch.zeros_like(free[:, 0]).long()],
        )
        for frame in range(1, frames):
            with exact(one):
                pairs = torch.bmm(one[:, frame], one[:, frame - 1].mT)
            both = (
                free[:, frame, :, None]
                & free[:, frame - 1, None]
                & (segment[:, frame] == segment[:, frame - 1])[:, None, None]
            )
            best = pairs.masked_fill(~both, -1.0).max(-1)
            likeness.append(best.values)
            anchor.append(best.indices)
        alike = torch.stack(likeness, dim=1)
        follows = alike > self.temporal_threshold
        if self.temporal_threshold >= 1:
            follows = torch.zeros_like(follows)
        # If a segment would keep fewer tokens than its budget, a higher threshold is used, which leaves enough.
        of_segment = torch.zeros_like(segment)
        size, least, many = (of_segment.scatter_add(1, segment, part) for part in (sizes, budget, follows.sum(-1)))
        most = (size - least).gather(1, segment)[:, :, None].expand_as(alike)
        rank = _rank_in(alike, segment)
        index = torch.where(rank == most - 1, segment[:, :, None], frames).flatten(1)  # one of each segment
        soft = alike.new_full((len(alike), frames + 1), -torch.inf).scatter(1, index, alike.flatten(1))[:, :-1]
        soft = soft.clamp_min(-1 + 1e-6).gather(1, segment)[:, :, None]
        short = (size - many < least).gather(1, segment)[:, :, None]
        follows = torch.where(short, (alike > soft) & (most > 0), follows)
        return torch.where(follows, torch.stack(anchor, dim=1), -1)

    def _grouping(self, view, grid, tokens, roots, follows, selected, segment, wanted) -> Grouping:
        ones = (roots >= 0).float()
        tree = by_head(ones, roots)
        if self.released:  # count only the tokens that a token takes up directly, not those that these have taken up
            parent = torch.arange(grid.frames, device=roots.device)[:, None] * grid.places - grid.places + follows
            tree = 1 + by_head(ones, torch.where(follows >= 0, parent, -1))
        share = ones / at_heads(tree, roots)
        flat = roots.flatten(1)
        sums = (
            torch.zeros_like(tokens)
            .flatten(1, 2)
            .scatter_add_(
                1,
                flat.clamp_min(0)[:, :, None].expand(-1, -1, tokens.shape[-1]),
                (tokens * share[..., None]).flatten(1, 2),
            )
        )
        slot = torch.arange(flat.shape[1], device=flat.device).view_as(roots[0])
        real = grid.there.any(-1)
        alone = ((segment[:, :, None] == segment[:, None]) & real[:, None]).sum(-1) == 1
        left = (roots == slot) & (~selected | (alone[:, :, None] if self.released else False))
        centre = self._clusters(sums.view_as(tokens), left, segment, wanted)
        number = torch.where(centre >= 0, slot - slot % grid.places + centre, -1).flatten(1)
        number = torch.where(selected.flatten(1), slot.flatten(), number)
        heads = torch.where(roots >= 0, at_heads(number, roots), -1)
        roots_of = at_heads(by_head(torch.where(roots == slot, 1.0, 0.0), torch.where(roots == slot, heads, -1)), heads)
        made = grid.grouping(heads, share / roots_of.clamp_min(1), summed=self.released)
        return made.with_dropped(view, self.dropped)

    def _clusters(self, tokens, left, segment, wanted) -> torch.Tensor:
        """[F, T, U] int64, the place of the centre of the cluster of each tree; -1 for none."""
        counts, others = left.sum(-1), torch.zeros_like(segment).scatter_add(1, segment, wanted).gather(1, segment)
        in_segment = torch.zeros_like(segment).scatter_add(1, segment, counts).gather(1, segment)
        counts, others, in_segment = torch.stack([counts, others, in_segment]).cpu().numpy()
        share = np.minimum(others / np.maximum(in_segment, 1), 1)
        number = torch.from_numpy(np.ceil(counts * share).astype(np.int64)).to(left.device).flatten()
        most = max(int(number.max()), 1)
        flat, widest = left.flatten(0, 1), min(most, 7)
        centers, labels = density_peaks(tokens.flatten(0, 1), flat, number, most, number.clamp_max(7), widest)
        none = (labels < 0) | (number == 0)[:, None]
        return torch.where(none, -1, centers.gather(1, labels.clamp_min(0))).view_as(left)


def _rank_in(values: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """[F, T, U] int64 rank of each value in its segment, in descending order."""
    slots = torch.zeros_like(segment).scatter_add(1, segment, torch.full_like(segment, values.shape[2]))
    labels = segment[:, :, None].expand_as(values).flatten(1)
    return rank_in_frame(values.flatten(1), labels, slots).view_as(values)
