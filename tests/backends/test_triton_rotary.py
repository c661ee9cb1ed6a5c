"""The Triton kernel of rotary, compiled or in Triton's interpreter, against the reference in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import angle_roundings, assert_near

pytest.importorskip("triton")

from kernel_device import on_device
from triton_interpreter import repair

from ppe_npu.backends.cuda.rotary import rotary
from ppe_npu.backends.reference.rotary import rotary as reference

repair()
rotary = on_device(rotary)


def _heads(batch, heads, kv_heads, length, width, seed=0):
    """Query and key [B, H, S, D] that lie in memory as [B, S, H, D], as in attention."""
    g = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(batch, length, count, width, generator=g) for count in (heads, kv_heads))
    return [tensor.transpose(1, 2).requires_grad_() for tensor in (query, key)]


def _compare(function, oracle, heads, *tables, largest=1.0, **options):
    """Compare results and gradients for random cotangents; `largest` bounds cos and sin before they are scaled."""
    wide = [tensor.detach().double().requires_grad_() for tensor in heads]
    results, expected = function(*heads, *tables, **options), oracle(*wide, *tables, **options)
    cotangents = [torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) for tensor in results]
    gradients = torch.autograd.grad(results, heads, cotangents)
    true = torch.autograd.grad(expected, wide, [tensor.double() for tensor in cotangents])
    for mine, right in zip((*results, *gradients), (*expected, *true)):
        # Errors: two products of numbers of this size, their sum, and in cos and sin two roundings and the scaling.
        size = 2 * largest * options.get("scaling", 1.0) * max(x.detach().abs().max() for x in (*heads, *cotangents))
        assert_near(mine, right, roundings=3 + 3, size=size)
    return results


@settings(max_examples=6)
@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from([(1, 1), (6, 2), (18, 1)]),
    length=st.integers(1, 4),
    half=st.sampled_from([1, 12, 40]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_table_and_its_transpose(batch, heads, length, half, shared, seed):
    """The two halves of cos and sin differ, as the specification allows."""
    g = torch.Generator().manual_seed(seed)
    cos, sin = (torch.randn(1 if shared else batch, length, 2 * half, generator=g) for _ in range(2))
    query, key = _heads(batch, *heads, length, 2 * half, seed)
    largest = max(cos.abs().max(), sin.abs().max())

    def oracle(query, key, *tables):
        return reference(query, key, *(table.double() for table in tables))

    results = _compare(rotary, oracle, (query, key), cos, sin, largest=largest)
    assert [result.stride() for result in results] == [query.stride(), key.stride()]


def test_pairs_rotate_like_complex_numbers():
    query, key = _heads(1, 2, 1, 3, 16)
    angles = torch.tensor([3.0, 5.0, 7.0])[:, None] * torch.linspace(0.1, 1, 8)
    table = torch.cat([angles, angles], dim=-1)[None]
    for x, rotated in zip((query, key), rotary(query, key, table.cos(), table.sin())):
        expected = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        # The oracle is fp32, too.
        roundings = 2 * (3 + angle_roundings(angles.max().item()))
        assert_near(rotated, torch.cat((expected.real, expected.imag), -1), roundings, size=2 * x.detach().abs().max())


def test_heads_whose_channels_are_no_neighbours_are_copied():
    query = torch.randn(1, 2, 8, 3).transpose(2, 3)
    cos, sin = (torch.randn(1, 8, 3).transpose(1, 2) for _ in range(2))
    for mine, right in zip(rotary(query, query, cos, sin), reference(query, query, cos, sin)):
        assert_near(mine, right, roundings=2 * 3, size=2 * query.abs().max() * max(cos.abs().max(), sin.abs().max()))
