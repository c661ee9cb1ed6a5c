"""The parity cases of `make parity DEVICE=cuda` on the Triton kernels, compiled or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_device import DEVICE
from triton_interpreter import repair

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.backends.parity import CASES, run, run_parity

repair()
OPS = {"rotary", "dpc_knn", "group_mean"}


LARGE = {"fp32": {"one large group"}, "bf16": {"more than a tile"}}  # these take seconds; other tests cover such sizes


@pytest.mark.parametrize(("dtype", "ops"), [("fp32", OPS), pytest.param("bf16", {"dpc_knn"}, marks=pytest.mark.slow)])
@pytest.mark.ci
def test_all_parity_cases_hold(made_for_cuda, monkeypatch, dtype, ops):
    entries = made_for_cuda("triton")
    assert {entry.op for entry in entries} == OPS
    cases = tuple(case for case in CASES if case.op in ops and case.name not in LARGE[dtype])
    monkeypatch.setattr(run, "CASES", cases)
    rows = [row for row in run_parity(DEVICE, (dtype,)) if row.implementation == "triton"]
    assert {row.op for row in rows} == ops
    assert [row for row in rows if not row.ok or row.error is None] == []


def test_they_are_taken_first_and_give_way_with_a_reason(made_for_cuda, caplog):
    made_for_cuda("triton", "onehot")
    tokens, labels = torch.randn(1, 4, 3, device=DEVICE), torch.tensor([[0, 1, 0, 1]], device=DEVICE)
    counts, budgets = torch.tensor([[2, 2]], device=DEVICE), torch.tensor([2], device=DEVICE)
    backends.group_mean(tokens, labels, counts)
    backends.dpc_knn(tokens, None, budgets, 2, budgets)
    assert dispatch.chosen() == {"group_mean": "triton", "dpc_knn": "triton"}
    backends.group_mean(tokens.double(), labels, counts)
    backends.dpc_knn(tokens.double(), None, budgets, 2, budgets)
    assert dispatch.chosen() == {"group_mean": "triton + onehot", "dpc_knn": "triton + reference"}
    assert "dpc_knn: triton is not used: the Triton kernels take fp16, bf16 and fp32, not torch.float64" in caplog.text


CALLS = {
    "dpc_knn": (backends.dpc_knn, (3, 70, 40)),
    "group_mean": (backends.group_mean, (3, 70, 40)),
    "rotary": (backends.rotary, (2, 4, 70, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("op", CALLS)
def test_runs_are_identical(made_for_cuda, op):
    """Results and gradients agree to the last bit. On a GPU, whose programs run in any order, tensors are larger."""
    made_for_cuda("triton")
    shape = CALLS[op][1] if DEVICE.type == "cpu" else [size * 8 for size in CALLS[op][1]]
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    results = []
    for _ in range(2 if DEVICE.type == "cpu" else 5):
        leaf = tokens.clone().requires_grad_(op != "dpc_knn")
        outputs = CALLS[op][0](leaf, *_others(op, tokens), implementation="triton")
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = torch.autograd.grad(outputs, leaf, outputs) if leaf.requires_grad else ()
        results.append((*outputs, *grads))
    for again in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], again))


def _others(op: str, tokens: torch.Tensor) -> list:
    """The arguments of an operator after the first."""
    frames, count = tokens.shape[0], tokens.shape[1]
    groups = torch.full((frames,), count // 3, device=DEVICE)
    if op == "dpc_knn":
        return [None, groups, count // 3, torch.full_like(groups, 5)]
    if op == "group_mean":
        labels = torch.arange(count, device=DEVICE).expand(frames, -1) % (count // 3)
        return [labels, torch.stack([row.bincount(minlength=count // 3) for row in labels])]
    angles = torch.randn(frames, *tokens.shape[2:], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return [tokens.flip(1), angles.cos(), angles.sin()]
