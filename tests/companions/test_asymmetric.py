"""companions/asymmetric.py against vectors from outside, another library, and what is bad."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pss
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from companions.asymmetric import (
    SIGNATURE_BYTES,
    PrivateKey,
    agree,
    hkdf,
    hkdf_expand,
    is_signed,
    new_share,
    parse_public,
    public_pem,
    read_private,
    sign,
    write_private,
)
from program import UserError
from tests.programs import posix_only


# RFC 7748 section 6.1
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_SHARE = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_SHARE = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

# RFC 5869 A.3: A.1 has an info that is not ASCII, which ours always is
MATERIAL = b"\x0b" * 22
EXTRACTED = bytes.fromhex("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04")
EXPANDED = bytes.fromhex(
    "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
)

# 0, 1, and two points of order 8 (https://cr.yp.to/ecdh.html#validate)
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]

ascii_text = st.text(st.characters(max_codepoint=127), max_size=40)

# Signatures ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_library_accepts_our_signature_with_32_bytes_of_salt(
    keys: list[PrivateKey],
) -> None:
    public = RSA.import_key(public_pem(keys[0].public_key()))
    signature = sign(keys[0], "context", b"data")
    assert len(signature) == SIGNATURE_BYTES == 256
    pss.new(public, salt_bytes=32).verify(SHA256.new(b"context\0data"), signature)


@pytest.mark.slow
@pytest.mark.parametrize(("salt_bytes", "accepted"), [(32, True), (0, False), (20, False)])
def test_a_salt_of_32_bytes_is_the_only_one(
    keys: list[PrivateKey], salt_bytes: int, accepted: bool
) -> None:
    theirs = RSA.import_key(private_pem(keys[0]))
    signature = pss.new(theirs, salt_bytes=salt_bytes).sign(SHA256.new(b"context\0data"))
    assert is_signed(keys[0].public_key(), "context", b"data", signature) is accepted


def test_a_signature_holds_for_its_context_data_and_key_and_no_other(
    keys: list[PrivateKey],
) -> None:
    signature = sign(keys[0], "ab", b"cd")
    owner = keys[0].public_key()
    assert is_signed(owner, "ab", b"cd", signature)
    assert not is_signed(owner, "ac", b"cd", signature)
    assert not is_signed(owner, "a", b"bcd", signature)
    assert not is_signed(owner, "abc", b"d", signature)
    assert not is_signed(owner, "ab", b"ce", signature)
    assert not is_signed(keys[1].public_key(), "ab", b"cd", signature)


@given(st.binary(max_size=300))
def test_no_bytes_pass_for_a_signature(keys: list[PrivateKey], signature: bytes) -> None:
    assert not is_signed(keys[0].public_key(), "context", b"data", signature)


# Key agreement and derivation ---------------------------------------------------------------------


def test_x25519_as_in_rfc_7748() -> None:
    alice, bob = map(X25519PrivateKey.from_private_bytes, (ALICE, BOB))
    assert alice.public_key().public_bytes_raw() == ALICE_SHARE
    assert agree(alice, BOB_SHARE) == agree(bob, ALICE_SHARE) == SHARED


def test_shares_are_fresh_and_agree() -> None:
    one, one_share = new_share()
    other, other_share = new_share()
    assert len({one_share, other_share}) == 2
    assert agree(one, other_share) == agree(other, one_share)


@pytest.mark.parametrize("share", LOW_ORDER)
def test_a_share_of_low_order_is_refused(share: str) -> None:
    with pytest.raises(ValueError):
        agree(new_share()[0], bytes.fromhex(share))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_share_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        agree(new_share()[0], bytes(range(length)))


def test_hkdf_as_in_rfc_5869() -> None:
    assert hkdf(b"", MATERIAL, "") == EXPANDED[:32]
    assert hkdf_expand(EXTRACTED, "", 42) == EXPANDED


@given(st.binary(max_size=80), st.binary(min_size=1, max_size=80), ascii_text)
def test_hkdf_is_two_hmacs_as_rfc_5869_has_it(salt: bytes, material: bytes, info: str) -> None:
    extracted = hmac.digest(salt or bytes(32), material, hashlib.sha256)
    expanded = hmac.digest(extracted, info.encode() + b"\1", hashlib.sha256)
    assert hkdf(salt, material, info) == hkdf_expand(extracted, info, 32) == expanded


# Keys in files ------------------------------------------------------------------------------------

# no key, but of 2,048 bits, and there at once
DSA = dsa.DSAPrivateNumbers(
    2, dsa.DSAPublicNumbers(4, dsa.DSAParameterNumbers(2**2047 + 1, 2**255 + 1, 2))
).private_key()


def private_pem(key: PrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def never(prompt: str) -> str:
    raise AssertionError(f"asked for {prompt}")


def test_a_public_key_survives_its_encoding(keys: list[PrivateKey]) -> None:
    pem = public_pem(keys[0].public_key())
    assert public_pem(parse_public(pem)) == pem


def test_a_public_key_has_one_encoding(keys: list[PrivateKey]) -> None:
    pem = public_pem(keys[0].public_key())
    pkcs1 = (
        keys[0]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
        .decode()
    )
    for other in (pem + "\n", "x" + pem, pem.replace("\n", "\r\n"), pem + pem, pkcs1, "", "\xe9"):
        with pytest.raises(ValueError, match="as we write it"):
            parse_public(other)


def test_a_public_key_of_another_sort_or_size_is_refused() -> None:
    for key in (
        DSA,
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65_537, 1_024),
    ):
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(ValueError):
            parse_public(pem.decode())


def test_a_sort_that_nobody_knows_is_refused() -> None:
    curve = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    unknown = base64.b64encode(curve.replace(bytes.fromhex("2a8648ce3d0201"), b"*" * 7)).decode()
    with pytest.raises(ValueError, match="as we write it"):
        parse_public(f"-----BEGIN PUBLIC KEY-----\n{unknown}\n-----END PUBLIC KEY-----\n")


@pytest.mark.slow
@pytest.mark.parametrize("passphrase", ["", "correct horse", "\u0142\u00f3d\u017a"])
def test_a_private_key_survives_its_file(
    tmp_path: Path, keys: list[PrivateKey], passphrase: str
) -> None:
    path = tmp_path / "key.pem"
    write_private(path, keys[0], passphrase)
    assert (b"ENCRYPTED" in path.read_bytes()) is bool(passphrase)
    key = read_private(path, (lambda prompt: passphrase) if passphrase else never)
    assert private_pem(key) == private_pem(keys[0])


@pytest.mark.slow
def test_a_wrong_passphrase_is_told_and_not_shown(tmp_path: Path, keys: list[PrivateKey]) -> None:
    write_private(tmp_path / "key.pem", keys[0], "correct horse")
    with pytest.raises(UserError, match="the passphrase is wrong") as caught:
        read_private(tmp_path / "key.pem", lambda prompt: "battery staple")
    assert "battery" not in str(caught.value)


@pytest.mark.slow
def test_a_passphrase_is_stretched_by_scrypt(tmp_path: Path, keys: list[PrivateKey]) -> None:
    write_private(tmp_path / "key", keys[0], "door 3")
    body = (tmp_path / "key").read_text("ascii").split("-----")[2]
    structure = base64.b64decode(body)
    assert bytes.fromhex("06092b06010401da47040b") in structure, "id-scrypt, RFC 7914 section 7"
    assert bytes.fromhex("0203008000") in structure, "2^15 rounds"
    with pytest.raises(ValueError, match="1,023"):
        write_private(tmp_path / "other", keys[0], "x" * 1_024)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_public_key_has_the_usual_exponent() -> None:
    odd = rsa.generate_private_key(public_exponent=3, key_size=2_048).public_key()
    with pytest.raises(ValueError, match="as we write it"):
        parse_public(public_pem(odd))


def test_a_key_file_is_never_overwritten(tmp_path: Path, keys: list[PrivateKey]) -> None:
    write_private(tmp_path / "key.pem", keys[0])
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "key.pem", keys[1])
    assert (tmp_path / "key.pem").read_bytes() == private_pem(keys[0])


@posix_only
def test_a_key_file_is_for_its_owner_alone(tmp_path: Path, keys: list[PrivateKey]) -> None:
    path = tmp_path / "key.pem"
    write_private(path, keys[0])
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(UserError, match="chmod 600"):
            read_private(path, never)


def test_a_folder_is_refused_as_a_key(tmp_path: Path) -> None:
    (tmp_path / "key.pem").mkdir(mode=0o755)
    with pytest.raises(UserError, match=r"cannot read the key .*: it is not a regular file"):
        read_private(tmp_path / "key.pem", never)


def test_what_is_no_rsa_key_of_2048_bits_is_refused(tmp_path: Path) -> None:
    small = rsa.generate_private_key(65_537, 1_024)
    curve = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key.pem"
    for content in (b"", b"nonsense", private_pem(small), private_pem(curve), private_pem(DSA)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(UserError, match=r"it is not a private key|is not RSA"):
            read_private(path, never)
    with pytest.raises(UserError, match="No such file"):
        read_private(tmp_path / "none.pem", never)
