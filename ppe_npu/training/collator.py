"""Records -> training batches: tokens by the checkpoint's chat template, labels on what the assistant says.

Packing. An independent record's questions share one sequence: the prefix (all tokens up to the last visual's end), then
one block (question, answer) per question. A block sees the prefix and itself, and its positions continue the prefix's.
So it is computed as if asked alone, while the vision tower, the clustering and the prefix are computed only once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ppe_npu.backends.common import IGNORED
from ppe_npu.compat import ensure_mm_token_type_ids
from ppe_npu.data.inputs import InputError, PixelCache, VideoSampling, arranged, pad, process_visuals
from ppe_npu.data.placeholders import expand, visual_ids
from ppe_npu.engine.positions import prompt_positions
from ppe_npu.engine.spans import VisionTokens, find_spans
from ppe_npu.models.pvc.inputs import shown_repeatedly
from ppe_npu.training.data import Record
from ppe_npu.training.tokens import TokenisedRecord, Tokeniser

NOTES = ("sample_ids", "skipped")  # keys of a batch that are for the training loop, not for the model
Visuals = tuple[dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]  # as inputs.process_visuals gives them


class Collator:
    """A list of Records -> model inputs with labels; right padding.

    Returns what inputs.build_inputs returns, and labels int64 [B, S]. If one of the records is independent, the
    attention_mask is bool [B, 1, S, S] (True: may attend), and position_ids int64 [3, B, S] are added. Every batch also
    has NOTES: sample_ids, its records' ids (list of str), and skipped, [[id, reason]] of the records left out.

    Args:
        processor: the checkpoint's.
        vision: the model's VisionTokens.
        sampling: which frames of videos are taken.
        cache: where processed pixels are kept between epochs; None: nowhere.
        shown_by: the config of a model with PVC, which says how often an image is shown; None: once.
        skip_broken: leave out records whose files cannot be read. If none is left, the batch is one short text
            without loss, so that every process of a run still takes its step.

    Raises:
        InputError: a chat template that is no ChatML; a file that cannot be read, unless skip_broken.
    """

    def __init__(
        self,
        processor: Any,
        vision: VisionTokens,
        sampling: VideoSampling | None = None,
        cache: PixelCache | None = None,
        skip_broken: bool = False,
        shown_by: Any = None,
    ) -> None:
        self.processor, self.vision, self.sampling, self.cache = processor, vision, sampling, cache
        self.skip_broken, self.shown_by = skip_broken, shown_by
        self.tokenise = Tokeniser(processor)

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        skipped: list[list[str]] = []
        try:
            samples, (visuals, written) = [self.tokenise(record) for record in records], self._visuals(records)
        except InputError:  # find the record at fault by reading them one by one
            records, samples, (visuals, written), skipped = self._one_by_one(records)
        samples = samples or [self._stand_in()]
        prompts = [sample.ids.tolist() for sample in samples]
        expanded = expand(self.processor, prompts, written)
        samples = [_repeat(sample, *found) for sample, found in zip(samples, expanded)]
        inputs = pad([sample.ids for sample in samples], self.processor.tokenizer.pad_token_id, "right")
        inputs["labels"] = _stack([sample.labels for sample in samples], IGNORED)
        ensure_mm_token_type_ids(inputs, *visual_ids(self.processor).values())
        packed = any(record.independent for record in records)
        if packed:
            inputs["blocks"] = _stack([sample.blocks for sample in samples], -1)
            inputs["shifts"] = _stack([sample.shifts for sample in samples], 0)
        inputs |= arranged(self.processor, prompts, visuals)
        if self.shown_by is not None:
            inputs = shown_repeatedly(self.shown_by, inputs, side="right")
        if packed:
            inputs |= self._packed(inputs, inputs.pop("blocks"), inputs.pop("shifts"))
        return {**inputs, "sample_ids": [record.id for record in records], "skipped": skipped}

    def _visuals(self, records: Sequence[Record]) -> Visuals:
        """(pixels and grids of all images and videos, the ids that their placeholders become)."""
        images = [path for record in records for path in record.images]
        videos = [path for record in records for path in record.videos]
        return process_visuals(self.processor, images, videos, self.sampling, self.cache)

    def _one_by_one(self, records: Sequence[Record]) -> tuple[list[Record], list[TokenisedRecord], Visuals, list]:
        """(records that can be read, their tokens, their visuals, [[id, reason]] of the others)."""
        kept, samples, parts, skipped = [], [], [], []
        for record in records:
            try:
                sample = self.tokenise(record)
                part = self._visuals([record])
            except InputError as error:
                reason = str(error) if str(error).startswith(record.where) else f"{record.where}: {error}"
                if not self.skip_broken:
                    raise InputError(reason) from error
                skipped.append([record.id, reason])
                continue
            kept.append(record), samples.append(sample), parts.append(part)
        keys = dict.fromkeys(key for part, _ in parts for key in part)
        visuals = {key: torch.cat([part[key] for part, _ in parts if key in part]) for key in keys}
        written = {kind: [ids for _, part in parts for ids in part[kind]] for kind in visual_ids(self.processor)}
        return kept, samples, (visuals, written), skipped

    def _stand_in(self) -> TokenisedRecord:
        """A text that costs little and teaches nothing."""
        sample = self.tokenise(Record("stand-in", (), (), (("user", "-"), ("assistant", "-"))))
        return dataclasses.replace(sample, labels=np.full_like(sample.labels, IGNORED))

    def _packed(self, inputs: dict[str, Any], blocks: torch.Tensor, shifts: torch.Tensor) -> dict[str, Any]:
        """attention_mask bool [B, 1, S, S] and position_ids int64 [3, B, S], from blocks and shifts int64 [B, S]."""
        grids = [inputs[key].tolist() if key in inputs else [] for key in ("image_grid_thw", "video_grid_thw")]
        seconds = inputs["second_per_grid_ts"].tolist() if "second_per_grid_ts" in inputs else None
        real = inputs["attention_mask"]
        layout = find_spans(inputs["input_ids"].numpy(), real.numpy(), *grids, seconds, self.vision)
        positions, _ = prompt_positions(layout, self.vision)
        return {"attention_mask": block_mask(blocks), "position_ids": torch.from_numpy(positions) - shifts}


def block_mask(blocks: torch.Tensor) -> torch.Tensor:
    """Which tokens each token may attend to.

    Args:
        blocks: int64 [B, S]: 0 in the prefix, 1, 2, ... in blocks, -1 at padding.

    Returns:
        bool [B, 1, S, S], True: query (third axis) sees key (fourth). Every token sees itself and the tokens before it
        in the prefix and in its own block. Padding sees only itself: a row without any key is NaN in some kernels.
    """
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = blocks[:, :, None], blocks[:, None, :]
    seen = causal & ((key == 0) | (key == query)) & (key >= 0) & (query >= 0)
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]


def _repeat(sample: TokenisedRecord, ids: np.ndarray, repeats: np.ndarray) -> TokenisedRecord:
    """The sample with its placeholders expanded; all tokens of a placeholder, text between a video's frames included,
    inherit its label, block and shift."""
    return TokenisedRecord(ids, *(np.repeat(getattr(sample, name), repeats) for name in ("labels", "blocks", "shifts")))


def _stack(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    """Rows of unequal length -> int64 [B, S], filled up on the right."""
    stacked = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
    return stacked
