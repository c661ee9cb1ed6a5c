"""The emulated fused operators against plain PyTorch in fp64, and the documented limits.

Runs on the emulator only: see tests/ascend_emulator/README.md. It shows that the emulation computes what the documents
define, and nothing about a real Ascend's numbers.
"""

import ascend_emulator
import pytest
import torch
import torch.nn.functional as F
from ascend_emulator import counters
from tolerances import assert_near, assert_rounds_alike, eps, share_error

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

import torch_npu

# Relative RMS errors, for inputs that are exact in the dtype. In 16 bits, sums are fp32, and a result and the values
# that it depends on are rounded once each, by half an eps. In fp32, sums have up to 16 terms.
TOLERANCE = {torch.float32: 16 * eps(torch.float32), **{half: eps(half) for half in (torch.bfloat16, torch.float16)}}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
UNLIMITED = 2147483647


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def differentiate(function, inputs):
    """The result, and the gradients of a random projection of it."""
    inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    output = function(*inputs)
    output.backward(randn(*output.shape, seed=1).to(output))
    return [output.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


def agree(fused, plain, inputs, dtype):
    """fused(*inputs) on the device in `dtype`, and its gradients, equal those of plain(*inputs) in fp64."""
    rounded = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
    ours = differentiate(fused, [tensor.npu() for tensor in rounded])
    exact = differentiate(plain, [tensor.double() if tensor.is_floating_point() else tensor for tensor in rounded])
    assert len(ours) == len(exact)
    for one, other in zip(ours, exact):
        assert one.dtype == dtype
        error = (one.cpu().double() - other).norm() / other.norm()
        assert error <= TOLERANCE[dtype], f"relative error {error:.1e} of a {tuple(one.shape)} tensor"


# ---- attention ----

TO_LAYOUT = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.transpose(1, 2),
    "BSH": lambda x: x.transpose(1, 2).flatten(2),
    "SBH": lambda x: x.permute(2, 0, 1, 3).flatten(2),
}
FROM_LAYOUT = {
    "BNSD": lambda x, heads: x,
    "BSND": lambda x, heads: x.transpose(1, 2),
    "BSH": lambda x, heads: x.unflatten(2, (heads, -1)).transpose(1, 2),
    "SBH": lambda x, heads: x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3),
}


def triangle():
    return torch.ones(2048, 2048, dtype=torch.bool, device="npu").triu(1)


def blocked(mode, queries, keys, before=3, after=2):
    """True = masked out, by the operator's page."""
    row, column = torch.arange(queries)[:, None], torch.arange(keys)[None, :]
    corner = keys - queries
    return {
        None: torch.zeros(queries, keys, dtype=torch.bool),
        0: (column - row > after) | (row - column > before),
        1: (row * 7 + column * 3) % 5 == 1,
        2: column > row,
        3: column > row + corner,
        4: (column > row + corner + after) | (column < row + corner - before),
    }[mode]


def fused_attention(layout, mode, mask, scale=0.3):
    def attend(query, key, value):
        options = {} if mode is None else {"sparse_mode": mode, "atten_mask": mask.npu() if mode < 2 else triangle()}
        options |= {"pre_tockens": 3, "next_tockens": 2} if mode in (0, 4) else {}
        tensors = [TO_LAYOUT[layout](tensor).contiguous() for tensor in (query, key, value)]
        output = torch_npu.npu_fusion_attention(*tensors, query.shape[1], layout, scale=scale, **options)[0]
        return FROM_LAYOUT[layout](output, query.shape[1])

    return attend


def plain_attention(mask, scale=0.3):
    def attend(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=~mask, scale=scale, enable_gqa=True)

    return attend


@DTYPES
@pytest.mark.parametrize("layout", TO_LAYOUT)
@pytest.mark.parametrize("mode", [None, 0, 1, 2, 3, 4])
def test_attention(layout, mode, dtype):
    for kv_heads, queries, keys, width in ((4, 9, 9, 16), (2, 5, 13, 7)):
        mask = blocked(mode, queries, keys)
        tensors = randn(2, 4, queries, width), randn(2, kv_heads, keys, width), randn(2, kv_heads, keys, width, seed=5)
        agree(fused_attention(layout, mode, mask), plain_attention(mask), tensors, dtype)


