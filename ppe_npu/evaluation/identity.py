"""What makes a run the same run: short hashes of data and weights, and the comparison with an earlier run's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ppe_npu.errors import InputError


def data_fingerprint(benchmark: Any) -> str:
    """A short hash of every sample's question, answer and files (their paths and sizes): other data, other benchmark.

    Raises:
        InputError: two samples have one index, or an index is neither a text nor a whole number.
    """
    digest, seen = hashlib.sha256(), {}
    for number in range(len(benchmark)):
        sample = benchmark[number]
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
    return digest.hexdigest()[:16]


def _sizes(sample: Any) -> list[str]:
    """Bytes of a sample's files, and width and height of its pictures in memory."""
    sizes = []
    for key in ("image_path", "video_path", "image"):
        value = sample.get(key)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, (str, Path)):
                sizes += [str(os.path.getsize(item))] if os.path.isfile(item) else []
            elif item is not None:
                sizes.append(str(getattr(item, "size", "")))
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
