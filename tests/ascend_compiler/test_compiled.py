"""Huawei's compiler accepts every kernel at every tile for every chip, and plans no more memory than our planner."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from compiling import COMPILERS, Refused, compiled, recorded
from controls import gathered, too_large, wide_integers
from reading import memory, moves, singles, sizes
from work import FIRST, UNPADDED, held, kernels, of_chips, rows, shapes, wanted, without_memory

from ppe_npu.backends.npu import tiles
from ppe_npu.backends.npu.chips import CHIPS

MANUAL = Path(__file__).parents[2] / "docs" / "npu.md"
RELEASES = pytest.mark.parametrize("release", COMPILERS)
# All tests of one chip are in one group, so that one process compiles its kernels only once.
EVERY_CHIP = pytest.mark.parametrize(
    "chip",
    [pytest.param(chip, marks=pytest.mark.xdist_group(chip.name)) for chip in CHIPS.values()],
    ids=list(CHIPS),
)


def test_both_addresses_of_a_double_buffer_are_counted():
    ir = """%c0_i64 = arith.constant 0 : i64
    %c8192_i64 = arith.constant 8192 : i64
    %4 = hivm.hir.pointer_cast(%c0_i64, %c8192_i64) : memref<16x64xf32, #hivm.address_space<ub>>"""
    assert memory(ir) == {"ub": 8192 + 16 * 64 * 4}


@RELEASES
@EVERY_CHIP
def test_the_table_of_chips_is_the_compilers(chip, release):
    found = sizes(compiled(kernels(chip)[0].linalg, chip.name, release))
    assert (found["CUBE_CORE_COUNT"], found["VECTOR_CORE_COUNT"]) == (chip.cubes, chip.vectors)
    bits = [found[f"{name}_SIZE"] for name in ("UB", "L1", "L0A", "L0B", "L0C")]
    assert bits == [8 * size for size in (chip.ub, chip.l1, chip.l0, chip.l0, chip.l0c)]


@RELEASES
@EVERY_CHIP
def test_every_kernel_compiles_at_every_tile(chip, release):
    assert {kernel.name for kernel in wanted(chip)} == {
        "_centre", "_products", "_distances", "_first_equal", "_copy_rows", "_turn", "_knn_density", "_denser_distance",
        "_assign", "_mean", "_share",
    }  # fmt: skip
    for kernel in wanted(chip):
        ir = compiled(kernel.linalg, chip.name, release)
        taken = memory(ir)
        assert taken, kernel
        for name, size in taken.items():
            assert size <= tiles.SHARE * getattr(chip, name), (kernel, taken)
        assert taken.get("ub", 0) <= tiles.BYTES.get(kernel.name[1:], chip.ub) * numbers(kernel), (kernel, taken)
        assert singles(ir) == [], kernel
        users = [cut for place, cut in moves(ir) if place in UNPADDED.get(kernel.name, ())]
        assert all(users), kernel
        assert bool(users) == (kernel.name in UNPADDED)


def numbers(kernel) -> int:
    """How many numbers are in the tile on which the planner bases its bytes."""
    c = kernel.constants
    square = {"_distances": "SQUARE", "_turn": "TILE"}.get(kernel.name)
    if square:
        return c[square] ** 2
    sides = [c[name] for name in ("ROWS", "TILE", "TOKENS", "CHANNELS", "LENGTH", "WIDTH") if name in c]
    return sides[0] * (sides[1] if len(sides) > 1 else 1)


def test_the_shapes_reach_every_tiling():
    """Every input of a user is cut into the tiles of one of the shapes that are compiled."""
    for chip in (CHIPS["Ascend910B1"], CHIPS["Ascend910B3"]):
        compiled_for = {held(chip, *shape) for shape in shapes(chip)}
        for shape in itertools.product((1, 2, 7, 48, 999), range(1, 5761, 29), (1, 65, 130, 1024)):
            assert held(chip, *shape) in compiled_for, shape


@RELEASES
def test_a_kernel_that_holds_too_much_is_refused(release):
    with recorded() as found:
        tensor = without_memory(128, 512, dtype=torch.float32)
        too_large[(1,)](tensor, tensor, ROWS=128, WIDTH=512)
    with pytest.raises(Refused, match=r"[Uu]b overflow"):
        compiled(found[0].linalg, FIRST, release)


@RELEASES
def test_single_numbers_in_a_loop_are_seen(release):
    with recorded() as found:
        tensor = without_memory(2048, dtype=torch.int64)
        wide_integers[(1,)](tensor, tensor, WIDTH=1024)
    assert singles(compiled(found[0].linalg, FIRST, release))


@RELEASES
def test_a_mask_that_does_not_cut_what_is_read_is_seen(release):
    with recorded() as found:
        tensors = (without_memory(8 * 1536, dtype=torch.float32), without_memory(8, dtype=torch.int32))
        gathered[(1,)](*tensors, tensors[0], 1536, ROWS=8, WIDTH=2048)
    read = [cut for place, cut in moves(compiled(found[0].linalg, FIRST, release)) if place == 0]
    assert False in read


@pytest.mark.xdist_group(FIRST)
def test_the_manual_has_these_tables():
    """PPE_DOCUMENT=1 writes the tables instead."""
    lines = [*of_chips(list(COMPILERS)), "", *rows(CHIPS[FIRST], list(COMPILERS))]
    text = MANUAL.read_text()
    begin, end = "<!-- begin: make test-ascend-compiler -->\n", "<!-- end -->\n"
    before, rest = text.split(begin)
    inside, after = rest.split(end, 1)
    if os.environ.get("PPE_DOCUMENT") == "1":
        MANUAL.write_text(before + begin + "\n".join(lines) + "\n" + end + after)
    else:
        assert inside.splitlines() == lines
