"""generate() and caches as others use them, beside the untouched model's.

docs/compatibility.md lists these features by name.
"""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, newer, pictures, random_model
from prompts import GREEDY
from transformers import CompileConfig

from ppe_npu.errors import InputError
from ppe_npu.inspect.report import kv_bytes

pytestmark = pytest.mark.parametrize("family", FAMILIES)
FIVE = {"max_new_tokens": 5, **GREEDY}


@pytest.fixture
def plain(family):
    return random_model(family=family)


def single():
    """The first of the two prompts, alone."""
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


QUICK = ("sampling", "beams", "static cache", "no cache", "scores and states")  # of compressed models; test-all has all


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


@pytest.mark.parametrize("setting", SETTINGS)
def test_chunks_of_a_prompt_do_not_lose_its_picture(plain, setting):
    model, inputs = compressed(plain, setting), single()
    with pytest.warns(UserWarning, match="prefill_chunk_size=8 is set aside"):
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
        with pytest.raises(InputError, match="assistant_model counts the columns of a prompt"):
            model.generate(**single(), **FIVE, assistant_model=plain)
    assert torch.equal(
        model.generate(**single(), **FIVE, prompt_lookup_num_tokens=2), model.generate(**single(), **FIVE)
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_continuous_batching_is_refused_before_it_starts(plain, setting):
    with pytest.raises(InputError, match="continuous batching"):
        compressed(plain, setting).generate(**single(), **FIVE, cache_implementation="paged")


@torch.no_grad()
def stepped(model, inputs, change):
    """Logits of a step after the prompt, on a cache that was changed meanwhile."""
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
    # Of other batch sizes another kernel may sum: the order of a product's terms.
    size = usual.abs().max() * plain.config.text_config.hidden_size
    assert (found - usual[samples]).abs().max() <= torch.finfo(usual.dtype).eps * size


def test_the_bytes_of_a_quantized_cache_are_counted(family):
    """A layer holds what it has quantized, as a tensor or as the parts that a backend packs, and a rest as it is."""
    whole, packed = torch.zeros(1, 2, 8, 64), (torch.zeros(16, dtype=torch.uint8), {"scale": torch.zeros(4)})
    layer = SimpleNamespace(keys=whole, values=whole, _quantized_keys=packed, _quantized_values=whole)
    assert kv_bytes(SimpleNamespace(layers=[layer])) == 3 * whole.nbytes + 16 + 16


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_decoding_into_a_static_cache_is_compiled_again_once(plain, setting):
    graphs, config = [], CompileConfig(backend=lambda graph, _: graphs.append(1) or graph.forward, mode=None)
    config._compile_all_devices = True  # else only where there is a GPU
    torch._dynamo.reset()
    settings = {**FIVE, "max_new_tokens": 10, "cache_implementation": "static"}
    answer = compressed(plain, setting).generate(**single(), **settings, compile_config=config)
    assert torch.equal(answer, compressed(plain, setting).generate(**single(), **settings))
    assert len(graphs) <= 2  # the second time for any length
