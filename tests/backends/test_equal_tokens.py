"""Equal tokens on an emulated device, and padding, which equals no token."""

import struct

import pytest
import torch
from devices import DEVICES
from test_dpc_knn import naive, picture

from ppe_npu import backends
from ppe_npu.backends.cpu import dpc_knn as fast
from ppe_npu.backends.reference import dpc_knn as reference


def of_bits(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits % 2**32))[0]


@pytest.mark.parametrize("clustering", [reference, fast], ids=["reference", "cpu"])
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_a_token_with_the_checksum_of_padding_has_no_copy_there(clustering, budget):
    """The reference gives padding at each place the checksum -1 - place. Here tokens 0 and 1 have the checksum of
    place 6, which is -7."""
    wanted = -7
    token = torch.tensor([1.0, of_bits(wanted - 0x3F800000)])  # near (1, -4)
    x = torch.stack([token, -token, *torch.tensor([[30.0, 2.0], [-30.0, -2.0], [29.0, 1.0], [-29.0, -1.0]])])[None]
    assert reference.checksums(x)[0, :2].tolist() == [wanted, wanted]  # their mean is zero, so centring moves none
    numbers = torch.tensor([budget]), budget, torch.tensor([2])
    centers, labels = clustering.dpc_knn(x, None, *numbers)
    padded = clustering.dpc_knn(torch.nn.functional.pad(x, (0, 0, 0, 3)), torch.arange(9)[None] < 6, *numbers)
    assert torch.equal(padded[0], centers)
    assert torch.equal(padded[1][:, :6], labels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_devices_product_that_rounds_by_place_breaks_no_tie(monkeypatch, device, strict, dtype):
    """Every entry is off by its own draw of up to four units in the last place."""
    generator, bmm = torch.Generator().manual_seed(0), torch.bmm

    def spoiled(a, b, out):
        bmm(a, b, out=out)
        noise = torch.randint(-4, 5, out.shape, generator=generator) * torch.finfo(out.dtype).eps
        return out.copy_(out * (1 + noise.to(out.device)))

    monkeypatch.setattr(torch, "bmm", spoiled)
    some = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(9))[:, torch.arange(40) * 7 % 9]
    for x, budget, neighbors in ((picture(1), 20, 5), (some, 21, 3), (some, 12, 5)):
        x = x.to(dtype)
        numbers = torch.tensor([budget], device=device), budget, torch.tensor([neighbors], device=device)
        centers, labels = backends.dpc_knn(x.to(device), None, *numbers, strict=strict)
        assert (centers[0].tolist(), labels[0].tolist()) == naive(x[0].double(), budget, neighbors, strict)
