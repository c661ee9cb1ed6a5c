"""The forms in which other programs write a picture or a video into a text, one per row of FORMS.

There are two kinds. A word that some program replaces by a file (<image_2>, [IMG]) counts anywhere in a text. Markup
that shows a file when the text is rendered (HTML, Markdown, a line that is a file's name) does not count in code,
between backticks.

To find another form, add a row with an example; tests/training/test_record_places.py holds texts that must be found,
and innocent ones that must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# -- files -------------------------------------------------------------------------------------------------------------

PICTURE = r"jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|heic"
FILM = r"mp4|m4v|mkv|webm|avi|mov|flv|wmv|mpe?g"  # not .ts, which is TypeScript's
ENDING = rf"\.(?:{PICTURE}|{FILM})"
PICTURE_BYTES = r"iVBORw0KGgo|/9j/|R0lGOD|UklGR"  # how base64 of PNG, JPEG, GIF and WebP begins
FILM_BYTES = r"AAAA..Z0eX|GkXfo"  # and of MP4 and Matroska
MORE_BYTES = r"[A-Za-z0-9+/\r\n]{16}"
_DATA = r"data:(?:image|video)/[\w.+-]{1,100};base64,"
_PAGE_ENDING = r"\.(?:svg|html?|php|aspx?|jsp|pdf|js|css|json|xml|txt|mp3|wav|ogg)"
_SOURCE_ENDING = (
    r"\.(?:txt|md|pdf|docx?|csv|json|xml|ya?ml|toml|ini|log|html?|css|m?js|tsx?|py|ipynb|c|cpp|h|java|go|rs|rb|php"
    r"|sh|tex|zip|gz|svg|ico|npy|npz|pfm|pt|pth|pkl|wav|mp3)"
)
_URL = r"[^\s\"'<>()?#]{0,500}"
# A file in a tag or a link: its name, or an address that may lead to one.
_SHOWN = (
    rf"(?:[^\s\"'<>()]{{0,500}}{ENDING}\b|data:|attachment:"
    rf"|(?:https?|file|s3|gs|oss|hf)://(?!{_URL}{_PAGE_ENDING}(?:[\s\"'<>()?#]|$)))"
)

# -- words -------------------------------------------------------------------------------------------------------------

_SHORT = r"img|vid|media|pic|picture|photo|frame"
_ANY = rf"(?:image|video|{_SHORT})"
_PARTS = (  # after a word, in <image_2>, <ImageHere>
    r"(?:[ _:#.-]{0,2}(?:\d{1,4}|(?:soft_)?tokens?|pad|placeholder|plh|ph|context|here|patch|start|begin|end|content"
    r"|sep|break|newline|embeds?|features?)){1,2}"
)
_OF = r"(?:(?:start|begin|end)_of_|fake_token_around_|global[-_]|vila/)"  # before a word
_BARS = r"[|_#]{1,2}"  # around a word, in <|image|>, <__image__>, <##IMAGE##>
_END = rf"\s*/?(?:{_BARS})?>"
_TAG_END = r"s?\s*/?>"
_ATTRIBUTES = r"(?:[^<>\"']|\"[^\"<]{0,300}\"|'[^'<]{0,300}'){0,500}?"  # of a tag, before that which names its file
_BOX = r"\[[^\]\n]{0,500}\]"  # [a cat]
_FILLED = r"(?-i:(?:image|img|video)s?|(?:IMAGE|IMG|VIDEO)S?)(?:[_ ]?\d{1,3}|_placeholder)?"  # no {Image}: JavaScript's
_SEEN = r"(?:image|img|video|picture|photo|screenshot)"  # [image], [Photo 2]
_LABEL = (
    r"(?:image|img|picture|photo|video|frame)(?:[ _-]?(?:path|file|name|url))?\s?#?\d{0,3}\s?[:=]\s*"  # image 1: a.png
)
_SENTENCE = r"(?:[^\s/\u3040-\u9fff]*[\u3040-\u9fff]){6}"  # six Chinese or Japanese characters before any slash
_NAME = rf"(?:\w{{2,10}}://\S{{1,2000}}|(?!{_SENTENCE})[^\s*={{}}|<>\"'`$();,!]{{1,2000}}){ENDING}(?:[?#]\S{{0,2000}})?"
_FROM, _TO = r"^\s{0,20}[<>]{0,2}", r"[<>]{0,2}\s{0,20}$"  # around a form that is alone on its line

# -- where a form is innocent ------------------------------------------------------------------------------------------

_PAGE_SIGN = (
    r"<!doctype|<\?xml\b|\bclassName=|^[ \t]*(?:import\b.{1,200}\bfrom|export default)\b"
    r"|</?(?:html|head|body|script|style|link|meta|nav|form|button|input|header|footer|main|template|svg|rss)\b"
)
_PAGE = re.compile(_PAGE_SIGN, re.IGNORECASE | re.MULTILINE)  # source of a web page; users of forums write other tags
_HTML = re.compile(
    rf"{_PAGE_SIGN}|</?(?:div|span|section|article|table|td|tr|ul|ol|li|h[1-6]|audio|canvas|figcaption|iframe)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LISTING = re.compile(rf"{_FROM}[\w./-]{{1,2000}}{_SOURCE_ENDING}{_TO}", re.IGNORECASE | re.MULTILINE)
# Text right before or after an innocent match:
_INDEXED = r"[\w)\]]"  # x[IMG]
_ARGUED = rf"{_INDEXED}|[=,(] ?"  # plot([image]), a = [image]
_PROGRAM = r"[\w\]}$=\\'\"{(>/:#%@.-]"  # f'{image}', ${image}, src={image}, /{image}, <p>{image}
_QUOTED = r"['\"\w]|</"  # '{image}', {image}</p>
_LINKED = r"\("  # [IMG](a.html)
_TAKEN = r"[(\[:\w]"  # [image](a.html), [image][1], [image]: a.html


@dataclass(frozen=True)
class Form:
    """One way to write a picture or a video.

    Args:
        example: a text that this row finds, and no row before it does.
        pattern: a regular expression for the form; upper and lower case are the same.
        not_after, not_before: regular expressions for text right before, or right after, an innocent match.
        code: whether it counts in code, between backticks, too.
        alone: whether it counts only in a record without a picture or a video of its own.
        unless: a pattern that makes all matches innocent if it occurs anywhere in the text.
    """

    example: str
    pattern: str
    not_after: str = r"(?!)"
    not_before: str = r"(?!)"
    code: bool = False
    alone: bool = False
    unless: re.Pattern[str] | None = None

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
        pattern = re.compile(self.pattern, re.IGNORECASE | re.MULTILINE)
        return pattern, re.compile(rf"(?:{self.not_after})\Z"), re.compile(self.not_before)

    def places(self, text: str) -> Iterator[str]:
        """The matches in a text, without the innocent ones."""
        pattern, not_after, not_before = self._compiled
        for found in pattern.finditer(text):
            before = text[max(0, found.start() - 10) : found.start()]
            if not not_after.search(before) and not not_before.match(text, found.end()):
                yield found[0].strip()


FORMS = (
    # Words that programs replace by a file.
    Form("<|image|>", rf"<{_BARS}{_OF}?{_ANY}(?:{_PARTS})?{_END}", code=True),  # <|image_2|>, <__media__>
    Form("<start_of_image>", rf"<{_OF}{_ANY}(?:{_PARTS})?{_END}", code=True),
    Form("<image_2>", rf"<{_ANY}{_PARTS}{_END}", code=True),  # <ImageHere>, <IMG_CONTEXT>
    Form("<IMAGE>", rf"<(?:image|video){_END}", code=True),
    Form("<im_patch>", r"<(?:im|vi|vid)_(?:patch|start|end|col)>", code=True),
    Form("<img>a.png</img>", r"<img>[^<\n]*</img>", code=True),
    Form(
        "[IMG]",  # [IMG_BREAK], [VIDEO 2], [<IMG_PLH>]
        r"\[<?(?-i:(?:IMG|IMAGE|VIDEO)(?:[ _-]?(?:\d{1,4}|BREAK|END|PLH|TOKEN|PLACEHOLDER))?)>?\]",
        not_after=_INDEXED,
        not_before=_LINKED,
        code=True,
    ),
    Form("[img-2]", r"\[(?-i:img)-\d{1,4}\]", code=True),
    # Tags that name a file, and bare tags.
    Form('<img src="a.png"', rf"<(?:{_ANY}|source|embed|object)\b{_ATTRIBUTES}[=:]\s*\\?[\"']?{_SHOWN}", unless=_PAGE),
    Form("<img>", rf"<(?:img|vid|image|video){_TAG_END}", not_after="/", unless=_HTML),
    Form(  # <Photo> is a component in a program
        "<photo>", rf"<(?-i:(?![A-Z][a-z]))(?:{_SHORT}|fig|figure|screenshot){_TAG_END}", not_after="/", unless=_HTML
    ),
    # Files shown in Markdown and on forums.
    Form("![a cat](a.png", rf"!{_BOX}\(\s*<?(?:{_SHOWN}|[^()\n<>]{{1,300}}{ENDING}\b)"),
    Form(
        "![a cat][1]\n\n[1]: a.png",
        rf"!{_BOX}{_BOX}(?s:.{{0,4000}}?)\n[ \t]*{_BOX}:[ \t]*<?{_SHOWN}",
    ),
    Form("![[a.png]]", rf"!\[\[[^\]\n]{{1,300}}{ENDING}\b[^\]\n]{{0,100}}\]\]"),
    Form("[img]a.png[/img]", r"\[img[^\]\n]{0,100}\][^\[\n]{1,500}\[/img\]"),
    # Template variables.
    Form(
        "{image}",
        rf"\{{{_FILLED}\}}",
        not_after=rf"{_PROGRAM}|(?:import|export|return) ",
        not_before=rf"{_QUOTED}|;|\s*(?:=|from\b)",
    ),
    Form("{{image}}", rf"\{{\{{\s*{_FILLED}\s*\}}\}}", not_after=_PROGRAM, not_before=_QUOTED),
    Form("[图片]", r"[<\[【](?:图片|图像|照片|视频)\s?\d{0,3}[>\]】]", not_before=_LINKED),
    Form("<图2>", r"<图\s?\d{0,3}>"),
    Form("[image]", rf"\[{_SEEN}(?:[\s_-]?#?\d{{1,3}})?\]", not_after=_ARGUED, not_before=_TAKEN, alone=True),
    Form("[image: a.png]", rf"\[{_SEEN}:[^\]\n]{{1,300}}{ENDING}\]", not_after=_ARGUED, not_before=_TAKEN, alone=True),
    # A file's content, but not in a style sheet or a string; and a line that is only a file's name.
    Form("data:image/png;base64,", rf"{_FROM}(?-i:{_DATA}|(?:{PICTURE_BYTES}|{FILM_BYTES}){MORE_BYTES})"),
    Form("It is data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA", rf"(?-i:{_DATA}[A-Za-z0-9+/]{{16}})", not_after=r"\S"),
    Form("photos/cat.jpg", rf"{_FROM}(?:{_LABEL})?{_NAME}{_TO}", alone=True, unless=_LISTING),
)

# -- finding -----------------------------------------------------------------------------------------------------------

# Text in which no form is looked for: this package's placeholders; a tag around them; a type in a program, List<Image>.
# (The look-behind comes after the "<" because `re` is faster so.)
_INNOCENT = re.compile(
    r"<(?:image|video)>|<((?i:image|img|video|vid|pic|picture|photo))>\s*(?:<(?:image|video)>\s*)+</(?i:\1)>"
    r"|<(?<=[A-Za-z0-9_]<)[A-Z][a-z]{1,40}>"
)
_CODE = re.compile(
    r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1|\Z)"  # a block between two lines
    r"|(?<!`)(`{2,})(?!`)[^\n]{1,1000}?(?<!`)\2(?!`)"  # ``a ` b``
    r"|(?<!`)`(?![`\s])[^`\n]*(?<!\s)`(?!`)",  # `a`
    re.DOTALL | re.MULTILINE,
)
_NUMBERED = re.compile(r"[<\[{【|_#]*[^\W\d_]+[ _:#.-]{0,2}(\d{1,4})\W*")  # <image_2>


def find_place(text: str, own: int) -> str | None:
    """Text that another program would replace by a picture or a video; None if there is none. `own` is the number of
    visuals that the record names: <image_2> is plain text if it names two."""
    prose = _CODE.sub("``", text) if "`" in text or "~~~" in text else text
    whole, prose = _INNOCENT.sub("``", text), _INNOCENT.sub("``", prose)
    for form in FORMS:
        if own and form.alone:
            continue
        asked = whole if form.code else prose
        place = next((place for place in form.places(asked) if not _is_own(place, own)), None)
        if place is not None and not (form.unless and form.unless.search(asked)):
            return place
    return None


def _is_own(place: str, own: int) -> bool:
    number = _NUMBERED.fullmatch(place) if own else None
    return number is not None and int(number[1]) <= own
