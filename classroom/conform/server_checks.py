"""What PROTOCOL.md asks of a server. Section numbers are its own; names are stable."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from classroom.conform.checks import Checks, Unable
from classroom.conform.peer import (
    CLOSED,
    DESYNC,
    NOTHING,
    PATIENCE_S,
    REPLACED,
    TIMEOUT,
    VIOLATION,
    Mismatch,
    Peer,
    expect_timeout_of_trickle,
    require_half_close,
    require_own_round,
)
from crypto_utils import NONCE_BYTES, TAG_BYTES
from lab.frames import flipped_bytes
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    MAX_BODY,
    MAX_READINGS,
    ClientData,
    ClientHello,
    Direction,
    Json,
    KeyDesync,
    Opcode,
    ServerAggrResponse,
    Status,
    Terminate,
)

GOODBYE = Terminate(Status.GOODBYE)
REPORT = ClientData([21.5, -3])
SHUTDOWN = "TERMINATE (SHUTDOWN)"
LAST_BYTE = -1  # the last byte of a message
MAX_STRANGERS = 64
Answer = Mapping[str, Json]


class Running(Protocol):
    """A server that runs."""

    address: tuple[str, int]

    def stop(self) -> None:
        """Ask it to end in good order."""


class ServerTrial(contextlib.ExitStack):
    """One check's share of a server: an id of its own, and connections that are closed after it."""

    def __init__(self, server: Running, keys: Mapping[int, bytes], client_id: int) -> None:
        super().__init__()
        self.server = server
        self.keys = keys
        self.client_id = client_id
        self.others = [other for other in sorted(keys) if other != client_id]

    def connect(self, client_id: int | None = None, key: bytes | None = None) -> Peer:
        """Return a connection on which nothing has been said. Raises Mismatch."""
        number = self.client_id if client_id is None else client_id
        master_key = key or self.keys[number]
        try:
            sock = socket.create_connection(self.server.address, PATIENCE_S)
        except OSError as error:
            raise Mismatch("a connection", f"none ({error})") from None
        return Peer(self.enter_context(sock), number, master_key, Direction.C2S)

    def stranger(self, client_id: int | None = None) -> Peer:
        """Return a connection after its handshake. Raises Mismatch."""
        peer = self.connect(client_id)
        peer.say(ClientHello())
        peer.expect_message(Opcode.SERVER_CHALLENGE)
        return peer

    def member(self, client_id: int | None = None) -> Peer:
        """Return a connection after its first round. Raises Mismatch."""
        peer = self.stranger(client_id)
        round_trip(peer)
        return peer


SERVER: Checks[ServerTrial] = Checks("server")
check = SERVER.check


def answer_to(peer: Peer) -> Answer:
    """Return the aggregate that comes next. Raises Mismatch."""
    message = peer.expect_message(Opcode.SERVER_AGGR_RESPONSE)
    return message.aggregate if isinstance(message, ServerAggrResponse) else {}


def round_trip(peer: Peer, readings: Sequence[float] = (1,)) -> Answer:
    """Report, and return the answer. Raises Mismatch."""
    peer.say(ClientData(readings))
    return answer_to(peer)


def require(true: bool, expected: str, got: object) -> None:
    """Raise Mismatch unless it is as it should be."""
    if not true:
        raise Mismatch(expected, got if isinstance(got, str) else json.dumps(got))


def refuses(
    trial: ServerTrial, opcode: int, body: bytes, farewell: str = VIOLATION, **fields: Any
) -> None:
    """Forge a message after the handshake, and expect that it is refused. Raises Mismatch."""
    peer = trial.stranger()
    peer.say_last(peer.forged(opcode, body, **fields), farewell)


def farewell_by_hand(peer: Peer) -> bytes:
    """Return a GOODBYE that does not end our own session."""
    return peer.forged(Opcode.TERMINATE, bytes([Status.GOODBYE]))


def forged_report(peer: Peer, body: bytes) -> bytes:
    return peer.forged(Opcode.CLIENT_DATA, body)


# 3.1 Frames ---------------------------------------------------------------------------------------


def refused_length(trial: ServerTrial, length_bytes: int) -> None:
    peer = trial.stranger()
    peer.pour(length_bytes.to_bytes(2, "big"))
    peer.expect_end(VIOLATION)  # a server that waits for the rest says TIMEOUT


