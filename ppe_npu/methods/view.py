"""The input of a method: the tokens of many cells at once, with only the parts that the method declares in `needs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ppe_npu.backends import device
from ppe_npu.errors import InputError, counted, shown
from ppe_npu.settings import strangers

_AXES = {  # of each part, as in View's docstring
    name: axes
    for axes, names in {
        "FNC": "tokens",
        "FN3": "places",
        "FN": "valid sizes tower_saliency tower_groups layer_row",
        "FNK": "tower_keys",
        "FNHD": "layer_queries layer_keys layer_plain_queries layer_plain_keys",
        "FTC": "text",
        "FT": "text_valid text_after",
        "FTHD": "text_queries text_keys text_plain_queries text_plain_keys",
    }.items()
    for name in names.split()
}
_ALIKE = {"F": "cells", "N": "tokens", "T": "text tokens", "D": "channels in a head"}
_DTYPES = {
    **dict.fromkeys(("valid", "text_valid", "text_after"), torch.bool),
    **dict.fromkeys(("places", "sizes", "tower_groups"), torch.long),
}
_OF_TOKENS = (  # parts with an entry per token
    *("tokens", "places", "sizes", "tower_keys", "tower_saliency", "tower_groups", "layer_queries", "layer_keys"),
    *("layer_plain_queries", "layer_plain_keys", "layer_row"),
)
_OF_TEXT = ("text", "text_queries", "text_keys", "text_plain_queries", "text_plain_keys")


@dataclass(frozen=True)
class View:
    """F cells of up to N tokens each. Parts that a method does not declare in `needs` may be None. In the view that
    group() gets, padding is 0 (in places, -1), and so are numbers that are not finite, see blanked().

    Args:
        num_kept: [F] int64, how many tokens each cell keeps; an upper bound if the method has late counts. None: a
            method that is run alone uses its own kept().
        most: the largest num_kept, known to the host.
        tokens: [F, N, C] floating point; no gradient flows through the choice of groups.
        valid: [F, N] bool, False where a cell has no token, or None if every cell has N.
        places: [F, N, 3] int64 (frame, row, column) of each token in its image or video; for a token that was merged
            before, the place of its representative.
        sizes: [F, N] int64, how many original tokens each one stands for.
        text: [F, T, C] the text of each cell's prompt, as embeddings before the decoder or as hidden states on entry
            to a layer; text_valid: [F, T] bool, False where there is no text, or None; text_after: [F, T] bool, whether
            it comes after the cell.
        tower_keys: [F, N, D] keys of a block of the vision tower, the mean over heads and over a token's patches.
        tower_saliency: [F, N] attention that each token receives in a block of the vision tower, the mean over heads
            and over the queries of its image or frame, the sum over its patches; or [F, B, N] of each of B > 1 blocks,
            for a method that looks at as many (its tower_blocks, or fewer where it skips some).
        tower_groups: [F, N] int64, where cells were joined inside the vision tower, the offset from each token to the
            one at which its group continues (negative if that one comes before).
        layer_queries, layer_keys: [F, N, H, D] of the decoder layer on whose entry the step is taken (see
            Method.layer_before), after its norm and rotary embedding; keys may have fewer heads, each of which serves
            consecutive query heads.
        layer_plain_queries, layer_plain_keys: the same before the rotary embedding (the need is "layer_plain").
        text_queries, text_keys: [F, T, H, D] of the text in that layer, after its rotary embedding (the need is
            "layer_text"); text_plain_queries, text_plain_keys: before it (needs both "layer_text" and "layer_plain").
        layer_row: [F, N] attention of the prompt's last token in that layer, over the whole prompt, the mean over
            heads.
        least: the smallest num_kept if the host knows it, else 1.
        frames, frame_tokens: for cells that are whole images or videos, the largest number of frames in a cell, from
            its first to its last, and of tokens in a frame; None where the host does not know.
    """

    num_kept: torch.Tensor | None
    most: int
    tokens: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    places: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    text: torch.Tensor | None = None
    text_valid: torch.Tensor | None = None
    text_after: torch.Tensor | None = None
    tower_keys: torch.Tensor | None = None
    tower_saliency: torch.Tensor | None = None
    tower_groups: torch.Tensor | None = None
    layer_queries: torch.Tensor | None = None
    layer_keys: torch.Tensor | None = None
    layer_plain_queries: torch.Tensor | None = None
    layer_plain_keys: torch.Tensor | None = None
    text_queries: torch.Tensor | None = None
    text_keys: torch.Tensor | None = None
    text_plain_queries: torch.Tensor | None = None
    text_plain_keys: torch.Tensor | None = None
    layer_row: torch.Tensor | None = None
    least: int = 1
    frames: int | None = None
    frame_tokens: int | None = None

    @classmethod
    def of(cls, *, num_kept: int | Sequence[int] | torch.Tensor | None = None, **given: torch.Tensor | None) -> View:
        """A view of plain tensors, to run a method alone: View.of(tokens=[F, N, C], num_kept=..., places=...).

        Args:
            num_kept: one number for all cells, or one for each; None: the method's kept() decides for each cell.
            given: the parts of the view, as described there; masks and whole numbers may have any dtype. As
                some methods compare it with tower_keys, text may have as many channels as these instead of C.

        Raises:
            InputError: a part is unknown or does not have the form in View's docstring, parts do not fit together, none
                has an entry for each token, or num_kept exceeds a cell's tokens.
        """
        unknown = strangers(given, _AXES)
        if unknown:
            raise InputError(f"View.of has no part {unknown}: its parts are num_kept, {', '.join(_AXES)}")
        parts: dict[str, Any] = {name: _part(name, given[name]) for name in _AXES if given.get(name) is not None}
        _check_together(parts)
        view = cls(None, 0, **parts)
        return view if num_kept is None else view.keeping(num_kept)

    def keeping(self, num_kept: int | Sequence[int] | torch.Tensor) -> View:
        """This view with num_kept and the numbers that the host reads from it and from places."""
        counts, cells = _numbers(num_kept), self.cells
        if counts is None or not _is_whole(counts) or counts.shape not in ((), cells.shape[:1]):
            raise InputError(
                f"num_kept={shown(num_kept)}: give a whole number, or one for each of {counted(len(cells), 'cell')}"
            )
        counts = counts.to(cells.device, torch.long).expand(len(cells)).contiguous()
        present = self.present.sum(1)
        if (counts < 1).any() or (counts > present).any():
            raise InputError(
                f"num_kept={shown(counts.tolist())} of {shown(present.tolist())} tokens: give from 1 to the number of "
                "the cell's tokens"
            )
        return replace(self, num_kept=counts, most=int(counts.max()), least=int(counts.min()), **self._frame_sizes())

    def _frame_sizes(self) -> dict[str, Any]:
        """`frames` and `frame_tokens`, which the host reads from places."""
        if self.places is None:
            return {}
        frames = [(cell[seen, 0] - cell[seen, 0].min()) for cell, seen in zip(self.places.cpu(), self.present.cpu())]
        return {
            "frames": max(int(own.max()) for own in frames) + 1,
            "frame_tokens": max(int(own.bincount().max()) for own in frames),
        }

    @property
    def cells(self) -> torch.Tensor:
        """Any part [F, N, ...] that is given, for its shape and device."""
        saliency = self.tower_saliency
        if saliency is not None and saliency.dim() == 3:  # [F, B, N], of several blocks
            saliency = saliency[:, 0]
        parts = (self.tokens, self.places, self.sizes, self.tower_keys, saliency, self.tower_groups, self.layer_keys)
        others = (self.layer_queries, self.layer_plain_keys, self.layer_plain_queries, self.layer_row, self.valid)
        return next(part for part in (*parts, *others) if part is not None)

    @property
    def present(self) -> torch.Tensor:
        """[F, N] bool, True where a cell has a token."""
        if self.valid is not None:
            return self.valid
        cells = self.cells
        return torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)

    def blanked(self) -> View:
        """This view with 0 in place of all numbers that are not finite, and of padding (in places, -1). So a choice
        depends on no mate, whose tokens padding may repeat, and is defined for every cell."""
        parts: dict[str, Any] = {name: _blank(getattr(self, name), self.valid, name) for name in _OF_TOKENS}
        parts |= {name: _blank(getattr(self, name), self.text_valid, name) for name in _OF_TEXT}
        return replace(self, **parts)

    def require(self, method: str, *names: str, blocks: int | None = 1) -> None:
        """Raise InputError if a part that the method looks at was not given, or tower_saliency is neither of one block
        nor of as many as the method reads (None: any number)."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise InputError(f"{method} looks at {', '.join(missing)}: give them to View.of")
        saliency = self.tower_saliency if "tower_saliency" in names else None
        if saliency is not None and saliency.dim() == 3 and blocks not in (None, saliency.shape[1]):
            form = "[F, N]" if blocks == 1 else f"[F, N], or [F, {blocks}, N] of {blocks} blocks"
            raise InputError(f"{method}: tower_saliency is {list(saliency.shape)}: give {form}")


