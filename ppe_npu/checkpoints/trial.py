"""Tries a checkpoint's processor on a small picture, a small video and a short text before it is used.

transformers builds processors without checking all settings (a string as a mean, a list as a size); it fails on use.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ppe_npu.checkpoints.trust import NO_CODE, PICKLED, SAFE
from ppe_npu.data.tiles import image_tiles, is_tiled, tile_count, video_tiles
from ppe_npu.data.videos import Video
from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.models.known import turned_channels

_LARGEST = 256  # bound on patch sizes, in pixels or frames, and on merge sizes, in patches
_SIZES = ("patch_size", "merge_size", "temporal_patch_size")
_EDGES, _SIDES = ("shortest_edge", "longest_edge"), ("height", "width")  # keys in `size`, for grids and for tiles
_WIDTHS = ("hidden_size", "embed_dim")
_AMOUNTS = (("num_hidden_layers", "depth"), ("vocab_size",), ("intermediate_size",))  # layers, words, MLP width
_TURN = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "what?"}]}]


def try_processor(processor: Any, path: str | Path, model: str | Path | None = None) -> None:
    """Raise InputError, naming the part and the folder, unless the processor works.

    Args:
        processor: one for Qwen-VL or InternVL, with image_processor, video_processor, tokenizer and chat template.
        path: its folder. model: the folder of the model that it is for; None: the same folder.
    """
    tiled = is_tiled(processor)
    for name in ("image_processor", "video_processor"):
        _check_numbers(getattr(processor, name), name, path, () if tiled else _SIZES, _SIDES if tiled else _EDGES)
    longest = processor.tokenizer.model_max_length
    if not _is_number(longest) or not longest > 0:
        raise _unusable("tokenizer", path, f"model_max_length={shown(longest)} is not a number above 0")
    config = _config(model or path)
    _check_vocabulary(processor, config, path)
    image, video = processor.image_processor, processor.video_processor
    if tiled:
        _try_tiles(processor, path)
        return
    side = 2 * max(image.patch_size * image.merge_size, video.patch_size * video.merge_size)
    bounds = {"size": {"shortest_edge": side**2, "longest_edge": side**2}, "return_tensors": "pt"}
    frames = torch.zeros(2 * video.temporal_patch_size, 3, side, side, dtype=torch.uint8)
    _use("image_processor", path, lambda: image(images=[frames[0]], **bounds))
    _use("video_processor", path, lambda: video(videos=[frames], do_sample_frames=False, **bounds))
    _check_against_model(processor, config, path)
    _try_text(processor, path)


def _config(path: str | Path) -> Any:
    """The config of the model in a folder; None if there is none or it cannot be read, which loading it will report."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path), **NO_CODE) if (Path(path) / "config.json").is_file() else None
    except Exception:  # a wrong field makes transformers raise errors of any type
        return None


def _check_vocabulary(processor: Any, config: Any, path: str | Path) -> None:
    """Refuse words that the model's embedding has no row for, since a text with one would fail there. Of added words
    only the end, padding and image tokens are checked: InternVL3 has no row for <video>, which its frames replace."""
    try:
        rows = config.get_text_config().vocab_size
    except (AttributeError, ValueError):  # config is None, or it has several text configs
        return
    tokenizer = processor.tokenizer
    free = {*tokenizer.get_added_vocab()} - {tokenizer.eos_token, tokenizer.pad_token}
    free -= {getattr(processor, "image_token", None)}
    words = ((word, place) for word, place in tokenizer.get_vocab().items() if word not in free)
    if isinstance(rows, int):
        word, last = max(words, key=lambda pair: pair[1], default=("", -1))
        if last >= rows:
            raise _unusable("tokenizer", path, f"{shown(word)} has the id {last}, but config.json has {rows} words")


def _check_against_model(processor: Any, config: Any, path: str | Path) -> None:
    """Refuse patch sizes and placeholders that differ from the model's, which would misread pictures or see none."""
    for key in ("image_token_id", "video_token_id"):
        token, wanted = getattr(processor, key, None), getattr(config, key, None)
        if isinstance(wanted, int) and token != wanted:
            raise _unusable("tokenizer", path, f"{key}={shown(token)}, but config.json says {wanted}")
    vision = getattr(config, "vision_config", None)
    for name in ("image_processor", "video_processor"):
        for key, of_model in zip(_SIZES, ("patch_size", "spatial_merge_size", "temporal_patch_size"), strict=True):
            size, wanted = getattr(getattr(processor, name), key), getattr(vision, of_model, None)
            if isinstance(wanted, int) and size != wanted:
                raise _unusable(name, path, f"{key}={shown(size)}, but config.json says {of_model}={wanted}")


def _try_tiles(processor: Any, path: str | Path) -> None:
    """Try a picture of two tiles and its thumbnail, a video of two frames, and a text."""
    side = processor.image_processor.size["height"]
    frames = torch.zeros(2, 3, side, 2 * side, dtype=torch.uint8)
    _use("image_processor", path, lambda: tile_count(processor, side, 2 * side))
    _use("image_processor", path, lambda: image_tiles(processor, [frames[0]]))
    _use("video_processor", path, lambda: video_tiles(processor, Video(frames, 1.0, str(path))))
    _try_text(processor, path)


