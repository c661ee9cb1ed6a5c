"""The kernels for Ascend in Triton's interpreter, against a naive algorithm and against the specification.

Unwritten memory holds NaN here, so a kernel that reads it fails its test.
"""

import dataclasses
import math
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dpc_knn import check_all_flat, naive, picture
from tolerances import assert_equal

pytest.importorskip("triton")

import triton
from kernel_device import DEVICE
from triton.runtime import interpreter
from triton_interpreter import repair, spoiled_dot

from ppe_npu import backends
from ppe_npu.backends import dispatch
from ppe_npu.backends.npu import chips, gram, row_mean, tiles
from ppe_npu.backends.npu import dpc_knn as kernels
from ppe_npu.backends.npu.chips import CHIPS
from ppe_npu.backends.parity import CASES, run, run_parity
from ppe_npu.backends.reference.dpc_knn import dpc_knn as reference
from ppe_npu.backends.reference.group_mean import group_mean as reference_mean

pytestmark = [
    pytest.mark.half,
    pytest.mark.skipif(DEVICE.type != "cpu", reason="kernels for Ascend are not compiled for a GPU"),
]
repair()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLAN = tiles.plan


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # this makes torch.empty fill its memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def check(x, sizes, budgets, neighbors, strict=False):
    longest = x.shape[1]
    valid = torch.arange(longest) < torch.tensor(sizes)[:, None] if min(sizes) < longest else None
    arguments = x, valid, torch.tensor(budgets), max(budgets), torch.tensor(neighbors), strict
    centers, labels = kernels.dpc_knn(*arguments)
    assert centers.dtype == labels.dtype == torch.int64
    assert ((centers >= 0) & (centers < longest)).all()
    for f, (n, m, k) in enumerate(zip(sizes, budgets, neighbors)):
        expected_centers, expected_labels = naive(x[f, :n].double(), m, k, strict)
        assert labels[f, n:].eq(-1).all()
        assert centers[f, :m].tolist() == expected_centers
        assert labels[f, :n].tolist() == expected_labels
    return arguments, centers, labels


@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=2)
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from(DTYPES))
def test_clusters_are_those_of_the_algorithm_in_words(strict, seed, dtype):
    """Ragged frames of 1 to 19 tokens, with every number of neighbours; some are copies."""
    g = torch.Generator().manual_seed(seed)
    sizes = [19, *torch.randint(1, 20, (2,), generator=g).tolist()]
    budgets = [int(torch.randint(1, n + 1, (), generator=g)) for n in sizes]
    neighbors = [int(torch.randint(1, min(5, n) + 1, (), generator=g)) for n in sizes]
    copied = torch.randint(0, 19, (3, 19), generator=g).minimum(torch.arange(19))
    x = (torch.randn(3, 19, 20, generator=g) + 2).to(dtype)
    copies = x.gather(1, copied[:, :, None].expand_as(x))
    x = torch.where(torch.rand(3, 19, 1, generator=g) < 0.3, copies, x)
    check(x, sizes, budgets, neighbors, strict)


