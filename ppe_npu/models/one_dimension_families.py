"""The families of one_dimension.py, each described by how it lays out images and videos.

To add one, add a Family to FAMILIES, and a tiny model of it to tests/families.py, on which every law is tested.
Newlines that a model puts after the rows of a picture are visual tokens: the last column of its grid.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import select_best_resolution

from ppe_npu.engine.spans import IMAGE, VIDEO, Part, Parts
from ppe_npu.errors import InputError
from ppe_npu.models.arguments import PIXELS

Size = tuple[int, int]
WITH_CLASS_TOKEN = ("clip_vision_model", "internvl_vision")
TOWERS = (*WITH_CLASS_TOKEN, "siglip_vision_model", "idefics3_vision", "smolvlm_vision")  # a tile is a grid of tokens


@dataclass(frozen=True)
class ForwardInputs:
    """The inputs of a forward call.

    Args:
        config: the model's. ids: [B, S] those of the prompts. arguments: the forward's.
    """

    config: Any
    ids: np.ndarray
    arguments: dict

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """(sample, column, tokens) of every run of image tokens."""
        found = []
        for sample, image in enumerate(self.ids == self.config.image_token_id):
            borders = np.flatnonzero(np.diff(np.pad(image.astype(np.int8), 1)))
            found += [(sample, int(start), int(end - start)) for start, end in borders.reshape(-1, 2)]
        return found

    def numbers(self, name: str) -> list:
        """The argument `name`, which a processor returns beside the pixels, as lists."""
        values = self.arguments.get(name)
        if values is None:
            raise InputError(f"pixel_values are given without {name}: give all that the processor returned")
        return _listed(values)


@dataclass(frozen=True)
class Family:
    """A family whose decoder has a plain rotary embedding, which rotates channel c together with channel c + D / 2.

    Args:
        name: the name of the transformers class that is compressed.
        tile: (height, width) in tokens of one picture as the vision tower gets it.
        parts: the parts of images, and of videos, in the order of the prompts.
        by: whether a row of the arrays is a "tile", an "image" (or video) with all its tiles, or a "sample" with all
            its images.
        images, videos: the arguments that have such rows.
        others: arguments that only the family's own forward reads.
        frames_apart: whether there is text between the frames of a video.
        class_token: whether the tower gives an additional token for the whole picture, which must be dropped.
        tower: the vision tower's name in the ...Model.
        blocks: how many of the tower's blocks a method may work in.
    """

    name: str
    tile: Callable[[Any], Size]
    parts: Callable[["Family", ForwardInputs], dict[str, Parts]]
    by: str = "tile"
    images: tuple[str, ...] = ("pixel_values",)
    videos: tuple[str, ...] = ()
    others: tuple[str, ...] = ("vision_feature_layer", "vision_feature_select_strategy")
    frames_apart: bool = False
    class_token: Callable[[Any], bool] | None = None
    tower: str = "vision_tower"
    blocks: Callable[[Any], int] = lambda _config: 0

    @property
    def arguments(self) -> tuple[str, ...]:
        return (*self.images, *self.videos, *self.others, "mm_encoder_outputs")

    def arrays(self, kind: str) -> tuple[str, ...]:
        return self.images if kind == IMAGE else self.videos

    def check(self, config) -> None:
        """Raise InputError where the tokens of a tile do not form a grid."""
        strategy, kind = getattr(config, "vision_feature_select_strategy", None), _tower(config)
        if kind not in TOWERS:  # Pixtral's pictures have any size, and text after each row
            raise InputError(f"vision tower {kind!r} is not supported: load a model with one of {', '.join(TOWERS)}")
        if self.class_token is not None and self.class_token(config) != (strategy == "default"):
            raise InputError(
                f"vision_feature_select_strategy={strategy!r} with {kind} makes no grid of tokens: set "
                f"{'default' if self.class_token(config) else 'full'!r}"
            )

    def rows(self, grid: tuple[int, int, int], first: bool) -> int:
        """How many rows of the arrays a part takes. first: whether it is the first part of its image."""
        return grid[0] if self.by == "tile" else int(first)

    def check_rows(self, kind: str, parts: Parts, arguments: dict) -> None:
        """Raise InputError where the number of tiles is not that of the prompts."""
        pixels = arguments.get(PIXELS[kind])
        if pixels is None or self.by != "tile":
            return
        tokens, held = sum(part.tokens for part in parts), sum(part.grid[0] for part in parts)
        if held != len(pixels):
            features = len(pixels) * tokens // max(held, 1)
            raise InputError(
                f"Image features and image tokens do not match, tokens: {tokens}, features: {features}: the prompts "
                f"hold {held} tiles, but {PIXELS[kind]} has {len(pixels)}"
            )

    def idle(self, config) -> dict[str, torch.Tensor]:
        """Arguments of get_image_features for the smallest possible picture."""
        height, width = _pair(config.vision_config.image_size)
        tile = (getattr(config.vision_config, "num_channels", 3), height, width)
        if self.by == "tile":
            return {"pixel_values": torch.ones(1, *tile)}
        if self.by == "sample":
            return {"pixel_values": torch.ones(1, 1, *tile)}
        best = select_best_resolution((height, width), config.image_grid_pinpoints)
        tiles = 1 + math.ceil(best[0] / height) * math.ceil(best[1] / height)
        return {"pixel_values": torch.ones(1, tiles, *tile), "image_sizes": torch.tensor([[height, width]])}


def _listed(values) -> list:
    """Numbers as (nested) lists, from a tensor on any device or from a (nested) sequence of numbers or tensors."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_listed(value) if hasattr(value, "__len__") else int(value) for value in values]


