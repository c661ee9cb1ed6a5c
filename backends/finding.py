"""Finds the device that a name stands for, or says in one line why there is none. Callers use `device.resolve`.

torch_npu is first imported here, and only if an NPU is requested, or if "auto" is and the package is installed.
"""

import importlib
import importlib.util
import logging
import re

import torch

from ppe_npu.errors import UserError, shown

logger = logging.getLogger(__name__)

KINDS = ("npu", "cuda", "cpu")
_INDEX = re.compile("0|[1-9][0-9]{0,8}")


class DeviceError(UserError, ValueError):
    """This machine does not have the requested device. The message is one line: the request, and the remedy."""


def resolve(name: str = "auto") -> torch.device:
    """The device that `name` stands for.

    Args:
        name: "auto" (an NPU if torch_npu is installed and sees one, else CUDA, else the CPU), or a kind with or without
            an index: "npu", "npu:1", "cuda", "cuda:0", "cpu". Case does not matter.

    Returns:
        torch.device; without an index it stands for the current device of that kind.

    Raises:
        DeviceError: the name is unknown, or a device named explicitly does not exist. There is no fallback.
    """
    wanted = str(name).strip().lower()
    if wanted == "auto":
        return torch.device(_automatic())
    kind, _, index = wanted.partition(":")
    if kind not in KINDS or (":" in wanted and not _INDEX.fullmatch(index)):
        raise DeviceError(
            f"device {shown(name)} is unknown: use auto, npu, cuda, cpu, or one with an index, such as npu:0"
        )
    problem = {"npu": _npu_problem, "cuda": _cuda_problem, "cpu": lambda: None}[kind]()
    if problem:
        raise DeviceError(f"device {name!r} cannot be used: {problem}, or use device 'auto' or 'cpu'")
    count = {"npu": _npu_count, "cuda": torch.cuda.device_count, "cpu": lambda: 1}[kind]()
    if index and int(index) >= count:
        raise DeviceError(
            f"device {name!r} does not exist: there are {count} of kind {kind}; use an index below {count}"
        )
    return torch.device(wanted)


def _automatic() -> str:
    if importlib.util.find_spec("torch_npu") is not None:
        problem = _npu_problem()
        if problem is None:
            return "npu"
        # A user who installed torch_npu expects to run on the NPU, and would be slow to notice a quiet run on the CPU.
        logger.warning("torch_npu is installed but no NPU can be used: %s", problem)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _npu_problem() -> str | None:
    """Why there is no NPU to use, with the remedy, or None if there is one."""
    if importlib.util.find_spec("torch_npu") is None:
        matching = torch.__version__.split("+")[0]
        return (
            f"torch_npu is not installed; on an Ascend machine install the one that matches torch {matching}, anywhere "
            "else add EMULATE=1 to the make target, which emulates an NPU on the CPU"
        )
    try:
        importlib.import_module("torch_npu")
    except Exception as error:
        # A missing CANN shows as OSError, ImportError or RuntimeError, depending on which library is missing first.
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        return (
            f"torch_npu cannot be imported ({reason[0]}); on an Ascend machine source CANN's set_env.sh, anywhere else "
            "add EMULATE=1 to the make target"
        )
    if _npu_count() == 0:
        return (
            "torch_npu sees no NPU; on an Ascend machine check npu-smi info and ASCEND_RT_VISIBLE_DEVICES, anywhere "
            "else add EMULATE=1 to the make target"
        )
    return None


def _npu_count() -> int:
    npu = vars(torch)["npu"]  # set by torch_npu when it is imported
    return npu.device_count() if npu.is_available() else 0


def _cuda_problem() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build"
    return "torch sees no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
