"""What register() refuses: a class that declares what does not exist, or lacks what its place calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppe_npu.errors import InputError

if TYPE_CHECKING:
    from ppe_npu.methods.base import Method

PLACES = ("pixels", "tower", "input", "layer")  # in the order in which a forward pass reaches them
NEEDS = (
    *("pixels", "tokens", "places", "sizes", "text", "tower_keys", "tower_saliency", "tower_groups"),
    *("layer_queries", "layer_keys", "layer_plain", "layer_text", "layer_row"),
)
SCOPES = ("frame", "span", "segment")
_CHOICES = {
    "scope": SCOPES,
    "counts": ("exact", "late"),
    "tower_windows": ("refuse", "frame", "skip"),
    "numbering": ("prompt", "kept"),
    "pool": ("frame", "image", "prompt"),
}
_CONTRACT = ("ppe_npu.methods.base", "Method")
_AT_PLACE = {"pixels": "select", "input": "group", "layer": "group"}
_OF_SEGMENTS = ("segments", "segment", "segment_budgets")
_HOW_MANY = ("ratio", "kept", "budgets", "kept_cells")  # any of which says how many tokens are kept
_KINDS = "ppe_npu.methods.tower_methods"
_DECIDED = {  # by the contract, for each kind of pass through the tower
    "rebuilding": ("tower_pass", "places", "needs", "counts", "restores"),
    "joining": ("tower_pass", "places", "needs", "counts", "restores", "pool"),
}


def check_class(method: type[Method], name: str = "") -> None:
    """Raise InputError for a class that does not fulfil the contract.

    What is a property, and thus depends on fields, is not checked.

    Args:
        name: the name that it is to be registered under, if it is.
    """
    for key, choices in _CHOICES.items():
        value = getattr(method, key, None)
        if isinstance(value, str) and value not in choices:
            raise InputError(f"{method.__name__}.{key}={value!r}: use one of {', '.join(choices)}")
    for key, choices in (("needs", NEEDS), ("places", PLACES)):
        value = getattr(method, key)
        unknown = set() if isinstance(value, property) else set(value) - set(choices)
        if unknown:
            raise InputError(f"{method.__name__}.{key} has {sorted(unknown)}: use some of {', '.join(choices)}")
    _check_tower(method)
    lacking = _lacking(method)
    if lacking:
        contract = "tower_methods.py" if method.tower_pass else "base.py"
        raise InputError(f"{method.__name__} lacks {', '.join(lacking)}: define what methods/{contract} asks for")
    folder, _, file = method.__module__.rpartition(".")
    if name and folder == __package__ and file != name:
        raise InputError(f"{method.__name__} is {name!r} in methods/{file}.py: name the file {name}.py")


def _check_tower(method: type[Method]) -> None:
    """Raise InputError unless a method inside the vision tower is of one of the kinds in tower_methods.py."""
    kind = next((base for base in method.__mro__ if base.__module__ == _KINDS), None)
    if kind is None and not method.tower_pass and "tower" not in method.places:
        return
    passes = getattr(kind, "tower_pass", "")
    if passes not in _DECIDED:
        by_hand = f"tower_pass={method.tower_pass!r}: a method does not set this itself; leave it out and"
        unsaid = f"places={method.places!r}: nothing says how it works inside the vision tower;"
        raise InputError(
            f"{method.__name__}.{by_hand if method.tower_pass else unsaid} derive the class from RebuildingMethod, if "
            "patches leave and are rebuilt, or from JoiningMethod, if cells are joined (methods/tower_methods.py)"
        )
    if method.scope == "segment":
        raise InputError(f"{method.__name__}.scope='segment': use frame or span inside the vision tower")
    for key in _DECIDED[passes]:
        value = getattr(method, key)
        if value != getattr(kind, key):
            given = sorted(value) if isinstance(value, frozenset) else value
            raise InputError(f"{method.__name__}.{key}={given!r}: {kind.__name__} decides this; leave {key} out")


def _lacking(method: type[Method]) -> list[str]:
    """What the method must define and does not."""
    wanted = [*method.must_define, *(_OF_SEGMENTS if method.scope == "segment" else ())]
    if not _defines(method, "levels"):  # which group in its stead
        wanted += [_AT_PLACE[place] for place in method.places if place in _AT_PLACE]
    lacking = [name for name in dict.fromkeys(wanted) if not _defines(method, name)]
    return lacking + ([] if any(_defines(method, name) for name in _HOW_MANY) else ["ratio or kept()"])


def _defines(method: type[Method], name: str) -> bool:
    """Whether an attribute is more than what the contract has in its place."""
    if name in method.__dataclass_fields__:
        return True
    owner = next((base for base in method.__mro__ if name in vars(base)), None)
    own = owner is not None and (owner.__module__, owner.__name__) != _CONTRACT
    return own and name not in vars(owner).get("must_define", ())
