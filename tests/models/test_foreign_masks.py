"""Masks, labels and caches that other code has prepared, compared with the untouched model.

docs/compatibility.md lists these features by name.
"""

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, newer, out, pictures, random_model
from prompts import GREEDY
from support import Prompt, batch
from tolerances import assert_rounds_alike, exact
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, StaticCache

from ppe_npu.errors import InputError

pytestmark = [pytest.mark.half, pytest.mark.parametrize("family", FAMILIES), newer]
QUICK = [pytest.param(name, marks=() if name in ("dense", "cascade") else pytest.mark.slow) for name in SETTINGS]


@pytest.fixture
def plain(family):
    return random_model(family=family)


def numbered(plain) -> dict:
    """The inputs of two prompts of one length, with their positions."""
    inputs = pictures(pad_to=0)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    rows, _ = plain.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    return inputs | {"position_ids": rows}


@pytest.mark.parametrize("setting", SETTINGS)
def test_labels_of_the_logits_that_a_tensor_picks(plain, setting):
    model, inputs = compressed(plain, setting), pictures()
    kept = inputs["input_ids"].shape[1] - torch.tensor([6, 4, 3, 2, 1])
    labels = inputs["input_ids"][:, kept]
    given = {"labels": labels, "logits_to_keep": kept}

    def by_hand(model):
        whole = out(model, inputs, use_cache=False).logits[:, kept[:-1]]
        return cross_entropy(whole.flatten(0, 1), labels[:, 1:].flatten())

    found, true = out(model, inputs, use_cache=False, **given).loss, exact(model, lambda: by_hand(model))
    assert_rounds_alike(found, by_hand(model), true)
    shifted = {"shift_labels": torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)}
    assert_rounds_alike(out(model, inputs, use_cache=False, **given, **shifted).loss, by_hand(model), true)
    if setting == "dense":
        theirs, true = out(plain, inputs, **given).loss, exact(plain, lambda: out(plain, inputs, **given).loss)
        assert_rounds_alike(found, theirs, true)
        assert_rounds_alike(out(model, inputs, **given).loss, theirs, true)
    else:
        with pytest.raises(InputError, match="logits_to_keep is a tensor of the compressed output's columns"):
            out(model, inputs, **given)


