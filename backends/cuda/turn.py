"""The Triton kernel of both rotary ops: pairs (x[i], x[i + D/2]) of all heads of a token rotated by its angles.

It works in fp32 and rounds once, reads queries and keys where they are, whatever their strides, and writes new ones
with the same strides. The backward pass is the same kernel with the rotation transposed: only the tables or
rows are saved for it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppe_npu.backends import device


def refusal(query: Tensor, key: Tensor, *tables: Tensor) -> str | None:
    """fp16, bf16, fp32; even head widths up to 1,024; nothing empty; no gradient for the tables."""
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernel takes fp16, bf16 and fp32, not {query.dtype}"
    if query.shape[-1] % 2 or query.shape[-1] > 1024:
        return "the Triton kernel takes even head widths up to 1,024"
    if query.numel() == 0 or key.numel() == 0:
        return "the Triton kernel takes no empty tensor"
    if torch.is_grad_enabled() and any(table.requires_grad for table in tables):
        return "the Triton kernel has no gradient for the tables"
    return device.triton_problem(query.device)


def turned(query: Tensor, key: Tensor, first: Tensor, second: Tensor, rows: Tensor | None, scaling: float):
    """query [B, H, S, D] and key [B, Hkv, S, D], rotated; differentiable in both.

    Args:
        first, second: cos and sin [B or 1, S, D]; with `rows`, the row that each channel reads, int64 [D/2], and the
            channels' radians per position [D/2].
        rows: int [R, B, S] positions, or None.
        scaling: of cosines and sines made from rows.
    """
    return _Rotate.apply(query, key, first, second, rows, scaling)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, first, second, rows, scaling):
        ctx.save_for_backward(first, second, rows)
        ctx.scaling = scaling
        return _launch(query, key, first, second, rows, scaling, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, query, key):
        first, second, rows = ctx.saved_tensors
        return (*_launch(query, key, first, second, rows, ctx.scaling, transposed=True), None, None, None, None)


def _launch(query, key, first, second, rows, scaling, transposed):
    query, key = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key))
    outputs = [torch.empty_like(tensor) for tensor in (query, key)]
    batch, heads, length, width = query.shape
    if rows is None:
        first, second = (table if table.stride(-1) == 1 else table.contiguous() for table in (first, second))
        table_strides = [
            step for table in (first, second) for step in (table.stride(0) * (len(table) > 1), table.stride(1))
        ]
        rows = first  # not read
    else:
        first, second = first.contiguous(), second.contiguous()
        table_strides = [0, rows.stride(0), rows.stride(1), rows.stride(2)]
    strides = [stride for tensor in (query, key, *outputs) for stride in tensor.stride()[:3]]
    with device.current(query.device):
        _rotate[(batch * length,)](
            query, key, *outputs, first, second, rows, *strides, *table_strides, heads, key.shape[1], length, scaling,
            HEAD_DIM=width, BLOCK_D=max(16, triton.next_power_of_2(width // 2)),
            BLOCK_H=min(16, triton.next_power_of_2(heads)),
            TRANSPOSED=transposed, FROM_ROWS=rows is not first,
        )  # fmt: skip
    return tuple(outputs)


@triton.jit
def _rotate(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, first_ptr, second_ptr, rows_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks,
    stride_qob, stride_qoh, stride_qos, stride_kob, stride_koh, stride_kos,
    stride_0, stride_1, stride_2, stride_3, num_heads, num_kv_heads, seq_len, scaling,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, TRANSPOSED: tl.constexpr,
    FROM_ROWS: tl.constexpr,
):  # fmt: skip
    """One program rotates all heads of one token; if TRANSPOSED, by the transposed matrix, as in the backward pass."""
    pid = tl.program_id(0)
    batch = (pid // seq_len).to(tl.int64)
    token = (pid % seq_len).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < HEAD_DIM // 2
    if FROM_ROWS:
        row = tl.load(first_ptr + offs_d, mask=mask, other=0)
        position = tl.load(rows_ptr + row * stride_1 + batch * stride_2 + token * stride_3, mask=mask, other=0)
        angle = position.to(tl.float32) * tl.load(second_ptr + offs_d, mask=mask, other=0.0).to(tl.float32)
        cos_1, sin_1 = tl.cos(angle) * scaling, tl.sin(angle) * scaling
        cos_2, sin_2 = cos_1, sin_1
    else:
        first_ptr += batch * stride_0 + token * stride_1 + offs_d
        second_ptr += batch * stride_2 + token * stride_3 + offs_d
        cos_1 = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
        sin_1 = tl.load(second_ptr, mask=mask, other=0.0).to(tl.float32)
        cos_2 = tl.load(first_ptr + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
        sin_2 = tl.load(second_ptr + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
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
