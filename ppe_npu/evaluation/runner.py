"""evaluate(): a model's answers to a benchmark, and their cost; killed at any point, it goes on where it was.

In the output folder: settings.json (what is evaluated), predictions.jsonl (one line a sample, as they come) and
results.json (written when all samples are there).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ppe_npu.backends import device as devices
from ppe_npu.errors import InputError
from ppe_npu.evaluation.benchmarks import Benchmark
from ppe_npu.evaluation.generation import Generated, generate
from ppe_npu.evaluation.metrics import by_type, summary
from ppe_npu.files import write_json, write_text
from ppe_npu.fingerprint import fingerprint
from ppe_npu.inputs import PixelCache, VideoSampling, build_inputs

_PER_SAMPLE = ("tokens_before", "tokens_after", "new_tokens")
_PER_BATCH = ("prefill_seconds", "seconds", "kv_bytes")


def evaluate(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    output: str | Path,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    sampling: VideoSampling | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Answer every sample once (greedy), score the answers and write the results.

    Args:
        model: on its device, compressed or not.
        processor: the model's.
        benchmark: what is asked.
        output: folder of this run; one that holds a part of the same run is completed.
        batch_size: prompts per generate().
        max_new_tokens: at most so many tokens an answer.
        sampling: which frames of videos.
        name: how reports call this run; None: from its compression.

    Returns:
        {"name", "accuracy" {accuracy, count, low, high}, "types" {type: the same}, "costs" {mean per sample of
        tokens_before, tokens_after, prefill_seconds, seconds, kv_bytes, new_tokens, and retention}, "errors",
        "settings", "versions"}. A batch's seconds and bytes are shared evenly by its samples.

    Raises:
        InputError: the folder holds another run, or the batch size is not positive.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise InputError(f"batch_size={batch_size} and max_new_tokens={max_new_tokens} must be at least 1")
    from tqdm import tqdm

    output = Path(output)
    settings = _settings(model, processor, benchmark, max_new_tokens, sampling)
    _check_settings(output, settings)
    file = output / "predictions.jsonl"
    _drop_failed(file)
    done = {row["index"] for row in _whole_lines(file)}
    todo = [number for number in range(len(benchmark)) if benchmark[number]["index"] not in done]
    model.eval()
    cache = PixelCache()
    title = name or _title(settings["compression"])
    with open(file, "a", encoding="utf-8") as lines, tqdm(total=len(benchmark), initial=len(done), desc=title) as bar:
        for start in range(0, len(todo), batch_size):
            samples = [benchmark[number] for number in todo[start : start + batch_size]]
            for row in _answer(model, processor, benchmark, samples, max_new_tokens, sampling, cache):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            bar.update(len(samples))
    results = {
        "name": title,
        **_summarise(list(_whole_lines(file))),
        "settings": settings,
        "versions": _versions(model),
    }
    write_json(output / "results.json", results)
    return results


def _answer(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    samples: Sequence[dict[str, Any]],
    max_new_tokens: int,
    sampling: VideoSampling | None,
    cache: PixelCache,
) -> list[dict[str, Any]]:
    """Prediction rows of a batch. One that fails is asked again one by one; a sample that fails alone is recorded."""
    try:
        inputs = build_inputs(processor, [_conversation(sample) for sample in samples], sampling=sampling, cache=cache)
        done = generate(model, processor, inputs, max_new_tokens)
    except Exception as error:  # whatever it is, the other samples are still to be answered
        if len(samples) > 1:
            alone = [_answer(model, processor, benchmark, [s], max_new_tokens, sampling, cache) for s in samples]
            return [row for rows in alone for row in rows]
        reason = (str(error).splitlines() or [""])[0]
        return [{**_row(samples[0]), "score": 0.0, "error": f"{type(error).__name__}: {reason}"}]
    return [_prediction(benchmark, sample, done, number) for number, sample in enumerate(samples)]


def _prediction(benchmark: Benchmark, sample: dict[str, Any], done: Generated, number: int) -> dict[str, Any]:
    """The line of one sample of a batch; what only the batch knows is shared evenly."""
    answer, batch = done.answers[number], len(done.answers)
    own = {key: getattr(done, key)[number] for key in _PER_SAMPLE}
    shared = {key: getattr(done, key) / batch for key in _PER_BATCH}
    return {**_row(sample), "answer": answer, "score": float(benchmark.score(answer, sample)), **own, **shared}


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: sample.get(key) for key in ("index", "type", "prompt", "GT")}


def _conversation(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """A sample as one user turn: its visuals, then its prompt."""
    keys = (("image", "image"), ("image_path", "image"), ("video_path", "video"))
    visuals = [
        {"type": kind, kind: value}
        for key, kind in keys
        if sample.get(key) is not None
        for value in (sample[key] if isinstance(sample[key], (list, tuple)) else [sample[key]])
    ]
    return [{"role": "user", "content": [*visuals, {"type": "text", "text": sample["prompt"]}]}]


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of predictions.jsonl; a last line that a kill cut off is taken away, its sample is asked again."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    for line in whole.splitlines():
        yield json.loads(line)


def _drop_failed(file: Path) -> None:
    """Take the rows of failed samples away: a run that goes on asks them again."""
    rows = list(_whole_lines(file))
    kept = [row for row in rows if "error" not in row]
    if len(kept) < len(rows):
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write settings.json, or compare with the one that is there."""
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
    write_json(file, settings)


