"""What every program here needs: flags, sentences for people, exit codes, output that never blocks.

A program is a `main` that returns an exit code, run by `run_program`. Invalid input of any kind
is a UserError: one sentence on stderr, and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """Invalid input; the message is a sentence for the user."""

    exit_code = 2


class NoConnection(UserError):
    """There is no server to reach, or no port to listen on."""

    exit_code = 3


class Parser(argparse.ArgumentParser):
    """A parser of flags; a wrong one is a UserError like any other."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)

    def options(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the flags of this command line, or of these words. Raises UserError."""
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def seconds(text: str) -> float:
    """Return a finite number above 0. Raises ValueError."""
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def positive(text: str) -> int:
    """Return a whole number above 0. Raises ValueError."""
    if not 1 <= int(text) <= sys.maxsize:
        raise ValueError(text)
    return int(text)


def port_number(text: str) -> int:
    """Return a TCP port; 0 lets the system choose. Raises ValueError."""
    if not 0 <= int(text) <= 65_535:
        raise ValueError(text)
    return int(text)


def host_and_port(text: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(text)
    return host.strip("[]"), port_number(port)


host_and_port.__name__ = "HOST:PORT"  # for argparse, which quotes it


class Lines:
    """Non-blocking stderr: what a paused terminal does not take is dropped.

    Otherwise anyone who selects text in the server's window would stop all of its clients.
    """

    def __init__(self) -> None:
        self._texts: queue.Queue[str] = queue.Queue(10_000)
        threading.Thread(target=self._print, daemon=True).start()

    def write(self, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(text)

    def write_line(self, line: str) -> None:
        self.write(f"{line}\n")

    def drain(self) -> None:
        """Wait until all is printed, but not longer than half a second."""
        deadline = time.monotonic() + 0.5
        while self._texts.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _print(self) -> None:
        while True:
            text = self._texts.get()
            with contextlib.suppress(OSError):  # sys.stderr's lock is needed at the end
                os.write(2, text.encode(sys.stderr.encoding, "backslashreplace"))
            self._texts.task_done()


def escaped(text: str) -> str:
    """Return text in which nothing moves a cursor, breaks a line, is hidden or turned round."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def to_stderr(text: str) -> None:
    """Print lines where they disturb no output, escaped; failures are ignored."""
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(map(escaped, text.split("\n"))), file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, without the rest."""
    reason: str = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        known = os.strerror(error.errno)
        return reason if known.startswith("Unknown error") else known  # of Windows' sockets
    return reason


def read_text(path: Path) -> str:
    """Return a text file, which is UTF-8 and may begin with a byte order mark. Raises UserError."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def write_text(path: str, text: str) -> None:
    """Write a file of ASCII lines, the same on every system. Raises UserError."""
    try:
        with open(path, "w", encoding="ascii", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, and exit with its code or with one sentence on stderr; tidily on SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace" if mode == "r" else "backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        to_stderr(escaped(f"{Path(sys.argv[0]).name}: {error}"))  # in one line
        code = error.exit_code
    except (KeyboardInterrupt, EOFError):
        code = 130  # before there was a session to end
    except BrokenPipeError:  # whoever read our output is gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # of our own output: a full disk, say
        to_stderr(f"{Path(sys.argv[0]).name}: {reason_of(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 2
    sys.exit(code)
