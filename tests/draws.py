"""Where the tests' random numbers come from: pinned, or with PPE_TEST_SEED other ones (make test-all)."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers

SEED = int(os.environ.get("PPE_TEST_SEED", "0"))


def many(examples: int) -> int:
    """So many examples where draws are pinned, and five times as many of random ones."""
    return 5 * examples if SEED else examples


def load_profile() -> None:
    """Examples of @given: of a pinned run the same ones on every machine, in any order of any selection of tests."""
    common = {"deadline": None, "max_examples": 15, "print_blob": True, "database": None}
    settings.register_profile("pinned", **common, derandomize=True)
    settings.register_profile("random", **common)  # from pytest's --hypothesis-seed
    settings.load_profile("random" if SEED else "pinned")
    if not SEED:
        # Hypothesis tries numbers that it finds in the source of what is imported: other ones for every order of tests.
        nothing = providers.Constants()
        providers._get_local_constants = lambda: nothing


def seed_everything() -> None:
    """What is drawn without a generator of its own."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    seed_torch(SEED)


def seed_torch(seed: int) -> None:
    """What torch.manual_seed does. For devices that are not there yet that takes a millisecond: it notes the stack."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
