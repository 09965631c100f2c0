"""What is under a signature: a kind, a version, and the parts, each with its length.

A signature of one kind is worthless as any other, and no two lists of parts have the same bytes.
The document's `seqno || ts || ct` is safe only because its numbers have a fixed size; with texts it
could be read in many ways. The idea is DSSE's pre-authentication encoding.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from companions.asymmetric import PSS, PrivateKey, PublicKey

NAME = b"secure_chat"
VERSION = 1
KINDS = ("dh-client", "dh-server", "msg", "head", "receipt", "countersign")
LENGTH_BYTES = 4  # of each length, big-endian


def pae(kind: str, *parts: bytes) -> bytes:
    """Return the bytes to sign: name, kind, version (1 byte) and parts, each after its length.

    Raises ValueError for a kind that the protocol does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of signature")
    fields = (NAME, kind.encode("ascii"), bytes([VERSION]), *parts)
    return b"".join(len(field).to_bytes(LENGTH_BYTES, "big") + field for field in fields)


def parts_of(kind: str, data: bytes) -> list[bytes]:
    """Return the parts of signed bytes of this kind. Raises ValueError for any other bytes."""
    start = pae(kind)
    if not data.startswith(start):
        raise ValueError(f"not the signed bytes of a {kind}")
    parts = []
    place = len(start)
    while place < len(data):
        begin = place + LENGTH_BYTES
        place = begin + int.from_bytes(data[place:begin], "big")
        parts.append(data[begin:place])
    if place != len(data):
        raise ValueError("a part that runs past the end")
    return parts


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Return the RSA-PSS signature (256 bytes) of what `pae` returned. Source: RFC 8017, 8.1."""
    return key.sign(data, PSS, hashes.SHA256())


def is_signed(key: PublicKey, data: bytes, signature: bytes) -> bool:
    """Return whether the owner of the key signed exactly these bytes, with a salt of 32."""
    try:
        key.verify(signature, data, PSS, hashes.SHA256())
    except InvalidSignature:
        return False
    return True
