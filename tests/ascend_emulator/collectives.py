"""What tests/test_ascend_emulator.py runs in each process of a torchrun: every collective, and DDP, over hccl."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from tolerances import assert_rounds_alike

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)


def same(actual: Tensor, expected: Tensor) -> None:
    assert actual.device.type == "npu"
    assert torch.equal(actual.cpu(), expected)


def collectives(rank: int, size: int) -> None:
    """Compares with what every rank can work out by itself: rank r holds 1 + r, or r * 10 + i at index i."""
    ones = sum(range(1, size + 1))
    for dtype in DTYPES:
        for length in (3, 600_001):  # the second goes through shared memory in several slices
            tensor = torch.full((length,), 1 + rank, dtype=dtype, device="npu")
            dist.all_reduce(tensor)
            same(tensor, torch.full((length,), ones, dtype=dtype))
        tensor = torch.tensor([1 + rank, size - rank], dtype=dtype, device="npu")
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        same(tensor, torch.tensor([size, size], dtype=dtype))

        own = (torch.arange(2 * size) + 10 * rank).to(dtype)
        parts = [torch.empty(2 * size, dtype=dtype, device="npu") for _ in range(size)]
        dist.all_gather(parts, own.npu())
        same(torch.stack(parts), torch.stack([(torch.arange(2 * size) + 10 * r).to(dtype) for r in range(size)]))

        part = torch.empty(2, dtype=dtype, device="npu")
        dist.reduce_scatter_tensor(part, own.npu())
        same(part, sum((torch.arange(2 * rank, 2 * rank + 2) + 10 * r) for r in range(size)).to(dtype))

        swapped = torch.empty(2 * size, dtype=dtype, device="npu")
        dist.all_to_all_single(swapped, own.npu())
        same(swapped, torch.cat([torch.arange(2 * rank, 2 * rank + 2) + 10 * r for r in range(size)]).to(dtype))

        tensor = own.npu()
        dist.broadcast(tensor, src=size - 1)
        same(tensor, (torch.arange(2 * size) + 10 * (size - 1)).to(dtype))


def uneven(rank: int, size: int) -> None:
    """Rank r sends r + 1 elements to every rank; and a ring of sends; and a group of two."""
    output = torch.empty(sum(range(1, size + 1)), device="npu")
    source = torch.full(((rank + 1) * size,), float(rank), device="npu")
    dist.all_to_all_single(output, source, [r + 1 for r in range(size)], [rank + 1] * size)
    same(output, torch.cat([torch.full((r + 1,), float(r)) for r in range(size)]))

    received = torch.empty(4, device="npu")
    own = torch.full((4,), float(rank), device="npu")
    requests = [
        dist.P2POp(dist.isend, own, (rank + 1) % size),
        dist.P2POp(dist.irecv, received, (rank - 1) % size),
    ]
    for work in dist.batch_isend_irecv(requests):
        work.wait()
    same(received, torch.full((4,), float((rank - 1) % size)))

    pair = dist.new_group([0, 1])
    if rank < 2:
        tensor = torch.ones(2, device="npu")
        dist.all_reduce(tensor, group=pair)
        same(tensor, torch.full((2,), 2.0))
    gathered = [None] * size
    dist.all_gather_object(gathered, {"rank": rank})
    assert gathered == [{"rank": r} for r in range(size)]


def fp64_is_refused() -> None:
    """torch_npu itself refuses it on chips before Ascend950; ZeRO-3's gradient norm runs into this."""
    with pytest.raises(RuntimeError, match="Unsupported data type"):
        dist.all_reduce(torch.ones(2, dtype=torch.float64, device="npu"))


def ddp(rank: int, size: int) -> None:
    """Gradients of a batch that is spread over the ranks are those of one process with all of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    batch = torch.randn(4 * size, 8)
    model(batch).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    true = copy.deepcopy(model).double()
    true(batch.double()).square().mean().backward()
    wrapped = DistributedDataParallel(model.npu(), device_ids=[rank])
    wrapped(batch[4 * rank : 4 * rank + 4].npu()).square().mean().backward()
    for parameter, grad, exact in zip(model.parameters(), expected, true.parameters()):
        assert_rounds_alike(parameter.grad.cpu(), grad, exact.grad)


def main() -> None:
    dist.init_process_group("hccl")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.npu.set_device(rank)
    collectives(rank, size)
    uneven(rank, size)
    fp64_is_refused()
    ddp(rank, size)
    dist.barrier()
    if rank == 0:
        print(f"{size} ranks agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
