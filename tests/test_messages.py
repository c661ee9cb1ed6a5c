"""The structure of messages: every form that transformers takes gives the same inputs, all else ends in one line."""

from __future__ import annotations

import base64
import copy
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounds import bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import saved
from PIL import Image

from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.data.inputs import VideoSampling, build_inputs
from ppe_npu.data.messages import check_conversations
from ppe_npu.data.videos import Video, load_video
from ppe_npu.errors import InputError, UserError

TEXT = {"type": "text", "text": "row red"}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [dict(part) if isinstance(part, dict) else part for part in parts]}]


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# -- what is taken -----------------------------------------------------------------------------------------------------


def test_every_form_of_a_picture_gives_the_same_inputs(tiny_processor, write_image):
    path = write_image("a.png")
    data, opened = Path(path).read_bytes(), Image.open(path)
    encoded = base64.b64encode(data).decode()
    expected = build_inputs(tiny_processor, [user({"type": "image", "image": path}, TEXT)])
    assert expected["image_grid_thw"].tolist() == [[1, 12, 12]]
    for part in (
        {"type": "image", "path": path},
        {"type": "image", "url": path},
        {"type": "image", "image": Path(path)},
        {"type": "image", "image": opened},
        {"type": "image", "url": opened},
        {"type": "image", "image": data},
        {"type": "image", "image": io.BytesIO(data)},
        {"type": "image", "image": {"bytes": data, "path": None}},
        {"type": "image", "image": np.asarray(opened)},
        {"type": "image", "image": torch.from_numpy(np.array(opened)).permute(2, 0, 1)},
        {"type": "image", "base64": encoded},
        {"type": "image", "image": encoded},
        {"type": "image", "image": base64.encodebytes(data).decode()},
        {"type": "image_url", "image_url": {"url": encoded}},
        {"type": "image", "image": f"data:image/png,{encoded}"},
        {"type": "image", "url": f"data:image/png;base64,{encoded}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image_url", "image_url": {"url": path}},
        {"type": "image_url", "image_url": {"url": path, "detail": "auto"}},
        {"type": "image_url", "image_url": path},
        {"type": "image", "image_url": path},
        {"image": path},
        {"image_url": {"url": path}},
        {"type": "image", "image": path, "text": None, "video": None, "url": None, "path": ""},
        {"type": "image", "image": path, "cache_control": {"type": "ephemeral"}},
    ):
        assert same(build_inputs(tiny_processor, [user(part, TEXT)]), expected), part.keys()
        assert same(build_inputs(tiny_processor, user(part, {"text": "row red"})), expected), "a conversation alone"
    rows = np.array([{"role": "user", "content": np.array([{"image": path}, TEXT], dtype=object)}], dtype=object)
    assert same(build_inputs(tiny_processor, rows), expected), "as a row of parquet comes"
    assert same(build_inputs(tiny_processor, (tuple(user({"image": path}, TEXT)),)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000"])
def test_base64_of_every_format_is_a_picture_unless_it_is_a_path(tiny_processor, tmp_path, monkeypatch, kind):
    data = saved(Image.linear_gradient("L").convert("RGB").resize((48, 48)), kind)
    encoded, expected = base64.b64encode(data).decode(), build_inputs(tiny_processor, user({"image": data}))
    assert same(build_inputs(tiny_processor, user({"image": encoded})), expected)
    monkeypatch.chdir(tmp_path)
    name = "R0lGODlhMAAwAIQ" + "A" * 49
    Path(name).write_bytes(data)
    assert same(build_inputs(tiny_processor, user({"image": name})), expected)


def test_every_form_of_a_video_gives_the_same_inputs(tiny_processor, write_clip, tmp_path):
    clip, sampling = write_clip("c.mp4", frames=8, fps=2), VideoSampling(nframes=4)
    video = load_video(clip, sampling)
    expected = build_inputs(tiny_processor, [user({"type": "video", "video": clip}, TEXT)], sampling=sampling)
    for part in (
        {"type": "video", "path": clip},
        {"type": "video", "url": Path(clip)},
        {"type": "video", "video": video},
        {"video": clip},
        {"type": "video_url", "video_url": {"url": clip}},
    ):
        assert same(build_inputs(tiny_processor, [user(part, TEXT)], sampling=sampling), expected), part.keys()
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in video.frames]
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures):
        picture.save(path)
    frames = build_inputs(tiny_processor, [user({"type": "video", "video": Video(video.frames, 2.0, "c")}, TEXT)])
    for value in (
        pictures,
        tuple(paths),
        [str(path) for path in paths],
        [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths],
        [path.read_bytes() for path in paths],
        video.frames,
        video.frames.permute(0, 2, 3, 1),
        video.frames.numpy(),
        video.frames.permute(0, 2, 3, 1).numpy(),
        video.frames.float() / 255,
    ):
        assert same(build_inputs(tiny_processor, [user({"type": "video", "video": value}, TEXT)]), frames)
    assert frames["second_per_grid_ts"].tolist() == [1.0], "frames without times come at 2 a second"


