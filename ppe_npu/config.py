"""CompressionConfig: what is compressed, by how much, and which positions the merged tokens keep."""

import dataclasses
import math
import numbers
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ppe_npu.errors import InputError, shown
from ppe_npu.files import write_json
from ppe_npu.reading import UnreadableError, read_json
from ppe_npu.released_settings import KEYS, Released
from ppe_npu.settings import check_fields, check_mapping, fields_to_plain, setting, strangers

BLIND = ("random", "uniform", "avg_pool")  # look at no feature: the controls
METHODS = ("none", "dpc_knn", *BLIND)
POSITIONS = ("ppe", "keep_one", "renumber")
MEMBERS = ("nearest", "spread", "last", "nearest_first")
ORDERS = ("raster", "score")
TIES = ("first", "none")

_PRESETS: dict[str, dict] = {
    "dense": {"method": "none", "ratio": 1.0, "positions": "keep_one", "k": 1},
    # Chat-UniVi (arXiv 2311.08046): merged tokens stand in score order and the prompt is numbered anew.
    "chatunivi": {"positions": "renumber", "k": 1, "order": "score"},
    "keep_one": {"positions": "keep_one", "k": 1},
    "ppe": {"positions": "ppe", "k": 8},
    # The released cascade, for the 36 layers of Qwen2.5-VL-3B; name other layers for other models.
    "ppe_cascade": {"positions": "ppe", "k": 8, "layers": (11, 23, 35)},
    # Controls, with one kept position as pruning and pooling have it; positions="ppe" and a k may be asked for.
    **{method: {"method": method, "positions": "keep_one", "k": 1} for method in BLIND},
}
PRESETS = tuple(_PRESETS)
_RATIO = "give the kept share of the tokens, in (0, 1], or a list of shares"
_LAYERS = "give a list of different decoder layers, counted from 0; [] merges before the LLM"


def _one_of(default: str, names: tuple[str, ...]) -> Any:
    return setting(default, choices=names, remedy=f"choose one of {', '.join(names)}")


