"""The building blocks against vectors that others published, and against their own promises.

A test that computes its expected value with the code under test proves little, so the values here
come from NIST, from RFCs and from Wycheproof. Each set also counts its cases: a parser that finds
nothing must fail. The long vector files are in test_crypto_utils_slow.py.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crypto_utils
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    aes_cbc_encrypt,
    derive_key,
    evolve_key,
    fingerprint,
    hmac_sha256,
    hmac_verify,
    pkcs7_pad,
    pkcs7_unpad,
)
from tests.properties import given, st

WYCHEPROOF = Path(__file__).parent / "vectors" / "wycheproof"

Aes = Callable[[bytes, bytes, bytes], bytes]

blocks_of_16 = st.binary(min_size=16, max_size=16)


def test_the_sizes_are_those_of_the_standards() -> None:
    """FIPS 197: blocks of 16 bytes; AES-128: keys of 16; FIPS 180-4: digests of 32."""
    assert (BLOCK_BYTES, AES_KEY_BYTES, TAG_BYTES, NONCE_BYTES) == (16, 16, 32, 16)


# --- AES-128-CBC ---------------------------------------------------------------------------------

# NIST SP 800-38A, appendix F.2.1 (CBC-AES128.Encrypt) and F.2.2 (CBC-AES128.Decrypt).
SP_800_38A_KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
SP_800_38A_IV = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
SP_800_38A_BLOCKS = [  # plaintext, ciphertext
    ("6bc1bee22e409f96e93d7e117393172a", "7649abac8119b246cee98e9b12e9197d"),
    ("ae2d8a571e03ac9c9eb76fac45af8e51", "5086cb9b507219ee95db113a917678b2"),
    ("30c81c46a35ce411e5fbc1191a0a52ef", "73bed6b8e3c1743b7116e69e22229516"),
    ("f69f2445df4f9b17ad2b417be66c3710", "3ff1caa1681fac09120eca307586e1a7"),
]
SP_800_38A_PLAIN = bytes.fromhex("".join(plain for plain, _ in SP_800_38A_BLOCKS))
SP_800_38A_CIPHER = bytes.fromhex("".join(cipher for _, cipher in SP_800_38A_BLOCKS))


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_sp_800_38a_f_2_is_met_in_both_directions(size: int) -> None:
    """The first n blocks of the example are an example too: CBC never looks ahead.

    Decryption leaves the padding alone, so blocks without any padding come back whole.
    """
    plain = SP_800_38A_PLAIN[:size]
    cipher = SP_800_38A_CIPHER[:size]
    assert aes_cbc_encrypt(plain, SP_800_38A_KEY, SP_800_38A_IV) == cipher
    assert aes_cbc_decrypt(cipher, SP_800_38A_KEY, SP_800_38A_IV) == plain


both_directions = pytest.mark.parametrize("aes", [aes_cbc_encrypt, aes_cbc_decrypt])


def accepted_sizes(use: Callable[[int], object], sizes: range) -> list[int]:
    """Return the sizes that raise no ValueError."""
    taken = []
    for size in sizes:
        with contextlib.suppress(ValueError):
            use(size)
            taken.append(size)
    return taken


@both_directions
def test_a_key_that_is_not_of_aes_128_is_refused(aes: Aes) -> None:
    """24 and 32 bytes above all: the library takes them, and AES-256 is not what [P 3.2] says."""
    assert accepted_sizes(lambda n: aes(bytes(16), b"k" * n, bytes(16)), range(65)) == [16]


@both_directions
def test_an_iv_that_is_not_one_block_is_refused(aes: Aes) -> None:
    """An IV of 0 bytes too: it must not turn into a random one, or into zeros."""
    assert accepted_sizes(lambda n: aes(bytes(16), bytes(16), b"i" * n), range(33)) == [16]


@both_directions
def test_a_partial_block_is_refused(aes: Aes) -> None:
    """Nothing is padded, cut or kept for later behind the caller's back."""
    sizes = accepted_sizes(lambda n: aes(b"d" * n, bytes(16), bytes(16)), range(49))
    assert sizes == [0, 16, 32, 48]


