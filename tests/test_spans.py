"""Spans, budgets and the layout of the compressed batch."""

import numpy as np
import pytest
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from test_positions import VISION, layout_of

from ppe_npu.config import CompressionConfig
from ppe_npu.spans import compressed_layout, find_spans


def test_spans_of_a_mixed_batch():
    inputs = batch(
        Prompt([1, ("image", (1, 2, 2)), ("image", (1, 1, 3)), 2, ("video", (2, 1, 2))]),
        Prompt([3]),
        Prompt([("video", (1, 2, 1)), 1]),
    )
    spans = layout_of(inputs, [0.5, 2.0]).spans
    assert [(s.sample, s.modality, s.grid, s.tokens) for s in spans] == [
        (0, "image", (1, 2, 2), 4),
        (0, "image", (1, 1, 3), 3),
        (0, "video", (2, 1, 2), 4),
        (2, "video", (1, 2, 1), 2),
    ]
    assert [s.seconds_per_frame for s in spans] == [0, 0, 0.5, 2.0]
    assert [s.feature for s in spans] == [0, 4, 7, 11]  # features: all images, then all videos


def test_a_missing_grid_a_spare_grid_and_a_short_run_are_named():
    ids = np.array([[5, IMAGE_ID, IMAGE_ID, IMAGE_ID, IMAGE_ID, 5]])
    with pytest.raises(ValueError, match="sample 0 has more image tokens than image_grid_thw describes"):
        find_spans(ids, None, [], [], None, VISION)
    with pytest.raises(ValueError, match=r"describes 2 image\(s\) but the prompts hold tokens of 1"):
        find_spans(ids, None, [[1, 4, 4], [1, 4, 4]], [], None, VISION)
    with pytest.raises(ValueError, match="has a grid of 6 tokens but its run of image tokens at index 1 is 4 long"):
        find_spans(ids, None, [[1, 4, 6]], [], None, VISION)
    with pytest.raises(ValueError, match="must be positive multiples of 2"):
        find_spans(ids, None, [[1, 3, 4]], [], None, VISION)
    with pytest.raises(ValueError, match="second_per_grid_ts has 2 entries for 1 video"):
        find_spans(np.where(ids == IMAGE_ID, VIDEO_ID, ids), None, [], [[1, 4, 4]], [1.0, 2.0], VISION)


def test_budget_is_the_ceiling_of_the_share():
    config = CompressionConfig.preset("ppe")
    assert [config.budget(n) for n in (1, 2, 3, 20, 36, 80)] == [1, 1, 2, 9, 17, 36]
    assert CompressionConfig.preset("dense").budget(36) == 36


@pytest.mark.parametrize("side", ["left", "right"])
def test_layout_keeps_text_in_place_and_padding_on_its_side(side):
    inputs = batch(Prompt([2, ("image", (1, 2, 2)), 1]), Prompt([1]), side=side)
    layout = layout_of(inputs)
    out = compressed_layout(layout, lambda n: n // 2)
    assert out.rows.shape == (2, 5)
    # Rows: 4 text tokens (3 of sample 0, 1 of sample 1), then 2 kept visual tokens, then the empty row 6.
    assert out.rows[0].tolist() == [0, 1, 4, 5, 2]
    assert out.rows[1].tolist() == ([6, 6, 6, 6, 3] if side == "left" else [3, 6, 6, 6, 6])
    assert out.sources[0].tolist() == [0, 1, 2, 3, 6]


def test_without_padding_the_last_place_is_the_last_token():
    """Equal prompts in, unequal out: generation reads the last column."""
    inputs = batch(Prompt([1, ("image", (1, 2, 2)), 1]), Prompt([6]))
    out = compressed_layout(layout_of(inputs), lambda n: 1)
    assert out.real.tolist() == [[False] * 3 + [True] * 3, [True] * 6]


def test_buckets_hold_like_sizes_and_do_not_grow_with_frames():
    few = batch(Prompt([1, ("video", (2, 4, 4)), ("image", (1, 1, 1)), ("image", (1, 3, 3)), 1]))
    many = batch(Prompt([1, ("video", (20, 4, 4)), ("image", (1, 1, 1)), ("image", (1, 3, 3)), 1]))
    small, large = (compressed_layout(layout_of(x), lambda n: n) for x in (few, many))
    assert [b.features.shape for b in small.buckets] == [(1, 1), (3, 16)]
    assert [b.features.shape for b in large.buckets] == [(1, 1), (21, 16)]
    assert small.buckets[1].valid.sum(1).tolist() == [16, 16, 9]
