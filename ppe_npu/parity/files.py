"""Writes the two files of a bundle together, and refuses them unless they are intact and match this version's cases.

The manifest holds a hash of the tensors, and a hash of its own other values. They detect damage, but not forgery,
because anyone who can write them can write hashes; so names and shapes are compared with this version's cases too.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file

from ppe_npu.backends.parity import CASES, Case
from ppe_npu.backends.parity.run import DTYPES, case_tensors
from ppe_npu.errors import InputError, first_line
from ppe_npu.files import new_folder, write_json
from ppe_npu.parity.end_to_end import settings
from ppe_npu.parity.model import SETTINGS, parity_inputs, parity_model
from ppe_npu.utils.reading import json_or_none

FORMAT = "ppe_npu parity bundle 2"
RECORDED = ("fp32", "bf16")
LARGEST = 256 * 2**20  # bytes of a file, at most; a bundle has 5 MB
Tensors = dict[str, torch.Tensor]
_RESULTS = {"rotary": 2, "dpc_knn": 2}  # number of tensors that an op returns, if not one
# Inputs that are not drawn. They are compared exactly, because bf16 results may not show small changes to them.
_FIXED = ("attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
_RETIRED = "rotary_rows"  # an op of earlier versions: bundles that hold its cases are read without them
_ADDED = (
    "attention: key bias",
    "attention: key bias, decoding",
    "attention: key bias in segments",
)  # older ones lack them


def case_place(case: Case, dtype: str) -> str:
    """The prefix of the names of a case's tensors."""
    return f"{case.op}/{case.name}/{dtype}"


def cotangents_place(case: Case) -> str:
    """The prefix of the names of a case's cotangents, which are the same in every dtype."""
    return f"{case.op}/{case.name}/cotangents/"


def model_place(setting: str, dtype: str) -> str:
    """The prefix of the names of the tiny model's results."""
    return f"model/{dtype}/{setting}"


def fixed_part() -> dict:
    """The part of the manifest that must equal what this version writes."""
    return {
        "cases": [_title(case) for case in CASES],
        "settings": {name: config.to_dict() for name, config in SETTINGS.items()},
    }


def cases_of(manifest: dict) -> list[Case]:
    """The operators' cases that a bundle holds."""
    return [case for case in CASES if _title(case) in manifest["cases"]]


def _title(case: Case) -> str:
    return f"{case.op}: {case.name}"


def save(folder: Path, manifest: dict, tensors: Tensors) -> None:
    """Write a whole bundle, or nothing."""
    with new_folder(folder) as new:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, new / "tensors.safetensors")
        manifest = manifest | {"format": FORMAT, "sha256": _digest((new / "tensors.safetensors").read_bytes())}
        write_json(new / "manifest.json", manifest | {"manifest_sha256": manifest_digest(manifest)})


def check_replaceable(folder: Path) -> None:
    """Raise InputError for an existing folder or file that is not a bundle, because only bundles are overwritten."""
    if not folder.exists():
        return
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError:  # a file
        names = set()
    said = json_or_none(folder / "manifest.json")
    if not isinstance(said, dict) or not str(said.get("format")).startswith(FORMAT.rstrip("0123456789")):
        raise InputError(f"bundle {folder} exists and holds no manifest.json of a bundle: name a new folder")
    if strange := sorted(names - {"manifest.json", "tensors.safetensors"}):
        raise InputError(f"bundle {folder} holds {strange[0]}, which is no part of a bundle: name a new folder")