def _try_text(processor: Any, path: str | Path) -> None:
    _use("tokenizer", path, lambda: processor.tokenizer.convert_tokens_to_ids(["what?"]))
    _use("tokenizer", path, lambda: processor.tokenizer(["what?"]))
    said = _use("chat template", path, lambda: processor.apply_chat_template(_TURN, tokenize=False))
    if "what?" not in said:
        raise _unusable("chat template", path, "it drops the text of a message")


def check_sizes(config: Any) -> None:
    """Raise InputError for impossible sizes in a model's config that loading its weights would not detect."""
    text = config.text_config
    for part in (text, config.vision_config):
        for key, value in vars(part).items():
            sides = value if isinstance(value, (list, tuple)) else [value]
            if key.endswith("_size") and value is not None and not all(_is_number(side) and side > 0 for side in sides):
                raise InputError(f"{key}={shown(value)} is not a number above 0")
            if key.endswith("_eps") and not (_is_number(value) and 0 <= value < math.inf):
                raise InputError(f"{key}={shown(value)} is not a finite number of at least 0")
    sections = text.rope_parameters.get("mrope_section")
    if sections is None and config.model_type == "internvl":  # positions are one-dimensional
        return
    _check_tower(config.vision_config, text.hidden_size)
    turned = turned_channels(text)
    if len(sections) != 3 or sum(sections) != turned:
        raise InputError(
            f"mrope_section={shown(sections)} is not three numbers that sum to {turned}, the rotated channels of "
            "half a head"
        )


def _check_tower(vision: Any, features: int) -> None:
    """Raise InputError for a tower whose heads cannot be rotated, or whose features the decoder cannot take."""
    width, heads = getattr(vision, "embed_dim", vision.hidden_size), vision.num_heads
    if not _is_number(heads) or heads <= 0 or width % (4 * heads):
        raise InputError(
            f"vision_config num_heads={shown(heads)} does not fit a width of {width}: each head needs a multiple of "
            "four channels"
        )
    key = "hidden_size" if hasattr(vision, "embed_dim") else "out_hidden_size"
    if getattr(vision, key) != features:
        found = shown(getattr(vision, key))
        raise InputError(f"vision_config {key}={found} differs from text_config hidden_size={features}")
    taps = getattr(vision, "deepstack_visual_indexes", None) or []
    if list(taps) != sorted({*taps} & {*range(vision.depth)}):
        raise InputError(
            f"deepstack_visual_indexes={shown(taps)} is not an ascending list of the tower's {vision.depth} blocks"
        )


def check_amount(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for a config.json that describes a larger model than the folder's weights can contain, since
    transformers would build that model before comparing the two, which could exhaust memory or take very long.

    Each number takes at least half a byte. The bound counts half a square matrix of the width for each layer, one row
    for each word of the vocabulary, and, without experts, one matrix of an MLP; all supported families have more.
    """
    size = sum(file.stat().st_size for pattern in (SAFE, PICKLED) for file in folder.glob(pattern) if file.is_file())
    for name, part in (("", config), *((f"{key}.", value) for key, value in config.items())):
        if not isinstance(part, dict):
            continue
        layers, vocabulary, inner = (_first(part, *keys) for keys in _AMOUNTS)
        width = min((value for key in _WIDTHS if (value := _first(part, key))), default=1)
        inner = 0 if any("expert" in str(key) for key in part) else inner
        if width * (vocabulary + inner) + layers * width * width // 2 > 2 * size:
            sizes = ", ".join(f"{name}{key}={shown(part[key])}" for key in chain(_WIDTHS, *_AMOUNTS) if key in part)
            why = f"{size:,} bytes of weights are too few for its config.json, {sizes}"
            raise InputError(f"model {folder} cannot be loaded ({why}): download or save it again")


def _first(part: Mapping[str, Any], *keys: str) -> int:
    """The value of the first of these keys that has an integer above 0; 0 if none has."""
    values = (part.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def _check_numbers(part: Any, name: str, path: str | Path, sizes: Sequence[str], edges: Sequence[str]) -> None:
    for key in sizes:
        value = getattr(part, key, None)
        if not _is_number(value) or not 1 <= value <= _LARGEST or value != int(value):
            raise _unusable(name, path, f"{key}={shown(value)} is not a whole number from 1 to {_LARGEST}")
    for key in edges:
        value = part.size.get(key) if hasattr(part.size, "get") else None
        if not _is_number(value) or not value > 0:
            raise _unusable(name, path, f"size {key}={shown(value)} is not a number above 0")


def _use(name: str, path: str | Path, use: Callable[[], Any]) -> Any:
    try:
        return use()
    except Exception as error:  # a wrong setting makes transformers, tokenizers, jinja raise any error
        raise _unusable(name, path, f"{type(error).__name__}: {first_line(error)}") from error


def _unusable(name: str, path: str | Path, why: str) -> InputError:
    return InputError(f"{name} of {path} cannot be used ({why}): save the processor there again")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
