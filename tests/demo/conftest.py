"""A demo that takes seconds."""

import argparse
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppe_npu.demo import pipeline
from ppe_npu.evaluation import interleaving


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Shrinks the pipeline to recipes of 2 steps and 2 scenes, in this process; returns the arguments of a run."""
    for name in ("BASE", "TUNE"):
        recipe = dataclasses.replace(getattr(pipeline, name), images=4, max_steps=2, batch_size=2, warmup_steps=1)
        monkeypatch.setattr(pipeline, name, recipe)
    monkeypatch.setattr(pipeline, "EVAL", dataclasses.replace(pipeline.EVAL, images=2, batch_size=16))
    for name, value in (("MOST", 1), ("PROMPTS", 2)):  # nothing is timed here, however busy the machine
        monkeypatch.setattr(interleaving, name, value)
    monkeypatch.setattr(pipeline, "worker_pool", lambda workers: ThreadPoolExecutor(1))
    asked = {"seeds": 1, "full": False, "methods": None, "training_free": False, "tune_ratios": None}
    return argparse.Namespace(device="cpu", output=str(tmp_path / "demo"), **asked)
