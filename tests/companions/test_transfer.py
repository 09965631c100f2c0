"""What is sent: names, announcements, manifests, and what is refused [D 8]."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import PrivateKey, sign
from companions.canonical import canonical
from companions.device_transfer import protocol
from companions.device_transfer.certificates import Certificate, Role, issue
from companions.device_transfer.transfer import (
    CHUNK_BYTES,
    CONTEXT,
    MAX_NAME_BYTES,
    Announcement,
    BadManifest,
    BadManifestSignature,
    BadName,
    Incoming,
    ItemKind,
    Manifest,
    Outgoing,
    TooLarge,
    check_name,
    parse_announcement,
    parse_manifest,
    safe_name,
    sign_manifest,
    split_signed,
)
from protocol_fsm import BadPayload, LocalError

NOW = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
AT = b'"time":"2026-01-31T12:00:00Z"}'  # which ends an announcement
SESSION = bytes(range(16))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
NAMES = st.text(st.characters(), max_size=40) | st.text("./\\: CONcom1-_<\u202e\u0130", max_size=8)
PLAIN = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\:"),
    min_size=1,
    max_size=60,
).filter(lambda name: name not in (".", ".."))


@pytest.fixture(scope="module")
def camera(keys: list[PrivateKey]) -> Certificate:
    return issue(
        keys[0],
        issuer="authority",
        common_name="camera",
        role=Role.DEVICE,
        public_key=keys[1].public_key(),
        not_before=NOW,
        serial="0" * 16,
        not_after=NOW + timedelta(days=1),
    )


Receive = Callable[..., Incoming]


@pytest.fixture(scope="module")
def receive(camera: Certificate) -> Receive:
    """Return what makes an Incoming of kind, name, size, and is given chunks."""

    def made(
        kind: ItemKind,
        name: str,
        size: int,
        chunks: Iterable[bytes] = (),
        *,
        limit: int = 9_999,
        now: datetime = NOW,
        said: datetime | None = None,
        weak: type[Incoming] = Incoming,
    ) -> Incoming:
        incoming = weak(
            Announcement(kind, name, size, said or NOW),
            limit_bytes=limit,
            session=SESSION,
            number=3,
            sender=camera,
            recipient="server",
            now=lambda: now,
        )
        for chunk in chunks:
            incoming.take(chunk)
        return incoming

    return made


def outgoing(kind: ItemKind, name: str, data: bytes, now: datetime = NOW) -> Manifest:
    out = Outgoing(Announcement(kind, name, len(data), NOW))
    for at in range(0, len(data), CHUNK_BYTES):
        out.take(data[at : at + CHUNK_BYTES])
    return out.manifest(SESSION, 3, "camera", "server", now)


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "..\\x",
        "C:x",
        "a:stream",
        "a\0b",
        "a\nb",
        "\x7f",
        "\x85",
        "\ud800",
        "x" * 256,
        "é" * 128,
    ],
)
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(BadName) as refused:
        check_name(name)
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()
    with pytest.raises(BadName):
        safe_name(name)


@pytest.mark.parametrize(
    ("name", "mended"),
    [
        ("a.png", "a.png"),
        ("Übung 1 (2).tar.gz", "Übung 1 (2).tar.gz"),
        ("x" * 255, "x" * 255),
        (".bashrc", "_bashrc"),
        ("...", "___"),
        (" ", "_"),
        ("a. .", "a___"),
        ("-rf", "_rf"),
        ("a-b", "a-b"),
        ('<>"|?*', "______"),
        ("gnp\u202e.exe", "gnp_.exe"),
        ("a\u200bb", "a_b"),
        ("a\u2028b", "a_b"),
        ("CON", "_CON"),
        ("con.txt", "_con.txt"),
        ("nul .a.b", "_nul .a.b"),
        ("COM1.png", "_COM1.png"),
        ("lpt\u00b9", "_lpt\u00b9"),
        ("COM", "COM"),
        ("COM10", "COM10"),
        ("console", "console"),
        ("aux.", "_aux_"),
        ("CON." + "x" * 251, "_CON." + "x" * 250),
        ("con." + "é" * 125, "_con." + "é" * 125),
        ("con.a" + "é" * 125, "_con.a" + "é" * 124),
    ],
)
def test_an_awkward_name_is_mended(name: str, mended: str) -> None:
    assert safe_name(name) == mended


@pytest.mark.slow
@given(PLAIN)
def test_a_mended_name_is_fit_for_every_system(name: str) -> None:
    mended = safe_name(name)
    check_name(mended)
    assert safe_name(mended) == mended
    assert len(mended.encode()) <= MAX_NAME_BYTES
    assert not mended.startswith((".", " ", "-"))
    assert not mended.endswith((".", " "))
    assert not set(mended) & set('<>"|?*/\\:\0\u202e\u2066\u200f')


@given(NAMES)
def test_every_name_is_refused_or_mended(name: str) -> None:
    try:
        mended = safe_name(name)
    except BadName:
        return
    assert mended not in ("", ".", "..")
    assert not set(mended) & set("/\\:\0\n")


# Announcements and manifests ----------------------------------------------------------------------


@given(PLAIN, st.integers(0, 2**70))
def test_what_is_announced_is_what_is_read(name: str, size: int) -> None:
    for announced in (
        Announcement("file", name, size, NOW),
        Announcement("text", "", size, NOW),
    ):
        assert parse_announcement(announced.kind, announced.encode()) == announced


def test_an_announcement_has_these_bytes() -> None:
    file = Announcement("file", "é.png", 7, NOW)
    assert file.encode() == b'{"name":"\\u00e9.png","size":7,' + AT
    assert Announcement("text", "", 0, NOW).encode() == b'{"size":0,' + AT


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"size":-1,' + AT,
        b'{"size":1.0,' + AT,
        b'{"size":true,' + AT,
        b'{"size":"1",' + AT,
        b'{"size": 1,' + AT,
        b'{"name":"a","size":1,' + AT,
        b'{"size":1}',
        b'{"size":1,"time":1}',
        b'{"size":1,"time":"2026-01-31T12:00:00"}',
        b'{"size":1,"time":"2026-02-31T12:00:00Z"}',
        b"[1]",
        b"\xff",
        b'{"size":1,' + AT + b"\n",
    ],
)
def test_a_malformed_announcement_is_refused(body: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_announcement("text", body)


def test_a_file_without_a_name_is_refused() -> None:
    with pytest.raises(BadPayload):
        parse_announcement("file", b'{"size":1,' + AT)


def test_a_manifest_has_these_bytes() -> None:
    said = outgoing("file", "a.png", b"abc", NOW + timedelta(microseconds=5))
    assert said == parse_manifest(said.encode())  # nothing is lost on the way
    assert said.encode() == (
        b'{"digest":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",'
        b'"kind":"file","name":"a.png","number":3,"recipient":"server","sender":"camera",'
        b'"session":"000102030405060708090a0b0c0d0e0f","size":3,"time":"2026-01-31T12:00:00Z"}'
    )


@given(PLAIN, st.integers(0), st.integers(0), st.datetimes(), st.binary(min_size=16, max_size=16))
def test_what_a_manifest_says_is_what_is_read(
    name: str, size: int, number: int, time: datetime, session: bytes
) -> None:
    said = Manifest(
        "file",
        name,
        size,
        hashlib.sha256(session).hexdigest(),
        time.replace(microsecond=0, tzinfo=timezone.utc),
        session.hex(),
        number,
        "a",
        "b",
    )
    assert parse_manifest(said.encode()) == said


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("kind", "video"),
        ("kind", "\n"),
        ("digest", "0" * 63),
        ("digest", "A" * 64),
        ("session", ""),
        ("session", "0" * 32 + "\n"),
        ("size", -1),
        ("size", True),
        ("number", -1),
        ("number", "0"),
        ("time", "now"),
        ("time", "2026-02-30T12:00:00Z"),
        ("name", None),
        ("sender", 1),
        ("new", ""),
    ],
)
def test_a_malformed_manifest_is_refused(member: str, value: object) -> None:
    members = {**asdict(outgoing("text", "", b"x")), "time": "2026-01-31T12:00:00Z", member: value}
    with pytest.raises(BadPayload) as refused:
        parse_manifest(canonical(members))
    assert str(refused.value).isprintable()


def test_a_refusal_names_the_section_that_says_what_is_canonical() -> None:
    with pytest.raises(BadPayload, match=r"canonical object \[D 7\], got not JSON in ASCII"):
        parse_manifest(b"")


@pytest.mark.parametrize("body", [b"", bytes(255), bytes(256)])
def test_a_manifest_without_its_signature_is_refused(body: bytes) -> None:
    with pytest.raises(BadPayload):
        split_signed(body)


# Sending ------------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_sent_is_not_signed() -> None:
    out = Outgoing(Announcement("file", "a", 3, NOW))
    out.take(b"ab")
    with pytest.raises(LocalError):
        out.manifest(SESSION, 0, "camera", "server", NOW)
    with pytest.raises(LocalError):
        out.take(b"cd")


def test_a_device_sends_no_path() -> None:
    with pytest.raises(BadName):
        Outgoing(Announcement("file", "../x", 3, NOW))


# Receiving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("file", "a.png", PNG),
        ("file", "empty", b""),
        ("text", "", "aé€😀\0".encode()),
        ("text", "", b""),
    ],
)
def test_what_was_signed_is_accepted(
    receive: Receive, keys: list[PrivateKey], kind: ItemKind, name: str, data: bytes
) -> None:
    said = outgoing(kind, name, data)
    bytewise = [data[at : at + 1] for at in range(len(data))]
    incoming = receive(kind, name, len(data), bytewise)
    assert incoming.finish(sign_manifest(keys[1], said)) == said
    assert incoming.digest.hex() == said.digest
    assert incoming.text == (data.decode() if kind == "text" else "")


def test_more_than_announced_is_refused_at_once(receive: Receive) -> None:
    incoming = receive("file", "a", 3, [b"abc"])
    digest = incoming.digest
    with pytest.raises(TooLarge):
        incoming.take(b"d")
    assert incoming.digest == digest


@pytest.mark.parametrize(
    ("kind", "size", "limit"),
    [
        ("file", 11, 10),
        ("text", 11, 10),
        ("text", 65_537, 1 << 30),
        ("file", 1 << 99, 9),
    ],
)
def test_what_is_too_large_is_refused_before_it_comes(
    receive: Receive, kind: ItemKind, size: int, limit: int
) -> None:
    with pytest.raises(TooLarge):
        receive(kind, "" if kind == "text" else "a", size, limit=limit)


def test_the_limit_itself_may_come(receive: Receive) -> None:
    receive("file", "a", 10, limit=10)
    receive("text", "", 65_536, limit=1 << 30)


def test_a_name_that_is_a_path_is_refused_before_it_comes(receive: Receive) -> None:
    with pytest.raises(BadName):
        receive("file", "../x", 1)


def test_less_than_announced_is_refused_even_if_signed(
    receive: Receive, keys: list[PrivateKey]
) -> None:
    with pytest.raises(BadManifest, match="size"):
        receive("file", "a", 4, [b"abc"]).finish(
            sign_manifest(keys[1], outgoing("file", "a", b"abc"))
        )


@pytest.mark.parametrize("data", [b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_text_that_is_none_is_refused(
    receive: Receive, keys: list[PrivateKey], data: bytes
) -> None:
    signed = sign_manifest(keys[1], outgoing("text", "", data))
    with pytest.raises(BadManifest, match="UTF-8"):
        receive("text", "", len(data), [data]).finish(signed)


OTHERS: dict[str, st.SearchStrategy[object]] = {
    "kind": st.just("text"),
    "name": PLAIN,
    "size": st.integers(0),
    "number": st.integers(0),
    "digest": st.binary(min_size=32, max_size=32).map(bytes.hex),
    "sender": PLAIN,
    "session": st.binary(min_size=16, max_size=16).map(bytes.hex),
    "recipient": PLAIN,
    "time": st.timedeltas(timedelta(seconds=601))
    .filter(lambda off: off < timedelta(days=9999))
    .map(lambda off: NOW + off)
    | st.timedeltas(timedelta(seconds=601), timedelta(days=9999)).map(lambda off: NOW - off),
}


@pytest.mark.slow
@pytest.mark.parametrize("member", OTHERS)
def test_each_member_that_says_something_else_is_refused(
    receive: Receive, keys: list[PrivateKey], member: str
) -> None:
    true = outgoing("file", "a.png", PNG)

    @given(OTHERS[member].filter(lambda value: value != asdict(true)[member]))
    def refused(value: Any) -> None:
        said = replace(true, **{member: value})
        incoming = receive("file", "a.png", len(PNG), [PNG], weak=Unsigned)
        with pytest.raises(BadManifest) as error:
            incoming.finish(bytes(256) + said.encode())
        assert str(error.value.expected).split()[0] == member

    refused()
    with pytest.raises(BadManifestSignature):  # and it is what the signature is about
        receive("file", "a.png", len(PNG), [PNG]).finish(
            split_signed(sign_manifest(keys[1], true))[0]
            + replace(true, **{member: example_of(member)}).encode()
        )


def example_of(member: str) -> Any:
    return {
        "kind": "text",
        "size": 1,
        "number": 0,
        "time": NOW + timedelta(seconds=1),
        "digest": "0" * 64,
        "session": "0" * 32,
    }.get(member, "other")


class Unsigned(Incoming):
    def _check_signature(self, signature: bytes, encoded: bytes) -> None:
        pass


def test_a_changed_byte_is_refused(receive: Receive, keys: list[PrivateKey]) -> None:
    signed = sign_manifest(keys[1], outgoing("file", "a.png", PNG))
    changed = PNG[:-1] + b"\1"
    with pytest.raises(BadManifest, match="digest"):
        receive("file", "a.png", len(PNG), [changed]).finish(signed)


@pytest.mark.parametrize("fault", ["other key", "other context", "flipped", "empty"])
def test_a_forged_manifest_is_refused_before_it_is_read(
    receive: Receive, keys: list[PrivateKey], fault: str
) -> None:
    said = outgoing("file", "a.png", PNG)
    signature, encoded = split_signed(sign_manifest(keys[1], said))
    signature = {
        "other key": sign(keys[2], CONTEXT, encoded),
        "empty": bytes(256),
        "other context": sign(keys[1], "device_transfer v1 certificate", encoded),
        "flipped": bytes([signature[0] ^ 1]) + signature[1:],
    }[fault]
    for body in (encoded, b"not even a manifest"):
        with pytest.raises(BadManifestSignature):
            receive("file", "a.png", len(PNG), [PNG]).finish(signature + body)


@pytest.mark.parametrize("side", [1, -1])
def test_the_clocks_may_differ_by_ten_minutes(
    receive: Receive, keys: list[PrivateKey], side: int
) -> None:
    signed = sign_manifest(keys[1], outgoing("file", "a", b""))
    ten_minutes = timedelta(minutes=10)
    second = timedelta(seconds=1)
    receive("file", "a", 0, now=NOW + side * ten_minutes).finish(signed)
    with pytest.raises(BadManifest, match="time"):
        receive("file", "a", 0, now=NOW + side * (ten_minutes + second)).finish(signed)


@pytest.mark.parametrize(
    ("seconds", "is_certified"), [(-1, False), (0, True), (60, True), (61, False)]
)
def test_a_manifest_dated_outside_its_certificate_is_refused(
    receive: Receive, camera: Certificate, keys: list[PrivateKey], seconds: int, is_certified: bool
) -> None:
    """Even if our own clock is of another opinion: a judge will ask the journal, not us."""
    then = NOW + timedelta(seconds=seconds)
    signed = sign_manifest(keys[1], outgoing("file", "a", b"", now=then))
    incoming = receive("file", "a", 0, now=NOW)
    incoming.sender = replace(camera, not_before=NOW, not_after=NOW + timedelta(seconds=60))
    with contextlib.nullcontext() if is_certified else pytest.raises(BadManifest, match="time"):
        incoming.finish(signed)


@pytest.mark.parametrize(("seconds", "is_certified"), [(60.9, True), (61, False)])
def test_who_dates_back_is_too_late_all_the_same(
    receive: Receive,
    camera: Certificate,
    keys: list[PrivateKey],
    seconds: float,
    is_certified: bool,
) -> None:
    incoming = receive("file", "a", 0, now=NOW + timedelta(seconds=seconds))
    incoming.sender = replace(camera, not_after=NOW + timedelta(seconds=60))
    signed = sign_manifest(keys[1], outgoing("file", "a", b"", now=NOW + timedelta(seconds=60)))
    with contextlib.nullcontext() if is_certified else pytest.raises(BadManifest, match="time"):
        incoming.finish(signed)


@pytest.mark.parametrize(
    "method",
    [
        "_check_name",
        "_check_limit",
        "_check_size",
        "_check_text",
        "_check_signature",
        "_check_manifest",
        "_check_time",
    ],
)
def test_each_check_stands_alone_and_can_be_left_out(
    receive: Receive, keys: list[PrivateKey], method: str
) -> None:
    """For teaching: without this one method, exactly what it refuses goes through."""
    weak = type("Weak", (Incoming,), {method: lambda *given, **named: None})
    kind: ItemKind = "text" if method == "_check_text" else "file"
    name = {"_check_name": "../x", "_check_text": ""}.get(method, "a")
    said = outgoing(kind, "b", b"\xff")
    said = replace(said, name="b" if method == "_check_manifest" else name)
    signed = sign_manifest(keys[2 if method == "_check_signature" else 1], said)
    late = NOW + timedelta(hours=method == "_check_time")
    limit = 0 if method == "_check_limit" else 9
    with pytest.raises((BadName, TooLarge, BadManifest, BadManifestSignature)):
        send(receive(kind, name, 1, limit=limit, now=late), signed, method)
    if method == "_check_size":  # which only keeps the disk from filling: the manifest is next
        receive(kind, name, 1, [b"\xff", b"\xff"], weak=weak)
    else:
        incoming = receive(kind, name, 1, limit=limit, now=late, weak=weak)
        assert send(incoming, signed, method) == said


def send(incoming: Incoming, signed: bytes, method: str) -> Manifest:
    incoming.take(b"\xff")
    if method == "_check_size":
        incoming.take(b"\xff")
    return incoming.finish(signed)


def test_the_protocol_has_the_same_chunks() -> None:
    assert protocol.CHUNK_BYTES == CHUNK_BYTES
