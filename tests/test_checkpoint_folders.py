"""Damaged model folders, and folders that are no models: one line that names the folder, before anything is built."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from packaging.version import Version

from ppe_npu.checkpoints import trial
from ppe_npu.checkpoints.loading import check_compression, load_model, load_processor
from ppe_npu.checkpoints.trust import check_weight_files
from ppe_npu.config import CompressionConfig
from ppe_npu.errors import InputError


def load(folder):
    """Loads a folder as every command does before it works."""
    check_compression(folder, CompressionConfig.preset("keep_one"))
    load_processor(folder)
    load_model(folder)


FOLDERS = {
    "longest": ("tokenizer_config.json", "model_max_length", [1], "tokenizer of"),
    "padding": ("generation_config.json", "pad_token_id", ["a"], "pad_token_id"),
    "end": ("generation_config.json", "eos_token_id", ["a"], "eos_token_id"),
    "unknown": ("tokenizer_config.json", "unk_token", "", "of"),
    "patch": ("config.json", "vision_config.temporal_patch_size", [8, 0, 0], "temporal_patch_size"),
    "window": ("config.json", "vision_config.window_size", -1, "window_size=-1 is not a number above 0"),
    "seconds": ("config.json", "vision_config.tokens_per_second", "x", "tokens_per_second"),
    "merge": ("config.json", "vision_config.spatial_merge_size", 0, "cannot be used"),
    "heads": ("config.json", "vision_config.num_heads", 8, "num_heads=8 does not fit a width of"),
    "no heads": ("config.json", "vision_config.num_heads", 0, "num_heads=0 does not fit a width of"),
    "features": ("config.json", "vision_config.out_hidden_size", 5_000_000, "out_hidden_size=5000000 differs"),
    "taps": ("config.json", "vision_config.deepstack_visual_indexes", [0, 0], "deepstack_visual_indexes=[0, 0] is not"),
    "sections": (
        "config.json",
        "text_config.rope_parameters.mrope_section",
        [],
        "mrope_section=[] is not three",
    ),
    "rope": ("config.json", "text_config.rope_parameters.rope_theta", "qwen3_vl", "cannot be"),
    "rope of pictures": ("config.json", "vision_config.rope_parameters.rope_theta", [8, 0, 0], "cannot be"),
    "rope type": ("config.json", "text_config.rope_parameters.rope_type", 1, "cannot be"),
    "kind": ("config.json", "vision_config.model_type", [], "cannot be"),
    "spread": ("processor_config.json", "image_processor.image_std", "qwen3_vl", "image_processor of"),
    "mean": ("processor_config.json", "image_processor.image_mean", [{"a": 1}, 0, 0], "image_processor of"),
    "scale": ("processor_config.json", "image_processor.do_rescale", [4, 6, 6], "image_processor of"),
    "side": ("processor_config.json", "image_processor.patch_size", float("nan"), "patch_size=nan is not a whole"),
    "edge": (
        "processor_config.json",
        "image_processor.size",
        {"shortest_edge": "1", "longest_edge": 9},
        "shortest_edge",
    ),
    "huge": (
        "processor_config.json",
        "video_processor.size",
        {"shortest_edge": 10**12, "longest_edge": 10**13},
        "min_pixels=1000000000000 of",
    ),
    "steps": ("processor_config.json", "video_processor.temporal_patch_size", True, "video_processor of"),
}
DAMAGES = {
    "no config": ("config.json", None, "contains no config.json"),
    "half a config": ("config.json", b'{"a": ', "cannot be read as JSON"),
    "no tower": ("config.json", b'{"model_type": "qwen3_vl", "vision_config": null}', "vision_config is null"),
    "labels without end": ("config.json", b'{"model_type": "qwen3_vl", "num_labels": 9000000000}', "num_labels=9"),
    "list of a config": ("config.json", b"[]", "is not a model config"),
    "list of settings": ("generation_config.json", b"[]", "generation_config.json"),
    "half of weights": ("model.safetensors", b"\x10\0\0\0", "cannot be loaded"),
    "half a tokenizer": ("tokenizer.json", b'{"version": ', "cannot be loaded (tokenizer.json: "),
    "no object": (
        "processor_config.json",
        b"[1]",
        "cannot be loaded (processor_config.json contains [1], not settings)",
    ),
    "a page": ("tokenizer_config.json", b"<html>", "cannot be loaded (tokenizer_config.json: "),
    "no template": ("chat_template.jinja", b"{% for", "chat template of"),
    "no template, but a page": ("chat_template.jinja", b"<!DOCTYPE html>", "chat template of"),
    "no settings of a tokenizer": ("tokenizer_config.json", None, "lacks tokenizer_config.json"),
    "wrong template": ("chat_template.jinja", b"{{ 1 / 0 }}", "chat template of"),
}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A checkpoint whose files may be replaced."""
    for file in Path(tiny_folder).iterdir():
        os.link(file, tmp_path / file.name)
    return tmp_path


def replace(file, data):
    file.unlink()  # it is a link
    file.write_bytes(data)


