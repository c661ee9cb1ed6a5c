"""What make would do on a machine without an environment; nothing is built here."""

import argparse
import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import environment
import pytest
import run_tests

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(tmp_path):
    """plan(*arguments, **environment): exit code, the commands that make would run, and stderr, without any .venv."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in ("environment.py", "constraints.txt", "oldest.txt", "lent.txt", "vllm.txt", "frameworks.txt"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")

    def run(*arguments, **environment):
        hidden = (
            "ASCEND_HOME_PATH",
            "ASCEND_TOOLKIT_HOME",
            "EMULATE",
            "DEVICE",
            "TORCH_NPU",
            "MATRIX",
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
        )
        environ = {name: value for name, value in os.environ.items() if name not in hidden}
        command, environ = ["make", "-n", *arguments], environ | environment
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


def made(commands: str) -> list[str]:
    """The environments that these commands create, in order."""
    return re.findall(r"scripts/environment\.py (.*)", commands)


@pytest.mark.parametrize("goal", ["demo", "train", "eval", "parity", "bench"])
def test_an_npu_without_cann_is_refused_before_anything_is_installed(plan, goal):
    code, commands, said = plan(goal, "DEVICE=npu:0")
    assert code == 2
    assert commands == ""
    assert "DEVICE=npu:0 finds no CANN" in said
    assert "set_env.sh" in said
    assert "EMULATE=1" in said


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_with_cann_torch_npu_is_installed_once_beside_the_rest(plan, tmp_path, variable):
    cann = {variable: "/usr/local/Ascend"}
    code, commands, said = plan("train", "DEVICE=npu", **cann)
    assert code == 0, said
    assert made(commands) == [".venv", ".venv --add-torch-npu"]
    assert commands.rstrip().endswith("ppe-npu train --device npu")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()  # left by an earlier `make test`
    assert made(plan("train", "DEVICE=npu", **cann)[1]) == [".venv --add-torch-npu"]
    (tmp_path / ".venv" / ".torch_npu").touch()
    assert made(plan("train", "DEVICE=npu", **cann)[1]) == []


def test_without_an_npu_torch_npu_is_not_installed(plan):
    for arguments in (("train",), ("train", "DEVICE=cpu"), ("test", "DEVICE=npu")):
        code, commands, said = plan(*arguments, ASCEND_HOME_PATH="")
        assert code == 0, said
        assert made(commands) == [".venv"]
    assert not [command for command in environment.commands(".venv") if "torch_npu" in command]


@pytest.mark.parametrize(
    ("goal", "folders"),
    [
        ("lint", [".venv"]),
        ("test-matrix", [".venv", ".venv-oldest"]),
        ("test-newest", [".venv-newest"]),
        ("test-lmms", [".venv-lmms"]),
        ("test-integrations", [".venv-integrations"]),
        ("test-frameworks", [".venv-frameworks"]),
        ("test-app", [".venv-app"]),
        ("test-vllm", [".venv-vllm"]),
        ("test-lent", [".venv-lent"]),
        ("test-ascend-compiler", [".venv-ascend"]),
    ],
)
def test_each_target_makes_the_environments_that_it_needs(plan, goal, folders):
    code, commands, said = plan(goal)
    assert code == 0, said
    assert made(commands) == folders


@pytest.mark.parametrize("folder", environment.NAMES)
def test_every_environment_holds_torch_where_it_is_pinned(folder):
    """The torch release is named in each command that could install another one; only test-newest asks for the newest,
    and test-lent's release is in its list."""
    if folder == ".venv-lent":
        assert "torch==2.11.0" in (ROOT / "scripts" / "lent.txt").read_text().splitlines()
        return
    for command in environment.commands(folder):
        if "install" in command and "--no-deps" not in command and "--upgrade" not in command:
            assert environment.TORCH in command
            assert "--constraint" in command
    assert any("--upgrade" in command for command in environment.commands(folder)) == (folder == ".venv-newest")


