"""What torch.compile is told of a function, without loading the compiler for those who do not compile."""

from collections.abc import Callable


def traced_once(function: Callable) -> Callable:
    """torch.compile calls `function` while it traces and takes the result for a constant: none of it is in the graph.

    For imports, logging and uploads that are done once. The arguments must be constants (or shapes).
    torch.compiler.assume_constant_result sets the same mark; it imports torch._dynamo, and with it Triton.
    """
    function._dynamo_marked_constant = True
    return function
