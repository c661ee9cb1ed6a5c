"""The clustering kernels, compiled or in Triton's interpreter, against a naive algorithm in fp64 (`naive`)."""

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dpc_knn import check_all_flat, naive, picture
from tolerances import eps

pytest.importorskip("triton")

from kernel_device import DEVICE, on_device
from triton.runtime import interpreter
from triton_interpreter import repair, spoiled_dot

from ppe_npu.backends.cuda import dpc_knn as kernels
from ppe_npu.backends.cuda import gram, tiles
from ppe_npu.backends.reference.dpc_knn import dpc_knn as reference
from ppe_npu.backends.reference.dpc_knn import largest_error

pytestmark = pytest.mark.half

repair()
kernels, gram = on_device(kernels), on_device(gram)
HALF = (torch.float16, torch.bfloat16)
PLAN = tiles.plan


def run(x, valid, budgets, neighbors, strict=False, stored_at_once=tiles.STORED_AT_ONCE):
    """dpc_knn on lists of numbers; with stored_at_once=0 every pass recomputes the products."""
    options = {"stored_at_once": stored_at_once}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "plan", functools.partial(PLAN, **options))
        return kernels.dpc_knn(x, valid, torch.tensor(budgets), max(budgets), torch.tensor(neighbors), strict)


def check(x, sizes, budgets, neighbors, strict=False, **options):
    longest = x.shape[1]
    valid = torch.arange(longest) < torch.tensor(sizes)[:, None] if min(sizes) < longest else None
    centers, labels = run(x, valid, budgets, neighbors, strict, **options)
    assert centers.dtype == labels.dtype == torch.int64
    assert ((centers >= 0) & (centers < longest)).all()
    for f, (n, m, k) in enumerate(zip(sizes, budgets, neighbors)):
        expected_centers, expected_labels = naive(x[f, :n].double(), m, k, strict)
        assert labels[f, n:].eq(-1).all()
        assert centers[f, :m].tolist() == expected_centers
        assert labels[f, :n].tolist() == expected_labels


