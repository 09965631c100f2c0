"""A room as one end knows it: who is in it, what was said, and every check of a message.

The server orders: message n leads from one head to the next, and everybody in the room computes
the same heads. It cannot forge, since senders sign; it cannot change a text, since they commit to
it; it cannot tell two members two histories, since each message names the newest head that its
sender has seen. Both ends check with this class; there is no I/O here.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from companions.canonical import has_members
from companions.secure_chat import forms
from companions.secure_chat.forms import NOTHING, OPENING_BYTES, Recipient
from companions.secure_chat.pae import is_signed, sign
from companions.secure_chat.pki import Expired, Identity, Revoked, Trust, parse_pem
from companions.secure_chat.protocol import (
    MAX_TEXT_BYTES,
    Kind,
    Message,
    Party,
    from_base64,
    from_hex,
    to_base64,
)
from protocol_fsm import BadPayload, LocalError, ProtocolError

LOBBY = "lobby"
MAX_ROOM_NAME = 32
ROOM_NAME = re.compile(f"[a-z0-9-]{{1,{MAX_ROOM_NAME}}}")
MAX_MEMBERS = 100
WINDOW_MS = 300_000  # a message may be that old, or that early, by the receiver's clock
KNOWN_HEADS = 4_096  # a head seen longer ago cannot be told from one of another history
SIGNATURE_BYTES = (256, 512)  # of RSA keys with 2,048 to 4,096 bits
MEMBER = {"certificate": str, "session": str, "seqno": int, "previous": str}


# Errors -------------------------------------------------------------------------------------------


class WrongSender(ProtocolError):
    """Not the certificate, or not the session, of anybody in the room."""


class WrongRoom(ProtocolError):
    """What was said in another room."""


class BadMessageSignature(ProtocolError):
    """What the named sender has not signed."""


class WrongRecipient(ProtocolError):
    """A text that we can read, but that was said to others, or to an earlier session of ours."""


class WrongSeqno(ProtocolError):
    """Not the sender's next message: it was repeated, or others before it are missing."""


class Untimely(ProtocolError):
    """By our clock it was said more than five minutes ago."""


class FromTheFuture(Untimely):
    """By our clock it is dated more than five minutes ahead."""


class LostMessage(ProtocolError):
    """The sender said something before this that we have not been told."""


class Fork(ProtocolError):
    """The sender has seen a history that is not ours: the server tells two."""


class BadOpening(ProtocolError):
    """A text that the sender has not committed to."""


class BadHead(ProtocolError):
    """A head that the server has not signed, or that does not follow from what was said."""


# What goes over the wire --------------------------------------------------------------------------


class Entry(NamedTuple):
    """A message in its place: two pairs of signed bytes and signature, for transcripts."""

    signed: bytes  # what the sender says [C 9]
    signature: bytes
    head: bytes  # the signed bytes of the server's Head after it
    head_signature: bytes


def encode_said(message: forms.Message, signature: bytes) -> Message:
    """Return a `msg`, with the document's members first."""
    return Message(
        Kind.MSG,
        {
            "seqno": message.seqno,
            "ts": message.ts,
            "ct": to_base64(message.ct),
            "sig": to_base64(signature),
            "session": message.session.hex(),
            "room": message.room,
            "recipients": [[one.fingerprint, one.session.hex()] for one in message.recipients],
            "previous": message.previous.hex(),
            "seen": message.seen.hex(),
            "commitment": message.commitment.hex(),
        },
    )


def parse_said(message: Message, sender: str) -> tuple[forms.Message, bytes]:
    """Return what a `msg` by this fingerprint's owner says, and its signature. BadPayload."""
    said = forms.Message(
        session=from_hex(message["session"]),
        room=parse_room_name(message["room"]),
        sender=sender,
        recipients=parse_recipients(message["recipients"]),
        seqno=parse_number(message["seqno"]),
        ts=parse_number(message["ts"]),
        previous=from_hex(message["previous"]),
        seen=from_hex(message["seen"]),
        commitment=from_hex(message["commitment"]),
        ct=from_base64(message["ct"]),
    )
    if any(one.session == said.session for one in said.recipients):
        raise BadPayload("recipients without the sender", "the sender among them")
    return said, from_base64(message["sig"], *SIGNATURE_BYTES)


