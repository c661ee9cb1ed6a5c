"""Bundles: recorded, checked on another device, and refused when they are damaged or foreign."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from bundles import rewrite

import ppe_npu
from ppe_npu.errors import InputError
from ppe_npu.parity import bundle, files
from ppe_npu.parity.model import SETTINGS

CPU = torch.device("cpu")
RECORDED = Path(__file__).parents[1] / "data" / "parity_cpu"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(RECORDED, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("part", ["half", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.ci
def test_the_recorded_bundle_holds_here(part, monkeypatch):
    """Computed on some other machine's CPU; see docs/npu.md for how the same file is checked on a device. A half has
    every operator's case in both dtypes, and every setting of the model in one of them."""
    if part == "half":
        monkeypatch.setattr(bundle, "settings", lambda dtype: list(SETTINGS)[dtype == "bf16" :: 2])
    rows = bundle.check(RECORDED, CPU)
    assert [row for row in rows if not row.ok] == []
    assert len(rows) > 100
    assert {row.dtype for row in rows} == {"fp32", "bf16"}


@pytest.mark.ci
def test_random_numbers_of_another_cpu_change_nothing(few, once, monkeypatch):
    """Gradients use the recorded cotangents, because normal numbers depend on whether a CPU has AVX2."""
    drawn = torch.randn

    def elsewhere(*args, **options):
        numbers = drawn(*args, **options)
        return numbers if numbers.dtype is torch.float64 else numbers * (1 + 2**-6)

    monkeypatch.setattr(torch, "randn", elsewhere)
    assert [row for row in bundle.check(once, CPU) if not row.ok] == []


@pytest.mark.ci
def test_a_bundle_of_the_first_edition_has_no_cotangents(recorded):
    def forget(tensors):
        for name in [name for name in tensors if "/cotangents/" in name]:
            del tensors[name]

    rewrite(recorded, forget)
    assert not any("/cotangents/" in name for name in bundle.load(recorded)[1])
    assert all(row.ok for row in bundle.check(recorded, CPU))


