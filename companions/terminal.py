"""What the companions' programs show on a terminal, and what they read there.

On a terminal the line that is being typed belongs to prompt_toolkit: whatever is printed appears
above it, and a pasted line may have any length. Elsewhere lines are read and written as they are.
"""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import getpass
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from program import UserError, escaped, to_stderr

MAX_LINE = 65_536  # characters of a line that are kept
READ_AHEAD = 1_000  # lines of a pipe or a file
QUIT = "quit"  # ends it at a terminal; in a pipe it is a line like any other

Take = Callable[[str], object]  # is handed each line, and an empty one at the end


def ask_passphrase(prompt: str) -> str:
    """Return a passphrase, which the terminal does not show. Raises UserError."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        to_stderr("")  # the prompt has a line of its own
        raise UserError("the key needs a passphrase, and nobody types one") from None
    except UnicodeError:
        raise UserError("a passphrase is text") from None


def is_interactive() -> bool:
    """Return whether a person reads and types on a terminal that can move its cursor."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    """Return lines in bold letters, which `escaped` lets no other text have."""
    return f"\x1b[1m{text}\x1b[0m"


@contextlib.contextmanager
def reading_lines(take: Take) -> Iterator[Callable[[], object]]:
    """Hand each line to `take` until the input ends; yield a call for each line dealt with.

    At a terminal Ctrl-C raises SIGINT, as always, and all that is printed inside appears above the
    line that is being typed.
    """
    if is_interactive():
        with _Typed(take):
            yield lambda: None
    else:
        piped = Piped(sys.stdin.fileno(), sys.stdin.encoding, take)
        piped.start()
        yield piped.taken


class Piped(threading.Thread):
    """Reads lines from a descriptor, and hands each that is not blank to `take`.

    A thread, as Windows cannot wait for a pipe and anything else at once. It reads past Python's
    buffer, whose lock a waiting thread would hold at the end of the program.
    """

    def __init__(self, descriptor: int, encoding: str, take: Take) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._take = take
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._permits = threading.Semaphore(READ_AHEAD)

    def taken(self) -> None:
        """Say that a line has been dealt with, so that another may be read."""
        self._permits.release()

    def run(self) -> None:
        for line in self._lines():
            if line.strip():
                self._permits.acquire()
                self._take(line.rstrip("\r"))
        self._take("")

    def _lines(self) -> Iterator[str]:
        left = ""
        for piece in self._pieces():
            *lines, left = (left + piece).split("\n")
            yield from lines
            left = left[:MAX_LINE]
        yield left + self._decoder.decode(b"", True)

    def _pieces(self) -> Iterator[str]:
        with (
            contextlib.suppress(OSError),
            open(self._descriptor, "rb", buffering=0, closefd=False) as stream,
        ):
            while data := stream.read(65_536):
                yield self._decoder.decode(data)


class _Typed:
    """The line that a person types, from entering to leaving its `with` block.

    One application of prompt_toolkit for all lines, in a thread of its own: between two prompts
    there would be moments in which nobody owns the line.
    """

    def __init__(self, take: Take) -> None:
        from prompt_toolkit.application import Application
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.layout import Layout
        from prompt_toolkit.patch_stdout import patch_stdout
        from prompt_toolkit.utils import suspend_to_background_supported
        from prompt_toolkit.widgets import TextArea

        self._take = take
        self._area = TextArea(
            prompt="> ", multiline=False, dont_extend_height=True, accept_handler=self._accept
        )
        keys = KeyBindings()
        keys.add("c-c")(lambda event: signal.raise_signal(signal.SIGINT))
        keys.add("c-d")(lambda event: None if self._area.text else self._take(""))
        if suspend_to_background_supported():
            keys.add("c-z")(lambda event: event.app.suspend_to_background())
        self._app = Application[None](Layout(self._area), key_bindings=keys, erase_when_done=True)
        self._patch = patch_stdout(raw=True)
        self._started = threading.Event()
        run = contextvars.copy_context().run  # which leads to the same terminal
        self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)

    def __enter__(self) -> None:
        self._patch.__enter__()
        self._thread.start()
        self._started.wait()

    def __exit__(self, *exception: object) -> None:
        self._patch.__exit__(None, None, None)  # first: what was printed goes above the line
        loop = self._app.loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(self._leave)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._app.run(pre_run=self._started.set, handle_sigint=False)
        except (EOFError, OSError):  # the terminal is gone
            self._take("")
        finally:
            self._started.set()

    def _leave(self) -> None:
        if self._app.is_running:
            self._app.exit()

    def _accept(self, buffer: object) -> bool:
        """Take what was typed or pasted, perhaps several lines, and keep it on the screen."""
        for line in self._area.text.splitlines():
            if line.strip() == QUIT:
                self._take("")
            elif line.strip():
                print(bold(f"> {escaped(line)}"))
                self._take(line)
        return False