@DTYPES
@pytest.mark.parametrize("mode", [None, 0, 2, 3, 4])
def test_packed_attention(mode, dtype):
    """Sequences of different lengths, one without queries, one unused."""
    ends, key_ends = [3, 3, 10, 14, 0], [5, 6, 14, 18, 0]
    parts = [(0, 3, 0, 5), (3, 10, 6, 14), (10, 14, 14, 18)]
    mask = blocked(0, 7, 8)

    def fused(query, key, value):
        options = {"actual_seq_qlen": ends, "actual_seq_kvlen": key_ends, "scale": 0.3}
        options |= {} if mode is None else {"sparse_mode": mode, "atten_mask": triangle() if mode else mask.npu()}
        options |= {"pre_tockens": 3, "next_tockens": 2} if mode in (0, 4) else {}
        return torch_npu.npu_fusion_attention(query, key, value, 4, "TND", **options)[0]

    def plain(query, key, value):
        outputs = []
        for start, end, key_start, key_end in parts:
            one = [query[start:end], key[key_start:key_end], value[key_start:key_end]]
            now = blocked(mode, end - start, key_end - key_start)
            outputs.append(plain_attention(now)(*(tensor.transpose(0, 1)[None] for tensor in one))[0].transpose(0, 1))
        return torch.cat(outputs)

    agree(fused, plain, (randn(14, 4, 16), randn(18, 2, 16), randn(18, 2, 16, seed=5)), dtype)


def test_attention_by_its_defaults_is_full_and_unscaled():
    tensors = randn(1, 2, 5, 8), randn(1, 2, 5, 8, seed=1), randn(1, 2, 5, 8, seed=2)
    nothing = torch.zeros(5, 5, dtype=torch.bool)

    def fused(*tensors):
        return torch_npu.npu_fusion_attention(*tensors, 2, "BNSD", sparse_mode=3)[0]  # a mode without a mask: ignored

    agree(fused, plain_attention(nothing, scale=1.0), tensors, torch.float32)


@pytest.mark.parametrize(("mode", "precise"), [(1, 0), (1, 2), (3, 0)])
def test_rows_that_see_nothing(mode, precise):
    """They average all values; they are zero in mode 3, and where that is asked for (as torch_npu's SDPA does)."""
    mask = blocked(3, 6, 4)  # the first two queries come before all keys

    def fused(*tensors):
        options = {"atten_mask": triangle() if mode == 3 else mask.npu(), "inner_precise": precise}
        return torch_npu.npu_fusion_attention(*tensors, 1, "BNSD", sparse_mode=mode, **options)[0]

    def plain(query, key, value):
        weights = torch.where(mask, -1e30, query @ key.mT).softmax(-1)
        if mode == 3 or precise == 2:
            weights = weights.masked_fill(mask.all(-1, keepdim=True), 0.0)
        return weights @ value

    agree(fused, plain, (randn(1, 1, 6, 8), randn(1, 1, 4, 8), randn(1, 1, 4, 8, seed=5)), torch.float32)


def test_dropout_in_attention_is_the_same_in_the_backward_pass():
    inputs = [randn(1, 1, n, 4, seed=n).float().npu().requires_grad_() for n in (500, 4)]
    value = torch.eye(4).expand(1, 1, 4, 4).npu().requires_grad_()
    output = torch_npu.npu_fusion_attention(*inputs, value, 1, "BNSD", keep_prob=0.75)[0]
    kept = (output != 0).float().cpu() / 0.75  # the output is the weights themselves
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=share_error(0.25, kept.numel()))
    upstream = randn(*output.shape).float()
    output.backward(upstream.npu())
    plain = [tensor.detach().cpu().requires_grad_() for tensor in (*inputs, value)]
    (((plain[0] @ plain[1].mT).softmax(-1) * kept) @ plain[2]).backward(upstream)
    wide = [tensor.detach().double().requires_grad_() for tensor in plain]
    (((wide[0] @ wide[1].mT).softmax(-1) * kept.double()) @ wide[2]).backward(upstream.double())
    for ours, other, exact in zip((*inputs, value), plain, wide):
        assert_rounds_alike(ours.grad.cpu(), other.grad, exact.grad)


