"""What every program needs: numbers and addresses on its command line, files, sentences, lines."""

from __future__ import annotations

import _thread
import cmd
import contextlib
import errno
import io
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import program
from program import (
    MOST_LINE,
    Ended,
    Lines,
    LogFormatter,
    NoConnection,
    Parser,
    Typed,
    UserError,
    append_whole,
    end,
    end_signals,
    escaped,
    fitted,
    host_and_port,
    host_and_port_of,
    keep_inputs,
    output_path,
    plural,
    port_number,
    positive,
    prepare_streams,
    read_text,
    reason_of,
    repeat_signal,
    seconds,
    start_log,
    starting,
    tidying,
    to_stderr,
    whole,
    write_text,
)
from server import listen
from tests.programs import TIMEOUT_S, posix_only, run, run_here

LONG = "x" * 250  # the longest name has 255


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (seconds, "0"),
        (seconds, "-1"),
        (seconds, "inf"),
        (seconds, "nan"),
        (positive, "0"),
        (positive, "9223372036854775808"),
        (positive, "1.5"),
        (port_number, "-1"),
        (port_number, "65536"),
        (whole, "-1"),
        (whole, "9223372036854775808"),
        (whole, "1_0"),
        (whole, "\u0662"),
        (positive, "1_0"),
        (seconds, "1_0"),
        (port_number, "99_99"),
        (host_and_port, "9999"),
        (host_and_port, ":9999"),
        (host_and_port, "host:"),
        (host_and_port, "host:70000"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_number_outside_its_limits_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError):
        read(text)


def test_a_number_at_its_limit_is_accepted() -> None:
    assert (seconds("1e-3"), positive("1"), whole("0")) == (0.001, 1, 0)
    assert positive(str(sys.maxsize)) == whole(str(sys.maxsize)) == sys.maxsize
    assert (port_number("0"), port_number("65535")) == (0, 65_535)


def test_addresses_have_a_host_and_a_port() -> None:
    assert host_and_port("127.0.0.1:9999") == ("127.0.0.1", 9999)
    assert host_and_port("[::1]:1") == ("::1", 1)


def test_a_wrong_flag_is_a_sentence_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser("")
    parser.add_argument("--at", type=host_and_port)
    monkeypatch.setattr(sys, "argv", ["program", "--at", "nowhere"])
    with pytest.raises(UserError, match="--at: 'nowhere' is not HOST:PORT"):
        parser.options()


