"""What ran on the emulator, and how often, since the start or the last reset.

Forward and backward are operators of different names: npu_fusion_attention and npu_fusion_attention_grad.
"""

import atexit
import json
import os
import sys
import threading
from collections import Counter

from . import environment

_npu: Counter[str] = Counter()
_lock = threading.Lock()  # autograd runs backward operators in threads of its own


def count(name: str) -> None:
    """Notes that a fused operator ran; `name` without "npu::"."""
    with _lock:
        _npu[name] += 1


def npu() -> dict[str, int]:
    """Calls of fused operators: name without "npu::" -> how many."""
    return dict(_npu)


def aten() -> dict[str, int]:
    """Calls of aten operators, by full name, and of the aclnn operators that torch_npu's C++ called directly."""
    import torch

    return dict(torch.ops.ascend_emulator.calls())


def reset() -> None:
    """Resets all counts."""
    import torch

    _npu.clear()
    torch.ops.ascend_emulator.reset_calls()


def report_at_exit() -> None:
    """Where the variable CALLS names a file, appends one line of JSON to it when the process ends."""
    path = os.environ.get(environment.CALLS)
    if path:
        atexit.register(_append, path)


def _append(path: str) -> None:
    line = {"pid": os.getpid(), "command": sys.argv, "npu": npu(), "aten": aten()}
    if line["npu"] or line["aten"]:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