for number in (0, 70, 72, 65_528):
    SERVER.enter(
        f"frame-{number}",
        "3.1",
        f"A frame of {number} bytes is refused after its first two",
        partial(refused_length, length_bytes=number),
    )


@check("3.1")
def frame_65527(trial: ServerTrial) -> None:
    """The longest frame is accepted."""
    peer = trial.stranger()
    peer.say(forged_report(peer, b"[1]".ljust(MAX_BODY)))
    peer.session.seal(REPORT)  # an answer is legal now; no key of this direction is used again
    answer_to(peer)


@check("3.1")
def frame_in_handshake(trial: ServerTrial) -> None:
    """In the handshake a frame of a wrong length closes the connection silently."""
    peer = trial.connect()
    peer.pour(b"\0\0")
    peer.expect_end()


@check("3.1")
def byte_by_byte(trial: ServerTrial) -> None:
    """Frames may arrive in pieces of one byte."""
    peer = trial.connect()
    for message, answer in ((ClientHello(), "SERVER_CHALLENGE"), (REPORT, "SERVER_AGGR_RESPONSE")):
        sealed = peer.session.seal(message)
        for byte in len(sealed).to_bytes(2, "big") + sealed:
            peer.pour(bytes([byte]))
        peer.expect_message(Opcode[answer])


@check("3.5")
def joined(trial: ServerTrial) -> None:
    """A farewell in one segment with a report is opened after the report is answered."""
    peer = trial.stranger()
    report = peer.session.seal(REPORT)
    goodbye = farewell_by_hand(peer)
    peer.say(report, goodbye)
    answer_to(peer)
    peer.expect_end()


# 3.2 to 3.5 Honest sessions -----------------------------------------------------------------------


@check("3.4")
def handshake(trial: ServerTrial) -> None:
    """A CLIENT_HELLO gets a SERVER_CHALLENGE that echoes its nonce."""
    trial.stranger()


@check("3.4")
def one_round(trial: ServerTrial) -> None:
    """A report gets an answer under the keys of the session binding."""
    trial.member()


@check("3.4")
def three_rounds(trial: ServerTrial) -> None:
    """The ratchet moves the keys after each report and each answer."""
    peer = trial.member()
    round_trip(peer)
    round_trip(peer)
    peer.say_last(GOODBYE)


@check("3.2", is_alone=True)
def round_256(trial: ServerTrial) -> None:
    """The round needs more than one byte of its four after round 255."""
    peer = trial.stranger()
    for _ in range(256):
        round_trip(peer)


@check("3.3")
def fresh_nonce(trial: ServerTrial) -> None:
    """Each session has a new server nonce."""
    challenges = [trial.stranger().plaintexts[0] for _ in range(3)]
    nonces = {challenge[-NONCE_BYTES:] for challenge in challenges}
    require(len(nonces) == 3, "three different server nonces", "one of them twice")


@check("3.2")
def fresh_iv(trial: ServerTrial) -> None:
    """Every message has an IV of its own."""
    ivs = []
    for _ in range(2):
        peer = trial.member()
        round_trip(peer)
        ivs += [message[HEADER.size : CIPHERTEXT_AT] for message in peer.heard]
    require(len(set(ivs)) == 6, "six different IVs in six messages", f"{len(set(ivs))} of them")


@check("3.3")
def white_space(trial: ServerTrial) -> None:
    """White space of JSON is accepted."""
    taken(trial, b"\r\n [ 1 ,\t2.50 ] \n", [1, 2.5])


def taken(trial: ServerTrial, body: bytes, readings: Sequence[float]) -> None:
    """Expect that a report of these bytes is answered as these readings. Raises Mismatch."""
    peer = trial.stranger()
    peer.say(forged_report(peer, body))
    peer.session.seal(REPORT)
    told = answer_to(peer)
    own = [told.get("own_count"), told.get("own_sum")]
    wanted = [len(readings), math.fsum(readings)]
    require(own == wanted, f"own_count and own_sum {json.dumps(wanted)}", own)


