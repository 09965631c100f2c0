"""Readings from files: read by rules that are said, or refused by place; nothing is guessed.

It knows no protocol but the largest number that a report may carry.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import sys
from collections.abc import Iterator
from typing import IO

from program import MOST_LINE, UserError, flag_type, plural, reason_of
from protocol_fsm import MAX_MAGNITUDE

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
ZERO = re.compile(r"[+-]?[0.]+(e|$)", re.IGNORECASE)
MISSING = re.compile(r"[\W_]*(nan|inf|infinity|n/?a|null|none)$|[-./?]+$", re.IGNORECASE)  # a value
KEY = re.compile(r"\s*([0-9]{1,3}\s*:\s*[0-9a-fA-F]{32}|-----BEGIN )")  # of a file of keys
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas"}  # the first one found separates cells


@flag_type("a number up to 1e15, with a decimal point")
def reading(text: str) -> float:
    """Return a number that a report may carry, with a decimal point if any. Raises WrongValue."""
    word = text.strip()
    if not NUMBER.fullmatch(word) or not abs(float(word)) <= MAX_MAGNITUDE:
        raise ValueError(text)
    if float(word) == 0 and not ZERO.match(word):  # 1e-999 is too small for a float
        raise ValueError(text)
    return float(word)


class Table:
    """A file of readings, one per row. Rules decide how it is read; nothing is guessed.

    Cells are separated by the first of tab, `;` and `,` that the first row has. A decimal comma is
    read only where that is a tab or `;`, and no column has both decimal signs. All rows have as
    many cells as the first, and none begins with a word (Total) where that has a value. Without
    `column` (a name, or a number from 1) the last one is read, and a file of several columns needs
    a header. Everything here raises UserError.
    """

    def __init__(self, path: str, column: str | None = None, skip: int = 0) -> None:
        self._path = path
        self._name = "standard input" if path == "-" else path
        self._skip = skip
        self._signs: set[str] = set()  # decimal signs that the column has
        self._rows = self._read()
        where, head = next(self._rows, (self._name, []))
        self._cells = [cell.strip() for cell in head]  # of the first row
        self._has_header = not self._is_numeric(0, len(head))
        self._column = self._find(column, where)
        if not self._has_header:
            self._rows = itertools.chain([(where, head)], self._rows)

    def _read(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the place and the cells of each row that is not blank."""
        try:
            source: int | str = sys.stdin.fileno() if self._path == "-" else self._path
            with open(source, encoding="utf-8-sig", errors="replace", newline="") as file:
                yield from self._cut(self._lines(file))
        except OSError as error:
            raise UserError(f"cannot read {self._name}: {reason_of(error)}") from None

    def _lines(self, file: IO[str]) -> Iterator[str]:
        """Yield lines, each of which has an end: /dev/zero is one without."""
        while line := file.readline(MOST_LINE):
            if len(line) == MOST_LINE:
                raise UserError(f"{self._name} has a line of {MOST_LINE:,} characters or more")
            if KEY.match(line):  # which no error must quote
                raise UserError(f"{self._name} holds keys, and no readings")
            yield line

    def _cut(self, lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
        numbered = ((n, line) for n, line in enumerate(lines, 1) if n > self._skip and line.strip())
        number, first = next(numbered, (0, ""))
        if "\0" in first:
            raise UserError(f"{self._name} is not UTF-8 (UTF-16?); save it as UTF-8 text")
        self._separator = separator_of(first)  # nothing if the first row has one cell
        rows = csv.reader(
            itertools.chain([first], lines), delimiter=self._separator or "\t", strict=True
        )
        try:
            for cells in rows:
                if len(cells) > 1 or (cells and not cells[0].isspace()):
                    yield f"{self._name} line {number - 1 + rows.line_num}", cells
        except csv.Error as error:
            place = f"{self._name} line {number - 1 + rows.line_num}"
            raise UserError(f"cannot read {place} as CSV: {str(error)!a}") from None

    def _is_numeric(self, start: int, end: int) -> bool:
        """Return whether one of these cells of the first row is a value, and no title."""
        return not all(map(is_title, self._cells[start:end]))

    def _find(self, column: str | None, where: str) -> int:
        """Return the index of the column to read, and note whether the first row is a header."""
        count = len(self._cells)
        if column is None:
            if count > 1 and not self._has_header:
                words = f"{count} cells and no header; name a column: --column 1 to {count}"
                raise UserError(f"{where} has {words}")
            return count - 1
        name = column.strip()
        numbers = [str(number) for number in range(1, count + 1)]
        if self._cells.count(name) > 1:
            raise UserError(f"{where}: {self._cells.count(name)} columns are named {name!a}")
        if name in self._cells and name in numbers:
            words = "may be a column's number, or its name in the first row; --skip a header of"
            raise UserError(
                f"{where}: {name!a} {words} numbers, and give a file without one titles"
            )
        if name in self._cells:
            self._has_header = True
            return self._cells.index(name)
        if name not in numbers:
            raise UserError(f"{where}: there is no column {name!a}; {self._hint()}")
        index = numbers.index(name)
        self._has_header = not self._is_numeric(index, index + 1)
        return index

    def _hint(self) -> str:
        cells = ", ".join(map(ascii, self._cells))
        return f"the first row has {cells}; --skip N leaves out N lines before the header"

    def readings(self) -> Iterator[list[float]]:
        """Yield one reading per row, and at least one."""
        number = -1
        label = ""
        for number, (where, cells) in enumerate(self._rows):
            label = label or cells[0].strip()
            self._check_row(where, cells, label)
            cell = cells[self._column].strip()
            place = f"{where}, column {self._column + 1}"
            try:
                yield [reading(self._with_point(cell, place))]
            except ValueError:
                hint = f"; {self._hint()}" if number == 0 else ""
                if "," in cell:
                    hint = "; write decimal points, or put tabs or semicolons between the cells"
                raise UserError(
                    f"{place}: {cell[:30]!a} is not a number up to 1e15{hint}"
                ) from None
        if number < 0:
            raise UserError(f"there are no readings in {self._name}")

    def _check_row(self, where: str, cells: list[str], label: str) -> None:
        """Refuse a row of another shape, and one with a word where the first has a value: a sum."""
        if len(cells) != len(self._cells):
            counts = f"{plural(len(cells), 'cell')}, and the first row has {len(self._cells)}"
            raise UserError(f"{where} has {counts}; {self._hint()}")
        own = cells[0].strip()
        if self._column and own and not is_title(label) and is_title(own):
            raise UserError(
                f"{where} begins with {own[:30]!a}, and rows before it with values like "
                f"{label[:30]!a}; if it is a sum or a remark, leave it out of the file"
            )

    def _with_point(self, cell: str, place: str) -> str:
        """Return a number with a decimal point, whichever sign its column has."""
        self._signs.update(sign for sign in ".," if sign in cell)
        if len(self._signs) > 1:
            raise UserError(f"{place}: {cell[:30]!a}, but a column has one decimal sign, . or ,")
        return cell.replace(",", ".") if self._separator in ("\t", ";") else cell

    def __str__(self) -> str:
        """Say how it is read."""
        title = f"{self._cells[self._column]!a}" if self._has_header else "no header"
        cells = SEPARATORS[self._separator] if self._separator else "one cell a row"
        sign = "comma" if "," in self._signs else "point"
        return f"reads column {self._column + 1}, {title}: {cells}, decimal {sign}"


def is_title(cell: str) -> bool:
    """Return whether it may stand above a column: it begins with a letter, or is a mere sign."""
    first = next(filter(str.isalnum, cell), "a")
    return first.isalpha() and not MISSING.match(cell)


def separator_of(line: str) -> str:
    """Return the first of tab, `;` and `,` that cuts a line into cells; nothing if none does."""
    for separator in SEPARATORS:
        with contextlib.suppress(csv.Error):
            if len(next(csv.reader([line], delimiter=separator), [])) > 1:
                return separator
    return ""
