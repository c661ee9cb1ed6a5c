"""The FLOPs and bytes of an op by formula, compared with counts of what naive code does."""

import itertools

import pytest
import torch
from bench import cases
from bench.counting import WORK, Peaks, Work
from torch.utils.flop_counter import FlopCounterMode

from ppe_npu import backends
from ppe_npu.backends import dispatch, masks

CPU, FP32 = torch.device("cpu"), torch.float32


def counted(function) -> int:
    """FLOPs of the matrix products that run, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


class Number:
    """A number that counts the operations on it."""

    count = 0

    def _operation(self, *_):
        Number.count += 1
        return self

    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = __pow__ = exp = root = _operation


def operations(function) -> int:
    Number.count = 0
    function()
    return Number.count


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True], ids=["forward", "step"])
def test_flops_of_attention_without_causality_are_those_that_torch_counts(training):
    query, key = normal(2, 4, 7, 16).requires_grad_(), normal(2, 2, 9, 16).requires_grad_()

    def run():
        out = backends.attention(query, key, key.clone(), implementation="reference")
        if training:
            out.sum().backward()

    assert WORK["attention"](query, key, key, training=training).flops == counted(run)


def test_flops_of_causal_and_packed_attention_are_those_of_the_pairs_that_attend():
    query, key = normal(1, 2, 5, 8), normal(1, 2, 12, 8)
    pairs = int(masks.join(None, 5, 12, True, CPU).sum())
    assert WORK["attention"](query, key, key, causal=True).flops == 4 * 2 * 8 * pairs
    packed = normal(1, 2, 10, 8)
    segments = (3, 0, 6, 1)
    each = [normal(1, 2, length, 8) for length in segments]
    borders = list(itertools.accumulate(segments, initial=0))
    for causal in (False, True):
        whole = sum(WORK["attention"](part, part, part, causal=causal).flops for part in each)
        assert WORK["attention"](packed, packed, packed, cu_seqlens=borders, causal=causal).flops == whole


def test_flops_of_clustering_are_those_of_its_product():
    case = cases.makers("dpc_knn", "tiny", CPU, FP32)[0]()
    run = lambda: backends.dpc_knn(*case.arguments, implementation="reference")  # noqa: E731
    assert WORK["dpc_knn"](*case.arguments).flops == counted(run)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "step"])
def test_flops_of_the_loss_are_those_of_plain_logits(training):
    hidden, weight, labels = normal(5, 8).requires_grad_(), normal(11, 8).requires_grad_(), torch.arange(5)

    def run():
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, labels)
        if training:
            loss.backward()

    assert WORK["linear_cross_entropy"](hidden, weight, labels, training=training).flops == counted(run)


def test_flops_of_elementwise_ops_are_those_of_one_number_after_the_other():
    x = Number()
    rotary = WORK["rotary"](normal(1, 3, 5, 8), normal(1, 2, 5, 8), normal(1, 5, 8), normal(1, 5, 8))
    assert rotary.flops == operations(lambda: [x * x + x * x for _ in range(5 * 5 * 8)])
    assert WORK["swiglu"](normal(3, 7), normal(3, 7)).flops == operations(
        lambda: [x / ((-x).exp() + x) * x for _ in range(21)]
    )

    def norm():
        for _ in range(3):
            total = x  # the first square needs no sum, the mean's division and eps do
            for _ in range(7):
                total = total + x * x
            scale = (total / x + x).root()
            for _ in range(7):
                _ = x * scale * x

    assert WORK["rms_norm"](normal(3, 7), normal(7), 1e-6).flops == operations(norm)


def test_flops_of_group_means_are_an_addition_a_number_and_a_division_a_mean():
    labels = torch.tensor([[0, 1, 0, 2, 0]])
    counts = torch.tensor([[3, 1, 1]])
    x = Number()

    def means():
        for _ in range(4):
            sums = [x, x, x]
            for label in labels[0].tolist():
                sums[label] = sums[label] + x
            _ = [total / x for total in sums]

    assert WORK["group_mean"](normal(1, 5, 4), labels, counts).flops == operations(means)


def tensors(values) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def bytes_of(values) -> int:
    return sum(value.numel() * value.element_size() for value in tensors(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("op", dispatch.ops())
def test_bytes_are_those_of_all_that_goes_in_and_comes_out(op, dtype):
    for make in cases.makers(op, "tiny", CPU, dtype):
        case = make()
        out = getattr(backends, op)(*case.arguments, **case.options, implementation="reference")
        outputs = out if isinstance(out, tuple) else (out,)
        work = WORK[op](*case.arguments, **case.options)
        assert work.bytes == bytes_of(case.arguments) + bytes_of(outputs)
        assert work.dtype == dtype
        if case.gradients:
            # The backward pass reads the outputs' gradients and what the formula needs, and writes the inputs'.
            gradients = bytes_of(case.arguments[place] for place in case.gradients)
            needed = {
                "attention": bytes_of(case.arguments) + bytes_of(outputs),
                "rotary": bytes_of(case.arguments[2:]),
                "group_mean": bytes_of(case.arguments[1:]),
            }.get(op, bytes_of(case.arguments))
            step = WORK[op](*case.arguments, **case.options, training=True)
            assert step.bytes == work.bytes + bytes_of(outputs) + needed + gradients


def test_meta_tensors_count_as_real_ones_do():
    for op in cases.OPS:
        real, meta = (
            [
                WORK[op](*case.arguments, **case.options)
                for case in (make() for make in cases.makers(op, "tiny", on, FP32))
            ]
            for on in (CPU, torch.device("meta"))
        )
        assert real == meta


def test_every_op_has_a_case_and_a_formula():
    """An op that is registered must be added to scripts/bench/cases.py and counting.py."""
    assert {*dispatch.ops(), "merge"} == set(cases.OPS) <= set(WORK)


def test_the_limit_is_the_slower_of_products_and_transfers():
    peaks = Peaks({FP32: 1e3}, 1e2)
    assert Work(2e3, 100, FP32).seconds(peaks) == 2.0
    assert Work(2e3, 1000, FP32).seconds(peaks) == 10.0
