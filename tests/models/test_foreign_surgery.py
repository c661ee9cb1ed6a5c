"""Changes that other code makes to a model give the same model before compression and after it.

docs/compatibility.md lists these features by name.
"""

import copy
import inspect
import io

import pytest
import torch
from foreign import FAMILIES, SETTINGS, compressed, newer, pictures, random_model
from tolerances import assert_equal, assert_rounds_alike, exact

from ppe_npu import restore
from ppe_npu.models import is_compressed

pytestmark = [pytest.mark.half, pytest.mark.parametrize("family", FAMILIES), newer]
SLOW = pytest.mark.slow
QUICK = ("dense", "cascade")  # test-all runs all settings
SOME = [pytest.param(name, marks=() if name in QUICK else SLOW) for name in SETTINGS]


@pytest.fixture
def plain(family):
    return random_model(family=family)


def resized(model):
    torch.manual_seed(0)
    model.resize_token_embeddings(140, mean_resizing=False)
    return model


def other_embeddings(model):
    torch.manual_seed(0)
    model.set_input_embeddings(torch.nn.Embedding(100, 128))
    return model


def other_head(model):
    torch.manual_seed(0)
    model.set_output_embeddings(torch.nn.Linear(128, 100, bias=False))
    return model


def other_weights(model):
    assert not any(model.load_state_dict(random_model(seed=1, family=model.config.model_type).state_dict()))
    return model


def new_weights(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    return model


def eager(model):
    model.set_attn_implementation("eager")
    return model


def tied(model):
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    return model


CHANGES = {
    "resize_token_embeddings": resized,
    "set_input_embeddings": other_embeddings,
    "set_output_embeddings": other_head,
    "tie_weights": tied,
    "load_state_dict": other_weights,
    "init_weights": new_weights,
    "set_attn_implementation": eager,
    "to(torch.bfloat16)": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "copy.deepcopy": copy.deepcopy,
    "requires_grad_": lambda model: model.requires_grad_(False),
    "gradient_checkpointing_enable": lambda model: model.gradient_checkpointing_enable() or model.train(),
    "enable_input_require_grads": lambda model: model.enable_input_require_grads() or model,
}


def seen(model) -> list[torch.Tensor]:
    """The loss and the logits of two prompts."""
    inputs = pictures()
    output = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    return [output.loss.detach(), output.logits.detach()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "setting", ["cascade", *(pytest.param(name, marks=SLOW) for name in SETTINGS if name != "cascade")]
)
def test_a_change_before_compression_is_one_after_it(plain, setting, change):
    make = CHANGES[change]
    model, untouched = make(compressed(plain, setting)), make(copy.deepcopy(plain))
    assert all(map(torch.equal, seen(model), seen(compressed(untouched, setting))))
    assert is_compressed(model)
    assert all(map(torch.equal, seen(restore(model)), seen(untouched)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_saved_is_the_untouched_model(plain, setting, tmp_path):
    model, inputs = compressed(plain, setting), pictures()
    assert list(model.state_dict()) == list(plain.state_dict())
    for names in ("named_parameters", "named_buffers", "named_modules"):
        assert [name for name, _ in getattr(model, names)()] == [name for name, _ in getattr(plain, names)()]
    rotary, own = model.model.language_model.rotary_emb, plain.model.language_model.rotary_emb
    assert {name for name in dir(own) if name not in dir(rotary)} == set()
    assert model.num_parameters() == plain.num_parameters()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = type(plain).from_pretrained(tmp_path).eval()
    assert not is_compressed(loaded)
    assert_equal(loaded.state_dict(), plain.state_dict())
    with torch.no_grad():  # loaded weights may have another alignment in memory, and so other roundings
        true = exact(plain, lambda: plain(**inputs).logits)
        assert_rounds_alike(loaded(**inputs).logits, plain(**inputs).logits, true)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert not any(random_model(seed=1, family=plain.config.model_type).load_state_dict(torch.load(file)))


CALLS = {
    "torch.func.functional_call": lambda model, inputs: torch.func.functional_call(
        model, dict(model.named_parameters()), (), inputs
    ),
    "DataParallel without a GPU": lambda model, inputs: torch.nn.DataParallel(model)(**inputs),
    "torch.inference_mode": lambda model, inputs: torch.inference_mode()(model)(**inputs),
    "by place": lambda model, inputs: model(
        inputs["input_ids"], inputs["attention_mask"], **{name: inputs[name] for name in list(inputs)[2:]}
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("setting", SOME)
@torch.no_grad()
def test_a_call_of_another_form(plain, setting, call):
    model, inputs = compressed(plain, setting), pictures()
    assert list(inputs)[:2] == ["input_ids", "attention_mask"]
    assert torch.equal(CALLS[call](model, inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_signature_is_that_of_the_class(plain, setting):
    """Trainers read from it the columns that a model takes, and generate() the arguments."""
    model = compressed(plain, setting)
    for part, own in ((model, plain), (model.model, plain.model), (model.lm_head, plain.lm_head)):
        shown, wanted = (list(inspect.signature(module.forward).parameters) for module in (part, own))
        assert shown == wanted


@pytest.mark.parametrize("setting", SOME)
def test_hooks_of_others_fire_once_a_pass(plain, setting):
    model, fired = compressed(plain, setting), []
    parts = {
        "": "the model", "model": "the inner model", "model.visual": "the tower", "lm_head": "the head",
        "model.language_model": "the decoder", "model.language_model.layers.0": "a layer",
        "model.language_model.norm": "the norm",
    }  # fmt: skip
    for path, name in parts.items():
        model.get_submodule(path).register_forward_hook(lambda *_, name=name: fired.append(name))
    model.register_forward_pre_hook(lambda *_: fired.append("before"))
    model(**pictures())
    assert sorted(fired) == sorted([*parts.values(), "before"])
