"""Colours and width on a terminal; in a pipe nothing is coloured, and lines have 79 columns.

And commands that are shown, to be typed again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import textwrap

NARROW = 80
WIDE = 120  # longer lines are hard to read from the back row
COLOURS = {
    "refused": "32",
    "not prevented": "33",
    "won": "1;31",
    "wrong": "1;31",
    "title": "1",
    "faint": "2",
}


def columns() -> int:
    """Return how long lines may be on stdout."""
    if not sys.stdout.isatty():
        return NARROW - 1
    return min(max(shutil.get_terminal_size().columns, NARROW), WIDE) - 1


def wrapped(text: str) -> str:
    """Cut lines to fit stdout, between words; what is cut off is indented two columns more."""
    return "\n".join(map(_wrapped_line, text.split("\n")))


def _wrapped_line(line: str) -> str:
    margin = len(line) - len(line.lstrip())
    indent = " " * (margin + 2)
    return textwrap.fill(line, columns(), subsequent_indent=indent, break_on_hyphens=False)


def is_coloured() -> bool:
    """Return whether stdout is a terminal whose user has not asked for no colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if sys.platform == "win32":
        os.system("")  # lets an old console of Windows obey colours
    return True


def painted(text: str, kind: str) -> str:
    """Return text in the colour of a kind, one of COLOURS, where there are colours."""
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if is_coloured() else text


def as_typed(word: str | os.PathLike[str]) -> str:
    """Return a word as one types it in a command, on Windows or at a POSIX shell."""
    text = os.fspath(word)
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)


def passing(text: str) -> None:
    """Show a line that the next one overwrites; in a pipe show nothing."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{text:<{NARROW - 1}}\r")
        sys.stdout.flush()
