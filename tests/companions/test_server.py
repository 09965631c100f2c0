"""The server of devices, over real sockets: who is let in, what is kept, what is told to whom."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import socket
import sys
import threading
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography.hazmat.primitives import serialization

from channel import EndRequested
from companions.asymmetric import PrivateKey
from companions.device_transfer import server as server_module
from companions.device_transfer.certificates import (
    CertificateRevoked,
    Role,
    UntrustedCertificate,
)
from companions.device_transfer.protocol import (
    Kind,
    Message,
    PeerFailed,
    Session,
    UnexpectedKind,
    read_frame,
    write_frame,
)
from companions.device_transfer.server import Member, Record, Server
from companions.device_transfer.store import JOURNAL, StoreFailed
from companions.device_transfer.transfer import (
    Announcement,
    BadManifest,
    BadName,
    Incoming,
    Manifest,
    TooLarge,
    sign_manifest,
)
from companions.logs import LineFormatter
from program import NoConnection, UserError
from protocol_fsm import (
    BadTag,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    MalformedMessage,
    ProtocolError,
    Status,
)
from tests.companions.helpers import DAY, DEVICE, NOW, SERVER, World, flipped
from tests.companions.network import (
    Raw,
    device_for,
    files_in,
    raw_device,
    serving,
)
from tests.network import PATIENCE_S, at_once
from tests.programs import ROOT

FAIL_BYTES = 4 + 79 + 16  # the whole of what a peer is told


@pytest.fixture(scope="module")
def world(keys: list[PrivateKey]) -> World:
    return World(keys)


@pytest.fixture
def received(tmp_path: Path) -> Path:
    return tmp_path / "received"


def a_file(folder: Path, name: str = "door.png", content: bytes = b"picture") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def journal_of(folder: Path) -> list[str]:
    return (folder / JOURNAL).read_text().splitlines()


def manifest_for(raw: Raw, content: bytes, name: str = "x", when: datetime = NOW) -> Manifest:
    return Manifest(
        "file",
        name,
        len(content),
        hashlib.sha256(content).hexdigest(),
        when,
        raw.session.session_id.hex(),
        0,
        DEVICE,
        SERVER,
    )


# What is kept


def test_texts_and_files_are_kept_with_their_signatures(
    world: World, received: Path, tmp_path: Path
) -> None:
    with serving(world, received) as (server, records):
        with device_for(world, server) as device:
            device.send_text("all\nis well \x1b[2J")
            device.send_text("")
            device.send_file(a_file(tmp_path))
            device.send_file(a_file(tmp_path, content=b""))
        assert records.ends() == [None]
    assert files_in(received) == {"door.png": b"picture", "door-2.png": b""}
    assert len(journal_of(received)) == 4
    assert [record.sender for record in records.of("stored")] == [DEVICE] * 4


@pytest.mark.slow
def test_twenty_devices_that_send_the_same_name_at_once_lose_nothing(
    world: World, received: Path, tmp_path: Path
) -> None:
    paths = [
        a_file(tmp_path / str(number), content=b"%2d" % number * 35_000) for number in range(20)
    ]

    def send(server: Server, path: Path, number: int) -> None:
        who = world.person(f"device-{number}", Role.DEVICE)
        with device_for(world, server, who) as device:
            device.send_file(path)

    with serving(world, received) as (server, records):
        results = at_once(
            *(
                lambda path=path, number=number: send(server, path, number)
                for number, path in enumerate(paths)
            )
        )
        assert results == [None] * 20
        assert records.ends(20) == [None] * 20
    assert sorted(files_in(received).values()) == [path.read_bytes() for path in paths]
    assert len(journal_of(received)) == 20


def test_one_device_may_be_there_twice(world: World, received: Path) -> None:
    with (
        serving(world, received) as (server, records),
        device_for(world, server) as one,
        device_for(world, server) as other,
    ):
        one.send_text("one")
        other.send_text("other")
        one.send_text("one again")
    assert len(records.of("stored")) == 3


def test_a_large_file_goes_to_the_disk_on_its_way(
    world: World, received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a slow disk would have it all to do at the end, for longer than a device waits."""
    synced: list[int] = []
    sync = os.fsync

    def fsync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    path = a_file(tmp_path, content=bytes(7 * 65_536))
    with (
        serving(world, received) as (server, _),
        device_for(world, server, new_session=partial(Session, rekey_chunks=3)) as device,
    ):
        device.send_file(path)
    assert [size // 65_536 for size in synced if size >= 65_536] == [3, 6, 7]


# What is refused, and what is told


class Misdeed:
    """What a device that was let in can do wrong, and what the server's log makes of it."""

    def outside(self, raw: Raw) -> type[ProtocolError]:
        raw.send(Kind.FILE, Announcement("file", "../../x", 1, NOW).encode())
        return BadName

    def too_large(self, raw: Raw) -> type[ProtocolError]:
        raw.send(Kind.FILE, Announcement("file", "x", 2**32 + 1, NOW).encode())
        return TooLarge

    def not_what_was_signed(self, raw: Raw) -> type[ProtocolError]:
        raw.send(Kind.FILE, Announcement("file", "x", 1, NOW).encode())
        raw.send(Kind.CHUNK, b"x")
        key = raw.session.identity.private_key
        raw.send(Kind.MANIFEST, sign_manifest(key, manifest_for(raw, b"y")))
        return BadManifest

    def text_without_utf8(self, raw: Raw) -> type[ProtocolError]:
        raw.send(Kind.TEXT, Announcement("text", "", 1, NOW).encode())
        raw.send(Kind.CHUNK, b"\xff")
        return BadManifest

    def tampered(self, raw: Raw) -> type[ProtocolError]:
        raw.send(Kind.FILE, Announcement("file", "x", 1, NOW).encode())
        write_frame(raw.socket.sendall, flipped(raw.session.seal(Message(Kind.CHUNK, b"x")), 300))
        return BadTag

    def out_of_turn(self, raw: Raw) -> type[ProtocolError]:
        write_frame(
            raw.socket.sendall, raw.session.seal(Message(Kind.END)).replace(b"<ENDD>", b"<CHNK>")
        )
        return UnexpectedKind

    def endless_frame(self, raw: Raw) -> type[ProtocolError]:
        raw.socket.sendall(b"\xff\xff\xff\xff")
        return MalformedMessage

    def silence(self, raw: Raw) -> type[ProtocolError]:
        return DeadlineExpired


MISDEEDS = [name for name in vars(Misdeed) if name[0] != "_"]


@pytest.mark.slow
def test_a_device_is_told_nothing_but_that_it_is_over(world: World, received: Path) -> None:
    """On the wire every refusal is one FAIL of the same length, and the end."""
    for name in MISDEEDS:
        limits = {"silence_s": 0.2} if name == "silence" else {}
        with (
            serving(world, received, **limits) as (server, records),
            raw_device(world, server) as raw,
        ):
            expected = getattr(Misdeed(), name)(raw)
            told = raw.rest()
            assert (len(told), told[4:10]) == (FAIL_BYTES, b"<FAIL>"), name
            with pytest.raises(PeerFailed):
                raw.session.open(told[4:])
            assert [type(error) for error in records.ends()] == [expected], name
    assert not files_in(received)
    assert not journal_of(received)


def test_a_frame_that_drips_in_is_not_waited_for(world: World, received: Path) -> None:
    with (
        serving(world, received, frame_s=0.1) as (server, records),
        raw_device(world, server) as raw,
    ):
        raw.socket.sendall(b"\0\0")
        assert raw.rest()[4:10] == b"<FAIL>"
        assert isinstance(records.ends()[0], DeadlineExpired)


FIRST = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\0\0\0\x06<HELO>",
    b"\0\0\0\x08<HELO>\x01x",
    b"\0\0\x20\x01",
    b"\0\0\0\x06<SECX>",
    b"\0\0\0\x06<FAIL>",
    b"\0\0\0\x05",
]


