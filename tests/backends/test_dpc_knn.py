"""The clustering against a naive algorithm (`naive`) in fp64, one token at a time."""

import math
from unittest import mock

import pytest
import torch
from cuts import CUTS, cut_into
from hypothesis import given
from hypothesis import strategies as st

from ppe_npu.backends.cpu import dpc_knn as fast
from ppe_npu.backends.reference import dpc_knn as reference

pytestmark, dpc_knn = pytest.mark.half, reference.dpc_knn


@pytest.fixture(scope="module", autouse=True, params=[reference, fast], ids=["reference", "cpu"])
def clustering(request):
    """Every test here runs on the specification and on the CPU's own implementation."""
    with mock.patch.dict(globals(), dpc_knn=request.param.dpc_knn):
        yield


def naive(x: torch.Tensor, budget: int, k: int, strict: bool) -> tuple[list[int], list[int]]:
    """Centres of tokens x [N, C] by descending score, and the rank of every token's centre."""
    n, c = x.shape
    d = [[math.sqrt(float((x[i] - x[j]).square().sum()) / c) for j in range(n)] for i in range(n)]
    log_rho = [-sum(sorted(v * v for v in d[i])[:k]) / k for i in range(n)]
    farthest = max(max(row) for row in d)
    score = []
    for i in range(n):
        denser = [j for j in range(n) if log_rho[j] > log_rho[i] or (log_rho[j] == log_rho[i] and j < i and not strict)]
        delta = min([d[i][j] for j in denser] + [farthest])
        score.append(log_rho[i] + (math.log(delta) if delta else -math.inf))
    centers = sorted(range(n), key=lambda i: -score[i])[:budget]
    label = [min(range(budget), key=lambda r: d[centers[r]][i]) for i in range(n)]
    for rank, center in enumerate(centers):
        label[center] = rank
    return centers, label


def check(x: torch.Tensor, sizes: list[int], budgets: list[int], neighbors: list[int], strict: bool = False) -> None:
    """Compare every frame with the naive algorithm."""
    longest = x.shape[1]
    valid = torch.arange(longest) < torch.tensor(sizes)[:, None] if min(sizes) < longest else None
    centers, labels = dpc_knn(x, valid, torch.tensor(budgets), max(budgets), torch.tensor(neighbors), strict)
    assert centers.dtype == labels.dtype == torch.int64
    assert centers.shape == (len(sizes), max(budgets))
    assert ((centers >= 0) & (centers < longest)).all()
    for f, (n, m, k) in enumerate(zip(sizes, budgets, neighbors)):
        expected_centers, expected_labels = naive(x[f, :n].double(), m, k, strict)
        assert labels[f, n:].eq(-1).all()
        assert centers[f, :m].tolist() == expected_centers
        assert labels[f, :n].tolist() == expected_labels


@CUTS
@pytest.mark.parametrize("strict", [False, True])
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 0.5, 1.0]), offset=st.sampled_from([0.0, 20.0]))
def test_equals_the_algorithm_in_words(cut, strict, seed, scale, offset):
    """Ragged frames of 1 to 17 tokens, with every number of neighbours; some tokens of some frames are copies."""
    g = torch.Generator().manual_seed(seed)
    sizes = [17, *torch.randint(1, 18, (4,), generator=g).tolist()]
    budgets = [int(torch.randint(1, n + 1, (), generator=g)) for n in sizes]
    neighbors = [int(torch.randint(1, min(5, n) + 1, (), generator=g)) for n in sizes]
    x = torch.randn(5, 17, 8, generator=g, dtype=torch.float64) * scale + offset
    copied = torch.randint(0, 17, (5, 17), generator=g).minimum(torch.arange(17))
    copies = x.gather(1, copied[:, :, None].expand_as(x))
    x = torch.where(torch.rand(5, 17, 1, generator=g) < 0.4 * torch.rand(5, 1, 1, generator=g), copies, x)
    with cut_into(cut):
        check(x, sizes, budgets, neighbors, strict)


@CUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 31, 37])
@pytest.mark.parametrize("frames", [1, 7])
def test_small_and_odd_sizes(cut, dtype, count, frames):
    g = torch.Generator().manual_seed(count)
    x = torch.randn(frames, count, 12, generator=g).to(dtype)
    budgets = [1 + (count - 1) * f // max(1, frames - 1) for f in range(frames)]
    with cut_into(cut):
        check(x, [count] * frames, budgets, [min(1 + f % 5, count) for f in range(frames)])


@CUTS
@pytest.mark.parametrize("width", [3, 48, 100, 384, 385])
def test_copies_tie_exactly(cut, width):
    """Equal tokens are at distance zero in fp32, whatever 1/C rounds to, and are ordered by index if all are kept."""
    g = torch.Generator().manual_seed(width)
    distinct = torch.randn(2, 9, width, generator=g)
    x = distinct.gather(1, torch.randint(0, 9, (2, 41, 1), generator=g).expand(-1, -1, width)) + 3
    with cut_into(cut):
        check(x, [41, 41], [41, 30], [5, 2])


def test_two_that_are_nearest_to_each_other_tie():
    """With k = 2 both have the same density to the last bit, and the one of lower index counts as denser."""
    g = torch.Generator().manual_seed(5)
    for _ in range(20):
        check(torch.randn(1, 24, 40, generator=g), [24], [12], [2])


def spoiled(product, ulps: int, seed: int = 0):
    """A product that rounds by place: every entry is off by its own draw of up to `ulps` units in the last place."""
    generator = torch.Generator().manual_seed(seed)

    def spoil(a, b, out):
        product(a, b, out=out)
        noise = torch.randint(-ulps, ulps + 1, out.shape, generator=generator)
        return out.copy_(out * (1 + noise * torch.finfo(out.dtype).eps))

    return spoil


def picture(seed: int, dtype: torch.dtype = torch.float32, channels: int = 40) -> torch.Tensor:
    """[1, 48, C] tokens of a drawn screen of 6 x 8 cells: a flat ground, two flat boxes, and four unique cells."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randn(7, channels, generator=g, dtype=torch.float64)
    cells = torch.zeros(6, 8, dtype=torch.long)
    cells[1:4, 1:5], cells[3:6, 5:8] = 1, 2
    cells[0, 2], cells[2, 6], cells[5, 1], cells[4, 4] = 3, 4, 5, 6
    return kinds[cells.flatten()][None].to(dtype)


@CUTS
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_that_rounds_by_place_breaks_no_tie(monkeypatch, cut, dtype, strict):
    """Elsewhere products may be neither symmetric nor independent of a token's place; equal tokens must stay equal."""
    for product in ("bmm", "mm"):
        monkeypatch.setattr(torch, product, spoiled(getattr(torch, product), ulps=4))
    g = torch.Generator().manual_seed(6)
    for _ in range(5):
        some = torch.randn(3, 9, 24, generator=g, dtype=torch.float64)
        x = some.gather(1, torch.randint(0, 9, (3, 20, 1), generator=g).expand(-1, -1, 24)).to(dtype)
        with cut_into(cut):
            check(x, [20, 17, 20], [9, 9, 14], [2, 5, 3], strict)
            check(picture(1, dtype), [48], [20], [5], strict)


@CUTS
def test_flat_areas_whose_features_differ_in_their_last_bits_tie_as_copies_do(cut):
    """A vision tower gives such features: their last bits depend on the machine and on the batch."""
    x = picture(3, channels=64)
    expected = dpc_knn(x, None, torch.tensor([20]), 20, torch.tensor([5]))
    for seed in range(5):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        with cut_into(cut):
            found = dpc_knn(x * (1 + 1e-6 * noise), None, torch.tensor([20]), 20, torch.tensor([5]))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def all_flat(count: int, seed: int | None) -> torch.Tensor:
    """[3, count, 32]: two frames of one repeated token whose last bits vary by seed, and a frame of random tokens."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 32, generator=g).expand(-1, count, -1).clone()
    x[2] = torch.randn(count, 32, generator=g)
    if seed is not None:
        x[:2] *= 1 + 1e-6 * torch.randn(2, count, 32, generator=torch.Generator().manual_seed(seed))
    return x


def check_all_flat(cluster, count: int = 20, padding: int = 3, seeds: int = 1) -> None:
    """Check that flat frames have the groups of copies whatever their last bits; `cluster` is dpc_knn of a backend."""
    valid = (torch.arange(count + padding) < count).expand(3, -1) if padding else None
    arguments = (valid, torch.tensor([9] * 3), 9, torch.tensor([5] * 3))
    expected = cluster(all_flat(count + padding, None), *arguments)
    assert expected[1][0, :10].tolist() == [*range(9), 0]
    for seed in range(seeds):
        found = cluster(all_flat(count + padding, seed), *arguments)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@CUTS
@pytest.mark.parametrize("count", [20, 70])
@pytest.mark.parametrize("padding", [0, 7])
def test_a_frame_that_is_all_flat_has_the_groups_of_copies(cut, count, padding):
    with cut_into(cut):
        check_all_flat(dpc_knn, count, padding, seeds=5)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_flat_picture_has_the_same_groups_in_any_batch_and_with_any_threads(offset):
    frames = torch.cat([picture(seed) for seed in range(8)]) + offset
    arguments = (torch.tensor([20] * 8), 20, torch.tensor([5] * 8))
    together = dpc_knn(frames, None, *arguments)
    threads = torch.get_num_threads()
    for number, budget in enumerate(arguments[0]):
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            try:
                alone = dpc_knn(frames[number : number + 1], None, budget[None], 20, torch.tensor([5]))
            finally:
                torch.set_num_threads(threads)
            assert torch.equal(alone[0][0], together[0][number])
            assert torch.equal(alone[1][0], together[1][number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [8, 384, 2048])
@pytest.mark.parametrize("kind", ["normal", "constant", "massive"])
def test_the_bounds_of_rounding_hold(dtype, channels, kind):
    """Errors of d^2 stay below the largest bound, and for normal tokens below the probable one.

    A token's product with itself is summed sequentially, as the least careful library does, and pairwise, as the most
    careful does; both should be the same number.
    """
    g = torch.Generator().manual_seed(channels)
    x = torch.randn(30, 1 if kind == "constant" else channels, generator=g, dtype=torch.float64)
    x = x.expand(-1, channels).clone()
    if kind == "massive":
        x[:, :3] *= 3000
    terms = x.to(dtype).square()
    one_by_one = torch.zeros(30, dtype=dtype)
    for channel in range(channels):
        one_by_one += terms[:, channel]
    in_pairs = terms
    while in_pairs.shape[1] > 1:
        if in_pairs.shape[1] % 2:
            in_pairs = torch.nn.functional.pad(in_pairs, (0, 1))
        in_pairs = in_pairs[:, ::2] + in_pairs[:, 1::2]
    norms = torch.stack([one_by_one, in_pairs[:, 0]]).double()
    error = (2 * norms[0] - 2 * norms[1]).abs() / (2 * norms.amin(0))
    assert (error <= reference.largest_error(channels, dtype)).all()
    if kind == "normal":
        assert (error <= reference.probable_error(channels, dtype)).all()


def test_tokens_with_one_checksum_are_equal_only_where_they_lie_together():
    """Channels in another order have the same sum of bits, but are another token."""
    x = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(2))
    x[0, 7] = x[0, 3].flip(0)
    check(x - x.mean(1, keepdim=True), [12], [6], [3])
    assert reference._squared_distances(x - x.mean(1, keepdim=True), None)[0, 3, 7] > 0


def test_ties_go_to_the_lower_index():
    """All densities are equal (k = 1): token 0 counts as the densest, the others rank by delta to the ones before."""
    x = torch.tensor([[[0.0], [0.0], [10.0], [10.0], [3.0]]])
    centers, labels = dpc_knn(x, None, torch.tensor([3]), 3, torch.tensor([1]))
    # Deltas: 10 for token 0 (the farthest pair), 0 for 1, 10 for 2, 0 for 3, 3 for 4.
    assert centers.tolist() == [[0, 2, 4]]
    assert labels.tolist() == [[0, 0, 1, 1, 2]]


def test_between_two_centres_a_token_takes_the_one_of_higher_score():
    """With k = 1 the deltas are 16 (the farthest pair), 6, 10 and 5; the last token is midway between 1 and 2."""
    x = torch.tensor([[[0.0], [6.0], [16.0], [11.0]]])
    centers, labels = dpc_knn(x, None, torch.tensor([3]), 3, torch.tensor([1]))
    assert centers.tolist() == [[0, 2, 1]]
    assert labels.tolist() == [[0, 2, 1, 1]]


@CUTS
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 30.0, 1e3, 1e10])
def test_nothing_underflows_at_any_scale(cut, scale):
    """Log densities are ranked, because exp(-d^2) would be 0 for every token from a scale of about 10 on. With k = 1
    all densities are equal, and delta alone decides, at any scale."""
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0)) * scale
    with cut_into(cut):
        check(x, [40, 40], [10, 10], [5, 1])
        check(x.double(), [40, 40], [10, 10], [5, 1])


@pytest.mark.parametrize("padding", [None, 0, 30])
def test_a_common_offset_does_not_cost_digits(padding):
    valid = None if padding is None else torch.arange(60 + padding)[None] < 60
    x = torch.randn(1, 60 + (padding or 0), 32, generator=torch.Generator().manual_seed(1))
    for offset in (256.0, -4096.0):
        moved = x + offset
        plain = moved - offset  # this is exact, so both have the same distances
        moved[:, 60:] = 0
        for one, other in zip(*(dpc_knn(y, valid, torch.tensor([20]), 20, torch.tensor([5])) for y in (plain, moved))):
            assert torch.equal(one, other)


@pytest.mark.parametrize("padding", [0, 5])
def test_tokens_that_differ_by_less_than_fp32_sees(padding):
    """fp64 distinguishes them. fp32 may lose their distances, but none becomes negative, so no NaN joins groups."""
    g = torch.Generator().manual_seed(9)
    member = torch.arange(40) % 8
    x = torch.randn(1, 8, 20, generator=g, dtype=torch.float64)[:, member]
    x = x + 1e-5 * torch.randn(1, 40, 20, generator=g, dtype=torch.float64)
    x = torch.nn.functional.pad(x, (0, 0, 0, padding))
    check(x, [40], [8], [5])
    check(x, [40], [21], [3])
    for k in (1, 2, 5):
        valid = torch.arange(40 + padding)[None] < 40
        _, labels = dpc_knn(x.float(), valid, torch.tensor([8]), 8, torch.tensor([k]))
        assert torch.equal(labels[0, :40], labels[0, :8][member])
        assert labels[0, :8].sort().values.tolist() == list(range(8))


def test_budget_of_all_tokens_makes_every_token_its_own_centre_even_among_duplicates():
    x = torch.ones(2, 7, 3)
    centers, labels = dpc_knn(x, None, torch.tensor([7, 7]), 7, torch.tensor([5, 5]))
    assert centers.tolist() == [list(range(7))] * 2
    assert centers.gather(1, labels).tolist() == [list(range(7))] * 2


@CUTS
@pytest.mark.parametrize("junk", [0.0, 1e6, math.inf, math.nan])
def test_padding_and_frame_mates_change_nothing(cut, junk):
    g = torch.Generator().manual_seed(2)
    sizes, budgets, k = [12, 7, 9, 1, 3], [5, 5, 6, 1, 2], [5, 5, 4, 1, 3]
    x = torch.randn(5, 12, 8, generator=g)
    valid = torch.arange(12) < torch.tensor(sizes)[:, None]
    padded = torch.where(valid[:, :, None], x, junk)
    with cut_into(cut):
        together = dpc_knn(padded, valid, torch.tensor(budgets), 6, torch.tensor(k))
    for f, n in enumerate(sizes):
        alone = dpc_knn(
            x[f : f + 1, :n], None, torch.tensor(budgets[f : f + 1]), budgets[f], torch.tensor(k[f : f + 1])
        )
        assert together[0][f, : budgets[f]].tolist() == alone[0][0].tolist()
        assert together[1][f].tolist() == alone[1][0].tolist() + [-1] * (12 - n)


def test_tokens_that_are_not_numbers_spoil_their_frame_alone():
    """That frame's labels mean nothing, but stay in range: on a device an index out of range ends the process."""
    x = torch.randn(3, 11, 8, generator=torch.Generator().manual_seed(3))
    budgets, k = torch.tensor([4, 4, 4]), torch.tensor([5, 5, 5])
    expected = dpc_knn(x, None, budgets, 6, k)
    for junk in (math.nan, math.inf):
        x[1, 4] = junk
        centers, labels = dpc_knn(x, None, budgets, 6, k)
        assert torch.equal(labels[::2], expected[1][::2])
        assert ((labels[1] >= 0) & (labels[1] < 4)).all()
        assert sorted(centers[1].tolist()) == sorted(set(centers[1].tolist()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_of_16_bits_are_taken_in_fp32(dtype):
    x = torch.randn(2, 30, 24, generator=torch.Generator().manual_seed(4)).to(dtype)
    half, full = (dpc_knn(y, None, torch.tensor([13, 9]), 13, torch.tensor([5, 5])) for y in (x, x.double()))
    assert torch.equal(half[0], full[0])
    assert torch.equal(half[1], full[1])


def test_the_tokens_are_left_as_they_were_and_may_stand_anyhow():
    x = torch.randn(8, 15, 3, generator=torch.Generator().manual_seed(7)).permute(2, 1, 0).requires_grad_()
    before = x.detach().clone()
    one, other = (dpc_knn(y, None, torch.tensor([6, 6, 2]), 6, torch.tensor([5, 5, 1])) for y in (x, before))
    assert torch.equal(x, before)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
