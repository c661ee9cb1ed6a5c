"""Files that are not what their name says, and a thousand damaged records: one line each, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from datetime import timedelta

import pytest
from bounds import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import dice

from ppe_npu.data.inputs import InputError
from ppe_npu.training.convert import convert_files, write_converted
from ppe_npu.training.data import check_records

TEXT = {"id": 1, "conversations": [{"from": "human", "value": "row red"}, {"from": "gpt", "value": "3"}]}
LINE = json.dumps(TEXT).encode()


def said(path) -> str:
    with pytest.raises(InputError) as error:
        check_records(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


FILES = {
    "utf16.jsonl": (json.dumps(TEXT).encode("utf-16"), "it is UTF-16"),
    "plain16.json": (json.dumps([TEXT]).encode("utf-16-le"), "UTF-16 or UTF-32"),
    "utf32.json": (json.dumps([TEXT]).encode("utf-32"), "it is UTF-32"),
    "packed.jsonl": (b"\x1f\x8b\x08", "compressed with gzip"),
    "table.json": (b"PAR1....", "it is parquet"),
    "object.json": (LINE, "contains one object, not a list of records: put its records into [ ]"),
    "text.json": (b'"x"', "contains a str, not a list"),
    "lines.json": (LINE + b"\n" + LINE, "one record per line needs the ending .jsonl"),
    "list.jsonl": (json.dumps([TEXT]).encode(), "is one list, not one record per line: give it the ending .json"),
    "long.jsonl": (json.dumps([TEXT, TEXT], indent=1).encode(), "give it the ending .json"),
    "deep.json": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "empty.jsonl": (b"\n \n", "contains no records"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_what_their_name_says(tmp_path, name):
    data, words = FILES[name]
    (tmp_path / name).write_bytes(data)
    assert words in said(tmp_path / name)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.json").mkdir()
    assert "it is not a file" in said(tmp_path / "pipe.jsonl")
    assert "it is a folder" in said(tmp_path / "folder.json")
    assert "does not exist" in said(tmp_path / "none.json")
    assert "too long" in said(tmp_path / f"{'x' * 300}.json")


def test_a_line_that_is_no_json_costs_no_other(tmp_path):
    bad = {
        2: (b'{"id": "\xff"}', "not UTF-8"),
        3: (b"[" * 100_000, "nested too deeply"),
        4: (b'{"conversations": ' + b'{"a":' * 100_000, "nested too deeply"),
        5: (LINE.replace(b'"id"', b'"conversations"'), "has the key 'conversations' twice"),
        6: (LINE.replace(b'"from"', b'"value"', 1), "one of its turns has the key 'value' twice"),
        7: (LINE.replace(b'"3"', b"NaN"), "whose value is nan, not a string"),
        8: (b'{"image": NaN, ' + LINE[1:], "image is nan"),
        9: (b"1" * 5000, "is not JSON"),
        10: (LINE.replace(b'"3"', b'"\\ud800"'), "is not valid Unicode"),
        11: (LINE.replace(b"1", b'"\\ud800"', 1), "its id is not valid Unicode"),
        12: (b'{"image": "\\ud800", ' + LINE[1:], "is not valid Unicode"),
        13: (b'{"image": "a\\u0000b", ' + LINE[1:].replace(b"row", b"<image>"), "cannot be a file"),
        14: (LINE + LINE, "Extra data"),
    }
    lines = [LINE, *(bad[number][0] for number in sorted(bad)), b"", b"  ", LINE, b""]
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    checked = check_records(tmp_path / "d.jsonl")
    assert [record.where for record in checked.records] == ["d.jsonl line 1", "d.jsonl line 17"]
    assert [fault.where for fault in checked.faults] == [f"d.jsonl line {number}" for number in bad]
    for fault, (_, words) in zip(checked.faults, bad.values()):
        assert words in fault.reason
        str(fault).encode()


def test_a_nan_in_a_note_is_a_note(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"score": NaN, ' + LINE[1:])
    assert len(check_records(tmp_path / "d.jsonl").records) == 1


# -- a thousand records, each damaged somewhere ------------------------------------------------------------------------

_JUNK = (
    None, True, False, 0, -1, 1.5, 1e400, float("nan"), "", " ", "a.png", "../a.png", "/etc/passwd", "http://x/a.png",
    "data:image/png;base64,AA", "file:///a", "\ud800", "\0", "<image>", "<video>", "<|im_end|>", "x" * 5000, [], {},
    [None], [[]], [{}], {"a": {}}, ["a.png"] * 3, {"from": "human"}, {"from": 1, "value": 2}, [["human", "x"]],
)  # fmt: skip
_NAMES = (
    *("id", "image", "video", "images", "conversations", "conversation", "messages", "system", "independent"),
    *("from", "value", "role", "content", "imgae", "", "x" * 300, "\ud800", "tools", "loss", "Image"),
)


def damaged(seed: int, draw: random.Random) -> dict:
    """A record with one to four faults."""
    talk = [{"from": "human", "value": "<image>row"}, {"from": "gpt", "value": "3"}] * draw.randint(1, 2)
    record: dict = {"id": seed, "image": "a.png", "conversations": [dict(turn) for turn in talk]}
    for _ in range(draw.randint(1, 4)):
        turns = record.get("conversations")
        holders = [record, *(turn for turn in turns if isinstance(turn, dict))] if isinstance(turns, list) else [record]
        at = draw.choice(holders)
        if draw.random() < 0.3 and at:
            del at[draw.choice(list(at))]
        else:
            at[draw.choice(_NAMES)] = copy.deepcopy(draw.choice(_JUNK))  # because a later fault may change it
    return record


def mutated(seed: int) -> bytes:
    """A line that holds a damaged record, sometimes with other bytes or cut short."""
    draw = dice(seed)
    data = bytearray(json.dumps(damaged(seed, draw)).encode())
    for _ in range(draw.choice((0, 0, 1, 3))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data))]
    return bytes(data).replace(b"\n", b" ")


def check_mutations(folder, seeds) -> None:
    lines = [mutated(seed) or b"{" for seed in seeds]
    (folder / "d.jsonl").write_bytes(b"\n".join([*lines, LINE]))
    (folder / "d.json").write_text(json.dumps([*(damaged(seed, dice(seed)) for seed in seeds), TEXT]))
    for name in ("d.jsonl", "d.json"):
        check_file(folder, name, len(seeds))


def check_file(folder, name: str, count: int) -> None:
    """Every line gives a record or one printable line, the whole record at the end survives, and convert() agrees."""
    with bounded(name):
        checked = check_records(folder / name)
        found = convert_files([folder / name])
        write_converted(found, folder / "converted.jsonl")
        again = check_records(folder / "converted.jsonl")
    assert len(checked.records) + len(checked.faults) <= count + 1  # a blank line is neither
    assert len(found.records) + len(found.faults) == len(checked.records) + len(checked.faults)
    assert len(again.records) <= len(found.records)
    assert all(str(fault).isprintable() and len(fault.reason) < 1000 for fault in (*found.faults, *again.faults))
    assert checked.records[-1].turns == (("user", "row red"), ("assistant", "3"))
    for fault in checked.faults:
        assert fault.reason
        assert str(fault).isprintable()
        assert len(fault.reason) < 1000
    for record in checked.records:
        assert all(path.startswith(str(folder)) for path in (*record.images, *record.videos))
        record.messages()


@pytest.mark.ci
def test_a_thousand_mutations_give_no_traceback(tmp_path, write_image):
    write_image("a.png")
    check_mutations(tmp_path, range(1000))


@pytest.mark.slow
def test_many_more_mutations_give_no_traceback(tmp_path, write_image):
    write_image("a.png")
    for first in range(1000, 10_000, 1000):
        check_mutations(tmp_path, range(first, first + 1000))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(_JUNK),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(derandomize=True, max_examples=60, deadline=timedelta(seconds=20))
@given(value=st.lists(_JSON, max_size=5), lines=st.booleans())
@pytest.mark.ci
def test_any_json_at_all_gives_no_traceback(tmp_path_factory, value, lines):
    folder = tmp_path_factory.mktemp("fuzz")
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    (folder / ("d.jsonl" if lines else "d.json")).write_text(text)
    with contextlib.suppress(InputError):  # no records at all
        checked = check_records(folder / ("d.jsonl" if lines else "d.json"))
        assert all(str(fault).isprintable() for fault in checked.faults)
