"""The page's settings, and their conversion to and from links, to compressions, JSON and Python. Needs no model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ppe_npu import shorthand
from ppe_npu.config import BESIDE, POSITIONS, CompressionConfig
from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import method_class, published
from ppe_npu.methods.listing import default
from ppe_npu.settings import check_fields, setting

NONE = "none"  # a side that shows nothing
YOURS = "yours"  # a picture or video of the user's, which no link holds
OWN = ("ppe", "ppe_plus", "keep_one", "chatunivi", "dense")  # presets, which have their own rule of positions


def choices() -> list[str]:
    """The presets and all methods, as suggestions for a side. A side may also add keys, or chain several methods."""
    return [*OWN, *published()]


@dataclass(frozen=True)
class Settings:
    """The settings of the page.

    Args:
        source: the name of a built-in picture or video, or YOURS.
        question: the question that the model is asked about it.
        left, right: a compression as text: a preset or a method, "NAME:key=value,key=value", or several methods in
            sequence, "NAME + NAME:key=value"; right may be NONE.
        budget: the share of the tokens that a step keeps, for steps that do not set one.
        positions, k: for methods that do not set them; k=0: the default.
        place: the index of the token that is looked at, in raster order, frame after frame.

    Raises:
        InputError: a value is invalid; the message names the key, the value and the valid values.
    """

    source: str = "house"
    question: str = "shape red"
    left: str = "ppe"
    right: str = NONE
    budget: float = setting(0.25, above=0, most=1, remedy="give the fraction of the tokens to keep, in (0, 1]")
    positions: str = setting("ppe", choices=POSITIONS, remedy=f"choose one of {', '.join(POSITIONS)}")
    k: int = setting(4, least=0, most=512, remedy="give the number of positions per merged token, or 0")
    place: int = setting(0, least=0, remedy="give the number of a token, counted from 0")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.question.strip():
            raise InputError("the question is empty: ask something")

    def query(self) -> str:
        """The query string of a link to the page: all settings that differ from the defaults."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return urlencode({key: value for key, value in said.items() if value != _default(key)})

    @classmethod
    def of_query(cls, values: Mapping[str, str]) -> Settings:
        """From a link's query. Keys that begin with "__" are used by the server and ignored here.

        Raises:
            InputError: an unknown key, or an invalid value.
        """
        known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        unknown = sorted(key for key in values if key not in known and not key.startswith("__"))
        if unknown:
            raise InputError(f"the link has unknown keys {shown(unknown)}: use {', '.join(known)}")
        found: dict[str, Any] = {}
        for key in known.keys() & values.keys():
            try:
                found[key] = known[key](values[key])
            except ValueError as error:
                raise InputError(f"the link has {key}={shown(values[key])}: give a number") from error
        return cls(**found)

    def compression(self, side: str, layers: int) -> CompressionConfig | None:
        """The compression of side "left" or "right"; None if the side is NONE.

        Args:
            layers: number of the model's decoder layers. A method that must run on entry of a layer, and has no default
                layer that exists in the model, runs at layer layers // 2.

        Raises:
            InputError: as CompressionConfig.
        """
        text = getattr(self, side).strip()
        if text == NONE:
            return None
        parts = [_named(part) for part in re.split(r"\s\+\s", text)]
        (name, keys), whole = parts[0], {key: value for _, own in parts for key, value in own.items() if key in BESIDE}
        if len(parts) == 1 and name in OWN:
            config = CompressionConfig.preset(name, **({} if name == "dense" else {"ratio": self.budget}) | keys)
            return config.changed(k=self.k or None) if config.positions == "ppe" and "k" not in keys else config
        values = {"positions": self.positions, **whole}
        if values["positions"] == "ppe" and self.k:
            values = {"k": self.k, **values}
        steps = [self._step(*part, layers) for part in parts]
        return CompressionConfig.from_dict({"steps": steps, **values})

    def _step(self, name: str, keys: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """The keys of a step: the method's name, its own keys, the page's budget, and a layer if it needs one."""
        fields = {field.name for field in dataclasses.fields(method_class(name))}
        own = {key: value for key, value in keys.items() if key not in BESIDE}
        if "ratio" in fields:
            own.setdefault("ratio", self.budget)
        usual = default(name)
        if usual.place == "layer" and (max(usual.layers) >= layers or "input" not in usual.places):
            own.setdefault("layer", usual.layer if max(usual.layers) < layers and usual.layers != (0,) else layers // 2)
        return {"method": name, **own}

    def moved_by_budget(self, side: str) -> bool:
        """Whether a step of this side uses the page's budget."""
        parts = [_named(part) for part in re.split(r"\s\+\s", getattr(self, side).strip())]
        return any(_takes_ratio(name) and "ratio" not in keys for name, keys in parts)


def _default(key: str) -> Any:
    return Settings.__dataclass_fields__[key].default


def _named(text: str) -> tuple[str, dict[str, Any]]:
    """("divprune", {"ratio": 0.25}) from "divprune:ratio=0.25"."""
    name, _, rest = text.strip().partition(":")
    return name, shorthand.keys_of(rest, text)


def _takes_ratio(name: str) -> bool:
    if name in OWN:
        return name != "dense"
    return name != NONE and "ratio" in {field.name for field in dataclasses.fields(method_class(name))}


def as_json(config: CompressionConfig) -> str:
    """The text of a file for `--compression FILE` and CompressionConfig.from_file."""
    return json.dumps(config.to_dict(), indent=1) + "\n"


def as_python(config: CompressionConfig) -> str:
    """Three lines of Python that compress `model` with this config."""
    return (
        "from ppe_npu import CompressionConfig, compress\n"
        f"config = CompressionConfig.from_dict({config.to_dict()!r})\n"
        "compress(model, config)\n"
    )
