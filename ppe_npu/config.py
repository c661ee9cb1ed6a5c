"""CompressionConfig: the steps that compress visual tokens, and the positions that merged tokens keep.

    CompressionConfig(steps=[DPCKNN(ratio=0.45)], positions="ppe", k=8)
    CompressionConfig(steps=[Random(ratio=0.5), DPCKNN(ratio=0.45, layer=[11, 23])], positions="keep_one")
    CompressionConfig.preset("ppe", ratio=0.25)
    CompressionConfig.from_text("divprune:ratio=0.25,positions=ppe,k=4")

Any form other than a list of steps is a shorthand for one: see ppe_npu.shorthand.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppe_npu import shorthand
from ppe_npu.errors import InputError, counted, shown
from ppe_npu.files import write_json
from ppe_npu.methods.base import PLACES, Method, method_names
from ppe_npu.methods.positions import Rule, rule_named, rule_names
from ppe_npu.released import KEYS, Levels, Released
from ppe_npu.settings import check_fields, check_mapping, fields_to_plain, setting, strangers
from ppe_npu.utils.grids import read_grids, whole
from ppe_npu.utils.reading import UnreadableError, read_json

POSITIONS = ("ppe", "keep_one", "renumber")
DEFAULT_K = 8  # for positions="ppe", as in the released code
MEMBERS = rule_names()

_PRESETS: dict[str, dict] = {
    "dense": {"method": "none", "ratio": 1.0, "positions": "keep_one", "k": 1},
    # Chat-UniVi (arXiv 2311.08046): merged tokens are in score order, and the prompt is renumbered.
    "chatunivi": {"positions": "renumber", "k": 1, "order": "score"},
    "keep_one": {"positions": "keep_one", "k": 1},
    "ppe": {"positions": "ppe"},
    # Not in the paper, see docs/positions.md.
    "ppe_plus": {"positions": "ppe", "proportional_attention": True},
    # The released cascade, for the 36 layers of Qwen2.5-VL-3B; other models need other layers.
    "ppe_cascade": {"positions": "ppe", "layers": (11, 23, 35)},
}
PRESETS = (*_PRESETS, *(name for name in method_names() if name != Levels.name))
_SHARE = "give a share in (0, 1], or null"
BESIDE = ("positions", "k", "members", "proportional_attention")  # keys given beside steps, or beside the shorthand


def _one_of(default: str, names: tuple[str, ...]) -> Any:
    return setting(default, choices=names, remedy=f"choose one of {', '.join(names)}")


@dataclass(frozen=True)
class CompressionConfig:
    """How visual tokens are grouped, merged and placed.

    Args:
        steps: the methods (ppe_npu.methods), as instances or as dicts {"method": name, "ratio": ..., "layer": ...}, in
            the order in which they run: at the pixels, in the vision tower, before the decoder, and on entry of
            decoder layers. [] compresses nothing.
        positions: "ppe", a merged token keeps the (t, h, w) of `k` of its members (PPE, arXiv 2510.22936, section 3);
            "keep_one", the (t, h, w) of its representative; "renumber", the compressed prompt is numbered 0, 1, 2, ...
        k: how many member positions a merged token keeps, at most as many as an axis has rotary channels. None: 8 for
            "ppe", else 1; where the model's axes hold fewer than 8, compress() lowers it and logs a warning.
        members: which members those are, and the order in which they are listed (the order decides which band of rotary
            channels a position reaches): "nearest", the k members nearest to the centre, in raster order, last first;
            "spread", k members evenly over the raster-sorted members, last first; "last", the last k members, last
            first (the released code's rule); "nearest_first", the k nearest, listed by nearness (the paper's text);
            or another rule of ppe_npu.methods.positions (docs/positions.md lists them).
        method, ratio, layers, before_llm, temporal_ratio, event_ratio, order, ties, seed: the shorthand that
            ppe_npu.shorthand describes, in place of steps.
        proportional_attention: whether a token that stands for s tokens is attended to as if there were s of it, by
            adding log(s) to its attention scores (ToMe, arXiv 2210.09461, section 3). Tokens that only lend their
            positions do not count. Needs attn_implementation "sdpa" or "eager".

    Raises:
        InputError: a value that cannot be used; the message names the key, the value and the remedy.
    """

    steps: tuple[Method, ...] | None = setting(None, remedy='give a list of methods, or of {"method": NAME, ...}')
    positions: str = _one_of("ppe", POSITIONS)
    k: int | None = setting(None, least=1, remedy="give a positive whole number of kept positions")
    members: str = _one_of("nearest", MEMBERS)
    method: str | None = "dpc_knn"
    ratio: float | tuple[float, ...] | None = setting(0.45, above=0, most=1, remedy=shorthand.RATIO)
    order: str | None = _one_of("raster", ("raster", "score"))
    ties: str | None = _one_of("first", ("first", "none"))
    layers: tuple[int, ...] = setting((), least=0, remedy=shorthand.LAYERS)
    before_llm: bool | None = setting(None, remedy="give true, false or null")
    temporal_ratio: float | None = setting(None, above=0, most=1, remedy=_SHARE)
    event_ratio: float | None = setting(None, above=0, most=1, remedy=_SHARE)
    seed: int = setting(0, least=0, remedy="give a whole number, at least 0 and below 2**63")
    proportional_attention: bool = setting(False, remedy="give true or false")
    k_named = property(lambda self: vars(self)["_k_named"], doc="Whether somebody said what k is.")

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "_k_named", self.k is not None)  # not a field: configs with the same k compare equal
        k = self.k if self.k is not None else DEFAULT_K if self.positions == "ppe" else 1
        if self.positions != "ppe" and k != 1:
            raise InputError(
                f"k={k} with positions={self.positions!r}: only positions='ppe' keeps more than one; leave k out"
            )
        changed = {"k": k} | (self._given_steps() if self.steps is not None else shorthand.one_form(self))
        for key, value in changed.items():
            object.__setattr__(self, key, value)
        _check_order(self.stages)
        at_pixels = [method.name for method in self.methods if method.place == "pixels"]
        if len(at_pixels) > 1:
            both = "both" if len(at_pixels) == 2 else "all"
            raise InputError(
                f"steps {' and '.join(at_pixels)} {both} run at the pixels, and each needs whole pictures: keep one"
            )

    def _given_steps(self) -> dict:
        """The shorthand's method, ratio, order and ties as None; raises InputError where a shorthand key was set."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("steps", *BESIDE) and value is not None and value != field.default:
                raise InputError(f"{field.name}={shown(value)} with steps: set it in one of the steps")
        return dict.fromkeys(("method", "ratio", "order", "ties"))

    # -- the steps, in the order in which a forward pass reaches them --------------------------------------------------

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """The steps, including those that a shorthand stands for, sorted by their places."""
        steps = shorthand.steps_of(self) if self.steps is None else self.steps
        return tuple(sorted(steps, key=lambda method: PLACES.index(method.place)))

    @cached_property
    def stages(self) -> tuple[tuple[int | None, tuple[Method, ...]], ...]:
        """(None, the steps before the decoder), then (layer, the steps on its entry) for each layer with steps."""
        at_layers = sorted({layer for method in self.methods for layer in method.layers})
        at_input = tuple(method for method in self.methods if method.groups_before_decoder)
        return (
            (None, at_input),
            *((layer, tuple(m for m in self.methods if layer in m.layers)) for layer in at_layers),
        )

    @property
    def entry_layers(self) -> tuple[int, ...]:
        """The decoder layers on whose entry tokens are merged, in ascending order."""
        return tuple(layer for layer, _ in self.stages[1:])

    @cached_property
    def at_pixels(self) -> Method | None:
        """The step that chooses the vision tower's input, or None."""
        return next((method for method in self.methods if method.place == "pixels"), None)

    @cached_property
    def needs(self) -> frozenset[str]:
        """The inputs (NEEDS) that any of the steps looks at; the engine computes no others."""
        return frozenset().union(*(method.needs for method in self.methods))

    @cached_property
    def rule(self) -> Rule:
        """The rule that chooses the positions of merged tokens; "nearest" where they keep one or none."""
        return rule_named(self.members if self.positions == "ppe" else "nearest")

    @property
    def is_dense(self) -> bool:
        return not self.methods

    @cached_property
    def keeps_all(self) -> bool:
        """Whether every token reaches the end of the decoder."""
        return all(method.restores for method in self.methods)

    @property
    def merges_before_llm(self) -> bool:
        return bool(self.stages[0][1])

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """The shorthand's ratio or ratios."""
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)

    # -- how many tokens are kept, known before any feature is computed -----------------------------------------------

    def tokens_kept(
        self, grid_thw, merge_size: int = 2, layer: int | None = None, video: bool = False, pixels=None
    ) -> int | list[int]:
        """How many visual tokens of each image or video are kept, computed from its grid alone. For methods with late
        counts this is an upper bound, except for a step at the pixels where the image's `pixels` are given.

        Args:
            grid_thw: (frames, height, width) in patches, as processors give it, or a list, array or tensor [n, 3].
            merge_size: how many patches the vision tower joins into one token along each side.
            layer: count the tokens in this decoder layer; None: those left at the end.
            video: whether these are videos. A step at the pixels drops tokens of images only, and the grid of a video
                with one temporal step looks like an image's.
            pixels: an image's cells [rows, columns, values], in [0, 1]; for n grids a list of n, None where unknown.

        Returns:
            One number for one grid, a list of n numbers for n grids.

        Raises:
            InputError: a grid that is not three numbers of at least 1 with sides that are multiples of merge_size, a
                merge_size or layer that is no such number, or not as many `pixels` as grids.
        """
        grids = read_grids(grid_thw, merge_size)
        if layer is not None and not whole(layer, 0):
            raise InputError(f"layer={shown(layer)}: give a decoder layer, counted from 0, or None")
        sizes = [(int(t), int(h) * int(w) // merge_size**2) for t, h, w in grids.reshape(-1, 3)]
        cells = [None] * len(sizes) if pixels is None else [pixels] if grids.ndim == 1 else list(pixels)
        if len(cells) != len(sizes):
            given = f"{counted(len(cells), 'picture')} in pixels for {counted(len(sizes), 'grid')}"
            raise InputError(f"{given}: give one for each, or None where it is unknown")
        kept = [self.span_tokens(*size, layer, video, own) for size, own in zip(sizes, cells)]
        return kept[0] if grids.ndim == 1 and grids.size else kept

    def span_tokens(self, frames: int, tokens: int, layer: int | None = None, video: bool = False, pixels=None) -> int:
        """tokens_kept() of `frames` frames with `tokens` visual tokens each."""
        cells = [tokens] * frames
        if self.at_pixels is not None and frames == 1 and not video:
            known = pixels is None or self.at_pixels.counts == "exact"
            cells = self.at_pixels.kept_cells(cells) if known else [int(self.at_pixels.select(pixels)[0].sum())]
        for at, methods in self.stages:
            for method in methods if at is None or layer is None or at <= layer else ():
                cells = method.kept_cells(cells)
        return sum(cells)

    # -- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str, **overrides) -> CompressionConfig:
        """One of PRESETS (this package's own, and one for every method), with some of its keys overridden.

        A method's preset is the method alone with its own defaults and positions="keep_one". Overrides are the method's
        fields and the keys beside steps. With PPE on top: preset("random", ratio=0.25, positions="ppe", k=4).

        Raises:
            InputError: unknown preset or key.
        """
        if isinstance(name, str) and name in _PRESETS:
            return cls.from_dict({**_PRESETS[name], **overrides})
        if not isinstance(name, str) or name not in PRESETS:
            raise InputError(f"preset {shown(name)} is unknown: choose one of {', '.join(PRESETS)}")
        values = {"positions": "keep_one", **overrides}
        if shorthand.speaks_of(name) and not set(values) - {field.name for field in dataclasses.fields(cls)}:
            return cls.from_dict({"method": name, **shorthand.own_ratio(name), **values})
        step = {key: values.pop(key) for key in list(values) if key not in BESIDE}
        return cls.from_dict({"steps": [{"method": name, **step}], **values})

    @classmethod
    def from_text(cls, text: str, **overrides) -> CompressionConfig:
        """From a preset's name, alone or with keys: "divprune:ratio=0.25,positions=ppe,k=4". Values are written as in
        JSON, but text without quotes.

        Args:
            overrides: more keys, in place of those in the text.

        Raises:
            InputError: an unknown preset or key, or text that is not key=value.
        """
        name, _, rest = str(text).partition(":")
        return cls.preset(name, **{**shorthand.keys_of(rest, text), **overrides})

    def changed(self, **values) -> CompressionConfig:
        """A copy with some keys changed: those beside steps, those of the shorthand, and fields that exactly one step
        has. A value of None changes nothing.

        Raises:
            InputError: an unknown key, a field that several steps have, or a value that cannot be used.
        """
        values = {key: value for key, value in values.items() if value is not None}
        if not values:
            return self
        plain = self.to_dict()
        if not self.k_named or values.get("positions", self.positions) != self.positions:
            plain.pop("k")
        if self.steps is not None:
            shorthand.give_steps(plain, values, {*plain, *BESIDE}, self.label)
        return type(self).from_dict({**plain, **values})

    @classmethod
    def from_dict(cls, values: Mapping) -> CompressionConfig:
        """From this package's own keys. Unknown keys are errors. The default k is 8 for positions="ppe", else 1."""
        check_mapping(values, "compression")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = strangers(values, known)
        if unknown:
            raise InputError(f"unknown compression key(s) {unknown}: the keys are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> CompressionConfig:
        """From a JSON file with this package's own keys, or with the released code's keys.

        Raises:
            InputError: the file does not exist or is not JSON, or its keys are not valid.
        """
        try:
            values = read_json(path)
        except UnreadableError as error:
            raise InputError(f"compression config {path}: cannot be read as JSON ({error.why})") from error
        if not isinstance(values, dict):
            raise InputError(f"compression config {path}: needs a JSON object, has a {type(values).__name__}")
        is_released = not values or set(values) & set(KEYS)
        try:
            return cls.from_released(values) if is_released else cls.from_dict(values)
        except InputError as error:
            raise InputError(f"compression config {path}: {error}") from error

    @classmethod
    def from_released(cls, values: Mapping) -> CompressionConfig:
        """From the released PPE code's JSON keys. Behaves as that code does: score order, last members, no noise.

        An empty mapping is dense. A ratio above 1, which the released code reads as a count, is refused.
        """
        settings = Released.from_dict(values).settings()
        return cls(**settings) if settings else cls.preset("dense")

    @property
    def label(self) -> str:
        """A short name for files and folders that tells settings apart. A long one is cut short and ends in a hash."""
        proportional = "-proportional" if self.proportional_attention else ""
        if self.steps is None:
            return shorthand.cut_short(shorthand.label(self) + proportional)
        parts = [shorthand.step_label(method) for method in self.steps] or ["dense"]
        return shorthand.cut_short("-".join([*parts, self.positions, f"k{self.k}", self.members]) + proportional)

    # -- saving ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """The keys as plain values: steps, or those of the shorthand if that was given."""
        values = fields_to_plain(self)
        keys = shorthand.KEYS if self.steps is None else ("steps", "positions", "k", "members")
        # The first edition does not read proportional_attention, so that it is written only where it is set.
        return {key: values[key] for key in (*keys, *(BESIDE[3:] if self.proportional_attention else ()))}

    def save(self, path: str | os.PathLike) -> None:
        """Write this package's own keys as JSON, atomically."""
        write_json(path, self.to_dict())


def _check_order(stages: Sequence[tuple[int | None, tuple[Method, ...]]]) -> None:
    """Raise InputError where a step needs frames, but an earlier step has left no frames."""
    mixed: Method | None = None
    for method in (method for _, methods in stages for method in methods):
        if mixed is not None and method.scope == "segment":
            raise InputError(f"{method.name} after {mixed.name}: it needs frames of one size; run {method.name} first")
        # A method with one count for all frames together leaves no frames; late counts leave frames of unequal size.
        mixed = method if len(method.kept_cells([4, 4, 4])) == 1 or method.counts == "late" else mixed
