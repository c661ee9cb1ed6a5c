"""Fixtures that several folders of tests share: pictures and clips written by the test, and the embedded tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture
def write_clip(tmp_path):
    """write_clip(name, frames=8, fps=4, size=48) -> path of an mp4 whose frame i is grey, brightness 20 + 10 * i."""

    return lambda name, *args, **kwargs: encode_clip(tmp_path / name, *args, **kwargs)


def encode_clip(path: Path, frames: int = 8, fps: int = 4, size: int = 48, keys: int = 250) -> str:
    """What write_clip does, at any path, with a key frame every `keys` frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = size, size, "yuv420p", keys
        for number in range(frames):
            pixels = np.full((size, size, 3), 20 + 10 * number, dtype=np.uint8)
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


def write_noise_records(folder: Path, records: int, most_words: int) -> Path:
    """train.json of records with answers of one to most_words words; gives its path.

    The pictures are noise: in a drawn one many patches are equal, and which of them is a centre hangs on the last bit,
    that is on how a batch is cut.
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
