"""The pictures and videos of the page: built-in ones, which are drawn here, and the user's files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import VideoSampling
from ppe_npu.data.videos import Video, load_video
from ppe_npu.demo import scenes
from ppe_npu.errors import InputError, shown

_VIDEOS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp", ".ts")
_STEPS = 4  # temporal steps of the built-in video


@dataclass(frozen=True)
class Source:
    """A picture or a video.

    Attributes:
        kind: "image" or "video". held: the picture or Video for build_inputs().
        frames: the picture, or the first frame of each temporal step.
    """

    kind: str
    held: Any
    frames: tuple[Image.Image, ...]

    def messages(self, question: str) -> list[dict[str, Any]]:
        """One user turn: the visual, then the question."""
        content = [{"type": self.kind, self.kind: self.held}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]


def names() -> tuple[str, ...]:
    """Names of the built-in pictures and videos."""
    return tuple(_OURS)


def ours(name: str, unit: int, temporal_patch: int = 2) -> Source:
    """A built-in picture or video.

    Args:
        unit: pixels along one side of a visual token. temporal_patch: frames per temporal step.

    Raises:
        InputError: the name is unknown.
    """
    if name not in _OURS:
        raise InputError(f"unknown source {shown(name)}: choose one of {', '.join(_OURS)}")
    frames = _OURS[name](unit)
    if len(frames) == 1:
        return Source("image", frames[0], tuple(frames))
    pixels = np.stack([np.asarray(frame) for frame in frames]).repeat(temporal_patch, axis=0)
    return Source("video", Video(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), 4.0, name), tuple(frames))


def yours(path: str, sampling: VideoSampling, temporal_patch: int = 2) -> Source:
    """The picture or video in a user's file.

    Raises:
        InputError: the file is neither a picture nor a video, is broken, or is too large.
    """
    name = Path(path).name
    if Path(path).suffix.lower() in _VIDEOS:
        try:
            video = load_video(path, sampling, temporal_patch)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from error  # hides the server's folder
        pixels = video.frames[::temporal_patch].permute(0, 2, 3, 1).numpy()
        return Source("video", video, tuple(map(Image.fromarray, pixels)))
    image = load_image(Path(path).read_bytes(), f"picture {name}")
    return Source("image", image, (image,))


def _scene(seed: int, unit: int) -> list[Image.Image]:
    """One of the demo's scenes, with one visual token per cell of its grid."""
    scene = scenes.make_scene(np.random.default_rng(seed))
    return [scene.render().resize((scenes.GRID * unit,) * 2, Image.Resampling.NEAREST)]


def _vanishing(unit: int) -> list[Image.Image]:
    """A scene that loses one figure with every step."""
    scene = scenes.make_scene(np.random.default_rng(3))
    steps = [scenes.Scene(scene.figures[number:]) for number in range(_STEPS)]
    return [step.render().resize((scenes.GRID * unit,) * 2, Image.Resampling.NEAREST) for step in steps]


def _house(unit: int) -> list[Image.Image]:
    """A house under a sky, 20 tokens wide and 15 high."""
    big = 4  # drawn larger by this factor, for smooth edges
    picture = Image.new("RGB", (20 * unit * big, 15 * unit * big), (150, 196, 236))
    draw = ImageDraw.Draw(picture)

    def scaled(*points: float) -> list[float]:
        return [point * unit * big for point in points]

    draw.ellipse(scaled(15.6, 1.2, 18.2, 3.8), (250, 214, 70))
    for x, y in ((2.0, 2.0), (3.4, 1.5), (4.8, 2.1)):
        draw.ellipse(scaled(x, y, x + 2.2, y + 1.5), (244, 247, 250))
    draw.polygon(scaled(0, 10.5, 5, 8.6, 11, 10.2, 20, 8.9, 20, 15, 0, 15), (104, 160, 84))
    draw.rectangle(scaled(6, 6.5, 13, 12.5), (214, 170, 120))
    draw.polygon(scaled(5.2, 6.6, 9.5, 3.2, 13.8, 6.6), (168, 62, 52))
    draw.rectangle(scaled(8.7, 9.3, 10.3, 12.5), (96, 64, 44))
    for x in (6.8, 11.0):
        draw.rectangle(scaled(x, 7.8, x + 1.3, 9.1), (120, 180, 214), (70, 50, 40), 2 * big)
    draw.rectangle(scaled(16.2, 8.6, 16.9, 12.3), (104, 76, 52))
    draw.ellipse(scaled(15.0, 5.6, 18.1, 9.4), (58, 122, 62))
    return [picture.resize((20 * unit, 15 * unit), Image.Resampling.LANCZOS)]


_OURS = {"house": _house, **{f"scene {seed}": partial(_scene, seed) for seed in (3, 7, 11)}, "video": _vanishing}
