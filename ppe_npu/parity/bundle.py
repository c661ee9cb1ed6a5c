"""What one machine computed, in files that another one checks: parity across machines that never meet.

    ppe-npu parity record --device cuda --out bundle/     # on one machine
    ppe-npu parity check bundle/ --device npu             # on another

A bundle is a folder (files.py): manifest.json (format, versions, device, seed, errors against fp64, what failed, and
hashes) and tensors.safetensors (inputs, results and gradients of every operator's cases; the tiny model's weights,
inputs and results under every setting). The checking machine does not have to draw the same random numbers.
Bundles of the first edition hold no cotangents; these are drawn again, which gives the same numbers on CPUs with AVX2.
A computation that fails gives a row, when recording and when checking; the others continue.
"""

import math
from importlib.metadata import version
from pathlib import Path

import torch

from ppe_npu import __version__
from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.backends.parity import CASES, Case, Row, compare
from ppe_npu.backends.parity.run import DTYPES, CaseRun
from ppe_npu.errors import InputError
from ppe_npu.files import check_writable
from ppe_npu.parity.end_to_end import ModelResults, rows_of, run, run_references, settings
from ppe_npu.parity.files import (
    RECORDED,
    Tensors,
    case_place,
    cases_of,
    check_replaceable,
    cotangents_place,
    fixed_part,
    load,
    model_place,
    save,
)
from ppe_npu.parity.model import SETTINGS, parity_inputs, parity_model, with_features

SEED = 0
_GRADIENTS = 2048  # elements of a model's gradients that a bundle keeps, evenly spread


