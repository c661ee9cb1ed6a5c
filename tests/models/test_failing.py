"""An error that also occurs without compression is reported as the checkpoint's; one with compression only is ours."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import refused
from support import Prompt, batch, random_model

from ppe_npu.checkpoints.loading import load_model, load_processor
from ppe_npu.config import CompressionConfig
from ppe_npu.data.inputs import build_inputs
from ppe_npu.errors import FileError, InputError
from ppe_npu.evaluation.generation import generate
from ppe_npu.models import compress
from ppe_npu.models.failing import check_alone
from ppe_npu.training.args import TrainConfig
from ppe_npu.training.trainer import train

INPUTS = batch(Prompt([3, ("image", (1, 4, 4)), 5]))


@pytest.fixture(params=["dense", "ppe"])
def forward(request):
    """A function that runs the model, and the model."""
    model = random_model()
    if request.param != "dense":
        compress(model, CompressionConfig.preset(request.param, k=4))
    return lambda: model(**INPUTS).logits, model


def failed(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_a_model_that_fails_without_compression_is_named(forward):
    call, model = forward
    before, compression = call(), vars(model).get("compression")
    model.config._name_or_path = "some/folder"
    embedding = model.get_input_embeddings()
    weight, embedding.weight = embedding.weight, torch.nn.Parameter(embedding.weight[:2])
    words = r"^some/folder also fails in transformers without compression \(IndexError: .*\): its config, .* download"
    error = failed(call)
    with pytest.raises(InputError, match=words) as caught:
        check_alone(model, call, error)
    assert caught.value.__cause__ is error
    embedding.weight = weight
    assert vars(model).get("compression") is compression
    assert torch.equal(call(), before)


def test_what_fails_with_compression_alone_stays_ours(monkeypatch):
    model = compress(random_model(), CompressionConfig.preset("ppe", k=4))
    call = lambda: model(**INPUTS).logits  # noqa: E731
    before = call()
    with monkeypatch.context() as patch:
        patch.setattr("ppe_npu.engine.compression.find_spans", None)
        error = failed(lambda: model(**batch(Prompt([("image", (1, 6, 4)), 5]))))
        assert isinstance(error, TypeError)
        check_alone(model, call, error)
    assert torch.equal(call(), before)


@pytest.mark.parametrize("second", [MemoryError(), RuntimeError("out of memory"), InputError("x")])
def test_where_the_second_call_ends_otherwise_the_first_error_stays(second):
    def call():
        raise second

    check_alone(compress(random_model(), CompressionConfig.preset("ppe", k=4)), call, IndexError("ours"))


class Gone(Exception):
    """The consumer of a streamer has stopped listening."""


class Leaving:
    """A streamer that raises at the first token."""

    def put(self, value):
        if value.dim() == 1:
            raise Gone

    def end(self):
        pass


@pytest.mark.parametrize("config", ["dense", "ppe"])
@pytest.mark.parametrize("asked", [{}, {"num_beams": 2, "suppress_tokens": list(range(37)), "do_sample": True}])
def test_who_stops_listening_and_what_a_user_asked_for_is_no_fault_of_the_checkpoint(
    tiny_folder, config, asked, monkeypatch
):
    model, processor = load_model(tiny_folder), load_processor(tiny_folder)
    compress(model, CompressionConfig.preset(config))
    inputs = build_inputs(processor, [[{"role": "user", "content": "shape red"}]])
    passes, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **given: passes.append(0) or forward(**given))
    error = failed(lambda: generate(model, processor, inputs, 20, None if asked else Leaving(), asked))
    assert not isinstance(error, InputError)
    assert isinstance(error, Gone) or asked
    assert len(passes) <= 2


@pytest.mark.parametrize("error", [InputError("x"), FileError("x"), MemoryError(), RuntimeError("out of memory")])
def test_nothing_is_tried_again_behind_an_error_that_says_enough(error):
    check_alone(random_model(), lambda: pytest.fail("was called"), error)


@pytest.fixture(name="folder")
def checkpoint_that_does_not_fit(tiny_folder, tmp_path):
    """A checkpoint with windows smaller than a patch, at which transformers' tower divides by zero."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["window_size"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WORDS = "also fails in transformers without compression (ZeroDivisionError: "


def test_the_command_names_a_checkpoint_whose_files_do_not_fit(run, folder, write_image):
    asked = ("describe", "--model", folder, "--image", write_image("a.png"), "--compression", "dense")
    refused(run(*asked), folder, WORDS)


@pytest.mark.parametrize("more", [{}, {"adapter": {"kind": "lora", "rank": 2}}])
@pytest.mark.parametrize("independent", [False, True])
def test_training_names_it_in_its_first_step(folder, tmp_path, write_image, independent, more):
    write_image("a.png")
    turns = [{"from": "human", "value": "<image>shape red"}, {"from": "gpt", "value": "shape red 3"}]
    records = [{"image": "a.png", "conversations": turns, "independent": independent}]
    data, output = tmp_path / "data.json", tmp_path / "run"
    data.write_text(json.dumps(records))
    settings = {"model": str(folder), "data": str(data), "output": str(output), "device": "cpu", "max_steps": 1, **more}
    with pytest.raises(InputError, match=re.escape(f"{folder} {WORDS}")):
        train(TrainConfig(**settings))


def test_what_training_alone_fails_in_stays_ours(tiny_folder, tmp_path, write_image, monkeypatch):
    write_image("a.png")
    turns = [{"from": "human", "value": "<image>shape red"}, {"from": "gpt", "value": "shape red 3"}]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    monkeypatch.setattr("ppe_npu.engine.compression.find_spans", None)
    settings = {"model": tiny_folder, "data": str(data), "output": str(tmp_path / "run"), "device": "cpu"}
    with pytest.raises(TypeError):
        train(TrainConfig(**settings, max_steps=1))
