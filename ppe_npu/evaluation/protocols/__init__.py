"""Protocols by name: under which sizes, frames, prompts and rules a benchmark is asked. One .json file each.

A score means little without them: the same picture is 391 tokens or 1302, the same video 11,520 or 276,480. A protocol
is part of every result and named in every table; tables of different protocols are never joined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError

CHECKPOINT = "checkpoint"  # what the first edition went by: the checkpoint's own sizes, our prompts
PUBLISHED = "lmms-eval"  # of published benchmarks, where none is named: most papers on compression run it
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """How benchmarks are asked and scored.

    Attributes:
        name: "qwen", "lmms-eval", "vlmevalkit" or "checkpoint".
        what: in one sentence, for documents. source: where the numbers come from. version: of that.
        image: {"min_pixels", "max_pixels"} of a picture, height * width; without them the checkpoint's own.
        images: benchmark -> what of `image` is another for it; see of().
        video: fields of VideoSampling.
        max_new_tokens: of an answer; None: as the benchmark says.
        dtype: "fp32" or "bf16" on an accelerator; None: fp32. On the CPU always fp32, unless asked for by name.
        rules: whose scorer counts: "authors", "lmms-eval", "vlmevalkit"; None: the benchmark's own.
        circular: whether MMBench is asked with all turns of its options.
        draws: seed by which an option is drawn for an answer that names none, where the scorer does that; None: such
            an answer is wrong.
        prompts: benchmark -> {attribute of its class: text, or the most tokens of an answer}, where they differ from
            ours.
    """

    name: str
    what: str
    source: str
    version: str
    image: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    dtype: str | None = None
    rules: str | None = None
    circular: bool = False
    draws: int | None = None
    prompts: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)

    def of(self, benchmark: str) -> Protocol:
        """The protocol as it is for one benchmark, whose pictures may have sizes of their own."""
        return replace(self, image={**self.image, **self.images.get(benchmark, {})})

    def sampling(self, **asked: Any) -> VideoSampling:
        """Frames of videos; what is asked for by name (not None) goes before the protocol's own.

        Raises:
            InputError: as VideoSampling.
        """
        named = {key: value for key, value in asked.items() if value is not None}
        own = dict(self.video)
        if {"fps", "nframes"} & named.keys():
            own = {key: value for key, value in own.items() if key not in ("fps", "nframes")}
        if named.get("min_pixels", 0) > own.get("max_pixels", float("inf")):
            own.pop("max_pixels", None)
        if own.get("min_pixels", 0) > named.get("max_pixels", float("inf")):
            own.pop("min_pixels", None)
        return VideoSampling(**{**own, **named})

    def pixels(self, least: int | None, most: int | None) -> tuple[int | None, int | None]:
        """(min_pixels, max_pixels) of pictures; what is asked for by name goes before the protocol's own."""
        low, high = self.image.get("min_pixels"), self.image.get("max_pixels")
        if most is not None and least is None and low is not None and low > most:
            low = None
        if least is not None and most is None and high is not None and least > high:
            high = None
        return least if least is not None else low, most if most is not None else high

    def recorded(self, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a result says of it: its name, version, numbers, and what was asked for otherwise.

        Args:
            changed: {option: value} that the user named in its place.
        """
        kept = ("name", "version", "image", "video", "max_new_tokens", "dtype", "rules", "circular", "draws")
        found = {key: getattr(self, key) for key in kept}
        changed = {key: value for key, value in (changed or {}).items() if value is not None}
        return json.loads(json.dumps({**found, "changed": changed}))


def names() -> list[str]:
    """All protocols."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in names():
        raise InputError(f"protocol {name!r} is not known: use one of {', '.join(names())}")
    found = json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))
    return Protocol(**{key: found[key] for key in (f.name for f in fields(Protocol)) if key in found})
