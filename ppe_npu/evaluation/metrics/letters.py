"""The option that an answer to a multiple-choice question names: one function per published rule.

Each returns a capital letter, or "" if the answer names none. Some published scripts then draw a letter at random; here
such an answer is wrong, unless a protocol asks for draws, which are then seeded (official.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from ppe_npu.evaluation.metrics.text import unpunctuated
from ppe_npu.evaluation.metrics.vqa import NUMBERS

_TRIMMED = (",", ".", "!", "?", ";", ":", "'")
# As published: two commas are missing there, so each of the last two joins two phrases.
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
    """A capital A to E: the whole answer; else the one before ". " at its start; else the one after "The answer is ",
    if that phrase occurs once and the letter is followed by another character on the same line.

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
    """The capital before a full stop at the start, or the whole answer if it is one letter without ASCII punctuation.

    Source: lmms-eval 0.7.3 tasks/ai2d. White space around the letter is part of the answer there, so " C" names none.
    """
    found = re.match(r"\s*([A-Z])\.", answer)
    rest = found[1] if found else unpunctuated(answer).upper()
    return rest if len(rest) == 1 else ""


def first_character(answer: str) -> str:
    """The first character, in upper case (SEED-Bench: lmms-eval tasks/seedbench; Li et al. 2023, arXiv 2307.16125)."""
    return answer.strip()[:1].upper()


def first_capital(answer: str, letters: str = "ABCD", prefixes: Sequence[str] = _PREFIXES) -> str:
    """The first of these capitals in the answer, after phrases such as "The answer is" are removed.

    Source: BradyFU/Video-MME evaluation/eval_your_results.py.
    """
    answer = answer.strip()
    for prefix in prefixes:
        answer = answer.replace(prefix, "")
    found = re.search(f"[{letters}]", answer)
    return found[0] if found else ""


def videomme_letter(answer: str) -> str:
    """first_capital(), with "Answer:" and "Option:" removed as well.

    Source: open-compass/VLMEvalKit vlmeval/dataset/utils/videomme.py, extract_characters_regex. Without a judge, an
    answer that names no letter by this rule is wrong there, because options are sought in a question that has none.
    """
    return first_capital(answer, prefixes=(*_PREFIXES, "Answer:", "Option:"))


def longvideobench_letter(answer: str) -> str:
    """first_capital() of A to E (LongVideoBench: Wu et al. 2024, arXiv 2407.15754; lmms-eval tasks/longvideobench)."""
    return first_capital(answer, "ABCDE", _PREFIXES_LONG)


def lone_letter(answer: str) -> str:
    """The first capital from A to D that is a word by itself (Perception Test: lmms-eval tasks/perceptiontest)."""
    found = re.search(r"\b([A-D])\b", answer)
    return found[1] if found else ""


def opening_letter(answer: str) -> str:
    """The letter that is the first word, ignoring brackets and full stops, or is bracketed in it: "B", "b)", "(B.".

    Corresponds to opens_with() if there is no right answer to compare with. For "(C)(D)", which that accepts for both
    letters, it returns the first.
    """
    word = (answer.split() or [""])[0].upper()
    found = re.fullmatch(r"\(?([A-Z])\)?", word.replace(".", "")) or re.search(r"\(([A-Z])\)", word)
    return found[1] if found else ""


