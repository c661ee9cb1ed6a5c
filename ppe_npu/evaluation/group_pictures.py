"""Pictures of what a method made of a sample's tokens, drawn beside the results of a benchmark, for the HTML report."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppe_npu.evaluation.identity import Unreadable, read_sample
from ppe_npu.evaluation.rows import FAULTS, read_scores
from ppe_npu.evaluation.samples import visuals
from ppe_npu.files import write_bytes, write_text

FOLDER = "groups"  # in the folder of a benchmark
_SIDE = 512
_DIFFERING = 16  # samples on which methods differ that are drawn


def differing(
    benchmark: Any, runs: Sequence[Path], known: Sequence[Mapping[str, Any]], most: int = _DIFFERING
) -> list[Mapping[str, Any]]:
    """Samples whose scores differ between runs, evenly over all such; those of one picture alone.

    Args:
        runs: folders with predictions.jsonl. known: samples that are drawn anyhow.
    """
    scores = [read_scores(run / "predictions.jsonl") for run in runs]
    drawn_anyhow = {sample["index"] for sample in known}
    told = {index for own in scores for index in own if len({one.get(index) for one in scores}) > 1} - drawn_anyhow
    every = range(len(benchmark)) if told else range(0)
    numbers = [number for number in every if read_sample(benchmark, number)["index"] in told]
    bounds = [part * len(numbers) // most for part in range(most + 1)]
    parts = (numbers[start:end] for start, end in itertools.pairwise(bounds))
    found = (next(filter(_has_one_picture, (read_sample(benchmark, n) for n in part)), None) for part in parts)
    return [sample for sample in found if sample is not None]  # no other is kept: they may be more than memory holds


def _has_one_picture(sample: Mapping[str, Any]) -> bool:
    if isinstance(sample, Unreadable):
        return False
    try:
        shown = visuals(sample)
    except FAULTS:  # a path that is none, or a picture that a user's own code does not give; its answer says so
        return False
    return len(shown["image"]) == 1 and not shown["video"]


def draw(folder: Path, name: str, answers: Any, samples: Sequence[Mapping[str, Any]]) -> int:
    """Draw the groups of samples of one picture each; how many were drawn. The model is answered with once for each.

    Args:
        folder: of the benchmark. name: of the method; "" draws the picture itself.
        answers: ModelAnswers of the compressed model.
    """
    from PIL import Image

    from ppe_npu.data.pictures import load_image
    from ppe_npu.inspect.show import draw_groups

    count = 0
    for sample in samples:
        if not _has_one_picture(sample):
            continue
        try:
            picture = load_image(visuals(sample)["image"][0])
            if name:
                groups = _groups(answers, sample)
                if groups is None:
                    continue
                picture = draw_groups(picture, groups, side=_SIDE)
        except FAULTS:  # a picture that cannot be drawn takes nothing from the numbers
            continue
        picture = picture.convert("RGB")
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        drawn = io.BytesIO()
        picture.save(drawn, "JPEG", quality=85)
        write_bytes(_path(folder, name, sample["index"]), drawn.getvalue())
        count += 1
    return count


def _groups(answers: Any, sample: Mapping[str, Any]) -> Any:
    """The groups of the last stage; None where nothing was compressed."""
    compression = getattr(answers.model, "compression", None)
    if compression is None or answers.config.is_dense:
        return None
    compression.keep_groups = True
    try:
        answers.answer(answers.prepare([sample]))
        found = compression.trace.visuals()
    finally:
        compression.keep_groups = False
    return found[0].stages[-1] if found and found[0].stages else None


def drawn(folder: Path, index: str) -> dict[str, Path]:
    """{name of a method, "" for the picture itself: file} of a sample."""
    stem, names = _stem(index), folder / FOLDER / "names.txt"
    if not names.is_file():
        return {}
    listed = names.read_text(encoding="utf-8").splitlines()
    paths = {name: _path(folder, name, index) for name in ("", *listed)}
    return {name: path for name, path in paths.items() if path.is_file() and path.stem == stem}


def list_names(folder: Path, names: Sequence[str]) -> None:
    """Write down which methods were drawn."""
    write_text(folder / FOLDER / "names.txt", "".join(f"{name}\n" for name in names))


def _path(folder: Path, name: str, index: Any) -> Path:
    own = re.sub(r"[^\w.]+", "-", name) or "picture"
    return folder / FOLDER / own / f"{_stem(index)}.jpg"


def _stem(index: Any) -> str:
    """A sample's index may be any text; its file has a name of letters."""
    return hashlib.sha256(str(index).encode("utf-8", "replace")).hexdigest()[:16]
