"""What a benchmark is: the three things that every class must have, and what it may have beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ppe_npu.errors import InputError

MODALITIES = ("image", "video", "text")
VISUALS = ("image", "image_path", "video_path")


class Benchmark(Protocol):
    """What the runner needs of a benchmark: modality, __len__ and __getitem__. A minimal one is

        class Mine:
            modality = "image"
            def __len__(self): return 1
            def __getitem__(self, number):
                return {"index": number, "prompt": "What is it?", "GT": "a cat", "image_path": "cat.png"}

    It may have more, which is used where it is there:

    Attributes:
        modality: "image", "video" or "text".
        name: as reports show it; without it the name by which it was loaded.
        max_new_tokens: int, the official length of an answer.
        headline: name of the corpus metric that reports call the score; None or not there: the mean of score().
        maximum: the best value of metrics() (1.0: shares, shown in percent); without it they are shown as they are.
        factor, decimals: metrics() are shown times factor (100 without it), with so many decimals (1).

    Methods:
        score(answer, sample) -> float in [0, 1], or None where only a corpus metric exists. Without the method an
            answer is scored by exact match.
        metrics(rows) -> {name: float}, corpus metrics. A row holds index, type, prompt, GT, answer and score of one
            sample, as it stands in the file of predictions; rows come in any order. A failed sample's row has an
            empty answer, a score of 0.0 and its "error".
        unit(row) -> what is drawn when metrics() are resampled for an interval: rows of one unit come together; one
            that is drawn again has another row["copy"]. Without it they have no interval.
        addends(rows) -> {unit: numbers} and from_sums(sums [..., numbers]) -> [...]: the headline from the numbers'
            sums over units. Resamples are then sums of what is computed once; without them metrics() is called a
            thousand times, of which those of 30 seconds count.
    """

    modality: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample.

        index: str or int, unique; prompt: str; GT: str or list of str; type: str, the subset or category (optional);
        and what is looked at: image (a Pillow picture, or whatever ppe_npu.data.pictures.load_image takes, or a list),
        image_path (path or list), video_path (path of a file or of a folder of frames, or list), or none for a
        question in text alone. Where the prompt holds <image> or <video>, one for each, the visuals stand there; else
        before the prompt. sampling: a VideoSampling (ppe_npu.data.sampling) for this sample (optional: clip bounds, a
        frame rule).
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
    """check_sample of index, prompt and GT alone, for which no picture is read."""
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
