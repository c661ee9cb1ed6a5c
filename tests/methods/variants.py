"""Every method in all its forms: the published ones, each value of each field with named values, and ends of ranges."""

import dataclasses
import itertools
import typing
from typing import Literal

from ppe_npu.errors import InputError
from ppe_npu.methods.base import Method
from ppe_npu.methods.listing import default, grouping

_INNER = ("divprune", "flashvlm", "hiprune", "mmr", "random", "tome")
_NUMBERS = {  # values at which a rule of the method changes
    "apet": {"basis": (1, 100), "fps_start": (2,)},
    "dart": {"pivot_text": (0,)},
    "dpc_knn": {"neighbors": (9,)},
    "flashvid": {"alpha": (1.0,), "temporal_threshold": (0.2, 1.0), "min_segment_num": (1,)},
    "flashvlm": {"alpha": (0.0, 1.0), "eta": (0.0, 1.0)},
    "globalcom2": {"by": tuple({"method": name} for name in _INNER)},
    "hiprune": {"alpha": (0.0, 1.0)},
    "holitom": {"D": (0.4, 1.0), "tau": (-1.0,), "max_window": (1,)},
    "mmr": {"mmr_lambda": (0.0, 1.0), "parallel_k": (3,)},
    "pact": {"keep": (1.0,), "ratio": (None,)},
    "scope": {"alpha": (None,)},
    "tome": {"layer": (1,)},
    "vispruner": {"important_ratio": (0.0, 1.0)},
    "visionzip": {"zip_ratio": (1.0,), "contextual": (2,)},
}  # fmt: skip


def variants() -> dict[str, Method]:
    """Methods by a name that says how each differs from its defaults."""
    out: dict[str, Method] = {}
    for name in grouping():
        method = default(name)
        changes = [(), *(((field, value),) for field, values in _values(method).items() for value in values)]
        released = [(), (("released", True),)] if hasattr(method, "released") else [()]
        for one, other in itertools.product(changes, released):
            fields = dict(one + other)
            try:
                made = dataclasses.replace(method, **fields)
            except InputError:  # fields that do not go together
                continue
            if made not in out.values():
                out[" ".join([name, *(f"{field}={value}" for field, value in fields.items())])] = made
    return out


def _values(method: Method) -> dict[str, tuple]:
    """Other values of a method's fields."""
    out = dict(_NUMBERS.get(method.name, {}))
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(method):
        own, rule = getattr(method, field.name), field.metadata.get("ppe_npu.settings")
        if isinstance(own, bool):
            out[field.name] = (not own,)
        elif typing.get_origin(hints[field.name]) is Literal or getattr(rule, "choices", None):
            choices = typing.get_args(hints[field.name]) or rule.choices
            out[field.name] = tuple(choice for choice in choices if choice != own)
    return {name: values for name, values in out.items() if name != "tower_windows"}  # which the engine alone reads