TAKEN: dict[str, tuple[bytes, str, Sequence[float]]] = {
    "empty-report": (b"[]", "A report may be empty", []),
    "limit": (b"[1e15,-1E+15]", "Readings go up to 1e15 inclusive", [1e15, -1e15]),
    "nearest-double": (
        b"[1000000000000000.01]",
        "A number that is not an integer is compared as the nearest double",
        [1e15],
    ),
    "doubles": (
        b"[94.1,66.6,84.1]",
        "Readings are added up as doubles, not as decimal numbers",
        [94.1, 66.6, 84.1],
    ),
    "tiny": (b"[1e-999, -0.0]", "A number too small for a double is 0", [0, 0]),
    "readings-1024": (
        b"[" + b"1," * 1_023 + b"1]",
        "A report has up to 1,024 readings",
        [1] * 1024,
    ),
}
for name, (spelled, meaning, values) in TAKEN.items():
    SERVER.enter(name, "3.3", meaning, partial(taken, body=spelled, readings=values))


# 3.3 What a report must not contain ---------------------------------------------------------------


REFUSED_BODIES = {
    "above-limit": (b"[1000000000000001]", "An integer above 1e15 is refused"),
    "below-limit": (b"[-1000000000000000.2]", "A number below -1e15 is refused"),
    "lowest-long": (b"[-9223372036854775808]", "The lowest integer of 64 bits is refused"),
    "wrapped": (b"[18446744073709551617]", "An integer of 65 bits, the last of them 1, is refused"),
    "overflow": (b"[1e400]", "A number that overflows a double is refused"),
    "nan": (b"[NaN]", "NaN is refused"),
    "infinity": (b"[-Infinity]", "Infinity is refused"),
    "true": (b"[true]", "The literal true is no number"),
    "text": (b'["1"]', "A string is no number"),
    "null": (b"[null]", "The literal null is no number"),
    "nested": (b"[[1]]", "An array in an array is refused"),
    "object": (b'{"readings":[1]}', "An object is no report"),
    "number": (b"1", "A number alone is no report"),
    "nothing": (b"", "An empty body is no JSON"),
    "comma": (b"[1,]", "A comma at the end is no JSON"),
    "leading-zero": (b"[01]", "A leading zero is no JSON"),
    "plus": (b"[+1]", "A plus sign before a number is no JSON"),
    "point": (b"[1.]", "A point without a digit after it is no JSON"),
    "suffix": (b"[1d]", "A letter after a number is no JSON"),
    "arabic-digit": ("[\u0661]".encode(), "Only the ASCII digits are JSON"),
    "form-feed": (b"[1\f]", "A form feed is no white space of JSON"),
    "rest": (b"[1] 2", "Nothing may follow the array"),
    "utf-16": ("[1]".encode("utf-16-le"), "JSON is UTF-8"),
    "bom": (b"\xef\xbb\xbf[1]", "A byte order mark is refused"),
    "readings-1025": (b"[" + b"1," * MAX_READINGS + b"1]", "1,025 readings are refused"),
    "deep": (b"[" * 30_000 + b"]" * 30_000, "Deep nesting is refused, and crashes nothing"),
}
for name, (refusable, meaning) in REFUSED_BODIES.items():
    run = partial(refuses, opcode=Opcode.CLIENT_DATA, body=refusable)
    SERVER.enter(name, "3.3", meaning, run)


@check("3.3")
def short_plaintext(trial: ServerTrial) -> None:
    """A plaintext of less than a nonce is refused."""
    refuses(trial, Opcode.CLIENT_DATA, b"", plaintext=b"[1]")


@check("3.3")
def farewell_status(trial: ServerTrial) -> None:
    """A TERMINATE with a status that is illegal in it is refused."""
    for body in (b"\0", b"\6", b"", b"\1\1"):
        refuses(trial, Opcode.TERMINATE, body)


@check("3.3")
def desync_status(trial: ServerTrial) -> None:
    """A KEY_DESYNC_ERROR carries VIOLATION and nothing else."""
    refuses(trial, Opcode.KEY_DESYNC_ERROR, bytes([Status.GOODBYE]))


@check("3.3")
def version(trial: ServerTrial) -> None:
    """Another protocol version is refused silently."""
    for body in (b"\2", b"\1\1", b""):
        peer = trial.connect()
        peer.say_last(peer.forged(Opcode.CLIENT_HELLO, body))


# 3.6 The steps of receiving -----------------------------------------------------------------------


@check("3.6")
def unknown_id(trial: ServerTrial) -> None:
    """An unknown id, 0 included, looks like a wrong key: a silent close."""
    unknown = [0, *(n for n in range(1, 256) if n not in trial.keys)][:2]
    for client_id in unknown:
        peer = trial.connect(client_id, trial.keys[trial.client_id])
        peer.say_last(ClientHello())


