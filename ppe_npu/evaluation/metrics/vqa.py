"""VQA accuracy over ten human answers, with the answer normaliser of the TextVQA challenge.

Source: Antol et al. 2015 (arXiv 1505.00468), section 5: min(#humans who gave the answer / 3, 1), averaged over the
subsets of nine of ten answers. The normaliser is EvalAIAnswerProcessor of facebookresearch/mmf
(pythia/tasks/processors.py), which the TextVQA server and lmms-eval (tasks/_task_utils/vqa_eval_metric.py; TextVQA and
VizWiz) apply to both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0"} | {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
LONE_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")  # VLMEvalKit's pattern; a full stop after a digit stays
_FULL_STOPS = 32  # the published code passes re.UNICODE, which is 32, as re.sub's count of replacements

# Contractions in their right spelling; the published table maps each, without any one of its apostrophes, to it.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # as published, although it is the reverse of all others
    for right in _CONTRACTIONS.split():
        table |= {right[:at] + right[at + 1 :]: right for at, letter in enumerate(right) if letter == "'"}
    return table


CONTRACTIONS = _contractions()


def normalise_vqa(text: str) -> str:
    """An answer as VQA challenges compare it: lower case, no punctuation, no articles, digits for number words."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_words(normalise_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def normalise_punctuation(text: str, marks: str = PUNCTUATION, full_stop: re.Pattern[str] = _FULL_STOP) -> str:
    """Remove marks that occur next to a space (all, if the text has a number with a comma); others become spaces.

    Args:
        marks: characters that count as punctuation.
        full_stop: pattern of full stops, which are removed.
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in marks:
        out = out.replace(mark, "" if number or f"{mark} " in text or f" {mark}" in text else " ")
    return full_stop.sub("", out, count=_FULL_STOPS)


def normalise_words(text: str) -> str:
    """Turn number words into digits, remove articles and restore the apostrophes of contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Mean over the references of min(1, matches among the other references / 3); 0.0 without references.

    Args:
        answer: the model's answer.
        references: the annotators' answers, ten in the published data.
    """
    return _agreement(normalise_vqa(answer), [normalise_vqa(reference) for reference in references])


def vqa_accuracy_by(scorer: str, answer: str, references: Sequence[str]) -> float:
    """vqa_accuracy() with another normaliser.

    Args:
        scorer: "vqa": GT-Vision-Lab/VQA vqaEval.py, which normalises nothing if all annotators gave the same answer;
            "lmms-eval": its tasks/vqav2, which always normalises; "vlmevalkit": its vqa_eval.py, which always
            normalises but keeps a full stop after a digit. None of them splits "'s" off as a word.
    """
    said, truth = _flat(answer), [_flat(reference) for reference in references]
    if scorer != "vqa" or len(set(truth)) > 1:
        full_stop = LONE_FULL_STOP if scorer == "vlmevalkit" else _FULL_STOP
        said, truth = _plain(said, full_stop), [_plain(text, full_stop) for text in truth]
    return _agreement(said, truth)


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _plain(text: str, full_stop: re.Pattern[str]) -> str:
    return normalise_words(normalise_punctuation(text, full_stop=full_stop))


def _agreement(said: str, truth: Sequence[str]) -> float:
    """vqa_accuracy() of texts that are normalised already."""
    if not truth:
        return 0.0
    matches = sum(reference == said for reference in truth)
    return sum(min(1.0, (matches - (reference == said)) / 3) for reference in truth) / len(truth)
