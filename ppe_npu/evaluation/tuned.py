"""What a model's weights were tuned with: dense is no upper bound for weights that learned compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.results import title

_FILE = "compression.json"  # a run of training leaves it beside the weights


def tuned_with(model: str | Path) -> str | None:
    """How reports call the compression that a folder's weights were tuned with; None where nothing says so."""
    file = Path(model) / _FILE
    if not str(model) or not file.is_file():
        return None
    from ppe_npu.config import CompressionConfig  # it loads torch, which the runner does without

    try:
        return title(CompressionConfig.from_file(file).to_dict())
    except InputError:  # whoever evaluates by it is told
        return None


def tuning_of(result: Mapping[str, Any]) -> str | None:
    """tuned_with() of a result: as it was noted then, else as the folder says now."""
    return result["tuned"] if "tuned" in result else tuned_with(str(result["settings"].get("model") or ""))


def sentence(results: Sequence[Mapping[str, Any]]) -> str:
    """What a report says of its runs' weights."""
    found = list(dict.fromkeys(tuning_of(result) for result in results))
    named = " or ".join(name for name in found if name is not None)
    if not named:
        return ""
    own = " (of some runs nothing says so)" if None in found else ""
    return f" The weights were tuned with {named}{own}."
