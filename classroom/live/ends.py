"""The two ends on the page, a third client that is left alone, and what they report.

The ends are those of classroom/proxy_pair.py, with the same score. What their watchers learn goes
to the scene at once: no thread of theirs waits for the table or for a browser.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from classroom.keylog import words_of
from classroom.live.scene import Scene
from classroom.live.views import View, short
from classroom.proxy_pair import CLIENT_ID, RECEIVERS, OwnPair
from lab.stage import BYSTANDER
from program import UserError, escaped
from protocol_fsm import HEADER, PHASE, Direction, Header, ProtocolError, Seen, Session, Watcher
from server import Contribution, Epoch, Record


class LivePair(OwnPair):
    """A server, the client under attack, and a bystander that reports whenever that one does."""

    def __init__(self, names: str, scene: Scene, changed: Callable[[], object], patient: bool):
        super().__init__(names, scene.say, patient)
        self._scene = scene
        self._changed = changed
        self._sessions: dict[str, Session] = {}  # the newest of each end
        self._fates: dict[str, str] = {}  # the last refusal or end of each
        self._epoch: Epoch | None = None
        self._scoring = threading.Lock()
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._bystander = threading.Thread(target=self._stand_by, daemon=True)

    def __enter__(self) -> LivePair:
        super().__enter__()
        self._turns.put(True)  # so that epochs wait for the bystander
        self._bystander.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._turns.put(False)
        super().__exit__(*exception)

    def _stand_by(self) -> None:
        """Report once, and then in each epoch of the other client."""
        with (
            contextlib.suppress(ProtocolError, UserError, OSError),
            self.client(BYSTANDER, self.address) as client,
        ):
            while self._turns.get():
                client.report([1.0])

    def see(self, record: Record) -> None:
        """Hear what the server records: reports, epochs, and how sessions ended."""
        if self._is_recording:
            return
        if isinstance(record.detail, Epoch):
            self._epoch = record.detail
        elif record.client_id == BYSTANDER:
            return
        elif isinstance(record.detail, Contribution):
            self._turns.put(True)
        else:
            self._fates["server"] = escaped(str(record.detail))
        self._changed()

    def watcher(self, client_id: int, sends: Direction) -> Watcher:
        """Return what watches a new session for the score and the scene."""
        if client_id in (0, BYSTANDER):
            return lambda seen: None
        score = super().watcher(client_id, sends)
        end = RECEIVERS[sends]

        def watch(seen: Seen) -> None:
            if seen.verdict not in ("sealed", "accepted"):
                self._fates[end] = f"refused: {seen.verdict}"
            inside = inside_of(seen.message, seen.plaintext) if seen.plaintext else ""
            with self._scoring:
                before = self.score.won
                score(seen)
                verdict = "won" if self.score.won > before else seen.verdict
            self._scene.judged(end, seen.message, verdict, inside)

        return watch

    def _new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        session = super()._new_session(client_id, key, sends)
        if not self._is_recording and client_id not in (0, BYSTANDER):
            end = RECEIVERS[sends]
            self._sessions[end] = session
            self._fates.pop(end, None)
        return session

    def _live(self, address: tuple[str, int]) -> None:
        try:
            super()._live(address)
        finally:
            self._changed()

    def view(self) -> View:
        """Show both ends, the epoch that closed last, and the score."""
        epoch = self._epoch
        return {
            "client": self._end_view("client"),
            "server": self._end_view("server"),
            "client_id": CLIENT_ID,
            "epoch": {"number": epoch.number, **epoch.aggregate} if epoch else None,
            "score": {
                "won": self.score.won,
                "genuine": self.score.genuine,
                "refused": self.score.refused,
            },
        }

    def _end_view(self, end: str) -> View:
        session = self._sessions.get(end)
        if session is None:
            return {"state": "none", "phase": "", "round": 0, "keys": {}, "fate": ""}
        return {
            "state": session.state.name,
            "phase": PHASE[session.state].name,
            "round": session.round_number,
            "keys": session.fingerprints(),
            "fate": self._fates.get(end, ""),
        }


def inside_of(message: bytes, plaintext: bytes) -> str:
    """Return a plaintext in words, as anyone with the key log can read it."""
    words = words_of(Header(*HEADER.unpack_from(message)), plaintext).removeprefix("plaintext: ")
    return short(words)
