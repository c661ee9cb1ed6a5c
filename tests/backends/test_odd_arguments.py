"""Operators with junk among their arguments give a result of the right shape, or one line that names what is wrong.

Nothing else may happen: no traceback from torch, no crash, and no result computed from memory beside a tensor.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.errors import InputError, UserError

FEW = settings(max_examples=200, derandomize=True, deadline=None)
MANY = settings(FEW, max_examples=20_000, derandomize=False)
DICE = st.integers(0, 2**40).map(random.Random)
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.complex64]
DTYPES += [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64]
PLAIN = [None, 0, -1, 1, 3, 2.5, 1e9, 10**20, 10**400, math.nan, math.inf, "a", b"", [], {}, True, torch.tensor(3)]
PLAIN += [[0, 9], [0, -1, 6], [0, 2.5, 6], [0, None, 6], [0, [3], 6], (0, 6), range(7), object()]


def attention(dice, normal):
    batch, queries, keys = 2, dice.choice([1, 5]), 7
    kind, more = dice.choice(["plain", "mask", "added", "causal", "segments"]), {}
    if kind == "segments":
        batch, queries, keys, more = 1, 6, 6, {"cu_seqlens": [0, 2, 6]}
    elif kind == "causal":
        more = {"causal": True}
    elif kind != "plain":
        mask = normal(1, 1, queries, keys)
        more = {"mask": mask if kind == "added" else mask > -1}
    return [normal(batch, 4, queries, 8), normal(batch, 2, keys, 8), normal(batch, 2, keys, 8)], more


def dpc_knn(dice, normal):
    count = dice.choice([9, 70])
    valid = torch.arange(count) < torch.tensor([count, count - 2, 4])[:, None]
    given = [normal(3, count, 6), dice.choice([None, valid]), torch.tensor([4, 3, 2]), 4, torch.tensor([5, 3, 2])]
    return given, {"strict": dice.random() < 0.5}


def group_mean(dice, normal):
    labels = (normal(3, 9) * 2).long().clamp(-1, 3)
    return [normal(3, 9, 6), labels, torch.stack([(labels == group).sum(1) for group in range(4)], 1)], {}


def linear_cross_entropy(dice, normal):
    labels = (normal(9) * 4).long().clamp(0, 10)
    labels[2] = -100
    return [normal(9, 8), normal(11, 8), labels], {"chunk_size": 4, "reduction": dice.choice(["mean", "sum"])}


CALLS = {
    "attention": attention,
    "rotary": lambda dice, normal: ([normal(2, 4, 5, 8), normal(2, 2, 5, 8), normal(2, 5, 8), normal(2, 5, 8)], {}),
    "dpc_knn": dpc_knn,
    "group_mean": group_mean,
    "rms_norm": lambda dice, normal: ([normal(2, 5, 8), normal(8), 1e-6], {}),
    "swiglu": lambda dice, normal: ([normal(2, 5, 8), normal(2, 5, 8)], {}),
    "linear_cross_entropy": linear_cross_entropy,
}


def other_numbers(tensor, dice):
    """The tensor in another dtype, or with some numbers that are no valid indices or not finite."""
    if dice.random() < 0.4:
        return tensor.to(dice.choice(DTYPES))
    if tensor.is_floating_point():
        return torch.where(torch.rand(tensor.shape) < dice.choice([0.1, 1]), dice.choice([math.nan, math.inf]), tensor)
    return dice.choice([tensor + 10**6, -tensor.long() - 5, tensor * 0, tensor.flip(-1), tensor.long() + 1])


def other_shape(tensor, dice):
    dim = dice.randrange(tensor.dim())
    ways = [
        tensor.narrow(dim, 0, 0),
        tensor.unsqueeze(dim),
        tensor[0],
        tensor[..., :-1],
        tensor.flatten(),
        tensor.sum(),
    ]
    return dice.choice([*ways, tensor[:1].expand_as(tensor), torch.stack([tensor, tensor], -1)[..., 0], tensor.mT])


def other_kind(tensor, dice):
    wanted = tensor.clone().requires_grad_(tensor.is_floating_point())
    return dice.choice([tensor.to("meta"), tensor.to_sparse(), tensor.tolist(), tensor.numpy(), wanted])


def changed(value, dice):
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return dice.choice(PLAIN) if not isinstance(value, torch.Tensor) else other_numbers(value, dice)
    return dice.choice([other_numbers, other_shape, other_kind])(value, dice)


def check(dice) -> None:
    op = dice.choice(list(CALLS))
    generator = torch.Generator().manual_seed(dice.randrange(2**30))
    given, more = CALLS[op](dice, lambda *shape: torch.randn(shape, generator=generator))
    for at in dice.sample([*range(len(given)), *more], dice.choice([1, 1, 2])):
        held = more if at in more else given
        held[at] = changed(held[at], dice)
    said, results = "", ()
    name = dice.choice([None, None, *(entry.name for entry in dispatch.available(op, "cpu"))])
    try:
        results = getattr(backends, op)(*given, **more, implementation=name)
    except UserError as error:
        said = str(error)
    if said:
        assert said.isprintable()
        return
    results = results if isinstance(results, tuple) else (results,)
    shapes = {"rotary": [given[0], given[1]], "swiglu": given, "attention": given, "rms_norm": given}
    for found, like in zip(results, shapes.get(op, [])):
        assert found.shape == like.shape
    if op == "dpc_knn" and results[0].device.type == "cpu":
        centers, labels = results
        assert ((centers >= 0) & (centers < labels.shape[1])).all()
        assert (labels < given[3]).all()


@FEW
@given(DICE)
def test_junk_gives_a_result_or_one_line(dice):
    check(dice)


@pytest.mark.slow
@MANY
@given(DICE)
def test_junk_gives_a_result_or_one_line_often(dice):
    check(dice)


TOKENS, LABELS = torch.ones(1, 3, 2), torch.tensor([[0, 1, -1]])
HIDDEN = torch.ones(3, 4)
REFUSED = {
    "counts must be how many labels": lambda: backends.group_mean(TOKENS, LABELS, torch.tensor([[1, -9]])),
    "counts must be how many ": lambda: backends.group_mean(TOKENS, LABELS + 7, torch.tensor([[1, 1]])),
    "labels must be from 0 to 4, or -100, got 5": lambda: backends.linear_cross_entropy(
        HIDDEN, torch.ones(5, 4), torch.tensor([1, -100, 5])
    ),
    "budgets must be from 1 to 2 ": lambda: backends.dpc_knn(TOKENS, None, LABELS[:, 2] + 4, 2, LABELS[:, 1]),
    "num_neighbors must be from 1 to 3": lambda: backends.dpc_knn(TOKENS, None, LABELS[:, 1], 2, LABELS[:, 1] + 5),
    "valid may be False only at the end": lambda: backends.dpc_knn(TOKENS, LABELS < 1, LABELS[:, 1], 2, LABELS[:, 1]),
    "up is on meta, gate on cpu": lambda: backends.swiglu(TOKENS, TOKENS.to("meta")),
    "eps is nan, a float: give a finite number": lambda: backends.rms_norm(TOKENS, TOKENS[0, 0], math.nan),
    "cu_seqlens must be a host list of int": lambda: backends.attention(*[TOKENS[None]] * 3, cu_seqlens=[0, 1.5, 3]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_is_named(words):
    """Without its check, the first of these read memory beside the tokens and ended the process."""
    with pytest.raises(InputError, match=words):
        REFUSED[words]()


def test_a_mask_of_any_rank_is_one_mask():
    query = torch.randn(2, 3, 5, 8)
    for mask in (torch.tensor([True, False, True, True, False]), torch.tensor(True)):
        for name in ("sdpa", "reference"):
            found, expected = (
                backends.attention(query, query, query, mask=one, implementation=name)
                for one in (mask, mask.expand(1, 5))
            )
            assert torch.equal(found, expected)


def test_a_flag_of_numpy_is_a_flag():
    query, x, four = torch.randn(1, 2, 5, 8), torch.randn(1, 9, 4), torch.tensor([4])
    for value in (True, False):
        found = backends.attention(query, query, query, causal=np.bool_(value))
        assert torch.equal(found, backends.attention(query, query, query, causal=value))
        one, two = (backends.dpc_knn(x, None, four, 4, four, strict=flag) for flag in (np.bool_(value), value))
        assert torch.equal(one[1], two[1])
    with pytest.raises(InputError, match=r"causal is .* give True or False"):
        backends.attention(query, query, query, causal=np.array([True, False]))


def test_a_label_of_eight_bits_is_never_the_ignored_one_by_wrapping():
    labels = torch.tensor([1, 156, 3], dtype=torch.uint8)  # 156 is -100 in eight bits
    with pytest.raises(InputError, match="labels must be from 0 to 4, or -100, got 156"):
        backends.linear_cross_entropy(HIDDEN, torch.ones(5, 4), labels)
    hidden, weight = torch.randn(3, 4), torch.randn(157, 4)
    found = backends.linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(found, backends.linear_cross_entropy(hidden, weight, labels.long()))


def test_integers_of_any_width_are_the_same_integers():
    """dpc_knn still returns int64 labels, because unsigned ones of 8 bits would not hold -1."""
    frames, valid = torch.randn(2, 9, 4), torch.arange(9) < torch.tensor([9, 5])[:, None]
    budgets, neighbors = torch.tensor([4, 2]), torch.tensor([5, 3])
    _, labels = backends.dpc_knn(frames, valid, budgets, 4, neighbors)
    for dtype in (torch.uint8, torch.int32):
        again = backends.dpc_knn(frames, valid, budgets.to(dtype), 4, neighbors.to(dtype))
        assert torch.equal(again[1], labels)
        assert again[1].dtype is torch.int64
    counts = torch.stack([(labels == group).sum(1) for group in range(4)], 1)
    expected = backends.group_mean(frames, labels, counts)
    for name in ("cpu", "reference"):
        assert torch.equal(
            backends.group_mean(frames, labels.to(torch.int8), counts.to(torch.uint8), implementation=name), expected
        )
