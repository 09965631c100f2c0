"""What an explored adversary does, step by step, and the promises that it tries to break.

In a step one end gets a frame that was sent before, as it is or changed by one general menu, or
something happens to it without a frame. Nothing here knows an attack, nor whether the ends are in
memory (explore.py) or on sockets (stage.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from typing import NamedTuple

from attacks import edited
from crypto_utils import BLOCK_BYTES, NONCE_BYTES, TAG_BYTES, pkcs7_pad
from endpoint import OPCODE_NAMES
from lab.frames import Frame, flipped_bytes
from protocol_fsm import (
    CIPHERTEXT_AT,
    FAREWELL_STATUS,
    HEADER,
    LABEL_OF,
    Direction,
    Header,
    Keys,
    Opcode,
    PeerTerminated,
    Seen,
    Session,
    Status,
)

CLIENTS = {"client 1": 1, "client 2": 2, "client 1 again": 1, "client 2 again": 2}
OLD = {"the old client 1": 1, "the old client 2": 2}  # whose sessions were recorded, and are over
ROUNDS = 2  # that a client begins, if not said otherwise


def readings(name: str, round_number: int) -> list[float]:
    """Return what a client reports; no two reports are equal."""
    return [100.0 * [*CLIENTS, *OLD].index(name) + round_number, 20.5, 21.0]


# What is seen of an end, and what it is promised --------------------------------------------------


class Word(NamedTuple):
    """What both ends of a message must agree on; of a farewell only the reason."""

    opcode: int
    body: bytes  # of a farewell: its status
    lead: bytes = b""  # before the body: a client's nonce, a server's status
    client_id: int = 0
    round_number: int = 0
    direction: int = 0

    def __str__(self) -> str:
        name = OPCODE_NAMES[self.opcode]
        if self.opcode not in FAREWELL_STATUS:
            return name
        known = {bytes([status]): status.name for status in Status}
        return f"{name} ({known.get(self.body, 'no status')})"


REPLACED = Word(Opcode.TERMINATE, bytes([Status.REPLACED]))


def word(seen: Seen) -> Word:
    """Return what a message says that was sealed or accepted."""
    header = Header(*HEADER.unpack_from(seen.message))
    is_from_client = header.direction == Direction.C2S
    lead_bytes = NONCE_BYTES if is_from_client else 1
    lead = seen.plaintext[:lead_bytes]
    body = seen.plaintext[lead_bytes:]
    if header.opcode in FAREWELL_STATUS:
        return Word(header.opcode, body if is_from_client else lead)
    return Word(header.opcode, body, lead, header.client_id, header.round_number, header.direction)


class Notes:
    """What one session seals and accepts, as it tells its watchers."""

    def __init__(self, client_id: int, sends: Direction) -> None:
        self.client_id = client_id
        self.sends = sends
        self.said: tuple[Word, ...] = ()
        self.heard: tuple[Word, ...] = ()
        self.sent: tuple[bytes, ...] = ()  # the messages of `said`
        self.got: tuple[bytes, ...] = ()  # the messages of `heard`
        self.used: tuple[frozenset[bytes], ...] = ()  # the keys of `sent`
        self.used_ever: frozenset[bytes] = frozenset()
        self.session: Session  # whose notes these are
        self._now: Keys = {}
        self._before: Keys = {}  # the last message
        self.plaintexts: tuple[bytes, ...] = ()  # of these messages
        self.nonces: tuple[bytes, ...] = ()  # the client's and the server's, as this end has them

    def attach(self, session: Session) -> None:
        """Belong to this session from now on; it has this `watch` and this `hold`."""
        self.session = session
        self._now = session._keys

    def hold(self, keys: Keys) -> None:
        """Note the keys that the session has now, as a key log is told them."""
        self._before = self._now
        self._now = keys

    def watch(self, seen: Seen) -> None:
        """Note a message that was sealed or accepted."""
        if seen.verdict == "sealed":
            self.said = (*self.said, word(seen))
            self.sent = (*self.sent, seen.message)
            self.plaintexts = (*self.plaintexts, seen.plaintext)
            used = frozenset(self._before[LABEL_OF[self.sends, use]] for use in ("ENC", "MAC"))
            self.used = (*self.used, used)
            self.used_ever |= used
        elif seen.verdict == "accepted":
            self.heard = (*self.heard, word(seen))
            self.got = (*self.got, seen.message)
        if not self.nonces:
            self.nonces = self._hold()

    def stop(self, cause: Exception) -> None:
        """Note a farewell that was only believed: without some rules, a cut connection is one."""
        has_heard = any(heard.opcode in FAREWELL_STATUS for heard in self.heard)
        if isinstance(cause, PeerTerminated) and not has_heard:
            self.heard = (*self.heard, Word(cause.opcode, bytes([cause.status])))
            self.got = (*self.got, b"")

    def _hold(self) -> tuple[bytes, ...]:
        is_client = self.sends is Direction.C2S
        hello, challenge = (self.said, self.heard) if is_client else (self.heard, self.said)
        if not hello or not challenge or challenge[0].opcode != Opcode.SERVER_CHALLENGE:
            return ()
        return hello[0].lead, challenge[0].body[NONCE_BYTES:]


def broken(me: Notes, everybody: Sequence[Notes], has_thief: bool = False) -> str:
    """Return how a promise to `me` is broken; empty if none is. 5 and 6 are about a thief of keys.

    In `everybody`, the server's ends are in the order in which it accepted their CLIENT_HELLOs.
    """
    return (
        partner_broken(me, everybody)
        or secrecy_broken(me)
        or order_broken(me, everybody)
        or (theft_broken(me, everybody) if has_thief else "")
    )


def partner_broken(me: Notes, everybody: Sequence[Notes]) -> str:
    """Return how promise 1 or 2 is broken; empty if it is not."""
    if not me.heard or [heard.opcode for heard in me.heard] == [Opcode.CLIENT_HELLO]:
        return ""
    alike = [
        end for end in everybody if end.nonces == me.nonces != () and end.client_id == me.client_id
    ]
    partners = [end for end in alike if end.sends is not me.sends]
    if len(partners) != 1 or len(alike) != 2:
        count = len(partners) or "no"
        return f"accepts {me.heard[-1]}, and has {count} partner with the same nonces"
    count = len(me.heard)
    if me.heard != partners[0].said[:count] or me.got != partners[0].sent[:count]:
        return f"accepts {me.heard[-1]}, which is not what its partner sent next"
    return ""


def secrecy_broken(me: Notes) -> str:
    """Return how promise 3 is broken; empty if it is not."""
    for said, sent in zip(me.said, me.sent):
        if said.opcode in (Opcode.CLIENT_DATA, Opcode.SERVER_AGGR_RESPONSE) and said.body in sent:
            return "sends what can be read on the wire"
    return ""


def order_broken(me: Notes, everybody: Sequence[Notes]) -> str:
    """Return how promise 4 is broken; empty if it is not."""
    if me.sends is Direction.C2S or me.said[-1:] != (REPLACED,):
        return ""
    for end in everybody[everybody.index(me) + 1 :]:
        has_reported = any(heard.opcode == Opcode.CLIENT_DATA for heard in end.heard)
        if has_reported and end.sends is me.sends and end.client_id == me.client_id:
            return ""
    return "is replaced, and no later session of its client has reported"


def theft_broken(me: Notes, everybody: Sequence[Notes]) -> str:
    """Return how promise 5 or 6 is broken: what a thief of the keys that `me` holds now can do."""
    keys = frozenset(me.session._keys.values())
    for end in everybody:
        if end.client_id != me.client_id:
            if not end.used_ever.isdisjoint(me.used_ever | keys):
                return "has a key that another client has, too"
        elif me.nonces and not end.used_ever.isdisjoint(keys):
            is_partner = end.sends is not me.sends and end.nonces == me.nonces
            known = len(me.heard) if is_partner else len(end.said)  # what follows is on its way
            for said, used in zip(end.said[:known], end.used):
                if not used.isdisjoint(keys):
                    return f"holds a key of an old {said}"
    return ""


# What the adversary can do to a frame -------------------------------------------------------------

Change = Callable[[bytes, bytes, bytes], bytes]  # of a message, with its plaintext, with another's


def flip(position: int) -> Change:
    return lambda message, *_: flipped_bytes(message, position)


def cut_block(message: bytes, *_: bytes) -> bytes:
    return message[: -TAG_BYTES - BLOCK_BYTES] + message[-TAG_BYTES:]


def double_block(message: bytes, *_: bytes) -> bytes:
    return message[:-TAG_BYTES] + message[-TAG_BYTES - BLOCK_BYTES :]


def say_goodbye(message: bytes, plaintext: bytes, _: bytes) -> bytes:
    """Turn a frame whose text is known into a goodbye: in CBC one block can be turned into any."""
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
HEADER_FLIPS = {f"a bit of byte {n} flipped": flip(n) for n in range(HEADER.size)}
BODY_FLIPS = {f"a bit of byte {n} flipped": flip(n) for n in range(HEADER.size, CIPHERTEXT_AT + 16)}
TAG_FLIPS = {f"a bit of byte {n} of its tag flipped": flip(n - TAG_BYTES) for n in range(TAG_BYTES)}
FLIPS: dict[str, Change] = {**HEADER_FLIPS, **BODY_FLIPS, **TAG_FLIPS}
EDGES = [  # of the header, the IV, the first block, and both halves of the tag
    *HEADER_FLIPS,
    *([*BODY_FLIPS][place] for place in (0, 15, 16, 31)),
    *([*TAG_FLIPS][place] for place in (0, 15, 16, 31)),
]
SPLICES: dict[str, Change] = {"the IV": other_iv, "the tag": other_tag}
CHANGES: dict[str, Change] = {
    **FLIPS,
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
        frame = f" the {self.kind} of {self.sender}" if self.sender else ""
        parts = [f"{self.end} {self.what}{frame}"]
        if self.fields:
            parts.append("with " + " and ".join(starmap(field_in_words, self.fields)))
        if self.change in SPLICES:
            parts.append(f"with {self.change} of its frame {self.other + 1}")
        elif self.change:
            parts.append(f"with {self.change}")
        return ", ".join(parts)


def field_in_words(name: str, value: int) -> str:
    """Return a field of a header, and what is written there."""
    if name == "opcode":
        return f"opcode {OPCODE_NAMES.get(value, value)}"
    if name == "direction":
        return f"direction {Direction(value).name}"
    return f"{name.removesuffix('_number').replace('_', ' ')} {value}"


def menu(step: Step, end: Session, sender: Notes, *, is_fine: bool = False) -> Iterator[Step]:
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
        yield from (written({} if flip in HEADER_FLIPS else fitting, flip) for flip in FLIPS)
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
        fields = {**fitting, "opcode": GOODBYES.get(change, header.opcode)}
        yield written({} if change in HEADER_FLIPS else fields, change)
    for change, other in itertools.product(SPLICES, range(step.number)):
        yield written(fitting, change, other)
