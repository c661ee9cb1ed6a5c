"""Every limit that the documents state and torch_npu's C++ leaves to CANN is an error on the emulator.

tests/ascend_emulator/limits.py names the sources. On a real machine CANN complains, or computes nonsense.
"""

import ascend_emulator
import pytest
import torch
import torch.nn.functional as F

if not ascend_emulator.active():
    pytest.skip("the Ascend emulator is off: make test-npu", allow_module_level=True)

import torch_npu
from ascend_emulator.limits import LimitError

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def zeros(*shape, dtype=FP32):
    return torch.zeros(shape, dtype=dtype, device="npu")


def triangle():
    return torch.ones(2048, 2048, dtype=torch.bool, device="npu").triu(1)


def attend(query=(2, 4, 6, 16), key=None, value=None, dtype=FP32, heads=None, layout="BNSD", key_dtype=None, **options):
    key = key or query
    tensors = [zeros(*shape, dtype=kind) for shape, kind in (
        (query, dtype), (key, key_dtype or dtype), (value or key, key_dtype or dtype))]  # fmt: skip
    return torch_npu.npu_fusion_attention(*tensors, heads or query[1], layout, **options)


def packed(ends, total=6, key_ends=None, **options):
    shape = (total, 4, 16)
    return attend(shape, layout="TND", actual_seq_qlen=ends, actual_seq_kvlen=key_ends or ends, **options)


ATTENTION = {
    "fp64": (lambda: attend(dtype=FP64), "takes fp16, bf16 and fp32"),
    "dtypes differ": (lambda: attend(key_dtype=BF16), "share a dtype"),
    "width 1024": (lambda: attend((1, 1, 2, 1024)), "head widths from 1 to 768"),
    "512 heads": (lambda: attend((1, 512, 2, 8)), "1 to 256 query heads"),
    "wrong head_num": (lambda: attend(heads=2), "head_num is 2"),
    "4 dimensions": (lambda: attend((2, 4, 6, 16), layout="BSH"), "BSH means 3 dimensions"),
    "nothing": (lambda: attend((2, 4, 0, 16)), "takes nothing empty"),
    "too long": (lambda: attend((1, 1, 2**20 + 1, 1), key=(1, 1, 1, 1), dtype=FP16), "lengths up to"),
    "odd groups": (lambda: attend(key=(2, 3, 6, 16)), "no multiple of 3"),
    "key is not value": (lambda: attend(key=(2, 4, 6, 16), value=(2, 4, 6, 8)), "key and value share a shape"),
    "key of another width": (lambda: attend(key=(2, 4, 6, 8)), "query and key share a head width"),
    "batch": (lambda: attend(key=(1, 4, 6, 16)), "one batch size"),
    "lengths without TND": (lambda: attend(actual_seq_qlen=[6], actual_seq_kvlen=[6]), "belong to TND"),
    "additive mask": (lambda: attend(atten_mask=zeros(6, 6), sparse_mode=1), "atten_mask is bool or uint8"),
    "short mask": (lambda: attend(atten_mask=zeros(6, 5, dtype=torch.bool)), "atten_mask is"),
    "mask of 3 dimensions": (lambda: attend(atten_mask=zeros(2, 6, 6, dtype=torch.bool)), "atten_mask is"),
    "mask by head for all": (lambda: attend(atten_mask=zeros(1, 4, 6, 6, dtype=torch.bool)), "atten_mask is"),
    "small causal mask": (lambda: attend(atten_mask=triangle()[:6, :6], sparse_mode=3), "compressed 2048 x 2048"),
    "causal mask inverted": (lambda: attend(atten_mask=~triangle(), sparse_mode=2), "triu"),
    "band against mask": (
        lambda: attend(atten_mask=zeros(6, 6, dtype=torch.bool), next_tockens=0),
        "keeps what pre/next_tockens exclude",
    ),
    "band before mask": (
        lambda: attend(atten_mask=triangle()[:6, :6], pre_tockens=2, next_tockens=0),
        "keeps what pre/next_tockens exclude",
    ),
    "prefix": (lambda: attend(atten_mask=triangle(), sparse_mode=6, prefix=[1, 1]), "no emulation of prefix"),
    "prefix mode": (lambda: attend(atten_mask=zeros(2, 1, 6, 6, dtype=torch.bool), sparse_mode=5), "no emulation of s"),
    "position shift": (lambda: attend(pse=zeros(2, 4, 6, 6)), "no emulation of pse"),
    "leading 0": (lambda: packed([0, 3, 6]), "no leading 0"),
    "not at the end": (lambda: packed([3, 5]), "end at 6"),
    "falling": (lambda: packed([4, 3, 6]), "cumulative"),
    "1,025 sequences": (lambda: packed(list(range(1, 1026)), 1025), "takes 1 to 1,024 sequences"),
    "row all masked": (
        lambda: packed([3, 6], atten_mask=torch.ones(3, 3, dtype=torch.bool, device="npu"), sparse_mode=1),
        "no row of atten_mask",
    ),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case):
    call, rule = ATTENTION[case]
    with pytest.raises(LimitError, match=rule):
        call()