def test_a_stranger_is_told_nothing(world: World, received: Path) -> None:
    with serving(world, received) as (server, records):
        for number, first in enumerate(FIRST, 1):
            with socket.create_connection(server.address, PATIENCE_S) as sock:
                sock.sendall(first)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b"", first
            assert isinstance(records.ends(number)[-1], ProtocolError)


def test_a_refused_device_is_told_nothing(world: World, received: Path) -> None:
    """Neither a device that another authority knows, nor one that has no key of its own."""
    elsewhere = world.person(DEVICE, Role.DEVICE, authority=4)
    with serving(world, received) as (server, records):
        with pytest.raises(ConnectionCut), device_for(world, server, elsewhere):
            pytest.fail("it was let in")
        assert isinstance(records.ends()[0], UntrustedCertificate)
    assert records.records == [Record("end", "", records.records[0].detail)], "it has no name"


def test_a_revoked_device_continues_until_its_next_handshake(world: World, received: Path) -> None:
    who = world.person("device-2", Role.DEVICE, serial="2" * 16, key=3)
    before = world.revocations
    try:
        with serving(world, received) as (server, records):
            with device_for(world, server, who) as device:
                world.revocations = world.revocation_list(2, ["2" * 16])
                device.send_text("still here")
            with pytest.raises(ConnectionCut), device_for(world, server, who):
                pytest.fail("it was let in again")
            assert {type(end) for end in records.ends(2)} == {type(None), CertificateRevoked}
            with device_for(world, server) as device:
                device.send_text("not revoked")
    finally:
        world.revocations = before


