"""What is on the page, and which browser has not been told of it yet.

Rules in this module:
- any thread may change the scene, and none waits for a browser: a change is only marked;
- a browser is told what has changed when it has drawn what it was told before, the newest rows
  first: one that is slow or gone misses steps in between, and costs no memory;
- rows are those of an event log [EVENTS.md], made from its lines as they happen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from classroom.live.views import View, bytes_view, step_view
from classroom.wire import LAB
from lab.catalogue import deed_of
from lab.events import Step, add_deed
from lab.frames import Frame

MOST_ROWS = 2_000  # on the page; older ones leave it
TOGETHER_S = 0.005  # a message is sent, is in hand and changes an end almost at once: one picture
ROWS_AT_ONCE = 12  # in one picture; hardly more are in sight
MOST_LINES = 500  # of what was said
WAITS = {"in hand": "in your hand", "waiting": "waits behind it", "aside": "put aside"}


class Feed:
    """What one browser has yet to be told."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self.drawn = asyncio.Event()  # by the browser: all that it has been told
        self._lock = threading.Lock()
        self._rows: set[int] = set()
        self._topics: set[str] = set()
        self.said = 0  # the number of lines that it has been told

    def touch(self, rows: Iterable[int], topics: Iterable[str]) -> None:
        """Mark what has changed, from any thread."""
        with self._lock:
            self._rows.update(rows)
            self._topics.update(topics)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    async def changes(self) -> tuple[list[int], set[str]]:
        """Wait for changes and the browser; return the newest rows and all topics that changed."""
        await self.drawn.wait()
        await self._wake.wait()
        await asyncio.sleep(TOGETHER_S)
        self.drawn.clear()
        self._wake.clear()
        with self._lock:
            rows = sorted(self._rows)[-ROWS_AT_ONCE:]
            topics = self._topics
            self._rows.difference_update(rows)
            self._topics = set()
            if self._rows:
                self._wake.set()
        return rows, topics


class Feeds:
    """All browsers that look."""

    def __init__(self) -> None:
        self._feeds: frozenset[Feed] = frozenset()

    def __len__(self) -> int:
        return len(self._feeds)

    def add(self, feed: Feed) -> None:
        self._feeds |= {feed}

    def remove(self, feed: Feed) -> None:
        self._feeds -= {feed}

    def touch(self, rows: Iterable[int] = (), topics: Iterable[str] = ()) -> None:
        for feed in self._feeds:
            feed.touch(rows, topics)


@dataclass
class Row:
    """One row of the ladder: a message with its fate, or a note between messages."""

    at_ms: float  # when it came, since 1970
    connection: int
    note: str = ""
    step: Step | None = None
    number: int = 0  # as the proxy counts; 0: an end did not send it just now
    verdict: str = ""  # of the end that it was delivered to: "accepted", "won" or the error


