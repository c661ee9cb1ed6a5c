"""Escaping of untrusted text before it is printed: names, ids and paths from other people's files.

printable()   for terminals, error messages and pictures: one line, without characters that move the cursor
markdown()    for Markdown files: like printable(), and shown literally, whatever it would mean as Markdown or HTML
"""

from __future__ import annotations

import re
from typing import Any

# Control characters (C0, DEL, C1), marks that are invisible or change the direction of text, and unpaired surrogates,
# which cannot be encoded.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
# < > & start HTML and [ ] a link; as character references, no Markdown renderer interprets them.
_NAMED = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", "[": "&#91;", "]": "&#93;"})
_MARKS = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore between two letters is no markup
_OPENING = re.compile(r"(?:#{1,6}|[-+=]+|\d{1,9}[.)])(?=\s)")  # how a heading, a list or a rule starts


def printable(text: Any, keep: str = "") -> str:
    """Text for a terminal: line breaks become spaces, and invisible characters are spelled out, such as \\x1b.

    Args:
        text: any object; str() is applied to it.
        keep: characters to leave as they are, such as line breaks in an answer.
    """
    text = str(text)
    if not any(sign in keep for sign in "\r\n\t"):
        text = re.sub(r"[ \t]*[\r\n\t]+[ \t]*", " ", text)
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _spelt(found[0]), text)


def markdown(text: Any) -> str:
    """Text for a Markdown file, in table cells and elsewhere, that renders literally."""
    text = _MARKS.sub(r"\\\g<0>", printable(text).strip().translate(_NAMED))
    opening = _OPENING.match(text)
    return text if opening is None else f"{opening[0][:-1]}\\{text[opening.end() - 1 :]}"


def brief(value: Any, most: int = 80) -> str:
    """A value from a JSON file, for a message: a string is quoted and shortened, a list or an object only named."""
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
