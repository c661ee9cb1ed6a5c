"""Every guard of ppe_npu.compat works and is still needed; where it is not, its test says what to delete."""

from __future__ import annotations

import configparser
import dataclasses
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from prompts import MIXED, PPE, logits
from support import batch, random_model
from tolerances import assert_rounds_alike, exact

from ppe_npu import compat, compress
from ppe_npu.errors import InputError


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


def test_import_torch_has_no_entry_point_of_this_package():
    names = {point.name for point in metadata.entry_points(group="torch.backends") if "ppe_npu" in point.value}
    assert not names, "reinstall the package (make): an older one is called by every `import torch`"
    declared = configparser.ConfigParser()
    declared.read(Path(__file__).parents[1] / "setup.cfg")
    assert "torch.backends" not in declared["options.entry_points"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_a_plain_script_can_import_transformers_first():
    code = "from transformers import Trainer, Qwen2_5_VLProcessor; import torchvision.transforms.v2"
    done = run_python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(Version(transformers.__version__) < Version("5.3"), reason="it numbers prompts by their ids")
def test_mm_token_type_ids_guard_is_still_needed():
    done = run_python(_SILENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rope_deltas None" in done.stdout, (
        "transformers computes M-RoPE positions without mm_token_type_ids: delete compat.ensure_mm_token_type_ids"
    )


OLD, NEW = "past_key_values", "cache"  # names of the KV cache until transformers 5.23, and since 5.24


def test_the_cache_is_found_under_either_name():
    cache = transformers.DynamicCache()
    assert compat.cache_of({OLD: cache}) is cache
    assert compat.cache_of({NEW: cache}) is cache
    assert compat.cache_of({NEW: None, OLD: cache}) is cache
    assert compat.cache_of({NEW: cache, OLD: None}) is cache
    assert compat.cache_of({NEW: None}) is compat.cache_of({}) is None


@pytest.mark.parametrize("name", [OLD, NEW])
def test_the_cache_is_given_under_the_name_that_is_asked_for(name):
    functions = {OLD: lambda hidden, past_key_values=None: past_key_values, NEW: lambda hidden, cache=None: cache}
    cache = transformers.DynamicCache()
    assert compat.cache_argument(functions[name], cache) == {name: cache}
    output = dataclasses.make_dataclass("Output", [(name, object, None)])
    assert compat.output_cache(output(**compat.cache_argument(output, cache))) is cache
    assert compat.output_cache(output()) is compat.output_cache(object()) is None


def test_the_cache_has_one_name_in_all_of_transformers():
    from transformers.modeling_outputs import BaseModelOutputWithPast

    new = Version(transformers.__version__) >= Version("5.24.0.dev0")
    text = transformers.Qwen2_5_VLTextModel
    for function in (text.forward, BaseModelOutputWithPast):
        assert set(compat.cache_argument(function, None)) == {NEW if new else OLD}


@pytest.mark.parametrize(
    ("since", "gone"),
    [
        ("5.24", "says `cache`: delete compat.cache_argument, cache_of and output_cache"),
        ("5.7", "keeps linear attention's states where several tokens go on: delete compat.run_linear"),
        ("5.5", "has states of linear attention in its DynamicCache: delete compat.decoder_cache"),
    ],
)
def test_guards_of_caches_are_still_needed(since, gone):
    bound = (Path(__file__).parents[1] / "setup.cfg").read_text().split("transformers>=")[1].split(",")[0]
    assert Version(bound) < Version(since), f"every transformers of the range {gone}"


class OwnCache:
    """A cache of its own, like transformers' one for Qwen3.5 until 5.4."""

    def __init__(self, config):
        self.key_cache = self.value_cache = [None] * len(config.layer_types)

    def get_seq_length(self, layer):
        return 0 if self.key_cache[layer] is None else self.key_cache[layer].shape[-2]


def test_a_cache_of_a_models_own_is_given_layers(monkeypatch):
    monkeypatch.setattr(compat, "_own_cache", lambda _text: OwnCache)
    text = SimpleNamespace(config=SimpleNamespace(layer_types=["linear_attention", "full_attention"]))
    cache = compat.decoder_cache(text, None)
    states, attention = layers = cache.layers
    assert not hasattr(states, "keys")
    assert not hasattr(states, "get_seq_length"), "a state has no length"
    assert not attention.is_initialized
    cache.key_cache[1] = torch.zeros(1, 2, 7, 4)
    assert attention.keys is cache.key_cache[1]
    assert attention.get_seq_length() == 7
    assert compat.decoder_cache(text, cache).layers is layers
    with pytest.raises(InputError, match=r"a DynamicCache holds no states .* pip install 'transformers>=5\.5'"):
        compat.decoder_cache(text, transformers.DynamicCache())


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_compressed_model_takes_the_cache_under_the_names_that_transformers_takes(name):
    if name == NEW and Version(transformers.__version__) < Version("5.24.0.dev0"):
        pytest.skip("it is not transformers' name yet")
    model = compress(random_model(), PPE)
    prompt, token = batch(MIXED[0]), {"input_ids": torch.tensor([[7]])}
    ids = torch.cat([prompt["input_ids"], token["input_ids"]], dim=1)
    longer = prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        cache = compat.output_cache(model(**prompt, use_cache=True))
        before = cache.get_seq_length()
        out = model(**token, **{name: cache})
    assert compat.output_cache(out) is cache
    assert cache.get_seq_length() == before + 1
    true = exact(model, lambda: logits(model, longer)[:, -1])
    assert_rounds_alike(out.logits[:, -1], logits(model, longer)[:, -1], true)
