"""A number added to the scores of each key, for attention kernels that take no such number.

A score is scale * (query . key). With one more channel, in which every query holds a constant and each key its number,
the same product holds the number, too. So no matrix of queries by keys is needed, and kernels that take only causality
or borders (flash attention, packed segments, an NPU's fused attention) can be used as they are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import require

STEP = 16  # fused kernels are made for head widths in such steps


def widened(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Query, key and value of attention without the bias whose first D channels are those of attention with it, and the
    scale to pass.

    Args:
        query: [B, H, S, D]. key, value: [B, Hkv, T, D].
        bias: [B, T], floating point, added to the scaled scores of each key; finite.
        scale: 1/sqrt(D) if None.

    Returns:
        query [B, H, S, W], key and value [B, Hkv, T, W], W the next multiple of 16 with room for the bias; the scale.

    Raises:
        InputError: a scale of 0.
    """
    width, dtype = query.shape[3], query.dtype
    scale = width**-0.5 if scale is None else scale
    require(scale != 0, "attention: key_bias needs a scale other than 0, got", scale)
    # A power of two that no dtype rounds, fp16 included; the numbers take what is missing to 1 / scale.
    constant = 2.0 ** max(min(round(-math.log2(abs(scale))), 14), -14)
    parts = _parts(bias.to(torch.promote_types(dtype, torch.float32)) / (scale * constant), dtype)
    room = -(-(width + len(parts)) // STEP) * STEP - width
    numbers = F.pad(torch.stack(parts, dim=-1), (0, room - len(parts)))[:, None]
    constants = query.new_zeros(room)
    constants[: len(parts)] = constant
    query = torch.cat([query, constants.expand(*query.shape[:3], room)], dim=-1)
    key = torch.cat([key, numbers.expand(*key.shape[:3], room)], dim=-1)
    return query, key, F.pad(value, (0, room)), scale


def _parts(numbers: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors of this dtype whose exact sum is `numbers` to at least 22 bits: three in fp16 and bf16, else one."""
    parts = []
    for _ in range(3 if dtype.itemsize < 4 else 1):
        parts.append(numbers.to(dtype))
        numbers = numbers - parts[-1].to(numbers.dtype)
    return parts
