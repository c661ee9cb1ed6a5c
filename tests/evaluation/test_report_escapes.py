"""Names that other people chose are shown as they are in reports, pictures and folders, and do nothing else."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from report_runs import Points, some, write_run

from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks import load
from ppe_npu.evaluation.report import collect, write_report

HOSTILE = (
    "<script>alert(3)</script>\n# H1", "[l](javascript:alert(4))", "a|b", "<img src=x onerror=alert(1)>", "`x` **y**",
    "$\\frac$", "_hidden", "\x1b[31mred", "x" * 400,
)  # fmt: skip


def check(text: str, pieces) -> None:
    """No HTML, link or heading but ours; every row of a table has as many cells as its heading."""
    assert not re.search(r"<(?!1e)|\]\(javascript|\x1b", text)
    assert not re.search("^# H", text, re.M)
    assert re.findall(r"\]\(([^)]*)\)", text) == [pieces]
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.M)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert tables


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("count", [2, pytest.param(len(HOSTILE), marks=pytest.mark.slow)])
@pytest.mark.ci
def test_a_report_shows_names_as_they_are(tmp_path, count):
    kinds = HOSTILE[:count]
    for number, name in enumerate(HOSTILE):
        for preset, ratio in (("dense", 1.0), ("ppe", 0.5)):
            write_run(tmp_path / f"{number}-{preset}", some(0.5), preset, ratio, benchmark=name, kinds=kinds)
    write_run(tmp_path / "named", some(0.5), name=HOSTILE[0], benchmark=HOSTILE[0], versions={"device": HOSTILE[3]})
    path, table = write_report(
        collect(tmp_path), tmp_path / "a (b)" / "r [x].md", HOSTILE[0], missing=[f"{name}: gone" for name in HOSTILE]
    )
    check(path.read_text(), "r%20%5Bx%5D.png")
    assert "<script>" not in table
    assert "&lt;script&gt;alert(3)&lt;/script&gt; # H1" in path.read_text()
    assert Image.open(path.with_suffix(".png")).size[0] > 100


def test_metrics_and_headlines_too(tmp_path):
    class Hostile(Points):
        headline = HOSTILE[0]

        def metrics(self, rows):
            return {HOSTILE[0]: 1.0, HOSTILE[1]: 2.0, HOSTILE[2]: 3.0}

    write_run(tmp_path / "a", some(0.5), cls=Hostile)
    check(write_report(collect(tmp_path), tmp_path / "r.md", "x")[0].read_text(), "r.png")


NAMES = (
    "../../escape", "/tmp/escape", "a/b", "a\\b", "..", ".hidden", "", " x", "a\0b", "a\nb", "x" * 200, "\ud800", 7,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmarks_name_stays_in_the_output_folder(tmp_path, name, run, tiny_folder):
    (tmp_path / "mine.py").write_text(f"""
class Mine:
    modality = "text"
    name = {name!r}
    def __len__(self): return 1
    def __getitem__(self, number): return {{"index": number, "prompt": "row", "GT": "1"}}
""")
    with pytest.raises(InputError, match=r"a benchmark (is called|has a name of type int)") as error:
        load(f"{tmp_path / 'mine.py'}:Mine", tmp_path)
    assert str(error.value).isprintable()
    before = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)]
    asked = ["eval", "--model", tiny_folder, "--benchmarks", f"{tmp_path / 'mine.py'}:Mine", "--device", "cpu"]
    code, _, err = run(*asked, "--output", tmp_path / "deep" / "out")
    assert code == 2, err
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize("name", ["mmbench_of_mine", "My bench-2.0", "Größe"])
def test_plain_names_are_taken(tmp_path, name):
    source = "__len__ = lambda self: 1\n    __getitem__ = lambda *_: dict(index=0, prompt='', GT='')"
    source = f"modality = 'text'\n    {source}"
    (tmp_path / "mine.py").write_text(f"class Mine:\n    name = {name!r}\n    {source}\n")
    assert load(f"{tmp_path / 'mine.py'}:Mine", tmp_path).name == name
