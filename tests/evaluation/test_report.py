"""The report: a table and a plot from results, whatever the benchmark."""

from __future__ import annotations

import pytest
from PIL import Image

from ppe_npu.errors import InputError
from ppe_npu.evaluation.metrics import summary
from ppe_npu.evaluation.report import write_report

COSTS = {"prefill_seconds": 0.0125, "seconds": 0.02, "kv_bytes": 2048}


def result(name: str, row: list[float], col: list[float], kept: float, **changes) -> dict:
    return {
        "name": name,
        "accuracy": summary(row + col),
        "types": {"row": summary(row), "col": summary(col)},
        "costs": {"tokens_after": 36 * kept, "retention": kept, **COSTS},
        "errors": 0,
        "settings": {"benchmark": "layout"},
        "versions": {"device": "a test"},
        **changes,
    }


def test_one_row_a_method_and_a_plot(tmp_path):
    results = [result("dense", [1, 1], [1, 0], 1.0), result("ppe k=4", [1, 1], [0, 0], 0.5)]
    path = write_report(results, tmp_path / "new" / "report.md", "A benchmark", notes=["It is small."])
    text = path.read_text()
    assert "| method | row | col | all | visual tokens | kept | prefill ms | total ms | KV bytes |" in text
    assert "| dense | 1.000 | 0.500 | 0.750 | 36.0 | 100 % | 12.50 | 20.00 | 2,048 |" in text
    assert "| ppe k=4 | 1.000 | 0.000 | 0.500 | 18.0 | 50 % | 12.50 | 20.00 | 2,048 |" in text
    assert "row 2, col 2" in text
    assert "It is small." in text
    with Image.open(tmp_path / "new" / "report.png") as plot:
        assert plot.width > 300
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.md", "report.png"]


def test_seeds_become_a_mean_with_its_spread(tmp_path):
    results = [result("ppe", [1, 1], [1, 1], 0.5), result("ppe", [1, 0], [1, 1], 0.5, errors=2)]
    text = write_report(results, tmp_path / "r.md", "Seeds").read_text()
    assert "| ppe | 0.750 (0.500 to 1.000) | 1.000 (1.000 to 1.000) | 0.875 (0.750 to 1.000) | 18.0 |" in text
    assert "2 samples failed" in text


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="no results"):
        write_report([], tmp_path / "r.md", "Nothing")
