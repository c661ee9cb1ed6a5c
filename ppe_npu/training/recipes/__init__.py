"""Training runs as YAML files of TrainConfig's keys: this package's own, by name, and anybody's, by path."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line
from ppe_npu.training.args import TrainConfig


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in resources.files(__name__).iterdir() if _is_recipe(file))


def load_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe's values, to be completed and made a TrainConfig.

    Args:
        recipe: one of names(), or the path of a YAML or JSON file (a run's own train.json is one).

    Raises:
        InputError: no such recipe, a file that is no mapping, or a key that TrainConfig does not have.
    """
    import yaml

    path, own = Path(recipe).expanduser(), resources.files(__name__) / f"{recipe}.yaml"
    file = path if path.is_file() else own
    if not file.is_file():
        raise InputError(f"recipe {recipe} is neither a file nor one of {', '.join(names())}")
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.name.endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"recipe {recipe} is no YAML ({first_line(error)}): mend it") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe {recipe} holds a {type(values).__name__}: it must map settings to values")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise InputError(f"recipe {recipe} has no setting {', '.join(map(str, unknown))}: there are {', '.join(known)}")
    return values


def _is_recipe(file: Any) -> bool:
    return file.name.endswith(".yaml")