def record(device: torch.device, folder: str | Path) -> list[Row]:
    """Compute everything on a device and write the bundle; returns the rows of errors against fp64.

    A computation that fails gives a row and is listed in the manifest's not_recorded.

    Raises:
        InputError: the folder exists and is no bundle.
        FileError: it cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    check_writable(folder)  # before anything is computed
    tensors: Tensors = {}
    missing: list[str] = []
    rows: list[Row] = []
    for dtype in _dtypes(device):
        for case in CASES:
            rows += _record_case(case, dtype, device, tensors, missing)
    model, inputs = parity_model(SEED), parity_inputs(SEED)
    tensors |= {f"model/weights/{name}": value for name, value in model.state_dict().items()}
    for dtype in _dtypes(device):
        given = inputs if dtype == "fp32" else with_features(model.to(DTYPES[dtype]), inputs)
        tensors |= {f"model/{dtype}/inputs/{name}": value for name, value in given.items()}
        model = model.float()
        model.load_state_dict(_named(tensors, "model/weights/"))
        for setting in settings(dtype):
            rows += _record_model(setting, dtype, device, tensors, missing)
    manifest = {
        "device": devices.describe(device),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")} | {"ppe-npu": __version__},
        "seed": SEED,
        "dtypes": _dtypes(device),
        "not_recorded": missing,
        "rows": [vars(row) | {name: _json(getattr(row, name)) for name in ("error", "allowed")} for row in rows],
    }
    save(folder, manifest | fixed_part(), tensors)
    return rows


def check(folder: str | Path, device: torch.device) -> list[Row]:
    """Compute everything again on a device and compare it with the bundle.

    Two devices may differ by twice the error that each is allowed against fp64.

    Raises:
        InputError: not a bundle, a damaged one, one with other cases, or one with no dtype that the device supports.
    """
    manifest, tensors = load(folder)
    missing, rows = manifest["not_recorded"], []
    if not any(devices.supports(device, DTYPES[dtype]) for dtype in manifest["dtypes"]):
        held = ", ".join(manifest["dtypes"])
        raise InputError(f"bundle {folder} holds {held}, which {device.type} does not support: use another device")
    for dtype in manifest["dtypes"]:
        if not devices.supports(device, DTYPES[dtype]):
            rows.append(Row.unsupported("all", dtype, device))
            continue
        for case in cases_of(manifest):
            absent = case_place(case, dtype) in missing
            rows += [Row.absent(case.op, case.name, dtype)] if absent else _check_case(case, dtype, device, tensors)
        for setting in settings(dtype):
            absent = model_place(setting, dtype) in missing
            rows += [Row.absent("model", setting, dtype)] if absent else _check_model(setting, dtype, device, tensors)
    return rows


# -- operators --------------------------------------------------------------------------------------------------------


def _record_case(case: Case, dtype: str, device: torch.device, tensors: Tensors, missing: list[str]) -> list[Row]:
    run_, place = CaseRun(case, dtype), case_place(case, dtype)
    try:
        dispatch.reset()
        results = run_.on(device)
        # Copied inside the try, because devices often report an error only when results are read.
        values = {"inputs": run_.tensors, "forward": results.forward, "grad": results.grad}
        kept = {f"{place}/{kind}/{n}": value.detach().cpu() for kind in values for n, value in enumerate(values[kind])}
    except Exception as error:
        missing.append(place)
        return [Row.failed(case.op, case.name, run_.shapes, dtype, "-", error)]
    tensors |= kept
    tensors |= {f"{cotangents_place(case)}{n}": value for n, value in enumerate(run_.cotangents)}
    return [_row(case, dtype, direction, run_.shapes, *run_.error(results, direction)) for direction in run_.directions]


def _check_case(case: Case, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    place, shapes = case_place(case, dtype), "-"
    rows = []
    try:
        cotangents = _listed(tensors, cotangents_place(case)) or None
        run_ = CaseRun(case, dtype, _listed(tensors, f"{place}/inputs/"), cotangents)
        shapes = run_.shapes
        dispatch.reset()
        results = run_.on(device)
        for direction in run_.directions:
            recorded = _listed(tensors, f"{place}/{direction}/")
            own, bound = run_.error(results, direction)
            apart = _apart(run_, getattr(results, direction), recorded)
            # Both may be off by the bound, in opposite directions; ours has to keep it by itself as well.
            rows.append(_row(case, dtype, direction, shapes, max(apart / 2, own), bound))
    except Exception as error:
        return [Row.failed(case.op, case.name, shapes, dtype, "-", error)]
    return rows


def _apart(run_: CaseRun, ours: list[torch.Tensor], recorded: list[torch.Tensor]) -> float:
    """The distance between the results of two machines; infinite if their dtypes differ."""
    same = [value.dtype for value in ours] == [value.dtype for value in recorded]
    return run_.distance(ours, recorded) if same else math.inf


def _json(number: float | None) -> float | None:
    """The number for JSON, or None for infinity (the error of a failed computation), which JSON does not have."""
    return number if number is None or math.isfinite(number) else None


def _row(case: Case, dtype: str, direction: str, shapes: str, error: float, bound: float) -> Row:
    chosen = dispatch.chosen().get(case.op, "-")
    return Row(case.op, case.name, shapes, dtype, direction, chosen, error, bound, compare.within(error, bound))


# -- the tiny model ---------------------------------------------------------------------------------------------------


def _record_model(setting: str, dtype: str, device: torch.device, tensors: Tensors, missing: list[str]) -> list[Row]:
    try:
        ours, rows = _run_model(setting, dtype, device, tensors)
    except Exception as error:
        missing.append(model_place(setting, dtype))
        return [Row.failed("model", setting, "-", dtype, "-", error)]
    tensors |= {f"{model_place(setting, dtype)}/{name}": value for name, value in _kept(ours).items()}
    return rows


def _check_model(setting: str, dtype: str, device: torch.device, tensors: Tensors) -> list[Row]:
    try:
        ours, rows = _run_model(setting, dtype, device, tensors)
    except Exception as error:
        return [Row.failed("model", setting, "-", dtype, "-", error)]
    kept, recorded = _kept(ours), _named(tensors, f"{model_place(setting, dtype)}/")
    out = []
    for row in rows:
        name = {"greedy ids": "ids"}.get(row.case.partition(": ")[2], row.case.partition(": ")[2])
        alike = kept[name].dtype == recorded[name].dtype
        apart = compare.relative_rms(kept[name], recorded[name]) if alike else math.inf
        error = max(apart / 2, row.error)
        out.append(Row(**vars(row) | {"error": error, "ok": compare.within(error, row.allowed)}))
    return out


def _run_model(setting: str, dtype: str, device: torch.device, tensors: Tensors) -> tuple[ModelResults, list[Row]]:
    model = parity_model(SEED)
    model.load_state_dict(_named(tensors, "model/weights/"))
    inputs = _named(tensors, f"model/{dtype}/inputs/")
    references = run_references(model, inputs, setting, dtype)
    dispatch.reset()
    ours = run(model, inputs, SETTINGS[setting], device, DTYPES[dtype], fused=True)
    return ours, rows_of(setting, dtype, ours, *references)


def _kept(results: ModelResults) -> Tensors:
    """The part of the results that a bundle holds."""
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
