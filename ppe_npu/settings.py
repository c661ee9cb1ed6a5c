"""Settings that a user gives: dataclasses whose fields are checked, in one uniform way, by their annotations.

    @dataclass(frozen=True)
    class Sharpening:
        strength: float = setting(1.0, above=0, most=8)
        layers: tuple[int, ...] = setting((), least=0)
        mode: Literal["fast", "exact"] = "fast"
        limit: int | None = None

        def __post_init__(self):
            check_fields(self)          # checks across fields may follow

    from_mapping(Sharpening, {"strength": 2}, "sharpening")
    to_plain(Sharpening()) == {"strength": 1.0, "layers": [], "mode": "fast", "limit": None}

Annotations: bool, int, float, str, Literal, None, tuple[X, ...], tuple[X, Y], Mapping, a dataclass, any other class,
and unions of them. A text is never a number, and a number is never true or false; nan and infinities are refused.
NumPy numbers are accepted, and are stored as Python numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeVar, Union

import numpy as np

from ppe_npu.errors import InputError, shown
from ppe_npu.utils.paths import as_path

T = TypeVar("T")
_RULE = "ppe_npu.settings"
_LARGEST = 2**63  # whole numbers stay below: tensors and files hold 64 bits


class _Unfit(Exception):
    """What is wrong with a value: text to follow "key=value". close: its type is right."""

    def __init__(self, said: str, close: bool = False):
        super().__init__(said)
        self.close = close


@dataclass(frozen=True)
class _Rule:
    """The requirements of a field beyond its annotation, for every number or text in it."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    single: bool = False
    path: bool | str = False
    written: bool = False
    remedy: str | None = None
    convert: Callable[[Any], Any] | None = None

    @property
    def range(self) -> str | None:
        """The bounds in words."""
        low, high = self.above if self.least is None else self.least, self.below if self.most is None else self.most
        if low is not None and high is not None:
            return f"in {'(' if self.least is None else '['}{low:g}, {high:g}{')' if self.most is None else ']'}"
        if low is not None:
            return f"{'greater than' if self.least is None else 'at least'} {low:g}"
        return None if high is None else f"{'below' if self.most is None else 'at most'} {high:g}"

    def holds(self, value: float) -> bool:
        return not (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        )


