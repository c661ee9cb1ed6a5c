"""A torchvision whose compiled part does not load is repaired, and no other is touched."""

import os
import subprocess
import sys
from pathlib import Path

import mend_torchvision
import pytest

# Minimal stand-ins for torch and torchvision. torch records which operators are declared, and calls a helping package
# unless it is told not to; a module of torchvision needs the operators declared.
TORCH = """import os, types
class Operators(types.SimpleNamespace):
    pass
class Library:
    def __init__(self, namespace, kind):
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
    def define(self, schema):
        name = schema.split("(")[0]
        assert not hasattr(ops.torchvision, name), name + " is declared twice"
        setattr(ops.torchvision, name, schema)
ops = types.SimpleNamespace(torchvision=Operators())
library = types.SimpleNamespace(Library=Library)
if {helped} and os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1":
    for name in ("nms", "qnms"):
        Library("torchvision", "FRAGMENT").define(name + "()")
"""
EXTENSION = "import torch\n\n\ndef _has_ops():\n    return {loads}\n"
FAKES = """import torch
from torchvision import extension
extension._has_ops() or (torch.ops.torchvision.nms, torch.ops.torchvision.qnms)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a torchvision in a folder of its own, which is first on the path here and in child processes."""

    def make(loads: bool, helped: bool = False) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (tmp_path / "torch.py").write_text(TORCH.format(helped=helped))
        (package / "__init__.py").write_text("from torchvision import extension, fakes\n")
        (package / "extension.py").write_text(EXTENSION.format(loads=loads))
        (package / "fakes.py").write_text(FAKES)
        return package / "extension.py"

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: _spec(tmp_path / name / "__init__.py"))
    return make


def _spec(file: Path):
    return type("Spec", (), {"origin": str(file)}) if file.exists() else None


def _imports(**environment: str) -> bool:
    command = [sys.executable, "-c", "import torchvision"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False).returncode == 0


def test_one_without_its_operators_is_mended_once(install):
    extension = install(loads=False)
    before = extension.read_text()
    assert not _imports(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "declares the operators" in mend_torchvision.mend()
    mended = extension.read_text()
    assert mended.startswith(before)
    assert _imports(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "mended already" in mend_torchvision.mend()
    assert extension.read_text() == mended


def test_the_help_of_another_package_does_not_hide_the_break(install):
    extension = install(loads=False, helped=True)
    assert _imports()
    assert "declares the operators" in mend_torchvision.mend()
    assert mend_torchvision.MARK in extension.read_text()
    assert _imports(), "both may declare them"


def test_one_that_loads_is_left_alone(install):
    extension = install(loads=True)
    before = extension.read_text()
    assert "can be imported as it is" in mend_torchvision.mend()
    assert extension.read_text() == before


def test_one_that_is_broken_otherwise_is_left_alone_and_said(install):
    extension = install(loads=False)
    before = extension.read_text()
    (extension.parent / "fakes.py").write_text("raise OSError('no such library')\n")
    with pytest.raises(SystemExit, match="no such library"):
        mend_torchvision.mend()
    assert extension.read_text() == before


def test_none_is_said_to_be_none(install):
    assert mend_torchvision.mend() == "torchvision is not installed"
