"""The adversary of this protocol: on the wire, in front of an inbox, with stolen keys.

    python -m companions.peer_messaging.attacks
    python -m companions.peer_messaging.attacks --without replay replay-text

Everything is real: ZeroMQ, sockets, nodes, RSA keys. An attack on path is a generator over the
messages between alice and bob: what it yields is delivered. One from outside has the lab, with its
recording, and an inbox into which anybody can drop a message. The verdict is what the victims did,
never whether bytes came back. Nothing here weakens anything.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from companions.asymmetric import SHARE_BYTES
from companions.peer_messaging.identity import Identity, IdentityChanged, Trust
from companions.peer_messaging.peer import Event, Peer
from companions.peer_messaging.protocol import (
    CLEAR,
    DIGEST_BYTES,
    GCM_NONCE_BYTES,
    GCM_TAG_BYTES,
    HEADER,
    NUMBER,
    BadSignature,
    Header,
    Kind,
    Message,
    MessageLost,
    PeerAway,
    Replayed,
    Role,
    State,
    UnexpectedKind,
    Untimely,
    WrongAnswer,
    WrongSession,
    keys_of,
)
from companions.peer_messaging.stage import (
    FIRST,
    LIMITS,
    MALLORY,
    SECOND,
    Lab,
    alone,
    deserted,
    disturbed,
    forged,
    learned,
    skipped,
    touched,
    unnoticed,
)
from lab.catalogue import Catalogue, first_of
from lab.ciphertexts import repeats, shown_by
from lab.frames import Frame, Frames, flipped, xored
from lab.program import Program
from program import run_program
from protocol_fsm import BadPayload, BadTag, WrongDirection, WrongPeer

# What the stories are told with -------------------------------------------------------------------

CATALOGUE = Catalogue(goal=forged)
ATTACKS = CATALOGUE.attacks
on_path = CATALOGUE.on_path  # (family, who refuses it, with which error, goal=...)
outside = CATALOGUE.outside

MINUTE_S = 60.0


def up_to(frames: Frames, kind: Kind, to: str = "server") -> Generator[Frame, None, Frame]:
    """Deliver everything up to the first message of a kind, and return that. Raises CutHere."""

    def is_wanted(frame: Frame) -> bool:
        return frame.to == to and frame.message[0] == kind

    return (yield from first_of(frames, is_wanted))


def taped(lab: Lab, kind: Kind, to: str = "server") -> Frame:
    """Return a message from the recording."""
    return next(frame for frame in lab.tape if frame.to == to and frame.message[0] == kind)


def header_of(message: bytes) -> Header:
    """Return the header of a record."""
    return Header(*HEADER.unpack_from(message))


def edited(frame: Frame, **fields: Any) -> Frame:
    """Rewrite header fields of a record."""
    header = header_of(frame.message)._replace(**fields)
    return frame.changed(HEADER.pack(*header) + frame.message[HEADER.size :])


# Texts on their way -------------------------------------------------------------------------------


@on_path("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Texts are searched, and compared with a known one."""
    key_stream = b""  # of the first text, which the adversary knows
    records: list[bytes] = []
    for frame in frames:
        sealed = frame.message[HEADER.size :]
        if SECOND.encode() in sealed:
            lab.outcome.learned = f"the text: {SECOND}"
        if frame.to == "server" and frame.message[0] == Kind.TEXT:
            guess = xored(key_stream, sealed)
            if guess and SECOND.encode().startswith(guess):
                lab.outcome.learned = f"from one text the next: {guess.decode()}"
            key_stream = key_stream or xored(sealed, FIRST.encode())
            records.append(sealed)
        yield frame
    lab.outcome.learned = lab.outcome.learned or shown_by(records)
    if not lab.outcome.learned and records and repeats(records[0], FIRST.encode()):
        lab.outcome.learned = "what the first text is XORed with"


@on_path("integrity", "server", BadTag)
def flip_text(frames: Frames, lab: Lab) -> Frames:
    """One bit flips, to make nine o'clock mine."""
    text = yield from up_to(frames, Kind.TEXT)
    yield flipped(text, HEADER.size + FIRST.index("nine"), ord("n") ^ ord("m"))


@on_path("integrity", "server", BadTag, goal=touched)
def flip_tag(frames: Frames, lab: Lab) -> Frames:
    """One bit of a tag flips."""
    text = yield from up_to(frames, Kind.TEXT)
    yield flipped(text, -1)


