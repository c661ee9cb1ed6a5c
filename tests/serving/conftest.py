"""Shared by the tests of served models: random checkpoints, and what compress(model) answers in transformers."""

import hashlib
import json
import os
import pickle

import pytest
from filelock import FileLock
from scripts_of_serving import run_script


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make) -> the path that make(path) has written, once for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def path(name: str, make):
        done, part = folder / name, folder / f"{name}.part"
        with FileLock(folder / f"{name}.lock"):
            if not done.exists():
                make(part)
                part.rename(done)
        return done

    return path


@pytest.fixture(scope="session")
def checkpoint(made_once):
    """checkpoint(family) -> folder of the family's random checkpoint."""

    def folder(family: str = "qwen2_5_vl") -> str:
        return str(made_once(family, lambda path: run_script("checkpoints.py", str(path), family)))

    return folder


@pytest.fixture(scope="session")
def reference(made_once, checkpoint):
    """reference(compression, family, folder) -> what transformers answers.

    folder: a checkpoint other than the family's own. compress() takes InternVL from transformers 5.22 on, and vLLM's
    transformers is older.
    """

    def answers(compression: str, family: str = "qwen2_5_vl", folder: str | None = None) -> dict:
        asked = (folder or checkpoint(family), compression)
        name = "reference-" + hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
        newer = family == "internvl"
        made = made_once(name, lambda path: run_script("reference.py", *asked, str(path), newer=newer))
        return pickle.loads(made.read_bytes())

    return answers


@pytest.fixture
def served(tmp_path, checkpoint):
    """served(compression, family, engine, rounds) -> what vLLM answers; more: other keys of served.py."""

    def answers(
        compression: str, family: str = "qwen2_5_vl", engine: dict | None = None, rounds=("alone",), **more
    ) -> dict:
        request, out = tmp_path / "request.json", tmp_path / "out.pickle"
        asked = {"folder": checkpoint(family), "compression": compression, "engine": engine or {}, "rounds": rounds}
        asked |= more
        request.write_text(json.dumps(asked))
        run_script("served.py", str(request), str(out))
        return pickle.loads(out.read_bytes())

    return answers
