"""The contract of a method: a frozen dataclass of checked settings that groups tokens.

    @register("every_other")
    @dataclass(frozen=True)
    class EveryOther(Method):
        "Keeps every other token (a paper, section 3)."

        ratio: float = share(0.5)

        def group(self, view: View) -> Grouping:
            return Grouping.of_kept(view, torch.arange(view.most).expand(len(view.tokens), -1) * 2)

    EveryOther(ratio=0.5).group(View.of(tokens=torch.randn(1, 16, 8)))      # alone, on plain tensors

A method says what it looks at (`needs`), which tokens compete (`scope`), where it may stand (`places`) and how many
tokens it keeps (`kept`). The engine hands it a View of many cells at once and applies the Grouping that comes back. A
cell is what is grouped by itself: a frame, a whole image or video, or a segment of frames.
"""

from __future__ import annotations

import functools
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ppe_npu.errors import InputError, shown
from ppe_npu.settings import check_fields, fields_to_plain, from_mapping, setting

if TYPE_CHECKING:
    import torch

    from ppe_npu.methods.grouping import Grouping
    from ppe_npu.methods.view import View

PLACES = ("pixels", "tower", "input", "layer")  # in the order in which a forward pass comes by them
NEEDS = (
    *("pixels", "tokens", "places", "sizes", "text", "tower_keys", "tower_saliency", "tower_groups"),
    *("layer_queries", "layer_keys", "layer_plain", "layer_text", "layer_row"),
)
SCOPES = ("frame", "span", "segment")
_HELPERS = (  # files here that hold no method
    *("base", "choosing", "frames", "grids", "grouping", "listing", "peaks", "positions", "predicting", "space"),
    *("thinning", "view"),
)
_REGISTERED: dict[str, type[Method]] = {}


def share(default: float) -> Any:
    """A field for the share that is kept, in (0, 1]."""
    return setting(default, above=0, most=1, remedy="give the kept share of the tokens, in (0, 1]")


def _one_form(layer: Any) -> Any:
    if not isinstance(layer, tuple):
        return layer
    if not layer or len(set(layer)) != len(layer):
        raise InputError(f"layer={list(layer)}: give different decoder layers, counted from 0")
    return layer[0] if len(layer) == 1 else tuple(sorted(layer))


def at_layer(default: int | tuple[int, ...]) -> Any:
    """The field `layer` of a method that stands on entry of decoder layers alone, with the published ones."""
    field = setting(default, least=0, convert=_one_form, remedy="give decoder layers, counted from 0")
    field.kw_only = True  # as in Method: the first argument is a method's own
    return field


def _counted(group: Callable[[Any, View], Grouping]) -> Callable[[Any, View], Grouping]:
    """A group() that is never shown a view without numbers: where a method is run alone, its kept() says them. To one
    with late counts they are a bound: how few stay it is not told."""

    @functools.wraps(group)
    def with_counts(self: Method, view: View) -> Grouping:
        if view.num_kept is None:
            view = view.keeping([self.kept(tokens) for tokens in view.present.sum(1).tolist()])
        return group(self, replace(view, least=1) if self.counts == "late" else view)

    return with_counts


