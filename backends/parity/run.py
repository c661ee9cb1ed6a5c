"""Runs every implementation that this device has on every case, forward and backward, and tabulates the errors."""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ppe_npu.backends as backends
from ppe_npu.backends import device as devices
from ppe_npu.backends import dispatch
from ppe_npu.backends.common import DTYPES
from ppe_npu.backends.registry import Implementation
from ppe_npu.errors import InputError

from . import compare
from .cases import CASES, Case

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        op, case, implementation: names.
        shapes: the shapes of the input tensors, as "2x4x7x16, ...".
        dtype: "fp32", "bf16" or "fp16".
        direction: "forward" or "grad"; for whole models also "5 steps" and "generate"; "-" if nothing was compared.
        error, allowed: relative RMS (see `compare`) of the tensor with the largest error relative to its bound; for
            clusterings `clustering_error`. None if nothing was compared, but error is inf for a failed computation.
        ok: within bounds, or refused (a refusal is not a failure: dispatch takes the next implementation).
        note: why an implementation refused the case, or how it failed.
    """

    op: str
    case: str
    shapes: str
    dtype: str
    direction: str
    implementation: str
    error: float | None
    allowed: float | None
    ok: bool
    note: str = ""

    @classmethod
    def failed(cls, op: str, case: str, shapes: str, dtype: str, implementation: str, error: Exception) -> "Row":
        """A computation that raised."""
        note = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return cls(op, case, shapes, dtype, "-", implementation, math.inf, None, False, note)

    @classmethod
    def absent(cls, op: str, case: str, dtype: str) -> "Row":
        """A computation that failed on the machine that recorded a bundle: without a comparison there is no parity."""
        note = "not recorded: it failed on the recording machine"
        return cls(op, case, "-", dtype, "-", "-", math.inf, None, False, note)

    @classmethod
    def unsupported(cls, op: str, dtype: str, device: torch.device) -> "Row":
        """A dtype that the device lacks."""
        note = f"refused: {device.type} does not compute in {dtype}"
        return cls(op, "all", "-", dtype, "-", "-", None, None, True, note)


@dataclass(frozen=True)
class Results:
    """The results of one call, and the gradients of the arguments that the case differentiates, for `cotangents`."""

    forward: list[Tensor]
    grad: list[Tensor]
    cotangents: list[Tensor] = field(default_factory=list)


class CaseRun:
    """A case in a dtype: run it on a device, and measure the result against fp64.

    Args:
        case, dtype: the case, and the name of the dtype in DTYPES.
        given: tensors to use instead of those that the case draws, in the same order (from a recorded bundle).
        cotangents: those of the gradients, likewise. They are recorded because normal numbers drawn in fp32 differ in
            their last bits between CPUs with and without AVX2 (such as ARM), which can change their rounding to bf16.
    """

    def __init__(
        self, case: Case, dtype: str, given: list[Tensor] | None = None, cotangents: list[Tensor] | None = None
    ):
        self.case, self.dtype = case, DTYPES[dtype]
        self._inputs = _inputs(case, self.dtype)
        if given is not None:
            self._inputs = _replaced(self._inputs, iter(given))
        self._exact = _evaluate(case, _cast(self._inputs, torch.float64), CPU, "reference", cotangents)
        self.cotangents = self._exact.cotangents
        self._plain = _evaluate(case, self._inputs, CPU, "reference", self.cotangents)

    @property
    def tensors(self) -> list[Tensor]:
        """The input tensors."""
        return [value for value in _flat(self._inputs) if isinstance(value, Tensor)]

    @property
    def shapes(self) -> str:
        return ", ".join("x".join(map(str, tensor.shape)) for tensor in self.tensors)

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "grad") if self.case.grads else ("forward",)

    def concerns(self, entry: Implementation) -> bool:
        """Whether an implementation is made for calls like this case."""
        positional, keywords = _call(self._inputs)
        return entry.concerns(*positional, **keywords, **self.case.options)

    def on(self, device: torch.device, implementation: str | None = None) -> Results:
        """The results on a device, from the implementation that dispatch chooses, or from a named one."""
        # TF32 and HF32 are not compared here, even if the user has turned them on elsewhere.
        with devices.exact_matmul():
            return _evaluate(self.case, self._inputs, device, implementation, self.cotangents)

    def error(self, results: Results, direction: str, itself: bool = False) -> tuple[float, float]:
        """(error, allowed) of the tensor whose error is largest relative to its bound.

        Args:
            itself: the results are those of the reference on the CPU, which otherwise determines the bound.
        """
        ours, plain, exact = (getattr(each, direction) for each in (results, self._plain, self._exact))
        if self.case.clustering:
            return self.distance(ours, exact), 0.0
        own = compare.own_bound(self.dtype, direction == "grad")
        if [tensor.dtype for tensor in ours] != [tensor.dtype for tensor in plain]:
            return math.inf, own  # too few results, or of another dtype than specified
        pairs = []
        for mine, usual, true in zip(ours, plain, exact):
            usual = compare.relative_rms(usual, true)
            bound = own if itself else compare.allowed(usual, self.dtype, direction == "grad")
            pairs.append((compare.relative_rms(mine, true), bound))
        return max(pairs, key=lambda pair: (not compare.within(*pair), pair[0] / pair[1]))

    def distance(self, one: list[Tensor], two: list[Tensor]) -> float:
        """The distance between two results: relative RMS, or the clustering error of clusterings."""
        if self.case.clustering:
            return compare.clustering_error(one, two, budgets=self._inputs[2])
        if len(one) != len(two):
            return math.inf
        return max(compare.relative_rms(a, b) for a, b in zip(one, two))


def run_parity(
    device: torch.device, dtypes: Sequence[str] = tuple(DTYPES), ops: Sequence[str] | None = None
) -> list[Row]:
    """Compares every implementation available on `device` with the fp64 reference, on all of `CASES`.

    Args:
        device: where the implementations run; the fp64 reference and plain PyTorch run on the CPU.
        dtypes: some of "fp32", "bf16", "fp16". A dtype that the device lacks gives a single row that says so.
        ops: the operators to compare; None for all.

    Returns:
        One row per case, dtype, implementation and direction. Parity holds if `row.ok` for all of them.

    Raises:
        InputError: an unknown dtype or operator.
    """
    unknown = set(ops or ()) - set(dispatch.ops())
    if unknown:
        raise InputError(f"parity: ops {sorted(unknown)} are unknown: use some of {', '.join(dispatch.ops())}")
    rows: list[Row] = []
    for name in dtypes:
        if name not in DTYPES:
            raise InputError(f"parity: dtype {name!r} is unknown: use one of {', '.join(DTYPES)}")
        if not devices.supports(device, DTYPES[name]):
            rows.append(Row.unsupported("all", name, device))
            continue
        for case in CASES:
            if ops is None or case.op in ops:
                rows += _run_case(case, name, device)
    return rows


def _run_case(case: Case, dtype: str, device: torch.device) -> list[Row]:
    run = CaseRun(case, dtype)
    rows = []
    for entry in dispatch.available(case.op, device.type):
        if not run.concerns(entry):
            continue
        fixed = {
            "op": case.op, "case": case.name, "shapes": run.shapes, "dtype": dtype, "implementation": entry.name
        }  # fmt: skip
        try:
            results = run.on(device, entry.name)
        except dispatch.ImplementationError as error:
            reason = str(error).rpartition("cannot be used: ")[2]
            rows.append(Row(**fixed, direction="-", error=None, allowed=None, ok=True, note=f"refused: {reason}"))
            continue
        except Exception as error:
            rows.append(Row.failed(**fixed, error=error))
            continue
        itself = entry.name == "reference" and devices.on_cpu(device)
        for direction in run.directions:
            found, bound = run.error(results, direction, itself)
            rows.append(Row(**fixed, direction=direction, error=found, allowed=bound, ok=compare.within(found, bound)))
    return rows


def case_tensors(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The input tensors of a case, in the order of its arguments."""
    return [value for value in _flat(_inputs(case, dtype)) if isinstance(value, Tensor)]


