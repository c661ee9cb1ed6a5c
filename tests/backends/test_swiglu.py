"""swiglu against silu(gate) * up, number by number."""

import math

import torch
from tolerances import near

from ppe_npu.backends import swiglu


def test_every_number():
    gate = torch.tensor([[-30.0, -1.0, 0.0], [0.5, 3.0, 30.0]], dtype=torch.float64)
    up = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 7.0]], dtype=torch.float64)
    expected = [g / (1 + math.exp(-g)) * u for g, u in zip(gate.flatten().tolist(), up.flatten().tolist())]
    assert swiglu(gate, up).flatten().tolist() == near(expected, roundings=2 * (2 + 4))  # exp, sum, division, product


def test_the_order_is_gate_then_up():
    assert swiglu(torch.zeros(3), torch.ones(3)).tolist() == [0.0] * 3
    assert swiglu(torch.ones(3), torch.ones(3)).tolist() != [0.0] * 3


def test_slices_and_empty_tensors():
    whole = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    gate, up = whole.chunk(2, -1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    assert swiglu(torch.ones(0, 3), torch.ones(0, 3)).shape == (0, 3)


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(swiglu, pair)
