"""Calls that the Triton kernels refuse, checked without a device."""

import types

import pytest
import torch

pytest.importorskip("triton")

from ppe_npu.backends import device
from ppe_npu.backends.cuda import dpc_knn, group_mean, rotary

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


def _empty(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _compare(found, expected):
    assert found == expected if expected is None else expected in found


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (_empty(32, 768, 2048), None),
        (_empty(1, 1, 1, dtype=F32), None),
        (_empty(1, 2**20, 2047), "2**31"),
        (_empty(2, 5, 8, dtype=F64), "not torch.float64"),
        (_empty(0, 5, 8), "empty"),
    ],
)
def test_clustering(tokens, reason):
    numbers = _empty(len(tokens), dtype=torch.int64)
    _compare(dpc_knn.refusal(tokens, None, numbers, 1, numbers), reason)


@pytest.mark.parametrize(
    ("tokens", "groups", "reason"),
    [
        (_empty(2, 5, 8), 3, None),
        (_empty(2, 5, 8, dtype=F64), 3, "not torch.float64"),
        (_empty(2, 0, 8), 3, "empty"),
        (_empty(2, 5, 8), 0, "empty"),
    ],
)
def test_group_means(tokens, groups, reason):
    labels, counts = _empty(*tokens.shape[:2], dtype=torch.int64), _empty(2, groups, dtype=torch.int64)
    _compare(group_mean.refusal(tokens, labels, counts), reason)


@pytest.mark.parametrize(
    ("width", "dtype", "length", "learned", "reason"),
    [
        (128, BF16, 5, False, None),
        (1024, F32, 5, False, None),
        (1026, F32, 5, False, "1,024"),
        (8, F64, 5, False, "not torch.float64"),
        (8, BF16, 0, False, "empty"),
        (8, BF16, 5, True, "no gradient"),
    ],
)
def test_rotary(width, dtype, length, learned, reason):
    query, key = _empty(1, 4, length, width, dtype=dtype), _empty(1, 2, length, width, dtype=dtype)
    table = _empty(1, length, width, dtype=dtype).requires_grad_(learned)
    _compare(rotary.refusal(query, key, table, table), reason)


@pytest.mark.parametrize(
    ("major", "shared", "wanted", "reason"),
    [(9, 232448, 98304, None), (8, 101376, 98304, None), (8, 65536, 98304, "shared memory"), (7, 98304, 0, "8.0")],
)
def test_devices_that_are_too_old_or_too_small(monkeypatch, major, shared, wanted, reason):
    properties = types.SimpleNamespace(major=major, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: properties)
    _compare(device.triton_problem(torch.device("cuda"), wanted), reason)
    assert device.runs_flash_attention(torch.device("cuda")) == (major >= 8)
    assert device.triton_problem(torch.device("cpu"), wanted) is None
    assert not device.runs_flash_attention(torch.device("cpu"))
    assert device.too_old(torch.device("cuda")) == (major < 8)
    assert not device.too_old(torch.device("cpu"))
