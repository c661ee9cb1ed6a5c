"""`ppe-npu export --vllm` and `ppe-npu serve`, without vLLM: what they write and start, and what they refuse."""

import ast
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from checkpoints import FAMILIES, save
from command_line import refused

from ppe_npu import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.serving.settings import KEY, compression_config, identity
from ppe_npu.serving.vllm import architectures

NAME = "PPEQwen2_5_VLForConditionalGeneration"


@pytest.fixture
def started(monkeypatch):
    """The commands that would have been started; vLLM appears to be installed."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there("json") if name == "vllm" else there(name))
    return commands


def test_an_exported_checkpoint_says_how_it_is_compressed(run, tiny_folder, tmp_path):
    asked = ["--compression", "divprune:ratio=0.3,positions=ppe,k=4"]
    code, out, err = run("export", "--vllm", "--checkpoint", tiny_folder, "--output", tmp_path / "served", *asked)
    assert code == 0, err
    assert out.strip() == f"vllm serve {tmp_path / 'served'}"
    said = json.loads((tmp_path / "served" / "config.json").read_text())
    plain = json.loads((Path(tiny_folder) / "config.json").read_text())
    assert said["architectures"] == [NAME]
    assert compression_config(said[KEY]) == CompressionConfig.from_text(asked[1])
    assert {key for key in plain if said[key] != plain[key]} <= {"architectures", "text_config", "vision_config"}
    names = {path.name for path in (tmp_path / "served").iterdir()}
    assert {"model.safetensors", "tokenizer_config.json", "processor_config.json"} <= names


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.ci
def test_every_family_is_exported_and_served_by_the_same_keys(run, tmp_path, started, family):
    folder = save(tmp_path / "plain", family)
    assert run("serve", "--model", folder, "--compression", "ppe", "--k", 2)[0] == 0
    asked = ["--compression", "ppe", "--k", 2]
    code, _, err = run("export", "--vllm", "--checkpoint", folder, "--output", tmp_path / "served", *asked)
    assert code == 0, err
    plain, said = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "served"))
    overrides = json.loads(started[0][6])
    assert {key: said[key] for key in overrides} == overrides
    (name,) = overrides["architectures"]
    assert (name in architectures(), name) == (True, "PPE" + plain["architectures"][0])
    # A decoder of one axis says none, and vLLM would keep no positions for it: half a head of 128 reads it.
    assert overrides.get("mrope_section") == ([64, 0, 0] if family == "internvl" else None)


def test_the_server_is_started_with_the_compression(run, tiny_folder, started):
    code, _, err = run("serve", "--model", tiny_folder, "--compression", "ppe", "--k", 4, "--", "--port", 8123)
    assert code == 0, err
    (command,) = started
    assert command[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_folder]
    assert command[5] == "--hf-overrides"
    assert json.loads(command[6]) == {"architectures": [NAME], KEY: CompressionConfig.preset("ppe", k=4).to_dict()}
    assert command[7:] == ["--port", "8123"]


def test_an_exported_checkpoint_is_served_as_it_says(run, tiny_folder, tmp_path, started):
    run("export", "--vllm", "--checkpoint", tiny_folder, "--output", tmp_path / "served", "--compression", "keep_one")
    assert run("serve", "--model", tmp_path / "served")[0] == 0
    assert started[0][3:] == ["--model", str(tmp_path / "served")]
    refused(run("serve", "--model", tmp_path / "served", "--compression", "ppe"), "a compression of its own")


def test_a_checkpoint_that_was_exported_for_vllm_is_none_for_other_commands(run, tiny_folder, tmp_path, started):
    served = tmp_path / "served"
    assert run("export", "--vllm", "--checkpoint", tiny_folder, "--output", served, "--compression", "ppe:k=4")[0] == 0
    again = ["export", "--vllm", "--checkpoint", served, "--output", tmp_path / "again"]
    for command in (again, ["eval", "--model", served], ["serve", "--model", served, "--k", 2]):
        refused(run(*command), served, "exported")


@pytest.mark.parametrize("command", ["serve", "export"])
@pytest.mark.parametrize(
    ("compression", "said"),
    [
        ("ppe_cascade", "layers=[11, 23, 35]"),
        ("ppe:layers=[1],k=4", "layers=[1]: a server's KV cache has one length"),
        ("visionzip", "visionzip looks at tower_keys, tower_saliency"),
        ("ppe:k=9", "k=9"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_done(
    run, tiny_folder, tmp_path, started, command, compression, said
):
    where = ["--model", tiny_folder]
    if command == "export":
        where = ["--vllm", "--checkpoint", tiny_folder, "--output", tmp_path / "served"]
    refused(run(command, *where, "--compression", compression), said)
    assert not started
    assert not (tmp_path / "served").exists()


def test_what_is_missing_or_said_twice_is_one_line(run, tiny_folder, tmp_path, started, monkeypatch):
    refused(run("serve", "--model", tiny_folder, "--", "--hf-overrides={}"), "--hf-overrides after --")
    refused(run("serve", "--model", tmp_path / "none"), "none", "does not exist")
    plain = run("export", "--checkpoint", tiny_folder, "--output", tmp_path / "a", "--ratio", 0.3)
    refused(plain, "--compression needs --vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(run("serve", "--model", tiny_folder), "vllm", "not installed", "[vllm]")
    assert not started


@pytest.mark.parametrize(
    "word",
    ["--model=other", "--hf_overrides={}", "--hf-overrides.ppe_compression=keep_one", "--hf-over", "--hf_overrides",
     "--trust_remote_code", "--trust-rem"],
)  # fmt: skip
def test_what_the_server_would_read_in_place_of_ours_is_refused_however_it_is_spelt(run, tiny_folder, started, word):
    refused(run("serve", "--model", tiny_folder, "--", "--port", 8123, word), word.split("=")[0], "leave it out")
    assert not started


@pytest.mark.parametrize("words", [["other"], ["port", 80], ["--", "--port", 80], ["--port", 80, "--", "x"], [""]])
def test_what_is_no_option_of_the_server_is_refused(run, tiny_folder, started, words):
    """The server would take the first such word for a model's name, and serve --model."""
    word = words[2] if "--port" in words[:1] else words[0]
    refused(run("serve", "--model", tiny_folder, "--", *words), f"'{word}' is not an option of vLLM's server: after --")
    assert not started


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (KEY, {"ratoi": 0.5}, f"{KEY}: unknown compression key(s) ratoi"),
        ("architectures", ["Qwen2_5_VLForConditionalGeneration"], "is no class that serves ppe_compression"),
        (None, None, "contains no weights"),
    ],
)
def test_an_exported_checkpoint_that_is_not_whole_is_not_served(run, tiny_folder, tmp_path, started, key, value, words):
    served = tmp_path / "served"
    assert run("export", "--vllm", "--checkpoint", tiny_folder, "--output", served, "--compression", "ppe:k=4")[0] == 0
    config = json.loads((served / "config.json").read_text())
    if key is None:
        (served / "model.safetensors").unlink()
    else:
        (served / "config.json").write_text(json.dumps(config | {key: value}))
    refused(run("serve", "--model", served), served, words)
    assert not started
    if key is None:  # its own weights are not read then
        assert run("serve", "--model", served, "--", "--load-format", "dummy")[0] == 0


