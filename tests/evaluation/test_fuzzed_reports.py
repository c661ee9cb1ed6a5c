"""A randomly damaged folder of finished evaluations: a report of it, or one line that names the file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from bounds import bounded
from command_line import refused
from mutations import both, damage, dice, thousand
from report_runs import Points, some, write_run
from test_cost_table import row

from ppe_npu.evaluation.cost_pass import FILE
from ppe_npu.evaluation.rows import with_sums
from ppe_npu.files import write_json
from ppe_npu.utils.reading import checksum

OWN = ("results.json", "predictions.jsonl", "settings.json", FILE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two benchmarks by two methods, a cost pass over one of them, and a run that has not ended; one benchmark's lines
    have sums, the other's are as the first version wrote them."""
    folder, sums = tmp_path_factory.mktemp("finished"), {}
    for benchmark, cls in (("layout", None), ("points", Points)):
        for name, preset, ratio in (("dense", "dense", 1.0), ("ppe", "ppe", 0.5)):
            kind = {} if cls is None else {"cls": cls}
            run = write_run(folder / benchmark / name, some(ratio, 12), preset, ratio, benchmark, **kind)
            early = () if cls is None else ("protocol",)
            said = {key: value for key, value in run["settings"].items() if key not in early}
            write_json(folder / benchmark / name / "settings.json", said)
            lines = (folder / benchmark / name / "predictions.jsonl").read_text()
            asked = lines.replace('"answer"', '"prompt": "What is it?", "GT": "a", "answer"').encode()
            (folder / benchmark / name / "predictions.jsonl").write_bytes(asked if early else with_sums(asked))
            sums[run["name"]] = checksum(run["settings"])  # of the last benchmark
    times = {name: row(name, 1.0, 0.5)[1] for name in sums}
    told = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "checkpoint", "reference": "dense"}
    write_json(folder / "points" / FILE, {"rows": times, **told, "of": sums, "left_out": {"3": "a fault"}})
    (folder / "layout" / "ppe" / "results.json").unlink()
    return folder


def check(run, whole: Path, place: Path, number: int) -> bool:
    """Checks the law for one change; returns whether there was a report."""
    draw = dice("report", number)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place, copy_function=os.link)
    files = sorted(path for path in place.rglob("*") if path.name in OWN)
    files += [path for path in files if path.name == FILE] * 3
    file = draw.choice(files)
    what = (number, file.relative_to(place), damage(file, draw.choice(files), draw))
    with bounded(what):
        try:
            result = run("report", place, "--out", place.with_name("out") / "r.md", "--html")
        except Exception as error:
            raise AssertionError(what) from error
    if result[0] != 0:
        edition = (
            file.name == "settings.json" and "its checksum is gone" in result[2]
        )  # the settings tell whether lines should have sums
        refused(result, "predictions.jsonl" if edition else file.name)
        return False
    text = (place.with_name("out") / "r.md").read_text()
    assert not re.search(r"<script|\x1b", text), what
    assert "<script>" not in re.sub(r"<script>.*?</script>", "", result[1]), what
    return True


@thousand(2)
@pytest.mark.ci
def test_a_damaged_evaluation_is_named_or_reported(run, finished, tmp_path, numbers):
    assert both([check(run, finished, tmp_path / "copy", number) for number in numbers])
