"""The source of the tests' random numbers, which are pinned, or vary with PPE_TEST_SEED (make test-all)."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers

SEED = int(os.environ.get("PPE_TEST_SEED", "0"))


def many(examples: int) -> int:
    """This many examples if draws are pinned, and five times as many otherwise."""
    return 5 * examples if SEED else examples


def load_profile() -> None:
    """Configure @given: pinned examples are the same on every machine, for any selection and order of tests."""
    common = {"deadline": None, "max_examples": 15, "print_blob": True, "database": None}
    settings.register_profile("pinned", **common, derandomize=True)
    settings.register_profile("random", **common)  # from pytest's --hypothesis-seed
    settings.load_profile("random" if SEED else "pinned")
    if not SEED:
        # Hypothesis also tries constants from the source of imported modules, which depend on the order of tests.
        nothing = providers.Constants()
        providers._get_local_constants = lambda: nothing


def seed_everything() -> None:
    """Seed the global generators of random, numpy and torch."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    seed_torch(SEED)


def seed_torch(seed: int) -> None:
    """Like torch.manual_seed, which takes a millisecond for devices that are not initialized: it records the stack."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
