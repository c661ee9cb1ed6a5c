"""The protocol that a run went by: how tables call it, and which of its numbers touch what its benchmark shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.protocols import CHECKPOINT, load, names
from ppe_npu.utils.reading import checksum

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


def label(settings: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> str:
    """How tables call the protocol of a run's settings: its name, what was asked for otherwise, whether options were
    drawn, and whether it had other numbers then that touch the run, or the benchmark another rule. Runs of the first
    edition, which named none, went by "checkpoint".

    Args:
        asked: {option: value} that was asked for otherwise, where that is known better than the settings say.
    """
    found = _protocol(settings)
    changed = _changed(settings) if asked is None else asked
    told = [f"{key} {value}" for key, value in sorted(changed.items())]
    told += ["options drawn"] if found.get("draws") is not None else []  # by whatever seed: several make one mean
    told += ["of another edition"] if _is_of_another_edition(found, settings) else []
    return f"{found['name']} ({', '.join(told)})" if told else found["name"]


def labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """label() of the settings of several runs. Earlier editions did not write down what was asked for beside
    "checkpoint": where another run of the benchmark says it and has the same numbers, it was asked of all of them."""
    asked: dict[str, dict[str, Any]] = {}
    numbers = [_numbers(settings) for settings in runs]
    for key, settings in zip(numbers, runs):
        asked.setdefault(key, {}).update(_changed(settings) if _unsaid(settings) else {})
    return [label(settings, asked[key] if _unsaid(settings) else None) for key, settings in zip(numbers, runs)]


def _protocol(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found = touching(settings).get("protocol")
    return found if isinstance(found, Mapping) and isinstance(found.get("name"), str) else {"name": CHECKPOINT}


def _changed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    changed = _protocol(settings).get("changed")
    return changed if isinstance(changed, Mapping) else {}


def _unsaid(settings: Mapping[str, Any]) -> bool:
    """Whether settings need not tell what was asked for in the protocol's place."""
    return _protocol(settings)["name"] == CHECKPOINT


def _numbers(settings: Mapping[str, Any]) -> str:
    """A sum of what may be asked for in a protocol's place, as it was in force."""
    own = touching(settings)
    return checksum([own.get(key) for key in ("benchmark", "max_new_tokens", "image_size", "video")])


def _is_of_another_edition(found: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a recorded protocol differs from the one of this name today, or the benchmark's rule under it."""
    if found["name"] not in names():
        return False
    benchmark = str(settings.get("benchmark"))
    protocol = load(found["name"]).of(benchmark)
    today = protocol.recorded()
    told = today.keys() & found.keys() - {"draws", "changed", "version"}
    edition = registry.edition(benchmark, protocol)
    another = edition is not None and settings.get("edition", 1) != edition
    return another or any(found[key] != today[key] for key in told)
