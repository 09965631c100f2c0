"""A text or a file on its way, and whether it is what was signed [D 8].

Chunks and a manifest in, a verdict out: there is no file, socket or clock here. A name that is a
path is refused, never repaired. Chunks are counted and hashed as they pass, so that memory does not
grow with a file; only a text is kept. An Incoming that finishes without an error was signed so.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal

from companions.asymmetric import SIGNATURE_BYTES, PrivateKey, is_signed, sign
from companions.canonical import canonical, parse_canonical
from companions.device_transfer.certificates import Certificate, parse_timestamp, timestamp
from protocol_fsm import BadPayload, LocalError, ProtocolError

CHUNK_BYTES = 65_536
MAX_TEXT_BYTES = 65_536
MAX_NAME_BYTES = 255  # in UTF-8: what usual file systems hold
CLOCK_SKEW = timedelta(minutes=10)  # at most, between the sender's clock and ours
CONTEXT = "device_transfer v1 manifest"

ItemKind = Literal["text", "file"]

# Errors -------------------------------------------------------------------------------------------


class BadName(ProtocolError):
    """Not the plain name of a file: a path, for example."""


class TooLarge(ProtocolError):
    """More than the receiver takes, or more than the sender announced."""


class BadManifest(ProtocolError):
    """What the sender says of an item does not describe what came, or not when."""


class BadManifestSignature(ProtocolError):
    """A manifest that the owner of the sender's certificate has not signed."""


# Names --------------------------------------------------------------------------------------------

NOT_IN_NAMES = frozenset("/\\:")  # they separate folders, drives and streams on some system
AWKWARD = frozenset('<>"|?*')  # Windows has no files with these
AWKWARD_CATEGORIES = frozenset({"Cf", "Zl", "Zp"})  # they turn or break the line that shows them
DEVICES = re.compile(r"(?:CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9]) *(?:\..*)?")


def check_name(name: str) -> None:
    """Raise BadName unless this is the name of a file: 1 to 255 bytes in UTF-8, and no path."""
    if name in ("", ".", "..") or any(map(_is_forbidden, name)):
        raise BadName("the plain name of a file", ascii(name[:MAX_NAME_BYTES]))
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        raise BadName(f"a name of at most {MAX_NAME_BYTES} bytes", len(name.encode("utf-8")))


def _is_forbidden(letter: str) -> bool:
    """Return whether no name may have this: a separator, a control, or half a character."""
    return letter in NOT_IN_NAMES or unicodedata.category(letter) in ("Cc", "Cs")


def safe_name(name: str) -> str:
    """Return a name (1 to 255 bytes) that every system takes, and that turns no line around.

    Each awkward character becomes "_"; other names are returned as they are. Raises BadName.
    """
    check_name(name)
    mended = "".join("_" if _is_awkward(letter) else letter for letter in name)
    if DEVICES.fullmatch(unicodedata.normalize("NFKC", mended).upper()):
        mended = ("_" + mended).encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    return re.sub(r"^[. -]+|[. ]+$", lambda found: "_" * len(found[0]), mended)


def _is_awkward(letter: str) -> bool:
    return letter in AWKWARD or unicodedata.category(letter) in AWKWARD_CATEGORIES


# What the sender says of it: before, and after ----------------------------------------------------


@dataclass(frozen=True)
class Announcement:
    """The content of a TEXT or FILE: `size` in bytes of the chunks to come, the name of a file.

    `time` is the sender's (UTC), so that one whose clock is wrong learns it before it sends.
    """

    kind: ItemKind
    name: str
    size: int
    time: datetime

    def encode(self) -> bytes:
        named = {"name": self.name} if self.kind == "file" else {}
        return canonical({**named, "size": self.size, "time": timestamp(self.time)})


def parse_announcement(kind: ItemKind, body: bytes) -> Announcement:
    """Return the content of a TEXT or FILE, with its name unchecked. Raises BadPayload."""
    named = {"name": str} if kind == "file" else {}
    members = _parse(body, {**named, "size": int, "time": str})
    return Announcement(
        kind, str(members.get("name", "")), _count(members, "size"), _time(members, "time")
    )


