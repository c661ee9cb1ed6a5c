"""Every guard of ppe_npu.compat works and is still needed: where a break has gone, its test says what to delete."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version

from ppe_npu import compat

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


@needs_torchvision
def test_a_plain_script_can_import_transformers_first():
    done = run_python("from transformers import Trainer, Qwen2_5_VLProcessor; import torchvision.transforms.v2")
    assert done.returncode == 0, done.stderr[-2000:]


@needs_torchvision
def test_a_script_without_entry_points_prepares_transformers_itself():
    code = (
        "from ppe_npu.compat import prepare_transformers as p; p(); p(); import torchvision;"
        "from transformers import Trainer, Qwen2_5_VLProcessor"
    )
    done = run_python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr[-2000:]


@needs_torchvision
@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch loads torchvision's operators")
def test_torchvision_guard_is_still_needed():
    done = run_python("import torch, torchvision", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode != 0, "torchvision imports by itself: delete compat.declare_torchvision_operators"
    assert "operator torchvision::nms does not exist" in done.stderr


def test_a_torchvision_without_a_compiled_part_is_left_alone(tmp_path):
    (tmp_path / "torchvision.py").write_text("marker = 1\n")
    done = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from ppe_npu import compat; compat.prepare_transformers();"
        "import torchvision; assert torchvision.marker == 1 and not compat._libraries"
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_unwrap_model_guard_is_still_needed():
    code = (
        "from accelerate import Accelerator; import torch\n"
        "try: Accelerator(cpu=True).unwrap_model(torch.nn.Linear(1, 1), keep_torch_compile=False)\n"
        "except TypeError as error: print('still broken', error)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "still broken" in done.stdout, "accelerate takes keep_torch_compile: delete compat.adapt_unwrap_model"
    import transformers

    source = (Path(transformers.__file__).parent / "trainer.py").read_text()
    assert "keep_torch_compile" in source, "transformers no longer passes it: delete compat.adapt_unwrap_model"


def test_unwrap_model_is_adapted_on_the_instance_only():
    from accelerate import Accelerator

    before = Accelerator.unwrap_model
    accelerator = compat.adapt_unwrap_model(Accelerator(cpu=True))
    model = torch.nn.Linear(1, 1)
    assert accelerator.unwrap_model(model, keep_torch_compile=False) is model
    assert accelerator.unwrap_model(model) is model
    adapted = accelerator.unwrap_model
    assert compat.adapt_unwrap_model(accelerator).unwrap_model is adapted, "a second call wraps nothing"
    assert Accelerator.unwrap_model is before


def test_unwrap_model_takes_the_compiled_shell_off_when_asked():
    inner = torch.nn.Linear(1, 1)
    shell = SimpleNamespace(_orig_mod=inner)
    accelerator = SimpleNamespace(unwrap_model=lambda model, keep_fp32_wrapper=True: model)
    compat.adapt_unwrap_model(accelerator)
    assert accelerator.unwrap_model(shell, keep_torch_compile=False) is inner
    assert accelerator.unwrap_model(shell) is shell


def test_an_accelerator_that_knows_the_argument_is_left_alone():
    def unwrap_model(model, keep_fp32_wrapper=True, keep_torch_compile=True):
        return model

    accelerator = SimpleNamespace(unwrap_model=unwrap_model)
    assert compat.adapt_unwrap_model(accelerator).unwrap_model is unwrap_model


def test_mm_token_type_ids_are_filled_and_kept():
    inputs = {"input_ids": torch.tensor([[1, 8, 8, 9, 2]])}
    assert compat.ensure_mm_token_type_ids(inputs, 8, 9)["mm_token_type_ids"].tolist() == [[0, 1, 1, 2, 0]]
    own = torch.full((1, 5), 7)
    inputs = {"input_ids": torch.tensor([[1, 8, 8, 9, 2]]), "mm_token_type_ids": own}
    assert compat.ensure_mm_token_type_ids(inputs, 8, 9)["mm_token_type_ids"] is own


_SILENT = """
from ppe_npu.compat import prepare_transformers; prepare_transformers()
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
config = Qwen2_5_VLConfig(
    text_config=dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, rope_parameters=dict(rope_type="default", rope_theta=10.0, mrope_section=[1, 1, 2])),
    vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=16,
        window_size=16, fullatt_block_indexes=[0]),
    image_token_id=8, video_token_id=9, vision_start_token_id=7, vision_end_token_id=6)
model = Qwen2_5_VLForConditionalGeneration(config).eval()
ids = torch.tensor([[1, 7, 8, 8, 8, 8, 6, 2]])
pixels, grid = torch.randn(16, 3 * 2 * 4 * 4), torch.tensor([[1, 4, 4]])
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_grid_thw=grid)
with torch.no_grad():
    model(**inputs)
print("rope_deltas", model.model.rope_deltas)
"""


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.3"), reason="it numbers prompts by their ids")
def test_mm_token_type_ids_guard_is_still_needed():
    done = run_python(_SILENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rope_deltas None" in done.stdout, (
        "transformers computes M-RoPE positions without mm_token_type_ids: delete compat.ensure_mm_token_type_ids"
    )
