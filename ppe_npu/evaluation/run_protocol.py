"""The protocol that a run used: its label in tables, and which of its numbers affect the run's benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppe_npu.evaluation.benchmarks import registry
from ppe_npu.evaluation.protocols import CHECKPOINT, load, names
from ppe_npu.utils.reading import checksum

# For each medium: the settings that do not affect it, and the options beside a protocol that do not.
_IDLE = {"image": ("video", "video_processor"), "video": ("image", "image_size", "image_processor")}
_IDLE_ASKED = {"image": ("fps", "nframes")}


def touching(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings and protocol without the numbers of the medium that its benchmark does not show; unchanged if
    the benchmark is not one of this package."""
    medium = registry.modality(settings.get("benchmark")) or ""
    idle, asked = _IDLE.get(medium, ()), _IDLE_ASKED.get(medium, ())
    found = {key: value for key, value in settings.items() if key not in idle}
    if isinstance(protocol := found.get("protocol"), Mapping):
        protocol = {key: value for key, value in protocol.items() if key not in idle}
        if isinstance(changed := protocol.get("changed"), Mapping):
            protocol["changed"] = {key: value for key, value in changed.items() if key not in asked}
        found["protocol"] = protocol
    return found


def compared_part(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of touching() by which two runs are compared: without the protocol's version and, for "checkpoint",
    without "changed", which earlier editions did not record; the sizes, frames and lengths that it would name are
    settings of their own."""
    found = touching(settings)
    if isinstance(protocol := found.get("protocol"), Mapping):
        unsaid = ("version", "changed") if protocol.get("name") == CHECKPOINT else ("version",)
        found["protocol"] = {key: value for key, value in protocol.items() if key not in unsaid}
    return found


def label(settings: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> str:
    """The label of a run's protocol in tables: its name, the options that were changed, whether options were drawn, and
    whether the protocol's numbers or the benchmark's scoring rule differed from today's when the run was made. Runs of
    the first edition, which named no protocol, used "checkpoint".

    Args:
        asked: {option: value} that was changed, if the caller knows it better than the settings do.
    """
    found = _protocol(settings)
    changed = _changed(settings) if asked is None else asked
    told = [f"{key} {value}" for key, value in sorted(changed.items())]
    told += ["options drawn"] if found.get("draws") is not None else []  # without the seed: several seeds are averaged
    told += ["of another edition"] if _is_of_another_edition(found, settings) else []
    return f"{found['name']} ({', '.join(told)})" if told else found["name"]


def labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """label() for the settings of several runs. Earlier editions did not record the options changed beside
    "checkpoint": they are taken from another run of the benchmark that records them and has the same numbers."""
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
    """Whether a run's settings may lack the options that were changed, as those of earlier editions do."""
    return _protocol(settings)["name"] == CHECKPOINT


def _numbers(settings: Mapping[str, Any]) -> str:
    """Checksum of the values, as the run used them, of the settings that options may change beside a protocol."""
    own = touching(settings)
    return checksum([own.get(key) for key in ("benchmark", "max_new_tokens", "image_size", "video")])


def _is_of_another_edition(found: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a recorded protocol, or the benchmark's scoring rule at the time, differs from today's."""
    if found["name"] not in names():
        return False
    benchmark = str(settings.get("benchmark"))
    protocol = load(found["name"]).of(benchmark)
    today = protocol.recorded()
    told = today.keys() & found.keys() - {"draws", "changed", "version"}
    edition = registry.edition(benchmark, protocol)
    another = edition is not None and settings.get("edition", 1) != edition
    return another or any(found[key] != today[key] for key in told)
