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
from ppe_npu.evaluation.report import comparisons_of


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
    assert (found["prompts"], found["reference"], found["protocol"]) == (8, "dense", "checkpoint (max_new_tokens 2)")
    assert 2 <= found["rounds"] <= 5 * MOST  # fewer or more than 5 where the machine is busy
    assert found["left_out"] == {}
    assert found["rows"]["dense"]["ttft"]["ratio"] == 1.0
    work = {name: row["counted"] for name, row in found["rows"].items()}
    # Of 36 visual tokens, keep_one sends all through the tower, smaller input a quarter; the LLM gets equally many.
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
    assert f"Interleaved: {found['rounds']} rounds of 8 prompts" in report
    assert "total ms" not in report  # times of runs one after another are not shown beside interleaved ones


@pytest.mark.slow
def test_an_older_folder_is_completed_nothing_is_measured_twice_and_one_pass_has_all_methods(
    run, tiny_folder, data, tmp_path
):
    asked = ["eval", "--device", "cpu", "--model", tiny_folder, "--data-root", data, "--output", tmp_path / "out"]
    asked += ["--max-new-tokens", 2]
    methods, folder = ["--compression", "dense", "keep_one", "--ratio", 0.25], tmp_path / "out" / "layout"
    code, _, err = run(*asked, *methods, "--cost-rounds", 0, "--no-smaller-input")  # as in versions that had neither
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
    assert not costs.smaller_input(plain, tiled)  # the default leaves out what cannot be done with tiles
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
        ([0.813], [], [0.81]),  # a method that does not say beforehand how many it keeps
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
    """Takes a random time, and reports the work that it was given."""

    def __init__(self, work, seed):
        self.work, self.draw = work, random.Random(seed)

    def prepare(self, samples):
        return samples

    def answer(self, samples):
        seconds = self.draw.uniform(1, 3)
        work = None if self.work is None else (self.work, 2 * self.work)
        return Generated(["a"], [1], [4], [2.0], [8], seconds, 2 * seconds, 8, work=work)


def test_on_the_host_methods_are_compared_by_their_work():
    """Other programs cannot lengthen counted work; the times are shown as they were."""
    methods = [cost_pass.Candidate(name, Answering(work, name)) for name, work in (("a", 0.5), ("b", 0.5), ("c", 0.25))]
    found = cost_pass.measure(methods, [{}] * 4, rounds=3)
    assert (found["rounds"], found["prompts"], found["reference"]) == (3, 4, "a")
    assert cost_table.head(found)[1] == "TTFT, processor time, times as fast as a (95 %)"
    assert {name: (row["ttft"]["ratio"], row["total"]["ratio"], row["ttft"]["told"]) for name, row in
            found["rows"].items()} == {"a": (1, 1, False), "b": (1, 1, False), "c": (0.5, 0.5, True)}  # fmt: skip
    assert all(1 < row["ttft"]["median"] < 3 and 2 < row["total"]["median"] < 6 for row in found["rows"].values())


class Failing(Answering):
    """Cannot prepare sample 1, and cannot answer sample 2."""

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
    assert words.endswith(f"Left out because not all methods could answer: {told}")
    with pytest.raises(InputError, match=r"no sample can be answered by all methods \(1: OSError: truncated file\)"):
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


def test_tables_of_different_protocols_are_never_joined(tmp_path):
    from report_runs import some, write_run

    first = write_run(tmp_path / "a", some(0.5))
    second = write_run(tmp_path / "b", some(0.7))
    second["settings"] = {**second["settings"], "protocol": {"name": "qwen"}}
    found = comparisons_of([first, second])
    assert [comparison["protocol"] for comparison in found] == ["checkpoint", "qwen"]
    assert [len(comparison["benchmarks"]["layout"]["rows"]) for comparison in found] == [1, 1]
    assert "whose tables are not joined" in found[0]["missing"][-1]


def test_a_report_of_two_protocols_has_a_table_and_a_picture_of_each(tmp_path):
    from report_runs import some, write_run

    from ppe_npu.evaluation.report import write_report

    runs = [write_run(tmp_path / name, some(0.5)) for name in "ab"]
    runs[1]["settings"] = {**runs[1]["settings"], "protocol": {"name": "qwen"}}
    path, table = write_report(runs, tmp_path / "report.md", "Both")
    assert "# Protocol qwen" in path.read_text()
    assert "method, under protocol qwen" in table
    assert "method, under protocol checkpoint" in table
    assert (tmp_path / "report-2.png").is_file()
    assert len(json.loads((tmp_path / "report.json").read_text())["protocols"]) == 2