@pytest.mark.parametrize(
    ("chip", "count", "shorter"),
    [
        ("Ascend910B4", 60, 20),
        pytest.param("Ascend910B4", 100, 54, marks=pytest.mark.slow),
        pytest.param("Ascend910B1", 260, 54, marks=pytest.mark.slow),
    ],
)
def test_the_tiles_of_a_real_chip(monkeypatch, chip, count, shorter):
    """There are several tiles, the last one partly filled, and a short frame leaves some empty; copies of tokens are in
    the first and the last tile."""
    monkeypatch.setattr(kernels, "chip", lambda _: dataclasses.replace(CHIPS[chip], cubes=2, vectors=3))
    x = torch.randn(2, count, 70, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[:, [7, 11, 18, count - 1]] = x[:, [3, 3, 9, 3]]
    lengths = torch.tensor([count, shorter])
    arguments = x, torch.arange(count) < lengths[:, None], lengths // 3, count // 3, torch.tensor([5, 4])
    centers, labels = kernels.dpc_knn(*arguments)
    expected = reference(*arguments)
    assert_equal(labels, expected[1])
    for f, budget in enumerate(lengths // 3):
        assert_equal(centers[f, :budget], expected[0][f, :budget])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_that_round_by_place_break_no_tie(monkeypatch, dtype, strict):
    """Each product is off by its own few units in the last place, so they are neither symmetric nor the same in another
    place."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", spoiled_dot())
    check(picture(1, dtype, channels=24), [48], [20], [5], strict)
    some = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(9))[:, torch.arange(40) * 7 % 9]
    check(some.to(dtype), [40], [21], [3], strict)


def test_a_frame_that_is_all_flat_has_the_groups_of_copies():
    check_all_flat(kernels.dpc_knn)


@pytest.mark.parametrize("strict", [False, True])
def test_distances_that_are_equal_tie(strict):
    """With small whole numbers around zero and 4 channels all arithmetic is exact, and many pairs are equally far
    apart."""
    x = torch.randint(0, 3, (1, 20, 4), generator=torch.Generator().manual_seed(0)).half()
    check(torch.cat([x, -x], dim=1), [40], [13], [2], strict)


def test_frames_are_taken_some_at_a_time(monkeypatch):
    x = torch.randn(24, 5, 20, generator=torch.Generator().manual_seed(2)).permute(1, 2, 0)  # 5 frames of 20
    arguments = x, None, torch.tensor([5, 9, 20, 1, 7]), 20, torch.tensor([5, 4, 3, 2, 1])
    together = kernels.dpc_knn(*arguments)
    monkeypatch.setattr(tiles, "STORED_AT_ONCE", 2 * 64**2)
    two_by_two = kernels.dpc_knn(*arguments)
    for one, other in zip(together, two_by_two):
        assert_equal(one, other)
    assert_equal(together[1], reference(*arguments)[1])


@pytest.mark.parametrize("junk", [1e6, math.inf, math.nan])
def test_padding_and_frame_mates_change_nothing(junk):
    """A frame with NaN or infinite tokens changes nothing either; its own labels mean nothing, but stay in range."""
    g = torch.Generator().manual_seed(3)
    budgets, neighbors = torch.tensor([5, 4, 5]), torch.tensor([5, 4, 5])
    x = torch.randn(3, 12, 8, generator=g)
    valid = torch.arange(12) < torch.tensor([12, 7, 12])[:, None]
    expected = kernels.dpc_knn(x, valid, budgets, 5, neighbors)
    x = torch.where(valid[:, :, None], x, junk)
    x[2, 4] = junk
    centers, labels = kernels.dpc_knn(x, valid, budgets, 5, neighbors)
    assert_equal(labels[:2], expected[1][:2])
    assert_equal(centers[0], expected[0][0])
    assert_equal(centers[1, :4], expected[0][1, :4])
    assert ((labels[2] >= 0) & (labels[2] < 5)).all()
    assert len(set(centers[2].tolist())) == 5


@pytest.mark.parametrize(
    ("tokens", "groups", "reason"),
    [
        ((2, 5, 8), 3, None),
        ((2, 5, 8), 0, "empty"),
        ((1, 2**26, 32), 3, "2**31 numbers"),
        ((1, 2**25, 2), 2**24 - 1, None),
        ((1, 2**25, 2), 2**24, "2**24 groups"),
    ],
)
def test_what_group_means_refuse(tokens, groups, reason):
    given = torch.empty(tokens, device="meta")
    labels, counts = (torch.empty(tokens[0], size, dtype=torch.int64, device="meta") for size in (tokens[1], groups))
    found = row_mean.refusal(given, labels, counts)
    assert found == reason if reason is None else reason in found


# -- group means -------------------------------------------------------------------------------------------------------


def rows(frames, count, channels, groups, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, count, channels, generator=g).to(dtype)
    labels = torch.randint(-1, groups, (frames, count), generator=g)
    return tokens.requires_grad_(), labels, (labels[:, :, None] == torch.arange(groups)).sum(1)


@settings(max_examples=6)
@given(
    frames=st.integers(1, 3), count=st.integers(1, 30), channels=st.integers(1, 40), groups=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES[:2]), seed=st.integers(0, 99),
)  # fmt: skip
def test_means_and_their_gradients_have_the_bits_of_the_specification(frames, count, channels, groups, dtype, seed):
    """On a CPU both sum in raster order. (bf16 is left out: the interpreter truncates it where devices round.)"""
    tokens, labels, counts = rows(frames, count, channels, groups, dtype, seed)
    found, expected = row_mean.group_mean(tokens, labels, counts), reference_mean(tokens, labels, counts)
    assert_equal(found, expected)
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    (gradient,), (wanted,) = (torch.autograd.grad(made, tokens, cotangent) for made in (found, expected))
    assert_equal(gradient, wanted)


def test_wide_tokens_take_several_tasks():
    tokens, labels, counts = rows(1, 12, 2100, 2)
    assert_equal(row_mean.group_mean(tokens, labels, counts), reference_mean(tokens, labels, counts))


def test_each_channel_comes_from_its_own_token():
    """Every number encodes its token and channel, so a gather from the wrong row or column shows which one it read."""
    tokens = (torch.arange(2 * 9)[:, None] * 1000.0 + torch.arange(200)).view(2, 9, 200)
    labels = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(f)) for f in range(2)])
    means = row_mean.group_mean(tokens, labels, torch.ones(2, 9, dtype=torch.int64))
    assert_equal(means.gather(1, labels[:, :, None].expand(-1, -1, 200)), tokens)


def test_members_are_listed_by_group_in_raster_order():
    labels, counts = torch.tensor([[2, 0, -1, 2, 0], [-1, -1, 1, 1, 1]]), torch.tensor([[2, 0, 2, 0], [0, 3, 0, 0]])
    order, starts = row_mean.listed(labels.to(torch.int32), counts.to(torch.int32))
    assert order[0, :4].tolist() == [1, 4, 0, 3]
    assert order[1, :3].tolist() == [2, 3, 4]
    assert starts.tolist() == [[0, 2, 2, 4, 4], [0, 0, 3, 3, 3]]
    assert order.dtype == starts.dtype == torch.int32


# -- both, as the package calls them -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_parity_cases_hold(on_cpu, monkeypatch):
    """Only in fp32: the interpreter truncates bf16 where devices round."""
    entries = on_cpu("npu", "triton_ascend")
    cases = tuple(case for case in CASES if case.op in {entry.op for entry in entries})
    monkeypatch.setattr(run, "CASES", cases)
    rows = [row for row in run_parity(DEVICE, ("fp32",)) if row.implementation == "triton_ascend"]
    assert {row.op for row in rows} == {"dpc_knn", "group_mean"}
    assert [row for row in rows if not row.ok or row.error is None] == []


def test_they_are_taken_first_and_give_way_with_a_reason_that_is_said_once(on_cpu, monkeypatch, caplog):
    on_cpu("npu", "triton_ascend")
    tokens, labels = torch.randn(1, 4, 3), torch.tensor([[0, 1, 0, 1]])
    counts, budgets = torch.tensor([[2, 2]]), torch.tensor([2])
    backends.group_mean(tokens, labels, counts)
    backends.dpc_knn(tokens, None, budgets, 2, budgets)
    assert dispatch.chosen() == {"group_mean": "triton_ascend", "dpc_knn": "triton_ascend"}
    for _ in range(2):
        backends.dpc_knn(tokens.double(), None, budgets, 2, budgets)
    refused = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert refused == [
        "dpc_knn: triton_ascend is not used: the Triton kernels take fp16, bf16 and fp32, not torch.float64"
    ]
    assert dispatch.chosen()["dpc_knn"] == "triton_ascend + reference"


@pytest.mark.parametrize(
    ("name", "installed", "reason"),
    [
        ("Ascend910B4", ("ascend", "nvidia"), None),
        ("Ascend910B4", ("nvidia",), "not triton-ascend"),
        ("Ascend310P3", ("ascend",), "planned for chips of the 910B and 910C kinds"),
    ],
)
def test_chips_and_tritons_that_they_do_not_run_on(monkeypatch, name, installed, reason):
    properties = types.SimpleNamespace(cube_core_num=18, vector_core_num=36)
    runtime = types.SimpleNamespace(get_device_properties=lambda _: properties, get_device_name=lambda _: name)
    monkeypatch.setattr(torch, "npu", runtime, raising=False)
    monkeypatch.setattr(triton.backends, "backends", dict.fromkeys(installed))
    where = types.SimpleNamespace(type="npu")
    found = chips.problem(where)
    assert found == reason if reason is None else reason in found
    if reason is None:  # the cores come from the device, the buffer's size from the table
        assert (chips.chip(where).cubes, chips.chip(where).vectors, chips.chip(where).ub) == (18, 36, 192 * 1024)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 5, 8), torch.bfloat16, None),
        ((1, 5760, 64), torch.float32, None),
        ((1, 5761, 64), torch.float32, "5,760 tokens"),
        ((1, 5760, 400_000), torch.float32, "2**31"),
        ((0, 5, 8), torch.float32, "empty"),
        ((2, 5, 8), torch.float64, "not torch.float64"),
    ],
)
def test_what_clustering_refuses(shape, dtype, reason):
    tokens, numbers = (
        torch.empty(size, dtype=kind, device="meta") for size, kind in ((shape, dtype), (shape[:1], torch.int64))
    )
    found = kernels.refusal(tokens, None, numbers, 1, numbers)
    assert found == reason if reason is None else reason in found


# -- tiles -------------------------------------------------------------------------------------------------------------


@given(
    chip=st.sampled_from([*CHIPS.values(), chips.NONE]),
    ub=st.sampled_from([64, 128, 192, 256]),
    frames=st.integers(1, 5000),
    count=st.integers(1, 5760),
    channels=st.integers(1, 9000),
)
@settings(max_examples=100)
def test_plans_cover_every_shape_and_leave_a_fifth_of_the_buffer(chip, ub, frames, count, channels):
    """Also for chips with other buffers, down to a third of today's size."""
    chip = dataclasses.replace(chip, ub=ub * chips.KIB)
    plan = PLAN(chip, frames, count, channels)
    assert plan.pitch >= count
    assert plan.width >= channels
    for size in (plan.tile, plan.square, plan.turned, plan.length, *plan.rows.values()):
        assert plan.pitch % size == 0
        assert size * 4 % 32 == 0
    assert plan.width % plan.channels == plan.width % tiles.STEP == plan.pitch % plan.tokens == 0
    held = {kernel: size * plan.tile for kernel, size in plan.rows.items()}
    held |= {"distances": plan.square**2, "turn": plan.turned**2, "centre": plan.tokens * plan.channels}
    held |= {"assign": plan.length, "mean": tiles.row_block(chip, channels)[0]}
    for kernel, numbers in held.items():
        assert tiles.BYTES[kernel] * numbers <= tiles.SHARE * chip.ub, kernel
    assert 1 <= plan.frames <= frames
    assert plan.frames * plan.pitch**2 <= tiles.STORED_AT_ONCE
    assert plan.frames == 1 or plan.frames * plan.pitch * plan.width <= tiles.TOKENS_AT_ONCE
    assert plan.frames * max(plan.pitch**2, plan.pitch * plan.width) < 2**31  # indices are int32


def test_tiles_on_and_above_the_diagonal_are_numbered_once_each():
    for count in range(1, 9):
        found = [gram.corner.fn(place, count) for place in range(count * (count + 1) // 2)]
        assert sorted(found) == [(r, c) for r in range(count) for c in range(r, count)]
