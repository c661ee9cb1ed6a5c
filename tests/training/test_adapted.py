"""An adapter given as the model: describe and eval answer as the merged model does; a wrong base is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import refused as refused_by
from command_line import run  # noqa: F401
from saved_runs import logits, save_run

from ppe_npu import CompressionConfig, compress
from ppe_npu.checkpoints.loading import load_model
from ppe_npu.demo import scenes
from ppe_npu.errors import InputError
from ppe_npu.training.adapted import Checkpoint
from ppe_npu.training.adapters import Adapter, add_adapter, save_adapter
from ppe_npu.training.export import merge_lora


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_folder, tiny_processor):
    folder = tmp_path_factory.mktemp("adapter") / "final"
    save_run(folder, tiny_folder, "lora", tiny_processor)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.ci
def test_it_is_the_merged_model(adapter, tmp_path, dtype):
    merge_lora(adapter, tmp_path / "merged")
    asked, merged = (Checkpoint.of(folder).load("cpu", dtype) for folder in (adapter, tmp_path / "merged"))
    assert torch.equal(logits(asked), logits(merged))
    plain = load_model(Checkpoint.of(adapter).model, dtype=dtype)
    assert not torch.equal(logits(plain), logits(merged)), "the adapter does something"


@pytest.mark.ci
def test_describe_and_eval_take_it(run, adapter, tmp_path, write_image):  # noqa: F811
    merge_lora(adapter, tmp_path / "merged")
    scenes.write_split(tmp_path / "data", "test", 2, seed=2, questions_per_image=3)
    image, said = write_image("a.png"), []
    plain = ["--cost-rounds", 0, "--no-smaller-input"]
    for model in (adapter, tmp_path / "merged"):
        asked = ["--image", image, "--prompt", "row red", "--max-new-tokens", 4, "--device", "cpu"]
        code, out, err = run("describe", "--model", model, *asked)
        assert code == 0, err
        assert f"the one in {model}/compression.json" in err
        said.append(out.splitlines()[:4])
        where = ["--data-root", tmp_path / "data", "--output", tmp_path / "eval" / model.name, "--device", "cpu"]
        code, _, err = run("eval", "--model", model, *where, "--max-new-tokens", 2, *plain)
        assert code == 0, err
    assert said[0] == said[1]
    answers = [
        [json.loads(line)["answer"] for line in next((tmp_path / "eval" / name).rglob("predictions.jsonl")).open()]
        for name in ("final", "merged")
    ]
    assert answers[0] == answers[1]
    settings = json.loads(next((tmp_path / "eval" / "final").rglob("settings.json")).read_text())
    assert settings["model"] == str(adapter)
    # Evaluating again finds the same run.
    assert run("eval", "--model", adapter, *where[:2], "--output", tmp_path / "eval" / "final", "--device", "cpu",
               "--max-new-tokens", 2, *plain)[0] == 0  # fmt: skip


def test_a_base_that_moved_is_named(run, adapter, tiny_folder, tmp_path, write_image):  # noqa: F811
    folder = Path(shutil.copytree(adapter, tmp_path / "final"))
    record = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(record | {"model": "/gone"}))
    with pytest.raises(InputError, match="trained on /gone, which no longer exists: name its base with --base"):
        Checkpoint.of(folder)
    Checkpoint.of(folder, base=tiny_folder).load("cpu")
    other = tmp_path / "other"
    from ppe_npu.demo import tiny

    tiny.build_model(5).save_pretrained(other)
    with pytest.raises(InputError, match=r"has other weights.*with --base"):
        Checkpoint.of(folder, base=other).load("cpu")
    asked = ["--image", write_image("a.png"), "--device", "cpu"]
    refused_by(run("describe", "--model", tiny_folder, "--base", tiny_folder, *asked), "--base", "is not an adapter")


@pytest.mark.ci
def test_an_adapter_that_a_script_saved_is_merged_as_it_stands(tiny_folder, tmp_path):
    model = compress(load_model(tiny_folder), CompressionConfig.preset("ppe", k=4, ratio=0.25))
    wrapped = add_adapter(model, Adapter("lora", rank=2))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_adapter(wrapped, tmp_path / "mine")
    merged = load_model(merge_lora(tmp_path / "mine", tmp_path / "merged"))
    assert torch.equal(logits(merged), logits(Checkpoint.of(tmp_path / "mine").load("cpu")))
    assert CompressionConfig.from_file(tmp_path / "merged" / "compression.json") == model.compression.config
