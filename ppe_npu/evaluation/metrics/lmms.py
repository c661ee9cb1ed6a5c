"""Rules of lmms-eval 0.7.3 (2026-08-06) that differ from the authors' own; official.py assigns them to benchmarks.

Restated from lmms_eval/tasks/_task_utils/mcq_extract.py, tasks/scienceqa, tasks/mmbench, tasks/mvbench,
tasks/realworldqa and tasks/ocrbench; compared with its scores on recorded cases (tests/evaluation/test_official.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ppe_npu.evaluation.metrics.text import contains
from ppe_npu.evaluation.metrics.vqa import normalise_punctuation

_NAMES = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
_PHRASES = (
    *(f"{name} is" for name in _NAMES),
    *(f"the {name} is" for name in _NAMES),  # needed: only a phrase's first occurrence counts, and these may be later
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# Forms of an option's letter, and their weights; the start and the end of the answer have higher weights.
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_START, _END, _PHRASE = 10, 9, 7
_LETTERS = "ABCD"
# What may surround a letter that is a word of an answer to MMBench, in the order in which it is tried.
_AROUND = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ").")),
    *(("(", ")"), ("(", ")."), (":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)


def extracted_letter(answer: str) -> str:
    """The letter from A to D in the form of highest weight that occurs, the last one if there are several; without any
    form, the letter that occurs last. Used for Video-MME, MLVU, LVBench and MMStar.

    Source: mcq_extract.extract_mcq_answer.
    """
    if not answer.strip():
        return ""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    word, text = text.strip(), f" {text} "
    found = [(weight, text.rfind(form.format(a)), a) for form, weight in _FORMS for a in _LETTERS]
    starts = (text.lower().find(phrase) + len(phrase) for phrase in _PHRASES if phrase in text.lower())
    for start in starts:
        found += [(_PHRASE, text.find(a, start), a) for a in _LETTERS]
    found += [(_START, 0, a) for a in _LETTERS if word.startswith(a) and not word[1:2].isalpha()]
    found += [(_END, len(text), a) for a in _LETTERS if word.endswith(a) and not word[-2:-1].isalpha()]
    found = [place for place in found if place[1] >= 0] or [(0, text.rfind(a), a) for a in _LETTERS if a in text]
    # Of equal weight and position the first letter counts, as with the stable sort there.
    return max(found, key=lambda place: place[:2])[2] if found else ""


def scienceqa_letter(answer: str) -> str:
    """The answer in upper case if it is one character; else the capital before a full stop at its start."""
    answer = answer.strip()
    if len(answer) == 1:
        return answer.upper()
    return answer[0] if answer[1:2] == "." and answer[0].isupper() else ""


def mvbench_letter(answer: str) -> str:
    """The letter A to E before a full stop and a text at the start; else, after punctuation is removed as in VQA, the
    first of these letters, in either case, that is a word by itself; else the whole answer in lower case.

    Source: tasks/mvbench/utils.py mcq_acc.
    """
    if found := re.match(r"(?i)([A-E])\.\s*(.+)$", answer.strip()):
        return found[1].upper()
    text = normalise_punctuation(" ".join(re.split(r"[\n\t]", answer)).strip(), marks=_MARKS)
    for mark in "'\")(":
        text = text.strip(mark)
    if found := re.search(r"(?i)\b([A-E])\b", text.strip().lower()):
        return found[1].upper()
    return text.strip().lower()


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str:
    """The only letter A to E that is a word, unless A is one of more than three words; else the only one in the first
    form that has just one ("B.", "B)", "(B)", ":B" ...); else the only option of A to D whose text occurs.

    Source: tasks/mmbench/mmbench_evals.py, can_infer; there GPT judges an answer without a letter.

    Args:
        options: letter -> text.
    """
    words, answer = answer.split(), answer.lower()
    for prefix, suffix in (("", ""), *_AROUND):
        named = [letter for letter in "ABCDE" if f"{prefix}{letter}{suffix}" in words]
        article = not (prefix or suffix) and "A" in words and len(words) > 3
        if len(named) == 1 and not article:
            return named[0]
    told = [letter for letter, text in options.items() if letter in "ABCD" and text.lower() in answer]
    return told[0] if len(told) == 1 else ""


def realworldqa(answer: str, truth: str) -> float:
    """Whether extracted_letter() is the right letter, if the reference is A to D; else whether the answer equals the
    reference, except for case, outer white space and final full stops. 1.0 or 0.0.

    Source: tasks/realworldqa/utils.py, realworldqa_process_results.
    """
    truth = truth.strip()
    if truth.upper() in tuple("ABCD"):
        return float(extracted_letter(answer) == truth.upper())
    return float(answer.lower().strip().rstrip(".") == truth.lower())


def ocrbench_contains(answer: str, references: Sequence[str]) -> float:
    """contains(), after full-width ASCII becomes plain ASCII on both sides: "１２３" contains "123", but "①" no "1".

    Source: tasks/ocrbench/utils.py, ocrbench_process_results, which leaves formulas as they are; their rule is the
    benchmark's own.
    """
    return contains(answer.strip().translate(_NARROW), [reference.translate(_NARROW) for reference in references])


_NARROW = {0x3000: " ", **{sign: sign - 0xFEE0 for sign in range(0xFF01, 0xFF5F)}}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
