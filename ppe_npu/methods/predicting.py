"""Prediction of a picture's cells from neighbouring cells, for methods at the pixels.

A picture is H x W cells, flattened in raster order to N rows of D pixel values, [N, D] fp32. Whatever can be computed
for all cells at once runs on the device that holds the cells, without waiting for the host. Walks, components and draws
run on the host, which reads their inputs once per picture. No global random generator is used or seeded.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ppe_npu.backends import device
from ppe_npu.errors import InputError

_AT_ONCE = 2**17  # values compared at once on the host: as many as fit a core's cache
_AT_ONCE_ELSEWHERE = 2**26
_SIEVE = 64  # number of values of a cell that are compared first


class Cells:
    """The cells of one picture. Two cells are alike if their distance, in fp32, is at most a threshold.

    On the host, most unlike pairs are recognized by a few of their values, since the largest difference of some values
    is a lower bound on that of all; only the other pairs are compared in full.

    Args:
        values: [N, D] fp32. width: number of cells in a row.
        metric: "max", "mae" or "rmse" of the differences. threshold: at 0 only equal cells are alike.
        errors: whether distances above the threshold must be exact, too.

    Raises:
        InputError: on the host, if the values that are compared first are not finite. A cell with other values that are
            not finite is like no other cell. On a device nothing is checked, because the host would have to wait.
    """

    def __init__(self, values: torch.Tensor, width: int, metric: str, threshold: float, errors: bool):
        self.values, self.width, self.threshold = values, width, threshold
        self.metric = metric if threshold > 0 or errors else "max"  # at 0 all metrics agree on which cells are alike
        self.numbers = torch.arange(len(values), device=values.device)
        self.height, self.on_host = len(values) // width, device.on_cpu(values.device)
        sieved = self.on_host and self.metric == "max" and not errors and values.shape[1] >= 4 * _SIEVE
        self._few = values[:, :: values.shape[1] // _SIEVE].contiguous() if sieved else None
        looked = values if self._few is None else self._few
        if self.on_host and not looked.sum().isfinite() and not looked.isfinite().all():
            raise InputError("cells hold NaN or infinite values: give pixel values in [0, 1]")

    def __len__(self) -> int:
        return len(self.values)

    def apart(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """[n] fp32 distances between cells one[i] and other[i]; both are [n] int64 indices."""
        if not self.on_host:
            return self._distances(one, other)
        away = self.values.new_zeros(len(one))
        left = (one != other).nonzero()[:, 0]
        if self._few is not None:
            few = self._few.index_select(0, one[left]).sub_(self._few.index_select(0, other[left]))
            away[left] = few.abs_().amax(-1)
            left = left[away[left] <= self.threshold]
        away[left] = self._distances(one[left], other[left])
        return away

    def alike(self, away: torch.Tensor) -> torch.Tensor:
        """Whether cells at the distances `away` are alike."""
        return away <= self.threshold

    def _distances(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        step = max((_AT_ONCE if self.on_host else _AT_ONCE_ELSEWHERE) // self.values.shape[1], 1)
        parts = [self._distance(*pair) for pair in zip(one.split(step), other.split(step))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _distance(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        away = self.values.index_select(0, one).sub_(self.values.index_select(0, other)).abs_()
        if self.metric == "max":
            return away.amax(-1)
        if self.threshold > 0:
            return self._mean(away)
        # A difference that underflows in the mean must still count as one.
        differ = away.amax(-1) > 0
        return self._mean(away).clamp_min(torch.finfo(away.dtype).tiny * differ)

    def _mean(self, away: torch.Tensor) -> torch.Tensor:
        return away.mean(-1) if self.metric == "mae" else away.pow_(2).mean(-1).sqrt_()


@dataclass(frozen=True)
class Prediction:
    """A predictor's result for the N cells of a picture.

    Args:
        kept: [N] bool, True for cells that no other cell predicts.
        error: [N] fp32, distance of each cell to its prediction; inf where there is none.
        leans: a function of the kept cells [N] bool. It returns [N] int64, the cell that predicts each of the others;
            chains of predictions end in kept cells.
    """

    kept: torch.Tensor
    error: torch.Tensor
    leans: Callable[[torch.Tensor], torch.Tensor]

    def limited(self, least: int, most: int) -> torch.Tensor:
        """[N] bool, which cells are kept if there must be at least `least` and at most `most`: first those in `kept`,
        then the others; within each, those of larger error first; ties in raster order."""
        order = self.error.sort(descending=True, stable=True).indices
        order = order[self.kept[order].int().sort(descending=True, stable=True).indices]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return rank < self.kept.sum().clamp(least, most)


def sources(leans_on: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[N] int64, the kept cell in which each cell's chain of predictions ends."""
    cells = torch.arange(len(kept), device=kept.device)
    source = torch.where(kept, cells, leans_on)
    for _ in range(len(kept).bit_length()):
        source = source[source]
    return source


