"""What another program reads as a picture or a video in a record's texts and notes. Nothing would stand there for this
package, and a model be trained on text without its pictures, so it is named.

Two kinds are looked for in what is asked. A word that some program puts a file in place of (<image_1>, [IMG]) counts
wherever it stands. What shows a file where a text is shown (HTML, Markdown, a line that is a file's name) is text where
it stands in code, between backticks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ppe_npu.errors import InputError
from ppe_npu.utils.escape import brief

IMAGE = "name it 'image' (a path or a list of paths), with one <image> for each in the human turns"
VIDEO = "name it 'video' (a path or a list of paths), with one <video> for each in the human turns"

# -- files -------------------------------------------------------------------------------------------------------------

_PICTURE = r"jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|heic"
_FILM = r"mp4|m4v|mkv|webm|avi|mov|flv|wmv|mpe?g"  # not .ts, which is TypeScript's
_FILE = re.compile(rf"[^\n]{{1,500}}\.(?:({_PICTURE})|{_FILM})", re.IGNORECASE)
_ASKED = re.compile(r"(?<=\w)[?#]\S*$")  # behind a file's name in an address: ".../a.png?size=9"
# A file itself: an address of data, or how base64 of PNG, JPEG, GIF, WebP, MP4 and Matroska begins.
_BASE64 = r"(?:(iVBORw0KGgo|/9j/|R0lGOD|UklGR)|AAAA..Z0eX|GkXfo)[A-Za-z0-9+/\r\n]{16}"
_INLINE = re.compile(rf"\s*(?:data:(image)/|data:video/|{_BASE64})")
_NAMES = re.compile("(?!vid$).*id|from|role", re.IGNORECASE)  # keys of what is no file, whatever it looks like
_DEPTH = 4  # of lists and objects in which a file's name is looked for

# -- texts -------------------------------------------------------------------------------------------------------------

# What the chat template of Qwen's family writes for a picture.
_TEMPLATES = re.compile(r"<\|(?:vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")
_WORD = r"img|vid|media|pic|picture|photo|frame"  # beside image and video
_PART = (
    r"(?:[ _:#.-]{0,2}(?:\d{1,4}|(?:soft_)?tokens?|pad|placeholder|plh|ph|context|here|patch|start|begin|end|content"
    r"|sep|break|newline|embeds?|features?))"
)
_OF = r"(?:(?:start|begin|end)_of_|fake_token_around_|global[-_]|vila/)"
_OTHER = "(?!image>|video>)(?<![A-Za-z0-9_]<(?=[A-Z][a-z]{1,40}>))"  # behind "<": neither ours nor a type: List<Image>
# Programs' own words, those of one form together: <image_1>, <|image|>, <ImageHere>, <start_of_image>, <##IMAGE##>;
# <|img|>, <IMG_CONTEXT>, <__media__>; <im_patch>; <img>a.png</img>; [IMG], [IMG_BREAK], [<IMG_PLH>]; [img-1].
_TOKENS = re.compile(
    rf"[<\[](?:(?<=<){_OTHER}(?:(?i:[|_#]{{0,2}}{_OF}?(?:image|video){_PART}{{0,2}}\s*/?[|_#]{{0,2}}>"
    rf"|(?:[|_#]{{1,2}}{_OF}?(?:{_WORD}){_PART}{{0,2}}|{_OF}(?:{_WORD})|(?:{_WORD}){_PART}{{1,2}})\s*/?[|_#]{{0,2}}>"
    r"|(?:im|vi|vid)_(?:patch|start|end|col)>|img>[^<\n]*</img>))"
    r"|(?<=\[)(?:(?<![\w)\]]\[)<?(?:IMG|IMAGE|VIDEO)(?:[ _-]?(?:\d{1,4}|BREAK|END|PLH|TOKEN|PLACEHOLDER))?>?\](?!\()"
    r"|img-\d{1,4}\]))"
)
_NUMBERED = re.compile(r"[<\[{【|_#]*[^\W\d_]+[ _:#.-]{0,2}(\d{1,4})\W*")  # of the record's own pictures, say
_OPENING = re.compile(r"[<\[{【]")  # with which all of these begin
_PAGES = r"svg|html?|php|aspx?|jsp|pdf|js|css|json|xml|txt|mp3|wav|ogg"  # an address of what is neither
_SHOWN = (
    rf"(?:[^\s\"'<>()]{{0,500}}\.(?:{_PICTURE}|{_FILM})\b|data:|attachment:"
    rf"|(?:https?|file|s3|gs|oss|hf)://(?![^\s\"'<>()?#]{{0,500}}\.(?:{_PAGES})(?:[\s\"'<>()?#]|$)))"
)
# A file in a tag of HTML and the like; tags that stand in a page's source, but not around what a forum's users write.
_IN_TAG = re.compile(
    rf"<(?i:(?:image|video|source|embed|object|{_WORD})\b(?:[^<>\"']|\"[^\"<]{{0,300}}\"|'[^'<]{{0,300}}'){{0,500}}?"
    rf"[=:]\s*\\?[\"']?{_SHOWN})"
)
_OF_PAGES = (
    r"<!doctype|<\?xml\b|\bclassName=|^[ \t]*(?:import\b.{1,200}\bfrom|export default)\b"
    r"|</?(?:html|head|body|script|style|link|meta|nav|form|button|input|header|footer|main|template|svg|rss"
)
_PAGE = re.compile(rf"{_OF_PAGES})\b", re.IGNORECASE | re.MULTILINE)
_HTML = re.compile(
    rf"{_OF_PAGES}|div|span|section|article|table|td|tr|ul|ol|li|h[1-6]|audio|canvas|figcaption|iframe)\b",
    re.IGNORECASE | re.MULTILINE,
)
# A word that is a tag, in a text without other tags of HTML; <Photo/> is a component of somebody's program.
_TAG = re.compile(
    rf"<(?<!/<){_OTHER}(?:(?i:image|video|img|vid)|(?![A-Z][a-z])(?i:{_WORD}|fig|figure|screenshot))(?i:s?\s*/?>)"
)
# Markdown's and a forum's ways; words to be filled in, but not {image} where a program's text has it.
_DRAWN = re.compile(
    rf"[!\[{{<【](?:(?<=!)(?:\[[^\]\n]{{0,500}}\]\(\s*<?(?i:{_SHOWN}|[^()\n<>]{{1,300}}\.(?:{_PICTURE}|{_FILM})\b)"
    r"|\[[^\]\n]{1,300}\]\[[^\]\n]{0,100}\](?=(?s:.{0,4000}?)\n[ \t]*\[[^\]\n]{1,100}\]:[ \t]*"
    rf"<?(?i:{_SHOWN}))|\[\[[^\]\n]{{1,300}}\.(?i:{_PICTURE}|{_FILM})\b[^\]\n]{{0,100}}\]\])"
    r"|(?<=\[)(?i:img[^\]\n]{0,100}\][^\[\n]{1,500}\[/img\])"
    r"|(?<=\{)(?<![\w\]}$=\\'\"{(>/:#%@.-]\{)(?<!import \{|export \{|return \{)"
    r"(?:(?:image|img|video)s?|(?:IMAGE|IMG|VIDEO)S?)(?:[_ ]?\d{1,3}|_(?i:placeholder))?\}"
    r"(?!['\"\w;]|</|\s*(?:=|from\b))"
    r"|(?<=\{)(?<![\w\]}$=\\'\"{(>/:#%@.-]\{)\{\s*(?:(?:image|img|video)s?|(?:IMAGE|IMG|VIDEO)S?)(?:[_ ]?\d{1,3}"
    r"|_(?i:placeholder))?\s*"
    r"\}\}(?!['\"\w]|</)"
    r"|(?<=<)图\s?\d{0,3}>|(?<=[<\[【])(?:图片|图像|照片|视频)\s?\d{0,3}[>\]】](?!\())"
)
# In a record without visuals: [image], [Photo 2], [image: cat.png], but no index, argument, link or name of one.
_BRACKETS = re.compile(
    rf"\[(?<![\w)\]=(,]\[)(?<![=,(] \[)(?:image|img|video|picture|photo|screenshot)"
    rf"(?:[\s_-]?#?\d{{1,3}}|:[^\]\n]{{1,300}}\.(?:{_PICTURE}|{_FILM}))?\](?![(\[:\w])",
    re.IGNORECASE,
)
# A line that is a file's name; after six Chinese or Japanese characters in a row of names it is a sentence.
_ALONE = re.compile(
    r"(?:(?:image|img|picture|photo|video|frame)(?:[ _-]?(?:path|file|name|url))?\s?#?\d{0,3}\s?[:=]\s*)?"
    r"(?:\w{2,10}://\S+|(?!(?:[^\s/\u3040-\u9fff]*[\u3040-\u9fff]){6})[^\s*={}|<>\"'`$();,!]+)"
    rf"\.(?:{_PICTURE}|{_FILM})(?:[?#]\S*)?",
    re.IGNORECASE,
)
# A file itself, at the beginning of a line, or amid it, but in no style sheet, tag or string.
_DATA = re.compile(
    rf"data:(?:image|video)/[\w.+-]+;base64,|{_BASE64}|.{{0,2000}}\sdata:(?:image|video)/[\w.+-]+;base64,[A-Za-z0-9+/]{{16}}"
)
_BESIDE = re.compile(
    r"[\w./-]+\.(?:txt|md|pdf|docx?|csv|json|xml|ya?ml|toml|ini|log|html?|css|m?js|tsx?|py|ipynb|c|cpp|h|java|go|rs|rb|php"
    r"|sh|tex|zip|gz|svg|ico|npy|npz|pfm|pt|pth|pkl|wav|mp3)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(
    r"(?!<image>|<video>)<((?i:image|img|video|vid|pic|picture|photo))>\s*(?:(?:<image>|<video>)\s*)+</(?i:\1)>"
)
_CODE = re.compile(
    r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1|\Z)|(?<!`)(`{2,})(?!`)[^\n]{1,1000}?(?<!`)\2(?!`)"
    r"|(?<!`)`(?![`\s])[^`\n]*(?<!\s)`(?!`)",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"(?!<image>|<video>)<[^<>\s]{1,40}>")


def check_unseen(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a record without visuals that names some: a note with a file's name in it, at the top or in
    a turn, or what another program reads as a picture or a video in a human turn."""
    turns = (("a turn's", turn, ("value", "content")) for turn in raw["conversations"])
    for whose, said, read in (("its", raw, ("conversations",)), *turns):
        for key, value in said.items():
            if key in read or _NAMES.fullmatch(key):
                continue
            file = _file_in(value, _DEPTH)
            if file is not None:
                inline, where = _INLINE.match(file), f"{whose} key {brief(key)}"
                held = "holds a file as text" if inline else f"names {brief(file)}"
                picture = any(inline.groups()) if inline else _FILE.fullmatch(_name(file))[1]
                remedy = ("save it as a file, and " if inline else "") + (IMAGE if picture else VIDEO)
                raise InputError(f"{where} {held}, which the model would not see: {remedy}; or leave it out")
    _check_asked(raw, 0)


