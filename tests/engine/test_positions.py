"""The numbering of prompts, the table row of each rotary channel, and the rotary table."""

import numpy as np
import pytest
import torch
from support import IMAGE_ID, SECTIONS, VIDEO_ID, Prompt, batch, random_model
from tolerances import angle_roundings, assert_near

from ppe_npu.engine.positions import check_channels, contiguous_channels, interleaved_channels, prompt_positions
from ppe_npu.engine.rotary import channel_rows, rotary_table
from ppe_npu.engine.spans import VisionTokens, find_spans

VISION = VisionTokens(IMAGE_ID, VIDEO_ID, 2, 2)
CHANNELS = contiguous_channels(SECTIONS)


def layout_of(inputs, seconds=None):
    return find_spans(
        inputs["input_ids"].numpy(),
        inputs["attention_mask"].numpy(),
        inputs.get("image_grid_thw", torch.zeros(0, 3, dtype=int)).tolist(),
        inputs.get("video_grid_thw", torch.zeros(0, 3, dtype=int)).tolist(),
        seconds,
        VISION,
    )


def test_a_prompt_by_hand():
    inputs = batch(Prompt([2, ("image", (1, 2, 3)), 2]), pad_to=11)
    positions, following = prompt_positions(layout_of(inputs), VISION)
    assert positions[0, 0].tolist() == [0, 0, 1] + [2] * 6 + [5, 6]
    assert positions[1, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2, 0].tolist() == [0, 0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert following.tolist() == [7]


def test_video_time_is_seconds_times_rate_and_text_follows_the_largest():
    inputs = batch(Prompt([1, ("video", (3, 1, 2)), 1]))
    positions, following = prompt_positions(layout_of(inputs, [1.75]), VISION)
    # 0, 1.75 and 3.5 seconds at 2 positions a second are 0, 3.5 -> 3 and 7.
    assert positions[0, 0].tolist() == [0, 1, 1, 4, 4, 8, 8, 9]
    assert following.tolist() == [10]


@pytest.mark.parametrize("side", ["left", "right"])
def test_images_are_numbered_as_transformers_does(side):
    one = Prompt([3, "start", ("image", (1, 3, 2)), 4, "start", ("image", (1, 1, 5)), 1])
    inputs = batch(one, Prompt([2, "start", ("image", (1, 2, 2))]), side=side)
    asked = {name: inputs[name] for name in ("input_ids", "image_grid_thw", "attention_mask")}
    kinds = (inputs["input_ids"] == IMAGE_ID).long()
    theirs, _ = random_model().model.get_rope_index(**asked, mm_token_type_ids=kinds)
    ours, _ = prompt_positions(layout_of(inputs), VISION)
    real = inputs["attention_mask"].bool()
    assert torch.equal(torch.from_numpy(ours)[:, real], theirs[:, real])


def test_channel_rows_give_each_axis_its_section_in_k_runs():
    assert channel_rows(3, contiguous_channels([2, 4, 2])) == [0, 0, 1, 1, 1, 1, 2, 2]
    assert channel_rows(6, contiguous_channels([2, 4, 2])) == [0, 1, 2, 2, 3, 3, 4, 5]
    lookup = channel_rows(24, contiguous_channels([16, 24, 24]))
    assert [lookup.count(row) for row in range(24)] == [2] * 8 + [3] * 16


@pytest.mark.parametrize("sections", [[16, 24, 24], [11, 11, 10], [8, 12, 12], [64]])
@pytest.mark.parametrize("interleaved", [False, True])
def test_any_k_cuts_every_axis_into_runs_as_even_as_they_go(sections, interleaved):
    if interleaved and len(sections) == 1:
        return
    channels = (interleaved_channels if interleaved else contiguous_channels)(sections)
    for k in range(1, min(channels.count(axis) for axis in range(len(sections))) + 1):
        lookup = np.array(channel_rows(len(sections) * k, channels))
        for axis in range(len(sections)):
            count = channels.count(axis)
            own = lookup[np.array(channels) == axis] - axis * k
            sizes = np.bincount(own, minlength=k)
            assert (np.diff(own) >= 0).all()
            assert sizes.tolist() == [len(part) for part in np.array_split(np.arange(count), k)]


@pytest.mark.parametrize("sections", [[16, 24, 24], [11, 11, 10], [64]])
def test_a_k_beyond_the_smallest_section_is_refused_with_those_that_fit(sections):
    least = min(sections)
    with pytest.raises(ValueError, match=rf"k={least + 1} exceeds .*choose k from 1 to {least}; with 1"):
        check_channels(least + 1, contiguous_channels(sections))
    check_channels(least, contiguous_channels(sections))


@pytest.mark.parametrize(("sections", "k"), [([11, 11, 10], 8), ([32], 3), ([8, 12, 12], 5)])
def test_every_pair_of_channels_is_rotated_by_one_position(sections, k):
    """Both halves of a rotary pair read the same row, so the result is a rotation for every K."""
    channels = contiguous_channels(sections)
    rows = torch.randint(0, 500, (len(sections) * k, 2, 7), generator=torch.Generator().manual_seed(0))
    cos, sin = (part.double() for part in rotary_table(rows, torch.rand(32), channels))
    assert torch.equal(cos[..., :32], cos[..., 32:])
    assert torch.equal(sin[..., :32], sin[..., 32:])
    assert_near((cos**2 + sin**2).float(), torch.ones_like(cos).float(), roundings=8)  # cos, sin and their squares


def test_a_plain_rotary_embedding_has_one_axis_and_places_in_the_text():
    inputs = batch(Prompt([2, ("image", (1, 2, 3)), 1]), Prompt([4]), side="left")
    positions, following = prompt_positions(layout_of(inputs), VISION, [5, 0], axes=1)
    assert positions.shape == (1, 2, 9)
    assert positions[0, 0].tolist() == list(range(5, 14))
    assert positions[0, 1].tolist() == [0] * 5 + [0, 1, 2, 3]
    assert following.tolist() == [14, 4]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_table_equals_sections_picked_channel_by_channel(k):
    """Oracle: the released code's split of a [3K, B, S, D] table into 3K * 2 pieces, in fp64."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 500, (3 * k, 2, 7), generator=generator)
    inv_freq = 1.0 / 100 ** (torch.arange(32) / 32)
    cos, sin = rotary_table(rows, inv_freq, CHANNELS)
    angles = rows[..., None].double() * inv_freq.double()
    angles = torch.cat([angles, angles], dim=-1)
    pieces = [section // k for section in SECTIONS for _ in range(k)] * 2
    split = angles.split(pieces, dim=-1)
    expected = torch.cat([part[i % (3 * k)] for i, part in enumerate(split)], dim=-1)
    assert cos.shape == (2, 7, 64)
    off = {"roundings": angle_roundings(rows.max().item() * inv_freq.max().item()), "size": 1.0}
    assert_near(cos, expected.cos(), **off)
    assert_near(sin, expected.sin(), **off)


def test_one_kept_position_repeated_k_times_turns_as_one():
    rows = torch.tensor(np.arange(3)).view(3, 1, 1)
    inv_freq = torch.ones(32)
    once, repeated = (
        rotary_table(rows, inv_freq, CHANNELS),
        rotary_table(rows.repeat_interleave(4, 0), inv_freq, CHANNELS),
    )
    assert torch.equal(once[0], repeated[0])
    assert torch.equal(once[1], repeated[1])


def test_a_picture_of_which_nothing_is_kept_takes_no_place():
    layout = layout_of(batch(Prompt([2, ("image", (1, 2, 3)), 1, ("image", (1, 1, 4)), 1])))
    kept = np.array([False] * 6 + [True, True, False, False])
    positions, following = prompt_positions(layout, VISION, kept=kept)
    # Nothing of the first picture is kept: it takes no positions. The second ends at its last kept token, in column 1.
    assert positions[2, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5, 6, 5]
    assert following.tolist() == [6]