@pytest.mark.parametrize(
    ("release", "torch", "vision"),
    [("2.10.0.post4", "2.10.0", "0.25.0"), ("2.7.1", "2.7.1", "0.22.1"), ("2.14.0", "2.14.0", "0.29.0")],
)
def test_another_torch_npu_comes_with_its_own_torch(release, torch, vision):
    base, npu = (command for command in environment.commands(f".venv-npu-{release}") if "install" in command)
    assert f"torch=={torch}" in base
    assert {f"torch_npu=={release}", f"torchvision=={vision}", "--no-deps"} <= set(npu)
    assert f".venv-npu-{release}/constraints.txt" in base
    with pytest.raises(argparse.ArgumentTypeError):
        environment.known(f".venv-npu-{release}-nightly")


def test_an_environment_is_ready_only_when_every_command_succeeded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr("sys.argv", ["environment.py", ".venv"])
    codes = iter([0, 3])
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(codes)))
    assert environment.main() == 3
    assert not (tmp_path / ".venv" / ".ready").exists()
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert environment.main() == 0
    assert (tmp_path / ".venv" / ".ready").exists()


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        (".venv-lmms", {"protobuf", "python-dateutil"}),
        (".venv-integrations", {"accelerate"}),
        (".venv-app", {"pillow", "python-dateutil"}),
        (".venv-npu-2.10.0.post4", {"torch", "torch_npu", "torchvision", "triton"}),
    ],
)
def test_some_get_constraints_without_what_they_want_otherwise(folder, others, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "constraints.txt", tmp_path / "scripts")
    monkeypatch.setattr("sys.argv", ["environment.py", folder])
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert environment.main() == 0
    ours, theirs = ((tmp_path / name / "constraints.txt").read_text() for name in ("scripts", folder))
    left_out = {line.split("==")[0] for line in set(ours.splitlines()) - set(theirs.splitlines())}
    assert left_out == others


def test_uv_looks_where_pip_is_told_to_look(monkeypatch):
    said = "global.index-url='https://a/simple'\nglobal.extra-index-url='\\nhttps://b/simple\\nfile:///c'\n"
    said += ":env:.find-links='/d'\nglobal.cert='/e.crt'\n"
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    found = environment.indexes_of_pip()[2:]
    assert found == ["--default-index", "https://a/simple", "--index", "https://b/simple", "--index", "file:///c",
                     "--find-links", "/d"]  # fmt: skip
    asked = [command for command in environment.commands(".venv-vllm") if "uv" in command[0]]
    assert len(asked) == 2
    assert all(" ".join(found) in " ".join(command) for command in asked)


