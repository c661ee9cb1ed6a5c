"""The interface of a benchmark: three members that every class must have, and others that are optional."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ppe_npu.errors import InputError
from ppe_npu.evaluation.rows import FAULTS

MODALITIES = ("image", "video", "text")
VISUALS = ("image", "image_path", "video_path")
_KEYS = ("index", "prompt", "GT", "type", "sampling", *VISUALS)
_SHOWN = {
    "image": ("picture", "image or image_path"),
    "video": ("video", "video_path"),
}  # and its keys


class Benchmark(Protocol):
    """The members of a benchmark that the runner needs: modality, __len__ and __getitem__. A minimal one is

        class Mine:
            modality = "image"
            def __len__(self): return 1
            def __getitem__(self, number):
                return {"index": number, "prompt": "What is it?", "GT": "a cat", "image_path": "cat.png"}

    Its constructor takes nothing or the data root. All attributes but modality, and all of these methods, are optional:

    Attributes:
        modality: "image", "video" or "text".
        name: the name in reports; by default the name under which the benchmark was loaded.
        max_new_tokens: int, the official length of an answer.
        headline: name of the corpus metric that reports call the score; None (the default): the mean of score().
        maximum: the best value of metrics(); with 1.0 they are shown in percent, without a maximum they are shown raw.
        factor, decimals: metrics() are shown times factor (default 100), with this many decimals (default 1).

    Methods:
        score(answer, sample) -> float in [0, 1], or None if only a corpus metric exists. Without the method an
            answer is scored by exact match. After a change of the benchmark's code stored answers are scored anew.
        metrics(rows) -> {name: float}, corpus metrics. A row holds index, type, prompt, GT, answer and score of one
            sample, as written in predictions.jsonl; rows come in any order. A failed sample's row has a score of 0.0
            and its "error", and an empty answer unless score() failed.
        unit(row) -> the unit of resampling that a row belongs to: the bootstrap that gives metrics() an interval draws
            all rows of a unit together, and each repetition of a unit has its own row["copy"]. Without the method
            metrics have no interval.
        addends(rows) -> {unit: numbers} and from_sums(sums [..., numbers]) -> [...]: the headline computed from sums of
            the numbers over units, so that a resample only sums numbers that are computed once. Without the two,
            metrics() is called on up to a thousand resamples, for at most 30 seconds.
    """

    modality: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample, as a dict.

        index: str or int, unique; prompt: str; GT: str or list of str; type: str, the subset or category (optional);
        and at most one kind of visual: image (a Pillow picture, or anything else that
        ppe_npu.data.pictures.load_image takes, or a list), image_path (path or list), video_path (path of a file or
        of a folder of frames, or list). A question in text alone has none, but not every sample of modality "image"
        or "video" may be one. If the prompt holds one <image> or <video> for each visual, the visuals replace them;
        else they precede the prompt. sampling: a VideoSampling (ppe_npu.data.sampling) for this sample, with clip
        bounds or a rule for frames (optional).
        """


def check_sample(sample: Any, where: str) -> None:
    """Raise InputError, naming `where`, unless sample has the form that Benchmark.__getitem__ promises."""
    if not isinstance(sample, Mapping):
        raise InputError(f"{where} is a {type(sample).__name__}: return a dict with index, prompt and GT")
    check_question(sample, where)
    given = [key for key in VISUALS if sample.get(key) is not None]
    if len(given) > 1:
        raise InputError(f"{where} has {' and '.join(given)}: give one of {', '.join(VISUALS)}")


def check_question(sample: Mapping[str, Any], where: str) -> None:
    """check_sample() for index, prompt and GT alone, which reads no picture."""
    lacking = [key for key in ("index", "prompt", "GT") if sample.get(key) is None]
    if lacking:
        raise InputError(f"{where} has no {', '.join(lacking)}: a sample needs index, prompt and GT")
    if not isinstance(sample["index"], (str, int)):
        raise InputError(f"{where} has an index of type {type(sample['index']).__name__}: use a str or an int")
    if not isinstance(sample["prompt"], str):
        raise InputError(f"{where} has a prompt of type {type(sample['prompt']).__name__}: use a str")
    truth = sample["GT"]
    if not isinstance(truth, str) and not (isinstance(truth, (list, tuple)) and all(isinstance(t, str) for t in truth)):
        raise InputError(f"{where} has a GT of type {type(truth).__name__}: use a str or a list of str")


def shows(sample: Mapping[str, Any]) -> bool:
    """Whether a sample has a visual; one that cannot be read counts, because answering the sample reports the error."""
    try:
        return any(sample.get(key) is not None for key in VISUALS)
    except FAULTS:
        return True


def check_spelling(sample: Mapping[str, Any], modality: str, where: str) -> None:
    """Raise InputError, naming `where`, if a sample of pictures or videos shows none, but has one under another key.

    A question in text alone is legal, so only a picture in memory or the path of a picture or video counts.
    """
    if modality not in _SHOWN or shows(sample):
        return
    if any(_is_visual(sample[key]) for key in sample if key not in _KEYS):
        what, asked = _SHOWN[modality]
        keys = ", ".join(map(str, sample))
        raise InputError(f"{where} has modality {modality} and no {what} (its keys: {keys}): give {asked}")


def check_shown(name: str, modality: str, keys: Iterable[str]) -> None:
    """Raise InputError if a benchmark, none of whose samples has a visual, is one of pictures or videos.

    Args:
        keys: the keys of its first sample, for the message.
    """
    if modality in _SHOWN:
        what, asked = _SHOWN[modality]
        raise InputError(
            f"benchmark {name} has modality {modality}, but none of its samples has a {what} (keys of the first: "
            f'{", ".join(map(str, keys))}): give {asked}, or set modality = "text"'
        )


def _is_visual(value: Any) -> bool:
    """Whether a value is a picture or frames in memory, the path of a picture or video, or a list of such."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(not isinstance(item, (list, tuple)) and _is_visual(item) for item in value)
    if isinstance(value, (str, Path)):
        kind = mimetypes.guess_type(str(value))[0] or ""
        return kind.startswith(("image/", "video/")) and os.path.isfile(value)
    shape = getattr(value, "shape", None)
    return hasattr(value, "getpixel") or (isinstance(shape, tuple) and len(shape) in (3, 4))
