"""Training data: LLaVA's format is read unchanged, and every unusable record is named with its line and the reason."""

from __future__ import annotations

import json

import pytest

from ppe_npu.data.inputs import InputError
from ppe_npu.training import data as module
from ppe_npu.training.data import ChatDataset, Fault, check_records, read_records

FORM = "{'from': human, gpt or system, 'value': text}"


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


def write(path, records) -> str:
    lines = records if isinstance(records, list) else [records]
    text = json.dumps(lines) if path.suffix == ".json" else "\n".join(json.dumps(line) for line in lines)
    path.write_text(text)
    return str(path)


def test_json_and_jsonl_with_no_one_and_many_visuals(tmp_path, write_image, write_clip):
    write_image("a.png"), write_image("b.png"), write_clip("c.mp4")
    records = [
        {"id": 1, "conversations": turns("count", "3")},
        {"id": 2, "image": "a.png", "conversations": turns("<image>\nshape", "ring", "row", "1")},
        {"id": 3, "image": ["a.png", "b.png"], "conversations": turns("<image> and <image>", "ring")},
        {"id": 4, "video": "c.mp4", "image": "a.png", "conversations": turns("<video><image>", "ring")},
    ]
    lines, listed = write(tmp_path / "d.jsonl", records), write(tmp_path / "d.json", records)
    from_lines, from_list = read_records(lines), read_records(listed)
    assert [r.turns for r in from_lines] == [r.turns for r in from_list]
    assert [(len(r.images), len(r.videos)) for r in from_lines] == [(0, 0), (1, 0), (2, 0), (1, 1)]
    assert from_lines[1].images == (str(tmp_path / "a.png"),)
    messages, image = from_lines[1].messages(), {"type": "image", "image": str(tmp_path / "a.png")}
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert [[item.get("text", item) for item in message["content"]] for message in messages] == [
        [image, "shape"],
        ["ring"],
        ["row"],
        ["1"],
    ]
    assert [item["type"] for item in from_lines[3].messages()[0]["content"]] == ["video", "image"]
    dataset = ChatDataset(read_records([lines, listed]))
    assert len(dataset) == 8
    assert dataset[7].turns == from_list[3].turns


def test_data_root_is_where_paths_start(tmp_path, write_image):
    write_image("a.png")
    (tmp_path / "elsewhere").mkdir()
    file = write(tmp_path / "elsewhere" / "d.jsonl", {"image": "a.png", "conversations": turns("<image>", "ring")})
    assert read_records(file, data_root=tmp_path)[0].images == (str(tmp_path / "a.png"),)
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        read_records(file)


def test_an_independent_record_asks_each_question_with_all_visuals(tmp_path, write_image):
    write_image("a.png")
    talk = turns("<image>\nshape", "ring", "row", "1")
    file = write(tmp_path / "d.jsonl", {"image": "a.png", "independent": True, "conversations": talk})
    first, second = read_records(file)[0].questions()
    assert [item["type"] for item in first[0]["content"]] == ["image", "text"]
    assert [item["type"] for item in second[0]["content"]] == ["image", "text"]
    assert second[0]["content"][1]["text"] == "row"
    assert second[1]["content"][0]["text"] == "1"


