"""A wrong emulation is detected: by comparisons, by the parity suite, and by what torch_npu itself declares."""

import dataclasses

import ascend_emulator
import pytest
import torch

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

import torch_npu
from ascend_emulator import limits, operators
from test_ascend_emulator_operators import test_swiglu as compare_swiglu

from ppe_npu.backends.parity import run


def replaced(monkeypatch, name, function):
    monkeypatch.setitem(operators.EMULATIONS, name, dataclasses.replace(operators.EMULATIONS[name], function=function))


def test_a_broken_emulation_fails_a_comparison(monkeypatch):
    right = operators.EMULATIONS["npu_swiglu"].function
    replaced(monkeypatch, "npu_swiglu", lambda input, dim: right(input.roll(1, dim), dim))
    with pytest.raises(AssertionError, match="relative error"):
        compare_swiglu((3, 14), -1, torch.float32)


def test_a_broken_emulation_fails_the_parity_suite(monkeypatch):
    right = operators.EMULATIONS["npu_swiglu"].function
    cases = tuple(case for case in run.CASES if case.op in ("swiglu", "rotary"))
    monkeypatch.setattr(run, "CASES", cases)
    assert all(row.ok for row in run.run_parity(torch.device("npu"), ("fp32", "bf16")))
    replaced(monkeypatch, "npu_swiglu", lambda input, dim: 1.01 * right(input, dim))
    rows = run.run_parity(torch.device("npu"), ("fp32", "bf16"))
    wrong = {(row.op, row.case, row.dtype) for row in rows if not row.ok}
    assert wrong == {("swiglu", case, dtype) for case in ("batch", "large gate") for dtype in ("fp32", "bf16")}
    assert {row.implementation for row in rows if not row.ok} == {"torch_npu"}


@pytest.mark.parametrize("wrong", [lambda x: x[..., :-1], lambda x: x.double(), lambda x: (x, x)])
def test_the_oracle_knows_shape_and_dtype(monkeypatch, wrong):
    right = operators.EMULATIONS["npu_swiglu"].function
    replaced(monkeypatch, "npu_swiglu", lambda input, dim: wrong(right(input, dim)))
    with pytest.raises(operators.EmulationError, match="torch_npu announces"):
        torch_npu.npu_swiglu(torch.randn(3, 8).npu())


@pytest.mark.parametrize(
    ("heads", "layout", "options", "said"),
    [
        (2, "XXXX", {}, "input_layout should be BSH/SBH/BNSD/BSND/TND"),
        (0, "BNSD", {}, "head_num must > 0"),
        (2, "BNSD", {"keep_prob": 1.5}, "keep_prob value must be in range"),
        (2, "BNSD", {"sparse_mode": 9}, "sparse_mode value must be in range"),
        (2, "TND", {}, "actual_seq_qlen and actual_seq_kvlen"),
    ],
)
def test_the_oracle_checks_arguments(heads, layout, options, said):
    """These are torch_npu's own messages, raised before the emulation would be called."""
    with pytest.raises(RuntimeError, match=said):
        torch_npu.npu_fusion_attention(*[torch.randn(1, 2, 4, 8).npu()] * 3, heads, layout, **options)


def test_a_parameter_that_nobody_heeds_is_refused(monkeypatch):
    replaced(monkeypatch, "npu_swiglu", lambda input: input[..., :4])
    heedless = dataclasses.replace(operators.EMULATIONS["npu_swiglu"], heeds=frozenset({"input"}))
    monkeypatch.setitem(operators.EMULATIONS, "npu_swiglu", heedless)
    assert torch_npu.npu_swiglu(torch.randn(3, 8).npu(), dim=-1).shape == (3, 4)
    with pytest.raises(limits.LimitError, match="no emulation of dim"):
        torch_npu.npu_swiglu(torch.randn(8, 3).npu(), dim=0)
