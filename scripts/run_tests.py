"""Runs the tests of one of make's targets with the Python of an environment that fits them. `make test-lmms` runs

    .venv-lmms/bin/python scripts/run_tests.py test-lmms

test-newest first prints the installed packages whose bounds exclude the newest torch or transformers. The exit code is
that of the first command that fails, else 0.
"""

import argparse
import glob
import importlib.metadata
import os
import shlex
import subprocess
import sys

# Target of make -> modules with their arguments, run one after the other in the repository's folder.
RUNS = {
    "test-matrix": (
        "pytest -n 2 --dist worksteal -m 'not slow and not ci' --ignore tests/backends --ignore tests/demo",
    ),
    "test-newest": ("pytest -n 2 -m 'not slow' tests/models tests/training tests/test_compat.py tests/test_inputs.py",),
    "test-lmms": ("pytest tests/evaluation/test_lmms.py tests/evaluation/test_lmms_task.py",),
    "test-app": ("pytest tests/app tests/test_notebooks.py",),
    "test-vllm": ("pytest -n 2 --dist loadfile --durations 12 tests/serving",),
    "test-integrations": (
        "pytest tests/training/test_trl.py tests/training/test_foreign_trainers.py tests/integrations",
    ),
    "test-frameworks": ("pytest tests/frameworks",),
    "test-lent": (
        "pytest -n 2 --dist worksteal -m 'not slow' tests/backends tests/engine tests/parity"
        " tests/models/test_qwen2_5_vl.py tests/models/test_stages.py tests/scripts/test_device_check.py",
        "pytest -m slow tests/scripts/test_device_check.py",
    ),
    "test-ascend-compiler": ("pytest -n 2 --dist loadgroup --confcutdir tests/ascend_compiler tests/ascend_compiler",),
    "test-emulated": (
        "pytest -n 2 --dist worksteal -m 'not slow' tests/test_ascend_emulator*.py tests/test_npu_*.py tests/backends"
        " tests/engine/test_marked_rows.py",
        "ppe_npu.cli parity --device npu",
        "ppe_npu.cli parity check tests/data/parity_cpu --device npu",
    ),
}
VARIABLES = {
    "test-ascend-compiler": {"PYTHONPATH": "."},  # ppe_npu is not installed in its environment
    "test-vllm": {"PYTHONDONTWRITEBYTECODE": ""},  # engines start in processes that import vLLM: compiled only once
}
NEWEST = ("torch", "transformers")


def arguments(command: str) -> list[str]:
    """The words of a command, with the files that a pattern matches in its place."""
    return [name for word in shlex.split(command) for name in (sorted(glob.glob(word)) if "*" in word else [word])]


def refusals() -> list[str]:
    """A line for each installed package whose requirements exclude the installed torch or transformers."""
    from packaging.requirements import Requirement

    found = []
    for package in importlib.metadata.distributions():
        for line in package.requires or ():
            requirement = Requirement(line)
            if requirement.name not in NEWEST or (
                requirement.marker and not requirement.marker.evaluate({"extra": ""})
            ):
                continue
            version = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{package.name} {package.version} takes {requirement}, not {version}")
    return sorted(set(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=RUNS)
    target = parser.parse_args().target
    if target == "test-newest":
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NEWEST)
        print(f"newest: {versions}; refused by: {'; '.join(refusals()) or 'no package'}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **VARIABLES.get(target, {})}
    for command in RUNS[target]:
        done = subprocess.run([sys.executable, "-m", *arguments(command)], env=environment)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
