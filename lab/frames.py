"""A frame: one message of any protocol on the wire, and what the adversary made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

OTHER_END = {"client": "server", "server": "client"}


@dataclass(frozen=True)
class Frame:
    """A message on the wire. If the adversary made it, it says how, and from which message."""

    to: str  # "client" or "server"
    message: bytes
    deed: str = ""  # changed, replaced, reflected or inserted; empty if an end sent it
    origin: Frame | None = None  # the frame of an end that it was made from

    def changed(self, message: bytes) -> Frame:
        """Return the frame with other bytes in it."""
        return Frame(self.to, message, self.deed or "changed", self.origin or self)

    def replaced(self, other: Frame) -> Frame:
        """Return what is delivered in place of this frame."""
        return Frame(self.to, other.message, "replaced", self)

    def reflected(self) -> Frame:
        """Return the frame on its way back to its sender."""
        return Frame(OTHER_END[self.to], self.message, "reflected", self)


Frames = Iterator[Frame]
Tap = Callable[[Frames], Frames]
Log = Callable[[str, Frame], object]  # what happened to a frame, and the frame


def flipped(frame: Frame, position: int, mask: int = 1) -> Frame:
    """Return a frame with the bits of `mask` flipped in one byte of the message; -1 is its last."""
    return frame.changed(flipped_bytes(frame.message, position, mask))


def flipped_bytes(message: bytes, position: int, mask: int = 1) -> bytes:
    """Return bytes with the bits of `mask` flipped in one of them; -1 is the last."""
    changed = bytearray(message)
    changed[position] ^= mask
    return bytes(changed)


def xored(one: bytes, other: bytes) -> bytes:
    """Return the XOR of two strings of bytes, as long as the shorter one."""
    return bytes(a ^ b for a, b in zip(one, other))


def recorder(tape: list[Frame]) -> Tap:
    """Return a tap that passes on all frames, and keeps them."""

    def listen(frames: Frames) -> Frames:
        for frame in frames:
            tape.append(frame)
            yield frame

    return listen
