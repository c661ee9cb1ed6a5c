"""Prompts that a served model is asked, as transformers and as vLLM take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass
class Case:
    """A prompt: its text with placeholders, pictures, and videos as (frames [T, H, W, 3], frames per second)."""

    name: str
    text: str
    images: list[Any] = field(default_factory=list)
    videos: list[tuple[Any, float]] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return f"<|im_start|> user {self.text} <|im_end|> <|im_start|> assistant"

    def for_vllm(self, asked: dict[str, Any] | None = None) -> dict[str, Any]:
        """asked: compression settings for this request alone."""
        data: dict[str, Any] = {}
        if self.images:
            data["image"] = self.images
        if self.videos:
            data["video"] = [
                (film, {**metadata(len(film), fps), "do_sample_frames": False}) for film, fps in self.videos
            ]
        wish = {"mm_processor_kwargs": {"ppe_compression": asked}} if asked else {}
        return {"prompt": self.prompt, **({"multi_modal_data": data, **wish} if data else {})}

    def for_transformers(self, processor: Any) -> Any:
        from transformers.video_utils import VideoMetadata

        given: dict[str, Any] = {"images": self.images} if self.images else {}
        if self.videos:
            given["videos"] = [film for film, _ in self.videos]
            given["video_metadata"] = [VideoMetadata(**metadata(len(film), fps)) for film, fps in self.videos]
            given["do_sample_frames"] = False
        return processor(text=[self.prompt], return_tensors="pt", **given)


def metadata(frames: int, fps: float) -> dict[str, Any]:
    return {
        "total_num_frames": frames, "fps": fps, "duration": frames / fps, "frames_indices": list(range(frames)),
        "video_backend": "opencv",
    }  # fmt: skip


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Random patches of colour with some noise, so that the tokens of one patch are alike but not equal."""
    draw = np.random.default_rng(seed)
    patches = draw.integers(0, 255, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(large + draw.integers(-12, 12, large.shape), 0, 255).astype(np.uint8))


def film(seed: int, frames: int, width: int, height: int) -> np.ndarray:
    """One picture that becomes another, with noise."""
    first, last = (np.asarray(picture(seed + n, width, height)).astype(float) for n in (0, 1))
    noise = np.random.default_rng(seed).normal(0, 3, (frames, *first.shape))
    share = np.linspace(0, 1, frames)[:, None, None, None]
    return np.clip(first * (1 - share) + last * share + noise, 0, 255).astype(np.uint8)


def cases() -> list[Case]:
    return [
        Case("one image", f"{IMAGE} colour 1 2", [picture(0, 64, 48)]),
        Case("two images", f"{IMAGE} 1 {IMAGE} shape 3 4", [picture(1, 96, 48), picture(2, 32, 80)]),
        Case("large image", f"3 4 5 {IMAGE} count 9", [picture(3, 240, 160)]),
        Case("video", f"{VIDEO} colour 7", videos=[(film(4, 8, 48, 48), 4.0)]),
        Case("image and video", f"{IMAGE} 1 {VIDEO} 2", [picture(6, 56, 56)], [(film(7, 12, 64, 32), 2.0)]),
        Case("text", "1 2 3 4 5 6 7"),
    ]
