"""A record's tokens and labels: by the checkpoint's chat template, with loss on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppe_npu.backends.common import IGNORED
from ppe_npu.data.inputs import InputError, render, visual_items
from ppe_npu.data.placeholders import check_placeholders, visual_ids
from ppe_npu.training.data import Record

_MARKS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TokenisedRecord:
    """A tokenised record, placeholders not yet expanded. All int64 [n].

    Attributes:
        ids: token ids.
        labels: the token id where the assistant says it, else IGNORED.
        blocks: 0 in the common prefix (or in all of a plain record), 1, 2, ... in the questions' blocks.
        shifts: what to subtract from a token's position in one continuous text to get its own.
    """

    ids: np.ndarray
    labels: np.ndarray
    blocks: np.ndarray
    shifts: np.ndarray


class Tokeniser:
    """Records -> TokenisedRecord.

    Args:
        processor: the checkpoint's.
        memo: how many tokenised texts are cached.

    Raises:
        InputError: a chat template that is no ChatML.
    """

    def __init__(self, processor: Any, memo: int = 100_000) -> None:
        self.processor, self.memo = processor, memo
        tokenizer = processor.tokenizer
        self._header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._vision_end = tokenizer.convert_tokens_to_ids("<|vision_end|>")
        if self._end in (None, tokenizer.unk_token_id):
            raise InputError("the tokenizer has no <|im_end|>: training needs a ChatML template")
        self._memo: dict[Any, Any] = {}

    def __call__(self, record: Record) -> TokenisedRecord:
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
        starts = np.cumsum([0, *lengths[1:-1]])  # of each block, relative to the first
        return TokenisedRecord(
            ids=np.concatenate([part[0] for part in parts]),
            labels=np.concatenate([part[1] for part in parts]),
            blocks=np.repeat(np.arange(len(parts)), lengths),
            shifts=np.repeat([0, *starts], lengths),
        )

    def _question_makers(self, record: Record):
        """Yield for each question (the texts that decide its tokens, a function that makes the tokens)."""
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
        # A template's line break after the answer belongs to no turn.
        end = int(np.flatnonzero(labels != IGNORED)[-1]) + 1
        return (ids[:cut], labels[:cut]), (ids[cut:end], labels[cut:end])

    def _plain(self, record: Record) -> TokenisedRecord:
        answers = sum(role == "assistant" for role, _ in record.turns)
        ids, labels = self._encode(record.messages(), answers, record.where)
        return TokenisedRecord(ids, labels, np.zeros_like(ids), np.zeros_like(ids))

    def _encode(self, messages: list[dict[str, Any]], answers: int, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, labels), int64 [n], of a conversation that has `answers` assistant turns."""
        tokens = self.processor.tokenizer(render(self.processor, messages, False))["input_ids"]
        check_placeholders(self.processor, tokens, visual_items(messages), where)
        ids = np.array(tokens)
        labels = np.full_like(ids, IGNORED)
        spans = assistant_spans(tokens, self._header, self._end)
        if len(spans) != answers:
            raise InputError(
                f"{where}: {len(spans)} assistant turns were found in the chat template's text for {answers} answers: "
                "training needs a ChatML template, and texts without its <|im_start|> and <|im_end|>"
            )
        texts = [item["text"] for message in messages for item in message["content"] if item["type"] == "text"]
        if any(mark in text for text in texts for mark in _MARKS):  # an answer would be cut at the first of them
            raise InputError(f"{where}: a text contains {' or '.join(_MARKS)}, which delimit turns: remove them")
        for start, stop in spans:
            labels[start:stop] = ids[start:stop]
        return ids, labels

    def _remember(self, key: Any, make) -> Any:
        if key not in self._memo:
            if len(self._memo) >= self.memo:
                self._memo.clear()
            self._memo[key] = make()
        return self._memo[key]


def assistant_spans(ids: Sequence[int], header: Sequence[int], end: int) -> list[tuple[int, int]]:
    """[(start, stop)] of what the assistant says in ChatML token ids: after each header, up to and including `end`.

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
