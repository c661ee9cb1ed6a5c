"""`ppe-npu eval` with a cost pass and the control of smaller input, and what its report says of them."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from ppe_npu.demo import scenes
from ppe_npu.evaluation import cost_pass, cost_table, interleaving, tables
from ppe_npu.evaluation.generation import Generated
from ppe_npu.evaluation.interleaving import MOST
from ppe_npu.evaluation.report import compared
from ppe_npu.files import write_json
from ppe_npu.utils.reading import checksum


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with test.jsonl, of 12 questions."""
    folder = tmp_path_factory.mktemp("data")
    scenes.write_split(folder, "test", 4, seed=1, questions_per_image=3)
    return folder


@pytest.mark.slow
def test_costs_in_turns_and_smaller_input_are_rows_of_the_report(run, tiny_folder, data, tmp_path):
    asked = ["eval", "--device", "cpu", "--model", tiny_folder, "--data-root", data, "--output", tmp_path / "out"]
    asked += ["--max-new-tokens", 2]
    methods = ["--compression", "dense", "keep_one", "--ratio", 0.25]
    code, _, err = run(*asked, *methods)  # both are there by default
    assert code == 0, err
    folder = tmp_path / "out" / "layout"
    found = json.loads((folder / "costs.json").read_text())
    assert list(found["rows"]) == ["dense", "keep_one 0.25", "smaller input 0.25"]
    assert (found["prompts"], found["reference"], found["protocol"]) == (8, "dense", "checkpoint")
    assert 2 <= found["rounds"] <= 5 * MOST  # fewer or more than 5 where the machine is busy
    assert found["left_out"] == {}
    assert found["rows"]["dense"]["ttft"]["ratio"] == 1.0
    work = {name: row["counted"] for name, row in found["rows"].items()}
    # 36 visual tokens: all go through the tower with keep_one, a quarter with smaller pictures; the LLM gets as many.
    assert work["dense"]["tower_flops"] == work["keep_one 0.25"]["tower_flops"]
    assert work["smaller input 0.25"]["tower_flops"] < work["dense"]["tower_flops"] / 2
    assert work["keep_one 0.25"]["kv_bytes"] == work["smaller input 0.25"]["kv_bytes"] < work["dense"]["kv_bytes"]
    assert work["smaller input 0.25"]["decoder_flops"] < work["dense"]["decoder_flops"]
    drawn = {file.stem for file in (folder / "groups" / "picture").iterdir()}
    assert {file.stem for file in (folder / "groups" / "keep_one-0.25").iterdir()} == drawn
    assert len(drawn) >= 8  # those of the pass, and those whose scores differ
    result = json.loads((folder / "smaller_input_0.25" / "results.json").read_text())
    assert (result["name"], result["settings"]["smaller_input"]) == ("smaller input 0.25", 0.25)
    assert result["costs"]["tokens_after"] == 9
    report = (tmp_path / "out" / "report.md").read_text()
    assert "of dense's score" in report
    assert f"In turns: {found['rounds']} rounds of 8 prompts" in report
    assert "total ms" not in report  # times of runs one after the other are not shown beside them


