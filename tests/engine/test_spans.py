"""Spans of images and videos found in a batch."""

import numpy as np
import pytest
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from test_positions import VISION, layout_of

from ppe_npu.engine.spans import find_spans


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
    with pytest.raises(ValueError, match="describes 2 images but the prompts hold tokens of 1: give one grid"):
        find_spans(ids, None, [[1, 4, 4], [1, 4, 4]], [], None, VISION)
    with pytest.raises(
        ValueError, match="has a grid of 6 tokens but its run of image tokens at index 1 is 4 long: give ids and grids"
    ):
        find_spans(ids, None, [[1, 4, 6]], [], None, VISION)
    with pytest.raises(ValueError, match="height and width positive multiples of 2"):
        find_spans(ids, None, [[1, 3, 4]], [], None, VISION)
    with pytest.raises(ValueError, match="second_per_grid_ts has 2 entries for 1 video"):
        find_spans(np.where(ids == IMAGE_ID, VIDEO_ID, ids), None, [], [[1, 4, 4]], [1.0, 2.0], VISION)
