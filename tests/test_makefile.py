"""What make does on a machine whose environment is not made yet; nothing is made here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(tmp_path):
    """plan(*arguments, **environment): exit code, the commands that make would run, and stderr, without any .venv."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "constraints.txt", tmp_path / "scripts")

    def run(*arguments, **environment):
        hidden = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "EMULATE", "DEVICE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        environ = {name: value for name, value in os.environ.items() if name not in hidden}
        command, environ = ["make", "-n", *arguments], environ | environment
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("goal", ["demo", "train", "eval", "parity", "bench"])
def test_an_npu_without_cann_is_refused_before_anything_is_installed(plan, goal):
    code, commands, said = plan(goal, "DEVICE=npu:0")
    assert code == 2
    assert "pip" not in commands
    assert "DEVICE=npu:0 finds no CANN" in said
    assert "set_env.sh" in said
    assert "EMULATE=1" in said


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_with_cann_torch_npu_is_installed_once_beside_the_rest(plan, tmp_path, variable):
    cann = {variable: "/usr/local/Ascend"}
    code, commands, said = plan("train", "DEVICE=npu", **cann)
    assert code == 0, said
    assert commands.count("--no-deps torch_npu") == 1
    assert commands.rstrip().endswith("ppe-npu train --device npu")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()  # of a `make test` before
    assert plan("train", "DEVICE=npu", **cann)[1].count("pip install") == 1
    (tmp_path / ".venv" / ".torch_npu").touch()
    assert "pip install" not in plan("train", "DEVICE=npu", **cann)[1]


def test_without_an_npu_torch_npu_is_not_installed(plan):
    for arguments in (("train",), ("train", "DEVICE=cpu"), ("test", "DEVICE=npu")):
        code, commands, said = plan(*arguments, ASCEND_HOME_PATH="")
        assert code == 0, said
        assert "pip install" in commands
        assert "torch_npu" not in commands
