"""A device over real sockets: what it sends, what it refuses to send, and how its session ends."""

from __future__ import annotations

import io
import logging
import mmap
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest

from channel import Channel, EndRequested
from companions.asymmetric import PrivateKey
from companions.device_transfer import device as device_module
from companions.device_transfer.certificates import (
    CertificateExpired,
    CertificateRevoked,
    RevocationListStale,
    UntrustedCertificate,
    WrongRole,
)
from companions.device_transfer.device import Device, explain, open_file
from companions.device_transfer.options import Pace
from companions.device_transfer.protocol import (
    Kind,
    Message,
    PeerFailed,
    Session,
    State,
    UnexpectedKind,
)
from companions.device_transfer.server import Server
from companions.device_transfer.transfer import BadManifest
from program import NoConnection, UserError
from protocol_fsm import (
    BadPayload,
    BadTag,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    ProtocolError,
    Status,
    WrongPeer,
)
from tests.companions.helpers import NOW, SERVER, World
from tests.companions.network import (
    Raw,
    Records,
    device_for,
    files_in,
    raw_server,
    serving,
)
from tests.network import PATIENCE_S
from tests.programs import posix_only


@pytest.fixture(scope="module")
def world(keys: list[PrivateKey]) -> World:
    return World(keys)


@pytest.fixture(scope="module")
def party(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Records, Path]]:
    """A server for cases that only need one to be there."""
    folder = tmp_path_factory.mktemp("server") / "received"
    with serving(world, folder) as (server, records):
        yield server, records, folder


def a_file(folder: Path, name: str = "door.png", content: bytes = b"picture") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# What can be sent


@pytest.mark.parametrize(
    "text",
    ["", "\n", "\0\x1b[2J\r\n\u202e", "z\u00fcrich \U0001f6aa", "x" * 65_536, "\u20ac" * 21_845],
)
def test_any_text_of_up_to_65536_bytes_arrives(
    world: World, party: tuple[Server, Records, Path], text: str
) -> None:
    server, records, _ = party
    before = len(records.of("stored"))
    with device_for(world, server) as device:
        manifest = device.send_text(text)
    assert (manifest.kind, manifest.size) == ("text", len(text.encode()))
    assert records.of("stored")[before].detail.text == text  # type: ignore[union-attr]


NAMES = {  # what is sent, and what it becomes
    "a b.png": "a b.png",
    "t\u00fcr \U0001f6aa": "t\u00fcr \U0001f6aa",
    "-rf.png": "_rf.png",
    ".hidden": "_hidden",
    "n" * 255: "n" * 255,
    "\u00fc" * 127: "\u00fc" * 127,
    "journal.jsonl": "_journal.jsonl",
    "nul.png": "_nul.png",
    'a?*<>|".png': "a______.png",
}


@posix_only
def test_a_file_arrives_under_its_name_or_one_that_every_system_takes(
    world: World, party: tuple[Server, Records, Path], tmp_path: Path
) -> None:
    server, _, folder = party
    with device_for(world, server) as device:
        for name in NAMES:
            assert device.send_file(a_file(tmp_path, name, name.encode())).name == name
    assert (
        files_in(folder).items()
        >= {stored: name.encode() for name, stored in NAMES.items()}.items()
    )


@pytest.mark.slow
def test_a_file_of_any_size_arrives(
    world: World, party: tuple[Server, Records, Path], tmp_path: Path
) -> None:
    server, _, folder = party
    with device_for(world, server, new_session=partial(Session, rekey_chunks=2)) as device:
        for size in (0, 1, 65_535, 65_536, 65_537, 3 * 65_536, 500_000):
            told: list[int] = []
            content = os.urandom(size)
            manifest = device.send_file(a_file(tmp_path, f"{size}.bin", content), told.append)
            assert files_in(folder)[f"{size}.bin"] == content
            assert sum(told) == manifest.size == size


def test_items_are_numbered_in_their_session(
    world: World, party: tuple[Server, Records, Path]
) -> None:
    with device_for(world, party[0]) as device:
        assert [device.send_text("x").number for _ in range(3)] == [0, 1, 2]


