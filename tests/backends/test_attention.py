"""Every CPU implementation of attention against a naive loop over queries in fp64."""

import math

import pytest
import torch
from tolerances import assert_near, attention_roundings, sampling_error, share_error

from ppe_npu.backends import attention, sdpa, segments
from ppe_npu.errors import InputError

both = pytest.mark.parametrize("implementation", ["sdpa", "reference"])
INF = float("inf")


def _inputs(query, key, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in (query, key, key)]


def _naive(query, key, value, may_attend=lambda b, h, s, t: True, bias=lambda b, h, s, t: 0.0, scale=None):
    """[B, H, S, D] attention, one score at a time. A query with nothing to attend to gets zeros."""
    batch, heads, queries, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    output = torch.zeros_like(query)
    for b, h, s in ((b, h, s) for b in range(batch) for h in range(heads) for s in range(queries)):
        g = h // (heads // key.shape[1])
        seen = [t for t in range(key.shape[2]) if may_attend(b, h, s, t)]
        scores = [scale * float(query[b, h, s] @ key[b, g, t]) + float(bias(b, h, s, t)) for t in seen]
        weights = [math.exp(score - max(scores)) for score in scores]
        for t, weight in zip(seen, weights):
            output[b, h, s] += weight / sum(weights) * value[b, g, t]
    return output


def _check(found, expected, tensors):
    """Compare within rounding. The tests' scales are at most 1, and the bound is that of scale 1."""
    query, key, value = tensors
    assert_near(found, expected, roundings=2 * attention_roundings(query, key, scale=1.0), size=value.abs().max())


@both
@pytest.mark.parametrize(("query", "key"), [((2, 3, 5, 8), (2, 3, 7, 8)), ((1, 6, 4, 10), (1, 2, 4, 10))])
def test_dense_and_grouped_heads(query, key, implementation):
    tensors = _inputs(query, key)
    _check(attention(*tensors, implementation=implementation), _naive(*tensors), tensors)
    scaled = attention(*tensors, scale=0.7, implementation=implementation)
    _check(scaled, _naive(*tensors, scale=0.7), tensors)


@both
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 8), (1, 5)])
def test_causal_is_aligned_bottom_right(queries, keys, implementation):
    tensors = _inputs((2, 4, queries, 6), (2, 2, keys, 6))
    expected = _naive(*tensors, may_attend=lambda b, h, s, t: t <= s + keys - queries)
    _check(attention(*tensors, causal=True, implementation=implementation), expected, tensors)


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (2, 1, 1, 7), (5, 7), (1, 4, 5, 1)])
def test_a_bool_mask_says_what_is_attended_to(shape, causal, implementation):
    tensors = _inputs((2, 4, 5, 6), (2, 2, 7, 6))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    full = mask.expand(2, 4, 5, 7)
    expected = _naive(*tensors, may_attend=lambda b, h, s, t: full[b, h, s, t] and (not causal or t <= s + 2))
    _check(attention(*tensors, mask=mask, causal=causal, implementation=implementation), expected, tensors)


@both
def test_an_additive_mask_is_added_to_the_scaled_scores(implementation):
    tensors = _inputs((2, 4, 3, 6), (2, 2, 5, 6))
    mask = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    mask[1, 0, :, 4] = -INF
    expected = _naive(*tensors, bias=lambda b, h, s, t: mask[b, 0, s, t])
    _check(attention(*tensors, mask=mask, implementation=implementation), expected, tensors)
    expected = _naive(
        *tensors, may_attend=lambda b, h, s, t: t <= s + 2, bias=lambda b, h, s, t: mask[b, 0, s, t], scale=0.5
    )
    out = attention(*tensors, mask=mask, causal=True, scale=0.5, implementation=implementation)
    _check(out, expected, tensors)