def test_uv_is_told_each_index_once_as_pip_takes_it_and_no_password_is_printed(monkeypatch, capsys, tmp_path):
    said = ":env:.find-links='/d'\nglobal.find-links='/c'\nglobal.index-url='https://u:secret@a/simple'\n"
    install = "install.index-url='https://u:secret@b/simple'\n"
    answer = SimpleNamespace(returncode=0, stdout=said + install + "download.index-url='https://c/simple'\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: answer)
    assert environment.indexes_of_pip()[2:] == ["--find-links", "/d", "--default-index", "https://u:secret@b/simple"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv-vllm").mkdir()
    monkeypatch.setattr("sys.argv", ["environment.py", ".venv-vllm"])
    assert environment.main() == 0
    shown = capsys.readouterr().out
    assert "https://...@b/simple" in shown
    assert "secret" not in shown


def test_all_name_the_same_versions_of_python():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    versions = set(re.findall(r"Python :: (3\.\d+)", settings["metadata"]["classifiers"]))
    least = min(versions, key=lambda version: int(version[2:]))
    assert settings["options"]["python_requires"] == f">={least}"
    assert settings["mypy"]["python_version"] == least
    assert f'target-version = "py{least.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("PYTHON ?="))
    assert set(re.findall(r"python(3\.\d+)", line)) == versions
    ci = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").iterdir())
    assert set(re.findall(r'python-version: "(3\.\d+)"', ci)) == versions


def test_the_makefile_fits_on_two_screens():
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert len(lines) < 90
    assert [line for line in lines if len(line) > 120] == []


def test_variables_of_make_become_options(plan):
    def last(*arguments):
        return " ".join(plan(*arguments)[1].splitlines()[-1].split())

    named = ("MODEL=m", "RATIO=0.25 0.45", "K=4", "BATCH_SIZE=2", "DATA_ROOT=d", "DEVICE=cpu")
    options = "--batch-size 2 --device cpu --model m --data-root d --ratio 0.25 0.45 --k 4"
    assert last("eval", *named) == f".venv/bin/ppe-npu eval {options}"
    assert last("demo", "FULL=1", "TRAINING_FREE=0") == ".venv/bin/ppe-npu demo --full"
    # An explicit auto overrides a recipe's device; without DEVICE the recipe decides.
    assert last("train", "RECIPE=r", "DEVICE=auto") == ".venv/bin/ppe-npu train --device auto --config r"
    assert last("train", "RECIPE=r") == ".venv/bin/ppe-npu train --config r"
    launched, nodes = ".venv/bin/python -m ppe_npu.cli.launch", "--nnodes 2 --node-rank 1 --master-addr host"
    alone = ("train", "NPROC=8", "NODE_RANK=1", "MASTER_ADDR=host", "RECIPE=r")
    assert last(*alone) == f"{launched} --nproc-per-node 8 -m ppe_npu.cli train --config r"
    assert last(*alone, "NNODES=2").startswith(f"{launched} {nodes} --nproc-per-node 8 ")


def test_targets_with_environments_of_their_own_run_tests_that_are_there(plan, monkeypatch):
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    apart = re.search(r"^APART +:= (.*)", makefile, flags=re.M)[1].split()
    assert sorted(apart) == sorted(run_tests.RUNS)
    assert set(run_tests.VARIABLES) <= set(apart)
    assert ".venv-lmms; do $environment/bin/python scripts/run_tests.py test-lmms" in plan("test-lmms")[1]
    assert made(plan("test-matrix", "MATRIX=.venv-oldest")[1]) == [".venv-oldest"]
    monkeypatch.chdir(ROOT)
    for command in (command for commands in run_tests.RUNS.values() for command in commands):
        words = run_tests.arguments(command)
        assert not [word for word in words if "*" in word or (word.startswith("tests/") and not Path(word).exists())]
    emulated = run_tests.arguments(run_tests.RUNS["test-emulated"][0])
    assert {"tests/test_ascend_emulator_limits.py", "tests/test_npu_runs.py"} <= set(emulated)


def test_a_run_of_tests_ends_with_the_first_command_that_fails(monkeypatch):
    codes, started = iter([0, 3, 0]), []

    def run(command, env):
        started.append((command[2], env["OMP_NUM_THREADS"]))
        return SimpleNamespace(returncode=next(codes))

    monkeypatch.setattr(run_tests.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["run_tests.py", "test-emulated"])
    assert run_tests.main() == 3
    assert started == [("pytest", "1"), ("ppe_npu.cli", "1")]


def test_help_lists_the_targets_and_their_variables(plan):
    said = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT).stdout
    assert re.search(r"^make demo +train and compare .*\n +\[DEVICE= SEEDS=3 FULL=1", said, flags=re.M)
    assert {f"make {target}" for target in run_tests.RUNS if target != "test-emulated"} <= set(
        re.findall(r"^make [a-z-]+", said, flags=re.M)
    )


def test_triton_ascend_stands_beside_no_other_triton():
    """Both are the same package under two names: whichever is installed later breaks the other."""
    commands = [" ".join(command) for command in environment.commands(".venv-ascend")]
    gone, ours = (
        next(i for i, text in enumerate(commands) if words in text) for words in ("uninstall", "triton-ascend")
    )
    assert gone < ours
    assert commands[gone].endswith("triton")
    assert "--no-deps" in commands[ours]


def test_a_python_of_another_version_is_found_or_named(monkeypatch, tmp_path):
    assert environment.python(f"3.{environment.sys.version_info[1]}") == environment.sys.executable
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert environment.python("3.99") == "python3.99"