@check("3.6")
def wrong_key(trial: ServerTrial) -> None:
    """A CLIENT_HELLO under another client's key is refused silently."""
    for other in trial.others[:2]:
        peer = trial.connect(key=trial.keys[other])
        peer.say_last(ClientHello())


@check("3.6")
def id_of_another(trial: ServerTrial) -> None:
    """Step 2: a message with another client id is refused, even under the right keys."""
    refuses(trial, Opcode.CLIENT_DATA, b"[1]", client_id=trial.others[0])


@check("3.6")
def direction(trial: ServerTrial) -> None:
    """Step 2: a message of the server's own direction is refused, even under its own keys."""
    goodbye = bytes([Status.GOODBYE])
    refuses(trial, Opcode.TERMINATE, b"", plaintext=goodbye, sender=Direction.S2C)


@check("3.6")
def direction_alone(trial: ServerTrial) -> None:
    """Step 2: a report in the server's own direction is refused, even under the client's keys."""
    peer = trial.stranger()
    keys = {**peer.keys, "S2C-ENC": peer.keys["C2S-ENC"], "S2C-MAC": peer.keys["C2S-MAC"]}
    plaintext = NONCE + b"[1]"
    report = peer.forged(
        Opcode.CLIENT_DATA, b"", plaintext=plaintext, sender=Direction.S2C, keys=keys
    )
    peer.say_last(report, VIOLATION)


@check("3.5")
def repeated_hello(trial: ServerTrial) -> None:
    """A second CLIENT_HELLO is refused."""
    refuses(trial, Opcode.CLIENT_HELLO, b"\1")


@check("3.5")
def opcode_31(trial: ServerTrial) -> None:
    """An opcode that does not exist is refused."""
    refuses(trial, 31, b"[1]")


@check("3.5")
def answer_from_client(trial: ServerTrial) -> None:
    """A SERVER_AGGR_RESPONSE from a client is refused."""
    refuses(trial, Opcode.SERVER_AGGR_RESPONSE, b"{}")


@check("3.5")
def report_first(trial: ServerTrial) -> None:
    """A report in place of the CLIENT_HELLO is refused silently."""
    peer = trial.connect()
    peer.say_last(peer.forged(Opcode.CLIENT_DATA, b"[1]"))


@check("3.5")
def farewell_first(trial: ServerTrial) -> None:
    """A farewell in the handshake is refused silently."""
    peer = trial.connect()
    peer.say_last(farewell_by_hand(peer))


for number in (0, 2):
    meaning = f"Step 4: a report of round {number} in round 1 is refused"
    forge = partial(refuses, opcode=Opcode.CLIENT_DATA, body=b"[1]", farewell=DESYNC)
    SERVER.enter(f"round-{number}", "3.6", meaning, partial(forge, round_number=number))


@check("3.6")
def replay(trial: ServerTrial) -> None:
    """A replayed report is refused for its round."""
    peer = trial.member()
    peer.say_last(peer.sent, DESYNC)


@check("3.6")
def round_before_tag(trial: ServerTrial) -> None:
    """If both round and tag are wrong, the round decides."""
    peer = trial.stranger()
    wrong = peer.forged(Opcode.CLIENT_DATA, b"[1]", round_number=7)
    peer.say_last(flipped_bytes(wrong, LAST_BYTE), DESYNC)


@check("3.4")
def old_keys(trial: ServerTrial) -> None:
    """A report under the keys of the round before is refused."""
    peer = trial.stranger()
    keys = peer.keys
    round_trip(peer)
    peer.say_last(peer.forged(Opcode.CLIENT_DATA, b"[1]", keys=keys), VIOLATION)


@check("3.4")
def unbound_keys(trial: ServerTrial) -> None:
    """A farewell under the keys of the handshake is refused."""
    peer = trial.connect()
    keys = peer.keys
    peer.say(ClientHello())
    peer.expect_message(Opcode.SERVER_CHALLENGE)
    peer.say_last(peer.forged(Opcode.TERMINATE, bytes([Status.GOODBYE]), keys=keys), VIOLATION)


def changed(trial: ServerTrial, position: int, mask: int, farewell: str) -> None:
    peer = trial.stranger()
    peer.say_last(flipped_bytes(peer.session.seal(REPORT), position, mask), farewell)


