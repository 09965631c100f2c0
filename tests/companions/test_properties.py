"""Kinds of fault that single examples miss: checks hold at every length and for late numbers too,
flags reach what they are for, logs show no secret, and nothing grows with what is said.
"""

from __future__ import annotations

import inspect
import logging
import secrets
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import Crypto.Random
import pytest
from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pss
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from channel import EndRequested
from companions import asymmetric
from companions.asymmetric import PrivateKey
from companions.device_transfer import ca, device, options, server
from companions.device_transfer import protocol as device_protocol
from companions.device_transfer.certificates import Role as CertificateRole
from companions.device_transfer.device import Device
from companions.device_transfer.protocol import (
    CHUNK_BYTES,
    CIPHERTEXT_AT,
    HEADER,
    Message,
    WrongSequence,
    WrongSession,
)
from companions.device_transfer.protocol import Kind as DeviceKind
from companions.device_transfer.protocol import Session as DeviceSession
from companions.device_transfer.protocol import State as DeviceState
from companions.device_transfer.server import Limits
from companions.device_transfer.transfer import (
    Announcement,
    BadManifest,
    Incoming,
    ItemKind,
    Outgoing,
    sign_manifest,
)
from companions.peer_messaging import node
from companions.peer_messaging import protocol as peer_protocol
from companions.peer_messaging.identity import Trust
from companions.peer_messaging.protocol import (
    MAX_TEXT,
    Kind,
    MessageLost,
    Replayed,
    Role,
    State,
    Untimely,
)
from protocol_fsm import BadPayload, BadTag, ProtocolError
from tests.cases import case
from tests.companions import helpers, peers_helpers
from tests.companions.helpers import D2S, DEVICE, NOW, SERVER, flipped, forge
from tests.companions.network import Raw, device_for, raw_device, serving
from tests.network import PATIENCE_S
from tests.companions.peers_helpers import is_dropped, snapshot
from tests.companions.secrets_helpers import Nodes, Recorder
from tests.secrets_walk import objects
from tests.sessions import clone, error_of, refusal

A = Role.INITIATOR
B = Role.RESPONDER


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> helpers.World:
    return helpers.World(keys)


@pytest.fixture(scope="module")
def people(keys: Sequence[PrivateKey]) -> peers_helpers.World:
    return peers_helpers.World(keys)


# Every length, every bit --------------------------------------------------------------------------

BITS = st.integers(0, 2**20)


@given(st.integers(1, CHUNK_BYTES) | st.sampled_from([1, 15, 16, 17, CHUNK_BYTES]), BITS)
def test_a_record_of_a_file_with_any_bit_changed_is_refused(
    world: helpers.World, size: int, bit: int
) -> None:
    pair = world.pair(DeviceState.SENDING)
    sealed = pair.device.seal(Message(DeviceKind.CHUNK, bytes(size)))
    body = bit % (8 * (len(sealed) - HEADER.size))
    for changed in (flipped(sealed, 8 * HEADER.size + body), flipped(sealed, 8 * len(sealed) - 1)):
        assert type(refusal(clone(pair.server), changed)) is BadTag
    assert clone(pair.server).open(sealed).body == bytes(size)


@pytest.mark.slow
@given(st.integers(1, MAX_TEXT) | st.sampled_from([1, 15, 16, 17, MAX_TEXT]), BITS)
def test_a_text_with_any_bit_changed_is_dropped(
    people: peers_helpers.World, size: int, bit: int
) -> None:
    pair = people.pair(State.OPEN)
    sealed = pair.end(A).seal(peer_protocol.Message(Kind.TEXT, b"x" * size))
    body = bit % (8 * (len(sealed) - peer_protocol.HEADER.size))
    for at in (8 * peer_protocol.HEADER.size + body, 8 * len(sealed) - 1):
        assert is_dropped(pair.end(B), flipped(sealed, at), BadTag)
    assert pair.end(B).open(sealed).body == b"x" * size


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.REPLY])
def test_every_byte_of_an_introduction_is_under_its_signature(
    people: peers_helpers.World, kind: Kind
) -> None:
    """By another library, with the text of [N 2]; and any changed bit is refused."""
    pair = people.pair(State.HELLO)
    introduction = pair.end(A).seal(peer_protocol.Message(Kind.HELLO))
    who = people.alice
    reader = pair.end(B)
    if kind is Kind.REPLY:
        pair.end(B).open(introduction)
        introduction = pair.end(B).seal(peer_protocol.Message(Kind.REPLY))
        who = people.bob
        reader = pair.end(A)
    signed = f"peer_messaging v1 {kind.name}\0".encode() + introduction[:-256]
    verifier = pss.new(RSA.import_key(who.public_pem), salt_bytes=32)
    verifier.verify(SHA256.new(signed), introduction[-256:])
    reader.trust = Trust("anybody")
    before = snapshot(reader)
    for at in range(len(introduction)):
        assert error_of(reader, flipped(introduction, 8 * at + at % 8)), at
    assert snapshot(reader)["pinned"] == before["pinned"] == ""


