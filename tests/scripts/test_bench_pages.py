"""Drawn pages and screens: the same every time, of the size that was asked for; and the benchmark on them."""

import json

import bench_pages
import bench_tower
import numpy as np
import pytest
from bench.pages import VARIANTS, picture
from PIL import Image

from ppe_npu.errors import InputError


@pytest.mark.parametrize("kind", bench_pages.KINDS)
@pytest.mark.ci
def test_a_drawn_picture_is_the_same_every_time_and_another_by_another_seed_or_way(kind):
    drawn = [np.asarray(picture(kind, variant, 196, 252, seed)) for variant in VARIANTS for seed in (0, 1)]
    again = [np.asarray(picture(kind, variant, 196, 252, seed)) for variant in VARIANTS for seed in (0, 1)]
    assert all(one.shape == (252, 196, 3) and (one == other).all() for one, other in zip(drawn, again))
    assert len({one.tobytes() for one in drawn}) == len(drawn)


@pytest.mark.ci
def test_the_benchmark_counts_what_is_kept_and_times_all_at_that_number(tmp_path, capsys):
    output = tmp_path / "pages.json"
    run = ["--size", "tiny", "--rounds", "1", "--pixels", "224", "280", "--thresholds", "0", "0.1"]
    bench_pages.main([*run, "--output", str(output)])
    result = json.loads(output.read_text())
    rows = {(row["kind"], row["variant"], row["threshold"]): row for row in result["shares"]}
    assert len(rows) == 2 * 3 * 2
    assert {row["cells"] for row in rows.values()} == {80}
    for (kind, variant, threshold), row in rows.items():
        assert 1 <= row["kept"] < 80 or variant != "png"
        assert row["kept"] >= rows[kind, variant, 0.1]["kept"]
        timed = result["prefill"][kind]
        if variant == "png":
            names = [f"pixelprune {threshold}", f"dpc_knn, {row['kept']}", f"tome_tower, {row['kept']}"]
            assert [timed[name]["tokens"] for name in names] == [row["kept"]] * 3
    for timed in result["prefill"].values():
        assert timed["dense"]["tokens"] == 80
        assert all(min(own.values()) > 0 for own in timed.values())
        assert all(own["tower_ms"] + own["decoder_ms"] < own["prefill_ms"] for own in timed.values())
    with pytest.raises(InputError, match="give multiples of 28"):
        bench_pages.main(["--pixels", "30", "56"])


@pytest.mark.slow
def test_what_is_dropped_is_drawn(tmp_path):
    bench_pages.main(["--show", str(tmp_path)])
    for kind in bench_pages.KINDS:
        path = tmp_path / f"pixels-{kind}.png"
        assert path.stat().st_size < 150_000
        with Image.open(path) as drawn:
            assert len(set(drawn.convert("RGB").getdata())) > 8


def test_the_towers_times_are_written(tmp_path, monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    build = bench_tower.build

    def built(size, *args):
        text, vision, tied = bench_tower.SIZES[size]
        bench_tower.SIZES[size] = text, vision | small, tied
        return build(size, *args)

    monkeypatch.setattr(bench_tower, "build", built)
    output = tmp_path / "tower.json"
    bench_tower.main(["--patches", "64", "--blocks", "8", "--rounds", "1", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"].values()
    assert min(row.values()) > 0
    for name in bench_tower.METHODS:
        assert (
            row[f"{name}_least"] == row[f"{name}_share"] == row[f"{name}_most"] == row[f"{name}_ms"] / row["dense_ms"]
        )
    # 22 of 64 patches stay. In the last 5 of 8 blocks, the others are only asked for keys and values.
    window, whole, kept, rest = 64 * 64, 64 * 32 * 32 * 3, 22, 32 * 32 + 3 * 32 * 64
    dense = 8 * (2 * (whole + 64 * rest) + 4 * window * 32)
    spared = 5 * (2 * ((64 - kept) * (32 * 32 + rest)) + 4 * 64 * (64 - kept) * 32)
    assert row["ipcv_counted"] == (dense - spared) / dense
    # As published, the others skip only the MLP.
    assert row["ipcv_released_counted"] == (dense - 5 * 2 * (64 - kept) * 3 * 32 * 64) / dense
