"""Tables in an answer, in Markdown and in HTML, as olmOCR-Bench reads them: cells, and heads above and beside them.

Source: allenai/olmocr 0.4.27 bench/tests.py (parse_markdown_tables, parse_html_tables). There a cell that spans several
columns has one entry in its row, and one that spans several rows has an entry in each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppe_npu.evaluation.metrics.markup import Element, read_markup

_WIDEST = 1000  # columns or rows that one cell may span


@dataclass
class Table:
    """A table's cells and heads.

    Attributes:
        rows: texts of the cells; all rows have equal length after pad().
        head_rows, head_columns: numbers of the rows and columns that are heads.
        above, beside: number of a column, or of a row -> texts that head it.
    """

    rows: list[list[str]]
    head_rows: set[int] = field(default_factory=set)
    head_columns: set[int] = field(default_factory=set)
    above: dict[int, list[str]] = field(default_factory=dict)
    beside: dict[int, list[str]] = field(default_factory=dict)

    def pad(self) -> Table:
        """Append empty cells to short rows; returns the table itself."""
        longest = max(map(len, self.rows), default=0)
        self.rows = [row + [""] * (longest - len(row)) for row in self.rows]
        return self


def markdown_tables(text: str) -> list[Table]:
    """The tables in a Markdown text: every run of two or more lines with a bar; first row and column are heads."""
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
    """The tables of an HTML text; None if one cannot be read (an invalid span, too deep nesting)."""
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
    """Reads one <table> row by row into `table`."""

    def __init__(self, element: Element) -> None:
        self.table = Table([])
        self._taken: dict[tuple[int, int], str] = {}  # (row, column) covered by a spanning cell -> text there
        self._wide: dict[str, set[int]] = {}  # heads that span several columns, and these columns
        self._high: dict[str, set[int]] = {}  # heads that span several rows, and these rows
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
        """Mark the positions that a cell spans: those directly below it get its text, the others an empty one."""
        for down in range(min(high, self._many - number)):  # a span may exceed the number of rows
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
        """Apply heads that span several columns to all columns from their first on, those that span several rows to
        these rows, and the cells of head columns to their rows."""
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
