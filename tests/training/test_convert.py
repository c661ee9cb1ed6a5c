"""Other programs' records become ours: each format, files in their order, and what cannot be converted is named."""

from __future__ import annotations

import json

import pytest
from command_line import refused, run  # noqa: F401

from ppe_npu.errors import InputError
from ppe_npu.training.convert import convert_files, convert_record
from ppe_npu.training.data import check_records


def ours(*texts, **files):
    turns = [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]
    return {**files, "conversations": turns}


def part(kind, source=None):
    return {"type": kind} if source is None else {"type": kind, kind: source}


FORMS = {
    "ours": (ours("<image>row", "3", image="a.png"), ours("<image>row", "3", image=["a.png"])),
    "messages and images": (
        {"messages": [{"role": "user", "content": "<image>row"}, {"role": "assistant", "content": "3"}],
         "images": ["a.png"], "id": "x"},
        {"id": "x", **ours("<image>row", "3", image=["a.png"])},
    ),
    "images without a placeholder": (
        {"messages": [{"role": "user", "content": "row"}, {"role": "assistant", "content": "3"}],
         "images": ["a.png", {"path": "b.png", "bytes": None}]},
        ours("<image><image>\nrow", "3", image=["a.png", "b.png"]),
    ),
    "content lists": (
        {"messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [part("image", "a.png"), {"type": "text", "text": "and"},
                                         {"type": "image_url", "image_url": {"url": "b.png"}}, part("video", "c.mp4")]},
            {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
        ]},
        {"image": ["a.png", "b.png"], "video": ["c.mp4"], "conversations": [
            {"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>and<image><video>"},
            {"from": "gpt", "value": "3"}]},
    ),
    "content lists with files beside": (
        {"messages": [{"role": "user", "content": [part("image"), {"type": "text", "text": "to"}, part("image")]},
                      {"role": "assistant", "content": "3"}], "images": ["a.png", "b.png"]},
        ours("<image>to<image>", "3", image=["a.png", "b.png"]),
    ),
    "query": (
        {"query": "<image>row", "response": "3", "history": [["first", "1"]], "images": ["a.png"], "system": "Brief."},
        {"image": ["a.png"], "conversations": [
            {"from": "system", "value": "Brief."}, *ours("first", "1", "<image>row", "3")["conversations"]]},
    ),
    "a developer": (
        {"messages": [{"role": "developer", "content": "Brief."}, {"role": "user", "content": "row"},
                      {"role": "assistant", "content": "3"}]},
        {"conversations": [{"from": "system", "value": "Brief."}, *ours("row", "3")["conversations"]]},
    ),
    "a system text by another name": (
        {"sysprompt": "Brief.", **ours("row", "3")},
        {"conversations": [{"from": "system", "value": "Brief."}, *ours("row", "3")["conversations"]]},
    ),
    "alpaca": ({"instruction": "Add", "input": "1 2", "output": "3", "source": "s"},
               {"source": "s", **ours("Add\n1 2", "3")}),
    "sharegpt": ({"conversations": ours("<video>what", "3")["conversations"], "videos": ["c.mp4"]},
                 ours("<video>what", "3", video=["c.mp4"])),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_form_and_again(form):
    theirs, wanted = FORMS[form]
    found = convert_record(theirs)
    assert found == wanted
    assert convert_record(found) == found, "a record of ours stays what it is"