def check_places(raw: Mapping[str, Any], own: int) -> None:
    """Raise InputError for what another program reads as a further picture or video in a human turn, beside those that
    the record names in its keys, own in number. A file's name alone is no further one: it is most likely the name of
    one of them; and <image_2> is the second of them."""
    _check_asked(raw, own)


def _check_asked(raw: Mapping[str, Any], own: int) -> None:
    for turn in () if raw.get("literal") else raw["conversations"]:
        if turn.get("from", turn.get("role")) not in ("human", "user"):
            continue
        place = _place(turn.get("value", turn.get("content")), own)
        if place is not None:
            remedy = "write <image> or <video>, and name the files under 'image' or 'video'; or, where the text itself "
            remedy += "is meant, give the record 'literal': true"
            raise InputError(f"a text in it has {brief(place)}, which nothing stands for: {remedy}")


def _place(text: str, own: int) -> str | None:
    """What another program would put a picture or a video in place of; own: how many the record names."""
    opened = _OPENING.search(text)
    if opened:
        text = _WRAPPED.sub(" ", text)
        if found := _further(_TOKENS, text, own):
            return found
    text = _CODE.sub("``", text)
    if opened:
        ways = ((_IN_TAG, _PAGE), (_TAG, _HTML), (_DRAWN, None), *(() if own else ((_BRACKETS, None),)))
        for places, source in ways:
            found = _further(places, text, own)
            if found and not (source and source.search(text)):
                return found
    lines = [line.strip().strip("<>") for line in text.splitlines()]
    names = not own and not any(map(_BESIDE.fullmatch, lines))  # else it is a list of files of every kind
    return next((line for line in lines if _DATA.match(line) or (names and _ALONE.fullmatch(line))), None)


