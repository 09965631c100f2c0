"""The real Session against the vectors of tests/vectors, which PROTOCOL.md made without it.

The vectors come from make_vectors.py, a second implementation of the document. So a red test here
means that code and document differ, and not only that the code has changed.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from crypto_utils import AES_KEY_BYTES, pkcs7_pad, pkcs7_unpad
from protocol_fsm import (
    KEY_LABELS,
    OK,
    ClientData,
    ClientHello,
    Direction,
    KeyDesync,
    MalformedMessage,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
    bind_keys,
    evolve_c2s,
    evolve_s2c,
    read_frame,
    write_frame,
)
from tests import make_vectors
from tests.cases import case
from tests.helpers import worded

Vector = dict[str, Any]


def load(name: str) -> Vector:
    """Return one file of vectors."""
    vectors: Vector = json.loads((make_vectors.DIRECTORY / name).read_text(encoding="ascii"))
    return vectors


SCHEDULES: list[Vector] = load("key_schedule.json")["cases"]
SESSIONS: dict[str, Vector] = {v["name"]: v for v in load("sessions.json")["sessions"]}
REJECTED: list[Vector] = load("rejected.json")["cases"]
ACCEPTED: list[Vector] = load("accepted.json")["cases"]


def one_test_for_each(vectors: list[Vector]) -> pytest.MarkDecorator:
    """Parametrise a test over vectors, with their names as its ids."""
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


class Draws:
    """A random source that returns what a vector says, and notices every other use of it."""

    def __init__(self) -> None:
        self.left: list[bytes] = []

    def feed(self, values: list[str]) -> None:
        """Have these drawn next, in this order."""
        assert self.left == [], "the last message drew less than its vector says"
        self.left = [bytes.fromhex(value) for value in values]

    def __call__(self, length: int) -> bytes:
        assert self.left, "more is drawn than the vector says"
        assert len(self.left[0]) == length
        return self.left.pop(0)


class Ends(NamedTuple):
    """Both ends of a session, and what they draw from."""

    client: Session
    server: Session
    draws: Draws

    def of(self, name: str) -> tuple[Session, Session]:
        """Return the end that is called so, and the other one."""
        if name == "client":
            return self.client, self.server
        return self.server, self.client


def ends_of(vector: Vector) -> Ends:
    """Return both ends of a session at its start."""
    draws = Draws()
    key = bytes.fromhex(vector["master_key"])
    client, server = (
        Session(
            vector["client_id"],
            key,
            sends,
            random_bytes=draws,
            first_round=vector.get("first_round", 1),
        )
        for sends in (Direction.C2S, Direction.S2C)
    )
    return Ends(client, server, draws)


def receiver_of(data: bytes) -> Callable[[int], bytes]:
    """Return a recv that gives these bytes, and allows nobody to wait for more."""
    position = 0

    def recv(length: int) -> bytes:
        nonlocal position
        assert position < len(data), "it waits for bytes beyond the frame"
        chunk = data[position : position + length]
        position += len(chunk)
        return chunk

    return recv


def message_of(vector: Vector) -> Message:
    """Return the message that a vector describes; JSON in the very bytes that it has."""
    opcode = Opcode(vector["opcode"])
    body = bytes.fromhex(vector["body"])
    if opcode is Opcode.CLIENT_DATA:
        return worded(ClientData(json.loads(body)), body)
    if opcode is Opcode.SERVER_AGGR_RESPONSE:
        return worded(ServerAggrResponse(json.loads(body)), body)
    if opcode is Opcode.TERMINATE:
        return Terminate(Status(vector["status"]))
    without_values: dict[Opcode, Message] = {
        Opcode.CLIENT_HELLO: ClientHello(),
        Opcode.SERVER_CHALLENGE: ServerChallenge(),
        Opcode.KEY_DESYNC_ERROR: KeyDesync(),
    }
    return without_values[opcode]


def seal(sender: Session, draws: Draws, vector: Vector) -> bytes:
    """Have the real session seal what the vector describes."""
    draws.feed(vector["random"])
    sealed = sender.seal(message_of(vector))
    assert draws.left == []
    return sealed


def open_(receiver: Session, frame: bytes) -> Message | PeerTerminated:
    """Have the real session read a frame and open the message in it, which must be accepted."""
    message = read_frame(receiver_of(frame))
    try:
        return receiver.open(message)
    except PeerTerminated as told:
        return told


def conversation(
    vector: Vector, length: int | None = None
) -> Iterator[tuple[Vector, Ends, bytes, Message | PeerTerminated]]:
    """Play a session, or its first messages; each is sealed at one end, and opened from the file.

    Yields the vector of the message, the ends after it, and what they made of it.
    """
    ends = ends_of(vector)
    for message in vector["messages"][:length]:
        sender, receiver = ends.of(message["from"])
        sealed = seal(sender, ends.draws, message)
        yield message, ends, sealed, open_(receiver, bytes.fromhex(message["frame"]))


def prefix_of(vector: Vector) -> tuple[Ends, Session, Session]:
    """Return the ends at the place of a case, then the one that receives, and its peer."""
    session = SESSIONS[vector["session"]]
    ends = ends_of(session)
    for _, ends, _, _ in conversation(session, vector["accepted"]):  # noqa: B007
        pass
    receiver, peer = ends.of(vector["receiver"])
    assert receiver.state.name == peer.state.name == vector["state"]
    return ends, receiver, peer


def assert_stands(session: Session, after: Vector) -> None:
    """Check all four chain keys, the round and the state against a vector."""
    keys = {label: key.hex() for label, key in session._keys.items()}
    assert keys == (after["keys_after"] or {})
    assert session.state.name == after["state_after"]
    if after["round_after"] is not None:
        assert session.round_number == after["round_after"]


def frame_of(vector: Vector, receiver: Session, opcode: Opcode) -> bytes:
    """Return the frame of a case; one that is described in outline only is sealed here."""
    if "frame" in vector:
        return bytes.fromhex(vector["frame"])
    plaintext = b"".join(bytes.fromhex(part) * times for part, times in vector["plaintext_outline"])
    made = make_vectors.protect(
        receiver._keys,
        opcode,
        receiver.client_id,
        receiver.round_number,
        1 - receiver.sends,
        bytes.fromhex(vector["iv"]),
        make_vectors.pad(plaintext),
    )
    frame: bytes = made["frame"]
    assert hashlib.sha256(frame).hexdigest() == vector["frame_sha256"]
    return frame


def as_doubles(value: Any) -> Any:
    """Return a JSON value with every number in it as a double."""
    if isinstance(value, dict):
        return {name: as_doubles(member) for name, member in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return float(value) if isinstance(value, int) else value


# The files ----------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_makes() -> None:
    assert make_vectors.differing() == []


@pytest.mark.parametrize(
    "name", ["key_schedule.json", "sessions.json", "rejected.json", "accepted.json"]
)
def test_check_finds_a_changed_file_and_a_missing_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        path.name: path.read_text(encoding="ascii")
        for path in make_vectors.DIRECTORY.glob("*.json")
    }
    for path, text in texts.items():
        (tmp_path / path).write_text(text, encoding="ascii")
    monkeypatch.setattr(make_vectors, "DIRECTORY", tmp_path)
    monkeypatch.setattr(make_vectors, "files", lambda: texts)
    assert make_vectors.main(["--check"]) == 0
    (tmp_path / name).write_text(texts[name].replace("a", "b", 1), encoding="ascii")
    assert make_vectors.main(["--check"]) == 1
    (tmp_path / name).unlink()
    assert make_vectors.main(["--check"]) == 1
    assert capsys.readouterr().err.count(name) == 2


def test_the_generator_shares_no_code_with_the_project() -> None:
    tree = ast.parse(Path(make_vectors.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {
        "hashlib",
        "hmac",
        "json",
        "struct",
        "sys",
        "collections.abc",
        "pathlib",
        "typing",
        "Crypto.Cipher",
    }


@pytest.mark.parametrize(
    "vectors",
    [SCHEDULES, list(SESSIONS.values()), REJECTED, ACCEPTED],
    ids=["key_schedule", "sessions", "rejected", "accepted"],
)
def test_every_vector_has_a_name_of_its_own(vectors: list[Vector]) -> None:
    assert len({vector["name"] for vector in vectors}) == len(vectors)


# Key schedule -------------------------------------------------------------------------------------


def outputs(step: Vector) -> dict[str, bytes]:
    """Return the chain keys that one step of the schedule gives."""
    return {label: bytes.fromhex(hashed["output"]) for label, hashed in step.items()}


@one_test_for_each(SCHEDULES)
def test_every_hash_of_the_key_schedule_is_the_hash_of_its_input(vector: Vector) -> None:
    for step in ("start", "binding", "c2s_ratchet", "s2c_ratchet"):
        for hashed in vector[step].values():
            digest = hashlib.sha256(bytes.fromhex(hashed["input"])).hexdigest()
            assert digest == hashed["output"]


@one_test_for_each(SCHEDULES)
def test_the_key_schedule_moves_keys_as_the_vector_does(vector: Vector) -> None:
    report = vector["client_data"]
    answer = vector["server_aggr_response"]
    keys = ends_of(vector).client._keys
    assert tuple(keys) == KEY_LABELS
    assert keys == outputs(vector["start"])
    keys = bind_keys(
        keys, bytes.fromhex(vector["client_nonce"]), bytes.fromhex(vector["server_nonce"])
    )
    assert keys == outputs(vector["binding"])
    keys = evolve_c2s(keys, bytes.fromhex(report["ciphertext"]), bytes.fromhex(report["nonce"]))
    assert keys == outputs(vector["binding"]) | outputs(vector["c2s_ratchet"])
    keys = evolve_s2c(keys, bytes.fromhex(answer["body"]), OK)
    assert keys == (
        outputs(vector["binding"]) | outputs(vector["c2s_ratchet"]) | outputs(vector["s2c_ratchet"])
    )


@one_test_for_each(SCHEDULES)
def test_a_session_uses_the_keys_of_the_key_schedule(vector: Vector) -> None:
    ends = ends_of(vector)
    report = vector["client_data"]
    answer = vector["server_aggr_response"]
    iv = "00" * 16

    def say(sender: Session, receiver: Session, message: Vector) -> bytes:
        sealed = seal(sender, ends.draws, message)
        receiver.open(sealed)
        return sealed

    def assert_keys(expected: Vector) -> None:
        for session in (ends.client, ends.server):
            for d in ("C2S", "S2C"):
                assert session._keys[d + "-MAC"].hex() == expected[d + " MAC"]
                encryption_key = session._keys[d + "-ENC"][:AES_KEY_BYTES]
                assert encryption_key.hex() == expected[d + " encryption"]

    assert_keys(vector["start_message_keys"])
    say(
        ends.client,
        ends.server,
        {"opcode": 10, "random": [vector["client_nonce"], iv], "status": None, "body": ""},
    )
    assert_keys(vector["start_message_keys"])
    say(
        ends.server,
        ends.client,
        {"opcode": 20, "random": [vector["server_nonce"], iv], "status": 0, "body": ""},
    )
    assert_keys(vector["binding_message_keys"])
    sealed = say(
        ends.client,
        ends.server,
        {
            "opcode": 30,
            "random": [report["nonce"], report["iv"]],
            "status": None,
            "body": report["body"],
        },
    )
    assert sealed[23:-32].hex() == report["ciphertext"]
    assert_keys(vector["c2s_ratchet_message_keys"])
    say(
        ends.server,
        ends.client,
        {"opcode": 40, "random": [answer["iv"]], "status": 0, "body": answer["body"]},
    )
    assert_keys(vector["s2c_ratchet_message_keys"])


# Whole sessions -----------------------------------------------------------------------------------


@one_test_for_each(list(SESSIONS.values()))
def test_every_message_of_a_session_is_sealed_byte_for_byte(vector: Vector) -> None:
    for message, _, sealed, _ in conversation(vector):
        assert sealed.hex() == message["message"]
        frames: list[bytes] = []
        write_frame(frames.append, sealed)
        assert b"".join(frames).hex() == message["frame"]


@one_test_for_each(list(SESSIONS.values()))
def test_every_message_of_a_session_is_opened_to_what_it_says(vector: Vector) -> None:
    for message, _, _, opened in conversation(vector):
        status = Status(message["status"] or 0)
        if isinstance(opened, PeerTerminated):
            assert (opened.opcode, opened.status) == (message["opcode"], status)
            assert opened.farewell == b""
            continue
        assert (opened, opened.status) == (message_of(message), status)


@one_test_for_each(list(SESSIONS.values()))
def test_both_ends_stand_where_the_vector_says_after_each_message(vector: Vector) -> None:
    for session in ends_of(vector)[:2]:
        assert_stands(
            session, {"keys_after": vector["keys"], "round_after": 0, "state_after": "HELLO"}
        )
    for message, ends, _, _ in conversation(vector):
        assert_stands(ends.client, message)
        assert_stands(ends.server, message)
    assert ends.client.state is State.ENDED


@one_test_for_each(list(SESSIONS.values()))
def test_the_intermediate_values_of_a_session_fit_together(vector: Vector) -> None:
    for message in vector["messages"]:
        fields = {
            name: bytes.fromhex(message[name])
            for name in (
                "plaintext",
                "padded",
                "iv",
                "ciphertext",
                "mac_input",
                "tag",
                "message",
                "frame",
            )
        }
        header = (
            bytes([message["opcode"], vector["client_id"]])
            + message["round"].to_bytes(4, "big")
            + bytes([message["from"] == "server"])
        )
        assert pkcs7_pad(fields["plaintext"]) == fields["padded"]
        assert pkcs7_unpad(fields["padded"]) == fields["plaintext"]
        assert fields["iv"].hex() == message["random"][-1]
        assert fields["mac_input"] == header + fields["iv"] + fields["ciphertext"]
        assert fields["message"] == fields["mac_input"] + fields["tag"]
        assert fields["frame"][2:] == fields["message"]


# Messages that must be refused --------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7, 8, None])
def test_a_bad_message_is_refused_for_its_reason_and_the_session_is_over(step: int | None) -> None:
    for vector in REJECTED:
        if vector["step"] == step:
            with case(vector["name"]):
                check_refusal(vector)


def check_refusal(vector: Vector) -> None:
    ends, receiver, peer = prefix_of(vector)
    farewell = vector["farewell"]
    frame = frame_of(vector, receiver, Opcode.SERVER_AGGR_RESPONSE)
    if vector["step"] == 1:
        with pytest.raises(MalformedMessage):
            read_frame(receiver_of(frame[:2]))
    message = frame[2:].ljust(int.from_bytes(frame[:2], "big"), b"\x00")

    ends.draws.feed(farewell["random"] if farewell else [])
    with pytest.raises(ProtocolError) as refusal:
        receiver.open(message)
    if vector["error"] is not None:  # in ENDED any will do: nobody is told
        assert type(refusal.value).__name__ == vector["error"]
    assert receiver.state is State.ENDED
    assert receiver._keys == {}
    assert ends.draws.left == []

    if vector["step"] is not None:  # not even the right message is accepted any more
        genuine = SESSIONS[vector["session"]]["messages"][vector["accepted"]]["message"]
        with pytest.raises(ProtocolError) as second:
            receiver.open(bytes.fromhex(genuine))
        assert second.value.farewell == b""

    if farewell is None:
        assert refusal.value.farewell == b""
    else:
        assert refusal.value.farewell.hex() == farewell["frame"][4:]
        told = open_(peer, bytes.fromhex(farewell["frame"]))
        assert isinstance(told, PeerTerminated)
        assert (told.opcode, told.status) == (farewell["opcode"], farewell["status"])
        assert told.opcode.name == farewell["name"]


def test_every_check_of_receiving_has_a_vector_at_both_ends() -> None:
    found = {(vector["error"], vector["receiver"]) for vector in REJECTED if vector["error"]}
    at_both = {
        error.__name__
        for error in ProtocolError.__subclasses__()
        if error.__module__ == ProtocolError.__module__
    }  # not those of companions
    at_both -= {"EchoMismatch", "PeerTerminated", "DeadlineExpired", "ConnectionCut"}
    assert found == (
        {(error, end) for error in at_both for end in ("client", "server")}
        | {("EchoMismatch", "client")}
    )


def test_every_opcode_and_state_that_is_no_move_has_a_vector() -> None:
    found = {
        (vector["state"], bytes.fromhex(vector["frame"])[2], vector["receiver"])
        for vector in REJECTED
        if vector["error"] == "UnexpectedOpcode"
    }
    for state in (State.HELLO, State.CHALLENGE, State.REPORT, State.ANSWER):
        for opcode in Opcode:
            for sends, receiver in ((Direction.C2S, "server"), (Direction.S2C, "client")):
                legal = (state, opcode, sends) in Session(1, bytes(16), sends).fsm.VALID_TRANSITIONS
                assert ((state.name, opcode, receiver) in found) is not legal


# Messages that are odd, and must be accepted ------------------------------------------------------


def test_an_odd_but_legal_message_is_accepted() -> None:
    for vector in ACCEPTED:
        with case(vector["name"]):
            check_acceptance(vector)


def check_acceptance(vector: Vector) -> None:
    _, receiver, _ = prefix_of(vector)
    opened = open_(receiver, frame_of(vector, receiver, Opcode(vector["opcode"])))
    assert (opened.opcode, opened.status) == (vector["opcode"], vector["status"] or 0)
    assert_stands(receiver, vector)
    if isinstance(opened, PeerTerminated):
        assert opened.farewell == b""
        return
    if isinstance(opened, ClientData):
        assert opened.readings == as_doubles(vector["value"])
    else:
        assert isinstance(opened, ServerAggrResponse)
        assert as_doubles(opened.aggregate) == as_doubles(vector["value"])
