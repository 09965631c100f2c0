"""Tests that were missing: patches.py takes a rule out, and none of the other tests would fail.

Often because they share a constant with the code; here stands what the document says.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from channel import EndRequested
from companions.asymmetric import PrivateKey, is_signed
from companions.canonical import canonical, parse_canonical
from companions.device_transfer import ca, certificates, options
from companions.device_transfer import device as device_module
from companions.device_transfer.certificates import (
    MalformedCertificate,
    RevocationListRolledBack,
    RevocationListStale,
    parse_certificate,
)
from companions.device_transfer.device import Device
from companions.device_transfer.journal import Journal, shorten
from companions.device_transfer.protocol import (
    Kind,
    PeerFailed,
    Session,
    State,
    read_frame,
    write_frame,
)
from companions.device_transfer.server import Member, Server
from companions.device_transfer.transfer import Announcement, Incoming, TooLarge
from program import UserError
from protocol_fsm import (
    BadPayload,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    ProtocolError,
    Status,
)
from tests.companions.helpers import NOW, SERVER, World
from tests.test_programs import posix_only


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


# Certificates and lists ---------------------------------------------------------------------------


def test_certificates_and_lists_are_signed_in_the_contexts_of_the_document(world: World) -> None:
    for encoded, members, context in (
        (world.device.certificate.encoded, certificates.CERTIFICATE_MEMBERS, "certificate"),
        (world.revocations, certificates.LIST_MEMBERS, "revocation list"),
    ):
        said = parse_canonical(encoded, members)
        signature = bytes.fromhex(said.pop("signature"))
        assert is_signed(
            world.keys[0].public_key(), f"device_transfer v1 {context}", canonical(said), signature
        )


def test_no_certificate_has_more_than_4096_bytes() -> None:
    with pytest.raises(MalformedCertificate) as caught:
        parse_certificate(bytes(4_097))
    assert caught.value.got == 4_097


def test_a_stale_list_has_been_seen_all_the_same(keys: Sequence[PrivateKey]) -> None:
    world = World(keys)
    trust = world.trust()
    world.revocations = world.revocation_list(2, ends=NOW - timedelta(0, 1))
    with pytest.raises(RevocationListStale):
        trust.revocation_list()
    world.revocations = world.revocation_list(1)
    with pytest.raises(RevocationListRolledBack):
        trust.revocation_list()


# What is received ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "is_taken"), [(65_536, True), (65_537, False)])
def test_a_text_has_at_most_65536_bytes(world: World, size: int, is_taken: bool) -> None:
    with contextlib.nullcontext() if is_taken else pytest.raises(TooLarge):
        Incoming(
            Announcement("text", "", size),
            limit_bytes=10**9,
            session=bytes(16),
            number=0,
            sender=world.device.certificate,
            recipient=SERVER,
            now=lambda: NOW,
        )


@posix_only
def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="another server"):
        Journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").rename(tmp_path / "journal.1")  # the lock does not go along
    with pytest.raises(UserError, match="another server"):
        Journal(tmp_path / "journal.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["journal.1"]
    first.close()
    Journal(tmp_path / "journal.jsonl").close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0123456789", "0123456789"),
        ("01234567890", "0123..7890"),
        ("a" * 30 + ".png", "aaaa...png"),
    ],
)
def test_a_long_name_is_shown_by_its_beginning_and_its_end(text: str, shown: str) -> None:
    assert shorten(text, 10) == shown


# The authority ------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca" / "issued" / "0.json").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot read"):
        ca.issued_certificates(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_without_a_list_that_is_any_good_nobody_is_revoked_yet(
    tmp_path: Path, content: bytes | None
) -> None:
    """So that who has lost the list can revoke again, and has a new one."""
    if content is not None:
        (tmp_path / "revocation_list.json").write_bytes(content)
    assert ca._published(tmp_path) == (0, frozenset())


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot make"):
        ca._locked(tmp_path / "nowhere").__enter__()


def test_a_passphrase_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(prompt: str) -> str:
        return b"\xff".decode("utf-8")

    monkeypatch.setattr(getpass, "getpass", typed)
    with pytest.raises(UserError, match="a passphrase is text"):
        options.ask_passphrase("passphrase: ")


# The two programs ---------------------------------------------------------------------------------


def test_who_was_sent_away_is_not_let_in_any_more(world: World, tmp_path: Path) -> None:
    """A stranger that had to make room, and ends its handshake before it has noticed."""
    server = Server(world.server, world.trust(), tmp_path / "received", port=0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        member = Member(server, ours, "nowhere")
        member.channel.request_end(Status.TIMEOUT)
        with pytest.raises(EndRequested):
            server.admit(member)
        assert member.is_stranger
    server.close()


@contextlib.contextmanager
def device_of(world: World, talk: Callable[[Session, socket.socket], object]) -> Iterator[Device]:
    """Give a device whose server has the right keys, and after the handshake does as it likes."""

    def serve() -> None:
        with listener.accept()[0] as sock:
            sock.settimeout(5.0)
            session = world.session(world.server)
            for kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM):
                session.open(read_frame(sock.recv))
                write_frame(sock.sendall, session.seal(kind))
            talk(session, sock)
            while sock.recv(65_536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        yield Device(world.device, world.trust(), SERVER, *listener.getsockname()[:2])
        serving.join(5.0)


def test_the_last_ack_is_one_of_nothing(world: World) -> None:
    def talk(session: Session, sock: socket.socket) -> None:
        session.open(read_frame(sock.recv))
        write_frame(sock.sendall, session.seal(Kind.ACK, bytes(32)))

    with device_of(world, talk) as device, pytest.raises(BadPayload):
        with device:
            pass


def test_a_wrong_ack_ends_the_session_at_once(world: World) -> None:
    def talk(session: Session, sock: socket.socket) -> None:
        for _ in range(3):  # the announcement, a chunk, and the manifest
            session.open(read_frame(sock.recv))
        write_frame(sock.sendall, session.seal(Kind.ACK, bytes(32)))

    with device_of(world, talk) as made, made as device:
        with pytest.raises(BadPayload):
            device.send_text("all is well")
        assert device.session.state is State.ENDED


def test_a_server_that_fails_is_heard_before_the_next_chunk(world: World, tmp_path: Path) -> None:
    path = tmp_path / "long.bin"
    failed = threading.Event()
    path.write_bytes(bytes(9 * 65_536))
    sent: list[int] = []

    def talk(session: Session, sock: socket.socket) -> None:
        for _ in range(2):  # the announcement, and a chunk
            session.open(read_frame(sock.recv))
        write_frame(sock.sendall, session.seal(Kind.FAIL))
        failed.set()

    def progress(count: int) -> None:
        sent.append(count)
        assert failed.wait(5.0)

    with device_of(world, talk) as device, pytest.raises(PeerFailed):
        with device:
            device.send_file(path, progress)
    assert sent == [65_536]


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConnectionCut(False), 3), (DeadlineExpired(), 3), (PeerFailed(), 1), (BadPayload(), 1)],
)
def test_the_exit_code_tells_a_lost_connection_from_a_session_that_was_ended(
    world: World, monkeypatch: pytest.MonkeyPatch, error: ProtocolError, code: int
) -> None:
    assert main_that_fails(world, monkeypatch, error) == code


def test_a_fault_of_our_own_side_is_the_users(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="it has become longer"):
        main_that_fails(world, monkeypatch, LocalError("it has become longer"))


def main_that_fails(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    """Run the device's program, whose session ends with `error`."""

    def send_all(*arguments: object) -> None:
        raise error

    arguments = ["device.py", "--identity", "x", "--to", SERVER, "--text", "x"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(device_module, "load_party", lambda *_: (world.device, world.trust()))
    monkeypatch.setattr(device_module, "start_log", lambda *_: None)
    monkeypatch.setattr(device_module, "send_all", send_all)
    return device_module.main()