def test_the_clock_matters_to_certificates_and_not_to_deadlines(
    world: World, received: Path
) -> None:
    try:
        with serving(world, received) as (server, _):
            with device_for(world, server) as device:
                world.now = NOW + DAY / 2
                device.send_text("half a day later")
                world.now = NOW - DAY / 2
                device.send_text("half a day before")
            world.now = NOW + 2 * DAY
            world.revocations = world.revocation_list(3, ends=NOW + 3 * DAY)
            with pytest.raises(ConnectionCut), device_for(world, server):
                pytest.fail("it was let in after its time")
    finally:
        world.now = NOW
        world.revocations = world.revocation_list(1)


# Nobody disturbs anybody


def test_the_oldest_strangers_make_room(world: World, received: Path) -> None:
    with (
        serving(world, received, max_strangers=4) as (server, records),
        device_for(world, server) as device,
        contextlib.ExitStack() as stack,
    ):
        crowd = [
            stack.enter_context(socket.create_connection(server.address, PATIENCE_S))
            for _ in range(12)
        ]
        assert [sock.recv(1) for sock in crowd[:8]] == [b""] * 8
        assert all(isinstance(error, EndRequested) for error in records.ends(8))
        device.send_text("still here")
        with device_for(world, server) as late:
            late.send_text("let in, too")
        for sock in crowd[9:]:
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_an_evicted_stranger_is_not_admitted_at_the_end_of_its_handshake(
    world: World, received: Path
) -> None:
    """A stranger that had to make room, and ends its handshake before it has noticed."""
    server = Server(world.server, world.trust(), received, port=0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        member = Member(server, ours, "nowhere")
        member.channel.request_end(Status.TIMEOUT)
        with pytest.raises(EndRequested):
            server.admit(member)
        assert member.is_stranger
    server.close()


def test_a_connection_that_says_nothing_is_closed_in_time(world: World, received: Path) -> None:
    with (
        serving(world, received, handshake_s=0.1) as (server, records),
        socket.create_connection(server.address, PATIENCE_S) as sock,
    ):
        assert sock.recv(1) == b""
        assert isinstance(records.ends()[0], DeadlineExpired)


def test_half_closed_is_still_answered(world: World, received: Path) -> None:
    with serving(world, received) as (server, records), raw_device(world, server) as raw:
        raw.send(Kind.END)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.receive().kind is Kind.ACK
        assert raw.rest() == b""
        assert records.ends() == [None]


def test_a_device_that_vanishes_leaves_nothing(world: World, received: Path) -> None:
    with serving(world, received) as (server, records), device_for(world, server) as other:
        with raw_device(world, server) as raw:
            raw.send(Kind.FILE, Announcement("file", "x", 100, NOW).encode())
            raw.send(Kind.CHUNK, b"half")
        assert isinstance(records.ends()[0], ConnectionCut)
        other.send_text("still here")
    assert not files_in(received)


def test_a_defect_of_ours_ends_one_session(
    world: World, received: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def new_incoming(announcement: Announcement, **options: object) -> Incoming:
        if announcement.size == 3:
            raise ZeroDivisionError
        return Incoming(announcement, **options)  # type: ignore[arg-type]

    with (
        serving(world, received, new_incoming=new_incoming) as (server, _),
        device_for(world, server) as other,
    ):
        with pytest.raises(PeerFailed), device_for(world, server) as device:
            device.send_text("bad")
        other.send_text("good")
    assert "internal error" in caplog.text


def test_without_a_thread_a_connection_is_closed_and_the_next_served(
    world: World, received: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    failures = [RuntimeError("can't start new thread")]

    def start_or_not(thread: threading.Thread) -> None:
        if "run" in repr(thread._target) and failures:  # type: ignore[attr-defined]
            raise failures.pop()
        start(thread)

    with serving(world, received) as (server, _):
        monkeypatch.setattr(threading.Thread, "start", start_or_not)
        monkeypatch.setattr("companions.listening.POLL_S", 0.01)
        with socket.create_connection(server.address, PATIENCE_S) as sock:
            assert sock.recv(1) == b""
        with device_for(world, server) as device:
            device.send_text("next")


def test_a_lack_of_descriptors_passes(
    world: World, received: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files") for _ in range(2)]

    class Listener:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def accept(self) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return self.real.accept()

    with serving(world, received) as (server, _):
        monkeypatch.setattr("companions.listening.POLL_S", 0.01)
        monkeypatch.setattr(server, "_listener", Listener(server._listener))
        for _ in range(2):  # the real listener, already waiting, may accept the first
            with device_for(world, server) as device:
                device.send_text("later")
    assert not failures
    assert caplog.text.count("cannot accept: [Errno 24] Too many open files") == 1


def test_a_server_listens_once(world: World, received: Path) -> None:
    with serving(world, received) as (server, _):
        with pytest.raises(LocalError, match="listens once"), server:
            pytest.fail("entered twice")
        with device_for(world, server) as device:
            device.send_text("it still listens")


# The disk


def test_a_disk_that_is_full_ends_the_session(
    world: World, received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path, content=bytes(200_000))
    real = os.write

    def write(file: int, data: bytes) -> int:
        if os.fstat(file).st_size >= 2 * 65_536:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    with serving(world, received) as (server, records):
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(PeerFailed), device_for(world, server) as device:
            device.send_file(path)
        assert isinstance(records.ends()[0], StoreFailed)
        monkeypatch.undo()
    assert not files_in(received)


def test_what_cannot_be_written_down_is_not_kept(
    world: World, received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(entry: object) -> NoReturn:
        assert files_in(received), "its name comes first"
        raise StoreFailed("a line in the journal", "No space left on device")

    with serving(world, received) as (server, records):
        monkeypatch.setattr(server.journal, "append", append)
        with pytest.raises(PeerFailed), device_for(world, server) as device:
            device.send_file(a_file(tmp_path))
        assert isinstance(records.ends()[0], StoreFailed)
    assert not files_in(received)


def test_what_an_earlier_server_left_is_removed(
    world: World, received: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_file(received, f".{'a' * 16}.partial")
    a_file(received, "whole.png")
    with serving(world, received):
        assert files_in(received) == {"whole.png": b"picture"}
    assert "removed: 1" in caplog.text


def test_a_second_server_does_not_touch_the_files_of_the_first(
    world: World, received: Path
) -> None:
    """A taken port, or else the lock on the folder, is found before anything is removed."""
    with serving(world, received) as (server, records), raw_device(world, server) as raw:
        raw.send(Kind.FILE, Announcement("file", "x", 1, NOW).encode())
        raw.send(Kind.CHUNK, b"x")
        with pytest.raises(NoConnection, match="cannot listen on 127"):
            Server(world.server, world.trust(), received, port=server.address[1])
        if os.name == "posix":
            with pytest.raises(UserError, match="another server keeps its files in"):
                Server(world.server, world.trust(), received, port=0)
        key = raw.session.identity.private_key
        raw.send(Kind.MANIFEST, sign_manifest(key, manifest_for(raw, b"x")))
        assert raw.receive().kind is Kind.ACK
    assert files_in(received) == {"x": b"x"}
    assert len(records.of("stored")) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_a_server_that_cannot_begin_leaves_nothing_open(
    world: World, received: Path, tmp_path: Path
) -> None:
    with serving(world, received) as (server, _):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(NoConnection):
                Server(world.server, world.trust(), tmp_path / "new", port=server.address[1])
            with pytest.raises(UserError):
                Server(world.server, world.trust(), received, port=0)
            with pytest.raises(UserError):
                Server(world.server, world.trust(), tmp_path / "no" / "where", port=0)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_server_that_never_serves_can_be_closed(world: World, received: Path) -> None:
    Server(world.server, world.trust(), received, port=0).close()
    with serving(world, received):
        pass


def test_a_device_cannot_be_a_server(world: World, received: Path) -> None:
    with pytest.raises(UserError, match="certificate of device-1 is for a device, and a server"):
        Server(world.device, world.trust(), received, port=0)


@pytest.mark.parametrize(
    ("log", "is_there"),
    [
        ("received/journal.jsonl", False),
        ("received/../received/journal.jsonl", False),
        ("link", True),
    ],
)
def test_the_log_is_not_the_journal(
    received: Path, monkeypatch: pytest.MonkeyPatch, log: str, is_there: bool
) -> None:
    if is_there:
        os.link(a_file(received, JOURNAL), received.parent / "link")
    monkeypatch.chdir(received.parent)
    monkeypatch.setattr(sys, "argv", ["server", "--identity", "x", "--log", log])
    monkeypatch.setattr(server_module, "start_log", lambda *_: pytest.fail("a line is in it"))
    with pytest.raises(UserError, match="the log cannot be the journal"):
        server_module.main()


@pytest.mark.parametrize("host", ["192.0.2.1", "\0"])
def test_a_host_that_is_not_ours_is_the_users_fault(
    world: World, received: Path, host: str
) -> None:
    with pytest.raises(NoConnection, match="cannot listen on"):
        Server(world.server, world.trust(), received, host, 0)


# The end


@pytest.mark.slow
def test_the_end_of_the_server_is_told_to_every_device(world: World, received: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving(world, received) as (server, _):
            raws = [stack.enter_context(raw_device(world, server)) for _ in range(3)]
            raws[1].send(Kind.FILE, Announcement("file", "x", 100, NOW).encode())
            raws[1].send(Kind.CHUNK, b"half")
            silent = stack.enter_context(socket.create_connection(server.address, PATIENCE_S))
        for raw in raws:
            with pytest.raises(PeerFailed):
                raw.receive()
        assert silent.recv(1) == b""
    assert not files_in(received)


# The log


def secrets_of(session: Session) -> list[bytes]:
    return [*session._keys.values(), session._secret]


def private_bytes(key: PrivateKey) -> list[bytes]:
    numbers = key.private_numbers()
    return [
        number.to_bytes(256, "big").lstrip(b"\0") for number in (numbers.d, numbers.p, numbers.q)
    ] + [
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    ]


def test_the_log_has_a_line_for_each_event_and_no_keys(
    world: World, received: Path, tmp_path: Path
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger("device_transfer")
    sessions: list[Session] = []

    def new_session(*arguments: object, **options: object) -> Session:
        sessions.append(Session(*arguments, **options))  # type: ignore[arg-type]
        return sessions[-1]

    secrets: list[bytes] = []
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with (
            serving(world, received, new_session=new_session) as (server, records),
            device_for(world, server, new_session=new_session) as device,
        ):
            device.send_text("two\nlines \x1b[2J\u202e")
            device.send_file(a_file(tmp_path, "a b\u00e9.png"))
            with raw_device(world, server) as raw:
                raw.send(Kind.FILE, Announcement("file", "\n2026 forged line", 1, NOW).encode())
                secrets += secrets_of(raw.session)
                raw.rest()
            records.ends()
            secrets += [secret for one in sessions for secret in secrets_of(one)]
            port = device.channel._sock.getsockname()[1]
    finally:
        root.removeHandler(handler)
        root.setLevel(logging.NOTSET)
    log = written.getvalue()
    stamp = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ "
    assert all(re.fullmatch(stamp + "[ -~]+", line) for line in log.splitlines()), log
    served = [re.sub(stamp, "", line) for line in log.splitlines() if f"127.0.0.1:{port}" in line]
    assert [re.sub("[0-9a-f]{32}", "ID", line) for line in served] == [
        f"{DEVICE} at 127.0.0.1:{port}: session ID begun",
        f"{DEVICE} at 127.0.0.1:{port}: text of 17 bytes: 'two\\nlines \\x1b[2J\\u202e'",
        f"{DEVICE} at 127.0.0.1:{port}: file of 7 bytes stored as 'a b\\xe9.png'",
        f"{DEVICE} at 127.0.0.1:{port}: done, 2 received",
    ]
    assert "ended after 0 received: BadName: expected the plain name of a file, got '\\n2026" in log
    assert len(secrets) >= 15
    for secret in [
        *filter(None, secrets),
        *private_bytes(world.device.private_key),
        *private_bytes(world.server.private_key),
    ]:
        for shown in (secret.hex(), base64.b64encode(secret).decode()):
            assert shown[:24] not in log
            assert shown[:24].upper() not in log


def test_readme_quotes_what_a_server_logs(
    world: World, received: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def alike(line: str) -> str:
        return re.sub(r"127\.0\.0\.1:\d+|[0-9a-f]{32}", "...", line)

    caplog.set_level(logging.INFO, "device_transfer")
    with serving(world, received) as (server, records):
        with device_for(world, server) as device:
            device.send_text("door 3 is open")
            device.send_file(ROOT / "pictures" / "bench.svg")
        records.ends()
    readme = (ROOT / "companions/device_transfer/README.md").read_text("utf-8")
    quoted = re.findall(r"^20\S+Z (device-1 at .*)$", readme, re.MULTILINE)
    assert len(quoted) == 4
    logged = [line for line in caplog.messages if line.startswith("device-1 at ")]
    assert [alike(line) for line in quoted] == [alike(line) for line in logged]


def test_nothing_breaks_a_line_of_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "a\n%s", ("\x1b[2J\u202e\u00e9",), None)
    assert LineFormatter().format(record).endswith("Z a\\n\\x1b[2J\\u202e\u00e9")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
def test_a_thousand_connections_that_say_nothing_keep_nobody_out(
    world: World, received: Path
) -> None:
    with serving(world, received) as (server, records), device_for(world, server) as device:
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(10):
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    stack.enter_context(socket.create_connection(server.address, PATIENCE_S))
                device.send_text("still here")
                assert threading.active_count() < before[1] + 64 + 100 + 10
                with device_for(world, server) as late:
                    late.send_text("let in")
        records.ends(1_010)
        with raw_device(world, server) as raw:  # by when all others are forgotten, or nearly
            raw.send(Kind.END)
            read_frame(raw.socket.recv)
        records.ends(1_011)
        assert len(records.of("stored")) == 20
        deadline = threading.Event()
        for _ in range(100):
            after = len(os.listdir("/proc/self/fd")), threading.active_count()
            if after <= before:
                break
            deadline.wait(0.1)
        assert after <= before
