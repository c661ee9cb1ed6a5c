"""How the clustering kernels cut their work for an Ascend chip.

A program runs on one core and executes one task after another; a grid has as many programs as the chip has cores. The
data of a task must fit into the core's buffer (UB). A fifth of the buffer is left free, because two releases of the
compiler need different sizes for the same kernel. BYTES is the most that they needed for each number of a tile
(`make test-ascend-compiler` measures it).
"""

from dataclasses import dataclass

from .chips import Chip

SHARE = 0.8  # the largest fraction of a buffer that is used
# As on CUDA, the most products (128 MiB) and numbers of centred tokens (512 MiB) in memory at a time, both in fp32.
STORED_AT_ONCE, TOKENS_AT_ONCE = 2**25, 2**27
STEP = 64  # channels that a product accumulates at a time: 256 bytes of fp32
BYTES = {"centre": 33, "distances": 47, "first_equal": 47, "turn": 33, "knn_density": 98, "denser_distance": 35,
         "assign": 66, "mean": 25, "share": 21}  # fmt: skip
LENGTHS = (512, 256, 128, 64)  # tokens that a pass over rows takes at a time
WIDTHS = (2048, 512, 128)  # channels that a pass over rows of tokens takes at a time


@dataclass(frozen=True)
class Tiling:
    """How [F, N, C] tokens are cut.

    Attributes:
        tile: tokens along both sides of a tile of products, and along the longer side of the passes' tiles.
        rows: tokens along the shorter side, by pass.
        square, turned: tokens along the sides of a tile when distances are computed, and when they are transposed.
        length: tokens that `assign` compares with a centre at a time, or that are copied at a time.
        tokens, channels: numbers of tokens and channels that `centre` handles at a time.
        pitch, width: N and C padded to whole tiles; row strides of the distances and of the centred tokens.
        frames: number of frames that are processed at the same time.
        cubes, vectors: number of programs in a launch on cores of this kind.
    """

    tile: int
    rows: dict[str, int]
    square: int
    turned: int
    length: int
    tokens: int
    channels: int
    pitch: int
    width: int
    frames: int
    cubes: int
    vectors: int


def plan(chip: Chip, frames: int, count: int, channels: int) -> Tiling:
    """The Tiling of [frames, count, channels] tokens on this chip."""
    tile = 64 if count <= 64 or not fits(chip, "knn_density", 8 * 128) else 128
    pitch, width = _whole(count, tile), _whole(channels, STEP)
    together = max(1, min(frames, STORED_AT_ONCE // pitch**2, TOKENS_AT_ONCE // (pitch * width)))
    rows = {
        kernel: largest(chip, kernel, (32, 16, 8), tile) for kernel in ("first_equal", "knn_density", "denser_distance")
    }
    part = next(size for size in (256, 128, 64) if width % size == 0 and (size == 64 or fits(chip, "centre", 8 * size)))
    return Tiling(
        tile=tile,
        rows=rows,
        square=largest(chip, "distances", (64, 32, 16)),
        turned=largest(chip, "turn", (64, 32, 16)),
        length=_length(chip, pitch, together),
        tokens=largest(chip, "centre", (64, 32, 16, 8), part),
        channels=part,
        pitch=pitch,
        width=width,
        frames=together,
        cubes=chip.cubes,
        vectors=chip.vectors,
    )


def row_block(chip: Chip, channels: int) -> tuple[int, int]:
    """(channels that a pass over rows of tokens takes at a time, number of such blocks in a row)."""
    possible = [size for size in WIDTHS if fits(chip, "mean", size)]
    width = min((size for size in possible if size >= channels), default=possible[0])
    return width, -(-channels // width)


def fits(chip: Chip, kernel: str, numbers: int) -> bool:
    """Whether a tile of this many numbers leaves a fifth of the buffer free."""
    return BYTES[kernel] * numbers <= SHARE * chip.ub


def largest(chip: Chip, kernel: str, sizes: tuple[int, ...], other: int | None = None) -> int:
    """The first of `sizes`, which descend, for which a tile of size x `other` fits (size x size without `other`).

    All sizes are multiples of 32 bytes, the alignment of rows in a buffer. If none fits, the last one is returned.
    """
    return next((size for size in sizes if fits(chip, kernel, size * (other or size))), sizes[-1])


def _length(chip: Chip, pitch: int, frames: int) -> int:
    """The longest part of a row with which every core has work; if there is none, the shortest that is possible."""
    possible = [size for size in LENGTHS if pitch % size == 0 and fits(chip, "assign", size)]
    return next((size for size in possible if frames * pitch // size >= chip.vectors), possible[-1])


def _whole(count: int, size: int) -> int:
    return -(-count // size) * size