GOOD = {"image": "a.png", "conversations": turns("<image>", "ring")}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "is a list, not a record"),
        ({}, "has no conversations"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "has a turn of 'robot', not of human"),
        ({"conversations": turns("only a question")}, "do not alternate"),
        ({"conversations": turns("one", "two", "three")}, "do not alternate"),
        ({"conversations": turns("one", " ")}, "empty answer"),
        ({**GOOD, "conversations": turns("what?", "<image>")}, "outside its human turns"),
        ({**GOOD, "image": "none.png"}, "none.png does not exist"),
        ({**GOOD, "image": "broken.png"}, "broken.png cannot be read"),
        ({**GOOD, "image": 3}, "image is 3: give a path"),
        ({**GOOD, "conversations": turns("what?", "ring")}, "0 <image> for 1 image"),
        ({**GOOD, "conversations": turns("<image><image>", "ring")}, "2 <image> for 1 image"),
        ({"video": "broken.mp4", "conversations": turns("<video>", "ring")}, "broken.mp4 cannot be decoded"),
        ({"video": "none.mp4", "conversations": turns("<video>", "ring")}, "none.mp4 does not exist"),
        ({**GOOD, "independent": 1}, "independent is 1"),
        ({"independent": True, "conversations": turns("one", "two")}, "needs an image"),
        ({**GOOD, "independent": True, "conversations": turns("see <image>", "x")}, "must open its first human turn"),
        ({**GOOD, "independent": True, "conversations": turns("one", "two", "<image>", "x")}, "must open its first"),
    ],
)
def test_records_that_cannot_be_used_are_named(tmp_path, write_image, record, reason):
    write_image("a.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    file = write(tmp_path / "d.jsonl", [GOOD, record])
    with pytest.raises(InputError) as error:
        read_records(file)
    assert str(error.value).startswith("1 of 2 records cannot be used: d.jsonl line 2: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_lines_that_are_no_json_and_many_faults(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(["{", "[1]", "", "{}", "{}", "{}"]))
    with pytest.raises(InputError, match=r"5 of 5 .* line 1: is not JSON .* line 4: .* \(and 2 more\)") as error:
        read_records(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("d.json", "{}", "not a list"), ("d.json", "{", "is not JSON"), ("d.jsonl", "", "contains no records")],
)
def test_files_that_cannot_be_used(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_records(tmp_path / name)


def test_a_records_id_is_its_own_or_where_it_stands(tmp_path):
    talk = turns("count", "3")
    lines = [{"id": "a", "conversations": talk}, {"id": 7, "conversations": talk}, {"conversations": talk}, {"id": "b"}]
    checked = check_records(write(tmp_path / "d.jsonl", lines))
    assert [record.id for record in checked.records] == ["a", "7", "d.jsonl line 3"]
    assert checked.faults == [Fault("d.jsonl line 4", "b", f"has no conversations: give a list of {FORM}")]


def test_all_faults_are_found_and_the_good_records_stay(tmp_path, write_image):
    write_image("a.png")
    lines = [GOOD, {}, {**GOOD, "image": "none.png"}, GOOD, {**GOOD, "image": ["a.png", "none.png"]}, GOOD]
    lines[4] = {**lines[4], "conversations": turns("<image><image>", "ring")}
    checked = check_records([write(tmp_path / "d.json", lines), write(tmp_path / "e.jsonl", [GOOD])])
    assert [r.where for r in checked.records] == [*(f"d.json record {n}" for n in (1, 4, 6)), "e.jsonl line 1"]
    assert [fault.where for fault in checked.faults] == [f"d.json record {n}" for n in (2, 3, 5)]
    assert checked.faults[1].reason == checked.faults[2].reason
    assert "none.png does not exist" in checked.faults[1].reason


def test_a_file_that_many_records_share_is_opened_once(tmp_path, write_image, write_clip, monkeypatch):
    opened = []
    probes = {
        kind: lambda path, probe=probe: opened.append(path) or probe(path) for kind, probe in module._PROBES.items()
    }
    monkeypatch.setattr(module, "_PROBES", probes)
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    names = [write_image(f"{number}.png", size=(40 + number, 30)) for number in range(7)]
    clip = {"video": write_clip("c.mp4", frames=6, fps=3), "conversations": turns("<video>", "ring")}
    lines = [{**GOOD, "image": name} for name in names for _ in range(3)] + [clip, clip]
    checked = check_records(write(tmp_path / "d.jsonl", lines))
    assert sorted(opened) == sorted([*names, clip["video"]])
    assert checked.headers["image"] == {name: (30, 40 + number) for number, name in enumerate(names)}
    assert checked.headers["video"][clip["video"]].frames == 6


def test_only_line_feeds_part_lines(tmp_path):
    """JSON text may contain U+2028 and others at which str.splitlines splits; a byte order mark is not text."""
    file = tmp_path / "d.jsonl"
    lines = [json.dumps({"conversations": turns("count\u2028\x85", "3")}, ensure_ascii=False)] * 2
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [record.turns[0][1] for record in read_records(file)] == ["count\u2028\x85"] * 2


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        read_records(tmp_path / "none.json")
    with pytest.raises(InputError, match="no training data"):
        read_records([])
