"""PixelPrune's choice of cells against the loop of the released code: `python -m scripts.bench.pixel_selector`.

The loop is written anew after the released rule (OPPO-Mente-Lab/PixelPrune, 2026-04): one cell after the other, each
comparison read back by the host; at threshold 0 a cell is compared with its neighbours in the same way. Both choose on
a drawn page; what they keep must be the same. Times are medians of rounds in which they take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ppe_npu.methods import get


def page(height: int, width: int, values: int) -> torch.Tensor:
    """Cells [H, W, D] of a white page: lines of text, some grey panels, and a picture with noise of one level."""
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


def released_loop(cells: torch.Tensor, threshold: float) -> torch.Tensor:
    """[H, W] bool, what the loop keeps."""

    def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
        return ((one[None] - other[None]).abs().amax(dim=-1) <= threshold).item()

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


def seconds(call: Callable, *args) -> tuple[float, Any]:
    """How long call(*args) takes, and what it returns."""
    start = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs=2, default=(128, 128), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--values", type=int, default=3072, help="values of a cell")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cells = page(*args.cells, args.values)
    ratios: dict[float, list[float]] = {0.0: [], 0.02: []}
    for threshold in args.rounds * list(ratios):
        method = get("pixelprune", threshold=threshold)
        loop, expected = seconds(released_loop, cells, threshold)
        ours, (kept, _) = seconds(method.select, cells)
        if not torch.equal(kept, expected):
            raise SystemExit(f"threshold {threshold}: {int((kept != expected).sum())} cells differ")
        ratios[threshold].append(loop / ours)
        share = float(kept.float().mean())
        print(
            f"threshold {threshold}: {share:.3f} kept, loop {1e3 * loop:.0f} ms, ours {1e3 * ours:.0f} ms", flush=True
        )
    for threshold, found in ratios.items():
        print(f"threshold {threshold}: {statistics.median(found):.1f} times as fast, {args.cells} cells")


if __name__ == "__main__":
    main()