def _part(name: str, given: Any) -> torch.Tensor:
    """A part that is given to View.of, in the form that methods expect.

    Raises:
        InputError: it has another type, number of axes or kind of numbers.
    """
    form = f"[{', '.join(_AXES[name])}]" + (" (or [F, B, N] of B blocks)" if name == "tower_saliency" else "")
    form += f" of F cells and {'N' if 'N' in _AXES[name] else 'T text'} tokens"
    if not isinstance(given, torch.Tensor):
        raise InputError(f"View.of {name} is of type {type(given).__name__}: give a torch.Tensor {form}")
    axes = _axes(name, given)
    if len(axes) != given.dim() or (axes[-1] == "3" and given.shape[-1] != 3):
        raise InputError(f"View.of {name} is {list(given.shape)}: give {form}")
    dtype = _DTYPES.get(name)
    if dtype is None:
        if not given.is_floating_point():
            raise InputError(f"View.of {name} is {given.dtype}: give floating point, such as {name}.float()")
        return given[:, 0] if axes == "FBN" and given.shape[1] == 1 else given
    whole = given.is_floating_point() and bool((given == given.round()).all())  # as scripts give them
    if not (whole or _is_whole(given) or given.dtype == dtype):
        remedy = f"True and False, such as {name}.bool()" if dtype == torch.bool else f"integers, such as {name}.long()"
        raise InputError(f"View.of {name} is {given.dtype}: give {remedy}")
    return given.to(dtype)


