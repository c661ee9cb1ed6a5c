"""What the table of a cost pass says of its rows, and for which runs it is shown."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from ppe_npu import CompressionConfig
from ppe_npu.cli import costs
from ppe_npu.errors import InputError
from ppe_npu.evaluation import cost_pass, cost_table, protocols, tables
from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.results import run_title
from ppe_npu.evaluation.run_protocol import label
from ppe_npu.files import write_json
from ppe_npu.utils.reading import checksum

DENSE = CompressionConfig.preset("dense").to_dict()


def row(name, score, ratio, told=True, dense=False):
    cost = {"median": ratio, "quartiles": [ratio, ratio], "ratio": ratio, "low": ratio, "high": ratio, "told": told}
    return {"name": name, "score": score, "dense": dense}, {"ttft": cost, "total": cost, "counted": None}


@pytest.mark.parametrize(
    ("score", "ratio", "told", "speed", "share"),
    [
        (0.796, 0.5, True, "2.00 (2.00 to 2.00)", "99.5 %"),
        (0.79, 0.5, True, "2.00 (2.00 to 2.00)", "98.8 % (below 99 %)"),
        (0.8, 0.97, False, "1.03 (1.03 to 1.03), no clear difference", "100.0 %"),
    ],
)
def test_a_speed_stands_beside_the_share_of_the_score_that_it_keeps(score, ratio, told, speed, share):
    rows = [row("dense", 0.8, 1.0, told=False, dense=True), row("fast", score, ratio, told)]
    measured = {"rows": {one["name"]: cost for one, cost in rows}}
    lines = cost_table.lines({"rows": [one for one, _ in rows]}, measured)
    assert lines[0][2:6] == ["1", "1000.0 (1000.0 to 1000.0)", "1", "100.0 %"]
    assert [lines[1][2], lines[1][5]] == [speed, share]


def test_without_dense_the_columns_name_the_method_that_others_are_compared_with():
    rows = [row("keep_one 0.25", 0.8, 1.0, told=False), row("smaller input 0.25", 0.8, 0.5)]
    measured = {"rows": {one["name"]: cost for one, cost in rows}, "reference": "keep_one 0.25"}
    lines = cost_table.lines({"rows": [one for one, _ in rows]}, measured)
    assert cost_table.head(measured)[1::2][0] == "TTFT, times as fast as keep_one 0.25 (95 %)"
    assert [line[2] for line in lines] == ["1", "2.00 (2.00 to 2.00)"]


def test_methods_that_were_not_in_the_pass_are_named():
    measured = {"rows": {"dense": {}}, "rounds": 5, "prompts": 8, "device": "cpu"}
    found = {"rows": [{"name": "dense"}, {"name": "ppe 0.25"}], "interleaved": measured}
    assert tables.turns(found).endswith(" Not measured in this pass: ppe 0.25; name all methods in one command.")
    assert tables.turns({**found, "rows": found["rows"][:1]}) == "Interleaved: 5 rounds of 8 prompts on cpu."


@pytest.mark.parametrize(
    ("ratio", "told", "flops", "slower"),
    [(1.3, True, 1.0, True), (1.3, False, 1.0, False), (0.9, True, 1.0, False), (1.3, True, 3.0, False)],
)
def test_a_method_that_is_slower_for_less_work_is_named_with_the_reason(ratio, told, flops, slower):
    rows = {}
    for name, times, work in (("dense", row("dense", 1.0, 1.0)[1], 2.0), ("ppe", row("", 1.0, ratio, told)[1], flops)):
        rows[name] = {**times, "counted": {"tower_flops": work / 2, "decoder_flops": work / 2}}
    measured = {"rounds": 5, "prompts": 8, "device": "cpu", "reference": "dense", "rows": rows}
    found = {"rows": [], "interleaved": measured}
    assert ("Slower than dense despite less counted work: ppe;" in tables.turns(found)) == slower
    rows["smaller input 0.25"] = rows.pop("ppe")  # a control that selects no tokens
    assert "Slower" not in tables.turns(found)
    rows["ppe"] = rows.pop("smaller input 0.25")
    rows["ppe"]["counted"] = rows["dense"]["counted"] = {"why": "a kernel that cannot be counted"}
    assert "Slower" not in tables.turns(found)


def test_a_share_of_nothing_is_a_dash():
    assert cost_table.kept(None) == "-"


@pytest.mark.parametrize("text", ["{}", "[", '{"rows": {"a": {"ttft": {"median": 0}}}}', '{"rows": {}}'])
def test_a_damaged_pass_is_named(tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(InputError, match=r"costs.json (is not JSON|is damaged).*: delete it and measure again"):
        cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {}}])


def test_a_pass_that_does_not_say_what_it_was_over_is_named(tmp_path):
    told = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "checkpoint"}
    for of in ({"dense": []}, {"dense": 5}, {"dense": None}, ["dense"], "dense"):
        write_json(tmp_path / "costs.json", {"rows": {"dense": row("dense", 1.0, 1.0)[1]}, **told, "of": of})
        with pytest.raises(InputError, match=r"costs.json is damaged \(of.*: delete it and measure again"):
            cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {"compression": DENSE}}])


def test_pipes_are_not_waited_for_where_a_pass_or_settings_are_looked_for(tmp_path):
    for name in ("costs.json", "settings.json"):
        os.mkfifo(tmp_path / name)
    assert costs._settings(tmp_path) == {}
    assert not costs._measured(tmp_path, [])


def test_a_pass_of_another_protocol_is_not_shown(tmp_path):
    one = row("dense", 1.0, 1.0)[1]
    known = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "qwen"}
    write_json(tmp_path / "costs.json", {"rows": {"dense": one}, **known})
    assert cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {}}]) is None
    assert cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {"protocol": {"name": "qwen"}}}])
    # From an earlier version, whose protocol had other numbers.
    older = {"benchmark": "mlvu", "protocol": {"name": "qwen", "video": {"fps": 9.0}}, "compression": DENSE}
    older["edition"] = 2  # of mlvu's rule
    run = {"folder": str(tmp_path / "dense"), "settings": older}
    assert cost_table.read([run]) is None
    write_json(tmp_path / "costs.json", {"rows": {"dense": one}, **known, "of": {"dense": checksum(older)}})
    assert cost_table.read([run])["rows"]
    newer = {**older, "protocol": {"name": "qwen"}}  # evaluated again since, with today's numbers
    assert cost_table.label(newer) == known["protocol"]
    assert cost_table.read([{**run, "settings": newer}]) is None


def test_a_pass_shows_the_methods_that_stand_as_they_were_measured(tmp_path):
    cost = row("dense", 1.0, 1.0)[1]
    told = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "checkpoint", "reference": "dense"}
    runs = []
    for number, config in enumerate((DENSE, CompressionConfig.preset("ppe", ratio=0.25).to_dict())):
        runs.append({"folder": str(tmp_path / str(number)), "settings": {"benchmark": "pope", "compression": config}})
    sums = {run_title(run["settings"]): checksum(run["settings"]) for run in runs}
    write_json(tmp_path / "costs.json", {"rows": dict.fromkeys([*sums, "gone"], cost), **told, "of": sums})
    dense, ppe = sums
    assert list(cost_table.read(runs)["rows"]) == [dense, ppe, "gone"]
    assert list(cost_table.read(runs[1:])["rows"]) == [dense, ppe, "gone"]  # the reference need not be among the runs
    changed = [{**run, "settings": {**run["settings"], "limit": 3}} for run in runs]
    assert list(cost_table.read([runs[0], changed[1]])["rows"]) == [dense, "gone"]
    assert cost_table.read([changed[0], runs[1]]) is None  # the ratios are relative to the run that changed
    assert cost_table.read(changed) is None


@pytest.mark.parametrize(
    "change", [{"members": [5]}, {"positions": None}, {"steps": [5]}, {"steps": [{"method": "new"}]}]
)
def test_a_run_of_junk_or_another_edition_is_of_no_pass(tmp_path, change):
    told = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "checkpoint", "reference": "dense"}
    runs = [{"folder": str(tmp_path / "0"), "settings": {"benchmark": "pope", "compression": DENSE}}]
    write_json(tmp_path / "costs.json", {
        "rows": {"dense": row("dense", 1.0, 1.0)[1]}, **told, "of": {"dense": checksum(runs[0]["settings"])},
    })  # fmt: skip
    odd = CompressionConfig.preset("ppe", ratio=0.25).to_dict() | change
    runs.append({"folder": str(tmp_path / "1"), "settings": {"benchmark": "pope", "compression": odd}})
    assert list(cost_table.read(runs)["rows"]) == ["dense"]


def test_a_pass_names_the_protocol_as_the_reports_table_does(monkeypatch, tmp_path):
    """The name takes the edition of the benchmark's rule into account."""
    protocol, written = protocols.load("lmms-eval"), []
    identity = {"benchmark": "mlvu", "edition": registry.edition("mlvu", protocol), "protocol": protocol.recorded()}
    runs = [
        SimpleNamespace(
            benchmark=SimpleNamespace(name="mlvu"),
            identity=identity,
            folder=tmp_path / name,
            config=CompressionConfig.preset(name),
            share=None,
        )
        for name in ("dense", "ppe")
    ]
    for module, name in ((costs, "compress"), (costs, "_draw"), (cost_pass, "spread_samples")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(cost_pass, "measure", lambda *_: {"left_out": {}})
    monkeypatch.setattr(cost_pass, "write", lambda folder, found, label: written.append(label))
    costs._measure(None, runs, 1, lambda run: None)
    assert written == [label(identity)] == ["lmms-eval"]