# What cannot be sent, and disturbs nothing


def directory(tmp: Path) -> Path:
    return tmp


def missing(tmp: Path) -> Path:
    return tmp / "missing.png"


def fifo(tmp: Path) -> Path:
    os.mkfifo(tmp / "pipe")
    return tmp / "pipe"


def unix_socket(tmp: Path) -> Path:
    sock = socket.socket(socket.AF_UNIX)
    with sock:
        sock.bind(str(tmp / "s"))
    return tmp / "s"


@posix_only
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (directory, "cannot read '.*': it is a folder"),
        (missing, "cannot read '.*missing.png': No such file"),
        (fifo, "cannot read '.*pipe': it is not a regular file"),
        (unix_socket, "cannot read '.*s': it is not a regular file"),
        (lambda tmp: Path("/dev/zero"), "cannot read '/dev/zero': it is not a regular file"),
        (lambda tmp: Path("/proc/cpuinfo"), "cannot read '/proc/cpuinfo': "),
        (lambda tmp: tmp / "a" / ("x" * 300), "cannot read"),
        (lambda tmp: tmp / "a\0b" / "x", "cannot read"),
        (lambda tmp: a_file(tmp, "two\nlines"), r"cannot send '.*two\\nlines': BadName"),
        (lambda tmp: a_file(tmp, "col:on"), "cannot send '.*col:on': BadName"),
        (lambda tmp: a_file(tmp, os.fsdecode(b"\xff")), "cannot send '.*: BadName"),
    ],
)
def test_what_is_no_file_is_refused_and_the_session_goes_on(
    world: World,
    party: tuple[Server, Records, Path],
    tmp_path: Path,
    make: Callable[[Path], Path],
    why: str,
) -> None:
    with device_for(world, party[0]) as device:
        with pytest.raises(UserError, match=why) as caught:
            device.send_file(make(tmp_path))
        assert "\n" not in str(caught.value)
        device.send_text("still here")


def test_a_file_that_may_not_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = a_file(tmp_path)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot read .*door.png': Permission denied"):
        open_file(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x" * 65_537, "at most 65,536 bytes, and this 65,537"),
        ("\u20ac" * 21_846, "at most 65,536 bytes"),
        ("\ud800", "half a character"),
    ],
)
def test_a_text_that_is_none_is_refused_and_the_session_goes_on(
    world: World, party: tuple[Server, Records, Path], text: str, why: str
) -> None:
    with device_for(world, party[0]) as device:
        with pytest.raises(UserError, match=why):
            device.send_text(text)
        device.send_text("still here")


# What changes on its way


def shrink(path: Path) -> None:
    os.truncate(path, 70_000)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other content")


