"""The contract of a method: a frozen dataclass of checked settings that groups tokens.

    @register("largest_norm")
    @dataclass(frozen=True)
    class LargestNorm(Method): ...                                # its file is in CONTRIBUTING.md

    LargestNorm(ratio=0.5).group(View.of(tokens=tokens))          # alone, on plain tensors [frames, tokens, channels]

A method declares its inputs (`needs`), which tokens compete (`scope`), where it can be applied (`places`), and how many
tokens it keeps (`kept`). The engine passes it a View of many cells at once and applies the Grouping that it returns. A
cell is a set of tokens that is grouped by itself: a frame, a whole image or video, or a segment of frames. Methods
inside the vision tower have more to say: tower_methods.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ppe_npu.errors import InputError, shown
from ppe_npu.methods.checked_calls import checked, lacking, with_num_kept
from ppe_npu.methods.checking import NEEDS as NEEDS
from ppe_npu.methods.checking import PLACES as PLACES
from ppe_npu.methods.checking import check_class
from ppe_npu.settings import check_fields, fields_to_plain, from_mapping, setting
from ppe_npu.utils.registering import files_that_register

if TYPE_CHECKING:
    import torch

    from ppe_npu.methods.grouping import Grouping
    from ppe_npu.methods.view import View

_REGISTERED: dict[str, type[Method]] = {}


def share(default: float) -> Any:
    """A field for the share of tokens to keep, in (0, 1]."""
    return setting(default, above=0, most=1, remedy="give the kept share of the tokens, in (0, 1]")


def _one_form(layer: Any) -> Any:
    if not isinstance(layer, tuple):
        return layer
    if not layer or len(set(layer)) != len(layer):
        raise InputError(f"layer={list(layer)}: give different decoder layers, counted from 0")
    return layer[0] if len(layer) == 1 else tuple(sorted(layer))


def at_layer(default: int | tuple[int, ...]) -> Any:
    """The field `layer` of a method that runs only on entry to decoder layers. default: the published layers."""
    field = setting(default, least=0, convert=_one_form, remedy="give decoder layers, counted from 0")
    field.kw_only = True  # as in Method, so that the first positional argument is one of the method's own fields
    return field


@dataclass(frozen=True, kw_only=True)
class Method:
    """One step of a compression. Subclasses add fields and group().

    Class attributes:
        name: the name that it is registered under.
        needs: the inputs that it looks at, from NEEDS. The engine computes these and nothing else. A method that needs
            only "places" is planned on the host, before any feature exists.
        scope: "frame", each frame is a cell; "span", all frames of an image or video form one cell; "segment", frames
            are first gathered into segments (see segments), each of which is a cell.
        counts: "exact", the number of tokens that stay follows from a cell's size; "late", it depends on the features.
        places: where it can be applied, from PLACES.
        tower_blocks: the blocks of the vision tower whose attention is its tower_saliency, the first of which also
            gives its tower_keys; negative numbers count from the end. By default the block in the field tower_block
            if there is one, else the last. Override blocks() if they depend on the number of blocks.
        tower_windows: how tower_saliency treats a block that attends in windows: "refuse" it; compute attention over
            the whole "frame" from the block's queries and keys; or "skip" it. A field in most methods. In a tower
            all of whose blocks attend in windows it is always "frame".
        restores: for a method inside the vision tower, whether as many tokens leave the tower as enter it, so that
            nothing after the tower is affected. If not, the method also groups the tower's output, accordingly.
        tower_pass: for a method inside the vision tower, how it works there. Such a method does not set this, but
            derives from RebuildingMethod or JoiningMethod, see tower_methods.py.
        leave_after: for a method at the pixels, how many blocks of the vision tower run on all cells before the dropped
            ones leave; 0: they never enter it; -1: they leave after the tower.
        numbering: for a method at the pixels, the positions of the text after a picture: "prompt", as if nothing were
            dropped; "kept", starting after the largest position of a kept cell.
        must_define: what a subclass must define, in addition to what its places and scope require.
        levels: methods that group a cell one after the other, and whose tokens are all kept. Empty, for this method
            alone, everywhere except in ppe_npu.released.Levels.
        layer_before: whether its inputs from a decoder layer (layer_*) come from the layer before its own, which has
            just run, instead of from the layer on whose entry it runs, which is about to run.
        first_only: whether it groups only the first image or video of each prompt, as some published implementations
            do, and treats all others as text. Only for methods at decoder layers.
        sees_ahead: whether the layer before runs as in the published FastV code, see models/seeing_ahead.py.
        blanks: whether group() is given a View.blanked(). False spares the copy where padding and numbers that are not
            finite cannot reach another token in any case.

    Args:
        layer: the decoder layer, or several (counted from 0), on whose entry the step is taken; None: the step is taken
            at the first of `places` other than "layer".
    """

    name: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ("input", "layer")
    if TYPE_CHECKING:  # a subclass may define these as class attributes, fields, or properties that depend on a field

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
        @property
        def leave_after(self) -> int: ...
        @property
        def numbering(self) -> str: ...
    else:
        needs, scope, counts, tower_windows = frozenset({"tokens"}), "frame", "exact", "refuse"
        layer_before, first_only, sees_ahead, levels = False, False, False, ()
        leave_after, numbering = 0, "prompt"
    restores: ClassVar[bool] = False
    tower_pass: ClassVar[str] = ""
    must_define: ClassVar[tuple[str, ...]] = ()
    blanks: ClassVar[bool] = True

    layer: int | tuple[int, ...] | None = setting(
        None, least=0, convert=_one_form, remedy="give decoder layers, counted from 0, or null"
    )

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name, wrap in (("group", with_num_kept), ("select", checked)):
            if name in vars(cls):
                setattr(cls, name, wrap(vars(cls)[name]))

    def __post_init__(self):
        check_fields(self)
        if self.place not in self.places:
            why = "it cannot run at a decoder layer; leave layer out" if self.layers else "it needs a layer; give one"
            raise InputError(f"{self.name} with layer={shown(self.layer)}: {why}")
        if self.layer_before and 0 in self.layers:
            raise InputError(
                f"{self.name} with layer={shown(self.layer)}: it looks at the layer before that; give 1 or more"
            )

    def either(self, name: str, other: str) -> None:
        """Raise InputError if both a field and `other`, the published name of the same setting, are given."""
        given, instead = getattr(self, name), getattr(self, other)
        if instead is not None and given != type(self).__dataclass_fields__[name].default:
            raise InputError(f"{self.name} {name}={shown(given)} with {other}={shown(instead)}: give only one of them")

    @property
    def tower_blocks(self) -> tuple[int, ...]:
        return (getattr(self, "tower_block", -1),)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers on whose entry it runs."""
        return () if self.layer is None else self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @cached_property
    def place(self) -> str:
        """Where it is applied, one of PLACES."""
        return "layer" if self.layers else next((place for place in self.places if place != "layer"), "")

    @property
    def groups_before_decoder(self) -> bool:
        """Whether tokens are grouped before the first decoder layer. A method that joins tokens inside the vision tower
        also groups the tower's output, before all other steps."""
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
                raise InputError(
                    f"{self.name}: the vision tower has {count} blocks, but no block {block}; give 0 to {count - 1}"
                )
        return tuple(block % count for block in self.tower_blocks)

    def group(self, view: View) -> Grouping:
        """The groups of every cell. They must not depend on what else is in the batch."""
        raise lacking(self, "group")

    def select(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose which cells of one picture go into the vision tower. Methods at the pixels define this, not group().

        Args:
            cells: [H, W, D] fp32 in [0, 1], the pixel values of each cell, see engine/pixels.py.

        Returns:
            kept: [H, W] bool, True for at least one cell.
            source: [H, W] int64, the raster index of the kept cell whose group each cell joins; a kept cell's own.
        """
        raise lacking(self, "select")

    # -- how many tokens are kept, known before any feature is computed -----------------------------------------------

    def kept(self, tokens: int) -> int:
        """How many of a cell's tokens stay: by default ceil(tokens * ratio), at least one."""
        ratio = getattr(self, "ratio", None)
        if ratio is None:
            raise NotImplementedError(f"{type(self).__name__} has no ratio: it needs a kept() of its own")
        return max(math.ceil(tokens * ratio), 1)

    def budgets(self, tokens: int) -> tuple[int, ...]:
        """How many of a cell's tokens each level keeps."""
        return (self.kept(tokens),)

    def kept_cells(self, cells: Sequence[int]) -> list[int]:
        """The size of every cell of one image or video after the step, from the sizes before it."""
        cells = [sum(cells)] if self.scope == "span" else cells
        return [sum(self.budgets(tokens)) for tokens in cells]

    # -- only for methods with scope="segment" ------------------------------------------------------------------------

    def segments(self, frames: int) -> int | None:
        """How many segments this many frames are gathered into; None: they are left as they are."""
        return None

    def segment(self, view: View) -> Grouping:
        """Group the frames of each video into segments: a cell is a video, and a token is the mean of one frame."""
        raise lacking(self, "segment")

    def segment_budgets(self, frames: Sequence[int], tokens: int) -> list[int]:
        """How many tokens each segment keeps. frames: the number in each segment; tokens: the number in each frame."""
        raise lacking(self, "segment_budgets")

    # -- files --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """Plain values: {"method": its name, ...}."""
        values = fields_to_plain(self)
        layer = values.pop("layer")
        return {"method": self.name, **values} | ({} if layer is None else {"layer": layer})

    @staticmethod
    def from_dict(values: Mapping) -> Method:
        """The method that to_dict() describes."""
        return as_method(values)


def register(name: str):
    """Class decorator that names the method in settings. A method of this package is in methods/<name>.py."""

    def registered(method: type[Method]) -> type[Method]:
        check_class(method, name)
        method.name = name
        _REGISTERED[name] = method
        return method

    return registered


def published() -> tuple[str, ...]:
    """Names of the methods that have a file in this folder, without importing them."""
    return files_that_register(__file__.rpartition("/")[0])


def method_names() -> tuple[str, ...]:
    """Names of all methods, without importing them."""
    return tuple(sorted({*published(), *_REGISTERED}))


def method_class(name: str) -> type[Method]:
    """The class that is registered under this name.

    Raises:
        InputError: no method has this name.
    """
    if isinstance(name, str) and name not in _REGISTERED and name in method_names():
        import_module(f"ppe_npu.methods.{name}")
    if not isinstance(name, str) or name not in _REGISTERED:
        raise InputError(f"method={shown(name)}: choose one of {', '.join(method_names())}")
    return _REGISTERED[name]


def as_method(value: Method | Mapping) -> Method:
    """The method itself if it is one, else the method that a dict {"method": name, ...} describes.

    Raises:
        InputError: the value is neither, the name is unknown, or its class does not take these keys and values.
    """
    if isinstance(value, Method):
        return value
    if not isinstance(value, Mapping) or "method" not in value:
        raise InputError(f'a step is {shown(value)}: give a method, or {{"method": its name, ...}}')
    settings = {key: part for key, part in value.items() if key != "method"}
    return from_mapping(method_class(value["method"]), settings, str(value["method"]))