@both
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_are_zero_and_have_finite_gradients(kind, dtype, implementation):
    tensors = [tensor.requires_grad_() for tensor in _inputs((2, 2, 4, 8), (2, 1, 4, 8), dtype)]
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[1, 0, 2] = False
    if kind == "additive":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -INF)
    output = attention(*tensors, mask=mask, implementation=implementation)
    assert (output[1, :, 2] == 0).all()
    assert (output[1, :, 1] != 0).all()
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][1, :, 2] == 0).all()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_the_reference_makes_no_nan_on_the_way_to_those_zeros():
    tensors = [tensor.requires_grad_() for tensor in _inputs((1, 1, 2, 4), (1, 1, 3, 4))]
    mask = torch.tensor([[True, False, True], [False] * 3])
    with torch.autograd.detect_anomaly(check_nan=True):
        attention(*tensors, mask=mask, implementation="reference").sum().backward()


BORDERS = {"ragged": [0, 4, 8, 8, 9, 13, 15], "equal": [0, 5, 10, 15], "one": [0, 15], "single tokens": list(range(16))}


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("borders", BORDERS.values(), ids=BORDERS)
def test_segments_attend_to_themselves_only(borders, causal, implementation):
    tensors = _inputs((1, 4, 15, 6), (1, 2, 15, 6))
    segment = torch.bucketize(torch.arange(15), torch.tensor(borders[1:]), right=True)
    expected = _naive(*tensors, may_attend=lambda b, h, s, t: segment[s] == segment[t] and (not causal or t <= s))
    out = attention(*tensors, cu_seqlens=borders, causal=causal, implementation=implementation)
    _check(out, expected, tensors)


SOME = {
    "ragged": ([0, 2, 2, 2, 3, 7], [0, 4, 8, 8, 9, 15]),
    "equal": ([0, 2, 4, 6], [0, 5, 10, 15]),
    "a gap": ([0, 2, 2, 4], [0, 5, 10, 15]),
    "alike": ([0, 3, 6, 6], [0, 5, 10, 15]),
    "more queries than keys": ([0, 9, 15], [0, 1, 15]),
}


@both
@pytest.mark.parametrize(("borders", "others"), SOME.values(), ids=SOME)
def test_some_of_the_queries_attend_to_their_own_segment(borders, others, implementation):
    tensors = _inputs((1, 4, borders[-1], 6), (1, 2, 15, 6))
    own, segment = (
        torch.bucketize(torch.arange(ends[-1]), torch.tensor(ends[1:]), right=True) for ends in (borders, others)
    )
    expected = _naive(*tensors, may_attend=lambda b, h, s, t: own[s] == segment[t])
    out = attention(*tensors, cu_seqlens=borders, cu_seqlens_k=others, implementation=implementation)
    _check(out, expected, tensors)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_are_repeated_where_no_fused_kernel_reads_groups(monkeypatch, causal):
    tensors = _inputs((2, 6, 4, 5), (2, 2, 4, 5))
    expected = attention(*tensors, causal=causal, implementation="reference")
    monkeypatch.setattr(sdpa, "_takes_groups", lambda *_: False)
    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", _ungrouped(sdpa.F.scaled_dot_product_attention))
    _check(attention(*tensors, causal=causal, implementation="sdpa"), expected, tensors)


@pytest.mark.parametrize("keys", [1, 7])
@pytest.mark.parametrize("mask", [None, "shared", "flat", "by head"])
def test_a_decoding_steps_heads_become_queries_of_their_group(monkeypatch, mask, keys):
    """Key heads are not repeated for a single query, unless the mask differs by head."""
    tensors = _inputs((2, 6, 1, 5), (2, 2, keys, 5))
    shape = {"shared": (2, 1, 1, keys), "flat": (1, keys), "by head": (2, 6, 1, keys)}.get(mask)
    mask = None if shape is None else torch.randn(shape).relu().bool().index_fill(-1, torch.tensor([0]), True)
    expected = attention(*tensors, mask=mask, causal=True, implementation="reference")
    monkeypatch.setattr(sdpa, "_takes_groups", lambda *_: False)
    repeated = []
    repeat = sdpa.repeat_heads
    monkeypatch.setattr(sdpa, "repeat_heads", lambda *args: repeated.append(1) or repeat(*args))
    _check(attention(*tensors, mask=mask, causal=True, implementation="sdpa"), expected, tensors)
    assert bool(repeated) == (shape == (2, 6, 1, keys))


