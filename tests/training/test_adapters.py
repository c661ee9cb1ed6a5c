"""LoRA and DoRA adapt exactly the parts that were asked for, every weight learns, and plain peft loads the result."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from support import FAMILIES, Prompt, batch, random_model
from tolerances import assert_equal, assert_rounds_alike, exact

from ppe_npu import CompressionConfig, compress, restore
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.errors import InputError
from ppe_npu.models import is_compressed
from ppe_npu.models.fused import fuse
from ppe_npu.training.adapters import (
    Adapter,
    adapter_weights,
    add_adapter,
    check_adapter,
    quantization,
    save_adapter,
    set_adapter_weights,
    target_modules,
)
from ppe_npu.training.parts import PARTS, part_of

PPE = CompressionConfig.preset("ppe", k=4)
_VISION = {
    "qwen2_vl": {"qkv", "proj", "fc1", "fc2"},
    "qwen2_5_vl": {"qkv", "proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3_vl": {"qkv", "proj", "linear_fc1", "linear_fc2"},
}


def prompts(family="qwen2_5_vl"):
    """Two prompts, the first with an image, the second with a video, padded on the left."""
    video = "frames" if family == "qwen3_vl" else "video"
    inputs = batch(Prompt([3, ("image", (1, 4, 4)), 5]), Prompt([2, (video, (2, 4, 4)), 3], seed=1))
    if family != "qwen2_5_vl":
        del inputs["second_per_grid_ts"]
    return inputs


def stirred(model, scale=0.2):
    """Makes the model's adapter change the output; a fresh adapter adds zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_all_linear_layers_of_the_parts_and_of_no_other(family):
    model = random_model(family=family)
    language = target_modules(model, Adapter())
    text = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-1] for name in language} == text
    assert len(language) == 3 * 7
    assert all(name.startswith("model.language_model.layers.") for name in language)
    vision = target_modules(model, Adapter(parts=("vision",)))
    assert {name.split(".")[-1] for name in vision} == _VISION[family]
    assert all(name.startswith("model.visual.blocks.") for name in vision)
    merger = target_modules(model, Adapter(parts=("merger",)))
    assert len(merger) == (6 if family == "qwen3_vl" else 2)
    assert sorted(target_modules(model, Adapter(parts=PARTS))) == sorted(language + vision + merger)
    if family == "qwen2_5_vl":  # its vision tower has layers with the same names
        only = target_modules(model, Adapter(targets=("gate_proj",)))
        assert {part_of(name) for name in only} == {"language"}
    for parts in (("language",), ("vision",), PARTS):
        asked = Adapter(rank=2, parts=parts)
        fresh = random_model(family=family)
        wrapped = add_adapter(fresh, asked)
        assert sorted(wrapped.targeted_module_names) == sorted(target_modules(random_model(family=family), asked))


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_an_adapter_learns_and_changes_the_output(family, kind):
    """With the fused modules, the compression and gradient checkpointing."""
    model = compress(fuse(random_model(family=family)), PPE)
    inputs = prompts(family)
    before, true = logits(model, inputs), exact(model, lambda: logits(model, inputs))
    wrapped = add_adapter(model, Adapter(kind, rank=2, parts=PARTS))
    if kind == "lora":  # adds zeros
        assert_equal(logits(wrapped, inputs), before)
    else:  # scales by norm / norm, which rounds
        assert_rounds_alike(logits(wrapped, inputs), before, true)
    assert wrapped.compression is model.compression
    stirred(wrapped).train()

    def gradients():
        wrapped.zero_grad()
        wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
        return {name: p.grad.clone() for name, p in wrapped.named_parameters() if p.grad is not None}

    whole, true = gradients(), exact(wrapped, gradients)
    asked = {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    assert set(whole) == asked == {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_rounds_alike(gradients(), whole, true)
    wrapped.eval()
    inputs = batch(Prompt([2, ("image", (1, 2, 2)), 2]))
    base = logits(wrapped, inputs)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name and (".0." in name or "merger" in name):  # the layers of the first blocks and of the merger
            kept = parameter.detach().clone()
            parameter.data += 1.0
            assert not torch.equal(logits(wrapped, inputs), base), name
            parameter.data.copy_(kept)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.ci
def test_compress_and_restore_take_the_wrapped_model_before_and_after(family):
    inputs, names = prompts(family), {"max_new_tokens": 4, "do_sample": False}
    text = batch(Prompt([6]))
    first = stirred(add_adapter(compress(random_model(family=family), PPE), Adapter(rank=2)))
    torch.manual_seed(0)
    second = add_adapter(random_model(family=family), Adapter(rank=2))
    second.load_state_dict(first.state_dict())
    dense = logits(second, text)
    assert compress(second, PPE) is second
    assert second.compression.config is PPE
    assert torch.equal(logits(first, inputs), logits(second, inputs))
    assert logits(second, inputs).shape[1] < inputs["input_ids"].shape[1]
    assert torch.equal(first.generate(**inputs, **names), second.generate(**inputs, **names))
    restore(first)
    assert not is_compressed(first)
    assert torch.equal(logits(first, text), dense)


def test_a_language_adapter_leaves_the_vision_tower_alone(model):
    inputs = prompts()
    pixels = {"grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad():
        before = model.model.visual(inputs["pixel_values"], **pixels).pooler_output
    kept = {name: value.clone() for name, value in model.model.visual.state_dict().items()}
    wrapped = stirred(add_adapter(model, Adapter(rank=2)))
    with torch.no_grad():
        after = model.model.visual(inputs["pixel_values"], **pixels).pooler_output
    assert torch.equal(before, after)
    assert {name: value.shape for name, value in model.model.visual.state_dict().items()} == {
        name: value.shape for name, value in kept.items()
    }
    assert not any("lora_" in name for name in model.model.visual.state_dict())
    assert any("lora_" in name for name in wrapped.state_dict())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.ci
def test_plain_transformers_and_peft_load_it(model, tmp_path, kind):
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    model.save_pretrained(tmp_path / "base")
    ours = load_model(tmp_path / "base")
    wrapped = stirred(add_adapter(ours, Adapter(kind, rank=2, alpha=6, parts=PARTS)))
    save_adapter(wrapped, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    assert settings["use_dora"] == (kind == "dora")
    assert (settings["r"], settings["lora_alpha"]) == (2, 6)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert sorted(loaded.targeted_module_names) == sorted(wrapped.targeted_module_names)
    with torch.no_grad():
        theirs, own = (compress(some, PPE)(**prompts()) for some in (loaded, wrapped))
        true = exact(wrapped, lambda: wrapped(**prompts()))
    real = own.past_key_values.ppe_state.masks[0]  # plain attention gives other values at padding
    assert_rounds_alike(theirs.logits[real], own.logits[real], true.logits[real])


def test_weights_are_set_whole_or_refused(model, tmp_path):
    wrapped = stirred(add_adapter(model, Adapter("dora", rank=2)))
    save_adapter(wrapped, tmp_path)
    tensors = adapter_weights(tmp_path)
    other = add_adapter(random_model(), Adapter("dora", rank=2))
    set_adapter_weights(other, dict(tensors), tmp_path)
    inputs = prompts()
    assert torch.equal(logits(other, inputs), logits(wrapped, inputs))
    first, *_ = tensors
    for wrong, words in (
        ({name: value for name, value in tensors.items() if name != first}, "does not fit"),
        ({}, "does not fit"),
        ({**tensors, first: torch.zeros(3, 3)}, "does not fit"),
        ({**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(2, 128)}, "does not fit"),
    ):
        with pytest.raises(InputError, match=words) as error:
            set_adapter_weights(other, dict(wrong), "folder")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="none contains no weights"):
        adapter_weights(tmp_path / "none")
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        adapter_weights(tmp_path)


def test_an_adapter_over_bf16_weights_is_fp32(model):
    wrapped = add_adapter(model.to(torch.bfloat16), Adapter(rank=2))
    assert {p.dtype for name, p in wrapped.named_parameters() if "lora_" in name} == {torch.float32}
    assert {p.dtype for name, p in wrapped.named_parameters() if "lora_" not in name} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "ia3"}, "kind='ia3': use one of lora, dora, qlora"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.0}, "rank=2.0"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": "32"}, "alpha='32'"),
        ({"dropout": 1}, "dropout=1"),
        ({"parts": []}, "parts="),
        ({"parts": ["head"]}, "name one or more of language, merger, vision"),
        ({"targets": []}, "name no module"),
        ({"r": 8}, "adapter has no r: its keys are kind, rank"),
    ],
)
def test_values_that_cannot_be_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        Adapter.from_dict(values)


