"""Setup shared by all tests: environment variables, seeds, slow marks, and fixtures of tiny random models."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# triton reads this at its first import. Without CUDA, its kernels then run on the CPU, as Python.
os.environ.setdefault("TRITON_INTERPRET", "1")
# If ATen has no AVX512, oneDNN gets none either, as on every real machine (scripts/test_machines.py explains why).
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

import pytest
import torch

import draws  # isort:skip
import halves  # isort:skip
from command_line import run  # noqa: F401 isort:skip
from fixtures import (  # noqa: F401 isort:skip
    spelling_processors,
    tiny_folder,
    tiny_processor,
    undrawn_report,
    write_clip,
    write_image,
)

if torch.cuda.is_available():
    del os.environ["TRITON_INTERPRET"]  # nothing above has read it yet; CUDA_VISIBLE_DEVICES= turns it on again

draws.load_profile()
# Tests need no safety from power cuts, and fsync takes a tenth of a short training run. test_files.py counts its calls.
os.fsync = lambda file: None


@pytest.hookimpl(tryfirst=True)  # before -m selects tests
def pytest_collection_modifyitems(items):
    halves.mark_slow(items)


def pytest_collection_finish():
    """Freeze millions of objects that live to the end (modules, tests): accelerate collects garbage in every run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seed before fixtures of any scope, so that a test draws the same numbers whatever ran before it."""
    draws.seed_everything()


@pytest.fixture
def model():
    """A fresh random Qwen2.5-VL of 3 layers, fp32, in eval mode."""
    from support import random_model

    return random_model()
