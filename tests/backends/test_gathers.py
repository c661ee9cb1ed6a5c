"""Kernels gather the right numbers, and touch nothing beyond the ends of their tensors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import assert_equal

pytest.importorskip("triton")

from kernel_device import DEVICE, on_device
from triton_interpreter import repair

from ppe_npu.backends import onehot
from ppe_npu.backends.cuda import group_mean as cuda_means
from ppe_npu.backends.npu import row_mean as ascend_means
from ppe_npu.backends.reference import group_mean as reference

pytestmark = pytest.mark.half

repair()
ROOT = Path(__file__).parents[2]
ON_CPU = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU memory does not end where a tensor does")
ASCEND = pytest.param(ascend_means, id="ascend", marks=ON_CPU)


@pytest.mark.parametrize("means", [reference, onehot, pytest.param(cuda_means, id="cuda"), ASCEND])
@pytest.mark.parametrize("channels", [1, 33, 200])
def test_every_number_comes_from_its_own_token_and_channel(means, channels):
    """Every value encodes its token and channel, so a wrong one shows where it came from. Groups have one token each,
    in any order, with gaps; fp32 holds these whole numbers exactly."""
    tokens = (torch.arange(2 * 9)[:, None] * 1000.0 + torch.arange(channels)).view(2, 9, channels)
    groups = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(f))[:9] for f in range(2)])
    counts = torch.zeros(2, 12, dtype=torch.int64).scatter_(1, groups, 1)
    function = on_device(means.group_mean) if means is cuda_means else means.group_mean
    tokens.requires_grad_()
    found = function(tokens, groups, counts)
    assert_equal(found.gather(1, groups[:, :, None].expand(-1, -1, channels)), tokens)
    assert_equal(found[counts == 0], torch.zeros(6, channels))
    mark = torch.arange(2 * 12 * channels, dtype=torch.float32).view(2, 12, channels)
    (gradient,) = torch.autograd.grad(found, tokens, mark)
    assert_equal(gradient, mark.gather(1, groups[:, :, None].expand(-1, -1, channels)))


PROGRAM = """
import ctypes
import torch
from memory_end import at_the_end_of_a_page as ending
from triton_interpreter import repair
from ppe_npu.backends.{folder} import dpc_knn, {means} as means

repair()
for dtype in (torch.float32, torch.bfloat16):
    tokens = ending(torch.randn(1, 11, 37).to(dtype)).requires_grad_()
    labels, counts, numbers = (ending(torch.tensor(x)) for x in ([[0, 1, 2] * 3 + [0, 1]], [[4, 4, 3]], [4]))
    found = means.group_mean(tokens, labels, counts)
    torch.autograd.grad(found, tokens, ending(found.detach()))
    dpc_knn.dpc_knn(tokens.detach(), None, numbers, 4, numbers)
print("whole", flush=True)
ctypes.string_at(tokens.data_ptr(), tokens.numel() * tokens.element_size() + 1)  # the control: one byte too many
"""


@ON_CPU
@pytest.mark.slow
@pytest.mark.parametrize(("folder", "means"), [("cuda", "group_mean"), ("npu", "row_mean")])
def test_nothing_is_touched_past_the_end(folder, means):
    """Sizes are odd, so that tiles are cut, and the interpreter reads what a kernel reads. As a control, the process
    then reads one byte past the end, and must die there."""
    program = PROGRAM.format(folder=folder, means=means)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", "tests/backends", *sys.path])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "whole", done.stderr[-2000:]
    assert done.returncode == -signal.SIGSEGV
