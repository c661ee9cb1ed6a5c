"""generate() and caches as other libraries use them, compared with the untouched model.

docs/compatibility.md lists these features by name.
"""

import copy
import itertools
import pickle
from types import SimpleNamespace

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, newer, pictures, random_model
from prompts import GREEDY
from torch.nn import functional as F
from transformers import CompileConfig, StaticCache

from ppe_npu.errors import InputError
from ppe_npu.inspect.report import kv_bytes

pytestmark = [pytest.mark.half, pytest.mark.parametrize("family", FAMILIES)]
SLOW = pytest.mark.slow
FIVE = {"max_new_tokens": 5, **GREEDY}


@pytest.fixture
def plain(family):
    return random_model(family=family)


def single():
    """The inputs of the first of the two prompts alone."""
    inputs = pictures()
    alone = {name: value[:1] for name, value in inputs.items() if len(value) == 2}
    return alone | {"pixel_values": inputs["pixel_values"][:80]}


FEATURES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5},
    "several answers": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "repetition penalty": {"repetition_penalty": 1.3},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[11], [12, 13]]},
    "scores and states": {"output_scores": True, "output_logits": True, "output_hidden_states": True},
    "dictionary": {"return_dict_in_generate": True},
}


QUICK = ("sampling", "beams", "static cache", "no cache", "scores and states")  # with "ppe"; test-all runs all


@pytest.mark.parametrize(
    ("setting", "feature"),
    [
        pytest.param(
            *both,
            marks=() if both[0] == "dense" or (both == ("ppe", both[1]) and both[1] in QUICK) else pytest.mark.slow,
        )
        for both in itertools.product(("dense", "ppe", "one", "cascade"), FEATURES)
    ],
)
def test_features_of_generate(plain, setting, feature):
    def run(model):
        torch.manual_seed(0)
        output = model.generate(**pictures(), **{**FIVE, **FEATURES[feature]})
        return output if isinstance(output, torch.Tensor) else output.sequences

    ours = run(compressed(plain, setting))
    if setting in ("dense", "one"):
        assert torch.equal(ours, run(plain))
    else:
        assert torch.equal(ours, run(compressed(plain, setting)))
        length = pictures()["input_ids"].shape[1]
        assert torch.equal(ours[:1, :length], pictures()["input_ids"][:1])
        assert ours.shape[1] == length + 5


def padded(plain, given: str, side: str) -> dict:
    """Two prompts, the first of them padded: of text, given as ids, embeddings or both, or with pictures."""
    if given == "pictures":
        return pictures(side)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 60, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, slice(6, None) if side == "right" else slice(3)] = 0
    both = {"input_ids": ids, "inputs_embeds": plain.get_input_embeddings()(ids).detach(), "attention_mask": mask}
    left_out = {"text": "inputs_embeds", "embeds": "input_ids"}.get(given)
    return {name: value for name, value in both.items() if name != left_out}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["text", "embeds", "text and embeds", "pictures"])
@newer
def test_dense_generates_as_untouched_whatever_side_the_padding_is_on(plain, given, side):
    """With padding on the right transformers warns and continues from padding with odd positions; so does dense."""
    settings = {**FIVE, "output_logits": True, "return_dict_in_generate": True}
    inputs, model = padded(plain, given, side), compressed(plain, "dense")
    for feature in ("dictionary", "beams", "static cache"):
        expected, found = (part.generate(**inputs, **settings | FEATURES[feature]) for part in (plain, model))
        assert torch.equal(found.sequences, expected.sequences)
        expected, found = torch.stack(expected.logits), torch.stack(found.logits)
        bound = torch.finfo(expected.dtype).eps * plain.config.text_config.hidden_size * expected.abs().max()
        assert (found - expected).abs().max() <= bound


@pytest.mark.parametrize("setting", SETTINGS)
def test_chunks_of_a_prompt_do_not_lose_its_picture(plain, setting):
    model, inputs = compressed(plain, setting), single()
    with pytest.warns(UserWarning, match="prefill_chunk_size=8 is ignored"):
        chunked = model.generate(**inputs, **FIVE, prefill_chunk_size=8)
    assert torch.equal(chunked, model.generate(**inputs, **FIVE))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_placeholder_that_was_generated_is_text(plain, setting):
    settings = {**FIVE, "suppress_tokens": None, "sequence_bias": [[[90], 1e6]]}
    model = compressed(plain, setting)
    answers = [model.generate(**single(), **settings, use_cache=use) for use in (True, False)]
    assert torch.equal(*answers)
    assert (answers[0][0, -5:] == 90).all()


