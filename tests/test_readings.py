"""Readings from files and flags: read by a rule that is said, or refused by place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from program import UserError
from readings import Table, reading

Read = Callable[..., tuple[list[float], str]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function from a file's text to its readings, and to how it says they are read."""

    def read(text: str, column: str | None = None, skip: int = 0) -> tuple[list[float], str]:
        path = tmp_path / "readings.csv"
        path.write_text(text, "utf-8", newline="")
        table = Table(str(path), column, skip)
        readings = [value for values in table.readings() for value in values]
        return readings, str(table)

    return read


LOGGER = 'Plot Title: 10\n"#","Date","Temp, F"\n1,x,70.5\n2,y,71\n'
READ = {  # text, column, lines to skip, readings, how it says they are read
    "commas": ("t,c\n1,2.5\n2,3\n", None, 0, [2.5, 3.0], "column 2, 'c': commas"),
    "semicolons": ("t;kWh\n1;12,5\n2;13,25\n", None, 0, [12.5, 13.25], "semicolons, decimal comma"),
    "semicolons, point": ("t;kWh\n1;12.5\n", None, 0, [12.5], "semicolons, decimal point"),
    "tabs": ("t\tv\n1\t2,5\n", None, 0, [2.5], "tabs, decimal comma"),
    "one column": ("v\n5\n-6.25e1\n", None, 0, [5.0, -62.5], "one cell a row, decimal point"),
    "no header": ("\n\n5\n6\n", None, 0, [5.0, 6.0], "column 1, no header: one cell"),
    "by number": ("12,5;3\n", "1", 0, [12.5], "column 1, no header"),
    "a name that is a number": ("2023,2024\n1,2\n", "2024", 0, [2.0], "column 2, '2024'"),
    "blanks around a name": (" temp ,x\n1,2\n", " temp", 0, [1.0], "column 1, 'temp'"),
    "a title line": (LOGGER, None, 1, [70.5, 71.0], "column 3, 'Temp, F': commas"),
    "a byte order mark": ("\ufeffa;b\n1;2,5\n", "a", 0, [1.0], "column 1, 'a'"),
    "a title of two lines": ('t;"v, x\n(C)"\n1;2,5\n', None, 0, [2.5], "semicolons, decimal comma"),
    "a row without anything": ("v\n5\n \n\n6\n", None, 0, [5.0, 6.0], "column 1, 'v'"),
    "words and empty cells": ("d,v\n1.1.,2\n,3\nn/a,4\n", None, 0, [2.0, 3.0, 4.0], "column 2"),
    "a column of words": ("room,v\nattic,2\nTotal,3\n", None, 0, [2.0, 3.0], "column 2"),
    "blank lines above": ("\n \nt;kWh\n1;12,5\n", None, 0, [12.5], "semicolons, decimal comma"),
    "a blank cell first": ("d,v\n1,2\n ,3\n", None, 0, [2.0, 3.0], "column 2, 'v'"),
    "a title after a number": ("2023,v\n1,2\n", "2", 0, [2.0], "column 2, 'v'"),
    "a title before a number": ("v,2023\n1,2\n", "1", 0, [1.0], "column 1, 'v'"),
    "lines of Windows": ("a,b\r\n1,2\r\n", None, 0, [2.0], "column 2, 'b'"),
}
REFUSED = {  # text, column, lines to skip, what the sentence says
    "a word in the only column": ("20\nx\n", None, 0, "line 2, column 1: 'x' is not .* 1e15$"),
    "a decimal comma between commas": ("20,5\n21,5\n", None, 0, "line 1 has 2 cells and no header"),
    "both signs in a number": (
        "d;v\nx;227.343,00\n",
        None,
        0,
        "line 2, column 2: '227.343,00', but",
    ),
    "both signs in a column": (
        "a;b\n1;2.5\n2;2,5\n",
        None,
        0,
        "line 3, column 2: '2,5', but a col",
    ),
    "a comma where commas separate nothing": (
        "v\n1,234\n",
        None,
        0,
        "1e15; write decimal points, or put",
    ),
    "a row of sums": ("d;kWh\n1.1.;12\nTotal;12\n", None, 0, "line 3 begins with 'Total'"),
    "no header and several cells": ("2023,2024\n1,2\n", None, 0, "--column 1 to 2"),
    "a short row": ("a,b\n1,2\n3\n", None, 0, "line 3 has 1 cell, and the first row has 2"),
    "a long row": ("temp,x\n1,22,5\n", "temp", 0, "line 2 has 3 cells, and the first row has 2"),
    "empty cells": ("a;b\n1;2\n;\n", None, 0, "line 3, column 2: '' is not a number"),
    "a title line": (LOGGER, None, 0, "cannot read .* line 2 as CSV"),
    "a units row": (
        "t,v\ns,degC\n1,2\n",
        None,
        0,
        "line 2, column 2: 'degC' .*--skip N leaves out",
    ),
    "no such column": (LOGGER, "x", 1, "no column 'x'; the first row has '#', 'Date', 'Temp, F'"),
    "no such number": ("a,b\n1,2\n", "3", 0, "there is no column '3'"),
    "two equal names": ("a,a\n1,2\n", "a", 0, "2 columns are named 'a'"),
    "a quote inside a cell": ('"20"5\n', None, 0, "line 1 as CSV"),
    "underscores": ("v\n1_000\n", None, 0, "'1_000' is not a number"),
    "digits of another script": ("v\n\u0661\n", None, 0, r"'\\u0661' is not a number"),
    "infinity": ("v\ninf\n", None, 0, "'inf' is not a number"),
    "too large a number": ("v\n1e16\n", None, 0, "'1e16' is not a number up to 1e15"),
    "a missing value that is no title": ("NaN\n5\n", None, 0, "line 1, column 1: 'NaN' is not"),
    "a missing value beside a text": ("x,n/a\ny,3\n", "2", 0, "line 1, column 2: 'n/a' is not"),
    "a half that is no title": ("½\n5\n", None, 0, r"line 1, column 1: '\\xbd' is not"),
    "a Roman numeral that is no title": ("Ⅷ\n5\n", None, 0, "line 1, column 1: .* is not"),
    "a dash that is no title": ("--\n5\n", None, 0, "line 1, column 1: '--' is not"),
    "another minus": ("\u22125\n5\n", None, 0, r"line 1, column 1: '\\u22125' is not"),
    "a minus before a blank": ("- 5\n5\n", None, 0, "line 1, column 1: '- 5' is not"),
    "a currency": ("$20\n5\n", None, 0, r"line 1, column 1: '\$20' is not"),
    "quotes around nothing": ('v\n5\n""\n6\n', None, 0, "line 3, column 1: '' is not"),
    "a number that may be a title": ("2,20.5\n3,21\n", "2", 0, "'2' may be a column's number"),
    "a title that may be a number": ("t,2,3\n1,5,6\n", "2", 0, "'2' may be a column's number"),
    "a number of a column without end": ("a,b\n1,2\n", "9" * 5000, 0, "there is no column '99"),
    "a number without end": (f"v\n{'1' * 100_000}x\n", None, 0, "'1{30}' is not a number"),
    "keys": (f"1:{'5a' * 32}\n", None, 0, "holds keys, and no readings$"),
    "keys below a title": (f"v\n5\n 12 : {'5A' * 16}\n", None, 0, "holds keys, and no readings$"),
    "a private key": (
        "-----BEGIN PRIVATE KEY-----\nMC4C\n",
        None,
        0,
        "holds keys, and no readings$",
    ),
    "UTF-16": ("\0v\0\n\x005\0\n", None, 0, "is not UTF-8"),
    "a header and nothing below": ("v\n", None, 0, "there are no readings in"),
    "nothing": ("", None, 0, "there are no readings in"),
    "a cell for the terminal": ("v\n\x1b[2J\n", None, 0, r"'\\x1b\[2J' is not"),
}