FLIPS = {
    "flip-id": (1, 1, VIOLATION, "A changed client id is refused"),
    "flip-round": (2, 128, DESYNC, "A changed round is refused"),
    "flip-direction": (6, 1, VIOLATION, "A changed direction is refused"),
    "flip-iv": (HEADER.size, 1, VIOLATION, "A changed IV is refused"),
    "flip-ciphertext": (CIPHERTEXT_AT + 17, 4, VIOLATION, "A changed ciphertext is refused"),
    "flip-tag-first": (-TAG_BYTES, 1, VIOLATION, "A tag with another first byte is refused"),
    "flip-tag-last": (LAST_BYTE, 1, VIOLATION, "A tag with another last byte is refused"),
}
for name, (position, mask, farewell, meaning) in FLIPS.items():
    run = partial(changed, position=position, mask=mask, farewell=farewell)
    SERVER.enter(name, "3.6", meaning, run)


@check("3.2")
def opcode_under_tag(trial: ServerTrial) -> None:
    """A report whose opcode is changed to that of a farewell is refused for its tag."""
    peer = trial.stranger()
    report = peer.forged(Opcode.CLIENT_DATA, bytes([Status.GOODBYE]))
    peer.say_last(bytes([Opcode.TERMINATE]) + report[1:], VIOLATION)


@check("3.2")
def farewell_round_under_tag(trial: ServerTrial) -> None:
    """A farewell whose round was changed on the way is refused for its tag."""
    peer = trial.stranger()
    peer.say_last(flipped_bytes(farewell_by_hand(peer), 5, 64), VIOLATION)


@check("3.6")
def farewell_tag(trial: ServerTrial) -> None:
    """A farewell with a wrong tag is refused."""
    peer = trial.stranger()
    peer.say_last(flipped_bytes(farewell_by_hand(peer), LAST_BYTE), VIOLATION)


NONCE = bytes(NONCE_BYTES)
PADDINGS = {  # padded plaintexts
    "padding-0": (NONCE + b"[1]".ljust(16, b"\0"), "a padding length of 0 is refused"),
    "padding-17": (NONCE + b"[1]".ljust(15) + b"\x11" * 17, "a padding length of 17 is refused"),
    "padding-x923": (NONCE + b"[1]".ljust(15, b"\0") + b"\x0d", "X9.23's padding is refused"),
    "padding-first": (NONCE + b"[1]\0".ljust(16, b"\x0d"), "every byte of the padding counts"),
}
for name, (padded, meaning) in PADDINGS.items():
    run = partial(refuses, opcode=Opcode.CLIENT_DATA, body=b"", padded=padded)
    SERVER.enter(name, "3.6", f"Step 7: {meaning}", run)


@check("3.6")
def tag_and_padding(trial: ServerTrial) -> None:
    """A wrong padding under a wrong tag gets the same answer as either."""
    peer = trial.stranger()
    wrong = peer.forged(Opcode.CLIENT_DATA, b"", padded=bytes(32))
    peer.say_last(flipped_bytes(wrong, LAST_BYTE), VIOLATION)


@check("3.6")
def finality(trial: ServerTrial) -> None:
    """After a refusal nothing more is accepted."""
    peer = trial.stranger()
    good = forged_report(peer, b"[1]")
    peer.say(flipped_bytes(forged_report(peer, b"[2]"), LAST_BYTE), good)
    peer.expect_end(VIOLATION)


# 3.7 Ending ---------------------------------------------------------------------------------------


@check("3.7")
def goodbye(trial: ServerTrial) -> None:
    """A farewell is never answered: the server closes."""
    for farewell in (GOODBYE, KeyDesync()):
        peer = trial.member()
        peer.say_last(farewell)


@check("3.3")
def farewell_of_any_status(trial: ServerTrial) -> None:
    """A TERMINATE is accepted with each of its statuses, even with those of servers."""
    for status in range(Status.GOODBYE, Status.TIMEOUT + 1):
        peer = trial.stranger()
        peer.say_last(peer.forged(Opcode.TERMINATE, bytes([status])))


@check("3.5")
def farewell_round(trial: ServerTrial) -> None:
    """A farewell has the sender's own round in its header."""
    peer = trial.member()
    peer.say_last(flipped_bytes(forged_report(peer, b"[1]"), LAST_BYTE), VIOLATION)
    require_own_round(peer)


