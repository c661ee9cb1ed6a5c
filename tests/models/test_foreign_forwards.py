"""Arguments that other libraries pass to a model's forward, and what they read from its output, with compression.

docs/compatibility.md lists these features by name.
"""

import pytest
import torch
from foreign import FAMILIES, SETTINGS, WHOLE, compressed, newer, out, pictures, random_model
from prompts import GREEDY
from support import IMAGE_ID, VIDEO_ID, Prompt, batch
from tolerances import assert_rounds_alike, exact
from transformers import Qwen3VLForConditionalGeneration

from ppe_npu import align, compress
from ppe_npu.errors import InputError

pytestmark = [pytest.mark.half, pytest.mark.parametrize("family", FAMILIES)]


@pytest.fixture
def plain(family):
    return random_model(family=family)


def same(plain, setting, inputs, read, **kwargs):
    """Check that the part of the output that `read` returns equals the untouched model's, up to rounding."""
    ours = compressed(plain, setting)
    expected, true = read(out(plain, inputs, **kwargs)), exact(plain, lambda: read(out(plain, inputs, **kwargs)))
    assert_rounds_alike(read(out(ours, inputs, **kwargs)), expected, true)


@pytest.mark.parametrize("setting", WHOLE)
@pytest.mark.parametrize("form", ["two dimensions", "one row", "three rows", "four rows"])
def test_position_ids_in_every_form(plain, setting, form):
    inputs = pictures()
    places = torch.arange(inputs["input_ids"].shape[1]).expand(inputs["input_ids"].shape)
    rows = torch.stack([places, places.flip(1), places // 2])
    forms = {"two dimensions": places, "one row": places[None], "three rows": rows}
    given = (forms | {"four rows": torch.cat([places[None], rows])})[form]
    real = inputs["attention_mask"].bool()
    same(plain, setting, inputs, lambda output: output.logits[real], position_ids=given)


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_row_of_position_ids_is_three_alike(plain, setting):
    model, inputs = compressed(plain, setting), pictures()
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0) * 2
    expected = out(model, inputs, position_ids=places.expand(3, -1, -1)).logits
    for given in (places, places[None], places.expand(4, -1, -1)):
        assert torch.equal(out(model, inputs, position_ids=given).logits, expected)


@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_a_step_takes_position_ids_as_it_would_number_itself(plain, setting):
    model, inputs, step = compressed(plain, setting), pictures(), torch.tensor([[7], [8]])
    first = out(model, inputs, use_cache=True)
    by_itself = out(model, {"input_ids": step, "past_key_values": first.past_key_values}).logits
    again = out(model, inputs, use_cache=True)
    places = inputs["attention_mask"].sum(1, keepdim=True) + again.rope_deltas
    told = {"input_ids": step, "past_key_values": again.past_key_values, "position_ids": places.expand(3, 2, 1)}
    assert torch.equal(out(model, told).logits, by_itself)


@pytest.mark.parametrize("setting", SETTINGS)
def test_placeholders_without_pixels_are_text(plain, setting):
    inputs = {name: value for name, value in pictures().items() if name in ("input_ids", "attention_mask")}
    real = inputs["attention_mask"].bool()
    length = out(compressed(plain, setting), inputs).logits.shape[1]
    assert length == real.shape[1]
    same(plain, setting, inputs, lambda output: output.logits[real])
    with pytest.raises(InputError, match="more image tokens than image_grid_thw describes"):
        out(compressed(plain, "ppe"), inputs | {"image_grid_thw": pictures()["image_grid_thw"]})


@newer
@pytest.mark.parametrize("setting", WHOLE)
@pytest.mark.parametrize("layers", [True, [0], [1, 2]], ids=str)
def test_hidden_states_of_all_layers_or_of_some(plain, setting, layers):
    inputs = pictures(pad_to=0)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    ours = out(compressed(plain, setting), inputs, output_hidden_states=layers).hidden_states
    theirs = out(plain, inputs, output_hidden_states=layers).hidden_states
    true = exact(plain, lambda: out(plain, inputs, output_hidden_states=layers).hidden_states)
    assert [state is None for state in ours] == [state is None for state in theirs]
    kept = [number for number, state in enumerate(theirs) if state is not None]
    assert_rounds_alike(*([states[number] for number in kept] for states in (ours, theirs, true)))


@newer
@pytest.mark.parametrize("setting", SETTINGS)
def test_rope_deltas_are_those_of_the_prompt(plain, setting):
    inputs = pictures()
    ours, theirs = out(compressed(plain, setting), inputs), out(plain, inputs)
    assert torch.equal(ours.rope_deltas, theirs.rope_deltas)
    assert list(ours.keys()) == list(theirs.keys())
    ours.rope_deltas.add_(100)  # no later pass of such a prompt reads the caller's tensor
    assert torch.equal(out(compressed(plain, setting), inputs).rope_deltas, theirs.rope_deltas)


@newer
@pytest.mark.parametrize("setting", SETTINGS)
def test_who_numbers_a_prompt_gets_no_rope_deltas_of_it(plain, setting):
    """An extra output in some batches would become an extra prediction in an evaluation."""
    inputs, models = pictures(), (compressed(plain, setting), plain)
    places = torch.arange(inputs["input_ids"].shape[1]).expand(3, 2, -1)
    ours, theirs = (out(model, inputs, position_ids=places, use_cache=False) for model in models)
    assert list(ours.keys()) == list(theirs.keys()) == ["logits"]
    for model in models:
        out(model, inputs)
    ours, theirs = (out(model, inputs, position_ids=places).rope_deltas for model in models)
    assert torch.equal(ours, theirs)


def test_dense_keeps_columns_that_are_padding_in_every_row(plain, family):
    inputs = pictures(pad_to=60)
    real = inputs["attention_mask"].bool()
    assert out(compressed(plain, "dense"), inputs).logits.shape[1] == 60
    assert out(compressed(plain, "one"), inputs).logits.shape[1] == real.sum(1).max()
    same(plain, "dense", inputs, lambda output: output.logits[real])


@pytest.mark.ci
def test_dense_counts_a_label_on_any_token(plain, family):
    inputs = pictures()
    for labels in (inputs["input_ids"], inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)):
        same(plain, "dense", inputs, lambda output: output.loss, labels=labels)
        same(plain, "dense", inputs, lambda output: output.loss, labels=labels, num_items_in_batch=7)
        shifted = torch.roll(labels, -1, 1)
        same(plain, "dense", inputs, lambda output: output.loss, labels=labels, shift_labels=shifted)


