"""Tokens of English captions by the rules of Stanford's PTBTokenizer, on which the published CIDEr is computed.

The rules are those of CoreNLP's PTBLexer.flex, restated for Python's re. As in JFlex, the rule with the longest match
wins at every position, including the context that must follow it; of equally long ones the first. Rules for what does
not occur in captions (telephone numbers, smileys, file names) are left out. pycocoevalcap 1.2 runs the tokenizer with
-lowerCase on one caption per line and then drops punctuation (PTBTokenizer.PUNCTUATIONS). Letters of any language match
where the grammar says so; classes such as [A-Z] are case-sensitive there and here, words are not.
"""

from __future__ import annotations

import html
import re

_SPACE = "[ \t\u00a0\u2000-\u200a\u3000\r\n]"
_LETTER = r"[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u2189]"
_ALNUM = "[A-Za-z0-9]"
_APOS = "(?:['\u2019\u00b4]|&apos;)"
_INNER_APOS = f"(?:{_APOS}|[`\u2018\u201b])"
_NUM = r"(?:\d+(?:[.:,]\d+)+|\d*(?:[.,]\d+)+|\d+)"
_NUMBER = f"[-+]?{_NUM}"
_WORD = f"{_LETTER}(?:{_LETTER}|\\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\\d)*)*"
_ELISION = f"(?:[dDoOlL]{_INNER_APOS}{_ALNUM})?"
_PART = f"(?:{_NUM}(?!{_ALNUM})|{_ALNUM}+)"
_THING = f"{_ELISION}(?:{_NUMBER}(?!{_ALNUM})|{_ALNUM}+)(?:[-_\u2010\u2011]{_ELISION}{_PART})*"
_SLASHED = f"{_ALNUM}+(?:-{_LETTER}+){{0,2}}"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*"
_MONTHS = "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec|Mon|Tues|Tue|Wed|Thurs|Thu|Fri"
_STATES = (
    "Ala|Ariz|Az|Ark|Calif|Colo|Conn|Ct|Dak|Del|Fla|Ga|Ill|Ind|Kans|Kan|Ky|La|Mass|Md|Mich|Minn|Miss|Mo|Mont|Neb|Nev|"
    "Okla|Ore|Pa|Penn|Tenn|Tex|Va|Vt|Wash|Wisc|Wis|Wyo"
)
_FIRMS = "Inc|Cos|Co|Corp|Ptys|Pty|Pte|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys"
_OTHERS = "tel|est|ext|sq|Jr|Bros|Ed\\.D|Ph\\.D|Esq|etc|al|seq|Bldg"
_TITLES = (
    "Mrs|Mr|Ms|Mx|Miss|Drs|Dr|Profs|Prof|Sens|Sen|Reps|Rep|Attys|Atty|Lt|Col|Gen|Messrs|Govs|Gov|Adm|Rev|Maj|Sgt|Cpl|"
    "Pvt|Capt|Ste|St|Ave|Pres|Lieut|Hon|Brig|Comdr|Cmdr|Pfc|Spc|Supts|Supt|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|"
    "Mme|Msgr|Sfc|Sr|vs|Alex|Wm|Jos|Cie|a\\.k\\.a|cf|TREAS|Ph|Invt|Elec|Natl|Mfg|Mtg|Dept|Blvd|Rd"
)
_NUMBERED = "ca|figs|fig|prop|nos|no|sects|sect|secs|sec|arts|art|paras|para|bldg|pp|op|approx|rs"
_FRENCH = f"[A-HJ-XZn]{_INNER_APOS}{_LETTER}{{2,}}|{_LETTER}+[aeiouyAEIOUY]{_INNER_APOS}[aeiouA-Z]{_LETTER}*"
_APOSTROPHES = (
    f"{_APOS}n(?:{_APOS}|(?!{_LETTER}))|[lLdDjJ]{_APOS}|(?i:Dunkin|somethin|ol){_APOS}|{_APOS}(?i:em|tills?|til|cause)|{_APOS}[2-9]0s|"
    "(?i:cont'd\\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"
)
_URL = '[^ \t\n\f\r"<>|(){}]'
_SITE = "[^ \t\n\f\r\"`'<>|.!?(){},\\-_$/0-9:;=@A-Z\\[\\]\\\\^+]"

