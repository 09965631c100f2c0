"""What PROTOCOL.md asks of a client. Each check starts one, and plays its server."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from classroom.conform.checks import Checks
from classroom.conform.peer import (
    DESYNC,
    PATIENCE_S,
    TIMEOUT,
    VIOLATION,
    Mismatch,
    Peer,
    expect_timeout_of_trickle,
    named,
    require_half_close,
    require_own_round,
)
from crypto_utils import NONCE_BYTES
from lab.frames import flipped_bytes
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    MAX_BODY,
    ClientData,
    Direction,
    Opcode,
    ServerAggrResponse,
    ServerChallenge,
    Status,
    Terminate,
)

READINGS = (20.5, -1e-09, 1234567.8912)  # three reports of one reading each
MAX_DOUBLE = int(sys.float_info.max)
CONNECT_S = 20.0  # until a client has been started and connects
DONE, TERMINATED, CUT = 0, 1, 3  # exit codes, as client.py has them
GOODBYE = "TERMINATE (GOODBYE)"
LAST_BYTE = -1


class Runs(Protocol):
    """A client that was started."""

    def code(self) -> int | None:
        """Return the exit code, None if it runs."""

    def wait(self, patience_s: float) -> int | None:
        """Wait for the end, and return the exit code; None if it does not come."""

    def end(self) -> None:
        """End it, by force if need be."""

    def output(self) -> str:
        """Return its last lines."""


Start = Callable[[tuple[str, int], int], Runs]  # for a server at an address, a client of an id


class ClientTrial(contextlib.ExitStack):
    """One check's clients, which are ended after it, and the server that it plays for them."""

    def __init__(self, start: Start, keys: Mapping[int, bytes], client_id: int) -> None:
        super().__init__()
        self._start = start
        self._keys = keys
        self.client_id = client_id
        self.client: Runs | None = None  # the one that was started last
        self._listener = self.enter_context(socket.create_server(("127.0.0.1", 0)))

    def connected(self) -> Peer:
        """Start a client, and return our end of its connection. Raises Mismatch."""
        self.client = self._start(self._listener.getsockname()[:2], self.client_id)
        self.callback(self.client.end)
        deadline = time.monotonic() + CONNECT_S
        self._listener.settimeout(0.2)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                sock = self.enter_context(self._listener.accept()[0])
                return Peer(sock, self.client_id, self._keys[self.client_id], Direction.S2C)
            if self.client.code() is not None:
                got = f"the exit code {self.client.code()}"
                said = self.client.output().rpartition("\n")[2]
                raise Mismatch("a client's connection", f"{got} ({said})" if said else got)
        raise Mismatch("a client's connection", f"none within {CONNECT_S:g} s")

    def greeted(self) -> Peer:
        """Return a connection whose CLIENT_HELLO has been accepted. Raises Mismatch."""
        peer = self.connected()
        peer.expect_message(Opcode.CLIENT_HELLO)
        return peer

    def challenged(self) -> Peer:
        """Return a connection to which the SERVER_CHALLENGE has been sent. Raises Mismatch."""
        peer = self.greeted()
        peer.say(ServerChallenge())
        return peer

    def reported(self) -> Peer:
        """Return a connection on which an answer is awaited. Raises Mismatch."""
        peer = self.challenged()
        peer.expect_message(Opcode.CLIENT_DATA)
        return peer

    def expect_exit(self, *wanted: int) -> None:
        """Expect that the client ends with one of these exit codes. Raises Mismatch."""
        code = self.client.wait(PATIENCE_S) if self.client else None
        if code not in wanted:
            words = " or ".join(map(str, wanted))
            got = "none" if code is None else str(code)
            raise Mismatch(f"the exit code {words}", got)

    def expect_failure(self) -> None:
        """Expect that the client ends, and says by its exit code that it failed. Mismatch."""
        code = self.client.wait(PATIENCE_S) if self.client else None
        if not code:
            raise Mismatch("an exit code other than 0", "none" if code is None else "0")


CLIENT: Checks[ClientTrial] = Checks("client")
check = CLIENT.check


