"""The one observer of sessions under attack: their refusals, and how the names of keys moved.

It watches through the hook that every session has, so it sees copies and can change nothing. Its
notes are lines of the event log [EVENTS.md].
"""

from __future__ import annotations

from typing import Any

from protocol_fsm import Seen, Watcher

Event = dict[str, Any]  # one line of the event log


class Observer:
    """Notes of the sessions of one attack."""

    def __init__(self) -> None:
        self._notes: list[tuple[str, list[Event]]] = []  # of each session, by its end

    def watcher(self, by: str) -> Watcher:
        """Return a watcher for a new session of the end `by`."""
        notes: list[Event] = []
        self._notes.append((by, notes))

        def watch(seen: Seen) -> None:
            message = seen.message.hex()
            if seen.verdict not in ("sealed", "accepted"):
                refused = {"event": "refused", "by": by, "error": seen.verdict, "message": message}
                notes.append(refused)
                return
            keys = dict(seen.fingerprints)
            known = [event["keys"] for event in notes if event["event"] == "keys"]
            if known[-1:] != [keys]:
                notes.append({"event": "keys", "by": by, "keys": keys, "message": message})

        return watch

    def told(self) -> list[Event]:
        """Return the new notes: those of clients, then of servers, the oldest session first."""
        notes = sorted(self._notes, key=lambda entry: entry[0])
        self._notes = []
        return [event for _, events in notes for event in events]
