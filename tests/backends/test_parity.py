"""The parity run passes correct implementations and fails wrong ones, and its error measures are right."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ppe_npu.backends as backends
from ppe_npu.backends import dispatch, registry
from ppe_npu.backends.common import DTYPES
from ppe_npu.backends.parity import CASES, compare, format_table, run, run_parity
from ppe_npu.backends.registry import Implementation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows():
    return run_parity(CPU)


def test_this_machine_is_at_parity(rows):
    assert [row for row in rows if not row.ok] == []


def test_every_op_and_implementation_is_run_in_every_dtype_both_ways(rows):
    seen = {(row.op, row.implementation, row.dtype, row.direction) for row in rows}
    for op in dispatch.ops():
        for entry in dispatch.available(op, "cpu"):
            for dtype in ("fp32", "bf16"):
                for direction in ("forward", "grad") if entry.gradient else ("forward",):
                    assert (op, entry.name, dtype, direction) in seen


def test_errors_are_not_zero_and_bounds_are_not_loose(rows):
    """A comparison of something with itself would show as zeros, and a bound that forgives everything as a large
    number."""
    for row in rows:
        if row.op not in ("dpc_knn",) and row.case != "all ignored":
            assert row.error > 0
            # The bound is twice the error of plain PyTorch, which itself must stay within own_bound().
            dtype = DTYPES[row.dtype]
            assert row.allowed <= 2 * compare.own_bound(dtype, row.direction == "grad"), row


def test_two_runs_agree(rows):
    again = run_parity(CPU, ("fp32",))
    assert [row.error for row in again] == [row.error for row in rows if row.dtype == "fp32"]


def _reference(op):
    return next(e for e in registry.REGISTRY if e.op == op and e.name == "reference").load()


def _wrong(op, change):
    """An implementation that calls `change(reference, ...)`."""
    reference = _reference(op)
    return lambda *args, **kwargs: change(reference, *args, **kwargs)


def _top_left_causal(reference, query, key, value, *, causal, mask, cu_seqlens, **options):
    if causal and cu_seqlens is None and mask is None:
        mask, causal = torch.ones(query.shape[2], key.shape[2]).bool().tril(), False
    return reference(query, key, value, causal=causal, mask=mask, cu_seqlens=cu_seqlens, **options)


def _blind_to_segments(reference, *args, cu_seqlens, **options):
    return reference(*args, cu_seqlens=None, **options)


def _inverted_mask(reference, *args, mask, **options):
    return reference(*args, mask=~mask if mask is not None and mask.dtype is torch.bool else mask, **options)


def _unscaled(reference, *args, scale, **options):
    return reference(*args, scale=1.0, **options)


def _detached_key(reference, query, key, value, **options):
    return reference(query, key.detach() + 0 * key, value, **options)


def _wrong_mean(reference, tokens, labels, counts):
    return reference(tokens, labels, counts + 1)


def _bf16_distances(reference, tokens, *rest, **options):
    return reference((tokens.bfloat16() + 64).to(tokens.dtype), *rest)


def _other_labels(reference, *args, **options):
    centers, labels = reference(*args)
    return centers, torch.where(labels > 0, labels - 1, labels)


def _mean_over_all(reference, hidden, weight, labels, **options):
    loss = reference(hidden, weight, labels, **options)
    return loss * (labels != -100).sum() / len(labels) if options["reduction"] == "mean" else loss


MISTAKES = {
    "causal aligned top-left": ("attention", _top_left_causal, "causal, longer keys"),
    "segments ignored": ("attention", _blind_to_segments, "windows"),
    "mask inverted": ("attention", _inverted_mask, "mask by head"),
    "scale forgotten": ("attention", _unscaled, "dense"),
    "a gradient lost": ("attention", _detached_key, "dense"),
    "sin negated": ("rotary", lambda reference, q, k, cos, sin: reference(q, k, cos, -sin), "decoding"),
    "key not rotated": ("rotary", lambda reference, q, k, *t: (reference(q, k, *t)[0], k + 0), "grouped heads"),
    "divided by count + 1": ("group_mean", _wrong_mean, "mostly singletons"),
    "distances in bf16": ("dpc_knn", _bf16_distances, "frames"),
    "groups merged": ("dpc_knn", _other_labels, "frames"),
    "eps forgotten": ("rms_norm", lambda reference, x, w, eps: reference(x, w, 1e-2), "batch"),
    "gate and up swapped": ("swiglu", lambda reference, gate, up: reference(up, gate), "batch"),
    "mean over ignored labels": ("linear_cross_entropy", _mean_over_all, "odd chunks, some ignored"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wrong_implementation_fails(mistake, dtype, monkeypatch):
    op, change, case = MISTAKES[mistake]
    _install(monkeypatch, op, _wrong(op, change))
    monkeypatch.setattr(run, "CASES", tuple(c for c in CASES if (c.op, c.name) == (op, case)))
    rows = run_parity(CPU, (dtype,))
    assert any(not row.ok for row in rows if row.implementation == "wrong")
    assert all(row.ok for row in rows if row.implementation != "wrong")
    assert "  NO" in format_table(rows)


def _install(monkeypatch, op, function, **fields):
    module = types.ModuleType("ppe_npu.backends.wrong")
    module.function = function
    module.refusal = lambda *args, **kwargs: "it is in no mood"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registry._module.cache_clear()
    entry = replace(Implementation(op, "wrong", ("cpu",), "wrong", "function"), **fields)
    monkeypatch.setattr(registry, "REGISTRY", (entry, *registry.REGISTRY))


@pytest.fixture(autouse=True)
def _no_stale_modules():
    yield
    registry._module.cache_clear()


def _run_swiglu(monkeypatch):
    monkeypatch.setattr(run, "CASES", tuple(case for case in CASES if case.op == "swiglu"))
    return [row for row in run_parity(CPU, ("fp32",)) if row.implementation == "wrong"]


def test_an_implementation_that_raises_fails_and_says_how(monkeypatch):
    def broken(gate, up):
        raise RuntimeError("561002: tiling failed\nmore")

    _install(monkeypatch, "swiglu", broken)
    rows = _run_swiglu(monkeypatch)
    assert [(row.ok, row.note) for row in rows] == [(False, "failed: RuntimeError: 561002: tiling failed")] * 2
    assert "2 comparisons: 0 agree, 2 fail, 0 refused" in format_table(rows)


def test_an_implementation_that_refuses_does_not_fail(monkeypatch):
    _install(monkeypatch, "swiglu", lambda gate, up: gate, verify="refusal")
    rows = _run_swiglu(monkeypatch)
    assert [(row.ok, row.note.partition(";")[0]) for row in rows] == [(True, "refused: it is in no mood")] * 2
    assert "2 comparisons: 0 agree, 0 fail, 2 refused" in format_table(rows)


@pytest.mark.parametrize(
    "result", [lambda g, u: g * math.nan, lambda g, u: (g * u)[:1], lambda g, u: F.silu(g) * u + 1e-4]
)
def test_nan_a_wrong_shape_and_a_small_error_fail(result, monkeypatch):
    _install(monkeypatch, "swiglu", result)
    assert not all(row.ok for row in _run_swiglu(monkeypatch))


@pytest.mark.parametrize("result", [lambda q, k: (q, k.double()), lambda q, k: (q,), lambda q, k: q])
def test_another_dtype_or_number_of_results_fails(result, monkeypatch):
    rotary = _reference("rotary")
    _install(monkeypatch, "rotary", lambda *args: result(*rotary(*args)))
    monkeypatch.setattr(run, "CASES", tuple(case for case in CASES if case.name == "one table for all"))
    rows = [row for row in run_parity(CPU, ("fp32",)) if row.implementation == "wrong"]
    assert rows
    assert not all(row.ok for row in rows)


def test_the_table_has_a_heading_a_line_per_row_and_a_count(rows):
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["op", "case", "shapes", "dtype", "pass", "error", "allowed", "implementation", "ok"]
    assert len(lines) == len(rows) + 3
    assert lines[-1] == f"{len(rows)} comparisons: {len(rows)} agree, 0 fail, 0 refused"
    assert max(map(len, lines)) <= 160


def test_unknown_dtypes_are_errors_and_unsupported_ones_a_line(monkeypatch):
    with pytest.raises(ValueError, match="'int8' is unknown: use one of fp32, bf16, fp16"):
        run_parity(CPU, ("int8",))
    monkeypatch.setattr(backends.device, "supports", lambda device, dtype: False)
    (row,) = run_parity(CPU, ("bf16",))
    assert row.ok
    assert row.note == "refused: cpu does not compute in bf16"


def test_relative_rms():
    expected = torch.tensor([3.0, 4.0])
    assert compare.relative_rms(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert compare.relative_rms(torch.tensor([0.0, 0.5]), torch.zeros(2)) == pytest.approx(0.5 / math.sqrt(2))
    assert compare.relative_rms(torch.tensor([3.0, math.nan]), expected) == math.inf
    assert compare.relative_rms(torch.tensor([3.0]), expected) == math.inf
    assert compare.relative_rms(torch.ones(0, 2), torch.ones(0, 2)) == 0.0


def test_the_allowed_error_is_twice_plain_pytorchs_but_no_less_than_a_rounding():
    assert compare.allowed(0.01, torch.bfloat16, gradient=False) == 0.02
    assert compare.allowed(0.0, torch.bfloat16, gradient=True) == 2**-9
    assert compare.allowed(0.0, torch.float32, gradient=False) == 2**-21


def test_partitions_are_compared_whatever_the_groups_are_called():
    labels = torch.tensor([[0, 0, 1, 2, -1]])
    assert compare.partition_distance(labels, torch.tensor([[2, 2, 0, 1, -1]])) == 0
    assert compare.partition_distance(labels, torch.tensor([[0, 0, 1, 1, -1]])) == pytest.approx(1 - 6 / 8)
    assert compare.partition_distance(labels, torch.tensor([[0, 0, 1, 2, 2]])) == 1
    assert compare.partition_distance(labels, labels[:, :4]) == 1


def test_centres_count_too():
    labels, budgets = torch.tensor([[0, 0, 1, 1, -1]]), torch.tensor([2])
    expected = torch.tensor([[0, 2, 4]]), labels
    assert compare.clustering_error((torch.tensor([[0, 2, 1]]), labels), expected, budgets) == 0
    assert compare.clustering_error((torch.tensor([[1, 2, 1]]), labels), expected, budgets) == 0.5
    assert compare.clustering_error((torch.tensor([[2, 0, 1]]), labels), expected, budgets) == 1
    moved = torch.tensor([[0, 1, 1, 1, -1]])
    found = (torch.tensor([[0, 2, 1]]), moved)
    assert compare.clustering_error(found, expected, budgets) == compare.partition_distance(moved, labels) > 0
    swapped = torch.tensor([[2, 0, 1]]), torch.tensor([[1, 1, 0, 0, -1]])
    assert compare.clustering_error(swapped, expected, budgets) == 0