@dataclass(frozen=True, kw_only=True)
class Method:
    """One step of a compression. Subclasses add fields and group().

    Class attributes:
        name: what it is registered as.
        needs: what it looks at, of NEEDS. The engine computes what is declared and nothing else. A method that needs
            only "places" is planned on the host, before any feature exists.
        scope: "frame", each frame is a cell; "span", all frames of an image or video are one cell; "segment", frames
            are gathered into segments first (see segments), each of which is a cell.
        counts: "exact", how many tokens stay follows from a cell's size; "late", it follows from the features.
        places: where it may stand, of PLACES.
        tower_blocks: which blocks of the vision tower its tower_keys (of the first) and tower_saliency are of; from the
            end where negative. The one that its field tower_block names, where it has such a field, else the last;
            blocks() where it hangs on how many there are.
        tower_windows: of a block that attends in windows, where tower_saliency is needed: "refuse" it; take attention
            over the whole "frame", made from its queries and keys; or "skip" it. A field in most methods. In a tower
            all of whose blocks attend in windows it is always "frame".
        restores: whether as many tokens come out of the vision tower as go in, of a method that works inside it: then
            nothing after the tower knows of it. Else it groups tokens before the decoder, too, by what it did there.
        levels: the methods that group a cell one after the other, and whose tokens are all kept; (): this one alone, as
            ever but in ppe_npu.released.Levels.
        layer_before: whether what it looks at in a decoder layer (layer_*) is of the layer before the one on whose
            entry it stands, which has just run, and not of that one, which is about to.
        first_only: whether of each prompt the image or video that stands first is grouped alone, as some published
            codes have it; all others are text to the method. For methods at decoder layers alone.
        sees_ahead: whether the layer before runs as the published FastV has it, see models/seeing_ahead.py.

    Args:
        layer: the decoder layer (counted from 0) on whose entry the step is taken, or several; None: the first of
            `places` that is no layer.
    """

    name: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ("input", "layer")
    if TYPE_CHECKING:  # what a subclass may write as a class attribute, or as a property where a field says it

        @property
        def needs(self) -> frozenset[str]: ...
        @property
        def scope(self) -> str: ...
        @property
        def counts(self) -> str: ...
        @property
        def tower_windows(self) -> str: ...
        @property
        def layer_before(self) -> bool: ...
        @property
        def levels(self) -> tuple[Method, ...]: ...
        @property
        def first_only(self) -> bool: ...
        @property
        def sees_ahead(self) -> bool: ...
    else:
        needs, scope, counts, tower_windows = frozenset({"tokens"}), "frame", "exact", "refuse"
        layer_before, first_only, sees_ahead, levels = False, False, False, ()
    restores: ClassVar[bool] = False

    layer: int | tuple[int, ...] | None = setting(
        None, least=0, convert=_one_form, remedy="give decoder layers, counted from 0, or null"
    )

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "group" in vars(cls):
            cls.group = _counted(cls.group)  # type: ignore[assignment]

    def __post_init__(self):
        check_fields(self)
        if self.place not in self.places:
            where = "on entry of a decoder layer: leave layer out" if self.layers else "without a layer: give its layer"
            raise InputError(f"{self.name} with layer={shown(self.layer)}: it cannot stand {where}")
        if self.layer_before and 0 in self.layers:
            raise InputError(
                f"{self.name} with layer={shown(self.layer)}: it looks at the layer before; give 1 or more"
            )

    def either(self, name: str, other: str) -> None:
        """Raise InputError where a field is given, and the published name that says the same in its place, too."""
        given, instead = getattr(self, name), getattr(self, other)
        if instead is not None and given != type(self).__dataclass_fields__[name].default:
            raise InputError(f"{self.name} {name}={shown(given)} with {other}={shown(instead)}: give one of them")

    @property
    def tower_blocks(self) -> tuple[int, ...]:
        return (getattr(self, "tower_block", -1),)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers on whose entry it stands."""
        return () if self.layer is None else self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @cached_property
    def place(self) -> str:
        """Where it stands, of PLACES."""
        return "layer" if self.layers else next((place for place in self.places if place != "layer"), "")

    @property
    def groups_before_decoder(self) -> bool:
        """Whether tokens are grouped before the first decoder layer: what joined them in the vision tower does so in
        what came out of it, before all others."""
        return self.place == "input" or (self.place == "tower" and not self.restores)

    @property
    def on_host(self) -> bool:
        """Whether its groups are known before any feature exists."""
        return self.needs <= {"places"}

    def blocks(self, count: int) -> tuple[int, ...]:
        """Its tower_blocks in a vision tower of `count` blocks, counted from 0.

        Raises:
            InputError: the tower has no such block.
        """
        for block in self.tower_blocks:
            if not -count <= block < count:
                raise InputError(f"{self.name}: the vision tower has {count} blocks, and none of number {block}")
        return tuple(block % count for block in self.tower_blocks)

    def group(self, view: View) -> Grouping:
        """The groups of every cell. It must not depend on what else is in the batch."""
        raise NotImplementedError

    def select(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a method at the pixels, in place of group(): which cells of one picture go into the vision tower.

        Args:
            cells: [H, W, D] fp32 in [0, 1], the pixel values of each cell, see engine/pixels.py.

        Returns:
            kept: [H, W] bool, at least one.
            source: [H, W] int64, the kept cell (in raster order) in whose group each one is; of a kept one itself.
        """
        raise NotImplementedError

    # -- what is kept, known before any feature is seen ---------------------------------------------------------------

    def kept(self, tokens: int) -> int:
        """How many of a cell's tokens stay: ceil(tokens * ratio), at least one."""
        ratio = getattr(self, "ratio", None)
        if ratio is None:
            raise NotImplementedError(f"{type(self).__name__} has no ratio: it needs a kept() of its own")
        return max(math.ceil(tokens * ratio), 1)

    def budgets(self, tokens: int) -> tuple[int, ...]:
        """How many of a cell's tokens each level keeps."""
        return (self.kept(tokens),)

    def kept_cells(self, cells: Sequence[int]) -> list[int]:
        """Tokens of the cells of one image or video, before it and after it."""
        cells = [sum(cells)] if self.scope == "span" else cells
        return [sum(self.budgets(tokens)) for tokens in cells]

    # -- of methods with scope="segment" alone ------------------------------------------------------------------------

    def segments(self, frames: int) -> int | None:
        """How many segments this many frames are gathered into; None: they stay as they are."""
        return None

    def segment(self, view: View) -> Grouping:
        """The segments of each video: its cells are videos, and its tokens are the means of their frames."""
        raise NotImplementedError

    def segment_budgets(self, frames: Sequence[int], tokens: int) -> list[int]:
        """How many tokens each segment keeps. frames: of each segment; tokens: of each frame."""
        raise NotImplementedError

    # -- files --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """Plain values: {"method": its name, ...}."""
        values = fields_to_plain(self)
        layer = values.pop("layer")
        return {"method": self.name, **values} | ({} if layer is None else {"layer": layer})

    @staticmethod
    def from_dict(values: Mapping) -> Method:
        """From what to_dict() gives."""
        return as_method(values)