def _pair(size: int | tuple[int, int] | list[int]) -> Size:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# -- how the tokens of images and videos are laid out ------------------------------------------------------------------


def tiles_alone(family: Family, asked: ForwardInputs) -> dict[str, Parts]:
    """Every tile is an image."""
    height, width = family.tile(asked.config)
    tiles = sum(_tiles(asked, run, height * width) for run in asked.runs)
    return {IMAGE: Parts(Part(IMAGE, source, (1, height, width)) for source in range(tiles))}


def tiles_in_runs(family: Family, asked: ForwardInputs) -> dict[str, Parts]:
    """Every run is an image, whose frames are its tiles. With num_frames = [1, 8, 1], which no processor returns but a
    caller may pass, the second to ninth runs are the frames of a video."""
    height, width = family.tile(asked.config)
    grids = [(_tiles(asked, run, height * width), height, width) for run in asked.runs]
    frames = [int(count) for count in _runs_of_each(asked, grids)]
    if sum(frames) != len(grids) or min(frames, default=1) < 1:
        raise InputError(
            f"num_frames={frames} sum to {sum(frames)}: give counts of at least 1 that sum to the {len(grids)} runs of "
            "image tokens in the prompts"
        )
    parts, count, at = Parts(), {IMAGE: 0, VIDEO: 0}, 0
    for number in frames:
        kind = VIDEO if number > 1 else IMAGE
        parts += [Part(kind, count[kind], grid) for grid in grids[at : at + number]]
        count[kind] += 1
        at += number
    return {IMAGE: parts}


def _runs_of_each(asked: ForwardInputs, grids: list[tuple[int, int, int]]) -> list[int]:
    """How many runs each image or video has. With PVC's time_steps: as many as contain all its tiles."""
    steps = asked.arguments.get("time_steps")
    if steps is None:
        return asked.arguments.get("num_frames") or [1] * len(grids)
    ends = np.cumsum([0, *(count for count, _, _ in grids)]).tolist()
    wanted = np.cumsum([0, *(int(times) * int(tiles) for times, tiles in steps)]).tolist()
    if not set(wanted) <= set(ends) or wanted[-1] != ends[-1]:
        raise InputError(
            f"time_steps={steps} do not fit the runs of {[count for count, _, _ in grids]} tiles in the prompts: give "
            "both as shown_repeatedly() returned them"
        )
    return np.diff([ends.index(end) for end in wanted]).tolist()