def replace_mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        content[-5:] = b"other"
        content.flush()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (shrink, "'door.png': it has become shorter"),
        (grow, "'door.png': it has become longer"),
        (overwrite, "it was changed while it was sent"),
        (replace_mapped, "it was changed while it was sent"),
    ],
)
def test_a_file_that_changes_meanwhile_is_not_signed_and_ends_the_session(
    world: World, tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    """Or the signature would be of half the old content and half the new."""
    path = a_file(tmp_path, content=bytes(3 * 65_536))
    os.utime(path, (1_000_000, 1_000_000))
    with serving(world, tmp_path / "received") as (server, records):
        with device_for(world, server) as device:
            with pytest.raises(LocalError, match=why):
                device.send_file(path, lambda count: change(path))
            with pytest.raises(LocalError, match="there is no session"):
                device.send_text("too late")
        assert isinstance(records.ends()[0], PeerFailed)
    assert not files_in(tmp_path / "received")


@pytest.mark.parametrize("minutes", [-11, 11])
def test_a_device_whose_clock_is_off_learns_it_before_it_sends(
    world: World, tmp_path: Path, minutes: int
) -> None:
    trust = world.trust()
    trust.now = lambda: NOW + timedelta(minutes=minutes)
    with serving(world, tmp_path / "received") as (server, records):
        device = Device(world.device, trust, SERVER, *server.address, timeout_s=10.0)
        with device, pytest.raises(PeerFailed):
            device.send_file(a_file(tmp_path, content=bytes(50 * 65_536)))
        error = records.ends()[0]
        assert isinstance(error, BadManifest)
        assert "10 minutes" in str(error)
        assert not records.of("stored")


@posix_only
def test_a_file_that_is_removed_on_its_way_still_arrives(
    world: World, party: tuple[Server, Records, Path], tmp_path: Path
) -> None:
    path = a_file(tmp_path, "gone.bin", bytes(3 * 65_536))
    with device_for(world, party[0], new_session=partial(Session, rekey_chunks=2)) as device:
        device.send_file(path, lambda count: path.unlink(missing_ok=True))
        assert device.session.chunks == 1, "of the keys that are new since the second chunk"
    assert files_in(party[2])["gone.bin"] == bytes(3 * 65_536)


def test_a_file_that_cannot_be_read_to_its_end_ends_the_session(
    world: World,
    party: tuple[Server, Records, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = None, /) -> bytes:
            raise OSError(5, "Input/output error")

    real = device_module.read_chunk

    def read_chunk(content: BinaryIO) -> bytes:
        return real(Broken() if content.tell() else content)

    monkeypatch.setattr(device_module, "read_chunk", read_chunk)
    with (
        pytest.raises(LocalError, match="cannot be read to its end: Input/output error"),
        device_for(world, party[0]) as device,
    ):
        device.send_file(a_file(tmp_path, content=bytes(100_000)))


@pytest.mark.parametrize(
    "use",
    [
        lambda device, path: device.send_file(path, lambda count: 1 // 0),
        lambda device, path: 1 // 0,
    ],
    ids=["of the progress callback", "of the caller's own"],
)
def test_an_exception_is_told_as_a_failure(
    world: World, tmp_path: Path, use: Callable[[Device, Path], object]
) -> None:
    with serving(world, tmp_path / "received") as (server, records):
        with pytest.raises(ZeroDivisionError), device_for(world, server) as device:
            use(device, a_file(tmp_path))
        assert isinstance(records.ends()[0], PeerFailed)


# Used wrongly


def test_a_device_sends_only_inside_its_block(
    world: World, party: tuple[Server, Records, Path]
) -> None:
    device = device_for(world, party[0])
    with pytest.raises(LocalError, match="there is no session: a Device sends inside its `with`"):
        device.send_text("too early")
    with pytest.raises(LocalError, match="inside its `with`, and not before"):
        device.receive()
    with device:
        with pytest.raises(LocalError, match="one session"), device:
            pytest.fail("entered twice")
        device.send_text("now")
    with pytest.raises(LocalError, match="there is no session"):
        device.send_text("too late")
    with pytest.raises(LocalError, match="make another client"), device:
        pytest.fail("entered again")


def test_a_device_that_found_no_server_can_try_again(world: World, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    device = Device(world.device, world.trust(), SERVER, *address)
    with pytest.raises(NoConnection, match="no server at 127"), device:
        pytest.fail("connected to nobody")
    with serving(world, tmp_path / "received") as (server, _):
        device._address = server.address
        with device:
            device.send_text("there now")


@pytest.mark.parametrize("host", ["a" * 70, "\0"])
def test_no_such_host_is_no_connection(world: World, host: str) -> None:
    with (
        pytest.raises(NoConnection, match="no server at"),
        Device(world.device, world.trust(), SERVER, host, 1),
    ):
        pytest.fail("connected")


def test_no_such_port_is_no_connection(world: World) -> None:
    with (
        pytest.raises(NoConnection, match="no server at"),
        Device(world.device, world.trust(), SERVER, "127.0.0.1", 70_000),
    ):
        pytest.fail("connected")


@pytest.mark.parametrize("error", [OSError("nobody"), UnicodeError(), OverflowError("no port")])
def test_a_server_has_ten_seconds_at_most_to_be_there(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[object] = []

    def connect(*words: object) -> NoReturn:
        asked.extend(words)
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    assert Device(world.device, world.trust(), SERVER).timeout_s == 10.0
    for timeout_s in (3.0, 30.0):
        device = Device(world.device, world.trust(), SERVER, timeout_s=timeout_s)
        with pytest.raises(NoConnection, match=r"no server at 127\.0\.0\.1:9998: no"), device:
            pytest.fail("connected")
    assert asked == [("127.0.0.1", 9998), 3.0, ("127.0.0.1", 9998), 10.0]


def test_a_server_cannot_be_a_device(world: World) -> None:
    with pytest.raises(UserError, match="certificate of server-1 is for a server, and a device"):
        Device(world.server, world.trust(), SERVER)


# How it ends


def test_the_log_has_each_session_and_what_became_of_its_items(
    world: World,
    party: tuple[Server, Records, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def said() -> list[str]:
        records = [one for one in caplog.records if one.name == "device_transfer.device"]
        caplog.clear()
        return [one.getMessage().removeprefix(f"{SERVER}: ") for one in records]

    caplog.set_level(logging.INFO, "device_transfer.device")
    with device_for(world, party[0]) as device:
        device.send_text("x")
        device.send_file(a_file(tmp_path))
    session = device.session.session_id.hex()
    items = ["'text' of 1 byte acknowledged", "'door.png' of 7 bytes acknowledged"]
    assert said() == [f"session {session} begun", *items, "session over, 2 acknowledged"]
    for name in ("text", "door.png"):
        with pytest.raises(EndRequested), device_for(world, party[0]) as device:  # noqa: PT012
            device.channel.request_end(Status.SHUTDOWN)
            device.send_text("x") if name == "text" else device.send_file(tmp_path / name)
        failed, over = said()[1:]
        assert re.fullmatch(rf"'{name}' of \d bytes? not acknowledged: EndRequested\(.*\)", failed)
        assert over == "session over, 0 acknowledged"
    with raw_server(lambda: Session(world.server, world.trust()), closes_at_once) as address:
        device = Device(world.device, world.trust(), SERVER, *address)
        with pytest.raises(ConnectionCut), device:
            pytest.fail("there is a session")
    assert said()[0].startswith("no session: ConnectionCut: ")


@pytest.mark.parametrize("stage", ["idle", "sending", "leaving"])
def test_a_request_to_end_is_told_as_a_failure(world: World, tmp_path: Path, stage: str) -> None:
    path = a_file(tmp_path, content=bytes(5 * 65_536))
    with serving(world, tmp_path / "received") as (server, records):
        with pytest.raises(EndRequested), device_for(world, server) as device:  # noqa: PT012
            if stage == "sending":
                device.send_file(path, lambda count: device.channel.request_end(Status.SHUTDOWN))
            device.channel.request_end(Status.SHUTDOWN)
            if stage == "idle":
                device.send_text("no more")
        assert isinstance(records.ends()[0], PeerFailed)


@pytest.mark.slow
@pytest.mark.parametrize("is_asked", [False, True])
def test_a_server_that_stops_reading_is_given_up(
    world: World, tmp_path: Path, is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time, and sooner on request. In half a frame a FAIL would be taken for a part of it."""
    (path := tmp_path / "large.bin").touch()
    os.truncate(path, 40_000_000)
    go_on = threading.Event()
    left: list[bytes] = []
    sent: list[int] = []

    def play(raw: Raw) -> None:
        raw.answer_handshake()
        raw.until(Kind.FILE)
        go_on.wait(PATIENCE_S)
        left.append(raw.rest())

    def ask_when_stalled() -> None:
        before = -1
        while len(sent) != before:
            before = len(sent)
            go_on.wait(0.15)
        device.channel.request_end(Status.SHUTDOWN)

    leave = Channel.leave

    def leave_when_there_is_room(channel: Channel[Message], status: Status) -> None:
        go_on.set()
        leave(channel, status)

    monkeypatch.setattr(Channel, "leave", leave_when_there_is_room)
    with raw_server(lambda: Session(world.server, world.trust()), play) as address:
        device = Device(world.device, world.trust(), SERVER, *address, timeout_s=PATIENCE_S)
        asker = threading.Thread(target=ask_when_stalled)
        began = time.monotonic()
        with pytest.raises(EndRequested if is_asked else DeadlineExpired):  # noqa: PT012
            with device:
                if is_asked:
                    asker.start()
                else:
                    device.channel._frame_timeout_s = 0.2
                device.send_file(path, sent.append)
        assert time.monotonic() - began < PATIENCE_S / 2
        if is_asked:
            asker.join()
    assert {frame[4:10] for frame in frames_in(left[0])} == {b"<CHNK>"}


def frames_in(stream: bytes) -> Iterator[bytes]:
    """Return whole frames, and the torn one at the end."""
    while len(stream) >= 10:
        size = 4 + int.from_bytes(stream[:4], "big")
        yield stream[:size]
        stream = stream[size:]


def test_a_wrong_acknowledgement_ends_the_session(world: World) -> None:
    heard: list[Exception] = []

    def play(raw: Raw) -> None:
        raw.answer_handshake()
        raw.until(Kind.MANIFEST)
        raw.send(Kind.ACK, bytes(32))
        with pytest.raises(PeerFailed) as caught:
            raw.receive()
        heard.append(caught.value)

    with raw_server(lambda: Session(world.server, world.trust()), play) as address:
        with Device(world.device, world.trust(), SERVER, *address) as device:
            with pytest.raises(BadPayload, match="an ACK of"):
                device.send_text("hello")
            assert device.session.state is State.ENDED
    assert heard


def closes_at_once(raw: Raw) -> None:
    raw.socket.recv(1)


def goes_while_receiving(raw: Raw) -> None:
    raw.answer_handshake()
    raw.until(Kind.CHUNK)


def says_nothing(raw: Raw) -> None:
    while raw.socket.recv(65_536):
        pass


def never_acknowledges(raw: Raw) -> None:
    raw.answer_handshake()
    raw.until(Kind.MANIFEST)
    says_nothing(raw)


def fails(raw: Raw, after: Kind = Kind.FILE, then: Callable[[], object] = lambda: None) -> None:
    raw.answer_handshake()
    raw.until(after)
    raw.send(Kind.FAIL)
    then()
    says_nothing(raw)


@pytest.mark.parametrize(
    ("after", "possible"), [(Kind.FILE, ([], [65_536])), (Kind.CHUNK, ([65_536],))]
)
def test_a_failure_is_heard_before_the_next_chunk_is_sent(
    world: World, tmp_path: Path, after: Kind, possible: tuple[list[int], ...]
) -> None:
    sent: list[int] = []
    has_failed = threading.Event()

    def play(raw: Raw) -> None:
        fails(raw, after, has_failed.set)

    def progress(count: int) -> None:
        sent.append(count)
        assert has_failed.wait(PATIENCE_S)

    with raw_server(lambda: Session(world.server, world.trust()), play) as address:
        device = Device(world.device, world.trust(), SERVER, *address)
        with pytest.raises(PeerFailed), device:
            device.send_file(a_file(tmp_path, content=bytes(10 * 65_536)), progress)
    assert sent in possible


def test_a_digest_in_the_last_ack_is_refused(world: World) -> None:
    def play(raw: Raw) -> None:
        raw.answer_handshake()
        raw.receive()
        raw.send(Kind.ACK, bytes(32))
        raw.rest()

    with raw_server(lambda: Session(world.server, world.trust()), play) as address:
        device = Device(world.device, world.trust(), SERVER, *address)
        with pytest.raises(BadPayload), device:
            pass


def talks_first(raw: Raw) -> None:
    raw.until(Kind.HELLO)
    raw.socket.sendall(b"\0\0\0\x5f<SECX>" + bytes(89))
    says_nothing(raw)


@pytest.mark.parametrize(
    ("play", "error", "sentence"),
    [
        (
            closes_at_once,
            ConnectionCut,
            "closed the connection in the handshake, and never says why",
        ),
        (goes_while_receiving, ConnectionCut, "connection lost; .* may not have arrived"),
        pytest.param(says_nothing, DeadlineExpired, "no answer in time", marks=pytest.mark.slow),
        (never_acknowledges, DeadlineExpired, "no answer in time; .* may not have arrived"),
        (fails, PeerFailed, "the server ended the session; only its log says why"),
        (talks_first, UnexpectedKind, "session ended: UnexpectedKind"),
    ],
)
def test_a_server_that_fails_is_noticed_and_said(
    world: World,
    tmp_path: Path,
    play: Callable[[Raw], None],
    error: type[ProtocolError],
    sentence: str,
) -> None:
    (path := tmp_path / "large.bin").touch()
    os.truncate(path, 10_000_000 if play is not never_acknowledges else 10)
    with raw_server(lambda: Session(world.server, world.trust()), play) as address:
        device = Device(
            world.device,
            world.trust(),
            SERVER,
            *address,
            timeout_s=0.2 if play is says_nothing else PATIENCE_S,
        )
        with pytest.raises(error) as caught, device:  # noqa: PT012
            if play is never_acknowledges:
                device.timeout_s = 0.2
            device.send_file(path)
    assert re.search(sentence, explain(caught.value, device.session))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            CertificateExpired("2026-01-01", "2026-01-31"),
            "the server's certificate is refused: Cert",
        ),
        (UntrustedCertificate(), "the server's certificate is refused: UntrustedCertificate"),
        (WrongRole("server", "device"), "is refused: WrongRole: expected server, got device"),
        (
            CertificateRevoked(None, "home"),
            "the server's certificate is refused: CertificateRevoked",
        ),
        (
            WrongPeer("home", "other"),
            "another server is there: WrongPeer: expected home, got other",
        ),
        (RevocationListStale(), "no certificate is accepted without a good revocation list: Revo"),
        (BadTag(), "session ended: BadTag"),
    ],
)
def test_each_end_has_its_sentence(world: World, error: ProtocolError, sentence: str) -> None:
    said = explain(error, world.session(world.device))
    assert sentence in said
    assert "\n" not in said


def test_it_is_heard_with_many_descriptors(world: World, tmp_path: Path) -> None:
    """select() takes no descriptor above 1,023."""
    files: list[int] = []
    try:
        while not files or files[-1] < 1_100:
            files.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for file in files:
            os.close(file)
        pytest.skip("the system does not give that many descriptors")
    try:
        with (
            serving(world, tmp_path / "received") as (server, _),
            device_for(world, server) as device,
        ):
            device.send_text("hello")
    finally:
        for file in files:
            os.close(file)


# The program, in this process


@pytest.fixture
def own(world: World, tmp_path: Path) -> Iterator[tuple[Server, Records]]:
    """A server that nobody else has talked to."""
    with serving(world, tmp_path / "received") as (server, records):
        yield server, records


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, world: World, kept_signals: None) -> Callable[..., int]:
    """Run `main` as the device of this world; port 1 is nobody's."""
    monkeypatch.setattr(
        device_module, "load_party", lambda options, role: (world.device, world.trust())
    )
    monkeypatch.setattr(device_module, "start_log", lambda *_: None)

    def main(*arguments: object, port: int = 1) -> int:
        monkeypatch.setattr(
            sys, "argv", ["device.py", "--identity", "x", "--port", str(port), *map(str, arguments)]
        )
        return device_module.main()

    return main


def test_a_batch_that_stops_lists_what_was_not_sent(
    run: Callable[..., int],
    tmp_path: Path,
    own: tuple[Server, Records],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [a_file(tmp_path, name) for name in ("one.png", "two.png", "three.png", "four.png")]

    class Interrupted(Pace):
        def __call__(self, count: int) -> None:
            if self._what == "two.png":
                signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module, "Pace", Interrupted)
        words = ("--to", SERVER, "--text", "hello", *files)
        assert run(*words, port=own[0].address[1]) == 130
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "'one.png': 7 bytes acknowledged"
    assert err.splitlines() == [
        "not acknowledged: 'two.png'",
        "not sent: 'three.png'",
        "not sent: 'four.png'",
        "device: stopped; what was not acknowledged may not have arrived",
    ]


def test_the_program_says_what_has_arrived(
    run: Callable[..., int],
    tmp_path: Path,
    own: tuple[Server, Records],
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = a_file(tmp_path, "n" * 200 + ".png")
    assert (
        run(
            "--to",
            SERVER,
            "--text",
            "",
            "--text",
            "hi\n",
            a_file(tmp_path),
            long,
            port=own[0].address[1],
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"session with {SERVER} begun",
        "text of 0 characters: acknowledged",
        "text of 3 characters: acknowledged",
        "'door.png': 7 bytes acknowledged",
        f"'{'n' * 33}..png': 7 bytes acknowledged",
        "done: 4 sent and acknowledged",
    ]
    assert not err
    stored: list[Any] = [record.detail for record in own[1].of("stored")]
    assert [item.text for item in stored[:2]] == ["", "hi\n"]
    assert len(stored) == 4


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--to", SERVER], "there is nothing to send"),
        (["--text", "x"], "required: --to"),
        (["--to", "", "--text", "x"], "'' names no server"),
        (["--to", "..", "--text", "x"], "'..' names no server"),
        (["--to", f"{SERVER}\n", "--text", "x"], r"'server-1\\n' names no server"),
        (["--to", SERVER, "missing.png"], "cannot read 'missing.png'"),
        (["--to", SERVER, "--text", "x" * 65_537], "at most 65,536 bytes"),
        (["--to", SERVER, "--text", "ok", "--text", "\udc80"], "half a character"),
        (["--to", SERVER, "--timeout", "0", "--text", "x"], "--timeout: '0' is not"),
        (["--to", SERVER, "--port", "70000", "--text", "x"], "--port: '70000' is not"),
    ],
)
def test_misuse_is_found_before_anything_is_sent(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.setattr(Device, "__enter__", lambda device: pytest.fail("connected"))
    with pytest.raises(UserError, match=why):
        run(*arguments)


def test_the_wrong_server_is_named(
    run: Callable[..., int], own: tuple[Server, Records], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--to", "server-2", "--text", "x", port=own[0].address[1]) == 1
    assert capsys.readouterr().err == (
        f"device: another server is there: WrongPeer: expected server-2, got {SERVER}\n"
    )


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConnectionCut(False), 3), (DeadlineExpired(), 3), (PeerFailed(), 1), (BadPayload(), 1)],
)
def test_the_exit_code_tells_a_lost_connection_from_a_session_that_was_ended(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, error: ProtocolError, code: int
) -> None:
    monkeypatch.setattr(device_module, "send_all", raising(error))
    assert run("--to", SERVER, "--text", "x") == code


def test_a_local_error_is_reported_as_an_error_of_the_user(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = LocalError("it has become longer")
    monkeypatch.setattr(device_module, "send_all", raising(error))
    with pytest.raises(UserError, match="it has become longer"):
        run("--to", SERVER, "--text", "x")


def test_ctrl_c_ends_the_program_with_130(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own: tuple[Server, Records],
) -> None:
    def pace(*_: object) -> Callable[[int], None]:
        return lambda count: signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(device_module, "Pace", pace)
    path = a_file(tmp_path, "c.bin", bytes(300_000))
    assert run("--to", SERVER, path, port=own[0].address[1]) == 130
    assert capsys.readouterr().err == (
        "not acknowledged: 'c.bin'\n"
        "device: stopped; what was not acknowledged may not have arrived\n"
    )
    assert isinstance(own[1].ends()[0], PeerFailed)


def test_progress_is_said_only_of_what_takes_long() -> None:
    moments = iter([0.0, 1.9, 2.0, 2.0, 3.0, 4.5, 4.5])
    said: list[str] = []
    pace = Pace("x", 4_000_000, said.append, lambda: next(moments))
    for _ in range(4):
        pace(1_000_000)
    assert said == ["x: 2 of 4 MB", "x: 4 of 4 MB"]
