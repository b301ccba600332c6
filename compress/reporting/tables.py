"""One table type, rendered to Markdown, HTML and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.table import Table as RichTable
from rich.text import Text

from compress.reporting.escaping import escape_html, escape_markdown
from compress.reporting.formats import MISSING
from compress.text import printable


@dataclass(frozen=True)
class Column:
    """A header with its unit; numbers are aligned to the right."""

    header: str
    unit: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class ReportCell:
    """Text of a cell, and a note in smaller print."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Rows of cells (strings are cells without a note) under columns.

    Raises:
        ValueError: a row does not have as many cells as there are columns.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[ReportCell | str]]
    caption: str = ""
    highlight: int | None = None  # index of the row printed in bold

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns: {row}")

    def select(self, places: Sequence[int]) -> "ReportTable":
        """A table of the columns at `places`."""
        rows = [[row[place] for place in places] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in places], rows=rows)

    def without_empty_columns(self) -> "ReportTable":
        """A table without the columns in which no row has a value."""
        places = range(len(self.columns))
        known = [p for p in places if any(_parts(row[p])[0] != MISSING for row in self.rows)]
        return self.select(known) if self.rows else self

    def markdown(self) -> str:
        """A table of GitHub's Markdown; the highlighted row is bold."""
        heads = [escape_markdown(_join(column.header, column.unit)) for column in self.columns]
        rules = ["---:" if column.is_number else ":---" for column in self.columns]
        lines = [heads, rules]
        for place, row in enumerate(self.rows):
            cells = [escape_markdown(_join(*_parts(cell))) for cell in row]
            bold = place == self.highlight
            lines.append([f"**{cell}**" if bold and cell else cell for cell in cells])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        """The `<table>` element alone; the caption is the caller's."""
        head = "".join(_html_cell(one, one.header, one.unit, "col") for one in self.columns)
        kind = ' class="narrow"' if len(self.columns) <= 3 else ""
        lines = [f"<table{kind}>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
        for place, row in enumerate(self.rows):
            mark = ' class="highlight"' if place == self.highlight else ""
            cells = [
                _html_cell(column, *_parts(cell), scope="" if index else "row")
                for index, (column, cell) in enumerate(zip(self.columns, row, strict=True))
            ]
            lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
        return "\n".join([*lines, "</tbody>", "</table>"])

    def rich(self, title: str = "") -> RichTable:
        """The table for a terminal."""
        table = RichTable(
            title=_text(title) if title else None, caption=_text(self.caption), header_style="bold"
        )
        for column in self.columns:
            head = _text("\n".join(filter(None, (column.header, column.unit))))
            side: Literal["right", "left"] = "right" if column.is_number else "left"
            table.add_column(head, justify=side, overflow="fold")
        for place, row in enumerate(self.rows):
            cells = [_text("\n".join(filter(None, _parts(cell)))) for cell in row]
            table.add_row(*cells, style="bold" if place == self.highlight else None)
        return table


def _text(text: str) -> Text:
    """Text for a terminal, escaped before the widths of the columns are decided."""
    return Text(printable(text))


def _parts(cell: ReportCell | str) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else (cell.text, cell.note)


def _join(text: str, note: str) -> str:
    if text.endswith(")") and note:
        return f"{text}, {note}"
    return f"{text} ({note})" if note else text


def _html_cell(column: Column, text: str, note: str, scope: str = "") -> str:
    tag = "th" if scope else "td"
    kind = ' class="number"' if column.is_number else ""
    kind += f' scope="{scope}"' if scope else ""
    small = f"<small>{escape_html(note)}</small>" if note else ""
    return f"<{tag}{kind}>{escape_html(text)}{small}</{tag}>"
