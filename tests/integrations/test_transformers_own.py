"""transformers' own tests of a model, unchanged, on models of four families compressed with the dense preset.

They come from the source package of the installed version, which `make test-integrations` fetches. Two modules that
they import, the tests of export and of generate(), are not in the package; tests/models/test_foreign_caches.py covers
the features of generate().
"""

import functools
import sys
import tarfile
import tempfile
import unittest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from foreign import SETTINGS, random_model

from ppe_npu import compress

PACKAGE = Path(sys.prefix) / f"transformers-{transformers.__version__}.tar.gz"
if not PACKAGE.is_file():
    pytest.skip(f"no {PACKAGE.name} in {sys.prefix}: run `make test-integrations`", allow_module_level=True)

MISSING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
IMAGE, VIDEO, START, TEXT = 3, 4, 5, 6  # ids; text starts at the last. Small ones: the tests shrink the vocabulary


def common() -> ModuleType:
    """The module of their tests; empty modules stand in for those that are not in the package."""
    folder = tempfile.mkdtemp()
    with tarfile.open(PACKAGE) as package:
        members = [member for member in package if Path(member.name).match("*/tests/*.py")]
        package.extractall(folder, members, filter="data")
    root = "tests_of_transformers"
    for name in ("", ".exporters", ".generation"):
        module = sys.modules[root + name] = ModuleType(root + name)
        module.__path__ = [str(Path(folder, members[0].name).parent)] if not name else []
    for name, mixin in MISSING.items():
        module = sys.modules[f"{root}.{name}"] = ModuleType(f"{root}.{name}")
        setattr(module, mixin, type(mixin, (), {}))
    return import_module(f"{root}.test_modeling_common")


THEIRS = common()
TRAINING = import_module("tests_of_transformers.test_training_mixin")


class Tester:
    """What their tests need: a config, and three prompts with one picture of one token each.

    As in their files, Qwen3-VL's pictures are at the ends of prompts of one, two and three tokens, padded on the right,
    so that the mask hides all pictures; those of the others are in the middle of prompts without padding.
    """

    batch_size, seq_length, vocab_size, is_training = 3, 39, 100, True
    hidden_size, num_hidden_layers, num_attention_heads = 128, 2, 2

    def __init__(self, family: str):
        width = "embed_dim" if family == "qwen2_vl" else "out_hidden_size"
        tower = {"depth": 2, "spatial_merge_size": 1, "hidden_size": self.hidden_size, width: self.hidden_size}
        text = {"num_hidden_layers": self.num_hidden_layers, "max_position_embeddings": 512}
        self.made = random_model(family=family, tower=tower, **text)
        self.causal_lm_class = type(self.made)

    def get_config(self):
        config = self.made.config.to_dict()
        config |= {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START}
        for part in (config, config["text_config"], config["vision_config"]):
            part["initializer_range"] = 0.02  # that of their own tiny models, for which their tolerances are made
        return type(self.made.config)(**config)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(TEXT, 60, (self.batch_size, self.seq_length))
        padded = self.made.config.model_type == "qwen3_vl"
        at = self.seq_length - 1 if padded else 21
        ids[:, at - 1], ids[:, at] = START, IMAGE
        vision = self.made.config.vision_config
        patch = 3 * vision.temporal_patch_size * vision.patch_size**2
        return self.get_config(), {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids).tril() if padded else torch.ones_like(ids),
            "mm_token_type_ids": (ids == IMAGE).long(),
            "pixel_values": torch.randn(self.batch_size, patch),
            "image_grid_thw": torch.ones(self.batch_size, 3, dtype=torch.long),
        }


class Compressed(THEIRS.ModelTesterMixin, THEIRS.GenerationTesterMixin, TRAINING.TrainingTesterMixin):
    """Their tests, with every model for conditional generation that a test makes compressed."""

    model_tester = None
    _is_composite, test_all_params_have_gradient = True, False

    @pytest.fixture(autouse=True)
    def compress_all(self, monkeypatch):
        self.model_tester = Tester(self.family)
        whole = type(self.model_tester.made)
        self.all_model_classes, made = (type(self.model_tester.made.model), whole), whole.__init__

        @functools.wraps(made)
        def compressed(model, *args, **kwargs):
            made(model, *args, **kwargs)
            compress(model, SETTINGS["dense"])

        monkeypatch.setattr(whole, "__init__", compressed)

    def test_training_overfit(self):
        """Their test, which reads the vocabulary's size from the model's config, but only the text's config has it."""
        config = self.model_tester.get_config()
        config.vocab_size = config.text_config.vocab_size
        self.model_tester.get_config = lambda: config
        super().test_training_overfit()


for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
    name, own = f"Test_{family}", {"family": family}
    if family == "qwen3_vl_moe":
        own["test_reverse_loading_mapping"] = None  # it fails on an untouched model of this config, too
    globals()[name] = type(name, (Compressed, unittest.TestCase), own)
