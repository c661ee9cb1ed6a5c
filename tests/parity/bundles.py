"""Bundles of a few cases, which are quick to record, and a way to change them."""

import json

from safetensors.torch import load_file, save_file

from ppe_npu.backends.parity import CASES
from ppe_npu.parity import bundle, end_to_end, files


def rewrite(folder, change=lambda tensors: None, manifest=lambda values: None, rehash=True):
    """Changes a bundle's tensors and manifest, and corrects the hashes, as someone who does it on purpose would."""
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    values = json.loads((folder / "manifest.json").read_text())
    manifest(values)
    if rehash:
        values["sha256"] = files._digest((folder / "tensors.safetensors").read_bytes())
        values["manifest_sha256"] = files.manifest_digest(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def only_few(monkeypatch):
    """Two cases and two settings, with one step and two new tokens each: enough to see what happens to bundles."""
    monkeypatch.setattr(end_to_end, "STEPS", 1)
    monkeypatch.setattr(end_to_end, "NEW_TOKENS", 2)
    cases = tuple(case for case in CASES if (case.op, case.name) in (("swiglu", "batch"), ("dpc_knn", "frames")))
    for module in (bundle, files):
        monkeypatch.setattr(module, "CASES", cases)
        monkeypatch.setattr(module, "settings", lambda dtype: ["dense", "keep_one"])
