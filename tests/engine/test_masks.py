"""How many places a mask lets each place see."""

import pytest
import torch

from ppe_npu.engine.masks import seen_places

LOWER = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()


@pytest.mark.parametrize("nothing", [torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("bias", [0.0, -3.5, 2.0])
def test_places_are_counted_whatever_is_added_to_their_scores(bias, nothing):
    additive = torch.where(LOWER, bias, nothing)
    assert seen_places(LOWER).tolist() == seen_places(additive).tolist() == [[1, 2, 3, 4]]