def test_options_that_only_resemble_ours_reach_the_server(run, tiny_folder, started):
    words = ["--model-impl", "auto", "--host", "h", "--trust-request-mm-kwargs", "-tp", "1", "--hf-config-path=a.b"]
    assert run("serve", "--model", tiny_folder, "--", *words)[0] == 0
    assert started[0][7:] == words


@pytest.mark.parametrize(
    ("values", "config"),
    [
        (None, CompressionConfig.preset("ppe")),
        ("ppe:ratio=0.25", CompressionConfig.preset("ppe", ratio=0.25)),
        ({"preset": "keep_one", "ratio": 0.3}, CompressionConfig.preset("keep_one", ratio=0.3)),
        (CompressionConfig.preset("divprune").to_dict(), CompressionConfig.preset("divprune")),
    ],
)
def test_every_form_of_the_key_is_read(values, config):
    assert compression_config(values) == config
    assert compression_config(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("values", [3, ["ppe"], {"preset": "pppe"}, {"ratoi": 0.5}, "ppe:ratio=2"])
def test_a_key_that_is_none_is_refused(values):
    with pytest.raises(InputError):
        compression_config(values)


def test_caches_of_two_compressions_have_two_keys():
    made = [CompressionConfig.preset("ppe", ratio=ratio, k=k) for ratio in (0.45, 0.25) for k in (4, 8)]
    assert len({identity(config) for config in made}) == 4
    assert identity(made[0]) == identity(CompressionConfig.preset("ppe", ratio=0.45, k=4))


def test_nothing_of_vllm_is_assigned_to():
    """No statement of the package writes to a name that it has imported from vLLM, or to what such a name holds."""
    seen = 0
    for path in Path(importlib.util.find_spec("ppe_npu").origin).parent.rglob("*.py"):
        if "vllm" in (text := path.read_text()):
            seen += 1
            assert not assigned(text), f"{path}:{assigned(text)}"
    assert seen > 10


@pytest.mark.parametrize(
    "code",
    [
        "import vllm\nvllm.LLM.generate = None",
        "import vllm.config as theirs\ntheirs.X = 1",
        "from vllm import envs\nenvs.A['b'] += 1",
        "from vllm import LLM\nsetattr(LLM, 'a', 1)",
        "from vllm import LLM\ndel LLM.a",
        "from vllm import envs\nvars(envs)['a'] = 1",
    ],
)
def test_an_assignment_would_be_seen(code):
    assert assigned(code) == [2]


def assigned(code: str) -> list[int]:
    """The lines that write to what was imported from vLLM."""
    tree = ast.parse(code)
    theirs, found = {"vllm"}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            theirs |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            theirs |= {alias.asname for alias in node.names if alias.name.split(".")[0] == "vllm"}
    for node in ast.walk(tree):
        written = None
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            written = node.value
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
            written = node.args[0]
        while isinstance(written, (ast.Attribute, ast.Subscript, ast.Call)):
            written = (written.args or [None])[0] if isinstance(written, ast.Call) else written.value
        if isinstance(written, ast.Name) and written.id in theirs:
            found.append(node.lineno)
    return found
