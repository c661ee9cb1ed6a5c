"""The contract of a rule for positions, which chooses the original tokens that lend a merged token their positions.

    @register("first")
    class First(Rule):
        "The first k members."

        def choose(self, entries: Entries, k: int) -> torch.Tensor:
            ...

A rule is one file in this folder, with the name that it is registered under; its docstring is its description for
users. It chooses original tokens only, so that every position that a merged token keeps occurs in the prompt, and
merges can be chained. The rotary table follows from the choice: the j-th run of an axis' channels is rotated by the
position of the j-th token on that axis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from ppe_npu.errors import InputError, shown
from ppe_npu.utils.registering import files_that_register

if TYPE_CHECKING:
    import torch

    from ppe_npu.methods.positions.entries import Entries

RUNS, MEAN, MEAN_ANGLE = "runs", "mean", "mean_angle"
_FIRST_EDITION = ("nearest", "spread", "last", "nearest_first")  # rules of the first release, listed first
_REGISTERED: dict[str, Rule] = {}


class Rule:
    """How the positions of merged tokens are chosen. Subclasses define choose(), or along() if by_axis is True. What
    they choose from, and helpers to do so: Entries (entries.py).

    Class attributes:
        by_nearness: whether it looks at Entries.distance. Where all distances are equal (cells of equal pixels), the
            rule "spread" is used instead.
        repeats: whether an original token counts as often as a merged token holds it (repeated cyclically), not once.
        by_axis: whether it chooses k tokens for each axis separately, by one call of along() per axis.
        table: how the rotary table uses the k positions: "runs", each run of an axis' channels is rotated by one of
            them (PPE, arXiv 2510.22936, section 3); "mean", all channels are rotated by the mean of the k rotations;
            "mean_angle", by that mean scaled to length 1.
    """

    name: ClassVar[str] = ""
    by_nearness: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    by_axis: ClassVar[bool] = False
    table: ClassVar[str] = RUNS

    def choose(self, entries: Entries, k: int) -> torch.Tensor:
        """[F, groups, k] int64, k original tokens for every group."""
        raise NotImplementedError

    def along(self, entries: Entries, k: int, axis: int, axes: int) -> torch.Tensor:
        """[F, groups, k] int64, k original tokens for every group, whose positions it keeps on this one of the axes."""
        raise NotImplementedError

    @property
    def what(self) -> str:
        """The first sentence of its docstring, on one line."""
        return " ".join((type(self).__doc__ or "").split("\n\n")[0].split()).rstrip(".")


def register(name: str):
    """Class decorator that names the rule in settings. Its file is methods/positions/<name>.py."""

    def registered(rule: type[Rule]) -> type[Rule]:
        rule.name = name
        _REGISTERED[name] = rule()
        return rule

    return registered


def rule_names() -> tuple[str, ...]:
    """Names of all rules, without importing them; those of the first release come first."""
    files = files_that_register(__file__.rpartition("/")[0])
    return (*_FIRST_EDITION, *sorted({*files, *_REGISTERED} - {*_FIRST_EDITION}))


def rule_named(name: str) -> Rule:
    """The rule that is registered under this name.

    Raises:
        InputError: no rule has this name.
    """
    if name not in _REGISTERED and isinstance(name, str) and name in rule_names():
        import_module(f"ppe_npu.methods.positions.{name}")
    if name not in _REGISTERED:
        raise InputError(f"members={shown(name)}: choose one of {', '.join(rule_names())}")
    return _REGISTERED[name]
