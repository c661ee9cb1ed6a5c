"""Processes share a run's samples: none is left out or answered twice, whichever process dies when."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dying import in_child
from stand_in import Counting, Instant

from ppe_npu.errors import FileError, InputError
from ppe_npu.evaluation.runner import Evaluation
from ppe_npu.evaluation.sharing import Share, check_shared


def first(count: int):
    """Returns a function that chooses the first `count` keys."""
    return lambda keys: [key for _, key in zip(range(count), keys)]


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def answers(*keys) -> list[dict]:
    return [{"index": key, "score": 1.0} for key in keys]


# -- one share of the work ---------------------------------------------------------------------------------------------


def test_no_sample_is_given_twice(tmp_path):
    with Share(tmp_path, range(7)) as one, Share(tmp_path, range(7)) as two:
        assert one.take(first(3)) == [0, 1, 2]
        assert two.take(first(3)) == [3, 4, 5]
        one.give(answers(0, 1, 2))
        assert one.take(first(3)) == [6]
        assert two.take(first(3)) == []
        assert one.results(lambda found: {}) is None  # two still has three
        two.give(answers(3, 4, 5))
        one.give(answers(6))
        summed = []
        for share in (one, two):
            assert share.results(lambda found: summed.append(found) or {"samples": len(found)}) == {"samples": 7}
        assert len(summed) == 1  # only the first one's
        assert two.progress() == 7


def test_what_a_dead_process_had_taken_is_taken_by_another(tmp_path):
    with Share(tmp_path, range(4)) as alive, Share(tmp_path, range(4)) as dies:
        assert dies.take(first(3)) == [0, 1, 2]
        dies.give(answers(0))
        assert alive.take(first(9)) == [3]
        assert alive.take(first(9)) == []
        dies._alive.release()  # what the kernel does when a process ends
        assert alive.take(first(1)) == [1]
        with Share(tmp_path, range(4)) as third:
            assert third.take(first(9)) == [2]
            assert alive.take(first(9)) == []
            third.give(answers(2))
        alive.give(answers(1, 3))
        assert alive.results(lambda found: {"samples": len(found)}) == {"samples": 4}
    assert [row["index"] for row in rows(tmp_path)] == [0, 2, 1, 3]


def test_a_line_that_a_kill_cut_off_is_taken_away_by_whoever_comes_next(tmp_path):
    with Share(tmp_path, range(3)) as dies:
        dies.take(first(2))
        dies.give(answers(0))
    with open(tmp_path / "predictions.jsonl", "ab") as file:
        file.write('{"index": 1, "answer": "é'.encode()[:-1])  # in the middle of a letter
    with open(tmp_path / ".work" / "claims.jsonl", "ab") as file:
        file.write(b'{"worker": "dead", "ta')
    with Share(tmp_path, range(3)) as next_one:
        assert next_one.take(first(9)) == [1, 2]
        next_one.give(answers(1, 2))
    assert [row["index"] for row in rows(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("code", [[], {}, 1, None])
def test_a_claim_whose_mark_of_code_is_no_string_is_named(tmp_path, code):
    with Share(tmp_path, range(1)):
        pass
    with open(tmp_path / ".work" / "claims.jsonl", "a") as file:
        file.write(json.dumps({"worker": "other", "code": code}) + "\n")
    with pytest.raises(InputError, match=r"claims\.jsonl line 2 has a mark of code that is no string"):
        Share(tmp_path, range(1)).__enter__()


def test_failed_samples_are_asked_again_by_the_first_of_the_next_processes_only(tmp_path):
    with Share(tmp_path, range(2)) as share:
        share.take(first(2))
        share.give([{"index": 0, "score": 0.0, "error": "no"}, *answers(1)])
        share.results(lambda found: {"first": True})
        with Share(tmp_path, range(2)) as late:  # while others are there nothing is asked again
            assert late.take(first(9)) == []
            assert late.results(lambda found: {}) == {"first": True}
    with Share(tmp_path, range(2)) as again:
        assert again.results(lambda found: {}) is None
        assert again.take(first(9)) == [0]


def test_of_two_lines_of_one_sample_the_first_counts(tmp_path):
    """Locks do not always hold on network file systems; what happens then must not depend on chance."""
    (tmp_path / "predictions.jsonl").write_text('{"index": 0, "answer": "a"}\n{"index": 0, "answer": "b"}\n')
    with Share(tmp_path, [0]) as share:
        assert share.results(lambda found: {"rows": found}) == {"rows": [{"index": 0, "answer": "a"}]}
    assert rows(tmp_path) == [{"index": 0, "answer": "a"}]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl line 1 is not JSON"), Share(tmp_path, [0]):
        pass


# -- several machines --------------------------------------------------------------------------------------------------


def job(monkeypatch, node: int, nodes: int = 2):
    facts = {"GROUP_RANK": node, "WORLD_SIZE": 2 * nodes, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "a/b"}
    for key, value in facts.items():
        monkeypatch.setenv(key, str(value))


@pytest.mark.parametrize("kind", ["a folder", "a link to itself", "a link to a device"])
def test_a_process_whose_sign_of_life_is_no_lock_is_dead(tmp_path, kind):
    with Share(tmp_path, range(2)) as share:
        share.take(first(2))
    alive = next((tmp_path / ".work").glob("*.alive"))
    alive.unlink()
    alive.mkdir() if kind == "a folder" else alive.symlink_to("/dev/null" if "device" in kind else alive.name)
    if kind == "a folder":
        with (
            pytest.raises(FileError, match=r"\.alive cannot be written \(it is a folder\)"),
            Share(tmp_path, range(2)),
        ):
            pass
        alive.rmdir()
    with Share(tmp_path, range(2)) as share:
        assert share.take(first(2)) == [0, 1]


def test_machines_that_do_not_share_the_output_are_told(tmp_path, monkeypatch):
    job(monkeypatch, node=1)
    with pytest.raises(InputError, match="not the folder that the first machine writes to"):
        check_shared(tmp_path / "mine", patience=0.1)
    job(monkeypatch, node=0)
    check_shared(tmp_path / "out")
    job(monkeypatch, node=1)
    check_shared(tmp_path / "out", patience=0)


def test_one_machine_needs_no_mark(tmp_path, monkeypatch):
    job(monkeypatch, node=0, nodes=1)
    check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


# -- whole processes, killed -------------------------------------------------------------------------------------------


def start(folder, samples, batch_size=8, sleep=0.005) -> subprocess.Popen:
    command = [sys.executable, Path(__file__).with_name("stand_in.py"), folder, samples, batch_size, sleep]
    # A process that cannot import the package's source would fail at once, which the tests would notice.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([str(part) for part in command], env=environment, stderr=subprocess.PIPE)


def answered(folder) -> int:
    file = Path(folder) / "predictions.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def run_with_kills(folder, samples: int, processes: int, kills: int, seed: int) -> None:
    """Processes work on one run; one of them is killed when the answers reach a random number, and replaced."""
    generator = random.Random(seed)
    moments = sorted(generator.randrange(int(0.9 * samples)) for _ in range(kills))
    alive = [start(folder, samples) for _ in range(processes)]
    deadline, killed = time.monotonic() + 300, 0
    while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
        if moments and answered(folder) >= moments[0]:
            moments.pop(0)
            time.sleep(generator.random() * 0.02)  # anywhere in a batch: taking, answering, writing
            number = generator.randrange(processes)
            alive[number].send_signal(signal.SIGKILL)
            killed += alive[number].wait() == -signal.SIGKILL
            alive[number] = start(folder, samples)
        time.sleep(0.005)
    assert killed == kills
    for process in alive:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err.decode()


def check_whole(folder, samples: int) -> None:
    found = rows(folder)
    assert sorted(row["index"] for row in found) == list(range(samples))
    assert all(row["answer"] == str(row["index"] + 1) for row in found)
    results = json.loads((Path(folder) / "results.json").read_text())
    assert (results["samples"], results["errors"], results["accuracy"]["accuracy"]) == (samples, 0, 1.0)
    assert list(results["types"]) == [f"digit {number}" for number in range(10)]  # in the benchmark's order


@pytest.mark.slow
def test_every_sample_once_with_processes_killed(tmp_path):
    run_with_kills(tmp_path / "run", samples=500, processes=4, kills=3, seed=0)
    check_whole(tmp_path / "run", 500)


@pytest.mark.slow
def test_ten_thousand_samples_once_with_ten_kills(tmp_path):
    run_with_kills(tmp_path / "run", samples=10_000, processes=4, kills=10, seed=1)
    check_whole(tmp_path / "run", 10_000)


@pytest.mark.ci
def test_killed_at_any_change_of_the_disk_every_sample_is_there_once(tmp_path):
    def work(folder):
        with Evaluation(Instant(), Counting(20), folder, batch_size=8, bar=False) as evaluation:
            evaluation.run()

    for change in range(1, in_child(lambda: work(tmp_path / "whole")) + 1):
        folder = tmp_path / str(change)
        in_child(lambda folder=folder: work(folder), kill_at=change)
        in_child(lambda folder=folder: work(folder))
        check_whole(folder, 20)
        assert names(folder) == names(tmp_path / "whole")


def names(folder) -> set[str]:
    """The names of a folder's files, without unnamed files that a kill left: another process might be writing them."""
    files = (path for path in folder.rglob("*") if ".work" not in path.parts and path.suffix != ".tmp")
    return {path.relative_to(folder).as_posix() for path in files}


@pytest.mark.ci
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    folder = tmp_path / "run"
    three = [start(folder, 200, sleep=0.02) for _ in range(3)]
    while answered(folder) < 40:
        time.sleep(0.005)
        assert all(process.poll() is None for process in three)
    for process in three:
        process.kill()
        process.wait()
    before = answered(folder)
    assert 0 < before < 200
    with Evaluation(Instant(), Counting(200), folder, batch_size=5, bar=False) as evaluation:
        asked = []
        original = evaluation.answers.answer
        evaluation.answers.answer = lambda prepared: asked.extend(prepared) or original(prepared)
        assert evaluation.run()["samples"] == 200
    assert len(asked) == 200 - before
    check_whole(folder, 200)
