"""What a person sees and types: words for what happens, lines that come in, and both beside a node.

Whatever comes from a peer is escaped, and begins with the peer's name. There is no socket here, and
no key: a Talk is told what happened, and asks a node to say texts.
"""

from __future__ import annotations

import codecs
import contextlib
import queue
import shutil
import textwrap
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from unicodedata import east_asian_width

from companions.peer_messaging.identity import IdentityChanged, grouped
from companions.peer_messaging.peer import Event
from companions.peer_messaging.protocol import PeerAway, PeerLeft, Reason, Untimely
from program import to_stderr
from protocol_fsm import LocalError, ProtocolError, WrongPeer

# What a person sees -------------------------------------------------------------------------------

COLUMNS = 79  # of a line at most, and fewer on a narrow terminal
SLOW_S = 2.0  # a receipt that takes longer is worth a word
MAX_ALARMS = 3  # anybody can show any number of keys


def escape(text: str) -> str:
    """Return text that moves no cursor, colours nothing and hides nothing."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shorten(text: str) -> str:
    """Return how a text begins, quoted, in at most 30 characters."""
    text = escape(text)
    return f'"{text}"' if len(text) <= 28 else f'"{text[:25]}..."'


def padded(text: str) -> str:
    """Return a text in which letters that may take two columns are followed by NUL."""
    return "".join(
        letter + "\0" * (letter > "~" and east_asian_width(letter) in "AFW") for letter in text
    )


def columns() -> int:
    """Return how many columns a line may have: 20 to 79."""
    return max(20, min(COLUMNS, shutil.get_terminal_size().columns - 1))


def print_now(line: str) -> None:
    print(line, flush=True)


class Screen:
    """Puts what happens into words, in lines of at most 79 columns.

    What is our own begins with `* ` or `!!! `, what comes with the peer's name; if that takes more
    than a line, the others begin with spaces, so that no text can look like a word of ours.
    """

    def __init__(
        self,
        peer: str,
        known: Path,
        *,
        verbose: bool = False,
        width: int = COLUMNS,
        show: Callable[[str], object] = print_now,
    ) -> None:
        self.peer = peer
        self.known = known
        self.is_here = False
        self._verbose = verbose
        self._width = width
        self._show = show
        self._has_been_here = False
        self._came = 0
        self._refused: Counter[str] = Counter()
        self._alarms: set[str] = set()

    def notice(self, sentence: str) -> None:
        self._fill("* ", sentence, "  ")

    def alarm(self, *sentences: str) -> None:
        for sentence in sentences:
            self._fill("!!! ", sentence, "!!! ")

    def fingerprint(self, fingerprint: str) -> None:
        """Show a fingerprint in a line of its own, which is full if it has 79 columns."""
        self._fill("", grouped(fingerprint), "")

    def _fill(self, first: str, text: str, rest: str, *, whole: bool = False) -> None:
        """Show a text in lines that begin with `first`, then `rest`; `whole` keeps its spaces."""
        first = padded(first)
        text = padded(text)
        if len(first) > self._width // 2:  # a long name, which has to be broken too
            first, text = "", first + text
        width = self._width - ("\0" in first + text)  # whose padding may be in the next line
        lines = textwrap.fill(
            text,
            width,
            initial_indent=first,
            subsequent_indent=rest,
            drop_whitespace=not whole,
            break_on_hyphens=False,
        )
        self._show(lines.replace("\0", ""))

    def met(self, event: Event) -> None:
        if event.number:
            self.alarm(f"{self.peer} is here for the first time, with a key of this fingerprint:")
            self.fingerprint(event.text)
            self.alarm(
                f"Before you write what matters, compare it with the one that {self.peer}'s "
                "own node has shown at its start: by telephone, or in person, and not "
                "here. If they differ, somebody is in between.",
                f"From now on no other is taken: {line_in(self.known, self.peer)}",
            )
        elif self.is_here:
            self.notice(f"a new session with {self.peer} has begun")
        else:
            self.notice(f"{self.peer} is here{' again' if self._has_been_here else ''}")
        self.is_here = True
        self._has_been_here = True

    def text(self, event: Event) -> None:
        self._came += 1
        self._fill(f"{self.peer}: ", escape(event.text), "    ", whole=True)

    def ended(self, event: Event) -> None:
        """Say why a session is over; if a newer one took its place, that is about to be said."""
        error = event.error
        if error is None:
            return
        self.is_here = False
        if isinstance(error, PeerLeft) and error.reason is Reason.GOODBYE:
            self.notice(f"{self.peer} has left")
        elif isinstance(error, PeerLeft):
            self.notice(
                f"{self.peer} has ended the session, as it refused what came from us, or "
                "what somebody made of it; another will begin"
            )
        elif isinstance(error, PeerAway):
            self.notice(f"{self.peer} is away: nothing was heard for a while, not even a PONG")
        else:
            self.notice(f"the session with {self.peer} has ended, and another will begin: {error}")

    def arrived(self, number: int, text: str, after_s: float) -> None:
        if after_s >= SLOW_S or self._verbose:
            self.notice(f"text {number}, {shorten(text)}, has arrived after {after_s:.1f} s")

    def unconfirmed(self, number: int, text: str) -> None:
        self.notice(f"text {number}, {shorten(text)}, is unconfirmed: it may have arrived, or not")

    def waiting(self, number: int) -> None:
        self.notice(f"{self.peer} is not here; text {number}, and what follows it, waits")

    def refused(self, error: ProtocolError) -> None:
        """Count what was refused; what a person has to act on is said, the first time."""
        kind = type(error).__name__
        self._refused[kind] += 1
        if self._verbose:
            self.notice(f"refused: {error}")
        if isinstance(error, IdentityChanged):
            self._warn(str(error.got))
        elif isinstance(error, Untimely) and self._refused[kind] == 1:
            self.notice(
                f"refused: by our clock it was not said just now ({error}). Either the "
                f"clocks differ, and {self.peer} and we cannot meet, or it was held back"
            )
        elif isinstance(error, WrongPeer) and self._refused[kind] == 1:
            self.notice(
                f"refused: our own key. Either --at leads to this node itself, or "
                f"{self.peer} has a copy of our folder, or our messages are sent back"
            )

    def _warn(self, shown: str) -> None:
        if shown in self._alarms or len(self._alarms) == MAX_ALARMS:
            return
        self._alarms.add(shown)
        self.alarm(
            f"SOMEBODY SHOWS ANOTHER KEY FOR {self.peer}: {grouped(shown)} ...",
            f"It was refused. Either {self.peer} has a new installation, or somebody poses "
            f"as {self.peer}, or the pin was mistyped. Ask {self.peer}, by another way than "
            f"this one. Only if the new key is right: remove "
            f"{line_in(self.known, self.peer)}, and start this node again, best with "
            "--pin.",
        )

    def total(self, sent: int) -> None:
        if self._refused:
            what = ", ".join(f"{number} {kind}" for kind, number in self._refused.most_common())
            self.notice(f"messages refused: {what}")
        self.notice(f"over: {sent} sent, {self._came} received")


def line_in(known: Path, peer: str) -> str:
    """Name the line of a peer in known_peers."""
    with contextlib.suppress(OSError, UnicodeError):
        for number, line in enumerate(known.read_text("utf-8-sig").splitlines(), 1):
            if line.startswith(f"{peer} "):
                return f"line {number} of {known}"
    return f"its line in {known}"


# What a person types ------------------------------------------------------------------------------

MAX_LINE = 65_536  # characters of a line that are looked at; a text has fewer
READ_AHEAD = 1_000  # lines


class Input(threading.Thread):
    """Reads lines, and hands each to `take`; the end, or `quit`, as an empty one.

    A thread, as Windows can wait for nothing else beside a terminal. It reads past Python's buffer:
    that has a lock, and a thread that waits in it would be in the way of the program's end.
    """

    def __init__(self, descriptor: int, encoding: str, take: Callable[[str], object]) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._take = take
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._permits = threading.Semaphore(READ_AHEAD)

    def taken(self) -> None:
        """Say that a line has been dealt with, so that another may be read."""
        self._permits.release()

    def run(self) -> None:
        left = ""
        with (
            contextlib.suppress(OSError),
            open(self._descriptor, "rb", buffering=0, closefd=False) as stream,
        ):
            while data := stream.read(65_536):
                *lines, left = (left + self._decoder.decode(data)).split("\n")
                left = left[:MAX_LINE]
                if not all(map(self._hand_over, lines)):
                    return
        if self._hand_over(left + self._decoder.decode(b"", True)):
            self._take("")

    def _hand_over(self, line: str) -> bool:
        """Tell whether this was no `quit`."""
        line = line.rstrip("\r")
        if line.strip() == "quit":
            self._take("")
            return False
        if line.strip():
            self._permits.acquire()
            self._take(line)
        return True


# Between a person and a node ----------------------------------------------------------------------

WAIT_S = 0.05  # how soon it is noticed that a node has failed, or a deadline is over
MAX_UNSEEN = 1_000  # events that wait to be shown, before what was refused is left out
MAX_UNDER_WAY = 100  # texts without a receipt; Limits has as many waiting
Happening = Event | str | int  # of the node; a line, empty at the end; a signal


class Speaker(Protocol):
    """What a Talk needs of a Node."""

    def check(self) -> None: ...
    def say(self, text: str) -> None: ...


class Talk:
    """Between a person and a node, in one thread: what happened, one thing after the other."""

    def __init__(
        self, screen: Screen, patience_s: float, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._patience_s = patience_s
        self._timer = timer
        self.happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._typed: deque[str] = deque()
        self._under_way: dict[int, tuple[str, float]] = {}  # by number, and since when
        self._said = 0
        self._sent = 0
        self._lost = 0
        self._signal = 0
        self._has_told_of_waiting = False
        self._deadline: float | None = None  # once the input has ended

    def run(self, node: Speaker, taken: Callable[[], object]) -> None:
        """Go on until there is nothing more to say, or a signal came. Raises what `check` does."""
        while not self._is_over():
            node.check()
            while self._typed and len(self._under_way) < MAX_UNDER_WAY:
                taken()
                self._say(node, self._typed.popleft())
            with contextlib.suppress(queue.Empty):
                self._take(self.happenings.get(timeout=WAIT_S))

    def hear(self, event: Event) -> None:
        """Take what the node tells; junk at which nobody looks must not fill the memory."""
        if event.what != "refused" or self.happenings.qsize() < MAX_UNSEEN:
            self.happenings.put(event)

    def finish(self) -> int:
        """Show what is left to show after the node's end, and return the exit code."""
        while not self.happenings.empty():
            self._take(self.happenings.get())
        self._screen.total(self._sent)
        if lost := self._lost + len(self._under_way) + len(self._typed):
            to_stderr(
                f"node: {lost} {'text has' if lost == 1 else 'texts have'} no receipt, and "
                "may not have arrived"
            )
        return 128 + self._signal if self._signal else int(lost > 0)

    def _is_over(self) -> bool:
        if self._deadline is None or self._signal:
            return self._signal > 0
        return self._timer() >= self._deadline or not (self._typed or self._under_way)

    def _say(self, node: Speaker, text: str) -> None:
        try:
            node.say(text)
        except LocalError as error:
            self._lost += 1
            self._screen.notice(f"not sent: {error}")
            return
        self._said += 1  # as the node counts them
        self._under_way[self._said] = text, self._timer()
        if not self._screen.is_here and not self._has_told_of_waiting:
            self._has_told_of_waiting = True
            self._screen.waiting(self._said)

    def _take(self, happening: Happening) -> None:
        if isinstance(happening, Event):
            self._hear(happening)
        elif isinstance(happening, int):
            self._signal = happening
        elif happening:
            self._typed.append(happening)
        else:
            self._deadline = self._timer() + self._patience_s

    def _hear(self, event: Event) -> None:
        if event.what == "met":
            self._has_told_of_waiting = False
            self._screen.met(event)
        elif event.what == "text":
            self._screen.text(event)
        elif event.what == "sent":
            self._sent += 1
        elif event.what == "ended":
            self._screen.ended(event)
        elif event.what == "refused" and event.error:
            self._screen.refused(event.error)
        elif event.what == "receipt":
            text, since = self._under_way.pop(event.number)
            self._screen.arrived(event.number, text, self._timer() - since)
        elif event.what == "unconfirmed":
            text, _ = self._under_way.pop(event.number)
            self._lost += 1
            self._screen.unconfirmed(event.number, text)
