"""The notebooks of docs/: every cell runs, on the embedded model, and none holds an output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALLER = {"IMAGES, STEPS = 1024, 200": "IMAGES, STEPS = 32, 2"}  # other tests check the results


def cells(path: Path, kind: str = "code") -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.ci] if "train" in path.stem else []) for path in NOTEBOOKS],
)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    space, said = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for number, code in enumerate(cells(path)):
            for long, short in SMALLER.items():
                code = code.replace(long, short)
            exec(compile(code, f"{path.name}, cell {number}", "exec"), space)
    if path.stem == "see_what_merging_does":
        assert "300 visual tokens -> 75 (25.0% kept)" in said.getvalue()
        assert "tokens left: 75 of 300" in said.getvalue()
        assert re.search(r"positions kept: (\[\((\d+, \d+\)(, \()?){4}\])", said.getvalue())
    else:
        table = [line.split() for line in said.getvalue().splitlines()[-3:]]
        assert [(row[0], row[1]) for row in table] == [("dense", "36"), ("Chat-UniVi", "18"), ("PPE", "18")]
        assert all(0 <= float(score) <= 1 for row in table for score in row[2:])


def test_the_notebooks_are_small_hold_no_output_and_are_linked():
    assert len(NOTEBOOKS) == 2
    page = (ROOT / "docs" / "explore.md").read_text()
    for path in NOTEBOOKS:
        found = json.loads(path.read_text())
        assert (found["nbformat"], found["metadata"]["kernelspec"]["language"]) == (4, "python")
        assert all(cell["outputs"] == [] for cell in found["cells"] if cell["cell_type"] == "code")
        assert path.stat().st_size < 20_000
        assert f"notebooks/{path.name}" in page


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kernel_of_jupyter_runs_it(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: make test-app has it")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed: make test-app has it").NotebookClient
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: make test-app has it")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    for cell in book.cells:
        for long, short in SMALLER.items():
            cell.source = cell.source.replace(long, short)
    client(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs
                if "image/png" in output.get("data", {})]  # fmt: skip
    assert len(pictures) == (4 if path.stem == "see_what_merging_does" else 0)