def parse_recipients(pairs: Sequence[object]) -> tuple[Recipient, ...]:
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or [type(one) for one in pair] != [str, str]:
            raise BadPayload("a fingerprint and a session", type(pair).__name__)
        found.append(Recipient(from_hex(pair[0]).hex(), from_hex(pair[1])))
    if len(found) > MAX_MEMBERS or found != sorted(set(found)):
        raise BadPayload(f"up to {MAX_MEMBERS} recipients, sorted, each once", len(pairs))
    return tuple(found)


def parse_number(value: int) -> int:
    if not 0 <= value <= forms.MAX_SEQNO:
        raise BadPayload("0 to 2^63 - 1", "another number")
    return value


def parse_room_name(name: str) -> str:
    if not ROOM_NAME.fullmatch(name):
        raise BadPayload("a name of a-z, 0-9 and hyphens", "another")
    return name


def encode_relay(entry: Entry, opening: bytes) -> Message:
    return Message(
        Kind.RELAY,
        {
            "msg": to_base64(entry.signed),
            "sig": to_base64(entry.signature),
            "head": to_base64(entry.head),
            "head_sig": to_base64(entry.head_signature),
            "opening": to_base64(opening),
        },
    )


def parse_relay(message: Message) -> tuple[Entry, bytes]:
    """Return what the server relays, and the opening, which may be empty. Raises BadPayload."""
    entry = Entry(
        from_base64(message["msg"]),
        from_base64(message["sig"], *SIGNATURE_BYTES),
        from_base64(message["head"]),
        from_base64(message["head_sig"], *SIGNATURE_BYTES),
    )
    return entry, from_base64(message["opening"], 0, OPENING_BYTES + MAX_TEXT_BYTES)


@dataclass
class Member:
    """Somebody in a room: who, in which session, and how far their messages have got."""

    identity: Identity
    pem: str = field(repr=False)
    session: bytes
    seqno: int = 0  # of the next message
    previous: bytes = NOTHING  # the hash of the last one
    is_trusted: bool = True  # else the certificate is revoked or expired: we do not talk with them

    @property
    def address(self) -> Recipient:
        return Recipient(self.identity.fingerprint, self.session)

    def encode(self) -> dict[str, Any]:
        return {
            "certificate": self.pem,
            "session": self.session.hex(),
            "seqno": self.seqno,
            "previous": self.previous.hex(),
        }


def parse_member(values: Mapping[str, Any], trust: Trust, now: datetime) -> Member:
    """Return a member, trusted or not any more. Raises BadPayload, BadCertificate."""
    if not has_members(values, MEMBER):
        raise BadPayload("a member", ", ".join(sorted(values))[:80])
    pem = values["certificate"]
    try:
        identity = trust.verify(pem, "client", None, now)
        is_trusted = True
    except (Revoked, Expired) as error:  # the server may have judged it earlier, or by another list
        last = parse_pem(pem)[0].not_valid_after_utc
        identity = trust.identify(pem, "client", None, last if isinstance(error, Expired) else now)
        is_trusted = False
    return Member(
        identity,
        pem,
        from_hex(values["session"]),
        parse_number(values["seqno"]),
        from_hex(values["previous"]),
        is_trusted,
    )


# A room -------------------------------------------------------------------------------------------