def _inputs(case: Case, dtype: torch.dtype) -> tuple:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.op}/{case.name}".encode()))
    return _cast(case.build(generator), dtype)


def _cast(values: Any, dtype: torch.dtype, device: torch.device = CPU) -> Any:
    """`values` with floating-point tensors in `dtype` and all tensors on `device`, also inside tuples and dicts."""
    if isinstance(values, tuple):
        return tuple(_cast(value, dtype, device) for value in values)
    if isinstance(values, dict):
        return {key: _cast(value, dtype, device) for key, value in values.items()}
    if isinstance(values, Tensor):
        return values.to(device, dtype if values.is_floating_point() else values.dtype)
    return values


def _replaced(values: Any, given: Iterator[Tensor]) -> Any:
    """`values` with the given tensors in place of its own tensors, also inside tuples and dicts."""
    if isinstance(values, tuple):
        return tuple(_replaced(value, given) for value in values)
    if isinstance(values, dict):
        return {key: _replaced(value, given) for key, value in values.items()}
    return next(given) if isinstance(values, Tensor) else values


def _flat(values: tuple) -> list:
    return [part for value in values for part in (value.values() if isinstance(value, dict) else (value,))]


def _call(inputs: tuple) -> tuple[list, dict[str, Any]]:
    """Positional and keyword arguments."""
    *values, last = inputs
    return (values, last) if isinstance(last, dict) else ([*values, last], {})


def _evaluate(
    case: Case, inputs: tuple, device: torch.device, implementation: str | None, cotangents: list[Tensor] | None
) -> Results:
    """Results and gradients of one call. The gradients are for `cotangents`, which are drawn if it is None."""
    dtype = next(value.dtype for value in inputs if isinstance(value, Tensor) and value.is_floating_point())
    values, keywords = _call(_cast(inputs, dtype, device))
    for index in case.grads:
        # Cloned: a cast that changes nothing returns the tensor itself, which belongs to the other runs too.
        values[index] = values[index].clone().requires_grad_()
    results = getattr(backends, case.op)(*values, **keywords, **case.options, implementation=implementation)
    results = list(results) if isinstance(results, tuple) else [results]
    if not case.grads:
        return Results(results, [])
    if cotangents is None:
        generator = torch.Generator().manual_seed(0)
        # Rounded to bf16, so that every dtype gets the same numbers.
        cotangents = [torch.randn(result.shape, generator=generator).bfloat16() for result in results]
    weights = [value.to(device, result.dtype) for value, result in zip(cotangents, results)]
    gradients = torch.autograd.grad(results, [values[index] for index in case.grads], weights)
    return Results(results, list(gradients), cotangents)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a text table with a heading, one line per row, and a last line that counts them."""
    heading = ("op", "case", "shapes", "dtype", "pass", "error", "allowed", "implementation", "ok")
    lines = [heading, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    failed = sum(not row.ok for row in rows)
    refused = sum(row.ok and row.error is None for row in rows)
    summary = f"{len(rows)} comparisons: {len(rows) - failed - refused} agree, {failed} fail, {refused} refused"
    return "\n".join([*text, "", summary])


def _cells(row: Row) -> tuple[str, ...]:
    error, bound = ("-" if value is None else f"{value:.1e}" for value in (row.error, row.allowed))
    verdict = row.note or ("yes" if row.ok else "NO")
    return (row.op, row.case, row.shapes, row.dtype, row.direction, error, bound, row.implementation, verdict)
