"""The contract of a rule of positions: which original tokens lend a merged token their positions.

    @register("first")
    class First(Rule):
        "The first k members."

        def choose(self, entries: Entries, k: int) -> torch.Tensor:
            ...

A rule is one file of this folder, named as it is registered; its docstring is what users read of it. Whatever it
chooses is an original token, so that every position that a merged token keeps is one of the prompt's own, and merges
may follow each other. The rows of the rotary table follow from it: channel run j of an axis reads the j-th token's
position on it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from ppe_npu.errors import InputError, shown

if TYPE_CHECKING:
    import torch

    from ppe_npu.methods.positions.entries import Entries

RUNS, MEAN, MEAN_ANGLE = "runs", "mean", "mean_angle"
_HELPERS = ("base", "entries")
_FIRST_EDITION = ("nearest", "spread", "last", "nearest_first")  # listed first, as ever
_REGISTERED: dict[str, Rule] = {}


class Rule:
    """How the positions of merged tokens are chosen. Subclasses write choose(), or along() where by_axis is True.

    Class attributes:
        by_nearness: whether it looks at Entries.distance. Where nothing is nearer than anything else (cells of equal
            pixels), such a rule spreads.
        by_axis: whether each axis has k tokens of its own: along() is asked for each.
        table: what the rotary table makes of k positions: "runs", each run of an axis' channels is rotated by one of
            them (PPE, arXiv 2510.22936, section 3); "mean", all channels by the mean of the k rotations;
            "mean_angle", by that mean at length 1.
    """

    name: ClassVar[str] = ""
    by_nearness: ClassVar[bool] = False
    by_axis: ClassVar[bool] = False
    table: ClassVar[str] = RUNS

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        """k original tokens for every group: [F, groups, k] int64."""
        raise NotImplementedError

    def along(self, entries: Entries, k: int, axis: int, axes: int) -> torch.Tensor:
        """The k original tokens whose places on one of `axes` axes every group keeps: [F, groups, k] int64."""
        raise NotImplementedError

    @property
    def what(self) -> str:
        """The first sentence of its docstring, on one line."""
        return " ".join((type(self).__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def register(name: str):
    """Class decorator: the rule's name in settings. Its file is methods/positions/<name>.py."""

    def registered(rule: type[Rule]) -> type[Rule]:
        rule.name = name
        _REGISTERED[name] = rule()
        return rule

    return registered


def rule_names() -> tuple[str, ...]:
    """Names of all rules, without loading them; those of the first edition first."""
    files = [file.name for file in pkgutil.iter_modules([__file__.rpartition("/")[0]]) if file.name not in _HELPERS]
    return (*_FIRST_EDITION, *sorted({*files, *_REGISTERED} - {*_FIRST_EDITION}))


def rule_named(name: str) -> Rule:
    """The rule that is registered under this name.

    Raises:
        InputError: there is none.
    """
    if name not in _REGISTERED and isinstance(name, str) and name in rule_names():
        import_module(f"ppe_npu.methods.positions.{name}")
    if name not in _REGISTERED:
        raise InputError(f"members={shown(name)}: choose one of {', '.join(rule_names())}")
    return _REGISTERED[name]
