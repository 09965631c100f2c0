"""What is read at a terminal or from a pipe is whole; a missing passphrase is an error."""

from __future__ import annotations

import getpass
import io
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from companions import terminal
from companions.terminal import MAX_LINE, Piped, ask_passphrase, bold, reading_lines
from program import UserError

LIMIT_S = 20.0


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (EOFError(), "the key needs a passphrase, and nobody types one"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "a passphrase is text"),
    ],
)
def test_a_passphrase_that_cannot_be_read_is_the_users_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(prompt: str) -> str:
        raise error

    monkeypatch.setattr(getpass, "getpass", fail)
    with pytest.raises(UserError, match=why):
        ask_passphrase("passphrase: ")


def test_a_passphrase_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getpass", lambda prompt: f"typed at {prompt}")
    assert ask_passphrase("passphrase: ") == "typed at passphrase: "


# What is piped ------------------------------------------------------------------------------------


def read(*pieces: bytes, encoding: str = "utf-8") -> list[str]:
    """Return what Piped makes of bytes that come in pieces."""
    lines: list[str] = []
    (there, here) = os.pipe()
    with open(here, "wb", buffering=0) as end:
        thread = Piped(there, encoding, lines.append)
        thread.start()
        for piece in pieces:
            end.write(piece)
    thread.join(LIMIT_S)
    os.close(there)
    assert not thread.is_alive()
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two", ""]),
        ([b"no end"], ["no end", ""]),
        ([], [""]),
        ([b"windows\r\n\r\n  \nx\n"], ["windows", "x", ""]),
        ([b"o", b"n", b"e\n"], ["one", ""]),
        ([b"one\n quit \nmore\nquit\n"], ["one", " quit ", "more", "quit", ""]),
        ([b"t\xc3", b"\xbcr\n"], ["t\u00fcr", ""]),
        ([b"\xff\n\xc3"], ["\ufffd", "\ufffd", ""]),
    ],
)
def test_lines_are_read_as_they_come_until_the_end(pieces: list[bytes], lines: list[str]) -> None:
    assert read(*pieces) == lines


def test_a_line_without_end_takes_no_more_memory_than_its_beginning() -> None:
    line, end = read(*[b"x" * 50_000] * 5, b"\nnext\n")[0::2]
    assert MAX_LINE <= len(line) <= MAX_LINE + 65_536
    assert end == ""


def test_an_input_that_cannot_be_read_has_ended() -> None:
    lines: list[str] = []
    (there, here) = os.pipe()
    os.close(here)
    os.close(there)
    Piped(there, "utf-8", lines.append).run()
    assert lines[-1] == ""


def test_no_more_lines_are_read_ahead_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "READ_AHEAD", 2)
    taken: queue.Queue[str] = queue.Queue()
    there, here = os.pipe()
    with open(here, "wb", buffering=0) as end:
        end.write(b"1\n2\n3\n4\n")
        thread = Piped(there, "utf-8", taken.put)
        thread.start()
        assert [taken.get(timeout=LIMIT_S) for _ in range(2)] == ["1", "2"]
        with pytest.raises(queue.Empty):
            taken.get(timeout=0.05)
        thread.taken()
        assert taken.get(timeout=LIMIT_S) == "3"
        thread.taken()
        assert taken.get(timeout=LIMIT_S) == "4"
    thread.join(LIMIT_S)
    os.close(there)


# What is typed ------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """What a terminal is sent; `encoding` is for those who write to it."""

    encoding = "utf-8"

    def fileno(self) -> int:
        return 1


class Person:
    """Someone at a terminal who types, and what the program takes."""

    def __init__(self, keyboard: PipeInput, screen: Screen) -> None:
        self.keyboard = keyboard
        self.screen = screen
        self.taken: queue.Queue[str] = queue.Queue()

    def next(self) -> str:
        return self.taken.get(timeout=LIMIT_S)


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    monkeypatch.setattr(terminal, "is_interactive", lambda: True)
    screen = Screen()
    output = Vt100_Output(screen, lambda: Size(rows=24, columns=80), enable_cpr=False)
    with create_pipe_input() as keyboard, create_app_session(keyboard, output):
        yield Person(keyboard, screen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ("one\r", ["one"]),
        ("\r  \rtwo\r", ["two"]),
        ("\x1b[200~" + "x" * 5_000 + "\x1b[201~\r", ["x" * 5_000]),
        ("\x1b[200~pasted\nin two lines\x1b[201~\r", ["pasted", "in two lines"]),
        ("tpy\x7f\x7fypo\r", ["typo"]),
        ("t\u00fcr \u4dc0\r", ["t\u00fcr \u4dc0"]),
        ("quits\r quit \r", ["quits", ""]),
        ("\x04", [""]),
        ("a\x04b\r\x04", ["ab", ""]),
    ],
)
def test_lines_are_typed_whole_until_quit(person: Person, typed: str, lines: list[str]) -> None:
    with reading_lines(person.taken.put):
        person.keyboard.send_text(typed)
        assert [person.next() for _ in lines] == lines
    assert person.taken.empty()


def test_what_is_printed_meanwhile_appears_above_the_line(person: Person) -> None:
    with reading_lines(person.taken.put):
        person.keyboard.send_text("half ")
        print("bob: hello")
        print("a log line", file=sys.stderr)
        person.keyboard.send_text("whole\r")
        assert person.next() == "half whole"
    printed = person.screen.getvalue()
    assert "bob: hello" in printed
    assert "a log line" in printed
    assert bold("> half whole") in printed
    assert printed.index("bob: hello") < printed.index(bold("> half whole"))


def test_a_terminal_is_given_back_however_it_ends(person: Person) -> None:
    before = (sys.stdout, sys.stderr)
    with pytest.raises(ValueError, match="of another kind"), reading_lines(person.taken.put):
        raise ValueError("of another kind")
    assert (sys.stdout, sys.stderr) == before


def test_ctrl_c_is_the_signal_that_it_always_was(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    monkeypatch.setattr(signal, "raise_signal", seen.put)
    with reading_lines(person.taken.put):
        person.keyboard.send_text("never sent\x03")
        assert seen.get(timeout=LIMIT_S) == signal.SIGINT
    assert person.taken.empty()


def test_a_keyboard_that_is_gone_ends_the_input(person: Person) -> None:
    with reading_lines(person.taken.put):
        person.keyboard.close()
        assert person.next() == ""


@pytest.mark.parametrize(
    ("stdin", "stdout", "term", "expected"),
    [
        (True, True, "xterm", True),
        (False, True, "xterm", False),
        (True, False, "xterm", False),
        (True, True, "dumb", False),
    ],
)
def test_only_two_ends_of_a_capable_terminal_are_interactive(
    monkeypatch: pytest.MonkeyPatch, stdin: bool, stdout: bool, term: str, expected: bool
) -> None:
    class Stream(io.StringIO):
        def __init__(self, is_terminal: bool) -> None:
            super().__init__()
            self.isatty: Callable[[], bool] = lambda: is_terminal

    monkeypatch.setattr(sys, "stdin", Stream(stdin))
    monkeypatch.setattr(sys, "stdout", Stream(stdout))
    monkeypatch.setenv("TERM", term)
    assert terminal.is_interactive() is expected