@pytest.mark.slow
def test_an_older_folder_is_completed_nothing_is_measured_twice_and_one_pass_has_all_methods(
    run, tiny_folder, data, tmp_path
):
    asked = ["eval", "--device", "cpu", "--model", tiny_folder, "--data-root", data, "--output", tmp_path / "out"]
    asked += ["--max-new-tokens", 2]
    methods, folder = ["--compression", "dense", "keep_one", "--ratio", 0.25], tmp_path / "out" / "layout"
    code, _, err = run(*asked, *methods, "--cost-rounds", 0, "--no-smaller-input")  # as before there was either
    assert code == 0, err
    assert sorted(file.name for file in folder.iterdir()) == ["dense", "dpc_knn-keep_one-k1-nearest-raster-0.25"]
    answered = (folder / "dense" / "predictions.jsonl").read_bytes()
    code, _, err = run(*asked, *methods)
    assert code == 0, err
    assert (folder / "dense" / "predictions.jsonl").read_bytes() == answered
    before = (folder / "costs.json").read_bytes()
    code, _, err = run(*asked, *methods)  # again: the runs are found, and so is the pass
    assert code == 0, err
    assert (folder / "costs.json").read_bytes() == before
    code, _, err = run(*asked, "--compression", "events:ratio=0.5")  # one more method: one pass over all of them
    assert code == 0, err
    found = json.loads((folder / "costs.json").read_text())
    assert found["reference"] == "dense"
    assert set(found["rows"]) >= {"dense", "keep_one 0.25", "smaller input 0.25"}
    assert len(found["rows"]) >= 4
    code, _, err = run(*asked, *methods, "--no-smaller-input", "--max-new-tokens", 3)
    assert code == 2
    assert "another max_new_tokens" in err


