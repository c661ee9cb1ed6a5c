"""Records that cannot be used: all are listed, and training stops at them or goes on without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused

from ppe_npu import CompressionConfig
from ppe_npu.errors import InputError
from ppe_npu.training.data import Record
from ppe_npu.training.survey import check_survey_place, prepare_records, survey, survey_files, write_survey

DENSE, PPE = CompressionConfig.preset("dense"), CompressionConfig.preset("ppe", k=4)


@pytest.fixture
def data(tmp_path, write_image) -> Path:
    """Four usable records, and five that cannot be used, each for a different reason."""
    write_image("a.png")
    good = [{"id": n, "image": "a.png", "conversations": spoken("<image>\nrow red", "3")} for n in range(4)]
    bad = [
        {"id": "none", "image": "none.png", "conversations": spoken("<image>", "3")},
        {"id": "mute", "conversations": spoken("row")},
        {"id": "forged", "conversations": spoken("row", "3 <|im_end|>")},
        {"id": "pipe|d", "image": "no|ne.png", "conversations": spoken("<image>", "3")},
        {"id": "long", "conversations": spoken("row " * 99, "3")},
    ]
    mixed = [good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3], bad[4], good[3]]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, mixed)))
    return path


def spoken(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


def test_stop_names_the_first_and_where_all_are_listed(data, tiny_processor, tmp_path):
    with pytest.raises(InputError) as error:
        prepare_records(data, tiny_processor, PPE, max_length=90, folder=tmp_path / "out")
    message, listed = str(error.value), tmp_path / "out" / "faults.jsonl"
    assert message.startswith("5 of 9 records cannot be used: d.jsonl line 2: ")
    assert f"(and 2 more); all are listed in {listed}: fix them, or continue without them (invalid=skip)" in message
    assert "\n" not in message
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {row["id"] for row in rows} == {"none", "mute", "forged", "pipe|d", "long"}
    assert next(row for row in rows if row["id"] == "mute") == {
        "line": "d.jsonl line 4",
        "id": "mute",
        "reason": "its turns do not alternate between human and gpt: start with human, and end with gpt",
    }


def test_skip_goes_on_with_the_rest_and_counts(data, tiny_processor, tmp_path):
    records, found = prepare_records(data, tiny_processor, PPE, max_length=90, invalid="skip", folder=tmp_path / "out")
    assert [record.id for record in records] == ["0", "1", "2", "3"]
    assert len(found.after) == len(records)
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert written == found.to_dict()
    assert (written["records"], written["faults"]) == (4, 5)
    text = (tmp_path / "out" / "data.md").read_text()
    assert text == found.markdown()
    assert "| d.jsonl line 4 | mute | its turns do not alternate" in text
    assert "no\\|ne.png" in text


def test_an_old_list_of_faults_does_not_stay(data, tiny_processor, tmp_path):
    write_survey(survey_files(data, tiny_processor, PPE), tmp_path)
    assert (tmp_path / "faults.jsonl").read_text()
    clean = tmp_path / "clean.json"
    clean.write_text(json.dumps([{"conversations": spoken("row", "3")}]))
    write_survey(survey_files(clean, tiny_processor, PPE), tmp_path)
    assert (tmp_path / "faults.jsonl").read_text() == ""
    assert not list(tmp_path.glob(".*.tmp"))


def test_no_folder_no_files(data, tiny_processor, tmp_path):
    before = sorted(tmp_path.iterdir())
    prepare_records(data, tiny_processor, PPE, invalid="skip")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_left_stops_in_any_case(tmp_path, tiny_processor):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{}]))
    with pytest.raises(InputError, match=r"1 of 1 records cannot be used: d\.json record 1: has no conversations"):
        prepare_records(path, tiny_processor, PPE, invalid="skip", folder=tmp_path / "out")
    assert "| d.json record 1 |" in (tmp_path / "out" / "data.md").read_text()
    with pytest.raises(InputError, match="invalid='drop': use one of stop, skip"):
        prepare_records(path, tiny_processor, PPE, invalid="drop")


def test_many_faults_are_listed_up_to_a_few(tiny_processor):
    bad = [Record(f"d line {n}", (), (), (("user", "<|im_end|>"), ("assistant", "<|im_end|>"))) for n in range(12)]
    found = survey(bad, tiny_processor, DENSE)
    assert len(found.faults) == 12
    assert "| and 2 more | | |" in found.markdown()
    assert "tokens per record |" not in found.markdown(), "no lengths without records"


def test_a_survey_is_not_written_over_what_it_reads(run, tiny_folder, tmp_path):
    asked = ["data", "--model", tiny_folder, "--compression", "dense", "--out", tmp_path, "--data"]
    file, text = tmp_path / "data.json", json.dumps([{"conversations": spoken("row", "3")}])
    file.write_text(text)
    refused(run(*asked, file), file, "was not written by a survey", "name another folder")
    assert file.read_text() == text
    other = file.rename(tmp_path / "others.json")
    assert run(*asked, other)[0] == 0
    assert run(*asked, other)[0] == 0, "a survey is written anew"
    other.rename(tmp_path / "faults.jsonl")
    refused(run(*asked, tmp_path / "faults.jsonl"), "faults.jsonl is also an input")


@pytest.mark.parametrize("left", [["faults.jsonl"], ["faults.jsonl", "data.md"], ["data.json", "data.md"]])
@pytest.mark.parametrize("faulty", [True, False])
def test_what_a_kill_left_of_a_survey_is_written_anew(data, tiny_processor, tmp_path, left, faulty):
    """What this version left, and what an earlier one left, which wrote faults.jsonl first and data.json last."""
    whole, clean = tmp_path / "whole", tmp_path / "clean.jsonl"
    clean.write_text(json.dumps({"conversations": spoken("row", "3")}))
    found = survey_files(data if faulty else clean, tiny_processor, PPE)
    for name in {file.name for file in write_survey(found, whole).iterdir()}.difference(left):
        (whole / name).unlink()
    check_survey_place(whole)
    write_survey(found, whole)
    (whole / "data.json").unlink()
    (whole / left[-1]).write_text('{"line": "d.jsonl line 1", "id": "a", "reason": "b", "mine": 1}\n')
    with pytest.raises(InputError, match=f"{left[-1]} was not written by a survey"):
        check_survey_place(whole)


def test_what_records_say_is_text_in_the_report_and_on_the_terminal(run, tiny_folder, tmp_path):
    hostile = "x|y<script>alert(1)</script>\n# H [l](javascript:a()) \x1b[31m\ud800"
    rows = [
        {"id": hostile, "conversations": []},
        {"id": 1, "image": hostile, "conversations": spoken("<image>", "3")},
        {"id": 2, hostile: "a", "imgae": hostile, "conversations": spoken("row", "3")},
        {"id": 3, "conversations": [{"from": hostile, "value": hostile}]},
    ]
    (tmp_path / "d [x].jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = run(
        "data", "--model", tiny_folder, "--data", tmp_path / "d [x].jsonl", "--out", tmp_path / "out",
        "--compression", "dense",
    )  # fmt: skip
    assert (code, err) == (1, "")
    text = (tmp_path / "out" / "data.md").read_text()
    for shown in (text, out):
        assert "\x1b" not in shown
        assert not [line for line in shown.splitlines() if line.startswith("# H")]
    assert not set("<>") & set(text)
    assert "](" not in text
    table = text[text.index("| record | id |") :].splitlines()
    assert [len(line.replace("\\|", "").split("|")) for line in table] == [5] * 6
    assert "<script>alert(1)</script> # H" in out, "a terminal knows no HTML"
    listed = [json.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    assert [row["id"] for row in listed] == [hostile, "1", "2", "3"]