def load(folder: str | Path) -> tuple[dict, Tensors]:
    """The manifest and tensors of a bundle.

    Raises:
        InputError: not a bundle, a damaged one, or one whose contents differ from what this version compares.
    """
    folder = Path(folder)
    for name in ("manifest.json", "tensors.safetensors"):
        _check_size(folder, name)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        data = (folder / "tensors.safetensors").read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"bundle {folder} cannot be read ({first_line(error)}): record or copy it again") from None
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
        tensors = read_tensors(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # a dtype that torch lacks, say
        raise InputError(f"bundle {folder} cannot be read ({first_line(error)}): record or copy it again") from None
    names = expected(manifest)
    if not any("/cotangents/" in name for name in tensors):  # recorded by the first edition
        names = {name: value for name, value in names.items() if "/cotangents/" not in name}
    _check_tensors(folder, tensors, names)
    return manifest, tensors


def manifest_digest(manifest: dict) -> str:
    """Hash of a manifest without this hash, independent of the order of keys and of white space."""
    values = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return _digest(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def expected(manifest: dict) -> dict[str, torch.Tensor | None]:
    """name -> an example of the tensor's shape, dtype and values, for every tensor that a bundle must hold; None for
    results and cotangents, which are checked later."""
    dtypes, not_recorded = manifest["dtypes"], manifest["not_recorded"]
    model, inputs = parity_model(), parity_inputs()
    names: dict[str, torch.Tensor | None] = {f"model/weights/{key}": value for key, value in model.state_dict().items()}
    for dtype in dtypes:
        given = {name: value for name, value in inputs.items() if dtype == "fp32" or not name.startswith("pixel")}
        if dtype != "fp32":
            shape = (*inputs["input_ids"].shape, model.config.text_config.hidden_size)
            given["inputs_embeds"] = torch.zeros(shape, dtype=DTYPES[dtype])
        names |= {f"model/{dtype}/inputs/{name}": value for name, value in given.items()}
        for case in cases_of(manifest):
            place = case_place(case, dtype)
            if place not in not_recorded:
                drawn = case_tensors(case, DTYPES[dtype])
                names |= {f"{place}/inputs/{n}": tensor for n, tensor in enumerate(drawn)}
                names |= {f"{place}/forward/{n}": None for n in range(_RESULTS.get(case.op, 1))}
                names |= {f"{place}/grad/{n}": None for n in range(len(case.grads))}
                weights = range(_RESULTS.get(case.op, 1) if case.grads else 0)
                names |= {f"{cotangents_place(case)}{n}": None for n in weights}
        for setting in settings(dtype):
            if model_place(setting, dtype) not in not_recorded:
                results = ("logits", "losses", "gradients", *(("ids",) if dtype == "fp32" else ()))
                names |= {f"{model_place(setting, dtype)}/{name}": None for name in results}
    return names


def _check_manifest(folder: Path, manifest: dict) -> None:
    for key, value in fixed_part().items():
        given = manifest.get(key)
        if key == "cases" and isinstance(given, list):
            given = [case for case in given if not str(case).startswith(f"{_RETIRED}:")]
        if given != value and given != [case for case in value if case not in _ADDED]:
            raise InputError(f"bundle {folder} has other {key} than this version of ppe_npu: record it again")
    dtypes = manifest.get("dtypes")
    if not isinstance(dtypes, list) or not dtypes or any(dtype not in RECORDED for dtype in dtypes):
        raise InputError(f"bundle {folder} has dtypes {dtypes!r}, not some of {', '.join(RECORDED)}: record it again")
    places = [case_place(case, dtype) for dtype in dtypes for case in CASES]
    places += [model_place(setting, dtype) for dtype in dtypes for setting in settings(dtype)]
    missing = manifest.get("not_recorded")
    if not isinstance(missing, list) or any(place not in places for place in missing):
        raise InputError(f"bundle {folder} has not_recorded={missing!r}, not a list of cases: record it again")


def _check_size(folder: Path, name: str) -> None:
    """Raise InputError unless the path is an existing file that is no larger than a bundle's file can be."""
    file = folder / name
    try:
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"bundle {folder} cannot be read ({first_line(error)}): record or copy it again") from None
    if size is None:
        raise InputError(f"bundle {folder} cannot be read (it has no file {name}): record or copy it again")
    if size > LARGEST:
        raise InputError(f"bundle {folder} cannot be read ({name} has {size:,} bytes, too many): copy it again")


def _check_tensors(folder: Path, tensors: Tensors, names: dict[str, torch.Tensor | None]) -> None:
    held = {name for name in tensors if not name.startswith(f"{_RETIRED}/")}
    lacking, foreign = sorted(names.keys() - held), sorted(held - names.keys())
    if lacking or foreign:
        what = f"lacks {lacking[0]}" if lacking else f"holds {foreign[0]}, which nothing compares"
        raise InputError(f"bundle {folder} {what}: record it again with this version of ppe_npu")
    for name, wanted in names.items():
        if wanted is None:
            continue
        found = tensors[name]
        for what in ("shape", "dtype"):
            is_, shall = ((list(t.shape) if what == "shape" else t.dtype) for t in (found, wanted))
            if is_ != shall:
                raise InputError(f"bundle {folder} has {name} of {is_}, not {shall}: record it again")
        if name.startswith("model/") and name.rpartition("/")[2] in _FIXED and not found.equal(wanted):
            raise InputError(f"bundle {folder} has another {name} than this version of ppe_npu: record it again")
        # Our additive masks are -inf where attention is forbidden; all other inputs must be finite.
        masked = wanted.isinf().any()
        _check_finite(folder, name, found.masked_fill(found == -torch.inf, 0) if masked else found)
    for name, found in tensors.items():
        if "/cotangents/" in name:
            if found.dtype is not torch.bfloat16:
                raise InputError(f"bundle {folder} has {name} of {found.dtype}, not torch.bfloat16: record it again")
            _check_finite(folder, name, found)


def _check_finite(folder: Path, name: str, found: torch.Tensor) -> None:
    if not found.isfinite().all():
        raise InputError(f"bundle {folder} has numbers in {name} that are not finite: record it again")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
