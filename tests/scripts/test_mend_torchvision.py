"""A torchvision whose compiled part does not load is mended, and no other one is touched."""

import os
import subprocess
import sys
from pathlib import Path

import mend_torchvision
import pytest

# As much of torchvision as matters: extension.py knows whether the compiled part has loaded, and another module gives
# its operators fake kernels.
INIT = "from torchvision import extension, fakes\n"
EXTENSION = "import torch\n\n\ndef _has_ops():\n    return {loaded}\n"
FAKES = """import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
"""
# A package that helps at `import torch`, in that environment alone.
HELPER = """import torch
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
def help():
    pass
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a torchvision in a folder of its own, which is first on the path here and in child processes."""

    def make(loaded: bool, fakes: str = FAKES) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(INIT)
        (package / "extension.py").write_text(EXTENSION.format(loaded=loaded))
        (package / "fakes.py").write_text(fakes)
        return package / "extension.py"

    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: _spec(tmp_path / name / "__init__.py"))
    return make


def _spec(file: Path):
    return type("Spec", (), {"origin": str(file)}) if file.exists() else None


def _imports(**environment: str) -> bool:
    command = [sys.executable, "-c", "import torchvision"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False).returncode == 0


def test_one_without_its_operators_is_mended_once(install):
    extension = install(loaded=False)
    before = extension.read_text()
    assert not _imports(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "declares the operators" in mend_torchvision.mend()
    mended = extension.read_text()
    assert mended.startswith(before)
    assert _imports(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "mended already" in mend_torchvision.mend()
    assert extension.read_text() == mended


def test_the_help_of_another_package_does_not_hide_the_break(install, tmp_path):
    extension = install(loaded=False)
    (tmp_path / "helper.py").write_text(HELPER)
    info = tmp_path / "helper-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: helper\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nhelper = helper:help\n")
    assert _imports()
    assert "declares the operators" in mend_torchvision.mend()
    assert mend_torchvision.MARK in extension.read_text()
    assert _imports(), "both may declare them"


def test_one_that_can_be_imported_is_left_alone(install):
    extension = install(loaded=False, fakes="")
    before = extension.read_text()
    assert "can be imported as it is" in mend_torchvision.mend()
    assert extension.read_text() == before


def test_none_is_said_to_be_none(install):
    assert mend_torchvision.mend() == "torchvision is not installed"
