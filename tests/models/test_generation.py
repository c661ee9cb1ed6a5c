"""generate() on compressed models: beams, padding, second turns, speculative decoding; the cache and its state."""

import copy
import dataclasses

import pytest
import torch
import transformers
from packaging.version import Version
from prompts import APART, GREEDY, MIXED, PPE, PRESET_CASES, PRESETS, kept_logits, logits, with_types
from support import Prompt, batch, random_model
from tolerances import assert_rounds_alike, exact
from transformers import StaticCache

from ppe_npu import CompressionConfig, compress
from ppe_npu.methods import FastV

pytestmark = pytest.mark.half


def test_ratio_one_generates_what_the_dense_model_generates(model):
    inputs = with_types(batch(*APART))
    settings = {"max_new_tokens": 6, **GREEDY}
    expected = model.generate(**inputs, **settings)
    beams = model.generate(**inputs, **settings, num_beams=2)
    compress(model, CompressionConfig.preset("ppe", ratio=1.0, k=4))
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert torch.equal(model.generate(**inputs, **settings, num_beams=2), beams)
    inputs.pop("mm_token_type_ids", None)  # transformers needs them, but does not complain if they are missing
    assert torch.equal(model.generate(**inputs, **settings), expected)


@pytest.mark.parametrize("config", PRESET_CASES)
def test_decoding_with_the_cache_gives_the_logits_of_decoding_without(model, config):
    compress(model, config)
    inputs = batch(*MIXED)
    settings = {"max_new_tokens": 4, **GREEDY}
    cached = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    settings |= {"use_cache": False, "return_dict_in_generate": True, "output_logits": True}
    plain, true = model.generate(**inputs, **settings), exact(model, lambda: model.generate(**inputs, **settings))
    assert torch.equal(cached.sequences, plain.sequences)
    assert_rounds_alike(cached.logits, plain.logits, true.logits)
    # The cache's last layer holds the kept tokens (of the longest sample) and every generated token but the last.
    kept = max(len(row) for row in kept_logits(model, *MIXED))
    assert cached.past_key_values.layers[-1].get_seq_length() == kept + 3


@pytest.mark.parametrize("config", [PRESETS["ppe"], PRESETS["chatunivi"]], ids=["ppe", "chatunivi"])
def test_a_second_turn_on_the_same_cache(model, config):
    """generate() gets the whole conversation and a cache that is shorter than that."""
    compress(model, config)
    inputs = batch(MIXED[0])
    settings = {"max_new_tokens": 3, **GREEDY}
    first = model.generate(**inputs, **settings, return_dict_in_generate=True)
    more = torch.cat([first.sequences, torch.tensor([[11, 12, 13, 14]])], dim=1)
    mask = torch.ones_like(more)
    second = model.generate(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values, **settings)
    fresh = model.generate(**{**inputs, "input_ids": more, "attention_mask": mask}, **settings)
    assert torch.equal(second, fresh)


@pytest.mark.parametrize("config", PRESET_CASES)
def test_right_padded_prompts_generate_what_left_padded_ones_do(model, config):
    compress(model, config)
    left, right = (model.generate(**batch(*MIXED, side=side), max_new_tokens=4, **GREEDY) for side in ("left", "right"))
    assert torch.equal(left[:, -4:], right[:, -4:])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.3"), reason="its speculative decoding counts columns by the cache"
)
@pytest.mark.parametrize("config", PRESET_CASES)
@pytest.mark.ci
def test_prompt_lookup_decoding_takes_rejected_tokens_off_the_cache(model, config):
    """Speculative decoding feeds several tokens per step and crops wrong ones off the cache."""
    compress(model, config)
    settings = {"max_new_tokens": 12, **GREEDY, "eos_token_id": 2}  # prompt lookup of transformers 5.2 needs one
    for seed in range(3):
        inputs = batch(Prompt([2, ("image", (1, 4, 5)), 6, ("image", (1, 2, 2)), 6], seed=seed))
        expected = model.generate(**inputs, **settings)
        assert torch.equal(model.generate(**inputs, **settings, prompt_lookup_num_tokens=3), expected)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.3"), reason="its speculative decoding counts columns by the cache"
)
@pytest.mark.parametrize("config", [*PRESET_CASES, CompressionConfig(steps=[FastV(0.5, layer=1)])])
def test_a_prompt_that_ends_as_it_began_is_not_compressed_by_guesses(model, config):
    """Prompt lookup guesses that the last words are followed by what followed the first ones: text and placeholders."""
    compress(model, config)
    inputs = batch(Prompt([4, ("image", (1, 4, 5)), 6], seed=1))
    inputs["input_ids"][:, -2:] = inputs["input_ids"][:, :2]
    settings = {"max_new_tokens": 4, **GREEDY, "eos_token_id": 2, "output_logits": True}
    settings["return_dict_in_generate"] = True
    expected, found = (model.generate(**inputs, **settings, prompt_lookup_num_tokens=count) for count in (None, 4))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.logits[0], expected.logits[0])


