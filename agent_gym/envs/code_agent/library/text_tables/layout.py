"""Text tables from rows of values."""

from typing import Any

from cells import align, cell_text


def column_widths(rows: list[list[Any]]) -> list[int]:
    """Return the length of the longest text in each column; rows may be of different lengths."""
    widths: list[int] = []
    for row in rows:
        for index, value in enumerate(row):
            if index == len(widths):
                widths.append(0)
            widths[index] = max(widths[index], len(cell_text(value)))
    return widths


def render(rows: list[list[Any]], separator: str) -> list[str]:
    """Return a line per row, numbers to the right and the rest to the left; missing cells are blank."""
    widths = column_widths(rows)
    lines = []
    for row in rows:
        parts = []
        for index, width in enumerate(widths):
            value = row[index] if index < len(row) else None
            side = "right" if isinstance(value, int | float) else "left"
            parts.append(align(cell_text(value), width, side))
        lines.append(separator.join(parts))
    return lines


def sort_rows(rows: list[list[Any]], column: int, descending: bool) -> list[list[Any]]:
    """Return the rows by the value in column, equal ones in their order; rows in which it is None come last.

    Raises IndexError if a row has no such column.
    """
    filled = [row for row in rows if row[column] is not None]
    empty = [row for row in rows if row[column] is None]
    return sorted(filled, key=lambda row: row[column], reverse=descending) + empty


def column_totals(rows: list[list[Any]]) -> list[int | float | None]:
    """Return the sum of the numbers in each column, None for a column without any."""
    totals: list[int | float | None] = [None] * len(column_widths(rows))
    for row in rows:
        for index, value in enumerate(row):
            if isinstance(value, int | float):
                totals[index] = (totals[index] or 0) + value
    return totals