@pytest.mark.parametrize("name", list(FOLDERS))
def test_settings_of_a_checkpoint_that_cannot_be_are_one_line(folder, name):
    if name in ("kind", "edge") and Version(transformers.__version__) < Version("5.3"):
        pytest.skip("transformers 5.2 takes a list for a model type, and a text for an edge")
    file, key, value, words = FOLDERS[name]
    settings = json.loads((folder / file).read_text())
    place = settings
    *above, last = key.split(".")
    for part in above:
        if part not in place:
            pytest.skip(f"this transformers writes no {part}")
        place = place[part]
    place[last] = value
    replace(folder / file, json.dumps(settings).encode())
    with pytest.raises(InputError) as error:
        load(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("text_config.num_hidden_layers", 10**6), ("text_config.vocab_size", 10**9)),
        *(("text_config.hidden_size", 10**7), ("text_config.intermediate_size", 10**9)),
        *(("vision_config.depth", 10**6), ("vision_config.intermediate_size", 10**10)),
    ],
)
def test_a_config_of_more_than_the_weights_hold_builds_no_model(folder, monkeypatch, key, value):
    part, name = key.split(".")
    config = json.loads((folder / "config.json").read_text())
    config[part][name] = value
    replace(folder / "config.json", json.dumps(config).encode())
    monkeypatch.setattr("torch.nn.Module.__init__", lambda *_: pytest.fail("it is built"))
    with pytest.raises(InputError, match=rf"bytes of weights are too few for its config.json, .*{name}={value}"):
        load_model(folder)
    with pytest.raises(InputError, match="too few"):
        check_compression(folder, CompressionConfig.preset("keep_one"))


def test_weights_that_are_not_there_are_named(folder):
    """An interrupted download, and a clone by git without its large files."""
    index = folder / "model.safetensors.index.json"
    names = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    index.write_text(json.dumps({"weight_map": {f"w{name}": name for name in names}}))
    load(folder)  # the one file is read, whatever lies beside it
    (folder / "model.safetensors").rename(folder / names[0])
    with pytest.raises(InputError, match=rf"lacks 4 of 5 weight files .* \('{names[1]}', .*, \.\.\.\): download"):
        load(folder)
    (folder / names[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for name in names[2:]:
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{names[1]} is a pointer of Git LFS, not the weights: run `git lfs pull`"):
        load(folder)
    (folder / names[0]).rename(folder / "model.safetensors")  # it is read instead of the files that an index names
    load(folder)
    (folder / "model.safetensors").unlink()
    index = json.dumps({"weight_map": {"lm_head.weight": "a" * 5000}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"lacks 1 of 1 weight files .* \('a{80}\.\.\.'\): download"):
        load(folder)


def test_weights_that_may_not_be_read_are_named(folder, monkeypatch):
    """transformers would say that they are not there."""
    access, closed = os.access, folder / "model.safetensors"
    monkeypatch.setattr("os.access", lambda path, mode: path != closed and access(path, mode))
    with pytest.raises(
        InputError, match=r"model\.safetensors may not be read \(permission denied\): change its permissions"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_a_pickle_that_git_left_a_pointer_of_is_named(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    if name != "pytorch_model.bin":
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError, match=f"{name} is a pointer of Git LFS, not the weights"):
        check_weight_files(folder, allow_bin=True)


def test_an_added_word_that_the_processor_replaces_needs_no_row(folder):
    """Frames replace InternVL3's <video> before the model sees it; an ordinary word is one that the model sees."""
    processor = load_processor(folder)
    rows = len(processor.tokenizer)
    processor.tokenizer.add_tokens(["<theirs>"])
    text = SimpleNamespace(vocab_size=rows)
    config = SimpleNamespace(get_text_config=lambda: text)
    trial._check_vocabulary(processor, config, folder)
    text.vocab_size = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    with pytest.raises(InputError, match=f"has the id .*, but config.json has {text.vocab_size} words"):
        trial._check_vocabulary(processor, config, folder)


@pytest.mark.parametrize("value", ["Infinity", "-1", "NaN", '"1e-6"'])
def test_a_bound_of_a_norm_that_is_none_is_named(folder, value):
    text = (folder / "config.json").read_text()
    replace(folder / "config.json", re.sub(r'("rms_norm_eps": )[^,\n]+', rf"\g<1>{value}", text).encode())
    with pytest.raises(InputError, match="rms_norm_eps"):
        load(folder)


def test_a_config_without_a_part_is_not_taken_for_transformers_own(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]
    replace(folder / "config.json", json.dumps(config).encode())
    with pytest.raises(InputError, match=r"vision_config out_hidden_size=\d+ differs from text_config hidden_size"):
        check_compression(folder, CompressionConfig.preset("keep_one"))


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_files_of_a_checkpoint_are_one_line(folder, name):
    file, data, words = DAMAGES[name]
    replace(folder / file, data or b"")
    if data is None:
        (folder / file).unlink()
    with pytest.raises(InputError) as error:
        load(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "model.safetensors", "vocab.json"])
def test_a_pipe_or_a_device_in_a_checkpoint_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(folder / name)
        with pytest.raises(InputError, match=rf"{re.escape(str(folder / name))} is a folder, a pipe or a device"):
            load(folder)
        with pytest.raises(InputError, match="a pipe or a device"):
            load_processor(folder)
        (folder / name).unlink()


def test_a_whole_checkpoint_is_loaded(folder):
    """Other programs may leave files beside it."""
    os.mkfifo(folder / "a.sock")
    load(folder)


def test_a_folder_that_may_not_be_listed_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", lambda path: os.listdir("/proc/self/fd/none"))
    with pytest.raises(InputError, match=rf"{re.escape(str(folder))} cannot be listed \(No such file"):
        check_compression(folder, CompressionConfig.preset("keep_one"))


def test_a_mark_before_a_template_is_none_of_its_words(folder):
    """A byte order mark, as some editors write it."""
    from ppe_npu.checkpoints.loading import load_processor

    template = (folder / "chat_template.jinja").read_bytes()
    plain = load_processor(folder).chat_template
    replace(folder / "chat_template.jinja", b"\xef\xbb\xbf" + template)
    assert load_processor(folder).chat_template == plain


def test_a_fault_of_ours_while_a_model_is_loaded_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr("ppe_npu.models.fused.fuse", lambda model: {}["a fault of ours"])
    with pytest.raises(KeyError):
        load(folder)
