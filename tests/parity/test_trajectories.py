"""Twenty steps of learning: this machine's operators stay as near to fp64 as rounding does, a wrong one does not, and
what other devices have recorded is what is computed here."""

import pytest
import torch
from trajectories import STEPS, apart, compare, recorded, walk

from ppe_npu.backends import dispatch
from ppe_npu.parity.model import SETTINGS

CONFIGS = [pytest.param(name, marks=() if name == "ppe" else pytest.mark.slow) for name in SETTINGS]


@pytest.fixture(scope="module")
def exact():
    return walk("ppe", dtype=torch.float64, fused=False)


@pytest.mark.parametrize("setting", CONFIGS)
@pytest.mark.ci
def test_the_cpus_operators_take_the_same_way(setting, exact):
    exact = exact if setting == "ppe" else walk(setting, dtype=torch.float64, fused=False)
    found = walk(setting)
    assert exact.losses[-1] < exact.losses[0] / 2  # otherwise there would be no learning to compare
    assert apart(found, exact) == {}
    assert apart(walk(setting, fused=False), exact) == {}  # plain PyTorch is held to the same bound
    compare(setting, "cpu", found, exact)


def scaled(op: str, forward: float, backward: float):
    """dispatch.call with an operator that is off by these factors."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * forward

        @staticmethod
        def backward(ctx, gradient):
            return gradient * forward * backward

    call = dispatch.call

    def off(name, *args, **kwargs):
        out = call(name, *args, **kwargs)
        if name != op:
            return out
        return tuple(map(Off.apply, out)) if isinstance(out, tuple) else Off.apply(out)

    return off


WRONG = {"attention": 1e-3, "rms_norm": 1e-4, "swiglu": 1e-4, "group_mean": 1e-3, "rotary": 1e-4}


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=() if op in ("attention", "rotary") else pytest.mark.slow) for op in WRONG]
)
@pytest.mark.ci
def test_a_gradient_that_is_slightly_wrong_shows_on_the_way(op, exact, monkeypatch):
    """Results are right, gradients off by one in thousands."""
    monkeypatch.setattr(dispatch, "call", scaled(op, 1.0, 1 + WRONG[op]))
    found = apart(walk("ppe"), exact)
    assert 0 < found["weights"] < STEPS
    assert 0 not in found.values()


def test_every_record_names_its_device_and_versions():
    entries = recorded()
    assert {entry["setting"] for entry in entries} == set(SETTINGS)
    assert {"cpu", "npu (emulated)"} <= {entry["device"] for entry in entries}
    for entry in entries:
        assert {"torch", "transformers"} <= set(entry["versions"])
        assert (len(entry["losses"]), len(entry["bound"])) == (STEPS + 1, STEPS + 1)