@check("3.5")
def farewell_of_any_round(trial: ServerTrial) -> None:
    """A farewell is accepted with any round in its header."""
    peer = trial.member()
    peer.say_last(
        peer.forged(Opcode.TERMINATE, bytes([Status.GOODBYE]), round_number=4_000_000_000)
    )


@check("3.7")
def drain(trial: ServerTrial) -> None:
    """Data that still arrives after a refusal does not destroy the farewell."""
    peer = trial.stranger()
    peer.say(flipped_bytes(forged_report(peer, b"[1]"), LAST_BYTE))
    peer.pour(bytes(400_000))  # closing before it is read would reset the connection
    peer.expect(VIOLATION)
    peer.expect(CLOSED)


@check("3.7")
def half_close(trial: ServerTrial) -> None:
    """After its farewell the server closes its sending half at once, the rest 0.25 s later."""

    def refused() -> Peer:
        peer = trial.stranger()
        peer.say(flipped_bytes(forged_report(peer, b"[1]"), LAST_BYTE))
        peer.expect(VIOLATION)
        return peer

    require_half_close(refused)


@check("3.7")
def cut(trial: ServerTrial) -> None:
    """A connection that is cut, even inside a frame, gets no farewell."""
    for data in (b"", b"\0\x67half of it"):
        peer = trial.stranger()
        peer.pour(data)
        peer.finish()
        peer.expect_end()


@check("3.7")
def cut_disturbs_nobody(trial: ServerTrial) -> None:
    """A connection that is reset inside a frame disturbs no other session."""
    peer = trial.member()
    other = trial.stranger()
    other.pour(b"\0\x67half of it")
    other.reset()
    round_trip(peer)


# 3.4 and 5 Sessions beside each other -------------------------------------------------------------


@check("3.4")
def replayed_session(trial: ServerTrial) -> None:
    """A recorded session is refused at its first report."""
    peer = trial.stranger()
    hello = peer.sent
    round_trip(peer)
    report = peer.sent
    peer.say_last(GOODBYE)
    thief = trial.connect()
    thief.say(hello, report)
    heard = [thief.raw_opcode(), thief.raw_opcode(), thief.raw_opcode()]
    wanted = ["SERVER_CHALLENGE", "TERMINATE", CLOSED]
    require(heard == wanted, ", ".join(wanted), ", ".join(heard))


@check("5")
def replaced(trial: ServerTrial) -> None:
    """A newer session of an id, once established, ends the older one with REPLACED."""
    older = trial.member()
    for _ in range(2):  # the end of an older session must not hide the newer one
        newer = trial.member()
        older.expect_end(REPLACED)
        older = newer
    round_trip(older)


@check("5")
def hello_replaces_nobody(trial: ServerTrial) -> None:
    """A handshake alone ends no other session of its id."""
    older = trial.member()
    trial.stranger()
    round_trip(older)


@check("5")
def order_of_hellos(trial: ServerTrial) -> None:
    """The newer session is the one with the later CLIENT_HELLO, not with the later connection."""
    newer = trial.connect()
    older = trial.member()
    newer.say(ClientHello())
    newer.expect_message(Opcode.SERVER_CHALLENGE)
    round_trip(newer)
    older.expect_end(REPLACED)


@check("5")
def late_report(trial: ServerTrial) -> None:
    """The first report of an older CLIENT_HELLO evicts no newer session."""
    late = trial.stranger()
    newer = trial.member()
    late.say_last(REPORT, REPLACED)
    round_trip(newer)


@check("5")
def late_report_after_goodbye(trial: ServerTrial) -> None:
    """The first report of an older CLIENT_HELLO is refused even if the newer session is over."""
    late = trial.stranger()
    newer = trial.member()
    newer.say_last(GOODBYE)
    late.say_last(REPORT, REPLACED)


# 5 Time -------------------------------------------------------------------------------------------


def took(peer: Peer, at_least_s: float, at_most_s: float, *farewell: str) -> None:
    """Expect the end, or a farewell, within these limits. Raises Mismatch."""
    began = time.monotonic()
    wanted = farewell or (CLOSED,)
    peer.expect(*wanted, patience_s=at_most_s)
    waited_s = time.monotonic() - began
    words = f"{wanted[0]} after {at_least_s:g} s at the earliest"
    require(waited_s >= at_least_s, words, f"it after {waited_s:.1f} s")


