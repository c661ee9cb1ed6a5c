"""Records -> training batches: tokens by the checkpoint's chat template, labels on what the assistant says.

Packing. An independent record's questions share one sequence: the prefix (all up to the last visual's end), then per
question a block (question, answer). A block sees the prefix and itself, and its positions go on from the prefix's, so
it is computed as if it were asked alone, while the vision tower, the clustering and the prefix are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppe_npu.compat import ensure_mm_token_type_ids
from ppe_npu.inputs import (
    InputError,
    PixelCache,
    VideoSampling,
    check_placeholders,
    pad,
    process_visuals,
    render,
    token_repeats,
    visual_ids,
    visual_items,
    visual_token_counts,
)
from ppe_npu.positions import prompt_positions
from ppe_npu.spans import VisionTokens, find_spans
from ppe_npu.training.data import Record

IGNORED = -100  # the label of a token without loss
_MEMO = 100_000  # tokenised texts that are kept


@dataclass(frozen=True)
class Tokens:
    """A tokenised record, placeholders not yet expanded. All int64 [n].

    Attributes:
        ids: token ids.
        labels: the token itself where the assistant says it, else IGNORED.
        blocks: 0 in the common prefix (or all of a plain record), 1, 2, ... in the questions' blocks.
        shifts: how far a token's position lies before where a single running text would have it.
    """

    ids: np.ndarray
    labels: np.ndarray
    blocks: np.ndarray
    shifts: np.ndarray


class Collator:
    """A list of Records -> model inputs with labels; right padding.

    Returns what inputs.build_inputs returns, and labels int64 [B, S]. A batch with an independent record has instead of
    the padding mask a ready one, bool [B, 1, S, S] (True: may look), and position_ids int64 [3, B, S].

    Args:
        processor: the checkpoint's.
        vision: what the model says about its visual tokens.
        sampling: which frames of videos.
        cache: where processed pixels are kept between epochs; None: nowhere.

    Raises:
        InputError: a chat template that is no ChatML; a file that cannot be read.
    """

    def __init__(
        self,
        processor: Any,
        vision: VisionTokens,
        sampling: VideoSampling | None = None,
        cache: PixelCache | None = None,
    ) -> None:
        self.processor, self.vision, self.sampling, self.cache = processor, vision, sampling, cache
        tokenizer = processor.tokenizer
        self._header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._vision_end = tokenizer.convert_tokens_to_ids("<|vision_end|>")
        if self._end in (None, tokenizer.unk_token_id):
            raise InputError("the tokenizer has no <|im_end|>: training needs a ChatML template")
        self._memo: dict[Any, Any] = {}

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        samples = [self.tokenise(record) for record in records]
        visuals = self._visuals(records)
        counts = visual_token_counts(self.processor, visuals)
        samples = [_repeat(sample, token_repeats(self.processor, sample.ids.tolist(), counts)) for sample in samples]
        inputs = pad([sample.ids for sample in samples], self.processor.tokenizer.pad_token_id, "right")
        inputs["labels"] = _stack([sample.labels for sample in samples], IGNORED)
        ensure_mm_token_type_ids(inputs, *visual_ids(self.processor).values())
        if any(record.independent for record in records):
            inputs |= self._packed(inputs, samples, visuals)
        return {**inputs, **visuals}

    def _visuals(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Pixels and grids of all images and videos."""
        images = [path for record in records for path in record.images]
        videos = [path for record in records for path in record.videos]
        try:
            return process_visuals(self.processor, images, videos, self.sampling, self.cache)
        except InputError as error:
            guilty = [
                record.where
                for record in records
                if any(str(p) in str(error) for p in (*record.images, *record.videos))
            ]
            raise InputError(f"{', '.join(guilty) or 'a batch'}: {error}") from error

    def tokenise(self, record: Record) -> Tokens:
        """A record's tokens, labels and blocks; the same text is tokenised once."""
        if not record.independent:
            return self._remember(record.turns, lambda: self._plain(record))
        questions = [
            self._remember((len(record.images), len(record.videos), *texts), make)
            for texts, make in self._question_makers(record)
        ]
        prefix = questions[0][0]
        parts = [prefix, *(block for _, block in questions)]
        lengths = [len(part[0]) for part in parts]
        starts = np.cumsum([0, *lengths[1:-1]])  # of each block, counted from the first
        return Tokens(
            ids=np.concatenate([part[0] for part in parts]),
            labels=np.concatenate([part[1] for part in parts]),
            blocks=np.repeat(np.arange(len(parts)), lengths),
            shifts=np.repeat([0, *starts], lengths),
        )

    def _question_makers(self, record: Record):
        """Per question: the texts that decide its tokens, and a function that makes them."""
        texts = [text for _, text in record.turns]
        pairs = zip(texts[::2], texts[1::2], range(len(texts) // 2))
        for human, answer, number in pairs:
            yield (human, answer), lambda number=number: self._question(record, number)

    def _question(self, record: Record, number: int) -> tuple[Any, Any]:
        """One question asked alone, cut after its visuals: (ids, labels) of the prefix and of the block."""
        ids, labels = self._encode(record.questions()[number], 1, record.where)
        visual = list(visual_ids(self.processor).values())
        cut = int(np.flatnonzero(np.isin(ids, visual))[-1]) + 1
        cut += int(ids[cut] == self._vision_end)
        end = int(np.flatnonzero(labels != IGNORED)[-1]) + 1  # a template's line break after the answer is nobody's
        return (ids[:cut], labels[:cut]), (ids[cut:end], labels[cut:end])

    def _plain(self, record: Record) -> Tokens:
        answers = sum(role == "assistant" for role, _ in record.turns)
        ids, labels = self._encode(record.messages(), answers, record.where)
        return Tokens(ids, labels, np.zeros_like(ids), np.zeros_like(ids))

    def _encode(self, messages: list[dict[str, Any]], answers: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, labels) of a conversation that holds `answers` assistant turns."""
        tokens = self.processor.tokenizer(render(self.processor, messages, False))["input_ids"]
        check_placeholders(self.processor, tokens, visual_items(messages), where)
        ids = np.array(tokens)
        labels = np.full_like(ids, IGNORED)
        spans = assistant_spans(tokens, self._header, self._end)
        if len(spans) != answers:
            raise InputError(
                f"{where}: {len(spans)} assistant turns were found in the chat template's text for {answers} answers: "
                "training needs a template of ChatML's form, and texts without its <|im_start|> and <|im_end|>"
            )
        for start, stop in spans:
            labels[start:stop] = ids[start:stop]
        return ids, labels

    def _remember(self, key: Any, make) -> Any:
        if key not in self._memo:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            self._memo[key] = make()
        return self._memo[key]

    def _packed(self, inputs: dict[str, Any], samples: list[Tokens], visuals: dict[str, Any]) -> dict[str, Any]:
        """attention_mask bool [B, 1, S, S] and position_ids int64 [3, B, S]."""
        grids = [visuals[key].tolist() if key in visuals else [] for key in ("image_grid_thw", "video_grid_thw")]
        seconds = visuals["second_per_grid_ts"].tolist() if "second_per_grid_ts" in visuals else None
        real = inputs["attention_mask"]
        layout = find_spans(inputs["input_ids"].numpy(), real.numpy(), *grids, seconds, self.vision)
        positions, _ = prompt_positions(layout, self.vision)
        shifts = _stack([sample.shifts for sample in samples], 0)
        blocks = _stack([sample.blocks for sample in samples], -1)
        return {"attention_mask": block_mask(blocks), "position_ids": torch.from_numpy(positions) - shifts}


def assistant_spans(ids: Sequence[int], header: Sequence[int], end: int) -> list[tuple[int, int]]:
    """[(start, stop)] of what the assistant says in ChatML token ids: after each header, up to and with `end`.

    Args:
        ids: a conversation's token ids.
        header: the ids of "<|im_start|>assistant" and its line break.
        end: the id of <|im_end|>.
    """
    header, spans, at = list(header), [], 0
    ids = list(ids)
    while at < len(ids):
        if ids[at : at + len(header)] == header and end in ids[at:]:
            start = at + len(header)
            at = ids.index(end, start) + 1
            spans.append((start, at))
        else:
            at += 1
    return spans


def block_mask(blocks: torch.Tensor) -> torch.Tensor:
    """Who may look at whom.

    Args:
        blocks: int64 [B, S]: 0 in the prefix, 1, 2, ... in blocks, -1 at padding.

    Returns:
        bool [B, 1, S, S], True: query (third axis) sees key (fourth). Every token sees what stands before it in the
        prefix and in its own block; padding sees only itself, because a row without any key is NaN in some kernels.
    """
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = blocks[:, :, None], blocks[:, None, :]
    seen = causal & ((key == 0) | (key == query)) & (key >= 0) & (query >= 0)
    return (seen | torch.eye(length, dtype=torch.bool))[:, None]


def _repeat(sample: Tokens, repeats: list[int]) -> Tokens:
    """The sample with its placeholders expanded."""
    return Tokens(*(np.repeat(getattr(sample, name), repeats) for name in ("ids", "labels", "blocks", "shifts")))


def _stack(rows: Sequence[np.ndarray], fill: int) -> torch.Tensor:
    """Rows of unequal length -> int64 [B, S], filled up on the right."""
    stacked = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        stacked[number, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
    return stacked