class Room:
    """Members, heads, and the checks of [C 9]; each is a method, so that the lab can remove it.

    `start` is the head before the first message of all, `head` that before `index`. `me` is who
    listens here; None is the server, which listens to everything. `clock` gives milliseconds since
    1970.
    """

    def __init__(
        self,
        name: str,
        start: bytes,
        index: int,
        head: bytes,
        clock: Callable[[], int],
        me: Recipient | None = None,
    ) -> None:
        self.name = name
        self.start = start
        self.index = index  # of the next message
        self.head = head
        self.me = me
        self.members: dict[bytes, Member] = {}  # by session
        self._gone: set[bytes] = set()  # sessions that have left while we listen
        self._clock = clock
        self._heads: OrderedDict[bytes, None] = OrderedDict({head: None})  # those known last

    def enter(self, member: Member) -> None:
        """Let somebody in, in a session that was never here: else its count would begin anew.

        Raises BadPayload, also if the room is full.
        """
        if member.session in self.members or member.session in self._gone:
            raise BadPayload("a session that was never here", member.identity.name)
        if len(self.members) >= MAX_MEMBERS:
            raise BadPayload(f"at most {MAX_MEMBERS} members", "one more")
        self.members[member.session] = member

    def leave(self, session: bytes) -> Member | None:
        """Let somebody out; None if no such session is in the room."""
        if self.me is not None:  # the server knows by its own connections who has been here
            self._gone.add(session)
        return self.members.pop(session, None)

    def check(self, message: forms.Message, signed: bytes, signature: bytes) -> Member:
        """Return who said this, after every check that needs no text. Raises ProtocolError."""
        self._check_room(message)
        member = self._check_sender(message)
        self._check_signature(member, signed, signature)
        self._check_seqno(member, message)
        self._check_age(message)
        self._check_future(message)
        self._check_previous(member, message)
        if self.concerns(message):
            self._check_seen(message)
        return member

    def concerns(self, message: forms.Message) -> bool:
        """Return whether we must know the history that the sender has seen.

        A message that was on its way when we came is not for this session, even if it is for an
        earlier one of ours: its sender may have seen a head from before our time.
        """
        if self.me is None or message.session == self.me.session:
            return True
        return self.me in message.recipients

    def check_entry(self, entry: Entry, server: Identity) -> bytes:
        """Return the head that the server signed for this message. Raises BadHead."""
        self._check_head_signature(entry, server)
        try:
            claimed = forms.parse_head(entry.head)
        except ValueError as error:
            raise BadHead("a head", str(error)) from None
        if (claimed.room, claimed.start, claimed.index) != (self.name, self.start, self.index):
            expected = f"message {self.index} of {self.name!a}, start {self.start.hex()[:16]}"
            got = f"message {claimed.index} of {claimed.room!a}, start {claimed.start.hex()[:16]}"
            raise BadHead(expected, got)
        self._check_head(entry, claimed.head)
        return claimed.head

    def check_opening(self, message: forms.Message, opening: bytes) -> bytes:
        """Return the text of an opening. Raises ProtocolError."""
        self._check_recipient(message)
        r = opening[:OPENING_BYTES]
        text = opening[OPENING_BYTES:]
        if len(r) < OPENING_BYTES or len(text) > MAX_TEXT_BYTES:
            raise BadPayload(f"{OPENING_BYTES} bytes and a text", len(opening))
        self._check_commitment(message, r, text)
        try:
            text.decode("utf-8")
        except UnicodeError:
            raise BadPayload("UTF-8", "something else") from None
        return text

    def extend(self, member: Member, signed: bytes, head: bytes) -> None:
        """Go on to the head after a message that passed."""
        member.seqno += 1
        member.previous = forms.message_hash(signed)
        self.index += 1
        self.head = head
        self._heads[head] = None
        if len(self._heads) > KNOWN_HEADS:
            self._heads.popitem(last=False)

    def _check_room(self, message: forms.Message) -> None:
        if message.room != self.name:
            raise WrongRoom(self.name, repr(message.room)[:40])

    def _check_sender(self, message: forms.Message) -> Member:
        member = self.members.get(message.session)
        if member is None or member.identity.fingerprint != message.sender:
            raise WrongSender("somebody in the room, in their session", message.sender[:16])
        return member

    def _check_signature(self, member: Member, signed: bytes, signature: bytes) -> None:
        if not is_signed(member.identity.public_key, signed, signature):
            raise BadMessageSignature(member.identity.name, "another")

    def _check_seqno(self, member: Member, message: forms.Message) -> None:
        if message.seqno != member.seqno:
            raise WrongSeqno(member.seqno, message.seqno)

    def _check_age(self, message: forms.Message) -> None:
        if message.ts < self._clock() - WINDOW_MS:
            raise Untimely("five minutes ago at most", message.ts)

    def _check_future(self, message: forms.Message) -> None:
        if message.ts > self._clock() + WINDOW_MS:
            raise FromTheFuture("in five minutes at most", message.ts)

    def _check_previous(self, member: Member, message: forms.Message) -> None:
        if message.previous != member.previous:
            raise LostMessage(member.previous.hex()[:16], message.previous.hex()[:16])

    def _check_seen(self, message: forms.Message) -> None:
        if message.seen not in self._heads:
            raise Fork(f"a head of our own, up to {self.head.hex()[:16]}", message.seen.hex()[:16])

    def _check_recipient(self, message: forms.Message) -> None:
        if self.me is not None and self.me not in message.recipients:
            raise WrongRecipient("us, in this session", f"only others, {len(message.recipients)}")

    def _check_commitment(self, message: forms.Message, r: bytes, text: bytes) -> None:
        if not forms.opens(message.commitment, r, text):
            raise BadOpening("the text that was signed", "another")

    def _check_head_signature(self, entry: Entry, server: Identity) -> None:
        if not is_signed(server.public_key, entry.head, entry.head_signature):
            raise BadHead(f"the signature of {server.name}", "another")

    def _check_head(self, entry: Entry, claimed: bytes) -> None:
        if claimed != forms.next_head(self.head, entry.signed, entry.signature):
            raise BadHead("the head that follows", claimed.hex()[:16])


