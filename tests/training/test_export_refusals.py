"""What merge_lora() and export() refuse: a wrong base, an incomplete adapter, half a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_runs import as_checkpoint, copy_of_lora_run, lora_run  # noqa: F401
from support import random_model

from ppe_npu.checkpoints.loading import load_model
from ppe_npu.demo import tiny
from ppe_npu.errors import InputError
from ppe_npu.training.checkpoint import BASE, WHOLE, read_base
from ppe_npu.training.export import export, merge_lora


def wrong_base(kind: str, tiny_folder: str, tiny_processor, folder: Path) -> Path:
    """A model that an adapter of the tiny one must not be merged into."""
    if kind == "another class":
        random_model(family="qwen2_vl").save_pretrained(folder)
    elif kind == "other shapes":
        random_model().save_pretrained(folder)
    elif kind == "another draw":
        tiny.build_model(seed=1).save_pretrained(folder)
    else:  # "one matrix moved", as by further fine-tuning
        model = load_model(tiny_folder)
        with torch.no_grad():
            model.model.language_model.layers[1].mlp.up_proj.weight.mul_(1.001)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another class", "a Qwen2_5_VLForConditionalGeneration, but {base} is a Qwen2VLForConditionalGeneration"),
        ("other shapes", "channels at model.* but {base} has"),
        ("another draw", "trained on {own} .* but {base} has other weights"),
        ("one matrix moved", "trained on {own} .* but {base} has other weights"),
    ],
)
def test_a_wrong_base_is_refused(run, tiny_folder, tiny_processor, tmp_path, kind, words):
    base = wrong_base(kind, tiny_folder, tiny_processor, tmp_path / "base")
    with pytest.raises(InputError, match=words.format(base=base, own=tiny_folder)) as error:
        merge_lora(run[0], tmp_path / "merged", model=base)
    assert str(run[0]) in str(error.value)
    assert "--model" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.ci
def test_an_adapter_that_is_not_whole_is_refused(copy, tmp_path):
    file = copy / "adapter_model.safetensors"
    tensors, data = load_file(file), file.read_bytes()

    def refuse(words):
        with pytest.raises(InputError, match=words) as error:
            merge_lora(copy, tmp_path / "merged")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "merged").exists()

    first = next(name for name in tensors if "lora_B" in name)
    save_file({name: value for name, value in tensors.items() if name != first}, file)
    refuse("does not fit")
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, file)
    refuse("cannot be merged")
    save_file({}, file)
    refuse("contains no weights")
    file.write_bytes(data[: len(data) // 2])
    refuse("is damaged")
    file.write_bytes(data)
    settings = (copy / "adapter_config.json").read_text()
    (copy / "adapter_config.json").write_text(settings.replace('"LORA"', '"MAGIC"'))
    refuse("adapter_config.json cannot be used")
    for strange in ({"target_modules": "("}, {"rank_pattern": 5}, {"alpha_pattern": ["x"]}):
        (copy / "adapter_config.json").write_text(json.dumps(json.loads(settings) | strange))
        refuse("adapter_config.json cannot be used")
    (copy / "adapter_config.json").write_text(json.dumps(json.loads(settings) | {"alora_invocation_tokens": [1]}))
    refuse("cannot be merged .aLoRA does not support safe merging")
    (copy / "adapter_config.json").unlink()
    refuse("contains no adapter_config.json")
    (copy / "adapter_config.json").write_text(settings)
    changes = ({"dtype": "nn"}, {"weights": "x" * 5000}, {"model": "gone"})
    odd, long, gone = (json.dumps({**read_base(copy), **change}) for change in changes)
    for text in ("{", "[]", '{"model": "x"}', odd, long):
        (copy / BASE).write_text(text)
        refuse("base.json is damaged")
    (copy / BASE).write_text(gone)
    refuse("its base according to base.json: model gone")
    (copy / BASE).unlink()
    refuse("contains no base.json")


def test_half_a_checkpoint_and_a_full_output_are_refused(copy, tmp_path):
    for write in (merge_lora, export):
        (tmp_path / "full").mkdir(exist_ok=True)
        (tmp_path / "full" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="full is not empty: name a new folder"):
            write(copy, tmp_path / "full")
        assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]
        with pytest.raises(InputError, match=r"notes.txt is a file: name a folder"):
            write(copy, tmp_path / "full" / "notes.txt")
        with pytest.raises(InputError, match="none does not exist"):
            write(tmp_path / "none", tmp_path / "new")
    checkpoint = as_checkpoint(copy, step=7)
    (checkpoint / WHOLE).unlink()
    for write in (merge_lora, export):
        with pytest.raises(InputError, match=r"checkpoint-7 was not saved completely \(no whole.json\)"):
            write(checkpoint, tmp_path / "new")
    renamed = checkpoint.rename(tmp_path / "mine")  # its files still show that it is a checkpoint
    with pytest.raises(InputError, match="was not saved completely"):
        export(renamed, tmp_path / "new")
    (renamed / "trainer_state.json").unlink()
    (renamed / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="contains no processor"):
        export(renamed, tmp_path / "new")