def test_frames_are_chosen_where_it_is_asked_for(tiny_processor):
    frames = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 3, 48, 48) * 20

    def seen(sampling=None, value=frames):
        return build_inputs(tiny_processor, [user({"type": "video", "video": value}, TEXT)], sampling=sampling)

    assert seen()["video_grid_thw"].tolist() == [[4, 12, 12]]
    four = seen(VideoSampling(nframes=4))
    assert torch.equal(four["pixel_values_videos"], seen(value=frames[[0, 2, 5, 7]])["pixel_values_videos"])
    assert four["second_per_grid_ts"].tolist() == [2.0], "4 of 8 frames at 2 a second"
    assert seen(VideoSampling(frame_rate=4.0, fps=2))["second_per_grid_ts"].tolist() == [1.0]
    dark = frames.clone()
    dark[0] = 1  # alone it could be a white one, of numbers from 0 to 1
    pixels = seen(value=dark)["pixel_values_videos"]
    assert torch.equal(seen(value=dark.float())["pixel_values_videos"], pixels)
    assert torch.equal(seen(value=dark.numpy().astype(float))["pixel_values_videos"], pixels)


def test_text_and_roles_are_the_templates_own(tiny_folder, tiny_processor):
    plain = [{"role": "system", "content": "red"}, {"role": "user", "content": "row red"}]
    parts = [{"role": "system", "content": [{"type": "text", "text": "red"}]}, *user(TEXT)]
    expected = build_inputs(tiny_processor, [plain])
    assert same(build_inputs(tiny_processor, parts), expected)
    assert same(build_inputs(tiny_processor, [plain, parts]), {key: torch.cat([expected[key]] * 2) for key in expected})
    build_inputs(tiny_processor, [*plain, {"role": "tool", "content": "3"}])
    build_inputs(tiny_processor, [*plain, {"role": "assistant", "content": []}])
    processor = load_processor(tiny_folder)
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools\\nhere') }}{% endif %}"
        "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.name }}{% endfor %}{% endfor %}"
    )
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "red"}]}
    found = build_inputs(processor, [called], add_generation_prompt=False)["input_ids"].tolist()
    assert found == [processor.tokenizer("red")["input_ids"]], "other keys are the template's"
    with pytest.raises(InputError, match=r"chat template rejects a conversation \(no tools\)"):
        build_inputs(processor, [{"role": "tool", "content": "3"}])
    with pytest.raises(InputError, match=r"chat template rejects a conversation \(.*int.*not iterable"):
        build_inputs(processor, [{"role": "assistant", "content": "", "tool_calls": 5}])


def test_what_was_given_is_not_changed(tiny_processor, write_image):
    path = write_image("a.png")
    given = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": path}}, {"text": "row red"}]}]
    build_inputs(tiny_processor, given)
    parts = [{"type": "image_url", "image_url": {"url": path}}, {"text": "row red"}]
    assert given == [{"role": "user", "content": parts}]


# -- what is not -------------------------------------------------------------------------------------------------------

NESTED: Any = ()
for _ in range(3000):
    NESTED = (NESTED,)