def _tiles(asked: ForwardInputs, run: tuple[int, int, int], tokens: int) -> int:
    sample, start, length = run
    if length % tokens:
        pixels, found = asked.arguments.get(PIXELS[IMAGE]), sum(count for _, _, count in asked.runs)
        features = "" if pixels is None else f", features: {len(pixels) * tokens}"
        raise InputError(
            f"Image features and image tokens do not match, tokens: {found}{features}: sample {sample}: the run of "
            f"image tokens at index {start} is {length} long, no multiple of the {tokens} that a tile has: give "
            "ids and pixels of the same images"
        )
    return length // tokens


def picture_then_tiles(family: Family, asked: ForwardInputs) -> dict[str, Parts]:
    """LLaVA-NeXT and LLaVA-OneVision: an image is the whole picture, followed by its tiles as one larger picture
    without padding and with a newline after each row, or else by one newline. A video is its frames, pooled."""
    config, arguments, out = asked.config, asked.arguments, {}
    height, width = family.tile(config)
    if _is_given(IMAGE, arguments):
        sizes = asked.numbers("image_sizes")
        counts = arguments.get("batch_num_images")
        alone = [True] * len(sizes) if counts is None else _alone(counts)
        if len(alone) != len(sizes):
            raise InputError(
                f"batch_num_images sum to {len(alone)} images, but image_sizes has {len(sizes)}: give all that the "
                "processor returned"
            )
        out[IMAGE], most = Parts(), _most_tiles(config)
        for source, (size, tiled) in enumerate(zip(sizes, alone)):
            second = _unpadded(config, size, height, most) if tiled else (1, 1)
            out[IMAGE] += [Part(IMAGE, source, (1, height, width))]
            # The tiles of a picture of 1 x 200 pixels, for example, contain nothing but padding.
            out[IMAGE] += [Part(IMAGE, source, (1, *second))] * (second[0] > 0)
    if _is_given(VIDEO, arguments):
        out[VIDEO] = Parts()
        stride = getattr(config, "spatial_pool_stride", 2)
        newline = not hasattr(config, "spatial_pool_stride")
        side = math.ceil(height / stride) if newline else height // stride
        clips = arguments.get(PIXELS[VIDEO])
        if clips is None:
            raise InputError(
                "mm_encoder_outputs of videos do not contain the number of frames: give pixel_values_videos"
            )
        for source, clip in enumerate(clips):
            out[VIDEO] += [Part(VIDEO, source, (len(clip), side, side))]
            out[VIDEO] += [Part(VIDEO, source, (1, 1, 1))] * newline
    return out


def _alone(counts) -> list[bool]:
    """For each image, whether it is the only one in its prompt. In LLaVA-OneVision only such images have tiles."""
    return [number == 1 for number in _listed(counts) for _ in range(number)]


def images_of_each(counts, rows: Sequence[int]) -> list[int]:
    """batch_num_images for a selection of images, which may be repeated.

    Args:
        counts: batch_num_images. rows: the numbers of the selected images.

    Raises:
        InputError: a single image of a prompt with several: counts could not express that it has no tiles.
    """
    alone, out = _alone(counts), list[int]()
    for single, same in itertools.groupby(alone[row] for row in rows):
        number = len(list(same))
        if not single and number == 1:
            raise InputError(
                f"batch_num_images={_listed(counts)}: one image is new, but others of its prompt are in the cache: "
                "give the processor one flat list of images, each of which then counts as alone and has tiles"
            )
        out += [1] * number if single else [number]
    return out


def _is_given(kind: str, arguments: dict) -> bool:
    return arguments.get(PIXELS[kind]) is not None or kind in (arguments.get("mm_encoder_outputs") or {})


