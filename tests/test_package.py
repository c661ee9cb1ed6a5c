"""Importing the package: what it loads, and what it must not."""

import configparser
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

HEAVY = ("transformers", "av", "matplotlib", "torchvision", "accelerate")
DEVICE_PACKAGES = ("torch_npu", "flash_attn", "triton", "mindspeed", "liger_kernel")


def loaded_after(statement: str) -> set[str]:
    code = f"import torch, sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_is_light_and_loads_no_device_package():
    used = "import ppe_npu; ppe_npu.CompressionConfig.preset('ppe'); ppe_npu.compress, ppe_npu.restore"
    assert not loaded_after(used) & {*HEAVY, *DEVICE_PACKAGES}


def test_nothing_but_the_package_goes_by_its_name():
    """Its path once held the repository's root, so that ppe_npu.tests could be imported."""
    import ppe_npu

    root = Path(__file__).parents[1]
    assert not [path for path in ppe_npu.__path__ if Path(path).resolve() in (root, *root.parents)]
    assert [name for name in ("tests", "scripts", "docs") if find_spec(f"ppe_npu.{name}")] == []


def test_public_names():
    import ppe_npu

    assert {"CompressionConfig", "align", "compress", "restore", "__version__"} == set(ppe_npu.__all__)
    for name in ppe_npu.__all__:
        assert getattr(ppe_npu, name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inputs", "data.inputs"),
        ("loading", "checkpoints.loading"),
        ("placeholders", "data.placeholders"),
    ],
)
def test_a_module_that_moved_goes_by_its_old_name_too(old, new):
    assert import_module(f"ppe_npu.{old}") is import_module(f"ppe_npu.{new}")


def test_media_goes_on_to_name_what_stands_in_data():
    from ppe_npu import media
    from ppe_npu.data.pictures import image_size, load_image
    from ppe_npu.data.videos import Video, load_video, video_header

    assert (media.image_size, media.load_image) == (image_size, load_image)
    assert (media.Video, media.load_video, media.video_header) == (Video, load_video, video_header)


def test_every_folder_of_modules_is_installed():
    root = Path(__file__).parents[1]
    folders = {path.parent.relative_to(root) for path in root.glob("ppe_npu/**/__init__.py")}
    folders |= {Path("ppe_npu") / path.parent.relative_to(root) for path in root.glob("backends/**/__init__.py")}
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    assert {".".join(folder.parts) for folder in folders} <= listed
