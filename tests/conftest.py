"""Shared by all tests: transformers made importable, one thread a process, and the tiny random models."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when triton is imported, by whoever imports it first: without CUDA its kernels run on the CPU, as Python.
os.environ.setdefault("TRITON_INTERPRET", "1")
# ATen without AVX512 goes with oneDNN without it, as on every real machine (scripts/test_machines.py says why).
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
    del os.environ["TRITON_INTERPRET"]  # which nothing above has read there; CUDA_VISIBLE_DEVICES= brings it back

draws.load_profile()
# No test outlives a power cut, and a tenth of a short training run waits for the disk. test_files.py counts the calls.
os.fsync = lambda file: None


@pytest.hookimpl(tryfirst=True)  # before -m looks
def pytest_collection_modifyitems(items):
    halves.mark_slow(items)


def pytest_collection_finish():
    """Millions of objects stand until the end: imported modules and tests. accelerate collects garbage in every run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before the fixtures of any scope: a test draws the same whatever ran before it."""
    draws.seed_everything()


@pytest.fixture
def model():
    """A fresh random Qwen2.5-VL of 3 layers, fp32, in eval mode."""
    from support import random_model

    return random_model()
