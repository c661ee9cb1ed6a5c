"""Checks around the functions that a method defines, whose errors name the method: what they are given, what they
return, and those that it does not have. Where values are on a device, only shapes are checked: the host does not wait.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ppe_npu.errors import InputError

if TYPE_CHECKING:
    import torch

    from ppe_npu.methods.base import Method
    from ppe_npu.methods.grouping import Grouping
    from ppe_npu.methods.view import View

_WHERE = {
    "pixels": "at the pixels",
    "tower": "inside the vision tower",
    "input": "before the decoder",
    "layer": "at decoder layers",
}


def lacking(method: Method, called: str) -> InputError:
    """The error for a call of a function that the method does not define."""
    own = "select" if method.place == "pixels" else "" if method.restores else "group"
    if called == own or (called.startswith("segment") and method.scope == "segment"):
        remedy = f"define {called}() in {type(method).__name__}"
    elif method.scope != "segment" and called.startswith("segment"):
        remedy = 'only methods with scope="segment" have one'
    else:
        remedy = f"call {own}(), or compress a model with it" if own else "compress a model with it"
    where = _WHERE.get(method.place, "nowhere")
    return InputError(f"{method.name} works {where} and has no {called}(): {remedy}, see Method.places")


def with_num_kept(group: Callable[[Any, View], Grouping]) -> Callable[[Any, View], Grouping]:
    """Wrap group(), or match() of a JoiningMethod, so that its view always has num_kept: a method that is run alone
    gets the numbers from its own kept(). With late counts they are an upper bound, and `least` is 1. A method with
    `blanks` gets a blanked() view."""

    @functools.wraps(group)
    def with_counts(self: Method, view: View) -> Grouping:
        if not hasattr(view, "num_kept"):
            given = type(view).__name__
            raise InputError(
                f"{self.name}.{group.__name__}() was given a {given}: give a View, such as View.of(tokens=...)"
            )
        if view.num_kept is None:
            view = view.keeping([self.kept(tokens) for tokens in view.present.sum(1).tolist()])
        view = replace(view, least=1) if self.counts == "late" else view
        found = group(self, view.blanked() if self.blanks else view)
        # Shapes alone: values would have to be read back from the device.
        fits = hasattr(found, "labels") and found.labels.shape == view.cells.shape[:2]
        if not fits or (self.counts == "exact" and found.representatives.shape != (len(view.num_kept), view.most)):
            raise _misfit(f"{self.name}.{group.__name__}() returned", found, view)
        return found

    return with_counts


def _misfit(returned: str, found: Any, view: View) -> Exception:
    """The error for what no group() may return."""
    if not hasattr(found, "labels"):
        return TypeError(f"{returned} {type(found).__name__}: return a Grouping")
    cells, tokens = view.cells.shape[:2]
    return ValueError(
        f"{returned} labels {list(found.labels.shape)} and representatives {list(found.representatives.shape)}: give "
        f"labels {[cells, tokens]} and representatives {[cells, view.most]}, as many as the largest num_kept"
    )


_Selected = tuple["torch.Tensor", "torch.Tensor"]


def checked(select: Callable[[Any, torch.Tensor], _Selected]) -> Callable[[Any, torch.Tensor], _Selected]:
    """Wrap select() so that its cells have the form that it expects, and its choice has the form that it must have."""

    @functools.wraps(select)
    def with_checks(self: Method, cells: torch.Tensor) -> _Selected:
        shape, kind = getattr(cells, "shape", None), getattr(cells, "dtype", type(cells).__name__)
        if not getattr(kind, "is_floating_point", False) or len(shape) != 3 or 0 in shape:
            said = kind if shape is None else f"{kind} {list(shape)}"
            raise InputError(
                f"{self.name}: cells are {said}: give a tensor of floating point values [rows, columns, values]"
            )
        found = select(self, cells)
        wrong = _wrong_choice(self, found, tuple(shape[:2]))
        if wrong:
            raise ValueError(f"{self.name}.select() {wrong}")
        return found

    return with_checks


def _wrong_choice(method: Method, found: Any, grid: tuple[int, int]) -> str | None:
    """What is wrong with what select() returned for a picture of (rows, columns), or None."""
    shapes = [list(getattr(part, "shape", ())) for part in found] if isinstance(found, tuple) else type(found).__name__
    if shapes != [list(grid)] * 2:
        return f"returned {shapes}: return (kept, source), both {list(grid)}"
    from ppe_npu.backends.device import asks_freely  # imported here, because methods are listed without torch

    kept, source = found
    if not (asks_freely(kept.device) and asks_freely(source.device)):
        return None
    cells, index = grid[0] * grid[1], source.numpy().reshape(-1)
    chosen = kept.numpy().reshape(-1).nonzero()[0]
    if not set(index.tolist()) <= set(chosen.tolist()) or (index[chosen] != chosen).any():
        return "returned sources that are not kept: give each cell the index of a kept one, and a kept cell its own"
    wanted = method.kept(cells)
    if method.counts == "exact" and len(chosen) != wanted:
        return (
            f"kept {len(chosen)} of {cells} cells, kept({cells}) is {wanted}: keep as many, or have "
            'counts = "late" and a kept() that gives the most'
        )
    return None
