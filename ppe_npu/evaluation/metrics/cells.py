"""Tables in an answer, in Markdown and in HTML, as olmOCR-Bench reads them: their cells and the heads above and beside.

Source: allenai/olmocr 0.4.27 bench/tests.py (parse_markdown_tables, parse_html_tables). A cell over several columns
takes one place in its row there, one over several rows a place in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppe_npu.evaluation.metrics.markup import Element, read_markup

_WIDEST = 1000  # columns or rows that one cell may span


@dataclass
class Table:
    """Rows of cells, all as long, and of columns and rows by number the texts that head them."""

    rows: list[list[str]]
    head_rows: set[int] = field(default_factory=set)
    head_columns: set[int] = field(default_factory=set)
    above: dict[int, list[str]] = field(default_factory=dict)
    beside: dict[int, list[str]] = field(default_factory=dict)

    def pad(self) -> Table:
        """Itself, with empty cells at the ends of short rows."""
        longest = max(map(len, self.rows), default=0)
        self.rows = [row + [""] * (longest - len(row)) for row in self.rows]
        return self


def markdown_tables(text: str) -> list[Table]:
    """Every run of two lines and more with a bar in them; the first row and the first column are heads."""
    runs: list[list[str]] = [[]]
    for line in text.strip().split("\n"):
        if "|" in line:
            runs[-1].append(line)
        elif runs[-1]:
            runs.append([])
    tables = [Table(rows).pad() for run in runs if len(run) > 1 and (rows := _lines(run))]
    for table in tables:
        table.head_rows = {0}
        table.head_columns = {0}
        table.above = {number: [text] for number, text in enumerate(table.rows[0])}
        table.beside = {number: row[:1] for number, row in enumerate(table.rows) if number}
    return tables


def _lines(run: list[str]) -> list[list[str]]:
    rules = [number for number, line in enumerate(run) if (bare := line.replace("|", "").strip()) and not _said(bare)]
    rows = []
    for number, line in enumerate(run):
        if number in rules[:1] or (line.strip() and not _said(line.replace("|", ""))):
            continue
        cells = [cell.strip() for cell in line.split("|")]
        cells = cells[1:] if cells[0] == "" else cells
        cells = cells[:-1] if cells and cells[-1] == "" else cells
        rows += [cells] if cells else []
    return rows


def _said(text: str) -> bool:
    return any(sign not in "- :" for sign in text)


def html_tables(text: str) -> list[Table] | None:
    """Every <table>; None where one cannot be read (a span that is no number)."""
    root = read_markup(text, closing=False)
    if root is None:
        return None
    found = []
    for element in root.below():
        if element.tag == "table":
            try:
                table = _Reading(element).table
            except ValueError:
                return None
            found += [table] if table.rows else []
    return found


class _Reading:
    """One <table>, read row by row."""

    def __init__(self, element: Element) -> None:
        self.table = Table([])
        self._taken: dict[tuple[int, int], str] = {}  # places that cells above or to the left span
        self._wide: dict[str, set[int]] = {}  # heads over several columns
        self._high: dict[str, set[int]] = {}  # heads over several rows
        rows = [part for part in element.below() if part.tag == "tr"]
        heads = next((part for part in element.below() if part.tag == "thead"), None)
        held = {id(part) for part in heads.below()} if heads else set()
        self.table.head_rows |= {number for number, row in enumerate(rows) if id(row) in held}
        self._many = len(rows)
        for number, row in enumerate(rows):
            self._row(number, row)
        self._spread()
        self.table.pad()

    def _row(self, number: int, row: Element) -> None:
        cells = [part for part in row.below() if part.tag in ("th", "td")]
        if any(cell.tag == "th" for cell in cells):
            self.table.head_rows.add(number)
        texts: list[str] = []
        column = 0
        for cell in cells:
            while (number, column) in self._taken:
                texts.append(self._taken[number, column])
                column += 1
            text = _text(cell).strip()
            high, wide = (_span(cell, name) for name in ("rowspan", "colspan"))
            texts.append(text)
            self._take(number, column, high, wide, text)
            self._head(cell.tag, number, column, high, wide, text)
            column += wide
        self.table.rows.append(texts)

    def _take(self, number: int, column: int, high: int, wide: int, text: str) -> None:
        """Mark the places of a cell: those directly below hold its text, the others none."""
        for down in range(min(high, self._many - number)):  # a table has no more rows than it has
            for right in range(wide):
                if down or right:
                    self._taken[number + down, column + right] = text if right == 0 else ""

    def _head(self, tag: str, number: int, column: int, high: int, wide: int, text: str) -> None:
        below = range(number + 1, min(number + high, self._many))
        if tag == "th":
            columns = range(column, column + wide)
            self.table.head_columns |= set(columns)
            self.table.head_rows |= set(below)
            for at in columns:
                self.table.above.setdefault(at, []).append(text)
            if text and wide > 1:
                self._wide.setdefault(text, set()).update(columns)
            if text and high > 1:
                self._high.setdefault(text, set()).update(range(number, number + high))
        elif high > 1 and column in self.table.head_columns:
            for at in below:
                self.table.beside.setdefault(at, []).append(text)

    def _spread(self) -> None:
        """Wide heads hold for all columns from theirs on, high ones for their rows; head columns for each row."""
        table = self.table
        longest = max((len(row) for number, row in enumerate(table.rows) if number not in table.head_rows), default=0)
        for text, columns in self._wide.items():
            for at in range(min(columns), longest):
                table.above.setdefault(at, []).append(text)
        for text, rows in self._high.items():
            for at in rows:
                if at < len(table.rows):
                    table.beside.setdefault(at, []).append(text)
        for column in table.head_columns:
            for number, row in enumerate(table.rows):
                if column < len(row) and row[column].strip():
                    table.beside.setdefault(number, []).append(row[column])


def _span(cell: Element, name: str) -> int:
    found = int(cell.attributes.get(name, "1"))
    if found > _WIDEST:
        raise ValueError(f"a cell spans {found} rows or columns")
    return found


def _text(cell: Element) -> str:
    parts = []
    for part in cell.content:
        parts.append(part if isinstance(part, str) else "\n" if part.tag == "br" else _text(part))
    return "".join(parts)