# (pattern of the token, pattern that must follow). Longer alternatives come first, because re takes the first match.
_RULES = [
    ("(?i:can)", "(?i:not)"),
    (f"(?i:{_APOS}t)", "(?i:was)"),
    (f"(?i:{_APOS}t)", "(?i:is)"),
    ("(?i:gon|wan)", "(?i:na)"),
    ("(?i:got)", "(?i:ta)"),
    ("(?i:lem|gim)", "(?i:me)"),
    (r"<(?:[!?][A-Za-z-][^>\r\n]*|[A-Za-z][A-Za-z0-9_:.-]*(?: +[^<>\r\n]*)?/?|/[A-Za-z][A-Za-z0-9_:.-]*) *>", ""),
    ("&(?i:mdash|ndash|MD);|[\u0096\u0097\u2013-\u2015]", ""),
    ("&(?i:amp|lt|gt);", ""),
    (_WORD, f"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))"),
    ("[A-Za-z]*[A-MO-Za-mo-z]", f"n{_INNER_APOS}t"),
    (_WORD, ""),
    (_FRENCH, ""),
    (_APOSTROPHES, ""),
    (f"y{_APOS}", _LETTER),
    (f"(?i:ftp|https?|mailto)://{_URL}+[^ \t\n\f\r\"'<>|.!?(){{}},;:&\\[\\]-]", ""),
    (f'(?i:www)\\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\\.)+[a-zA-Z]{{2,4}}(?:/{_URL}+[^ \t\n\f\r"<>|.!?(){{}},-])?', ""),
    (f'(?:{_SITE}+\\.)+(?i:com|net|org|edu)(?:/{_URL}+[^ \t\n\f\r"<>|.!?(){{}},-])?', ""),
    (r"[a-zA-Z0-9._%+-]+@[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]", ""),
    (r"@[a-zA-Z_]\w*|#[^\W\d]\w*", ""),
    (f"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))", r"[^A-Za-z]"),
    (f"n{_INNER_APOS}t", r"[^A-Za-z]"),
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", ""),
    (_NUMBER, ""),
    (r"(?:\d{1,4}[- \u00a0])?\d{1,4}[/\u2044]\d{1,4}", ""),
    ("[\u00bc-\u00be\u2153-\u215e]", ""),
    (f"{_SLASHED}(?:/{_SLASHED}){{1,2}}", ""),
    (r"[A-Z]*\$|#", ""),
    ("[\u00a2-\u00a5\u20a0\u20aa\u20ac\u20b9\u20a4]", ""),
    (f"(?i:{_NUMBERED})\\.", f"{_SPACE}?\\d"),
    (f"(?i:{_MONTHS}|{_STATES}|{_FIRMS}|{_OTHERS})\\.", r"[\s\S]{2}|"),
    (f"(?i:{_TITLES})\\.|{_ACRONYM}\\.", ""),
    (f"{_ACRONYM}", _SPACE),
    (f"{_APOS}\\d\\d", _SPACE),
    ("\u00b0[CF]", ""),
    (f"{_WORD}\\.", "[,;:]"),
    (_THING, ""),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", ""),
    (f"{_ALNUM}(?:{_ALNUM}|[.,])*(?:-(?:[A-Za-z](?:\\.[A-Za-z])+\\.|{_ALNUM}+(?:\\.\\d+)?))+", ""),
    ("\"|&quot;|[`'\u2018\u2019]'", ""),
    ("[-]+|\\.\\.\\.+|\u2026|@+|_+|\\*+|#+", ""),
    ("<<|>>|.", ""),
]
_COMPILED = [re.compile(f"({token})(?:{context})") for token, context in _RULES]
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_QUOTES = str.maketrans({"\u2018": "`", "\u201b": "`", "\u2019": "'", "\u00b4": "'"})
# pycocoevalcap's list, and the quotes and dashes that the tokenizer turns into those of the list.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', "\u2026"])
_DASHES = frozenset("\u0096\u0097\u2013\u2014\u2015\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a")


def ptb_tokens(text: str) -> list[str]:
    """Words of a caption in lower case, without punctuation: "isn't" -> is n't, "Inc." keeps its full stop, "(" becomes
    the word -lrb-, because the published code drops only -LRB- in capitals."""
    text, at, tokens = text.replace("\n", " ") + "\n", 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = max((rule.match(text, at) for rule in _COMPILED), key=lambda hit: hit.end() if hit else -1)
        token = found.group(1)
        at += max(len(token), 1)
        tokens += _written(token)
    return tokens


def _written(token: str) -> list[str]:
    """[the token as CIDEr counts it], or [] for punctuation and for characters that the lexer does not support."""
    if token in _BRACKETS:
        return [_BRACKETS[token]]
    if re.fullmatch(r"&(?i:mdash|ndash|MD);|-{1,4}|\.{3,}", token) or token in _DASHES:
        return []
    plain = re.sub("&(?i:amp|lt|gt|apos|quot);", lambda entity: html.unescape(entity[0].lower()), token)
    plain = _FRACTIONS.get(plain, plain).translate(_QUOTES).lower()
    unknown = len(plain) == 1 and not (plain.isalnum() or plain in "+%&~^|\\/$#@_*=<>\u00a6\u00b0\u00a3\u20ac")
    return [] if plain in _DROPPED or unknown else [plain]
