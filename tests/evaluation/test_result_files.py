"""Damaged files of an evaluation: every sample still has its own answer once, or one line says which file is wrong."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from bounds import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from result_folders import SAMPLES, check_whole, lines, rows, run

from ppe_npu.errors import InputError
from ppe_npu.evaluation.report import collect, unfinished, write_report
from ppe_npu.evaluation.rows import read_scores, signed
from ppe_npu.evaluation.sharing import add_sums

ANSWERED = 6
FILES = ("predictions.jsonl", "settings.json", "results.json", ".work/claims.jsonl")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run as it was left when it was killed in its second batch: six samples answered, three taken."""
    folder = tmp_path_factory.mktemp("killed")
    run(folder)
    kept = b"".join(line + b"\n" for line in lines(folder)[:ANSWERED])
    (folder / "predictions.jsonl").write_bytes(kept)
    return folder


@pytest.fixture
def folder(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


# -- the law -----------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.sampled_from([None, True, 5, -1, 7.0, 0.5, 1e999, float("nan"), "", "0", "x\ud800", [], {}, [1], {"index": 0}]),
    st.integers(-3, SAMPLES + 3),
    st.text(max_size=3),
)
KEYS = st.sampled_from(["index", "type", "prompt", "GT", "answer", "score", "error", "warm", "batch", "new_tokens"])
WHOLE = st.sampled_from(
    [
        *(b"null", b"5", b"{}", b"[]", b'{"index": [1]}', b'{"index": 0}', b'{"index": 99, "score": 1.0}', b"\xff\xfe"),
        *(b"NaN", b"[" * 5000, b'{"worker": "a/b"}', b'{"worker": "x", "take": [[1]]}', b'"', b"\x00" * 20, b""),
    ]
)


def change_value(data, name, content: bytes) -> bytes:
    """Changes or removes one value of one line (or of the file)."""
    parts = content.split(b"\n")[:-1] if name.endswith("l") else [content]
    if not parts:
        return content
    number = data.draw(st.integers(0, len(parts) - 1))
    value = json.loads(parts[number])
    names = sorted(value) if isinstance(value, dict) else []
    key = data.draw(st.sampled_from(names) if names else KEYS)
    if data.draw(st.booleans()):
        value.pop(key, None)
    else:
        value[key] = data.draw(VALUES)
    parts[number] = json.dumps(value).encode()
    return b"\n".join(parts) + (b"\n" if name.endswith("l") else b"")


def change_bytes(data, name, content: bytes) -> bytes:
    at, end = sorted((data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))))
    new = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\n", b"\r\n", b"}", b"0", b"\xef\xbb\xbf"])))
    return content[:at] + new + content[(min(end, at + 3) if data.draw(st.booleans()) else end) :]


def change_lines(data, name, content: bytes) -> bytes:
    """Adds, repeats or removes a line, sorts the lines, cuts the file off, or changes its line ends or its start."""
    parts = content.split(b"\n")
    at = data.draw(st.integers(0, len(parts) - 1))
    kind = data.draw(st.sampled_from(["new", "twice", "away", "order", "half", "crlf", "bom"]))
    if kind == "new":
        parts.insert(at, data.draw(WHOLE))
    elif kind == "twice":
        parts.insert(at, parts[at])
    elif kind == "away":
        del parts[at]
    elif kind == "order":
        parts = [*sorted(parts[:-1]), parts[-1]]
    elif kind == "half":
        return b"\n".join(parts[:at]) + b"\n" + parts[at][: data.draw(st.integers(0, len(parts[at])))]
    return (b"\xef\xbb\xbf" if kind == "bom" else b"") + (b"\r\n" if kind == "crlf" else b"\n").join(parts)


