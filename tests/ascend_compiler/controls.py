"""Kernels with faults, which show that our checks would find such faults. As a program, this runs a mean of the last
rows of memory: `gathered` reads past the end, where it is killed.

    python tests/ascend_compiler/controls.py gathered | whole_rows
"""

import sys

import torch
import triton
import triton.language as tl
from compiling import recorded
from executing import execute
from memory_end import at_the_end_of_a_page
from work import planned_for

from ppe_npu.backends.npu import row_mean
from ppe_npu.backends.npu.chips import NONE
from ppe_npu.backends.reference.group_mean import group_mean


@triton.jit
def gathered(x_ptr, order_ptr, out_ptr, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Gathers rows as one would on a GPU. Here whole rows of WIDTH are read, and the mask is applied afterwards."""
    row = tl.load(order_ptr + tl.arange(0, ROWS))
    channel = tl.arange(0, WIDTH)
    mask = (row >= 0)[:, None] & (channel < width)[None, :]
    x = tl.load(x_ptr + row[:, None] * width + channel[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + channel, tl.sum(x, axis=0), mask=channel < width)


@triton.jit
def wide_integers(x_ptr, out_ptr, WIDTH: tl.constexpr):
    """Adds int64, for which there is no vector instruction: it adds one number after another."""
    place = tl.arange(0, WIDTH)
    tl.store(out_ptr + place, tl.load(x_ptr + place) + tl.load(x_ptr + WIDTH + place))


@triton.jit
def too_large(x_ptr, out_ptr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Holds more numbers than fit into a buffer."""
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + row[:, None] * WIDTH + channel[None, :])
    tl.store(out_ptr + row[:, None] * WIDTH + channel[None, :], x - tl.sum(x, axis=0)[None, :])


def at_the_end(which: str) -> bool:
    """Whether a mean of the last rows of memory is right, computed by `gathered` or by our own kernel."""
    tokens = at_the_end_of_a_page(torch.randn(1, 8, 1536))
    labels, counts = torch.zeros(1, 8, dtype=torch.int64), torch.tensor([[8]])
    means = torch.zeros(1, 1, 1536)
    with planned_for(NONE), recorded(execute):
        if which == "gathered":
            order = torch.arange(8, dtype=torch.int32)
            gathered[(1,)](tokens, order, means, 1536, ROWS=8, WIDTH=2048)
            means /= 8
        else:
            means = row_mean.group_mean(tokens, labels, counts)
    return torch.equal(means, group_mean(tokens, labels, counts))


if __name__ == "__main__":
    print(at_the_end(sys.argv[1]))
