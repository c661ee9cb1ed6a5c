"""What identifies a run: settings with short hashes of data and weights, and their comparison with an earlier run's.

Also reads a benchmark's samples, with a substitute for one that the benchmark's own code fails to give.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line, shown
from ppe_npu.evaluation.benchmarks.protocol import check_shown, check_spelling, shows
from ppe_npu.evaluation.decoding import beside_greedy
from ppe_npu.evaluation.own_code import called, calling
from ppe_npu.evaluation.protocols import names
from ppe_npu.evaluation.rows import FAULTS, fault_of, is_key, question
from ppe_npu.evaluation.run_protocol import compared_part, label
from ppe_npu.files import check_regular
from ppe_npu.utils.paths import real_place
from ppe_npu.utils.reading import checksum

_FILES = ("image_path", "video_path")


class Unreadable(dict):
    """Substitute for a sample that cannot be read: {"index", "prompt": "", "error"}, and "type" and "GT" if they can be
    read, because metrics over all samples need them in every row."""


def read_sample(benchmark: Any, number: int, key: int | str | None = None) -> Any:
    """benchmark[number], or an Unreadable if that raises, lacks index or prompt, or cannot be written as JSON.

    Args:
        key: the index that the sample must have; if it has another one, an Unreadable with this index is returned.
            None: the index is not known yet. An Unreadable then has the sample's own index, by which metrics group
            samples, with lone surrogates escaped; or "row <number>" if the index cannot be read either.
    """
    known, kept = f"row {number}" if key is None else key, {}
    try:
        with calling(benchmark, "__getitem__"):
            sample = benchmark[number]
        index, _ = sample["index"], sample["prompt"]
        if key is None and is_key(index):
            known = _spelt(index) if isinstance(index, str) else int(index)
        kept = {name: _spelt(sample.get(name)) for name in ("type", "GT")}
        question(sample)
    except FAULTS as error:  # raised by the benchmark's own code; its other samples must still be answered
        return Unreadable(**kept, index=known, prompt="", error=fault_of(error))
    if key is not None and index != key:
        return Unreadable(index=key, prompt="", error=f"row {number} now has the index {index!r}")
    return sample


def _spelt(value: Any) -> Any:
    """A text, or a list of texts, with lone surrogates escaped; None for anything else."""
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return [_spelt(part) for part in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else None


def data_fingerprints(benchmark: Any) -> dict[str, str]:
    """Short hashes over all samples' questions, answers and files (their paths and sizes), which identify the data.

    Returns:
        {"data": with paths as they are spelled, "places": with the resolved paths}; data is the same if either is.

    Raises:
        InputError: no sample can be read, two have the same index, or the pictures or videos are missing.
    """
    digests, seen, unreadable = {"data": hashlib.sha256(), "places": hashlib.sha256()}, {}, []
    modality, keys, shown_once = getattr(benchmark, "modality", ""), [], False
    for number in range(len(benchmark)):
        sample = read_sample(benchmark, number)
        index = sample["index"]
        if isinstance(sample, Unreadable):  # its type and GT are only there for metrics
            unreadable.append(sample["error"])
            sample, shown_once = {**sample, "type": None, "GT": None}, True  # for all that is known
        else:
            check_spelling(sample, modality, f"sample {number} of benchmark {called(benchmark)}")
            keys, shown_once = keys or list(sample), shown_once or shows(sample)
        if index in seen:
            raise InputError(
                f"benchmark {benchmark.name}: samples {seen[index]} and {number} both have the index {index!r}: give "
                "every sample its own"
            )
        seen[index] = number
        said = {key: sample.get(key) for key in ("index", "prompt", "GT", "type", *_FILES, "sampling")}
        places, sizes = {**said, **{key: real_place(said[key]) for key in _FILES}}, _sizes(sample)
        for digest, values in zip(digests.values(), (said, places)):
            digest.update("\0".join([*map(str, values.values()), *sizes]).encode("utf-8", "surrogatepass"))
    if unreadable and len(unreadable) == len(seen):
        raise InputError(f"benchmark {benchmark.name}: no sample can be read ({unreadable[0]}): fix its __getitem__")
    if not shown_once:
        check_shown(called(benchmark), modality, keys)
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def _sizes(sample: Any) -> list[str]:
    """Sizes of a sample's files in bytes, and the shapes of its pictures in memory, as texts."""
    sizes = []
    for key in (*_FILES, "image"):
        try:
            value = sample.get(key)
        except FAULTS as error:  # an image that cannot be decoded; answering the sample reports the error
            value, sizes = None, [*sizes, type(error).__name__]
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (str, Path)):
                sizes += [str(os.path.getsize(item))] if os.path.isfile(item) else []
            elif item is not None:
                sizes.append(str(getattr(item, "shape", getattr(item, "size", ""))))
    return sizes


