"""Protocols by name: sizes, frames, prompts and rules by which benchmarks are asked and scored, one .json file each.

A score means little without its protocol: the same picture is 391 tokens or 1302, the same video 11,520 or 276,480. A
protocol is part of every result and named in every table; tables of different protocols are never joined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ppe_npu.data.sampling import VideoSampling
from ppe_npu.errors import InputError

CHECKPOINT = "checkpoint"  # the protocol of the first edition: the checkpoint's own sizes, our prompts
PUBLISHED = "lmms-eval"  # the default for published benchmarks, because most papers on compression use it
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """How benchmarks are asked and scored.

    Attributes:
        name: "qwen", "lmms-eval", "vlmevalkit" or "checkpoint".
        what: a description in one sentence, for documents.
        source: where the numbers come from. version: the release of the source.
        image: {"min_pixels", "max_pixels"} of a picture, height * width; without them the checkpoint's own.
        images: benchmark -> the entries of `image` that differ for it; see of().
        video: fields of VideoSampling.
        max_new_tokens: limit on the tokens of an answer; None: the benchmark's own.
        dtype: "fp32" or "bf16" on an accelerator; None: fp32. On the CPU always fp32, unless the user names a dtype.
        rules: whose scorer is used: "authors", "lmms-eval", "vlmevalkit"; None: the benchmark's own.
        circular: whether MMBench is asked with all rotations of its options.
        draws: seed for drawing an option if an answer names none and the scorer draws one; None: such an answer is
            wrong.
        prompts: benchmark -> {attribute of its class: text, or the most tokens of an answer}, if they differ from ours.
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
        """The protocol for one benchmark, whose pictures may have sizes of their own."""
        return replace(self, image={**self.image, **self.images.get(benchmark, {})})

    def sampling(self, **asked: Any) -> VideoSampling:
        """The rule for frames of videos; arguments that are not None override the protocol's own.

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
        """(min_pixels, max_pixels) of pictures; `least` and `most` override the protocol's own unless None."""
        low, high = self.image.get("min_pixels"), self.image.get("max_pixels")
        if most is not None and least is None and low is not None and low > most:
            low = None
        if least is not None and most is None and high is not None and least > high:
            high = None
        return least if least is not None else low, most if most is not None else high

    def recorded(self, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The protocol as results record it: its name, version, numbers, and the options that the user changed.

        Args:
            changed: {option: value} that the user chose in place of the protocol's.
        """
        kept = ("name", "version", "image", "video", "max_new_tokens", "dtype", "rules", "circular", "draws")
        found = {key: getattr(self, key) for key in kept}
        changed = {key: value for key, value in (changed or {}).items() if value is not None}
        return json.loads(json.dumps({**found, "changed": changed}))


def names() -> list[str]:
    """Names of all protocols."""
    return sorted(path.stem for path in _HERE.glob("*.json"))


def load(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        InputError: no protocol has this name.
    """
    if name not in names():
        raise InputError(f"protocol {name!r} is unknown: use one of {', '.join(names())}")
    found = json.loads((_HERE / f"{name}.json").read_text(encoding="utf-8"))
    return Protocol(**{key: found[key] for key in (f.name for f in fields(Protocol)) if key in found})
