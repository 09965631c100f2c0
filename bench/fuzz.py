"""A million seeded frames into `Session.open`, a fresh session each.

    python -m bench.fuzz --frames 1000000

A frame has two possible ends: it is accepted, or a typed error ends the session and erases its
keys. About four in ten are sealed correctly around a payload that no honest end sends; the others
are mutated, spliced, cut short or noise. The frames of a chunk depend only on the seed and the
number of the chunk, not on how many processes there are. The exit code is 1 for any other end.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from crypto_utils import NONCE_BYTES, TAG_BYTES, aes_cbc_encrypt, hmac_sha256, pkcs7_pad
from program import Parser, positive, run_program, starting
from protocol_fsm import (
    CIPHERTEXT_AT,
    FAREWELL_STATUS,
    HEADER,
    PHASE,
    SPEAKER,
    ClientData,
    ClientHello,
    ConnectionCut,
    Direction,
    Header,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ProtocolFSM,
    ProtocolState,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
    read_frame,
)

MASTER_KEYS = {client_id: bytes([client_id]) * 16 for client_id in (1, 2)}
CHUNK = 5_000  # frames
REPORT = ClientData([21.5, -3, 1e15])
ANSWER = ServerAggrResponse({"epoch": 1, "sum": 40.5, "mean": None, "participants": [1, 2]})


class Place(NamedTuple):
    """A session when a frame arrives, and the frame that should."""

    session: Session
    genuine: bytes


def same(session: Session) -> Session:
    """Return a new session that stands where this one does."""
    other = Session(
        session.client_id,
        MASTER_KEYS[session.client_id],
        session.sends,
        random_bytes=session._random_bytes,
    )
    other.fsm = copy.copy(session.fsm)
    other._keys = session._keys
    other._client_nonce = session._client_nonce
    return other


def places(client_id: int, rng: random.Random) -> Iterator[Place]:
    """Yield both ends of a session at each step of its first rounds."""
    client, server = (
        Session(client_id, MASTER_KEYS[client_id], sends, random_bytes=rng.randbytes)
        for sends in Direction
    )
    rounds: list[Message] = [REPORT, ANSWER] * 3
    for message in [ClientHello(), ServerChallenge(), *rounds, Terminate(Status.GOODBYE)]:
        speaker = server if SPEAKER[client.state] is Direction.S2C else client
        before = [same(client), same(server)]
        genuine = speaker.seal(message)
        for session in before:
            yield Place(session, genuine)
        try:
            (client if speaker is server else server).open(genuine)
        except PeerTerminated:
            return


# Payloads of a sender that has the keys and breaks the rules

BAD_JSON = (
    b"",
    b"[",
    b"{",
    b"null",
    b"true",
    b'"1"',
    b"[NaN]",
    b"[Infinity]",
    b"[1e400]",
    b"[1e16]",
    b"[true]",
    b"[null]",
    b"[[1]]",
    b'["1"]',
    b"[1,]",
    b"[01]",
    b"[+1]",
    b"[.5]",
    b"[1]]",
    b"\xff",
    b"\xef\xbb\xbf[1]",
    "[1]".encode("utf-16"),
    b'{"a":true}',
    b'{"a":{}}',
    b'{"a":[[1]]}',
    b'{"a":NaN}',
    b'{"\\ud800":1}',
    b'{"a":"\\udfff"}',
    b'{"a":"\xc3"}',
    b'{"a":-1e999}',
    b"{'a':1}",
    b"[" + b"1," * 1_024 + b"1]",
)
RARE_JSON = (b"[" + b"9" * 5_000 + b"]", b"[" * 10_000, b'{"a":' * 3_000, b" " * 65_400 + b"1")


def bad_json(rng: random.Random, good: bytes) -> bytes:
    """Return a body that is no report and no answer, or a good one with some bytes changed."""
    chance = rng.random()
    if chance < 0.002:
        return rng.choice(RARE_JSON)
    if chance < 0.5:
        return rng.choice(BAD_JSON)
    return mutated(rng, good)


def bad_plaintext(rng: random.Random, place: Place, opcode: Opcode, sender: Direction) -> bytes:
    """Return a plaintext for `opcode` that is wrong in one place."""
    good = ANSWER.body if opcode is Opcode.SERVER_AGGR_RESPONSE else REPORT.body
    if opcode is Opcode.SERVER_CHALLENGE:
        echoed = rng.choice([place.session._client_nonce, rng.randbytes(NONCE_BYTES)])
        fresh_bytes = rng.choice([NONCE_BYTES, NONCE_BYTES, rng.randrange(40)])
        body = echoed + rng.randbytes(fresh_bytes)
    elif opcode in (Opcode.CLIENT_DATA, Opcode.SERVER_AGGR_RESPONSE):
        body = bad_json(rng, good)
    else:
        body = rng.randbytes(rng.randrange(4))
    if sender is Direction.C2S:
        return rng.randbytes(NONCE_BYTES if rng.random() < 0.9 else rng.randrange(16)) + body
    legal = FAREWELL_STATUS.get(opcode, {Status.OK})
    status = rng.randrange(256) if rng.random() < 0.2 else min(legal)
    return bytes([status]) + body


def sealed(rng: random.Random, place: Place, _: list[bytes]) -> bytes:
    """Seal a bad payload or bad padding, with a header and a tag that are right."""
    session = place.session
    sender = Direction(1 - session.sends)
    legal = [
        opcode
        for state, opcode, speaker in ProtocolFSM.VALID_TRANSITIONS
        if (state, speaker) == (session.state, sender)
    ]
    opcode = rng.choice(legal) if rng.random() < 0.5 else Opcode(place.genuine[0])
    padded = pkcs7_pad(bad_plaintext(rng, place, opcode, sender))
    if rng.random() < 0.15:
        padded = padded[:-1] + bytes([rng.randrange(256)])
    header = HEADER.pack(opcode, session.client_id, session.fsm.round_number, sender)
    iv = rng.randbytes(16)
    keys = session._keys
    ciphertext = aes_cbc_encrypt(padded, keys[f"{sender.name}-ENC"][:16], iv)
    untagged = header + iv + ciphertext
    return untagged + hmac_sha256(keys[f"{sender.name}-MAC"], untagged)


# Frames of a sender without the keys


def mutated(rng: random.Random, message: bytes) -> bytes:
    """Change some bits or bytes."""
    changed = bytearray(message)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed))
        changed[at] = rng.choice((changed[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(changed)


def rewritten(rng: random.Random, message: bytes) -> bytes:
    """Rewrite one field of the header."""
    header = Header(*HEADER.unpack_from(message))
    field, value = rng.choice(
        (
            ("opcode", rng.choice((10, 20, 30, 40, 50, 60, 0, 255))),
            ("client_id", rng.randrange(256)),
            ("direction", rng.randrange(3)),
            ("round_number", rng.choice((0, 1, 2, 3, 2**32 - 1))),
        )
    )
    return HEADER.pack(*header._replace(**{field: value})) + message[HEADER.size :]


def spliced(rng: random.Random, one: bytes, other: bytes) -> bytes:
    """Join the head of one message and the tail of another, or take the other as it is."""
    cut = rng.choice((0, HEADER.size, CIPHERTEXT_AT, len(one) - TAG_BYTES, rng.randrange(len(one))))
    return one[:cut] + other[cut:]


def resized(rng: random.Random, message: bytes) -> bytes:
    """Cut it short or make it longer, by blocks or by bytes."""
    if rng.random() < 0.3:
        return message + rng.randbytes(rng.choice((1, 16, 32)))
    return message[: rng.choice((len(message) - 16, rng.randrange(len(message))))]


def keyless(rng: random.Random, place: Place, recorded: list[bytes]) -> bytes:
    """Return what can be made of recorded messages; now and then the genuine one as it is."""
    message = place.genuine if rng.random() < 0.7 else rng.choice(recorded)
    kind = rng.randrange(12)
    if kind < 4:
        return mutated(rng, message)
    if kind < 6:
        return rewritten(rng, message)
    if kind < 8:
        return spliced(rng, message, rng.choice(recorded))
    if kind < 10:
        return resized(rng, message)
    return rng.randbytes(55 + 16 * rng.randrange(1, 9)) if kind == 10 else message


# The trial


def fate(session: Session, frame: bytes) -> str:
    """Let a session read a frame, and return how that ended. Raises RuntimeError for a defect."""
    was_active = PHASE[session.state] is ProtocolState.ACTIVE
    try:
        try:
            message = read_frame(io.BytesIO(frame).read)
        except ProtocolError as error:
            session.fail(error)
            raise
        session.open(message)
    except ProtocolError as error:
        if session.state is not State.ENDED or session._keys:
            raise RuntimeError(f"{error!r} left {session} alive") from error
        silent = isinstance(error, (ConnectionCut, PeerTerminated)) or not was_active
        if bool(error.farewell) is silent:
            raise RuntimeError(f"{error!r} has the farewell {error.farewell.hex()}") from error
        return type(error).__name__
    if session.state is State.ENDED or len(session._keys) != 4:
        raise RuntimeError(f"{session} accepted a message, and has ended")
    return "accepted"


class Chunk(NamedTuple):
    """What became of some frames: how often each (sealed or keyless, end), and the defects."""

    fates: Counter[tuple[str, str]]
    defects: list[str]
    cpu_s: float


def try_chunk(seed_and_number: tuple[str, int], frames: int = CHUNK) -> Chunk:
    """Make and try the frames of one chunk."""
    rng = random.Random("{}/{}".format(*seed_and_number))
    began = time.process_time()
    everywhere = [place for client_id in MASTER_KEYS for place in places(client_id, rng)]
    recorded = [place.genuine for place in everywhere]
    alive = [p for p in everywhere if SPEAKER[p.session.state] is not p.session.sends]
    fates = Counter[tuple[str, str]]()
    defects: list[str] = []
    for number in range(frames):
        make = sealed if rng.random() < 0.42 else keyless
        place = rng.choice(alive if make is sealed or rng.random() < 0.8 else everywhere)
        message = make(rng, place, recorded)
        frame = len(message).to_bytes(2, "big") + message
        if make is keyless and rng.random() < 0.05:
            frame = frame[: rng.randrange(len(frame))]
        try:
            fates[make.__name__, fate(same(place.session), frame)] += 1
        except Exception as error:
            defects.append(f"seed {seed_and_number}, frame {number}, {frame.hex()}: {error!r}")
    return Chunk(fates, defects, time.process_time() - began)


def histogram(fates: Counter[tuple[str, str]]) -> list[str]:
    """Return one line per kind of end, the most frequent first."""
    ends = Counter[str]()
    for (_, end), number in fates.items():
        ends[end] += number
    return [
        f"{end:<18}{number:>9}{fates['sealed', end]:>9} of them sealed correctly"
        for end, number in ends.most_common()
    ]


def main() -> int:
    parser = Parser("Seeded frames into Session.open, a fresh session each.")
    parser.add_argument("--frames", type=positive, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="repeats a run")
    parser.add_argument(
        "--processes", type=positive, default=os.cpu_count() or 1, help="default: one for each core"
    )
    options = parser.options()
    began = time.monotonic()
    fates = Counter[tuple[str, str]]()
    defects: list[str] = []
    cpu_s = 0.0
    print(f"{options.frames} frames, seed {options.seed}", flush=True)
    chunks = [(options.seed, number) for number in range(-(-options.frames // CHUNK))]
    with starting():
        started = multiprocessing.get_context("spawn").Pool(options.processes)
    with started as pool:
        for done, chunk in enumerate(pool.imap_unordered(try_chunk, chunks), 1):
            fates.update(chunk.fates)
            defects += chunk.defects
            cpu_s += chunk.cpu_s
            if done % 20 == 0:
                print(f"{done * CHUNK} frames", file=sys.stderr, flush=True)
    total = fates.total()
    refused = sum(fates["sealed", end] for end in ("BadPadding", "BadPayload", "EchoMismatch"))
    print(*histogram(fates), sep="\n")
    print(
        f"{total} frames, {refused / total:.1%} of them sealed correctly around an illegal "
        f"payload, in {time.monotonic() - began:.1f} s; {cpu_s:.1f} s of processors"
    )
    print(f"{len(defects)} defects", *defects[:10], sep="\n")
    return int(bool(defects))


if __name__ == "__main__":
    run_program(main)