def test_a_cropped_cache_goes_on_where_it_was_cut(model):
    compress(model, PPE)
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    token = {"input_ids": torch.tensor([[7]]), "past_key_values": cache}
    first = logits(model, token)
    cache.crop(-1)
    assert torch.equal(logits(model, token), first)
    cache.crop(-2)
    with pytest.raises(ValueError, match="cut off only decoded tokens"):
        logits(model, token)


def test_a_cascades_cache_cut_to_the_length_of_its_first_layer_is_cut_everywhere(model):
    compress(model, PRESETS["cascade"])
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    lengths = [layer.get_seq_length() for layer in cache.layers]
    steps = [{"input_ids": torch.tensor([[token]]), "past_key_values": cache} for token in (7, 8)]
    first = logits(model, steps[0])
    logits(model, steps[1])
    try:
        cache.crop(lengths[0])  # more than the later layers ever held
    except ValueError:
        pytest.skip("newer caches are cut by a number of tokens, each layer by itself")
    assert torch.equal(logits(model, steps[0]), first)
    assert [layer.get_seq_length() for layer in cache.layers] == [length + 1 for length in lengths]


def continued(model, tokens):
    """Logits of tokens that continue the first of the mixed prompts."""
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    return logits(model, {"input_ids": torch.tensor([tokens]), "past_key_values": cache})[0]


def test_a_step_may_be_padding_for_a_finished_sample(model):
    """A hand-written loop feeds arbitrary tokens for finished samples and masks them."""
    compress(model, PPE)
    inputs = batch(MIXED[0], copy.deepcopy(MIXED[0]))
    cache = model(**inputs, use_cache=True).past_key_values
    grown = torch.cat([inputs["attention_mask"], torch.tensor([[1], [0]])], dim=1)
    logits(model, {"input_ids": torch.tensor([[7], [7]]), "attention_mask": grown, "past_key_values": cache})
    grown = torch.cat([grown, torch.tensor([[1], [1]])], dim=1)
    step = {"input_ids": torch.tensor([[9], [9]]), "attention_mask": grown, "past_key_values": cache}
    after = logits(model, step)
    expected, true = continued(model, [9]), exact(model, lambda: continued(model, [9]))
    assert_rounds_alike(after[1], expected, true)


@pytest.mark.parametrize("config", [PPE, PRESETS["cascade"]], ids=["ppe", "cascade"])
def test_a_mask_of_ones_is_none_to_a_step_and_a_table_is_made_once_for_all_stages(model, config):
    compress(model, config)
    inputs, tables = batch(MIXED[0]), []
    model.model.language_model.rotary_emb.register_forward_hook(lambda *args: tables.append(args))
    told = []
    for masked in (True, False):
        cache = model(**inputs, use_cache=True).past_key_values
        grown = torch.cat([inputs["attention_mask"], torch.ones(1, 1, dtype=torch.long)], dim=1)
        given = {"attention_mask": grown} if masked else {}
        tables.clear()
        told.append(logits(model, {"input_ids": torch.tensor([[7]]), "past_key_values": cache, **given}))
        assert len(tables) == 1
        assert not any(cache.ppe_state.padded)
    assert torch.equal(*told)


