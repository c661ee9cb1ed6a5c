"""What the tests of served models share: random checkpoints, and what compress(model) answers in transformers."""

import pickle
import sys

import pytest
from scripts_of_serving import HERE, run_script


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(family) -> folder."""
    made = {}

    def folder(family: str = "qwen2_5_vl") -> str:
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(family))
            run_script("checkpoints.py", made[family], family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory, checkpoint):
    """reference(family, compression) -> what transformers answers."""
    made = {}

    def answers(compression: str, family: str = "qwen2_5_vl") -> dict:
        if (family, compression) not in made:
            out = tmp_path_factory.mktemp("reference") / "answers.pickle"
            run_script("reference.py", checkpoint(family), str(out), compression, python=_python(family))
            made[family, compression] = pickle.loads(out.read_bytes())[compression]
        return made[family, compression]

    return answers


def _python(family: str) -> str:
    """Who answers: this environment's transformers; for InternVL, of which compress() wants a newer one than vLLM does,
    the one of `make install`."""
    other = HERE.parents[1] / ".venv" / "bin" / "python"
    if family != "internvl":
        return sys.executable
    if not other.exists():
        pytest.skip("compress() takes InternVL from transformers 5.22 on, and there is no .venv that has it")
    return str(other)
