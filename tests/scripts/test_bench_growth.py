"""How the merge grows, and what a training step costs: small measurements, files, and texts that follow the numbers."""

import json

import bench_planning
import bench_scaling
import bench_training
import pytest
import torch
from bench.models import build
from bench.shares import Widths

from ppe_npu.inspect.flops import flop_counter


@pytest.mark.slow
def test_growth_is_measured_along_every_axis_and_drawn(tmp_path, capsys):
    output = tmp_path / "scaling.png"
    bench_scaling.main(["--channels", "16", "--rounds", "1", "--sizes", "3", "--output", str(output)])
    axes = json.loads(output.with_suffix(".json").read_text())["axes"]
    assert list(axes) == list(bench_scaling.AXES)
    assert [row["size"] for row in axes["frames of 256 tokens"]["rows"]] == [1, 4, 16]
    # Memory is counted, not timed, so it is the same on any machine.
    for name in ("frames of 256 tokens", "samples of 4 frames"):
        assert bench_scaling.order(axes[name]["rows"], "mib") < 1.05
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "order" in capsys.readouterr().out


def test_a_frame_of_many_tokens_takes_little_more_than_its_distances():
    distances = 4096**2 * 4 / 2**20
    with torch.no_grad():
        assert distances < bench_scaling.peak_mib(bench_scaling.merging(1, 1, 4096, 16)) < 1.4 * distances


def test_an_order_is_the_exponent_between_the_last_two_sizes():
    rows = [{"size": 1, "ms": 9.0}, {"size": 2, "ms": 3.0}, {"size": 4, "ms": 24.0}]
    assert bench_scaling.order(rows, "ms") == pytest.approx(3.0)


@pytest.mark.slow
def test_a_training_step_is_timed_and_counted():
    model = bench_training.model_of("tiny", 2, torch.device("cpu"), torch.float32, bench_training.KINDS)
    rows = bench_training.measure(model, "tiny", 256, 1, frozen=False, checkpointing=False)
    order = ["dense", "ppe", "pixelprune + ppe", "pixelprune"]  # more and more of the tower's work is spared
    assert list(rows) == order
    for key in ("flops_share", "deep_share"):
        shares = [rows[name][key] for name in order]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == 1.0
    assert all(rows[name]["peak_share"] < 1 for name in order[1:])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.ci
def test_what_two_blocks_are_said_to_cost_in_the_whole_depth_is_what_that_costs(frozen):
    def step(kinds):
        model = bench_training.model_of("tiny", 2, torch.device("cpu"), torch.float32, kinds)
        bench_training.compress(model, bench_training.settings(64)["dense"])
        return bench_training.Step(model, bench_training.page(model, 256), frozen, checkpointing=False)

    built = step(bench_training.KINDS)
    first, again = (built.counted(2) for _ in range(2))
    gradients = sum(part.numel() * 4 for part in built.model.parameters() if part.requires_grad) / 2**20
    assert first["peak_mib"] < again["peak_mib"] + gradients / 2  # in a first step none of them is new
    derived = again["deep"]
    whole = step([(1, number % 8 == 7) for number in range(32)])
    trained = {name for name, part in whole.model.named_parameters() if part.requires_grad}
    assert any("visual" in name for name in trained) != frozen
    with flop_counter() as counter:
        whole.run()
    # Left out: patches, the merger, and one of the five products that torch counts in attention's backward pass.
    assert derived < counter.get_total_flops() < 1.25 * derived


@pytest.mark.ci
def test_shares_by_formula_are_those_that_are_counted():
    model, flops = build("tiny", torch.device("cpu"), torch.float32), {}
    inputs, configs = bench_training.page(model, 256), bench_training.settings(64)
    for name in ("dense", "ppe"):
        bench_training.compress(model, configs[name])
        with torch.no_grad(), flop_counter() as counter:
            model(**inputs, logits_to_keep=1)
        grouping = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
        flops[name] = counter.get_total_flops() - grouping - Widths(model.config).head
    share = bench_training.by_formula("tiny", 256)["ppe"][1]
    assert share == pytest.approx(flops["ppe"] / flops["dense"])
    table = bench_training.formula_table(4096).splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == list(configs)


def test_goals_are_told_by_the_numbers():
    rows = {"dense": {"share": 1.0, "peak_share": 1.0}, "ppe": {"share": 0.45, "peak_share": 0.49}}
    assert bench_training.verdict(rows) == "ppe: time (40%) missed by 5.0% of dense, memory (50%) met"


def test_planning_is_timed_where_the_layout_is_known_and_where_it_is_new(monkeypatch, capsys):
    apart = bench_planning.APART + "video-3x16"
    monkeypatch.setattr(bench_planning, "CASES", ("video-3x16", "image-16", apart))
    rows = bench_planning.main(["--rounds", "1"])
    settings = list(bench_planning.SETTINGS)
    assert [row["setting"] for row in rows] == 2 * settings + [name for name in settings if name != "events"]
    assert all(row["known"] > 0 < row["new"] for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_known_prompt_is_one_with_other_words_and_a_new_one_is_not(monkeypatch):
    """The columns time what they say: new prompts each get a new layout, and known ones share one."""
    laid = []
    own = bench_planning.Compression._laid
    monkeypatch.setattr(bench_planning.Compression, "_laid", lambda *given: laid.append(0) or own(*given))
    bench_planning.measure("ppe", "image-16", 3)
    assert len(laid) == 3 + 1