@on_path("integrity", "server", BadTag)
def truncate(frames: Frames, lab: Lab) -> Frames:
    """A text loses its last 16 bytes."""
    text = yield from up_to(frames, Kind.TEXT)
    yield text.changed(text.message[:-16])


@on_path("freshness", "server", BadTag, goal=touched)
def edit_time(frames: Frames, lab: Lab) -> Frames:
    """A text's timestamp is moved by a second."""
    text = yield from up_to(frames, Kind.TEXT)
    yield edited(text, timestamp=header_of(text.message).timestamp + 1_000)


@on_path("freshness", "server", Replayed)
def replay_text(frames: Frames, lab: Lab) -> Frames:
    """A text is delivered twice."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, text)


@on_path("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A text is delivered again, as the next one."""
    text = yield from up_to(frames, Kind.TEXT)
    yield text
    yield edited(text, sequence=header_of(text.message).sequence + 1)


@on_path("freshness", "server", Untimely, goal=touched)
def hold(frames: Frames, lab: Lab) -> Frames:
    """All that alice says is held back for a minute."""
    text = yield from up_to(frames, Kind.TEXT)
    lab.offset_s = MINUTE_S
    yield text


@on_path("order", "server", MessageLost, goal=skipped)
def drop_text(frames: Frames, lab: Lab) -> Frames:
    """The first text is dropped."""
    yield from up_to(frames, Kind.TEXT)


@on_path("order", "server", MessageLost, goal=skipped)
def swap_texts(frames: Frames, lab: Lab) -> Frames:
    """The second text is delivered before the first."""
    first = yield from up_to(frames, Kind.TEXT)
    second = yield from up_to(frames, Kind.TEXT)
    yield from (second, first)


@on_path("order", "client", MessageLost, goal=unnoticed)
def drop_receipt(frames: Frames, lab: Lab) -> Frames:
    """The receipt of the first text is dropped."""
    yield from up_to(frames, Kind.RECEIPT, to="client")


@on_path("reflection", "client", WrongDirection)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """Alice's first text comes back to her."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, text.reflected())


@on_path("reflection", "client", BadTag)
def reflect_rewritten(frames: Frames, lab: Lab) -> Frames:
    """Alice's first text comes back to her, as bob's."""
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, edited(text.reflected(), sender=Role.RESPONDER))


@on_path("reflection", "client", WrongPeer)
def reflect_hello(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes back to her."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield from (hello.reflected(), hello)


@on_path("first contact", "client", WrongPeer, goal=alone)
def mirror(frames: Frames, lab: Lab) -> Frames:
    """All that alice says comes back to her."""
    for frame in frames:
        if frame.to == "server":
            yield frame.reflected()


@on_path("sessions", "server", WrongSession)
def splice(frames: Frames, lab: Lab) -> Frames:
    """A recorded text replaces one."""
    text = yield from up_to(frames, Kind.TEXT)
    yield text.replaced(taped(lab, Kind.TEXT))


@on_path("sessions", "server", BadTag)
def splice_rewritten(frames: Frames, lab: Lab) -> Frames:
    """The same, with the id of this session."""
    text = yield from up_to(frames, Kind.TEXT)
    session = header_of(text.message).session
    yield edited(text.replaced(taped(lab, Kind.TEXT)), session=session)


# Handshakes ---------------------------------------------------------------------------------------


@outside("sessions", "server", WrongSession)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    lab.inject(*(frame for frame in lab.tape if frame.to == "server"))
    lab.wait(lambda: len(lab.outcome.errors["server"]) > 1)


def hello_again(frames: Frames) -> Frames:
    """Deliver alice's HELLO once more, in the session that it began."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield hello
    text = yield from up_to(frames, Kind.TEXT)
    yield from (text, hello)


