"""Settings: every kind of field is checked by its annotation, and what is refused is named in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ppe_npu.errors import InputError, shown
from ppe_npu.settings import check_fields, fields_to_plain, from_mapping, setting, to_plain


@dataclass(frozen=True)
class Inner:
    width: int = setting(1, least=0)

    def __post_init__(self):
        check_fields(self, "inner")


def even(number: int) -> int:
    if number % 2:
        raise InputError(f"{number} is odd: give an even one")
    return number


@dataclass(frozen=True)
class Everything:
    name: str
    share: float = setting(1.0, above=0, most=8)
    layers: tuple[int, ...] = setting((), least=0, single=True)
    mode: Literal["fast", "exact"] = "fast"
    kind: str = setting("a", choices=("a", "b"), remedy="choose one of a, b")
    limit: int | None = None
    on: bool = False
    inner: Inner | None = None
    ratio: float | tuple[float, ...] = setting(0.5, above=0, most=1)
    betas: tuple[float, float] = setting((0.0, 0.0), least=0, below=1)
    folder: str | None = setting(None, path=True)
    free: Mapping[str, Any] | None = None
    even: int = setting(0, convert=even)

    def __post_init__(self):
        check_fields(self)


DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
LOOP: list = []
LOOP.append(LOOP)


def test_values_are_kept_in_one_form():
    made = Everything(
        "n", share=np.float32(0.5), layers=np.array([1, 2]), inner={"width": np.int8(3)}, on=np.bool_(True),
        ratio=[0.5, np.float64(0.25)], betas=[0, 0.5], folder=Path("a/b"), even=np.int64(4),
    )  # fmt: skip
    plain = to_plain(made)
    assert plain == fields_to_plain(made) == {
        "name": "n", "share": 0.5, "layers": [1, 2], "mode": "fast", "kind": "a", "limit": None, "on": True,
        "inner": {"width": 3}, "ratio": [0.5, 0.25], "betas": [0.0, 0.5], "folder": "a/b", "free": None, "even": 4,
    }  # fmt: skip
    assert from_mapping(Everything, plain, "all") == made
    assert {type(made.share), type(made.ratio[1]), type(made.betas[0])} == {float}
    assert {type(made.layers[0]), type(made.inner.width), type(made.even)} == {int}
    assert Everything("n", layers=3).layers == (3,)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", 5, "name=5 must be a string"),
        ("name", "a\0", "contains an invalid character"),
        ("name", "\ud800", "contains an invalid character"),
        ("name", Path("a"), "must be a string"),
        ("share", "1e-5", "share='1e-5' must be a number in (0, 8], not a string (YAML reads 1e-5 as a string"),
        ("share", "1", "share='1' must be a number in (0, 8], not a string: write it without quotes"),
        ("share", True, "share=True must be a number"),
        ("share", float("nan"), "share=nan must be finite"),
        ("share", float("inf"), "share=inf must be finite"),
        ("share", 10**400, "must be finite"),
        ("share", 0, "share=0 must be in (0, 8]"),
        ("share", 10**5000, "share=2**16609... must be finite"),
        ("layers", -1, "layers=-1 must be at least 0"),
        ("layers", "3", "layers='3' must be a whole number"),
        ("layers", [1, -1], "layers=[1, -1], where -1 must be at least 0"),
        ("layers", [1.0], "layers=[1.0], where 1.0 must be a whole number"),
        ("layers", {"a": 1}, "layers={'a': 1} must be a whole number"),
        ("layers", b"12", "layers=b'12' must be a whole number"),
        ("mode", "slow", "mode='slow': use one of fast, exact"),
        ("mode", None, "mode=None must be one of fast, exact"),
        ("kind", "c", "kind='c': choose one of a, b"),
        ("kind", 1, "kind=1: choose one of a, b"),
        ("limit", 2.5, "limit=2.5 must be a whole number or null"),
        ("limit", 2**63, "is too large"),
        ("on", "false", "on='false' must be true or false, not a string: write it without quotes"),
        ("on", 0, "on=0 must be true or false"),
        ("inner", {"width": -1}, "inner width=-1 must be at least 0"),
        ("inner", {"size": 1}, "inner has no size: its keys are width"),
        ("inner", {1: 1, "a b": 2}, "inner has no 1, 'a b': its keys are width"),
        ("inner", [], "inner=[] must be a mapping of keys to values or null"),
        ("ratio", [0.5, 2], "ratio=[0.5, 2], where 2 must be in (0, 1]"),
        ("ratio", DEEP, "ratio=[[[[[...]]]]], where"),
        ("ratio", LOOP, "ratio=[[[[[...]]]]], where"),
        ("betas", 0.9, "betas=0.9 must be a list of 2, each a number in [0, 1)"),
        ("betas", [0.9], "betas=[0.9] must be a list of 2"),
        ("betas", [0.9, 1], "where 1 must be in [0, 1)"),
        ("folder", 5, "folder=5 must be a string or null"),
        ("free", {1: 2}, "free={1: 2} must have strings as keys"),
        ("free", [1], "free=[1] must be a mapping of keys to values or null"),
        ("even", 3, "even: 3 is odd"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_what_cannot_be_is_named_in_one_line(key, value, words):
    with pytest.raises(InputError) as error:
        Everything(**{"name": "n", key: value})
    said = str(error.value)
    assert words in said
    assert said.startswith(key)
    assert "\n" not in said
    assert len(said) < 400


def test_keys_that_cannot_be_are_named():
    with pytest.raises(InputError, match=r"^all lacks name: give a value$"):
        from_mapping(Everything, {}, "all")
    with pytest.raises(InputError, match=r"^all has no None, 1\.5, True: its keys are name, share"):
        from_mapping(Everything, {None: 1, 1.5: 2, True: 3, "on": True}, "all")
    with pytest.raises(InputError, match=r"k0, k1, k2, k3, k4 \(and 95 more\): its keys"):
        from_mapping(Everything, {f"k{number}": 1 for number in range(100)}, "all")
    for values in ([], None, "text", 3):
        with pytest.raises(InputError, match="must map keys to values"):
            from_mapping(Everything, values, "all")


def test_anything_is_shown_in_one_short_line():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    for value in (
        DEEP,
        LOOP,
        "x" * 10**6,
        "a\nb",
        np.zeros((50, 50)),
        Broken(),
        10**5000,
        {Broken(): DEEP},
        b"\n" * 999,
    ):
        assert "\n" not in shown(value)
        assert len(shown(value)) < 400
    assert shown([0.5, "a"]) == "[0.5, 'a']"
