"""Rows of positions on their way through an engine that handles three, and the rotary embedding that reads them."""

import numpy as np
import pytest
import torch
from tolerances import OPERATORS, assert_equal, assert_near

from ppe_npu.backends.reference.rotary import rotary
from ppe_npu.engine.items import ItemRun
from ppe_npu.engine.positions import contiguous_channels, interleaved_channels
from ppe_npu.engine.rotary import rotary_table
from ppe_npu.errors import InputError
from ppe_npu.serving.rotary import RowRotary, rotary_columns
from ppe_npu.serving.rows import LARGEST, placed_rows, prompt_line, split_rows, thinned_runs, with_rows


def turned_by(module: RowRotary, rows: torch.Tensor, query: torch.Tensor, key: torch.Tensor):
    return module(module.turns(rows).T, query, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_come_out_of_any_dtype_as_they_went_in(dtype):
    rows = torch.tensor([[0, 1, 255, 256, 257], [511, 512, 4097, 32769, LARGEST - 1]])
    features = torch.randn(5, 7).to(dtype)
    joined = with_rows(features, rows)
    assert joined.dtype == dtype
    assert joined.shape == (5, 7 + 4)
    found, read = split_rows(joined, 2)
    assert_equal(found, features)
    assert_equal(read, rows)


def test_a_piece_of_an_item_has_its_own_rows():
    rows = torch.arange(24).reshape(3, 8) * 100
    joined = with_rows(torch.randn(8, 4), rows)
    assert_equal(split_rows(joined[3:6], 3)[1], rows[:, 3:6])


def test_a_line_by_hand():
    # two words, an item of which 2 tokens stay and which takes 5 positions, a word, one in two runs, a word
    items = [
        (np.array([2, 3]), [ItemRun(2, 5)]),
        (np.array([5, 8, 9]), [ItemRun(1, 3), ItemRun(2, 3)]),
    ]
    line, following = prompt_line(11, items)
    assert line.tolist() == [0, 1, -3, -3, 7, -9, 11, 12, -14, -14, 16]
    assert following == 17
    local = torch.arange(11).repeat(2, 1)
    assert placed_rows(torch.from_numpy(line), local)[0].tolist() == [0, 1, 4, 5, 7, 13, 11, 12, 21, 22, 16]


def test_text_alone_and_what_follows_a_prompt_count_on():
    line, following = prompt_line(4, [])
    assert (line.tolist(), following) == ([0, 1, 2, 3], 4)


@pytest.mark.parametrize(
    ("columns", "said"), [([2], "has 1 visual token .* keeps 2"), ([2, 3, 4], "keeps 2"), ([2, 4], "has gaps")]
)
def test_columns_that_are_not_the_runs_are_refused(columns, said):
    with pytest.raises(InputError, match=f"{said}; the processor is not the checkpoint's: load it from"):
        prompt_line(9, [(np.array(columns), [ItemRun(2, 5)])])


@pytest.mark.parametrize("channels", [contiguous_channels([16, 24, 24]), interleaved_channels([24, 20, 20])])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_rotation_by_rows_is_that_of_the_rotary_table(channels, k):
    generator = torch.Generator().manual_seed(k)
    inv_freq = 1e4 ** (-torch.arange(64) / 64)
    rows = torch.randint(0, 300, (3 * k, 11), generator=generator)
    query, key = torch.randn(11, 4 * 128, generator=generator), torch.randn(11, 2 * 128, generator=generator)
    module = RowRotary(rotary_columns(inv_freq, 300), channels, 3 * k)
    found = turned_by(module, rows, query, key)
    cos, sin = rotary_table(rows[:, None], inv_freq, channels)
    heads = [part.view(1, 11, -1, 128).transpose(1, 2) for part in (query, key)]
    for one, other in zip(found, rotary(*heads, cos, sin)):
        assert_near(one, other[0].transpose(0, 1).reshape(11, -1), OPERATORS)


def test_what_is_not_rotated_of_a_head_stays_as_it_is():
    generator, channels = torch.Generator().manual_seed(0), interleaved_channels([6, 5, 5])
    rows = torch.randint(0, 50, (6, 7), generator=generator)
    query, key = torch.randn(7, 2 * 128, generator=generator), torch.randn(7, 128, generator=generator)
    table = rotary_columns(1e4 ** (-torch.arange(16) / 16), 50)
    found = turned_by(RowRotary(table, channels, 6, head=128), rows, query, key)
    turned = [part.unflatten(-1, (-1, 128))[..., :32].flatten(1) for part in (query, key)]
    expected = turned_by(RowRotary(table, channels, 6), rows, *turned)
    for one, part, given in zip(found, expected, (query, key)):
        heads, whole = one.unflatten(-1, (-1, 128)), given.unflatten(-1, (-1, 128))
        assert_equal(heads[..., :32].flatten(1), part)
        assert_equal(heads[..., 32:], whole[..., 32:])


def test_stale_places_beyond_the_table_do_not_fail():
    module = RowRotary(rotary_columns(torch.ones(64), 10), contiguous_channels([16, 24, 24]), 6)
    rows = torch.tensor([[-5, 10**6]]).expand(6, -1)
    for part in turned_by(module, rows, torch.ones(2, 128), torch.ones(2, 128)):
        assert part.isfinite().all()


def test_a_table_of_another_head_width_is_refused():
    with pytest.raises(ValueError, match="does not rotate 64 channels"):
        RowRotary(rotary_columns(torch.ones(32), 10), contiguous_channels([16, 24, 24]), 6)


def test_placeholders_are_thinned_run_by_run():
    assert thinned_runs([7, 7, 7], 7, [2]) == [7, 7]
    assert thinned_runs([1, 7, 7, 7, 2, 1, 7, 7, 7, 2], 7, [1, 3]) == [1, 7, 2, 1, 7, 7, 7, 2]


@pytest.mark.parametrize("kept", [[4], [0], [2, 2], []])
def test_placeholders_that_are_not_the_grids_are_refused(kept):
    with pytest.raises(InputError, match=r"placeholders.*; the processor is not the checkpoint's: load it from"):
        thinned_runs([1, 7, 7, 7, 2], 7, kept)