def neighbour_distances(cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """[H, W] distances to the cell on the left, and [H, W] to the one above; inf where there is none."""
    left, up = cells.values.new_full((2, len(cells)), torch.inf)
    inner, lower = cells.numbers.view(-1, cells.width)[:, 1:].flatten(), cells.numbers[cells.width :]
    left[inner] = cells.apart(inner, inner - 1)
    up[lower] = cells.apart(lower, lower - cells.width)
    return left.view(-1, cells.width), up.view(-1, cells.width)


def pred_2d(cells: Cells, anchored: bool) -> Prediction:
    """Predict each cell from the left, or from above in the first column and where the cell diagonally between is like
    the left one but not like the upper one, which indicates an edge that runs down (LOCO-I; PixelPrune, section 3).

    Args:
        anchored: compare with predicted values instead of cells, so that errors do not add up along a chain.
    """
    if anchored and cells.threshold > 0:
        leans_on, error = _wavefront(cells)
        return Prediction(~cells.alike(error), error, lambda kept: leans_on)
    left, up = neighbour_distances(cells)
    from_above = torch.zeros_like(left, dtype=torch.bool)
    from_above[1:, 0] = True
    from_above[1:, 1:] = cells.alike(up[1:, :-1]) & ~cells.alike(left[:-1, 1:])
    error = torch.where(from_above, up, left).flatten()
    leans_on = cells.numbers - torch.where(from_above.flatten(), cells.width, 1)
    return Prediction(~cells.alike(error), error, lambda kept: leans_on.clamp_min(0))


def _wavefront(cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] int64, the cell that predicts each one, and [N] fp32 errors. Anti-diagonals are computed one after the other,
    because a cell depends on earlier ones only. In place of a predicted cell its anchor, whose pixels it gets, is
    compared."""
    height, width = cells.height, cells.width
    walk = (cells.numbers // width + cells.numbers % width).sort(stable=True).indices
    sizes = [min(height - 1, at) - max(0, at - width + 1) + 1 for at in range(height + width - 1)]
    anchor, leans_on = cells.numbers.clone(), torch.zeros_like(cells.numbers)
    error = cells.values.new_full((len(cells),), torch.inf)
    for number, here in enumerate(walk.split(sizes)[1:], start=1):
        # A diagonal may start in the first row and end in the first column, where cells have one neighbour only.
        begin, end = int(number < width), len(here) - int(number < height)
        above = torch.zeros_like(here, dtype=torch.bool)
        above[end:] = True
        inner = here[begin:end]
        above[begin:end] = _edge_runs_down(cells, *(anchor[inner - back] for back in (1, width, width + 1)))
        predicted = here - torch.where(above, width, 1)
        away = cells.apart(here, anchor[predicted])
        error[here], leans_on[here] = away, predicted
        anchor[here] = torch.where(cells.alike(away), anchor[predicted], here)
    return leans_on, error


def _edge_runs_down(cells: Cells, left: torch.Tensor, up: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    """[n] bool, whether the cells `between` are like the cells `left` but not like the cells `up`; all are indices."""
    alike = cells.alike(cells.apart(between, left))
    if not cells.on_host:  # reading how many are left would cost more than comparing all
        return alike & ~cells.alike(cells.apart(between, up))
    some = alike.nonzero()[:, 0]
    alike[some] = ~cells.alike(cells.apart(between[some], up[some]))
    return alike


def runs(cells: Cells, order: torch.Tensor, anchored: bool) -> Prediction:
    """Predict each cell of a run by the run's first cell, or, if not anchored, by the cell before it.

    Args:
        order: [N] int64, the cells in the order in which they are visited. A run may extend across the end of a row.
    """
    if anchored and cells.threshold > 0:
        before, error = _anchored_runs(cells, order)
    else:
        error = torch.cat([cells.values.new_full((1,), torch.inf), cells.apart(order[1:], order[:-1])])
        before = cells.numbers
        if anchored:  # at threshold 0 a run's cells are equal, so comparing with the one before is the same
            before = torch.where(cells.alike(error), 0, before).cummax(0).values
        before = before.roll(1).index_fill(0, before[:1], 0)
    back = torch.empty_like(order)
    back[order] = cells.numbers
    leans_on = order[before][back]
    return Prediction(~cells.alike(error)[back], error[back], lambda kept: leans_on)


def _anchored_runs(cells: Cells, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N] int64, the anchor of each cell of a walk, and [N] fp32, its distance from it. The cells of a run are compared
    in windows, which grow as long as the run continues."""
    before, error = torch.zeros_like(order), cells.values.new_full((len(cells),), torch.inf)
    anchor, start, window = 0, 1, 1
    while start < len(cells):
        here = order[start : start + window]
        away = cells.apart(here, order[anchor].expand(len(here)))
        ends = (~cells.alike(away)).nonzero()[:1, 0].tolist()
        stop = ends[0] + 1 if ends else len(away)
        error[start : start + stop], before[start : start + stop] = away[:stop], anchor
        start, window = start + stop, min(2 * window, 256)
        if ends:
            anchor, window = start - 1, 1
    return before, error


def nearest_kept(kept: torch.Tensor, width: int) -> torch.Tensor:
    """[N] int64, the kept cell that is nearest in space to each cell (a kept cell itself); ties go to the first."""
    cells = torch.arange(len(kept), device=kept.device)
    chosen = kept.nonzero()[:, 0]
    step = max(2**22 // max(len(chosen), 1), 1)
    rows, columns = chosen // width, chosen % width
    best = [
        ((some[:, None] // width - rows) ** 2 + (some[:, None] % width - columns) ** 2).argmin(1)
        for some in cells.split(step)
    ]
    return torch.where(kept, cells, chosen[torch.cat(best)])


def scattered(count: int, cells: int, width: int, seed: int) -> Prediction:
    """Keep `count` random cells, drawn on the host by a generator of its own with this seed."""
    drawn = torch.randperm(cells, generator=torch.Generator().manual_seed(seed), device="cpu")
    rank = torch.empty_like(drawn)
    rank[drawn] = torch.arange(cells, device="cpu")
    return Prediction(rank < count, -rank.float(), lambda kept: nearest_kept(kept, width))


@dataclass(frozen=True)
class Thinning:
    """How many cells of each component are dropped, and which.

    Args:
        share: fraction of a component that is dropped: of n cells n - round(n * share) stay, at least one.
        drawn: whether those that stay are drawn at random, by a new generator of Python's; else they are evenly spaced.
        seed: that of this generator.
        total: if not None, exactly this many cells of the picture are kept. Missing ones are drawn from all others; of
            surplus ones random cells, but never the first, are dropped.
    """

    share: float
    drawn: bool
    seed: int
    total: int | None = None

    def kept(self, order: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """[N] bool on the host, which cells stay. order: [N] int64, the cells sorted by component; sizes: of these."""
        kept, generator = torch.zeros(len(order), dtype=torch.bool, device="cpu"), python_random.Random(self.seed)
        chosen: list[int] = []
        for component in order.split(sizes):
            cells = component.tolist()
            count = max(len(cells) - round(len(cells) * self.share), 1)
            chosen += self._of_one(cells, count, generator)
        kept[self._as_many(sorted(chosen), len(order), generator)] = True
        return kept

    def _of_one(self, cells: list[int], count: int, generator: python_random.Random) -> list[int]:
        """The cells that stay of one component, given in raster order. Even if all of them stay they are drawn, because
        this advances the generator as in the published code."""
        if len(cells) == 1:
            return cells
        if self.drawn:
            return generator.sample(cells, count)
        even = torch.linspace(0, len(cells) - 1, count, dtype=torch.float32, device="cpu")  # rounded as published
        return [cells[at] for at in even.long().tolist()]

    def _as_many(self, chosen: list[int], cells: int, generator: python_random.Random) -> list[int]:
        more = 0 if self.total is None else self.total - len(chosen)
        if more > 0:
            others = list(set(range(cells)) - set(chosen))  # in the order of a set, as in the published code
            return chosen + generator.sample(others, more)
        gone = set(generator.sample(range(1, len(chosen)), -more) if more else ())
        return [cell for at, cell in enumerate(chosen) if at not in gone]


def connected(cells: Cells, thinning: Thinning) -> Prediction:
    """Keep some cells of each component. Pairs of like neighbours connect the cells of a component. This runs on the
    host, which reads all distances between neighbours once."""
    left, up = torch.stack(neighbour_distances(cells)).cpu()
    numbers, label = torch.arange(len(cells), device="cpu"), _components(cells.alike(left), cells.alike(up))
    order = label.sort(stable=True).indices
    _, number, sizes = torch.unique(label, return_inverse=True, return_counts=True)
    first, size = (sizes.cumsum(0) - sizes)[number], sizes[number]
    rank = torch.empty_like(order)
    rank[order] = numbers
    error = torch.minimum(left, up).flatten()

    def leans(kept: torch.Tensor) -> torch.Tensor:
        """The last kept cell before each one in its component, else the component's first, else the nearest one."""
        inside, total = kept[order], len(order)
        last = torch.where(inside, numbers, -1).cummax(0).values
        after = torch.where(inside, numbers, total).flip(0).cummin(0).values.flip(0)
        found = torch.where(last >= first[order], last, after)
        found = torch.where(found < (first + size)[order], order[found.clamp_max(total - 1)], -1)[rank]
        return torch.where(found < 0, nearest_kept(kept, cells.width), found)

    return Prediction(thinning.kept(order, sizes.tolist()), error, leans)


def _components(left: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[N] int64, the first cell of each cell's component; left, up: [H, W] bool, whether it is like that neighbour."""
    height, width = left.shape
    cells = torch.arange(height * width, device=left.device)
    ends = torch.cat([cells[left.flatten()], cells[up.flatten()]])
    begins = torch.cat([cells[left.flatten()] - 1, cells[up.flatten()] - width])
    label = cells
    while True:
        low = torch.minimum(label[begins], label[ends])
        new = label.clone()
        for hooked in (begins, ends, label[begins], label[ends]):
            new.scatter_reduce_(0, hooked, low, "amin")
        new = new[new]
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new