@dataclass(frozen=True)
class Manifest:
    """The signed statement: `digest` and `session` in hex, `time` in whole seconds (UTC)."""

    kind: ItemKind
    name: str
    size: int
    digest: str
    time: datetime
    session: str
    number: int
    sender: str
    recipient: str

    def encode(self) -> bytes:
        return canonical({**asdict(self), "time": timestamp(self.time)})


TYPES: dict[str, type] = {
    "kind": str,
    "name": str,
    "size": int,
    "digest": str,
    "time": str,
    "session": str,
    "number": int,
    "sender": str,
    "recipient": str,
}


def parse_manifest(encoded: bytes) -> Manifest:
    """Return what a manifest claims, which Incoming has to check. Raises BadPayload."""
    members = _parse(encoded, TYPES)
    text = {name: str(value) for name, value in members.items()}
    if text["kind"] not in ("text", "file"):
        raise BadPayload("kind text or file", ascii(text["kind"][:40]))
    for member, digits in (("digest", 64), ("session", 32)):
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text[member]):
            raise BadPayload(f"{member} in {digits} hex digits", ascii(text[member][:80]))
    return Manifest(
        "text" if text["kind"] == "text" else "file",
        text["name"],
        _count(members, "size"),
        text["digest"],
        _time(members, "time"),
        text["session"],
        _count(members, "number"),
        text["sender"],
        text["recipient"],
    )


def _parse(data: bytes, types: dict[str, type]) -> dict[str, object]:
    try:
        return parse_canonical(data, types)
    except ValueError as error:
        raise BadPayload("a canonical object [D 7]", str(error)) from None


def _count(members: dict[str, object], name: str) -> int:
    value = members[name]
    if not isinstance(value, int) or value < 0:
        raise BadPayload(f"{name} of 0 or more", value)
    return value


def _time(members: dict[str, object], name: str) -> datetime:
    try:
        return parse_timestamp(str(members[name]))
    except ValueError:
        raise BadPayload("a time in UTC", ascii(str(members[name])[:40])) from None


def sign_manifest(key: PrivateKey, manifest: Manifest) -> bytes:
    """Return the body of a MANIFEST: signature (256 bytes), then the encoded manifest."""
    encoded = manifest.encode()
    return sign(key, CONTEXT, encoded) + encoded


def split_signed(body: bytes) -> tuple[bytes, bytes]:
    """Return signature (256 bytes) and encoded manifest. Raises BadPayload."""
    if len(body) <= SIGNATURE_BYTES:
        raise BadPayload(f"a signature of {SIGNATURE_BYTES} bytes, and a manifest", len(body))
    return body[:SIGNATURE_BYTES], body[SIGNATURE_BYTES:]


# On its way ---------------------------------------------------------------------------------------


