"""Training runs as YAML files of TrainConfig's keys: the package's own are given by name, all others by path."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.settings import check_some
from ppe_npu.training.args import TrainConfig
from ppe_npu.utils.reading import UnreadableError, read_json, read_yaml


def names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in resources.files(__name__).iterdir() if _is_recipe(file))


def load_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe's values, to be completed to a TrainConfig.

    Args:
        recipe: one of names(), or the path of a YAML or JSON file (a run's own train.json is one).

    Raises:
        InputError: no such recipe, a file that is no mapping, a key that TrainConfig does not have, or a value that
            it does not take.
    """
    path = os.path.expanduser(recipe)
    file = resources.files(__name__) / f"{recipe}.yaml" if recipe in names() and not os.path.isfile(path) else path
    if not os.path.lexists(file):
        raise InputError(f"recipe {recipe} is neither a file nor one of {', '.join(names())}")
    form = "JSON" if str(file).endswith(".json") else "YAML"
    try:
        values = read_json(file) if form == "JSON" else read_yaml(file)
    except UnreadableError as error:
        raise InputError(f"recipe {recipe} cannot be read as {form} ({error.why}): fix it") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe {recipe} contains a {type(values).__name__}: it must map settings to values")
    check_some(TrainConfig, values, f"recipe {recipe}")
    return values


def _is_recipe(file: Any) -> bool:
    return file.name.endswith(".yaml")