def answer(peer: Peer, **extra: str) -> ServerAggrResponse:
    """Return an answer to the report that came last."""
    return ServerAggrResponse({"epoch": 1, "round": peer.session.round_number, "sum": 1.5, **extra})


def rest_of_session(trial: ClientTrial, peer: Peer, done: int) -> None:
    """Answer the other reports, and expect GOODBYE and success. Raises Mismatch."""
    for _ in READINGS[done:]:
        peer.expect_message(Opcode.CLIENT_DATA)
        peer.say(answer(peer))
    peer.expect_end(GOODBYE)
    trial.expect_exit(DONE)


def refused(trial: ClientTrial, peer: Peer, message: bytes, *farewell: str) -> None:
    """Send what has to be refused, in the handshake without a farewell. Raises Mismatch."""
    peer.say_last(message, *farewell)
    trial.expect_failure()


def refuses(trial: ClientTrial, opcode: int, body: bytes, **fields: Any) -> None:
    """Forge an answer or farewell after a report, and expect that it is refused."""
    peer = trial.reported()
    refused(trial, peer, peer.forged(opcode, body, **fields), VIOLATION)


# 3.1 to 3.5 Honest sessions -----------------------------------------------------------------------


@check("3.3")
def hello(trial: ClientTrial) -> None:
    """The first message is a CLIENT_HELLO under the keys of the handshake."""
    trial.greeted()


@check("3.4")
def one_report(trial: ClientTrial) -> None:
    """A report comes under the keys of the session binding."""
    trial.reported()


@check("3.4")
def three_rounds(trial: ClientTrial) -> None:
    """Three reports under moving keys, then GOODBYE and the exit code 0."""
    peer = trial.challenged()
    reports = []
    for _ in READINGS:
        report = peer.expect_message(Opcode.CLIENT_DATA)
        reports.append([*report.readings] if isinstance(report, ClientData) else [])
        peer.say(answer(peer))
    wanted = [[reading] for reading in READINGS]
    if reports != wanted:
        raise Mismatch(f"the reports {json.dumps(wanted)}", json.dumps(reports))
    peer.expect_end(GOODBYE)
    trial.expect_exit(DONE)


@check("3.1")
def byte_by_byte(trial: ClientTrial) -> None:
    """Frames may arrive in pieces of one byte."""
    peer = trial.greeted()
    trickle(peer, peer.session.seal(ServerChallenge()))
    peer.expect_message(Opcode.CLIENT_DATA)
    trickle(peer, peer.session.seal(answer(peer)))
    rest_of_session(trial, peer, 1)


def trickle(peer: Peer, message: bytes) -> None:
    for byte in len(message).to_bytes(2, "big") + message:
        peer.pour(bytes([byte]))


@check("3.3")
def fresh_nonce(trial: ClientTrial) -> None:
    """Every message has a nonce and an IV of its own."""
    heard: list[bytes] = []
    nonces: list[bytes] = []
    for _ in range(2):
        peer = trial.challenged()
        peer.expect_message(Opcode.CLIENT_DATA)
        heard += peer.heard
        nonces += [plaintext[:NONCE_BYTES] for plaintext in peer.plaintexts]
    ivs = {message[HEADER.size : CIPHERTEXT_AT] for message in heard}
    if len(ivs) != len(heard):
        raise Mismatch(f"{len(heard)} different IVs", f"{len(ivs)}")
    if len(set(nonces)) != len(nonces):
        raise Mismatch("a new nonce in every message", "one of them twice")


# 3.6 The handshake --------------------------------------------------------------------------------


@check("3.3")
def echo(trial: ClientTrial) -> None:
    """A SERVER_CHALLENGE with another client nonce is refused silently."""
    peer = trial.greeted()
    nonces = bytes(2 * NONCE_BYTES)
    refused(trial, peer, peer.forged(Opcode.SERVER_CHALLENGE, nonces))


@check("3.6")
def challenge_tag(trial: ClientTrial) -> None:
    """A SERVER_CHALLENGE with a wrong tag is refused silently."""
    peer = trial.greeted()
    refused(trial, peer, flipped_bytes(peer.session.seal(ServerChallenge()), LAST_BYTE))


