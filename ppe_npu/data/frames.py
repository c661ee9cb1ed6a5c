"""A video that is given as its frames: pictures in a list, or one array or tensor of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ppe_npu.data.colours import as_array, to_bytes
from ppe_npu.data.pictures import load_image
from ppe_npu.data.sampling import DEFAULT_FPS, VideoSampling
from ppe_npu.data.videos import Video, VideoFrame
from ppe_npu.errors import InputError


def video_of_frames(
    frames: Sequence[Any] | np.ndarray | torch.Tensor, sampling: VideoSampling, multiple: int = 2
) -> Video:
    """Frames -> a Video: all of them, at sampling.frame_rate or else 2 frames per second, as Qwen2.5-VL takes them.

    Args:
        frames: each as load_image takes it; or numbers [T, 3, H, W] or [T, H, W, 3], as colours.to_bytes takes them.
        sampling: if it sets nframes or frame_rate, it chooses among the frames, as among those of a folder.
        multiple: as in load_video.

    Raises:
        InputError: frames that cannot be read, or that differ in size.
    """
    name = f"a video of {len(frames)} frames"
    rate = sampling.frame_rate or DEFAULT_FPS
    wanted, length = list(range(len(frames))), len(frames)
    if sampling.nframes is not None or sampling.frame_rate is not None:
        wanted, length = sampling.indices(len(frames), rate, multiple)
    if isinstance(frames, (np.ndarray, torch.Tensor)):  # all frames together decide how values are read
        tensor, frames = isinstance(frames, torch.Tensor), to_bytes(as_array(frames, name), name)
        frames = torch.from_numpy(np.ascontiguousarray(frames)) if tensor else frames
    loaded = []
    for index in wanted:
        frame, shown = frames[index], f"frame {index + 1} of {name}"
        picture = (
            frame.load() if isinstance(frame, VideoFrame) else load_image(frame, None if _has_path(frame) else shown)
        )
        if loaded and picture.size[::-1] != tuple(loaded[0].shape[1:]):
            raise InputError(f"{name}: frame {index + 1} differs in size from the first: resize them to one size")
        loaded.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    indices = tuple(index - wanted[0] for index in wanted)
    return Video(torch.stack(loaded), len(loaded) / length * rate, name, indices, rate)


def _has_path(frame: Any) -> bool:
    return isinstance(frame, str) or hasattr(frame, "__fspath__")
