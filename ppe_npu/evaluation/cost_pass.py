"""One pass over all methods of a benchmark, after the scores: interleaved times, and counted work beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppe_npu.errors import InputError, first_line
from ppe_npu.evaluation.identity import Unreadable, read_sample
from ppe_npu.evaluation.interleaving import LONG, in_turns, middle, settled, summed_up
from ppe_npu.evaluation.rows import FAULTS, fault_of
from ppe_npu.files import write_json

_FEWEST = 2  # prompts of a pass
PROCESSOR = "processor time"  # ratios compare this on the host
FILE = "costs.json"  # in a benchmark's folder, beside the folders of its methods


@dataclass(frozen=True)
class Candidate:
    """One method of a pass.

    Attributes:
        name: the method's name in the report.
        answers: ModelAnswers, or an object with its prepare() and answer().
        ready: called before each of its answers, to compress the model as the method requires.
    """

    name: str
    answers: Any
    ready: Callable[[], None] = lambda: None


def measure(
    candidates: Sequence[Candidate],
    samples: Sequence[Mapping[str, Any]],
    rounds: int,
    reference: str | None = None,
    least: int | None = None,
) -> dict[str, Any]:
    """Answer every sample with every candidate, interleaved, one prompt at a time.

    Args:
        candidates: what is measured, by unique names; all are compared with the first, or with `reference`.
        samples: a benchmark's samples, prepared once, which is not timed. Those that a candidate cannot answer are
            left out.
        rounds: the fewest rounds; on a busy machine there are more, until all ratios are known to 3 %.
        least: the fewest rounds if they take long, see in_turns; if even the first answers do, there are fewer prompts
            as well, but at least two. None: neither is reduced.

    Returns:
        {"rounds", "prompts", "reference", "rows": {name: {"ttft", "total": see interleaving.against, "new_tokens",
        "counted": prefill_work()}}, "ratios_of" (PROCESSOR or "time"), "left_out" {sample: why}, "device", "dtype"}.

    Raises:
        InputError: no sample can be answered by all candidates, or two of them have the same name.
    """
    inputs, left_out = _warmed_up(candidates, samples, math.inf if least is None else LONG)

    def runner(one: Candidate) -> Callable[[int], Any]:
        def run(number: int) -> Any:
            one.ready()
            return one.answers.answer(inputs[one.name][number])

        return run

    base = reference or candidates[0].name
    given = in_turns(
        {one.name: runner(one) for one in candidates},
        len(inputs[base]),
        rounds,
        enough=lambda found: _settled(_work(found), base),
        least=least,
    )
    rows = _rows(candidates, given, inputs, base)
    found = {"rounds": len(given[base]), "prompts": len(inputs[base]), "reference": base, "rows": rows}
    found["left_out"] = left_out
    return {**found, "ratios_of": PROCESSOR if _by_work(given) else "time", **_where(candidates[0].answers)}


def _rows(
    candidates: Sequence[Candidate], given: Mapping[str, Any], inputs: Mapping[str, Any], base: str
) -> dict[str, dict[str, Any]]:
    """The "rows" of measure()."""
    rows: dict[str, dict[str, Any]] = summed_up(_work(given), base)
    for name, times in _times(given).items():
        for key in times:
            rows[name][key] |= middle(times[key])
    for one in candidates:
        done = given[one.name][0]
        rows[one.name]["new_tokens"] = sum(sum(part.new_tokens) for part in done) / len(done)
        one.ready()
        rows[one.name]["counted"] = prefill_work(one.answers, inputs[one.name], done)
    return rows


def _warmed_up(
    candidates: Sequence[Candidate], samples: Sequence[Mapping[str, Any]], long: float
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """({name: inputs of the samples that all candidates answered once}, {sample: why one did not}). After `long`
    seconds no further sample is tried once there are two.

    Raises:
        InputError: no sample was answered by all candidates, or two of them have the same name.
    """
    inputs: dict[str, list[Any]] = {}
    for one in candidates:
        if one.name in inputs:
            raise InputError(f"two methods are called {one.name}: give each its own name")
        inputs[one.name] = []
    left_out: dict[str, str] = {}
    started = time.monotonic()
    for sample in samples:
        if len(inputs[candidates[0].name]) >= _FEWEST and time.monotonic() - started > long:
            break
        index = str(sample.get("index"))
        if isinstance(sample, Unreadable):
            left_out[index] = sample["error"]
            continue
        try:
            own = [one.answers.prepare([sample]) for one in candidates]
            for one, prompt in zip(candidates, own):
                one.ready()
                one.answers.answer(prompt)
        except FAULTS as error:  # for example a damaged picture; the other samples must still be measured
            left_out[index] = fault_of(error)
            continue
        for one, prompt in zip(candidates, own):
            inputs[one.name].append(prompt)
    if not any(inputs.values()):
        told = next((f" ({index}: {why})" for index, why in left_out.items()), "")
        raise InputError(f"no sample can be answered by all methods{told}: correct the data")
    return inputs, left_out


def _where(answers: Any) -> dict[str, str]:
    versions = getattr(answers, "versions", dict)()
    return {"device": versions.get("device", "?"), "dtype": str(getattr(answers, "dtype", ""))}


def _times(given: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, dict[str, list[list[float]]]]:
    """{name: {"ttft", "total"}}, each [rounds][prompts] seconds."""
    return {
        name: {
            "ttft": [[done.prefill_seconds for done in turn] for turn in turns],
            "total": [[done.seconds for done in turn] for turn in turns],
        }
        for name, turns in given.items()
    }


def _work(given: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, dict[str, list[list[float]]]]:
    """Like _times(), but the quantity by which methods are compared: on the host processor seconds, which other
    programs do not lengthen; elsewhere the times themselves."""
    if not _by_work(given):
        return _times(given)
    return {
        name: {key: [[done.work[at] for done in turn] for turn in turns] for at, key in enumerate(("ttft", "total"))}
        for name, turns in given.items()
    }


def _by_work(given: Mapping[str, Sequence[Sequence[Any]]]) -> bool:
    return all(done.work is not None for turns in given.values() for turn in turns for done in turn)


def _settled(times: Mapping[str, Mapping[str, Any]], base: str) -> bool:
    return all(settled(row[key], times[base][key]) for row in times.values() for key in row)


def prefill_work(answers: Any, inputs: Sequence[Mapping[str, Any]], done: Sequence[Any]) -> dict[str, float] | None:
    """Means over prompts of the work that a prefill requires: {"tower_flops", "decoder_flops" (products as torch counts
    them: a multiplication and an addition are two, masked positions of attention count), "tower_bytes", "decoder_bytes"
    (weights, read once), "kv_bytes" (of the prompt's own tokens)}; {"why"} if torch cannot count a kernel; None without
    a model."""
    model = getattr(answers, "model", None)
    if model is None:
        return None
    try:
        flops = [prefill_flops(model, prompt) for prompt in inputs]
    except FAULTS as error:  # for example a kernel that torch's counter does not support
        return {"why": first_line(error)}
    tower = _tower(model)
    own = _bytes(tower) if tower is not None else 0
    count = len(flops)
    return {
        "tower_flops": sum(one["tower"] for one in flops) / count,
        "decoder_flops": sum(one["all"] - one["tower"] for one in flops) / count,
        "tower_bytes": float(own),
        "decoder_bytes": float(_bytes(model) - own),
        "kv_bytes": sum(sum(part.prompt_kv_bytes) for part in done) / len(done),
    }


def _tower(model: Any) -> torch.nn.Module | None:
    """The model's vision tower: Qwen's includes the merger; the projector of InternVL counts as part of the decoder."""
    inner = getattr(model, "model", model)
    return getattr(inner, "visual", None) or getattr(inner, "vision_tower", None)


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@torch.inference_mode()
def prefill_flops(model: Any, inputs: Mapping[str, Any]) -> dict[str, float]:
    """{"all", "tower"}: FLOPs of one prefill, counted as in prefill_work()."""
    from ppe_npu.data.inputs import to_device
    from ppe_npu.inspect.flops import flop_counter, within

    moved = to_device(inputs, model.device, model.dtype)
    tower = _tower(model)
    with flop_counter() as all_of_it, within(tower) as of_tower:
        model(**moved, logits_to_keep=1)
    return {"all": float(all_of_it.get_total_flops()), "tower": float(sum(of_tower))}


def spread_samples(benchmark: Any, count: int) -> list[Any]:
    """`count` samples, evenly spread over the benchmark; measure() reports those that cannot be read."""
    total = len(benchmark)
    numbers = sorted({number * total // count for number in range(count)}) if count < total else range(total)
    return [read_sample(benchmark, number) for number in numbers]


def write(folder: Path, found: Mapping[str, Any], protocol: str) -> Path:
    """Write a pass to FILE in the benchmark's folder."""
    return write_json(folder / FILE, {**found, "protocol": protocol})
