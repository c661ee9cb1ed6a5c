"""How many tokens a config keeps of a grid, by hand, and the grids that are none."""

import numpy as np
import pytest
import torch

from ppe_npu import CompressionConfig
from ppe_npu.errors import InputError


def test_tokens_kept_by_hand():
    ppe = CompressionConfig.preset("ppe")
    # 10 x 8 patches are 20 tokens: ceil(20 * 0.45) = 9 stay.
    assert ppe.tokens_kept((1, 10, 8)) == 9
    assert ppe.tokens_kept(torch.tensor([[1, 10, 8], [3, 2, 2]])) == [9, 3]
    assert ppe.tokens_kept([]) == []
    assert CompressionConfig.preset("dense").tokens_kept((3, 10, 8)) == 60
    # 20 -> 9 -> ceil(9 * 0.3) = 3, and both stay.
    assert CompressionConfig(ratio=[0.45, 0.3]).tokens_kept((2, 10, 8)) == 2 * (9 + 3)
    # 20 -> 9 -> ceil(9 * 0.45) = 5.
    cascade = CompressionConfig(layers=[1, 3])
    assert [cascade.tokens_kept((2, 10, 8), layer=n) for n in range(5)] == [40, 18, 18, 10, 10]
    assert cascade.tokens_kept((2, 10, 8)) == 10
    assert CompressionConfig(layers=[1], before_llm=True).tokens_kept((1, 10, 8), layer=0) == 9
    # ceil(5 * 0.3) = 2 events of 9 tokens; an image is no event.
    assert CompressionConfig(temporal_ratio=0.3).tokens_kept([(5, 10, 8), (1, 10, 8)]) == [18, 9]
    assert CompressionConfig(ratio=1.0, temporal_ratio=0.5).tokens_kept((4, 10, 8)) == 40
    # The released rule: ceil(5 * 9 * 0.45) = 21 of both events together.
    assert CompressionConfig(temporal_ratio=0.3, event_ratio=0.45).tokens_kept((5, 10, 8)) == 21
    assert ppe.tokens_kept((1, 6, 6), merge_size=3) == 2
    row = np.array([1, 10, 8])
    for grid in (row, tuple(row), [np.int64(1), 10, 8], tuple(torch.tensor([1, 10, 8]))):
        assert ppe.tokens_kept(grid) == 9
    assert ppe.tokens_kept(np.stack([row, row])) == ppe.tokens_kept((row, list(row))) == [9, 9]
    for layer in (-1, 1.5, True, "1"):
        with pytest.raises(InputError, match=f"layer={layer!r}: give a decoder layer"):
            ppe.tokens_kept(row, layer=layer)
    for size in (0, -1, 2.0, "2", None):
        with pytest.raises(InputError, match=f"merge_size={size!r}: give how many patches make a token"):
            ppe.tokens_kept(row, merge_size=size)
    with pytest.raises(InputError, match="1 picture in pixels for 2 grids: give one for each, or None"):
        ppe.tokens_kept([row, row], pixels=[None])


@pytest.mark.parametrize(
    ("grid", "remedy"),
    [
        *(((1, 3, 4), "with height and width multiples of 2"), ([(1, 4, 4), (1, 4, 5)], "with height and width")),
        *(((0, 2, 2), "each at least 1"), ((1, -2, 2), "each at least 1"), ([[1, 2, 2], [1, 2, 0]], "each at least 1")),
        *(
            ((1, 2), "three whole numbers"),
            ((1, 2.5, 2), "three whole numbers"),
            ([[[1, 2, 2]]], "three whole numbers"),
        ),
        *((5, "three whole numbers"), ("abc", "three whole numbers"), (None, "three whole numbers")),
        *(([(1, 2, 2), (1, 2)], "three whole numbers"), ({"a": 1}, "three whole numbers"), ([[]], "three whole")),
        *((torch.rand(2, 3), "three whole numbers"), (torch.ones(1, 3, dtype=torch.bool), "three whole numbers")),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, remedy):
    with pytest.raises(InputError, match=rf"^grid_thw=.*: give \(frames, height, width\) in patches, {remedy}"):
        CompressionConfig.preset("ppe").tokens_kept(grid)
