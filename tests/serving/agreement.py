"""How near an engine's answers are to those of compress(model) in transformers, and how near they must be."""

from __future__ import annotations

import numpy as np
from tolerances import APART

PROMISED = 5e-4  # largest error of an fp32 log-probability, over the whole vocabulary, by docs/serving.md


def apart(found: dict, expected: dict) -> float:
    """The largest difference of a log-probability of the prompt [L - 1, V], or of the answer's tokens [16, V]."""
    differences = [np.abs(found["steps"] - expected["steps"]).max()]
    if found["prompt"] is not None:
        assert found["prompt"].shape == expected["prompt"][:-1].shape
        differences.append(np.abs(found["prompt"] - expected["prompt"][:-1]).max())
    return float(max(differences))


def limit(expected: dict) -> float:
    """The largest difference allowed: the engine, which sums in another order, may be twice as far from fp64 as
    transformers is at its worst place in the prompt."""
    return min(PROMISED, APART * max(answer["error"] for answer in expected.values()))


def check(found: dict, expected: dict) -> None:
    for name, answer in found.items():
        assert answer["length"] == len(expected[name]["prompt"]), name
        assert answer["tokens"] == expected[name]["tokens"], name
        assert apart(answer, expected[name]) <= limit(expected), name


def hit_inside_a_span(answer: dict) -> bool:
    """Whether the cached part of the prompt ends between two visual tokens of one image or video."""
    ids, cached = answer["ids"], answer["cached"]
    return 0 < cached < len(ids) and ids[cached - 1] == ids[cached]  # no text of the cases repeats a token
