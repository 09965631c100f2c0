"""Identities: a node's own key pair, and the fingerprint that it accepts for its peer.

There is no authority here. A peer's key is known beforehand (pinned), or it is the one that came
with the first contact (trust on first use); from then on no other is accepted. Both leave a line
in the file `known_peers`, which only a person removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from companions.asymmetric import (
    PrivateKey,
    PublicKey,
    new_identity,
    parse_public,
    public_pem,
    read_private,
    write_private,
)
from program import UserError, append_whole, reason_of
from protocol_fsm import ProtocolError, WrongPeer

KEY_BYTES = 451  # the PEM encoding of every RSA-2048 public key with exponent 65,537


class UnusableKey(ProtocolError):
    """Bytes that are not a public key, where one should be."""


class UnknownPeer(ProtocolError):
    """An unknown key, where only pinned ones are accepted."""


class IdentityChanged(ProtocolError):
    """Another key than this peer had before: another node, a new installation, or an attack."""


def fingerprint_of(pem: str) -> str:
    """Return SHA-256 of a public key, as 64 hex digits."""
    return hashlib.sha256(pem.encode("ascii")).hexdigest()


def grouped(fingerprint: str) -> str:
    """Return a fingerprint in groups of four digits, for people who compare it aloud."""
    return " ".join(re.findall("....", fingerprint))


class Identity:
    """A key pair that signs, and its fingerprint (64 hex digits)."""

    def __init__(self, private_key: PrivateKey) -> None:
        self.private_key = private_key
        self.public_pem = public_pem(private_key.public_key())
        self.fingerprint = fingerprint_of(self.public_pem)

    def __repr__(self) -> str:
        return f"<Identity {self.fingerprint[:16]}>"


def load_identity(folder: Path, ask: Callable[[str], str]) -> tuple[Identity, bool]:
    """Return our identity, and whether its key was made just now. Raises UserError."""
    path = folder / "identity.pem"
    try:
        if path.exists() or path.is_symlink():
            return Identity(read_private(path, ask)), False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = new_identity()
        _write_whole(path, key)
    except OSError as error:
        raise UserError(f"cannot make {path}: {reason_of(error)}") from None
    return Identity(key), True


def _write_whole(path: Path, key: PrivateKey) -> None:
    """Write a private key whole or not at all, and over no other. Raises OSError."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        write_private(partial, key)
        try:
            os.link(partial, path)  # unless another program has just made one
        except FileExistsError:
            raise
        except (OSError, AttributeError):  # no hard links here
            partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


class Trust:
    """The key that our peer may show. `pinned` is a fingerprint, or "" before the first contact.

    `keep` is told a fingerprint that becomes pinned.
    """

    def __init__(
        self,
        peer: str,
        pinned: str = "",
        *,
        first_use: bool = True,
        keep: Callable[[str], object] = lambda fingerprint: None,
    ) -> None:
        self.peer = peer
        self.pinned = pinned
        self.first_use = first_use
        self._keep = keep

    def check(self, own: Identity, pem: bytes) -> PublicKey:
        """Return the peer's public key. Raises UnusableKey, WrongPeer and the two errors above."""
        try:
            key = parse_public(pem.decode("ascii"))
        except ValueError:  # UnicodeError is one
            raise UnusableKey("an RSA-2048 key, as we write it", "something else") from None
        fingerprint = fingerprint_of(pem.decode("ascii"))
        self._check_not_own(own, fingerprint)
        self._check_pin(fingerprint)
        return key

    def _check_not_own(self, own: Identity, fingerprint: str) -> None:
        if fingerprint == own.fingerprint:
            raise WrongPeer("another node", "ourselves")

    def _check_pin(self, fingerprint: str) -> None:
        if self.pinned and fingerprint != self.pinned:
            raise IdentityChanged(f"{self.peer} with {self.pinned[:16]}", fingerprint[:16])
        if not self.pinned and not self.first_use:
            raise UnknownPeer("a pinned key", fingerprint[:16])

    def pin(self, pem: str) -> bool:
        """Accept only this key from now on, and return whether it is new."""
        is_new = not self.pinned
        if is_new:
            self.pinned = fingerprint_of(pem)
            self._keep(self.pinned)
        return is_new


# The file -----------------------------------------------------------------------------------------

NAME = re.compile(r"[^\s#]{1,64}")
DIGITS = re.compile("[0-9a-f]{64}")


def peer_name(text: str) -> str:
    """Return a name that known_peers can hold, in one way of writing (NFC). Raises ValueError."""
    name = unicodedata.normalize("NFC", text)
    if not NAME.fullmatch(name) or not name.isprintable():
        raise ValueError(text)
    return name


def peer_fingerprint(text: str) -> str:
    """Return 64 hex digits, in small letters and without the spaces in them. Raises ValueError."""
    digits = "".join(text.split()).lower()
    if not DIGITS.fullmatch(digits):
        raise ValueError(text)
    return digits


def known_peers(path: Path) -> dict[str, str]:
    """Return fingerprints by name. Raises UserError.

    A line is a name and a fingerprint, with any spaces before, between and in the fingerprint; what
    follows # is a comment.
    """
    return {name: digits for name, (_, digits) in _entries(path).items()}


def line_of(path: Path, peer: str) -> int | None:
    """Return the number of a peer's line, if the file can be read and has one."""
    with contextlib.suppress(UserError):
        return _entries(path).get(peer, (None, ""))[0]
    return None


def _entries(path: Path) -> dict[str, tuple[int, str]]:
    """Return line and fingerprint by name. Raises UserError."""
    entries: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(_lines(path), 1):
        words, _, _ = line.partition("#")
        if not words.strip():
            continue
        first, *rest = words.split()
        try:
            name = peer_name(first)
            digits = peer_fingerprint("".join(rest))
        except ValueError:
            raise UserError(f"{path} line {number} is not a name and 64 hex digits") from None
        if name in entries:
            raise UserError(f"{path} has {name} twice, in line {entries[name][0]} and {number}")
        entries[name] = (number, digits)
    return entries


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that only its owner can write; none without a file. UserError."""
    try:
        for own in (path.parent, path):  # anyone who can write the folder can replace the file
            if not os.path.lexists(own):
                return []
            if sys.platform != "win32" and own.stat().st_mode & 0o022:
                raise UserError(f"others can write {own}; make it yours: chmod go-w {own}")
        if not path.is_file():
            raise OSError("it is not a regular file")
        return path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None


def remember(path: Path, peer: str, fingerprint: str) -> None:
    """Add a line, whole or not at all, to the file (mode 0600), unless it is there.

    Raises OSError and UserError.
    """
    known = known_peers(path).get(peer)
    if known == fingerprint:
        return
    if known:
        raise UserError(f"another program has just put another key for {peer} into {path}")
    before = path.read_bytes() if path.exists() else b""
    between = b"" if before.endswith(b"\n") or not before else b"\n"
    line = between + f"{peer} {fingerprint}\n".encode()
    append_whole(path, line)
