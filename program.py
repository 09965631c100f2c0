"""What every program here needs: flags, sentences for people, exit codes, output that never blocks.

A program is a `main` that returns an exit code, run by `run_program`. Invalid input of any kind
is a UserError: one sentence on stderr, and exit code 2.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import errno
import functools
import io
import itertools
import logging
import math
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

MIB = 2**20
MOST_READ = 256 * MIB
MOST_LINE = 1_000_000  # characters

Value = TypeVar("Value")


class UserError(Exception):
    """Invalid input; the message is a sentence for the user."""

    exit_code = 2


class Ended(BaseException):
    """A signal other than Ctrl-C has asked this program to end; `args` are its number."""


class NoConnection(UserError):
    """There is no server to reach, or no port to listen on."""

    exit_code = 3


class Parser(argparse.ArgumentParser):
    """A parser of flags; a wrong one is a UserError like any other."""

    def __init__(self, description: str = "", prog: str | None = None) -> None:
        super().__init__(description=description, prog=prog)

    def options(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the flags of this command line, or of these words. Raises UserError."""
        given = sys.argv[1:] if words is None else [*words]
        # argparse makes an empty list of such a value before Python 3.13
        if given.count("--") > 1 or any(re.fullmatch(r"--[^=]+=--|-\w--", word) for word in given):
            self.error("no value can be --")
        return self.parse_args(words)

    def print_help(self, file: object = None) -> None:
        """Print how the program is used, on stdout. Raises OSError, which argparse swallows."""
        print(self.format_help(), end="", flush=True)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class WrongValue(argparse.ArgumentTypeError, ValueError):
    """A flag does not take this; the message says what it takes."""


def flag_type(words: str) -> Callable[[Callable[[str], Value]], Callable[[str], Value]]:
    """Return a decorator for what reads a flag: its ValueError is told in these words."""

    def decorate(read: Callable[[str], Value]) -> Callable[[str], Value]:
        @functools.wraps(read)
        def checked(text: str) -> Value:
            try:
                return read(text)
            except ValueError:
                raise WrongValue(f"{text.strip()!a} is not {words}") from None

        return checked

    return decorate


def plain(text: str) -> str:
    """Return text in which a number is digits, not 1_000 and not of another script. ValueError."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return text


@flag_type("a number of seconds above 0")
def seconds(text: str) -> float:
    """Return a finite number above 0. Raises WrongValue."""
    if not 0 < float(plain(text)) < math.inf:
        raise ValueError(text)
    return float(text)


@flag_type("a whole number")
def whole(text: str) -> int:
    """Return a whole number from 0. Raises WrongValue."""
    if not 0 <= int(plain(text)) <= sys.maxsize:
        raise ValueError(text)
    return int(text)


@flag_type("a whole number from 1")
def positive(text: str) -> int:
    """Return a whole number above 0. Raises WrongValue."""
    if not 1 <= int(plain(text)) <= sys.maxsize:
        raise ValueError(text)
    return int(text)


@flag_type("a port, 0 to 65535")
def port_number(text: str) -> int:
    """Return a TCP port; 0 lets the system choose. Raises WrongValue."""
    if not 0 <= int(plain(text)) <= 65_535:
        raise ValueError(text)
    return int(text)


@flag_type("HOST:PORT")
def host_and_port(text: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT. Raises WrongValue."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(text)
    return host.strip("[]"), port_number(port)


def host_and_port_of(address: Sequence[object]) -> str:
    """Return HOST:PORT, of IPv4 or IPv6."""
    host = str(address[0])
    port = address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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


class Typed(io.TextIOWrapper):
    """Standard input, for all that asks: every line has an end, and /dev/zero is one without."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """Return a line, of at most `size` characters if that is not negative. Raises UserError."""
        line = super().readline(MOST_LINE if size < 0 else size)
        if len(line) == MOST_LINE:
            raise UserError(f"standard input has a line of {MOST_LINE:,} characters or more")
        return line


INDENT = " " * len("12:34:56 ")


def fitted(text: str) -> str:
    """Cut lines to fit the terminal that stderr is, between words; in a pipe they have any length.

    What is cut off is indented, so that nothing that came from a peer stands where a line begins.
    """
    try:
        columns = max(20, os.get_terminal_size(2).columns - 1)
    except OSError:
        return text
    return "\n".join(
        textwrap.fill(line, columns, subsequent_indent=INDENT, break_on_hyphens=False)
        for line in text.split("\n")
    )


def indented(text: str) -> str:
    """Indent all lines but the first."""
    return text.replace("\n", f"\n{INDENT}")


class LogFormatter(logging.Formatter):
    """An event after the time of day."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return fitted(indented(super().format(record)))