@pytest.mark.parametrize("words", ["--at=-- x", "-o-- x", "-- --"])
def test_two_dashes_are_no_value(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python 3.13 argparse makes an empty list of them, which no program expects."""
    parser = Parser()
    parser.add_argument("-o", "--at")
    parser.add_argument("file")
    with pytest.raises(UserError, match="no value can be --"):
        parser.options(words.split())
    assert parser.options(["--at=--x", "--", "x"]).at == "--x"
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    with pytest.raises(UserError, match="no value can be --"):
        parser.options()
    monkeypatch.setattr(sys, "argv", ["--", "--at=--x", "--", "x"])
    assert parser.options().at == "--x", "the first word is the program's name"


def test_a_file_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    write_text(tmp_path / "some.txt", "one\ntwo\n")
    assert (tmp_path / "some.txt").read_bytes() == b"one\ntwo\n"
    for name, why in (("nowhere/some.txt", "No such file"), ("\0", "null")):
        with pytest.raises(UserError, match=f"cannot write .*{why}"):
            write_text(tmp_path / name, "one\n")
    assert [*tmp_path.iterdir()] == [tmp_path / "some.txt"]


@posix_only
@posix_only
def test_a_pipe_is_written_to_and_no_file_takes_its_place(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / LONG)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert output_path(str(pipe)) == pipe
    write_text(pipe, "one\n")
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    assert pipe.is_fifo()


@posix_only
def test_a_file_is_whole_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old := tmp_path / LONG).touch()
    for path in (old, tmp_path / ("y" * 250)):  # the name of what is not whole yet is too long
        with pytest.raises(UserError, match=r"cannot write .*long"):
            output_path(str(path))
        with pytest.raises(UserError, match=r"cannot write .*long"):
            write_text(path, "one\n")
    monkeypatch.setattr(Path, "replace", lambda *_: os.stat(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot write "):
        write_text(tmp_path / "new", "one\n")
    assert [*tmp_path.iterdir()] == [old]


def test_a_file_of_another_that_is_not_whole_is_left_alone(tmp_path: Path) -> None:
    (partial := tmp_path / f"new.{os.getpid()}.partial").touch()
    with pytest.raises(UserError, match="File exists"):
        output_path(str(tmp_path / "new"))
    assert partial.exists()


@posix_only
def test_a_link_stays_a_link_when_its_file_is_written(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(tmp_path / "there")
    for text in ("new\n", "newer\n"):  # as /dev/stdout leads to a file
        assert output_path(str(link)) == link
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "there").read_text() == text


def test_where_a_program_will_write_is_tried_before_the_work(tmp_path: Path) -> None:
    (there := tmp_path / "there").write_text("old")
    assert output_path(str(there)) == there
    assert output_path(str(tmp_path / "new")) == tmp_path / "new"
    assert output_path(os.devnull) == Path(os.devnull)
    for name, why in (("nowhere/file", "No such file"), ("", "directory"), ("\0", "null")):
        with pytest.raises(UserError, match=f"cannot write .*{why}"):
            output_path(str(tmp_path / name))
    assert there.read_text() == "old"
    assert [*tmp_path.iterdir()] == [there]


OUTPUTS = [
    "attacks.py --events",
    "-m bench.bench --json",
    "-m bench.device --json",
    "-m bench.peers --json",
    "-m bench.plot missing -o",
    "-m classroom.capture missing -o",
    "-m classroom.explain missing --html",
    "-m classroom.report missing -o",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", OUTPUTS)
def test_every_program_that_writes_a_file_tries_it_first(words: str, tmp_path: Path) -> None:
    """Most of them would also say that what they read is missing, if they came so far."""
    done = run(*words.split(), str(tmp_path / "nowhere" / "file"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "cannot write " in done.stderr


@pytest.mark.parametrize("name", ["read", "link", "hard link", "folder/../read"])
def test_what_is_read_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "read").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("read")
    (tmp_path / "hard link").hardlink_to(tmp_path / "read")
    with pytest.raises(UserError, match=r"cannot write .* it is also what is read"):
        keep_inputs(tmp_path / name, None, tmp_path / "other", tmp_path / "read")
    keep_inputs(tmp_path / name, None, tmp_path / "other")
    keep_inputs(None, tmp_path / "read")
    with pytest.raises(UserError):
        keep_inputs(tmp_path / "new", tmp_path / "folder" / ".." / "new")


BOTH = [  # read and written
    "attacks.py --file {} --events {}",
    "client.py 1 --file {} --keylog {}",
    "server.py --keys {} --keylog {}",
    "-m bench.plot {} -o {}",
    "-m classroom.capture {} -o {}",
    "-m classroom.explain {} --html {}",
    "-m classroom.explain 00 --keylog {} --html {}",
    "-m classroom.report {} -o {}",
    "-m classroom.report missing --matrix {} -o {}",
    "-m classroom.see report --file {} -o {}",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", BOTH)
def test_no_program_overwrites_what_it_reads(words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run(*words.replace("{}", str(tmp_path / "file")).split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "it is also what is read" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_text_may_begin_with_a_byte_order_mark_and_has_to_be_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffone \u00fc\n".encode())
    assert read_text(path) == "one \u00fc\n"
    path.write_bytes("one".encode("utf-16"))
    for wrong in (path, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"^cannot read (?!.*host)"):
            read_text(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("z\u00fcrich \U0001f6aa", "z\u00fcrich \U0001f6aa"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u2066\u200f\ufeff", "\\u2066\\u200f\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
)
def test_a_letter_that_a_terminal_obeys_or_hides_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


@given(st.text())
def test_whatever_is_shown_is_printable(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped(escaped(text)) == escaped(text)


def test_what_goes_to_stderr_is_escaped_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr("one \x1b[2J\ntwo \u202e")
    assert capsys.readouterr().err == "one \\x1b[2J\ntwo \\u202e\n"


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    done = run("-m", "classroom.capture", "a\x1b\nb\u202e", "-o", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("capture.py: cannot read a\\x1b\\nb\\u202e: ")
    assert len(done.stderr.splitlines()) == 1


def test_windows_words_are_used_where_the_c_library_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = OSError(10061, "the other end refused it")
    monkeypatch.setattr(error, "winerror", 10061, raising=False)
    monkeypatch.setattr(os, "strerror", lambda number: "refused")
    assert reason_of(error) == "refused"
    monkeypatch.setattr(os, "strerror", lambda number: "Unknown error")
    assert reason_of(error) == "the other end refused it"


def test_the_reason_of_an_error_is_what_the_system_says_without_the_rest() -> None:
    known = os.strerror(errno.ENOENT)
    assert reason_of(OSError(errno.ENOENT, f"{known} (os error 2)")) == known
    assert reason_of(OSError(errno.ENOENT, "another reason")) == "another reason"
    assert reason_of(OSError(errno.ENOENT, "")) == known
    assert reason_of(OSError("no number")) == "no number"


def test_a_line_that_cannot_be_printed_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_stderr("one")
    assert capsys.readouterr().err == "one\n"
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    to_stderr("two")


def test_lines_are_printed_one_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for n in range(100):
        lines.write_line(str(n))
    lines.drain()
    assert capfd.readouterr().err.split() == [str(n) for n in range(100)]


def test_the_last_lines_have_half_a_second_and_no_more_is_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    taken = threading.Event()
    clock = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr(program, "time", clock)
    monkeypatch.setattr(program, "os", SimpleNamespace(write=lambda *_: taken.wait(TIMEOUT_S)))
    lines = Lines()
    lines.write_line("a paused terminal does not take this")
    lines.drain()
    assert sum(waited) == pytest.approx(0.5, abs=0.02)
    taken.set()
    clock.monotonic, clock.sleep = lambda: 0.0, time.sleep
    lines.drain()


def logged(text: str) -> list[str]:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (text,), None)
    return LogFormatter().format(record).split("\n")


def test_a_line_of_the_log_begins_with_the_time_and_no_other_does() -> None:
    first, *rest = logged("one\n12:00:00 two\nthree")
    assert re.fullmatch(r"\d\d:\d\d:\d\d one", first)
    assert rest == ["         12:00:00 two", "         three"]


@pytest.mark.parametrize("columns", [40, 80, 132])
@pytest.mark.parametrize(
    "text", ["so-so " * 60, "x" * 500, "12:00:00 " * 40, "a" * 71 + "12:00:00 client 1: left"]
)
def test_on_a_terminal_it_is_cut_between_words_and_the_rest_is_indented(
    monkeypatch: pytest.MonkeyPatch, columns: int, text: str
) -> None:
    sizes = {2: os.terminal_size((columns, 24))}  # of stderr
    monkeypatch.setattr(os, "get_terminal_size", sizes.__getitem__)
    first, *rest = logged(text)
    assert max(map(len, [first, *rest])) < columns
    assert all(line.startswith(" " * 9) for line in rest)
    whole = "".join([first[9:], *rest])
    assert "".join(whole.split()) == "".join(text.split())
    if "so-so" in text:
        assert {*whole.split()} == {"so-so"}


def test_a_terminal_has_at_least_20_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((5, 5)))
    assert fitted("x" * 50).split() == ["x" * 20, "x" * 11, "x" * 11, "x" * 8]


def test_a_sentence_is_cut_too_and_lines_of_ours_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    to_stderr("one\n  two\n" + "word " * 10)
    assert capsys.readouterr().err == (
        "one\n  two\n" + ("word " * 8).strip() + "\n         word word\n"
    )


def test_in_a_pipe_a_line_has_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(_: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "get_terminal_size", no_terminal)
    assert logged("word " * 60)[0][9:] == "word " * 60


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
def test_a_closed_terminal_ends_a_program_unless_it_runs_below_nohup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler: dict[int, object] = {}
    monkeypatch.setattr(signal, "getsignal", handler.get)
    assert end_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handler[signal.SIGHUP] = signal.SIG_IGN
    assert end_signals() == [signal.SIGINT, signal.SIGTERM]


def test_addresses_are_shown_as_they_are_typed() -> None:
    assert host_and_port_of(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert host_and_port_of(("::1", 80, 0, 0)) == "[::1]:80"


def test_a_package_that_runs_is_called_by_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise UserError(Parser("Checks.").prog)

    done = run_here(main, capfd, str(Path("conform") / "__main__.py"))
    assert done.stderr == "conform: conform\n"


def test_an_error_that_no_program_has_foreseen_names_its_file() -> None:
    call = "from program import run_program; run_program(lambda: len(open('gone').read()))"
    done = run("-c", call)
    assert (done.returncode, done.stderr) == (2, "-c: gone: No such file or directory\n")


def test_a_file_that_never_ends_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program.MOST_READ == 268_435_456
    monkeypatch.setattr(program, "MOST_READ", 2 * program.MIB)
    (tmp_path / "much").write_bytes(b"a" * 2 * program.MIB)
    assert len(read_text(tmp_path / "much")) == 2 * program.MIB
    (tmp_path / "more").write_bytes(b"a" * (2 * program.MIB + 1))
    endless = [tmp_path / "more", *filter(Path.exists, [Path("/dev/zero")])]
    for path in endless:
        with pytest.raises(UserError, match="or no end"):
            read_text(path)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("no\nfile"), 2, "p: no\\nfile\n"),
        (NoConnection("no server"), 3, "p: no server\n"),
        (Ended(signal.SIGTERM), 143, ""),
        (KeyboardInterrupt(), 130, ""),
        (EOFError(), 130, ""),
        (MemoryError(), 2, "p: not enough memory; is what it reads ever at an end?\n"),
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, ""), 2, f"p: {os.strerror(errno.ENOSPC)}\n"),
        (OSError(errno.ENOENT, "", "gone"), 2, f"p: gone: {os.strerror(errno.ENOENT)}\n"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_late", [False, True], ids=["in main", "at the last flush"])
def test_each_end_of_a_program_has_its_code_and_its_words(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
    is_late: bool,
) -> None:
    left: list[int] = []  # descriptors to which nothing more is written

    def fail() -> None:
        raise error

    def main() -> int:
        patch.setattr(sys, "stdout", SimpleNamespace(flush=fail, fileno=lambda: 77))
        if not is_late:
            fail()
        return 0

    def lead_elsewhere(file: int, place: int) -> None:
        os.close(file)
        left.append(place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", lead_elsewhere)
        done = run_here(main, capfd, "folder/p")
    assert (done.returncode, done.stderr) == (code, told)
    assert left == ([77] if isinstance(error, OSError) else [])


def test_a_program_runs_with_handlers_and_streams_of_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def main() -> int:
        assert sys.unraisablehook is repeat_signal
        assert signal.getsignal(signal.SIGTERM) is end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert isinstance(sys.stdin, Typed)
        return 7

    assert run_here(main, capfd, "p").returncode == 7
    with pytest.raises(Ended) as ended:
        end(signal.SIGTERM, None)
    assert ended.value.args == (signal.SIGTERM,)


def test_help_and_the_log_have_streams_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        lines = Lines()
        start_log("INFO", lines)
        logging.getLogger("x").debug("hidden")
        logging.getLogger("x").info("shown")
        lines.drain()
        Parser("Does it.").options()
        return 1

    done = run_here(main, capfd, "p", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: p [-h]\n\nDoes it.\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d shown\n", done.stderr)


def test_streams_take_whatever_is_read_or_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    given, shown, told = io.BytesIO(b"\xff\n"), io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given, "utf-8"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(told, "ascii"))
    prepare_streams()
    assert input() == "\ufffd"
    sys.stdout.write("z\u00fcrich")
    sys.stderr.write("z\u00fcrich\n")
    assert (shown.getvalue(), told.getvalue()) == (b"", b""), "a line is written when it is whole"
    sys.stdout.write("\n")
    sys.stderr.flush()
    assert shown.getvalue() == told.getvalue() == b"z\\xfcrich\n"
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare_streams()
    print("nowhere")
    print("nowhere", file=sys.stderr)
    assert not sys.stdin.read()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()


@posix_only
@pytest.mark.parametrize("is_multiprocessing", [False, True])
def test_ctrl_c_waits_while_a_process_of_ours_starts(
    monkeypatch: pytest.MonkeyPatch, is_multiprocessing: bool
) -> None:
    begun: list[bool] = []

    def is_held_back() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: begun.append(is_held_back()))
    if not is_multiprocessing:
        monkeypatch.delitem(sys.modules, "multiprocessing")
    with contextlib.suppress(ZeroDivisionError), starting():
        assert is_held_back()
        raise ZeroDivisionError
    assert not is_held_back()
    assert begun == [False] * is_multiprocessing, "its start lets Ctrl-C in again"
    monkeypatch.setattr(sys, "platform", "win32")
    with starting():
        assert not is_held_back()


@posix_only
@pytest.mark.parametrize(
    ("error", "number"),
    [(KeyboardInterrupt(), signal.SIGINT), (Ended(signal.SIGTERM), signal.SIGTERM)],
    ids=repr,
)
def test_a_signal_that_a_destructor_swallowed_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, number: int
) -> None:
    sent: list[object] = []

    def timer(_: float, call: Callable[..., object], words: list[int]) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: call(*words))

    monkeypatch.setattr(threading, "Timer", timer)
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    monkeypatch.setattr(_thread, "interrupt_main", sent.append)
    lost: Any = SimpleNamespace(exc_value=error)
    repeat_signal(lost)
    monkeypatch.setattr(sys, "platform", "win32")
    repeat_signal(lost)
    assert sent == [(os.getpid(), number), number]


def test_a_second_signal_while_the_first_is_repeated_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted:
        def __init__(self, *words: object) -> None:
            """Repeat nothing."""

        def start(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Timer", Interrupted)
    lost: Any = SimpleNamespace(exc_value=KeyboardInterrupt())
    repeat_signal(lost)


def test_another_error_of_a_destructor_is_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    lost: Any = SimpleNamespace(exc_value=ValueError())
    repeat_signal(lost)
    assert told == [lost]


def test_one_of_anything_is_no_plural() -> None:
    told = [plural(count, "run") for count in (0, 1, 2, 1_000)]
    assert told == ["0 runs", "1 run", "2 runs", "1,000 runs"]


@pytest.mark.parametrize(
    "ask",
    [input, cmd.Cmd().cmdloop, lambda: sys.stdin.readline()],  # the last is getpass's way
    ids=["input", "cmd", "getpass"],
)
def test_whatever_asks_gets_a_line_that_has_an_end(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typing(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", Typed(io.BytesIO(text.encode()), "utf-8"))

    for length in (MOST_LINE, MOST_LINE + 1):
        typing("0" * length)
        with pytest.raises(UserError, match="has a line of 1,000,000 characters or more"):
            ask()
    typing("0" * (MOST_LINE - 2) + "\nü\r\nlast")
    assert [input(), input(), input()] == ["0" * (MOST_LINE - 2), "ü", "last"]
    with pytest.raises(EOFError):
        input()
    typing("abc\n")
    assert [sys.stdin.readline(size) for size in (0, 2, -1)] == ["", "ab", "c\n"]


def test_an_endless_line_is_one_sentence() -> None:
    """As when a prompt is given /dev/zero."""
    call = "from program import run_program; run_program(lambda: len(input()))"
    done = run("-c", call, given="0" * (MOST_LINE + 1))
    words = "standard input has a line of 1,000,000 characters or more"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"-c: {words}\n")


PASSPHRASE_ON_WINDOWS = """
import getpass, io, sys
from program import prepare_streams
from types import SimpleNamespace

keys = iter("typed\\r")
getpass.msvcrt = SimpleNamespace(getwch=lambda: next(keys), putwch=lambda letter: None)

class Input(io.BytesIO):
    def isatty(self):
        return {is_terminal}

sys.stdin = sys.__stdin__ = io.TextIOWrapper(Input(b"piped\\n"))
prepare_streams()
print(getpass.win_getpass())
"""


@pytest.mark.parametrize(("is_terminal", "read"), [(True, "typed\n"), (False, "piped\n")])
def test_a_passphrase_typed_on_windows_is_not_shown(is_terminal: bool, read: str) -> None:
    """It is read from the keyboard, without an echo; a passphrase in a pipe is read there."""
    done = run("-W", "ignore", "-c", PASSPHRASE_ON_WINDOWS.format(is_terminal=is_terminal))
    assert (done.returncode, done.stdout) == (0, read)


def test_what_libraries_say_to_programmers_is_not_shown() -> None:
    call = "from program import run_program; run_program(lambda: warnings.warn('old') or 0)"
    done = run("-c", f"import warnings; {call}")
    assert (done.returncode, done.stderr) == (0, "")
    done = run("-W", "error", "-c", f"import warnings; {call}")
    assert "UserWarning: old" in done.stderr


@posix_only
def test_input_that_is_closed_is_at_its_end() -> None:
    call = "from program import run_program; run_program(lambda: len(input()))"
    done = run("-c", f"import os, sys; os.close(0); sys.stdin = None; {call}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


UNBUFFERED = """
import io, sys
from program import run_program

class Seen(io.RawIOBase):
    def writable(self):
        return True

    def write(self, data):
        sys.stderr.write(f"{bytes(data)}\\n")
        return len(data)

sys.stdout = io.TextIOWrapper(Seen(), newline="\\n", write_through=True)
run_program(lambda: print("a", "line") or 0)
"""


def test_a_line_and_its_end_are_written_at_once_even_unbuffered() -> None:
    """As with python -u: another thread's line could come between."""
    done = run("-c", UNBUFFERED)
    assert (done.returncode, done.stderr) == (0, "b'a line\\n'\n")


INTERRUPTED = """
import signal, threading
from program import run_program

class Fragile:
    def __del__(self):
        signal.raise_signal({number})

def main():
    Fragile()
    threading.Event().wait({patience})
    return 0

run_program(main)
"""


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_meets_a_destructor_is_not_lost(number: signal.Signals) -> None:
    """Python swallows the exception there, and prints a traceback."""
    done = run("-c", INTERRUPTED.format(number=int(number), patience=TIMEOUT_S / 2))
    assert (done.returncode, done.stderr) == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_may_come_while_a_sentence_is_printed(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("program.to_stderr", lambda text: signal.raise_signal(number))
    done = run_here(load_nothing, capfd, "p")
    assert (done.returncode, done.stderr) == (128 + number, "")


def load_nothing() -> int:
    raise UserError("there is nothing to load")


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, end, Ended),
    ],
)
def test_signal_waits_until_all_is_tidied_up(
    number: int, handler: Any, error: type[BaseException]
) -> None:
    tidied = []

    def tidy() -> None:
        with tidying():
            signal.raise_signal(number)
            tidied.append("all")

    before = signal.signal(number, handler)
    try:
        with pytest.raises(error):
            tidy()
        assert tidied == ["all"]
        assert signal.getsignal(number) is handler
        with tidying():
            pass  # and if there is none, none comes
    finally:
        signal.signal(number, before)


