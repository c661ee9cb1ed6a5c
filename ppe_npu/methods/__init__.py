"""How tokens are grouped: one file a published method.

    from ppe_npu.methods import DPCKNN, Random, get

    get("dpc_knn", ratio=0.25) == DPCKNN(ratio=0.25)

A method is a frozen dataclass with a `group(view)` (see base.py, the contract, and grouping.py, the plan that it
returns). A new method is one new file in this folder, named as it is registered; no list names it anywhere else.
Nothing behind a Grouping (features, positions, masks, labels, the report) knows which method made it.
"""

from ppe_npu.methods.base import Method, as_method, method_class, method_names, register
from ppe_npu.settings import from_mapping

__all__ = ["Method", "as_method", "get", "method_class", "method_names", "register"]


def get(name: str, /, **fields) -> Method:
    """A method by its name, with its fields: get("dpc_knn", ratio=0.25, layer=2).

    Raises:
        InputError: an unknown name, a field that it does not have, or a value that cannot be.
    """
    return from_mapping(method_class(name), fields, str(name))


def __getattr__(name: str):
    """A method's class by its own name, from whichever file holds it."""
    if not name.startswith("_"):
        for method in map(method_class, method_names()):
            if method.__name__ == name:
                return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