def start_log(level: str, stream: Lines) -> None:
    """Let the log go to a stream, from a level on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def escaped(text: str) -> str:
    """Return text in which nothing moves a cursor, breaks a line, is hidden or turned round."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plural(count: int, one: str) -> str:
    """Return a number before what it counts: 1 run, 2 runs, 1,000 runs."""
    return f"{count:,} {one if count == 1 else f'{one}s'}"


def to_stderr(text: str) -> None:
    """Print lines where they disturb no output, escaped and fitted; failures are ignored."""
    with contextlib.suppress(OSError, ValueError):
        print(fitted("\n".join(map(escaped, text.split("\n")))), file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, without the rest."""
    if type(error) is UnicodeError or getattr(error, "encoding", "") == "idna":
        return "no host has such a name"  # 10.0.0..1, for which Python did not even ask
    reason: str = getattr(error, "strerror", None) or str(error)
    if not isinstance(error, OSError) or not error.errno:
        return reason
    known = os.strerror(error.errno)
    is_of_windows = getattr(error, "winerror", None) and not known.startswith("Unknown error")
    return known if reason.startswith(known) or not error.strerror or is_of_windows else reason


def read_whole(path: Path) -> bytes:
    """Return what is in a file, at most 256 MiB. Raises OSError; so /dev/zero ends in one, too."""
    with path.open("rb") as file:
        blocks = [*itertools.islice(iter(lambda: file.read(MIB), b""), MOST_READ // MIB + 1)]
    if len(blocks) > MOST_READ // MIB:
        raise OSError(errno.EFBIG, "it has more than 256 MiB, or no end")
    return b"".join(blocks)


def read_text(path: Path) -> str:
    """Return a text file, which is UTF-8 and may begin with a byte order mark. Raises UserError."""
    try:
        return read_whole(path).decode("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def _partial(path: Path) -> Path:
    """Return where a file stands until it is whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe, for example
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))  # a link stays one, as /dev/stdout has to
        partial = _partial(target)
        try:
            with partial.open("xb") as file:
                file.write(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: the path has no name
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def append_whole(path: Path, data: bytes) -> None:
    """Add to a file, which is made with mode 0600, whole or not at all. Raises OSError."""
    binary = getattr(os, "O_BINARY", 0)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | binary, 0o600)
    with open(file, "ab", buffering=0) as raw:
        size = os.fstat(file).st_size
        try:
            if (raw.write(data) or 0) < len(data):
                raise OSError(errno.ENOSPC, "")
            os.fsync(file)
        except BaseException:  # Ctrl-C too
            raw.truncate(size)
            raise


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file, or would if it existed."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def keep_inputs(output: str | Path | None, *inputs: str | Path | None) -> None:
    """Raise UserError if what will be written is also what is read."""
    for path in inputs:
        if output is not None and path is not None and is_same_file(output, path):
            raise UserError(f"cannot write {output}: it is also what is read")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` if nothing fails. Raises OSError."""
    if folder.exists():
        raise FileExistsError(0, "it exists already")
    unfinished = Path(tempfile.mkdtemp(".partial", folder.name, folder.parent))
    try:
        yield unfinished
        unfinished.rename(folder)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file of ASCII lines, whole or not at all. Raises UserError."""
    write_whole(path, text.encode("ascii"))


def output_path(text: str) -> Path:
    """Return where a program will write; that it can is found out before the work. UserError."""
    path = Path(text)
    try:
        if path.is_dir():
            raise OSError(errno.EISDIR, "")
        if path.is_file() or not path.exists():
            partial = _partial(Path(os.path.realpath(path)))
            partial.touch(exist_ok=False)
            partial.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None
    return path


def end_signals() -> list[signal.Signals]:
    """Return what asks a program to end: Ctrl-C, kill, a closed terminal unless below nohup."""
    found = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def end(number: int, _: object) -> NoReturn:
    """Raise what no handler of a mistake takes for one, be it an attack's own exit."""
    raise Ended(number)


def repeat_signal(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again whose exception went to a destructor, where Python swallows it."""
    if not isinstance(lost.exc_value, (KeyboardInterrupt, Ended)):
        sys.__unraisablehook__(lost)
        return
    send = _thread.interrupt_main
    if sys.platform != "win32":  # where that also wakes the first thread
        send = functools.partial(os.kill, os.getpid())
    is_ended = isinstance(lost.exc_value, Ended)
    number = lost.exc_value.args[0] if is_ended else signal.SIGINT
    timer = threading.Timer(0.01, send, [number])  # by then the destructor is at its end
    with contextlib.suppress(KeyboardInterrupt, Ended):  # a second signal is as good as the first
        timer.start()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Hold Ctrl-C back while a process of ours starts, which inherits that: it is for us alone.

    Half a start is a traceback of the child's, or a child that nobody ends. Not on Windows.
    """
    if sys.platform == "win32":
        yield
        return
    if "multiprocessing" in sys.modules:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # now: its start lets Ctrl-C in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def tidying() -> Iterator[None]:
    """Hold back what asks us to end while something is tidied up: a second one would leave half."""
    held_back: list[int] = []
    before = {
        ending: signal.signal(ending, lambda number, _: held_back.append(number))
        for ending in end_signals()
    }
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
        for number in held_back:
            signal.raise_signal(number)


def prepare_streams() -> None:
    """Let no letter, no endless line and no lack of a stream end a program with a traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        stream = getattr(sys, name)
        stream.reconfigure(errors="backslashreplace")
        if stream.write_through:  # python -u: a thread's line could come before the end of ours
            stream.reconfigure(line_buffering=True, write_through=False)
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = sys.stdin.encoding
        sys.stdin = Typed(sys.stdin.detach(), encoding, "replace")
        if sys.stdin.isatty():  # getpass on Windows shows what is typed into any other stream
            sys.__stdin__ = sys.stdin  # type: ignore[misc]


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, and exit with its code or with one sentence on stderr; tidily on signals too."""
    if Path(sys.argv[0]).name == "__main__.py":
        sys.argv[0] = str(Path(sys.argv[0]).parent)  # in messages and usage: conform, say
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what a library says to us, of a strange certificate, say
    sys.unraisablehook = repeat_signal
    for ending in end_signals():
        if ending is not signal.SIGINT:  # which is a KeyboardInterrupt
            signal.signal(ending, end)
    prepare_streams()
    try:
        code = code_of(main)
    except (Ended, KeyboardInterrupt) as error:
        code = code_of_signal(error)
    except RuntimeError as error:  # of a lock that a signal found half taken
        code = code_of_signal(error.__context__)
        if not code:
            raise
    sys.exit(code)


def code_of_signal(error: BaseException | None) -> int:
    """Return the exit code of a signal that was raised; of any other error 0."""
    if isinstance(error, Ended):
        return 128 + int(*error.args)
    return 130 if isinstance(error, KeyboardInterrupt) else 0


def code_of(main: Callable[[], int]) -> int:
    """Return the exit code of `main`, or of what it raises, after one sentence on stderr."""
    name = Path(sys.argv[0]).name
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        to_stderr(escaped(f"{name}: {error}"))  # in one line
        return error.exit_code
    except EOFError:
        return 130  # a Ctrl-D where Ctrl-C would do
    except MemoryError:
        to_stderr(f"{name}: not enough memory; is what it reads ever at an end?")
        return 2
    except BrokenPipeError:  # whoever read our output is gone, as after `| head`
        code = 141
    except OSError as error:  # of our own output: a full disk, say
        where = f"{error.filename}: " if error.filename else ""
        to_stderr(escaped(f"{name}: {where}{reason_of(error)}"))
        code = 2
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