@pytest.mark.ci
def test_a_new_bundle_holds_inputs_results_and_versions(few, tmp_path):
    rows = bundle.record(CPU, tmp_path / "new")
    assert all(row.ok for row in rows)
    manifest, tensors = bundle.load(tmp_path / "new")
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert manifest["versions"]["ppe-npu"] == ppe_npu.__version__
    assert len(manifest["rows"]) == len(rows)
    assert {"model/fp32/inputs/input_ids", "model/fp32/keep_one/logits", "model/bf16/dense/losses"} <= set(tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


@pytest.mark.ci
def test_another_machines_different_numbers_and_groups_are_found(recorded):
    changed = ("swiglu/batch/fp32/forward/0", "swiglu/batch/bf16/grad/1", "model/fp32/keep_one/logits")

    def change(tensors):
        for name in changed:
            tensors[name] = tensors[name] * 1.05
        centers, labels = (tensors[f"dpc_knn/frames/fp32/forward/{n}"] for n in range(2))
        moved = next(token for token in range(labels.shape[1]) if token not in centers[0, :12].tolist())
        labels[0, moved] = (labels[0, moved] + 1) % 12

    rewrite(recorded, change)
    assert [(row.op, row.case, row.dtype, row.direction) for row in bundle.check(recorded, CPU) if not row.ok] == [
        ("dpc_knn", "frames", "fp32", "forward"),
        ("swiglu", "batch", "fp32", "forward"),
        ("model", "keep_one: logits", "fp32", "forward"),
        ("swiglu", "batch", "bf16", "grad"),
    ]


CHANGED = {
    "no dtypes": lambda values: values.update(dtypes=[]),
    "another seed": lambda values: values.update(seed=17),
    "another device": lambda values: values["device"].update(kind="npu"),
    "no rows": lambda values: values.update(rows=[]),
    "no hash": lambda values: values.pop("manifest_sha256"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_manifest_that_is_not_as_it_was_recorded_is_refused(copy, change):
    rewrite(copy, manifest=CHANGED[change], rehash=False)
    with pytest.raises(InputError, match=r"is damaged: manifest.json"):
        bundle.check(copy, CPU)


INPUT, RESULT, LOGITS = "swiglu/batch/fp32/inputs/1", "swiglu/batch/bf16/forward/0", "model/fp32/keep_one/logits"
IDS = "model/bf16/inputs/input_ids"
FOREIGN = {
    "no dtypes": (lambda values: values.update(dtypes=[]), None, "has dtypes"),
    "dtypes missing": (lambda values: values.pop("dtypes"), None, "has dtypes None"),
    "an unknown dtype": (lambda values: values.update(dtypes=["fp99"]), None, "has dtypes"),
    "a dtype that is not recorded": (lambda values: values.update(dtypes=["fp16"]), None, "has dtypes"),
    "a dtype of another type": (lambda values: values.update(dtypes=[{}]), None, "has dtypes"),
    "skipped unknown": (
        lambda values: values.update(not_recorded=["sums"]),
        None,
        r"not_recorded=\['sums'\], not a list of cases",
    ),
    "skipped missing": (lambda values: values.pop("not_recorded"), None, "not_recorded=None, not a list of cases"),
    "an input missing": (None, lambda tensors: tensors.pop(INPUT), f"lacks {INPUT}"),
    "a result missing": (None, lambda tensors: tensors.pop(RESULT), f"lacks {RESULT}"),
    "logits missing": (None, lambda tensors: tensors.pop(LOGITS), f"lacks {LOGITS}"),
    "a weight missing": (None, lambda tensors: tensors.pop("model/weights/lm_head.weight"), "lacks model/weights/lm_"),
    "one too many": (None, lambda tensors: tensors.update(extra=torch.ones(1)), "holds extra"),
    "an input of another shape": (None, lambda tensors: tensors.update({INPUT: torch.ones(2, 3)}), r"\[2, 3\], not \["),
    "ids of another shape": (None, lambda tensors: tensors.update({IDS: tensors[IDS][:, 1:].clone()}), r", not \["),
}


@pytest.mark.parametrize("change", FOREIGN)
def test_a_whole_bundle_of_something_else_is_refused(recorded, change):
    manifest, tensors, said = FOREIGN[change]
    rewrite(recorded, tensors or (lambda _: None), manifest or (lambda _: None))
    with pytest.raises(InputError, match=said) as caught:
        bundle.check(recorded, CPU)
    assert "\n" not in str(caught.value)


@pytest.fixture
def failing(monkeypatch):
    """swiglu cases and models with keep_one raise on the device; their references do not."""
    on, run = bundle.CaseRun.on, bundle.run

    def case(self, device, implementation=None):
        if self.case.op == "swiglu":
            raise RuntimeError("EZ1001: aclnnSwiGlu failed\nmore")
        return on(self, device, implementation)

    def model(model, inputs, config, *rest, **options):
        if config == SETTINGS["keep_one"]:
            raise RuntimeError("out of luck")
        return run(model, inputs, config, *rest, **options)

    def install():
        monkeypatch.setattr(bundle.CaseRun, "on", case)
        monkeypatch.setattr(bundle, "run", model)

    return install


@pytest.mark.slow
def test_what_fails_is_a_row_and_the_rest_goes_on(recorded, failing):
    agreeing = [row for row in bundle.check(recorded, CPU) if row.op != "swiglu" and "keep_one" not in row.case]
    failing()
    rows = bundle.check(recorded, CPU)
    assert [(row.op, row.case, row.dtype, row.note) for row in rows if not row.ok] == [
        (op, case, dtype, f"failed: RuntimeError: {said}")
        for dtype in ("fp32", "bf16")
        for op, case, said in (("swiglu", "batch", "EZ1001: aclnnSwiGlu failed"), ("model", "keep_one", "out of luck"))
    ]
    assert [row for row in rows if row.ok] == agreeing


@pytest.mark.ci
def test_what_fails_while_recording_is_left_out_and_said_by_who_checks(few, failing, tmp_path):
    failing()
    rows = bundle.record(CPU, tmp_path / "new")
    assert {row.op for row in rows if not row.ok} == {"swiglu", "model"}
    text = (tmp_path / "new" / "manifest.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["not_recorded"] == [
        "swiglu/batch/fp32", "swiglu/batch/bf16", "model/fp32/keep_one", "model/bf16/keep_one"
    ]  # fmt: skip
    checked = bundle.check(tmp_path / "new", CPU)  # where it fails as well, and is not run
    absent = [row for row in checked if not row.ok]
    assert {(row.op, row.case) for row in absent} == {("swiglu", "batch"), ("model", "keep_one")}
    assert {row.note for row in absent} == {"not recorded: it failed on the recording machine"}
    assert {row.case for row in checked if row.ok and row.op == "model"} >= {"dense: logits", "dense: gradients"}


def test_a_damaged_or_foreign_bundle_is_refused(copy, tmp_path):
    def with_manifest(**values):
        rewrite(copy, manifest=lambda manifest: manifest.update(values))

    with_manifest(format="another tool's")
    with pytest.raises(InputError, match="is not in the format"):
        bundle.check(copy, CPU)
    with_manifest(format=files.FORMAT, cases=["none"])
    with pytest.raises(InputError, match="has other cases than this version"):
        bundle.check(copy, CPU)
    with_manifest(cases=files.fixed_part()["cases"][1:])
    with pytest.raises(InputError, match="has other cases than this version"):
        bundle.check(copy, CPU)
    with_manifest(cases=files.fixed_part()["cases"])
    data = bytearray((copy / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "tensors.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged: tensors.safetensors"):
        bundle.check(copy, CPU)
    (copy / "tensors.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        bundle.check(copy, CPU)
    with pytest.raises(InputError, match="cannot be read"):
        bundle.check(tmp_path / "nowhere", CPU)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="holds no manifest"):
        bundle.record(CPU, tmp_path / "mine")
