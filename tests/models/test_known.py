"""A decoder with a part that the seam does not support is refused by the part's name and left unchanged."""

import pytest
from prompts import PPE
from support import FAMILIES, random_model

from ppe_npu import CompressionConfig, compress
from ppe_npu.errors import InputError
from ppe_npu.models import is_compressed

STAGED = CompressionConfig.preset("ppe", k=2, layers=[1])


def refused(model, config, message: str) -> None:
    methods = set(vars(model)), set(vars(model.model)), set(vars(model.model.language_model))
    with pytest.raises(InputError, match=message):
        compress(model, config)
    assert not is_compressed(model)
    assert methods == (set(vars(model)), set(vars(model.model)), set(vars(model.model.language_model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotary_embedding_of_an_unknown_type_is_refused(family):
    model = random_model(family=family)
    model.model.language_model.rotary_emb.rope_type = "longrope"
    said = "decoder has rope_type 'longrope': .* supports default, linear, yarn, .*dynamic only; load .* one of them"
    refused(model, PPE, said)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [PPE, STAGED], ids=["before", "inside"])
def test_an_unknown_layer_type_is_refused(family, config):
    model = random_model(family=family)
    model.model.language_model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    refused(model, config, "decoder has layers of type 'linear_attention': this family supports full_.* only; load")


def test_sliding_attention_is_refused_where_layers_merge_on_entry():
    layers = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert is_compressed(compress(random_model(**layers), PPE))
    refused(random_model(**layers), STAGED, "sliding attention cannot be compressed on entry: set use_sliding_window")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["a layer", "attention"])
def test_an_unknown_class_is_refused_and_a_class_made_from_a_known_one_is_not(family, part):
    model = random_model(family=family)
    last = model.model.language_model.layers[-1]
    module = last if part == "a layer" else last.self_attn
    known = type(module)
    # The same code under another name, as in remote code.
    module.__class__ = type("LinearPart", known.__bases__, dict(vars(known)))
    said = f"the decoder has {part} of class 'LinearPart': this family supports .*{known.__name__}.* only; load a model"
    refused(model, PPE, said)
    module.__class__ = type("Sharded", (known,), {})
    assert is_compressed(compress(model, PPE))