class Scene:
    """The ladder, and what was said beside it."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._lock = threading.Lock()
        self._rows: dict[int, Row] = {}  # by id, the oldest first
        self._next = 1
        self._past: list[Frame] = []  # of this connection: seen and delivered, in order
        self._steps: list[Step] = []  # of this connection
        self._ids: list[int] = []  # of their rows
        self._delivered: dict[tuple[str, bytes], int] = {}  # the newest row by end and message
        self._row_of: dict[int, int] = {}  # by the proxy's number
        self._waits: dict[int, str] = {}  # by the proxy's number: a key of WAITS
        self._inside: dict[bytes, str] = {}  # what the ends saw in a message
        self._connection = 0
        self.shows_inside = False
        self.said: deque[tuple[int, str]] = deque(maxlen=MOST_LINES)
        self._lines = 0

    def say(self, text: str) -> None:
        """Add lines to what was said."""
        with self._lock:
            for line in filter(None, text.split("\n")):
                self._lines += 1
                self.said.append((self._lines, line))
        self._feeds.touch(topics=["said"])

    # What the table and the ends do

    def clear(self) -> None:
        """Begin with an empty ladder: the ends are new."""
        with self._lock:
            self._rows.clear()
            self._inside.clear()
            self._row_of = {}
            self._waits = {}
            self._begin(0)
        self._feeds.touch(topics=["state"])

    def begin(self, connection: int) -> None:
        """Note that a connection has begun."""
        with self._lock:
            self._begin(connection)
        self.note(f"connection {connection} has begun")

    def _begin(self, connection: int) -> None:
        self._connection = connection
        self._past = []
        self._steps = []
        self._ids = []
        self._delivered = {}

    def note(self, text: str) -> None:
        with self._lock:
            added = self._add(Row(time.time() * 1000, self._connection, note=text))
        self._feeds.touch([added], ["state"])

    def sent(self, number: int, frame: Frame) -> None:
        """Note that an end has sent a message, which waits now."""
        with self._lock:
            self._past.append(frame)
            step = Step("dropped", frame.to, frame.message)
            self._steps.append(step)
            added = self._add(Row(time.time() * 1000, self._connection, "", step, number))
            self._row_of[number] = added
            self._ids.append(added)
        self._feeds.touch([added])

    def delivered(self, frame: Frame) -> None:
        """Note that a message is delivered, changed or not."""
        if frame.origin and frame.deed == "changed" and frame.message == frame.origin.message:
            frame = frame.origin  # flipped, and flipped back
        with self._lock:
            deed = deed_of(frame, self._past)
            self._past.append(frame)
            before = len(self._steps)
            add_deed(self._steps, line_of(deed, frame))
            if len(self._steps) > before:
                self._ids.append(self._add(Row(time.time() * 1000, self._connection)))
            added = self._ids[-1]
            self._rows[added].step = self._steps[-1]
            self._delivered[frame.to, frame.message] = added
            touched = [*self._ids] if deed == "late" else [added]  # one of them was held
        self._feeds.touch(touched, ["state"])

    def waits(self, fates: Mapping[int, str]) -> None:
        """Note which messages wait, and how; those that no longer do are dropped or delivered."""
        with self._lock:
            numbers = {*fates, *self._waits}
            self._waits = dict(fates)
            touched = [self._row_of[number] for number in numbers if number in self._row_of]
        self._feeds.touch(touched, ["state"])

    def judged(self, end: str, message: bytes, verdict: str, inside: str) -> None:
        """Note what an end did with a message, and what it saw inside."""
        with self._lock:
            if inside:
                self._inside[message] = inside
            row = self._delivered.get((end, message), 0)
            if row in self._rows and verdict != "sealed":
                self._rows[row].verdict = verdict
        self._feeds.touch([row], ["state"])

    def show_inside(self, is_on: bool) -> None:
        with self._lock:
            self.shows_inside = is_on
            touched = [*self._rows]
        self._feeds.touch(touched, ["state"])

    def _add(self, row: Row) -> int:
        key = self._next
        self._next += 1
        self._rows[key] = row
        if len(self._rows) > MOST_ROWS:
            oldest = self._rows.pop(next(iter(self._rows)))
            self._row_of.pop(oldest.number, None)
            if oldest.step:
                self._inside.pop(oldest.step.sent, None)
        return key

    # What browsers are told

    def first(self) -> int:
        """Return the id of the oldest row; what is older has left the page."""
        with self._lock:
            return next(iter(self._rows), self._next)

    def ids(self) -> list[int]:
        with self._lock:
            return [*self._rows]

    def news(self, feed: Feed) -> list[str]:
        """Return the lines that a browser has not been told."""
        with self._lock:
            lines = [line for number, line in self.said if number > feed.said]
            feed.said = self._lines
        return lines

    def rows_view(self, ids: Iterable[int]) -> list[View]:
        with self._lock:
            return [self._row_view(key) for key in sorted(ids) if key in self._rows]

    def _row_view(self, key: int) -> View:
        row = self._rows[key]
        head: View = {"id": key, "at": row.at_ms, "connection": row.connection}
        if row.step is None:
            return {**head, "note": row.note}
        view = {**head, **step_view(row.step, LAB), "number": row.number, "verdict": row.verdict}
        wait = self._waits.get(row.number, "") if row.step.kind == "dropped" else ""
        if wait:
            view.update(kind=wait, words=WAITS[wait])
        if self.shows_inside:
            view["inside"] = [self._inside.get(row.step.sent), self._inside.get(row.step.arrived)]
        return view


def line_of(deed: str, frame: Frame) -> dict[str, Any]:
    """Return what the event log's line of a deed says of it."""
    line = {"to": frame.to, "message": frame.message, "deed": deed}
    return {**line, "origin": frame.origin.message} if frame.origin else line


def hand_view(frame: Frame, name: str, number: int, came: bytes) -> View:
    """Show the message in hand, and where it differs from how it came."""
    message = frame.message
    changed = [at for at, byte in enumerate(message) if came and came[at : at + 1] != bytes([byte])]
    return {
        "name": name,
        "number": number,
        "to": frame.to,
        "bytes": bytes_view(message, LAB),
        "changed": changed,
    }
