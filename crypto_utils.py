"""The cryptographic building blocks: pure functions on bytes, which know no protocol.

Every primitive comes from a library; only the padding is ours. No error quotes a key or a
plaintext. protocol_fsm.py decides when a key is used, and when it moves.
"""

from __future__ import annotations

import hashlib
import hmac

from Crypto.Cipher import AES

BLOCK_BYTES = 16  # the block size of AES (FIPS 197), and of the IV and the padding
AES_KEY_BYTES = 16  # AES-128
TAG_BYTES = 32  # HMAC-SHA256, not truncated
NONCE_BYTES = 16


def pkcs7_pad(data: bytes) -> bytes:
    """Append 1 to 16 bytes; each says how many they are. Source: RFC 5652 section 6.3.

    Data that fills its last block gets another block: there is always padding to remove.
    """
    missing = BLOCK_BYTES - len(data) % BLOCK_BYTES
    return data + bytes([missing]) * missing


def pkcs7_unpad(padded: bytes) -> bytes:
    """Check all of the padding of 16n bytes, and remove it. Raises ValueError.

    A caller that has not verified a tag first is building a padding oracle.
    """
    if not padded or len(padded) % BLOCK_BYTES:
        raise ValueError("padded data is not a positive number of whole blocks")
    length = padded[-1]
    if not 1 <= length <= BLOCK_BYTES:
        raise ValueError("the padding length is not between 1 and 16")
    if padded[-length:] != bytes([length]) * length:
        raise ValueError("the padding bytes do not all hold the padding length")
    return padded[:-length]


def aes_cbc_encrypt(padded: bytes, key: bytes, iv: bytes) -> bytes:
    """Encrypt 16n bytes to 16n bytes; key and IV have 16 bytes. Source: SP 800-38A section 6.2."""
    return AES.new(_aes_128(key), AES.MODE_CBC, iv=iv).encrypt(padded)


def aes_cbc_decrypt(ciphertext: bytes, key: bytes, iv: bytes) -> bytes:
    """Decrypt 16n bytes to 16n bytes, still padded. Source: SP 800-38A section 6.2."""
    return AES.new(_aes_128(key), AES.MODE_CBC, iv=iv).decrypt(ciphertext)


def _aes_128(key: bytes) -> bytes:
    if len(key) != AES_KEY_BYTES:  # the library also takes 24 and 32 bytes
        raise ValueError("an AES-128 key has 16 bytes")
    return key


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """Return the 32-byte tag of `data`. Source: RFC 2104, FIPS 198-1."""
    return hmac.digest(key, data, "sha256")


def hmac_verify(key: bytes, data: bytes, tag: bytes) -> bool:
    """Return whether `tag` is right, in a time that does not depend on where it is wrong."""
    return hmac.compare_digest(hmac_sha256(key, data), tag)


def derive_key(master_key: bytes, label: str) -> bytes:
    """Return the first 32-byte chain key for `label` [P 3.4]. Source: FIPS 180-4."""
    return hashlib.sha256(master_key + label.encode("ascii")).digest()


def evolve_key(chain_key: bytes, material: bytes) -> bytes:
    """Return the next 32-byte chain key [P 3.4], which does not lead back to `chain_key`."""
    return hashlib.sha256(chain_key + material).digest()


def fingerprint(key: bytes) -> str:
    """Name a key by 8 hex digits, so that two terminals can be compared without showing it."""
    return hashlib.sha256(key).digest()[:4].hex()
