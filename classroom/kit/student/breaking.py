"""The adversary: you have what stood on the wire, and no key.

Every attack is tried on three targets that are new each time, and the worst of the three counts:
what you return has to be computed from what you are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from crypto_utils import BLOCK_BYTES, TAG_BYTES
from protocol_fsm import CIPHERTEXT_AT, HEADER, Direction, Opcode


class Frame(NamedTuple):
    """A message on the wire, and the end that it goes to: "client" or "server"."""

    to: str
    message: bytes


def replay(recording: Sequence[bytes], send: Callable[[bytes], bytes]) -> None:
    """Make a server take the reports of a recorded session once more, in a session of yours.

    `recording` holds the messages of both directions, in order, without the length before them.
    `send` delivers a message to a server that does not bind its keys, and returns its answer,
    which is empty if there is none.
    """
    for message in recording:
        if Direction(HEADER.unpack_from(message)[3]) is Direction.C2S:
            send(message)


def flip(message: bytes, known: bytes, wanted: bytes) -> bytes:
    """Return a CLIENT_DATA changed so that its body begins with `wanted` in place of `known`.

    Both have the same length, at most 16 bytes; all that follows them must stay as it is. The
    server checks no tag. A nonce of one block stands before the body.
    """
    changed = bytearray(message)
    for place, (old, new) in enumerate(zip(known, wanted)):
        changed[CIPHERTEXT_AT + place] ^= old ^ new  # decrypts into the block behind it
    return bytes(changed)


def padding_oracle(message: bytes, is_padded: Callable[[bytes], bool]) -> bytes:
    """Return the last four bytes of the second block of the plaintext of a CLIENT_DATA.

    `is_padded` delivers a message to a server that looks at the padding before the tag, and
    returns whether the padding was right. It may be asked 1,024 times.
    """
    second = CIPHERTEXT_AT + BLOCK_BYTES
    before = message[CIPHERTEXT_AT:second]
    block = message[second : second + BLOCK_BYTES]

    def is_right(iv: bytes) -> bool:
        return is_padded(message[: HEADER.size] + iv + block + bytes(TAG_BYTES))

    def touched(iv: bytes) -> bytes:  # a longer padding, right by chance, is wrong then
        return iv[:-2] + bytes([iv[-2] ^ 1]) + iv[-1:]

    known = b""  # of what the block decrypts to, before it is XORed with `before`
    while len(known) < 4:
        aim = len(known) + 1
        end = bytes(aim ^ byte for byte in known)
        for guess in range(255):
            iv = bytes(BLOCK_BYTES - aim) + bytes([guess]) + end
            if is_right(iv) and (aim > 1 or is_right(touched(iv))):
                break
        else:
            guess = 255  # no other is left
        known = bytes([guess ^ aim]) + known
    return bytes(one ^ other for one, other in zip(known, before[-4:]))


MINIMAL_SET: tuple[str, ...] = ("round", "ratchet")  # rules that must be missing, at least two


def own_attack(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Stand between a client and a server.

    What you yield is delivered; when you return, the rest passes. You win if the server counts a
    report that its client did not send, or if the client believes an answer that the server did
    not give.
    """
    has_replayed = False
    for frame in frames:
        yield frame
        if frame.message[0] == Opcode.CLIENT_DATA and not has_replayed:
            has_replayed = True
            answer = next(frames)  # held until the server has had the report twice
            yield frame
            yield answer
            yield next(frames)
