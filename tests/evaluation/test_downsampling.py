"""The control in every table: smaller input with as many tokens as a method keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.config import CompressionConfig
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.evaluation.answers import ModelAnswers
from ppe_npu.evaluation.downsampling import SmallerInput, smaller
from ppe_npu.evaluation.results import run_method, run_title, runs_dense
from ppe_npu.models import compress


@pytest.fixture(scope="module")
def maker():
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 1605632})


def tokens(maker, picture, least=28 * 28) -> int:
    patches = maker.get_number_of_image_patches(
        picture.height, picture.width, {"min_pixels": least, "max_pixels": maker.size["longest_edge"]}
    )
    return patches // maker.merge_size**2


@pytest.mark.parametrize("share", [0.5, 0.25, 0.111, 0.01])
@pytest.mark.parametrize("size", [(640, 480), (200, 64), (1700, 2200), (57, 900), (28, 28)])
def test_a_picture_has_its_share_of_tokens_to_within_a_row_and_a_column(maker, size, share):
    picture = Image.new("RGB", size)
    wanted = max(tokens(maker, picture, maker.size["shortest_edge"]) * share, 1)
    made = smaller(picture, maker, share)
    rows, columns = made.height // 28, made.width // 28
    assert (made.height % 28, made.width % 28) == (0, 0)
    assert tokens(maker, made) == rows * columns  # the processor leaves it as it is
    assert abs(rows * columns - wanted) <= max(rows, columns) / 2 + 0.5


def test_a_smaller_input_is_a_row_of_its_own_and_not_what_others_are_compared_with():
    dense = CompressionConfig.preset("dense").to_dict()
    assert run_title({"compression": dense}) == "dense"
    assert run_title({"compression": dense, "smaller_input": 0.25}) == "smaller input 0.25"
    assert run_method({"compression": dense, "smaller_input": 0.25}) == "smaller input"
    assert runs_dense({"compression": dense})
    assert not runs_dense({"compression": dense, "smaller_input": 0.25})


def test_a_share_that_is_none_is_refused():
    from ppe_npu.errors import InputError

    with pytest.raises(InputError, match="share=1 of the visual tokens must be between 0 and 1"):
        SmallerInput(SimpleNamespace(), None, 1, share=1)


def test_its_tokens_are_a_share_of_the_whole_pictures(tiny_folder, tiny_processor):
    """Otherwise its row would say that all tokens are kept."""
    model = compress(load_model(tiny_folder), CompressionConfig.preset("dense"))
    sample = {"index": 0, "prompt": "row red", "image": Image.new("RGB", (96, 96), "red")}
    whole, small = ModelAnswers(model, tiny_processor, 1), SmallerInput(model, tiny_processor, 1, share=0.25)
    one, other = (answers.answer(answers.prepare([sample, sample])) for answers in (whole, small))
    assert other.tokens_before == one.tokens_before == one.tokens_after
    assert other.tokens_after == [count * 0.25 for count in one.tokens_after]


@pytest.mark.half
@pytest.mark.parametrize("asked", [None, VideoSampling(fps=4.0, max_pixels=602112, total_pixels=19267584)])
@pytest.mark.parametrize("share", [0.25, 0.44])
@pytest.mark.parametrize(("frames", "size"), [(8, 112), (6, 224)])
def test_a_videos_tokens_are_a_share_of_its_frames_however_small_they_are(
    tiny_folder, tiny_processor, write_clip, asked, share, frames, size
):
    """Bounds larger than the frames, from a protocol or from the checkpoint, must not keep the frames at full size."""
    model = compress(load_model(tiny_folder), CompressionConfig.preset("dense"))
    sample = {"index": 0, "prompt": "row red", "video_path": write_clip("a.mp4", frames=frames, fps=4, size=size)}
    whole = ModelAnswers(model, tiny_processor, 1, asked)
    small = SmallerInput(model, tiny_processor, 1, asked, share=share)
    grids = [answers.prepare([sample])["video_grid_thw"][0].tolist() for answers in (whole, small)]
    assert grids[0][0] == grids[1][0] >= 2  # no frame is left out
    merged = [rows * columns // 4 for _, rows, columns in grids]
    side = merged[0] ** 0.5
    assert abs(merged[1] - share * merged[0]) <= side * share**0.5 + 0.5
    assert merged[1] < merged[0]
    assert small.measure(sample).before < whole.measure(sample).before
    assert small.settings()["video"] == whole.settings()["video"]