@check("5")
def slow_frame(trial: ServerTrial) -> None:
    """A frame has 2 s from its first byte to its last."""
    peer = trial.member()
    peer.pour(b"\0")
    took(peer, 1.5, 4.0, TIMEOUT)


@check("5")
def trickling_frame(trial: ServerTrial) -> None:
    """A frame has 2 s in all, even if a byte comes now and then."""
    expect_timeout_of_trickle(trial.member())


@check("5")
def slow_hello(trial: ServerTrial) -> None:
    """A CLIENT_HELLO has 2 s from its first byte to its last; then comes a silent close."""
    peer = trial.connect()
    peer.pour(b"\0")
    took(peer, 1.5, 4.0)


@check("5")
def silent_stranger(trial: ServerTrial) -> None:
    """A connection that says nothing has 10 s."""
    took(trial.connect(), 9.0, 13.0)


@check("5")
def stranger_without_report(trial: ServerTrial) -> None:
    """A session without a report has 10 s from its connection on; then comes TIMEOUT."""
    peer = trial.connect()
    require(peer.hear(4.0) == NOTHING, "silence for 4 s", "something else")
    peer.say(ClientHello())
    peer.expect_message(Opcode.SERVER_CHALLENGE)
    took(peer, 5.0, 8.5, TIMEOUT)


@check("5", is_alone=True)
def stranger_65(trial: ServerTrial) -> None:
    """Each stranger beyond 64 evicts the oldest, and nobody else."""
    member = trial.member()
    silent = trial.connect()
    oldest = trial.stranger(trial.others[0])
    others = [trial.connect() for _ in range(MAX_STRANGERS)]
    silent.expect_end()
    oldest.expect_end(TIMEOUT)
    for other in others:
        require(other.hear(0.01) == NOTHING, "64 strangers that stay", "one that was evicted")
    round_trip(member)


# 4 What the answers say ---------------------------------------------------------------------------


@check("4")
def members_of_answer(trial: ServerTrial) -> None:
    """An answer has its members, of the right types, and its own part is right."""
    peer = trial.member()
    told = {"count": 0, **round_trip(peer, [2, 3.5])}  # which an aggregation may leave out
    own_sum = told.get("own_sum")
    own = [told.get("round"), told.get("own_count"), own_sum]
    require(own == [2, 2, 5.5], "round, own_count and own_sum 2, 2 and 5.5", [*own])
    for name in ("epoch", "round", "count", "own_count"):
        require(type(told.get(name)) is int, f"an integer as {name}", told.get(name))
    total = told.get("sum")
    require("own_share" in told, "an own_share", "none")
    if isinstance(total, (int, float)) and total:
        share = told["own_share"]
        require(share == 5.5 / total, "own_share as own_sum / sum", share)


@check("4", is_alone=True)
def shared_epoch(trial: ServerTrial) -> None:
    """All members of an epoch get the same shared part, which adds up their readings."""
    one, two, three = everybody = [trial.client_id, *trial.others[:2]]
    peers = {number: trial.stranger(number) for number in everybody}
    first = round_trip(peers[one], [1e15, 0.1, 1e-30, -1e15, -0.1])
    same(first, epoch=1, participants=[one], count=5, sum=1e-30, mean=1e-30 / 5, min=-1e15)
    same(first, max=1e15, own_sum=1e-30, own_share=1)
    for epoch, sign in ((2, 1), (3, -1)):
        peers[three].say(ClientData([]))
        peers[two].say(ClientData([4 * sign]))
        require(peers[two].hear(0.2) == NOTHING, "an epoch that waits for its members", "an answer")
        began = time.monotonic()
        told = [round_trip(peers[one], [sign, 3 * sign]), answer_to(peers[two])]
        told.append(answer_to(peers[three]))
        waited_s = time.monotonic() - began
        require(waited_s < 0.8, "all answers at once", f"the last after {waited_s:.1f} s")
        lowest, highest = sorted([sign, 4 * sign])
        for part, share in zip(told, (0.5, 0.5, 0)):
            same(part, epoch=epoch, participants=[*sorted(everybody)], count=3, sum=8 * sign)
            same(part, mean=8 * sign / 3, min=lowest, max=highest, own_share=share)


