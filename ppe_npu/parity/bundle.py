"""What one machine computed, in files that another one checks: parity across machines that never meet.

    ppe-npu parity record --device cuda --out bundle/     # on one machine
    ppe-npu parity check bundle/ --device npu             # on another

A bundle is a folder: manifest.json (format, versions, device, seed, errors against fp64, and the hash of the other
file) and tensors.safetensors (inputs, results and gradients of every operator's cases; the tiny model's weights, inputs
and results under every setting). The machine that checks needs no random numbers of the one that recorded.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.backends.parity import CASES, Case, Row, compare
from ppe_npu.backends.parity.run import DTYPES, CaseRun
from ppe_npu.errors import InputError
from ppe_npu.files import new_folder, write_json
from ppe_npu.parity.end_to_end import Results, rows_of, run, run_references, settings
from ppe_npu.parity.model import SETTINGS, build_inputs, build_model, with_features

FORMAT, SEED = "ppe_npu parity bundle 1", 0
RECORDED = ("fp32", "bf16")
_GRADIENTS = 2048  # so many of a model's gradients are kept, evenly spread
Tensors = dict[str, torch.Tensor]


def record(device: torch.device, folder: str | Path) -> list[Row]:
    """Compute everything on a device and write the bundle; gives the rows of errors against fp64.

    Raises:
        InputError: the folder exists and is no bundle.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise InputError(f"bundle {folder} exists and holds no manifest.json: name a new folder")
    tensors: Tensors = {}
    rows = [row for dtype in _dtypes(device) for case in CASES for row in _record_case(case, dtype, device, tensors)]
    model, inputs = build_model(SEED), build_inputs(SEED)
    tensors |= {f"model/weights/{name}": value for name, value in model.state_dict().items()}
    for dtype in _dtypes(device):
        given = inputs if dtype == "fp32" else with_features(model.to(DTYPES[dtype]), inputs)
        tensors |= {f"model/{dtype}/inputs/{name}": value for name, value in given.items()}
        model = model.float()
        model.load_state_dict(_named(tensors, "model/weights/"))
        rows += [row for setting in settings(dtype) for row in _record_model(setting, dtype, device, tensors)]
    manifest = {
        "format": FORMAT,
        "device": devices.describe(device),
        "versions": {name: version(name) for name in ("torch", "transformers", "ppe-npu", "numpy")},
        "seed": SEED,
        "dtypes": _dtypes(device),
        "cases": [f"{case.op}: {case.name}" for case in CASES],
        "settings": {name: config.to_dict() for name, config in SETTINGS.items()},
        "rows": [vars(row) for row in rows],
    }
    with new_folder(folder) as new:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, new / "tensors.safetensors")
        write_json(new / "manifest.json", manifest | {"sha256": _digest(new / "tensors.safetensors")})
    return rows


def check(folder: str | Path, device: torch.device) -> list[Row]:
    """Compute everything anew on a device and compare it with what the bundle holds.

    Two devices may differ by what each may differ from fp64.

    Raises:
        InputError: no bundle, a damaged one, or one that other cases were recorded in.
    """
    manifest, tensors = load(folder)
    rows = []
    for dtype in manifest["dtypes"]:
        if not devices.supports(device, DTYPES[dtype]):
            rows.append(Row.unsupported("all", dtype, device))
            continue
        rows += [row for case in CASES for row in _check_case(case, dtype, device, tensors)]
        rows += [row for setting in settings(dtype) for row in _check_model(setting, dtype, device, tensors)]
    return rows


