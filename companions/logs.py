"""The logs of the companions' servers and clients: on a stream, in a file, or nowhere."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TextIO

from program import Lines, UserError, escaped, fitted, indented, reason_of


class LineFormatter(logging.Formatter):
    """One event in one line, after its time in UTC; characters that could break it are escaped."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))


class ScreenFormatter(LineFormatter):
    """The same, cut to fit the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return fitted(indented(super().format(record)))


def _open_log(path: Path) -> TextIO:
    """Open a log file (mode 0600), and its folder, for as long as we run. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"cannot log to {path}: {reason_of(error)}") from None
    return open(file, "a", encoding="utf-8", errors="backslashreplace")


def start_log(path: Path | None, stream: TextIO | Lines | None, level: int = 0) -> None:
    """Log to a stream, from a level on, and to a file, as far as there are any. Raises UserError.

    Passwords and keys are never in it. A log that cannot be written disturbs no session.
    """
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if stream:
        screen = logging.StreamHandler(stream)
        screen.setLevel(level)
        screen.setFormatter(ScreenFormatter())
        handlers.append(screen)
    if path:
        file = logging.StreamHandler(_open_log(path))
        file.setFormatter(LineFormatter())
        handlers.append(file)
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.INFO, handlers=handlers)
