"""The shorthand for steps: one method, one ratio, and where it applies. The first edition's configurations use it.

{"method": "dpc_knn", "ratio": 0.45, "layers": [11, 23, 35]}

method: the name of a method that groups frames, or "none" (dense).
ratio: share of each frame's visual tokens that is kept, in (0, 1]. A frame of n tokens keeps ceil(n * ratio). With a
    list [r0, r1, ...], each ratio clusters the tokens that the one before left, and the tokens of all are kept.
order, ties, seed: settings of the method, if it has them.
layers: decoder layers that compress on entry, each to `ratio` of what the one before left (a cascade).
before_llm: whether tokens are merged before the LLM; None: only if there are no layers.
temporal_ratio: share of a video's frames that is kept as events (methods/events.py), in (0, 1], or None.
event_ratio: share of an event's tokens that is kept, in place of ratio (the released code's rule), or None.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import sys
from collections.abc import Container
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, method_class, method_names
from ppe_npu.released import RATIO, Levels

if TYPE_CHECKING:
    from ppe_npu.config import CompressionConfig

# The keys in the order in which the first edition wrote them to files.
KEYS = (
    *("method", "ratio", "positions", "k", "members", "order", "ties", "layers", "before_llm"),
    *("temporal_ratio", "event_ratio", "seed"),
)
_LONGEST = 200  # characters of a name; file names may have 255 bytes, and temporary names are longer
LAYERS = "give a list of different decoder layers, counted from 0; [] merges before the LLM"
_OWN = {"order": "raster", "ties": "first", "seed": 0}  # settings that only some methods have, and their defaults


def speaks_of(name: str) -> bool:
    """Whether the shorthand can express this method: it groups frames, and has a ratio and no settings but _OWN's."""
    fields = _fields(name) - {"layer", "neighbors"}
    return method_class(name).scope == "frame" and "ratio" in fields and fields <= {"ratio", *_OWN}


def own_ratio(name: str) -> dict[str, float]:
    """{"ratio": the default of this method's own field}; {} if it has none."""
    default = method_class(name).__dataclass_fields__["ratio"].default
    return {} if default is dataclasses.MISSING else {"ratio": default}


def one_form(config: CompressionConfig) -> dict:
    """The shorthand's fields, whose types have been checked, checked against each other and normalized.

    Raises:
        InputError: a value that cannot be used; the message names the key, the value and the remedy.
    """
    dense, layers = config.method == "none", config.layers
    if not dense and (config.method not in method_names() or not speaks_of(config.method)):
        names = ("none", *filter(speaks_of, method_names()))
        raise InputError(f"method={shown(config.method)}: choose one of {', '.join(names)}")
    ratios = config.ratio if isinstance(config.ratio, tuple) else (config.ratio,)
    if not ratios or None in ratios:
        raise InputError(f"ratio={shown((config.ratio and list(ratios)) or [])}: {RATIO}")
    _check_ratios(ratios)
    if len(set(layers)) != len(layers):
        raise InputError(f"layers={shown(list(layers))}: {LAYERS}")
    if config.before_llm is False and not layers and not dense:
        raise InputError("before_llm=false without layers leaves no place to compress: give layers")
    before = None if config.before_llm == (not layers) else config.before_llm
    _check_events(config, ratios, not layers if before is None else before)
    _check_own(config, set() if dense else _fields(config.method))
    alone = ratios if len(ratios) > 1 else ratios[0]
    if dense and (alone != 1 or config.positions != "keep_one" or layers or config.temporal_ratio is not None):
        raise InputError(
            "dense (method='none') keeps every token and its position: leave ratio, positions, k, layers and "
            "temporal_ratio out, or name a method that merges"
        )
    return {"ratio": alone, "layers": tuple(sorted(layers)), "before_llm": before}


def steps_of(config: CompressionConfig) -> tuple[Method, ...]:
    """The steps that a checked shorthand stands for."""
    if config.method == "none":
        return ()
    one = method_class(config.method)
    fields = _fields(config.method)
    own = {key: getattr(config, key) for key in _OWN if key in fields}

    def step(layer: tuple[int, ...] | None = None) -> Method:
        if len(config.ratios) == 1:
            return one(ratio=config.ratio, layer=layer, **own)
        # As in the released code, fewer neighbours count after the first ratio.
        fewer = [{"neighbors": 3} if level and "neighbors" in fields else {} for level in range(len(config.ratios))]
        return Levels(tuple(one(ratio=r, **own, **few) for r, few in zip(config.ratios, fewer)), layer=layer)

    steps: list[Method] = []
    if not config.layers if config.before_llm is None else config.before_llm:
        steps.append(step())
    if config.temporal_ratio is not None:
        events = method_class("events")
        steps.append(events(ratio=config.temporal_ratio, by=one(ratio=config.ratio, **own), keep=config.event_ratio))
    if config.layers:
        steps.append(step(config.layers))
    return tuple(steps)