class Said(NamedTuple):
    """What a member has heard: from whom, and the text; None if not said to us, or not trusted."""

    member: Member
    message: forms.Message
    entry: Entry
    opening: bytes
    text: str | None


class Seat:
    """A member's place in a room: composes what is said, and takes what is relayed."""

    def __init__(
        self, party: Party, server: Identity, room: Room, encrypt: Callable[[bytes], bytes]
    ) -> None:
        self.room = room
        self._party = party
        self._server = server
        self._encrypt = encrypt
        self._seqno = 0
        self._previous = NOTHING
        self._pending: deque[tuple[bytes, bytes]] = deque()  # signed bytes and opening, on the way

    def compose(self, text: str, ts: int) -> Message:
        """Return the `msg` that says this to everybody trusted here. Raises LocalError."""
        room = self.room
        if room.me is None:
            raise LocalError("the server says nothing in a room")
        opening = os.urandom(OPENING_BYTES) + encode_text(text)
        trusted = [one.address for one in room.members.values() if one.is_trusted]
        others = [one for one in trusted if one != room.me]
        message = forms.Message(
            session=room.me.session,
            room=room.name,
            sender=room.me.fingerprint,
            recipients=tuple(sorted(others)),
            seqno=self._seqno,
            ts=ts,
            previous=self._previous,
            seen=room.head,
            commitment=forms.commitment(opening[:OPENING_BYTES], opening[OPENING_BYTES:]),
            ct=self._encrypt(opening),
        )
        signed = message.encode()
        self._seqno += 1
        self._previous = forms.message_hash(signed)
        self._pending.append((signed, opening))
        return encode_said(message, sign(self._party.private_key, signed))

    def check_complete(self) -> None:
        """Raise LostMessage if we have said something that has not come back."""
        if self._pending:
            raise LostMessage("all that we said", f"{len(self._pending)} fewer")

    @property
    def pending(self) -> int:
        """How many of our messages have not come back yet."""
        return len(self._pending)

    @property
    def unheard(self) -> list[str]:
        """The texts of these messages, which may not have been said."""
        return [opening[OPENING_BYTES:].decode("utf-8") for _, opening in self._pending]

    def hear(self, relay: Message) -> Said:
        """Return what was said, after every check; the room has moved on. Raises ProtocolError."""
        room = self.room
        entry, opening = parse_relay(relay)
        try:
            message = forms.parse_message(entry.signed)
        except ValueError as error:
            raise BadPayload("the signed bytes of a msg", str(error)) from None
        member = room.check(message, entry.signed, entry.signature)
        head = room.check_entry(entry, self._server)
        if room.me is not None and message.session == room.me.session:
            opening = self._own(entry)
        elif opening or room.me in message.recipients:
            room.check_opening(message, opening)
            opening = opening if member.is_trusted else b""
        room.extend(member, entry.signed, head)
        text = opening[OPENING_BYTES:].decode("utf-8") if opening else None
        return Said(member, message, entry, opening, text)

    def _own(self, entry: Entry) -> bytes:
        """Return the opening of our own message that has come back. Raises WrongSender."""
        if not self._pending or self._pending[0][0] != entry.signed:
            raise WrongSender("our own next message", "another in our name")
        return self._pending.popleft()[1]


def encode_text(text: str) -> bytes:
    """Return at most 4,096 bytes of UTF-8. Raises LocalError."""
    try:
        content = text.encode("utf-8")
    except UnicodeError:
        raise LocalError("the text has half a character in it") from None
    if len(content) > MAX_TEXT_BYTES:
        raise LocalError(f"a text has at most {MAX_TEXT_BYTES:,} bytes, and this {len(content):,}")
    return content
