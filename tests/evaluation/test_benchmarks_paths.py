"""Rows of a benchmark can only name files in its folder; folders in it may be links that the user made."""

from __future__ import annotations

import os
import shutil

import benchmark_files
import pytest

from ppe_npu.errors import InputError
from ppe_npu.evaluation import benchmarks

# name -> (its file of rows, a name in it that becomes a path).
ROWS = {
    "pope": ("coco_pope_random.json", "image"),
    "chartqa": ("test/test_human.json", "imgname"),
    "longvideobench": ("lvb_val.json", "subtitle_path"),
    "mlvu": (None, "video"),
}


@pytest.mark.parametrize("leading", ["../../../../secret.png", "{outside}/secret.png"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_leads_out_is_refused(tmp_path, name, leading):
    benchmark_files.write_all(tmp_path, name)
    root = tmp_path / name
    (tmp_path / "secret.png").write_bytes(benchmark_files.picture())
    leading = leading.format(outside=tmp_path)
    for file in [*root.rglob("*.json")] if ROWS[name][0] is None else [root / ROWS[name][0]]:
        text = file.read_text()
        start = text.index(f'"{ROWS[name][1]}": "') + len(ROWS[name][1]) + 5
        file.write_text(text[:start] + leading + text[text.index('"', start) :])
    with pytest.raises(InputError, match=f"{name}: a file of .* lies outside of {root}") as error:
        benchmarks.load(name, tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_the_benchmark_names_may_be_links(tmp_path):
    benchmark_files.write_all(tmp_path / "data", "pope")
    root = tmp_path / "data" / "pope"
    shutil.move(root / "val2014", tmp_path / "coco")
    (root / "val2014").symlink_to(tmp_path / "coco")
    assert len(benchmarks.load("pope", tmp_path / "data"))
    picture = next((tmp_path / "coco").iterdir())
    os.rename(picture, tmp_path / "elsewhere.png")
    picture.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match=r"lies outside of .*it leads to .*elsewhere"):
        benchmarks.load("pope", tmp_path / "data")