def label(config: CompressionConfig) -> str:
    """A short name for files and folders that tells settings apart."""
    if config.is_dense:
        return "dense"
    ratios = "+".join(f"{ratio:g}" for ratio in config.ratios)
    parts = [config.method, config.positions, f"k{config.k}", config.members, config.order, ratios]
    if config.seed:
        parts.append(f"seed{config.seed}")
    if config.ties != "first":
        parts.append(f"ties{config.ties}")
    if config.layers:
        parts.append("layers" + "+".join(map(str, (("llm",) if config.merges_before_llm else ()) + config.layers)))
    if config.temporal_ratio is not None:
        parts.append(f"events{config.temporal_ratio:g}")
    if config.event_ratio is not None:
        parts.append(f"of{config.event_ratio:g}")
    return "-".join(parts)


def cut_short(name: str) -> str:
    """The name, short enough for file systems: a longer one becomes its beginning and a hash of all of it."""
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def keys_of(text: str, whole: str) -> dict[str, Any]:
    """{"ratio": 0.25, "positions": "ppe"} from "ratio=0.25,positions=ppe"; commas in brackets belong to a value."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    values = {}
    for part in parts if text else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or key in values:
            raise InputError(f"compression {shown(whole)}: write it as NAME:key=value,key=value, each key once")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


def give_steps(plain: dict[str, Any], values: dict[str, Any], beside: Container[str], label: str) -> None:
    """Move the fields of steps from `values` into `plain`, a configuration with steps: each to the step that has it.

    Args:
        beside: keys that do not belong to a step. label: the configuration's, for messages.

    Raises:
        InputError: a key that no step has, or that several steps have.
    """
    for key in [key for key in values if key not in beside]:
        having = [step for step in plain["steps"] if key in step]
        if len(having) > 1:
            raise InputError(f"{key}={shown(values[key])} with {label}: several steps have it; give a file of steps")
        if not having:
            fields = [field for step in plain["steps"] for field in step if field != "method"]
            known = [field for field in fields if fields.count(field) == 1]
            remedy = f"give one of {', '.join(known)}" if known else "leave it out"
            raise InputError(f"{key}={shown(values[key])} with {label}: no step has it; {remedy}")
        having[0][key] = values.pop(key)


def _fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(method_class(name))}


def _check_ratios(ratios: tuple[float, ...]) -> None:
    """Raise InputError where a list keeps (r0 + r0 * r1 + ...) more tokens than came in, up to rounding."""
    kept = sum(accumulate(ratios, operator.mul))
    if kept > 1 + len(ratios) * sys.float_info.epsilon:
        raise InputError(
            f"ratio={shown(list(ratios))}: each ratio keeps a share of what the one before it keeps, in all "
            f"{kept:.4g} times the tokens; give ratios that keep at most 1 in all, such as [0.45, 0.3]"
        )


def _check_events(config: CompressionConfig, ratios: tuple, before_llm: bool) -> None:
    temporal, event, layers = config.temporal_ratio, config.event_ratio, shown(list(config.layers))
    if event is not None and temporal is None:
        raise InputError(f"event_ratio={event!r} needs a temporal_ratio: without it there are no events")
    if temporal is None:
        return
    if len(ratios) > 1:
        raise InputError(
            f"ratio={shown(list(ratios))} with temporal_ratio={temporal!r}: frames are grouped into events only with "
            "one ratio; give one"
        )
    if not before_llm:
        raise InputError(
            f"temporal_ratio={temporal!r} with layers={layers}: frames are grouped before the LLM; set "
            "before_llm=true, too"
        )
    if event is not None and config.layers:
        raise InputError(
            f"event_ratio={event!r} with layers={layers}: the number of tokens of an event would depend on the "
            "features, but a cascade must know it in advance; leave event_ratio out"
        )


def _check_own(config: CompressionConfig, fields: set[str]) -> None:
    """Raise InputError where a setting that only some methods have is given for another method."""
    if config.seed and "seed" not in fields:
        seeded = " or ".join(repr(name) for name in filter(speaks_of, method_names()) if "seed" in _fields(name))
        raise InputError(
            f"seed={config.seed} with method={config.method!r}: only method={seeded} has a seed; leave it out"
        )
    plain = (config.order, config.ties) == ("raster", "first")
    if config.method != "none" and not plain and not {"order", "ties"} <= fields:
        raise InputError(
            f"method={config.method!r} with order={config.order!r}, ties={config.ties!r}: this method has neither "
            "scores nor densities; use order='raster' and ties='first'"
        )


def step_label(method: Method, ratio: bool = True) -> str:
    """A step's name, its ratio unless `ratio` is false, and all other fields that differ from their defaults."""
    parts = [method.name]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name == "ratio" and not ratio:
            continue
        if field.name == "ratio":
            parts.append("free" if value is None else f"{value:g}")
        elif value != (field.default if field.default_factory is dataclasses.MISSING else field.default_factory()):
            values = value if isinstance(value, tuple) else (value,)
            said = "+".join(step_label(part) if isinstance(part, Method) else f"{part}" for part in values)
            parts.append(f"{field.name}{said}")
    return "_".join("".join(c if c.isalnum() or c in "._+" else "." for c in part) for part in parts)
