"""The costs of clustering: no wait for the device, a single tensor that grows with the square of the tokens, and one
node in a graph of torch.compile."""

from unittest import mock

import pytest
import torch
from cuts import CUTS, cut_into
from torch.utils._python_dispatch import TorchDispatchMode

from ppe_npu import backends
from ppe_npu.backends.reference import dpc_knn as reference
from ppe_npu.backends.reference.dpc_knn import dpc_knn

pytestmark = pytest.mark.half

gram = reference._gram


@CUTS
@pytest.mark.parametrize("padded", [False, True])
def test_no_value_is_read_back_from_the_device(cut, padded):
    """Tensors without memory have no values to read back. A batch without frames is no error."""
    for frames in (0, 3):
        x = torch.empty(frames, 13, 8, device="meta")
        valid = torch.empty(frames, 13, dtype=torch.bool, device="meta") if padded else None
        vector = torch.empty(frames, dtype=torch.long, device="meta")
        with cut_into(cut):
            centers, labels = dpc_knn(x, valid, vector, 4, vector)
        assert centers.shape == (frames, 4)
        assert labels.shape == (frames, 13)


class Sizes(TorchDispatchMode):
    """Records the bytes of every block of memory that an operator allocates."""

    def __init__(self):
        super().__init__()
        self.kept, self.calls = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no address is used twice
        return out


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("frames", "count"), [(1, 1600), (128, 160)])
def test_one_tensor_grows_with_the_square_of_the_tokens(frames, count, padded):
    """When the work is cut as finely as possible, no other tensor exceeds a sixteenth of this one, and the number of
    operator calls is bounded."""
    x = torch.randn(frames, count, 16, generator=torch.Generator().manual_seed(8)).bfloat16()
    valid = torch.ones(frames, count, dtype=torch.bool) if padded else None
    vector = torch.full((frames,), 5)
    with cut_into({"TOKENS_AT_ONCE": 1, "DISTANCES_AT_ONCE": 1}), Sizes() as sizes:
        dpc_knn(x, valid, vector, count // 2, vector)
    matrix = 4 * frames * count**2
    largest = sorted((size for size, storage in sizes.kept.values()), reverse=True)
    assert largest[0] == matrix
    assert largest[1] <= matrix / 16
    assert sizes.calls < 2500


@pytest.mark.parametrize("padded", [False, True])
def test_under_torch_compile_it_is_one_node_that_runs_in_full_fp32(padded):
    """fp32 is kept whatever precision is set when the compiled code runs: TF32 or bf16 products would change groups."""
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(20) < torch.tensor([[20], [13]]) if padded else None
    arguments = x, valid, torch.tensor([9, 6]), 9, torch.tensor([5, 5])
    expected, graphs, precisions = backends.dpc_knn(*arguments), [], []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda *values: backends.dpc_knn(*values), backend=backend, fullgraph=True)
    with mock.patch.object(
        reference, "_gram", lambda *a: precisions.append(torch.get_float32_matmul_precision()) or gram(*a)
    ):
        torch.set_float32_matmul_precision("medium")
        try:
            found = compiled(*arguments)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert precisions == ["highest"]
    assert [torch.equal(*both) for both in zip(found, expected)] == [True, True]
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.ppe_npu.dpc_knn) == 1
    torch.library.opcheck(torch.ops.ppe_npu.dpc_knn.default, (*arguments, False, None))
