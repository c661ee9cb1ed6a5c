"""The environment variables under which torch_npu runs on the emulator, in this process and in its children.

They are to the emulator what CANN's set_env.sh is to CANN. With PYTHONPATH set so, `import torch` finds the emulator's
`torch.backends` entry point and calls `activate`; nothing else has to be changed, not even in torchrun and its workers.
"""

import os
from pathlib import Path

# The folder that the build printed; where it is set, the emulator is on.
FOLDER = "ASCEND_EMULATOR"

# What a user may also set.
DEVICES = "ASCEND_EMULATOR_DEVICES"  # how many there are; default: LOCAL_WORLD_SIZE, which torchrun sets, else 1
MEMORY_GB = "ASCEND_EMULATOR_MEMORY_GB"  # of each device; default 8; more than that is torch.OutOfMemoryError
SOC = "ASCEND_EMULATOR_SOC"  # name of the chip; default Ascend910B1
CANN = "ASCEND_EMULATOR_CANN"  # the version that CANN reports; default 9.1.0
HCCL_TIMEOUT = "ASCEND_EMULATOR_HCCL_TIMEOUT"  # seconds that a rank waits for another; default 600
HF32 = "ASCEND_EMULATOR_HF32"  # 0: fp32 convolutions stay exact even where torch_npu allows HF32; default 1
CALLS = "ASCEND_EMULATOR_CALLS"  # a file to which every process appends, as it ends, the counts of what ran

# torch_npu and DeepSpeed check that these exist.
CANN_FOLDERS = ("runtime", "compiler", "opp")


def variables(folder: Path) -> dict[str, str]:
    """name -> value, for a folder made by the build. Paths that are set already stay, after the emulator's."""
    return {
        FOLDER: str(folder),
        "PYTHONPATH": _before(folder / "python", "PYTHONPATH"),
        "LD_LIBRARY_PATH": _before(folder / "lib", "LD_LIBRARY_PATH"),
        "ASCEND_HOME_PATH": str(folder / "cann"),
        "ASCEND_TOOLKIT_HOME": str(folder / "cann"),
        "ASCEND_OPP_PATH": str(folder / "cann" / "opp"),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1",
        # An operator for which torch_npu has no kernel is an error, and not a slow detour by the host.
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
        # No queue between the thread that calls and the thread that launches: memory is read and written at the call.
        "TASK_QUEUE_ENABLE": "0",
    }


def folder() -> Path | None:
    """The folder of the emulator that this process runs on, or None."""
    value = os.environ.get(FOLDER)
    return Path(value) if value else None


def _before(path: Path, variable: str) -> str:
    builds = path.parent.parent  # other builds stand beside this one: an environment may still name one of them
    others = [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
    return os.pathsep.join([str(path), *(part for part in others if Path(part).parent.parent != builds)])
