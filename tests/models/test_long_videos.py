"""Text after a video of more frames than rows: numbered as untouched where nothing is merged, else as trained."""

import pytest
import torch
from foreign import compressed, newer, out, random_model
from prompts import GREEDY, with_types
from support import Prompt, batch
from tolerances import assert_rounds_alike, exact

PROMPTS = [Prompt([2, "start", ("video", (7, 1, 2)), 4], seed=1), Prompt([3, "start", ("video", (2, 2, 2)), 1], seed=2)]


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def plain(request):
    return random_model(family=request.param)


@newer
@pytest.mark.parametrize("setting", ["dense", "one"])
def test_where_nothing_is_merged_a_long_video_is_numbered_as_untouched(plain, setting):
    inputs, ours = with_types(batch(*PROMPTS)), compressed(plain, setting)
    real = inputs["attention_mask"].bool()
    expected, true = out(plain, inputs), exact(plain, lambda: out(plain, inputs).logits[real])
    found = out(ours, inputs)
    assert_rounds_alike(found.logits[real], expected.logits[real], true)
    assert found.rope_deltas.tolist() == expected.rope_deltas.tolist()
    if setting == "one":
        return  # whose answer goes on where its prompt ended
    inputs.pop("second_per_grid_ts")  # which generate() takes for Qwen2.5-VL alone, and a second a frame is the default
    asked = {**inputs, **GREEDY, "max_new_tokens": 3}
    assert torch.equal(ours.generate(**asked), plain.generate(**asked))


def test_where_tokens_are_merged_a_long_video_is_numbered_as_trained(plain):
    model, inputs = compressed(plain, "ppe"), with_types(batch(PROMPTS[0]))
    out(model, inputs)
    last = 3 + 6 * (model.compression.vision.tokens_per_second or 1)  # of the seventh frame: three tokens, six frames
    assert model.compression.last.positions[:, 17:21].tolist() == [[last + 1, last + 2, last + 3, last + 4]] * 3
