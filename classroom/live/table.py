"""The table of classroom/proxy.py with the page in the place of a terminal.

Commands are those of the proxy, typed by buttons. They are kept, so that a script of them replays
the scene in `python -m classroom.proxy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from classroom.live.scene import Scene, hand_view
from classroom.live.views import View
from classroom.proxy import Item, Table
from classroom.proxy_commands import END, Command, parse
from classroom.proxy_pair import OwnPair
from endpoint import OPCODE_NAMES
from lab.frames import OTHER_END
from program import UserError

WAIT_S = 5.0  # for what a command waits for; a page has no Ctrl-C
SILENT = {"show", "list", "help", "score"}  # commands that change nothing
CUED = {  # commands that a script may give only when the message in hand is there
    "forward",
    "drop",
    "hold",
    "reflect",
    "flip",
    "edit",
    "splice",
    "replay",
    "inject",
    "play",
    "record",
    "cut",
    "auto",
}


class LiveTable(Table):
    """A table that tells the scene what happens at it."""

    def __init__(self, pair: OwnPair, scene: Scene) -> None:
        super().__init__(0, pair.address, None, pair)
        self.prompt = ""
        self.script: list[str] = []
        self._scene = scene
        self._cued = 0  # the message that the script has waited for

    def type(self, line: str) -> None:
        """Carry out a line as if it were typed. Raises UserError."""
        command = parse(line)
        if command is None:
            return
        if command.name == "quit":
            raise UserError("to leave, close the page; Ctrl-C in the terminal ends the lab")
        with self._changed:
            cue = self._cue(command)
            self._say(f"> {' '.join(line.split())}")
            self.obey(command)
            if command.name not in SILENT:
                self.script += [*cue, " ".join(line.split())]

    def _cue(self, command: Command) -> list[str]:
        """Return what a script has to wait for before a command, as a line of it."""
        if command.name == "session":
            return [f"until {END}"] if self._connection else []
        waiting = self._desk.waiting
        if command.name not in CUED or not waiting or waiting[0].number in (0, self._cued):
            return []
        self._cued = waiting[0].number
        kind = OPCODE_NAMES.get(self._came[self._cued - 1].frame.message[0])
        return [f"until {kind}"] if kind else []

    def _say(self, text: str) -> None:
        self._scene.say(text)

    def _announce(self, item: Item) -> None:
        self._scene.sent(item.number, item.frame)

    def _begin(self, failure: str) -> None:
        if not failure:
            self._scene.begin(self._connection + 1)
        super()._begin(failure)

    def _deliver(self) -> None:
        item = self._desk.in_hand()
        if item.frame.message:
            self._scene.delivered(item.frame)
        else:
            sender = OTHER_END[item.frame.to]
            self._scene.note(f"the end of what the {sender} sends is passed on")
        super()._deliver()

    def _finish(self) -> None:
        super()._finish()
        self._scene.note(f"connection {self._connection} is over")

    def _settle(self) -> None:
        super()._settle()
        fates = {item.number: "waiting" for item in self._desk.waiting}
        fates.update({item.number: "in hand" for item in self._desk.waiting[:1]})
        fates.update({item.number: "aside" for item in self._desk.held})
        self._scene.waits(fates)

    def _wait(self, until: Callable[[], bool]) -> None:
        give_up = time.monotonic() + WAIT_S
        super()._wait(lambda: until() or time.monotonic() > give_up)
        if not until():
            self._goal = ""
            raise UserError(f"nothing of that kind has come within {WAIT_S:g} seconds")

    def view(self) -> View:
        """Show what is on the table."""
        desk = self._desk  # one value, so no lock is needed
        hand = desk.waiting[0] if desk.waiting and not self._auto else None
        return {
            "hand": self._hand_view(hand) if hand and hand.frame.message else None,
            "waiting": [self._name(item) for item in desk.waiting[1:] if item.frame.message],
            "held": [{"number": item.number, "name": self._name(item)} for item in desk.held],
            "came": len(self._came),
            "undo": len(self._desks) > 1,
            "auto": self._auto,
            "connected": self._connected,
            "connection": self._connection,
            "tapes": {
                name: [self._tape_name(item) for item in tape] for name, tape in self._tapes.items()
            },
        }

    def _hand_view(self, item: Item) -> View:
        came = self._came[item.number - 1].frame.message if item.number else b""
        return hand_view(item.frame, self._name(item), item.number, came)

    def _tape_name(self, item: Item) -> str:
        kind = OPCODE_NAMES.get(item.frame.message[0], "unknown")
        return f"{kind} to {item.frame.to}"
