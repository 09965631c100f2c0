"""A server and a client of the proxy's own, with rules taken out, and the score of who fools them.

The score counts messages that an end accepted though its partner did not send them, or not in that
place: in a session, what an end accepts should be what its partner sent, in that order, without
gaps. A CLIENT_HELLO does not count: to accept one promises nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable

from crypto_utils import NONCE_BYTES
from endpoint import DEMO_KEYS, OPCODE_NAMES
from lab.stage import READINGS
from lab.weakened import without
from program import UserError, escaped
from protocol_fsm import Direction, Opcode, ProtocolError, Seen, Session
from server import Limits

CLIENT_ID = 1
RECEIVERS = {Direction.C2S: "client", Direction.S2C: "server"}  # by what they send
PATIENT = Limits(
    window_s=0.3,
    stranger_timeout_s=math.inf,
    frame_timeout_s=math.inf,
    silence_timeout_s=math.inf,
)


class Score:
    """What both ends accepted and refused, beside what their partners sent."""

    def __init__(self) -> None:
        self.won = 0
        self.genuine = 0
        self.refused = 0
        self.begin()

    def begin(self) -> None:
        """Forget what was sent: another connection has begun."""
        self._sent: dict[str, list[bytes]] = {"client": [], "server": []}  # by who is to get it
        self._excused = dict.fromkeys(self._sent, 0)  # messages in whose place others were accepted

    def __str__(self) -> str:
        return (
            f"score: {self.won} accepted that should not have been, {self.genuine} accepted as "
            f"sent, {self.refused} refused"
        )

    def see(self, sends: Direction, seen: Seen) -> str:
        """Enter what an end that sends in this direction did; return what to say of it."""
        message = seen.message
        end = RECEIVERS[sends]
        title = OPCODE_NAMES.get(message[0], f"opcode {message[0]}") if message else "nothing"
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
    """A server that serves inside `with`, and a client that lives a session when it is asked to."""

    def __init__(self, names: str, say: Callable[[str], object]) -> None:
        self._parts = without(names.split(","))
        self._say = say
        self._client = threading.Thread()
        self.score = Score()
        self._server = self._parts.server(
            DEMO_KEYS, port=0, limits=PATIENT, new_session=self._new_session
        )
        self.address: tuple[str, int] = self._server.address

    def __enter__(self) -> OwnPair:
        self._server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._client.ident:
            self._client.join(5.0)
        self._server.__exit__(*exception)

    def live(self, address: tuple[str, int]) -> None:
        """Let the client live a session. Raises UserError: it is in one."""
        if self._client.is_alive():
            raise UserError("the client is still in its session; forward, or cut")
        self._client = threading.Thread(target=self._live, args=(address,), daemon=True)
        self._client.start()

    def _live(self, address: tuple[str, int]) -> None:
        with (
            contextlib.suppress(ProtocolError, UserError, OSError),
            self._parts.client(
                CLIENT_ID,
                DEMO_KEYS,
                *address,
                timeout_s=math.inf,
                frame_timeout_s=math.inf,
                new_session=self._new_session,
            ) as client,
        ):
            for readings in READINGS:
                client.report(readings)

    def _new_session(self, client_id: int, key: bytes, sends: Direction) -> Session:
        session: Session = self._parts.session(
            client_id, key, sends, watchers=[lambda seen: self._say(self.score.see(sends, seen))]
        )
        return session
