"""What the methods of a stage are shown of the prompt beside its tokens: their own samples' text, and what a model
computes for them alone.

A model's numbers come as tensors that stand as the stage's tokens do ([R, ...], see Tokens.seen) or as its text tokens
do ([T, ...]). Here they become what each cell sees of them. Nothing of one sample is ever shown to a cell of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.engine.rounds import Movable, as_tensor
from ppe_npu.methods.base import Method

# What needs are made of: fields of the View.
FIELDS = {
    "layer_queries": ("layer_queries",),
    "layer_keys": ("layer_keys",),
    "layer_plain": ("layer_plain_queries", "layer_plain_keys"),
    "layer_row": ("layer_row",),
}
_TEXT_FIELDS = {
    frozenset({"text"}): ("text",),
    frozenset({"layer_text"}): ("text_queries", "text_keys"),
    frozenset({"layer_text", "layer_plain"}): ("text_plain_queries", "text_plain_keys"),
}
LAYER_NEEDS = frozenset({"layer_queries", "layer_keys", "layer_plain", "layer_text", "layer_row"})
TEXT = frozenset({"text", "layer_text"})
OF_PROMPTS = TEXT | {"layer_row"}  # needs for which samples have to be told apart


@dataclass(frozen=True)
class Prompts(Movable):
    """The samples of a batch as they stand before a stage.

    R is the number of places of the flattened batch, of which T hold text; S the number of samples.

    Args:
        sample: [R] int64, which sample each place is part of.
        text: [S, W] int64, which of the T text tokens are a sample's prompt, in order; 0 beyond its last.
        text_places: [S, W] int64, the places at which they stand.
        text_valid: [S, W] bool, or None where all samples have W of them.
        later: [S, W] bool, True at what is no text but to methods that know the first image alone; None: nowhere.
        last: [S] int64, the place of the last token of each sample's prompt: of the sample, or in training of what
            stands before its answer.
        seen: [S, L] bool, where a sample has a token up to that one when each stands in a row of its own.
        places: of a packed batch [S, L] int64, the place of each of these; None: the batch stands so.
        rows: of a packed batch [R] int64, where each place is found in the flattened [S, L]; None with places.
    """

    sample: torch.Tensor
    text: torch.Tensor
    text_places: torch.Tensor
    text_valid: torch.Tensor | None
    later: torch.Tensor | None
    last: torch.Tensor
    seen: torch.Tensor
    places: torch.Tensor | None
    rows: torch.Tensor | None

    @classmethod
    def of(
        cls,
        real: np.ndarray,
        borders: Sequence[int] | None,
        text: np.ndarray,
        asked: np.ndarray,
        later: np.ndarray | None = None,
    ) -> Prompts:
        """From host arrays.

        Args:
            real: [B, L] bool, False at padding.
            borders: of a packed batch [1, R], where its samples begin and end: 0, ..., R.
            text: [T] int64, the place of each text token, rising.
            asked: [S] int64, the place at which each sample's prompt ends, -1 where that is its last token.
            later: [R] bool, True at what joins the text for methods that know the first image alone, which stand at
                layers, where `text` of the result is not asked for; None: there is no such method.
        """
        if later is not None:
            text = np.sort(np.concatenate([text, np.flatnonzero(later)]))
        if borders is None:
            places: np.ndarray = np.arange(real.size).reshape(real.shape)
            rows: np.ndarray = places
        else:
            real, places = _apart(borders)
            rows = np.flatnonzero(real)
        samples, length = real.shape
        sample = rows.reshape(-1) // length
        last = np.where(asked < 0, np.where(real, places, -1).max(axis=1).clip(min=0), asked)
        prompt = np.flatnonzero(text <= last[sample[text]])
        counts = np.bincount(sample[text[prompt]], minlength=samples)
        valid = np.arange(int(counts.max())) < counts[:, None]
        own, text_places = np.zeros(valid.shape, np.int64), np.zeros(valid.shape, np.int64)
        own[valid], text_places[valid] = prompt, text[prompt]
        return cls(
            as_tensor(sample),
            as_tensor(own),
            as_tensor(text_places),
            None if valid.all() else as_tensor(valid),
            None if later is None else as_tensor(later[text_places] & valid),
            as_tensor(last),
            as_tensor(real & (places <= last[:, None])),
            None if borders is None else as_tensor(places),
            None if borders is None else as_tensor(rows),
        )

    def of_text(self, values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[S, W, ...] what `index` [S, W] names of values [R, ...] or [T, ...]."""
        return values.index_select(0, index.flatten()).unflatten(0, tuple(index.shape))

    def apart(self, values: torch.Tensor) -> torch.Tensor:
        """Values [R, ...] with each sample in a row of its own: [S, L, ...]."""
        if self.places is not None:
            values = values.index_select(0, self.places.flatten())
        return values.unflatten(0, tuple(self.seen.shape))

    def together(self, values: torch.Tensor) -> torch.Tensor:
        """The way back: [S, L, ...] -> [R, ...]."""
        flat = values.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)


def _apart(borders: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """[S, L] of samples in one row, each in a row of its own: which places there are, and where they stand."""
    lengths = np.diff(borders)
    steps = np.arange(max(int(lengths.max()), 1))
    real = steps < lengths[:, None]
    return real, np.where(real, np.array(borders[:-1])[:, None] + steps, 0)


@dataclass(frozen=True)
class Texts:
    """The text beside a stage's tokens.

    Args:
        prompts: how samples stand before the stage.
        values: of each field of the View about text, and whether it is of the layer before (see Method.layer_before),
            the numbers of each sample's text [S, W, ...]. The text itself is never of the layer before.
    """

    prompts: Prompts
    values: Mapping[tuple[str, bool], torch.Tensor]

    def shown(self, method: Method, first: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """The View's fields about text, for cells whose first tokens stand at these places [F]."""
        fields = [name for needs, names in _TEXT_FIELDS.items() if needs <= method.needs for name in names]
        if not fields:
            return {}
        prompts, cells = self.prompts, len(first)
        # One sample's text is not copied for each of its cells.
        sample = first.new_zeros(1) if len(prompts.text) == 1 else prompts.sample.index_select(0, first)

        def of_cells(values: torch.Tensor) -> torch.Tensor:
            own = values.index_select(0, sample)
            return own.expand(cells, *own.shape[1:])

        shown: dict[str, torch.Tensor | None] = {
            name: of_cells(self.values[name, name != "text" and method.layer_before]) for name in fields
        }
        shown["text_after"] = of_cells(prompts.text_places) > first[:, None]
        there = prompts.text_valid
        if prompts.later is not None and not method.first_only:
            there = ~prompts.later if there is None else there & ~prompts.later
        shown["text_valid"] = None if there is None else of_cells(there)
        return shown


def layer_needs(methods: Iterable[Method], before: bool) -> frozenset[str]:
    """What these methods look at in the decoder layer that they stand before, or in the one before that."""
    return frozenset().union(*(method.needs & LAYER_NEEDS for method in methods if method.layer_before == before))