def _alone(ratio: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """A list of one ratio is that ratio."""
    if ratio == ():
        raise InputError(f"ratio=[]: {_RATIO}")
    return ratio[0] if isinstance(ratio, tuple) and len(ratio) == 1 else ratio


def _sorted(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(layers)) != len(layers):
        raise InputError(f"layers={shown(list(layers))}: {_LAYERS}")
    return tuple(sorted(layers))


@dataclass(frozen=True)
class CompressionConfig:
    """How visual tokens are grouped, merged and placed.

    Args:
        method: "dpc_knn" (density peaks clustering on k nearest neighbours, Chat-UniVi section 3.2); "none" (dense); or
            a control that looks at no feature: "random", "uniform" (a stride), "avg_pool" (windows of the grid).
        ratio: share of each frame's visual tokens that is kept, in (0, 1]. A frame of n tokens keeps ceil(n * ratio).
            A list [r0, r1, ...] clusters again what the ratio before left, and keeps the tokens of all of them, which
            must be no more than came in: r0 + r0 * r1 + ... <= 1.
        positions: "ppe", a merged token keeps the (t, h, w) of `k` of its members (PPE, arXiv 2510.22936, section 3);
            "keep_one", the (t, h, w) of its representative; "renumber", the compressed prompt is numbered 0, 1, 2, ...
        k: how many member positions a merged token keeps. It must divide every M-RoPE section of the model.
            1 unless positions is "ppe".
        members: which members, and in which order they are listed (the order decides which band of rotary channels a
            position reaches): "nearest", the k members nearest to the centre, listed in raster order, last first;
            "spread", k members evenly over the raster-sorted members, last first; "last", the last k members, last
            first (the released code's rule); "nearest_first", the k nearest, listed by nearness (the paper's text).
        ties: which of equally dense tokens counts as the denser one: the "first", or "none" of them (the released code
            without its noise, by which equal tokens all become centres).
        order: order of the merged tokens of a frame: "raster" of their representatives, or descending "score".
        layers: decoder layers that compress on entry, each by `ratio` of what the one before left (a cascade).
        before_llm: whether tokens are merged before the LLM; None: just when there are no layers.
        temporal_ratio: share of a video's frames that is kept as events, in (0, 1], or None. Before the LLM, frames are
            grouped by their mean features into ceil(frames * temporal_ratio) events (Chat-UniVi section 3.2), and the
            spatially merged tokens of an event's frames are merged once more, down to those of one frame.
        event_ratio: share of an event's tokens that is kept instead (the released code's rule), or None. Of a video's
            T frames of m tokens, max(ceil(T * m * event_ratio), events) stay, shared by events in proportion.
        seed: of method="random": the same one chooses the same tokens on every device; 0 for every other method.

    Raises:
        InputError: names the key, the value and what would be right.
    """

    method: str = _one_of("dpc_knn", METHODS)
    ratio: float | tuple[float, ...] = setting(0.45, above=0, most=1, remedy=_RATIO, convert=_alone)
    positions: str = _one_of("ppe", POSITIONS)
    k: int = setting(8, least=1, remedy="give a positive whole number of kept positions")
    members: str = _one_of("nearest", MEMBERS)
    order: str = _one_of("raster", ORDERS)
    ties: str = _one_of("first", TIES)
    layers: tuple[int, ...] = setting((), least=0, remedy=_LAYERS, convert=_sorted)
    before_llm: bool | None = setting(None, remedy="give true, false or null")
    temporal_ratio: float | None = setting(None, above=0, most=1, remedy="give a share in (0, 1], or null")
    event_ratio: float | None = setting(None, above=0, most=1, remedy="give a share in (0, 1], or null")
    seed: int = setting(0, least=0, remedy="give a whole number, at least 0 and below 2**63")

    def __post_init__(self):
        check_fields(self)
        if self.positions != "ppe" and self.k != 1:
            raise InputError(f"k={self.k} with positions={self.positions!r}: only positions='ppe' keeps more than one")
        self._check_ratios()
        self._check_layers()
        self._check_events()
        self._check_control()
        if self.method == "none" and (
            self.ratio != 1 or self.positions != "keep_one" or self.layers or self.temporal_ratio is not None
        ):
            raise InputError(
                "method='none' (dense) needs ratio=1.0, positions='keep_one', k=1, no layers and no temporal_ratio"
            )

    def _check_ratios(self) -> None:
        """A list keeps r0 + r0 * r1 + ... of a frame's tokens: never more than came in, up to rounding."""
        kept = sum(accumulate(self.ratios, operator.mul))
        if kept > 1 + len(self.ratios) * np.finfo(float).eps:
            raise InputError(
                f"ratio={shown(list(self.ratios))}: each is a share of what the one before left, and all are kept: "
                f"{kept:.4g} of the tokens that come in; give ratios that keep at most 1, as [0.45, 0.3] does"
            )

    def _check_layers(self) -> None:
        if self.before_llm is False and not self.layers and not self.is_dense:
            raise InputError("before_llm=false without layers: nothing says where to compress")
        if self.before_llm == (not self.layers):
            object.__setattr__(self, "before_llm", None)

    def _check_events(self) -> None:
        if self.event_ratio is not None and self.temporal_ratio is None:
            raise InputError(f"event_ratio={self.event_ratio!r} needs a temporal_ratio: without it there are no events")
        if self.temporal_ratio is None:
            return
        if len(self.ratios) > 1:
            raise InputError(
                f"ratio={shown(list(self.ratios))} with temporal_ratio={self.temporal_ratio!r}: frames that keep the "
                "tokens of several ratios are not grouped into events; give one ratio"
            )
        if not self.merges_before_llm:
            raise InputError(
                f"temporal_ratio={self.temporal_ratio!r} with layers={shown(list(self.layers))}: frames are grouped "
                "before the LLM; set before_llm=true, too"
            )
        if self.event_ratio is not None and self.layers:
            raise InputError(
                f"event_ratio={self.event_ratio!r} with layers={shown(list(self.layers))}: the tokens of each event, "
                "which a cascade must know in advance, would depend on the features; leave event_ratio out"
            )

    def _check_control(self) -> None:
        if self.seed and self.method != "random":
            raise InputError(f"seed={self.seed} with method={self.method!r}: only method='random' has a seed")
        if self.method in BLIND and (self.order, self.ties) != ("raster", "first"):
            raise InputError(
                f"method={self.method!r} with order={self.order!r}, ties={self.ties!r}: it has no scores and no "
                "densities; use order='raster' and ties='first'"
            )

    # -- what is kept, known before any feature is seen ---------------------------------------------------------------

    @property
    def is_dense(self) -> bool:
        return self.method == "none"

    @property
    def ratios(self) -> tuple[float, ...]:
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)

    @property
    def merges_before_llm(self) -> bool:
        return not self.is_dense and (not self.layers if self.before_llm is None else self.before_llm)

    def budgets(self, tokens: int) -> tuple[int, ...]:
        """How many of a frame's `tokens` one merge keeps, for each of its ratios."""
        if self.is_dense:
            return (tokens,)
        kept, left = [], tokens
        for later, ratio in zip(reversed(range(len(self.ratios))), self.ratios):
            # Rounded up, but never so far that more are kept than came in; each ratio keeps one.
            tokens = max(min(math.ceil(tokens * ratio), left - later), 1)
            left -= tokens
            kept.append(tokens)
        return tuple(kept)

    def events(self, frames: int) -> int | None:
        """How many events a video of this many frames is grouped into; None where frames stay as they are."""
        if self.temporal_ratio is None or frames == 1:
            return None
        return max(math.ceil(frames * self.temporal_ratio), 1)

    def event_tokens(self, frames: int, tokens: int) -> int:
        """How many tokens the events of a video keep in all, of `frames` frames with `tokens` merged tokens each."""
        events = self.events(frames)
        if self.event_ratio is None:
            return events * tokens
        return max(math.ceil(frames * tokens * self.event_ratio), events)

    def tokens_kept(self, grid_thw, merge_size: int = 2, layer: int | None = None) -> int | list[int]:
        """How many visual tokens stay of each image or video, known from its grid alone.

        Args:
            grid_thw: (frames, height, width) in patches, as processors give it, or a list, array or tensor [n, 3].
            merge_size: patches that the vision tower joins to one token along each side.
            layer: the decoder layer that is asked about; None: what is left at the end.

        Returns:
            One number for one grid, a list of n for n.

        Raises:
            InputError: a grid that is no three whole multiples.
        """
        grids = np.array([np.asarray(part) for part in grid_thw])
        if layer is not None and (not _is_whole(layer) or layer < 0):
            raise InputError(f"layer={layer!r}: give a decoder layer, counted from 0, or None")
        if grids.size and (grids.shape[-1] != 3 or grids.ndim > 2 or (grids % [1, merge_size, merge_size]).any()):
            raise InputError(
                f"grid_thw={grids.tolist()}: give (frames, height, width) in patches, "
                f"the sides multiples of {merge_size}"
            )
        if (grids < 1).any():
            raise InputError(f"grid_thw={grids.tolist()}: give (frames, height, width) in patches, each at least 1")
        kept = [self.span_tokens(int(t), int(h) * int(w) // merge_size**2, layer) for t, h, w in grids.reshape(-1, 3)]
        return kept[0] if grids.ndim == 1 and grids.size else kept

    def span_tokens(self, frames: int, tokens: int, layer: int | None = None) -> int:
        """tokens_kept() of `frames` frames with `tokens` visual tokens each."""
        if self.merges_before_llm:
            tokens = sum(self.budgets(tokens))
            if self.events(frames) is not None:
                if self.event_ratio is not None:
                    return self.event_tokens(frames, tokens)
                frames = self.events(frames)
        for at in self.layers:
            if layer is None or at <= layer:
                tokens = sum(self.budgets(tokens))
        return frames * tokens

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str, **overrides) -> "CompressionConfig":
        """The named setting ("dense", "chatunivi", "keep_one", "ppe", "ppe_cascade", "random", "uniform", "avg_pool"),
        with single keys overridden.

        Raises:
            InputError: unknown preset or key.
        """
        if not isinstance(name, str) or name not in _PRESETS:
            raise InputError(f"preset {shown(name)} is unknown: choose one of {', '.join(_PRESETS)}")
        return cls.from_dict({**_PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping) -> "CompressionConfig":
        """From our own keys. Unknown keys are errors. Without a k, 8 where positions is "ppe", else 1."""
        check_mapping(values, "compression")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = strangers(values, known)
        if unknown:
            raise InputError(f"unknown compression key(s) {unknown}: the keys are {', '.join(known)}")
        positions = values.get("positions", cls.positions)
        single = "k" not in values and isinstance(positions, str) and positions != "ppe"
        return cls(**values, **({"k": 1} if single else {}))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "CompressionConfig":
        """From a JSON file with our own keys, or with the released code's keys.

        Raises:
            InputError: no such file, not JSON, or keys that do not fit.
        """
        try:
            values = read_json(path)
        except UnreadableError as error:
            raise InputError(f"compression config {path}: cannot be read as JSON ({error.why})") from error
        if not isinstance(values, dict):
            raise InputError(f"compression config {path}: needs a JSON object, has a {type(values).__name__}")
        released = not values or set(values) & set(KEYS)
        try:
            return cls.from_released(values) if released else cls.from_dict(values)
        except InputError as error:
            raise InputError(f"compression config {path}: {error}") from error

    @classmethod
    def from_released(cls, values: Mapping) -> "CompressionConfig":
        """From the released PPE code's JSON keys; behaves as that code does: score order, last members, no noise.

        An empty mapping is dense. Settings whose released behaviour is a fault (a K that does not divide the sections)
        are refused when the model is compressed, and so is a ratio above 1, which the released code takes for a count.
        """
        settings = Released.from_dict(values).settings()
        return cls(**settings) if settings else cls.preset("dense")

    @property
    def label(self) -> str:
        """A short name, a file's or folder's, that tells settings apart."""
        if self.is_dense:
            return "dense"
        ratios = "+".join(f"{ratio:g}" for ratio in self.ratios)
        parts = [self.method, self.positions, f"k{self.k}", self.members, self.order, ratios]
        if self.seed:
            parts.append(f"seed{self.seed}")
        if self.ties != "first":
            parts.append(f"ties{self.ties}")
        if self.layers:
            parts.append("layers" + "+".join(map(str, (("llm",) if self.merges_before_llm else ()) + self.layers)))
        if self.temporal_ratio is not None:
            parts.append(f"events{self.temporal_ratio:g}")
        if self.event_ratio is not None:
            parts.append(f"of{self.event_ratio:g}")
        return "-".join(parts)

    # -- saving ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        return fields_to_plain(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write our own keys as JSON, atomically."""
        write_json(path, self.to_dict())


def _is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
