"""A bundle's two files: written together, and refused unless they are whole and hold what this version compares.

The manifest holds the hash of the tensors, and one of its own other values. Both tell damage, not forgery: whoever can
write the files can write hashes. So names and shapes are compared with this version's cases, too.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ppe_npu.backends.parity import CASES, Case
from ppe_npu.backends.parity.run import DTYPES, case_tensors
from ppe_npu.errors import InputError
from ppe_npu.files import new_folder, write_json
from ppe_npu.parity.end_to_end import settings
from ppe_npu.parity.model import SETTINGS, build_inputs, build_model

FORMAT = "ppe_npu parity bundle 2"
RECORDED = ("fp32", "bf16")
Tensors = dict[str, torch.Tensor]
_RESULTS = {"rotary": 2, "dpc_knn": 2}  # tensors that an op returns, where it is not one
_RETIRED = "rotary_rows"  # an op of earlier versions: bundles that hold its cases are read without them


def case_place(case: Case, dtype: str) -> str:
    """What the names of a case's tensors begin with."""
    return f"{case.op}/{case.name}/{dtype}"


def model_place(setting: str, dtype: str) -> str:
    """What the names of the tiny model's results begin with."""
    return f"model/{dtype}/{setting}"


def compared() -> dict:
    """What of the manifest has to be as this version would write it."""
    return {
        "cases": [f"{case.op}: {case.name}" for case in CASES],
        "settings": {name: config.to_dict() for name, config in SETTINGS.items()},
    }


def save(folder: Path, manifest: dict, tensors: Tensors) -> None:
    """Write a bundle, or nothing."""
    with new_folder(folder) as new:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, new / "tensors.safetensors")
        manifest = manifest | {"format": FORMAT, "sha256": _digest((new / "tensors.safetensors").read_bytes())}
        write_json(new / "manifest.json", manifest | {"manifest_sha256": manifest_digest(manifest)})


def load(folder: str | Path) -> tuple[dict, Tensors]:
    """The manifest and tensors of a bundle.

    Raises:
        InputError: no bundle, a damaged one, or one that holds something else than this version compares.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        data = (folder / "tensors.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"bundle {folder} cannot be read ({error}): record or copy it again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"bundle {folder} is not in the format {FORMAT!r}: record it with this version of ppe_npu")
    for file, key, found in (
        ("manifest.json", "manifest_sha256", manifest_digest(manifest)),
        ("tensors.safetensors", "sha256", _digest(data)),
    ):
        if manifest.get(key) != found:
            raise InputError(f"bundle {folder} is damaged: {file} is not as it was recorded; copy it again")
    _check_manifest(folder, manifest)
    try:
        tensors = load_file(folder / "tensors.safetensors")
    except SafetensorError as error:
        raise InputError(f"bundle {folder} cannot be read ({error}): record or copy it again") from None
    _check_tensors(folder, tensors, expected(manifest["dtypes"], manifest["not_recorded"]))
    return manifest, tensors


def manifest_digest(manifest: dict) -> str:
    """Hash of all of a manifest but this hash, whatever the order of its keys and its spaces."""
    values = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return _digest(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def expected(dtypes: list[str], not_recorded: list[str]) -> dict[str, tuple | None]:
    """name -> shape of every tensor that a bundle has to hold; None for results, whose shapes are compared later."""
    model = build_model()
    names = {f"model/weights/{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    for dtype in dtypes:
        for name, value in build_inputs().items():
            if dtype == "fp32" or not name.startswith("pixel"):
                names[f"model/{dtype}/inputs/{name}"] = tuple(value.shape)
        if dtype != "fp32":
            names[f"model/{dtype}/inputs/inputs_embeds"] = (
                *build_inputs()["input_ids"].shape,
                model.config.text_config.hidden_size,
            )
        for case in CASES:
            place = case_place(case, dtype)
            if place not in not_recorded:
                shapes = [tuple(tensor.shape) for tensor in case_tensors(case, DTYPES[dtype])]
                names |= {f"{place}/inputs/{n}": shape for n, shape in enumerate(shapes)}
                names |= {f"{place}/forward/{n}": None for n in range(_RESULTS.get(case.op, 1))}
                names |= {f"{place}/grad/{n}": None for n in range(len(case.grads))}
        for setting in settings(dtype):
            if model_place(setting, dtype) not in not_recorded:
                results = ("logits", "losses", "gradients", *(("ids",) if dtype == "fp32" else ()))
                names |= {f"{model_place(setting, dtype)}/{name}": None for name in results}
    return names


def _check_manifest(folder: Path, manifest: dict) -> None:
    for key, value in compared().items():
        given = manifest.get(key)
        if key == "cases" and isinstance(given, list):
            given = [case for case in given if not str(case).startswith(f"{_RETIRED}:")]
        if given != value:
            raise InputError(f"bundle {folder} holds other {key} than this version of ppe_npu has: record it again")
    dtypes = manifest.get("dtypes")
    if not isinstance(dtypes, list) or not dtypes or any(dtype not in RECORDED for dtype in dtypes):
        raise InputError(f"bundle {folder} has dtypes {dtypes!r}, not some of {', '.join(RECORDED)}: record it again")
    places = [case_place(case, dtype) for dtype in dtypes for case in CASES]
    places += [model_place(setting, dtype) for dtype in dtypes for setting in settings(dtype)]
    missing = manifest.get("not_recorded")
    if not isinstance(missing, list) or any(place not in places for place in missing):
        raise InputError(f"bundle {folder} says of {missing!r} that it was not recorded: record it again")


def _check_tensors(folder: Path, tensors: Tensors, names: dict[str, tuple | None]) -> None:
    held = {name for name in tensors if not name.startswith(f"{_RETIRED}/")}
    lacking, foreign = sorted(names.keys() - held), sorted(held - names.keys())
    if lacking or foreign:
        what = f"lacks {lacking[0]}" if lacking else f"holds {foreign[0]}, which nothing compares"
        raise InputError(f"bundle {folder} {what}: record it again with this version of ppe_npu")
    for name, shape in names.items():
        if shape is not None and tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape)
            raise InputError(f"bundle {folder} has {name} of {found}, not {list(shape)}: record it again")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
