"""The option that an answer to a multiple-choice question names: one function per published rule.

Each gives a capital letter, or "" where the answer names none. Some scripts then draw a letter at random; here such an
answer is wrong, unless a protocol asks for draws, which are then seeded (official.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from ppe_npu.evaluation.metrics.text import unpunctuated
from ppe_npu.evaluation.metrics.vqa import NUMBERS

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
    if that stands there once and a further character of the same line follows the letter.

    Source: haotian-liu/LLaVA llava/eval/eval_science_qa.py (main), answers stripped as its model_vqa_science.py does.
    So "B.", "b", "The answer is B" and "B\\nx" name none; lmms-eval's rule is lmms.scienceqa_letter.
    """
    answer = answer.strip()
    if answer in tuple("ABCDE"):
        return answer
    if found := re.match(r"([A-E])\. ", answer):
        return found[1]
    named = re.findall(r"The answer is ([A-Z]).", answer)
    return named[0] if len(named) == 1 and named[0] in "ABCDE" else ""


def ai2d_letter(answer: str) -> str:
    """The capital before a full stop at the start, or the whole answer if that is one letter but for ASCII punctuation.

    Source: lmms-eval 0.7.3 tasks/ai2d. White space around the letter is part of the answer there, so " C" names none.
    """
    found = re.match(r"\s*([A-Z])\.", answer)
    rest = found[1] if found else unpunctuated(answer).upper()
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


def videomme_letter(answer: str) -> str:
    """first_capital() behind "Answer:" and "Option:", too.

    Source: open-compass/VLMEvalKit vlmeval/dataset/utils/videomme.py, extract_characters_regex. What names no letter by
    it is wrong there without a judge: options' texts are sought among the question's own lines, which has none.
    """
    return first_capital(answer, prefixes=(*_PREFIXES, "Answer:", "Option:"))


def longvideobench_letter(answer: str) -> str:
    """first_capital over A to E (LongVideoBench: Wu et al. 2024, arXiv 2407.15754; lmms-eval tasks/longvideobench)."""
    return first_capital(answer, "ABCDE", _PREFIXES_LONG)


def lone_letter(answer: str, letters: str = "A-D") -> str:
    """The first capital that stands alone as a word (Perception Test: lmms-eval tasks/perceptiontest)."""
    found = re.search(rf"\b([{letters}])\b", answer)
    return found[1] if found else ""


def opening_letter(answer: str) -> str:
    """The letter that is the first word, brackets and a full stop aside, or stands in brackets in it: "B", "b)", "(B.".

    opens_with() without a right answer to compare with: of "(C)(D)", which it takes for either, this names the first.
    """
    word = (answer.split() or [""])[0].upper()
    found = re.fullmatch(r"\(?([A-Z])\)?", word.replace(".", "")) or re.search(r"\(([A-Z])\)", word)
    return found[1] if found else ""


def opens_with(answer: str, letter: str, lettered: bool = True) -> bool:
    """Whether the first line's first word, without full stops, occurs in "(b)" or holds it.

    Source: OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb (MVBench: Li et al. 2024, arXiv 2311.17005), check_ans.

    Args:
        letter: of the right option.
        lettered: whether the word must hold a letter. As published it need not, and then "", "." and "(" are right,
            because the empty text occurs in any.
    """
    first_line = answer.strip().split("\n")[0]
    word, right = first_line.lower().split(" ")[0], f"({letter.lower()})"
    bare_word = word.replace(".", "")
    if lettered and not re.search("[a-z]", bare_word):
        return False
    return bare_word in right or right in word


def mlvu_letter(answer: str) -> str:
    """The character before the first ")", else the whole answer, if that is a capital: "A", "A) text", "(A)"; but "A.",
    "a" and " A" name none.

    Source: JUNJIE99/MLVU choice_bench.py check_ans (Zhou et al. 2024, arXiv 2406.04264), whose prompt ends in
    "Best option: (" so that a model begins with the letter.
    """
    before, bracket, _ = answer.partition(")")
    named = before[-1:] if bracket else answer
    return named if re.fullmatch("[A-Z]", named) else ""


def mmmu_letter(answer: str, options: Sequence[str], published: bool = False) -> str:
    """The last of: "(A)"; else "A " ; else "A."; else, in an answer of more than five words, an option's text.

    Source: lmms-eval tasks/mmmu/utils.py parse_multi_choice_response, also in its tasks/nextqa, whose prompts are used
    too.

    Args:
        published: read as MMMU's own eval_utils.py does (Yue et al. 2024, arXiv 2311.16502): a letter has a space on
            both sides, and there is no "A.": "B. because" names none, and "NASA says so" not A.
    """
    answer = _trimmed(answer)
    texts = dict(zip(ascii_uppercase, options))
    forms = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))
    for form, sought in (forms[0], (" {} ", " {} ")) if published else forms:
        named = [letter for letter in texts if form.format(letter) in answer]
        if named:
            return max(named, key=lambda letter: answer.rfind(sought.format(letter)))
    return _by_text(answer, texts, last=True)


