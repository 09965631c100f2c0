"""Diffie-Hellman in the 2,048-bit group 14 of RFC 3526, in a few lines that can be read.

`pow` takes 9 ms, and its time depends a little on the exponent: an exponent serves for one exchange
only, and is then erased. The library's own exchange in such groups is deprecated, so it is used
in a test only, as a second opinion.
"""

from __future__ import annotations

import secrets

GENERATOR = 2
PRIME = int(  # p = 2^2048 - 2^1984 - 1 + 2^64 (floor(2^1918 pi) + 124476). RFC 3526 section 3
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74"
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437"
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05"
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB"
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B"
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718"
    "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
    16,
)
ELEMENT_BYTES = 256
EXPONENT_BITS = 256  # twice the strength of the group, and more (RFC 7919 section 5.2)


def new_exponent() -> int:
    """Return a secret exponent: a random number of exactly 256 bits."""
    return secrets.randbits(EXPONENT_BITS - 1) | 1 << (EXPONENT_BITS - 1)


def is_in_range(value: int, prime: int = PRIME) -> bool:
    """Return whether a public value is none of 0, 1, p - 1, and smaller than p."""
    return 2 <= value <= prime - 2


def is_in_subgroup(value: int, prime: int = PRIME) -> bool:
    """Return whether a public value is a power of 2: then it leaks no bit of an exponent.

    As p = 2q + 1 with q prime, the powers of 2 are the squares, which the Jacobi symbol knows.
    """
    return jacobi(value, prime) == 1


def jacobi(value: int, modulus: int) -> int:
    """Return the Jacobi symbol, -1, 0 or 1, of an odd modulus. Source: FIPS 186-5, B.5."""
    value %= modulus
    symbol = 1
    while value:
        while value % 2 == 0:
            value //= 2
            if modulus % 8 in (3, 5):
                symbol = -symbol
        value, modulus = modulus, value
        if value % 4 == modulus % 4 == 3:
            symbol = -symbol
        value %= modulus
    return symbol if modulus == 1 else 0


def shared_secret(exponent: int, value: int, prime: int = PRIME) -> bytes:
    """Return the 256 bytes that only the owners of both exponents know, leading zeros included."""
    return pow(value, exponent, prime).to_bytes(ELEMENT_BYTES, "big")