@pytest.mark.parametrize("case", READ)
def test_a_table_is_read_by_its_rule_and_says_how(read: Read, case: str) -> None:
    text, column, skip, expected, words = READ[case]
    readings, said = read(text, column, skip)
    assert readings == expected
    assert words in said


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_could_be_misread_is_refused_by_place(read: Read, case: str) -> None:
    text, column, skip, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        read(text, column, skip)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.csv: No such file"):
        Table(str(tmp_path / "none.csv"))


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    path.write_text("5\n6\n")
    stdin = SimpleNamespace(fileno=lambda: os.open(path, os.O_RDONLY))
    monkeypatch.setattr("sys.stdin", stdin)
    assert [*Table("-").readings()] == [[5.0], [6.0]]


def test_a_line_that_never_ends_is_refused(read: Read) -> None:
    """As those of /dev/zero."""
    with pytest.raises(UserError, match="line of 1,000,000 characters or more"):
        read("reading\n1\n" + "2" * 3_000_000)


@pytest.mark.parametrize(
    "text", ["1", "-1e3", "+2.", ".5", " 7 ", "1e15", "-1e15", "-0.0E5", "5e-324"]
)
def test_a_number_is_ascii_with_a_decimal_point(text: str) -> None:
    assert reading(text) == float(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1_000",
        "2_5",
        "1,5",
        "0x10",
        "nan",
        "inf",
        "1e16",
        "-1.1e15",
        "1e999",
        "1e-999",
        "\u0663",
    ],
)
def test_what_is_no_such_number_is_no_reading(text: str) -> None:
    with pytest.raises(ValueError):
        reading(text)
