"""Everything that the page has its hands on: the ends, the table between them, the attacks.

One thread carries out what is typed, one plays attacks; browsers only ask and look.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from classroom.live.ends import LivePair
from classroom.live.plays import Plays
from classroom.live.scene import Feeds, Scene
from classroom.live.table import LiveTable
from classroom.live.views import View
from lab.weakened import without
from program import UserError

MOST_WAITING = 50  # requests at once; more are refused


class Room:
    """The ends and the table of one set of rules at a time, inside `with`."""

    def __init__(self, rules: str = "", is_patient: bool = True, shows_inside: bool = False):
        without(filter(None, rules.split(",")))  # so that a wrong name is refused at once
        self.feeds = Feeds()
        self.scene = Scene(self.feeds)
        self.scene.shows_inside = shows_inside
        self.plays = Plays(self.feeds)
        self.rules = rules
        self.is_patient = is_patient
        self._ends = contextlib.ExitStack()
        self._hand = ThreadPoolExecutor(1, "hand")
        self._stage = ThreadPoolExecutor(1, "stage")
        self._waiting = threading.Semaphore(MOST_WAITING)
        self.is_busy = False

    def __enter__(self) -> Room:
        self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.plays.stop()
        self._stage.shutdown(cancel_futures=True)
        self._hand.shutdown(cancel_futures=True)
        self._ends.close()

    def _open(self) -> None:
        self.pair = self._ends.enter_context(
            LivePair(self.rules, self.scene, self._changed, self.is_patient)
        )
        self.table = LiveTable(self.pair, self.scene)
        self._ends.enter_context(self.table.wire)
        self._ends.callback(self.table.leave)
        self.pair.live(self.table.wire.address)

    def _changed(self) -> None:
        self.feeds.touch(topics=["state"])

    # What browsers ask for

    def type(self, line: str) -> None:
        """Carry out a command of the proxy, soon."""
        self._soon(self._hand, lambda: self.table.type(line))

    def restart(self, rules: Sequence[str], is_patient: bool) -> None:
        """Bring other ends, which lack these rules, soon."""
        self._soon(self._hand, lambda: self._restart(",".join(rules), is_patient))

    def _restart(self, rules: str, is_patient: bool) -> None:
        without(filter(None, rules.split(",")))
        self._ends.close()
        self.scene.clear()
        self.rules = rules
        self.is_patient = is_patient
        self._open()
        words = f"without {rules}" if rules else "with all rules"
        self.scene.say(f"the ends have begun anew, {words}")

    def play(self, names: Sequence[str]) -> None:
        """Play attacks of the catalogue under these rules, soon."""
        rules = self.rules
        self._soon(self._stage, lambda: self._play(names, rules))

    def _play(self, names: Sequence[str], rules: str) -> None:
        self.is_busy = True
        self._changed()
        try:
            self.plays.play(names, rules)
        finally:
            self.is_busy = False
            self._changed()

    def _soon(self, executor: ThreadPoolExecutor, deed: Callable[[], object]) -> None:
        if not self._waiting.acquire(blocking=False):
            raise UserError("too much at once; wait a moment")
        executor.submit(self._do, deed)

    def _do(self, deed: Callable[[], object]) -> None:
        try:
            deed()
        except UserError as error:
            self.scene.say(str(error))
        except Exception as error:  # a defect of ours; the page goes on
            self.scene.say(f"internal error: {type(error).__name__}: {error}")
        finally:
            self._waiting.release()
            self.feeds.touch(topics=["state", "script"])

    # What browsers are told

    def view(self) -> View:
        """Show all but the rows."""
        return {
            "rules": [*filter(None, self.rules.split(","))],
            "patient": self.is_patient,
            "inside": self.scene.shows_inside,
            "busy": self.is_busy,
            "table": self.table.view(),
            "ends": self.pair.view(),
            "script": self.table.script[-1:],
        }

    def script(self) -> str:
        """Return the commands so far, with what to type to replay them."""
        flags = f"--without {self.rules}" if self.rules else "--own"
        if not self.is_patient:
            flags += " --deadlines"
        head = f"# python -m classroom.proxy {flags} --script FILE\n"
        return head + "".join(f"{line}\n" for line in self.table.script)