def test_values_come_back_as_they_were_written():
    adapter = Adapter("dora", 8, 16, 0.1, ["vision", "language"], "qkv")
    assert adapter.targets == ("qkv",)
    assert Adapter.from_dict(json.loads(json.dumps(adapter.to_dict()))) == adapter


def test_a_target_that_is_not_there_is_named_with_those_that_are(model):
    with pytest.raises(InputError, match="'qkv' is not a linear layer of language: use some of down_proj, gate_proj"):
        add_adapter(model, Adapter(targets=("q_proj", "qkv")))


def test_qlora_goes_on_four_bits_and_on_nothing_else(model):
    with pytest.raises(InputError, match="kind='qlora' does not fit the model: use 'qlora', and only it"):
        add_adapter(model, Adapter("qlora"))
    model.quantization_method = "bitsandbytes"
    with pytest.raises(InputError, match="kind='lora' does not fit the model: use 'qlora', and only it"):
        add_adapter(model, Adapter("lora"))


def test_four_bits_need_cuda_and_bitsandbytes(monkeypatch):
    assert quantization(None, torch.device("cpu")) is None
    assert quantization(Adapter("dora"), torch.device("cpu")) is None
    for device in ("cpu", "npu"):
        with pytest.raises(InputError, match="needs a CUDA device, this run is on " + device):
            quantization(Adapter("qlora"), torch.device("cpu") if device == "cpu" else _Device(device))
    found = {"peft": object()}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name))
    with pytest.raises(InputError, match="bitsandbytes, which is not installed: pip install bitsandbytes"):
        check_adapter(Adapter("qlora"), torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(InputError, match=r'needs peft, which is not installed: pip install ".*\[train\]"'):
        check_adapter(Adapter(), torch.device("cpu"))


class _Device:
    """A stand-in for a device whose backend is missing, because torch cannot make a device of that name."""

    def __init__(self, kind: str) -> None:
        self.type = kind
