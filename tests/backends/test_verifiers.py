"""Calls that each fused implementation refuses, checked without a device: verifiers are functions of the tensors."""

import pytest
import torch

from ppe_npu.backends.cuda import attention as cuda_attention
from ppe_npu.backends.cuda import linear_cross_entropy as cuda_loss
from ppe_npu.backends.cuda import rms_norm as cuda_rms_norm
from ppe_npu.backends.cuda import swiglu as cuda_swiglu
from ppe_npu.backends.npu import attention, group_mean, rms_norm, rotary, swiglu

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def _heads(shape=(1, 4, 5, 8), kv=(1, 2, 5, 8), dtype=BF16):
    # Meta tensors have no memory, so sizes at the limits cost nothing.
    return [torch.empty(size, dtype=dtype, device="meta") for size in (shape, kv, kv)]


@pytest.mark.parametrize(
    ("tensors", "options", "reason"),
    [
        (_heads(), {}, None),
        (_heads(dtype=F16), {"causal": True, "dropout": 0.1}, None),
        (_heads(dtype=F32), {}, None),
        (_heads(dtype=F64), {}, "not torch.float64"),
        (_heads((1, 4, 5, 768), (1, 2, 5, 768)), {}, None),
        (_heads((1, 4, 5, 769), (1, 2, 5, 769)), {}, "768"),
        (_heads((1, 256, 5, 8), (1, 2, 5, 8)), {}, None),
        (_heads((1, 258, 5, 8), (1, 2, 5, 8)), {}, "256 query heads"),
        (_heads((1, 4, 2**20, 8), (1, 2, 2**20, 8)), {}, None),
        (_heads((1, 4, 1, 8), (1, 2, 2**20 + 1, 8)), {}, "lengths"),
        (_heads((1, 4, 0, 8), (1, 2, 5, 8)), {}, "lengths"),
        (_heads((0, 4, 5, 8), (0, 2, 5, 8)), {}, "empty"),
        (_heads(), {"mask": torch.ones(5, 5, dtype=torch.bool)}, None),
        (_heads(), {"mask": torch.ones(5, 5)}, "additive"),
        (_heads(), {"cu_seqlens": [0, *range(5)]}, None),
        (_heads(), {"dropout": 1.0}, "dropout"),
    ],
)
def test_npu_fusion_attention(tensors, options, reason):
    _compare(attention.refusal(*tensors, **options), reason)


@pytest.mark.parametrize(
    ("tensors", "options", "reason"),
    [
        (_heads(), {}, None),
        (_heads(dtype=F16), {"causal": True, "cu_seqlens": [0, 5]}, None),
        (_heads(dtype=F32), {}, "not torch.float32"),
        (_heads((1, 4, 5, 256), (1, 2, 5, 256)), {}, None),
        (_heads((1, 4, 5, 264), (1, 2, 5, 264)), {}, "256"),
        (_heads(), {"mask": torch.ones(5, 5, dtype=torch.bool)}, "no mask"),
    ],
)
def test_flash_attn(tensors, options, reason):
    _compare(cuda_attention.refusal(*tensors, **options), reason)


def _rotary(batch=2, heads=4, kv_heads=2, length=5, width=8, dtype=BF16, grad=False):
    shapes = [(batch, heads, length, width), (batch, kv_heads, length, width), *[(batch, length, width)] * 2]
    tensors = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    tensors[2].requires_grad_(grad)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (_rotary(), None),
        (_rotary(dtype=F64), "not torch.float64"),
        (_rotary(width=894), None),
        (_rotary(width=896), "below 896"),
        (_rotary(batch=999), None),
        (_rotary(batch=1000), "fewer than 1,000"),
        (_rotary(heads=1000), "fewer than 1,000"),
        (_rotary(heads=4, kv_heads=1000), "fewer than 1,000"),
        (_rotary(length=0), "empty"),
        (_rotary(grad=True), "gradient"),
    ],
)
def test_npu_rotary_mul(tensors, reason):
    _compare(rotary.refusal(*tensors), reason)


@pytest.mark.parametrize(
    ("shape", "dtypes", "reason"),
    [
        ((2, 8), (BF16, BF16), None),
        ((1,) * 7 + (8,), (F32, F32), None),
        ((8,), (BF16, BF16), "2 to 8"),
        ((1,) * 8 + (8,), (BF16, BF16), "2 to 8"),
        ((0, 8), (BF16, BF16), "empty"),
        ((2, 8), (BF16, F32), "differ in dtype"),
        ((2, 8), (F64, F64), "not torch.float64"),
    ],
)
def test_npu_rms_norm(shape, dtypes, reason):
    _compare(rms_norm.refusal(torch.ones(shape, dtype=dtypes[0]), torch.ones(8, dtype=dtypes[1]), 1e-6), reason)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 8), BF16, None),
        ((8,), F32, None),
        ((0, 8), BF16, "empty"),
        ((1,) * 9, BF16, "1 to 8"),
        ((), BF16, "1 to 8"),
        ((2, 8), F64, "not torch.float64"),
    ],
)
def test_npu_swiglu(shape, dtype, reason):
    _compare(swiglu.refusal(torch.ones(shape, dtype=dtype), torch.ones(shape, dtype=dtype)), reason)


@pytest.mark.parametrize(("dtype", "reason"), [(BF16, None), (F32, None), (F64, "not torch.float64")])
def test_npu_group_mean(dtype, reason):
    _compare(group_mean.refusal(torch.ones(1, 3, 4, dtype=dtype), torch.zeros(1, 3), torch.ones(1, 2)), reason)


def _compare(refusal, reason):
    if reason is None:
        assert refusal is None
    else:
        assert reason in refusal


def _empty(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((_empty(3, 8), _empty(8)), None),
        ((_empty(3, 65536), _empty(65536)), None),
        ((_empty(3, 65537), _empty(65537)), "65,536"),
        ((_empty(3, 8), _empty(8, dtype=F32)), "differ in dtype"),
        ((_empty(3, 8, dtype=F64), _empty(8, dtype=F64)), "not torch.float64"),
        ((_empty(0, 8), _empty(8)), "empty"),
    ],
)
def test_ligers_rms_norm(tensors, reason):
    _compare(cuda_rms_norm.refusal(*tensors, 1e-6), reason)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((3, 8), F32, None),
        ((65537,), BF16, "65,536"),
        ((3, 8), F64, "not torch.float64"),
        ((), F32, "scalar"),
        ((0, 8), F32, "empty"),
    ],
)
def test_ligers_swiglu(shape, dtype, reason):
    _compare(cuda_swiglu.refusal(_empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype)), reason)


@pytest.mark.parametrize(
    ("tokens", "dtype", "reason"), [(3, F16, None), (3, F64, "not torch.float64"), (0, F16, "empty")]
)
def test_ligers_linear_cross_entropy(tokens, dtype, reason):
    labels = _empty(tokens, dtype=torch.int64)
    _compare(cuda_loss.refusal(_empty(tokens, 8, dtype=dtype), _empty(5, 8, dtype=dtype), labels), reason)
