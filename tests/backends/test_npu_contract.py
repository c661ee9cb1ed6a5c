"""The NPU implementations on CPU tensors, on top of a stand-in that enforces torch_npu's documented contract.

This shows that the calls are allowed and compute what the specification does. It shows nothing about the precision of
an Ascend chip.
"""

import fake_mindspeed
import fake_torch_npu
import pytest
import torch
from tolerances import assert_rounds_alike, share_error

from ppe_npu.backends import attention, dispatch, segments
from ppe_npu.backends.npu import attention as npu_attention
from ppe_npu.backends.parity import run_parity


def test_all_parity_cases_hold(on_cpu):
    vendors = ("torch_npu", "torch_npu_decode", "onehot", "mindspeed")  # Triton's: test_ascend_kernels.py
    moved = on_cpu("npu", *vendors, torch_npu=fake_torch_npu)
    rows = [
        row
        for row in run_parity(torch.device("cpu"), ("fp32", "bf16"))
        if row.implementation in ("torch_npu", "torch_npu_decode", "onehot")
    ]
    assert [row for row in rows if not row.ok] == []
    assert {row.op for row in rows if row.error is not None} == {
        entry.op for entry in moved if entry.name != "triton_ascend"
    }
    refused = {(row.implementation, row.case) for row in rows if row.error is None and row.dtype == "bf16"}
    decode = {("torch_npu_decode", "decoding")}  # this case wants a gradient
    assert refused == {("torch_npu", "additive mask")} | decode


@pytest.fixture
def calls(on_cpu, monkeypatch):
    """Collects the layout, sparse mode and number of segments of every call of npu_fusion_attention."""
    on_cpu("npu", torch_npu=fake_torch_npu)
    made = []
    operator = fake_torch_npu.npu_fusion_attention

    def spy(*args, **kwargs):
        made.append((args[4], kwargs.get("sparse_mode", 0), len(kwargs.get("actual_seq_qlen", []))))
        return operator(*args, **kwargs)

    monkeypatch.setattr(fake_torch_npu, "npu_fusion_attention", spy)
    return made


def _heads(length, keys=None):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, n, 8, generator=generator) for n in (length, keys or length, keys or length)]


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ((6,), {}, [("BNSD", 0, 0)]),
        ((6,), {"causal": True}, [("BNSD", 3, 0)]),
        ((1, 6), {"causal": True}, [("BNSD", 0, 0)]),
        ((6,), {"mask": torch.ones(6, 6, dtype=torch.bool), "causal": True}, [("BNSD", 1, 0)]),
        ((6,), {"cu_seqlens": [0, 2, 4, 4, 6]}, [("BNSD", 0, 0)]),
        ((6,), {"cu_seqlens": [0, 0, 2, 2, 6, 6], "causal": True}, [("TND", 3, 2)]),
        ((1541,), {"cu_seqlens": [0, 2, *range(3, 1542)]}, [("TND", 0, 1024), ("TND", 0, 516)]),
        ((3, 6), {"cu_seqlens": [0, 1, 3], "cu_seqlens_k": [0, 2, 6]}, [("TND", 0, 2)]),
        ((3, 6), {"cu_seqlens": [0, 1, 1, 3], "cu_seqlens_k": [0, 2, 3, 6]}, [("TND", 0, 1), ("TND", 0, 1)]),
        ((2, 6), {"cu_seqlens": [0, 1, 2], "cu_seqlens_k": [0, 3, 6]}, [("BNSD", 0, 0)]),
    ],
    ids=[
        "dense",
        "causal",
        "decoding",
        "mask",
        "equal windows",
        "ragged windows",
        "many windows",
        "some of the windows",
        "none of one window",
        "some of equal windows",
    ],
)
def test_the_form_of_the_call(calls, lengths, options, expected):
    attention(*_heads(*lengths), **options)
    assert calls == expected
    assert dispatch.chosen() == {"attention": "torch_npu"}