PROCESSOR_MARKS = ("processor", "image_processor", "video_processor")  # the keys of processor_marks()


def processor_identity(processor: Any) -> dict[str, Any]:
    """The settings of a processor that decide what the model sees."""
    from ppe_npu.models.fingerprint import processor_marks  # imports torch, which the runner itself does not need

    template = hashlib.sha256(str(processor.chat_template).encode()).hexdigest()[:16]
    size = dict(processor.image_processor.size)
    return {"image_size": size, "chat_template": template, **processor_marks(processor)}


def benchmark_identity(benchmark: Any) -> dict[str, Any]:
    """The settings of a benchmark that decide what is asked, and the edition of its scoring."""
    identity = {"benchmark": benchmark.name, "samples": len(benchmark), **data_fingerprints(benchmark)}
    edition = getattr(benchmark, "edition", 1)  # of its scoring; the first edition is not recorded
    return identity if edition == 1 else {**identity, "edition": edition}


def check_settings(output: Path, settings: dict[str, Any], unsaid: Mapping[str, Any] | None = None) -> None:
    """Compare a run's settings with the settings.json in its folder, if there is one.

    Args:
        unsaid: settings that an earlier edition used without recording them.

    Raises:
        InputError: settings.json is another run's or damaged; there are answers without it; or the folder is a file.
    """
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    file, answers = output / "settings.json", output / "predictions.jsonl"
    for path in (file, answers, output / "results.json"):
        check_regular(path)
    if not file.exists():
        if answers.exists() and answers.stat().st_size:
            raise InputError(
                f"{answers} holds answers, but there is no settings.json beside it: put the settings.json of their "
                "run back, choose another output, or delete the answers"
            )
        return
    written, now = _settings(file), json.loads(json.dumps(settings))
    unknown = {key: now[key] for key in PROCESSOR_MARKS if key in now}  # not recorded by earlier editions
    before = {"edition": 1, **unknown, **json.loads(json.dumps(unsaid or {})), **written}
    changed = differing_keys(compared_part(before), compared_part(now))
    if not changed:
        return
    if changed == ["generation"]:
        told = "" if "generation" in written else " by an earlier edition, which used the checkpoint's own"
        told += f" (then {_generation(before)}, now {_generation(now)})"
        raise InputError(
            f"{output} holds an evaluation with other generation settings{told}: choose another output, or see "
            "--generation"
        )
    values = {key: (before.get(key), now[key]) for key in changed}
    if "protocol" in values:  # only its name is printed, because its numbers would fill a screen
        values["protocol"] = (label(before), label(now))
    named = {"edition": "edition of the scoring rule, whose scores do not mix"}
    told = ", ".join(f"{named.get(key, key)} ({shown(a)}, now {shown(b)})" for key, (a, b) in values.items())
    hint = f", continue it with --protocol {label(before)}" if label(before) in names() and "protocol" in values else ""
    raise InputError(
        f"{output} holds an evaluation with another {told}, as its settings.json says: choose another output{hint}, "
        "or delete the folder"
    )


def marks(settings: Mapping[str, Any]) -> list[str]:
    """Checksums by which a pass of costs recognizes a run: first today's, which does not depend on how paths are
    spelled; then those of earlier editions, whose settings had neither places nor a processor."""
    own = compared_part(settings)
    same = {**own, "data": own.get("places", own.get("data")), "places": None}
    same["model"] = None if "weights" in own else own.get("model")
    older = {key: value for key, value in settings.items() if key != "places"}
    oldest = {key: value for key, value in older.items() if key not in PROCESSOR_MARKS}
    return [checksum(found) for found in (same, settings, older, oldest)]


def differing_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of `now` whose values differ in `before`. Paths are compared by the places they lead to. A model's path does
    not count if its last part is the same and `before` has a hash of the weights, which is compared instead."""
    free = {"places"} | ({"data"} if same_data(before, now) else set())
    models = [str(settings.get("model")) for settings in (before, now)]
    called = Path(models[0]).name == Path(models[1]).name and "weights" in before
    free |= {"model"} if called or real_place(models[0]) == real_place(models[1]) else set()
    return [key for key, value in now.items() if key not in free and before.get(key) != value]


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys in which the settings of two runs differ, in whichever of the two they occur."""
    both = compared_part(one), compared_part(other)
    return list(dict.fromkeys((*differing_keys(*both), *differing_keys(*both[::-1]))))


def same_data(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs' settings belong to the same data."""
    return one.get("data") == other.get("data") or ("places" in one and one["places"] == other.get("places"))


def _generation(settings: Mapping[str, Any]) -> str:
    said = settings.get("generation")
    return beside_greedy(said if isinstance(said, dict) else {}) or "greedy"


def _settings(file: Path) -> dict[str, Any]:
    remedy = "put it back, or choose another output"
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({first_line(error)}): {remedy}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} does not hold the settings of an evaluation: {remedy}")
    return found
