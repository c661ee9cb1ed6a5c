"""The chunked loss against its definition, label by label, in fp64."""

import math

import pytest
import torch
from tolerances import near

from ppe_npu.backends import linear_cross_entropy
from ppe_npu.backends.reference import linear_cross_entropy as reference

# Both ways round: a logit sums 5 products and may be ten times the loss; then come sums over 7 words and 11 labels.
ROUNDINGS = 2 * (5 * 10 + 7 + 11)


def _inputs(tokens, width=5, words=7, ignored=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(words, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, words, (tokens,), generator=generator)
    labels[list(ignored)] = -100
    return hidden, weight, labels


def _naive(hidden, weight, labels):
    """The loss of every label that is not ignored."""
    losses = []
    for row, label in zip(hidden.tolist(), labels.tolist()):
        if label >= 0:
            logits = [sum(a * b for a, b in zip(row, word)) for word in weight.tolist()]
            losses.append(math.log(sum(map(math.exp, logits))) - logits[label])
    return losses


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 11, 12, 1024])
def test_the_mean_is_over_labels_that_count_whatever_the_chunks(chunk_size):
    inputs = _inputs(11, ignored=(0, 4, 5, 6, 7))
    losses = _naive(*inputs)
    assert len(losses) == 6
    mean = linear_cross_entropy(*inputs, chunk_size=chunk_size)
    assert mean.shape == ()
    assert mean.item() == near(sum(losses) / 6, ROUNDINGS)
    total = linear_cross_entropy(*inputs, chunk_size=chunk_size, reduction="sum")
    assert total.item() == near(sum(losses), ROUNDINGS)


def test_another_index_can_be_ignored():
    hidden, weight, labels = _inputs(6)
    labels[:] = torch.tensor([2, 0, 2, 1, 3, 2])
    kept = labels != 2
    expected = sum(_naive(hidden[kept], weight, labels[kept])) / 3
    assert linear_cross_entropy(hidden, weight, labels, ignore_index=2).item() == near(expected, ROUNDINGS)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_gradients_of_hidden_and_weight(tokens, reduction):
    hidden, weight, labels = _inputs(tokens, ignored=(1, 2) if tokens > 1 else ())
    options = {"chunk_size": 2, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, **options), (hidden, weight))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_with_nothing_to_learn_from_the_loss_and_its_gradients_are_zero(tokens):
    hidden, weight, labels = _inputs(tokens, ignored=range(tokens))
    loss = linear_cross_entropy(hidden, weight, labels, chunk_size=2)
    assert loss.item() == 0
    loss.backward()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_ignored_tokens_get_no_gradient():
    hidden, weight, labels = _inputs(6, ignored=(1, 4))
    linear_cross_entropy(hidden, weight, labels, chunk_size=4).backward()
    assert (hidden.grad == 0).all(dim=1).tolist() == [False, True, False, False, True, False]


def test_a_frozen_weight_is_enough_as_is_no_gradient_at_all():
    hidden, weight, labels = _inputs(6)
    linear_cross_entropy(hidden, weight.detach(), labels).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_fp32_and_the_gradients_are_as_their_tensors(dtype):
    hidden, weight, labels = _inputs(6, dtype=dtype)
    loss = linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype is torch.float32
    loss.backward()
    assert hidden.grad.dtype is weight.grad.dtype is dtype


def test_the_softmax_of_16_bit_logits_is_taken_in_fp32():
    hidden, weight, labels = _inputs(9, dtype=torch.bfloat16)
    logits = (hidden @ weight.t()).double()
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    # Errors: exponents of logits this large, a sum over the words, a mean over the labels.
    roundings = logits.abs().max().item() + weight.shape[0] + len(labels)
    assert linear_cross_entropy(hidden, weight, labels).item() == near(expected, roundings, torch.float32)


def test_no_more_than_a_chunk_of_logits_is_made_or_kept(monkeypatch):
    made, kept = [], []
    chunk_loss = reference._chunk_loss
    monkeypatch.setattr(
        reference, "_chunk_loss", lambda hidden, *rest: made.append(len(hidden)) or chunk_loss(hidden, *rest)
    )
    hidden, weight, labels = _inputs(11, words=50)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        loss = linear_cross_entropy(hidden, weight, labels, chunk_size=4)
    assert made == [4, 4, 3]
    assert not any(50 in shape and shape != weight.shape for shape in kept)
    loss.backward()
    assert sorted(made) == [3, 3, 4, 4, 4, 4]
