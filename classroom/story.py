"""What an explored adversary does, step by step, and the promises that it tries to break.

In a step one end gets a frame that was sent before, as it is or changed by one general menu, or
something happens to it without a frame. Nothing here knows an attack, nor whether the ends are in
memory (explore.py) or on sockets (stage.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from attacks import Frame, edited, flipped
from crypto_utils import BLOCK_BYTES, NONCE_BYTES, TAG_BYTES, pkcs7_pad
from endpoint import OPCODE_NAMES
from protocol_fsm import (
    CIPHERTEXT_AT,
    ENDING,
    HEADER,
    JSON_BODIES,
    Direction,
    Header,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    Session,
    Status,
)

CLIENTS = {"client 1": 1, "client 2": 2, "client 1 again": 1, "client 2 again": 2}
OLD = {"the old client 1": 1, "the old client 2": 2}  # whose sessions were recorded, and are over
ROUNDS = 2  # that a client may begin


def readings(name: str, round_number: int) -> list[float]:
    """Return what a client reports; no two reports are equal."""
    return [100.0 * [*CLIENTS, *OLD].index(name) + round_number, 20.5, 21.0]


# What is seen of an end, and what it is promised --------------------------------------------------


class Word(NamedTuple):
    """What both ends of a message must agree on; of an ending nothing but the reason is told."""

    opcode: Opcode
    status: Status
    client_id: int = 0
    round_number: int = 0
    direction: int = 0
    nonce: bytes = b""
    body: bytes = b""


def word(message: Message) -> Word:
    if message.opcode in ENDING:
        return Word(message.opcode, message.status)
    return Word(
        message.opcode,
        message.status,
        message.client_id,
        message.round_number,
        message.direction,
        message.nonce,
        message.body,
    )


class Notes(Session):
    """A Session that also notes what it seals and accepts. Nothing else is changed in it."""

    said: tuple[Word, ...] = ()
    heard: tuple[Word, ...] = ()
    sent: tuple[bytes, ...] = ()  # the frames of `said`
    plaintexts: tuple[bytes, ...] = ()  # of these frames

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        self._checked = super()._check_payload(header, plaintext), plaintext
        return self._checked[0]

    def seal(self, opcode: Opcode, body: bytes = b"", *, status: Status = Status.OK) -> bytes:
        sealed = super().seal(opcode, body, status=status)
        message, plaintext = self._checked
        self.said = (*self.said, word(message))
        self.sent = (*self.sent, sealed)
        self.plaintexts = (*self.plaintexts, plaintext)
        return sealed

    def open(self, message: bytes) -> Message:
        try:
            accepted = super().open(message)
        except PeerTerminated as end:
            self.heard = (*self.heard, Word(end.opcode, end.status))
            raise
        self.heard = (*self.heard, word(accepted))
        return accepted

    def fail(self, error: ProtocolError) -> None:
        try:
            super().fail(error)
        except PeerTerminated as end:  # of a rule that takes a cut connection for a goodbye
            self.heard = (*self.heard, Word(end.opcode, end.status))
            raise

    @property
    def nonces(self) -> tuple[bytes, ...]:
        """Return the client's and the server's nonce as this end has them; nothing before."""
        is_client = self.sends is Direction.C2S
        hello, challenge = (self.said, self.heard) if is_client else (self.heard, self.said)
        if not hello or not challenge or challenge[0].opcode is not Opcode.SERVER_CHALLENGE:
            return ()
        return hello[0].nonce, challenge[0].body[NONCE_BYTES:]


def watched(session: type[Session]) -> type[Notes]:
    return type("Watched", (Notes, session), {})


def broken(me: Notes, everybody: Sequence[Notes]) -> str:
    """Say which promise to `me` is broken; empty if none is."""
    alike = [
        end for end in everybody if end.nonces == me.nonces != () and end.client_id == me.client_id
    ]
    partners = [end for end in alike if end.sends is not me.sends]
    if me.heard and [w.opcode for w in me.heard] != [Opcode.CLIENT_HELLO]:
        last = f"accepts {me.heard[-1].opcode.name} ({me.heard[-1].status.name})"
        if len(partners) != 1 or len(alike) != 2:
            return f"{last}, and has {len(partners) or 'no'} partner with the same nonces"
        if me.heard != partners[0].said[: len(me.heard)]:
            return f"{last}, which is not what its partner sent next"
    if any(w.opcode in JSON_BODIES and w.body in sent for w, sent in zip(me.said, me.sent)):
        return "sends what can be read on the wire"
    return ""


# What the adversary can do to a frame -------------------------------------------------------------

Change = Callable[[bytes, bytes, bytes], bytes]  # of a message, with its plaintext, with another's


def flip(position: int) -> Change:
    return lambda message, _, __: flipped(Frame("", message), position).message


def cut_block(message: bytes, *_: bytes) -> bytes:
    return message[: -TAG_BYTES - BLOCK_BYTES] + message[-TAG_BYTES:]


def double_block(message: bytes, *_: bytes) -> bytes:
    return message[:-TAG_BYTES] + message[-TAG_BYTES - BLOCK_BYTES :]


def say_goodbye(message: bytes, plaintext: bytes, _: bytes) -> bytes:
    """Make a goodbye of a frame whose text is known: in CBC one block can be turned into any."""
    skipped = NONCE_BYTES if message[6] == Direction.C2S else 0  # the status stands behind it
    known = pkcs7_pad(plaintext)[skipped:]
    wanted = pkcs7_pad(bytes([Status.GOODBYE]))
    start = HEADER.size + skipped  # of the IV or block before
    turned = bytes(a ^ b ^ c for a, b, c in zip(message[start:], known, wanted))
    rest = message[start + BLOCK_BYTES : start + 2 * BLOCK_BYTES]
    return message[:start] + turned + rest + message[-TAG_BYTES:]


def other_iv(message: bytes, _: bytes, other: bytes) -> bytes:
    return message[: HEADER.size] + other[HEADER.size : CIPHERTEXT_AT] + message[CIPHERTEXT_AT:]


def other_tag(message: bytes, _: bytes, other: bytes) -> bytes:
    return message[:-TAG_BYTES] + other[-TAG_BYTES:]


GOODBYES = {"its known text turned into a goodbye": Opcode.TERMINATE}
FLIPS = {f"a bit of byte {n} flipped": flip(n) for n in range(HEADER.size, CIPHERTEXT_AT + 16)}
EDGES = [*FLIPS][0:1] + [*FLIPS][15:17] + [*FLIPS][31:]  # of the IV, and of the first block
SPLICES: dict[str, Change] = {"the IV": other_iv, "the tag": other_tag}
CHANGES: dict[str, Change] = {
    **FLIPS,
    "a bit of its tag flipped": flip(-1),
    "its last block cut off": cut_block,
    "its last block doubled": double_block,
    **dict.fromkeys(GOODBYES, say_goodbye),
    **SPLICES,
}
ALONE = [change for change in CHANGES if change in EDGES or change not in {**FLIPS, **SPLICES}]


class Step(NamedTuple):
    """Something that happens to an end. A frame is named by its sender and a number from 0."""

    end: str
    what: str  # "gets" a frame, or what the end does by itself
    sender: str = ""
    number: int = 0
    kind: str = ""  # of the frame, as it was sent
    fields: tuple[tuple[str, int], ...] = ()  # of the header, and what is written there
    change: str = ""  # a name in CHANGES
    other: int = 0  # number of the sender's other frame that this takes

    def changed(self, sender: Notes) -> bytes:
        """Return the frame as it arrives."""
        message = sender.sent[self.number]
        plaintext = sender.plaintexts[self.number]
        if self.change:
            message = CHANGES[self.change](message, plaintext, sender.sent[self.other])
        return edited(Frame("", message), **dict(self.fields)).message

    def __str__(self) -> str:
        names = {"opcode": OPCODE_NAMES, "direction": {int(d): d.name for d in Direction}}
        frame = f" the {self.kind} of {self.sender}" if self.sender else ""
        parts = [f"{self.end} {self.what}{frame}"]
        if self.fields:
            parts.append(
                "with "
                + " and ".join(
                    f"{field.replace('_', ' ').replace(' number', '')} "
                    f"{names.get(field, {}).get(n, n)}"
                    for field, n in self.fields
                )
            )
        if self.change:
            of_other = f" of its frame {self.other + 1}" * (self.change in SPLICES)
            parts.append(f"with {self.change}{of_other}")
        return ", ".join(parts)


def menu(step: Step, end: Notes, sender: Notes, *, is_fine: bool = False) -> Iterator[Step]:
    """Yield every way in which a frame may be handed to an end, the simplest first.

    `is_fine`: flips of all bytes. They are for frames of which some other change got through.
    """
    header = Header(*HEADER.unpack_from(sender.sent[step.number]))

    def written(fields: Mapping[str, int], change: str = "", other: int = 0) -> Step:
        new = [(name, int(n)) for name, n in fields.items() if n != getattr(header, name)]
        return step._replace(
            kind=OPCODE_NAMES[header.opcode], fields=tuple(new), change=change, other=other
        )

    fitting = {
        "client_id": end.client_id or header.client_id,
        "direction": int(end.receives),
        "round_number": end.round_number,
    }
    if is_fine:
        yield from (written(fitting, flip) for flip in FLIPS)
        return
    yield written({})
    values: dict[str, Iterable[int]] = {
        "client_id": OLD.values(),
        "direction": Direction,
        "opcode": Opcode,
        "round_number": (end.round_number, end.round_number + 1),
    }
    yield from (written({name: n}) for name in values for n in values[name])
    yield from (written({**fitting, "opcode": n}) for n in (header.opcode, *Opcode))
    for change in ALONE:
        yield written({**fitting, "opcode": GOODBYES.get(change, header.opcode)}, change)
    for change, other in itertools.product(SPLICES, range(step.number)):
        yield written(fitting, change, other)