def same(told: Answer, **wanted: Json) -> None:
    """Require members of an answer; an aggregation may leave some out. Raises Mismatch."""
    for name, value in wanted.items():
        require(told.get(name, value) == value, f"{name} {json.dumps(value)}", told.get(name))


@check("4", is_alone=True)
def empty_epoch(trial: ServerTrial) -> None:
    """Without any reading mean, min, max and own_share are null."""
    told = round_trip(trial.stranger(), [])
    same(told, count=0, sum=0, mean=None, min=None, max=None, own_count=0, own_sum=0)
    same(told, own_share=None)


def pair(trial: ServerTrial) -> tuple[Peer, Peer]:
    """Return two members of one epoch, on a server that nobody else uses. Raises Mismatch."""
    one, other = trial.member(), trial.member(trial.others[0])  # the second was alone in its epoch
    one.say(REPORT)
    require(one.hear(0.2) == NOTHING, "an epoch that waits for its members", "an answer")
    other.say(REPORT)
    answer_to(one)
    answer_to(other)
    return one, other


def answered_alone(peer: Peer) -> float:
    """Expect an answer about nobody else, and return after how many seconds it came."""
    began = time.monotonic()
    told = answer_to(peer)
    waited_s = time.monotonic() - began
    same(told, participants=[peer.session.client_id])
    return waited_s


@check("4", is_alone=True)
def window(trial: ServerTrial) -> None:
    """An epoch waits for a member of the last one, but not longer than a second."""
    one, other = pair(trial)
    one.say(REPORT)
    waited_s = answered_alone(one)
    require(waited_s > 0.5, "an answer after the window", f"one after {waited_s:.1f} s")
    one.say(REPORT)
    waited_s = answered_alone(one)
    require(waited_s < 0.8, "no wait for a client of older epochs", f"{waited_s:.1f} s of it")
    round_trip(other)


@check("4", is_alone=True)
def window_of_first_report(trial: ServerTrial) -> None:
    """The window of an epoch begins with its first report; later ones do not prolong it."""
    one, other = pair(trial)
    third = trial.stranger(trial.others[1])
    third.say(REPORT)
    require(third.hear(0.2) == NOTHING, "an epoch that waits for its members", "an answer")
    one.say(REPORT)
    other.say(REPORT)
    for peer in (one, other, third):
        answer_to(peer)
    began = time.monotonic()
    one.say(REPORT)
    require(one.hear(0.8) == NOTHING, "an epoch that waits for its members", "an answer")
    other.say(REPORT)
    answer_to(one)
    waited_s = time.monotonic() - began
    require(waited_s < 1.5, "an answer after 1 s", f"one after {waited_s:.1f} s")


@check("4", is_alone=True)
def left_member(trial: ServerTrial) -> None:
    """An epoch does not wait for a client that has left."""
    one, other = pair(trial)
    other.say_last(GOODBYE)
    one.say(REPORT)
    waited_s = answered_alone(one)
    require(waited_s < 0.8, "an answer at once", f"one after {waited_s:.1f} s")


@check("4", is_alone=True)
def leaving_member(trial: ServerTrial) -> None:
    """An epoch stops waiting for a client that leaves."""
    one, other = pair(trial)
    one.say(REPORT)
    require(one.hear(0.2) == NOTHING, "an epoch that waits for its members", "an answer")
    other.say(GOODBYE)
    waited_s = answered_alone(one)
    require(waited_s < 0.6, "an answer at once", f"one after {waited_s:.1f} s")


@check("4", is_alone=True)
def replaced_report(trial: ServerTrial) -> None:
    """A newer session's report replaces an older session's report in the epoch."""
    one, other = pair(trial)
    one.say(ClientData([100]))
    newer = trial.stranger()
    newer.say(ClientData([1]))
    one.expect_end(REPLACED)
    other.say(ClientData([2]))
    everybody = sorted([trial.client_id, trial.others[0]])
    for peer in (newer, other):
        same(answer_to(peer), participants=[*everybody], sum=3)


@check("5", is_alone=True)
def shutdown(trial: ServerTrial) -> None:
    """A server that stops sends SHUTDOWN to every session whose keys are bound, and to no other."""
    if sys.platform == "win32":
        raise Unable("a program is only killed here")
    member, stranger, silent = trial.member(), trial.stranger(trial.others[0]), trial.connect()
    trial.server.stop()
    member.expect_end(SHUTDOWN)
    stranger.expect_end(SHUTDOWN)
    silent.expect_end()
