"""Tests with the newest torch and transformers of the package index, even if this package's own bounds exclude them;
`make test-newest` runs it in an environment that has them.

Prints the installed packages whose bounds exclude these versions, then runs the tests of models and training; the exit
code is theirs.
"""

import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

NEWEST = ("torch", "transformers")
TESTS = ("tests/models", "tests/training", "tests/test_compat.py", "tests/test_inputs.py")


def refusals() -> list[str]:
    """A line for each installed package whose requirements exclude the installed torch or transformers."""
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
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in NEWEST)
    print(f"newest: {versions}; refused by: {'; '.join(refusals()) or 'nobody'}", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow", *TESTS], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