def register(name: str):
    """Class decorator: the method's name in settings. Its file is methods/<name>.py."""

    def registered(method: type[Method]) -> type[Method]:
        known = {"scope": SCOPES, "counts": ("exact", "late"), "tower_windows": ("refuse", "frame", "skip")}
        for key, choices in known.items():
            value = getattr(method, key)
            if isinstance(value, str) and value not in choices:
                raise InputError(f"{method.__name__}.{key}={value!r}: use one of {', '.join(choices)}")
        for key, choices in (("needs", NEEDS), ("places", PLACES)):
            value = getattr(method, key)
            unknown = set() if isinstance(value, property) else set(value) - set(choices)
            if unknown:
                raise InputError(f"{method.__name__}.{key} has {sorted(unknown)}: use some of {', '.join(choices)}")
        method.name = name
        _REGISTERED[name] = method
        return method

    return registered


def published() -> tuple[str, ...]:
    """Names of the methods that have a file of their own here, without loading them."""
    files = pkgutil.iter_modules([__file__.rpartition("/")[0]])
    return tuple(file.name for file in files if file.name not in _HELPERS)


def method_names() -> tuple[str, ...]:
    """Names of all methods, without loading them."""
    return tuple(sorted({*published(), *_REGISTERED}))


def method_class(name: str) -> type[Method]:
    """The class that is registered under this name.

    Raises:
        InputError: there is none.
    """
    if isinstance(name, str) and name not in _REGISTERED and name in method_names():
        import_module(f"ppe_npu.methods.{name}")
    if not isinstance(name, str) or name not in _REGISTERED:
        raise InputError(f"method={shown(name)}: choose one of {', '.join(method_names())}")
    return _REGISTERED[name]


def as_method(value: Method | Mapping) -> Method:
    """A method, from one or from its dict {"method": name, ...}.

    Raises:
        InputError: neither, an unknown name, or keys and values that its class does not take.
    """
    if isinstance(value, Method):
        return value
    if not isinstance(value, Mapping) or "method" not in value:
        raise InputError(f'a step is {shown(value)}: give a method, or {{"method": its name, ...}}')
    settings = {key: part for key, part in value.items() if key != "method"}
    return from_mapping(method_class(value["method"]), settings, str(value["method"]))
