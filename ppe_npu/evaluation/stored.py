"""results.json and costs.json as they are read again: the fields that a report uses are checked like settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ppe_npu.errors import InputError, shown
from ppe_npu.evaluation.scale import UNDECLARED
from ppe_npu.settings import check_fields, check_mapping, from_mapping, setting
from ppe_npu.utils.reading import is_number

P = TypeVar("P", bound="_Part")


class _Part:
    """A part of a stored file with the fields that a report reads; other keys are ignored."""

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_dict(cls: type[P], values: Mapping[str, Any]) -> P:
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return from_mapping(cls, {key: values[key] for key in known if key in values}, "it")


@dataclass(frozen=True)
class _Share(_Part):
    accuracy: float
    count: int = setting(least=0)
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Headline(_Part):
    name: str
    value: float
    why: str = ""
    replicates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replicates == ():
            raise InputError("replicates=[] is empty")


@dataclass(frozen=True)
class _Scale(_Part):
    maximum: float | None
    factor: float
    decimals: int = setting(least=0, most=9)


@dataclass(frozen=True)
class _Settings(_Part):
    benchmark: str
    compression: Mapping[str, Any]
    data: str | None = None
    dtype: str = ""
    weights: str | None = None
    model: str | None = None
    generation: Mapping[str, Any] | None = None
    smaller_input: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.compression.get("steps")
        if not isinstance(steps, list) and ("steps" in self.compression or "method" not in self.compression):
            raise InputError(f"compression={shown(dict(self.compression))} has neither a list of steps nor a method")


@dataclass(frozen=True)
class _Versions(_Part):
    device: str


@dataclass(frozen=True)
class _Results(_Part):
    name: str
    settings: _Settings
    versions: _Versions
    accuracy: _Share
    types: Mapping[str, Any]
    costs: Mapping[str, Any]
    samples: int = setting(least=0)
    errors: int = setting(least=0)
    method: str = ""
    metrics: Mapping[str, Any] = setting(default_factory=dict)
    headline: _Headline = setting(default_factory=lambda: _Headline("", 0.0))
    scale: _Scale = setting(default_factory=lambda: _Scale(**UNDECLARED))
    units: int = 0
    metrics_error: str = ""
    tuned: str | None = None
    ignored: Mapping[str, Any] | None = None
    scored_by: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, share in self.types.items():
            if not isinstance(share, Mapping):
                raise InputError(f"types: {shown(kind)} is {shown(share)}, not an object")
            _Share.from_dict(share)
        if "retention" not in self.costs:
            raise InputError("costs have no retention")
        for name, value in self.costs.items():
            if value is not None and not is_number(value):
                raise InputError(f"costs: {shown(name)} is {shown(value)}, not a number")
        for name, value in self.metrics.items():
            if not is_number(value):
                raise InputError(f"metrics: {shown(name)} is {shown(value)}, not a number")


@dataclass(frozen=True)
class _Time(_Part):
    median: float = setting(above=0)
    ratio: float = setting(above=0)
    low: float = setting(above=0)
    high: float = setting(above=0)
    quartiles: tuple[float, float] | None = None
    told: bool = False


@dataclass(frozen=True)
class _Work(_Part):
    tower_flops: float = setting(least=0)
    decoder_flops: float = setting(least=0)
    tower_bytes: float = setting(least=0)
    decoder_bytes: float = setting(least=0)
    kv_bytes: float = setting(least=0)


@dataclass(frozen=True)
class _Cost(_Part):
    ttft: _Time
    total: _Time
    counted: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.counted and "why" not in self.counted:
            _Work.from_dict(self.counted)


@dataclass(frozen=True)
class _Costs(_Part):
    rows: Mapping[str, Any]
    rounds: int = setting(least=0)
    prompts: int = setting(least=0)
    device: str
    protocol: str
    reference: str = ""
    ratios_of: str = ""
    left_out: Mapping[str, Any] = setting(default_factory=dict)
    of: Mapping[str, Any] | None = None  # method -> checksum of its settings; not in the demo and the first edition

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rows:
            raise InputError("rows={} names no method")
        for name, mark in (self.of or {}).items():
            if not isinstance(mark, str):
                raise InputError(f"of: {shown(name)} is {shown(mark)}, not a string")
        for row in self.rows.values():
            check_mapping(row, "a row")
            _Cost.from_dict(row)


def result_fault(result: Any, costs: bool = False) -> str | None:
    """What keeps a results.json (with `costs`: a costs.json) from being reported, in words; None if nothing does."""
    try:
        check_mapping(result, "it")
        (_Costs if costs else _Results).from_dict(result)
    except InputError as error:
        return str(error)
    return None
