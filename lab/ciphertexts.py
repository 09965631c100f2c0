"""What ciphertexts show of their plaintexts to an eavesdropper: good ones show nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lab.frames import xored

BLOCK_BYTES = 16
MOST_UNEVEN = 7.0  # standard deviations: by chance less than once in ten million runs
MOST_PERIOD_BYTES = 8


def shown_by(ciphertexts: Sequence[bytes]) -> str:
    """Return how these differ from random bytes; empty if they do not."""
    blocks = Counter(
        text[start : start + BLOCK_BYTES]
        for text in ciphertexts
        for start in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES)
    )
    if max(blocks.values(), default=0) > 1:
        return "two blocks are equal, and so is what they encrypt"
    if unevenness(b"".join(ciphertexts)) > MOST_UNEVEN:
        return "some bytes are more frequent than others, as in the plaintext"
    return ""


def unevenness(content: bytes) -> float:
    """Return by how many standard deviations the counts of byte values are too uneven."""
    counts = Counter(content)
    expected = max(len(content), 1) / 256
    chi_squared = sum((counts[value] - expected) ** 2 / expected for value in range(256))
    return float((chi_squared - 255) / (2 * 255) ** 0.5)


def repeats(ciphertext: bytes, known: bytes) -> bool:
    """Return whether XOR with the known plaintext gives a short key stream, again and again."""
    stream = xored(ciphertext, known)
    return any(stream[step:] == stream[:-step] for step in range(1, MOST_PERIOD_BYTES + 1))
