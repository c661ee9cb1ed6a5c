"""What a placeholder becomes in a prompt; for a video the checkpoint's own processor decides.

A picture's placeholder becomes one id per visual token, and so does a video's for Qwen2-VL and Qwen2.5-VL. For Qwen3-VL
a video's temporal steps are separate: each has its second as text before it, and marks of its own around it.

Placeholders are expanded as ids rather than as text, so that a text is tokenised once for visuals of any size. They
are enclosed by marks (<|vision_start|>, <|vision_end|>), which are special tokens and never merge with neighbours.
transformers before 5.10 removes Qwen3-VL's outer marks: there a word or sign right before a video may be tokenised
differently than by the processor's own call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ppe_npu.data.tiles import is_tiled
from ppe_npu.data.videos import Video
from ppe_npu.errors import InputError, counted


def visual_ids(processor: Any) -> dict[str, int]:
    """The placeholder tokens' ids: {"image": id, "video": id}."""
    if is_tiled(processor):
        return {
            kind: processor.tokenizer.convert_tokens_to_ids(token)
            for kind, token in (("image", processor.image_token), ("video", processor.video_token))
        }
    return {"image": processor.image_token_id, "video": processor.video_token_id}


def check_placeholders(processor: Any, ids: Sequence[int], items: Mapping[str, Sequence], where: str) -> None:
    """Raise InputError unless unexpanded token ids hold exactly one placeholder per visual."""
    for kind, token_id in visual_ids(processor).items():
        held, given = list(ids).count(token_id), len(items[kind])
        if held == given:
            continue
        token = getattr(processor, f"{kind}_token")
        counts = f"{counted(held, f'{kind} placeholder')} ({token}) for {counted(given, kind)}"
        short = f"the checkpoint's chat template must write one per {kind}: give one that does"
        remedy = short if held < given else f"its text must not contain {token}"
        raise InputError(f"{where} has {counts}: {remedy}")


def image_ids(processor: Any, tokens: int) -> torch.Tensor:
    """int64 [n]: the ids that a picture's placeholder and the marks around it become."""
    start, end = _marks(processor)
    return torch.tensor([start, *[processor.image_token_id] * tokens, end])


def video_ids(processor: Any, video: Video, step_tokens: int) -> torch.Tensor:
    """int64 [n]: the ids that a video's placeholder and the marks around it become.

    Args:
        processor: the checkpoint's.
        video: only the number and the times of its frames matter.
        step_tokens: visual tokens per temporal step; 0 leaves only the text and the marks.
    """
    # The processor is called with frames that have no content and the size of one visual token.
    maker = processor.video_processor
    side = maker.patch_size * maker.merge_size
    written = processor(
        text=[f"<|vision_start|>{processor.video_token}<|vision_end|>"],
        videos=[torch.empty((len(video.frames), 3, side, side), dtype=torch.uint8, device="meta")],
        video_metadata=[video.metadata],
        do_sample_frames=False,
        do_resize=False,
        **pixel_cap(maker),
    )
    ids = torch.as_tensor(written["input_ids"][0])
    return ids.repeat_interleave(torch.where(ids == processor.video_token_id, step_tokens, 1))


def sizes_whole_videos(maker: Any) -> bool:
    """Whether a video processor's size bounds height * width * frames, as Qwen3-VL's does, rather than one frame."""
    resize = getattr(sys.modules[type(maker).__module__], "smart_resize", None)
    return resize is not None and "num_frames" in inspect.signature(resize).parameters


def pixel_cap(maker: Any) -> dict[str, bool]:
    """The option for Qwen3-VL's cap on a frame's pixels, as in Qwen's own code; if unset, transformers warns."""
    unset = "cap_pixels_per_frame" in maker.valid_kwargs.__annotations__ and maker.cap_pixels_per_frame is None
    return {"cap_pixels_per_frame": True} if unset else {}


def expand(
    processor: Any, prompts: Sequence[Sequence[int]], written: Mapping[str, Sequence[torch.Tensor]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The ids of a batch's prompts with their placeholders expanded.

    Args:
        processor: the checkpoint's.
        prompts: B rows of token ids, one placeholder per visual.
        written: per kind the results of image_ids or video_ids for each of the batch's visuals, in order.

    Returns:
        Per prompt (ids, int64 [m]; how many of them replace each of the n given ids, int64 [n]). Values per given id,
        such as labels, repeated by these numbers fit the new ids. Marks count for the placeholder between them.
    """
    following = {token: iter(written[kind]) for kind, token in visual_ids(processor).items()}
    marks = None if is_tiled(processor) else _marks(processor)  # InternVL's templates write none, its processor does
    return [_expand(list(ids), following, marks) for ids in prompts]


def _expand(ids: list[int], following: Mapping[int, Iterator[torch.Tensor]], marks: tuple[int, int] | None) -> tuple:
    repeats, parts, done = np.ones(len(ids), dtype=np.int64), [], 0
    for place in [place for place, token in enumerate(ids) if token in following]:
        new = next(following[ids[place]]).numpy()
        first, stop = place, place + 1
        if marks is None:
            pass
        elif ids[max(place - 1, 0) : place + 2] == [marks[0], ids[place], marks[1]]:
            first, stop = place - 1, place + 2
        elif (new[0], new[-1]) == marks:  # a chat template that writes no marks gets none
            new = new[1:-1]
        repeats[first:stop], repeats[place] = 0, len(new)
        parts += [ids[done:first], new]
        done = stop
    return np.concatenate([*parts, ids[done:]]).astype(np.int64), repeats


def _marks(processor: Any) -> tuple[int, int]:
    return tuple(processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"]))
