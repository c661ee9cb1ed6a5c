"""Measures a chip's peak speeds: of a large matrix product, by dtype, and of a large copy."""

from collections.abc import Iterable

import torch

from bench.counting import Peaks
from bench.timing import stopwatch
from ppe_npu.backends import device as devices

# (side of the square matrices, bytes of the copy): large enough that caches and launches do not matter.
ON_HOST, ON_CHIP, TINY = (2048, 2**27), (8192, 2**31), (64, 2**16)


def measure(
    device: torch.device, dtypes: Iterable[torch.dtype], rounds: int, size: tuple[int, int] | None = None
) -> Peaks:
    """The peaks, each from the fastest, least disturbed round. fp32 products are real fp32 (no TF32, no HF32)."""
    side, count = size or (ON_HOST if devices.on_cpu(device) else ON_CHIP)
    return Peaks({dtype: _product(device, dtype, side, rounds) for dtype in dtypes}, _copy(device, count, rounds))


def _copy(device: torch.device, count: int, rounds: int) -> float:
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [stopwatch(lambda: target.copy_(source), device) for _ in range(rounds + 1)]
    return 2 * count / min(times) * 1e3


def _product(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    with devices.exact_matmul():
        times = [stopwatch(lambda: torch.mm(a, b, out=out), device) for _ in range(rounds + 1)]
    return 2 * side**3 / min(times) * 1e3
