"""What makes a run the same run: short hashes of data and weights, and the comparison with an earlier run's; and what
stands for a sample that a benchmark's own code does not give."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError, first_line


class Unreadable(dict):
    """Stands for a sample whose row cannot be read: {"index", "prompt": "", "error"}."""


def read_sample(benchmark: Any, number: int, key: int | str | None = None) -> Any:
    """benchmark[number], or an Unreadable if that raises or has no index or prompt.

    Args:
        key: the index that the row is known by; a sample with another one is Unreadable under this one. None: not known
            yet; an Unreadable is then called "row <number>".
    """
    known = f"row {number}" if key is None else key
    try:
        sample = benchmark[number]
        index, _ = sample["index"], sample["prompt"]
    except Exception as error:  # a benchmark's own code: its other samples are still to be asked
        return Unreadable(index=known, prompt="", error=f"{type(error).__name__}: {first_line(error)}")
    if key is not None and index != key:
        return Unreadable(index=key, prompt="", error=f"row {number} now has the index {index!r}")
    return sample


def data_fingerprint(benchmark: Any) -> str:
    """A short hash of every sample's question, answer and files (their paths and sizes): other data, other benchmark.

    Raises:
        InputError: no sample can be read, two have one index, or an index is neither a text nor a whole number.
    """
    digest, seen, unreadable = hashlib.sha256(), {}, []
    for number in range(len(benchmark)):
        sample = read_sample(benchmark, number)
        unreadable += [sample["error"]] if isinstance(sample, Unreadable) else []
        index = sample["index"]
        if not isinstance(index, (str, int)):
            raise InputError(f"benchmark {benchmark.name}: the index of sample {number} is {index!r}: use a str or int")
        if index in seen:
            raise InputError(
                f"benchmark {benchmark.name}: samples {seen[index]} and {number} have the index {index!r}: every "
                "sample needs its own"
            )
        seen[index] = number
        keys = ("index", "prompt", "GT", "type", "image_path", "video_path", "sampling")
        text = [str(sample.get(key)) for key in keys]
        digest.update("\0".join([*text, *_sizes(sample)]).encode())
    if unreadable and len(unreadable) == len(seen):
        raise InputError(f"benchmark {benchmark.name}: no sample can be read ({unreadable[0]}): mend its __getitem__")
    return digest.hexdigest()[:16]


def _sizes(sample: Any) -> list[str]:
    """Bytes of a sample's files, and width and height of its pictures in memory."""
    sizes = []
    for key in ("image_path", "video_path", "image"):
        try:
            value = sample.get(key)
        except Exception as error:  # an image that cannot be decoded: answering will say so
            value, sizes = None, [*sizes, type(error).__name__]
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (str, Path)):
                sizes += [str(os.path.getsize(item))] if os.path.isfile(item) else []
            elif item is not None:
                sizes.append(str(getattr(item, "shape", getattr(item, "size", ""))))
    return sizes


def processor_identity(processor: Any) -> dict[str, Any]:
    """What of a processor decides what the model sees."""
    template = hashlib.sha256(str(processor.chat_template).encode()).hexdigest()[:16]
    return {"image_size": dict(processor.image_processor.size), "chat_template": template}


def benchmark_identity(benchmark: Any) -> dict[str, Any]:
    """What of a benchmark decides what is asked."""
    return {"benchmark": benchmark.name, "samples": len(benchmark), "data": data_fingerprint(benchmark)}


def check_settings(output: Path, settings: dict[str, Any]) -> None:
    """Compare with the settings.json of an earlier run in the folder, if there is one.

    Raises:
        InputError: it is another run's, or the folder is a file.
    """
    file = output / "settings.json"
    if output.is_file():
        raise InputError(f"output {output} is a file: name a folder")
    if file.is_file():
        before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(
                f"{output} holds an evaluation with another {', '.join(changed)}: choose another output, or delete it"
            )
