"""Foreign text made harmless where it is printed: names, ids and paths that stand in other people's files.

printable()   on a terminal, in an error message, in a picture: one line, and no character that moves the cursor
markdown()    in a Markdown file: as printable(), and shown as it is, whatever it would mean as Markdown or HTML
"""

from __future__ import annotations

import re
from typing import Any

# Control characters (C0, DEL, C1), marks that turn the direction of text or are not seen at all, and halves of
# surrogate pairs, which no encoding can write.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
# < > & begin HTML, [ ] a link: named by number, so that no reader of Markdown takes them for what they begin.
_NAMED = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", "[": "&#91;", "]": "&#93;"})
_MARKS = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore between two letters is one
_OPENING = re.compile(r"(?:#{1,6}|[-+=]+|\d{1,9}[.)])(?=\s)")  # of a heading, a list, a rule


def printable(text: Any, keep: str = "") -> str:
    """Text for a terminal: line breaks become spaces, what is not to be seen is spelt out, as \\x1b.

    Args:
        text: anything; str() of it is taken.
        keep: characters that may stay as they are, such as line breaks in an answer.
    """
    text = str(text)
    if not any(sign in keep for sign in "\r\n\t"):
        text = re.sub(r"[ \t]*[\r\n\t]+[ \t]*", " ", text)
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _spelt(found[0]), text)


def markdown(text: Any) -> str:
    """Text for a Markdown file, in a table's cell as elsewhere: it reads as it is, and is no markup."""
    text = _MARKS.sub(r"\\\g<0>", printable(text).strip().translate(_NAMED))
    opening = _OPENING.match(text)
    return text if opening is None else f"{opening[0][:-1]}\\{text[opening.end() - 1 :]}"


def brief(value: Any, most: int = 80) -> str:
    """A value of a JSON file as a message names it: a text in quotes and cut, of a list or an object what it is."""
    if isinstance(value, str):
        return printable(repr(value if len(value) <= most else f"{value[:most]}..."))
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)[:most]


def _spelt(sign: str) -> str:
    number = ord(sign)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
