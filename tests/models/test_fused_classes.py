"""fuse() computes classes that it knows by name, gives their logits, and leaves every other module alone.

Many decoders of transformers have parts of the same names as Llama's and compute something else.
"""

import logging
import types

import pytest
import torch
from families import GRIDS, TEXTS, TINY
from support import random_model
from tolerances import assert_equal, assert_near, assert_rounds_alike, exact
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.internvl.modeling_internvl import InternVLVisionRMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextMLP

from ppe_npu.errors import InputError
from ppe_npu.models import _families, fused
from ppe_npu.models.fused import fuse, unfuse
from ppe_npu.models.fused_classes import CLASSES, MLP, TEXT, VISION, fused_part

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
PARTLY = ("qwen3_5_text", "qwen3_5_moe_text")  # only their MLPs
# Before, each of these gave other logits with fuse(), or failed in its first pass.
FOREIGN = (
    *("bitnet", "diffllama", "hunyuan_v1_dense", "hunyuan_v1_moe", "ernie4_5", "ernie4_5_moe", "helium", "nanochat"),
    *("glm", "glm4", "nemotron", "stablelm", "olmo2", "olmoe", "flex_olmo", "minimax_m2", "moshi"),
)
_SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 128,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
_EXPERTS |= {"moe_intermediate_size": 32, "first_k_dense_replace": 1}
IDS = torch.tensor([[3, 40, 17, 5, 60, 8, 21, 33, 9]])
WEIGHTS = 2**24  # of a model that is built here, at most


def language_model(kind: str):
    """A small random model of this model_type, whose norms have weights other than 1."""
    config = CONFIG_MAPPING[kind]()
    for name, value in {**_SMALL, **{own: size for own, size in _EXPERTS.items() if hasattr(config, own)}}.items():
        setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: _SMALL["num_hidden_layers"]]
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    assert size <= WEIGHTS, f"{kind} has {size} weights"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the only one that supports fp64
    return model


def run(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def fused_in(model) -> set[str]:
    return {type(module).__name__ for module in model.modules() if vars(module).get(fused._FUSED)}


def check(model) -> set[str]:
    """Checks that fuse() leaves the logits of a model, or the model; returns the names of the classes it replaced."""
    expected = run(model)
    try:
        fuse(model)
    except InputError:
        assert_equal(run(model), expected)
        return set()
    found, names = run(model), fused_in(model)
    assert_rounds_alike(found, expected, exact(unfuse(model), lambda: run(model)))
    return names


@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_decoder_keeps_its_logits(kind):
    assert any(name.endswith("Attention") for name in check(language_model(kind)))


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_decoder_that_looks_alike_is_left_alone_and_named(kind):
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"transformers without {kind}")
    model = language_model(kind)
    name = type(model).__name__
    with pytest.raises(InputError, match=f"^{name} has no norm, MLP or attention of a class that fuse.. knows.*leave"):
        fuse(model)
    assert not check(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_no_decoder_of_transformers_gets_other_logits(kind):
    try:
        model = language_model(kind)
        run(model)
    except Exception as error:  # dozens of configs have conditions of their own
        pytest.skip(f"no small {kind}: {error}")
    assert bool(check(model)) == (kind in (*KNOWN, *PARTLY))


LONE = {InternVLVisionRMSNorm: "of InternViT-6B", Qwen3MoeMLP: "of dense layers", Qwen3VLMoeTextMLP: "of dense layers"}


@pytest.mark.ci
def test_every_class_of_the_list_is_fused_in_a_supported_model():
    with torch.device("meta"):
        models = [tiny.model() for tiny in GRIDS.values()] + [TINY["llava"].model(text=text) for text in TEXTS]
    found = set().union(*(fused_in(fuse(model)) for model in models))
    assert found == {name for names in CLASSES.values() for name in names} - {lone.__name__ for lone in LONE}


def test_a_familys_attention_is_listed_or_known_to_differ():
    """A name that is missing here costs speed, in silence: add it to fused_classes.py, or to these with a reason."""
    heard = {name for family in _families() for name in family.LAYERS.values()}
    partial, gated = {"Glm4vTextAttention", "Glm4vMoeTextAttention"}, {"Qwen3_5Attention", "Qwen3_5MoeAttention"}
    assert heard - set(CLASSES[TEXT]) == partial | gated
    seen = {name for family in _families() for name in family.TOWER.values()}
    assert seen - set(CLASSES[VISION]) == {"InternVLVisionAttention"}


@pytest.mark.parametrize("lone", LONE, ids=lambda lone: lone.__name__)
def test_classes_that_no_tiny_model_has(lone):
    torch.manual_seed(0)
    config = types.SimpleNamespace(hidden_size=8, intermediate_size=12, hidden_act="silu")
    module = lone(8) if lone is InternVLVisionRMSNorm else lone(config)
    x = torch.randn(5, 8)
    expected = module(x)
    assert fused_in(fuse(module)) == {lone.__name__}
    assert_near(module(x), expected, roundings=8 + 12 + 8)


def other_act(layer):
    layer.mlp.act_fn = torch.nn.GELU()
    return layer.mlp


def window(layer):
    layer.self_attn.sliding_window = 4
    return layer.self_attn


def subclass(layer):
    own = type("OwnAttention", (LlamaAttention,), {"forward": lambda self, *_, **__: None})
    layer.self_attn.__class__ = own
    return layer.self_attn


def namesake(layer):
    own = {"__module__": __name__, "forward": lambda self, x: x}
    layer.input_layernorm.__class__ = type("LlamaRMSNorm", (torch.nn.Module,), own)
    return layer.input_layernorm


def replaced(layer):
    layer.self_attn.forward = types.MethodType(lambda self, *_, **__: None, layer.self_attn)
    return layer.self_attn


@pytest.mark.parametrize("change", [other_act, window, subclass, namesake, replaced])
def test_a_known_class_that_computes_something_else_is_left_alone(change):
    model = language_model("llama")
    module = change(model.model.layers[1])
    forward = vars(module).get("forward")
    fuse(model)
    assert vars(module).get("forward") is forward
    assert fused._FUSED not in vars(module)
    assert {"LlamaAttention", "LlamaMLP", "LlamaRMSNorm"} <= fused_in(model)


def test_a_forward_that_a_class_was_given_is_not_replaced(monkeypatch):
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *_, **__: None)
    assert fused_in(fuse(language_model("llama"))) == {"LlamaMLP", "LlamaRMSNorm"}


def test_a_class_made_from_a_known_one_is_fused():
    """As fully_shard does."""
    layer = language_model("llama").model.layers[0]
    layer.self_attn.__class__ = type("FSDPLlamaAttention", (LlamaAttention,), {})
    assert fused_part(layer.self_attn) == TEXT
    assert fused_part(layer.mlp) == MLP


def test_a_decoder_that_sees_later_tokens_still_does():
    """As models that embed texts are made from decoders."""
    model = language_model("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    causal = run(language_model("llama"))
    assert (run(model) - causal).abs().max() > causal.abs().max() / 100
    assert "LlamaAttention" in check(model)


def test_what_is_left_is_said_once(caplog):
    fused._say_left.cache_clear()
    with caplog.at_level(logging.INFO, logger=fused.__name__):
        for _ in range(2):
            fuse(random_model(family="qwen3_5"))
        fuse(random_model())
    (line,) = [record.getMessage() for record in caplog.records if record.name == fused.__name__]
    assert line == "fuse() leaves as they are: Qwen3_5Attention, Qwen3_5RMSNorm, Qwen3_5VisionMLP"
