"""The scoring rule of a benchmark by source: "authors" (their own scripts, August 2026), "lmms-eval" (0.7.3) or
"vlmevalkit" (VLMEvalKit e8e78f0, 18 August 2026).

The three sources differ, and so do published numbers. A protocol chooses one of them (evaluation/protocols). A
benchmark that is not listed under a source is scored by its own score(), which agrees with that source on all cases
that were compared (docs/evaluation.md says how many).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from ppe_npu.evaluation.metrics import letters, lmms
from ppe_npu.evaluation.metrics.mmmu import open_is_right
from ppe_npu.evaluation.metrics.text import relaxed_accuracy, unpunctuated
from ppe_npu.evaluation.metrics.vqa import vqa_accuracy_by
from ppe_npu.evaluation.metrics.yes_no import mme_label, mme_label_published, pope_label, word_label

# Benchmarks that VLMEvalKit treats as choices among options, with one common rule.
_CHOICES = (
    *("ai2d", "mmbench", "mmmu", "mmmu_pro", "mmmu_pro_vision", "mmstar", "realworldqa", "scienceqa"),
    *("seedbench_2_plus", "seedbench_image"),
)

# (answer, reference or references, options) -> score; None where the official script draws an option at random.
OfficialRule = Callable[[str, Any, Sequence[str]], "float | None"]


def _letter(read: Callable[[str], str]) -> OfficialRule:
    """A rule without options: 1.0 if `read` finds the right letter in the answer."""
    return lambda answer, right, options: float(read(answer) == right)


def _drawn(read: Callable[[str, Sequence[str]], str]) -> OfficialRule:
    """A rule that draws a letter if `read` finds none."""

    def rule(answer: str, right: str, options: Sequence[str]) -> float | None:
        letter = read(answer, options)
        return float(letter == right) if letter else None

    return rule


def _scienceqa(answer: str, right: str, options: Sequence[str]) -> float:
    """LLaVA's rule; a letter beyond the options does not count."""
    letter = letters.scienceqa_letter(answer)
    return float(letter == right and letter in "ABCDE"[: len(options) or 5])


def _equal(answer: str, reference: str, options: Sequence[str]) -> float:
    return float(answer == reference)


def _llava_gqa(answer: str, reference: str, options: Sequence[str]) -> float:
    """LLaVA's scripts/convert_gqa_for_eval.py, followed by the comparison of the data set's eval.py."""
    return float(answer.rstrip(".").lower() == reference)


def _same_text(answer: str, reference: str, options: Sequence[str]) -> float:
    """exact_match with ignore_case and ignore_punctuation; white space counts."""
    return float(unpunctuated(answer) == unpunctuated(reference))


def _same_stripped(answer: str, reference: str, options: Sequence[str]) -> float:
    return float(answer.strip().lower() == reference.strip().lower())


def _inferred(answer: str, right: str, options: Sequence[str] | Mapping[str, str]) -> float:
    """VLMEvalKit's common rule for choices among options (ImageMCQDataset)."""
    return float(letters.mmbench_letter(answer, _lettered(options)) == right)


def _mlvu_vlmevalkit(answer: str, right: str, options: Sequence[str]) -> float:
    """MLVU's own rule, else the common one (VLMEvalKit dataset/utils/mlvu.py, check_ans_with_model)."""
    return float(letters.mlvu_letter(answer) == right) or _inferred(answer, right, options)


def _mvbench_vlmevalkit(answer: str, right: str, options: Sequence[str]) -> float:
    """Whether the first word, without full stops, is a part of "(b)" (for letter B) or contains it, where a line break
    does not end a word; else the common rule (VLMEvalKit dataset/utils/mvbench.py, check_ans_with_model). By this rule
    an empty answer is right."""
    word, named = answer.lower().strip().split(" ")[0], f"({right.lower()})"
    return float(word.replace(".", "") in named or named in word) or _inferred(answer, right, options)


def _inferred_open(answer: str, truth: str, options: Sequence[str]) -> float:
    """VLMEvalKit's rule for MMMU's open questions (multiple_choice.py, MMMU_preproc): option A is the reference as
    written, and B is "Other Answers"; A is right, unless the reference is a letter, which is then the right one."""
    right = truth if len(truth) == 1 and truth in ascii_uppercase else "A"
    return float(letters.mmbench_letter(answer, {"A": truth, "B": "Other Answers"}) == right)


