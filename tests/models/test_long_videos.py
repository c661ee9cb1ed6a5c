"""Positions of text after a video with more positions in time than in rows: as in the untouched model if every token
stays, else as the model was trained."""

import pytest
import torch
from foreign import compressed, newer, out, random_model
from prompts import GREEDY, with_types
from support import Prompt, batch
from tolerances import assert_rounds_alike, divergence_error, exact

from ppe_npu import CompressionConfig, compress
from ppe_npu.models.arguments import make_plan
from ppe_npu.models.fused import fuse
from ppe_npu.models.loss import Distillation

PROMPTS = [Prompt([2, "start", ("video", (7, 1, 2)), 4], seed=1), Prompt([3, "start", ("video", (2, 2, 2)), 1], seed=2)]


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def plain(request):
    return random_model(family=request.param)


@newer
def test_where_every_token_stays_a_long_video_is_numbered_as_untouched(plain):
    inputs, ours = with_types(batch(*PROMPTS)), compressed(plain, "dense")
    real = inputs["attention_mask"].bool()
    expected, true = out(plain, inputs), exact(plain, lambda: out(plain, inputs).logits[real])
    found = out(ours, inputs)
    assert_rounds_alike(found.logits[real], expected.logits[real], true)
    assert found.rope_deltas.tolist() == expected.rope_deltas.tolist()
    inputs.pop("second_per_grid_ts")  # generate() accepts it for Qwen2.5-VL only; the default is a second per frame
    asked = {**inputs, **GREEDY, "max_new_tokens": 3}
    assert torch.equal(ours.generate(**asked), plain.generate(**asked))
    asked["inputs_embeds"] = plain.get_input_embeddings()(inputs["input_ids"])  # with the ids, which show placeholders
    assert torch.equal(ours.generate(**asked), plain.generate(**asked))


@newer
@torch.no_grad()
def test_a_dense_answer_to_a_long_video_goes_on_in_a_second_turn(plain):
    """The second turn continues on the first one's cache, which then holds the whole conversation."""
    model, inputs = compressed(plain, "dense"), with_types(batch(PROMPTS[0]))
    inputs.pop("second_per_grid_ts")
    first = model.generate(**inputs, **GREEDY, max_new_tokens=2, return_dict_in_generate=True)
    more = torch.cat([first.sequences, torch.tensor([[7, 8]])], dim=1)
    whole = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    whole |= {name: value for name, value in inputs.items() if "video" in name}
    asked = {**with_types(whole), **GREEDY, "max_new_tokens": 2}
    model.generate(**asked, past_key_values=first.past_key_values)
    assert first.past_key_values.get_seq_length() == more.shape[1] + 1


@torch.no_grad()
@pytest.mark.parametrize("form", ["without types", "embeddings"])
def test_without_token_types_an_answer_begins_as_the_forward_pass_says(plain, form):
    model, inputs = compressed(plain, "dense"), batch(PROMPTS[0])
    inputs.pop("second_per_grid_ts")
    if form == "embeddings":
        ids = inputs["input_ids"]
        inputs = with_types(inputs) | {"inputs_embeds": model.get_input_embeddings()(ids)}
        del inputs["input_ids"]
    asked = {**inputs, "do_sample": False, "eos_token_id": None, "max_new_tokens": 1}
    made = model.generate(**asked, output_logits=True, return_dict_in_generate=True)
    true = exact(model, lambda: model(**inputs).logits[:, -1])
    assert_rounds_alike(made.logits[0], model(**inputs).logits[:, -1], true)


@newer
def test_a_teacher_numbers_a_long_video_as_its_student(plain):
    model = compress(fuse(plain), CompressionConfig.preset("keep_one", ratio=0.99)).train()
    inputs = with_types(batch(PROMPTS[0]))
    wishes = {"labels": inputs["input_ids"].masked_fill(inputs["input_ids"] > 80, -100), "skip_logits": True}
    loss = model(**inputs, **wishes, distill=Distillation(1.0)).loss.item()
    assert model.compression.report.layers[0] == 14  # all tokens of the video
    assert abs(loss) <= divergence_error(out(model.eval(), inputs).logits)


@pytest.mark.parametrize("given", [lambda second: torch.tensor([second]), lambda second: [torch.tensor(second)]])
def test_seconds_keep_all_their_digits(plain, given):
    """A tensor's text has four of them, by which a plan must not be taken for another one's."""
    model, found = compressed(plain, "ppe"), []
    for second in (0.49996, 0.50004):
        plan = make_plan(model.model, model.compression, batch(PROMPTS[0]) | {"second_per_grid_ts": given(second)})
        found.append(plan.layout.spans[0].seconds_per_frame)
    assert found == pytest.approx([0.49996, 0.50004])


def test_where_tokens_are_merged_a_long_video_is_numbered_as_trained(plain):
    model, inputs = compressed(plain, "ppe"), with_types(batch(PROMPTS[0]))
    out(model, inputs)
    last = 3 + 6 * (model.compression.vision.tokens_per_second or 1)  # the seventh frame, after three tokens
    assert model.compression.last.positions[:, 17:21].tolist() == [[last + 1, last + 2, last + 3, last + 4]] * 3
