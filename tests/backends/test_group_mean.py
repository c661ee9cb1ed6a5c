"""Group means: values, dtypes, empty groups, gradients."""

from unittest import mock

import pytest
import torch
from tolerances import assert_near

from ppe_npu.backends.cpu import group_mean as fast
from ppe_npu.backends.reference import group_mean as reference

group_mean = reference.group_mean


@pytest.fixture(scope="module", autouse=True, params=[reference, fast], ids=["reference", "cpu"])
def averaging(request):
    """Every test here runs on the specification and on the CPU's own implementation."""
    with mock.patch.dict(globals(), group_mean=request.param.group_mean):
        yield


def case(dtype):
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 7, 3, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.tensor([[0, 1, 1, 0, 3, 3, 3], [0, 0, 0, 1, -1, -1, -1]])
    counts = torch.tensor([[2, 2, 0, 3], [3, 1, 0, 0]])
    return tokens, labels, counts


def test_means_empty_groups_and_tokens_of_no_group():
    tokens, labels, counts = case(torch.float32)
    out = group_mean(tokens, labels, counts)
    assert_near(out[0, 3], tokens[0, 4:].mean(0), roundings=2 * 3, size=tokens.abs().max())
    assert_near(out[1, 0], tokens[1, :3].mean(0), roundings=2 * 3, size=tokens.abs().max())
    assert out[0, 2].eq(0).all()
    assert out[1, 2:].eq(0).all()


def test_bf16_is_summed_in_fp32():
    tokens = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    tokens[0, ::2] = 0.0078125  # lost in a bf16 sum once that exceeds 1
    out = group_mean(tokens, torch.zeros(1, 4096, dtype=torch.long), torch.tensor([[4096]]))
    assert out.dtype == torch.bfloat16
    assert out.item() == torch.tensor(0.50390625, dtype=torch.bfloat16).item()


def test_fp32_is_summed_in_raster_order():
    """The result has the bits of a loop over the tokens, so it is the same on every run and beside any other frames."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, 500, 64, generator=g)
    labels = torch.randint(-1, 20, (3, 500), generator=g)
    counts = (labels[:, None, :] == torch.arange(20)[:, None]).sum(-1)
    sums = torch.zeros(3, 20, 64)
    for frame, token in torch.cartesian_prod(torch.arange(3), torch.arange(500)).tolist():
        if labels[frame, token] >= 0:
            sums[frame, labels[frame, token]] += tokens[frame, token]
    out = group_mean(tokens, labels, counts)
    assert torch.equal(out, sums / counts[:, :, None])
    assert torch.equal(out[1:2], group_mean(tokens[1:2], labels[1:2], counts[1:2]))


def test_the_gradient_of_a_token_is_its_share_of_the_mean():
    tokens, labels, counts = case(torch.float32)
    cotangent = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    group_mean(tokens.requires_grad_(), labels, counts).backward(cotangent)
    for frame, token in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        group = int(labels[frame, token])
        expected = cotangent[frame, group] / counts[frame, group] if group >= 0 else torch.zeros(3)
        assert_near(tokens.grad[frame, token], expected, roundings=2 * 2)


def test_gradients_agree_with_finite_differences():
    tokens, labels, counts = case(torch.float64)
    assert torch.autograd.gradcheck(lambda x: group_mean(x, labels, counts), tokens.requires_grad_())


def test_derivatives_of_derivatives_and_forward_ones():
    tokens, labels, counts = case(torch.float64)

    def mean(x):
        return group_mean(x, labels, counts)

    assert torch.autograd.gradcheck(mean, tokens.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(mean, tokens)
    _, tangent = torch.func.jvp(mean, (tokens.detach(),), (torch.ones_like(tokens),))
    assert torch.equal(tangent, (counts > 0)[:, :, None].double().expand_as(tangent))


def test_nothing_has_means_of_zero():
    tokens, labels = torch.zeros(2, 0, 3, requires_grad=True), torch.zeros(2, 0, dtype=torch.int64)
    found = group_mean(tokens, labels, torch.zeros(2, 4, dtype=torch.int64))
    assert torch.equal(found, torch.zeros(2, 4, 3))
    found.sum().backward()
    assert tokens.grad.shape == tokens.shape
