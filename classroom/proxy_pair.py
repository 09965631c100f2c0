"""A server and a client of the proxy's own, with rules taken out, and a score of what fooled them.

The score counts messages that an end accepted although its peer did not send them, or not in that
place: in a session, what an end accepts should be what its peer sent, in that order, without gaps.
A CLIENT_HELLO does not count: accepting one promises nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from client import Client
from crypto_utils import NONCE_BYTES
from endpoint import DEMO_KEYS, opcode_of
from lab.frames import Frame, recorder
from lab.proxy import Proxy
from lab.stage import OLD_READINGS, OTHER, READINGS
from lab.weakened import without
from program import UserError, escaped
from protocol_fsm import (
    Direction,
    Opcode,
    ProtocolError,
    Seen,
    Session,
    Watcher,
    read_frame,
    write_frame,
)
from server import Limits, Record

CLIENT_ID = 1
RECEIVERS = {Direction.C2S: "client", Direction.S2C: "server"}  # by what they send
IMPATIENT = Limits(window_s=0.3)
PATIENT = Limits(
    window_s=0.3, stranger_timeout_s=math.inf, frame_timeout_s=math.inf, silence_timeout_s=math.inf
)


class Score:
    """What both ends accepted and refused, beside what their peers sent."""

    def __init__(self) -> None:
        self.won = 0
        self.genuine = 0
        self.refused = 0
        self.begin()

    def begin(self) -> None:
        """Forget what was sent: another connection has begun."""
        self._sent: dict[str, list[bytes]] = {"client": [], "server": []}  # by who is to get it
        self._excused = dict.fromkeys(self._sent, 0)  # messages whose substitutes were accepted

    def __str__(self) -> str:
        return (
            f"score: {self.won} accepted that should not have been, {self.genuine} accepted as "
            f"sent, {self.refused} refused"
        )

    def see(self, sends: Direction, seen: Seen) -> str:
        """Enter what an end that sends in this direction did; return what to say of it."""
        message = seen.message
        end = RECEIVERS[sends]
        title = opcode_of(message)
        if seen.verdict not in ("sealed", "accepted"):
            self.refused += 1
            return f"the {end} refused {title}: {seen.verdict}"
        if message[0] == Opcode.CLIENT_HELLO:
            return ""
        if seen.verdict == "sealed":
            self._sent[RECEIVERS[Direction(1 - sends)]].append(message)
            return ""
        return self._accepted(end, title, seen)

    def _accepted(self, end: str, title: str, seen: Seen) -> str:
        sent = self._sent[end]
        if seen.message not in sent:
            self.won += 1
            self._excused[end] += 1
            body = seen.plaintext[NONCE_BYTES if end == "server" else 1 :]
            text = escaped(body.decode("ascii", "replace"))
            return f"YOU WIN: the {end} accepted {title} {text}, which nobody sent"
        skipped = sent.index(seen.message)
        del sent[: skipped + 1]
        if skipped > self._excused[end]:
            self.won += 1
            return f"YOU WIN: the {end} accepted {title}, and does not miss {skipped} before it"
        self._excused[end] -= skipped
        self.genuine += 1
        return f"the {end} accepted {title}, as it was sent"


class OwnPair:
    """A server that serves inside `with`, and a client that runs a session when it is asked to.

    `names` are the rules that both lack, separated by commas, if any. Two recordings are there from
    the start: `older`, a session of the same client, and `other`, one of another client.
    """

    def __init__(self, names: str, say: Callable[[str], object], is_patient: bool) -> None:
        self._parts = without(filter(None, names.split(",")))
        self._say = say
        self._client = threading.Thread()
        self._is_recording = True
        self.score = Score()
        self.reports: Sequence[list[float]] = READINGS  # in a session of the client
        self.tapes: dict[str, list[Frame]] = {}
        limits = PATIENT if is_patient else IMPATIENT
        self._is_patient = is_patient
        self._times: dict[str, Any] = {}  # how long a client waits; as usual for recordings
        self._server = self._parts.server(
            DEMO_KEYS, port=0, limits=limits, record=self.see, new_session=self._new_session
        )
        self.address: tuple[str, int] = self._server.address

    def __enter__(self) -> OwnPair:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._server)
            self.tapes = {"older": self._recorded(CLIENT_ID), "other": self._recorded(OTHER)}
            self._server._epochs.current.number = 1  # as if it had just begun
            self._is_recording = False
            stack.pop_all()
        if self._is_patient:
            self._times = {"timeout_s": math.inf, "frame_timeout_s": math.inf}
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_living:
            self._client.join(5.0)
        self._server.__exit__(*exception)

    @property
    def is_living(self) -> bool:
        """Return whether the client is in a session."""
        return self._client.is_alive()

    def live(self, address: tuple[str, int]) -> None:
        """Let the client run a session. Raises UserError if it is in one."""
        if self.is_living:
            raise UserError("the client is still in its session; forward, or cut")
        self._client = threading.Thread(target=self._live, args=(address,), daemon=True)
        self._client.start()

    def _live(self, address: tuple[str, int]) -> None:
        with contextlib.suppress(ProtocolError, UserError, OSError):
            self._report(CLIENT_ID, address, self.reports)

    def _report(
        self, client_id: int, address: tuple[str, int], reports: Sequence[list[float]]
    ) -> None:
        with self.client(client_id, address) as client:
            for readings in reports:
                client.report(readings)

    def client(self, client_id: int, address: tuple[str, int]) -> Client:
        """Return a client, which lacks the same rules."""
        client: Client = self._parts.client(
            client_id, DEMO_KEYS, *address, new_session=self._new_session, **self._times
        )
        return client

    def _recorded(self, client_id: int) -> list[Frame]:
        """Return the recording of an honest session. Raises UserError."""
        tape: list[Frame] = []
        try:
            with Proxy(self.address, recorder(tape), read_frame, write_frame) as proxy:
                self._report(client_id, proxy.address, OLD_READINGS)
        except ProtocolError as error:
            raise UserError(f"no honest session: {error}") from None
        return tape

    def _new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        watchers = [] if self._is_recording else [self.watcher(client_id, sends)]
        session: Session = self._parts.session(client_id, key, sends, watchers=watchers)
        return session

    def watcher(self, client_id: int, sends: Direction) -> Watcher:
        """Return what watches a new session."""
        return lambda seen: self._say(self.score.see(sends, seen))

    def see(self, record: Record) -> None:
        """Hear what the server records."""
