"""The cost ladder: what one round of ours is made of, each piece measured alone.

A round is one report and one answer, with one client, so that both ends take turns and every
microsecond of either counts. The pieces, for messages of exactly our sizes:

- sockets: a round of the bare rival, in two processes, waking up included;
- AES: encrypt and decrypt both messages, with a new cipher object each, as every key is new;
- HMAC: make and check both tags;
- SHA-256: the four moves of keys that each end makes in a round;
- JSON: write and read a report and an answer, once each;
- the rest: what a round of ours takes beyond these. Checks at both ends, the state machine,
  deadlines, the epoch, copies, and whatever Python spends on calling all that.

Sockets, the pieces and ours together take turns, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.rivals import Body, encode, example_answer, message_sizes
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    aes_cbc_encrypt,
    evolve_key,
    hmac_sha256,
    hmac_verify,
)
from protocol_fsm import OVERHEAD


class Rung(NamedTuple):
    name: str
    seconds: float
    share: float  # of the whole round


def pieces(body: Body) -> Mapping[str, Callable[[], object]]:
    """Return what one round has to do at least, by name, for both ends together."""
    answer = example_answer(body)
    members = json.loads(answer)
    key = bytes(AES_KEY_BYTES)
    iv = bytes(BLOCK_BYTES)
    mac_key = bytes(32)
    sizes = message_sizes(body)
    texts = [bytes(size - OVERHEAD) for size in sizes]  # as long as padded plaintexts
    tagged = [bytes(size - TAG_BYTES) for size in sizes]
    tags = [hmac_sha256(mac_key, message) for message in tagged]
    moves = [texts[0], bytes(NONCE_BYTES), answer, bytes(1)]  # what each key is moved by [P 3.4]

    def aes() -> None:
        for text in texts:
            aes_cbc_decrypt(aes_cbc_encrypt(text, key, iv), key, iv)

    def hmac() -> None:
        for message, tag in zip(tagged, tags):
            hmac_sha256(mac_key, message)
            hmac_verify(mac_key, message, tag)

    def sha_256() -> None:
        for material in moves * 2:
            evolve_key(mac_key, material)

    def json_() -> None:
        json.loads(encode(body.readings).encode())
        encode(members).encode()
        json.loads(answer)

    return {"AES": aes, "HMAC": hmac, "SHA-256": sha_256, "JSON": json_}


def clock(piece: Callable[[], object], rounds: int) -> float:
    """Return the seconds that a piece takes, on average over `rounds`."""
    before = time.perf_counter()
    for _ in range(rounds):
        piece()
    return (time.perf_counter() - before) / rounds


def build(
    ours_s: list[float], sockets_s: list[float], pieces_s: Mapping[str, list[float]]
) -> list[Rung]:
    """Return the rungs from the times of all turns; the last is the rest."""
    whole = median(ours_s)
    parts = {"sockets": median(sockets_s), **{name: median(s) for name, s in pieces_s.items()}}
    parts["the rest"] = whole - sum(parts.values())
    return [Rung(name, seconds, seconds / whole) for name, seconds in parts.items()]


def floor(rungs: Sequence[Rung]) -> float:
    """Return the seconds of a round that consists of nothing but the pieces."""
    return sum(rung.seconds for rung in rungs if rung.name != "the rest")
