"""Compares PixelPrune's choice of cells with the released code's: `python scripts/bench_pixels.py`.

The released rule (OPPO-Mente-Lab/PixelPrune, 2026-04) is reimplemented with its way of comparing: at threshold 0, all
cells are compared with their shifted neighbours at once, in five comparisons; above 0, cells are compared one by one,
and the host reads back each of three comparisons. Both run alternately on a drawn page, on one thread, and must keep
the same cells. Then the work of choosing is counted as the numbers that operators read or write, and printed relative
to the operations that the decoder of Qwen2.5-VL-3B needs to prefill the kept cells alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bench.models import SIZES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppe_npu.inspect.tower_work import Widths
from ppe_npu.methods import get

GOALS = {0.0: 15, 0.02: 6}  # threshold -> least speedup


def page(height: int, width: int, values: int) -> torch.Tensor:
    """[H, W, D] cells of a white page with lines of text, grey panels, and a picture with noise of one grey level."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.full((height, width, values), 250.0)
    cells[height // 8 : height // 3, width // 2 :] = 200.0
    cells[:, : width // 10] = 90.0
    text = torch.rand(height, width, generator=generator) < torch.where(torch.arange(height) % 5 < 4, 0.6, 0.0)[:, None]
    glyphs = torch.randint(0, 256, (64, values), generator=generator).float()
    cells[text] = glyphs[torch.randint(0, 64, (int(text.sum()),), generator=generator)]
    noisy = cells[-height // 6 :, width // 4 :]
    noisy += torch.randint(-1, 2, noisy.shape, generator=generator)
    return cells.clamp_(0, 255) / 255


def _alike(one: torch.Tensor, other: torch.Tensor, threshold: float) -> torch.Tensor:
    return (one - other).abs().amax(dim=-1) <= threshold


def released_shifted(cells: torch.Tensor) -> torch.Tensor:
    """[H, W] bool, the cells that the released code keeps at threshold 0."""
    kept = torch.ones(cells.shape[:2], dtype=torch.bool)
    kept[0, 1:] = ~_alike(cells[0, 1:], cells[0, :-1], 0)
    kept[1:, 0] = ~_alike(cells[1:, 0], cells[:-1, 0], 0)
    left, up, between = cells[1:, :-1], cells[:-1, 1:], cells[:-1, :-1]
    from_above = ~_alike(between, up, 0) & _alike(between, left, 0)
    kept[1:, 1:] = ~_alike(cells[1:, 1:], torch.where(from_above[..., None], up, left), 0)
    return kept


def released_loop(cells: torch.Tensor, threshold: float) -> torch.Tensor:
    """[H, W] bool, the cells that the released code keeps above threshold 0."""

    def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
        return _alike(one[None], other[None], threshold).item()

    height, width, _ = cells.shape
    kept, seen = torch.ones(height, width, dtype=torch.bool), cells.clone()
    for row in range(height):
        for column in range(width):
            if row == column == 0:
                continue
            predicted = seen[row, column - 1] if column else seen[row - 1, 0]
            if row and column:
                up, between = seen[row - 1, column], seen[row - 1, column - 1]
                like_up, like_left = alike(between, up), alike(between, predicted)
                predicted = up if like_left and not like_up else predicted
            if alike(cells[row, column], predicted):
                kept[row, column] = False
                seen[row, column] = predicted
    return kept


def released(cells: torch.Tensor, threshold: float) -> torch.Tensor:
    """[H, W] bool, which of the cells [H, W, D] the released code keeps."""
    return released_loop(cells, threshold) if threshold else released_shifted(cells)


class Numbers(TorchDispatchMode):
    """Counts the numbers that operators read or write, as the size of each operator's largest tensor."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = (part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor))
        self.total += max((part.numel() for part in tensors), default=0)
        return result


def prefill(tokens: int) -> int:
    """Operations of all decoder layers of Qwen2.5-VL-3B for a prompt of `tokens` tokens."""
    text = SIZES["3b"][0]
    width, heads = text["hidden_size"], text["num_attention_heads"]
    keys = width // heads * text["num_key_value_heads"]
    rest = width * width + 3 * width * text["intermediate_size"]
    one = Widths(width * (width + 2 * keys), rest, width).flops(tokens, tokens, tokens * (tokens + 1) // 2)
    return text["num_hidden_layers"] * one


def seconds(call: Callable, *args) -> tuple[float, Any]:
    """The CPU time of this thread for call(*args), in seconds, and its result."""
    start = time.thread_time()
    result = call(*args)
    return time.thread_time() - start, result


def compare(cells: torch.Tensor, rounds: int) -> dict[float, float]:
    """{threshold: median speedup of this package's choice over the released one}."""
    ratios: dict[float, list[float]] = {threshold: [] for threshold in GOALS}
    for threshold in rounds * list(ratios):
        method = get("pixelprune", threshold=threshold)
        theirs, expected = seconds(released, cells, threshold)
        ours, (kept, _) = seconds(method.select, cells)
        if not torch.equal(kept, expected):
            raise SystemExit(f"threshold {threshold}: {int((kept != expected).sum())} cells differ")
        ratios[threshold].append(theirs / ours)
        print(f"threshold {threshold}: released {1e3 * theirs:.0f} ms, ours {1e3 * ours:.0f} ms", flush=True)
    return {threshold: statistics.median(found) for threshold, found in ratios.items()}


def counted(cells: torch.Tensor, threshold: float) -> tuple[int, float]:
    """The number of kept cells, and the ratio of numbers touched by choosing them to operations of their prefill."""
    with Numbers() as numbers:
        kept, _ = get("pixelprune", threshold=threshold).select(cells)
    return int(kept.sum()), numbers.total / prefill(int(kept.sum()))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs=2, default=(128, 128), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--values", type=int, default=3072, help="values per cell")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cells = page(*args.cells, args.values)
    for threshold, ratio in compare(cells, args.rounds).items():
        kept, share = counted(cells, threshold)
        goal = "met" if ratio >= GOALS[threshold] else "missed"
        print(
            f"threshold {threshold}: {kept} of {cells[..., 0].numel()} cells kept, {ratio:.1f} times as fast "
            f"(goal {GOALS[threshold]}, {goal}), choosing is {share:.4%} of a 3B prefill by count"
        )


if __name__ == "__main__":
    main()
