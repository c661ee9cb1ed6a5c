"""NaN and inf: no agreement, unless the fp64 reference has them at the same places. Damaged bundles: one line each."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
from bundles import rewrite
from test_bundle import CPU

from ppe_npu.backends import attention, dpc_knn, group_mean, linear_cross_entropy, rms_norm, rotary, swiglu
from ppe_npu.backends.parity import compare, run
from ppe_npu.backends.parity.cases import CASES
from ppe_npu.errors import InputError
from ppe_npu.parity import bundle, files

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("error", [0.0, 1.0, INF, NAN])
@pytest.mark.parametrize("bound", [0.5, INF, NAN])
def test_only_finite_errors_keep_finite_bounds(error, bound):
    assert compare.within(error, bound) is (error == 0.0 and bound == 0.5)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, NAN], [1.0, NAN], 0.0), ([1.0, INF], [1.0, INF], 0.0), ([1.0, -INF], [1.0, INF], INF),
        ([1.0, NAN], [1.0, INF], INF), ([1.0, INF], [1.0, NAN], INF), ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, NAN], [1.0, 2.0], INF), ([NAN, 1.0], [1.0, NAN], INF), ([2.0, NAN], [1.0, NAN], 1.0),
        ([1e200, 0.0], [-1e200, 0.0], INF), ([NAN], [NAN], 0.0),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_compared_by_its_place(actual, expected, error):
    assert compare.relative_rms(torch.tensor(actual).double(), torch.tensor(expected).double()) == error


def test_an_implementation_that_gives_nan_fails_whatever_is_allowed(monkeypatch):
    """Even where plain PyTorch overflows, which makes the bound infinite; and a good second result hides nothing."""
    case = next(case for case in CASES if case.op == "rotary")
    found = run.CaseRun(case, "fp32")
    good = found.on(CPU)
    for bad in (0, 1):
        values = [value.clone() for value in good.forward]
        values[bad][0, 0, 0, 0] = NAN
        assert not compare.within(*found.error(run.Results(values, good.grad), "forward"))
    monkeypatch.setattr(compare, "allowed", lambda *_, **__: INF)
    assert not any(
        compare.within(*found.error(run.Results([v * k for v in good.forward], []), "forward")) for k in (1, NAN)
    )


def test_a_centre_that_is_no_token_is_an_error():
    centers, labels, budgets = torch.tensor([[0, 9]]), torch.tensor([[0, 1, 1]]), torch.tensor([2])
    assert compare.clustering_error((centers, labels), (torch.tensor([[0, 1]]), labels), budgets) == INF


INPUTS = ["swiglu/batch/fp32/inputs/0", "dpc_knn/frames/bf16/inputs/0", "model/fp32/inputs/pixel_values"]
INPUTS += ["model/bf16/inputs/inputs_embeds", "model/weights/lm_head.weight"]


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_not_finite_are_refused(recorded, name):
    value = INF if "bf16" in name else NAN
    rewrite(recorded, lambda tensors: tensors[name].view(-1)[:1].fill_(value))
    with pytest.raises(InputError, match=f"numbers in {name} that are not finite"):
        bundle.check(recorded, CPU)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_inputs_of_another_dtype_are_refused(recorded, dtype):
    name = "swiglu/batch/fp32/inputs/0"
    rewrite(recorded, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(InputError, match=rf"has {name} of {dtype}, not torch.float32"):
        bundle.check(recorded, CPU)


@pytest.mark.ci
def test_recorded_results_that_are_nan_fail_by_row(recorded):
    changed = ["swiglu/batch/fp32/forward/0", "model/fp32/dense/logits", "model/bf16/keep_one/gradients"]
    rewrite(recorded, lambda tensors: [tensors[name].fill_(NAN) for name in changed])
    failed = [(row.op, row.case, row.dtype) for row in bundle.check(recorded, CPU) if not row.ok]
    assert failed == [
        ("swiglu", "batch", "fp32"), ("model", "dense: logits", "fp32"), ("model", "keep_one: gradients", "bf16")
    ]  # fmt: skip


@pytest.mark.ci
def test_indices_out_of_range_fail_by_row(recorded):
    rewrite(recorded, lambda tensors: tensors["dpc_knn/frames/fp32/inputs/1"].fill_(10**6))
    failed = [row for row in bundle.check(recorded, CPU) if not row.ok]
    assert {(row.op, row.dtype) for row in failed} == {("dpc_knn", "fp32")}


def test_damaged_files_are_said_in_one_line(recorded, monkeypatch):
    manifest, tensors = recorded / "manifest.json", recorded / "tensors.safetensors"
    whole, data = manifest.read_text(), tensors.read_bytes()

    def refused(words):
        with pytest.raises(InputError, match=words) as error:
            bundle.check(recorded, CPU)
        assert str(error.value).isprintable()

    for text in ("", "{", "[" * 100_000, '"x"', "[]", "\ufeff{}"):
        manifest.write_text(text)
        refused("cannot be read|is not in the format")
    manifest.write_text(whole)
    for cut in (0, 4, 100, len(data) // 2, len(data) - 1):
        tensors.write_bytes(data[:cut])
        refused("is damaged: tensors.safetensors")
        values = json.loads(whole) | {"sha256": files._digest(data[:cut])}
        manifest.write_text(json.dumps(values | {"manifest_sha256": files.manifest_digest(values)}))
        refused("cannot be read|lacks")
        manifest.write_text(whole)
    os.truncate(tensors, files.LARGEST + 1)  # sparse
    refused("has 268,435,457 bytes")
    tensors.unlink()
    os.mkfifo(tensors)
    refused("has no file tensors.safetensors")


BOOL = torch.ones(1, 2, 3, 4, dtype=torch.bool)
LONG = torch.zeros(2, 3, dtype=torch.int64)
CALLS = {
    "attention: query is torch.bool": lambda: attention(BOOL, BOOL, BOOL),
    "attention: key is torch.bool": lambda: attention(BOOL.float(), BOOL, BOOL.float()),
    "rotary: query is torch.bool": lambda: rotary(BOOL, BOOL, BOOL[:, 0], BOOL[:, 0]),
    "dpc_knn: tokens is torch.bool": lambda: dpc_knn(BOOL[0], None, LONG[:, 0] + 1, 1, LONG[:, 0] + 1),
    "group_mean: tokens is torch.bool": lambda: group_mean(BOOL[0], LONG, LONG[:, :1] + 3),
    "group_mean: labels is torch.bool": lambda: group_mean(BOOL[0].float(), LONG.bool(), LONG[:, :1] + 3),
    "rms_norm: x is torch.bool": lambda: rms_norm(BOOL, torch.ones(4), 1e-6),
    "swiglu: gate is torch.bool": lambda: swiglu(BOOL, BOOL),
    "linear_cross_entropy: hidden is torch.int64": lambda: linear_cross_entropy(LONG, LONG, LONG[:, 0]),
}


@pytest.mark.parametrize("words", CALLS)
def test_operators_name_the_dtype_that_they_do_not_take(words):
    with pytest.raises(InputError, match=f"{words}: give (floating point|integers), such as"):
        CALLS[words]()
