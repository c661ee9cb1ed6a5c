"""Bundles: recorded, checked on another device, and refused when they are damaged or foreign."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppe_npu.errors import InputError
from ppe_npu.parity import bundle

CPU = torch.device("cpu")
RECORDED = Path(__file__).parents[1] / "data" / "parity_cpu"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(RECORDED, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_recorded_bundle_holds_here():
    """Computed on some other machine's CPU; see docs/npu.md for how the same file is checked on a device."""
    rows = bundle.check(RECORDED, CPU)
    assert [row for row in rows if not row.ok] == []
    assert len(rows) > 100
    assert {row.dtype for row in rows} == {"fp32", "bf16"}


def test_a_new_bundle_holds_inputs_results_and_versions(tmp_path):
    rows = bundle.record(CPU, tmp_path / "new")
    assert all(row.ok for row in rows)
    manifest, tensors = bundle.load(tmp_path / "new")
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert len(manifest["rows"]) == len(rows)
    assert {"model/fp32/inputs/input_ids", "model/fp32/ppe/logits", "model/bf16/dense/losses"} <= set(tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def rewrite(folder, change):
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = bundle._digest(folder / "tensors.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_another_machines_different_numbers_and_groups_are_found(copy):
    changed = ("swiglu/batch/fp32/forward/0", "attention/dense/bf16/grad/2", "model/fp32/ppe/logits")

    def change(tensors):
        for name in changed:
            tensors[name] = tensors[name] * 1.05
        centers, labels = (tensors[f"dpc_knn/frames/fp32/forward/{n}"] for n in range(2))
        moved = next(token for token in range(labels.shape[1]) if token not in centers[0, :12].tolist())
        labels[0, moved] = (labels[0, moved] + 1) % 12

    rewrite(copy, change)
    assert [(row.op, row.case, row.dtype, row.direction) for row in bundle.check(copy, CPU) if not row.ok] == [
        ("dpc_knn", "frames", "fp32", "forward"),
        ("swiglu", "batch", "fp32", "forward"),
        ("model", "ppe: logits", "fp32", "forward"),
        ("attention", "dense", "bf16", "grad"),
    ]


def test_a_damaged_or_foreign_bundle_is_refused(copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_text())

    def with_manifest(**values):
        (copy / "manifest.json").write_text(json.dumps(manifest | values))

    with_manifest(format="another tool's")
    with pytest.raises(InputError, match="is not in the format"):
        bundle.check(copy, CPU)
    with_manifest(cases=manifest["cases"][1:])
    with pytest.raises(InputError, match="holds other cases than this version"):
        bundle.check(copy, CPU)
    with_manifest()
    data = bytearray((copy / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "tensors.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        bundle.check(copy, CPU)
    (copy / "tensors.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        bundle.check(copy, CPU)
    with pytest.raises(InputError, match="cannot be read"):
        bundle.check(tmp_path / "nowhere", CPU)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="holds no manifest"):
        bundle.record(CPU, tmp_path / "mine")
