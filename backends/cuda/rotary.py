"""rotary by a Triton kernel: pairs (x[i], x[i + D/2]) of all heads of a token, rotated by its angles.

It works in fp32 and rounds once, reads queries and keys where they are, whatever their strides, and writes new ones
with the same strides. The backward pass is the same kernel with the rotation transposed: nothing but the tables is
kept for it.
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
        return "the Triton kernel has no gradient for what is not query or key"
    return device.triton_problem(query.device)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `ppe_npu.backends.rotary`. Differentiable in query and key."""
    return _Turn.apply(query, key, cos, sin)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _launch(query, key, cos, sin, inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, query, key):
        return (*_launch(query, key, *ctx.saved_tensors, inverse=True), None, None)


def _launch(query, key, cos, sin, inverse):
    query, key, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, cos, sin))
    outputs = [torch.empty_like(tensor) for tensor in (query, key)]
    batch, heads, length, width = query.shape
    places = [step for table in (cos, sin) for step in (table.stride(0) * (len(table) > 1), table.stride(1))]
    strides = [stride for tensor in (query, key, *outputs) for stride in tensor.stride()[:3]]
    with device.current(query.device):
        _turn[(batch * length,)](
            query, key, *outputs, cos, sin, *strides, *places, heads, key.shape[1], length,
            WIDTH=width, HALF=max(16, triton.next_power_of_2(width // 2)), HEADS=min(16, triton.next_power_of_2(heads)),
            INVERSE=inverse,
        )  # fmt: skip
    return tuple(outputs)


@triton.jit
def _turn(
    query, key, query_out, key_out, first, second,
    query_batch, query_head, query_place, key_batch, key_head, key_place,
    query_out_batch, query_out_head, query_out_place, key_out_batch, key_out_head, key_out_place,
    place_0, place_1, place_2, place_3, heads, kv_heads, length,
    WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """One program: all heads of one token."""
    batch = (tl.program_id(0) // length).to(tl.int64)
    place = (tl.program_id(0) % length).to(tl.int64)
    pair = tl.arange(0, HALF)
    inside = pair < WIDTH // 2
    first += batch * place_0 + place * place_1 + pair
    second += batch * place_2 + place * place_3 + pair
    cos_1 = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    sin_1 = tl.load(second, mask=inside, other=0.0).to(tl.float32)
    cos_2 = tl.load(first + WIDTH // 2, mask=inside, other=0.0).to(tl.float32)
    sin_2 = tl.load(second + WIDTH // 2, mask=inside, other=0.0).to(tl.float32)
    if INVERSE:
        # The rotation's transpose.
        sin_1, sin_2 = -sin_2, -sin_1
    query += batch * query_batch + place * query_place
    key += batch * key_batch + place * key_place
    query_out += batch * query_out_batch + place * query_out_place
    key_out += batch * key_out_batch + place * key_out_place
    _heads(query, query_out, query_head, query_out_head, heads, pair, cos_1, sin_1, cos_2, sin_2, WIDTH, HEADS)
    _heads(key, key_out, key_head, key_out_head, kv_heads, pair, cos_1, sin_1, cos_2, sin_2, WIDTH, HEADS)


@triton.jit
def _heads(
    x, out, stride, out_stride, heads, pair, cos_1, sin_1, cos_2, sin_2, WIDTH: tl.constexpr, HEADS: tl.constexpr
):
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS))[:, None]
        real = (head < heads) & (pair < WIDTH // 2)[None, :]
        at = x + head.to(tl.int64) * stride + pair[None, :]
        one = tl.load(at, mask=real, other=0.0).to(tl.float32)
        two = tl.load(at + WIDTH // 2, mask=real, other=0.0).to(tl.float32)
        to = out + head.to(tl.int64) * out_stride + pair[None, :]
        tl.store(to, (one * cos_1[None, :] - two * sin_1[None, :]).to(out.dtype.element_ty), mask=real)
        turned = two * cos_2[None, :] + one * sin_2[None, :]
        tl.store(to + WIDTH // 2, turned.to(out.dtype.element_ty), mask=real)
