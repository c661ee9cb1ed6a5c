"""`ppe-npu eval --engine vllm`: the rows of the transformers engine, and what it refuses."""

import importlib.util
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import save
from command_line import refused

from ppe_npu import CompressionConfig
from ppe_npu.demo import scenes
from ppe_npu.errors import InputError
from ppe_npu.evaluation.vllm_engine import Engines
from ppe_npu.training.adapted import Checkpoint

QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
         "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip
SAME = ("index", "prompt", "answer", "score", "new_tokens", "tokens_before", "tokens_after")


def rows(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return {line["index"]: {key: line[key] for key in SAME if key in line} for line in lines}


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm")
def test_both_engines_write_the_same_rows(run, tmp_path, monkeypatch):
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    folder = save(tmp_path / "model")
    scenes.write_split(tmp_path / "data", "test", 3, seed=1, questions_per_image=2)
    asked = [
        "--model",
        folder,
        "--data-root",
        tmp_path / "data",
        "--compression",
        "ppe",
        "--ratio",
        0.45,
        "--device",
        "cpu",
    ]
    asked += ["--max-new-tokens", 6]
    more = ["--engine", "vllm", "--engine-args", '{"max_model_len": 1024, "enforce_eager": true}']
    for name, options in (("transformers", ["--cost-rounds", 0, "--no-smaller-input"]), ("vllm", more)):
        code, _, err = run("eval", *asked, "--output", tmp_path / name, *options)
        assert code == 0, err
    (own,), (theirs,) = (list((tmp_path / name / "layout").iterdir()) for name in ("transformers", "vllm"))
    found, expected = rows(theirs), rows(own)
    assert len(expected) == 6
    assert all(set(row) == set(SAME) for row in expected.values())
    assert all(row["tokens_after"] < row["tokens_before"] for row in expected.values())
    assert found == expected
    results = [json.loads((path / "results.json").read_text()) for path in (own, theirs)]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[1]["settings"]["engine"] == "vllm"
    refused(run("eval", *asked, "--output", tmp_path / "transformers", *more), "engine")


def test_what_vllm_cannot_be_asked_for_is_said_first(run, tiny_folder, tmp_path, monkeypatch):
    scenes.write_split(tmp_path / "data", "test", 1, seed=1, questions_per_image=1)
    asked = ["eval", "--model", tiny_folder, "--data-root", tmp_path / "data", "--output", tmp_path / "out"]
    refused(run(*asked, "--engine", "vllm", "--cost-rounds", 2), "--cost-rounds")
    refused(run(*asked, "--engine-args", "{}", "--engine-args", '{"seed": 1}'), "--engine vllm")
    there = importlib.util.find_spec
    more = ["--engine", "vllm", "--compression"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else there(name))
    refused(run(*asked, *more, "ppe:k=4"), "vllm", "not installed", "[vllm]")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there("json" if name == "vllm" else name))
    refused(run(*asked, *more, "keep_one:layers=[1]"), "layers=[1]: a server's KV cache has one length")
    for name in ("model", "dtype", "hf_overrides", "mm_processor_kwargs", "trust_remote_code"):
        wrong = ["--engine-args", json.dumps({"max_model_len": 8, name: {}})]
        refused(run(*asked, *more, "ppe:k=4", *wrong), f"--engine-args {name}", "leave it out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run(*asked, *more, "ppe:k=4"), "--engine vllm in 2 processes", "tensor_parallel_size")
    assert not (tmp_path / "out").exists()


def test_an_engine_is_given_what_was_asked_and_its_refusal_is_one_line(tiny_folder, tmp_path, monkeypatch):
    """A checkpoint whose weights are pickled is taken where that is allowed, as by transformers."""

    def started(model: str, **settings) -> dict:
        if settings.get("max_model_len") == 1:
            raise ValueError("max_model_len is small\nand more")
        return settings

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=started))
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # no weights are read here
    size, config = {"longest_edge": 64}, CompressionConfig.preset("ppe", k=4)
    with pytest.raises(InputError, match="--allow-bin"):
        Engines(Checkpoint(str(folder)), "float32").of(config, size)
    allowed = Checkpoint(str(folder), allow_bin=True)
    engines = Engines(allowed, "float32", {"max_model_len": 64})
    settings = engines.of(config, size)
    assert settings["max_model_len"] == 64
    assert settings["mm_processor_kwargs"] == {"images_kwargs": {"size": size}}
    assert engines.of(config, dict(size)) is settings  # no other one is started
    other = engines.of(config, {"longest_edge": 32})["mm_processor_kwargs"]
    assert other == {"images_kwargs": {"size": {"longest_edge": 32}}}
    assert settings["hf_overrides"]["ppe_compression"] == config.to_dict()
    with pytest.raises(InputError, match=r"vLLM does not start \(max_model_len is small\): change --engine-args"):
        Engines(allowed, "float32", {"max_model_len": 1}).of(config, size)
