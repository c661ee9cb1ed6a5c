"""Pictures of what a method made of a sample's tokens, drawn beside the results of a benchmark, for the HTML report: of
a picture, of several, or of the frames of a video."""

from __future__ import annotations

import copy
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ppe_npu.evaluation.identity import Unreadable, read_sample
from ppe_npu.evaluation.rows import FAULTS, read_scores
from ppe_npu.evaluation.samples import sampling_of, visuals
from ppe_npu.files import write_bytes, write_text

if TYPE_CHECKING:
    import torch

    from ppe_npu.inspect.trace import Groups

FOLDER = "groups"  # in the folder of a benchmark
_SIDE = 512
_DIFFERING = 16  # samples on which methods differ that are drawn
_PANELS, _COLUMNS = 8, 2  # of a strip: several pictures, or steps of a video

# Which picture or video of the sample, which temporal step of it, and what is seen there.
Panel = tuple[int, int, Image.Image]


def differing(
    benchmark: Any, runs: Sequence[Path], known: Sequence[Mapping[str, Any]], most: int = _DIFFERING
) -> list[Mapping[str, Any]]:
    """Samples whose scores differ between runs, evenly over all such; those that can be drawn. Each is read once.

    Args:
        runs: folders with predictions.jsonl. known: samples that are drawn anyhow.
    """
    scores = [read_scores(run / "predictions.jsonl") for run in runs]
    drawn_anyhow = {sample["index"] for sample in known}
    told = {index for own in scores for index in own if len({one.get(index) for one in scores}) > 1} - drawn_anyhow
    found: dict[int, Mapping[str, Any]] = {}  # by part; no other is kept: they may be more than memory holds
    for place, sample in enumerate(_those(benchmark, told)):
        part = place * most // len(told)
        if part not in found and _has_panels(sample):
            found[part] = sample
    return list(found.values())


def _those(benchmark: Any, told: set[Any]) -> Iterator[Mapping[str, Any]]:
    """The samples of these indices, in the benchmark's order."""
    for number in range(len(benchmark)) if told else ():
        sample = read_sample(benchmark, number)
        if sample["index"] in told:
            yield sample


def _has_panels(sample: Mapping[str, Any]) -> bool:
    if isinstance(sample, Unreadable):
        return False
    try:
        shown = visuals(sample)
    except FAULTS:  # a path that is none, or a picture that a user's own code does not give; its answer says so
        return False
    return len(shown["video"]) == 1 if shown["video"] else bool(shown["image"])


def draw(
    folder: Path,
    name: str,
    answers: Any,
    samples: Sequence[Mapping[str, Any]],
    seen: MutableMapping[Any, list[Panel]] | None = None,
) -> int:
    """Draw the groups of samples that show something; how many were drawn. The model is given each once.

    Args:
        folder: of the benchmark. name: of the method; "" draws what is shown itself.
        answers: ModelAnswers of the compressed model.
        seen: what earlier calls have read of the samples; more is added.
    """
    count, seen = 0, {} if seen is None else seen
    for sample in samples:
        if not _has_panels(sample):
            continue
        try:
            if sample["index"] not in seen:
                seen[sample["index"]] = list(_panels(sample, answers))
            groups = _groups(answers, sample) if name else None
            if name and groups is None:
                continue
            picture = _drawing(seen[sample["index"]], groups)
        except FAULTS:  # a picture that cannot be drawn takes nothing from the numbers
            continue
        drawn = io.BytesIO()
        picture.save(drawn, "JPEG", quality=85)
        write_bytes(_path(folder, name, sample["index"]), drawn.getvalue())
        count += 1
    return count


def _panels(sample: Mapping[str, Any], answers: Any) -> Iterator[Panel]:
    """What a sample shows, at most _PANELS parts of it, evenly over all."""
    from ppe_npu.data.pictures import load_image
    from ppe_npu.data.videos import VideoFrame, load_video

    shown = visuals(sample)
    if not shown["video"]:
        pictures = shown["image"]
        for number in _evenly(len(pictures)):
            given = pictures[number]
            picture = given.load() if isinstance(given, VideoFrame) else load_image(given)
            yield number, 0, ImageOps.contain(picture, (_SIDE, _SIDE)) if max(picture.size) > _SIDE else picture
        return
    joined = answers.processor.video_processor.temporal_patch_size
    video = load_video(shown["video"][0], sampling_of(sample, answers.sampling), joined, _small)
    frames = video.frames[::joined].permute(0, 2, 3, 1)
    for step in _evenly(len(frames)):
        yield 0, step, Image.fromarray(frames[step].numpy())


def _evenly(count: int) -> list[int]:
    """At most _PANELS of so many numbers, the first and the last among them."""
    few = min(count, _PANELS)
    return [number * (count - 1) // max(few - 1, 1) for number in range(few)]


def _small(frames: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Makes a frame [3, H, W] as large as it is shown: all of a video's are held until some are chosen."""
    from torch.nn.functional import interpolate

    share = min(_SIDE / _COLUMNS / max(height, width), 1.0)
    size = (max(round(height * share), 1), max(round(width * share), 1))
    return lambda frame: interpolate(frame[None].float(), size, mode="bilinear", antialias=True)[0].round().byte()


def _drawing(panels: Sequence[Panel], groups: Sequence[Groups] | None) -> Image.Image:
    """What is seen, with its groups if there are some."""
    from ppe_npu.inspect.show import draw_shaded, side_by_side

    side, pictures = _SIDE if len(panels) == 1 else _SIDE // _COLUMNS, []
    for number, step, picture in panels:
        shown = picture if groups is None else draw_shaded(picture, groups[number], step, side)
        shown = shown.convert("RGB")
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        pictures.append(shown)
    return side_by_side(pictures, _COLUMNS)


def _groups(answers: Any, sample: Mapping[str, Any]) -> list[Groups] | None:
    """Of each picture or video the groups of the last stage; None where nothing was compressed."""
    compression = getattr(answers.model, "compression", None)
    if compression is None or answers.config.is_dense:
        return None
    short = copy.copy(answers)
    short.max_new_tokens = 1  # the groups are there before the first
    compression.keep_groups = True
    try:
        short.answer(short.prepare([sample]))
        found = compression.trace.visuals()
    finally:
        compression.keep_groups = False
    return [one.stages[-1] for one in found] if found and all(one.stages for one in found) else None


def drawn(folder: Path, index: str) -> dict[str, Path]:
    """{name of a method, "" for the picture itself: file} of a sample."""
    stem, names = _stem(index), folder / FOLDER / "names.txt"
    if not names.is_file():
        return {}
    listed = names.read_text(encoding="utf-8", errors="replace").splitlines()
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
