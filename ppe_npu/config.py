"""CompressionConfig: what is compressed, by how much, and which positions the merged tokens keep."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppe_npu.files import write_json

METHODS = ("none", "dpc_knn")
POSITIONS = ("ppe", "keep_one", "renumber")
MEMBERS = ("nearest", "spread", "last", "nearest_first")
ORDERS = ("raster", "score")

_PRESETS: dict[str, dict] = {
    "dense": {"method": "none", "ratio": 1.0, "positions": "keep_one", "k": 1},
    # Chat-UniVi (arXiv 2311.08046): merged tokens stand in score order and the prompt is numbered anew.
    "chatunivi": {"positions": "renumber", "k": 1, "order": "score"},
    "keep_one": {"positions": "keep_one", "k": 1},
    "ppe": {"positions": "ppe", "k": 8},
}
_LATER = "is not part of this version: it supports one spatial ratio, merged before the LLM"


@dataclass(frozen=True)
class CompressionConfig:
    """How visual tokens are grouped, merged and placed.

    Args:
        method: "dpc_knn" (density peaks clustering on k nearest neighbours, Chat-UniVi section 3.2) or "none" (dense).
        ratio: share of each frame's visual tokens that is kept, in (0, 1]. A frame of n tokens keeps ceil(n * ratio).
        positions: "ppe", a merged token keeps the (t, h, w) of `k` of its members (PPE, arXiv 2510.22936, section 3);
            "keep_one", the (t, h, w) of its representative; "renumber", the compressed prompt is numbered 0, 1, 2, ...
        k: how many member positions a merged token keeps. It must divide every M-RoPE section of the model.
            1 unless positions is "ppe".
        members: which members, and in which order they are listed (the order decides which band of rotary channels a
            position reaches): "nearest", the k members nearest to the centre, listed in raster order, last first;
            "spread", k members evenly over the raster-sorted members, last first; "last", the last k members, last
            first (the released code's rule); "nearest_first", the k nearest, listed by nearness (the paper's text).
        order: order of the merged tokens of a frame: "raster" of their representatives, or descending "score".
        layers: decoder layers that compress on entry; () compresses before the LLM.
        temporal_ratio: share of a video's frames kept as events, or None.

    Raises:
        ValueError: names the key, the value and what would be right.
    """

    method: str = "dpc_knn"
    ratio: float = 0.45
    positions: str = "ppe"
    k: int = 8
    members: str = "nearest"
    order: str = "raster"
    layers: tuple[int, ...] = ()
    temporal_ratio: float | None = None

    def __post_init__(self):
        for key, allowed in (("method", METHODS), ("positions", POSITIONS), ("members", MEMBERS), ("order", ORDERS)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)!r}: choose one of {', '.join(allowed)}")
        if isinstance(self.ratio, Sequence) and not isinstance(self.ratio, str):
            if len(self.ratio) != 1:
                raise ValueError(f"ratio={list(self.ratio)!r}: a list of several stages {_LATER}")
            object.__setattr__(self, "ratio", self.ratio[0])
        if not _is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio!r}: give the kept share of the tokens, in (0, 1]")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k={self.k!r}: give a positive whole number of kept positions")
        if self.positions != "ppe" and self.k != 1:
            raise ValueError(f"k={self.k} with positions={self.positions!r}: only positions='ppe' keeps more than one")
        if self.method == "none" and (self.ratio != 1 or self.positions != "keep_one"):
            raise ValueError("method='none' (dense) needs ratio=1.0, positions='keep_one' and k=1")
        if not isinstance(self.layers, (list, tuple)):
            raise ValueError(f"layers={self.layers!r}: give a list of decoder layers, [] to compress before the LLM")
        if self.layers:
            raise ValueError(f"layers={list(self.layers)!r}: compression inside the LLM (a cascade) {_LATER}")
        object.__setattr__(self, "layers", ())
        if self.temporal_ratio is not None:
            raise ValueError(f"temporal_ratio={self.temporal_ratio!r}: temporal compression {_LATER}")

    @property
    def is_dense(self) -> bool:
        return self.method == "none"

    def budget(self, tokens: int) -> int:
        """How many of a frame's `tokens` are kept; known before any feature is seen."""
        return tokens if self.is_dense else max(math.ceil(tokens * self.ratio), 1)

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str, **overrides) -> "CompressionConfig":
        """The named setting ("dense", "chatunivi", "keep_one", "ppe"), with single keys overridden.

        Raises:
            ValueError: unknown preset or key.
        """
        if name == "ppe_cascade":
            raise ValueError(f"preset 'ppe_cascade': compression inside the LLM (a cascade) {_LATER}")
        if name not in _PRESETS:
            raise ValueError(f"preset {name!r} is unknown: choose one of {', '.join(_PRESETS)}")
        return cls.from_dict({**_PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping) -> "CompressionConfig":
        """From our own keys. Unknown keys are errors."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown compression key(s) {', '.join(unknown)}: the keys are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "CompressionConfig":
        """From a JSON file with our own keys, or with the released code's keys.

        Raises:
            ValueError: no such file, not JSON, or keys that do not fit.
        """
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"compression config {path}: cannot be read as JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"compression config {path}: needs a JSON object, has a {type(values).__name__}")
        if not values or set(values) & set(_RELEASED_KEYS):
            return cls.from_released(values)
        return cls.from_dict(values)

    @classmethod
    def from_released(cls, values: Mapping) -> "CompressionConfig":
        """From the released PPE code's JSON keys; behaves as that code does: score order, last members, no noise.

        An empty mapping is dense. Settings whose released behaviour is a fault (a K that does not divide the sections)
        are refused when the model is compressed.
        """
        unknown = sorted(set(values) - set(_RELEASED_KEYS))
        if unknown:
            raise ValueError(f"unknown released key(s) {', '.join(unknown)}: known are {', '.join(_RELEASED_KEYS)}")
        if values.get("temporal_compression"):
            raise ValueError(f"temporal_compression=true: temporal compression {_LATER}")
        if values.get("compression_cascade"):
            raise ValueError(f"compression_cascade=true: compression inside the LLM (a cascade) {_LATER}")
        if not values.get("spatial_compression"):
            return cls.preset("dense")
        if not values.get("compression_before_llm"):
            raise ValueError(
                "spatial_compression=true needs compression_before_llm=true: nothing says where to compress"
            )
        keep = values.get("use_ppe", False)
        return cls(
            ratio=values.get("spatial_clustering_ratio", cls.ratio),
            positions="ppe" if keep else "renumber",
            k=values.get("ppe_k", cls.k) if keep else 1,
            members="last",
            order="score",
        )

    # -- saving ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        return {**dataclasses.asdict(self), "layers": list(self.layers)}

    def save(self, path: str | os.PathLike) -> None:
        """Write our own keys as JSON, atomically."""
        write_json(path, self.to_dict())


_RELEASED_KEYS = (
    "spatial_compression",
    "spatial_clustering_ratio",
    "temporal_compression",
    "temporal_clustering_ratio",
    "compression_before_llm",
    "compression_cascade",
    "cascade_layer",
    "use_ppe",
    "ppe_k",
)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
