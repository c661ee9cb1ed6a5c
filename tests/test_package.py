"""Importing the package: what it loads, and what it must not."""

import configparser
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import pytest

HEAVY = {"transformers", "av", "matplotlib", "torchvision", "accelerate"}
VENDORS = {"torch_npu", "flash_attn", "triton", "mindspeed", "liger_kernel"}
STATEMENTS = (
    "import torch",
    "import ppe_npu.backends, ppe_npu.backends.parity",
    "import ppe_npu; ppe_npu.CompressionConfig.preset('ppe'); ppe_npu.compress, ppe_npu.restore",
    "import ppe_npu.serving.vllm, ppe_npu.serving.rotary",  # its registration too: vLLM calls it
)


# What the documents of the first edition (commit efb0dfa2) tell readers to import or to call -> the page that does.
FIRST_EDITION = {
    "ppe_npu:CompressionConfig.preset": "README.md",
    "ppe_npu:CompressionConfig.tokens_kept": "README.md",
    "ppe_npu:compress": "README.md",
    "ppe_npu:restore": "README.md",
    "ppe_npu:CompressionConfig.from_file": "docs/quickstart.md",
    "ppe_npu.show:draw_visual": "docs/quickstart.md",
    "ppe_npu.models.fused:fuse": "docs/quickstart.md",
    "ppe_npu.models.fused:unfuse": "docs/quickstart.md",
    "ppe_npu.loading:load_model": "docs/lora.md",
    "ppe_npu.training.adapters:Adapter": "docs/lora.md",
    "ppe_npu.training.adapters:add_adapter": "docs/lora.md",
    "ppe_npu.training.adapters:save_adapter": "docs/lora.md",
    "ppe_npu.training.collator:Collator": "docs/data.md",
    "ppe_npu.cli:main": "docs/training.md",
    "ppe_npu.backends.dispatch:chosen": "docs/cuda.md",
    "ppe_npu.backends.dispatch:using": "docs/cuda.md",
    "ppe_npu:CompressionConfig.from_released": "docs/numerics.md",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> list[set[str]]:
    """The top-level packages that each statement loads, one after the other in one process in which empty modules stand
    in for all packages that must not be loaded."""
    folder = tmp_path_factory.mktemp("vendors")
    for name in (*VENDORS, "vllm"):
        (folder / f"{name}.py").write_text("")
    code = f"""import json, sys
for statement in {STATEMENTS}:
    before = set(sys.modules)
    exec(statement)
    print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))"""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path}
    if find_spec("torch_npu"):  # torch itself would load it
        env["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def test_import_torch_loads_nothing_of_this_package(loaded):
    assert "torch" in loaded[0]
    assert "ppe_npu" not in loaded[0]


def test_import_is_light(loaded):
    assert all("ppe_npu" in found for found in loaded[1:])
    assert not (loaded[1] | loaded[2]) & HEAVY


def test_imports_load_no_package_of_a_vendor(loaded):
    assert not (loaded[0] | loaded[1] | loaded[2]) & VENDORS


def test_nothing_but_the_plug_ins_own_files_imports_vllm(loaded):
    assert not any("vllm" in found for found in loaded)


def test_nothing_but_the_package_goes_by_its_name():
    """Its path once contained the repository's root, so that ppe_npu.tests could be imported."""
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
        ("show", "inspect.show"),
    ],
)
def test_a_module_that_moved_goes_by_its_old_name_too(old, new):
    assert import_module(f"ppe_npu.{old}") is import_module(f"ppe_npu.{new}")


@pytest.mark.parametrize("name", FIRST_EDITION)
def test_names_in_the_documents_of_the_first_edition_go_on_to_work(name):
    module, _, path = name.partition(":")
    assert callable(attrgetter(path)(import_module(module)))


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
