"""The CUDA implementations on CPU tensors: flash-attn through a stand-in for its contract, group_mean unchanged."""

import fake_flash_attn
import pytest
import torch
from packaging.version import Version
from tolerances import assert_rounds_alike

from ppe_npu.backends import attention, device, dispatch, onehot, sdpa
from ppe_npu.backends.parity import run_parity


def test_all_parity_cases_hold(on_cpu):
    on_cpu("cuda", "flash_attn", "onehot", flash_attn=fake_flash_attn)
    rows = run_parity(torch.device("cpu"), ("fp32", "bf16"))
    rows = [row for row in rows if row.implementation in ("flash_attn", "onehot")]
    assert [row for row in rows if not row.ok] == []
    refused = {(row.op, row.case) for row in rows if row.error is None and row.dtype == "bf16"}
    masked = (
        "left padding, causal",
        "mask by head",
        "additive mask",
        "a padded decoding step",
        "a masked decoding step",
    )
    assert refused == {("attention", case) for case in masked}
    assert all(row.error is None for row in rows if row.implementation == "flash_attn" and row.dtype == "fp32")


def test_a_mask_sends_the_call_to_the_next_implementation_and_says_why(on_cpu, caplog):
    on_cpu("cuda", "flash_attn", "onehot", flash_attn=fake_flash_attn)
    tensors = [torch.randn(1, 2, 5, 8).bfloat16() for _ in range(3)]
    attention(*tensors)
    attention(*tensors, mask=torch.ones(5, 5, dtype=torch.bool))
    assert dispatch.chosen() == {"attention": "flash_attn + sdpa"}
    assert "attention: flash_attn is not used: flash-attn takes no mask" in caplog.text


def test_a_device_that_is_too_old_gives_way(on_cpu, monkeypatch, caplog):
    on_cpu("cuda", "flash_attn", flash_attn=fake_flash_attn)
    monkeypatch.setattr(device, "too_old", lambda where: True)
    tensors = [torch.randn(1, 2, 5, 8).bfloat16() for _ in range(3)]
    attention(*tensors)
    assert dispatch.chosen() == {"attention": "sdpa"}
    assert "attention: flash_attn is not used: flash-attn 2 is made for compute capability 8.0" in caplog.text


@pytest.mark.parametrize("causal", [False, True])
def test_packed_segments_go_to_torchs_flash_kernel_as_they_are(monkeypatch, causal):
    """Uses a stand-in with the kernel's signature; a test below checks that torch has this kernel."""

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        assert window_size == ((-1, 0) if causal else (-1, -1))
        return fake_flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, scale, causal)

    monkeypatch.setattr(sdpa, "_takes_segments", lambda *_: True)
    monkeypatch.setattr(sdpa, "_varlen_attn", lambda: varlen_attn)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 15, 8, generator=generator).half() for heads in (4, 2, 2))
    options = {"cu_seqlens": [0, 4, 8, 8, 9, 15], "causal": causal, "scale": 0.3}
    found = attention(query, key, value, implementation="sdpa", **options)
    plain = attention(query, key, value, implementation="reference", **options)
    exact = attention(query.double(), key.double(), value.double(), implementation="reference", **options)
    assert_rounds_alike(found, plain, exact)


def test_some_of_the_queries_go_to_torchs_flash_kernel(monkeypatch):
    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        return fake_flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, scale, False)

    monkeypatch.setattr(sdpa, "_takes_segments", lambda *_: True)
    monkeypatch.setattr(sdpa, "_varlen_attn", lambda: varlen_attn)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 8, generator=generator).half() for length in (7, 15, 15))
    options = {"cu_seqlens": [0, 2, 2, 3, 7], "cu_seqlens_k": [0, 4, 8, 9, 15]}
    found = attention(query, key, value, implementation="sdpa", **options)
    plain = attention(query, key, value, implementation="reference", **options)
    exact = attention(query.double(), key.double(), value.double(), implementation="reference", **options)
    assert_rounds_alike(found, plain, exact)


def test_which_packed_segments_torchs_flash_kernel_takes(monkeypatch):
    monkeypatch.setattr(device, "runs_flash_attention", lambda where: where.type == "meta")

    def takes(width=80, dtype=torch.bfloat16, where="meta", dropout=0.0):
        return sdpa._takes_segments(torch.empty(1, 2, 3, width, dtype=dtype, device=where), dropout)

    if Version(torch.__version__) >= Version("2.13"):
        assert sdpa._varlen_attn() is not None
    assert takes()
    assert takes(256, torch.float16)
    assert not any(
        (takes(257), takes(20), takes(264), takes(dtype=torch.float32), takes(where="cpu"), takes(dropout=0.1))
    )


def test_onehot_gradients():
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 2, -1, 0, 2], [1, -1, 1, 1, 0]])
    counts = torch.tensor([[2, 0, 2], [1, 3, 0]])
    assert torch.autograd.gradcheck(lambda x: onehot.group_mean(x, labels, counts), (tokens,))