def test_who_stops_the_pass_has_the_report(run, tiny_folder, data, tmp_path, monkeypatch):
    def stopped(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(cost_pass, "measure", stopped)
    asked = ["eval", "--device", "cpu", "--model", tiny_folder, "--data-root", data, "--output", tmp_path / "out"]
    code, out, _ = run(*asked, "--max-new-tokens", 1, "--compression", "keep_one")
    assert code == 130
    assert "| keep_one 0.45 |" in out
    assert "| smaller input 0.45 |" in (tmp_path / "out" / "report.md").read_text()


def test_costs_and_smaller_input_are_there_unless_they_are_switched_off():
    from ppe_npu.cli import costs
    from ppe_npu.cli.parser import build_parser
    from ppe_npu.config import CompressionConfig
    from ppe_npu.errors import InputError

    processor, tiled = SimpleNamespace(), SimpleNamespace(image_seq_length=4, start_image_token_id=1)
    plain = build_parser().parse_args(["eval"])
    assert plain.cost_rounds is None
    assert costs.smaller_input(plain, processor)
    assert not costs.smaller_input(plain, tiled)  # by default nothing is asked that cannot be
    off = build_parser().parse_args(["eval", "--no-smaller-input", "--cost-rounds", "0"])
    assert (off.cost_rounds, costs.smaller_input(off, processor)) == (0, False)
    on = build_parser().parse_args(["eval", "--smaller-input"])
    with pytest.raises(InputError, match="tiles of one size"):
        costs.smaller_input(on, tiled)
    configs = [CompressionConfig.preset(name) for name in ("dense", "ppe", "pixelprune")]
    assert costs.shares(plain, configs) == [0.45]


@pytest.mark.parametrize(
    ("kept", "known", "expected"),
    [
        ([16 / 36], [0.45], []),  # whole tokens
        ([0.813], [], [0.81]),  # a method that does not say how many before
        ([0.813, 0.8149, 0.3], [0.45], [0.81, 0.3]),
        ([0.052], [0.05], []),
        ([0.06], [0.05], [0.06]),
        ([1.0, None, 0.0], [], []),
    ],
)
def test_smaller_input_has_as_many_tokens_as_each_method_kept(kept, known, expected):
    from ppe_npu.cli import costs

    results = [{"costs": {"retention": share}, "settings": {}} for share in kept]
    results.append({"costs": {"retention": 0.5}, "settings": {"smaller_input": 0.5}})
    assert costs.kept_shares(results, known) == expected


class Answering:
    """What takes as long as the hour has it, and as much work as it is told."""

    def __init__(self, work, seed):
        self.work, self.draw = work, random.Random(seed)

    def prepare(self, samples):
        return samples

    def answer(self, samples):
        seconds = self.draw.uniform(1, 3)
        work = None if self.work is None else (self.work, 2 * self.work)
        return Generated(["a"], [1], [4], [2.0], [8], seconds, 2 * seconds, 8, work=work)


def test_on_the_host_methods_are_compared_by_their_work():
    """Which other programs do not lengthen; times are shown as they were."""
    methods = [cost_pass.Candidate(name, Answering(work, name)) for name, work in (("a", 0.5), ("b", 0.5), ("c", 0.25))]
    found = cost_pass.measure(methods, [{}] * 4, rounds=3)
    assert (found["rounds"], found["prompts"], found["reference"]) == (3, 4, "a")
    assert cost_table.head(found)[1] == "TTFT, processor time, times as fast as a (95 %)"
    assert {name: (row["ttft"]["ratio"], row["total"]["ratio"], row["ttft"]["told"]) for name, row in
            found["rows"].items()} == {"a": (1, 1, False), "b": (1, 1, False), "c": (0.5, 0.5, True)}  # fmt: skip
    assert all(1 < row["ttft"]["median"] < 3 and 2 < row["total"]["median"] < 6 for row in found["rows"].values())


class Failing(Answering):
    """What cannot prepare or answer some samples."""

    def prepare(self, samples):
        if samples[0]["index"] == 1:
            raise OSError("truncated file")
        return samples

    def answer(self, samples):
        if samples[0]["index"] == 2:
            raise RuntimeError("odd")
        return super().answer(samples)


def test_a_damaged_sample_is_left_out_and_named_and_the_others_are_measured():
    from ppe_npu.errors import InputError
    from ppe_npu.evaluation.identity import Unreadable

    methods = [cost_pass.Candidate("a", Answering(0.5, "a")), cost_pass.Candidate("b", Failing(0.25, "b"))]
    samples = [
        {"index": 0},
        {"index": 1},
        {"index": 2},
        Unreadable(index=3, prompt="", error="KeyError: x"),
        {"index": 4},
    ]
    found = cost_pass.measure(methods, samples, rounds=2)
    assert found["left_out"] == {"1": "OSError: truncated file", "2": "RuntimeError: odd", "3": "KeyError: x"}
    assert (found["prompts"], found["rows"]["b"]["ttft"]["ratio"]) == (2, 0.5)
    words = tables.turns({"rows": [], "interleaved": found})
    told = "1 (OSError: truncated file); 2 (RuntimeError: odd); 3 (KeyError: x)."
    assert words.endswith(f"Left out, as not all methods could answer: {told}")
    with pytest.raises(InputError, match=r"no sample is answered by all methods \(1: OSError: truncated file\)"):
        cost_pass.measure(methods, samples[1:2], rounds=2)
    with pytest.raises(InputError, match="two methods are called b"):
        cost_pass.measure([methods[0], *methods[1:] * 2], samples, rounds=2)


@pytest.mark.parametrize(("least", "prompts"), [(2, 2), (None, 4)])
def test_long_answers_are_given_to_fewer_prompts_unless_rounds_were_asked_for(monkeypatch, least, prompts):
    now = [0.0]

    class Slow(Answering):
        def answer(self, samples):
            now[0] += 70
            return super().answer(samples)

    clock = SimpleNamespace(monotonic=lambda: now[0])
    for module in (cost_pass, interleaving):
        monkeypatch.setattr(module, "time", clock)
    methods = [cost_pass.Candidate(name, Slow(0.5, name)) for name in "ab"]
    found = cost_pass.measure(methods, [{"index": number} for number in range(4)], 3, least=least)
    assert (found["prompts"], found["rounds"], found["left_out"]) == (prompts, least or 3, {})


def test_elsewhere_they_are_compared_by_their_times_in_more_rounds_where_those_wander():
    found = cost_pass.measure([cost_pass.Candidate(name, Answering(None, name)) for name in "ab"], [{}] * 4, rounds=2)
    assert found["rounds"] == 2 * MOST
    assert cost_table.head(found)[1] == "TTFT, times as fast as a (95 %)"
    assert found["rows"]["b"]["ttft"]["ratio"] != 1


def row(name, score, ratio, told=True, dense=False):
    cost = {"median": ratio, "quartiles": [ratio, ratio], "ratio": ratio, "low": ratio, "high": ratio, "told": told}
    return {"name": name, "score": score, "dense": dense}, {"ttft": cost, "total": cost, "counted": None}


@pytest.mark.parametrize(
    ("score", "ratio", "told", "speed", "share"),
    [
        (0.796, 0.5, True, "2.00 (2.00 to 2.00)", "99.5 %"),
        (0.79, 0.5, True, "2.00 (2.00 to 2.00)", "98.8 % (below 99 %)"),
        (0.8, 0.97, False, "1.03 (1.03 to 1.03), not told: within the spread", "100.0 %"),
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
    assert tables.turns(found).endswith(" Not measured with them: ppe 0.25; ask for all methods at once.")
    assert tables.turns({**found, "rows": found["rows"][:1]}) == "In turns: 5 rounds of 8 prompts on cpu."


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
    assert ("Slower than dense, though less work is counted: ppe;" in tables.turns(found)) == slower
    rows["smaller input 0.25"] = rows.pop("ppe")  # which chooses nothing
    assert "Slower" not in tables.turns(found)
    rows["ppe"] = rows.pop("smaller input 0.25")
    rows["ppe"]["counted"] = rows["dense"]["counted"] = {"why": "a kernel that cannot be counted"}
    assert "Slower" not in tables.turns(found)


def test_a_share_of_nothing_is_a_dash():
    assert cost_table.kept(None) == "-"


@pytest.mark.parametrize("text", ["{}", "[", '{"rows": {"a": {"ttft": {"median": 0}}}}', '{"rows": {}}'])
def test_a_damaged_pass_is_named(tmp_path, text):
    from ppe_npu.errors import InputError

    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(InputError, match=r"costs.json (is not JSON|holds no costs).*: delete it and measure again"):
        cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {}}])