@both_directions
def test_no_error_of_aes_quotes_the_key_or_the_data(aes: Aes) -> None:
    """The module promises it, because errors end up in logs."""
    for data, key, iv in [
        (b"my data, 16 byte", b"my key", bytes(16)),
        (b"my data, 16 byte", b"my key, 16 bytes", b"my iv"),
        (b"my data", b"my key, 16 bytes", bytes(16)),
    ]:
        with pytest.raises(ValueError) as error:
            aes(data, key, iv)
        assert "my " not in repr(error.value)
        assert b"my ".hex() not in repr(error.value)


@given(message=st.binary(max_size=200), key=blocks_of_16, iv=blocks_of_16)
def test_decrypting_what_was_encrypted_gives_it_back(message: bytes, key: bytes, iv: bytes) -> None:
    """And a ciphertext is as long as what went in: no IV in front, no padding behind."""
    padded = pkcs7_pad(message)
    ciphertext = aes_cbc_encrypt(padded, key, iv)
    assert len(ciphertext) == len(padded)
    assert aes_cbc_decrypt(ciphertext, key, iv) == padded
    assert pkcs7_unpad(aes_cbc_decrypt(ciphertext, key, iv)) == message


# --- PKCS#7 padding ------------------------------------------------------------------------------

# The table of RFC 5652 section 6.3 for k = 16, from "01" to "k k ... k k".
PADDINGS = [bytes([count]) * count for count in range(1, 17)]


