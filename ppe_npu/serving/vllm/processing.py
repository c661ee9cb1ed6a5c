"""vLLM's processors with one placeholder per token that stays, and with the compression in the keys of vLLM's caches.

The request's compression (serving/asked.py) and, with a step at the pixels, the cells that it keeps (serving/cells.py)
travel beside an item's pixels, so an item carries everything that its tokens and their positions depend on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptUpdateDetails

from ppe_npu.engine.compression import Compression
from ppe_npu.engine.items import ItemRun, item_runs
from ppe_npu.engine.spans import IMAGE, VIDEO
from ppe_npu.errors import InputError
from ppe_npu.models import compression_for
from ppe_npu.models.pixels import pixel_values
from ppe_npu.serving.asked import Asked, written
from ppe_npu.serving.cells import patches_kept, pixel_numbers, split_cells, without_dropped
from ppe_npu.serving.rows import LARGEST, thinned_runs
from ppe_npu.serving.settings import KEY, compression_config, identity
from ppe_npu.serving.shapes import Grids, Tiles, shapes_in, shapes_of
from ppe_npu.serving.vllm import PREFIX

CELLS = "ppe_cells"  # the field with the cells of images
ASKED = {IMAGE: "ppe_image_asked", VIDEO: "ppe_video_asked"}
LONGER = 4  # largest position / longest context in tokens; above 1, because a video's positions follow its seconds


def compression_of(hf_config: Any) -> Compression:
    """The compression that a checkpoint's config states.

    Args:
        hf_config: transformers' config, as vLLM has read it.

    Raises:
        InputError: the compression does not fit the model.
    """
    name = hf_config.architectures[0].removeprefix(PREFIX)
    return compression_for(name, hf_config, compression_config(getattr(hf_config, KEY, None)))


def runs_of(asked: Asked, shapes: Grids | Tiles, kind: str, item: Mapping[str, Any]) -> list[ItemRun]:
    """The runs of an image or a video that has been processed.

    Args:
        item: vLLM's fields of the image or video.
    """
    seconds = item.get("second_per_grid_ts") if kind == VIDEO else None
    per_grid = 1.0 if seconds is None or seconds.data is None else float(seconds.data)
    source = item[CELLS].data.numpy() if kind == IMAGE and CELLS in item else None
    (shape,) = shapes.of(kind, item[shapes.field.format(kind)].data[None])
    return item_runs(asked.read(item[ASKED[kind]].data), kind, shape, per_grid, source)


class CompressedInfo:
    """A mixin for a stock ProcessingInfo: the sizes that the scheduler reserves."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        """The most tokens of an image, after compression, and of a video, as in the stock class.

        The video's number is not reduced, because many small frames keep more tokens than a few large ones.
        """
        most = super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
        if most is None:  # then vLLM counts the placeholders of the largest item, which are thinned already
            return None
        config = compression_of(self.get_hf_config()).config  # type: ignore[attr-defined]
        return {**most, IMAGE: config.span_tokens(1, most[IMAGE])}


class CompressedDummies:
    """A mixin for a stock DummyInputsBuilder: its pictures are noise if a step at the pixels would drop plain ones."""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
        data = dict(super().get_dummy_mm_data(seq_len, mm_counts, mm_options))  # type: ignore[misc]
        if compression_of(self.info.get_hf_config()).config.at_pixels is not None:  # type: ignore[attr-defined]
            data[IMAGE] = [_noise(*picture.size) for picture in data.get(IMAGE, [])]
        return data


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


class CompressedProcessor:
    """A mixin for a stock MultiModalProcessor: thins its placeholders to the tokens that are kept."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.info.get_hf_config()  # type: ignore[attr-defined]
        self.asked = Asked(compression_of(config))
        self.shapes = shapes_of(config, self.asked.own)
        self.largest = min(LARGEST, LONGER * config.get_text_config().max_position_embeddings)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        """The stock result without the patches of dropped cells, and with this plug-in's fields for each item."""
        wish, others = _parted(hf_kwargs)
        compression = self.asked.of(wish)
        data = super()._apply_hf_processor_main(mm_items, others)  # type: ignore[misc]
        for kind, name in ASKED.items():
            shapes = shapes_in(self.shapes, kind, data)
            if shapes is None:
                continue
            data[name] = written(wish, len(shapes))
            for shape in shapes:
                self.asked.check_room(compression, kind, shape)
        if compression.config.at_pixels is not None and data.get("image_grid_thw") is not None:
            if data.get("pixel_values") is None:
                raise InputError(
                    f"{compression.config.at_pixels.name} looks at the pixels of images, but only their features are "
                    "given: give the images"
                )
            numbers = pixel_numbers(data["pixel_values"], self._normalised(others))
            data["pixel_values"], data[CELLS] = without_dropped(
                compression, data["pixel_values"], data["image_grid_thw"], numbers
            )
        return data

    def _normalised(self, hf_kwargs: Mapping[str, Any]) -> Any:
        """The PixelValues that describe how the processor normalises pixels."""
        processor = self.info.get_hf_processor(**hf_kwargs)  # type: ignore[attr-defined]
        return pixel_values(None, self.asked.own.vision, processor).pixels

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        _, others = _parted(hf_processor_mm_kwargs)
        fields = dict(super()._get_mm_fields_config(hf_inputs, others))  # type: ignore[misc]
        fields |= {name: MultiModalFieldConfig.batched(kind, keep_on_cpu=True) for kind, name in ASKED.items()}
        cells = hf_inputs.get(CELLS)
        if cells is not None:
            merge = self.asked.own.vision.merge_size
            sources = split_cells(cells, hf_inputs["image_grid_thw"].tolist(), merge)
            for name, sizes in (("pixel_values", patches_kept(sources, merge)), (CELLS, list(map(len, sources)))):
                flat = MultiModalFieldConfig.flat_from_sizes(IMAGE, torch.tensor(sizes), keep_on_cpu=name == CELLS)
                fields[name] = flat
        return fields

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        _, others = _parted(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)  # type: ignore[misc]
        vision = self.asked.own.vision
        tokens = {IMAGE: vision.image_token_id, VIDEO: vision.video_token_id}

        def thinned(update: Any) -> Any:
            kind, stock = update.modality, update.replacement
            # In families with tiles, vLLM's placeholder for a video differs from the one of transformers.
            token = update.target[0] if isinstance(self.shapes, Tiles) else tokens[kind]

            def replacement(index: int) -> Any:
                runs = runs_of(self.asked, self.shapes, kind, out_mm_kwargs[kind][index])
                most = max(run.extent for run in runs)
                if most > self.largest:
                    raise InputError(
                        f"{kind} {index} takes {most} positions, but at most {self.largest} fit: give fewer seconds"
                    )
                full = stock(index)
                full = full.full if isinstance(full, PromptUpdateDetails) else full
                thin = thinned_runs(full, token, [run.kept for run in runs])
                return PromptUpdateDetails.select_token_id(thin, token)

            return dataclasses.replace(update, replacement=replacement)

        return [thinned(update) for update in updates]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """The keys of processed items, of encoded items and of the KV blocks that contain them. They include the
        compression, so that requests and servers with different compressions may share a store."""
        wish, others = _parted(inputs.hf_processor_mm_kwargs)
        own = identity(self.asked.of(wish).config)
        found = super()._get_mm_hashes(dataclasses.replace(inputs, hf_processor_mm_kwargs=others))  # type: ignore[misc]
        return {kind: [f"{key}-{own}" for key in keys] for kind, keys in found.items()}


def _parted(kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The request's compression, and the remaining arguments, which are the processor's."""
    return kwargs.get(KEY), {key: value for key, value in kwargs.items() if key != KEY}