def answers(inputs, count=4):
    """[B, S] labels on the last tokens only, as trainers give them."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -count:] = inputs["input_ids"][:, -count:]
    return labels


@pytest.mark.parametrize("setting", SETTINGS)
def test_shifted_labels_labels_of_kept_logits_and_the_callers_count(plain, setting):
    model, inputs = compressed(plain, setting), pictures()
    labels = answers(inputs)
    usual = out(model, inputs, labels=labels).loss
    true = exact(model, lambda: out(model, inputs, labels=labels).loss)
    for others in (
        {"labels": labels, "shift_labels": torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)},
        {"labels": labels, "num_items_in_batch": 8},
        {"labels": labels, "num_items_in_batch": torch.tensor(8)},
        {"labels": labels, "use_cache": False},
    ):
        assert_rounds_alike(out(model, inputs, **others).loss, usual, true)
    # None of the kept logits predicts the first of the last five columns' labels.
    kept = out(model, inputs, labels=labels[:, -5:], logits_to_keep=5).loss
    assert_rounds_alike(kept, usual, true)


@pytest.mark.parametrize("setting", ["one", "ppe", "cascade"])
def test_a_count_of_labels_that_do_not_count_here_is_corrected_with_a_word(plain, setting):
    model, inputs = compressed(plain, setting), pictures()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    usual = out(model, inputs, labels=labels).loss
    true = exact(model, lambda: out(model, inputs, labels=labels).loss)
    count = int((labels[:, 1:] != -100).sum())
    with pytest.warns(UserWarning, match="num_items_in_batch is scaled by"):
        scaled = out(model, inputs, labels=labels, num_items_in_batch=count).loss
    assert_rounds_alike(scaled, usual, true)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_align_brings_what_a_caller_holds_to_the_outputs_length(plain, setting, side):
    model, inputs = compressed(plain, setting), pictures(side)
    real = inputs["attention_mask"].bool()
    text = real & (inputs["input_ids"] != 90)
    labels = inputs["input_ids"].masked_fill(~text, -100)
    labels[torch.arange(2), real.int().argmax(1)] = -100
    output = out(model, inputs, labels=labels)
    assert torch.equal(align(model, labels), output.labels)
    weights = torch.rand(*labels.shape, 2)
    brought = align(model, weights, fill=0)
    assert brought.shape[:2] == output.logits.shape[:2]
    if setting == "dense":
        assert torch.equal(brought, weights)
    else:
        assert torch.equal(brought[output.labels != -100], weights[labels != -100])
    shifted = align(model, torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1), shifted=True)
    assert torch.equal(shifted[:, :-1], output.labels[:, 1:])
    with pytest.raises(InputError, match=r"values have shape \[2, 3\], but the prompt's input_ids had"):
        align(model, labels[:, :3])
    with pytest.raises(InputError, match="has seen no prompt yet"):
        align(compressed(plain, setting), labels)
    with pytest.raises(InputError, match="is not compressed"):
        align(plain, labels)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_a_cache_outputs_stand_as_the_prompt_does(plain, setting, side):
    """So code that scores the logits against its own labels gets the model's own loss."""
    model, inputs = compressed(plain, setting), pictures(side)
    labels = answers(inputs)
    if side == "right":
        labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
        labels[0, :28] = labels[1, :12] = -100  # only text after the pictures is left
    kept, true = out(model, inputs, labels=labels), exact(model, lambda: out(model, inputs, labels=labels).loss)
    for others in ({"use_cache": False}, {"use_cache": False, "labels": labels}):
        logits = out(model, inputs, **others).logits
        assert logits.shape[:2] == labels.shape
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        assert_rounds_alike(loss, kept.loss, true)
    hidden = out(model.model, {**inputs, "use_cache": False}).last_hidden_state
    assert hidden.shape[:2] == labels.shape
    assert torch.equal(model.lm_head(hidden), logits)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_picture_that_the_mask_hides(plain, setting):
    inputs = pictures("right")
    inputs["attention_mask"][1, 4:] = 0
    if setting == "dense":
        out(compressed(plain, setting), inputs)
        real = inputs["attention_mask"].bool()
        alone = {name: value[:1] for name, value in inputs.items() if value.shape[0] == 2}
        first = alone | {"pixel_values": inputs["pixel_values"][:80]}
        expected, true = (
            run(lambda: out(plain, first).logits[0][real[0]]) for run in (lambda f: f(), lambda f: exact(plain, f))
        )
        assert_rounds_alike(out(compressed(plain, setting), inputs).logits[0][real[0]], expected, true)
        return
    model, bare = compressed(plain, setting), ("pixel_values", "image_grid_thw")
    one = inputs | {"pixel_values": inputs["pixel_values"][:80], "image_grid_thw": inputs["image_grid_thw"][:1]}
    assert torch.equal(out(model, inputs).logits, out(model, one).logits)
    inputs["attention_mask"][0, 4:] = 0  # trainers do this that give every batch a picture
    none = {name: value for name, value in inputs.items() if name not in bare}
    assert torch.equal(out(model, inputs).logits, out(model, none).logits)
    inputs["attention_mask"][0, 4:10] = 1
    with pytest.raises(InputError, match="attention_mask hides 17 image tokens of sample 0"):
        out(model, inputs)