def _ungrouped(operator):
    def checked(query, key, value, **options):
        assert query.shape[1] == key.shape[1] == value.shape[1]
        assert not options.get("enable_gqa")
        return operator(query, key, value, **options)

    return checked


def test_which_fused_kernels_read_groups():
    assert sdpa._takes_groups(torch.device("cpu"), torch.float32, 512, True)
    assert sdpa._takes_groups(torch.device("cuda"), torch.bfloat16, 256, False)
    for dtype, width, masked in ((torch.float32, 64, False), (torch.bfloat16, 512, False), (torch.bfloat16, 64, True)):
        assert not sdpa._takes_groups(torch.device("cuda"), dtype, width, masked)


def test_there_is_one_call_per_length_not_per_segment():
    calls = []

    def dense(query, key, value):
        calls.append(tuple(query.shape))
        return query

    tensors = _inputs((1, 4, 30, 6), (1, 2, 30, 6))
    out = segments.attend(dense, *tensors, [0, 4, 8, 8, 11, 15, 18, 30])
    assert calls == [(3, 4, 4, 6), (2, 4, 3, 6), (1, 4, 12, 6)]
    assert torch.equal(out, tensors[0])


@both
def test_no_tokens_at_all(implementation):
    tensors = _inputs((1, 4, 0, 6), (1, 2, 0, 6))
    assert attention(*tensors, cu_seqlens=[0], implementation=implementation).shape == (1, 4, 0, 6)


@both
def test_segments_planned_in_inference_mode_can_be_trained_on(implementation):
    tensors = _inputs((1, 2, 23, 4), (1, 2, 23, 4))
    borders = [0, 9, 16, 23]
    segments._plan.cache_clear()
    with torch.inference_mode():
        attention(*tensors, cu_seqlens=borders, implementation=implementation)
    query = tensors[0].requires_grad_()
    attention(query, *tensors[1:], cu_seqlens=borders, implementation=implementation).sum().backward()
    assert query.grad is not None


@both
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"cu_seqlens": [0, 2, 3, 4]}], ids=str)
def test_gradients(options, implementation):
    tensors = [tensor.requires_grad_() for tensor in _inputs((1, 2, 4, 2), (1, 1, 4, 2))]
    assert torch.autograd.gradcheck(lambda *args: attention(*args, implementation=implementation, **options), tensors)


@both
def test_dropout_drops_weights_and_keeps_their_mean(implementation):
    torch.manual_seed(0)
    query, key, _ = _inputs((1, 1, 4000, 4), (1, 1, 3, 4), torch.float32)
    value = torch.eye(3, 4).expand(1, 1, 3, 4)
    weights = attention(query, key, value, dropout=0.25, implementation=implementation)[..., :3]
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=share_error(0.25, weights.numel()))
    off = sampling_error(math.sqrt(0.25 * 0.75) / 0.75, weights.numel())  # of a weight, relative to its value before
    assert weights.sum(-1).mean().item() == pytest.approx(1.0, abs=off)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_keep_the_dtype(dtype, implementation):
    tensors = _inputs((1, 2, 3, 8), (1, 2, 3, 8), dtype)
    for mask in (torch.zeros(3, 3), torch.zeros(3, 3).bfloat16(), torch.zeros(3, 3).half()):
        assert attention(*tensors, mask=mask, implementation=implementation).dtype is dtype


def _biased(query, key, dtype=torch.float64):
    """Inputs, and the logarithms of sizes from 1 to 40 for each key."""
    tensors = _inputs(query, key, dtype)
    sizes = torch.randint(1, 41, (key[0], key[2]), generator=torch.Generator().manual_seed(7))
    return tensors, sizes.double().log()


