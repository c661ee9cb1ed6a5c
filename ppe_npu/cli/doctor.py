"""`ppe-npu doctor`: prints what this machine has and what runs on it, to be sent with a bug report."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from ppe_npu import __version__
from ppe_npu.cli import no_torch
from ppe_npu.cli.output import print_json

_NEEDED = ("torch", "transformers", "accelerate", "numpy", "pillow", "av", "safetensors", "tokenizers", "torchvision")
_OPTIONAL = {  # package -> its use, and the command or extra that uses it
    "deepspeed": "ZeRO (train)",
    "peft": "LoRA, DoRA (train)",
    "bitsandbytes": "QLoRA (train, CUDA)",
    "tensorboard": "curves (train)",
    "wandb": "curves (train)",
    "matplotlib": "plots (train, eval)",
    "pyyaml": "recipes (train, eval)",
    "pyarrow": "parquet (eval)",
    "nltk": "one benchmark (eval)",
    "lmms-eval": "lmms-eval's tasks",
    "gradio": "the explorer (app)",
    "shtab": "shell completion",
    "vllm": "serve",
    "triton": "CUDA kernels",
    "flash-attn": "CUDA attention",
    "liger-kernel": "CUDA kernels",
    "torch_npu": "Ascend NPUs",
}
# The environment variables that affect this package. No others are shown, because they may hold secrets.
_VARIABLES = (
    *("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_RT_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TRITON_INTERPRET", "TORCH_DEVICE_BACKEND_AUTOLOAD", "HF_HUB_OFFLINE"),
    *("HF_HOME", "WORLD_SIZE", "PPE_NPU_DEBUG"),
)

_SAID = ("there", "why", "name", "kind", "torch")  # facts of a device that are not repeated in brackets


def run_doctor(args: argparse.Namespace) -> int:
    """Print the findings; exit code 1 if something that every command needs is missing."""
    found = examined()
    if args.json:
        print_json(args, found)
    else:
        print(_page(found))
    return 1 if found["problems"] else 0


def examined() -> dict[str, Any]:
    """All that the command prints, as JSON values. Devices are examined only if torch can be imported."""
    versions = {name: _version(name) for name in _NEEDED}
    problems = [f"{name} is not installed" for name, version in versions.items() if version is None]
    kinds: dict[str, dict[str, Any]] = {}
    known: dict[str, Any] = {"auto": None, "operators": {}}
    threads: int | None = None
    try:
        import torch

        from ppe_npu.backends import device as devices

        versions["torch"] = torch.__version__  # with its build ("+cpu", "+cu130"), which package metadata may lack
        threads = torch.get_num_threads()
        kinds = {kind: _device(devices, kind) for kind in devices.KINDS}
        there = {kind: found["there"] for kind, found in kinds.items()}
        known = {"auto": devices.resolve("auto").type, "operators": _operators(there)}
    except Exception as error:
        if (why := no_torch(error)) is None:
            raise
        problems += [why] if versions["torch"] else []
    return {
        "ppe_npu": __version__,
        "from": str(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "optional": {name: {"version": _version(name), "for": what} for name, what in _OPTIONAL.items()},
        "devices": kinds,
        **known,
        "memory": _memory(),
        "threads": {"cores": os.cpu_count(), "torch": threads},
        "disk": {where: _disk(where) for where in (".", _cache())},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "problems": problems,
        "untested": _untested(),
    }


def _untested() -> list[str]:
    """A line for each installed package whose version is outside this package's requirements."""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in importlib.metadata.requires("ppe-npu") or ()]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return []
    found = {}
    for one in wanted:
        version = _version(one.name)
        if version is not None and not one.specifier.contains(version, prereleases=True):
            found[one.name] = f"{one.name} {version} is not tested with this package, which requires {one.specifier}"
    return list(found.values())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(devices: Any, kind: str) -> dict[str, Any]:
    """Whether there is a device of this kind, with its facts, or the reason why there is none."""
    try:
        facts = devices.describe(devices.resolve(kind))
    except devices.DeviceError as error:
        return {"there": False, "why": str(error)}
    return {"there": True, **{key: str(value) for key, value in facts.items()}}


