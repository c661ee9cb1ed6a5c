"""Traces, without a GPU, calls that run Triton kernels on CUDA. Run it as a program, outside the interpreter:

    python tests/backends/trace_kernels.py

Its tensors are fake ones on a second CUDA device, so that dispatch chooses and guards as it does there; nothing runs.
It prints a JSON object: for each op the nodes of its graph, or why there is none.
"""

import json
import types

import torch
import torch.utils._triton
from torch._dynamo.variables.ctx_manager import CUDADeviceVariable
from torch._subclasses import FakeTensorMode

from ppe_npu import backends

DEVICE = torch.device("cuda", 1)
MADE_UP = types.SimpleNamespace(major=9, shared_memory_per_block_optin=232448)  # the properties of a device


def pretend() -> None:
    """Answer what Dynamo asks a machine with CUDA while it traces.

    torch.cuda.get_device_properties is not replaced: Dynamo recognizes it by identity and takes its result as constant.
    """
    torch.utils._triton.has_triton = lambda: True
    torch.cuda._lazy_init, torch.cuda.device_count = lambda: None, lambda: 2
    torch.cuda._get_device_properties = lambda where: MADE_UP
    torch._dynamo.utils.common_constant_types.add(type(MADE_UP))
    CUDADeviceVariable._exchange_fn = staticmethod(enter_device)
    CUDADeviceVariable._maybe_exchange_fn = staticmethod(leave_device)


def enter_device(index: int) -> int:
    assert index == DEVICE.index
    return 0


def leave_device(index: int) -> int:
    return index


def nodes(op: str, arguments: list[torch.Tensor]) -> list[str] | str:
    """Names of the functions called in the single graph of a call, or why there is no such graph."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return lambda *inputs: [torch.empty_like(arguments[0])] * 2

    torch._dynamo.reset()
    try:
        torch.compile(getattr(backends, op), backend=keep, fullgraph=True)(*arguments)
    except torch._dynamo.exc.Unsupported as error:
        return str(error)
    (graph,) = graphs
    return [getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes if "call" in node.op]


def main() -> dict:
    pretend()
    with FakeTensorMode(), torch.no_grad():
        shapes = [(1, 4, 8, 32), (1, 2, 8, 32), (1, 8, 32), (1, 8, 32)]
        query, key, cos, sin = (torch.empty(shape, device=DEVICE) for shape in shapes)
        tokens = torch.empty(2, 12, 8, device=DEVICE)
        labels, counts = (torch.zeros(2, size, dtype=torch.int64, device=DEVICE) for size in (12, 3))
        calls = {
            "rotary": [query, key, cos, sin],
            "group_mean": [tokens, labels, counts],
        }
        return {op: nodes(op, arguments) for op, arguments in calls.items()}


if __name__ == "__main__":
    print(json.dumps(main()))