def test_a_reason_that_only_the_error_itself_knows_is_told() -> None:
    """As where there is no place for temporary files."""
    assert reason_of(FileNotFoundError(errno.ENOENT, "no place")) == "no place"
    assert reason_of(OSError(errno.EISDIR, "")) == os.strerror(errno.EISDIR)
    assert reason_of(ValueError("odd")) == "odd"


@pytest.mark.parametrize("host", ["10.0.0..1", "h" * 64])
def test_a_name_that_no_host_can_have_is_told_as_one(host: str) -> None:
    """Python's words tell of a codec."""
    with pytest.raises(UnicodeError) as caught:
        socket.getaddrinfo(host, 80)
    assert reason_of(caught.value) == "no host has such a name"
    with pytest.raises(NoConnection, match=f"^cannot listen on {host} port 80: no host has such"):
        listen(host, 80)


def test_what_cannot_be_added_whole_is_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    append_whole(path, b"one\n")
    append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        append_whole(path, b"three\n")
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(("error", "code"), [(Ended(15), 143), (KeyboardInterrupt(), 130)])
def test_a_signal_may_find_a_lock_half_taken(
    capfd: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    lock = threading.Lock()

    def main() -> int:
        with lock:
            lock.release()
            raise error

    done = run_here(main, capfd, "p")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.slow
def test_another_error_of_a_lock_is_told_as_ever() -> None:
    words = "from threading import Lock; from program import run_program; run_program"
    done = run("-c", f"{words}(Lock().release)")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("RuntimeError: release unlocked lock\n")