@pytest.mark.parametrize(
    ("message", "padded"),
    [
        ("", "10101010101010101010101010101010"),
        ("aa", "aa0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"),
        ("aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa0808080808080808"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa0202"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaa01", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa0101"),
        ("01" * 16, "01" * 16 + "10101010101010101010101010101010"),
    ],
)
def test_padding_is_that_of_rfc_5652_written_out(message: str, padded: str) -> None:
    """Also where the message ends in what looks like a padding."""
    assert pkcs7_pad(bytes.fromhex(message)).hex() == padded
    assert pkcs7_unpad(bytes.fromhex(padded)).hex() == message


def test_every_length_from_0_to_48_is_padded_to_the_next_block() -> None:
    """RFC 5652 section 6.3: k - (lth mod k) bytes, so a full block gets 16 more and never 0."""
    for size in range(49):
        message = bytes(range(100, 100 + size))
        padded = pkcs7_pad(message)
        assert padded == message + PADDINGS[15 - size % 16]
        assert len(padded) % 16 == 0
        assert pkcs7_unpad(padded) == message


def unpadded(data: bytes) -> bytes | None:
    """Remove a padding by looking it up among the sixteen there are, or return None.

    Shares no arithmetic with pkcs7_unpad: no length is read from the last byte.
    """
    for padding in PADDINGS:
        if len(data) % 16 == 0 and data.endswith(padding):
            return data.removesuffix(padding)
    return None


def accepted(data: bytes) -> bytes | None:
    """Return what pkcs7_unpad makes of `data`, or None for a ValueError; any other error fails."""
    try:
        return pkcs7_unpad(data)
    except ValueError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(("fill", "valid"), [(0, 257), (2, 257), (3, 258), (16, 258)])
def test_all_65536_last_two_bytes_of_a_block_are_judged_right(fill: int, valid: int) -> None:
    """Fourteen bytes of `fill`, then all that two bytes can hold.

    Always valid: 256 ends in 01, and 0202. A fill of 3 makes 0303 a padding too, and 16 makes 1010
    one of the whole block; a fill of 2 makes none, for an end in 0202 is counted already.
    """
    blocks = [bytes([fill]) * 14 + number.to_bytes(2, "big") for number in range(65536)]
    assert [block for block in blocks if accepted(block) != unpadded(block)] == []
    assert sum(accepted(block) is not None for block in blocks) == valid


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_padding_with_any_one_byte_wrong_is_refused(blocks: int) -> None:
    """Every padding, every place in it but the last, all 255 wrong values: 120 x 255 cases.

    The last byte is the length; the tests around this one change that.
    """
    bad: list[bytes] = []
    for count in range(2, 17):
        good = bytes([200]) * (16 * blocks - count) + PADDINGS[count - 1]
        assert pkcs7_unpad(good) == bytes([200]) * (16 * blocks - count)
        for place in range(len(good) - count, len(good) - 1):
            bad += [
                good[:place] + bytes([value]) + good[place + 1 :]
                for value in range(256)
                if value != count
            ]
    assert len(set(bad)) == 120 * 255
    assert [data for data in bad if accepted(data) is not None] == []


def test_a_padding_length_outside_1_to_16_is_refused() -> None:
    """Even where all bytes agree and there are enough of them, as 32 bytes of 32."""
    lengths = [0, *range(17, 256)]
    bad = [bytes([length]) * size for length in lengths for size in (16, 32, 256)]
    bad += [bytes(size - 1) + bytes([length]) for length in lengths for size in (16, 32, 256)]
    assert len(bad) == 240 * 6
    assert [data for data in bad if accepted(data) is not None] == []


def test_padded_data_that_is_not_whole_blocks_is_refused() -> None:
    """It ends in a valid padding, so only its length can be why."""
    bad = [
        bytes(size - len(padding)) + padding
        for size in range(49)
        for padding in PADDINGS
        if size % 16 and len(padding) <= size
    ]
    assert len(bad) == 120 + 15 * 16 * 2
    assert [data for data in [b"", *bad] if accepted(data) is not None] == []


def test_no_error_of_the_padding_quotes_the_plaintext() -> None:
    """Whoever reads the log of a receiver must not read the message there."""
    for bad in (b"my message", b"my message.....\x00", b"my message...\x02\x03\x03"):
        with pytest.raises(ValueError) as error:
            pkcs7_unpad(bad)
        assert "my " not in repr(error.value)
        assert b"my ".hex() not in repr(error.value)


@given(message=st.binary(max_size=300))
def test_unpadding_what_was_padded_gives_it_back(message: bytes) -> None:
    """For any bytes, with 1 to 16 more of them in between."""
    padded = pkcs7_pad(message)
    assert padded.startswith(message)
    assert 1 <= len(padded) - len(message) <= 16
    assert pkcs7_unpad(padded) == message


@given(
    head=st.binary(min_size=48, max_size=48),
    padding=st.sampled_from(PADDINGS),
    first=st.none() | st.integers(0, 255),
    size=st.sampled_from([16, 32, 48, 15, 17]),
)
def test_what_unpads_is_what_padding_makes(
    head: bytes, padding: bytes, first: int | None, size: int
) -> None:
    """No data has two paddings: whatever is accepted, padding it again gives the same bytes.

    Random data would hardly ever end in a padding. This does, or in one with another first byte.
    """
    tail = padding if first is None else bytes([first]) + padding[1:]
    data = (head + tail)[-size:]
    message = accepted(data)
    assert message == unpadded(data)
    assert message is None or pkcs7_pad(message) == data


# --- SHA-256, through the two functions that use it ----------------------------------------------

# FIPS 180-4 refers to NIST's "Examples with Intermediate Values" for SHA-256, which are the first
# two; the others are from the "additional examples" NIST published with them.
SHA_256_EXAMPLES = [
    (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
    ),
    (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (
        b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
        b"hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
    ),
    (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
]


def splits(message: bytes) -> list[tuple[bytes, bytes]]:
    """Cut a message in two, in every place if it is short."""
    places = range(len(message) + 1) if len(message) < 200 else (0, 1, 32, len(message))
    return [(message[:place], message[place:]) for place in places]


@pytest.mark.parametrize(
    ("message", "digest"), SHA_256_EXAMPLES, ids=["1-block", "2-blocks", "empty", "896-bit", "long"]
)
def test_keys_are_the_sha_256_of_their_two_parts_in_order(message: bytes, digest: str) -> None:
    """`derive_key(b"a", "bc")` must be SHA-256("abc"), whichever way "abc" is cut."""
    cut = splits(message)
    assert len(cut) == (len(message) + 1 if len(message) < 200 else 4)
    for key, rest in cut:
        assert evolve_key(key, rest).hex() == digest
        assert derive_key(key, rest.decode("ascii")).hex() == digest


def test_a_label_that_is_not_ascii_is_refused() -> None:
    """[P 3.4] says ASCII; UTF-8 would be a second encoding that two ends could disagree about."""
    with pytest.raises(ValueError):
        derive_key(bytes(16), "C2S-\N{LATIN CAPITAL LETTER E WITH ACUTE}NC")


def test_a_fingerprint_is_the_first_four_bytes_of_the_digest() -> None:
    """Checked with the same published digests."""
    for message, digest in SHA_256_EXAMPLES:
        assert fingerprint(message) == digest[:8]


@given(key=st.binary(min_size=16, max_size=64))
def test_a_fingerprint_is_eight_lowercase_hex_digits_that_do_not_show_the_key(key: bytes) -> None:
    """Short enough to compare by eye, the same each time, and not a piece of the key."""
    name = fingerprint(key)
    assert len(name) == 8
    assert set(name) <= set(string.hexdigits.lower())
    assert name == fingerprint(key)
    assert name not in key.hex()


# --- HMAC-SHA256 ---------------------------------------------------------------------------------

# RFC 4231 section 4, test cases 1 to 7: key, data, HMAC-SHA-256.
RFC_4231 = {
    1: (
        b"\x0b" * 20,
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    ),
    2: (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    3: (
        b"\xaa" * 20,
        b"\xdd" * 50,
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
    ),
    4: (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    5: (b"\x0c" * 20, b"Test With Truncation", "a3b6167473100ee06e0c796c2955552b"),
    6: (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    7: (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
}
TRUNCATED = 5  # to 128 bits; see the test of its own

KEY, DATA, HEX_TAG = RFC_4231[2]
TAG = bytes.fromhex(HEX_TAG)


@pytest.mark.parametrize("case", [case for case in RFC_4231 if case != TRUNCATED])
def test_rfc_4231_gives_the_published_tag_and_verifies_it(case: int) -> None:
    """Keys shorter and longer than the block of the hash, and data likewise."""
    key, data, tag = RFC_4231[case]
    assert hmac_sha256(key, data).hex() == tag
    assert hmac_verify(key, data, bytes.fromhex(tag)) is True


def test_rfc_4231_case_5_is_made_whole_and_refused_truncated() -> None:
    """Case 5 publishes 128 bits only; [P 3.2] knows no truncated tag.

    So its 16 bytes must be the first half of ours, and must not be accepted as a tag.
    """
    key, data, half = RFC_4231[TRUNCATED]
    whole = hmac_sha256(key, data)
    assert len(whole) == TAG_BYTES
    assert whole[:16].hex() == half
    assert hmac_verify(key, data, bytes.fromhex(half)) is False
    assert hmac_verify(key, data, whole) is True


def test_all_seven_cases_of_rfc_4231_are_here() -> None:
    """So that nobody drops the case that fails."""
    assert list(RFC_4231) == [1, 2, 3, 4, 5, 6, 7]


def flips(data: bytes) -> list[bytes]:
    """Return all data that differ from `data` in one bit."""
    number = int.from_bytes(data, "big")
    return [(number ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data))]


def test_a_tag_with_one_flipped_bit_is_refused() -> None:
    """All 256 of them."""
    bad = flips(TAG)
    assert len(set(bad) - {TAG}) == 256
    assert [tag.hex() for tag in bad if hmac_verify(KEY, DATA, tag) is not False] == []


def test_a_tag_of_any_other_length_is_refused() -> None:
    """Empty, cut short, and with more behind, even when what is there is right."""
    for size in {*range(65)} - {TAG_BYTES}:
        assert hmac_verify(KEY, DATA, (TAG + TAG)[:size]) is False
        assert hmac_verify(KEY, DATA, (TAG + bytes(32))[:size]) is False
        assert hmac_verify(KEY, DATA, (bytes(32) + TAG)[64 - size :]) is False


def test_one_flipped_bit_of_the_key_or_of_the_data_is_refused() -> None:
    """The tag depends on every bit of both."""
    cases = [(key, DATA) for key in flips(KEY)] + [(KEY, data) for data in flips(DATA)]
    assert len(cases) == 8 * (4 + 28)
    assert [case for case in cases if hmac_verify(*case, TAG) is not False] == []


@given(key=st.binary(max_size=100), data=st.binary(max_size=200), tag=st.binary(max_size=40))
def test_a_tag_is_right_only_if_it_is_the_one_made(key: bytes, data: bytes, tag: bytes) -> None:
    """For any key, data and tag."""
    made = hmac_sha256(key, data)
    assert len(made) == TAG_BYTES
    assert hmac_verify(key, data, made) is True
    assert hmac_verify(key, data, tag) is (tag == made)


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize(
    "tag",
    [TAG, bytes([TAG[0] ^ 1]) + TAG[1:], TAG[:-1] + bytes([TAG[-1] ^ 1]), bytes(32)],
    ids=["right", "wrong-first-byte", "wrong-last-byte", "zeros"],
)
def test_a_tag_is_compared_by_compare_digest_and_by_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tag: bytes, answer: bool
) -> None:
    """Time cannot be measured in a test without making it fail at random, so this looks at who
    decides: hmac.compare_digest, asked once, with both whole tags, and believed even if it lies.
    A `==` before or after it would change one of these.
    """
    asked: list[set[bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        asked.append({bytes(one), bytes(other)})
        return answer

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    verdict = crypto_utils.hmac_verify(KEY, DATA, tag)
    monkeypatch.undo()
    assert verdict is answer
    assert asked == [{TAG, tag}]


# --- Wycheproof ----------------------------------------------------------------------------------


def wycheproof(name: str, count: int) -> list[dict[str, Any]]:
    """Read a selection (its README.md names the source), and check that it is whole."""
    whole = json.loads((WYCHEPROOF / name).read_text(encoding="utf-8"))
    cases = [case for group in whole["testGroups"] for case in group["tests"]]
    assert len(cases) == len({case["tcId"] for case in cases}) == whole["numberOfTests"] == count
    return cases


AES_CASES = wycheproof("aes_cbc_pkcs5_test.json", 21)
HMAC_CASES = wycheproof("hmac_sha256_test.json", 21)


def name_of(case: dict[str, Any]) -> str:
    return f"{case['tcId']}-{case['comment'].replace(' ', '-')}"


def test_the_selections_from_wycheproof_hold_every_kind_of_case() -> None:
    """Eight bad paddings and ten modified tags, by the comment that Wycheproof gives them."""
    assert sum(case["result"] == "valid" for case in AES_CASES) == 5
    assert {case["comment"] for case in AES_CASES if case["result"] == "invalid"} == {
        "zero padding",
        "padding with 0xff",
        "bit padding",
        "padding longer than 1 block",
        "ANSI X.923 padding",
        "ISO 10126 padding",
        "padding longer than message",
        "invalid padding",
    }
    assert sum(case["result"] == "valid" for case in HMAC_CASES) == 10
    assert len({case["comment"] for case in HMAC_CASES if case["result"] == "invalid"}) == 10
    assert {len(case["key"]) // 2 for case in HMAC_CASES} == {16, 32, 65}


@pytest.mark.parametrize("case", AES_CASES, ids=name_of)
def test_wycheproof_aes_cbc_pkcs5(case: dict[str, Any]) -> None:
    """A valid case works both ways. An invalid one decrypts to its message and is refused for what
    stands behind it, and is never what we would have sent.
    """
    key, iv, message, ciphertext = (bytes.fromhex(case[it]) for it in ("key", "iv", "msg", "ct"))
    padded = aes_cbc_decrypt(ciphertext, key, iv)
    assert (aes_cbc_encrypt(pkcs7_pad(message), key, iv) == ciphertext) is (
        case["result"] == "valid"
    )
    if case["result"] == "valid":
        assert pkcs7_unpad(padded) == message
    else:
        assert case["result"] == "invalid"
        assert padded.startswith(message)
        with pytest.raises(ValueError):
            pkcs7_unpad(padded)


def test_an_empty_ciphertext_does_not_unpad() -> None:
    """Wycheproof's flag NoPadding: AES does not mind having nothing to do, so padding must."""
    assert aes_cbc_decrypt(b"", bytes(16), bytes(16)) == b""
    with pytest.raises(ValueError):
        pkcs7_unpad(aes_cbc_decrypt(b"", bytes(16), bytes(16)))


@pytest.mark.parametrize("case", HMAC_CASES, ids=name_of)
def test_wycheproof_hmac_sha256(case: dict[str, Any]) -> None:
    """A valid tag of 32 bytes is ours; a modified one is refused.

    The two valid tags of 16 bytes are for a truncated HMAC; see RFC 4231 case 5 above.
    """
    key, message, tag = (bytes.fromhex(case[it]) for it in ("key", "msg", "tag"))
    assert case["result"] in ("valid", "invalid")
    assert (hmac_sha256(key, message)[: len(tag)] == tag) is (case["result"] == "valid")
    assert hmac_verify(key, message, tag) is (case["result"] == "valid" and len(tag) == TAG_BYTES)