def _step(heads=4, kv_heads=2, keys=9, width=16, dtype=torch.bfloat16):
    shapes = ((1, heads, 1, width), (1, kv_heads, keys, width), (1, kv_heads, keys, width))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        (_step(), {"causal": True}, None),
        (_step(), {"mask": torch.ones(9, dtype=torch.bool)}, None),
        (_step(), {"mask": torch.ones(1, 1, 9, dtype=torch.bool)}, None),
        (_step(64, 1), {}, None),
        (_step(dtype=torch.float32), {}, "takes fp16 and bf16, not torch.float32"),
        (_step(width=24), {}, "takes head widths up to 512 in steps of 16"),
        (_step(128, 1), {}, "takes at most 256 query heads, and at most 64 per key head"),
        (_step(), {"mask": torch.ones(4, 1, 9, dtype=torch.bool)}, "takes one mask for all heads"),
        (_step(), {"mask": torch.ones(1, 4, 1, 9, dtype=torch.bool)}, "takes one mask for all heads"),
        (_step(), {"dropout": 0.5}, "has no dropout"),
        ([tensor.requires_grad_() for tensor in _step()], {}, "has no gradient"),
    ],
)
def test_a_decoding_step_takes_its_own_operator_or_says_why_not(on_cpu, caplog, tensors, options, said):
    on_cpu("npu", torch_npu=fake_torch_npu)
    expected = attention(*tensors, **options, implementation="reference") if "dropout" not in options else None
    dispatch.reset()
    result = attention(*tensors, **options)
    assert dispatch.chosen() == {"attention": "torch_npu" if said else "torch_npu_decode"}
    assert (said in caplog.text) if said else ("not used" not in caplog.text)
    if expected is not None:
        wide = [tensor.detach().double() for tensor in tensors]
        true = attention(*wide, **options, implementation="reference")
        assert_rounds_alike(result, expected, true, dtype=tensors[0].dtype)


def test_what_is_no_decoding_step_passes_its_operator_by_without_a_word(on_cpu, caplog):
    on_cpu("npu", torch_npu=fake_torch_npu)
    attention(*_heads(6), causal=True)
    assert caplog.text == ""
    with pytest.raises(dispatch.ImplementationError, match="it is not made for such a call"):
        attention(*_heads(6), implementation="torch_npu_decode")


def test_lists_of_segments_are_made_once_for_all_layers_and_anew_for_other_borders(calls):
    npu_attention._parts.cache_clear()
    segments._rise.cache_clear()
    borders = [0, 1, 3, 6]
    for _ in range(3):
        attention(*_heads(6), cu_seqlens=list(borders))
    assert npu_attention._parts.cache_info().misses == segments._rise.cache_info().misses == 1
    borders[1:3] = [2, 4]  # the same list with other borders, now equally far apart
    attention(*_heads(6), cu_seqlens=borders)
    assert calls == [("TND", 0, 3)] * 3 + [("BNSD", 0, 0)]
    borders[1] = 5
    with pytest.raises(ValueError, match="must rise"):
        attention(*_heads(6), cu_seqlens=borders)


def test_the_compressed_mask_is_made_once_and_can_be_trained_on(on_cpu):
    on_cpu("npu", torch_npu=fake_torch_npu)
    npu_attention._compressed_causal.cache_clear()
    with torch.inference_mode():
        attention(*_heads(6), causal=True)
    query, key, value = _heads(6)
    attention(query.requires_grad_(), key, value, causal=True).sum().backward()
    assert npu_attention._compressed_causal.cache_info().misses == 1
    assert not npu_attention._compressed_causal(torch.device("cpu")).is_inference()


def test_dropout_is_passed_as_the_probability_to_keep(on_cpu):
    on_cpu("npu", torch_npu=fake_torch_npu)
    torch.manual_seed(0)
    query, key, _ = (torch.randn(1, 1, n, 4) for n in (4000, 3, 3))
    weights = attention(query, key, torch.eye(3, 4).expand(1, 1, 3, 4), dropout=0.25)[..., :3]
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=share_error(0.25, weights.numel()))


def test_mindspeed_holds_all_parity_cases_and_is_taken_only_by_name(on_cpu, monkeypatch):
    on_cpu("npu", torch_npu=fake_torch_npu)
    fake_mindspeed.install(monkeypatch)
    every = run_parity(torch.device("cpu"), ("fp32", "bf16"), ("attention", "rotary"))
    rows = [row for row in every if row.implementation == "mindspeed"]
    assert [row for row in rows if not row.ok] == []
    assert {row.op for row in rows if row.error is not None} == {"attention", "rotary"}
    tensors = _heads(6)
    dispatch.reset()
    attention(*tensors)
    assert dispatch.chosen() == {"attention": "torch_npu"}
    with dispatch.using(attention="mindspeed"):
        attention(*tensors)
    assert dispatch.chosen() == {"attention": "torch_npu + mindspeed"}


def test_mindspeed_that_is_not_there_is_an_error_for_who_asks(on_cpu):
    on_cpu("npu", torch_npu=fake_torch_npu)
    with pytest.raises(dispatch.ImplementationError, match=r"'mindspeed' was requested, .* is not installed"):
        attention(*_heads(6), implementation="mindspeed")
