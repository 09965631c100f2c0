"""The folder `certs`: who reads and writes which file of it.

    ca_cert.pem, ca_crl.pem                    everybody; ca_private_key.pem only the authority
    NAME_cert.pem, NAME_private_key.pem        an end, called client or server unless it has a name;
                                               below the certificate may be that of its issuer
    known_keys.txt                             the clients, see pins.py

Private keys have mode 0600 from their first byte. Nothing but the list is ever overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography import x509

from classroom.output import write_whole
from companions.asymmetric import PrivateKey, PublicKey, public_pem, read_private, write_private
from companions.secure_chat.authority import pem_of
from companions.secure_chat.pki import Malformed, Trust, fingerprint_of, parse_pem
from companions.terminal import ask_passphrase
from program import UserError, read_whole, reason_of

CERTS = Path("certs")
COMMAND = "python -m companions.secure_chat"


@dataclass(frozen=True)
class Credentials:
    """An end's own certificate, its private key, and as PEM what it shows: an issuer, too."""

    pem: str
    certificate: x509.Certificate = field(repr=False)
    key: PrivateKey = field(repr=False)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.certificate)


def load_credentials(certs: Path, name: str) -> Credentials:
    """Read NAME_cert.pem and NAME_private_key.pem. Raises UserError."""
    path = certs / f"{file_name(name)}_cert.pem"
    pem = _read(path).decode("ascii", "replace")
    key = read_private(certs / f"{name}_private_key.pem", ask_passphrase)
    try:
        chain = parse_pem(pem)
        certificate = chain[0]
        other = certificate.public_key()
    except (Malformed, ValueError) as error:
        raise UserError(f"{path} is not a certificate: {error}") from None
    if not isinstance(other, PublicKey) or public_pem(other) != public_pem(key.public_key()):
        raise UserError(f"the key in {certs} does not match the certificate {path}")
    return Credentials(b"".join(map(pem_of, chain)).decode("ascii"), certificate, key)


def save_new(certs: Path, name: str, key: PrivateKey, files: Mapping[str, bytes]) -> None:
    """Write a new private key, and what belongs to it. Raises FileExistsError, OSError, UserError.

    A key without its certificate would serve nobody, and is removed again.
    """
    path = certs / f"{name}_private_key.pem"
    if (certs / f"{name}_cert.pem").exists():
        raise FileExistsError
    write_private(path, key)
    try:
        for file, content in files.items():
            write_whole(certs / file, content)
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise


def load_trust(certs: Path) -> Trust:
    """Return the trust in the authority of a folder; its list is read anew each time. UserError."""
    path = certs / "ca_cert.pem"
    try:
        return Trust(_read(path), partial(read_whole, certs / "ca_crl.pem"))
    except Malformed as error:
        raise UserError(f"{path} is not a certificate: {error}") from None


def load_authority(certs: Path) -> Credentials:
    """Return the authority's own certificate and key. Raises UserError."""
    return load_credentials(certs, "ca")


def file_name(name: str) -> str:
    """Return a name that files may begin with. Raises UserError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UserError(f"{name!r} cannot begin a file's name")
    return name


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except FileNotFoundError:
        raise UserError(
            f"Certificate not found: {path}; {COMMAND}.gen_ca and {COMMAND}.gen_cert make them"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