NESTED_TENSOR = torch.nested.nested_tensor([torch.zeros(3, 8, 8), torch.zeros(3, 4, 8)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "conversations are None, not a list"),
        ("hello", "conversations are 'hello', not a list"),
        ({"role": "user", "content": "x"}, "conversations are {.*}, not a list"),
        ((message for message in ()), "conversations are <generator"),
        ([], "no conversation was given"),
        ([[]], "conversation 1 contains no message"),
        ([user("x"), None], "conversation 1, message 1, part 1 is 'x'"),
        ([user(TEXT), None], "conversation 2 is None: give a list of messages"),
        ([user(TEXT), "x" * 10**6], "conversation 2 is 'x+\\.\\.\\.x+'"),
        ([*user(TEXT), "hi"], "message 2 is 'hi': give {'role'"),
        ([user(TEXT), [5]], "conversation 2, message 1 is 5"),
        (NESTED, r"conversation 1, message 1 is \(+\.\.\.[(),]+: give"),
        ([{"content": "x"}], "message 1 has role None"),
        ([{"role": 5, "content": "x"}], "message 1 has role 5: use system, user or assistant"),
        ([{"role": " ", "content": "x"}], "message 1 has role ' '"),
        ([{"role": "us\ud800er", "content": "x"}], "message 1, role is not valid Unicode"),
        ([{"role": "user", "contents": "x"}], r"message 1 has content None among its keys \['contents', 'role'\]"),
        ([{"role": "user", "content": 5}], "message 1 has content 5: give a string or a list of parts"),
        ([{"role": "user", "content": {"type": "text"}}], "message 1 has content {'type': 'text'}"),
        ([{"role": "user", "content": "x\udfff"}], r"message 1, content is not valid Unicode: remove .* 'x\\udfff'"),
        ([{"role": "user", "content": "x", 5: 1}], "message 1 has the key 5"),
        (user(None), "message 1, part 1 is None: give {'type': 'text'"),
        (user(TEXT, ["x"]), r"message 1, part 2 is \['x'\]"),
        (user({"type": "audio", "audio": "a.wav"}), "message 1, part 1 has type 'audio': use text, image or video"),
        (user({"type": 5}), "has type 5"),
        (user({"type": ["text"]}), r"has type \['text'\]"),
        (user({"txt": "x"}), "part 1 has no type: .* to {'txt': 'x'}"),
        (user({"text": "x", "image": "a.png"}), "part 1 has no type"),
        (user({"type": "text"}), "part 1 of type text has text None"),
        (user({"type": "text", "text": b"x"}), "part 1 of type text has text bytes of length 1"),
        (user({"type": "text", "text": "\ud800"}), "part 1, text is not valid Unicode"),
        (user({"type": "text", "text": "x", "image": "a.png"}), "of type text also has image 'a.png': make two"),
        (user({"type": "image", "image": "a.png", "text": "x"}), "of type image also has text 'x'"),
        (user({"type": "image"}), "part 1 of type image names no image: add 'image': its path"),
        (user({"type": "image", "image": ""}), "names no image"),
        (user({"type": "image", "image": "a.png", "url": "b.png"}), "names its image by image and by url: give one"),
        (user({"type": "image", "image": 5}), "part 1, image is 5: give a path, bytes"),
        (user({"type": "image", "image": ["a.png", "b.png"]}), r"image is \['a.png', 'b.png'\]: give a path"),
        (user({"type": "image_url", "image_url": {"uri": "a.png"}}), r"image_url\.url is None"),
        (user({"type": "image", "base64": "%%"}), "base64 is '%%', not base64"),
        (user({"type": "image", "base64": 5}), "base64 is 5, not base64"),
        (user({"type": "image", "image": "a.png", "min_pixels": 9}), "has min_pixels 9, which is not .* load_proc"),
        (user({"type": "video", "video": "a.mp4", "fps": 1.0}), r"has fps 1\.0, which .*sampling=VideoSampling"),
        (user({"type": "video", "video": []}), r"video is \[\]: give a path, a list of frames"),
        (user({"type": "video", "video": ["a.png", 5]}), "video, frame 2 is 5: give a path, bytes"),
        (user({"type": "video", "video": b"mp4"}), "video is bytes of length 3: give a path, a list"),
        (user({"type": "video", "video": torch.zeros(3, 4, 4)}), r"video is Tensor of shape \[3, 4, 4\]"),
        (user({"type": "video", "video": [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]}), "frame 2 differs"),
        (user({"type": "image", "image": "https://host/a.png"}), "is an address: download it"),
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,%"}}), r"url\.url is .*not base64"),
        (user({"type": "video", "video": ["a.png", "data:image/png;base64,%"]}), r"video, frame 2 is .*not base64"),
        (user({"type": "image", "image": "data:,AA"}), "is a file written as text"),
        (user({"type": "video", "video": "data:video/mp4;base64,A"}), "written as text .*give the file's path"),
        (user({"type": "image", "image": "/9j/" + "A" * 61}), "part 1, image is '/9j/A.*', not base64"),
        (user({"type": "image", "image": "Z" * 64}), "image Z+ does not exist: check the path"),
        (user({"type": "image", "image": NESTED_TENSOR}), "message 1, part 1, image is a tensor without plain values"),
        (user({"type": "video", "video": NESTED_TENSOR}), "message 1, part 1, video is a tensor without plain values"),
        ([{"role": "user", "content": NESTED_TENSOR}], "message 1 has content a nested Tensor"),
        (user({"type": "image", "image": 10**5000}), "image is a int: give a path|image is <int"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_named_by_its_place(tiny_processor, given, words):
    with pytest.raises(InputError, match=words) as error:
        build_inputs(tiny_processor, given)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


# -- a thousand mutations ----------------------------------------------------------------------------------------------

KEYS = ["role", "content", "type", "text", "image", "video", "path", "url", "image_url", "base64", "fps", "tool_calls"]


@functools.cache
def junk(path: str) -> st.SearchStrategy:
    picture = Image.new("RGB", (48, 48), "red")
    fixed = [
        None, True, 0, -1, 2**70, 1.5, float("nan"), b"x", "", " ", "\ud800", "a\udfff", "\0", "x" * 5000, [], {}, [()],
        [None], {1: 2}, NESTED, "user", "tool", "text", "image", "video", path, Path(path), "/none.png", "~no/a.png",
        "http://host/a.png", "data:image/png;base64,AA", "file:///a", "<|image_pad|>", "<|im_end|>", picture, object(),
        np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), torch.zeros(0), set(), range(3), complex(1, 2), [picture, picture],
        {"url": path}, {"bytes": b"no"}, {"bytes": None}, Image.new("RGB", (0, 3)), Image.new("F", (3, 3)), "/dev/zero",
    ]  # fmt: skip
    copied = st.sampled_from(fixed).map(lambda value: copy.copy(value) if isinstance(value, (list, dict)) else value)
    return st.one_of(copied, st.text(max_size=9), st.integers(), st.floats(), st.binary(max_size=9))


def conversations(path: str) -> list[Any]:
    picture = Image.open(path)
    return [
        [user({"type": "image", "image": path}, TEXT)],
        [{"role": "user", "content": "count"}, {"role": "assistant", "content": "3"}],
        [[{"role": "system", "content": "x"}, *user({"type": "image_url", "image_url": {"url": path}})], user(TEXT)],
        [user({"type": "video", "video": [picture, picture]}, TEXT)],
    ]


def places(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """(container, key) of everything in lists and dicts."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if depth > 9:
        return []
    return [place for key in keys for place in [(value, key), *places(value[key], depth + 1)]]


def mutate(value: Any, data: st.DataObject, others: st.SearchStrategy) -> Any:
    """The value with something in it replaced, removed, added or nested."""
    found = places(value)
    action = data.draw(st.sampled_from(["replace", "replace", "delete", "add", "nest", "all"]))
    if not found or action == "all":
        return data.draw(others)
    holder, key = data.draw(st.sampled_from(found))
    if action == "delete":
        del holder[key]
    elif action == "add" and isinstance(holder, dict):
        holder[data.draw(st.one_of(st.sampled_from(KEYS), st.integers(), st.none()))] = data.draw(others)
    elif action == "nest":
        holder[key] = [holder[key], holder[key]]
    else:
        holder[key] = data.draw(others)
    return value


def end_in_inputs_or_one_line(processor, path: str, data: st.DataObject) -> None:
    given = data.draw(st.builds(lambda number: conversations(path)[number], st.integers(0, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        given = mutate(given, data, junk(path))
    said = ""
    try:
        with bounded("messages"):
            found = build_inputs(processor, given)
        assert found["input_ids"].shape == found["attention_mask"].shape
    except UserError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1000


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (48, 48), "red").save(path)
    return str(path)


@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_mutations_end_in_inputs_or_in_one_line(tiny_processor, red, data):
    end_in_inputs_or_one_line(tiny_processor, red, data)


@pytest.mark.slow
@settings(max_examples=10_000, derandomize=False, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_many_more_mutations(tiny_processor, red, data):
    end_in_inputs_or_one_line(tiny_processor, red, data)


def test_checked_messages_are_checked_again_without_change(write_image):
    given = conversations(write_image("a.png"))
    for messages in given:
        once = check_conversations(messages)
        assert check_conversations(once) == once
