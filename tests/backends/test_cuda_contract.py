"""The CUDA implementations on CPU tensors: flash-attn over a stand-in for its contract, group_mean as it is."""

import fake_flash_attn
import pytest
import torch

from ppe_npu.backends import attention, dispatch, group_mean, onehot
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


def test_onehot_gradients():
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 2, -1, 0, 2], [1, -1, 1, 1, 0]])
    counts = torch.tensor([[2, 0, 2], [1, 3, 0]])
    assert torch.autograd.gradcheck(lambda x: onehot.group_mean(x, labels, counts), (tokens,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 1)), "tokens must be"),
        ((torch.ones(2, 3, 4), torch.zeros(2, 4), torch.ones(2, 1)), "labels must be"),
        ((torch.ones(2, 3, 4), torch.zeros(2, 3), torch.ones(1, 1)), "counts must be"),
    ],
)
def test_what_does_not_fit_group_mean_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_mean(*arguments)