def test_lengths_are_no_tensor():
    with pytest.raises((TypeError, RuntimeError)):
        packed(torch.tensor([3, 6]))


def test_attention_in_the_backward_pass():
    """The gradient's own arguments are checked, too."""
    tensor = zeros(1, 2, 4, 8, dtype=FP64)
    statistics = zeros(1, 2, 4, 8)
    with pytest.raises(LimitError, match="takes fp16"):
        torch_npu.npu_fusion_attention_grad(
            tensor, tensor, tensor, tensor, 2, "BNSD", softmax_max=statistics, softmax_sum=statistics
        )


def infer(shape=(2, 4, 1, 16), keys=None, dtype=BF16, operator="npu_fused_infer_attention_score", **options):
    query, key = zeros(*shape, dtype=dtype), zeros(*(keys or shape), dtype=dtype)
    return getattr(torch_npu, operator)(query, key, key, **{"num_heads": 4, "input_layout": "BNSD", **options})


INFERENCE = {
    "fp32": (lambda: infer(dtype=FP32), "takes fp16 or bf16"),
    "width 576": (lambda: infer((1, 4, 1, 576)), "head widths to 512"),
    "width 20": (lambda: infer((1, 4, 1, 20)), "in steps of 16"),
    "width 136": (lambda: infer((1, 4, 2, 136), operator="npu_prompt_flash_attention"), "above 128 in steps of 16"),
    "wide rows": (lambda: infer((1, 1, 256, 256), num_heads=256, input_layout="BSND"), "below 65,535"),
    "many groups": (lambda: infer((1, 65, 1, 8), (1, 1, 3, 8), num_heads=65, num_key_value_heads=1), "to 64"),
    "batch": (lambda: infer(keys=(1, 4, 1, 16)), "batch, key and value fit"),
    "other layouts": (lambda: infer(operator="npu_prompt_flash_attention", input_layout="BNSD_BSND"), "no emulation"),
    "head count": (lambda: infer(num_heads=2), "head counts"),
    "packed": (
        lambda: infer((6, 4, 16), input_layout="TND", actual_seq_lengths=[6], actual_seq_lengths_kv=[6]),
        "no emu",
    ),
    "paged": (lambda: infer(block_table=zeros(2, 1, dtype=torch.int32), block_size=128), "no emulation of block_"),
    "two queries": (lambda: infer((2, 4, 2, 16), operator="npu_incre_flash_attention"), "takes one query"),
    "mask": (lambda: infer((2, 4, 3, 16), atten_mask=zeros(3, 2, dtype=torch.bool)), "atten_mask is"),
    "length": (lambda: infer(keys=(2, 4, 5, 16), actual_seq_lengths_kv=[6]), "lengths of keys"),
}


@pytest.mark.parametrize("case", INFERENCE)
def test_attention_for_inference(case):
    call, rule = INFERENCE[case]
    with pytest.raises(LimitError, match=rule):
        call()


