"""Make the torchvision of this environment importable beside a torch without CUDA; run by the Makefile, once.

PyPI's torchvision is built against CUDA. Beside a CPU build of torch its compiled part does not load, and then its
Python part fails at `operator torchvision::nms does not exist`, and with it transformers' Trainer and video
processors, which need none of these operators. A few lines at the end of the installed torchvision/extension.py declare
the two operators, without a kernel, where the compiled part has not loaded.
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
    """Import it without what `import torch` loads by itself: a package that declares the operators hides the break."""
    alone = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.run((sys.executable, "-c", "import torchvision"), env=alone, capture_output=True, check=False)


def mend() -> str:
    """What was done, in words."""
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
