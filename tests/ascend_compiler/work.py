"""The kernels that are compiled: every kernel for Ascend at every tile that the planner can choose for a chip."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from unittest import mock

import reading
import torch
from compiling import Kernel, compiled, recorded

from ppe_npu.backends import device
from ppe_npu.backends.npu import chips, dpc_knn, row_mean, tiles

# Indices of the arguments of each kernel that are a user's tensors, whose ends are not padded.
UNPADDED = {"_centre": {0}, "_mean": {0, 3}, "_share": {0, 3}}
FIRST = next(iter(chips.CHIPS))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# These shapes together get every tile, as a test checks.
COUNTS = (48, 64, 100, 256, 512, 768, 5760)
CHANNELS = (64, 70, 192, 2048, 3584)
FRAMES = (1, 32, 64)


def without_memory(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@contextlib.contextmanager
def planned_for(chip: chips.Chip) -> Iterator[None]:
    """Calls on tensors of any device plan for this chip, and do not switch devices."""
    here = {"chip": lambda _: chip}
    with (
        mock.patch.multiple(dpc_knn, **here),
        mock.patch.multiple(row_mean, **here),
        mock.patch.object(device, "current", return_value=contextlib.nullcontext()),
    ):
        yield


def shapes(chip: chips.Chip) -> list[tuple[int, int, int]]:
    """One shape (frames, count, channels) for every tiling that any of them gets."""
    found = {}
    for shape in itertools.product(FRAMES, COUNTS, CHANNELS):
        found.setdefault(held(chip, *shape), shape)
    return list(found.values())


def held(chip: chips.Chip, frames: int, count: int, channels: int) -> tuple[int, ...]:
    """All sizes that kernels are compiled for at a shape."""
    plan = tiles.plan(chip, frames, count, channels)
    return (plan.tile, *plan.rows.values(), plan.square, plan.turned, plan.length, plan.tokens, plan.channels)


def cluster(frames: int, count: int, channels: int, dtype: torch.dtype, strict: bool) -> None:
    numbers = without_memory(frames, dtype=torch.int64)
    valid = without_memory(frames, count, dtype=torch.bool)
    tokens = without_memory(frames, count, channels, dtype=dtype)
    dpc_knn.dpc_knn(tokens, valid, numbers, max(1, count // 2), numbers, strict)


def average(frames: int, count: int, channels: int, groups: int, dtype: torch.dtype) -> None:
    labels, counts = (without_memory(frames, size, dtype=torch.int64) for size in (count, groups))
    tokens = without_memory(frames, count, channels, dtype=dtype).requires_grad_()
    means = row_mean.group_mean(tokens, labels, counts)
    means.backward(means.detach())


def kernels(chip: chips.Chip) -> tuple[Kernel, ...]:
    """One kernel of each different IR for this chip; IR also differs where an argument is 1."""
    return _kernels(dataclasses.replace(chip, name=""))


@functools.cache
def _kernels(chip: chips.Chip) -> tuple[Kernel, ...]:
    strict = {torch.bfloat16: False, torch.float32: True}
    with planned_for(chip), recorded() as found:
        for dtype, (place, shape) in itertools.product(DTYPES, enumerate(shapes(chip))):
            cluster(*shape, dtype, strict=strict.get(dtype, place % 2 == 1))
        for dtype, channels in itertools.product(DTYPES, (70, 512, 3584)):
            average(32, 768, channels, 346, dtype)
    return tuple({kernel.linalg: kernel for kernel in found}.values())


def one_of_each_tile(found: tuple[Kernel, ...]) -> list[Kernel]:
    """One of these for each kernel, tile and dtype of the user's tensors, if possible one without arguments of 1."""
    first = {}
    for kernel in sorted(found, key=lambda kernel: -len(kernel.arguments)):
        first.setdefault((kernel.name, *kernel.constants.values(), *dtypes(kernel)), kernel)
    return list(first.values())


def wanted(chip: chips.Chip) -> list[Kernel]:
    """The kernels that are compiled for a chip: all of them for the first chip, one of each tile for the others."""
    every = kernels(chip)
    return list(every) if chip.name == FIRST else one_of_each_tile(every)


def dtypes(kernel: Kernel) -> list[str]:
    """The dtypes of the user's tensors that a kernel reads or writes."""
    places = sorted(UNPADDED.get(kernel.name, ()))
    return sorted({str(kernel.arguments[place].dtype).removeprefix("torch.") for place in places})


def of_chips(releases: list[str]) -> list[str]:
    """The lines of the table of chips in docs/npu.md: their properties, and how many kernels are compiled for each."""
    sizes = {"UB": "ub", "L1": "l1", "L0A and L0B": "l0", "L0C": "l0c"}
    heads = ("chip", "cube cores", "vector cores", *(f"{name}, KiB" for name in sizes))
    lines = [
        f"| {' | '.join(heads)} | {' | '.join(f'compiled by {release}' for release in releases)} |",
        "|---" * (len(heads) + len(releases)) + "|",
    ]
    for chip in chips.CHIPS.values():
        kib = (getattr(chip, field) // chips.KIB for field in sizes.values())
        cells = (chip.name, chip.cubes, chip.vectors, *kib, *[len(wanted(chip))] * len(releases))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def rows(chip: chips.Chip, releases: list[str]) -> list[str]:
    """The lines of the table of memory in docs/npu.md: the most KiB that each kernel takes at each tile."""
    most: dict[tuple[str, str], dict[str, int]] = {}
    for kernel in kernels(chip):
        tile = ", ".join(f"{name} {value}" for name, value in kernel.constants.items() if name != "STRICT")
        for release in releases:
            for memory, size in reading.memory(compiled(kernel.linalg, chip.name, release)).items():
                taken = most.setdefault((kernel.name.removeprefix("_"), tile), {})
                taken[memory] = max(taken.get(memory, 0), size)
    names = ("ub", "l1", "l0c")
    lines = [
        f"| kernel | tile | {' | '.join(f'{name.upper()}, KiB' for name in names)} | of the chip's |",
        "|---" * 6 + "|",
    ]
    for (kernel, tile), taken in sorted(most.items()):
        share = max(size / getattr(chip, memory) for memory, size in taken.items())
        cells = [f"{taken[name] / chips.KIB:.1f}" if name in taken else "" for name in names]
        lines.append(f"| {kernel} | {tile} | {' | '.join(cells)} | {share:.0%} |")
    return lines
