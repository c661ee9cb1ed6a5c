"""The Ascend chips: how many cores they have, and how much memory each core has.

The sizes are those that Huawei's compiler assumes for each name; `make test-ascend-compiler` compares them with the
compiler's last IR. Where torch_npu reports the numbers of cores, those of the device itself are used.
"""

from dataclasses import dataclass, replace

import torch

from ppe_npu.backends import device

KIB = 1024


@dataclass(frozen=True)
class Chip:
    """One kind of chip; sizes in bytes.

    Attributes:
        name: the name that torch_npu and the compiler's --target use.
        cubes, vectors: numbers of cores that multiply matrices, and of cores that do all else.
        ub: the buffer of a vector core. l1, l0, l0c: the buffers of a cube core, for both operands, for the current
            part of one operand, and for the sums.
    """

    name: str
    cubes: int
    vectors: int
    ub: int = 192 * KIB
    l1: int = 512 * KIB
    l0: int = 64 * KIB
    l0c: int = 128 * KIB


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("Ascend910B1", 24, 48),
        Chip("Ascend910B2", 24, 48),
        Chip("Ascend910B2C", 24, 48),
        Chip("Ascend910B3", 20, 40),
        Chip("Ascend910B4", 20, 40),
        Chip("Ascend910B4-1", 20, 40),
        Chip("Ascend910_9362", 20, 40),
        Chip("Ascend910_9372", 20, 40),
        Chip("Ascend910_9381", 24, 48),
        Chip("Ascend910_9382", 24, 48),
        Chip("Ascend910_9391", 24, 48),
        Chip("Ascend910_9392", 24, 48),
    )
}
# Triton's interpreter has no cores and is fastest with few, large tiles. The grid is smaller than the number of tasks,
# so that tests show that a program runs several tasks.
NONE = Chip("none", 2, 3, ub=1024 * KIB)


def chip(where: torch.device) -> Chip:
    """The chip of an NPU that passes `problem`; `NONE` for other devices, where Triton's interpreter runs."""
    facts = device.ascend_cores(where)
    if facts is None:
        return NONE
    name, cubes, vectors = facts
    known = CHIPS[name]
    return replace(known, cubes=cubes or known.cubes, vectors=vectors or known.vectors)


def problem(where: torch.device) -> str | None:
    """Why our Triton kernels cannot run on this device, or None."""
    facts = device.ascend_cores(where)
    if facts is not None and facts[0] not in CHIPS:
        return f"our Triton kernels are planned for chips of the 910B and 910C kinds, not {facts[0]}"
    return device.ascend_triton_problem(where)