def test_attention_for_inference_wants_contiguous_tensors():
    query = zeros(2, 3, 4, 16, dtype=BF16).transpose(1, 2)
    with pytest.raises(LimitError, match="contiguous"):
        torch_npu.npu_prompt_flash_attention(query, query, query, num_heads=4, input_layout="BNSD")


def rotate(sizes=(2, 3, 5, 32), table=(2, 1, 5, 32), dtype=FP32, cos_dtype=None, mode="half", learned=False, **options):
    cos, sin = (zeros(*table, dtype=cos_dtype or dtype).requires_grad_(learned) for _ in "12")
    return torch_npu.npu_rotary_mul(zeros(*sizes, dtype=dtype), cos, sin, mode, **options)


ROTARY = {
    "fp64": (lambda: rotate(dtype=FP64), "takes fp16, bf16 and fp32"),
    "dtypes differ": (lambda: rotate(dtype=BF16, cos_dtype=FP32), "share a dtype"),
    "3 dimensions": (lambda: rotate((3, 5, 32), (3, 5, 32)), "4 dimensions"),
    "width 896": (lambda: rotate((1, 1, 1, 896), (1, 1, 1, 896)), "below 896"),
    "odd width": (lambda: rotate((1, 1, 1, 7), (1, 1, 1, 7)), "even head widths"),
    "half tables": (lambda: rotate(table=(2, 1, 5, 16)), "full head width"),
    "table of another length": (lambda: rotate(table=(2, 1, 4, 32)), "fits no layout"),
    "table over samples only": (lambda: rotate((2, 3, 5, 32), (1, 3, 5, 32)), "fits no layout"),
    "1,000 heads": (lambda: rotate((1, 1000, 2, 32), (1, 1, 2, 32)), "fewer than 1,000"),
    "B * N > 8 * S": (lambda: rotate((4, 11, 5, 32), (1, 1, 5, 32)), "B \\* N is large"),
    "narrow, not aligned": (lambda: rotate((2, 3, 5, 24), (1, 1, 5, 24), dtype=BF16), "not aligned"),
    "learned table": (lambda: rotate((33, 32, 9, 32), (33, 1, 9, 32), learned=True), "B \\* N <= 1,024"),
    "interleave by sample": (lambda: rotate(mode="interleave"), "interleave takes one cos"),
    "nothing": (lambda: rotate((2, 3, 0, 32), (2, 1, 0, 32)), "takes nothing empty"),
    "rotation matrix": (lambda: rotate(rotate=zeros(32, 32)), "no emulation of rotate"),
}


@pytest.mark.parametrize("case", ROTARY)
def test_rotary(case):
    call, rule = ROTARY[case]
    with pytest.raises(LimitError, match=rule):
        call()


def test_rotary_takes_cos_and_sin_of_one_shape():
    with pytest.raises(LimitError, match="share a shape"):
        torch_npu.npu_rotary_mul(zeros(2, 3, 5, 32), zeros(2, 1, 5, 32), zeros(1, 1, 5, 32))


@pytest.mark.parametrize(
    ("sizes", "table"),
    [
        ((4, 11, 5, 32), (4, 1, 5, 32)),  # with its own table for each sample
        ((4, 5, 11, 32), (1, 5, 1, 32)),  # as BSND
        ((4, 11, 1, 32), (1, 1, 1, 32)),  # decoding
        ((4, 10, 5, 32), (1, 1, 5, 32)),  # exactly 8 * S
    ],
)
def test_large_rotary_calls_that_are_taken(sizes, table):
    assert rotate(sizes, table).shape == sizes


def normalize(x=(3, 8), gamma=(8,), dtype=FP32, gamma_dtype=None):
    return torch_npu.npu_rms_norm(zeros(*x, dtype=dtype), zeros(*gamma, dtype=gamma_dtype or dtype))


def cross_entropy(logits=(3, 5), target=(0, 1, 2), dtype=FP32, grad=False, **options):
    logits = zeros(*logits, dtype=dtype).requires_grad_(grad)
    return torch_npu.npu_cross_entropy_loss(logits, torch.tensor(target).npu(), **options)


