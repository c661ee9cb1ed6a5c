"""What the methods of a stage are shown besides its tokens: their own sample's text, and values that a model computes
only for them.

The model gives its values in the order of the stage's tokens ([R, ...], see Tokens.seen) or of its text tokens
([T, ...]). Here they become what each cell sees. A cell is never shown anything of another sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ppe_npu.engine.rounds import Movable, as_tensor
from ppe_npu.methods.base import Method

# The fields of the View that each need stands for.
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
OF_PROMPTS = TEXT | {"layer_row"}  # needs for which the samples of a batch must be distinguished


@dataclass(frozen=True)
class Prompts(Movable):
    """Where the samples of a batch are before a stage.

    R is the number of places of the flattened batch, of which T hold text; S the number of samples.

    Args:
        sample: [R] int64, the sample that each place is part of.
        text: [S, W] int64, the text tokens of each sample's prompt, as indices among the T, in order; 0 after the last.
        text_places: [S, W] int64, the places of these tokens.
        text_valid: [S, W] bool, or None if all samples have W of them.
        later: [S, W] bool, True at visual tokens after a sample's first image or video, which count as text only for
            methods with first_only; None: nowhere.
        last: [S] int64, the place of the last token of each sample's prompt, which in training ends before the answer.
        seen: [S, L] bool, with each sample in a row of its own, True at its tokens up to `last`.
        places: for a packed batch [S, L] int64, the places of these tokens; None: samples have rows of their own.
        rows: for a packed batch [R] int64, the index of each place in the flattened [S, L]; None if places is None.
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
            borders: where the samples of a packed batch [1, R] begin and end: 0, ..., R.
            text: [T] int64, the place of each text token, rising.
            asked: [S] int64, the place at which each sample's prompt ends; -1: at its last token.
            later: [R] bool, True at visual tokens that count as text for methods with first_only; None: there is no
                such method. They are at decoder layers only, where `text` of the result is not used.
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
        """[S, W, ...] the entries of values [R, ...] or [T, ...] at `index` [S, W]."""
        return values.index_select(0, index.flatten()).unflatten(0, tuple(index.shape))

    def apart(self, values: torch.Tensor) -> torch.Tensor:
        """Values [R, ...] with each sample in a row of its own: [S, L, ...]."""
        if self.places is not None:
            values = values.index_select(0, self.places.flatten())
        return values.unflatten(0, tuple(self.seen.shape))

    def together(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of apart(): [S, L, ...] -> [R, ...]."""
        flat = values.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)


def _apart(borders: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """[S, L] bool, True at tokens when each sample has a row of its own, and [S, L] their places in the packed row."""
    lengths = np.diff(borders)
    steps = np.arange(max(int(lengths.max()), 1))
    real = steps < lengths[:, None]
    return real, np.where(real, np.array(borders[:-1])[:, None] + steps, 0)


@dataclass(frozen=True)
class Texts:
    """The text of the prompts at a stage.

    Args:
        prompts: where the samples are before the stage.
        values: [S, W, ...] values of each sample's text, by the View's field about text and by whether they are of the
            layer before (see Method.layer_before), which the text itself never is.
    """

    prompts: Prompts
    values: Mapping[tuple[str, bool], torch.Tensor]

    def shown(self, method: Method, first: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """The View's fields about text, for cells whose first tokens are at the places `first` [F]."""
        fields = [name for needs, names in _TEXT_FIELDS.items() if needs <= method.needs for name in names]
        if not fields:
            return {}
        prompts, cells = self.prompts, len(first)
        # If there is one sample, its text is expanded and not copied for each cell.
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
    """What these methods look at in the decoder layer on whose entry they are taken, or in the one before."""
    return frozenset().union(*(method.needs & LAYER_NEEDS for method in methods if method.layer_before == before))
