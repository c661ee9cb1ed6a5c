"""A checkpoint gives nothing but tensors: no code is run, no question is asked, no pickle is opened unless allowed."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import refused
from safetensors.torch import load_file

from ppe_npu.checkpoints.loading import check_checkpoint, check_compression, load_model, load_processor
from ppe_npu.checkpoints.trust import tensors_only
from ppe_npu.errors import InputError

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('x')\nclass P:\n    pass\n"


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    """A checkpoint that a test may change; a question on the terminal fails the test."""

    def ask(*_):
        pytest.fail("somebody was asked on the terminal")

    monkeypatch.setattr(builtins, "input", ask)
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(file: Path, **values) -> None:
    old = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**old, **values}))


ASKING = {
    "processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}, "processor_class": "Evil"}),
    "nested": ("processor_config.json", {"image_processor": {"auto_map": {"AutoImageProcessor": "evil.P"}}}),
    "images": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.P"}}),
    "videos": ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "evil.P"}}),
    "config": ("config.json", {"auto_map": {"AutoConfig": "evil.P"}, "model_type": "evil"}),
    "known": ("config.json", {"auto_map": {"AutoConfig": "evil.P"}}),
    "model": ("config.json", {"auto_map": {"AutoModel": "evil.P"}}),
    "tokenizer": (
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["evil.P", None]}, "tokenizer_class": "Evil"},
    ),
    "adapter": ("adapter_config.json", {"megatron_config": {"a": 1}, "megatron_core": "evil"}),
}


@pytest.mark.parametrize("name", ASKING)
def test_code_of_a_checkpoint_is_not_run(folder, name, run, write_image, monkeypatch):
    file, values = ASKING[name]
    change(folder / file, **values)
    (folder / "evil.py").write_text(CODE)
    monkeypatch.chdir(folder)
    for load in (load_processor, load_model, check_compression):
        with pytest.raises(InputError, match="runs no code of a checkpoint") as error:
            load(folder)
        assert str(folder) in str(error.value)
        assert file in str(error.value)
        assert "\n" not in str(error.value)
    image = write_image("a.png")
    refused(run("describe", "--model", folder, "--image", image, "--device", "cpu"), folder, "runs no code")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["processor", "config", "tokenizer"])
def test_transformers_is_told_so_too(folder, name, monkeypatch):
    """For an id on the hub, transformers finds the files itself: there is no folder to look into."""
    file, values = ASKING[name]
    change(folder / file, **values)
    (folder / "evil.py").write_text(CODE)
    monkeypatch.setattr("ppe_npu.checkpoints.loading.check_no_code", lambda _: None)
    with contextlib.suppress(InputError):  # where transformers has a class of its own, it takes that one
        (check_compression if name == "config" else load_processor)(folder)
    assert not (folder / "ran").exists()


def pickled(folder: Path, what=None) -> None:
    """Replaces the weights by pytorch_model.bin."""
    torch.save(what or load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Evil:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def test_pickled_weights_are_read_where_it_is_allowed(folder, tiny_folder, run, write_image):
    pickled(folder)
    with pytest.raises(InputError, match=r"only pickled weights .* --allow-bin \(allow_bin=True\)") as error:
        load_model(folder)
    assert str(folder) in str(error.value)
    theirs, ours = load_model(folder, allow_bin=True).state_dict(), load_model(tiny_folder).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    asked = ["describe", "--model", folder, "--image", write_image("a.png"), "--device", "cpu", "--max-new-tokens", 1]
    refused(run(*asked, "--compression", "dense"), folder, "--allow-bin")
    assert run(*asked, "--compression", "dense", "--allow-bin")[0] == 0


@pytest.mark.parametrize("more", [[], ["--vllm"]])
def test_pickled_weights_are_exported_where_it_is_allowed(folder, tmp_path, run, more):
    pickled(folder)
    asked = ["export", "--checkpoint", folder, "--output", tmp_path / "exported", *more]
    refused(run(*asked), folder, "--allow-bin")
    code, _, err = run(*asked, "--allow-bin")
    assert code == 0, err
    kept = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert torch.equal(load_file(tmp_path / "exported" / "model.safetensors")["lm_head.weight"], kept["lm_head.weight"])


def test_an_allowed_pickle_holds_tensors_alone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pickled(folder, {"lm_head.weight": Evil()})
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_model(folder, allow_bin=True)
    assert "\n" not in str(error.value)
    assert not (folder / "ran").exists()


def test_safetensors_go_before_a_pickle(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    load_model(folder)
    load_model(folder, allow_bin=True)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/model.safetensors", "..", "", "sub/m.safetensors", 3]
)
def test_an_index_names_files_of_its_folder(folder, name):
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"lm_head.weight": name, "other": "model.safetensors"}}))
    if name != 3:
        with pytest.raises(InputError, match="names weights outside of its folder"):
            check_checkpoint(folder)
    for text in ("{", "[]", "{}", '{"weight_map": []}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(InputError, match="is not an index of weights") as error:
            check_checkpoint(folder)
        assert "\n" not in str(error.value)


def test_tensors_only_is_what_another_module_gets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "a.pt")
    module = SimpleNamespace(torch=torch)
    with tensors_only(module), pytest.raises(Exception, match="Weights only load failed"):
        module.torch.load(tmp_path / "a.pt", weights_only=False)
    assert module.torch is torch
    assert not (tmp_path / "ran").exists()