OTHERS = {
    "norm: fp64": (lambda: normalize(dtype=FP64), "does not take"),
    "norm: fp32 with bf16": (lambda: normalize(gamma_dtype=BF16), "does not take"),
    "norm: bf16 with fp16": (lambda: normalize(dtype=BF16, gamma_dtype=FP16), "does not take"),
    "norm: 1 dimension": (lambda: normalize((8,)), "2 to 8 dimensions"),
    "norm: 9 dimensions": (lambda: normalize((1,) * 8 + (8,)), "2 to 8 dimensions"),
    "norm: empty": (lambda: normalize((0, 8)), "nothing empty"),
    "norm: gamma too wide": (lambda: normalize(gamma=(4,)), "gamma has the shape"),
    "swiglu: not contiguous": (lambda: torch_npu.npu_swiglu(zeros(8, 3).T), "contiguous"),
    "swiglu: odd": (lambda: torch_npu.npu_swiglu(zeros(3, 7)), "is odd"),
    "swiglu: empty": (lambda: torch_npu.npu_swiglu(zeros(0, 8)), "nothing empty"),
    "swiglu: 9 dimensions": (lambda: torch_npu.npu_swiglu(zeros(*[1] * 8, 2)), "1 to 8 dimensions"),
    "swiglu: fp64": (lambda: torch_npu.npu_swiglu(zeros(3, 8, dtype=FP64)), "takes fp16"),
    "loss: label -100": (lambda: cross_entropy(target=(0, -100, 2)), "a negative ignore_index ignores nothing"),
    "loss: label of no class": (lambda: cross_entropy(target=(0, 5, 2)), "targets are in"),
    "loss: fp64": (lambda: cross_entropy(dtype=FP64), "takes fp16"),
    "loss: median": (lambda: cross_entropy(reduction="median"), "reduction is"),
    "loss: ignoring no class": (lambda: cross_entropy(ignore_index=5), "ignore_index is below C"),
    "loss: all smoothed": (lambda: cross_entropy(label_smoothing=1.0), "label_smoothing is in"),
    "loss: 3 dimensions": (lambda: cross_entropy((1, 3, 5)), "input is"),
    "loss: int32": (
        lambda: torch_npu.npu_cross_entropy_loss(zeros(3, 5), zeros(3, dtype=torch.int32)), "target is int64",
    ),
    "loss: bf16 weight": (lambda: cross_entropy(weight=zeros(5, dtype=BF16)), "weight is fp32"),
    "loss: ignoring with a gradient": (lambda: cross_entropy(grad=True, ignore_index=1), "mean with a gradient"),
    "loss: smoothing with a gradient": (
        lambda: cross_entropy(grad=True, reduction="sum", label_smoothing=0.1), "no label_smoothing",
    ),
    "loss: z-loss": (lambda: cross_entropy(return_zloss=True), "no emulation of return_zloss"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_others(case):
    call, rule = OTHERS[case]
    with pytest.raises(LimitError, match=rule):
        call()


ATEN = {
    "fp64 matrices": (lambda: zeros(2, 2, dtype=FP64) @ zeros(2, 2, dtype=FP64), "aten::mm does not take float64"),
    "fp64 sort": (lambda: zeros(3, dtype=FP64).sort(), "aten::sort does not take float64"),
    "unsorted topk": (lambda: zeros(3).topk(2, sorted=False), "aten::topk does not take sorted=0"),
    "scatter_reduce": (
        lambda: zeros(3).scatter_reduce(0, zeros(3, dtype=torch.int64), zeros(3), "amax"), "reduce is not supported",
    ),
    "host indices": (lambda: F.embedding(torch.tensor([1]), zeros(3, 2)), "two devices, npu and cpu"),
    "host tensor": (lambda: zeros(3) + torch.zeros(3), "two devices, npu and cpu"),
    "host generator": (
        lambda: torch.randn(3, device="npu", generator=torch.Generator()), "Expected a 'npu' device type for generator",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ATEN)
def test_operators_of_torch(case):
    call, rule = ATEN[case]
    with pytest.raises(RuntimeError, match=rule):
        call()