def opens_with(answer: str, letter: str, lettered: bool = True) -> bool:
    """Whether the first line's first word, without full stops, is a part of "(b)" (for letter B) or contains it.

    Source: OpenGVLab/Ask-Anything video_chat2/mvbench.ipynb (MVBench: Li et al. 2024, arXiv 2311.17005), check_ans.

    Args:
        letter: the right option's letter.
        lettered: whether the word must contain a letter. As published it need not, and then "", "." and "(" are right,
            because they are parts of "(b)", too.
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
    """The last letter in the form "(A)"; else in the form "A "; else "A."; else, in an answer of more than five words,
    the option whose text occurs last.

    Source: lmms-eval tasks/mmmu/utils.py parse_multi_choice_response; its tasks/nextqa uses the same rule.

    Args:
        published: whether to follow MMMU's own eval_utils.py (Yue et al. 2024, arXiv 2311.16502) instead: a letter
            needs a space on both sides, and there is no form "A.": "B. because" names none, and "NASA says so" not A.
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
    """The earliest letter in the form "(A)", "A " or "A."; if there is none, in an answer of more than five words, the
    earliest of the options as written in the prompt, letter and text ("a. the man runs").

    Source: lmms-eval 0.7.3 tasks/egoschema, where a letter is drawn if the answer has neither. (The script of Mangalam
    et al. 2023, arXiv 2308.09126, takes letters that are parsed already.)
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
    """The only letter of an option after the last "Answer:", else the result of mmmu_letter().

    Source: MMMU-Benchmark/MMMU mmmu-pro/evaluate.py (Yue et al. 2024, arXiv 2409.02813), which draws one if there is
    none.
    """
    _, said, tail = answer.rpartition("Answer:")
    named = [letter for letter, _ in zip(ascii_uppercase, options) if letter in tail] if said else []
    return named[0] if len(named) == 1 else mmmu_letter(answer, options)


def prefixed_letter(answer: str) -> str:
    """The first character, or the one after "(", "option " or "the answer is " at the start, in upper case.

    Source: MMStar's eval.py, which compares the right letter with each of the four positions; the letter after a prefix
    is read here first, else the first character.
    """
    text = answer.lower().strip().replace("\n", " ")
    for prefix in ("(", "option ", "the answer is "):
        if text.startswith(prefix) and text[len(prefix) : len(prefix) + 1].isalpha():
            return text[len(prefix)].upper()
    return text[:1].upper()


def tempcompass_letter(answer: str) -> str:
    """A letter A to D that is the whole answer, or is followed by "." or ")" at its start: "B", "B. running", "B) it
    runs". The text of an option without its letter names none.

    Source: llyx97/TempCompass eval_multi-choice.py (Liu et al. 2024, arXiv 2403.00476) with --disable_llm; also the
    first rule of lmms-eval's tasks/tempcompass, before its judge.
    """
    found = re.match(r"([A-D])(?:[.)]|\Z)", answer)
    return found[1] if found else ""


def realworldqa_answer(answer: str, question: str) -> str:
    """The letter of the option whose text the answer contains, if the question has options; else the answer without
    punctuation, with a number word ("three") as digits.

    Source: lmms-eval tasks/realworldqa/utils.py, NumberWordsToDigitsFilter, then the filter for texts of options, which
    the task used before 0.7.3 (lmms.realworldqa is today's rule).
    """
    answer = NUMBERS.get(answer.lower(), answer) if answer.lower() != "none" else answer
    options = {text.strip(): letter for letter, text in re.findall(r"\b([A-Z])\.\s+([^\n]*)", question)}
    plain = re.sub(r"[^\w\s]", "", answer).strip()
    found = re.search("|".join(map(re.escape, options)), plain) if options else None
    # As published, options are lettered from A in their order, whatever letters the question gives them.
    return ascii_uppercase[list(options).index(found[0])] if found and found[0] else plain


def _trimmed(answer: str) -> str:
    for mark in _TRIMMED:
        answer = answer.strip(mark)
    return f" {answer} "


def _by_text(answer: str, texts: Mapping[str, str], last: bool) -> str:
    """The letter of the option whose text occurs last (or first) in an answer of more than five words; "" if none."""
    if len(answer.split()) <= 5:
        return ""
    lower = answer.lower()
    named = [letter for letter, text in texts.items() if text.lower() in lower]
    if not named:
        return ""
    return (max if last else min)(named, key=lambda letter: lower.rfind(texts[letter].lower()))


def mmbench_letter(answer: str, options: Mapping[str, str], declared: bool = True) -> str:
    """The only option letter among the words, if it is one of the last four; else the one after the first "answer is";
    else the only option whose text occurs.

    Source: open-compass/VLMEvalKit vlmeval/utils/matching_util.py (can_infer at e8e78f0), which scores MMBench (Liu et
    al. 2024, arXiv 2307.06281) without a judge under its policy exact_matching.

    Args:
        options: letter -> text.
        declared: whether "answer is" counts, as it does since 17 June 2026 (pull request 1552), but only for A to D.
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
