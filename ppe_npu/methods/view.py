"""The input of a method: the tokens of many cells at once, with only the parts that the method declares in `needs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ppe_npu.errors import InputError, shown

_OF_TOKENS = (  # parts with an entry per token
    *("tokens", "places", "sizes", "tower_keys", "tower_saliency", "tower_groups", "layer_queries", "layer_keys"),
    *("layer_plain_queries", "layer_plain_keys", "layer_row"),
)
_OF_TEXT = ("text", "text_queries", "text_keys", "text_plain_queries", "text_plain_keys")
_DTYPES = {"valid": torch.bool, "text_valid": torch.bool, "text_after": torch.bool, "places": torch.long}


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
            and over the queries of its image or frame, the sum over its patches; [F, B, N] where the method's
            tower_blocks names B blocks.
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
            given: the parts of the view; masks and places may be integers of any dtype.

        Raises:
            InputError: no part is given, parts differ in their number of cells, or num_kept exceeds a cell's tokens.
        """
        parts: dict[str, Any] = {name: part for name, part in given.items() if part is not None}
        parts |= {name: parts[name].to(dtype) for name, dtype in _DTYPES.items() if name in parts}
        first = next(iter(parts.values()), None)
        if first is None or any(part.shape[:1] != first.shape[:1] for part in parts.values()):
            raise InputError(
                f"View.of got the shapes { ({name: list(part.shape) for name, part in parts.items()}) }: give at least "
                "one tensor, and all with the same number of cells"
            )
        view = cls(None, 0, **parts)
        return view if num_kept is None else view.keeping(num_kept)

    def keeping(self, num_kept: int | Sequence[int] | torch.Tensor) -> View:
        """This view with num_kept and the numbers that the host reads from it and from places."""
        counts, cells = torch.as_tensor(num_kept), self.cells
        if counts.is_floating_point() or counts.dtype == torch.bool or counts.shape not in ((), cells.shape[:1]):
            raise InputError(f"num_kept={shown(num_kept)}: give a whole number, or one for each of {len(cells)} cells")
        counts = counts.to(cells.device, torch.long).expand(len(cells)).contiguous()
        present = self.present.sum(1)
        if (counts < 1).any() or (counts > present).any():
            raise InputError(f"num_kept={counts.tolist()} of {present.tolist()} tokens: give 1 or more, at most all")
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
        return next(part for part in (*parts, self.layer_queries, self.layer_row) if part is not None)

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

    def require(self, method: str, *names: str) -> None:
        """Raise InputError if a part that the method looks at was not given."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise InputError(f"{method} looks at {', '.join(missing)}: give them to View.of")


def _blank(part: torch.Tensor | None, there: torch.Tensor | None, name: str) -> torch.Tensor | None:
    """One part of View.blanked(). there: [F, N], or [F, T] of all text, where the part may be of the last of it."""
    if part is None or not part.numel():
        return part
    part = part.detach().nan_to_num(0.0, 0.0, 0.0) if part.is_floating_point() else part
    if there is None:
        return part
    absent = ~there[:, None] if part.dim() == 3 and name == "tower_saliency" else ~there[:, -part.shape[1] :]
    return part.masked_fill(
        absent.view(*absent.shape, *[1] * (part.dim() - absent.dim())), -1 if name == "places" else 0
    )
