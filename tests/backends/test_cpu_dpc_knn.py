"""The CPU's own clustering, at sizes for which it is chosen, gives the groups of the specification for all kinds of
frames. test_dpc_knn.py has small frames."""

import pytest
import torch
from cuts import CUTS, cut_into
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.backends.cpu import dpc_knn as fast
from ppe_npu.backends.cpu import squares
from ppe_npu.backends.reference import dpc_knn as reference


def same(x, valid, budgets, neighbors, strict=False) -> None:
    """Check that both implementations give the same centres and labels."""
    most = max(budgets)
    arguments = x, valid, torch.tensor(budgets), most, torch.tensor(neighbors), strict
    (centers, labels), (expected, groups) = fast.dpc_knn(*arguments), reference.dpc_knn(*arguments)
    assert torch.equal(labels, groups)
    for found, right, budget in zip(centers, expected, budgets):
        assert torch.equal(found[:budget], right[:budget])
    assert ((centers >= 0) & (centers < x.shape[1])).all()


KINDS = ("normal", "copies", "offset", "clusters", "flat", "massive")


def tokens(kind: str, frames: int, count: int, seed: int, channels: int = 24) -> torch.Tensor:
    """[F, N, C] fp64 tokens, so that rounding decides nothing: normal; some of them copies; far from the origin; in
    tight clusters; copies of a few; or with one channel that is a thousand times larger."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, count, channels, generator=g, dtype=torch.float64)
    if kind in ("copies", "flat"):
        few = (count + 1) // 2 if kind == "copies" else min(6, count)
        return x.gather(1, torch.randint(0, few, (frames, count, 1), generator=g).expand_as(x))
    if kind == "clusters":
        return x * 1e-3 + x.gather(1, torch.randint(0, min(9, count), (frames, count, 1), generator=g).expand_as(x))
    if kind == "massive":
        x[:, :, 0] += 1000
        x[:, count // 2] *= 30
    return x + (7 if kind == "offset" else 0)


@CUTS
@settings(derandomize=True, max_examples=8)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    share=st.sampled_from([0.02, 0.1, 0.45, 1.0]),
    strict=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_the_specification(cut, kind, sizes, share, strict, seed):
    """The frames are ragged; some have fewer tokens than one step searches at once."""
    x = tokens(kind, len(sizes), max(sizes), seed)
    valid = torch.arange(x.shape[1]) < torch.tensor(sizes)[:, None]
    budgets = [max(1, int(size * share)) for size in sizes]
    neighbors = [min(size, 1 + (seed + number) % 5) for number, size in enumerate(sizes)]
    with cut_into(cut):
        same(x, valid, budgets, neighbors, strict)
        same(x, None, [max(1, int(x.shape[1] * share))] * len(x), [min(5, x.shape[1])] * len(x), strict)


@pytest.mark.parametrize("sizes", [(159, 160, 161), (192, 64, 193), (256, 3, 256)])
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_frames_in_strips_equal_the_specification(kind, sizes):
    """The sizes are around those from which a frame is multiplied in strips, and where a strip is one row."""
    x, count = tokens(kind, len(sizes), max(sizes), seed=sum(sizes)), len(sizes)
    valid = torch.arange(x.shape[1]) < torch.tensor(sizes)[:, None]
    same(x, valid, [max(1, size // 5) for size in sizes], [3] * count)
    same(x, None, [max(sizes) // 5] * count, [3] * count)


@pytest.mark.parametrize("kind", ["normal", "copies", "offset", "flat"])
def test_equals_the_specification_in_fp32(kind):
    """Frames are multiplied whole, and in three, four and six strips. In the kinds left out, fp32 rounding decides."""
    for frames, count in ((3, 150), (2, 192), (2, 256), (1, 700)):
        x = tokens(kind, frames, count, seed=count, channels=64).float()
        same(x, None, [count // 5] * frames, [5] * frames)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_has_the_same_groups_in_any_batch_and_place(kind):
    x = tokens(kind, 7, 100, seed=3).float()
    others = tokens("flat", 7, 100, seed=4).float()
    mixed = torch.stack([x, others], 1).flatten(0, 1)
    together = fast.dpc_knn(mixed, None, torch.full((14,), 30), 30, torch.full((14,), 5))
    for number, frame in enumerate(x):
        alone = fast.dpc_knn(frame[None], None, torch.tensor([30]), 30, torch.tensor([5]))
        assert torch.equal(alone[0][0], together[0][2 * number])
        assert torch.equal(alone[1][0], together[1][2 * number])


def test_tokens_that_lie_together_are_found_wherever_the_norms_lie(monkeypatch):
    """Checksums are computed if two tokens are within the largest rounding error (of fp64), equal or not, among tokens
    of any norm, and only then."""
    asked = []
    monkeypatch.setattr(squares, "checksums", lambda x, made=squares.checksums: asked.append(1) or made(x))
    x = tokens("normal", 1, 90, seed=5, channels=512)
    same(x, None, [30], [5])
    assert not asked
    scale = torch.logspace(-3, 3, 90)[:, None]
    for first, second in ((0, 89), (40, 41), (88, 89)):
        y = x[0] * scale
        y[second] = y[first]
        for noise in (0.0, 1e-8, 3e-7):
            asked.clear()
            y[second] = y[first] * (1 + noise)
            same(y[None], None, [30], [5])
            assert asked


def test_it_is_taken_for_large_frames_on_a_cpu_and_no_others():
    least = next(entry.least_tokens for entry in dispatch.candidates("dpc_knn", "cpu") if entry.name == "cpu")
    for count, name in ((least, "cpu"), (least - 1, "reference")):
        x = tokens("normal", 2, count, seed=1).float()
        dispatch.reset()
        backends.dpc_knn(x, None, torch.tensor([9, 9]), 9, torch.tensor([5, 5]))
        assert dispatch.chosen()["dpc_knn"] == name


def test_no_tensor_grows_with_frames_and_the_square_of_tokens():
    """Only a few frames' distances are in memory at a time."""
    made = squares.Squares(torch.empty(64, 256, 8), max(1, fast.DISTANCES_AT_ONCE // 256**2), [256] * 64)
    assert max(made._squared.numel(), made._sums.numel()) <= fast.DISTANCES_AT_ONCE


@pytest.mark.parametrize("place", [0, 1])
def test_one_massive_token_does_not_keep_a_frame_from_being_centred(place):
    """The massive token may be among those looked at first or not: tokens far from the origin are recognized, and so
    measured as exactly as by the specification, which centres all."""
    g = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(1, 256, 64, generator=g, dtype=torch.float64)
    x[:, place] *= 5
    for count in (256, 130):
        found = squares._far_from_origin(x[:, :count].float(), [count])
        assert found == [True]
    assert squares._far_from_origin(x.float() - 100, [256]) == [False]


def test_it_computes_where_the_tokens_lie_whatever_the_default_device():
    x, valid = torch.randn(2, 600, 8), torch.ones(2, 600, dtype=torch.bool)
    valid[0, 500:] = False
    labels, counts = torch.zeros(2, 600, dtype=torch.long), torch.full((2, 1), 600)
    nine, five = torch.tensor([9, 9]), torch.tensor([5, 5])
    try:
        torch.set_default_device("meta")
        fast.dpc_knn(x, valid, nine, 9, five)
        backends.group_mean(x, labels, counts)
    finally:
        torch.set_default_device(None)


def test_small_frames_are_taken_where_they_are_asked_for_by_name():
    x = tokens("normal", 2, 9, seed=0)
    arguments = x, None, torch.tensor([4, 2]), 4, torch.tensor([3, 5])
    with dispatch.using(dpc_knn="cpu"):
        dispatch.reset()
        found = backends.dpc_knn(*arguments)
        assert dispatch.chosen() == {"dpc_knn": "cpu"}
    assert torch.equal(found[1], reference.dpc_knn(*arguments)[1])
    dispatch.reset()
    backends.dpc_knn(*arguments)
    assert dispatch.chosen() == {"dpc_knn": "reference"}