def _settings(
    model: Any, processor: Any, benchmark: Benchmark, max_new_tokens: int, sampling: VideoSampling | None
) -> dict[str, Any]:
    """All that decides the answers."""
    from dataclasses import asdict

    compression = getattr(model, "compression", None)
    return {
        "benchmark": benchmark.name,
        "samples": len(benchmark),
        "data": data_fingerprint(benchmark),
        "image_size": dict(processor.image_processor.size),
        "chat_template": hashlib.sha256(str(processor.chat_template).encode()).hexdigest()[:16],
        "model": str(getattr(model.config, "_name_or_path", "")),
        "weights": fingerprint(model),
        "compression": None if compression is None else compression.config.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_new_tokens": max_new_tokens,
        "video": asdict(sampling or VideoSampling()),
    }


def data_fingerprint(benchmark: Benchmark) -> str:
    """A short hash of every sample's question, answer and file (its path and size): other data is another benchmark."""
    digest = hashlib.sha256()
    for number in range(len(benchmark)):
        sample = benchmark[number]
        text = [str(sample.get(key)) for key in ("index", "prompt", "GT", "type", "image_path", "video_path")]
        files = [sample[key] for key in ("image_path", "video_path") if isinstance(sample.get(key), (str, Path))]
        sizes = [str(os.path.getsize(file)) for file in files if os.path.isfile(file)]
        digest.update("\0".join([*text, *sizes]).encode())
    return digest.hexdigest()[:16]


def _title(compression: dict[str, Any] | None) -> str:
    if compression is None or compression["method"] == "none":
        return "dense"
    k = f" k={compression['k']}" if compression["k"] > 1 else ""
    name = "chatunivi" if compression["positions"] == "renumber" else compression["positions"]
    layers = f" in layers {compression['layers']}" if compression["layers"] else ""
    events = f" events {compression['temporal_ratio']}" if compression["temporal_ratio"] else ""
    return f"{name}{k} {compression['ratio']}{layers}{events}"


def _summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Prediction rows -> accuracy, per type too, mean costs, and how many failed."""
    answered = [row for row in rows if "error" not in row]
    costs = {key: sum(row[key] for row in answered) / max(len(answered), 1) for key in _PER_SAMPLE + _PER_BATCH}
    costs["retention"] = costs["tokens_after"] / costs["tokens_before"] if costs["tokens_before"] else 1.0
    return {
        "accuracy": summary([row["score"] for row in rows]),
        "types": by_type((str(row["type"]), row["score"]) for row in rows),
        "costs": costs,
        "errors": len(rows) - len(answered),
    }


def _versions(model: Any) -> dict[str, str]:
    import transformers

    from ppe_npu import __version__

    versions = {"ppe_npu": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "python": platform.python_version(), "device": devices.describe(model.device)["name"]}