def load(folder: str | Path) -> tuple[dict, Tensors]:
    """The manifest and tensors of a bundle; see check() for errors."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found = _digest(folder / "tensors.safetensors")
    except (OSError, ValueError) as error:
        raise InputError(f"bundle {folder} cannot be read ({error}): record or copy it again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"bundle {folder} is not in the format {FORMAT!r}: record it with this version of ppe_npu")
    if manifest.get("sha256") != found:
        raise InputError(f"bundle {folder} is damaged: tensors.safetensors is not the recorded file; copy it again")
    ours = {"cases": [f"{case.op}: {case.name}" for case in CASES]}
    ours["settings"] = {name: config.to_dict() for name, config in SETTINGS.items()}
    for key, value in ours.items():
        if manifest.get(key) != value:
            raise InputError(f"bundle {folder} holds other {key} than this version of ppe_npu has: record it again")
    try:
        return manifest, load_file(folder / "tensors.safetensors")
    except SafetensorError as error:
        raise InputError(f"bundle {folder} cannot be read ({error}): record or copy it again") from None


# -- operators --------------------------------------------------------------------------------------------------------


def _record_case(case: Case, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    run_ = CaseRun(case, dtype)
    results = run_.on(device)
    place = _place(case, dtype)
    for kind, values in (("inputs", run_.tensors), ("forward", results.forward), ("grad", results.grad)):
        tensors |= {f"{place}/{kind}/{n}": value.detach().cpu() for n, value in enumerate(values)}
    return [_row(case, dtype, direction, run_.shapes, *run_.error(results, direction)) for direction in run_.directions]


def _check_case(case: Case, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    place = _place(case, dtype)
    run_ = CaseRun(case, dtype, given=_listed(tensors, f"{place}/inputs/"))
    try:
        results = run_.on(device)
    except Exception as error:
        return [Row.failed(case.op, case.name, run_.shapes, dtype, "-", error)]
    rows = []
    for direction in run_.directions:
        recorded = _listed(tensors, f"{place}/{direction}/")
        own, bound = run_.error(results, direction)
        apart = run_.distance(getattr(results, direction), recorded)
        # Both may be off by the bound, to either side; ours has to keep it by itself.
        rows.append(_row(case, dtype, direction, run_.shapes, max(apart / 2, own), bound))
    return rows


def _row(case: Case, dtype: str, direction: str, shapes: str, error: float, bound: float) -> Row:
    chosen = dispatch.chosen().get(case.op, "-")
    return Row(case.op, case.name, shapes, dtype, direction, chosen, error, bound, error <= bound)


def _place(case: Case, dtype: str) -> str:
    return f"{case.op}/{case.name}/{dtype}"


# -- the tiny model ---------------------------------------------------------------------------------------------------


def _record_model(setting: str, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    ours, rows = _run_model(setting, dtype, device, tensors)
    tensors |= {f"model/{dtype}/{setting}/{name}": value for name, value in _kept(ours).items()}
    return rows


def _check_model(setting: str, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    ours, rows = _run_model(setting, dtype, device, tensors)
    kept, recorded = _kept(ours), _named(tensors, f"model/{dtype}/{setting}/")
    out = []
    for row in rows:
        name = {"greedy ids": "ids"}.get(row.case.partition(": ")[2], row.case.partition(": ")[2])
        apart = compare.relative_rms(kept[name], recorded[name])
        error = max(apart / 2, row.error)
        out.append(Row(**vars(row) | {"error": error, "ok": error <= row.allowed}))
    return out


def _run_model(setting: str, dtype: str, device: torch.device, tensors: Tensors) -> tuple[Results, list[Row]]:
    model = build_model(SEED)
    model.load_state_dict(_named(tensors, "model/weights/"))
    inputs = _named(tensors, f"model/{dtype}/inputs/")
    references = run_references(model, inputs, setting, dtype)
    dispatch.reset()
    ours = run(model, inputs, SETTINGS[setting], device, DTYPES[dtype], fused=True)
    return ours, rows_of(setting, dtype, ours, *references)


def _kept(results: Results) -> Tensors:
    """What of the results a bundle holds."""
    gradients = torch.cat([gradient.flatten() for gradient in results.gradients.values()])
    few = gradients[:: max(len(gradients) // _GRADIENTS, 1)]
    ids = {} if results.ids is None else {"ids": results.ids}
    return {"logits": results.logits, "losses": results.losses, "gradients": few, **ids}


# -- files ------------------------------------------------------------------------------------------------------------


def _dtypes(device: torch.device) -> list[str]:
    return [name for name in RECORDED if devices.supports(device, DTYPES[name])]


def _named(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _listed(tensors: Tensors, prefix: str) -> list[torch.Tensor]:
    named = _named(tensors, prefix)
    return [named[str(n)] for n in range(len(named))]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
