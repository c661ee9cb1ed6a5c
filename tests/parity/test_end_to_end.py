"""The tiny model against fp64: the CPU agrees, and a fault is noticed."""

import pytest
import torch

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.parity import end_to_end
from ppe_npu.parity.model import SETTINGS, parity_inputs, parity_model

CPU = torch.device("cpu")


def failing(rows):
    return {row.case for row in rows if not row.ok}


SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("fp32", "bf16", "fp16")]  # `make parity` runs it


@pytest.mark.parametrize("dtype", SLOW)
def test_the_cpu_agrees_and_says_what_it_used(dtype):
    rows = end_to_end.run_end_to_end(CPU, (dtype,))
    assert not failing(rows)
    assert {row.implementation for row in rows} == {"reference, sdpa", "cpu, reference, sdpa"}
    quantities = {"fp32": 4, "bf16": 3, "fp16": 1}[dtype]
    assert len(rows) == quantities * len(end_to_end.settings(dtype))
    assert all(row.allowed < 0.1 for row in rows)
    if dtype == "fp32":  # five steps within the contract, not only within the bound
        assert max(row.error for row in rows if row.direction == "5 steps") < end_to_end._LOSS_FLOOR[torch.float32]


@pytest.mark.parametrize(
    "op",
    ["attention", *(pytest.param(op, marks=pytest.mark.slow) for op in ("rotary", "rms_norm", "swiglu")), "group_mean"],
)
@pytest.mark.ci
def test_a_wrong_operator_fails_every_setting_that_uses_it(op, monkeypatch):
    """Off by one in ten thousand, forward and backward: far above rounding, far below what anyone would notice."""
    call = dispatch.call

    def off(name, *args, **kwargs):
        out = call(name, *args, **kwargs)
        if name != op:
            return out
        return tuple(1.0001 * part for part in out) if isinstance(out, tuple) else 1.0001 * out

    exact = end_to_end.run(parity_model(), parity_inputs(), SETTINGS["ppe"], CPU, torch.float64, fused=False)
    plain = end_to_end.run(parity_model(), parity_inputs(), SETTINGS["ppe"], CPU, torch.float32, fused=False)
    monkeypatch.setattr(backends.dispatch, "call", off)
    ours = end_to_end.run(parity_model(), parity_inputs(), SETTINGS["ppe"], CPU, torch.float32, fused=True)
    wrong = [
        what for what, _, error, bound in end_to_end.model_errors(ours, plain, exact, torch.float32) if error > bound
    ]
    assert {"logits", "gradients"} <= set(wrong)


@pytest.mark.ci
def test_a_device_that_fails_is_a_row_that_says_so(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(end_to_end, "fuse", broken)
    monkeypatch.setattr(end_to_end, "settings", lambda _: ["ppe"])
    rows = end_to_end.run_end_to_end(CPU, ("fp32",))
    assert all(not row.ok and row.note == "failed: RuntimeError: out of luck" for row in rows)
