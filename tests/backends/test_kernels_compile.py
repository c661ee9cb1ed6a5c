"""Every Triton kernel compiles to machine code for A100 (8.0) and H100/H200 (9.0) and fits into their memory;
torch.compile traces the kernels' calls into one graph. This needs no GPU.

The work is done in separate processes, because Triton compiles nothing in its interpreter, and with a fresh cache, so
that it really compiles.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a block can have
HERE = Path(__file__).parent


def _run(program: str, *arguments: str, **env: str):
    """Run a program beside this file and parse its last line of output as JSON."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | env
    command = [sys.executable, "-W", "ignore", HERE / program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_calls_on_cuda_are_one_graph_with_the_kernels_and_their_device_in_it():
    graphs = _run("trace_kernels.py", CUDA_VISIBLE_DEVICES="")  # a real device would be asked for its properties
    assert set(graphs) == {"rotary", "group_mean"}
    for nodes in graphs.values():
        assert "triton_kernel_wrapper_mutation" in nodes, nodes
        first, last = nodes.index("enter_device"), nodes.index("leave_device")
        assert "triton_kernel_wrapper_mutation" not in nodes[:first] + nodes[last:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_everything_compiles_and_fits(tmp_path, capability):
    kernels = _run("compile_kernels.py", str(capability), TRITON_CACHE_DIR=str(tmp_path))
    names = {"_centre", "_gram", "_first_equal", "_knn_density", "_denser_distance", "_assign"}
    assert {kernel["kernel"] for kernel in kernels} == names | {"_list_groups", "_mean", "_share", "_rotate"}
    assert all(kernel["shared"] <= 99 * 1024 <= SHARED[capability] for kernel in kernels)
    # Values that do not fit into 255 registers spill to memory, which would slow the inner loops of products down.
    assert all(kernel["spilled"] <= 256 for kernel in kernels)
    tensor_cores = {80: "mma.sync", 90: "wgmma.mma_async"}[capability]
    for kernel in kernels:
        if kernel["kernel"] == "_gram":
            assert kernel["products"] == (None if "fp32" in kernel["call"] else tensor_cores)