@check("3.3")
def challenge_length(trial: ClientTrial) -> None:
    """A SERVER_CHALLENGE with a longer nonce is refused silently."""
    peer = trial.greeted()
    echoed = peer.plaintexts[0][:NONCE_BYTES]
    refused(trial, peer, peer.forged(Opcode.SERVER_CHALLENGE, echoed + bytes(NONCE_BYTES + 1)))


@check("3.3")
def challenge_status(trial: ClientTrial) -> None:
    """A SERVER_CHALLENGE with another status than OK is refused silently."""
    peer = trial.greeted()
    nonces = peer.plaintexts[0][:NONCE_BYTES] + bytes(NONCE_BYTES)
    challenge = peer.forged(Opcode.SERVER_CHALLENGE, b"", plaintext=b"\1" + nonces)
    refused(trial, peer, challenge)


@check("3.5")
def answer_first(trial: ClientTrial) -> None:
    """An answer in place of the SERVER_CHALLENGE is refused silently."""
    peer = trial.greeted()
    refused(trial, peer, peer.forged(Opcode.SERVER_AGGR_RESPONSE, b"{}"))


@check("3.5")
def farewell_first(trial: ClientTrial) -> None:
    """A farewell in the handshake is refused silently."""
    peer = trial.greeted()
    farewell = peer.forged(Opcode.TERMINATE, b"", plaintext=bytes([Status.SHUTDOWN]))
    refused(trial, peer, farewell)


@check("5")
def silence_in_handshake(trial: ClientTrial) -> None:
    """Without a SERVER_CHALLENGE the client closes silently, after 2 s."""
    peer = trial.greeted()
    peer.expect_end()
    trial.expect_failure()


# 3.6 Answers --------------------------------------------------------------------------------------


def changed_answer(trial: ClientTrial, position: int, mask: int, farewell: str) -> None:
    peer = trial.reported()
    refused(trial, peer, flipped_bytes(peer.session.seal(answer(peer)), position, mask), farewell)


FLIPS = {
    "flip-id": (1, 1, VIOLATION, "An answer with a changed client id is refused"),
    "flip-round": (5, 2, DESYNC, "An answer of another round is refused for its round"),
    "flip-direction": (6, 1, VIOLATION, "An answer of the client's own direction is refused"),
    "flip-iv": (HEADER.size, 1, VIOLATION, "An answer with another IV is refused"),
    "flip-ciphertext": (CIPHERTEXT_AT, 4, VIOLATION, "A changed ciphertext is refused"),
    "flip-tag": (LAST_BYTE, 1, VIOLATION, "An answer with a wrong tag is refused"),
}
for name, (position, mask, farewell, meaning) in FLIPS.items():
    run = partial(changed_answer, position=position, mask=mask, farewell=farewell)
    CLIENT.enter(name, "3.6", meaning, run)


@check("3.1")
def frame_72(trial: ClientTrial) -> None:
    """A frame of a wrong length is refused after its first two bytes."""
    peer = trial.reported()
    peer.pour((72).to_bytes(2, "big"))
    peer.expect_end(VIOLATION)
    trial.expect_failure()


@check("3.6")
def replayed_answer(trial: ClientTrial) -> None:
    """A replayed answer is refused for its round."""
    peer = trial.reported()
    peer.say(answer(peer))
    first = peer.sent
    peer.expect_message(Opcode.CLIENT_DATA)
    refused(trial, peer, first, DESYNC)


@check("3.6")
def reflected_report(trial: ClientTrial) -> None:
    """The client's own report, reflected, is refused."""
    peer = trial.reported()
    refused(trial, peer, peer.heard[-1], VIOLATION)


@check("3.6")
def id_of_another(trial: ClientTrial) -> None:
    """An answer with another client id is refused, even under the right keys."""
    refuses(trial, Opcode.SERVER_AGGR_RESPONSE, b"{}", client_id=trial.client_id % 255 + 1)


@check("3.6")
def reflected_farewell(trial: ClientTrial) -> None:
    """A farewell of the client's own direction is refused, even under its own keys."""
    refuses(trial, Opcode.TERMINATE, bytes([Status.GOODBYE]), sender=Direction.C2S)


