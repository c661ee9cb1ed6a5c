"""The benchmark of choosing cells: a rewrite of the released rule, and small times and counts."""

import bench_pixels
import pytest
import torch

from ppe_npu.methods import get


def test_both_ways_of_the_released_code_are_one_rule_at_threshold_0():
    cells = bench_pixels.page(12, 10, 6)
    kept = bench_pixels.released_shifted(cells)
    assert torch.equal(kept, bench_pixels.released_loop(cells, 0.0))
    assert torch.equal(kept, get("pixelprune").select(cells)[0])
    assert 0.1 < kept.float().mean() < 1


def test_it_tells_times_and_counts(capsys):
    bench_pixels.main(["--cells", "12", "10", "--values", "48", "--rounds", "1"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4
    assert all("times as fast" in line and "of a 3B prefill by count" in line for line in told[2:])


def test_other_cells_than_the_released_ones_are_told(monkeypatch):
    monkeypatch.setattr(bench_pixels, "released", lambda cells, _: torch.ones(cells.shape[:2], dtype=torch.bool))
    with pytest.raises(SystemExit, match="cells differ"):
        bench_pixels.main(["--cells", "6", "5", "--values", "8", "--rounds", "1"])


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.1])
@pytest.mark.ci
def test_choosing_is_at_most_2_percent_of_a_prefill_of_3b_by_count(threshold):
    """Of the decoder alone, on the kept cells: the share is largest where few are kept, and independent of the size."""
    kept, share = bench_pixels.counted(bench_pixels.page(32, 32, 1176), threshold)
    assert 0 < kept < 1024
    assert 50 * share < 1


def test_a_prefill_is_counted_as_torch_counts_it():
    """Two operations for each weight of the layers and token, and four for each pair and channel."""
    weights = 36 * (2048 * (2 * 2048 + 2 * 256) + 3 * 2048 * 11008)
    assert bench_pixels.prefill(10) == 2 * weights * 10 + 36 * 4 * 55 * 2048
