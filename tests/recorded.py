"""What the published codes chose on small structured inputs: their recorded runs, in tests/data/methods.

One file per method. Its metadata names the source (repository, commit, lines) and holds the settings of each case.
Tensors are named `case.name`; integers were stored as int32 and come back as int64.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "data" / "methods"


def cases(method: str) -> dict[str, tuple[dict, dict[str, torch.Tensor]]]:
    """{case: (settings, tensors)} of a method's recorded cases."""
    with safe_open(FOLDER / f"{method}.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["cases"])
        found = {case: (values, {}) for case, values in settings.items()}
        names = file.keys()
        for key in names:
            case, name = key.split(".", 1)
            tensor = file.get_tensor(key)
            found[case][1][name] = tensor if tensor.is_floating_point() else tensor.long()
    return found


def case_names(method: str) -> list[str]:
    """The names of a method's cases, for pytest.mark.parametrize; reads no tensors."""
    with safe_open(FOLDER / f"{method}.safetensors", "pt") as file:
        return sorted(json.loads(file.metadata()["cases"]))
