"""A place without a token stays without one, whatever checksum stands for it."""

import struct

import pytest
import torch

from ppe_npu.backends.cpu import dpc_knn as fast
from ppe_npu.backends.reference import dpc_knn as reference


def of_bits(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits % 2**32))[0]


@pytest.mark.parametrize("clustering", [reference, fast], ids=["reference", "cpu"])
@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_a_token_with_the_checksum_of_padding_has_no_copy_there(clustering, budget):
    """The reference tells places without a token apart by -1 - place. Here tokens 0 and 1 have -7, that of place 6."""
    wanted = -7
    token = torch.tensor([1.0, of_bits(wanted - 0x3F800000)])  # near (1, -4)
    x = torch.stack([token, -token, *torch.tensor([[30.0, 2.0], [-30.0, -2.0], [29.0, 1.0], [-29.0, -1.0]])])[None]
    assert reference.checksums(x)[0, :2].tolist() == [wanted, wanted]  # and their mean is zero: none is moved
    numbers = torch.tensor([budget]), budget, torch.tensor([2])
    centers, labels = clustering.dpc_knn(x, None, *numbers)
    padded = clustering.dpc_knn(torch.nn.functional.pad(x, (0, 0, 0, 3)), torch.arange(9)[None] < 6, *numbers)
    assert torch.equal(padded[0], centers)
    assert torch.equal(padded[1][:, :6], labels)