@pytest.mark.parametrize("setting", QUICK)
def test_a_mask_that_generate_made_ready(plain, setting):
    """generate() prepares a dict of 4D masks, one for each type of layer."""
    model, inputs = compressed(plain, setting), numbered(plain)
    length = inputs["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    ready = inputs | {"attention_mask": {"full_attention": causal}}
    assert torch.equal(out(model, ready).logits, out(model, inputs | {"attention_mask": causal}).logits)
    if setting == "dense" and plain.config.model_type != "qwen3_vl":  # which accepts no dict when untouched
        true = exact(plain, lambda: out(plain, ready).logits)
        assert_rounds_alike(out(model, ready).logits, out(plain, ready).logits, true)
    ready["attention_mask"]["sliding_attention"] = causal
    with pytest.raises(InputError, match="dict of masks for full_attention, sliding_attention: give a tensor"):
        out(model, ready)


@pytest.mark.parametrize("setting", QUICK)
def test_a_step_with_a_mask_of_its_own(plain, setting):
    """The step has two tokens, as in a tree of guesses, that see neither each other nor the prompt's third token."""
    model, inputs = compressed(plain, setting), numbered(plain)
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(2, 1, 2, length + 2, dtype=torch.bool)
    mask[..., 2] = mask[:, :, 1, -2] = mask[:, :, 0, -1] = False
    step = {"input_ids": torch.tensor([[30, 31], [32, 33]]), "position_ids": torch.full((3, 2, 2), 40)}

    def run(model, mask):
        cache = out(model, inputs, use_cache=True).past_key_values
        return out(model, step, past_key_values=cache, attention_mask=mask).logits

    if setting == "dense":
        assert_rounds_alike(run(model, mask), run(plain, mask), exact(plain, lambda: run(plain, mask)))
        assert torch.equal(run(model, {"full_attention": mask}), run(model, mask))
    else:
        with pytest.raises(
            InputError, match=r"attention_mask has shape \[.*\]: for tokens .* \[batch, tokens so far\]"
        ):
            run(model, mask)


def rebuilt(model, inputs) -> DynamicCache:
    """A cache with only the keys and values of a prompt's cache."""
    cache = DynamicCache(config=model.config)
    for number, layer in enumerate(out(model, inputs, use_cache=True).past_key_values.layers):
        cache.update(layer.keys, layer.values, number)
    return cache


def by_the_decoder(kind):
    def fill(model, inputs):
        cache = kind(model.config.get_text_config())
        out(model.model.language_model, {"input_ids": inputs["input_ids"][:, :4]}, past_key_values=cache)
        return cache

    return fill


OTHERS = {
    "keys and values": rebuilt,
    "the decoder's": by_the_decoder(lambda config: DynamicCache(config=config)),
    "the decoder's, static": by_the_decoder(lambda config: StaticCache(config=config, max_cache_len=64)),
}


@pytest.mark.parametrize("filled", OTHERS)
@pytest.mark.parametrize("setting", QUICK)
def test_a_cache_that_others_have_filled(plain, setting, filled):
    model, inputs = compressed(plain, setting), pictures(pad_to=0)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    steps = [torch.tensor([[30, 31], [32, 33]]), torch.tensor([[34], [35]])]

    def run(model):
        cache = OTHERS[filled](model, inputs)
        return torch.cat([out(model, {"input_ids": ids}, past_key_values=cache).logits for ids in steps], 1)

    if setting == "dense":
        assert_rounds_alike(run(model), run(plain), exact(plain, lambda: run(plain)))
    else:
        with pytest.raises(InputError, match="filled by a model without compression"):
            run(model)


def test_a_mask_that_is_no_tensor_is_refused_by_name(plain):
    model, inputs = compressed(plain, "ppe"), pictures()
    cache = out(model, inputs, use_cache=True).past_key_values
    for given in (inputs, {"input_ids": inputs["input_ids"][:, -2:], "past_key_values": cache}):
        with pytest.raises(InputError, match="attention_mask is a list: give a tensor"):
            out(model, given | {"attention_mask": inputs["attention_mask"].tolist()})


@pytest.mark.parametrize("padding", ["left", "right", "both"])
@pytest.mark.parametrize("form", ["whole", "new"])
def test_dense_goes_on_as_untouched_whatever_side_the_padding_is_on(plain, padding, form):
    """An interrupted generation is continued with all of its ids or with the new ones. The first prompt is padded, and
    transformers numbers tokens after padding by the mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 60, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, {"left": [0, 1], "right": [7, 8], "both": [0, 8]}[padding]] = 0
    settings = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}

    def scores(model):
        first = model.generate(ids, attention_mask=mask, max_new_tokens=3, **settings)
        seen = first.past_key_values.get_seq_length()
        given = torch.cat([first.sequences, ids[:, :2]], 1)[:, 0 if form == "whole" else seen :]
        grown = torch.nn.functional.pad(mask, (0, 5), value=1)
        rest = {"attention_mask": grown, "past_key_values": first.past_key_values, "max_new_tokens": 2}
        return torch.stack(model.generate(given, **rest, **settings).logits)

    model = compressed(plain, "dense")
    assert_rounds_alike(scores(model), scores(plain), exact(plain, lambda: scores(plain)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("setting", QUICK)
def test_attentions_are_those_of_layers_that_tell_theirs(plain, setting, attention):
    model = compressed(plain, setting)
    for part in (plain, model):
        part.set_attn_implementation(attention)
    told = [out(part, pictures(), output_attentions=True).attentions for part in (plain, model)]
    assert len(told[1]) == len(told[0]) == (0 if attention == "sdpa" else plain.config.text_config.num_hidden_layers)


def test_an_answer_about_pictures_of_which_the_mask_hides_one(plain):
    """The answer begins as a forward pass says: the hidden picture is left out, and its hole in the mask is no
    padding."""
    model = compressed(plain, "dense")
    both = batch(Prompt([2, "start", ("image", (1, 4, 5)), 3, "start", ("image", (1, 3, 3)), 4], seed=1))
    both["attention_mask"][:, 3:23] = 0
    asked = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        found, whole = model.generate(**both, **asked).logits, model(**both).logits
    assert_rounds_alike(found[0], whole[:, -1], exact(model, lambda: model(**both).logits[:, -1]))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_samples_with_pictures_in_one_row_are_kept_apart_by_positions(plain, setting, attention):
    """Packing without padding gives such inputs: four rows of positions and no mask. The cache is switched off by an
    argument, or by the model's config, as trainers do."""
    inputs, real = pictures(), pictures()["attention_mask"].bool()
    plain.set_attn_implementation(attention)
    model = compressed(plain, setting)
    rows, _ = plain.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    places = torch.cat([torch.arange(count) for count in real.sum(1)])
    packed = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    packed |= {name: inputs[name][real][None] for name in ("input_ids", "mm_token_type_ids")}
    packed["position_ids"] = torch.cat([places[None], rows[:, real]])[:, None]
    expected = out(model, inputs, use_cache=False).logits[real]
    bound = torch.finfo(expected.dtype).eps * plain.config.text_config.hidden_size * expected.abs().max()
    by_argument = out(model, packed, use_cache=False).logits[0]
    model.config.text_config.use_cache = model.config.use_cache = False
    for found in (by_argument, out(model, packed).logits[0]):
        assert (found - expected).abs().max() <= bound
