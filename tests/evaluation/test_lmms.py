"""lmms-eval's requests without lmms-eval: conversations, batches, answers and losses. test_lmms_task.py runs tasks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tolerances import loss_near

from ppe_npu.data.inputs import build_inputs
from ppe_npu.errors import InputError
from ppe_npu.evaluation import lmms
from ppe_npu.evaluation.lmms import Answerer, in_batches, question, translated


@pytest.fixture
def answerer(tiny_folder):
    """An Answerer of the tiny random model, with batches of two."""
    return Answerer.load(tiny_folder, compression="ppe", ratio=0.4, k=4, device="cpu", batch_size="2", nframes=4)


def asked(write_image, write_clip):
    """Contents: an image, no visual, a video, and two images, one of them a PIL picture with an alpha channel."""
    picture = Image.new("RGBA", (48, 48), (200, 30, 30, 128))
    return [
        [{"type": "image", "url": write_image("a.png")}, {"type": "text", "text": "shape red"}],
        [{"type": "text", "text": "row blue"}],
        [{"type": "video", "url": write_clip("v.mp4")}, {"type": "text", "text": "count green"}],
        [{"type": "image", "url": picture}, {"type": "image", "url": write_image("b.png", 1)}],
    ]


def test_answers_of_a_batch_are_those_of_each_alone(answerer, write_image, write_clip):
    contents = asked(write_image, write_clip)
    conversations = [translated([{"role": "user", "content": content}]) for content in contents]
    options = {"max_new_tokens": 4, "until": ["\n\n"], "temperature": 0, "do_sample": False}
    together = answerer.answers(conversations, options)
    assert together == [answerer.answers([one], options)[0] for one in conversations]
    assert len(answerer.done) == 5
    assert max(answerer.done[0].new_tokens) <= 4
    assert answerer.done[0].tokens_after == [15.0, 0.0, 2 * 15.0, 30.0]  # ceil(36 * 0.4) of every frame
    assert answerer.summary().startswith("ppe_npu: 8 answers, 360 visual tokens, 150 kept (41.7%), ")
    # A stop string cuts the answer; lmms-eval's own default, the end of a paragraph, does not occur in it.
    words = together[0].split()
    assert answerer.answers(conversations[:1], {**options, "until": words[1]}) == [together[0].split(words[1])[0]]


def test_losses_are_the_mean_cross_entropy_of_the_continuation(answerer, write_image, write_clip):
    contents = asked(write_image, write_clip)[:3]
    conversations = [translated([{"role": "user", "content": content}]) for content in contents]
    wanted = [" 3", "shape red 3", "row"]
    found = answerer.losses(conversations, wanted)
    for one, text, (loss, greedy) in zip(conversations, wanted, found):
        inputs = build_inputs(answerer.processor, [one], sampling=answerer.sampling)
        end = torch.tensor([answerer.processor.tokenizer(text)["input_ids"]])
        for name, more in (("input_ids", end), ("attention_mask", end * 0 + 1), ("mm_token_type_ids", end * 0)):
            inputs[name] = torch.cat([inputs[name], more], dim=1)
        with torch.no_grad():
            logits = answerer.model(**inputs).logits[0, -1 - end.shape[1] : -1]
        expected = torch.nn.functional.cross_entropy(logits, end[0])
        assert loss == loss_near(expected.item(), layers=3)
        assert greedy == (logits.argmax(-1) == end[0]).all().item()
    said = answerer.answers(conversations[1:2], {"max_new_tokens": 1})[0]
    others = [word for word in ("red", "blue", "row") if word != said]
    if said:  # a special token has no text
        assert answerer.losses(conversations[1:2] * 2, [said, others[0]])[0][1] is True
    with pytest.raises(InputError, match="has no tokens"):
        answerer.losses(conversations[:1], [" "])


def test_a_simple_models_pictures_stand_where_the_text_says_or_first(write_image):
    a, b = write_image("a.png"), write_image("b.png", 1)
    (turn,) = question("look <image> and <image>, then", [a, b])
    assert [part.get("image", part.get("text")) for part in turn["content"]] == ["look ", a, " and ", b, ", then"]
    (turn,) = question("look <image>", [a, b])
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"]
    assert turn["content"][-1]["text"] == "look "
    (turn,) = question("what happens?", ["clip.mp4"])
    assert turn["content"][0] == {"type": "video", "video": "clip.mp4"}
    assert question("row red", None) == [{"role": "user", "content": [{"type": "text", "text": "row red"}]}]


def test_batches_hold_requests_of_like_options_in_their_order():
    requests = [SimpleNamespace(args=("", {"max_new_tokens": n})) for n in (4, 8, 4, 4, 8, 4)]
    batches = list(in_batches(requests, lambda request: request.args[1], 2))
    assert batches == [[0, 2], [3, 5], [1, 4]]


def test_the_longest_requests_go_first_and_batches_shrink_when_told():
    requests = [SimpleNamespace(args=("x" * n, {})) for n in (1, 3, 2, 3, 5)]
    sizes = iter([2, 1, 2])
    batches = in_batches(requests, lambda request: {}, lambda: next(sizes), lambda request: len(request.args[0]))
    assert list(batches) == [[4, 1], [3], [2, 0]]


def test_a_batch_that_memory_does_not_hold_is_answered_in_halves(answerer, write_image, write_clip, monkeypatch):
    from ppe_npu.evaluation import lmms

    contents = asked(write_image, write_clip)
    conversations = [translated([{"role": "user", "content": content}]) for content in contents]
    options, generate = {"max_new_tokens": 4}, lmms.generate
    expected = answerer.answers(conversations, options)
    sizes = []

    def scarce(model, processor, inputs, most):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, processor, inputs, most)

    monkeypatch.setattr(lmms, "generate", scarce)
    assert answerer.answers(conversations, options) == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert answerer.batch_size == 1
    assert len(answerer.new_tokens) == 8
    monkeypatch.setattr(lmms, "generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):  # one alone does not fit: nothing is left to halve
        answerer.answers(conversations[:1], options)


def test_losses_that_memory_does_not_hold_are_computed_in_halves(answerer, write_image, monkeypatch):
    asked = [question(f"row {word}", [write_image(f"{word}.png")]) for word in ("red", "blue", "green")]
    words = ["3", "shape ring", "red"]
    expected = answerer.losses(asked, words)
    forward, sizes = answerer.model.forward, []

    def scarce(input_ids, **more):
        sizes.append(len(input_ids))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(input_ids=input_ids, **more)

    monkeypatch.setattr(answerer.model, "forward", scarce)
    found = answerer.losses(asked, words)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    for (loss, _), (other, _) in zip(found, expected):
        assert loss == loss_near(other, layers=3)
    assert sizes == [3, 1, 2, 1, 1]
    assert answerer.batch_size == 1


def test_clips_and_lists_of_frames_are_videos(answerer, write_clip):
    path = write_clip("v.mp4")
    whole, clip, frames = (
        translated([{"role": "user", "content": [{"type": "video", "url": url, **more}]}])
        for url, more in (
            (path, {}),
            (path, {"start_time": 0.0, "end_time": 0.5}),
            ([Image.new("RGB", (48, 48))] * 4, {}),
        )
    )
    answers = answerer.answers([whole, clip, frames], {"max_new_tokens": 2})
    assert len(answers) == 3
    before = answerer.done[-1].tokens_before
    assert before[0] == before[2] == 72  # four frames in two steps
    assert 0 < before[1] <= before[0]
    opened = answerer._opened(clip[0])["content"][0]["video"]
    assert len(opened.frames) <= 4


def test_lmms_evals_names_of_frames_and_pixels_are_taken(tiny_folder):
    found = Answerer.load(tiny_folder, device="cpu", max_num_frames=2, total_pixels=10**6, fps=1.0)
    assert (found.sampling.max_frames, found.sampling.min_frames, found.sampling.total_pixels) == (2, 2, 10**6)


def test_a_protocol_gives_sizes_and_frames_as_lmms_evals_own_models_have_them(tiny_folder):
    found = Answerer.load(tiny_folder, device="cpu", protocol="lmms-eval")
    assert (found.sampling.nframes, found.sampling.total_pixels) == (32, 19267584)
    bounds = found.processor.image_processor.size
    assert (bounds["shortest_edge"], bounds["longest_edge"]) == (200704, 1605632)
    assert found.model.dtype == torch.float32  # on the CPU
    found = Answerer.load(tiny_folder, device="cpu", protocol="lmms-eval", max_num_frames=8, max_pixels=300_000)
    assert (found.sampling.nframes, found.sampling.max_pixels) == (8, 300_000)
    assert found.processor.image_processor.size["longest_edge"] == 300_000
    found = Answerer.load(tiny_folder, device="cpu", protocol="lmms-eval", max_num_frames=8, fps=1.0)
    assert (found.sampling.fps, found.sampling.nframes, found.sampling.max_frames) == (1.0, None, 8)
    with pytest.raises(InputError, match="protocol 'x' is unknown: use one of checkpoint, lmms-eval"):
        Answerer.load(tiny_folder, protocol="x")


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "audio", "url": "a.wav"}, "asks about audio"),
        ({"type": "video", "url": []}, "videos as list"),
        ({"type": "image", "url": {"bytes": b""}}, "images as dict"),
    ],
)
def test_what_cannot_be_asked_is_said(part, word):
    with pytest.raises(InputError, match=word):
        translated([{"role": "user", "content": [part]}])
    with pytest.raises(InputError, match="only pictures and files are supported"):
        question("row", [b"bytes"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"do_sample": True, "temperature": 0.7}, "temperature 0.7"),
        ({"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.9}, "temperature 0.7"),
        ({"do_sample": True}, "temperature 1"),
        ({"num_beams": 3}, "3 beams"),
    ],
)
def test_sampling_and_beams_are_refused(answerer, options, word):
    with pytest.raises(InputError, match=word):
        answerer.answers([], options)


def test_a_temperature_beside_do_sample_false_is_greedy_and_said_once(monkeypatch):
    """Eight task files of lmms-eval 0.7.3 say so (MM-Vet's among them); its own Qwen models then sample."""
    said = []
    monkeypatch.setattr(lmms, "_say", said.append)
    lmms._say_greedy.cache_clear()
    assert [lmms._stops({"temperature": 0.2, "do_sample": False, "until": "x"}) for _ in range(2)] == [["x"]] * 2
    assert lmms._stops({"temperature": 0, "do_sample": False}) == []
    assert len(said) == 1
    assert "temperature 0.2 with do_sample=False: answers here are greedy" in said[0]


def test_arguments_are_checked_before_the_weights_are_read(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ppe_npu.evaluation.lmms.load_model", lambda *_: pytest.fail("the weights were read"))
    for wrong, word in (
        ({"batch_size": "auto"}, "batch_size=auto"),
        ({"dtype": "int8"}, "dtype=int8"),
        ({"compression": "nothing"}, "preset 'nothing'"),
        ({"compression": "ppe", "k": 9}, "k=9"),
        ({"nframes": 4, "fps": 2.0}, "exclude each other"),
        ({"device": "gpu"}, "unknown"),
    ):
        with pytest.raises(ValueError, match=word):
            Answerer.load(tiny_folder, **{"device": "cpu", **wrong})


def test_a_checkpoints_own_compression_is_taken(tiny_folder, tmp_path):
    for file in Path(tiny_folder).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "compression.json").write_text(json.dumps({"method": "uniform", "positions": "keep_one", "k": 1}))
    assert Answerer.load(str(tmp_path), device="cpu", ratio=0.5).model.compression.config.label.startswith("uniform")


def test_any_method_is_taken_with_its_fields(tiny_folder):
    asked = {"compression": "divprune", "ratio": 0.25, "positions": "ppe", "k": 4, "dropped": "drop"}
    config = Answerer.load(tiny_folder, device="cpu", **asked).model.compression.config
    assert config.methods[0].to_dict() == {"method": "divprune", "ratio": 0.25, "dropped": "drop"}
    assert (config.positions, config.k) == ("ppe", 4)
    with pytest.raises(ValueError, match="divprune has no rate"):
        Answerer.load(tiny_folder, device="cpu", compression="divprune", rate=0.25)
