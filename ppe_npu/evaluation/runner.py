"""evaluate() answers a benchmark with a model and measures the cost; any number of processes may share the work, and
each may be killed at any point.

The output folder holds settings.json (what is evaluated), predictions.jsonl (one line per sample, in the order of
answering), results.json (written once all samples are answered) and .work (which process answers which samples: see
sharing.py).
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ppe_npu.errors import InputError, UserError
from ppe_npu.evaluation import protocols
from ppe_npu.evaluation.identity import Unreadable, benchmark_identity, check_settings, read_sample
from ppe_npu.evaluation.own_code import code_mark
from ppe_npu.evaluation.results import PER_BATCH, PER_SAMPLE, run_method, run_title, summarise
from ppe_npu.evaluation.rows import FAULTS, QUESTION, fault_of, question, row_fault, signed
from ppe_npu.evaluation.scoring import judged, renewed
from ppe_npu.evaluation.sharing import Share, add_sums
from ppe_npu.evaluation.tuned import tuned_with
from ppe_npu.files import write_json
from ppe_npu.utils.escape import printable
from ppe_npu.utils.progress import Progress
from ppe_npu.utils.reading import checksum

if TYPE_CHECKING:
    from ppe_npu.data.sampling import VideoSampling
    from ppe_npu.evaluation.decoding import GenerationChoice

Sample = dict[str, Any]
NEW_TOKENS = 16  # the longest answer if neither the user nor the benchmark sets a length
_UNSAID = {"protocol": protocols.load(protocols.CHECKPOINT).recorded()}  # used, but not recorded, by the first edition
_BAR_AFTER = 3.0  # seconds of reading lengths after which a progress bar appears
_UNKNOWN = SimpleNamespace(bucket="unreadable", before=0, after=0, source="")  # for samples that cannot be measured
BATCH_TOKENS = 65_536  # prompt tokens of a batch before compression, padding included: 1.2 GB of pixels


def evaluate(
    model: Any,
    processor: Any,
    benchmark: Any,
    output: str | Path,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    sampling: VideoSampling | None = None,
    name: str | None = None,
    seed: int = 0,
    generation: GenerationChoice = None,
) -> dict[str, Any]:
    """Answer every sample once, score the answers and write the results.

    Other processes that call this with the same arguments share the work; every call returns when all of it is done.

    Args:
        model: a model on its device, compressed or not.
        processor: the model's.
        benchmark: the benchmark to answer.
        output: folder of this run; if it holds a part of the same run, that run is completed.
        batch_size: prompts per generate(), at most.
        max_new_tokens: tokens per answer, at most; None: the benchmark's number, or 16 if it has none.
        sampling: which frames of a video are taken if the sample has no rule of its own.
        name: the run's name in reports; None: derived from its compression.
        seed: the random seed, set before every batch.
        generation: settings beside greedy search: "checkpoint" for those of the checkpoint's generation_config.json, or
            names and values ({"repetition_penalty": 1.05}); None: greedy search alone, whatever the checkpoint says.

    Returns:
        The contents of results.json: {"name", "method" (the name without its ratio), "accuracy" {accuracy, count, low,
        high}, "types" {type: the same}, "metrics" and "headline" if the benchmark has them (results.corpus) or
        "metrics_error" (why its metrics() failed), "costs" (results.costs), "samples", "errors", "settings",
        "versions", "ignored" (unused settings of the checkpoint), "scored_by" (own_code.code_mark)}; and the "folder".

    Raises:
        InputError: the folder holds another run or a damaged file, a file cannot be written, a size is not positive.
    """
    from ppe_npu.backends.device import process_rank
    from ppe_npu.evaluation.answers import ModelAnswers

    answers = ModelAnswers(model, processor, new_tokens(benchmark, max_new_tokens), sampling, seed, generation)
    answers.log_ignored()
    with Evaluation(answers, benchmark, output, batch_size, name, bar=process_rank() == 0) as evaluation:
        return evaluation.run()


def new_tokens(benchmark: Any, asked: int | None) -> int:
    """The most tokens of an answer: `asked` if given, else the benchmark's number, else NEW_TOKENS.

    Raises:
        InputError: not positive.
    """
    chosen = asked if asked is not None else getattr(benchmark, "max_new_tokens", None) or NEW_TOKENS
    if chosen < 1:
        raise InputError(f"max_new_tokens={chosen} must be at least 1")
    return chosen


class Evaluation:
    """This process's part in evaluating one model on one benchmark. A context manager, as Share is.

    Args:
        answers: the model, wrapped in ModelAnswers or a class with the same methods.
        benchmark, output, batch_size, name: as in evaluate().
        identity: benchmark_identity(benchmark), if the caller has computed it already.
        batch_tokens: prompt tokens of a batch before compression, at most; a longer prompt is a batch of its own.
        poll: seconds between checks whether other processes have finished or left samples to answer.
        bar: whether to show a progress bar.
    """

    def __init__(
        self,
        answers: Any,
        benchmark: Any,
        output: str | Path,
        batch_size: int = 32,
        name: str | None = None,
        identity: dict[str, Any] | None = None,
        batch_tokens: int = BATCH_TOKENS,
        poll: float = 0.5,
        bar: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        if hasattr(benchmark, "meet"):
            benchmark.meet(answers)  # how a box is written depends on the model's family
        self.answers, self.benchmark, self.output = answers, benchmark, Path(output)
        self.batch_size, self.batch_tokens, self.poll, self._bar = batch_size, batch_tokens, poll, bar
        self.settings = {**(identity or benchmark_identity(benchmark)), **answers.settings()}
        self.title = name or run_title(self.settings)
        asked = getattr(benchmark, "protocol", None)
        used = asked if isinstance(asked, protocols.Protocol) else protocols.load(protocols.CHECKPOINT)
        self.settings.setdefault("protocol", used.recorded())
        check_settings(self.output, self.settings, {**_UNSAID, **getattr(answers, "unsaid", dict)()})
        add_sums(self.output)
        write_json(self.output / "settings.json", self.settings)
        self._numbers: dict[int | str, int] = {}
        self._asked: dict[int | str, str | None] = {}
        for number in range(len(benchmark)):  # one at a time, because a sample may hold its picture
            sample = read_sample(benchmark, number)
            self._numbers[sample["index"]], self._asked[sample["index"]] = number, _digest(sample)
        self._measures = self._measured()
        self._code = code_mark(benchmark)
        self._share = Share(self.output, self._order(), self._wrong, self._code, self._renewed)
        self._warm = self._told = False

    def _sample(self, key: int | str) -> Sample:
        return read_sample(self.benchmark, self._numbers[key], key)

    def _measured(self) -> dict[int | str, Any]:
        """The Measure of every sample, by index. If a step at the pixels decides lengths, the pictures are read now."""
        found = {}
        with Progress(
            len(self._numbers), f"{self.title}: lengths", "sample", delay=_BAR_AFTER, leave=False, hidden=not self._bar
        ) as bar:
            for key in self._numbers:
                found[key] = self._measure(key)
                bar.update()
        return found

    def _measure(self, key: int | str) -> Any:
        sample = self._sample(key)
        try:
            return _UNKNOWN if isinstance(sample, Unreadable) else self.answers.measure(sample)
        except FAULTS:  # for example an image that cannot be decoded; answering the sample reports the error
            return _UNKNOWN

    def _wrong(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a prediction that another process wrote; None if nothing is."""
        reason, digest = row_fault(row), self._asked[row["index"]]
        if reason or "error" in row or digest is None or checksum([row[key] for key in QUESTION]) == digest:
            return reason
        return f"answers another question than the benchmark's sample {row['index']!r}"

    def _renewed(self, rows: list[dict[str, Any]], differs: bool | None) -> list[dict[str, Any]]:
        return renewed(self.benchmark, rows, self._sample, differs, self.title)

    def _order(self) -> list[int | str]:
        """All indices, longest samples first within a bucket, so that similar lengths are batched together. A sample
        that does not fit in memory then fails early, and the last batches, for which other processes wait, are short.
        """

        def place(key: int | str) -> tuple:
            found = self._measures[key]
            return found.bucket, -found.after, -found.before, found.source, self._numbers[key]

        return sorted(self._numbers, key=place)

    def __enter__(self) -> Evaluation:
        self._share.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._share.__exit__(*exc)

    def run(self, wait: bool = True) -> dict[str, Any] | None:
        """Answer samples that no process has taken until all are answered, then return the results.

        Args:
            wait: whether to wait for samples that other processes are answering, and to take over those of a process
                that dies; if False, None is returned once only such samples are left.
        """
        with ThreadPoolExecutor(1) as reader, self._progress() as bar:
            ahead = None
            while True:
                batch = ahead or self._next(reader)
                bar.update(self._share.progress() - bar.n)
                if batch:
                    ahead = self._next(reader)  # decoded while the model answers the current batch
                    self._share.give(self._answer(*batch, reader))
                    continue
                results = self._share.results(self._sum_up)
                if results is not None or not wait:
                    return results and {**results, "folder": str(self.output)}
                time.sleep(self.poll)

    def _progress(self) -> Any:
        return Progress(len(self._numbers), self.title, "sample", hidden=not self._bar)

    # -- batches -----------------------------------------------------------------------------------------------------

    def _next(self, reader: ThreadPoolExecutor) -> tuple[list[Sample], Future] | None:
        """(samples, future of their prepared inputs) of this process's next batch; None if no sample is free."""
        while keys := self._share.take(self._choose):
            samples = [self._sample(key) for key in keys]
            lost = [_failure(sample, sample["error"]) for sample in samples if isinstance(sample, Unreadable)]
            if lost:
                self._share.give(lost)
            samples = [sample for sample in samples if not isinstance(sample, Unreadable)]
            if samples:
                return samples, reader.submit(self.answers.prepare, samples)
        return None

    def _choose(self, keys: Iterator[int | str]) -> list[int | str]:
        """The next batch from the front of `keys`: one bucket, within batch_size and batch_tokens."""
        chosen: list[int | str] = []
        longest, bucket = 0, None
        for key in keys:
            found = self._measures[key]
            longest, bucket = max(longest, found.before), bucket or found.bucket
            full = len(chosen) == self.batch_size or (len(chosen) + 1) * longest > self.batch_tokens
            if chosen and (full or found.bucket != bucket):
                break
            chosen.append(key)
        return chosen

    def _answer(self, samples: Sequence[Sample], prepared: Future, reader: ThreadPoolExecutor) -> list[dict[str, Any]]:
        """Prediction rows of a batch. A batch that fails is retried in halves; a single sample's error is recorded."""
        try:
            done = self.answers.answer(prepared.result())
        except FAULTS as error:  # whatever the error is, the other samples must still be answered
            reason, memory = fault_of(error), self.answers.out_of_memory(error)
            ours = not (self._told or memory or isinstance(error, UserError))
            told = "".join(traceback.format_exception(error)) if ours else ""
        else:
            return self._predictions(samples, done)
        # Outside the except clause the error is freed, and with it the tensors that its traceback held.
        if len(samples) == 1:
            self._tell(told, samples[0])
            return [_failure(samples[0], reason)]
        if memory:  # other batches with as many tokens would fail, too
            longest = max(self._measures[sample["index"]].before for sample in samples)
            self.batch_tokens = min(self.batch_tokens, len(samples) * longest // 2)
            self.answers.release_memory()
        half = len(samples) // 2
        parts = samples[:half], samples[half:]
        return [row for part in parts for row in self._answer(part, reader.submit(self.answers.prepare, part), reader)]

    def _tell(self, told: str, sample: Sample) -> None:
        """Print the first traceback that a user cannot fix, because the sample's row holds only its last line."""
        if told:
            self._told = True
            whose = f"ppe-npu: sample {printable(sample['index'])} failed through no fault of yours"
            print(f"{told}{whose}: please report all of the above", file=sys.stderr)

    def _predictions(self, samples: Sequence[Sample], done: Any) -> list[dict[str, Any]]:
        """The prediction rows of a batch; costs that are measured per batch are divided evenly among its samples."""
        shared = {key: getattr(done, key) / len(samples) for key in PER_BATCH}
        shared |= {"batch": len(samples), "warm": self._warm, "peak_memory": done.peak_memory}
        self._warm = True
        rows = []
        for number, sample in enumerate(samples):
            row = {**_row(sample), "answer": done.answers[number]}
            costs = {key: getattr(done, key)[number] for key in PER_SAMPLE}
            rows.append(signed({**row, **judged(self.benchmark, row["answer"], sample), **costs, **shared}))
        return rows

    def _sum_up(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = sorted(rows, key=lambda row: self._numbers[row["index"]])
        return {
            "name": self.title,
            "method": run_method(self.settings),
            **self._scores(rows),
            "settings": self.settings,
            "versions": self.answers.versions(),
            "ignored": getattr(self.answers, "ignored", dict)(),
            "tuned": tuned_with(self.settings.get("model", "")),
            **({"scored_by": self._code} if self._code else {}),
        }

    def _scores(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """summarise(); if the benchmark's metrics() raises, the result has no metrics and a "metrics_error"."""
        try:
            return summarise(self.benchmark, rows)
        except FAULTS as error:  # raised by the benchmark's own code; the answers must not be lost for it
            # The second call gets no benchmark, because any of its methods, such as unit(), may have raised.
            return {**summarise(None, rows), "metrics_error": fault_of(error)}


def _digest(sample: Sample) -> str | None:
    """Checksum of the sample's question; None if the sample cannot be read."""
    return None if isinstance(sample, Unreadable) else checksum(list(question(sample).values()))


def _failure(sample: Sample, reason: str) -> dict[str, Any]:
    """The prediction row of a sample that could not be answered."""
    return signed({**_row(sample), "answer": "", "score": 0.0, "error": reason})


def _row(sample: Sample) -> dict[str, Any]:
    """The QUESTION fields of a prediction row."""
    return {key: sample.get(key) for key in QUESTION} if isinstance(sample, Unreadable) else question(sample)
