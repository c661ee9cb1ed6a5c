"""The fused npu:: operators: torch_npu's own kernel first, then the numbers by a reference.

Every call runs torch_npu's C++ kernel as an oracle: its argument checks are the real ones, and so are the shapes,
dtypes and strides of the outputs that it allocates. CANN is not there to fill these in; the emulation does, once its
results were found to have the same shapes and dtypes. Autograd is torch_npu's own, too: its nodes call the *_grad and
*_backward operators, which are emulated in the same way.

An emulation is a function of CPU tensors, decorated with the operator's name. It is called by keyword, with those of
the operator's parameters that it names; the others must have their defaults, because they are ignored. It checks the
documented limits first (limits.py). To add one: write it, in a file that is listed in `_FILES`, and test it.
"""

import ctypes
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ascend_emulator import counters, limits

_FILES = ("attention", "inference", "loss", "norm", "rotary", "swiglu")


class EmulationError(AssertionError):
    """The emulation does not return what torch_npu's kernel announces: it is wrong, not the program under test."""


@dataclass(frozen=True)
class Emulation:
    """How an operator is computed.

    Attributes:
        function: takes the parameters that it heeds, tensors on the CPU; returns what the operator returns.
        heeds: names of these parameters.
        ignores: names of parameters that change nothing that is emulated.
    """

    function: Callable
    heeds: frozenset[str]
    ignores: frozenset[str]


# Operator name without "npu::" -> its emulation. Looked up at every call, so that a test may replace one.
EMULATIONS: dict[str, Emulation] = {}

_library = torch.library.Library("npu", "IMPL")
_NPU = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


def emulates(
    name: str, *, passes_on: tuple[str, ...] = (), ignores: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Registers the decorated function as the emulation of npu::<name>.

    Args:
        name: the operator's, without "npu::".
        passes_on: parameters that the function takes as **keywords.
        ignores: parameters that change nothing that is emulated.
    """

    def register(function: Callable) -> Callable:
        parameters = inspect.signature(function).parameters.values()
        named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        EMULATIONS[name] = Emulation(function, frozenset(named | set(passes_on)), frozenset(ignores))
        return function

    return register


def install() -> None:
    """Puts the emulations in the place of torch_npu's kernels."""
    for file in _FILES:
        importlib.import_module(f"{__name__}.{file}")
    stubs = ctypes.CDLL("libascendcl.so")
    for name in EMULATIONS:
        operator = _Operator(name, stubs)
        _library.impl(name, operator.run, "PrivateUse1")


class _Operator:
    """One fused operator: torch_npu's kernel, and the emulation behind it."""

    def __init__(self, name: str, stubs: ctypes.CDLL):
        self.name, self.stubs = name, stubs
        self.arguments = getattr(torch.ops.npu, name).default._schema.arguments
        self.kernel = torch.library.get_kernel(f"npu::{name}", "PrivateUse1")
        unknown = EMULATIONS[name].heeds - {argument.name for argument in self.arguments}
        if unknown:
            raise EmulationError(f"npu::{name} has no parameters {sorted(unknown)}")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        # Below autograd, as the C++ kernel is: what the emulation does must not end up in the graph.
        with torch._C._AutoDispatchBelowAutograd():
            announced = self._announce(*args, **kwargs)
            emulation = EMULATIONS[self.name]
            result = self._fill(announced, emulation.function(**self._heeded(emulation, args, kwargs)))
        counters.count(self.name)
        return result

    def _announce(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, checked and allocated by torch_npu's kernel, and not computed."""
        self.stubs.emulator_oracle_enter()
        try:
            return self.kernel.call_boxed(_NPU, *args, **kwargs)
        finally:
            self.stubs.emulator_oracle_leave()

    def _heeded(self, emulation: Emulation, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = dict(zip((argument.name for argument in self.arguments), args)) | kwargs
        heeded = {}
        for argument in self.arguments:
            value = given.get(argument.name, argument.default_value)
            if argument.name in emulation.heeds:
                heeded[argument.name] = _on_cpu(value)
            elif argument.name not in emulation.ignores:
                default = not isinstance(value, torch.Tensor) and value == argument.default_value
                limits.require(default, self.name, f"no emulation of {argument.name}")
        return heeded

    def _fill(self, announced: Any, computed: Any) -> Any:
        """Copies what was computed into what torch_npu's kernel allocated, and returns that."""
        if not isinstance(announced, (tuple, list)):
            return self._fill((announced,), (computed,))[0]
        expected, got = ([_kind(value) for value in values] for values in (announced, computed))
        if expected != got:
            raise EmulationError(f"npu::{self.name}: torch_npu announces {expected}, the emulation computed {got}")
        pairs = zip(announced, computed)
        return tuple(target.copy_(source) if isinstance(target, torch.Tensor) else source for target, source in pairs)


def _on_cpu(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.device.type != "npu":
        return value
    alias = torch.ops.ascend_emulator.as_cpu(value)
    return alias.requires_grad_(value.requires_grad)  # some limits depend on it


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else type(value)