def _operators(kinds: dict[str, bool]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{kind: {op: [{"name", "runs", "why", "automatic"}]}}, best first. One that runs may still refuse some calls.

    Args:
        kinds: whether there is a device of each kind.
    """
    from ppe_npu.backends import dispatch

    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, there in kinds.items():
        for op in dispatch.ops():
            rows = []
            for entry in dispatch.candidates(op, kind):
                why = "; ".join(filter(None, (None if there else f"no {kind} device", entry.missing()))) or None
                rows.append({"name": entry.name, "runs": why is None, "why": why, "automatic": entry.automatic})
            found.setdefault(kind, {})[op] = rows
    return found


def _memory() -> dict[str, int] | None:
    """{"total", "free"} bytes of this machine's memory; memory that the system uses as a file cache counts as free.
    None without psutil, which comes with accelerate, or if the system does not report its memory."""
    try:
        import psutil

        memory = psutil.virtual_memory()
    except (ImportError, OSError, RuntimeError):
        return None
    return {"total": memory.total, "free": memory.available}


def _disk(where: str) -> dict[str, int] | None:
    """{"total", "free"} bytes of the disk that holds a folder, or would hold it; None if no part of its path exists."""
    path = Path(where).resolve()
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    if there is None:
        return None
    usage = shutil.disk_usage(there)
    return {"total": usage.total, "free": usage.free}


def _cache() -> str:
    """The folder in which checkpoints from the hub are cached."""
    return os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")


def _page(found: dict[str, Any]) -> str:
    lines = [f"ppe-npu {found['ppe_npu']} in {found['from']}", f"Python {found['python']} on {found['system']}", ""]
    lines += [
        "needed      " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in found["versions"].items())
    ]
    there = [f"{name} {row['version']}" for name, row in found["optional"].items() if row["version"]]
    absent = [f"{name}: {row['for']}" for name, row in found["optional"].items() if not row["version"]]
    lines += ["optional    " + (", ".join(there) or "none"), "absent      " + ("; ".join(absent) or "none"), ""]
    for kind, row in found["devices"].items():
        facts = ", ".join(f"{key} {value}" for key, value in row.items() if key not in _SAID)
        lines.append(f"{kind:<12}" + (f"{row['name']}" + f" ({facts})" * bool(facts) if row["there"] else row["why"]))
    lines += [f"auto        {found['auto'] or 'none: see the problem below'}", ""]
    for kind, ops in found["operators"].items():
        lines.append(f"operators on {kind}, best first; [in brackets: those that cannot run here, and why]")
        if not found["devices"][kind]["there"]:
            names = dict.fromkeys(row["name"] for rows in ops.values() for row in rows if row["name"] != "reference")
            lines.append(f"  [{', '.join(names)}: no {kind} device]")
            continue
        for op, rows in ops.items():
            said = [row["name"] + ("" if row["automatic"] else " (by name)") for row in rows if row["runs"]]
            said += [f"[{row['name']}: {row['why']}]" for row in rows if not row["runs"]]
            lines.append(f"  {op:<22}{', '.join(said)}")
    memory, threads = found["memory"], found["threads"]
    lines += [
        "",
        "memory      " + ("unknown" if memory is None else f"{_gib(memory['free'])} free of {_gib(memory['total'])}"),
    ]
    lines += [f"threads     {threads['torch'] or 'none'} used by torch, {threads['cores']} cores"]
    for where, disk in found["disk"].items():
        lines.append(
            f"disk        {where}: "
            + ("unknown" if disk is None else f"{_gib(disk['free'])} free of {_gib(disk['total'])}")
        )
    lines += [
        "environment " + (", ".join(f"{name}={value}" for name, value in found["environment"].items()) or "nothing set")
    ]
    lines += ["", *(f"NOTE: {note}" for note in found["untested"])]
    lines += [f"PROBLEM: {problem}" for problem in found["problems"]]
    lines.append("In a bug report, include all of this, the command, and what it prints with PPE_NPU_DEBUG=1 set.")
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
