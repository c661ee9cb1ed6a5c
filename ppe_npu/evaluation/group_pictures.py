"""Pictures of the groups into which a method put a sample's tokens, stored beside a benchmark's results for the HTML
report. A sample may have one picture, several, or the frames of a video."""

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
_DIFFERING = 16  # how many samples on which methods differ are drawn
_PANELS, _COLUMNS = 8, 2  # of a strip of several pictures or temporal steps of a video

# (number of the picture or video in the sample, its temporal step, the image there)
Panel = tuple[int, int, Image.Image]


def differing_samples(
    benchmark: Any, runs: Sequence[Path], known: Sequence[Mapping[str, Any]], most: int = _DIFFERING
) -> list[Mapping[str, Any]]:
    """At most `most` samples whose scores differ between runs and that can be drawn, evenly spread over all of them.
    Each sample is read once.

    Args:
        runs: folders with predictions.jsonl. known: samples that are drawn anyway.
    """
    scores = [read_scores(run / "predictions.jsonl") for run in runs]
    drawn_anyhow = {sample["index"] for sample in known}
    told = {index for own in scores for index in own if len({one.get(index) for one in scores}) > 1} - drawn_anyhow
    found: dict[int, Mapping[str, Any]] = {}  # one sample per part, as all of them might not fit into memory
    for place, sample in enumerate(_those(benchmark, told)):
        part = place * most // len(told)
        if part not in found and _has_panels(sample):
            found[part] = sample
    return list(found.values())


def _those(benchmark: Any, told: set[Any]) -> Iterator[Mapping[str, Any]]:
    """The samples with these indices, in the benchmark's order."""
    for number in range(len(benchmark)) if told else ():
        sample = read_sample(benchmark, number)
        if sample["index"] in told:
            yield sample


def _has_panels(sample: Mapping[str, Any]) -> bool:
    if isinstance(sample, Unreadable):
        return False
    try:
        shown = visuals(sample)
    except FAULTS:  # an invalid path, or an error of the benchmark's own code, which the sample's row reports
        return False
    return len(shown["video"]) == 1 if shown["video"] else bool(shown["image"])


def draw(
    folder: Path,
    name: str,
    answers: Any,
    samples: Sequence[Mapping[str, Any]],
    seen: MutableMapping[Any, list[Panel]] | None = None,
) -> int:
    """Draw the groups of each sample that has visuals, and return how many samples were drawn. The model runs once per
    sample.

    Args:
        folder: the benchmark's folder. name: the method's; "" draws the pictures without groups.
        answers: ModelAnswers of the compressed model.
        seen: index -> panels that earlier calls have read; those of further samples are added.
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
        except FAULTS:  # the numbers of the report do not need this picture
            continue
        drawn = io.BytesIO()
        picture.save(drawn, "JPEG", quality=85)
        write_bytes(_path(folder, name, sample["index"]), drawn.getvalue())
        count += 1
    return count


def _panels(sample: Mapping[str, Any], answers: Any) -> Iterator[Panel]:
    """A sample's pictures, or the temporal steps of its video: at most _PANELS, evenly spread."""
    from ppe_npu.data.videos import load_still, load_video

    shown = visuals(sample)
    if not shown["video"]:
        pictures = shown["image"]
        for number in _evenly(len(pictures)):
            picture = load_still(pictures[number])
            yield number, 0, ImageOps.contain(picture, (_SIDE, _SIDE)) if max(picture.size) > _SIDE else picture
        return
    joined = answers.processor.video_processor.temporal_patch_size
    video = load_video(shown["video"][0], sampling_of(sample, answers.sampling), joined, _small)
    frames = video.frames[::joined].permute(0, 2, 3, 1)
    for step in _evenly(len(frames)):
        yield 0, step, Image.fromarray(frames[step].numpy())


def _evenly(count: int) -> list[int]:
    """At most _PANELS of the numbers below `count`, evenly spread, including the first and the last."""
    few = min(count, _PANELS)
    return [number * (count - 1) // max(few - 1, 1) for number in range(few)]


def _small(frames: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that shrinks a frame [3, H, W] to the size of a panel, because all frames are in memory at first."""
    from torch.nn.functional import interpolate

    share = min(_SIDE / _COLUMNS / max(height, width), 1.0)
    size = (max(round(height * share), 1), max(round(width * share), 1))
    return lambda frame: interpolate(frame[None].float(), size, mode="bilinear", antialias=True)[0].round().byte()


def _drawing(panels: Sequence[Panel], groups: Sequence[Groups] | None) -> Image.Image:
    """The panels in one image, shaded by their groups if there are some."""
    from ppe_npu.inspect.show import draw_shaded, side_by_side

    side, pictures = _SIDE if len(panels) == 1 else _SIDE // _COLUMNS, []
    for number, step, picture in panels:
        shown = picture if groups is None else draw_shaded(picture, groups[number], step, side)
        shown = shown.convert("RGB")
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        pictures.append(shown)
    return side_by_side(pictures, _COLUMNS)


def _groups(answers: Any, sample: Mapping[str, Any]) -> list[Groups] | None:
    """The groups of the last stage for each picture or video; None if nothing was compressed."""
    compression = getattr(answers.model, "compression", None)
    if compression is None or answers.config.is_dense:
        return None
    short = copy.copy(answers)
    short.max_new_tokens = 1  # the groups are known before the first token
    compression.keep_groups = True
    try:
        short.answer(short.prepare([sample]))
        found = compression.trace.visuals()
    finally:
        compression.keep_groups = False
    return [one.stages[-1] for one in found] if found and all(one.stages for one in found) else None


def drawn(folder: Path, index: str) -> dict[str, Path]:
    """{name of a method, or "" for the picture itself: file} of the drawings of a sample."""
    stem, names = _stem(index), folder / FOLDER / "names.txt"
    if not names.is_file():
        return {}
    listed = names.read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {name: _path(folder, name, index) for name in ("", *listed)}
    return {name: path for name, path in paths.items() if path.is_file() and path.stem == stem}


def list_names(folder: Path, names: Sequence[str]) -> None:
    """Write the names of the methods that were drawn to names.txt, where drawn() finds them."""
    write_text(folder / FOLDER / "names.txt", "".join(f"{name}\n" for name in names))


def _path(folder: Path, name: str, index: Any) -> Path:
    own = re.sub(r"[^\w.]+", "-", name) or "picture"
    return folder / FOLDER / own / f"{_stem(index)}.jpg"


def _stem(index: Any) -> str:
    """File name of a sample, without its extension: a hash of the index, which may be any text."""
    return hashlib.sha256(str(index).encode("utf-8", "replace")).hexdigest()[:16]
