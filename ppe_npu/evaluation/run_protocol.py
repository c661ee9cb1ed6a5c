"""The protocol that a run went by: how tables call it, and which of its numbers touch what its benchmark shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.protocols import CHECKPOINT, load, names

# Of a medium, the settings that do not touch it, and what may be asked for beside a protocol that does not.
_IDLE = {"image": ("video", "video_processor"), "video": ("image", "image_size", "image_processor")}
_IDLE_ASKED = {"image": ("fps", "nframes")}


def touching(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, and the protocol in them, without the numbers of the medium that its benchmark does not show;
    all of them where the benchmark is none of ours."""
    medium = registry.modality(settings.get("benchmark")) or ""
    idle, asked = _IDLE.get(medium, ()), _IDLE_ASKED.get(medium, ())
    found = {key: value for key, value in settings.items() if key not in idle}
    if isinstance(protocol := found.get("protocol"), Mapping):
        protocol = {key: value for key, value in protocol.items() if key not in idle}
        if isinstance(changed := protocol.get("changed"), Mapping):
            protocol["changed"] = {key: value for key, value in changed.items() if key not in asked}
        found["protocol"] = protocol
    return found


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """touching(), by which a run is told from another: without words on a protocol's version; and of "checkpoint"
    without what was asked for in its place, which earlier editions did not write down there: the sizes, frames and
    lengths are settings of their own."""
    found = touching(settings)
    if isinstance(protocol := found.get("protocol"), Mapping):
        unsaid = ("version", "changed") if protocol.get("name") == CHECKPOINT else ("version",)
        found["protocol"] = {key: value for key, value in protocol.items() if key not in unsaid}
    return found


def label(settings: Mapping[str, Any]) -> str:
    """How tables call the protocol of a run's settings: its name, what was asked for otherwise, whether options were
    drawn, and whether its file had other numbers then that touch the run. Runs of the first edition, which named none,
    went by "checkpoint"."""
    found = touching(settings).get("protocol")
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        return CHECKPOINT
    changed = found.get("changed")
    changed = changed if isinstance(changed, Mapping) else {}
    told = [f"{key} {value}" for key, value in sorted(changed.items())]
    told += ["options drawn"] if found.get("draws") is not None else []  # by whatever seed: several make one mean
    told += ["of another edition"] if _has_other_numbers(found) else []
    return f"{found['name']} ({', '.join(told)})" if told else found["name"]


def _has_other_numbers(found: Mapping[str, Any]) -> bool:
    """Whether a recorded protocol differs from the one of this name today."""
    if found["name"] not in names():
        return False
    today = load(found["name"]).recorded()
    told = today.keys() & found.keys() - {"draws", "changed", "version"}
    return any(found[key] != today[key] for key in told)
