"""What torch.compile is told about a function, without importing the compiler where nothing is compiled."""

from collections.abc import Callable

import torch


def traced_once(function: Callable) -> Callable:
    """torch.compile calls `function` while it traces and takes the result for a constant: none of it is in the graph.

    It is for imports, logging and uploads that are done once. The arguments must be constants (or shapes).
    torch.compiler.assume_constant_result sets the same mark; it imports torch._dynamo, and with it Triton.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def is_traced(module: torch.nn.Module) -> bool:
    """Whether torch.compile traces this call, or will trace `module` or a part of it when it is called.

    Traced code is compiled anew for every list of lengths that it is given; a mask's length becomes a symbol.
    """
    return torch.compiler.is_compiling() or any(map(_compiled, module.modules()))


def _compiled(module: torch.nn.Module) -> bool:
    """By module.compile(), by torch.compile(module), or by module.forward = torch.compile(module.forward)."""
    forward = vars(module).get("forward")
    by_call = module._compiled_call_impl is not None or "_orig_mod" in module._modules
    return by_call or hasattr(forward, "_torchdynamo_orig_callable")
