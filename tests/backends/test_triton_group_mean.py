"""The group-mean kernels, compiled or in Triton's interpreter, against sums in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_near

pytest.importorskip("triton")

from kernel_device import on_device
from triton_interpreter import repair

from ppe_npu.backends.cuda.group_mean import _listed, block, group_mean

repair()
_listed, group_mean = on_device(_listed), on_device(group_mean)


def _inputs(frames, count, channels, groups, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, count, channels, generator=g).to(dtype)
    labels = torch.randint(-1, groups, (frames, count), generator=g)
    return tokens, labels, (labels[:, :, None] == torch.arange(groups)).sum(1)


def _expected(tokens, labels, counts):
    member = (labels[:, None, :] == torch.arange(counts.shape[1])[:, None]).double()
    return member @ tokens.double() / counts.clamp(min=1)[:, :, None], member


@settings(max_examples=8)
@given(
    frames=st.integers(1, 3),
    count=st.integers(1, 70),
    channels=st.integers(1, 40),
    groups=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_means_and_their_gradients(frames, count, channels, groups, seed):
    tokens, labels, counts = _inputs(frames, count, channels, groups, seed)
    tokens.requires_grad_()
    means = group_mean(tokens, labels, counts)
    expected, member = _expected(tokens.detach(), labels, counts)
    assert_near(means, expected, roundings=count + 1, size=tokens.detach().abs().max())
    cotangent = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(means, tokens, cotangent)
    share = member.mT @ (cotangent.double() / counts.clamp(min=1)[:, :, None])
    assert_near(gradient, share, roundings=2, size=cotangent.abs().max())


def test_wide_tokens_in_large_groups():
    """There are more channels, members and labels than a program takes at a time."""
    tokens, labels, counts = _inputs(1, 150, 1100, 2)
    expected, _ = _expected(tokens, labels, counts)
    assert_near(group_mean(tokens, labels, counts), expected, roundings=150 + 1, size=tokens.abs().max())


def test_sums_are_fp32_and_rounded_once():
    """An fp16 sum of 100 numbers around 1,000 would overflow."""
    tokens = (1000 + torch.arange(100.0))[None, :, None].half()
    mean = group_mean(tokens, torch.zeros(1, 100, dtype=torch.int64), torch.tensor([[100]]))
    assert mean.dtype == torch.float16
    assert mean.item() == torch.tensor(1049.5).half().item()


def test_members_are_listed_by_group_in_raster_order():
    labels = torch.tensor([[2, 0, -1, 2, 0], [-1, -1, 1, 1, 1]])
    order, starts = _listed(labels, 4)
    assert order[0, :4].tolist() == [1, 4, 0, 3]
    assert order[1, :3].tolist() == [2, 3, 4]
    assert starts.tolist() == [[0, 2, 2, 4, 4], [0, 0, 3, 3, 3]]


def test_tokens_that_are_not_numbers_stay_in_their_group():
    tokens = torch.tensor([[[1.0], [float("nan")], [3.0], [float("inf")]]])
    means = group_mean(tokens, torch.tensor([[0, 1, 0, -1]]), torch.tensor([[2, 1]]))
    assert means[0, 0].item() == 2
    assert means[0, 1].isnan()


def test_strided_tokens_and_gradients():
    tokens, labels, counts = _inputs(2, 6, 5, 3)
    strided = tokens.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    means = group_mean(strided, labels, counts)
    assert torch.equal(means, group_mean(tokens, labels, counts))
    means.sum().backward()  # the incoming gradient is an expanded tensor
    expected = torch.where(labels >= 0, 1 / counts.clamp(min=1).gather(1, labels.clamp(min=0)), 0.0)
    assert_near(strided.grad, expected[:, :, None].expand_as(tokens), roundings=2)


@given(tokens=st.floats(0.01, 1e5), channels=st.integers(1, 20_000))
def test_blocks_are_powers_of_two_of_bounded_size(tokens, channels):
    rows, width = block(tokens, channels)
    assert rows * width <= 4096
    assert rows & (rows - 1) == width & (width - 1) == 0
    assert rows >= 4