def mutate_and_run(killed, data) -> None:
    """The law: after one change, the same evaluation is whole, or one line names the file; no answer is lost."""
    folder = killed.with_name("mutated")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(killed, folder)
    name = data.draw(st.sampled_from([FILES[0], *FILES]))
    file, change = folder / name, data.draw(st.sampled_from([change_value, change_bytes, change_lines, None]))
    original = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(data, name, original))
    before = (folder / "predictions.jsonl").read_bytes() if (folder / "predictions.jsonl").exists() else b""
    own = set(lines(killed))
    whole = [line for line in before.replace(b"\r\n", b"\n").split(b"\n") if line in own]
    said = None
    try:
        with bounded(file):
            results = run(folder)
    except InputError as error:
        said = str(error)
    after = (folder / "predictions.jsonl").read_bytes() if before or said is None else b""
    assert set(whole) <= {line.rstrip(b"\r") for line in after.split(b"\n")}
    if said is None:
        check_whole(folder, results)
    else:
        assert Path(name).name in said or ".work" in said
        assert "\n" not in said
        assert before.startswith(after)  # as it was, or half a line was taken away


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
@pytest.mark.ci
def test_a_damaged_file_is_named_or_makes_no_difference(killed, data):
    mutate_and_run(killed, data)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(data=st.data())
def test_thousands_of_damaged_files_are_named_or_make_no_difference(killed, data):
    mutate_and_run(killed, data)


# -- kinds of damage, by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"null", "is a NoneType"),
        (b"5", "is a int"),
        (b"[]", "is a list"),
        (b"{}", "has the index None"),
        (b'{"index": [1]}', r"has the index \[1\]"),
        (b'{"index": 1.0}', "has the index 1.0"),
        (b'{"index": true}', "has the index True"),
        (b'{"index": "0"}', "answers '0', which is no sample of the benchmark"),
        (b'{"index": 99}', "answers 99"),
        (b'{"index": 0}', "has no type"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"{", "is not JSON"),
    ],
)
def test_a_foreign_line_is_named_with_its_number(folder, line, words):
    content = (folder / "predictions.jsonl").read_bytes()
    (folder / "predictions.jsonl").write_bytes(content + line + b"\n")
    for _ in range(2):  # nothing of it is removed
        with pytest.raises(InputError, match=rf"predictions\.jsonl line {ANSWERED + 1} {words}"):
            run(folder)
    assert (folder / "predictions.jsonl").read_bytes() == content + line + b"\n"


def as_the_first_edition(folder) -> list[dict]:
    """Rewrites a run's files as the first version did: settings without a protocol, lines without a sum."""
    settings = json.loads((folder / "settings.json").read_text())
    del settings["protocol"]
    (folder / "settings.json").write_text(json.dumps(settings))
    found = [{key: value for key, value in row.items() if key != "sum"} for row in rows(folder)]
    write_rows(folder, found)
    return found


def write_rows(folder, found) -> None:
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize("score", [7.0, -0.5, float("nan"), float("inf"), "0.5", True, [1]])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_foreign_score_is_named(folder, score, sealed):
    found = as_the_first_edition(folder)
    found[2]["score"] = score
    write_rows(folder, map(signed, found) if sealed else found)
    with pytest.raises(InputError, match=r"line 3 has the score .*, not in \[0, 1\]: delete that line"):
        run(folder)


def test_answers_that_another_benchmark_was_given_are_not_taken(folder):
    found = rows(folder)
    found[0]["index"], found[1]["index"] = found[1]["index"], found[0]["index"]
    bare = [{key: value for key, value in row.items() if key != "sum"} for row in found]
    for kept, words in (
        (found, "was changed since it was written"),
        (map(signed, bare), "answers another question than the benchmark's"),
    ):
        write_rows(folder, kept)
        with pytest.raises(InputError, match=words):
            run(folder)
    as_the_first_edition(folder)
    write_rows(folder, bare)
    with pytest.raises(InputError, match="answers another question than the benchmark's"):
        run(folder)


def test_lines_of_the_first_edition_are_taken_and_given_sums(folder):
    before = as_the_first_edition(folder)
    assert len(read_scores(folder / "predictions.jsonl")) == ANSWERED
    assert rows(folder) == before  # reading changes nothing
    for _ in range(2):
        check_whole(folder, run(folder))
    assert rows(folder)[:ANSWERED] == [signed(row) for row in before]
    assert all("sum" in row for row in rows(folder))


