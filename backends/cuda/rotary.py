"""rotary by a Triton kernel: pairs (x[i], x[i + D/2]) of all heads of a token, rotated by its angles.

It computes in fp32 and rounds once. It reads queries and keys with any strides, without copying them, and writes new
ones with the same strides. The backward pass is the same kernel with the rotation transposed, so only the tables are
saved for it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device
from ppe_npu.backends.common import refused_dtype


def refusal(query: Tensor, key: Tensor, *tables: Tensor) -> str | None:
    """Limits: fp16, bf16, fp32; even head widths up to 1,024; nothing empty; no gradient for the tables."""
    if reason := refused_dtype("the Triton kernel takes", query.dtype):
        return reason
    if query.shape[-1] % 2 or query.shape[-1] > 1024:
        return "the Triton kernel takes even head widths up to 1,024"
    if query.numel() == 0 or key.numel() == 0:
        return "the Triton kernel takes no empty tensor"
    if torch.is_grad_enabled() and any(table.requires_grad for table in tables):
        return "the Triton kernel has no gradient for the tables"
    return device.triton_problem(query.device)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`. Differentiable in query and key."""
    return _Rotate.apply(query, key, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _launch(query, key, cos, sin, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, query, key):
        cos, sin = ctx.saved_tensors
        return (*_launch(query, key, cos, sin, transposed=True), None, None)


def _launch(query, key, cos, sin, transposed):
    query, key, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin))
    outputs = [torch.empty_like(tensor) for tensor in (query, key)]
    batch, heads, length, width = query.shape
    table_strides = [step for table in (cos, sin) for step in (table.stride(0) * (len(table) > 1), table.stride(1))]
    strides = [stride for tensor in (query, key, *outputs) for stride in tensor.stride()[:3]]
    with device.current(query.device):
        _rotate[(batch * length,)](
            query, key, *outputs, cos, sin, *strides, *table_strides, heads, key.shape[1], length,
            HEAD_DIM=width, BLOCK_D=max(16, triton.next_power_of_2(width // 2)),
            BLOCK_H=min(16, triton.next_power_of_2(heads)),
            TRANSPOSED=transposed,
        )  # fmt: skip
    return tuple(outputs)


@triton.jit
def _rotate(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, cos_ptr, sin_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks,
    stride_qob, stride_qoh, stride_qos, stride_kob, stride_koh, stride_kos,
    stride_cos_b, stride_cos_s, stride_sin_b, stride_sin_s, num_heads, num_kv_heads, seq_len,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """One program rotates all heads of one token; if TRANSPOSED, by the transposed matrix, as in the backward pass."""
    pid = tl.program_id(0)
    batch = (pid // seq_len).to(tl.int64)
    token = (pid % seq_len).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < HEAD_DIM // 2
    cos_ptr += batch * stride_cos_b + token * stride_cos_s + offs_d
    sin_ptr += batch * stride_sin_b + token * stride_sin_s + offs_d
    cos_1 = tl.load(cos_ptr, mask=mask, other=0.0).to(tl.float32)
    sin_1 = tl.load(sin_ptr, mask=mask, other=0.0).to(tl.float32)
    cos_2 = tl.load(cos_ptr + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin_ptr + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    if TRANSPOSED:
        sin_1, sin_2 = -sin_2, -sin_1
    q_ptr += batch * stride_qb + token * stride_qs
    k_ptr += batch * stride_kb + token * stride_ks
    q_out_ptr += batch * stride_qob + token * stride_qos
    k_out_ptr += batch * stride_kob + token * stride_kos
    _heads(q_ptr, q_out_ptr, stride_qh, stride_qoh, num_heads, offs_d, cos_1, sin_1, cos_2, sin_2, HEAD_DIM, BLOCK_H)
    _heads(k_ptr, k_out_ptr, stride_kh, stride_koh, num_kv_heads, offs_d, cos_1, sin_1, cos_2, sin_2, HEAD_DIM, BLOCK_H)


@triton.jit
def _heads(
    x_ptr, out_ptr, stride_xh, stride_oh, num_heads, offs_d, cos_1, sin_1, cos_2, sin_2,
    HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    for start_h in range(0, num_heads, BLOCK_H):
        offs_h = (start_h + tl.arange(0, BLOCK_H))[:, None]
        mask = (offs_h < num_heads) & (offs_d < HEAD_DIM // 2)[None, :]
        x_ptrs = x_ptr + offs_h.to(tl.int64) * stride_xh + offs_d[None, :]
        x1 = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        x2 = tl.load(x_ptrs + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
        out_ptrs = out_ptr + offs_h.to(tl.int64) * stride_oh + offs_d[None, :]
        tl.store(out_ptrs, (x1 * cos_1[None, :] - x2 * sin_1[None, :]).to(out_ptr.dtype.element_ty), mask=mask)
        y2 = x2 * cos_2[None, :] + x1 * sin_2[None, :]
        tl.store(out_ptrs + HEAD_DIM // 2, y2.to(out_ptr.dtype.element_ty), mask=mask)