@check("3.4")
def old_keys(trial: ClientTrial) -> None:
    """An answer under the keys of the round before is refused."""
    peer = trial.reported()
    keys = peer.keys
    peer.say(answer(peer))
    peer.expect_message(Opcode.CLIENT_DATA)
    message = peer.forged(Opcode.SERVER_AGGR_RESPONSE, b"{}", keys=keys)
    refused(trial, peer, message, VIOLATION)


@check("3.5")
def early_answer(trial: ClientTrial) -> None:
    """A second answer to one report is refused, or counts as the answer to the next report."""
    peer = trial.reported()
    peer.say(answer(peer))
    peer.say(peer.forged(Opcode.SERVER_AGGR_RESPONSE, b"{}"))
    heard = peer.hear()
    if heard != VIOLATION and not isinstance(heard, ClientData):
        raise Mismatch(f"{VIOLATION}, or the report of round 2", named(heard))


@check("3.6")
def padding(trial: ClientTrial) -> None:
    """Step 7: every byte of the padding is checked."""
    padded = b"\0{}\0".ljust(16, b"\x0d")  # of 13 bytes, the first of them wrong
    refuses(trial, Opcode.SERVER_AGGR_RESPONSE, b"", padded=padded)


@check("3.3")
def status(trial: ClientTrial) -> None:
    """An answer with another status than OK is refused."""
    refuses(trial, Opcode.SERVER_AGGR_RESPONSE, b"", plaintext=b"\1{}")
    refuses(trial, Opcode.SERVER_AGGR_RESPONSE, b"", plaintext=b"\x80{}")


REFUSED_BODIES = {
    "array": (b"[1]", "An answer that is no object is refused"),
    "nan": (b'{"sum":NaN}', "NaN is refused"),
    "true": (b'{"sum":true}', "A member that is true is refused"),
    "nested": (b'{"sum":{}}', "An object in the object is refused"),
    "deep": (b'{"sum":[[1]]}', "An array in an array is refused"),
    "overflow": (b'{"sum":-1e999}', "A number that overflows a double is refused"),
    "surrogate": (b'{"note":"\\ud800"}', "An unpaired escaped surrogate is refused"),
    "surrogate-name": (b'{"\\udfff":1}', "A name with an unpaired escaped surrogate is refused"),
    "control": (b'{"note":"a\tb"}', "A control character that is not escaped is refused"),
    "escape": (b'{"note":"\\u+0e9"}', "An escape without four hexadecimal digits is refused"),
    "form-feed": (b"{}\f", "A form feed is no white space of JSON"),
    "integer": (b'{"sum":%d}' % (MAX_DOUBLE + 1), "An integer above the largest double is refused"),
    "utf-8": (b'{"note":"\xc3"}', "Text that is not UTF-8 is refused"),
    "bom": (b"\xef\xbb\xbf{}", "A byte order mark is refused"),
    "body-65456": (b"{}".ljust(MAX_BODY + 1), "A body of 65,456 bytes is refused"),
}
for name, (body, meaning) in REFUSED_BODIES.items():
    run = partial(refuses, opcode=Opcode.SERVER_AGGR_RESPONSE, body=body)
    CLIENT.enter(name, "3.3", meaning, run)


def taken_answer(trial: ClientTrial, body: bytes) -> None:
    peer = trial.reported()
    peer.say(peer.forged(Opcode.SERVER_AGGR_RESPONSE, body))
    peer.session.seal(answer(peer))  # the round rises; no key of this direction is used again
    peer.expect_message(Opcode.CLIENT_DATA)


TAKEN_BODIES = {
    "no-members": (b"{}", "An answer may have no members"),
    "unknown-members": (b'{"note":"caf\xc3\xa9","none":null}', "Any members are accepted"),
    "repeated-members": (b'{"sum":{"a":true},"sum":[1,"2",null]}', "The last of its name counts"),
    "paired-surrogates": (b'{"note":"\\ud83d\\ude00"}', "A pair of escaped surrogates is text"),
    "long-integer": (b'{"sum":%d}' % MAX_DOUBLE, "An integer may be as large as a double"),
    "body-65455": (b" { } ".ljust(MAX_BODY), "A body of 65,455 bytes is accepted"),
}
for name, (body, meaning) in TAKEN_BODIES.items():
    CLIENT.enter(name, "3.3", meaning, partial(taken_answer, body=body))


