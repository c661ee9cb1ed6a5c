"""Tolerances are wide enough for rounding, and too narrow for a fault."""

import pytest
import torch
from tolerances import (
    assert_equal,
    assert_near,
    assert_rounds_alike,
    codec_error,
    depth_error,
    eps,
    loss_near,
    share_error,
)


def product(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((20, 300), (300, 30)))
    return (a.to(dtype) @ b.to(dtype)), a.to(dtype).double() @ b.to(dtype).double(), a.abs() @ b.abs()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_and_one_without_its_last_term_is_not(seed, dtype):
    found, exact, size = product(seed, dtype)
    assert_near(found, exact, roundings=300, size=size)
    with pytest.raises(AssertionError, match="times what 300 roundings explain"):
        assert_near(found, exact + 2 * 300 * eps(dtype) * size, roundings=300, size=size)


def test_nan_and_another_shape_are_not_near():
    one = torch.ones(3)
    for other in (torch.full((3,), float("nan")), torch.ones(1)):
        with pytest.raises(AssertionError):
            assert_near(one, other, roundings=10)
        with pytest.raises(AssertionError):
            assert_rounds_alike(other, one, one)
    with pytest.raises(AssertionError):
        assert_equal(one, one.nextafter(2 * one))


def test_two_roundings_are_alike_and_a_fault_of_a_ten_thousandth_is_none():
    exact = torch.randn(50, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, found = exact.float(), (exact * (1 + eps(torch.float32))).float()
    assert_rounds_alike(found, plain, exact)
    for wrong in (found * 1.0001, found + 1e-4 * (torch.arange(100) == 7)):
        with pytest.raises(AssertionError, match="errors of"):
            assert_rounds_alike(wrong, plain, exact)
    with pytest.raises(AssertionError, match=r"weight 0: .* errors of"):
        assert_rounds_alike({"weight": found * 1.0001}, {"weight": plain}, {"weight": exact})


def test_losses_are_near_or_not():
    assert 4.6 * (1 + depth_error(4)) == loss_near(4.6)
    assert loss_near(4.6) != 4.6001
    assert loss_near(4.6, steps=5) != 4.6001


def test_draws_and_frames():
    kept = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < 0.25
    assert abs(kept.float().mean().item() - 0.25) <= share_error(0.25, 100_000) < abs(0.25 - 0.26)
    assert codec_error() < 10 / 2, "frames of the tests are 10 apart"