def setting(
    default: Any = MISSING,
    *,
    default_factory: Any = MISSING,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    single: bool = False,
    path: bool | str = False,
    written: bool = False,
    remedy: str | None = None,
    convert: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field that check_fields() checks.

    Args:
        default, default_factory: as in dataclasses.field.
        least, above, most, below: bounds on every number in the field (value >= least, > above, <= most, < below).
        choices: the allowed texts.
        single: a single entry is accepted as a list of one.
        path: the text is a path, may be given as an os.PathLike, and is stored as utils.paths.as_path() returns it;
            ".json": only a text with this ending is a path. written: as in as_path().
        remedy: the message for a wrong value, in place of "must be ...": "give a share in (0, 1]".
        convert: called with a value that fits its annotation; its result is stored.
    """
    rule = _Rule(least, above, most, below, choices and tuple(choices), single, path, written, remedy, convert)
    return dataclasses.field(default=default, default_factory=default_factory, metadata={_RULE: rule})


def check_fields(settings: Any, subject: str = "") -> None:
    """Check every field of a dataclass by its annotation and setting(), and store it normalized. For __post_init__.

    Args:
        settings: the instance, frozen or not.
        subject: a word that precedes the key in messages ("adapter").

    Raises:
        InputError: a value that cannot be used; the message names the key, the value and the remedy.
    """
    before = f"{subject} " if subject else ""
    for field in dataclasses.fields(settings):
        rule, fitted = _rule(field), _fit_field(type(settings), field, getattr(settings, field.name), before)
        if fitted == "" and rule.path and field.default is None:
            fitted = None
        if rule.path is True or (rule.path and str(fitted).endswith(rule.path)):
            fitted = as_path(fitted, f"{before}{field.name}=", rule.written)
        if rule.convert is not None:
            fitted = _named(field.name, rule.convert, fitted)
        object.__setattr__(settings, field.name, fitted)


def check_some(cls: type, values: Mapping[str, Any], subject: str) -> None:
    """Check some of a class's fields, each by itself, as check_fields() does: those of a file that is completed later,
    for example. Paths are not resolved. Raises InputError for a non-mapping, an unknown key, or as check_fields()."""
    check_mapping(values, subject)
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = strangers(values, known)
    if unknown:
        raise InputError(f"{subject} has no setting {unknown}: its settings are {', '.join(known)}")
    for field in dataclasses.fields(cls):
        try:
            if field.name in values:
                _fit_field(cls, field, values[field.name], "")
        except InputError as error:
            raise InputError(f"{subject}: {error}") from None


def from_mapping(cls: type[T], values: Mapping[str, Any], subject: str) -> T:
    """An instance of a dataclass of settings from the keys of a file.

    Raises:
        InputError: `values` is not a mapping, keys are unknown or missing; or as the class itself.
    """
    check_mapping(values, subject)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = strangers(values, known)
    if unknown:
        raise InputError(f"{subject} has no {unknown}: its keys are {', '.join(known)}")
    needed = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    lacking = [name for name in needed if name not in values]
    if lacking:
        raise InputError(f"{subject} lacks {', '.join(lacking)}: give a value")
    return cls(**values)


def check_mapping(values: Any, subject: str) -> None:
    """Raise InputError unless values map keys to values."""
    if not isinstance(values, Mapping):
        raise InputError(f"{subject} is {shown(values)}: it must map keys to values")


def strangers(values: Mapping[Any, Any], known: Mapping[str, Any] | Sequence[str]) -> str:
    """The unknown keys, of whatever type, as text for a message; empty if there are none."""
    unknown = [key for key in values if not isinstance(key, str) or key not in known]
    names = [key if isinstance(key, str) and key.isidentifier() and len(key) < 60 else shown(key) for key in unknown]
    return ", ".join(names[:5]) + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")


def to_plain(settings: Any) -> Any:
    """Settings in a form for JSON: a dataclass as a dict, a tuple as a list."""
    own = getattr(settings, "to_dict", None)
    if own is not None:
        return own()
    if dataclasses.is_dataclass(settings):
        return fields_to_plain(settings)
    return [to_plain(part) for part in settings] if isinstance(settings, (tuple, list)) else settings


def fields_to_plain(settings: Any) -> dict[str, Any]:
    """{name: to_plain(value)} of every field, for a dataclass's own to_dict()."""
    return {field.name: to_plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _fit_field(cls: type, field: dataclasses.Field, value: Any, before: str) -> Any:
    """A field's value, normalized by its annotation and setting(). InputError messages start with `before`."""
    try:
        return _fit(value, _hints(cls)[field.name], _rule(field), field.name)
    except _Unfit as unfit:
        remedy = _rule(field).remedy
        said = f": {remedy}" if remedy else str(unfit)
        raise InputError(f"{before}{field.name}={shown(value)}{said}") from None


def _rule(field: dataclasses.Field) -> _Rule:
    return field.metadata.get(_RULE, _Rule())


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fit(value: Any, kind: Any, rule: _Rule, key: str) -> Any:
    """The value, normalized to the annotation `kind`; raises _Unfit if it does not fit."""
    arms = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    unfit = None
    for arm in arms:
        try:
            return _fit_one(value, arm, rule, key)
        except _Unfit as error:
            unfit = error if error.close else unfit
    raise unfit or _Unfit(_must_be(value, arms, rule))


def _fit_one(value: Any, kind: Any, rule: _Rule, key: str) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin is Any:
        return value
    if origin in (None, type(None)):
        return _require(value, value is None)
    if origin is Literal:
        return _chosen(_text(value, rule), typing.get_args(kind))
    if origin is bool:
        return bool(_require(value, isinstance(value, (bool, np.bool_))))
    if origin in (int, float):
        return _number(value, origin, rule)
    if origin is str:
        text = _text(value, rule)
        return text if rule.choices is None else _chosen(text, rule.choices)
    if origin is tuple:
        return _list(value, typing.get_args(kind), rule, key)
    if origin is Mapping:
        if isinstance(value, Mapping) and strangers(value, [name for name in value if isinstance(name, str)]):
            raise _Unfit(" must have strings as keys", close=True)
        return _require(value, isinstance(value, Mapping))
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        make = getattr(kind, "from_dict", None) or functools.partial(from_mapping, kind, subject=key)
        return _named(key, make, value)
    return _require(value, isinstance(value, origin))


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit("")
    return value


def _named(key: str, make: Callable[[Any], Any], value: Any) -> Any:
    """make(value). If it raises an InputError whose message does not begin with the key, the key is put before it."""
    try:
        return make(value)
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith((f"{key} ", f"{key}=")) else f"{key}: {said}") from error


def _text(value: Any, rule: _Rule) -> str:
    if rule.path and isinstance(value, os.PathLike):
        value = os.fspath(value)
    _require(value, isinstance(value, str))
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _Unfit(" contains an invalid character: write it as plain text", close=True)
    return str.__str__(value)


def _chosen(text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise _Unfit(f": use one of {', '.join(map(str, choices))}", close=True)
    return text


def _number(value: Any, kind: type, rule: _Rule) -> Any:
    """A Python int or float, finite and within bounds."""
    _require(value, isinstance(value, numbers.Integral if kind is int else numbers.Real))
    _require(value, not isinstance(value, bool))
    try:
        number = kind(value)
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite or not rule.holds(number):
        raise _Unfit(f" must be {(finite and rule.range) or 'finite'}", close=True)
    if kind is int and abs(number) >= _LARGEST:
        raise _Unfit(" is too large: whole numbers must be below 2**63", close=True)
    return number


def _list(value: Any, kinds: tuple[Any, ...], rule: _Rule, key: str) -> tuple[Any, ...]:
    """A tuple from a list, a tuple or an array of one dimension; with rule.single, also from a single entry."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    alone = not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray))
    if alone:
        value = (_require(value, rule.single),)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _require(value, len(value) == len(kinds))
    out = []
    for entry, kind in zip(value, kinds):
        try:
            out.append(_fit(entry, kind, rule, key))
        except _Unfit as unfit:
            raise _Unfit(str(unfit) if alone else f", where {shown(entry)}{unfit}", close=True) from None
    return tuple(out)


def _must_be(value: Any, arms: Sequence[Any], rule: _Rule) -> str:
    """The message for a value of the wrong type."""
    said = f" must be {' or '.join(dict.fromkeys(_words(arm, rule) for arm in arms))}"
    if isinstance(value, str) and not any(arm is str for arm in arms):
        dotless = float in arms and "e" in value.lower() and "." not in value
        end = "" if any(map(dataclasses.is_dataclass, arms)) or Mapping in arms else ": write it without quotes"
        hint = " (YAML reads 1e-5 as a string: write 1.0e-5)" if dotless else end
        said += f", not a string{hint}"
    return said


def _words(kind: Any, rule: _Rule) -> str:
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (int, float):
        bounds = f"{', ' if origin is int else ' '}{rule.range}" if rule.range else ""
        return ("a whole number" if origin is int else "a number") + bounds
    if origin is tuple:
        many = "a list" if parts[-1] is Ellipsis else f"a list of {len(parts)}"
        return f"{many}, each {' or '.join(_words(arm, rule) for arm in typing.get_args(parts[0]) or (parts[0],))}"
    if origin is str and rule.choices is not None:
        return f"one of {', '.join(rule.choices)}"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if dataclasses.is_dataclass(kind) or origin is Mapping:
        return "a mapping of keys to values"
    words = {bool: "true or false", str: "a string", type(None): "null", None: "null"}
    return words.get(origin) or f"a {origin.__name__}"
