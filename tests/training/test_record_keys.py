"""Keys that training would not read, URLs, and paths that lead out of the data root are named, never ignored."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from picture_files import saved
from PIL import Image

from ppe_npu.data.inputs import InputError
from ppe_npu.data.places import Room
from ppe_npu.training.data import check_records, read_records


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


TEXT = {"conversations": turns("row red", "row red 3")}
GOOD = {"image": "a.png", "conversations": turns("<image>", "ring")}


def reasons(tmp_path, *records, **options) -> list[str]:
    """Why each record cannot be used; "" for one that can."""
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    checked = check_records(tmp_path / "d.jsonl", **options)
    found = {fault.where: fault.reason for fault in checked.faults}
    assert not any("\n" in reason for reason in found.values())
    return [found.get(f"d.jsonl line {number}", "") for number in range(1, len(records) + 1)]


FOREIGN = {
    "images": "'image'", "videos": "'video'", "messages": "'conversations'", "conversation": "'conversations'",
    "system": "'system', 'value'", "tools": "tools", "query": "'conversations'", "response": "'conversations'",
    "instruction": "'conversations'", "input": "'conversations'", "output": "'conversations'", "audios": "sound",
    "Images": "'image'", "imageUrls": "'image'", "systemPrompt": "'system', 'value'",
    "System-Message": "'system', 'value'", "chosen": "'conversations'",
}  # fmt: skip
MISSPELT = {
    "convesations": "conversations", "Conversations": "conversations", "imgae": "image", "iamge": "image",
    "Image": "image", "IMAGE": "image", "image ": "image", "image_0": "image",
    "vidoe": "video", "independant": "independent",
}  # fmt: skip


@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_other_programs_are_named_with_the_right_one(tmp_path, key):
    (reason,) = reasons(tmp_path, {**TEXT, key: "something"})
    assert f"{key!r} is not read" in reason
    assert FOREIGN[key] in reason


@pytest.mark.parametrize("key", MISSPELT)
def test_misspelt_keys_are_named_with_the_right_one(tmp_path, key):
    (reason,) = reasons(tmp_path, {**TEXT, key: "a.png"})
    assert reason == f"its key {key!r} is not read: did you mean {MISSPELT[key]!r}?"


@pytest.mark.parametrize("key", ["image_path", "img", "video_path", "prompt", "question", "text"])
def test_other_names_are_named_where_the_right_one_is_missing(tmp_path, write_image, key):
    write_image("a.png"), write_image("b.mp4.png")
    alone = {"conversations": turns("row", "3")} if key.startswith(("im", "vi")) else {"image": "a.png"}
    beside = {**GOOD, "video": ""} if not key.startswith("vi") else GOOD
    first, second = reasons(tmp_path, {**alone, key: "a"}, {**beside, key: "a"})
    assert f"{key!r} is not read" in first
    assert (second == "") is not key.startswith("vi")


def test_notes_that_are_spelt_like_a_flag_are_free(tmp_path):
    """For example the span of a video, or how an X-ray was taken."""
    for key, value in (("interval", [3, 9]), ("lateral", True), ("literal", None), ("literal", "")):
        assert reasons(tmp_path, {**TEXT, key: value}) == [""]


def test_notes_beside_a_record_are_free_and_so_is_what_is_empty(tmp_path, write_image):
    write_image("a.png")
    names = "id source dataset score question_types image_id imageId image_size video_id width_list data_source"
    names += " conversation_id"
    notes = dict.fromkeys(
        [*names.split(), "metadata", "model", "category", "task", "difficulty", "url", "license", "ids"], "x"
    )
    empty = {"images": [], "system": "", "tools": None, "videos": {}, "messages": [], "imgae": None}
    assert reasons(tmp_path, {**notes, **GOOD}, {**empty, **GOOD}) == ["", ""]


def test_keys_of_turns(tmp_path):
    def talk(**extra):
        return {"conversations": [{"from": "human", "value": "row"}, {"from": "gpt", "value": "3", **extra}]}

    found = reasons(tmp_path, talk(loss=False), talk(weight=0.5), talk(images=["a"]), talk(loss=True, note=1))
    assert [words in reason for words, reason in zip(("'loss'", "'weight'", "'images'"), found)] == [True] * 3
    assert found[3] == ""
    for turn, words in (("x", "'x'"), ({"from": "tool", "value": "x"}, "'tool'"), ({"role": "user"}, "keys 'role'")):
        assert words in reasons(tmp_path, {"conversations": [turn]})[0]
    content = [{"role": "user", "content": [{"type": "image"}]}]
    assert "whose value is a list, not a string" in reasons(tmp_path, {"conversations": content})[0]


UNSEEN = [
    {"photo": "a.png"}, {"frames": ["a.jpg", "b.jpg"]}, {"media": [{"type": "image", "at": {"path": "x/A.JPEG"}}]},
    {"file_name": "10:30.mp4"}, {"vision": ["https://x/a.webp"]}, {"source": "coco/1.png"},
    {"look": "https://x/a.PNG?size=large&n=1"}, {"look": {"at": "s3://x/a.jpg#1"}}, {"vid": "a.mp4"},
]  # fmt: skip


@pytest.mark.parametrize("notes", UNSEEN, ids=str)
def test_a_file_that_a_record_without_visuals_names_is_not_passed_over(tmp_path, write_image, notes):
    write_image("a.png")
    inner = {"conversations": [TEXT["conversations"][0] | notes, TEXT["conversations"][1]]}
    top, turn, beside = reasons(tmp_path, TEXT | notes, inner, GOOD | notes)
    key, kind = next(iter(notes)), "image" if ".mp4" not in str(notes) else "video"
    assert top.startswith(f"its key {key!r} names ")
    assert turn.startswith(f"a turn's key {key!r} names ")
    assert all(f"would not see: name it {kind!r}" in reason for reason in (top, turn))
    assert beside == "", "its picture is seen"


@pytest.mark.parametrize("key", ["content", "value"])
def test_a_key_that_turns_have_is_a_note_at_the_top(tmp_path, key):
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
    named, free = reasons(tmp_path, TEXT | {key: parts}, TEXT | {key: "Of a.png: a word"})
    assert named.startswith(f"its key {key!r} names 'a.png', which the model would not see")
    assert free == ""


INLINE = {"PNG": "image", "JPEG": "image", "GIF": "image", "WEBP": "image", "a.mp4": "video", "a.mkv": "video"}


@pytest.mark.parametrize("kind", INLINE)
def test_a_file_as_text_in_a_record_without_visuals_is_not_passed_over(tmp_path, write_clip, kind):
    data = Path(write_clip(kind)).read_bytes() if "." in kind else saved(Image.new("RGB", (9, 9)), kind)
    text = base64.b64encode(data).decode()
    told = "contains a file as text, which the model would not see: save it as a file, and name it"
    for value in (text, f"data:{INLINE[kind]}/x;base64,{text}", [{"data": text}], f"\n{text}"):
        for reason in reasons(tmp_path, TEXT | {"vision_b64": value}, {"conversations": turns("row", "3"), "x": value}):
            assert f"{told} {INLINE[kind]!r}" in reason
            assert len(reason) < 300
    assert reasons(tmp_path, {**GOOD, "thumbnail": text})[0].endswith("does not exist: check the path")


def test_words_about_files_are_notes(tmp_path):
    base = {"a": "/9j/ is how base64 of a JPEG begins", "b": "data: image/png", "c": "https://x.org/png?q=a"}
    assert reasons(tmp_path, TEXT | base) == [""]
    notes = {"id": "a.png", "image_id": "a.png", "source": "a png of b.png or c", "n": [1, None, {"a": ".png"}]}
    assert reasons(tmp_path, TEXT | notes, {"conversations": turns("What is a.png?", "a.png")}) == ["", ""]


def test_other_programs_placeholders_stand_for_nothing(tmp_path, write_image):
    write_image("a.png")
    asked = [
        "<img>a.png</img>",
        "<image_1>",
        "<image 2>",
        "<|image_1|>",
        "<|image|>",
        "<|video|>",
        "<IMAGE>",
        "<Video>",
    ]
    asked += ["[IMG]", "<image_token>", "<video/>", "<image_placeholder>", "<ImageHere>", "<IMG_CONTEXT>", "<|img|>"]
    asked += ["<start_of_image>", "<image_soft_token>", "<__media__>", "<video-placeholder>"]
    for place, reason in zip(
        asked, reasons(tmp_path, *({"conversations": turns(f"{place} row", "3")} for place in asked))
    ):
        assert reason.startswith(f"a text in it has {place!r}, for which the model would see nothing"), place
    pads = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
    for texts in (("<image>{} row", "3"), ("<image> row", "{}")):
        talks = [{**GOOD, "conversations": turns(*(text.format(pad) for text in texts))} for pad in pads]
        for pad, reason in zip(pads, reasons(tmp_path, *talks)):
            assert reason.startswith(f"a text in it has {pad}, which the chat template writes itself")
    html = "<video src='a'> <img src='b'> <imagery> a < image > b [img]"
    assert reasons(tmp_path, {"conversations": turns(html.replace("[img]", ""), html)}) == [""]


def test_a_picture_in_a_tag_beside_others_is_not_passed_over(tmp_path, write_image):
    """Qwen-VL's first version wrote pictures like this; in the model's own answers such a tag is text."""
    write_image("a.png")
    (reason,) = reasons(tmp_path, {**GOOD, "conversations": turns("<image> and <img>b.PNG</img>", "3")})
    assert reason.startswith(
        "a text in it has '<img>b.PNG</img>', for which the model would see nothing: write <image>"
    )
    for tag in ("<img> b.png </img>", "<img>\nb.png\n</img>", "<img>https://a/b.png?size=3</img>", "<vid>b.mp4</vid>"):
        (reason,) = reasons(tmp_path, {**GOOD, "conversations": turns(f"<image> {tag}", "3")})
        assert "for which the model would see nothing" in reason
    assert reasons(tmp_path, {**GOOD, "conversations": turns("<image> row", "<img>b.png</img>")}) == [""]


def test_a_turn_says_one_thing(tmp_path):
    human, gpt = turns("row", "3")
    said = [human | {"role": "assistant"}, human | {"content": "another"}, human | {"role": "user", "content": "row"}]
    found = reasons(tmp_path, *({"conversations": [turn, gpt]} for turn in said))
    for reason, keys in zip(found, (("'from'", "'role'"), ("'value'", "'content'"))):
        assert reason == f"has a turn with {keys[0]} and {keys[1]}, which differ: keep one of them"
    assert found[2] == ""
    for key in ("reasoning_content", "thinking"):
        (reason,) = reasons(tmp_path, {"conversations": [human, gpt | {key: "so"}]})
        assert f"{key!r} is not read: write it into the answer of gpt" in reason


ADDRESSES = {
    "http://example.com/a.jpg": "is an address: download it first", "file:///a.jpg": "give the path alone",
    "HTTPS://example.com/a.jpg": "is an address: download it first", "s3://bucket/a.jpg": "copy it to this machine",
    "hf://datasets/a/b.png": "copy it to this machine", "data:image/png;base64,iVBOR": "is a file written as text",
}  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_called_one(tmp_path, address):
    (reason,) = reasons(tmp_path, {**GOOD, "image": address})
    assert reason.startswith(f"image {address} is a")
    assert ADDRESSES[address] in reason
    long = reasons(tmp_path, {**GOOD, "image": "data:image/png;base64," + "A" * 10_000})[0]
    assert len(long) < 300


def test_names_with_colons_and_capital_suffixes_are_files(tmp_path, write_image, write_clip):
    write_image("12:30.png"), write_image("data:1.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.JPG", "JPEG")
    os.rename(write_clip("c.mp4"), tmp_path / "C.MP4")
    clip = {"video": "C.MP4", "conversations": turns("<video>", "ring")}
    records = [{**GOOD, "image": name} for name in ("12:30.png", "data:1.png", "a.JPG")]
    assert reasons(tmp_path, *records, clip) == [""] * 4
    os.rename(tmp_path / "d.jsonl", tmp_path / "D.JSONL")
    assert len(read_records(tmp_path / "D.JSONL")) == 4


@pytest.fixture
def outside(tmp_path, write_image):
    """root/, a data root with a picture of its own, among files outside it to which paths and links lead."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    os.rename(write_image("in.png"), tmp_path / "root" / "in.png")
    write_image("out.png")
    (tmp_path / "root" / "link.png").symlink_to("../out.png")
    (tmp_path / "root" / "folder").symlink_to("..")
    (tmp_path / "root" / "inner.png").symlink_to("in.png")
    (tmp_path / "root2").mkdir()
    os.rename(write_image("near.png"), tmp_path / "root2" / "near.png")
    return tmp_path / "root"


