"""What is specific to the released PPE code: its JSON keys and its quirks.

Each of its quirks is a setting here: tokens in score order (DPCKNN.order="score"); equal tokens that all become
centres (DPCKNN.ties="none"); the positions of the last members (CompressionConfig.members="last"); lists of ratios
whose tokens are all kept (Levels); and a share of tokens for all events together (Events.keep).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.base import Method, register
from ppe_npu.settings import check_fields, check_mapping, setting, strangers

_SEEN = {"tokens", "places"}


@register("levels")
@dataclass(frozen=True)
class Levels(Method):
    """A list of ratios: each part groups what the part before left, and the tokens of all parts are kept.

    A token is in several groups, one per part; the ratios r0, r1, ... keep r0 + r0 * r1 + ... of the tokens.

    Args:
        parts: the methods, in order. They look at tokens or at places, and their cells are frames.
    """

    parts: tuple[Method, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        fit = {(part.scope, part.counts, part.layer, part.needs <= _SEEN) for part in self.parts}
        if fit != {("frame", "exact", None, True)}:
            raise InputError(
                f"levels parts={shown(self.parts)}: give methods that group frames by tokens or places, with exact "
                "counts and no layer"
            )

    def budgets(self, tokens: int) -> tuple[int, ...]:
        budgets, left = [], tokens
        for later, part in zip(reversed(range(len(self.parts))), self.parts):
            # Never more than came in, minus one token for each later part; at least one.
            tokens = max(min(part.kept(tokens), left - later), 1)
            left -= tokens
            budgets.append(tokens)
        return tuple(budgets)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def levels(self) -> tuple[Method, ...]:
        return self.parts


RATIO = "give the kept share of the tokens, in (0, 1], or a list of shares"


@dataclass(frozen=True)
class Released:
    """The released code's keys. null means the same as a missing key."""

    spatial_compression: bool | None = None
    spatial_clustering_ratio: float | tuple[float, ...] = setting(0.45, above=0, most=1, remedy=RATIO)
    temporal_compression: bool | None = None
    temporal_clustering_ratio: float | tuple[float, ...] | None = setting(None, above=0, most=1, remedy=RATIO)
    compression_before_llm: bool | None = None
    compression_cascade: bool | None = None
    cascade_layer: tuple[int, ...] | None = setting(None, least=0, remedy="give a list of decoder layers, from 0")
    use_ppe: bool | None = None
    ppe_k: int = setting(8, least=1, remedy="give a positive whole number of kept positions")

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Released:
        """From the keys of a file.

        Raises:
            InputError: an unknown key, or a value that cannot be used.
        """
        check_mapping(values, "compression config")
        unknown = strangers(values, KEYS)
        if unknown:
            raise InputError(f"unknown released key(s) {unknown}: the keys are {', '.join(KEYS)}")
        return cls(**values)

    def settings(self) -> dict[str, Any]:
        """The arguments for CompressionConfig; empty for dense.

        Raises:
            InputError: settings that contradict each other.
        """
        cascade, temporal = self.compression_cascade, self.temporal_compression
        if not self.spatial_compression:
            if temporal:
                raise InputError("temporal_compression=true needs spatial_compression=true, as in the released code")
            return {}
        if not self.compression_before_llm and not cascade:
            raise InputError(
                "spatial_compression=true without a place to compress: set compression_before_llm=true or "
                "compression_cascade=true"
            )
        if cascade and not self.cascade_layer:
            raise InputError("compression_cascade=true needs cascade_layer, a list of decoder layers")
        return {
            "ratio": self.spatial_clustering_ratio,
            "positions": "ppe" if self.use_ppe else "renumber",
            "k": self.ppe_k if self.use_ppe else 1,
            "members": "last",
            "order": "score",
            "ties": "none",
            "layers": self.cascade_layer if cascade else (),
            "before_llm": bool(self.compression_before_llm),
            "temporal_ratio": self._only("temporal_clustering_ratio") if temporal else None,
            "event_ratio": self._only("spatial_clustering_ratio") if temporal else None,
        }

    def _only(self, key: str) -> float:
        """The only ratio of a key; raises InputError if there are none or several."""
        value = getattr(self, key)
        ratios = value if isinstance(value, tuple) else (value,)
        if len(ratios) != 1 or ratios[0] is None:
            raise InputError(f"{key}={shown(value)} with temporal_compression=true: give a list of one ratio")
        return ratios[0]


KEYS = tuple(field.name for field in dataclasses.fields(Released))
