"""A simulated Ascend device: the real torch_npu, on a machine with neither an NPU nor CANN. See README.md.

    environment.py     the variables that put a process, and its children, on the emulator
    build.py           compiles stubs/ (CANN's libraries) and *.cpp (aten operators) for the wheel that is installed
    operators/         reference kernels of the fused npu:: operators, behind torch_npu's own checks
    limits.py          what the documents forbid
    counters.py        what ran, and how often

Importing this package imports neither torch nor torch_npu; `activate` does.
"""

import importlib.metadata
import importlib.util
import sys

from . import environment

_active = False


def active() -> bool:
    """Whether this process runs on the emulator."""
    return _active


def activate() -> None:
    """Puts this process on the emulator. `import torch` calls it, as an entry point, where PYTHONPATH names the build.

    Raises:
        RuntimeError: the variables that the build prints are not set, or are those of another virtual environment.
    """
    global _active
    if _active:
        return
    folder = environment.folder()
    if folder is None:
        raise RuntimeError('ascend_emulator: run eval "$(python -m tests.ascend_emulator.build --env)" first')
    import torch

    if _active:  # importing torch came back here, through the entry point
        return
    # By its metadata, as the build has it: the index's own wheel says 2.13.0 there, and 2.13.0+cu130 of itself.
    own = f"torch-{importlib.metadata.version('torch')}-npu-"
    if importlib.util.find_spec("torch_npu") is None or not folder.name.startswith(own):
        raise RuntimeError(f"ascend_emulator: {folder.name} was not built for the packages of {sys.prefix}")
    _active = True  # before torch_npu is imported, which may import torch again
    import torch_npu  # noqa: F401

    torch.ops.load_library(folder / "lib" / "ascend_emulator.so")
    from . import aten, counters, operators

    aten.install()
    operators.install()
    counters.report_at_exit()