def egoschema_letter(answer: str, options: Sequence[str]) -> str:
    """The earliest of "(A)", "A " and "A."; without any, in an answer of more than five words, the earliest of the
    options as the prompt has them, letter and text ("a. the man runs").

    Source: lmms-eval 0.7.3 tasks/egoschema (Mangalam et al. 2023, arXiv 2308.09126, takes letters that are parsed
    already). An answer with neither is drawn there.
    """
    answer = _trimmed(answer)
    texts = {letter: f"{letter}. {text}" for letter, text in zip("ABCDE", options)}
    named = [
        form.format(letter) for form in ("({})", "{} ", "{}.") for letter in texts if form.format(letter) in answer
    ]
    if named:
        return min(named, key=answer.rfind).strip("(). ")
    return _by_text(answer, texts, last=False)


def mmmu_pro_letter(answer: str, options: Sequence[str]) -> str:
    """The one letter that occurs behind the last "Answer:", else mmmu_letter()'s.

    Source: MMMU-Benchmark/MMMU mmmu-pro/evaluate.py (Yue et al. 2024, arXiv 2409.02813), which draws where none is.
    """
    _, said, tail = answer.rpartition("Answer:")
    named = [letter for letter, _ in zip(ascii_uppercase, options) if letter in tail] if said else []
    return named[0] if len(named) == 1 else mmmu_letter(answer, options)


def prefixed_letter(answer: str) -> str:
    """The first character, or the one behind "(", "option " or "the answer is " at the start, in upper case.

    Source: MMStar's eval.py: each of the four places is tried with the right letter, so
    that "(a" is B only if its second character is b; a letter that stands at the first place counts before the others.
    """
    text = answer.lower().strip().replace("\n", " ")
    for prefix in ("(", "option ", "the answer is "):
        if text.startswith(prefix) and text[len(prefix) : len(prefix) + 1].isalpha():
            return text[len(prefix)].upper()
    return text[:1].upper()


def tempcompass_letter(answer: str) -> str:
    """A to D: the whole answer, or before a full stop or a round bracket at its start: "B", "B. running", "B) it runs";
    an option's text alone names none.

    Source: llyx97/TempCompass eval_multi-choice.py (Liu et al. 2024, arXiv 2403.00476) with --disable_llm, also before
    the judge of lmms-eval's tasks/tempcompass.
    """
    found = re.match(r"([A-D])(?:[.)]|\Z)", answer)
    return found[1] if found else ""


def realworldqa_answer(answer: str, question: str) -> str:
    """An answer without punctuation, a number's word ("three") as digits; the letter of the option whose text it holds,
    where the question has options.

    Source: lmms-eval tasks/realworldqa/utils.py, NumberWordsToDigitsFilter, then the filter of options' texts, which
    its task named before 0.7.3 (now lmms.realworldqa).
    """
    answer = NUMBERS.get(answer.lower(), answer) if answer.lower() != "none" else answer
    options = {text.strip(): letter for letter, text in re.findall(r"\b([A-Z])\.\s+([^\n]*)", question)}
    plain = re.sub(r"[^\w\s]", "", answer).strip()
    found = re.search("|".join(map(re.escape, options)), plain) if options else None
    # As published, letters are counted from A in the order of the options, whatever they are called.
    return ascii_uppercase[list(options).index(found[0])] if found and found[0] else plain


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


def mmbench_letter(answer: str, options: Mapping[str, str], declared: bool = True) -> str:
    """The one option letter that stands alone among the last words; else the one behind the first "answer is"; else
    the one option whose text occurs.

    Source: open-compass/VLMEvalKit vlmeval/utils/matching_util.py (can_infer at e8e78f0), which scores MMBench (Liu et
    al. 2024, arXiv 2307.06281) without a judge under its policy exact_matching.

    Args:
        options: letter -> text.
        declared: whether "answer is" counts, as since 17 June 2026 (pull request 1552); A to D alone there.
    """
    if any(refusal in answer for refusal in _REFUSALS):
        return ""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return ""
    said = re.search(r"(?i)answer\s+is\s+\**([ABCD])", answer) if declared else None
    if said and said[1].upper() in options:
        return said[1].upper()
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
