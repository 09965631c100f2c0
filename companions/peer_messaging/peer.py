"""How a node treats its one peer: begin, answer, give way, ask whether it is there, begin again.

Messages in, messages out; there is no socket and no thread here. The clock and the timer are handed
in, so that an hour can pass in a test. A newer session may replace the open one at any time, but
only after its peer has shown that it holds the keys: a HELLO alone displaces nothing [N 7].
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from companions.peer_messaging.identity import Identity, Trust, fingerprint_of
from companions.peer_messaging.protocol import (
    MAX_TEXT,
    WINDOW_S,
    Kind,
    Message,
    Outlived,
    PeerAway,
    Reason,
    Replayed,
    Role,
    Session,
    State,
    answer_to,
)
from protocol_fsm import LocalError, ProtocolError

log = logging.getLogger("peer")


@dataclass(frozen=True)
class Limits:
    """How long a node waits, and how many texts it keeps."""

    window_s: float = WINDOW_S  # how far a timestamp may be from our clock
    ping_s: float = 2.0  # of silence, until we ask
    away_s: float = 6.0  # of silence, until the peer counts as away
    hello_s: float = 1.0  # between two HELLOs; it doubles up to eight times that
    handshake_s: float = 5.0  # from HELLO to WELCOME
    lifetime_s: float = 3_600.0  # of a session, until the next one replaces it
    max_waiting: int = 100  # texts that wait for a session, or for receipts of earlier texts
    max_under_way: int = 100  # texts without a receipt
    hellos: int = 3  # without an answer, until a person should know


class Event(NamedTuple):
    """Something that a person, or a test, may want to know.

    met: a session has begun; `text` is the peer's fingerprint, `number` 1 at the first contact.
    text, sent: `text` came, or went out as `number`. receipt: `number` has arrived. unconfirmed: a
    session ended before that was known. refused: `error` says why a message was dropped. ended:
    `error` says why the session is over; None if a newer one has replaced it. unanswered: `number`
    HELLOs had no answer.
    """

    what: str
    text: str = ""
    number: int = 0
    error: ProtocolError | None = None


def bare(error: ProtocolError) -> ProtocolError:
    """Strip an error of its traceback and its context, which hold messages and keys."""
    error.__context__ = None
    return error.with_traceback(None)


class Peer:
    """One of two equal nodes, as it sees the other. Each call returns the messages to send now.

    `clock` gives seconds since 1970, for timestamps; `timer` never goes back, for waiting.
    """

    def __init__(
        self,
        identity: Identity,
        trust: Trust,
        limits: Limits = Limits(),
        *,
        tell: Callable[[Event], object] = lambda event: None,
        new_session: Callable[..., Session] = Session,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.trust = trust
        self.limits = limits
        self._tell = tell
        self._new_session = new_session
        self._clock = clock
        self._timer = timer
        self._session: Session | None = None  # the open one
        self._pending: Session | None = None  # the one whose handshake is under way
        self._begun = 0.0
        self._pending_since = 0.0
        self._heard = 0.0
        self._asked = 0.0
        self._next_hello = 0.0
        self._pause = limits.hello_s
        self._in_vain = 0  # HELLOs without an answer and without a session
        self._hellos: dict[bytes, float] = {}  # digests of accepted ones, and when to forget them
        self._waiting: deque[tuple[int, str]] = deque()  # texts, by our own numbers
        self._numbers: dict[int, int] = {}  # of texts without a receipt, by sequence number
        self._count = 0
        self._has_left = False

    @property
    def session(self) -> Session | None:
        """The open session, if there is one."""
        return self._session

    # What a person wants

    def say(self, text: str) -> list[bytes]:
        """Send a text of 1 to 4,096 bytes, or keep it until there is a session. LocalError."""
        if self._has_left:
            raise LocalError("a node that has left says nothing more")
        try:
            length = len(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise LocalError("a text cannot hold half a character") from None
        if not 1 <= length <= MAX_TEXT:
            raise LocalError(f"a text has 1 to {MAX_TEXT:,} bytes, and this one {length:,}")
        if len(self._waiting) >= self.limits.max_waiting:
            raise LocalError(f"{self.limits.max_waiting} texts are waiting already")
        self._count += 1
        self._waiting.append((self._count, text))
        return self._flush()

    def leave(self) -> list[bytes]:
        """Say BYE, and then nothing more."""
        self._has_left = True
        self._pending = None
        if self._session is None:
            return []
        farewell = self._session.goodbye(Reason.GOODBYE)
        self._forget(self._session)
        return [farewell] if farewell else []

    # What is due by the clock

    def tick(self) -> list[bytes]:
        """Do what is due. To be called several times a second."""
        now = self._timer()
        sent: list[bytes] = []
        if self._has_left:
            return []
        if now - self._pending_since >= self.limits.handshake_s:
            self._pending = None
        if self._session:
            sent += self._keep_alive(self._session, now)
        if self._wants_hello(now):
            sent.append(self._begin(now))
        return sent + self._flush()

    def _keep_alive(self, session: Session, now: float) -> list[bytes]:
        """Ask a silent peer whether it is there, and give it up if it stays silent."""
        silent_s = now - self._heard
        if session.is_spent or now - self._begun >= 2 * self.limits.lifetime_s:
            return self._end(session, Outlived("a newer session by now", "none"))
        if silent_s >= self.limits.away_s:
            return self._end(session, PeerAway(f"a word in {self.limits.away_s:g} s", "none"))
        if silent_s >= self.limits.ping_s and now - self._asked >= self.limits.ping_s:
            self._asked = now
            return [session.seal(Message(Kind.PING))]
        return []

    def _wants_hello(self, now: float) -> bool:
        """Return whether a handshake should begin, or begin again because nobody has answered."""
        pending = self._pending
        session = self._session
        if now < self._next_hello or (pending and pending.state is not State.REPLY):
            return False
        if session is None:
            return True
        is_old = session.is_used_up or now - self._begun >= self.limits.lifetime_s
        return is_old and session.role is Role.INITIATOR

    def _begin(self, now: float) -> bytes:
        if self._in_vain == self.limits.hellos:
            self._tell(Event("unanswered", number=self._in_vain))
        if self._session is None:
            self._in_vain += 1
        self._pending = self._new(Role.INITIATOR)
        self._pending_since = now
        self._next_hello = now + self._pause
        self._pause = min(2 * self._pause, 8 * self.limits.hello_s)
        return self._pending.seal(Message(Kind.HELLO))

    def _new(self, role: Role) -> Session:
        return self._new_session(
            self.identity, self.trust, role, clock=self._clock, window_s=self.limits.window_s
        )

    # What the inbox brings

    def receive(self, message: bytes) -> list[bytes]:
        """Take a message that anybody may have put into the inbox."""
        if self._has_left:
            return []
        if message[:1] == bytes([Kind.HELLO]):
            return self._answer(message)
        session = self._session_of(message)
        if session is None:
            return []
        try:
            accepted = session.open(message)
        except ProtocolError as error:
            if session.state is State.ENDED:
                return self._end(session, error)
            self._refuse(error)
            return []
        return self._accept(session, accepted) + self._flush()

    def _answer(self, hello: bytes) -> list[bytes]:
        """Answer a HELLO, unless ours goes first. An open session stays open."""
        now = self._timer()
        digest = hashlib.sha256(hello).digest()
        session = self._new(Role.RESPONDER)
        try:
            self._check_memory(digest, now)
            session.open(hello)
        except ProtocolError as error:
            self._refuse(error)
            return []
        self._hellos[digest] = now + 2 * self.limits.window_s
        if self._goes_first(session):  # it says HELLO again, in case the peer has missed the last
            self._next_hello = min(self._next_hello, now + self.limits.hello_s / 4)
            self._pause = self.limits.hello_s
            return []
        self._admit(session, now)
        return [session.seal(Message(Kind.REPLY))]

    def _check_memory(self, digest: bytes, now: float) -> None:
        """Refuse a HELLO that was accepted before, while its timestamp is still good."""
        while self._hellos and next(iter(self._hellos.values())) < now:  # the oldest
            del self._hellos[next(iter(self._hellos))]
        if digest in self._hellos:
            raise Replayed("a new HELLO", "one that was accepted before")

    def _goes_first(self, session: Session) -> bool:
        """Return whether both have begun at once, and the peer is to answer our HELLO."""
        has_asked = self._pending is not None and self._pending.state is State.REPLY
        return has_asked and self.identity.fingerprint < fingerprint_of(session.peer_key)

    def _admit(self, session: Session, now: float) -> None:
        """Let a handshake begin; it ends no open session."""
        self._pending = session
        self._pending_since = now

    def _session_of(self, message: bytes) -> Session | None:
        """Return the session that a message names, else the one that can best refuse it."""
        if message[:1] == bytes([Kind.REPLY]):
            return self._pending or self._session
        for session in (self._pending, self._session):
            if session and session.session_id == message[1:17]:
                return session
        return self._session or self._pending

    def _accept(self, session: Session, message: Message) -> list[bytes]:
        if session is self._session:
            self._heard = self._timer()
        if message.kind is Kind.REPLY:
            self._in_vain = 0
            return [session.seal(Message(Kind.CONFIRM))]
        if message.kind is Kind.CONFIRM:
            welcome = session.seal(Message(Kind.WELCOME))
            self._establish(session)
            return [welcome]
        if message.kind is Kind.WELCOME:
            self._establish(session)
        elif message.kind is Kind.TEXT:
            self._tell(Event("text", message.text, message.sequence))
            return [session.seal(answer_to(message))]
        elif message.kind is Kind.RECEIPT:
            self._tell(Event("receipt", number=self._numbers.pop(message.number, 0)))
        elif message.kind is Kind.PING:
            return [session.seal(answer_to(message))]
        return []

    # How sessions begin and end

    def _establish(self, session: Session) -> None:
        """Open a session whose peer has shown the keys; it replaces the one before."""
        if self._session:
            self._forget(self._session)
            self._tell(Event("ended"))
        self._session = session
        self._pending = None
        self._begun = self._timer()
        self._heard = self._begun
        self._pause = self.limits.hello_s
        self._in_vain = 0
        is_first = self.trust.pin(session.peer_key)
        self._tell(Event("met", fingerprint_of(session.peer_key), int(is_first)))

    def _end(self, session: Session, error: ProtocolError) -> list[bytes]:
        """Give up a session because of `error`; the next handshake begins by itself."""
        if session.state is not State.ENDED:
            session.fail(error)
        if session is self._session:
            self._forget(session)
            self._tell(Event("ended", error=bare(error)))
        else:
            self._pending = None
            self._refuse(error)
        return [error.farewell] if error.farewell else []

    def _forget(self, session: Session) -> None:
        """End the open session on our side; what became of its last texts is unknown."""
        session.close()
        if session.watchers.error:
            log.error("a watcher of %r failed: %s", session, session.watchers.error)
        self._session = None
        for number in self._numbers.values():
            self._tell(Event("unconfirmed", number=number))
        self._numbers.clear()

    def _refuse(self, error: ProtocolError) -> None:
        """Tell that a message was dropped; its sender learns nothing."""
        self._tell(Event("refused", error=bare(error)))

    def _flush(self) -> list[bytes]:
        """Send the texts that wait, but not while a newer session is about to take over."""
        sent: list[bytes] = []
        is_changing = self._pending is not None and self._pending.state is State.WELCOME
        while (
            self._session
            and self._waiting
            and not is_changing
            and len(self._numbers) < self.limits.max_under_way
        ):
            number, text = self._waiting.popleft()
            self._numbers[self._session.next_number] = number
            sent.append(self._session.seal(Message(Kind.TEXT, text.encode("utf-8"))))
            self._tell(Event("sent", text, number))
        return sent
