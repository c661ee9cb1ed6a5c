"""Messages -> model inputs: equal to transformers' own processor; videos by PyAV; one clear line for bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import assert_equal, codec_error

from ppe_npu.checkpoints.loading import load_processor
from ppe_npu.data import inputs as module
from ppe_npu.data.inputs import InputError, PixelCache, VideoSampling, build_inputs, load_image, load_video, to_device


def ask(text: str, **visuals):
    items = [{"type": kind, kind: path} for kind, path in visuals.items() if path is not None]
    return [{"role": "user", "content": [*items, {"type": "text", "text": text}]}]


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


# -- equal to transformers ---------------------------------------------------------------------------------------------


def test_equals_the_processors_own_call_for_text_images_and_video_in_one_batch(tiny_processor, write_image, write_clip):
    first, second, clip = write_image("a.png", 1), write_image("b.png", 2, (96, 48)), write_clip("c.mp4", 8, 4)
    two = [
        {"role": "user", "content": [*ask("row red", image=first)[0]["content"], {"type": "image", "image": second}]}
    ]
    conversations = [ask("shape red", image=first), ask("count"), two, ask("col blue", video=clip)]
    ours = build_inputs(tiny_processor, conversations, sampling=VideoSampling(nframes=4))

    texts = tiny_processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    theirs = tiny_processor(
        text=texts,
        images=[load_image(p) for p in (first, first, second)],
        videos=[load_video(clip, VideoSampling(nframes=4)).frames],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        # 4 of 8 frames at 4 frames per second: what transformers is told of the file and of the frames taken.
        video_metadata=[{"total_num_frames": 8, "fps": 4, "frames_indices": [0, 2, 5, 7]}],
    )
    assert set(ours) == set(theirs) | {"mm_token_type_ids"}  # which processors before transformers 5.3 do not make
    for key, value in theirs.items():
        assert_equal(ours[key], torch.as_tensor(value), key)


def test_padding_on_the_right_moves_nothing_else(tiny_processor, write_image):
    conversations = [ask("shape red", image=write_image("a.png")), ask("count")]
    right = build_inputs(tiny_processor, conversations, padding_side="right")
    assert right["attention_mask"][1].tolist()[:1] == [1]
    assert right["attention_mask"][1].tolist()[-1] == 0
    left = build_inputs(tiny_processor, conversations)
    real = [row[mask.bool()].tolist() for row, mask in zip(left["input_ids"], left["attention_mask"])]
    assert real == [row[mask.bool()].tolist() for row, mask in zip(right["input_ids"], right["attention_mask"])]


def test_pictures_are_processed_once_with_a_cache(tiny_processor, write_image, monkeypatch):
    path, cache, loads = write_image("a.png"), PixelCache(), []
    monkeypatch.setattr(module, "load_still", lambda p: loads.append(p) or load_image(p))
    conversations = [ask("shape red", image=path), ask("row red", image=path)]
    first = build_inputs(tiny_processor, conversations, cache=cache)
    second = build_inputs(tiny_processor, conversations, cache=cache)
    assert loads == [path]
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert len(first["image_grid_thw"]) == 2


def test_the_cache_drops_the_least_recently_used():
    cache = PixelCache(max_bytes=80)
    for key in "ab":
        cache.put(key, (torch.zeros(10),))
    assert cache.get("a") is not None
    cache.put("c", (torch.zeros(10),))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    cache.put("large", (torch.zeros(100),))
    assert cache.get("large") is None


def test_pixels_take_the_models_dtype_and_seconds_stay_fp32(tiny_processor, write_clip):
    inputs = build_inputs(tiny_processor, [ask("count", video=write_clip("c.mp4"))])
    moved = module.to_device(inputs, "cpu", torch.bfloat16)
    assert moved["pixel_values_videos"].dtype == torch.bfloat16
    assert moved["second_per_grid_ts"].dtype == torch.float32
    assert moved["input_ids"].dtype == torch.int64


def test_pictures_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (10, 20)


# -- videos ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "frames", "seconds_per_step"),
    [
        (VideoSampling(fps=2), 8, 1.0),  # 4 s at 2 frames per second; two frames make one step
        (VideoSampling(fps=1), 4, 2.0),
        (VideoSampling(nframes=4), 4, 2.0),
        (VideoSampling(nframes=5), 4, 2.0),  # whole steps of two frames
        (VideoSampling(nframes=99), 16, 0.5),  # no more than there are
        (VideoSampling(), 8, 1.0),
    ],
)
def test_frames_and_seconds_per_step(tiny_processor, write_clip, sampling, frames, seconds_per_step):
    clip = write_clip("c.mp4", frames=16, fps=4)
    inputs = build_inputs(tiny_processor, [ask("count", video=clip)], sampling=sampling)
    assert load_video(clip, sampling).frames.shape == (frames, 3, 48, 48)
    assert inputs["video_grid_thw"][0, 0] == frames // 2
    assert inputs["second_per_grid_ts"].tolist() == [seconds_per_step]


def test_frames_are_evenly_spaced_from_first_to_last(write_clip):
    video = load_video(write_clip("c.mp4", frames=10, fps=5), VideoSampling(nframes=4))
    brightness = video.frames.float().mean((1, 2, 3))
    assert brightness.tolist() == pytest.approx([20.0, 50.0, 80.0, 110.0], abs=codec_error())


def test_a_video_of_one_frame_is_one_step(tiny_processor, write_clip):
    inputs = build_inputs(tiny_processor, [ask("count", video=write_clip("c.mp4", frames=1))])
    assert inputs["video_grid_thw"][0, 0] == 1


def test_pixel_bounds_of_videos_and_images(tiny_processor, tiny_folder, write_clip, write_image):
    sampling = VideoSampling(nframes=2, min_pixels=16 * 16, max_pixels=24 * 24)
    inputs = build_inputs(tiny_processor, [ask("count", video=write_clip("c.mp4"))], sampling=sampling)
    assert inputs["video_grid_thw"].tolist() == [[1, 6, 6]]
    small = load_processor(tiny_folder, min_pixels=16 * 16, max_pixels=24 * 24)
    inputs = build_inputs(small, [ask("count", image=write_image("a.png"))])
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 6]]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_images_are_named(tmp_path, write_image):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(write_image("whole.png")).read_bytes()[:200])
    for path, words in (
        (broken, "not a picture"),
        (cut, "cannot be read"),
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        ("https://host/a.png", "download it"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_image(path)
        assert str(path) in one_line(error)


def test_bad_videos_are_named(tmp_path, write_clip):
    import av

    text = tmp_path / "text.mp4"
    text.write_text("no video")
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    empty = tmp_path / "empty.mp4"
    with av.open(str(empty), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        container.start_encoding()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(Path(write_clip("whole.mp4")).read_bytes()[:300])
    for path, words in (
        (text, "cannot be decoded"),
        (sound, "no video stream"),
        (empty, "no (frames|video stream)"),
        (cut, "cannot be decoded"),
        (tmp_path / "none.mp4", "does not exist"),
    ):
        with pytest.raises(InputError, match=words) as error:
            load_video(path)
        assert str(path) in one_line(error)


@pytest.mark.parametrize(
    "values",
    [{"fps": 1, "nframes": 2}, {"fps": 0}, {"nframes": -1}, {"min_pixels": 9, "max_pixels": 8}, {"min_frames": 999}],
)
def test_contradicting_samplings_are_refused(values):
    with pytest.raises(InputError) as error:
        VideoSampling(**values)
    one_line(error)


def test_a_prompt_needs_one_placeholder_per_visual(tiny_processor, write_image):
    path = write_image("a.png")
    extra = [
        {"role": "user", "content": [*ask("", image=path)[0]["content"], {"type": "text", "text": "<|image_pad|>"}]}
    ]
    with pytest.raises(
        InputError, match=r"prompt 2 has 2 image placeholders .* for 1 image: its text must not contain <\|im"
    ) as error:
        build_inputs(tiny_processor, [ask("count"), extra])
    one_line(error)


def test_a_template_that_writes_no_placeholder_is_refused(tiny_folder, write_image):
    processor = load_processor(tiny_folder)
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(InputError, match=r"prompt 1 has 0 image .*: the checkpoint's chat template must write one per"):
        build_inputs(processor, [ask("count", image=write_image("a.png"))])


def test_other_malformed_messages_are_refused(tiny_processor):
    with pytest.raises(InputError, match="no conversation"):
        build_inputs(tiny_processor, [])
    with pytest.raises(InputError, match="audio"):
        build_inputs(tiny_processor, [[{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]])
    with pytest.raises(InputError, match="names no image"):
        build_inputs(tiny_processor, [[{"role": "user", "content": [{"type": "image"}]}]])
    with pytest.raises(InputError, match="too narrow"):
        build_inputs(tiny_processor, [ask("count", image=Image.new("RGB", (1, 201)))])


@pytest.mark.parametrize("wrong", ["x", 3, {"fps": 1}, object()], ids=["text", "number", "mapping", "object"])
def test_arguments_of_another_kind_are_named(tiny_processor, write_image, wrong):
    """This holds whatever the conversation contains; the error does not blame the messages."""
    for messages in (ask("count", image=write_image("a.png")), [{"role": "user", "content": "row"}]):
        for name in ("sampling", "cache", "add_generation_prompt"):
            with pytest.raises(InputError, match=f"^{name} is ") as error:
                build_inputs(tiny_processor, messages, **{name: wrong})
            one_line(error)
        with pytest.raises(InputError, match=r"^padding_side="):
            build_inputs(tiny_processor, messages, padding_side=wrong)
        for processor in (wrong, None, tiny_processor.tokenizer, torch.nn.Linear(1, 1)):
            with pytest.raises(InputError, match=r"^processor is of type .*: give the checkpoint's"):
                build_inputs(processor, messages)
    with pytest.raises(InputError, match=r"^sampling is of type "):
        load_video("a.mp4", wrong)
    inputs = build_inputs(tiny_processor, messages)
    with pytest.raises(InputError, match=r"^device is "):
        to_device(inputs, wrong if wrong != 3 else "cpu:x", torch.float32)
    with pytest.raises(InputError, match=r"^dtype is "):
        to_device(inputs, "cpu", wrong)


# -- placeholders in text ----------------------------------------------------------------------------------------------


def test_split_placeholders_puts_visuals_where_they_stand():
    items = module.split_placeholders("look\n<image>\nthen <video> and <image>", ["a", "b"], ["v"])
    assert items == [
        {"type": "text", "text": "look"},
        {"type": "image", "image": "a"},
        {"type": "text", "text": "then "},
        {"type": "video", "video": "v"},
        {"type": "text", "text": " and "},
        {"type": "image", "image": "b"},
    ]


@pytest.mark.parametrize(("text", "images"), [("what?", ["a"]), ("<image>", []), ("<image>", ["a", "b"])])
def test_split_placeholders_counts(text, images):
    with pytest.raises(InputError, match="one <image> per image") as error:
        module.split_placeholders(text, images)
    one_line(error)
