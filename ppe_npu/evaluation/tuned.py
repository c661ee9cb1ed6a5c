"""The compression that a model's weights were tuned with. For such weights dense is no upper bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.evaluation.results import title

_FILE = "compression.json"  # training writes it beside the weights


def tuned_with(model: str | Path) -> str | None:
    """The title of the compression that a folder's weights were tuned with; None if no file says so."""
    file = Path(model) / _FILE
    if not str(model) or not file.is_file():
        return None
    from ppe_npu.config import CompressionConfig  # imports torch, which the runner itself does not need

    try:
        return title(CompressionConfig.from_file(file).to_dict())
    except InputError:  # evaluating with this compression would report the error
        return None


def tuning_of(result: Mapping[str, Any]) -> str | None:
    """tuned_with() for a result: as recorded in it, else according to the model's folder today."""
    return result["tuned"] if "tuned" in result else tuned_with(str(result["settings"].get("model") or ""))


def sentence(results: Sequence[Mapping[str, Any]]) -> str:
    """The sentence of a report on the tuning of its runs' weights; "" if none were tuned."""
    found = list(dict.fromkeys(tuning_of(result) for result in results))
    named = " or ".join(name for name in found if name is not None)
    if not named:
        return ""
    own = " (not recorded for some runs)" if None in found else ""
    return f" The weights were tuned with {named}{own}."
