"""The option that an answer to a multiple-choice question names: one function per published rule.

Each gives a capital letter, or "" where the answer names none. Some scripts then draw a letter at random; here such an
answer is wrong, so that a score can be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ppe_npu.evaluation.metrics.text import bare

_TRIMMED = (",", ".", "!", "?", ";", ":", "'")
# As published: two commas are missing there, so that the last two are each a join of two sentences.
_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)
_PREFIXES_LONG = (*_PREFIXES[:4], "The best option is", "The correct option is", "Best answer:", "Best option:")


def scienceqa_letter(answer: str) -> str:
    """A capital A to E: the whole answer; else the one before ". " at its start; else the one behind "The answer is ",
    where one that a full stop follows goes before one that does not. A line's end counts as ". ".

    Source: haotian-liu/LLaVA llava/eval/eval_science_qa.py. So "B.", "b" and "B.x" name none; lmms-eval's
    tasks/scienceqa takes "B." and "B.x", but nothing behind "The answer is ".
    """
    answer = answer.strip().replace("\n", ". ")
    for pattern in (r"([A-E])$", r"([A-E])\. "):
        if found := re.match(pattern, answer):
            return found[1]
    found = re.search(r"The answer is ([A-E])\.", answer) or re.search(r"The answer is ([A-E])", answer)
    return found[1] if found else ""


def ai2d_letter(answer: str) -> str:
    """The capital before a full stop at the start, or the whole answer if that is one letter but for punctuation.

    Source: lmms-eval tasks/ai2d.
    """
    found = re.match(r"\s*([A-Z])\.", answer)
    rest = found[1] if found else bare(answer).upper()
    return rest if len(rest) == 1 else ""


def first_character(answer: str) -> str:
    """The first character, in upper case (SEED-Bench: lmms-eval tasks/seedbench; Li et al. 2023, arXiv 2307.16125)."""
    return answer.strip()[:1].upper()


def first_capital(answer: str, letters: str = "ABCD", prefixes: Sequence[str] = _PREFIXES) -> str:
    """The first of these capitals after phrases such as "The answer is" are taken away.

    Source: BradyFU/Video-MME evaluation/eval_your_results.py.
    """
    answer = answer.strip()
    for prefix in prefixes:
        answer = answer.replace(prefix, "")
    found = re.search(f"[{letters}]", answer)
    return found[0] if found else ""


def longvideobench_letter(answer: str) -> str:
    """first_capital over A to E (LongVideoBench: Wu et al. 2024, arXiv 2407.15754; lmms-eval tasks/longvideobench)."""
    return first_capital(answer, "ABCDE", _PREFIXES_LONG)


def lone_letter(answer: str, letters: str = "A-D") -> str:
    """The first capital that stands alone as a word (Perception Test: lmms-eval tasks/perceptiontest)."""
    found = re.search(rf"\b([{letters}])\b", answer)
    return found[1] if found else ""


def opening_letter(answer: str) -> str:
    """The letter that is the first word, brackets and a full stop aside, or stands in brackets in it: "B", "b)", "(B.".

    Source: OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb (MVBench: Li et al. 2024, arXiv 2311.17005), check_ans:
    the first word must occur in "(b)" or hold it; JUNJIE99/MLVU compares alike. That counts an answer without a letter
    ("", ".", "(") as right, because the empty text occurs in any; here such an answer is wrong.
    """
    word = (answer.split() or [""])[0].upper()
    found = re.fullmatch(r"\(?([A-Z])\)?", word.replace(".", "")) or re.search(r"\(([A-Z])\)", word)
    return found[1] if found else ""


def mmmu_letter(answer: str, options: Sequence[str]) -> str:
    """The last of: "(A)"; else "A " ; else "A."; else, in an answer of more than five words, an option's text.

    Source: lmms-eval tasks/mmmu/utils.py parse_multi_choice_response, also in its tasks/nextqa, whose prompts are used
    too. It is wider than MMMU's own eval_utils.py (Yue et al. 2024, arXiv 2311.16502), which wants a space on both
    sides of a letter and has no "A.": there "B. because" names none, and "NASA says so" not A.
    """
    answer = _trimmed(answer)
    texts = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options))
    forms = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
    for form, sought in forms:
        named = [letter for letter in texts if form.format(letter) in answer]
        if named:
            return max(named, key=lambda letter: answer.rfind(sought.format(letter)))
    return _by_text(answer, texts, last=True)


def egoschema_letter(answer: str, options: Sequence[str]) -> str:
    """The earliest of "(A)", "A " and "A."; without any, as in mmmu_letter, the earliest option's text.

    Source: lmms-eval tasks/egoschema (Mangalam et al. 2023, arXiv 2308.09126, takes letters that are parsed already).
    """
    answer = _trimmed(answer)
    texts = dict(zip("ABCDE", options))
    named = [
        form.format(letter) for form in ("({})", "{} ", "{}.") for letter in texts if form.format(letter) in answer
    ]
    if named:
        return min(named, key=answer.rfind).strip("(). ")
    return _by_text(answer, texts, last=False)


def _trimmed(answer: str) -> str:
    for mark in _TRIMMED:
        answer = answer.strip(mark)
    return f" {answer} "


def _by_text(answer: str, texts: Mapping[str, str], last: bool) -> str:
    """The letter of the option whose text occurs, the last or the first of several; answers of five words are too
    short for it."""
    if len(answer.split()) <= 5:
        return ""
    lower = answer.lower()
    named = [letter for letter, text in texts.items() if text.lower() in lower]
    if not named:
        return ""
    return (max if last else min)(named, key=lambda letter: lower.rfind(texts[letter].lower()))


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str:
    """The one option letter that stands alone among the last words, else the one option whose text occurs.

    Source: open-compass/VLMEvalKit vlmeval/utils/matching_util.py (can_infer), which scores MMBench (Liu et al. 2024,
    arXiv 2307.06281) without a judge under its policy exact_matching.

    Args:
        options: letter -> text.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return ""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return ""
    lower = answer.lower()
    if len(lower) > 2 * sum(len(text) for text in options.values()):
        return ""
    found = [letter for letter, text in options.items() if text.lower() in lower]
    return found[0] if len(found) == 1 else ""


_REFUSALS = (
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
