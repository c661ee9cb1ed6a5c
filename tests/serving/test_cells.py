"""A step at the pixels keeps, sends and merges the same, item by item, as in the whole prompt."""

import numpy as np
import pytest
import torch
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from tolerances import assert_equal

from ppe_npu import CompressionConfig
from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import check_items, item_runs, item_sources, merge_items
from ppe_npu.engine.pixels import PixelValues, choose
from ppe_npu.engine.positions import contiguous_channels
from ppe_npu.engine.spans import IMAGE, VIDEO, VisionTokens
from ppe_npu.serving.cells import kept_patches, patches_kept, pixel_numbers, split_cells, without_dropped
from ppe_npu.serving.rows import placed_rows, prompt_line

VALUES = PixelValues(2, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
CHANNELS = contiguous_channels([16, 24, 24])
GRIDS = [[1, 8, 10], [1, 4, 14]]
WIDTH = 8
CONFIGS = {
    "threshold": [{"method": "pixelprune", "threshold": 0.1}],
    "budget": [{"method": "pixelprune", "max_kept": 6, "fill": True}],
    "least": [{"method": "pixelprune", "min_share": 0.5, "threshold": 0.2, "max_kept": 12}],
    "numbered by what is kept": [{"method": "pixelprune", "threshold": 0.3, "numbering": "kept"}],
    "merged after it": [{"method": "pixelprune", "threshold": 0.1}, {"method": "dpc_knn", "ratio": 0.4}],
    "by places after it": [{"method": "pixelprune", "max_kept": 9}, {"method": "uniform", "ratio": 0.5}],
}


def compression(name: str, apart: bool = False, positions: str = "ppe", **more) -> Compression:
    vision = VisionTokens(IMAGE_ID, VIDEO_ID, 2, None if apart else 2, frames_apart=apart, pixels=VALUES)
    config = CompressionConfig(steps=CONFIGS[name], positions=positions, **more)
    return Compression(config, vision, CHANNELS, decoder_layers=4)


def painted(seed: int = 0) -> torch.Tensor:
    """[136 patches, 24] bytes of two pictures, most of whose cells are like the one before."""
    draw = np.random.default_rng(seed)
    cells, out = sum(h * w // 4 for _, h, w in GRIDS), []
    for _ in range(cells):
        fresh = not out or draw.random() < 0.4
        near = None if fresh else np.clip(out[-1].astype(int) + draw.integers(-12, 12), 0, 255)
        out.append(draw.integers(0, 256, (4, 3, 1, 4)) if fresh else near)
    return torch.from_numpy(np.stack(out).astype(np.uint8)).expand(-1, -1, -1, 2, -1).reshape(4 * cells, 24)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (VALUES.mean, VALUES.std))
    return ((pixels.unflatten(1, (3, 2, -1)) / 255 - mean) / std).flatten(1)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("name", "positions"), [*((name, "ppe") for name in CONFIGS), ("merged after it", "renumber")])
def test_items_of_a_prompt_are_those_of_the_whole_prompt(name, positions, apart):
    made, pixels = compression(name, apart, positions), normalised(painted())
    check_items(made)
    film = "frames" if apart else VIDEO
    inputs = batch(Prompt([3, (IMAGE, (1, 4, 5)), 2, (film, (2, 2, 2)), (IMAGE, (1, 2, 7)), 4]), seconds=1.5)
    chosen = choose(made.config.at_pixels, pixels, [(1, 4, 5), (1, 2, 7)], [(2, 2, 2)], VALUES, 2)
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    plan = made.plan(*(inputs.get(name) for name in names), chosen=chosen)
    features = torch.randn(int(chosen.kept.sum()), WIDTH, generator=torch.Generator().manual_seed(7))
    run, (embeds,) = made.prefill(plan, torch.zeros(len(plan.before(0).text), WIDTH), features)
    rows, following = run.rows[0][:, 0], int(run.state.following[0][0])

    sources = item_sources(made, pixels, GRIDS, VALUES)
    assert sum(patches_kept(sources, 2)) // 4 < sum(map(len, sources)) - 1, "nothing is dropped"
    images = merge_items(made, IMAGE, features[:-8], GRIDS, sources=sources)
    (clip,) = merge_items(made, VIDEO, features[-8:], [[2, 4, 4]], [1.5])
    runs = [item_runs(made, IMAGE, grid, source=source) for grid, source in zip(GRIDS, sources)]
    order = [(images[0], runs[0]), (clip, item_runs(made, VIDEO, [2, 4, 4], 1.5)), (images[1], runs[1])]
    visual, at, places = np.flatnonzero(~plan.last.text[0]), 0, []
    for item, own in order:
        kept = sum(run.kept for run in own)
        assert kept == len(item.features)
        places.append((visual[at : at + kept], own))
        at += kept
    assert at == len(visual)
    assert_equal(torch.cat([item.features for item, _ in order]), embeds[visual], "features")
    if positions == "renumber":
        return
    line, after = prompt_line(len(embeds), places)
    local = torch.zeros(3 * made.config.k, len(embeds), dtype=torch.long)
    local[:, visual] = torch.cat([item.rows for item, _ in order], dim=1)
    expected = rows.repeat_interleave(len(local) // len(rows), 0)
    assert_equal(placed_rows(torch.from_numpy(line), local), expected, "rows")
    assert after == following


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_and_normalised_pixels_keep_the_same_cells(name):
    made, pixels, grids = compression(name), painted(1), torch.tensor(GRIDS)
    kept, cells = without_dropped(made, pixels, grids, pixel_numbers(pixels, VALUES))
    other, same = without_dropped(made, normalised(pixels), grids, pixel_numbers(normalised(pixels), VALUES))
    assert_equal(cells, same)
    assert_equal(normalised(kept), other)
    assert kept.dtype == torch.uint8
    sources = split_cells(cells, GRIDS, 2)
    assert [len(source) for source in sources] == [20, 14]
    assert sum(patches_kept(sources, 2)) == len(kept) < len(pixels)


def test_an_image_keeps_the_same_cells_alone_and_beside_others():
    made, pixels = compression("threshold"), painted(2)
    both = item_sources(made, pixels, GRIDS, pixel_numbers(pixels, VALUES))
    for part, grid, source in zip(pixels.split([80, 56]), GRIDS, both):
        (alone,) = item_sources(made, part, [grid], pixel_numbers(pixels, VALUES))
        assert alone.tolist() == source.tolist()


def test_the_patches_that_are_sent_are_those_of_the_kept_cells():
    sources = [np.array([0, 0, 2]), np.array([0, 1, 1, 1])]
    kept = kept_patches(sources, torch.tensor([[1, 2, 6], [1, 4, 4]]), 2)
    assert kept.rows.tolist() == [*range(4), *range(8, 12), *range(12, 20)]
    assert kept.frames.tolist() == patches_kept(sources, 2) == [8, 8]


def test_cells_that_are_equally_unlike_are_chosen_alike_however_pixels_were_normalised():
    """All cells differ equally from the one before, so rounding errors would choose among them."""
    shades = torch.arange(0, 200, 10, dtype=torch.uint8)[:, None, None].expand(20, 4, 24).reshape(80, 24)
    found = []
    for values in (VALUES, PixelValues(2, (0.5,) * 3, (0.5,) * 3)):
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (values.mean, values.std))
        for pixels in (shades, ((shades.unflatten(1, (3, 2, -1)) / 255 - mean) / std).flatten(1)):
            found += item_sources(compression("budget"), pixels, [[1, 2, 40]], pixel_numbers(pixels, values))
    for source in found:
        assert source.tolist() == found[0].tolist()
