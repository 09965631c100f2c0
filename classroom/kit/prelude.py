"""What the checks ask for by name, on both sides; it stands beside the modules in a child.

Nothing here says what is right: it brings sessions and streams into a state, and describes what
comes of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import protocol_fsm
import server
from crypto_utils import aes_cbc_encrypt, derive_key, hmac_sha256, pkcs7_pad
from protocol_fsm import (
    HEADER,
    KEY_LABELS,
    ClientData,
    ClientHello,
    Direction,
    Header,
    Keys,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ProtocolFSM,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    evolve_c2s,
    evolve_s2c,
    read_frame,
    write_frame,
)

Place = Sequence[Any]  # sends, state, round, keys, client id, client nonce


def schedule(key: bytes, texts: Sequence[bytes]) -> list[Keys]:
    """Return the keys round by round."""
    keys = {label: derive_key(key, label) for label in KEY_LABELS}
    found = [keys]
    for text in texts:
        found.append(evolve_c2s(found[-1], text, text[:16]))
        found.append(evolve_s2c(found[-1], text[3:], b"\0"))
    return found


class Stream:
    """What recv gives, piece by piece."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.left = [piece for piece in pieces if piece]
        self.ends = 0

    def recv(self, length: int) -> bytes:
        if not self.left:
            self.ends += 1
            if self.ends > 100:
                raise ProtocolError("an end", "a reader that goes on")
            return b""
        piece = self.left.pop(0)
        if piece[length:]:
            self.left.insert(0, piece[length:])
        return piece[:length]


def frames_of(pieces: Sequence[bytes], count: int) -> list[bytes]:
    stream = Stream(pieces)
    return [*(read_frame(stream.recv) for _ in range(count)), b"".join(stream.left)]


def name_of(action: Callable[[], object]) -> list[object]:
    """Return the name of the error that is raised, and what it says about a cut."""
    try:
        action()
    except Exception as error:
        return [type(error).__name__, getattr(error, "mid_frame", None)]
    return ["", None]


def read_and_left(pieces: Sequence[bytes]) -> list[object]:
    stream = Stream(pieces)
    return [name_of(lambda: read_frame(stream.recv)), len(b"".join(stream.left))]