@pytest.mark.parametrize("setting", SETTINGS)
def test_features_that_do_not_match_are_named_in_transformers_words(plain, setting):
    inputs = pictures()
    short = inputs | {"pixel_values": inputs["pixel_values"][:80], "image_grid_thw": inputs["image_grid_thw"][:1]}
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: 26, features: 20"):
        out(compressed(plain, setting), short)


@newer
@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_features_in_place_are_found_or_refused(plain, setting):
    """ms-swift passes such inputs: embeddings that contain the tower's features, and position_ids."""
    inputs, model = pictures(), compressed(plain, setting)
    ids, usual = inputs["input_ids"], out(model, inputs).logits
    if hasattr(plain.model, "get_image_features"):
        features = torch.cat(
            list(plain.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
        )
    embeds = plain.get_input_embeddings()(ids).masked_scatter((ids == 90)[..., None], features)
    positions, _ = plain.model.get_rope_index(
        ids,
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    bare = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "position_ids": positions}
    if setting == "dense":
        out(model, bare)
    else:
        with pytest.raises(InputError, match="inputs_embeds hold images or videos"):
            out(model, bare)
        with pytest.raises(InputError, match="inputs_embeds hold images or videos"):
            out(model, bare | {"input_ids": ids})
    if plain.config.model_type != "qwen3_vl":  # its deepstack features are no part of the embeddings
        for told in ({"input_ids": ids}, {"mm_token_type_ids": inputs["mm_token_type_ids"]}):
            found = out(model, bare | told | {"image_grid_thw": inputs["image_grid_thw"]})
            assert torch.equal(found.logits, usual)


@newer
@pytest.mark.parametrize("setting", SETTINGS)
def test_llama_factorys_columns(plain, setting):
    """LLaMA-Factory's collator gives position_ids [3, B, S] and rope_deltas in addition to ids, pixels and labels."""
    inputs, model = pictures(), compressed(plain, setting)
    labels = answers(inputs)
    positions, deltas = plain.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    given = out(model, inputs, labels=labels, position_ids=positions, rope_deltas=deltas)
    assert torch.equal(given.loss, out(model, inputs, labels=labels).loss)


def test_sections_that_do_not_fill_half_a_head_are_refused_where_they_stand_one_after_the_other(plain, family):
    if family == "qwen3_vl":
        pytest.skip("where they take turns the first axis has what is left")
    plain.config.text_config.rope_parameters["mrope_section"] = [8, 8, 8]
    with pytest.raises(InputError, match="mrope_section has 24 channels in all, but half a head has 32"):
        compress(plain, SETTINGS["dense"])


@pytest.mark.parametrize("setting", WHOLE)
@pytest.mark.parametrize("sections", [[8, 8, 8], [32, 16, 16]], ids=str)
def test_sections_that_take_turns_may_be_too_few_or_too_many(family, setting, sections):
    if family != "qwen3_vl":
        pytest.skip("sections that follow each other are refused")
    config, real = random_model(family=family).config, pictures()["attention_mask"].bool()
    config.text_config.rope_parameters["mrope_section"] = sections
    torch.manual_seed(0)
    same(Qwen3VLForConditionalGeneration(config).eval(), setting, pictures(), lambda output: output.logits[real])


@pytest.mark.parametrize("setting", SETTINGS)
def test_log_probabilities_of_a_policy_are_those_that_generate_gave(plain, setting):
    """GRPO reads them from the last columns of the inner model's output, without a cache, with prompts padded on the
    left and answers on the right."""
    model, inputs = compressed(plain, setting), pictures()
    settings = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    answer = model.generate(**inputs, **settings)
    expected = torch.stack(answer.logits, 1).log_softmax(-1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 5, dtype=torch.long)], 1)
    mask[1, -2:] = 0  # the second answer ended early
    asked = {"input_ids": answer.sequences, "attention_mask": mask, "use_cache": False}
    visual = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    hidden = out(model.model, asked | visual).last_hidden_state[:, -6:-1]
    found = model.lm_head(hidden).log_softmax(-1)
    kept = mask[:, -5:].bool()
    bound = torch.finfo(found.dtype).eps * plain.config.text_config.hidden_size * expected[kept].abs().max()
    assert (found - expected)[kept].abs().max() <= bound


@newer
@torch.no_grad()
def test_rope_deltas_are_those_of_the_prompt_that_was_generated_for_last(plain, family):
    """generate() itself computes the positions of a dense prompt in which text follows a video's time."""
    film = batch(Prompt([3, ("frames" if family == "qwen3_vl" else "video", (4, 4, 4)), 5], seed=3))
    ids = film["input_ids"]
    if family != "qwen2_5_vl":
        del film["second_per_grid_ts"]
    film["mm_token_type_ids"] = (ids == IMAGE_ID).int() + 2 * (ids == VIDEO_ID).int()
    found = []
    for model in (compressed(plain, "dense"), plain):
        for inputs in (pictures(), film):
            model.generate(**inputs, max_new_tokens=3, **GREEDY)
        found.append(model.model.rope_deltas)
    assert torch.equal(*found)