# 3.7 Ending ---------------------------------------------------------------------------------------


@check("3.7")
def shutdown(trial: ClientTrial) -> None:
    """An accepted farewell is not answered; the client ends with the exit code 1."""
    peer = trial.reported()
    peer.say_last(Terminate(Status.SHUTDOWN))
    trial.expect_exit(TERMINATED)


@check("3.5")
def farewell_of_any_round(trial: ClientTrial) -> None:
    """A farewell is accepted with any round in its header."""
    peer = trial.reported()
    farewell = peer.forged(
        Opcode.TERMINATE, b"", plaintext=bytes([Status.REPLACED]), round_number=77
    )
    peer.say_last(farewell)
    trial.expect_exit(TERMINATED)


@check("3.3")
def farewell_status(trial: ClientTrial) -> None:
    """A farewell with a status that is illegal in it, or with a body, is refused."""
    refuses(trial, Opcode.TERMINATE, b"", plaintext=b"\0")
    refuses(trial, Opcode.TERMINATE, b"", plaintext=b"\6")
    refuses(trial, Opcode.TERMINATE, b"", plaintext=b"\4\4")
    refuses(trial, Opcode.KEY_DESYNC_ERROR, b"", plaintext=b"\1")


@check("3.3")
def farewell_of_any_status(trial: ClientTrial) -> None:
    """A TERMINATE is accepted with each of its statuses, even with GOODBYE."""
    for status in range(Status.GOODBYE, Status.TIMEOUT + 1):
        peer = trial.reported()
        peer.say_last(peer.forged(Opcode.TERMINATE, b"", plaintext=bytes([status])))
        trial.expect_exit(TERMINATED)


@check("3.5")
def farewell_round(trial: ClientTrial) -> None:
    """A farewell has the sender's own round in its header."""
    peer = trial.reported()
    peer.say_last(peer.forged(Opcode.SERVER_AGGR_RESPONSE, b"[]"), VIOLATION)
    require_own_round(peer)


@check("3.7")
def half_close(trial: ClientTrial) -> None:
    """After its farewell the client closes its sending half at once, the rest 0.25 s later."""

    def refused() -> Peer:
        peer = trial.reported()
        peer.say(peer.forged(Opcode.SERVER_AGGR_RESPONSE, b"[]"))
        peer.expect(VIOLATION)
        return peer

    require_half_close(refused)


@check("3.6")
def farewell_tag(trial: ClientTrial) -> None:
    """A farewell with a wrong tag is refused."""
    peer = trial.reported()
    farewell = peer.forged(Opcode.TERMINATE, b"", plaintext=bytes([Status.GOODBYE]))
    refused(trial, peer, flipped_bytes(farewell, LAST_BYTE), VIOLATION)


@check("3.7")
def cut(trial: ClientTrial) -> None:
    """A connection that closes without a farewell has an exit code of its own: 3."""
    peer = trial.reported()
    peer.finish()
    peer.expect_end()
    trial.expect_exit(CUT)


@check("3.7")
def cut_in_frame(trial: ClientTrial) -> None:
    """A connection that closes inside a frame is also cut."""
    peer = trial.reported()
    peer.pour(b"\0\x67half of it")
    peer.finish()
    peer.expect_end()
    trial.expect_exit(CUT)


@check("5")
def trickling_answer(trial: ClientTrial) -> None:
    """A frame has 2 s in all, even if a byte comes now and then."""
    peer = trial.reported()
    expect_timeout_of_trickle(peer)
    trial.expect_failure()


@check("5")
def silence(trial: ClientTrial) -> None:
    """Without an answer the client says TIMEOUT, after 2 s."""
    peer = trial.reported()
    peer.expect_end(TIMEOUT)
    trial.expect_failure()
