"""Keys that a client has met before: the one thing that a second certificate cannot repeat.

    localhost 3f9c...    a name, and the SHA-256 (hex) of its public key

Anyone with the authority's key can make another certificate for any name, as good as the
first. A certificate renewed for the same key is no change. Lines are only added, and the last of a
name counts: the file tells which keys a name had, and several clients may share it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from companions.asymmetric import PublicKey
from companions.secure_chat.pki import BadCertificate, Identity, fold
from program import UserError, append_whole, read_whole, reason_of

FILE = "known_keys.txt"  # in the folder of certificates
LINE = re.compile(r"([!-~]+) ([0-9a-f]{64})")


class OtherKey(BadCertificate):
    """A valid certificate for a name that we know by another key."""


def key_fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 (hex) of a public key in DER, as `openssl pkey -pubin` writes it."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


class Pins:
    """Which key each name had last, in a file, or in memory only if there is no path.

    `expected` is the key that a server must have, whatever it had before; without it the
    remembered one, or at the first meeting any. Raises UserError.
    """

    def __init__(self, path: Path | None = None, expected: str | None = None) -> None:
        self._path = path
        self._expected = expected
        self._known = _read(path) if path else {}

    def check_key(self, server: Identity) -> None:
        """Raise OtherKey if this is not the key that we expect of a server."""
        expected = self._expected or self._known.get(fold(server.name))
        found = key_fingerprint(server.public_key)
        if expected and found != expected:
            raise OtherKey(f"the key {expected}", found)

    def meet(self, somebody: Identity) -> str | None:
        """Remember somebody's key, and return the previous one; None at the first meeting."""
        name = fold(somebody.name)
        found = key_fingerprint(somebody.public_key)
        before = self._known.get(name)
        if found != before:
            self._add(f"{name} {found}\n")
            self._known[name] = found
        return before

    def _add(self, line: str) -> None:
        if self._path is None:
            return
        try:
            append_whole(self._path, ("\n" * _is_cut(self._path) + line).encode("ascii"))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {reason_of(error)}") from None


def _is_cut(path: Path) -> bool:
    """Return whether the last line has no end, as some editors leave it."""
    return path.exists() and not (b"\n" + read_whole(path)).endswith(b"\n")


def _read(path: Path) -> dict[str, str]:
    try:
        if sys.platform != "win32" and path.stat().st_mode & 0o022:
            raise UserError(f"others can write {path}; check it, then chmod 600 {path}")
        lines = read_whole(path).decode("ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    known = {}
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}: line {number} is not a name and the SHA-256 of a key")
        known[match[1]] = match[2]
    return known
