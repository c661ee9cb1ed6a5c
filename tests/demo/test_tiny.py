"""The tiny model works like any Qwen2.5-VL with the processor, chat template, generate, save and load."""

import numpy as np
import pytest
import torch
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from ppe_npu.demo.scenes import make_scene
from ppe_npu.demo.tiny import UNKNOWN, VISUAL_TOKENS, VOCABULARY, build_model, build_processor

IMAGE = "<|image_pad|>"


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


@pytest.fixture
def scene():
    return make_scene(np.random.default_rng(0))


def ask(processor, scene, question: str):
    content = [{"type": "image", "image": scene.render()}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def test_every_question_and_answer_is_in_the_vocabulary(processor):
    rng = np.random.default_rng(0)
    for simple in (False, True) * 50:
        for _, question, answer in make_scene(rng, simple).questions():
            assert len(processor.tokenizer(question).input_ids) == 2
            assert len(processor.tokenizer(answer).input_ids) == 1
            assert not {*question.split(), answer} - set(VOCABULARY)
    assert processor.tokenizer("what").input_ids == [VOCABULARY[UNKNOWN]]


def test_a_prompt_is_chatml_with_36_image_tokens_and_no_newline(processor, scene):
    words = processor.tokenizer.convert_ids_to_tokens(ask(processor, scene, "row red").input_ids[0])
    assert words == [
        *("<|im_start|>", "user", "<|vision_start|>", *[IMAGE] * 36, "<|vision_end|>"),
        *("row", "red", "<|im_end|>", "<|im_start|>", "assistant"),
    ]
    assert VISUAL_TOKENS == 36


def test_an_answered_turn_and_a_system_message_follow_the_template(processor):
    turns = [("system", "count"), ("user", "row red"), ("assistant", "3")]
    text = processor.apply_chat_template([{"role": role, "content": said} for role, said in turns], tokenize=False)
    assert text == "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)


def test_pixels_reach_the_model_unresized(processor, scene):
    inputs = ask(processor, scene, "row red")
    assert inputs.image_grid_thw.tolist() == [[1, 12, 12]]
    assert inputs.pixel_values.shape == (144, 3 * 2 * 4 * 4)
    # patches stand merged cell by merged cell: (row, col of the cell), (row, col of the patch in it), channel, t, y, x
    patches = inputs.pixel_values.reshape(6, 6, 2, 2, 3, 2, 4, 4)[..., 0, :, :]
    pixels = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(48, 48, 3) * 127.5 + 127.5
    # Scaled, shifted and scaled there, and scaled and shifted back here.
    assert_near(pixels, torch.from_numpy(scene.pixels()).float(), roundings=3 + 2, size=255)


def test_the_processor_comes_back_from_its_folder(processor, scene, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    before, after = (ask(one, scene, "barlen blue") for one in (processor, loaded))
    assert type(loaded) is type(processor)
    assert set(before) == set(after)
    for name in before:
        if before[name].is_floating_point():  # transformers comes back with its other image processor
            assert_near(before[name], after[name], roundings=3)  # scaled, shifted, scaled
        else:
            assert_equal(before[name], after[name], name)
    assert loaded.tokenizer.decode(after.input_ids[0], skip_special_tokens=True).split()[-3:] == [
        *("barlen", "blue", "assistant"),
    ]


def test_a_video_becomes_video_tokens(processor, scene):
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "row red"}]}], tokenize=False
    )
    clip = np.stack([scene.pixels()] * 4)
    inputs = processor(text=[text], videos=[clip], do_sample_frames=False, return_tensors="pt")
    assert inputs.video_grid_thw.tolist() == [[2, 12, 12]]
    assert (inputs.input_ids == VOCABULARY["<|video_pad|>"]).sum() == 2 * 36


def test_the_model_answers_and_comes_back_from_its_folder(model, processor, scene, tmp_path):
    inputs = ask(processor, scene, "row red")
    answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert answer.shape[1] == inputs.input_ids.shape[1] + 1
    model.save_pretrained(tmp_path)
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        true = exact(model, lambda: model(**inputs).logits)
        assert_rounds_alike(loaded(**inputs).logits, model(**inputs).logits, true)


def test_a_seed_is_a_model_and_draws_nothing_from_outside(model):
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    same, other = build_model(0), build_model(1)
    assert torch.equal(torch.rand(1), expected)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert any(not torch.equal(w, other.state_dict()[name]) for name, w in model.state_dict().items())


@torch.no_grad()
def test_features_say_nothing_about_the_place_in_the_picture(model, processor):
    """One window of 2x2 cells, drawn at two places, gives the same features: no position leaks into them."""
    pixels = np.full((48, 48, 3), 200, dtype=np.uint8)
    patch = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    pixels[:16, :16] = pixels[32:, 16:32] = patch
    inputs = processor.image_processor(images=[pixels], return_tensors="pt")

    def features():
        return model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output.view(6, 6, -1)

    found, true = features(), exact(model, features)
    assert_rounds_alike(found[:2, :2], found[4:, 2:4], true[4:, 2:4], layers=1)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_features_are_small_enough_to_cluster(seed, processor):
    """Density is exp(-d^2): at an RMS of 4 it underflows, and figures no longer become centres."""
    rng = np.random.default_rng(0)
    images = [make_scene(rng).render() for _ in range(8)]
    inputs = processor.image_processor(images=images, return_tensors="pt")
    features = build_model(seed).model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
    assert 0.3 < features.pow(2).mean().sqrt() < 0.9
