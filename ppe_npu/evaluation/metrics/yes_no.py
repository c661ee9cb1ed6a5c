"""Yes/no benchmarks: MME's label, accuracy and accuracy+; POPE's label, precision, recall and F1."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from ppe_npu.evaluation.metrics.vqa import LONE_FULL_STOP, normalise_punctuation

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_label(answer: str) -> str:
    """ "yes", "no" or "other", according to the whole answer (y and n count, too) or to its first four characters.

    Source: lmms-eval tasks/mme. The rule of MME's own script is mme_label_published().
    """
    answer = answer.lower().strip().replace(".", "")
    if answer in ("yes", "no"):
        return answer
    if len(answer) == 1:
        return {"y": "yes", "n": "no"}.get(answer, "other")
    return next((label for label in ("yes", "no") if label in answer[:4]), "other")


def mme_label_published(answer: str) -> str:
    """ "yes", "no" or "other": the label that the first four characters contain; a single letter is "other".

    Source: MME's eval_tool/calculation.py (Fu et al. 2023, arXiv 2306.13394).
    """
    answer = answer.lower()
    return answer if answer in ("yes", "no") else next((k for k in ("yes", "no") if k in answer[:4]), "other")


def word_label(answer: str) -> str:
    """ "yes" or "no" if just one of them is among the words; else "unknown".

    Source: VLMEvalKit vlmeval/dataset/utils/yorn.py YOrN_Extraction, which scores MME, POPE and HallusionBench
    without a judge.
    """
    words = normalise_punctuation(answer.lower(), full_stop=LONE_FULL_STOP).split()
    named = [label for label in ("yes", "no") if label in words]
    return named[0] if len(named) == 1 else "unknown"


def mme_scores(answers: Iterable[tuple[str, Hashable, float]]) -> dict[str, float]:
    """(task, picture, 1.0 if right) of every question -> {task: 100 * (acc + acc+)} with "perception", "cognition" and
    "total".

    acc is the fraction of right answers, acc+ the fraction of pictures whose questions are all answered right (arXiv
    2306.13394, section 2.2). A task's score is at most 200; "perception" sums ten tasks (at most 2000), "cognition"
    four (800), "total" both.
    """
    tasks: dict[str, dict[Hashable, list[float]]] = {}
    for task, picture, right in answers:
        tasks.setdefault(task, {}).setdefault(picture, []).append(right)
    scores = {}
    for task, pictures in tasks.items():
        every = [right for rights in pictures.values() for right in rights]
        both = [all(rights) for rights in pictures.values()]
        scores[task] = 100.0 * (sum(every) / len(every) + sum(both) / len(both))
    perception = sum(scores.get(task, 0.0) for task in PERCEPTION)
    cognition = sum(scores.get(task, 0.0) for task in COGNITION)
    return {**scores, "perception": perception, "cognition": cognition, "total": perception + cognition}


def pope_label(answer: str) -> str:
    """ "no" if the first sentence contains No, no or not as a word; else "yes", whatever the answer is.

    Source: AoiDragon/POPE evaluate.py (Li et al. 2023, arXiv 2305.10355).
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_scores(labels: Iterable[tuple[str, str]], as_lmms_eval: bool = False) -> dict[str, float]:
    """(said, true) labels -> accuracy, precision, recall, F1 and yes_ratio, the fraction of "yes" among the answers.

    "yes" is the positive class; a quotient with denominator 0 is 0.0.

    Args:
        as_lmms_eval: whether recall counts only the questions of pope_recalled(), and yes_ratio is the fraction among
            the true labels (lmms-eval 0.7.3 tasks/pope/utils.py).
    """
    pairs = list(labels)
    hits = sum(said == true == "yes" for said, true in pairs)
    said_yes, are_yes = sum(said == "yes" for said, _ in pairs), sum(true == "yes" for _, true in pairs)
    recalled = sum(pope_recalled(said, true, as_lmms_eval) for said, true in pairs)
    precision, recall = _share(hits, said_yes), _share(hits, recalled)
    return {
        "accuracy": _share(sum(said == true for said, true in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(are_yes if as_lmms_eval else said_yes, len(pairs)),
    }


def pope_recalled(said: str, true: str, as_lmms_eval: bool = False) -> bool:
    """Whether recall counts this question: its true label must be "yes" and, for lmms-eval, the answer exactly "yes" or
    "no". A failed sample ("failed") is counted by both, as a miss."""
    return true == "yes" and (not as_lmms_eval or said in ("yes", "no", "failed"))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mean_by(rows: Iterable[Mapping[str, Any]], key: Any) -> dict[str, float]:
    """{key(row): mean score of its rows}, in order of first appearance; a row whose score is None counts as 0."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row["score"] or 0.0)
    return {name: sum(scores) / len(scores) for name, scores in groups.items()}
