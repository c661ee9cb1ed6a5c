"""Rotary embedding from position rows: the reference equals the assembled table, and what does not fit is an error."""

import pytest
import torch
from tolerances import angle_roundings, assert_near

from ppe_npu.backends import rotary, rotary_rows
from ppe_npu.positions import channel_rows, rotary_table

CHANNELS = (0,) * 4 + (1,) * 6 + (2,) * 6


def _inputs(k=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 5, 32, generator=g).to(dtype) for heads in (4, 2))
    rows = torch.randint(0, 900, (3 * k, 2, 5), generator=g)
    return query, key, rows, torch.rand(16, generator=g), torch.tensor(channel_rows(3 * k, CHANNELS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_models_table_applied(dtype):
    query, key, rows, inv_freq, lookup = _inputs(dtype=dtype)
    cos, sin = (part.to(dtype) for part in rotary_table(rows, inv_freq, CHANNELS, 1.25))
    expected = rotary(query, key, cos, sin)
    for mine, right in zip(rotary_rows(query, key, rows, inv_freq, lookup, scaling=1.25), expected):
        assert mine.dtype == dtype
        assert torch.equal(mine, right)


def test_pairs_turn_by_the_position_in_their_channels_row():
    query, key, rows, inv_freq, lookup = _inputs()
    turned, _ = rotary_rows(query.double(), key.double(), rows, inv_freq, lookup)
    for channel in range(16):
        angle = rows[lookup[channel]].double() * inv_freq[channel].double()
        pair = torch.complex(query[..., channel], query[..., channel + 16]).to(torch.complex128)
        expected = pair * torch.polar(torch.ones_like(angle), angle)[:, None]
        off = {"roundings": 2 * (3 + angle_roundings(angle.max().item())), "size": pair.abs().max()}
        for half, part in ((0, expected.real), (16, expected.imag)):
            assert_near(turned[..., channel + half], part, **off)


def test_gradients():
    query, key, *rest = _inputs()
    inputs = [tensor.double()[:1, :1, :2].requires_grad_() for tensor in (query, key)]
    rest[0] = rest[0][:, :1, :2]
    assert torch.autograd.gradcheck(lambda q, k: rotary_rows(q, k, *rest), inputs)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (1, lambda x: x.double(), "share a dtype"),
        (1, lambda x: x[:, :, :4], "key does not fit"),
        (2, lambda x: x[:, :, :4], "rows must be integers"),
        (2, lambda x: x.float(), "rows must be integers"),
        (3, lambda x: x[:8], "inv_freq must be"),
        (4, lambda x: x[:8], "channel_rows must be"),
    ],
)
def test_what_does_not_fit_is_an_error(place, change, message):
    inputs = list(_inputs())
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=message):
        rotary_rows(*inputs)
