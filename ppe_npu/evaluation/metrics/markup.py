"""HTML tables as trees of elements. Elements that are left open are closed as libxml2 does, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_DEEPEST = 200  # levels of nested elements
_EMPTY = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"]
)
_ROWS = frozenset(("tbody", "tfoot", "tr"))
_CELLS = _ROWS | {"td", "th"}
_BLOCKS = _CELLS | {"table", "thead", "p", "div", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6"}
# Open element -> elements whose start tags close it (libxml2's HTMLparser.c, for elements that occur in tables).
_ENDS_ON = {
    "td": _CELLS,
    "th": _CELLS,
    "tr": _ROWS,
    "thead": frozenset(("tbody", "tfoot")),
    "tbody": frozenset(("tbody", "tfoot")),
    "tfoot": frozenset(("tbody",)),
    "caption": _ROWS | {"col", "colgroup", "thead"},
    "a": frozenset(("a", "table", "td", "th")),
    **dict.fromkeys(("b", "i", "u", "font"), frozenset(("td", "th"))),
    **dict.fromkeys(("p", "h1", "h2", "h3", "h4", "h5", "h6"), _BLOCKS),
    "li": frozenset(("li",)),
}
# An end tag closes no element of a higher rank than its own.
_RANKS = {"div": 150, "td": 160, "th": 160, "tr": 170, "thead": 180, "tbody": 180, "tfoot": 180, "table": 190}
_RANKS |= {"head": 200, "body": 200, "html": 220}


@dataclass
class Element:
    """An element: its name, its attributes, and its texts and elements in order."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    content: list[str | Element] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        """The elements directly inside this one."""
        return [part for part in self.content if isinstance(part, Element)]

    def below(self) -> Iterator[Element]:
        """All elements inside this one, each before its own descendants."""
        for child in self.children:
            yield child
            yield from child.below()

    def text(self) -> str:
        """All text inside this element."""
        return "".join(part if isinstance(part, str) else part.text() for part in self.content)


def read_markup(text: str, closing: bool) -> Element | None:
    """The elements of a text, inside a root without a name; None if they are nested deeper than _DEEPEST.

    Args:
        closing: whether a cell or row that is left open ends where the next one starts, as in lxml; else it contains
            what follows, as with BeautifulSoup's "html.parser".
    """
    reader = _Reader(closing)
    reader.feed(text)
    reader.close()
    return None if reader.too_deep else reader.root


class _Reader(HTMLParser):
    def __init__(self, closing: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("")
        self.too_deep = False
        self._open = [self.root]
        self._closing = closing

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._closing:
            if tag in ("html", "body") and any(element.tag == tag for element in self._open):
                return
            while tag in _ENDS_ON.get(self._open[-1].tag, ()):
                self._open.pop()
        element = Element(tag, {name: value or "" for name, value in reversed(attrs)})
        self._open[-1].content.append(element)
        if tag in _EMPTY:
            return
        self._open.append(element)
        self.too_deep |= len(self._open) > _DEEPEST

    def handle_endtag(self, tag: str) -> None:
        for number in range(len(self._open) - 1, 0, -1):
            found = self._open[number].tag
            if found == tag:
                del self._open[number:]
                return
            if self._closing and _RANKS.get(found, 100) > _RANKS.get(tag, 100):
                return

    def handle_data(self, data: str) -> None:
        self._open[-1].content.append(data)
