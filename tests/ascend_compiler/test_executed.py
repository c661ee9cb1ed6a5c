"""The IR of the kernels for Ascend, executed on this CPU, against the specification."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiling import recorded
from executing import execute
from memory_end import at_the_end_of_a_page
from tolerances import assert_equal
from work import DTYPES, planned_for

from ppe_npu.backends.npu import dpc_knn, row_mean
from ppe_npu.backends.npu.chips import CHIPS
from ppe_npu.backends.reference.dpc_knn import dpc_knn as reference
from ppe_npu.backends.reference.group_mean import group_mean as reference_mean

# The chip has fewer cores than a real one, so that every program processes several tasks.
CHIP = dataclasses.replace(CHIPS["Ascend910B1"], cubes=2, vectors=3)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)  # this makes torch.empty fill its memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_the_ir():
    with planned_for(CHIP), recorded(execute):
        yield


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("frames", "count", "channels"), [(2, 37, 70), (3, 130, 96), (2, 257, 130)])
def test_centres_and_labels_are_equal(on_the_ir, frames, count, channels, dtype, strict):
    """Frames are ragged, with copies in the first and the last tile, and with different numbers of neighbours."""
    g = torch.Generator().manual_seed(count)
    x = torch.randn(frames, count, channels, generator=g) * 3 + 5 * torch.randn(1, 1, channels, generator=g)
    x[:, [5, count // 2, count - 1]] = x[:, [3, 3, 9]]
    x = at_the_end_of_a_page(x.to(dtype))
    lengths = torch.tensor([count // 2, 21, count][-frames:])  # the last frame is full: memory ends with its last token
    budgets, neighbors = lengths // 3, torch.tensor([1, 3, 5][-frames:])
    arguments = x, torch.arange(count) < lengths[:, None], budgets, int(budgets.max()), neighbors, strict
    centers, labels = dpc_knn.dpc_knn(*arguments)
    expected = reference(*arguments)
    assert_equal(labels, expected[1])
    for f, budget in enumerate(budgets):
        assert_equal(centers[f, :budget], expected[0][f, :budget])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "channels", "groups"), [(41, 24, 9), (30, 515, 4), (12, 2100, 3), (1, 1, 1)])
def test_means_and_gradients_have_the_same_bits(on_the_ir, count, channels, groups, dtype):
    """Memory ends right behind the tokens, and behind the incoming gradient."""
    g = torch.Generator().manual_seed(count)
    tokens = at_the_end_of_a_page(torch.randn(2, count, channels, generator=g).to(dtype)).requires_grad_()
    labels = torch.randint(-1, groups, (2, count), generator=g)
    counts = (labels[:, :, None] == torch.arange(groups)).sum(1)
    found, expected = row_mean.group_mean(tokens, labels, counts), reference_mean(tokens, labels, counts)
    assert_equal(found, expected)
    cotangent = at_the_end_of_a_page(torch.randn(found.shape, generator=g).to(dtype))
    (gradient,), (wanted,) = (torch.autograd.grad(made, tokens, cotangent) for made in (found, expected))
    assert_equal(gradient, wanted)


@pytest.mark.parametrize(("which", "code"), [("whole_rows", 0), ("gathered", -signal.SIGSEGV)])
def test_nothing_is_read_past_the_end(which, code):
    """The tokens end at the last page of memory. The control, which gathers as one would on a GPU, is killed there."""
    program = Path(__file__).parent / "controls.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(program.parents[2]), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, program, which], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert done.stdout.strip() == ("True" if code == 0 else "")
