"""Helpers for torch.compile that do not import the compiler where nothing is compiled."""

from collections.abc import Callable

import torch


def traced_once(function: Callable) -> Callable:
    """Decorator: torch.compile calls `function` while tracing and treats its result as a constant, outside the graph.

    For imports, logging and uploads that are done once. The arguments must be constants (or shapes).
    torch.compiler.assume_constant_result sets the same mark, but imports torch._dynamo, and with it Triton.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_traced(module: torch.nn.Module) -> bool:
    """Whether torch.compile traces this call, or will trace `module` or a part of it when it is called.

    Traced code is recompiled for every new list of lengths, whereas the length of a mask becomes a symbol.
    """
    return torch.compiler.is_compiling() or any(map(_compiled, module.modules()))


def _compiled(module: torch.nn.Module) -> bool:
    """Whether module.compile(), torch.compile(module) or torch.compile(module.forward) compiled this module itself."""
    forward = vars(module).get("forward")
    by_call = module._compiled_call_impl is not None or "_orig_mod" in module._modules
    return by_call or hasattr(forward, "_torchdynamo_orig_callable")