def _further(places: re.Pattern[str], text: str, own: int) -> str | None:
    """The first place in a text that is no number of one of the record's own."""
    for found in places.finditer(text):
        number = _NUMBERED.fullmatch(found[0])
        if not (number and own and int(number[1]) <= own):
            return found[0]
    return None


def check_text(text: str) -> None:
    """Raise InputError for a text that holds what the chat template itself writes for a picture."""
    if found := _TEMPLATES.search(text):
        raise InputError(
            f"a text in it has {found[0]}, which the chat template writes itself: write <image> or <video>"
        )


def check_marks(raw: Mapping[str, Any]) -> None:
    """Raise InputError for a note that says what a mark in the record's texts stands for (VTimeLLM's times for <s0>,
    ms-swift's boxes for <bbox>): the mark itself would be learnt."""
    texts = [turn.get("value", turn.get("content")) for turn in raw["conversations"]]
    for key, value in raw.items():
        held = _marks(value, _DEPTH) if key != "conversations" else ()
        if key == "objects" and isinstance(value, Mapping):
            held = (*held, *(mark for mark, name in (("<bbox>", "bbox"), ("<ref-object>", "ref")) if value.get(name)))
        mark = next((mark for mark in held if any(mark in text for text in texts)), None)
        if mark is not None:
            told = f"its key {brief(key)} says what {brief(mark)} in its texts stands for, which is not read"
            raise InputError(f"{told}: write that itself into the texts")


def _marks(value: Any, depth: int) -> Iterator[str]:
    """The keys of objects in a value that look like marks: "<s0>"."""
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            if _MARK.fullmatch(key):
                yield key
            yield from _marks(item, depth - 1)


def _file_in(value: Any, depth: int) -> str | None:
    """The first name of a picture's or a video's file in a value, or the file itself as text."""
    if isinstance(value, str):
        return value if _INLINE.match(value) or _FILE.fullmatch(_name(value)) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((file for item in inner if (file := _file_in(item, depth - 1))), None) if depth else None


def _name(value: str) -> str:
    """An address without what is asked of it; any other text as it is."""
    return _ASKED.sub("", value) if "://" in value[:20] else value
