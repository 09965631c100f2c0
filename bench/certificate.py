"""A self-signed certificate for the TLS rivals, good for two days and for one address.

The standard library cannot make one; pycryptodome, which is here anyway, has RSA and DER, and the
rest is the structure of RFC 5280 section 4.1. The package `cryptography` would do it in fewer
lines, but it brings cffi, and pycryptodome calls its AES in another way where that is installed:
the benchmark would change what it measures.
"""

from __future__ import annotations

import ipaddress
import secrets
import ssl
import time
from pathlib import Path

from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15
from Crypto.Util.asn1 import (
    DerBitString,
    DerInteger,
    DerNull,
    DerObject,
    DerObjectId,
    DerOctetString,
    DerSequence,
    DerSetOf,
)

RSA_BITS = 2_048
DAY_S = 24 * 60 * 60
SHA256_WITH_RSA = "1.2.840.113549.1.1.11"
COMMON_NAME = "2.5.4.3"
SUBJECT_ALT_NAME = "2.5.29.17"
UTF8_STRING = 0x0C
UTC_TIME = 0x17  # DER tags
VERSION_3 = 2  # of X.509, counted from 0


def write_certificate(folder: Path, host: str) -> None:
    """Write certificate.pem and key.pem for an RSA key of 2,048 bits."""
    key = RSA.generate(RSA_BITS)
    algorithm = sequence(DerObjectId(SHA256_WITH_RSA).encode(), DerNull().encode())
    body = to_be_signed(key, host, algorithm)
    signature = DerBitString(pkcs1_15.new(key).sign(SHA256.new(body))).encode()
    certificate = ssl.DER_cert_to_PEM_cert(sequence(body, algorithm, signature))
    (folder / "certificate.pem").write_text(certificate, "ascii")
    (folder / "key.pem").write_bytes(key.export_key(pkcs=8))


def to_be_signed(key: RSA.RsaKey, host: str, algorithm: bytes) -> bytes:
    """Return version, serial number, issuer, validity, subject, key and the address."""
    name = sequence(
        DerSetOf(
            [
                sequence(
                    DerObjectId(COMMON_NAME).encode(), DerObject(UTF8_STRING, b"benchmark").encode()
                )
            ]
        ).encode()
    )
    validity = sequence(utc_time(-DAY_S), utc_time(DAY_S))
    address = sequence(DerOctetString(ipaddress.ip_address(host).packed, implicit=7).encode())
    extension = sequence(DerObjectId(SUBJECT_ALT_NAME).encode(), DerOctetString(address).encode())
    return sequence(
        DerInteger(VERSION_3, explicit=0).encode(),
        1 + secrets.randbits(63),
        algorithm,
        name,
        validity,
        name,
        key.public_key().export_key("DER"),
        DerSequence([extension], explicit=3).encode(),
    )


def sequence(*parts: bytes | int) -> bytes:
    return DerSequence(parts).encode()


def utc_time(from_now_s: int) -> bytes:
    moment = time.strftime("%y%m%d%H%M%SZ", time.gmtime(time.time() + from_now_s))
    return DerObject(UTC_TIME, moment.encode("ascii")).encode()