@newer
@pytest.mark.parametrize("setting", SETTINGS)
def test_assisted_decoding(plain, setting):
    model = compressed(plain, setting)
    if setting == "dense":
        expected = plain.generate(**single(), **FIVE)
        assert torch.equal(model.generate(**single(), **FIVE, assistant_model=copy.deepcopy(plain)), expected)
        assert torch.equal(copy.deepcopy(plain).generate(**single(), **FIVE, assistant_model=model), expected)
    else:
        with pytest.raises(InputError, match="assistant_model counts the columns of the uncompressed prompt"):
            model.generate(**single(), **FIVE, assistant_model=plain)
    assert torch.equal(
        model.generate(**single(), **FIVE, prompt_lookup_num_tokens=2), model.generate(**single(), **FIVE)
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_continuous_batching_is_refused_before_it_starts(plain, setting):
    model = compressed(plain, setting)
    with pytest.raises(InputError, match="continuous batching"):
        model.generate(**single(), **FIVE, cache_implementation="paged")
    with pytest.raises(InputError, match="continuous batching"):
        model.generate_batch(pictures()["input_ids"].tolist())


@torch.no_grad()
def stepped(model, inputs, change):
    """Logits of a step after the prompt, on a cache that `change` has modified."""
    cache = model(**inputs, use_cache=True).past_key_values
    samples, cache = change(cache)
    tokens = torch.tensor([[30], [31]])[samples]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)[samples]
    return model(input_ids=tokens, attention_mask=mask, past_key_values=cache).logits