@on_path("sessions", "server", Replayed, goal=disturbed)
def replay_hello(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes again, to end her session."""
    yield from hello_again(frames)


@on_path("sessions", "server", Replayed, goal=learned)
def provoke(frames: Frames, lab: Lab) -> Frames:
    """Alice's HELLO comes again, to be answered again."""
    yield from hello_again(frames)
    reply = yield from up_to(frames, Kind.REPLY, to="client")
    lab.outcome.learned = "bob answers it again"
    yield reply


@outside("sessions", "server", Untimely, goal=learned)
def old_hello(lab: Lab) -> None:
    """A HELLO of alice's comes a minute late."""
    alice = lab.parts.session(
        lab.people["alice"], Trust("bob"), Role.INITIATOR, clock=lambda: time.time() - MINUTE_S
    )
    before = len(lab.sessions)
    lab.inject(alice.seal(Message(Kind.HELLO)))

    def has_answered() -> bool:
        return any(session.state is State.CONFIRM for session in lab.sessions[before:])

    if lab.wait(has_answered, 0.2):
        lab.outcome.learned = "bob answers it"


@on_path("sessions", "client", WrongAnswer)
def recorded_reply(frames: Frames, lab: Lab) -> Frames:
    """A recording plays bob."""
    answers = [frame for frame in lab.tape if frame.to == "client"]
    for frame in frames:
        if frame.to == "server" and answers:
            yield answers.pop(0)
        elif frame.to == "server":
            yield frame.reflected()


# Somebody else ------------------------------------------------------------------------------------


def posing(lab: Lab, identity: Identity) -> Peer:
    """Return a peer of the adversary's, who takes anybody for its own peer and reads its texts."""

    def tell(event: Event) -> None:
        if event.what == "text" and not lab.outcome.learned:
            lab.outcome.learned = f"mallory is told: {event.text}"

    trust = Trust("anybody")
    return lab.parts.peer(identity, trust, LIMITS, tell=tell, new_session=lab.parts.session)


def answered_by(mallory: Peer, frames: Frames) -> Frames:
    """Give all that alice says to mallory, and alice what she answers."""
    for frame in frames:
        if frame.to == "server":
            for message in mallory.receive(frame.message):
                yield Frame("client", message)


@on_path("identity", "client", IdentityChanged, goal=learned)
def other_key(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers as bob, with a key of her own."""
    yield from answered_by(posing(lab, lab.people[MALLORY]), frames)


@on_path("identity", "client", BadSignature, goal=learned)
def borrowed_key(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers as bob, with his public key."""
    borrowed = Identity(lab.people[MALLORY].private_key)
    borrowed.public_pem = lab.people["bob"].public_pem
    yield from answered_by(posing(lab, borrowed), frames)


@on_path(
    "first contact",
    "",
    None,
    goal=learned,
    noticed="anyone who compares fingerprints",
    wins=f"mallory is told: {FIRST}",
)
def first_contact(frames: Frames, lab: Lab) -> Frames:
    """Mallory answers first, at the first contact."""
    yield from answered_by(posing(lab, lab.people[MALLORY]), frames)


# Peers that behave badly: they have the keys ------------------------------------------------------


def misbehave(lab: Lab, kind: Kind, body: bytes, what: str) -> None:
    """Let alice say something that she should not, in her session with bob."""
    ended = len(lab.outcome.ended["server"])
    lab.inject(lab.alices_session()._seal_record(kind, body))
    if not lab.wait(lambda: len(lab.outcome.ended["server"]) > ended):
        lab.outcome.learned = what


@outside("peers", "server", BadPayload)
def false_receipt(lab: Lab) -> None:
    """Alice confirms a text that bob has not sent."""
    misbehave(lab, Kind.RECEIPT, NUMBER.pack(77), "bob accepts a receipt for nothing")


@outside("peers", "server", BadPayload)
def broken_text(lab: Lab) -> None:
    """Alice sends a text that is not UTF-8."""
    misbehave(lab, Kind.TEXT, b"\xff\xfe", "bob accepts what is not a text")


@outside("peers", "server", UnexpectedKind)
def second_confirm(lab: Lab) -> None:
    """Alice confirms a session that is open."""
    misbehave(lab, Kind.CONFIRM, b"", "bob accepts a second CONFIRM")


# In front of the inbox ----------------------------------------------------------------------------


def unkeyed(kind: Kind, session: bytes, sequence: int, rest: bytes) -> bytes:
    """Return a record in alice's name, from somebody who has no keys."""
    now_ms = int(1_000 * time.time())
    return HEADER.pack(kind, session, Role.INITIATOR, sequence, now_ms) + rest


@outside("availability", "server", BadTag, goal=disturbed)
def junk(lab: Lab) -> None:
    """A stranger fills bob's inbox with junk."""
    session = lab.alices_session().session_id
    pieces = [b""]
    for kind in Kind:
        pieces.append(unkeyed(kind, session, 50, secrets.token_bytes(40)))
        pieces += [bytes([kind]), bytes([kind]) + secrets.token_bytes(748)]
    lab.inject(*pieces)
    if not lab.wait(lambda: len(lab.outcome.errors["server"]) >= len(pieces)):
        lab.outcome.learned = "bob does not refuse all of it"


@outside("availability", "server", BadTag, goal=disturbed)
def forged_bye(lab: Lab) -> None:
    """A stranger says BYE in alice's name."""
    session = lab.alices_session()
    lab.inject(unkeyed(Kind.BYE, session.session_id, session.next_number, bytes(1 + GCM_TAG_BYTES)))
    lab.wait(lambda: bool(lab.outcome.errors["server"]))


@on_path("availability", "client", PeerAway, goal=deserted)
def cut_off(frames: Frames, lab: Lab) -> Frames:
    """After the first text nothing is delivered any more."""
    yield from up_to(frames, Kind.TEXT)
    for _ in frames:
        if lab.outcome.ended["client"]:
            return


# Theft --------------------------------------------------------------------------------------------


def readable(message: bytes, keys: Mapping[str, bytes]) -> str:
    """Return a text of alice's, or nothing if these keys do not open it or are forgotten."""
    if not keys:
        return ""
    sealed = message[HEADER.size :]
    header = message[: HEADER.size]
    iv = int.from_bytes(keys["I-IV"], "big")
    for number in (header_of(message).sequence, 0):  # 0: without the rule of fresh nonces
        nonce = (iv ^ number).to_bytes(GCM_NONCE_BYTES, "big")
        with suppress(InvalidTag):
            return AESGCM(keys["I-KEY"]).decrypt(nonce, sealed, header).decode()
    return ""


def in_clear(message: bytes) -> str:
    """Return the text in a message that needs no key, because nothing is encrypted."""
    return next((text for text in (FIRST, SECOND) if text.encode() in message), "")


@outside("theft", "", None, goal=learned)
def stolen_identities(lab: Lab) -> None:
    """Both identities are stolen, for an old recording."""
    hello = taped(lab, Kind.HELLO).message
    reply = taped(lab, Kind.REPLY, to="client").message
    thief = lab.parts.session(lab.people["alice"], Trust("bob"), Role.INITIATOR)
    if thief._offer() in hello:  # what she offered can be made again
        share = reply[CLEAR.size + DIGEST_BYTES :][:SHARE_BYTES]
        keys = keys_of(hashlib.sha256(hello + reply).digest(), thief._agree(share))
        if text := readable(taped(lab, Kind.TEXT).message, keys):
            lab.outcome.learned = f"the recorded text: {text}"


@outside("theft", "", None, goal=learned)
def stolen_memory(lab: Lab) -> None:
    """What a node remembers is stolen, after the session."""
    for session in lab.old_sessions:
        if text := readable(taped(lab, Kind.TEXT).message, session._keys):
            lab.outcome.learned = f"the recorded text: {text}"


@on_path(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nothing; the next handshake makes them worthless",
    wins=f"the texts of this session: {FIRST}, {SECOND}",
)
def stolen_session_keys(frames: Frames, lab: Lab) -> Frames:
    """A session's keys are stolen in the middle of it."""
    keys: dict[str, bytes] = {}
    texts: list[bytes] = []
    for frame in frames:
        if frame.to == "server" and frame.message[0] == Kind.TEXT:
            keys = keys or dict(lab.alices_session()._keys)
            texts.append(frame.message)
        yield frame
    if opened := ", ".join(
        text for message in texts if (text := readable(message, keys) or in_clear(message))
    ):
        lab.outcome.learned = f"the texts of this session: {opened}"
    if text := readable(taped(lab, Kind.TEXT).message, keys):
        lab.outcome.learned = f"the recorded text: {text}"


@on_path(
    "theft",
    "",
    None,
    noticed="alice, who is cut off",
    wins="bob hears a text that was not sent, or not like that",
)
def stolen_identity(frames: Frames, lab: Lab) -> Frames:
    """Alice's private key is stolen, and used on the wire."""
    mallory = posing(lab, lab.people["alice"])
    mallory.say("the door code has changed")
    for frame in frames:
        messages = mallory.receive(frame.message) if frame.to == "client" else mallory.tick()
        for message in messages:
            yield Frame("server", message)


# The program --------------------------------------------------------------------------------------


def kind_name(message: bytes) -> str:
    """Return the name of a message's kind."""
    with suppress(ValueError, IndexError):
        return Kind(message[0]).name
    return "nonsense"


PROGRAM = Program(
    description="Attacks two nodes of its own, on loopback.",
    attacks=ATTACKS,
    lab=lambda options, log, parts, observer: Lab(log, parts, observer),
    weakened="companions.peer_messaging.weakened",
    title=kind_name,
    beginning="making keys for five people ...",
    module="companions.peer_messaging.attacks",
    sets=Path(__file__).parent / "sets.json",
)

if __name__ == "__main__":
    run_program(PROGRAM.run)
