"""Counted FLOPs: of attention on a CPU, and of one module of a model."""

import torch
from support import Prompt, batch, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ppe_npu.inspect.flops import flop_counter, within


def test_attention_counts_on_a_cpu_too():
    query, key, value = (torch.ones(1, 2, 8, 16, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 8 * 8 * 16
    with flop_counter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        assert counter.get_total_flops() == 2 * product
        out.sum().backward()
    assert counter.get_total_flops() == (2 + 5) * product  # scores are made again


def test_fewer_heads_of_keys_count_as_often_as_they_are_used(monkeypatch):
    """torch's own formula, which older versions have for other devices' attention, refuses such shapes."""
    monkeypatch.setattr("torch.utils.flop_counter.sdpa_flop_count", None)
    shapes = {"query": (1, 4, 8, 16), "key": (1, 2, 10, 16), "value": (1, 2, 10, 16)}
    tensors = [torch.ones(shape, requires_grad=True) for shape in shapes.values()]
    with flop_counter() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True)
    assert counter.get_total_flops() == 2 * (2 * 4 * 8 * 10 * 16)
    assert out.shape == shapes["query"]


def test_a_modules_calls_are_told_from_the_rest():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
    with flop_counter() as all_of_it, within(model[0]) as first, within(None) as nothing:
        model(torch.ones(3, 8))
        model(torch.ones(5, 8))
    assert first == [2 * 3 * 8 * 4, 2 * 5 * 8 * 4]
    assert all_of_it.get_total_flops() == sum(first) * 5 // 4
    assert nothing == []
    assert "forward" not in vars(model[0])


def test_a_model_counts_as_much_as_without_a_fused_attention():
    model, inputs = random_model(), batch(Prompt([3, ("image", (1, 4, 6)), 5]), Prompt([2, ("video", (2, 2, 4))]))
    with torch.no_grad(), flop_counter() as fused:
        model(**inputs)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
        model(**inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as unseen:
        model(**inputs)
    assert fused.get_total_flops() == plain.get_total_flops() > unseen.get_total_flops()