def test_an_ack_with_any_bit_changed_is_refused(
    world: helpers.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = bytes(range(32))
    acks = [*(flipped(digest, bit) for bit in range(256)), digest]
    sender = Device(world.device, world.trust(), SERVER)
    failures: list[ProtocolError] = []

    class Line:
        fail = failures.append

    monkeypatch.setattr(sender, "_channel", Line())
    monkeypatch.setattr(sender, "receive", lambda: Message(DeviceKind.ACK, acks.pop(0)))
    for bit in range(256):
        with case(f"bit {bit}"), pytest.raises(BadPayload):
            sender._check_ack(digest)
    assert [type(error) for error in failures] == [BadPayload] * 256
    sender._check_ack(digest)
    assert not acks


OTHER_VALUES: dict[str, Any] = {
    "kind": {"text": "file", "file": "text"},
    "name": "other",
    "size": 5,
    "digest": "0" * 64,
    "session": "6" * 32,
    "number": 4,
    "sender": "device-9",
    "recipient": "server-9",
}


@pytest.mark.parametrize("member", OTHER_VALUES)
@pytest.mark.parametrize("kind", ["text", "file"])
def test_a_manifest_that_says_another_thing_is_refused_for_texts_and_files(
    world: helpers.World, kind: ItemKind, member: str
) -> None:
    announcement = Announcement(kind, "a" if kind == "file" else "", 4, NOW)
    outgoing = Outgoing(announcement)
    outgoing.take(b"data")
    said = outgoing.manifest(bytes(16), 3, DEVICE, SERVER, NOW)
    other = OTHER_VALUES[member][kind] if member == "kind" else OTHER_VALUES[member]
    for manifest in (said, replace(said, **{member: other})):
        incoming = Incoming(
            announcement,
            limit_bytes=9,
            session=bytes(16),
            number=3,
            sender=world.device.certificate,
            recipient=SERVER,
            now=lambda: NOW,
        )
        incoming.take(b"data")
        signed = sign_manifest(world.device.private_key, manifest)
        if manifest == said:
            assert incoming.finish(signed) == said
        else:
            with pytest.raises(BadManifest, match=member):
                incoming.finish(signed)


# Late numbers, far times --------------------------------------------------------------------------

LATE = [0, 1, 254, 255, 256, 65_534, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 3]


@pytest.mark.parametrize("number", [*LATE, 2**32, 2**48, 2**63, 2**64 - 3])
def test_a_record_is_the_next_one_however_late(world: helpers.World, number: int) -> None:
    pair = world.pair(DeviceState.SENDING)
    for session in (pair.device, pair.server):
        session._sequence[D2S] = number
    others = {number - 1, number + 1, 0, *(number ^ 1 << bit for bit in range(64))} - {number, -1}
    for other in others:
        message = forge(pair.device, DeviceKind.CHUNK, b"data", sequence=other)
        assert type(refusal(clone(pair.server), message)) is WrongSequence
    message = forge(pair.device, DeviceKind.CHUNK, b"data", session_id=bytes(16))
    assert type(refusal(clone(pair.server), message)) is WrongSession
    pair.carry(D2S, DeviceKind.CHUNK)
    assert pair.server._sequence[D2S] == number + 1


@pytest.mark.parametrize("number", LATE)
def test_a_text_is_the_next_one_however_late(people: peers_helpers.World, number: int) -> None:
    pair = people.pair(State.OPEN)
    for session in pair.ends:
        session._sequence[A] = number
    first = forged_nonce(pair, number)
    sealed = pair.end(A).seal(peer_protocol.Message(Kind.TEXT, b"one"))
    assert sealed == first, "under a nonce of its own [N 4]"
    lost = pair.end(A).seal(peer_protocol.Message(Kind.TEXT, b"two"))
    assert isinstance(error_of(clone(pair.end(B)), lost), MessageLost)
    pair.end(B).open(sealed)
    assert is_dropped(pair.end(B), sealed, Replayed)
    for earlier in {0, number // 2, max(0, number - 1)} - {number}:
        old = peers_helpers.forge(pair.end(A), Kind.TEXT, b"old", sequence=earlier)
        assert is_dropped(pair.end(B), old, Replayed)


def forged_nonce(pair: peers_helpers.Pair, number: int) -> bytes:
    """Return the record as another library makes it from the text."""
    return peers_helpers.forge(pair.end(A), Kind.TEXT, b"one", sequence=number)


@given(st.floats(30.002, 1e9), st.sampled_from([1, -1]))
def test_a_text_is_untimely_however_late(
    people: peers_helpers.World, seconds: float, side: int
) -> None:
    pair = people.pair(State.OPEN)
    message = peers_helpers.forge(pair.end(A), Kind.TEXT, b"x", ago_s=side * seconds)
    assert isinstance(error_of(pair.end(B), message), Untimely)


@given(st.timedeltas(timedelta(minutes=10, seconds=1), timedelta(hours=20)), st.booleans())
def test_an_announcement_is_untimely_however_late(
    world: helpers.World, far: timedelta, is_ahead: bool
) -> None:
    with pytest.raises(BadManifest):
        Incoming(
            Announcement("text", "", 0, NOW + far if is_ahead else NOW - far),
            limit_bytes=9,
            session=bytes(16),
            number=0,
            sender=world.device.certificate,
            recipient=SERVER,
            now=lambda: NOW,
        )


# What is random -----------------------------------------------------------------------------------


def test_what_is_random_comes_from_the_library_alone(
    world: helpers.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of fewer bits, say of four bytes repeated, would pass every other test."""
    default = inspect.signature(DeviceSession).parameters["random_bytes"].default
    assert default is Crypto.Random.get_random_bytes
    drawn: list[bytes] = []

    def draw(length: int) -> bytes:
        drawn.append(Crypto.Random.get_random_bytes(length))
        return drawn[-1]

    session = world.session(world.device, SERVER, random_bytes=draw)
    assert session.seal(Message(DeviceKind.HELLO))[7:23] == drawn[0], "the nonce"
    pair = world.pair(DeviceState.SENDING)
    pair.device._random_bytes = draw
    for _ in range(2):
        sealed = pair.device.seal(Message(DeviceKind.CHUNK, b"data"))
        assert sealed[HEADER.size : CIPHERTEXT_AT] == drawn[-1], "the IV"
    assert [len(one) for one in drawn] == [16, 16, 16]

    made = X25519PrivateKey.generate()

    class Generator:
        @staticmethod
        def generate() -> Any:
            return made

    monkeypatch.setattr(asymmetric, "X25519PrivateKey", Generator)
    assert asymmetric.new_share() == (made, made.public_key().public_bytes_raw())


@pytest.mark.slow
def test_a_serial_is_drawn_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca.create(tmp_path / "pki")
    monkeypatch.setattr(secrets, "token_hex", lambda length: "c0ffee0123456789"[: 2 * length])
    made = ca.issue(tmp_path / "pki", "phone", CertificateRole.DEVICE)
    assert made.serial == "c0ffee0123456789"


# Who is let in, and when --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_device_that_has_not_proved_its_key_is_a_stranger(
    world: helpers.World, tmp_path: Path, steps: int
) -> None:
    """So the next stranger takes its place; only CONFIRM shows that it has the keys."""
    with (
        serving(world, tmp_path / "received", max_strangers=1) as (host, records),
        socket.create_connection(host.address, PATIENCE_S) as first,
    ):
        raw = Raw(world.session(world.device, SERVER), first)
        for kind in (DeviceKind.HELLO, DeviceKind.SHARE)[:steps]:
            raw.send(kind)
            raw.receive()
        with raw_device(world, host) as second:
            assert isinstance(records.ends()[0], EndRequested)
            second.send(DeviceKind.END)
            assert second.receive().kind is DeviceKind.ACK


# Flags --------------------------------------------------------------------------------------------


class Made(Exception):
    """What a program would have made: positional and named arguments."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__()
        self.given = given
        self.named = named


def make(*given: object, **named: object) -> NoReturn:
    raise Made(*given, **named)


def made_by(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[], int], words: Sequence[object]
) -> Made:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    with pytest.raises(Made) as caught:
        main()
    return caught.value


def test_every_flag_of_a_device_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, world: helpers.World, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(options, "load_identity", lambda folder, ask: seen.update(identity=folder))
    monkeypatch.setattr(options, "load_trust", lambda *given: seen.update(trust=given))
    words = ["--identity", "me", "--revocations", "list", "--to", "home", "--text", "x"]
    monkeypatch.setattr(device, "start_log", lambda path, *_: seen.update(log=path))
    monkeypatch.setattr(options, "check_role", make)
    made_by(monkeypatch, device.main, [*words, "--log", tmp_path / "log"])
    assert seen == {
        "identity": Path("me"),
        "trust": (Path("me"), Path("list")),
        "log": tmp_path / "log",
    }
    monkeypatch.setattr(device, "load_party", lambda *_: (world.device, "trust"))
    monkeypatch.setattr(device, "Device", make)
    words += ["--host", "192.0.2.7", "--port", "77", "--timeout", "3.5"]
    made = made_by(monkeypatch, device.main, words)
    assert made.given == (world.device, "trust", "home", "192.0.2.7", 77)
    assert made.named == {"timeout_s": 3.5}


def test_every_flag_of_a_server_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, world: helpers.World, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(server, "start_log", lambda path, *_: seen.update(log=path))
    monkeypatch.setattr(server, "load_party", lambda *_: (world.server, "trust"))
    monkeypatch.setattr(server, "Server", make)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = ["--identity", "me", "--host", "192.0.2.7", "--port", 77, "--log", tmp_path / "log"]
    words += ["--received", tmp_path / "in", "--max-bytes", 12]
    made = made_by(monkeypatch, server.main, words)
    limits = Limits(max_bytes=12)
    assert made.given == (world.server, "trust", tmp_path / "in", "192.0.2.7", 77, limits)
    assert seen == {"log": tmp_path / "log"}


def test_every_flag_of_a_node_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, people: peers_helpers.World, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    def talk(screen: Any, patience_s: float) -> Any:
        seen.update(patience_s=patience_s, is_verbose=screen._verbose)
        return type("Talk", (), {"hear": None})

    monkeypatch.setattr(node, "load_identity", lambda folder, ask: (people.alice, False))
    monkeypatch.setattr(node, "Talk", talk)
    monkeypatch.setattr(node, "Node", make)
    monkeypatch.setattr(sys, "stdin", sys.__stdin__)
    print_ = people.bob.fingerprint
    words: list[object] = [tmp_path / "a", "--peer", "bob", "--at", "192.0.2.8:88"]
    words += ["--host", "192.0.2.7", "--port", 77, "--patience", 4.5, "--verbose", "--pinned-only"]
    (tmp_path / "a").mkdir(mode=0o700)
    made = made_by(monkeypatch, node.main, [*words, "--pin", print_])
    identity, trust, at, host, port = made.given
    assert (identity, at, host, port) == (people.alice, ("192.0.2.8", 88), "192.0.2.7", 77)
    assert isinstance(trust, Trust)
    assert (trust.peer, trust.pinned, trust.first_use) == ("bob", print_, False)
    is_typed = sys.stdin.isatty()
    assert seen == {"patience_s": 1.0 if is_typed else 4.5, "is_verbose": True}
    made = made_by(monkeypatch, node.main, [*words[:5], "--peer", "carol"])
    assert made.given[1].first_use  # type: ignore[attr-defined]
    assert not seen["is_verbose"]


# Logs ---------------------------------------------------------------------------------------------


def shown_forms(secret: bytes) -> Iterator[str]:
    yield from (secret.hex(), secret.hex().upper(), repr(secret)[2:-1], str([*secret])[1:-1])


@pytest.mark.slow
def test_the_log_of_a_debug_run_has_no_key_and_no_content_of_a_file(
    world: helpers.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    recorder = Recorder(monkeypatch, device_protocol)
    path = tmp_path / "door.png"
    path.write_bytes(b"nobody reads this in a log" * 9_000)
    with serving(world, tmp_path / "received") as (host, records):
        with device_for(world, host) as sender:
            sender.session.rekey_chunks = 2
            sender.send_file(path)
            sender.send_text("door 3 is open")
        for spoil in (0, 8, 24, 30, 200, -1):
            with raw_device(world, host) as raw:
                raw.send(DeviceKind.FILE, Announcement("file", "x", 9, NOW).encode())
                sealed = bytearray(raw.session.seal(Message(DeviceKind.CHUNK, b"nobody re")))
                sealed[spoil % len(sealed)] ^= 0x20
                raw.socket.sendall(len(sealed).to_bytes(4, "big") + sealed)
                raw.rest()
        records.ends(7)
    text = caplog.text + "".join(capsys.readouterr())
    assert "'door 3 is open'" in text, "texts are in it, as the document says"
    assert len(recorder.secrets) > 40
    for secret in (*recorder.secrets.values(), b"nobody re"):
        assert not [form for form in shown_forms(secret) if form in text]


def test_the_log_and_the_events_of_a_node_have_no_key(
    keys: Sequence[PrivateKey], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    recorder = Recorder(monkeypatch, peer_protocol)
    nodes = Nodes(keys)
    nodes.meet()
    nodes.carry(0, nodes.peers[0].say("we meet at nine o'clock"))
    session = nodes.peers[0].session
    assert session
    sealed = session.seal(peer_protocol.Message(Kind.TEXT, b"hello"))
    for bit in (0, 9, 140, 150, 200, -1):
        nodes.carry(0, [flipped(sealed, bit)])
    session._sequence[session.role] += 1
    nodes.carry(0, nodes.peers[0].say("a gap before this"))
    said = (
        caplog.text
        + repr(nodes.events)
        + "".join(str(event.error) for events in nodes.events for event in events)
    )
    assert "BadTag" in said
    for secret in recorder.secrets.values():
        assert not [form for form in shown_forms(secret) if form in said]


# Memory and threads -------------------------------------------------------------------------------


def weight(holder: object) -> int:
    """Return how many objects can be reached, and how many entries their containers have.

    Numbers are not counted: they are shared while they are small.
    """
    return sum(
        (not isinstance(one, int)) + (len(one) if isinstance(one, (dict, list, set, deque)) else 0)
        for _, one in objects(holder)
    )


@pytest.mark.slow
def test_a_session_does_not_grow_with_its_records(keys: Sequence[PrivateKey]) -> None:
    world = helpers.World(keys)
    pair = helpers.Pair(
        world.session(world.device, SERVER, rekey_chunks=10_000),
        world.session(world.server, rekey_chunks=10_000),
    )
    for sends, kind in [*helpers.WAY.values()][:7]:
        pair.carry(sends, kind)
    sizes = []
    for _ in range(3):
        for _ in range(100):
            pair.carry(D2S, DeviceKind.CHUNK)
        pair.rekey()
        sizes.append([weight(session) for session in (pair.device, pair.server)])
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.slow
def test_a_node_does_not_grow_with_what_is_said(keys: Sequence[PrivateKey]) -> None:
    nodes = Nodes(keys)
    nodes.meet()
    sizes = []
    for _ in range(3):
        for _ in range(100):
            nodes.carry(0, nodes.peers[0].say("text"))
            nodes.carry(1, nodes.peers[1].say("text"))
        for events in nodes.events:
            events.clear()
        sizes.append([weight(peer) for peer in nodes.peers])
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_node_forgets_hellos_and_sessions(keys: Sequence[PrivateKey]) -> None:
    """A peer that begins again and again must not fill the memory of the other."""
    nodes = Nodes(keys)
    nodes.meet()
    sizes = []
    for _ in range(4):
        for _ in range(4):
            nodes.time.now += 3_600
            nodes.carry(0, nodes.peers[0].tick())
        for events in nodes.events:
            events.clear()
        sizes.append([weight(peer) for peer in nodes.peers])
    assert sizes[1] == sizes[2] == sizes[3]


def test_a_server_does_not_grow_with_its_connections(world: helpers.World, tmp_path: Path) -> None:
    """Each has a thread and a place in a list, until it is over."""
    with serving(world, tmp_path / "received") as (host, records):
        before = {*threading.enumerate()}
        for number in range(1, 9):
            with socket.create_connection(host.address, PATIENCE_S) as stranger:
                stranger.sendall(b"\xff" * 4)
            with device_for(world, host) as sender:
                sender.send_text("hello")
            records.ends(2 * number)
        for thread in {*threading.enumerate()} - before:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert host._connections == []
