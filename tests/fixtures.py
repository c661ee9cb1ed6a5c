"""Fixtures shared by several folders of tests: writers of pictures and clips, and the embedded tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ.get("PPE_TEST_THREADS", "1")))  # for tiny tensors a second thread only waits


@pytest.fixture
def write_clip(tmp_path):
    """write_clip(name, frames=8, fps=4, size=48) -> path of an mp4 whose frame i is grey of brightness 20 + 10 * i."""

    return lambda name, *args, **kwargs: encode_clip(tmp_path / name, *args, **kwargs)


def encode_clip(
    path: Path, frames: int = 8, fps: int = 4, size: int = 48, keys: int = 250, noise: int | None = None
) -> str:
    """Write a clip as write_clip does, with a key frame every `keys` frames. noise: a seed, for frames of noise."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = size, size, "yuv420p", keys
        for number in range(frames):
            pixels = np.full((size, size, 3), 20 + 10 * number, dtype=np.uint8)
            if noise is not None:
                pixels = np.random.default_rng([noise, number]).integers(0, 256, pixels.shape, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


@pytest.fixture
def write_image(tmp_path):
    """write_image(name, seed=0, size=(48, 48)) -> path of a picture of random pixels."""
    from PIL import Image

    def write(name: str, seed: int = 0, size: tuple[int, int] = (48, 48)) -> str:
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        return str(path)

    return write


@pytest.fixture
def undrawn_report(monkeypatch):
    """Makes evaluations write a stub instead of drawing their report's picture, which takes most of their time."""
    from ppe_npu.files import write_bytes

    monkeypatch.setattr("ppe_npu.evaluation.report.draw", lambda comparison, path, title: write_bytes(path, b"drawn"))


@pytest.fixture(scope="session")
def tiny_processor():
    """The embedded processor; tests must not change it."""
    from ppe_npu.demo import tiny

    return tiny.build_processor()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_processor):
    """A checkpoint folder with the embedded tiny model, random weights; tests must not change it."""
    from ppe_npu.demo import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.build_model(seed=0).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def spelling_processors(tiny_processor):
    """{family: processor} for the random models of tests/support.py. They allow pictures and frames of several sizes,
    and their tokenizer spells every text, so that no two texts are equal to it. Tests must not change them."""
    import transformers

    tokenizer, size = _spelling_tokenizer(), {"shortest_edge": 16 * 16, "longest_edge": 100 * 100}
    settings = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    images = type(tiny_processor.image_processor)(**settings, size=size)
    makers = {
        "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor", size),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", size),
        "qwen3_vl": (  # its size is that of a whole video
            "Qwen3VLProcessor", "Qwen3VLVideoProcessor", {"shortest_edge": 4 * 16 * 16, "longest_edge": 8 * 64 * 64},
        ),
    }  # fmt: skip
    return {
        family: getattr(transformers, name)(
            image_processor=images,
            tokenizer=tokenizer,
            video_processor=getattr(transformers, video)(**settings, size=size),
            chat_template=tiny_processor.chat_template,
        )
        for family, (name, video, size) in makers.items()
    }


def _spelling_tokenizer():
    """A tokenizer of bytes, split as in GPT-2; some signs merge with a neighbour, as in real vocabularies."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ppe_npu.demo.tiny import END, PAD, SPECIAL_TOKENS

    joined = [("Ġ", "<"), (":", "<"), (">", "?"), ("1", "0")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*SPECIAL_TOKENS, *letters, *("".join(pair) for pair in joined)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, joined))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def write_noise_records(folder: Path, records: int, most_words: int) -> Path:
    """Write train.json with records whose answers have one to most_words words, and return its path.

    The pictures are noise: in drawn ones many patches are equal, and which of them is a centre depends on the last bit,
    and so on how records are batched.
    """
    from PIL import Image

    generator, written = np.random.default_rng(0), []
    for number in range(records):
        Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        answer = " ".join(str(digit) for digit in generator.integers(0, 10, number % most_words + 1))
        turns = [{"from": "human", "value": "<image>\nrow red"}, {"from": "gpt", "value": answer}]
        written.append({"id": number, "image": f"{number}.png", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(written))
    return folder / "train.json"


def write_mixed_records(folder: Path, records: int) -> Path:
    """Write mixed.json with records of a picture, of text, and of a picture and a clip alternately, all pixels noise,
    and return its path."""
    write_noise_records(folder, records, most_words=4)
    written = json.loads((folder / "train.json").read_text())
    for number, record in enumerate(written):
        if number % 3 == 1:
            del record["image"]
            record["conversations"][0]["value"] = "row red"
        if number % 3 == 2:
            encode_clip(folder / f"{number}.mp4", frames=4, noise=number)
            record["video"] = f"{number}.mp4"
            record["conversations"][0]["value"] = "<image>\n<video>\nrow red"
    (folder / "mixed.json").write_text(json.dumps(written))
    return folder / "mixed.json"