@DTYPES
def test_sdpa_of_torch_is_the_third_version(dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 1, 6, 9, generator=generator) < 0.6
    mask[..., 0] = True
    for options, keys in (({}, 9), ({"is_causal": True}, 6), ({"attn_mask": mask}, 9), ({"enable_gqa": True}, 9)):
        heads = 2 if "enable_gqa" in options else 4
        tensors = randn(2, 4, 6, 16), randn(2, heads, keys, 16), randn(2, heads, keys, 16, seed=5)
        counters.reset()

        def fused(*tensors, options=options):
            given = {name: value.npu() if torch.is_tensor(value) else value for name, value in options.items()}
            return F.scaled_dot_product_attention(*tensors, **given)

        agree(fused, lambda *t, options=options: F.scaled_dot_product_attention(*t, **options), tensors, dtype)
        assert counters.npu() == {"npu_fusion_attention_v3": 1, "npu_fusion_attention_grad_v3": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_for_inference(dtype):
    """A decoding step over caches with 7 and 13 valid keys, by each of the three operators; and a prompt."""
    query, key, value = (randn(2, n, s, 16, seed=i).to(dtype) for i, (n, s) in enumerate(((4, 1), (2, 13), (2, 13))))
    valid = torch.arange(13) < torch.tensor([7, 13])[:, None, None, None]
    exact = plain_attention(~valid, 0.25)(query.double(), key.double(), value.double())
    options = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD"}
    tensors = query.npu(), key.npu(), value.npu()
    outputs = (
        torch_npu.npu_incre_flash_attention(*tensors, actual_seq_lengths=[7, 13], scale_value=0.25, **options),
        torch_npu.npu_prompt_flash_attention(*tensors, actual_seq_lengths_kv=[7, 13], scale_value=0.25, **options),
        torch_npu.npu_fused_infer_attention_score(
            *tensors, atten_mask=~valid[:, :, 0, :].reshape(2, 1, 1, 13).npu(), scale=0.25, **options
        )[0],
    )
    for output in outputs:
        assert (output.cpu().double() - exact).norm() / exact.norm() < TOLERANCE[dtype]
    prompt = [randn(1, 4, 6, 16, seed=i).to(dtype) for i in range(3)]
    output, sums = torch_npu.npu_fused_infer_attention_score(
        *(tensor.npu() for tensor in prompt), atten_mask=triangle(), sparse_mode=3, num_heads=4, input_layout="BNSD",
        scale=0.25, softmax_lse_flag=True,
    )  # fmt: skip
    query, key, value = (tensor.double() for tensor in prompt)
    scores = (query @ key.mT * 0.25).masked_fill(blocked(3, 6, 6), float("-inf"))
    exact = scores.softmax(-1) @ value
    assert (output.cpu().double() - exact).norm() / exact.norm() < TOLERANCE[dtype]
    # In fp32: a score sums 16 products, the sum is over 6, and log and exp take two each.
    off = 16 * query.norm(dim=-1).max() * key.norm(dim=-1).max() * 0.25 + 6 + 4
    assert_near(sums.cpu()[..., 0].float(), scores.logsumexp(-1), roundings=off.item(), size=1.0)


# ---- the others ----


def rotated(x, mode):
    if mode == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


@DTYPES
@pytest.mark.parametrize(
    ("mode", "sizes", "table"),
    [
        ("half", (2, 3, 5, 16), (2, 1, 5, 16)),  # BNSD with B1SD
        ("half", (2, 3, 5, 32), (1, 1, 5, 32)),  # 11SD
        ("half", (2, 5, 3, 80), (1, 5, 1, 80)),  # BSND with 1S1D
        ("half", (2, 5, 3, 80), (2, 5, 1, 80)),  # BS1D
        ("half", (5, 2, 3, 6), (5, 1, 1, 6)),  # SBND with S11D
        ("half", (2, 3, 5, 16), (2, 3, 5, 16)),
        ("half", (4, 3, 1, 16), (1, 1, 1, 16)),  # decoding
        ("interleave", (2, 3, 5, 16), (1, 1, 5, 16)),
    ],
)
def test_rotary(mode, sizes, table, dtype):
    def plain(x, cos, sin):
        return x * cos + rotated(x, mode) * sin

    angles = randn(*table)
    inputs = randn(*sizes, seed=3), angles.cos(), angles.sin()
    agree(lambda *tensors: torch_npu.npu_rotary_mul(*tensors, mode), plain, inputs, dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(7, 37), (2, 5, 3, 64), (1, 2)])
def test_rms_norm(shape, dtype):
    def plain(x, gamma):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gamma

    def fused(x, gamma):
        return torch_npu.npu_rms_norm(x, gamma, 1e-5)[0]

    agree(fused, plain, (3 * randn(*shape), 1 + randn(shape[-1])), dtype)


def test_rms_norm_takes_a_wide_gamma():
    x, gamma = randn(3, 16).bfloat16().npu(), (1 + randn(16)).float().npu()
    output, rstd = torch_npu.npu_rms_norm(x, gamma)
    assert (output.dtype, rstd.dtype, rstd.shape) == (torch.bfloat16, torch.float32, (3, 1))


@DTYPES
@pytest.mark.parametrize(("shape", "dim"), [((3, 14), -1), ((2, 6, 5), 1), ((1, 2), -1)])
def test_swiglu(shape, dim, dtype):
    def plain(x):
        gate, up = x.chunk(2, dim)
        return F.silu(gate) * up

    agree(lambda x: torch_npu.npu_swiglu(x, dim=dim), plain, (5 * randn(*shape),), dtype)


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction, dtype):
    target = torch.tensor([0, 3, 10, 3, 7])
    options = {} if reduction == "mean" else {"ignore_index": 3}

    def fused(logits, target):
        return torch_npu.npu_cross_entropy_loss(logits, target, reduction=reduction, **options)[0]

    def plain(logits, target):
        return F.cross_entropy(logits, target, reduction=reduction, **options).reshape(-1)

    agree(fused, plain, (randn(5, 11), target), dtype)