def _lettered(options: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    return options if isinstance(options, Mapping) else dict(zip(ascii_uppercase, options))


def _yes_no(label: Callable[[str], str]) -> OfficialRule:
    return lambda answer, right, options: float(label(answer) == right.strip().lower())


RULES: dict[tuple[str, str], OfficialRule] = {
    ("activitynetqa", "authors"): _equal,
    ("ai2d", "lmms-eval"): _letter(letters.ai2d_letter),
    ("chartqa", "vlmevalkit"): lambda answer, truth, options: relaxed_accuracy(answer.strip(), truth),
    ("egoschema", "lmms-eval"): _drawn(letters.egoschema_letter),
    ("gqa", "authors"): _llava_gqa,
    ("gqa", "lmms-eval"): _same_text,
    ("gqa", "vlmevalkit"): _same_stripped,
    ("longvideobench", "lmms-eval"): _drawn(lambda answer, options: letters.longvideobench_letter(answer)),
    ("mlvu", "authors"): _letter(letters.mlvu_letter),
    ("mlvu", "lmms-eval"): _letter(lmms.extracted_letter),
    ("mlvu", "vlmevalkit"): _mlvu_vlmevalkit,
    **{(name, "vlmevalkit"): _inferred for name in _CHOICES},
    ("mmbench", "lmms-eval"): lambda answer, right, options: float(
        lmms.mmbench_letter(answer, _lettered(options)) == right
    ),
    ("mme", "authors"): _yes_no(mme_label_published),
    ("mme", "lmms-eval"): _yes_no(mme_label),
    ("mme", "vlmevalkit"): _yes_no(word_label),
    ("mmmu_open", "lmms-eval"): lambda answer, truth, options: open_is_right(answer, [truth]),  # a list is one text
    ("mmmu_open", "vlmevalkit"): _inferred_open,
    ("mmmu", "authors"): _drawn(lambda answer, options: letters.mmmu_letter(answer, options, published=True)),
    **{(name, "lmms-eval"): _drawn(letters.mmmu_letter) for name in ("mmmu", "mmmu_pro", "nextqa_mc")},
    **{(name, "authors"): _drawn(letters.mmmu_pro_letter) for name in ("mmmu_pro", "mmmu_pro_vision")},
    ("mmmu_pro_vision", "lmms-eval"): _equal,
    ("mmstar", "lmms-eval"): _letter(lmms.extracted_letter),
    ("mvbench", "authors"): lambda answer, right, options: float(letters.opens_with(answer, right, lettered=False)),
    ("mvbench", "lmms-eval"): _letter(lmms.mvbench_letter),
    ("mvbench", "vlmevalkit"): _mvbench_vlmevalkit,
    ("ocrbench", "lmms-eval"): lambda answer, truths, options: lmms.ocrbench_contains(answer, truths),
    ("pope", "authors"): _yes_no(pope_label),
    ("pope", "lmms-eval"): _yes_no(lambda answer: answer.lower().strip()),
    ("pope", "vlmevalkit"): _yes_no(word_label),
    ("realworldqa", "lmms-eval"): lambda answer, truth, options: lmms.realworldqa(answer, truth),
    ("scienceqa", "authors"): _scienceqa,
    ("scienceqa", "lmms-eval"): _letter(lmms.scienceqa_letter),
    ("textvqa", "authors"): lambda answer, truths, options: vqa_accuracy_by("vqa", answer, truths),
    ("textvqa", "vlmevalkit"): lambda answer, truths, options: vqa_accuracy_by("vlmevalkit", answer, truths),
    ("vizwiz", "authors"): lambda answer, truths, options: vqa_accuracy_by("vqa", answer, truths),
    ("videomme", "lmms-eval"): _letter(lmms.extracted_letter),
    ("videomme", "vlmevalkit"): _letter(letters.videomme_letter),
    ("vqav2", "lmms-eval"): lambda answer, truths, options: vqa_accuracy_by("lmms-eval", answer, truths),
    ("vqav2", "vlmevalkit"): lambda answer, truths, options: vqa_accuracy_by("vlmevalkit", answer, truths),
}


# How often a rule of RULES has changed since its first version; runs that an older one scored are not continued.
CHANGED: dict[tuple[str, str], int] = {
    **{(name, "vlmevalkit"): 1 for name in _CHOICES if name not in ("mmbench", "realworldqa")},
    **{(name, "lmms-eval"): 1 for name in ("mmbench", "mlvu", "videomme", "mmstar", "realworldqa")},
    **{(name, "lmms-eval"): 1 for name in ("mmmu", "mmmu_pro", "mmmu_pro_vision", "ocrbench", "vqav2")},
    ("pope", "lmms-eval"): 2,
    **{(name, "vlmevalkit"): 1 for name in ("mlvu", "mvbench", "pope", "videomme")},
    **{(name, "vlmevalkit"): 2 for name in ("mmmu", "mmmu_pro", "mmmu_pro_vision")},  # the second: other prompts
    **{("textvqa", source): 1 for source in ("authors", "vlmevalkit")},
    ("vizwiz", "authors"): 1,
}


def rule(benchmark: str, source: str) -> OfficialRule | None:
    """A source's rule for a benchmark; None if the benchmark's own score() agrees with it."""
    return RULES.get((benchmark, source))


def draw(right: str, options: Sequence[str], seed: int, index: int | str) -> float:
    """The score of an answer without a letter if one is drawn at random: 1.0 with probability 1 / options, else 0.0.

    The draw depends only on the seed and the sample, so that the order and batching of samples have no effect.
    """
    drawn = random.Random(f"{seed}/{index}").randrange(max(len(options), 1))
    return float(ascii_uppercase[drawn] == right)