def _most_tiles(config) -> int | None:
    """The number of tiles to whose size a picture's features are scaled down; None for models that do not do so. (The
    argument vision_aspect_ratio of forward has no effect.)"""
    if not hasattr(config, "vision_aspect_ratio"):
        return None
    return int(config.vision_aspect_ratio.removeprefix("anyres_max_"))


def _unpadded(config, size: list[int], side: int, most: int | None) -> Size:
    """(rows, columns + 1 for the newline) of a picture's tiles together, as the model's own unpad_image leaves them."""
    pixels = config.vision_config.image_size
    best = select_best_resolution(tuple(size), config.image_grid_pinpoints)
    rows, columns = (side * (length // pixels) for length in best)
    if size[1] / size[0] > columns / rows:
        kept = int(round(size[0] * (columns / size[1]), 7))
        rows -= 2 * ((rows - kept) // 2)
    else:
        kept = int(round(size[1] * (rows / size[0]), 7))
        columns -= 2 * ((columns - kept) // 2)
    if most is not None:
        ratio = math.sqrt(rows * columns / (most * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns + 1


def _patches(config) -> Size:
    """(height, width) of a tile in tokens, for a tower that gives one token per patch."""
    vision = config.vision_config
    sides = zip(_pair(vision.image_size), _pair(vision.patch_size))
    return tuple(size // patch for size, patch in sides)  # type: ignore[return-value] # two


def _shuffled(factor: Callable[[Any], float]) -> Callable[[Any], Size]:
    """As _patches(), for a tower whose tokens a pixel shuffle joins: each side is multiplied by the factor."""
    return lambda config: tuple(round(side * factor(config)) for side in _patches(config))  # type: ignore[return-value]


def _has_class_token(config) -> bool:
    return _tower(config) in WITH_CLASS_TOKEN


def _tower(config) -> str:
    """The tower's model_type, from the config's class: Idefics 3 or SmolVLM checkpoints may say just "idefics3"."""
    return type(config.vision_config).model_type


def _internvit_blocks(config) -> int:
    """How many blocks a method may work in: none with PVC, whose blocks also attend over time."""
    return 0 if hasattr(config, "pvc") else config.vision_config.num_hidden_layers


_SIZED: dict[str, Any] = {
    "tile": _patches, "parts": picture_then_tiles, "by": "image", "class_token": _has_class_token,
    "images": ("pixel_values", "image_sizes"), "videos": ("pixel_values_videos", "image_sizes_videos"),
    "others": ("vision_feature_layer", "vision_feature_select_strategy", "batch_num_images"),
}  # fmt: skip
_BY_SAMPLE: dict[str, Any] = {
    "tile": _shuffled(lambda config: 1 / config.scale_factor), "parts": tiles_alone, "by": "sample",
    "images": ("pixel_values", "pixel_attention_mask"), "tower": "vision_model",
}  # fmt: skip

FAMILIES = {
    "internvl": Family(
        "InternVLForConditionalGeneration",
        tile=_shuffled(lambda config: config.downsample_ratio),
        parts=tiles_in_runs,
        class_token=_has_class_token,
        frames_apart=True,
        blocks=_internvit_blocks,
        others=("vision_feature_layer", "vision_feature_select_strategy", "image_sizes", "num_frames", "time_steps"),
    ),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", **_SIZED),
    "llava_next": Family("LlavaNextForConditionalGeneration", **_SIZED),
    "llava_next_video": Family("LlavaNextVideoForConditionalGeneration", **_SIZED),
    "llava": Family("LlavaForConditionalGeneration", _patches, tiles_alone, class_token=_has_class_token),
    "vipllava": Family("VipLlavaForConditionalGeneration", _patches, tiles_alone, others=("vision_feature_layers",)),
    "idefics3": Family("Idefics3ForConditionalGeneration", **_BY_SAMPLE),
    "smolvlm": Family("SmolVLMForConditionalGeneration", **_BY_SAMPLE),
}