@pytest.mark.parametrize("stored_at_once", [tiles.STORED_AT_ONCE, 0])
@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([torch.float32, *HALF]))
def test_equals_the_algorithm_in_words(stored_at_once, strict, seed, dtype):
    """Ragged frames of 1 to 19 tokens, two tiles of them, with every number of neighbours; some are copies."""
    g = torch.Generator().manual_seed(seed)
    sizes = [19, *torch.randint(1, 20, (2,), generator=g).tolist()]
    budgets = [int(torch.randint(1, n + 1, (), generator=g)) for n in sizes]
    neighbors = [int(torch.randint(1, min(5, n) + 1, (), generator=g)) for n in sizes]
    copied = torch.randint(0, 19, (3, 19), generator=g).minimum(torch.arange(19))
    x = (torch.randn(3, 19, 20, generator=g) + 2).to(dtype)
    copies = x.gather(1, copied[:, :, None].expand_as(x))
    x = torch.where(torch.rand(3, 19, 1, generator=g) < 0.3, copies, x)
    check(x, sizes, budgets, neighbors, strict, stored_at_once=stored_at_once)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU's products cannot be spoiled")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_products_that_round_by_place_break_no_tie(monkeypatch, dtype, strict):
    """The interpreter multiplies with NumPy, whose products round by place on some machines; here they do on all."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", spoiled_dot())
    x = picture(1, dtype, channels=24)
    check(x, [48], [20], [5], strict)
    some = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(9))[:, torch.arange(40) * 7 % 9]
    check(some.to(dtype), [40], [21], [3], strict)


def test_a_frame_that_is_all_flat_has_the_groups_of_copies():
    check_all_flat(lambda x, valid, budgets, _, neighbors: run(x, valid, budgets.tolist(), neighbors.tolist()))


@pytest.mark.parametrize("strict", [False, True])
def test_distances_that_are_equal_tie(strict):
    """With small whole numbers 16-bit products are exact, so all distances are; many pairs are equally far apart."""
    x = torch.randint(0, 3, (1, 40, 3), generator=torch.Generator().manual_seed(0)).half()
    check(x, [40], [13], [2], strict)


def test_the_first_of_equally_near_centres_may_stand_in_an_earlier_tile():
    """With two values, 68 centres and tiles of 64, the two other tokens are copies of centres in both tiles."""
    x = torch.tensor([1.0, -1.0]).repeat(35)[None, :, None]
    check(x, [70], [68], [2])


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 70), (torch.bfloat16, 131), (torch.float16, 1)])
@pytest.mark.parametrize("stored_at_once", [tiles.STORED_AT_ONCE, 0])
def test_tiles_that_tokens_and_channels_do_not_fill(dtype, count, stored_at_once):
    x = torch.randn(1, count, 67, generator=torch.Generator().manual_seed(1)).to(dtype)
    check(x, [count], [max(1, count // 3)], [min(5, count)], stored_at_once=stored_at_once)


def test_frames_taken_some_at_a_time_and_tokens_that_stand_anyhow():
    x = torch.randn(24, 5, 20, generator=torch.Generator().manual_seed(2)).permute(1, 2, 0)  # 5 frames of 20
    budgets, neighbors = [5, 9, 20, 1, 7], [5, 4, 3, 2, 1]
    together = run(x, None, budgets, neighbors)
    two_by_two = run(x, None, budgets, neighbors, stored_at_once=2 * 32**2)
    expected = reference(x, None, torch.tensor(budgets), 20, torch.tensor(neighbors))
    used = torch.arange(20) < torch.tensor(budgets)[:, None]
    for centers, labels in (together, two_by_two):
        assert torch.equal(labels, expected[1])
        assert torch.equal(centers[used], expected[0][used])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("junk", [1e6, math.inf, math.nan])
def test_padding_and_frame_mates_change_nothing(dtype, junk):
    """A frame with NaN or infinite tokens changes nothing either; its own labels mean nothing, but stay in range."""
    g = torch.Generator().manual_seed(3)
    sizes, budgets, neighbors = [12, 7, 12], [5, 4, 5], [5, 4, 5]
    x = torch.randn(3, 12, 8, generator=g).to(dtype)
    valid = torch.arange(12) < torch.tensor(sizes)[:, None]
    expected = run(x, valid, budgets, neighbors)
    x = torch.where(valid[:, :, None], x, junk)
    x[2, 4] = junk
    centers, labels = run(x, valid, budgets, neighbors)
    assert torch.equal(labels[:2], expected[1][:2])
    assert torch.equal(centers[0], expected[0][0])
    assert torch.equal(centers[1, :4], expected[0][1, :4])
    assert ((labels[2] >= 0) & (labels[2] < 5)).all()
    assert len(set(centers[2].tolist())) == 5


@pytest.mark.parametrize("offset", [256.0, -4096.0])
def test_a_common_offset_does_not_cost_digits(offset):
    """Only fp32 tokens; tests below cover those of 16 bits."""
    moved = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(4)) + offset
    one, other = (run(y, None, [13], [5]) for y in (moved - offset, moved))  # exact: both have the same distances
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def massive(dtype, kind, offset=100.0):
    """[1, 96, 256] tokens in six groups; every 16th channel is offset by `offset`, except in outliers. Tokens 40 and 41
    are copies of token 3, which is ordinary, and of token 17, an outlier."""
    g = torch.Generator().manual_seed(8)
    x = torch.randn(6, 256, generator=g)[torch.arange(96) % 6] + 0.2 * torch.randn(96, 256, generator=g)
    offset = offset * (torch.arange(256) % 16 == 5)
    outliers = {"one at zero": [17], "one beyond": [17], "five alike": [5, 11, 17, 23, 29]}[kind]
    x = x + offset
    x[outliers] -= offset * (2 if kind == "one beyond" else 1)
    x[[40, 41]] = x[[3, 17]]
    return x[None].to(dtype)


def all_products(x):
    """(products, norms) of one frame, in tiles of 16."""
    count, channels = x.shape[1:]
    pitch = -(-count // 16) * 16
    plan = dataclasses.replace(PLAN(1, count, channels, x.dtype), block_n=16, block_m=16, pitch=pitch)
    lengths = torch.tensor([count], dtype=torch.int32)
    products, norms = gram.gram(gram.centred(x, lengths, plan), lengths, plan)
    return products[0, :count, :count], norms[0, :count]


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_channels_are_shifted_exactly_or_split_or_near_zero(dtype):
    """The last two offsets are massive. The last has an outlier in the second frame, so only that frame's block of
    channels is flagged."""
    g = torch.Generator().manual_seed(5)
    offset = torch.tensor([0.0, 0.5, 2.0, -40.0, 500.0, -500.0]).repeat(12)[:70]
    offset[64:] = 1.0
    x = torch.randn(2, 50, 70, generator=g) + offset
    x[1, 4, :64] = torch.where(offset[:64] == -500, 0.1, x[1, 4, :64])
    x = x.to(dtype)
    lengths = torch.tensor([50, 31], dtype=torch.int32)
    high, low, flags = gram.centred(x, lengths, PLAN(2, 50, 70, dtype))
    assert flags.tolist() == [[0, 0], [1, 0]]
    for f, n in enumerate(lengths.tolist()):
        moved = high[f, :n, :70].double()
        if flags[f, 0]:
            moved[:, :64] += low[f, :n, :64].double()
        steps = x[f, :n].double() - moved
        shift = steps.median(0).values
        assert (steps - shift).abs().max() <= 500 * eps(torch.bfloat16) ** 2  # two cuts; devices round twice
        whole = offset != -500 if flags[f, 0] else torch.ones(70, dtype=torch.bool)
        assert (steps - shift)[:, whole].eq(0).all()
        assert (shift.abs() > 30).tolist() == (offset.abs() > 30).tolist()
        assert high[f, n:].eq(0).all()
    assert high[:, :, 70:].eq(0).all()
    assert low[1, :, :64].isfinite().all()
    assert low[1, 31:, :64].eq(0).all()


@pytest.mark.parametrize("kind", ["one at zero", "one beyond", "five alike"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.ci
def test_massive_channels_with_outliers_cost_no_digits(dtype, kind):
    """Neither do distances between outliers: the error is at most twice that of the specification in fp32."""
    x = massive(dtype, kind)
    products, norms = all_products(x)
    found = (norms[:, None] - products) + (norms - products)
    exact = (x[0, :, None].double() - x[0].double()).square().sum(-1)
    plain = x[0].float() - x[0].float().mean(0)
    plain = plain.square().sum(1)[:, None] + plain.square().sum(1) - 2 * plain @ plain.T
    others = exact > 0
    errors = [((values - exact).abs() / exact)[others].max() for values in (found, plain)]
    assert errors[0] <= 2 * errors[1]
    limit = largest_error(x.shape[2], torch.float32) * (norms[:, None] + norms)
    assert (found.abs() <= limit)[~others].all()
    assert torch.equal(products, products.T)


@pytest.mark.parametrize("kind", ["one at zero", "one beyond", "five alike"])
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stored_at_once", [tiles.STORED_AT_ONCE, pytest.param(0, marks=pytest.mark.slow)])
def test_massive_channels_with_outliers_are_clustered_like_others(dtype, kind, stored_at_once):
    check(massive(dtype, kind, 50.0 if kind == "five alike" else 400.0), [96], [30], [5], stored_at_once=stored_at_once)


def test_fp16_channels_that_centring_would_overflow_stay_as_they_are():
    x = torch.full((1, 40, 16), 60_000.0).half()
    x[0, 7] = -60_000.0
    high, _, flags = gram.centred(x, torch.tensor([40], dtype=torch.int32), PLAN(1, 40, 16, x.dtype))
    assert torch.equal(high[:, :40], x)
    assert flags.eq(0).all()


def test_squared_distances_of_bf16_tokens_are_as_exact_as_those_of_fp32():
    """With 2,048 channels and an offset that is too small to be subtracted, the error is at most twice that of the
    specification."""
    x = (torch.randn(1, 32, 2048, generator=torch.Generator().manual_seed(6)) + 1).bfloat16()
    plan = PLAN(1, 32, 2048, x.dtype)
    lengths = torch.tensor([32], dtype=torch.int32)
    products, norms = gram.gram(gram.centred(x, lengths, plan), lengths, plan)
    found = norms[0, :, None] + norms[0] - 2 * products[0]
    exact = torch.cdist(x.double(), x.double())[0].square()
    wide = x[0].float()
    squares = wide.square().sum(-1)
    plain = squares[:, None] + squares - 2 * wide @ wide.T
    # A distance is rounded once for each of its three terms, even if plain PyTorch was luckier.
    allowed = max(2 * (plain - exact).abs().max(), 3 * eps(plain) * squares.max())
    assert (found - exact).abs().max() <= allowed


def test_between_two_centres_a_token_takes_the_one_of_higher_score():
    x = torch.tensor([[[0.0], [6.0], [16.0], [11.0]]])
    centers, labels = run(x, None, [3], [1])
    assert centers.tolist() == [[0, 2, 1]]
    assert labels.tolist() == [[0, 2, 1, 1]]


@pytest.mark.parametrize("scale", [1e-12, 1e3, 1e10])
def test_nothing_underflows_at_any_scale(scale):
    x = torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(7)) * scale
    check(x, [30], [10], [5])


@given(
    frames=st.integers(1, 5000),
    count=st.integers(1, 40_000),
    channels=st.integers(1, 9000),
    dtype=st.sampled_from([torch.float32, *HALF]),
)
@settings(max_examples=100)
def test_plans_cover_every_shape_in_bounded_memory(frames, count, channels, dtype):
    plan = PLAN(frames, count, channels, dtype)
    assert plan.pitch >= count
    assert plan.width >= channels
    assert plan.pitch % plan.block_n == plan.width % plan.block_c == plan.block_n % plan.block_m == 0
    assert all(size >= 16 and size & (size - 1) == 0 for size in (plan.block_n, plan.block_m, plan.block_c))
    assert tiles.shared_bytes(plan, dtype) <= 99 * 1024  # the least that any supported device gives a block
    assert 1 <= plan.frames <= frames
    assert plan.stored == (plan.pitch <= 5792)
    if plan.stored:
        assert plan.frames * plan.pitch**2 <= tiles.STORED_AT_ONCE
    assert plan.frames == 1 or plan.frames * plan.pitch * plan.width <= tiles.TOKENS_AT_ONCE