CHANGES = {
    "reorder_cache": lambda cache: ([1, 0], cache.reorder_cache(torch.tensor([1, 0])) or cache),
    "batch_select_indices": lambda cache: ([1], cache.batch_select_indices(torch.tensor([1])) or cache),
    "batch_repeat_interleave": lambda cache: ([0, 0, 1, 1], cache.batch_repeat_interleave(2) or cache),
    "deepcopy": lambda cache: ([0, 1], copy.deepcopy(cache)),
    "pickle": lambda cache: ([0, 1], pickle.loads(pickle.dumps(cache))),
    "reorder what was pickled": lambda cache: (
        [1, 0],
        (lambda twin: twin.reorder_cache(torch.tensor([1, 0])) or twin)(pickle.loads(pickle.dumps(cache))),
    ),
    "reorder a copy": lambda cache: (
        [1, 0],
        (lambda twin: twin.reorder_cache(torch.tensor([1, 0])) or twin)(copy.deepcopy(cache)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_caches_samples_keep_their_state(plain, setting, change):
    model, inputs = compressed(plain, setting), pictures()
    usual = stepped(model, inputs, lambda cache: ([0, 1], cache))
    with torch.no_grad():
        samples = CHANGES[change](model(**inputs, use_cache=True).past_key_values)[0]
    found = stepped(model, inputs, CHANGES[change])
    # At another batch size, another kernel may sum the terms of a product in another order.
    size = usual.abs().max() * plain.config.text_config.hidden_size
    assert (found - usual[samples]).abs().max() <= torch.finfo(usual.dtype).eps * size


def test_the_bytes_of_a_quantized_cache_are_counted(family):
    """A layer holds its quantized part, as a tensor or as the parts that a backend packs, and an unquantized rest."""
    whole, packed = torch.zeros(1, 2, 8, 64), (torch.zeros(16, dtype=torch.uint8), {"scale": torch.zeros(4)})
    layer = SimpleNamespace(keys=whole, values=whole, _quantized_keys=packed, _quantized_values=whole)
    assert kv_bytes(SimpleNamespace(layers=[layer])) == 3 * whole.nbytes + 16 + 16


GRAPHS: list = []  # the compiled graphs; global, because a CompileConfig copies its backend


def trace(graph, _):
    GRAPHS.append(graph)
    return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@newer
def test_decoding_into_a_static_cache_is_compiled_once(plain, setting):
    """Prompts have one shape, and shapes are static (dynamic=False)."""
    config = CompileConfig(backend=trace, mode=None, fullgraph=True, dynamic=False)
    config._compile_all_devices = True  # otherwise it compiles only on a GPU
    torch._dynamo.reset()
    GRAPHS.clear()
    settings = {**FIVE, "cache_implementation": "static", "output_logits": True, "return_dict_in_generate": True}
    model = compressed(plain, setting)
    found = model.generate(**pictures(), **settings, compile_config=config)
    assert len(GRAPHS) == 1
    again = model.generate(**pictures(), **settings, compile_config=config)
    assert len(GRAPHS) == 1
    assert torch.equal(again.sequences, found.sequences)
    usual = model.generate(**pictures(), **FIVE, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(found.sequences, usual.sequences)
    size = torch.stack(usual.logits).abs().max() * plain.config.text_config.hidden_size
    apart = (torch.stack(found.logits) - torch.stack(usual.logits)).abs().max()
    assert apart <= torch.finfo(size.dtype).eps * size


@pytest.mark.parametrize("setting", ["dense", "one"])
@newer
def test_generate_numbers_a_prompt_as_its_caller_does(plain, setting):
    """position_ids in each form are used, and generated tokens continue from the last column."""
    inputs = pictures()
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0) * 2
    settings = {**FIVE, "output_logits": True, "return_dict_in_generate": True}
    usual = torch.stack(compressed(plain, setting).generate(**inputs, **settings).logits)
    for given in (places, places.expand(3, -1, -1), places.expand(4, -1, -1)):
        expected, found = (
            torch.stack(model.generate(**inputs, **settings, position_ids=given).logits)
            for model in (plain, compressed(plain, setting))
        )
        bound = torch.finfo(expected.dtype).eps * plain.config.text_config.hidden_size * expected.abs().max()
        assert (found - expected).abs().max() <= bound
        assert (found - usual).abs().max() > bound


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pixels", [False, True])
@newer
def test_a_conversation_in_embeddings_goes_on_beside_the_grids_of_all_of_it(plain, setting, pixels):
    """No picture is new, because the cache has seen them all."""
    inputs, model = pictures(), compressed(plain, setting)
    embed = model.get_input_embeddings()
    given = inputs | {"inputs_embeds": embed(inputs["input_ids"])}
    del given["input_ids"]
    settings = {"return_dict_in_generate": True, **GREEDY}
    whole = model.generate(**given, **settings, max_new_tokens=5)
    first = model.generate(**given, **settings, max_new_tokens=3)
    if not pixels:
        del given["pixel_values"]
    given["inputs_embeds"] = torch.cat([given["inputs_embeds"], embed(first.sequences)], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        given[name] = torch.nn.functional.pad(given[name], (0, 3), value=value)
    rest = model.generate(**given, **settings, max_new_tokens=2, past_key_values=first.past_key_values)
    assert torch.equal(torch.cat([first.sequences, rest.sequences], 1), whole.sequences)


@pytest.mark.parametrize("setting", SETTINGS)
@newer
def test_a_prompt_behind_a_cached_beginning_is_given_whole_or_in_part(plain, setting):
    """Prompts may share a cached beginning of text. The mask covers all columns in both forms."""
    model, inputs = compressed(plain, setting), single()
    wanted = model.generate(**inputs, **FIVE)[:, -5:]
    pixels = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    for first in (0, 4):
        with torch.no_grad():
            cache = model(input_ids=inputs["input_ids"][:, :4], use_cache=True).past_key_values
        ids = inputs["input_ids"][:, first:]
        given = {"attention_mask": inputs["attention_mask"], "past_key_values": cache, **pixels}
        assert torch.equal(model.generate(ids, **given, **FIVE)[:, -5:], wanted)


def test_beams_of_text_beside_grids_without_pixels(plain):
    inputs, model = pictures(), compressed(plain, "dense")
    bare = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    answer = model.generate(**bare, image_grid_thw=inputs["image_grid_thw"], **FIVE, num_beams=2)
    assert torch.equal(answer, plain.generate(**bare, **FIVE, num_beams=2))


@pytest.mark.parametrize("setting", ["dense", "ppe"])
@pytest.mark.parametrize("feature", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_pictures_that_the_mask_hides_are_repeated(plain, setting, feature):
    """dense treats them as the untouched model does; ppe answers as if they were not there."""
    model, inputs = compressed(plain, setting), pictures()
    inputs["attention_mask"] *= inputs["input_ids"] != 90
    torch.manual_seed(0)
    found = model.generate(**inputs, **{**FIVE, **feature})
    torch.manual_seed(0)
    if setting != "dense":
        del inputs["pixel_values"], inputs["image_grid_thw"]
    assert torch.equal(found, (plain if setting == "dense" else model).generate(**inputs, **{**FIVE, **feature}))


@pytest.mark.parametrize("setting", ["ppe", "dense"])
@newer
def test_a_step_that_was_prepared_and_did_not_run_is_prepared_again(plain, setting):
    """A step that failed inside the decoder is not counted either: a second attempt must find our state unchanged."""
    model, inputs = compressed(plain, setting), pictures()

    def fail(*_):
        raise MemoryError

    def step(times: int, fails: bool = False) -> torch.Tensor:
        cache = StaticCache(config=plain.config.text_config, max_cache_len=64)
        found = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([inputs["input_ids"], found], 1), F.pad(inputs["attention_mask"], (0, 1), value=1)
        for _ in range(times):
            prepared = model.prepare_inputs_for_generation(
                ids, past_key_values=cache, attention_mask=mask, use_cache=True
            )
        if fails:
            hook = model.model.language_model.layers[0].register_forward_pre_hook(fail)
            with pytest.raises(MemoryError):
                model(**prepared)
            hook.remove()
        return model(**prepared).logits

    with torch.no_grad():
        assert torch.equal(step(2), step(1))
        assert torch.equal(step(1, fails=True), step(1))


def test_a_report_that_was_read_early_tells_the_caches_bytes_in_the_end(plain):
    model = compressed(plain, "ppe")
    hook = model.model.language_model.register_forward_hook(lambda *_: model.compression.report and None)
    model(**pictures(), use_cache=True)
    hook.remove()
    assert model.compression.report.kv_bytes > 0
