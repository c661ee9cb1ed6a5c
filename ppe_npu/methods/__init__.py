"""Methods that group tokens, one file for each published method.

    from ppe_npu.methods import DPCKNN, Random, get

    get("dpc_knn", ratio=0.25) == DPCKNN(ratio=0.25)

A method is a frozen dataclass with a `group(view)` (see base.py for the contract, and grouping.py for the plan that it
returns). To add a method, add one file to this folder, with the name that it is registered under; there is no other
list of methods. Whatever follows from a Grouping (features, positions, masks, labels, the report) is computed in the
same way for all methods.
"""

from ppe_npu.methods.base import Method, as_method, method_class, method_names, register
from ppe_npu.settings import from_mapping

__all__ = ["Method", "as_method", "get", "method_class", "method_names", "register"]


def get(name: str, /, **fields) -> Method:
    """The method of this name with these fields: get("dpc_knn", ratio=0.25, layer=2).

    Raises:
        InputError: the name is unknown, the method has no such field, or a value is not allowed.
    """
    return from_mapping(method_class(name), fields, str(name))


def __getattr__(name: str):
    """A method's class by its class name, imported from the file that defines it."""
    if not name.startswith("_"):
        for method in map(method_class, method_names()):
            if method.__name__ == name:
                return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
