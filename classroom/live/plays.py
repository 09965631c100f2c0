"""Attacks of the catalogue on the page: each plays on the lab's own stage, under the page's rules.

They are the attacks of attacks.py with its verdicts, not imitations of them. The stage stands apart
from the ends that are under the user's hand, so that neither disturbs the other.
"""

from __future__ import annotations

import argparse
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

from attacks import ATTACKS, PROGRAM
from classroom.live.scene import Feeds
from classroom.live.views import View, run_view
from classroom.wire import LAB
from lab.catalogue import Attack
from lab.claims import read_sets
from lab.events import parsed, run_of
from lab.frames import Frame
from lab.program import Teller
from lab.rules import expanded
from lab.stage import Lab
from lab.verdict import should_win
from lab.weakened import DOCUMENTED
from lab.weakened import without as parts_without
from program import UserError

SETS = Path(LAB.data, "sets.json")


class QuietTeller(Teller):
    """Keeps the event log of one attack, and prints nothing."""

    def __init__(self, without: Sequence[str], feeds: Feeds) -> None:
        options = argparse.Namespace(
            names=[], verbose=False, file=None, events=True, json=False, step=False, without=without
        )
        super().__init__(PROGRAM, options)
        self.without = ",".join(without)
        self._feeds = feeds

    def log(self, deed: str, frame: Frame) -> None:
        super().log(deed, frame)
        self._feeds.touch(topics=["run"])

    def say(self, text: str, kind: str = "") -> None:
        """Print nothing: the page shows the run."""


class Plays:
    """The stage, the run that is shown, and the scoreboard of rules and attacks."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._found = read_sets(SETS)
        self._teller: QuietTeller | None = None
        self._begin: int  # of the run's lines in the log
        self._stop = threading.Event()
        self._shown = 0  # runs so far
        self.now = ""  # the attack that is running
        self.board: dict[str, dict[str, View]] = {}  # by rules that are out, by attack

    def play(self, names: Sequence[str], without: str) -> None:
        """Play attacks one after another, until they are done or stopped. Raises UserError."""
        if unknown := {*names} - ATTACKS.keys():
            raise UserError(f"no attack is named {min(unknown)!a}")
        self._stop.clear()
        taken = expanded(filter(None, without.split(",")), DOCUMENTED)
        parts = parts_without(taken) if taken else None
        teller = QuietTeller(sorted(taken), self._feeds)
        with Lab(secrets.token_hex(4), teller.log, parts, None, teller.observer) as lab:
            for name in names:
                if self._stop.is_set():
                    break
                can_win = should_win(name, taken, self._found) if taken else False
                self._enter(ATTACKS[name], lab, teller, can_win)

    def stop(self) -> None:
        """Let the attack that is going on be the last."""
        self._stop.set()

    def _enter(self, attack: Attack, lab: Lab, teller: QuietTeller, can_win: bool | None) -> None:
        self.now = attack.name
        self._begin = len(teller.events)
        self._shown += 1
        self._teller = teller
        try:
            result = teller.play(attack, lab, can_win)
        finally:
            self.now = ""
        cell = {"kind": result.kind, "words": result.words, "won": result.won}
        self.board.setdefault(teller.without, {})[attack.name] = cell
        self._feeds.touch(topics=["run", "board"])

    def run_view(self) -> View | None:
        """Show the run that is going on, or was last."""
        if self._teller is None:
            return None
        events = [parsed(event) for event in self._teller.events[self._begin :]]
        if not events:
            return {"shown": self._shown, "now": self.now, "rows": [], "attack": self.now}
        return {**run_view(run_of(events), LAB), "shown": self._shown, "now": self.now}
