"""RMS norm against a loop over rows, and its dtypes against transformers' rule."""

import math

import torch
from tolerances import assert_near

from ppe_npu.backends import rms_norm


def test_rows_are_divided_by_their_root_mean_square():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, generator=generator, dtype=torch.float64)
    for row, normed in zip(x.view(-1, 7), rms_norm(x, weight, 0.01).view(-1, 7)):
        rms = math.sqrt(sum(value * value for value in row.tolist()) / 7 + 0.01)
        # Errors: a sum of 7 squares, their mean, eps, the root, two scalings.
        assert_near(normed, weight * row / rms, roundings=7 + 6)


def test_the_mean_is_taken_in_fp32():
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # 300 ** 2 is beyond fp16
    assert rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6).tolist() == [[1.0] * 4]


def test_the_weight_is_applied_after_rounding_to_the_inputs_dtype():
    x = torch.tensor([[1.0, 1.005, 0.3, 2.0]]).bfloat16()
    weight = torch.tensor([1.0, 3.0, 7.0, 1.7]).bfloat16()
    wide = x.float()
    normed = (wide / (wide.square().mean() + 1e-6).sqrt()).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-6), normed * weight)
    assert rms_norm(x, weight, 1e-6).dtype is torch.bfloat16
    assert rms_norm(x, weight.float(), 1e-6).dtype is torch.float32


def test_zeros_stay_zeros():
    assert rms_norm(torch.zeros(2, 3), torch.ones(3), 1e-6).tolist() == [[0.0] * 3] * 2


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-6), (x, weight))
