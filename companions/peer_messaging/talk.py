"""The person's side of a node: events in words, typed lines, and a loop between both and the node.

Text from a peer is escaped, and begins with the peer's name. There is no socket here, and no key: a
Talk is told what happened, and asks a node to say texts.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from companions.peer_messaging.identity import IdentityChanged, grouped, line_of
from companions.peer_messaging.peer import Event
from companions.peer_messaging.protocol import PeerAway, PeerLeft, Reason, Untimely
from program import escaped, to_stderr
from protocol_fsm import LocalError, ProtocolError, WrongPeer

# On the screen ------------------------------------------------------------------------------------

COLUMNS = 79  # of a line at most, and fewer on a narrow terminal
SLOW_S = 2.0  # a receipt that takes longer is reported
MAX_ALARMS = 3  # anybody can show any number of keys


def shorten(text: str) -> str:
    """Return the beginning of a text, quoted, in at most 30 characters."""
    text = escaped(text)
    return f'"{text}"' if len(text) <= 28 else f'"{text[:25]}..."'


def padded(text: str) -> str:
    """Return a text with NUL after each letter that may take two columns.

    Those are all but ASCII: terminals disagree on the others, and change their minds.
    """
    return "".join(letter if letter.isascii() else f"{letter}\0" for letter in text)


def columns() -> int:
    """Return how many columns a line may have: 20 to 79."""
    return max(20, min(COLUMNS, shutil.get_terminal_size().columns - 1))


def print_now(line: str) -> None:
    print(line, flush=True)


class Screen:
    """Puts events into words, in lines of at most 79 columns.

    Our own words begin with `* ` or `!!! `, a text with the peer's name, and its further lines with
    spaces, so that no text can look like our own words. `emphasize` marks our own words, too: a
    terminal that is made narrower breaks lines that stand there already, where it likes.
    """

    def __init__(
        self,
        peer: str,
        known: Path,
        *,
        verbose: bool = False,
        width: Callable[[], int] = columns,
        show: Callable[[str], object] = print_now,
        emphasize: Callable[[str], str] = str,
    ) -> None:
        self.peer = peer
        self.known = known
        self.is_here = False
        self._verbose = verbose
        self._width = width
        self._show = show
        self._emphasize = emphasize
        self._has_been_here = False
        self._came = 0
        self._refused: Counter[str] = Counter()
        self._alarms: set[str] = set()

    def notice(self, sentence: str) -> None:
        self._show(self._emphasize(self._filled("* ", sentence, "  ")))

    def alarm(self, *sentences: str) -> None:
        for sentence in sentences:
            self._show(self._emphasize(self._filled("!!! ", sentence, "!!! ")))

    def fingerprint(self, fingerprint: str) -> None:
        """Show a fingerprint in a line of its own, all 79 columns of it."""
        self._show(self._emphasize(self._filled("", grouped(fingerprint), "")))

    def text(self, event: Event) -> None:
        self._came += 1
        self._show(self._filled(f"{self.peer}: ", event.text, "    ", whole=True))

    def _filled(self, first: str, text: str, rest: str, *, whole: bool = False) -> str:
        """Return a text in lines that begin with `first`, then `rest`; `whole` keeps its spaces."""
        first = padded(escaped(first))
        text = padded(escaped(text))
        width = self._width()
        if len(first) > width // 2:  # a long name has to be broken too
            text = first + text
            first = ""
        if "\0" in first + text:  # a wide letter ends the line, its NUL may begin the next
            width -= 1
        lines = textwrap.fill(
            text,
            width,
            initial_indent=first,
            subsequent_indent=rest,
            drop_whitespace=not whole,
            break_on_hyphens=False,
        )
        return lines.replace("\0", "")

    def met(self, event: Event) -> None:
        if event.number:
            self.alarm(f"{self.peer} is here for the first time, with a key of this fingerprint:")
            self.fingerprint(event.text)
            self.alarm(
                "Before you write anything that matters, compare it with the one that "
                f"{self.peer}'s own node showed at its start: by telephone, or in person, and not "
                "here. If they differ, an attacker is in between.",
                f"From now on no other is accepted: {line_in(self.known, self.peer)}",
            )
        elif self.is_here:
            self.notice(f"a new session with {self.peer} has begun")
        elif self._has_been_here:
            self.notice(f"{self.peer} is here again")
        else:
            self.notice(f"{self.peer} is here")
        self.is_here = True
        self._has_been_here = True

    def ended(self, event: Event) -> None:
        """Say why a session is over; if a newer one replaces it, `met` says so."""
        error = event.error
        if error is None:
            return
        self.is_here = False
        if isinstance(error, PeerLeft) and error.reason is Reason.GOODBYE:
            self.notice(f"{self.peer} has left")
        elif isinstance(error, PeerLeft):
            self.notice(
                f"{self.peer} has ended the session, because it refused a message of ours, or one "
                "that was changed on the way, or none came for a while; a new one will begin"
            )
        elif isinstance(error, PeerAway):
            self.notice(f"{self.peer} is away: nothing was heard for a while, not even a PONG")
        else:
            self.notice(
                f"the session with {self.peer} has ended, and a new one will begin: {error}"
            )

    def arrived(self, number: int, text: str, after_s: float) -> None:
        if after_s >= SLOW_S or self._verbose:
            self.notice(f"text {number}, {shorten(text)}, has arrived after {after_s:.1f} s")

    def unconfirmed(self, number: int, text: str) -> None:
        self.notice(f"text {number}, {shorten(text)}, is unconfirmed: it may have arrived, or not")

    def waiting(self, number: int) -> None:
        self.notice(f"{self.peer} is not here; text {number}, and what follows it, waits")

    def unanswered(self, hellos: int) -> None:
        self.notice(
            f"{self.peer} has answered none of {hellos} HELLOs. Is its node running? Its --at has "
            f"to name our --port, and our --at its --port. If it refuses us, its own screen says "
            "so, and nobody tells us"
        )

    def refused(self, error: ProtocolError) -> None:
        """Count refusals; say those that a person has to act on, the first time."""
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

    def _warn(self, key: str) -> None:
        if key in self._alarms or len(self._alarms) == MAX_ALARMS:
            return
        self._alarms.add(key)
        self.alarm(
            f"SOMEBODY SHOWS ANOTHER KEY FOR {self.peer}: {grouped(key)} ...",
            f"It was refused. Either {self.peer} has a new installation, or an attacker poses "
            f"as {self.peer}, or the pin was mistyped. Ask {self.peer} by some other "
            f"means. Only if the new key is right: remove "
            f"{line_in(self.known, self.peer)}, and start this node again, best with "
            "--pin.",
        )

    def total(self, sent: int) -> None:
        if self._refused:
            what = ", ".join(f"{number} {kind}" for kind, number in self._refused.most_common())
            self.notice(f"messages refused: {what}")
        self.notice(f"over: {sent} sent, {self._came} received")


def line_in(known: Path, peer: str) -> str:
    """Name the line of a peer in known_peers, for a person who may have to remove it."""
    number = line_of(known, peer)
    return f"line {number} of {known}" if number else f"its line in {known}"


# Between a person and a node ----------------------------------------------------------------------

WAIT_S = 0.05  # how soon a failed node, or the end of a deadline, is noticed
MAX_UNSEEN = 1_000  # events that wait to be shown; beyond that, refusals are left out
MAX_UNDER_WAY = 100  # texts without a receipt; as many may wait in a Peer
Happening = Event | str | int  # an event of the node, a line (empty at the end), a signal


class Speaker(Protocol):
    """The part of a Node that a Talk uses."""

    def check(self) -> None: ...
    def say(self, text: str) -> None: ...


class Talk:
    """Stands between a person and a node; one thread takes what happens, one thing at a time."""

    def __init__(
        self, screen: Screen, patience_s: float, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._patience_s = patience_s
        self._timer = timer
        self.happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
        self._typed: deque[str] = deque()
        self._under_way: dict[int, tuple[str, float]] = {}  # texts by number, with their time
        self._said = 0
        self._sent = 0
        self._lost = 0
        self._signal = 0
        self._has_told_of_waiting = False
        self._deadline: float | None = None  # once the input has ended

    def run(self, node: Speaker, taken: Callable[[], object]) -> None:
        """Go on until there is nothing more to say, or a signal comes. Raises what `check` does."""
        while not self._is_over():
            node.check()
            while self._typed and len(self._under_way) < MAX_UNDER_WAY:
                taken()
                self._say(node, self._typed.popleft())
            with contextlib.suppress(queue.Empty):
                self._take(self.happenings.get(timeout=WAIT_S))

    def hear(self, event: Event) -> None:
        """Take an event of the node; junk that nobody looks at must not fill the memory."""
        if event.what != "refused" or self.happenings.qsize() < MAX_UNSEEN:
            self.happenings.put(event)

    def finish(self) -> int:
        """Show the last events, after the node's end, and return the exit code."""
        while not self.happenings.empty():
            self._take(self.happenings.get())
        self._screen.total(self._sent)
        lost = self._lost + len(self._under_way) + len(self._typed)
        if lost:
            texts_have = "text has" if lost == 1 else "texts have"
            to_stderr(f"node: {lost} {texts_have} no receipt, and may not have arrived")
        if self._signal:
            return 128 + self._signal
        return int(lost > 0)

    def _is_over(self) -> bool:
        if self._signal:
            return True
        if self._deadline is None:
            return False
        return self._timer() >= self._deadline or not (self._typed or self._under_way)

    def _say(self, node: Speaker, text: str) -> None:
        try:
            node.say(text)
        except LocalError as error:
            self._lost += 1
            self._screen.notice(f"not sent: {error}")
            return
        self._said += 1  # as the node counts them
        self._under_way[self._said] = (text, self._timer())
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
        elif event.what == "unanswered":
            self._screen.unanswered(event.number)
        elif event.what == "refused" and event.error:
            self._screen.refused(event.error)
        elif event.what == "receipt":
            text, since = self._under_way.pop(event.number)
            self._screen.arrived(event.number, text, self._timer() - since)
        elif event.what == "unconfirmed":
            text, _ = self._under_way.pop(event.number)
            self._lost += 1
            self._screen.unconfirmed(event.number, text)
