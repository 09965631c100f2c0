"""What the tests of secure_chat's sessions share: pairs of real ends, without sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from companions.asymmetric import PrivateKey
from companions.canonical import canonical
from companions.secure_chat.protocol import (
    Direction,
    Kind,
    Message,
    Party,
    ProtocolFSM,
    Session,
    State,
    parse,
)
from protocol_fsm import ProtocolError
from tests.companions.chat_helpers import ALICE, BOB, NOW, ROOM, Authority
from tests import sessions
from tests.sessions import clone

SERVER = "localhost"
C2S = Direction.C2S
S2C = Direction.S2C
LOGIN = Message(Kind.LOGIN, {"email": ALICE, "pwd": "a password"})
WELCOME = Message(Kind.WELCOME, {"username": "alice", "session_token": "AAAA"})
FOUND = {"room": ROOM, "start": "00" * 32, "index": 0, "head": "00" * 32, "members": []}
RECEIPT = {"receipt": {}, "countersignature": ""}
MSG: Mapping[str, Any] = {
    "session": "",
    "room": ROOM,
    "recipients": [],
    "seqno": 0,
    "ts": 0,
    "previous": "",
    "seen": "",
    "commitment": "",
    "ct": "",
    "sig": "",
}
SAID: Mapping[Kind, Mapping[str, Any]] = {  # legal members of each message that has any
    Kind.REGISTER: {"email": ALICE, "username": "alice", "pwd": "a password"},
    Kind.LOGIN: LOGIN.members,
    Kind.RESUME: {"session_token": "AAAA"},
    Kind.WELCOME: WELCOME.members,
    Kind.JOIN: {"room": ROOM},
    Kind.ROOM: FOUND,
    Kind.JOINED: {"room": ROOM, "member": {}},
    Kind.LEFT: {"room": ROOM, "session": ""},
    Kind.MSG: MSG,
    Kind.RELAY: {"msg": "", "sig": "", "head": "", "head_sig": "", "opening": ""},
    Kind.LEAVE: {"room": ROOM},
    Kind.RECEIPT: RECEIPT,
    Kind.COUNTERSIGN: {"countersignature": ""},
    Kind.ERROR: {"error_type": "violation"},
}
CONVERSATION: Sequence[tuple[Direction, Kind]] = (  # through every state but those of an update
    (C2S, Kind.HELLO),
    (S2C, Kind.SERVER_HELLO),
    (C2S, Kind.DH_CLIENT),
    (S2C, Kind.DH_SERVER),
    (C2S, Kind.LOGIN),
    (S2C, Kind.WELCOME),
    (C2S, Kind.DH_CLIENT),
    (S2C, Kind.DH_SERVER),
    (C2S, Kind.JOIN),
    (S2C, Kind.ROOM),
    (C2S, Kind.LEAVE),
    (S2C, Kind.RECEIPT),
    (C2S, Kind.RECEIPT),
    (S2C, Kind.COUNTERSIGN),
)
DETOURS: Mapping[State, tuple[Direction, Kind]] = {  # from CHAT
    State.ASKED: (S2C, Kind.UPDATE),
    State.UPDATING: (C2S, Kind.DH_CLIENT),
}


def message(kind: Kind) -> Message:
    """Return some legal message of a kind."""
    return Message(kind, SAID.get(kind, {}))


class World:
    """An authority, a server, Alice and Bob; time stands still."""

    def __init__(self, keys: Sequence[PrivateKey]) -> None:
        self.authority = Authority(keys[0])
        self.keys = keys
        self.server = self.party("server", SERVER, keys[1])
        self.alice = self.party("client", ALICE, keys[2])
        self.bob = self.party("client", BOB, keys[3])

    def party(self, role: Any, name: str, key: PrivateKey) -> Party:
        own = self.authority.issue(role, name, key)
        identity = self.authority.trust().verify(own.pem, role, name, NOW)
        return Party(identity, own.pem, key)

    def session(self, party: Party, kind: type[Session] = Session, **options: Any) -> Session:
        name = SERVER if party.identity.role == "client" else None
        options.setdefault("now", lambda: NOW)
        return kind(party, self.authority.trust(), name, **options)


class Pair:
    """Alice and the server."""

    def __init__(
        self,
        world: World,
        client: type[Session] = Session,
        server: type[Session] = Session,
        **options: Any,
    ) -> None:
        self.client = world.session(world.alice, client, **options)
        self.server = world.session(world.server, server, **options)
        self.frames: list[bytes] = []

    def end(self, direction: Direction) -> Session:
        return self.client if direction is C2S else self.server

    def other(self, direction: Direction) -> Session:
        return self.end(Direction(1 - direction))

    def say(self, direction: Direction, said: Message) -> Message:
        """Let one end say something, and the other open it."""
        frame = self.end(direction).seal(said)
        self.frames.append(frame)
        return self.other(direction).open(frame)

    def up_to(self, state: State) -> Pair:
        """Go on until both ends are in a state."""
        moves = ProtocolFSM.VALID_TRANSITIONS
        for direction, kind in CONVERSATION:
            here = self.client.state
            if here is state or (here is State.CHAT and state in DETOURS):
                break
            if (here, kind, direction) in moves:
                self.say(direction, message(kind))
        if state in DETOURS:
            direction, kind = DETOURS[state]
            self.say(direction, message(kind))
        assert self.client.state is self.server.state is state
        return self


def in_state(world: World, state: State) -> Pair:
    return Pair(world).up_to(state)


def refusal(session: Session, frame: bytes) -> ProtocolError:
    """Return the error with which a copy of the session refuses a frame."""
    twin = clone(session)
    error = sessions.refusal(twin, frame)
    assert twin.state is State.ENDED
    assert not twin._keys
    return error


def edited(frame: bytes, **members: Any) -> bytes:
    return canonical({**parse(frame), **members})


def flips(frame: bytes, step: int) -> Iterator[bytes]:
    """Yield the frame with one bit flipped, at every `step`-th byte."""
    for position in range(0, len(frame), step):
        changed = bytearray(frame)
        changed[position] ^= 1 << position % 8
        yield bytes(changed)