def written(message: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    write_frame(pieces.append, message)
    return pieces


def moves_from(state: str) -> list[tuple[str, str, str]]:
    """Return the legal moves as texts, in an order of their own."""
    table = ProtocolFSM.VALID_TRANSITIONS
    moves = []
    for (start, opcode, sender), target in table.items():
        if start is State[state]:
            moves.append((Opcode(opcode).name, Direction(sender).name, State(target).name))
    if not table:
        raise LookupError("an empty table")
    return sorted(moves)


def rounds_of(first: int) -> list[object]:
    """Return state and round after each message of three rounds."""
    fsm = ProtocolFSM(first)
    seen: list[object] = [fsm.round_number]
    talk = [(Opcode.CLIENT_HELLO, Direction.C2S), (Opcode.SERVER_CHALLENGE, Direction.S2C)]
    for _ in range(3):
        talk.append((Opcode.CLIENT_DATA, Direction.C2S))
        talk.append((Opcode.SERVER_AGGR_RESPONSE, Direction.S2C))
    for opcode, sender in talk:
        if fsm.state is State.ENDED:
            break
        fsm.advance(opcode, sender)
        seen.append([fsm.state.name, fsm.round_number])
    return seen


def counted(seed: bytes) -> Callable[[int], bytes]:
    """Return a source of bytes that both sides have alike."""
    calls: list[int] = []

    def source(length: int) -> bytes:
        calls.append(length)
        return hmac_sha256(seed, bytes([len(calls) % 256]))[:length]

    return source


def session_at(place: Place, seed: bytes) -> Session:
    """Return an end of a session in the midst of it."""
    sends, state, round_number, keys, client_id, nonce = place
    session = Session(client_id, bytes(16), Direction(sends), random_bytes=counted(seed))
    session._keys = {**keys}
    session._client_nonce = nonce
    session.fsm.state = State[state]
    session.fsm.round_number = round_number
    return session


def described(session: Session) -> list[object]:
    return [session.fsm.state.name, session.fsm.round_number, session._keys, session._client_nonce]


def opened(place: Place, message: bytes, seed: bytes) -> list[object]:
    """Return what opening a message does to an end: result, farewell, and all that has moved."""
    session = session_at(place, seed)
    try:
        return ["accepted", session.open(message), *described(session)]
    except PeerTerminated as error:
        return ["ended", error.opcode, error.status, error.farewell, *described(session)]
    except ProtocolError as error:
        return ["refused", type(error).__name__, error.farewell, *described(session)]


def failed(place: Place, error: ProtocolError, seed: bytes) -> list[object]:
    session = session_at(place, seed)
    session.fail(error)
    return [error.farewell, *described(session)]


def next_keys(place: Place, opcode: int, plaintext: bytes, ciphertext: bytes) -> list[Keys]:
    session = session_at(place, b"")
    before = {**session._keys}
    return [before, session._next_keys(Opcode(opcode), plaintext, ciphertext), session._keys]


def resealed(
    keys: Keys, opcode: int, plaintext: bytes, iv: bytes, header: Mapping[str, Any]
) -> bytes:
    """Return a message with a right tag, whatever is in it."""
    sender = Direction(header["sender"])
    head = HEADER.pack(*Header(opcode, header["client_id"], header["round_number"], sender))
    padded = header["padded"] or pkcs7_pad(plaintext)
    secret = aes_cbc_encrypt(padded, keys[f"{sender.name}-ENC"][:16], iv)
    return head + iv + secret + hmac_sha256(keys[f"{sender.name}-MAC"], head + iv + secret)


# Weak targets of the attacks: only the reference's side is asked for them ------------------------


class UnboundSession(Session):
    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        """Bind nothing."""
        if opcode is Opcode.SERVER_CHALLENGE:
            return self._keys
        return super()._next_keys(opcode, plaintext, ciphertext)


class Unbound:
    """A server for one client, which answers at once and does not bind."""

    def __init__(self, key: bytes) -> None:
        self.session = UnboundSession(1, key, Direction.S2C)
        self.reports: list[list[float]] = []

    def take(self, message: bytes) -> bytes:
        if self.session.state is State.ENDED:
            return b""
        try:
            content = self.session.open(message)
        except ProtocolError as error:
            return error.farewell
        if isinstance(content, ClientHello):
            return self.session.seal(ServerChallenge())
        if isinstance(content, ClientData):
            self.reports.append([*content.readings])
        return self.session.seal(ServerAggrResponse({"epoch": len(self.reports)}))


def unbound_recording(key: bytes, reports: Sequence[Sequence[float]]) -> list[bytes]:
    """Return the messages of a session whose keys are not bound."""
    client = UnboundSession(1, key, Direction.C2S)
    target = Unbound(key)
    tape = [client.seal(ClientHello())]
    tape.append(target.take(tape[-1]))
    client.open(tape[-1])
    for readings in reports:
        tape.append(client.seal(ClientData(readings)))
        tape.append(target.take(tape[-1]))
        client.open(tape[-1])
    return [*tape, client.goodbye(Status.GOODBYE)]


class Untagged(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Believe any tag."""


class PaddingFirst(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Decrypt and unpad before the tag is looked at."""
        self._unpad(self._decrypt(header, message))
        super()._check_tag(header, message)


def begun(kind: type[Session]) -> tuple[Session, Session]:
    """Return two ends after the handshake; that of the server is weak."""
    key = os.urandom(16)
    client = Session(7, key, Direction.C2S)
    target = kind(7, key, Direction.S2C)
    target.open(client.seal(ClientHello()))
    client.open(target.seal(ServerChallenge()))
    return client, target


class FlipTarget:
    """A server that checks no tag, and a report on its way to it."""

    def __init__(self, readings: Sequence[float]) -> None:
        client, self._server = begun(Untagged)
        self.message = client.seal(ClientData(readings))

    def reads(self, message: bytes) -> Sequence[float]:
        content = self._server.open(message)
        return content.readings if isinstance(content, ClientData) else []


class OracleTarget:
    """A server that looks at the padding first, and a message with a secret."""

    def __init__(self, text: bytes) -> None:
        client, self._server = begun(PaddingFirst)
        header = {"sender": 0, "client_id": 7, "round_number": 1, "padded": None}
        plaintext = os.urandom(16) + text
        self.message = resealed(client._keys, 30, plaintext, os.urandom(16), header)

    def is_padded(self, message: bytes) -> bool:
        """Return whether a report is refused for another reason than its padding."""
        twin = session_at([1, "REPORT", 1, self._server._keys, 7, b""], b"")
        twin.__class__ = PaddingFirst
        try:
            twin.open(message)
        except protocol_fsm.BadTag:
            return True
        except ProtocolError:
            return False
        return True


# Epochs -------------------------------------------------------------------------------------------


class Giver:
    """A connection, as far as epochs ask for it."""

    hello_number = 1

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id

    def request_end(self, status: Status) -> None:
        pass

    send_away = request_end


def raising(given: server.Contributions) -> dict[str, protocol_fsm.Json]:
    raise ArithmeticError("an aggregation that fails")


def exiting(given: server.Contributions) -> dict[str, protocol_fsm.Json]:
    raise SystemExit(3)


def unsendable(given: server.Contributions) -> dict[str, protocol_fsm.Json]:
    return {"sum": float("nan")}


AGGREGATIONS = {
    "right": server.compute_aggregation,
    "raises": raising,
    "exits": exiting,
    "unsendable": unsendable,
}


def epochs_played(steps: Sequence[Sequence[Any]], aggregation: str = "right") -> list[object]:
    """Return what epochs are and answer, step by step; the window is one second."""
    epochs = server.Epochs(1.0, AGGREGATIONS[aggregation])
    givers: dict[int, Giver] = {}
    seen: list[object] = []
    for name, who, *rest in steps:
        if name == "close":
            closed = epochs.close_if_due(who)
            seen.append(closed and [closed.number, closed.aggregate, bodies(closed)])
            continue
        giver = givers.setdefault(who, Giver(who))
        if name == "add":
            entry = server.Contribution(giver, len(seen) + 1, rest[0])
            seen.append(epochs.contribute(entry, rest[1]).number)
        elif name == "gone":
            epochs.expect_no_more(who)
        else:
            epochs.withdraw(giver if name == "withdraw" else Giver(who))
        seen.append([epochs.current.number, sorted(epochs.current.contributions)])
    return seen


def bodies(epoch: server.Epoch) -> object:
    """Return what the answers of an epoch say; JSON has no order of members."""
    if epoch.answers is None:
        return None
    return {key: json.loads(answer.body) for key, answer in epoch.answers.items()}
