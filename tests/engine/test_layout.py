"""The layout of a batch (text, visual tokens and padding) before and after each merge."""

import pytest
from support import Prompt, batch
from test_positions import layout_of

from ppe_npu.engine.layout import Standing, lay_out
from ppe_npu.methods import Method


class Keep(Method):
    """A method that keeps as many tokens as a given function returns."""

    def __init__(self, kept):
        super().__init__()
        object.__setattr__(self, "kept", kept)


def first_stage(layout, budget, left=True):
    """The stage before the LLM, where the tokens are the vision tower's features."""
    return lay_out(Standing.of(layout), [(None, (Keep(budget),))], left)[0][0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_layout_keeps_text_in_place_and_padding_on_its_side(side):
    inputs = batch(Prompt([2, ("image", (1, 2, 2)), 1]), Prompt([1]), side=side)
    layout = layout_of(inputs)
    out = first_stage(layout, lambda n: n // 2, left=side == "left")
    assert out.rows.shape == (2, 5)
    # Rows: 4 text tokens (3 of sample 0, 1 of sample 1), then 2 kept visual tokens, then the empty row 6.
    assert out.rows[0].tolist() == [0, 1, 4, 5, 2]
    assert out.rows[1].tolist() == ([6, 6, 6, 6, 3] if side == "left" else [3, 6, 6, 6, 6])
    assert out.sources[0].tolist() == [0, 1, 2, 3, 6]


def test_without_padding_the_last_place_is_the_last_token():
    """Prompts of equal length come out unequal and are padded on the left: generation reads the last column."""
    inputs = batch(Prompt([1, ("image", (1, 2, 2)), 1]), Prompt([6]))
    out = first_stage(layout_of(inputs), lambda n: 1)
    assert out.after.real.tolist() == [[False] * 3 + [True] * 3, [True] * 6]


def test_buckets_hold_like_sizes_and_do_not_grow_with_frames():
    few = batch(Prompt([1, ("video", (2, 4, 4)), ("image", (1, 1, 1)), ("image", (1, 3, 3)), 1]))
    many = batch(Prompt([1, ("video", (20, 4, 4)), ("image", (1, 1, 1)), ("image", (1, 3, 3)), 1]))
    small, large = (first_stage(layout_of(x), lambda n: n) for x in (few, many))
    assert [b.tokens.shape for b in small.rounds[0].buckets] == [(1, 1), (3, 16)]
    assert [b.tokens.shape for b in large.rounds[0].buckets] == [(1, 1), (21, 16)]
    assert small.rounds[0].buckets[1].valid.sum(1).tolist() == [16, 16, 9]
