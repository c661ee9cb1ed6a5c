"""What only the released PPE code needs: its JSON keys, and its quirks, apart from the rest.

Its ways, each a setting of ours: tokens in order of score (DPCKNN.order="score") and equal tokens that all become
centres (DPCKNN.ties="none"); the last members' positions (CompressionConfig.members="last"); lists of ratios, whose
tokens are all kept (Levels); and a share of tokens for all events together (Events.keep).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, register

RELEASED_KEYS = (
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


@register("levels")
@dataclass(frozen=True)
class Levels(Method):
    """A list of ratios: each part groups what the part before left, and the tokens of all parts are kept.

    So a token is part of several groups, one a part.

    Args:
        parts: the methods, in order; they look at tokens or at places, and each has frames as its cells.
    """

    parts: tuple[Method, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if {(part.scope, part.counts, part.layer) for part in self.parts} != {("frame", "exact", None)}:
            raise InputError(
                f"levels parts={shown(self.parts)}: give methods that group frames, with exact counts and no layer"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def levels(self) -> tuple[Method, ...]:
        return self.parts


def own_keys(values: Mapping) -> dict:
    """CompressionConfig's keys from the released code's. An empty mapping is dense.

    Settings whose released behaviour is a fault are refused, and so is a ratio above 1, which that code takes for a
    count.

    Raises:
        InputError: unknown keys, or keys that contradict each other.
    """
    unknown = sorted(map(str, set(values) - set(RELEASED_KEYS)))
    if unknown:
        raise InputError(f"unknown released key(s) {', '.join(unknown)}: known are {', '.join(RELEASED_KEYS)}")
    cascade, temporal = values.get("compression_cascade"), values.get("temporal_compression")
    if not values.get("spatial_compression"):
        if temporal:
            raise InputError("temporal_compression=true needs spatial_compression=true, as in the released code")
        return {"method": "none", "ratio": 1.0, "positions": "keep_one"}
    if not values.get("compression_before_llm") and not cascade:
        raise InputError(
            "spatial_compression=true needs compression_before_llm=true or compression_cascade=true: nothing says "
            "where to compress"
        )
    if cascade and not values.get("cascade_layer"):
        raise InputError("compression_cascade=true needs cascade_layer, the list of decoder layers that compress")
    keep, ratio = values.get("use_ppe", False), values.get("spatial_clustering_ratio", 0.45)
    frames = values.get("temporal_clustering_ratio")
    return {
        "ratio": ratio,
        "positions": "ppe" if keep else "renumber",
        "k": values.get("ppe_k", 8) if keep else 1,
        "members": "last",
        "order": "score",
        "ties": "none",
        "layers": values["cascade_layer"] if cascade else (),
        "before_llm": bool(values.get("compression_before_llm")),
        "temporal_ratio": _only(frames, "temporal_clustering_ratio") if temporal else None,
        "event_ratio": _only(ratio, "spatial_clustering_ratio") if temporal else None,
    }


def _only(ratio, key: str) -> float:
    """The ratio in a released list of one."""
    ratios = list(ratio) if isinstance(ratio, Sequence) and not isinstance(ratio, str) else [ratio]
    if len(ratios) != 1 or ratios[0] is None:
        raise InputError(f"{key}={ratio!r} with temporal_compression=true: give a list of one ratio")
    return ratios[0]
