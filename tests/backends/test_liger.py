"""Liger's operators, compiled or in Triton's interpreter (which has no bf16 arithmetic), and our wrappers of them."""

import contextlib
import importlib.util

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("liger_kernel")
if importlib.util.find_spec("torch_npu") is not None:
    pytest.skip("beside torch_npu Liger asks for triton-ascend's functions", allow_module_level=True)

from kernel_device import DEVICE
from triton_interpreter import repair_liger

from ppe_npu import backends
from ppe_npu.backends import device, dispatch
from ppe_npu.backends.parity import CASES, run, run_parity

repair_liger()


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device=DEVICE)


def _tokens(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, device=DEVICE)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.ci
def test_all_parity_cases_hold(made_for_cuda, monkeypatch, dtype):
    entries = made_for_cuda("liger")
    ops = {entry.op for entry in entries}
    assert ops == {"rms_norm", "swiglu", "linear_cross_entropy"}
    monkeypatch.setattr(run, "CASES", tuple(case for case in CASES if case.op in ops))
    rows = [row for row in run_parity(DEVICE, (dtype,)) if row.implementation == "liger"]
    assert {row.op for row in rows} == ops
    assert [row for row in rows if not row.ok or row.error is None] == []


def test_all_are_taken_without_being_asked_for(made_for_cuda):
    made_for_cuda("liger")
    x, weight = torch.randn(2, 8, device=DEVICE), torch.randn(5, 8, device=DEVICE)
    backends.rms_norm(x, _ones(8), 1e-6)
    backends.swiglu(x, x)
    backends.linear_cross_entropy(x, weight, _tokens(1, 2))
    assert set(dispatch.chosen().values()) == {"liger"}


def _twice(function, *inputs):
    """Gradients of two backward passes through one graph, for a cotangent other than 1."""
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    held = [tensor * 1 for tensor in inputs]
    before = [tensor.detach().clone() for tensor in held]
    out = function(*held)
    out = out if isinstance(out, torch.Tensor) else torch.cat([part.flatten() for part in out])
    cotangent = torch.full_like(out, 3.0)
    gradients = [torch.autograd.grad(out, inputs, cotangent, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(tensor, old) for tensor, old in zip(held, before))
    assert cotangent.eq(3).all()
    return gradients


CALLS = {
    "rms_norm": (lambda x: backends.rms_norm(x, _ones(8), 1e-6, implementation="liger"), [(2, 8)]),
    "swiglu": (lambda x, y: backends.swiglu(x, y, implementation="liger"), [(2, 8), (2, 8)]),
    "linear_cross_entropy": (
        lambda x, w: backends.linear_cross_entropy(x, w, _tokens(1, 2), implementation="liger"),
        [(2, 8), (5, 8)],
    ),
}


@pytest.mark.parametrize("op", CALLS)
def test_nothing_of_the_callers_is_written_over_and_backward_can_run_again(made_for_cuda, op):
    made_for_cuda("liger")
    function, shapes = CALLS[op]
    generator = torch.Generator().manual_seed(0)
    first, second = _twice(function, *(torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes))
    for one, two in zip(first, second):
        assert torch.equal(one, two)


def test_a_loss_without_gradients_makes_none(made_for_cuda, monkeypatch):
    made_for_cuda("liger")
    import liger_kernel.ops.fused_linear_cross_entropy as module

    asked, forward = [], module.fused_linear_cross_entropy_forward

    def watch(*args, compute_gradients, weight_requires_grad, **kwargs):
        asked.append((compute_gradients, weight_requires_grad))
        options = {"compute_gradients": compute_gradients, "weight_requires_grad": weight_requires_grad}
        return forward(*args, **options, **kwargs)

    monkeypatch.setattr(module, "fused_linear_cross_entropy_forward", watch)
    hidden, weight = torch.randn(3, 4, device=DEVICE, requires_grad=True), torch.randn(5, 4, device=DEVICE)
    labels = _tokens(0, 1, -100)
    with torch.no_grad():
        backends.linear_cross_entropy(hidden, weight, labels)
    backends.linear_cross_entropy(hidden, weight, labels).backward()
    assert asked == [(False, False), (True, False)]


@pytest.mark.parametrize(("labels", "chunks"), [(3, 1), (4, 1), (5, 2), (8, 2), (21, 6)])
def test_the_loss_takes_as_many_tokens_at_a_time_as_it_is_told(made_for_cuda, monkeypatch, labels, chunks):
    """There are many more words than channels, as in a language model, for which Liger would take one token at a
    time."""
    made_for_cuda("liger")
    import liger_kernel.ops.fused_linear_cross_entropy as module

    launches, kernel = [], module.liger_cross_entropy_kernel

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(module, "liger_cross_entropy_kernel", Counted())
    hidden, weight = torch.randn(labels, 4, device=DEVICE, requires_grad=True), torch.randn(300, 4, device=DEVICE)
    backends.linear_cross_entropy(hidden, weight, torch.arange(labels, device=DEVICE), chunk_size=4)
    assert [rows for (rows,) in launches] == [min(4, labels - 4 * done) for done in range(chunks)]


LAUNCHES = {
    "linear_cross_entropy": ("fused_linear_cross_entropy", ["fused_linear_cross_entropy_forward"]),
}


@pytest.mark.parametrize("op", LAUNCHES)
def test_what_liger_launches_anywhere_is_launched_on_the_tensors_device(made_for_cuda, monkeypatch, op):
    made_for_cuda("liger")
    current, launched = [], []

    @contextlib.contextmanager
    def enter(where):
        current.append(where.type)
        yield
        current.pop()

    def watched(function):
        return lambda *args, **kwargs: launched.append(list(current)) or function(*args, **kwargs)

    monkeypatch.setattr(device, "current", enter)
    module, names = importlib.import_module(f"liger_kernel.ops.{LAUNCHES[op][0]}"), LAUNCHES[op][1]
    for name in names:
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    function, shapes = CALLS[op]
    inputs = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
    out = function(*inputs)
    (out if isinstance(out, torch.Tensor) else out[0].sum()).backward()
    assert launched == [[DEVICE.type]] * len(names)
