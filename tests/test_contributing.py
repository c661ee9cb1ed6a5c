"""The recipes of CONTRIBUTING.md, followed literally in a copy of the packages.

A block that starts with a path is written to that file, a diff is applied, everything else is run, in the page's order.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from families import supported

ROOT = Path(__file__).resolve().parent.parent
ONE_DIMENSION = "A family with one-dimensional positions"
IN_TOWER = "A method inside the vision tower"
RECIPES = ("A method", IN_TOWER, "A benchmark", "A model family", ONE_DIMENSION, "An implementation for a device")
ADDED = 25  # lines that such a family may take

# Runs in the copy: the blocks of each recipe share a namespace, as if typed one after the other.
RUNNER = """
import json, shlex, sys, traceback
from ppe_npu.cli import main
said = {}
for recipe, blocks in json.load(open("blocks.json")).items():
    space, said[recipe] = {"__name__": "__main__"}, ""
    try:
        for language, line, code in blocks:
            if language == "sh":
                program, *arguments = shlex.split(code)
                assert program == "ppe-npu" and main(arguments) == 0, code
            else:
                exec(compile("\\n" * line + code, "CONTRIBUTING.md", "exec"), space)
    except BaseException:
        said[recipe] = traceback.format_exc()
json.dump(said, open("said.json", "w"))
"""


@dataclass(frozen=True)
class Block:
    """A code block. line: the number of the page's line with its opening fence."""

    recipe: str
    language: str
    line: int
    code: str

    @property
    def path(self) -> str | None:
        found = re.match(r"# (\S+\.py)\n", self.code)
        return found and found[1]


def blocks(page: Path) -> list[Block]:
    """The fenced code blocks of a page, each with the heading above it."""
    found, heading, opened = [], "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if opened is None:
                opened = (line[3:], number, [])
            else:
                found.append(Block(heading, opened[0], opened[1], "\n".join(opened[2]) + "\n"))
                opened = None
        elif opened is not None:
            opened[2].append(line)
        elif line.startswith("## "):
            heading = line[3:]
    return found


def apply(diff: str, root: Path) -> None:
    """Replaces a diff's old lines, which must occur in the file exactly once, by its new ones; lines that begin with a
    space are both."""
    head, *lines = diff.splitlines()
    path = root / head.removeprefix("--- ")
    old, new = ("".join(line[1:] + "\n" for line in lines if line[0] in (sign, " ")) for sign in "-+")
    text = path.read_text(encoding="utf-8")
    places = [found.start() for found in re.finditer(f"^{re.escape(old)}", text, flags=re.M)]
    assert len(places) == 1, f"{path.name} has not once: {old}"
    path.write_text(text[: places[0]] + new + text[places[0] + len(old) :], encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the packages and of what the recipes' tests need, with every file written and every diff applied."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "tests" / "models", copy / "tests" / "models", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*(ROOT / "tests").glob("*.py"), ROOT / "setup.cfg"):
        shutil.copy(file, copy / file.relative_to(ROOT))
    for name in ("scripts", "docs"):
        (copy / name).symlink_to(ROOT / name)
    for package in ("backends", "ppe_npu"):
        shutil.copytree(ROOT / package, copy / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.path:
            assert not (copy / block.path).exists(), f"{block.path} is there already: the recipe shows nothing"
            (copy / block.path).write_text(block.code, encoding="utf-8")
        elif block.language == "diff":
            apply(block.code, copy)
    return copy


def environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def followed(copy) -> dict[str, str]:
    """{recipe: the traceback of its failure, or ""}."""
    to_run: dict[str, list] = {recipe: [] for recipe in RECIPES}
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if not block.path and block.language != "diff":
            to_run[block.recipe].append((block.language, block.line, block.code))
    (copy / "blocks.json").write_text(json.dumps(to_run))
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=300
    )
    assert (copy / "said.json").exists(), done.stdout + done.stderr
    return json.loads((copy / "said.json").read_text())


@pytest.mark.slow  # `make docs` runs it
@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=supported if recipe == ONE_DIMENSION else ()) for recipe in RECIPES]
)
def test_a_recipe_works_as_it_stands(followed, recipe):
    assert followed[recipe] == "", followed[recipe]


@supported
@pytest.mark.slow
def test_the_laws_hold_for_the_family_that_the_recipe_adds(copy):
    """The laws of every family hold for the tiny model that the recipe's diff adds to tests/families.py."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "deepseek_vl"]
    done = subprocess.run(
        [*command, "tests/models/test_every_family.py"],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 12, done.stdout[-3000:]


def test_a_family_with_one_dimensional_positions_takes_few_lines():
    diffs = [b for b in blocks(ROOT / "CONTRIBUTING.md") if b.recipe == ONE_DIMENSION and b.language == "diff"]
    lines = [line for block in diffs for line in block.code.splitlines()[1:] if line[0] != " "]
    assert len(diffs) == 2
    assert all(line[0] == "+" for line in lines)
    assert len(lines) <= ADDED


def test_every_recipe_has_something_to_run():
    languages = {
        recipe: [b.language for b in blocks(ROOT / "CONTRIBUTING.md") if b.recipe == recipe] for recipe in RECIPES
    }
    assert all("python" in found for found in languages.values()), languages


def test_a_diff_that_does_not_fit_is_no_recipe(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\ny = 2\n")
    with pytest.raises(AssertionError, match="has not once"):
        apply("--- a.py\n-y = 2\n+y = 3\n", tmp_path)
    with pytest.raises(AssertionError, match="has not once"):
        apply("--- a.py\n-z = 2\n+z = 3\n", tmp_path)