def test_a_pass_of_another_protocol_is_not_shown(tmp_path):
    one = row("dense", 1.0, 1.0)[1]
    known = {"rounds": 5, "prompts": 8, "device": "cpu", "protocol": "qwen"}
    write_json(tmp_path / "costs.json", {"rows": {"dense": one}, **known})
    assert cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {}}]) is None
    assert cost_table.read([{"folder": str(tmp_path / "dense"), "settings": {"protocol": {"name": "qwen"}}}])
    # Of an edition whose protocol had other numbers.
    older = {"benchmark": "mlvu", "protocol": {"name": "qwen", "video": {"fps": 9.0}}}
    run = {"folder": str(tmp_path / "dense"), "settings": older}
    assert cost_table.read([run]) is None
    write_json(tmp_path / "costs.json", {"rows": {"dense": one}, **known, "of": {"dense": checksum(older)}})
    assert cost_table.read([run])["rows"]


def test_tables_of_different_protocols_are_never_joined(tmp_path):
    from report_runs import some, write_run

    first = write_run(tmp_path / "a", some(0.5))
    second = write_run(tmp_path / "b", some(0.7))
    second["settings"] = {**second["settings"], "protocol": {"name": "qwen"}}
    found = compared([first, second])
    assert [comparison["protocol"] for comparison in found] == ["checkpoint", "qwen"]
    assert [len(comparison["benchmarks"]["layout"]["rows"]) for comparison in found] == [1, 1]
    assert "their tables are not joined" in found[0]["missing"][-1]


def test_a_report_of_two_protocols_has_a_table_and_a_picture_of_each(tmp_path):
    from report_runs import some, write_run

    from ppe_npu.evaluation.report import write_report

    runs = [write_run(tmp_path / name, some(0.5)) for name in "ab"]
    runs[1]["settings"] = {**runs[1]["settings"], "protocol": {"name": "qwen"}}
    path, table = write_report(runs, tmp_path / "report.md", "Both")
    assert "# Protocol qwen" in path.read_text()
    assert "method, by protocol qwen" in table
    assert (tmp_path / "report-2.png").is_file()
    assert len(json.loads((tmp_path / "report.json").read_text())["protocols"]) == 2