TALK = {"messages": [{"role": "user", "content": "row"}, {"role": "assistant", "content": "3"}]}
WRONG = {
    "no record": ([], "not a record"),
    "no turns": ({"images": ["a.png"]}, "neither turns nor a question"),
    "a tool": ({"messages": [{"role": "tool", "content": "x"}]}, "a turn of 'tool'"),
    "sound": ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}, "of type 'audio'"),
    "a part without its file": ({"messages": [{"role": "user", "content": [part("image")]}]}, "without a file"),
    "a placeholder in a part of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]},
        "name its file in a part of its own"),
    "files in both places": (
        {"messages": [{"role": "user", "content": [part("image", "a.png")]}], "images": ["b.png"]},
        "both in its parts and beside its turns: keep one of them"),
    "bytes": ({**TALK, "images": [{"bytes": "xx", "path": None}]}, "write them to a file"),
    "two keys": ({**TALK, "images": ["a.png"], "image": "b.png"}, "keep one of them"),
    "a system text in two places": (
        {"messages": [{"role": "system", "content": "one"}, *TALK["messages"]], "system": "two"}, "keep one of them"),
    "two system texts": ({**TALK, "system": "one", "system_prompt": "two"}, "system and system_prompt, which differ"),
    "turns twice": ({**TALK, "conversations": ours("row", "4")["conversations"]}, "conversations and messages, which"),
    "turns and an answer": ({**TALK, "response": "4", "history": []}, "has both turns and response"),
    "two questions": ({"query": "one", "instruction": "two", "output": "3"}, "query and instruction, which differ"),
    "two answers": ({"query": "one", "response": "two", "output": "3"}, "response and output, which differ"),
    "a turn with two texts": (
        {"messages": [{"role": "user", "content": "row", "value": "column"}]}, "value and content, which differ"),
    "a turn of two": ({"messages": [{"role": "user", "from": "gpt", "content": "row"}]}, "from and role, which differ"),
    "a part with two files": ({"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png", "url": "b.png"}]}]}, "image and url, which"),
    "a part with a rate": ({"messages": [
        {"role": "user", "content": [part("video", "a.mp4") | {"fps": 2}]}]}, "fps in a part of type 'video'"),
    "a picture with a text": ({"messages": [
        {"role": "user", "content": [part("image", "a.png") | {"text": "row"}]}]}, "text in a part of type 'image'"),
    "a text with a picture": ({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "row", "image": "a.png"}]}]}, "image in a part of type"),
    "a number": ({"query": 3, "response": "x"}, "a question that is 3, not a string"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_brought_over_is_named(case):
    with pytest.raises(InputError, match=WRONG[case][1]):
        convert_record(WRONG[case][0])


def test_what_is_said_twice_alike_is_said_once_and_a_weight_is_not_lost():
    twice = {"role": "user", "from": "human", "content": "row", "value": "row", "images": []}
    talk = [{"role": "system", "content": "one"}, twice, {"role": "assistant", "content": "3", "loss": False}]
    found = convert_record({"messages": talk, "system": "one", "query": "", "history": None})
    assert found["conversations"][0] == {"from": "system", "value": "one"}
    assert found["conversations"][1:] == [
        {"from": "human", "value": "row"},
        {"loss": False, "from": "gpt", "value": "3"},
    ]


def test_a_key_that_stands_twice_is_named(tmp_path):
    turns = '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'
    parts = (
        '{"type": "image", "image": "a.png", "image": "b.png"}',
        '{"type": "image_url", "image_url": {"url": "a", "url": "b"}}',
    )
    said = [f'[{{"role": "user", "content": [{part}]}}, {{"role": "assistant", "content": "c"}}]' for part in parts]
    lines = [f'{{"messages": {talk}}}' for talk in (turns, *said)]
    (tmp_path / "d.jsonl").write_text("\n".join([*lines, '{"query": "a", "query": "b", "response": "c"}']) + "\n")
    found = convert_files([tmp_path / "d.jsonl"])
    assert ["twice: keep one of them" in str(fault) for fault in found.faults] == [True] * 4


def test_notes_that_are_called_like_turns_or_answers_are_left_alone():
    noted = {**TALK, "message": "of the day", "output": 0}
    assert convert_record(noted)["conversations"] == convert_record(TALK)["conversations"]


def test_half_a_character_in_a_note_is_written_as_json_escapes_it(run, tmp_path):  # noqa: F811
    (tmp_path / "theirs.jsonl").write_text(json.dumps({**TALK, "note": "\ud800 é"}))
    code, _, err = run("convert", "--data", tmp_path / "theirs.jsonl", "--output", tmp_path / "ours.jsonl")
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "ours.jsonl").read_text(encoding="utf-8"))["note"] == "\ud800 é"


def test_the_command(run, tmp_path, write_image):  # noqa: F811
    """The command writes what training can read, and does not write what training would refuse."""
    write_image("a.png")
    good, bad = FORMS["messages and images"][0], {**TALK, "images": ["http://x.y/a.png"]}
    file, out = tmp_path / "theirs.jsonl", tmp_path / "out" / "ours.jsonl"
    out.parent.mkdir()
    file.write_text("\n".join(map(json.dumps, [good, TALK])))
    told = check_records(file).faults[0].reason
    assert "`ppe-npu convert`" in told
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ours("row", "3", systemPrompt="Brief.")))
    assert "`ppe-npu convert`" not in check_records(other).faults[0].reason, "it reads no such key"
    code, said, err = run("convert", "--data", file, "--output", out)
    assert (code, err) == (0, "")
    assert said == f"2 of 2 records are in {out}; their paths start from {tmp_path} (--data-root)\n"
    assert [record.images for record in check_records(out, data_root=tmp_path).records] == [
        (str(tmp_path / "a.png"),),
        (),
    ]
    file.write_text("\n".join([json.dumps(good), json.dumps(bad), "{"]))
    code, said, err = run("convert", "--data", file, "--output", out, "--json")
    assert code == 1
    found = json.loads(said)
    assert found["converted"] == 1
    assert [fault["line"] for fault in found["faults"]] == ["theirs.jsonl line 2", "theirs.jsonl line 3"]
    assert len(out.read_text().splitlines()) == 1
    refused(run("convert", "--data", file, "--output", file), "is also an input")
    refused(run("convert", "--data", file, "--output", tmp_path / "x.json"), "name a .jsonl file")
    refused(run("convert", "--data", tmp_path / "gone.json", "--output", out), "gone.json")