@both
@pytest.mark.parametrize("scale", [None, 0.7, 1.0])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(6, 6, True), (3, 8, True), (1, 5, True), (4, 7, False)])
def test_a_key_bias_is_added_to_the_scores(queries, keys, causal, scale, implementation):
    tensors, bias = _biased((2, 4, queries, 10), (2, 2, keys, 10))
    expected = _naive(
        *tensors,
        may_attend=lambda b, h, s, t: not causal or t <= s + keys - queries,
        bias=lambda b, h, s, t: bias[b, t],
        scale=scale,
    )
    found = attention(*tensors, key_bias=bias, causal=causal, scale=scale, implementation=implementation)
    assert found.shape == tensors[0].shape
    _check(found, expected, tensors)


@both
def test_a_key_bias_beside_a_mask_and_in_segments(implementation):
    tensors, bias = _biased((1, 4, 9, 6), (1, 2, 9, 6))
    mask = torch.rand(1, 4, 9, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[0, 1, 2] = False
    expected = _naive(*tensors, lambda b, h, s, t: bool(mask[b, h, s, t]), lambda b, h, s, t: bias[b, t])
    _check(attention(*tensors, mask=mask, key_bias=bias, implementation=implementation), expected, tensors)
    part = [0, 0, 0, 1, 1, 1, 1, 1, 2]
    expected = _naive(*tensors, lambda b, h, s, t: t <= s and part[s] == part[t], lambda b, h, s, t: bias[b, t])
    options = {"cu_seqlens": [0, 3, 8, 9], "causal": True, "implementation": implementation}
    _check(attention(*tensors, key_bias=bias, **options), expected, tensors)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_key_bias_is_no_less_exact_than_a_mask(dtype, implementation):
    """The bias has 22 bits and more in every dtype, so that its error is that of the rounded inputs' scores."""
    tensors, bias = _biased((2, 4, 13, 16), (2, 2, 13, 16), dtype)
    wide = [tensor.double() for tensor in tensors]
    expected = _naive(*wide, lambda b, h, s, t: t <= s, lambda b, h, s, t: bias[b, t])
    found = attention(*tensors, key_bias=bias.float(), causal=True, implementation=implementation)
    assert found.dtype == dtype
    added = bias.max().item() / 2  # the reference rounds the sum of both, which is larger than the product by this much
    roundings = 2 * attention_roundings(*tensors[:2]) + 2 * added
    assert_near(found, expected, roundings=roundings, size=wide[2].abs().max())


@both
def test_a_key_bias_has_the_gradients_of_a_mask(implementation):
    tensors, bias = _biased((2, 4, 5, 6), (2, 2, 5, 6))
    tensors = [tensor.requires_grad_() for tensor in (*tensors, bias)]

    def attend(query, key, value, numbers):
        return attention(query, key, value, key_bias=numbers, causal=True, implementation=implementation)

    assert torch.autograd.gradcheck(attend, tensors)


@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_a_key_bias_beside_a_scale_far_from_one_is_finite_in_fp16(scale):
    tensors, bias = _biased((1, 2, 4, 8), (1, 2, 4, 8))
    tensors[0] *= 1e-3
    half = [tensor.half() for tensor in tensors]
    found = attention(*half, key_bias=bias, scale=scale, implementation="sdpa")  # the reference rounds products to fp16
    assert found.isfinite().all()
    if scale < 1:  # the products vanish beside the bias
        weights = bias.softmax(-1)
        expected = (weights[:, None, :, None] * half[2].double()).sum(2, keepdim=True).expand_as(found)
        assert_near(
            found, expected, roundings=2 * attention_roundings(*half[:2], scale=scale), size=half[2].abs().max()
        )


def test_a_key_bias_and_a_scale_of_zero_are_refused():
    tensors, bias = _biased((1, 2, 3, 4), (1, 2, 3, 4))
    with pytest.raises(InputError, match="key_bias needs a scale other than 0"):
        attention(*tensors, key_bias=bias, scale=0.0)