def test_generated_tokens_continue_after_the_prompts_largest_position(model):
    seen = []
    compress(model, PPE)
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[1]), with_kwargs=True
    )
    model.generate(**batch(MIXED[0]), max_new_tokens=3, **GREEDY)
    prompt, *steps = seen
    assert prompt.shape[0] == 12
    # 2 text, an image of 4 x 5 (5 positions), 3 text, a video at 1 frame per second (4 positions), 2 text.
    assert prompt.max().item() == 2 + 5 + 3 + 4 + 2 - 1
    assert [step.flatten().unique().tolist() for step in steps] == [[16], [17]]


def test_caches_that_do_not_fit_are_named(model):
    inputs = batch(Prompt([4]))
    cache = model(**inputs, use_cache=True).past_key_values
    compress(model, PPE)
    with pytest.raises(ValueError, match="filled by a model without compression"):
        logits(model, inputs, past_key_values=cache)
    cache = model(**inputs, use_cache=True).past_key_values
    compress(model, dataclasses.replace(PPE, layers=(1,)))
    with pytest.raises(ValueError, match="filled with another compression"):
        logits(model, inputs, past_key_values=cache)


def test_a_prefix_that_is_repeated_for_several_answers(model):
    """transformers shares a prefix in this way: fill a cache once, repeat it in place, continue with a batch."""
    compress(model, PRESETS["cascade"])
    inputs = batch(MIXED[0])
    cache = model(**inputs, use_cache=True).past_key_values
    tokens = torch.tensor([[7, 8], [9, 10], [11, 12]])
    cache.batch_repeat_interleave(3)
    together = logits(model, {"input_ids": tokens, "past_key_values": cache})

    def alone():
        return [continued(model, token) for token in tokens.tolist()]

    assert_rounds_alike(list(together), alone(), exact(model, alone))
    with pytest.raises(ValueError, match="holds a batch of 3, but the new tokens one of 2: give 3 samples"):
        logits(model, {"input_ids": tokens[:2], "past_key_values": cache})


def test_what_a_continued_cache_cannot_take_is_named(model):
    compress(model, PPE)
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    step = {"input_ids": torch.tensor([[7]]), "past_key_values": cache}
    with pytest.raises(ValueError, match=r"position_ids have shape \[3, 1, 2\]: give \[3, 1, 1\]"):
        logits(model, step, position_ids=torch.zeros(3, 1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask has shape \[.*\]: for tokens .* \[batch, tokens so far\]"):
        logits(model, step, attention_mask=torch.ones(1, 1, 1, 33, dtype=torch.bool))
    compress(model, dataclasses.replace(PPE, layers=(1,)))
    cache = model(**batch(MIXED[0]), use_cache=True).past_key_values
    compress(model, dataclasses.replace(PPE, layers=(2,)))
    with pytest.raises(ValueError, match="filled with another compression"):
        logits(model, {"input_ids": torch.tensor([[7]]), "past_key_values": cache})


def test_a_static_cache_of_another_compression_is_named_from_its_first_step_on(model):
    """Also in a step of a single token, in which the host does not read the cache's length."""
    compress(model, dataclasses.replace(PPE, layers=(1,)))
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    logits(model, batch(MIXED[0]), past_key_values=cache, use_cache=True)
    compress(model, dataclasses.replace(PPE, layers=(2,)))
    for ids in ([[7]], [[7, 8]]):
        with pytest.raises(ValueError, match="filled with another compression"):
            logits(model, {"input_ids": torch.tensor(ids), "past_key_values": cache})
    cache.reset()
    logits(model, batch(MIXED[0]), past_key_values=cache)


def test_speculation_that_would_count_wrongly_is_refused(model):
    compress(model, PPE)
    with pytest.raises(ValueError, match="assistant_model counts the columns of the uncompressed prompt"):
        model.generate(**batch(MIXED[0]), assistant_model=random_model(seed=1), max_new_tokens=3, eos_token_id=2)