@pytest.mark.parametrize("number", [0, 3, ANSWERED - 1])
def test_a_line_that_lost_its_sum_is_named_by_a_run_and_by_a_report(folder, number):
    """The first version wrote no sums, but none of its lines stands among lines that have one."""
    found = rows(folder)
    del found[number]["sum"]
    found[number]["answer"] = "another"
    write_rows(folder, found)
    words = rf"predictions\.jsonl line {number + 1} was changed .* \(its checksum is gone\)"
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            run(folder)
    assert rows(folder) == found
    for change in (lambda: None, (folder / "settings.json").unlink):  # the other lines show it, too
        change()
        with pytest.raises(InputError, match=words):
            read_scores(folder / "predictions.jsonl")


def test_a_file_whose_lines_all_lost_their_sums_is_not_taken_for_one_of_the_first_edition(folder):
    write_rows(folder, [{key: value for key, value in row.items() if key != "sum"} for row in rows(folder)])
    for read in (lambda: run(folder), lambda: read_scores(folder / "predictions.jsonl")):
        with pytest.raises(InputError, match=r"line 1 was changed .* \(its checksum is gone\)"):
            read()


def test_a_report_names_a_line_whose_score_was_changed(folder):
    found = rows(folder)
    found[1]["score"] = 0.0
    write_rows(folder, found)
    with pytest.raises(InputError, match=r"line 2 was changed since it was written \(its checksum differs\)"):
        read_scores(folder / "predictions.jsonl")


def test_a_run_that_is_killed_before_its_settings_are_written_leaves_lines_that_it_takes_again(folder):
    before = as_the_first_edition(folder)
    add_sums(folder)
    assert rows(folder) == [signed(row) for row in before]
    check_whole(folder, run(folder))


@pytest.mark.parametrize("rewrite", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n")])
def test_an_editors_marks_do_no_harm(folder, rewrite):
    file = folder / "predictions.jsonl"
    file.write_bytes(rewrite(file.read_bytes()))
    results = run(folder)
    assert results["samples"] == SAMPLES
    assert len(lines(folder)) == SAMPLES


def test_a_last_line_that_only_lacks_its_end_is_kept(folder):
    file, whole = folder / "predictions.jsonl", lines(folder)
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    check_whole(folder, run(folder))
    assert lines(folder)[:ANSWERED] == whole


def test_answers_without_settings_are_not_adopted(folder):
    """Answers of another run, with another limit, once were."""
    (folder / "settings.json").unlink()
    with pytest.raises(InputError, match=r"predictions\.jsonl holds answers, but there is no settings\.json beside it"):
        run(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000])
def test_broken_settings_are_named(folder, text):
    (folder / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json (cannot be read as JSON|does not hold the settings)"):
        run(folder)
    (folder / "results.json").unlink()
    assert f"{ANSWERED} of ? samples" in unfinished(folder.parent)[0]  # the report goes on


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_folder_in_a_files_place_is_refused_at_once(folder, name):
    for make in (os.mkfifo, os.mkdir):
        file = folder / name
        file.rmdir() if file.is_dir() else file.unlink()
        make(file)
        found: list[BaseException] = []

        def attempt(found=found):
            try:
                run(folder)
            except InputError as error:
                found.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(20)
        assert found, f"{name} was waited for"
        assert name in str(found[0])
        assert "not a file" in str(found[0])


@pytest.mark.parametrize(
    "change",
    [{"costs": 5}, {"settings": []}, {"samples": None}, {"accuracy": {"accuracy": float("nan")}}, {"types": {"a": 1}}],
)
def test_a_damaged_results_file_is_named_by_the_report_and_made_anew_by_a_run(folder, change):
    whole = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match=r"results\.json is damaged"):
        collect(folder)
    check_whole(folder, run(folder))
    assert collect(folder)[0]["samples"] == SAMPLES


def test_a_report_names_a_damaged_line(folder):
    run(folder)
    (folder / "predictions.jsonl").write_bytes((folder / "predictions.jsonl").read_bytes() + b"null\n")
    with pytest.raises(InputError, match=rf"predictions\.jsonl line {SAMPLES + 1} is a NoneType"):
        write_report(collect(folder), folder / "report.md", "Title")
