"""What the companions take from public-key cryptography: signatures, key agreement, derivation.

Thin over `cryptography`: each function fixes the parameters, so that no caller chooses any. Every
signature has a context, and one made in one context is worthless in every other. Keys are never
shown: private keys are written to files of mode 0600, and read from them as objects.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from Crypto.PublicKey import RSA
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from program import UserError, reason_of

RSA_BITS = 2_048
EXPONENT = 65_537
SIGNATURE_BYTES = RSA_BITS // 8
SCRYPT_ROUNDS = 2**15
SHARE_BYTES = 32  # an X25519 public key

PrivateKey = rsa.RSAPrivateKey
PublicKey = rsa.RSAPublicKey
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)

# Signatures ---------------------------------------------------------------------------------------


def new_identity() -> PrivateKey:
    """Return a new RSA-2048 key, for signatures only."""
    return rsa.generate_private_key(public_exponent=EXPONENT, key_size=RSA_BITS)


def sign(key: PrivateKey, context: str, data: bytes) -> bytes:
    """Return an RSA-PSS signature (256 bytes) of `data` in `context`. Source: RFC 8017, 8.1."""
    return key.sign(under_signature(context, data), PSS, hashes.SHA256())


def is_signed(key: PublicKey, context: str, data: bytes, signature: bytes) -> bool:
    """Return whether the owner of the key made this signature of `data` in this context."""
    try:
        key.verify(signature, under_signature(context, data), PSS, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def under_signature(context: str, data: bytes) -> bytes:
    """Return the bytes under a signature; with the zero, no context is a prefix of another."""
    return context.encode("ascii") + b"\0" + data


# Key agreement and derivation ---------------------------------------------------------------------


def new_share() -> tuple[X25519PrivateKey, bytes]:
    """Return an ephemeral X25519 key and its public share (32 bytes). Source: RFC 7748."""
    key = X25519PrivateKey.generate()
    return key, key.public_key().public_bytes_raw()


def agree(key: X25519PrivateKey, share: bytes) -> bytes:
    """Return the 32 bytes that only the owners of the two shares know.

    Raises ValueError for a share that leads to zero with any key (RFC 7748 section 6.1).
    """
    return key.exchange(X25519PublicKey.from_public_bytes(share))


def hkdf(salt: bytes, material: bytes, info: str) -> bytes:
    """Extract and expand to 32 bytes, with SHA-256. Source: RFC 5869."""
    return HKDF(hashes.SHA256(), 32, salt, info.encode("ascii")).derive(material)


def hkdf_expand(secret: bytes, info: str, length: int) -> bytes:
    """Expand a secret of 32 bytes, with SHA-256, to `length` bytes. Source: RFC 5869, 2.3."""
    return HKDFExpand(hashes.SHA256(), length, info.encode("ascii")).derive(secret)


# Keys in files ------------------------------------------------------------------------------------


def public_pem(key: PublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


def parse_public(pem: str) -> PublicKey:
    """Return an RSA-2048 public key. Raises ValueError."""
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(pem.encode("ascii"))
    if (
        not isinstance(key, PublicKey)
        or key.key_size != RSA_BITS
        or public_pem(key) != pem
        or key.public_numbers().e != EXPONENT
    ):
        raise ValueError("not an RSA key of 2,048 bits, as we write it")
    return key


def write_private(path: Path, key: PrivateKey, passphrase: str = "") -> None:
    """Write a new file of mode 0600, encrypted if there is a passphrase of up to 1,023 bytes.

    The passphrase is stretched by scrypt (RFC 7914), 2^15 rounds. Raises OSError, and ValueError
    for a longer passphrase.
    """
    if len(passphrase.encode()) > 1_023:  # with a longer one, no library would read it again
        raise ValueError("a passphrase has at most 1,023 bytes")
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if passphrase:  # by pycryptodome, because `cryptography` does not let us choose the rounds
        encrypted = RSA.import_key(pem).export_key(
            "PEM",
            passphrase.encode(),
            8,
            "scryptAndAES256-CBC",
            prot_params={"iteration_count": SCRYPT_ROUNDS},
        )
        pem = bytes(encrypted) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(pem)
    except BaseException:  # a full disk, or Ctrl-C: half a key would stand in the way of the next
        path.unlink()
        raise


def read_private(path: Path, ask: Callable[[str], str]) -> PrivateKey:
    """Return the RSA-2048 key in a file that only its owner can read. Raises UserError.

    `ask` is given a prompt, and returns the passphrase; it is called for an encrypted key only.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError("it is not a regular file")
        if sys.platform != "win32" and mode & 0o077:
            raise UserError(f"others can read the key in {path}; make it yours: chmod 600 {path}")
        pem = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {reason_of(error)}") from None
    passphrase = None
    try:
        if b"ENCRYPTED" in pem:
            passphrase = ask(f"passphrase for {path}: ").encode("utf-8", "surrogateescape")
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, UnsupportedAlgorithm, TypeError):
        why = "the passphrase is wrong" if passphrase is not None else "it is not a private key"
        raise UserError(f"cannot open the key {path}: {why}") from None
    if not isinstance(key, PrivateKey) or key.key_size != RSA_BITS:
        raise UserError(f"the key in {path} is not RSA with {RSA_BITS} bits")
    return key
