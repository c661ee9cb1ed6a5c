"""Rotation of pairs (i, i + D/2) by an angle per pair, against complex multiplication."""

import pytest
import torch
from tolerances import assert_near

from ppe_npu.backends import rotary


def _inputs(batch=2, heads=4, kv_heads=2, length=5, width=12, tables=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(batch, count, length, width, generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads)
    )
    angles = torch.rand(tables or batch, length, width // 2, generator=generator, dtype=torch.float64) * 50
    full = torch.cat((angles, angles), -1)
    return [tensor.to(dtype) for tensor in (query, key, full.cos(), full.sin())], angles


@pytest.mark.parametrize("tables", [1, 2])
def test_pairs_turn_like_complex_numbers(tables):
    (query, key, cos, sin), angles = _inputs(tables=tables)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    for x, rotated in zip((query, key), rotary(query, key, cos, sin)):
        expected = torch.complex(*x.chunk(2, -1)) * turn
        turned = torch.cat((expected.real, expected.imag), -1)
        assert_near(rotated, turned, roundings=2 * (3 + 2), size=2 * x.abs().max())


def test_the_table_need_not_repeat_itself_in_its_second_half():
    query = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    cos, sin = torch.tensor([[[3.0, 5.0]]]), torch.tensor([[[7.0, 11.0]]])
    rotated, _ = rotary(query, query, cos, sin)
    assert rotated.flatten().tolist() == [1 * 3 - 2 * 7, 2 * 5 + 1 * 11]


def test_angle_zero_changes_nothing_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        (query, key, cos, sin), _ = _inputs(dtype=dtype)
        rotated = rotary(query, key, torch.ones_like(cos), torch.zeros_like(sin))
        assert torch.equal(rotated[0], query)
        assert torch.equal(rotated[1], key)


def test_gradients():
    tensors, _ = _inputs(batch=1, length=2, width=4)
    assert torch.autograd.gradcheck(rotary, [tensor.requires_grad_() for tensor in tensors])