def _check_together(parts: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError unless parts agree in their device and in the numbers of _ALIKE, and tell how many tokens there
    are."""
    firsts: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        for axis, size in zip(_axes(name, part), part.shape):
            first = firsts.setdefault(axis, name)
            if axis in _ALIKE and sizes.setdefault(axis, size) != size:
                raise InputError(
                    f"View.of {name} is {list(part.shape)}, {first} is {list(parts[first].shape)}: give both the same "
                    f"number of {_ALIKE[axis]}"
                )
            if axis in "FN" and not size:
                raise InputError(f"View.of {name} is {list(part.shape)}: give at least one cell and one token")
        first = firsts["F"]
        if part.device != parts[first].device:
            raise InputError(
                f"View.of {name} is on {part.device}, {first} is on {parts[first].device}: give all on one device"
            )
    if "N" not in sizes:
        raise InputError(
            f"View.of got {', '.join(parts) or 'nothing'}: give a part with an entry for each token, such as tokens"
        )
    widths = {name: parts[name].shape[-1] for name in ("text", "tokens", "tower_keys") if name in parts}
    if {"text", "tokens"} <= widths.keys() and widths.pop("text") not in widths.values():
        raise InputError(
            f"View.of text is {list(parts['text'].shape)}, tokens is {list(parts['tokens'].shape)}: give both the same "
            "number of channels"
        )


def _axes(name: str, part: torch.Tensor) -> str:
    return "FBN" if name == "tower_saliency" and part.dim() == 3 else _AXES[name]


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _numbers(given: Any) -> torch.Tensor | None:
    """A tensor of the numbers in anything; None if it does not hold numbers."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_finite(part: torch.Tensor) -> bool:
    """Whether the host may ask if all numbers are finite, and they are. Asking writes nothing, as a copy would."""
    if torch.compiler.is_compiling() or not device.asks_freely(part.device):
        return False
    return bool(part.detach().sum(dtype=torch.promote_types(part.dtype, torch.float32)).isfinite())


def _blank(part: torch.Tensor | None, there: torch.Tensor | None, name: str) -> torch.Tensor | None:
    """One part of View.blanked(). there: [F, N], or [F, T] of all text, where the part may be of the last of it."""
    if part is None or not part.numel():
        return part
    if part.is_floating_point():
        part = part.detach() if _is_finite(part) else part.detach().nan_to_num(0.0, 0.0, 0.0)
    if there is None:
        return part
    absent = ~there[:, None] if part.dim() == 3 and name == "tower_saliency" else ~there[:, -part.shape[1] :]
    return part.masked_fill(
        absent.view(*absent.shape, *[1] * (part.dim() - absent.dim())), -1 if name == "places" else 0
    )
