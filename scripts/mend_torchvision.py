"""Makes this environment's torchvision importable beside a torch without CUDA. The Makefile runs it once.

PyPI's torchvision is built against CUDA. With a CPU build of torch its compiled part does not load. Then its Python
part fails with `operator torchvision::nms does not exist`, and so do transformers' Trainer and video processors, which
need none of these operators. This script appends lines to the installed torchvision/extension.py that declare the two
operators, without kernels, if the compiled part has not loaded.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

MARK = "# Added by scripts/mend_torchvision.py of ppe_npu:"
LINES = f"""

{MARK} without the compiled part, declare what the Python part gives fake kernels to.
if not _has_ops() and not hasattr(torch.ops.torchvision, "nms"):
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def imports() -> subprocess.CompletedProcess:
    """Import torchvision in a process in which `import torch` loads no back ends, as one of these may declare the
    operators and so hide the failure."""
    alone = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.run((sys.executable, "-c", "import torchvision"), env=alone, capture_output=True, check=False)


def mend() -> str:
    """Mend the installed torchvision if needed; returns what was done, in words."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return "torchvision is not installed"
    file = Path(spec.origin).with_name("extension.py")
    text = file.read_text()
    if MARK in text:
        return f"{file} is mended already"
    if imports().returncode == 0:
        return "torchvision can be imported as it is"
    file.write_text(text + LINES)
    done = imports()
    if done.returncode != 0:
        file.write_text(text)
        sys.exit(f"torchvision cannot be imported, and declaring its operators does not help: {done.stderr.decode()}")
    return f"{file} declares the operators that its compiled part would bring"


if __name__ == "__main__":
    print(mend())