class Outgoing:
    """A text or file that the device counts and hashes while it sends. Raises BadName."""

    def __init__(self, announcement: Announcement) -> None:
        if announcement.kind == "file":
            check_name(announcement.name)
        self.announcement = announcement
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the chunks so far; at the end, what the ACK must say."""
        return self._hash.digest()

    def take(self, chunk: bytes) -> None:
        """Count and hash 1 to 65,536 bytes. Raises LocalError if the file has grown meanwhile."""
        self.size += len(chunk)
        if self.size > self.announcement.size:
            raise LocalError("it has become longer while it was sent")
        self._hash.update(chunk)

    def manifest(
        self, session: bytes, number: int, sender: str, recipient: str, now: datetime
    ) -> Manifest:
        """Return the manifest to sign. Raises LocalError if the file has shrunk meanwhile."""
        if self.size != self.announcement.size:
            raise LocalError("it has become shorter while it was sent")
        return Manifest(
            self.announcement.kind,
            self.announcement.name,
            self.size,
            self.digest.hex(),
            now.replace(microsecond=0),
            session.hex(),
            number,
            sender,
            recipient,
        )


class Incoming:
    """A text or file that the server counts and hashes, and then compares with the manifest.

    `session` is the session id (16 bytes), `number` how many items came before in it, `recipient`
    our own common name. Raises BadName, TooLarge, and BadManifest for a wrong time, before the
    first chunk.
    """

    def __init__(
        self,
        announcement: Announcement,
        *,
        limit_bytes: int,
        session: bytes,
        number: int,
        sender: Certificate,
        recipient: str,
        now: Callable[[], datetime],
    ) -> None:
        self.announcement = announcement
        self.sender = sender
        self.size = 0
        self._session = session
        self._number = number
        self._recipient = recipient
        self._now = now
        self._hash = hashlib.sha256()
        self._text: list[str] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._check_name()
        self._check_limit(limit_bytes)
        self._check_time(announcement.time)

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the chunks so far; at the end, what the ACK says."""
        return self._hash.digest()

    @property
    def text(self) -> str:
        """The text so far; of a file, nothing."""
        return "".join(self._text)

    def take(self, chunk: bytes) -> None:
        """Count and hash a chunk. Raises TooLarge, and BadManifest for a text that is not UTF-8."""
        self.size += len(chunk)
        self._check_size()
        self._hash.update(chunk)
        self._check_text(chunk)

    def finish(self, signed: bytes) -> Manifest:
        """Compare what came with the body of a MANIFEST, and return the manifest.

        Raises BadPayload, BadManifestSignature and BadManifest.
        """
        signature, encoded = split_signed(signed)
        self._check_signature(signature, encoded)
        manifest = parse_manifest(encoded)
        self._check_text(b"", is_last=True)
        self._check_manifest(manifest)
        self._check_time(manifest.time)
        return manifest

    def _check_name(self) -> None:
        if self.announcement.kind == "file":
            check_name(self.announcement.name)

    def _check_limit(self, limit_bytes: int) -> None:
        if self.announcement.kind == "text":
            limit_bytes = min(limit_bytes, MAX_TEXT_BYTES)
        if self.announcement.size > limit_bytes:
            raise TooLarge(f"a size of at most {limit_bytes}", self.announcement.size)

    def _check_size(self) -> None:
        if self.size > self.announcement.size:
            raise TooLarge(f"size {self.announcement.size}, as announced", self.size)

    def _check_text(self, chunk: bytes, *, is_last: bool = False) -> None:
        """Keep a text, even if chunks cut its characters."""
        if self.announcement.kind == "file":
            return
        try:
            self._text.append(self._decoder.decode(chunk, is_last))
        except UnicodeDecodeError:
            raise BadManifest("kind text, in UTF-8", "bytes that are not") from None

    def _check_signature(self, signature: bytes, encoded: bytes) -> None:
        if not is_signed(self.sender.public_key, CONTEXT, encoded, signature):
            raise BadManifestSignature(f"a signature by {self.sender.common_name}", "none")

    def _check_manifest(self, manifest: Manifest) -> None:
        """Compare every member but the time, which only has to be near ours."""
        if self.size != self.announcement.size:
            raise BadManifest(f"size {self.announcement.size}, as announced", self.size)
        came = Manifest(
            self.announcement.kind,
            self.announcement.name,
            self.size,
            self.digest.hex(),
            manifest.time,
            self._session.hex(),
            self._number,
            self.sender.common_name,
            self._recipient,
        )
        said = asdict(manifest)
        for member, value in asdict(came).items():
            if said[member] != value:
                raise BadManifest(f"{member} {value!a}", ascii(said[member]))

    def _check_time(self, time: datetime) -> None:
        """Compare what the sender says with our clock, and with the dates of its certificate."""
        now = self._now()
        first = self.sender.not_before
        last = self.sender.not_after
        if not first <= time <= last:
            raise BadManifest(f"time {timestamp(first)} to {timestamp(last)}", timestamp(time))
        if now.replace(microsecond=0) > last:  # or an expired device could backdate
            raise BadManifest(f"time of coming until {timestamp(last)}", timestamp(now))
        if abs(now - time) > CLOCK_SKEW:
            raise BadManifest(f"time {timestamp(now)}, or 10 minutes from it", timestamp(time))