@pytest.mark.parametrize("text", ["<image> and <img>b.png</img>", "<image> what shows <img>logo.png</img>?"])
def test_a_text_about_html_is_taken_where_the_record_says_that_it_is_text(tmp_path, write_image, text):
    write_image("a.png")
    record = {**GOOD, "conversations": turns(text, "3")}
    (reason,) = reasons(tmp_path, record)
    assert reason.endswith("or, if the text itself is meant, give the record 'literal': true")
    assert reasons(tmp_path, {**record, "literal": True}) == [""]
    assert reasons(tmp_path, {**record, "literal": "yes"}) == ["literal is 'yes': use true or false"]
    alone = {"conversations": turns("what is [IMG] in <img>b.png</img>?", "3")}
    assert reasons(tmp_path, alone) != [""]
    assert reasons(tmp_path, {**alone, "literal": True}) == [""]
    marked = {**alone, "conversations": turns("<|image_pad|>", "3"), "literal": True}
    assert "which the chat template writes itself" in reasons(tmp_path, marked)[0]


def test_paths_stay_inside_the_data_root(outside):
    leaving = ["../out.png", str(outside.parent / "out.png"), "link.png", "folder/out.png", "sub/../../out.png"]
    leaving += [str(outside.parent / "root2" / "near.png"), "/etc/passwd", "../none.png"]
    staying = ["in.png", str(outside / "in.png"), "sub/../in.png", "inner.png", "folder/root/in.png", "./in.png"]
    found = reasons(outside, *({**GOOD, "image": name} for name in [*leaving, *staying]))
    for name, reason in zip(leaving, found):
        assert reason.startswith(f"image {name} lies outside of {outside}")
        assert "--data-root" in reason
        assert "--allow-outside" in reason
    assert found[len(leaving) :] == [""] * len(staying)
    allowed = reasons(outside, *({**GOOD, "image": name} for name in leaving[:6]), allow_outside=True)
    assert allowed == [""] * 6
    assert reasons(outside, {**GOOD, "image": "root/in.png"}, data_root=outside.parent) == [""]


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_tilde_in_a_record_is_a_name_and_no_home(outside, monkeypatch, anywhere):
    """However the root is written; media readers take "~/out.png" for a file in the home folder."""
    monkeypatch.setenv("HOME", str(outside.parent))
    monkeypatch.chdir(outside)
    records = [{**GOOD, "image": name} for name in ("~/out.png", "~/in.png", "sub/../~/out.png")]
    (outside / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    for root in (None, ".", "", outside, "../root"):
        found = check_records("d.jsonl", root, anywhere)
        assert [fault.reason.endswith("does not exist: check the path") for fault in found.faults] == [True] * 3
    (outside / "~").mkdir()
    os.rename(outside / "in.png", outside / "~" / "in.png")
    for root in (None, ".", outside):
        assert [len(record.images) for record in check_records("d.jsonl", root, anywhere).records] == [1]
    with pytest.raises(InputError, match="lies outside of"):
        Room(".").check("~/out.png", "image")


def test_a_root_may_be_a_link_and_a_snapshot_of_the_hub(outside, tmp_path):
    (tmp_path / "linked").symlink_to(outside)
    assert reasons(tmp_path / "linked", {**GOOD, "image": "in.png"}) == [""]
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--a--b" / "blobs").mkdir()
    os.rename(tmp_path / "out.png", tmp_path / "datasets--a--b" / "blobs" / "123")
    (snapshot / "a.png").symlink_to("../../blobs/123")
    assert reasons(snapshot, GOOD) == [""]


def test_the_command_and_the_setting(run, tiny_folder, outside):
    (outside / "d.jsonl").write_text(json.dumps({**GOOD, "image": "../out.png"}))
    asked = ["data", "--model", tiny_folder, "--data", outside / "d.jsonl", "--compression", "dense"]
    code, out, _ = run(*asked)
    assert (code, "lies outside of" in out) == (1, True)
    assert run(*asked, "--allow-outside")[0] == 0
    from ppe_npu.training.args import TrainConfig

    assert not TrainConfig("m", "d", "o").allow_outside
    assert "allow_outside" not in TrainConfig("m", "d", "o").identity(), "the records themselves are in it"


def test_the_house_s_own_examples(tmp_path):
    """Records in another trainer's format, of which only the text would be learned."""
    alien = [{"images": ["a.png"], **TEXT}, {"system": "count", **TEXT}, {"imgae": "a.png", **TEXT}]
    assert [key in reason for key, reason in zip(("images", "system", "imgae"), reasons(tmp_path, *alien))] == [
        True
    ] * 3
    with pytest.raises(InputError, match=r"3 of 3 records cannot be used: .*'images' is not read: name it 'image'"):
        read_records(tmp_path / "d.jsonl")
