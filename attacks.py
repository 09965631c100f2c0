"""The man in the middle: what students will try, against the real server and the real client.

    python attacks.py
    python attacks.py --without tag flip-reading
    python attacks.py --server 127.0.0.1:9999

`in_the_middle` is all that it takes to stand in the middle; then come the attacks, each a short
story. An attack on path is a generator over the frames of the victim's connection: what it yields
is delivered, and when it ends the rest passes. One from outside has an address and recordings. The
verdict is what the victims did, never whether bytes came back. No attack weakens the endpoints;
`--without` loads lab/weakened.py for that.
"""

from __future__ import annotations

import guard  # noqa: F401 (before all else: it says what the others lack)
import argparse
import contextlib
import secrets
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from channel import EndRequested
from client import Client
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    pkcs7_pad,
    pkcs7_unpad,
)
from endpoint import DEMO_KEYS, HOST, PORT, choose_keys, opcode_of
from lab.catalogue import Catalogue, CutHere
from lab.ciphertexts import repeats, shown_by
from lab.frames import Frame, Frames, Tap, flipped, xored
from lab.program import Program
from lab.proxy import Proxy
from lab.stage import (
    CROWD,
    LIMITS,
    OTHER,
    READINGS,
    VICTIM,
    Lab,
    alone_in_a_session,
    counted,
    crowded,
    disturbed,
    fooled_client,
    fooled_server,
    forged,
    learned,
    random_source,
)
from program import (
    NoConnection,
    Parser,
    UserError,
    host_and_port,
    host_and_port_of,
    run_program,
    to_stderr,
)
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    BadPayload,
    BadTag,
    ClientData,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    EchoMismatch,
    Header,
    Keys,
    Opcode,
    PeerTerminated,
    RoundMismatch,
    ServerChallenge,
    Status,
    UnexpectedOpcode,
    WrongDirection,
    WrongPeer,
    evolve_c2s,
    evolve_s2c,
    parse_message,
    read_frame,
    write_frame,
)
from server import Server


def in_the_middle(tap: Tap, reports: Sequence[list[float]] = READINGS) -> list[dict[str, Any]]:
    """Let a client report to a server with `tap` between them, and return the answers."""
    with (
        Server(DEMO_KEYS, port=0) as server,
        Proxy(server.address, tap, read_frame, write_frame) as proxy,
        Client(VICTIM, DEMO_KEYS, *proxy.address) as client,
    ):
        return [client.report(readings) for readings in reports]


# What the stories are told with -------------------------------------------------------------------

CATALOGUE = Catalogue(goal=forged)
ATTACKS = CATALOGUE.attacks
on_path = CATALOGUE.on_path  # (family, who refuses it, with which error, goal=...)
outside = CATALOGUE.outside


def up_to(frames: Frames, opcode: Opcode) -> Generator[Frame, None, Frame]:
    """Deliver everything before the first frame of one kind, and return that. Raises CutHere."""
    for frame in frames:
        if frame.message[0] == opcode:
            return frame
        yield frame
    raise CutHere


def edited(frame: Frame, **fields: int) -> Frame:
    """Rewrite header fields of a message."""
    header = Header(*HEADER.unpack_from(frame.message))._replace(**fields)
    return frame.changed(HEADER.pack(*header) + frame.message[HEADER.size :])


def again(frames: Frames, opcode: Opcode, **fields: int) -> Frames:
    """Deliver a message twice, the second time with some header fields rewritten."""
    message = yield from up_to(frames, opcode)
    yield message
    answer = next(frames)  # held, so that the client says nothing before the server has reacted
    yield edited(message, **fields) if fields else message
    yield from (answer, next(frames))


def pieces(message: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header and IV, and the first two blocks of the ciphertext."""
    second = CIPHERTEXT_AT + BLOCK_BYTES
    return (
        message[:CIPHERTEXT_AT],
        message[CIPHERTEXT_AT:second],
        message[second : second + BLOCK_BYTES],
    )


# Freshness, order, sessions -----------------------------------------------------------------------


@on_path("freshness", "server", RoundMismatch)
def replay_report(frames: Frames, lab: Lab) -> Frames:
    """A report is delivered twice."""
    yield from again(frames, Opcode.CLIENT_DATA)


@on_path("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """An old report comes again, with the new round."""
    yield from again(frames, Opcode.CLIENT_DATA, round_number=2)


@on_path("order", "server", UnexpectedOpcode)
def repeat_hello(frames: Frames, lab: Lab) -> Frames:
    """The CLIENT_HELLO comes again in mid-session."""
    yield from again(frames, Opcode.CLIENT_HELLO)


@outside("session", "server", BadTag)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame)
        for _ in lab.tape:
            line.receive()


@outside("session", "server", ConnectionCut, goal=disturbed)
def replay_hello(lab: Lab) -> None:
    """A recorded CLIENT_HELLO is sent beside the session."""
    with lab.connect() as line:
        line.send(lab.tape[0])
        line.receive()


@on_path("session", "client", EchoMismatch, goal=alone_in_a_session)
def recorded_challenge(frames: Frames, lab: Lab) -> Frames:
    """The challenge is replaced by a recorded one."""
    challenge = yield from up_to(frames, Opcode.SERVER_CHALLENGE)
    yield challenge.replaced(lab.tape[1])


@on_path("session", "client", EchoMismatch)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = [frame for frame in lab.tape if frame.to == "client"]
    for frame in frames:
        if frame.to == "server" and answers:
            yield answers.pop(0)
        elif frame.to == "server":
            yield frame.reflected()


# Integrity ----------------------------------------------------------------------------------------


@on_path("integrity", "server", BadTag)
def flip_reading(frames: Frames, lab: Lab) -> Frames:
    """One bit flips, to make the reading 100 a 900."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    # a flip in one block of ciphertext decrypts into the next
    yield flipped(report, CIPHERTEXT_AT + 1, ord("1") ^ ord("9"))


@on_path("integrity", "server", BadTag, goal=counted)
def flip_iv(frames: Frames, lab: Lab) -> Frames:
    """One bit of the IV flips."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield flipped(report, HEADER.size)


@on_path("integrity", "server", BadTag, goal=counted)
def flip_tag(frames: Frames, lab: Lab) -> Frames:
    """One bit of the tag flips."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield flipped(report, -1)


@on_path("integrity", "client", BadTag)
def flip_answer(frames: Frames, lab: Lab) -> Frames:
    """One bit of an answer flips, through its IV."""
    answer = yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)
    yield flipped(answer, HEADER.size + len(b'\0{"'))  # the e of "epoch"


@on_path("integrity", "server", UnexpectedOpcode, goal=counted)
def edit_opcode(frames: Frames, lab: Lab) -> Frames:
    """A report is relabelled as a CLIENT_HELLO."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report, opcode=Opcode.CLIENT_HELLO)


@on_path("integrity", "server", WrongPeer, goal=counted)
def edit_client_id(frames: Frames, lab: Lab) -> Frames:
    """A report is relabelled as another client's."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report, client_id=OTHER)


@on_path("integrity", "server", RoundMismatch, goal=counted)
def edit_round_number(frames: Frames, lab: Lab) -> Frames:
    """A report is moved to the next round."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report, round_number=2)


@on_path("integrity", "server", WrongDirection, goal=counted)
def edit_direction(frames: Frames, lab: Lab) -> Frames:
    """A report is relabelled as from the server."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report, direction=Direction.S2C)


@on_path("integrity", "server", BadTag, goal=fooled_server)
def swap_opcode(frames: Frames, lab: Lab) -> Frames:
    """A report is relabelled as a goodbye."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report, opcode=Opcode.TERMINATE)


@on_path("integrity", "server", BadTag)
def truncate(frames: Frames, lab: Lab) -> Frames:
    """A report loses its end, and gets a new padding."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    kept = report.message[: -TAG_BYTES - BLOCK_BYTES]
    shorter = report.changed(kept + report.message[-TAG_BYTES:])
    shorter = flipped(shorter, CIPHERTEXT_AT + 14, ord(".") ^ ord("]"))
    yield flipped(shorter, CIPHERTEXT_AT + 15, ord("0") ^ 1)


@on_path("integrity", "server", BadTag)
def extend(frames: Frames, lab: Lab) -> Frames:
    """The last block of a report comes twice."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report.changed(report.message[:-TAG_BYTES] + report.message[-TAG_BYTES - BLOCK_BYTES :])


@on_path("integrity", "server", BadTag)
def inject_report(frames: Frames, lab: Lab) -> Frames:
    """A report is made up without any key."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    iv = random_source(lab.seed)(BLOCK_BYTES)
    made_up = pkcs7_pad(bytes(NONCE_BYTES) + b"[900.0]")  # in clear: encrypting it takes a key
    yield report.changed(report.message[: HEADER.size] + iv + made_up + bytes(TAG_BYTES))


# Identity and direction ---------------------------------------------------------------------------


@on_path("identity", "server", WrongPeer)
def splice_client(frames: Frames, lab: Lab) -> Frames:
    """Another client's report is put in its place."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report.replaced(lab.other_tape[2])


@on_path("identity", "server", BadTag)
def splice_client_rewritten(frames: Frames, lab: Lab) -> Frames:
    """Another client's report comes under the victim's id."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report.replaced(lab.other_tape[2]), client_id=VICTIM)


@on_path("session", "server", BadTag)
def splice_session(frames: Frames, lab: Lab) -> Frames:
    """An earlier session's report is put in its place."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report.replaced(lab.older_tape[2])


@on_path("direction", "client", WrongDirection)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """A report comes back to the client that sent it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield report.reflected()


@on_path("direction", "client", WrongDirection, goal=alone_in_a_session)
def reflect_hello(frames: Frames, lab: Lab) -> Frames:
    """A CLIENT_HELLO comes back as the challenge."""
    hello = yield from up_to(frames, Opcode.CLIENT_HELLO)
    yield edited(hello.reflected(), opcode=Opcode.SERVER_CHALLENGE)


@on_path("direction", "client", BadTag)
def reflect_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A report comes back, dressed up as the answer."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield edited(report.reflected(), direction=Direction.S2C, opcode=Opcode.SERVER_AGGR_RESPONSE)


# Order and endings --------------------------------------------------------------------------------


@on_path("order", "server", BadTag, goal=fooled_server, hasty=True)
def reorder(frames: Frames, lab: Lab) -> Frames:
    """The goodbye overtakes the report before it."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield (yield from up_to(frames, Opcode.TERMINATE))
    yield report


@on_path("ending", "server", BadTag, goal=fooled_server, hasty=True)
def drop_report_keep_goodbye(frames: Frames, lab: Lab) -> Frames:
    """A report vanishes, and the goodbye after it arrives."""
    yield from up_to(frames, Opcode.CLIENT_DATA)


@on_path("ending", "client", BadTag, goal=fooled_client)
def forge_terminate(frames: Frames, lab: Lab) -> Frames:
    """An answer is relabelled as the server's farewell."""
    answer = yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)
    yield edited(answer, opcode=Opcode.TERMINATE)


@on_path("ending", "server", BadTag, goal=fooled_server)
def forge_goodbye(frames: Frames, lab: Lab) -> Frames:
    """A report whose text is known becomes a goodbye."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    head, block, last = pieces(report.message)
    text = ClientData(READINGS[0]).body[:BLOCK_BYTES]
    goodbye = pkcs7_pad(bytes([Status.GOODBYE]))
    block = xored(block, xored(text, goodbye))  # which decrypts into the block behind it
    forged_message = head + block + last + bytes(TAG_BYTES)
    yield edited(report.changed(forged_message), opcode=Opcode.TERMINATE)


@on_path("ending", "server", ConnectionCut, goal=fooled_server)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut after the first round."""
    yield (yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE))
    raise CutHere


@on_path("loss", "client", DeadlineExpired, noticed="the client's deadline")
def drop_report(frames: Frames, lab: Lab) -> Frames:
    """A report vanishes."""
    yield from up_to(frames, Opcode.CLIENT_DATA)


@on_path("loss", "client", DeadlineExpired, noticed="the client's deadline")
def drop_answer(frames: Frames, lab: Lab) -> Frames:
    """An answer vanishes."""
    yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)


@on_path("loss", "client", DeadlineExpired, noticed="the client's deadline")
def hold(frames: Frames, lab: Lab) -> Frames:
    """A report is held until its client has given up."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    farewell = yield from up_to(frames, Opcode.TERMINATE)
    yield from (report, farewell)


@on_path("order", "server", EndRequested, goal=counted)
def hold_until_reconnected(frames: Frames, lab: Lab) -> Frames:
    """A report is held until its client has come back."""
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    with lab.client(VICTIM) as returned:
        lab.outcome.sent.append([7.0])
        returned.report([7.0])
    yield report


# From outside -------------------------------------------------------------------------------------


@outside("identity", "server", BadTag, goal=learned)
def unknown_client(lab: Lab) -> None:
    """A CLIENT_HELLO comes from an unknown id."""
    with lab.connect() as line:
        line.send(edited(lab.tape[0], client_id=77))
        if line.receive():
            lab.outcome.learned = "nobody's CLIENT_HELLO is answered"


@outside("availability", "server", DeadlineExpired, goal=learned)
def slow_drip(lab: Lab) -> None:
    """A CLIENT_HELLO drips in, byte by byte."""
    frame = len(lab.tape[0].message).to_bytes(2, "big") + lab.tape[0].message
    with lab.connect() as line, suppress(ConnectionError):
        line.socket.settimeout(LIMITS.frame_timeout_s / 5)  # so 5 bytes fit into the deadline
        for count in range(len(frame)):
            line.socket.sendall(frame[count : count + 1])
            if count == 18:
                lab.outcome.learned = "a frame takes as long as it likes"
            with suppress(TimeoutError):
                if not line.socket.recv(1):
                    return


@outside("availability", "server", EndRequested, goal=crowded)
def flood(lab: Lab) -> None:
    """Many strangers connect, and say nothing."""
    with contextlib.ExitStack() as lines:
        strangers = [lines.enter_context(lab.connect()) for _ in range(CROWD)]
        strangers[0].receive()  # nothing: the server closes it to make room
        with lab.client(2) as newcomer:
            newcomer.report([])


# Secrecy and stolen keys --------------------------------------------------------------------------


@on_path("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Two sessions of equal readings are compared."""
    messages = [frame.message for frame in (*lab.tape, *lab.older_tape)]
    for frame in frames:
        messages.append(frame.message)
        yield frame
    ciphertexts = [message[CIPHERTEXT_AT:-TAG_BYTES] for message in messages]
    lab.outcome.learned = shown_by(ciphertexts)
    if any(b"100.0" in text for text in ciphertexts):
        lab.outcome.learned = "a reading is 100.0"
    # a nonce fills the first block of a report, and its readings the next ones
    elif repeats(ciphertexts[2][BLOCK_BYTES:], ClientData(READINGS[0]).body):
        lab.outcome.learned = "what a known report is XORed with"


@outside("secrecy", "server", BadTag, goal=learned)
def padding_oracle(lab: Lab) -> None:
    """Refusals are provoked, to learn from them."""
    report = lab.tape[2].message
    head, block, last = pieces(report)
    refusal = ask(lab, report[: -TAG_BYTES - BLOCK_BYTES] + block)  # of padding that is bad
    if ask(lab, report[:-TAG_BYTES]) == refusal:
        return  # good padding looks like bad
    known = b""
    connections = 2
    while len(known) < BLOCK_BYTES:  # of the second block, from its end
        aim = len(known) + 1
        end = bytes(aim ^ byte for byte in known)
        masks = (bytes(BLOCK_BYTES - aim) + bytes([guess]) + end for guess in range(256))
        for mask in masks:
            connections += 1
            if ask(lab, head + xored(block, mask) + last) != refusal:
                known = bytes([aim ^ mask[-aim]]) + known
                break
        else:
            return
    lab.outcome.learned = f"{known.decode(errors='replace')}, in {connections} connections"


def ask(lab: Lab, untagged: bytes) -> bytes:
    """Return the opcode that refuses a report under a wrong tag, or nothing if none does.

    Nothing counts only if it comes again: a busy server may have closed before it answered.
    """
    return ask_once(lab, untagged) or ask_once(lab, untagged)


def ask_once(lab: Lab, untagged: bytes) -> bytes:
    """Return the opcode of the refusal, or nothing."""
    with lab.connect() as line:
        line.send(lab.tape[0])
        line.receive()
        line.send(untagged + bytes(TAG_BYTES))
        return line.receive()[:1]


def unsealed(keys: Keys, sender: str, message: bytes) -> bytes:
    """Return the plaintext of a message, nothing if these chain keys do not fit."""
    iv = message[HEADER.size : CIPHERTEXT_AT]
    ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
    decrypted = aes_cbc_decrypt(ciphertext, keys[f"{sender}-ENC"][:AES_KEY_BYTES], iv)
    for padded in (decrypted, ciphertext):  # which needs no key where nothing is encrypted
        with suppress(ValueError, BadPayload):
            plaintext = pkcs7_unpad(padded)
            parse_message(message[0], Direction[sender], plaintext)
            return plaintext
    return b""


SHORT_NAMES = {
    Opcode.CLIENT_HELLO: "hello",
    Opcode.SERVER_CHALLENGE: "challenge",
    Opcode.CLIENT_DATA: "report",
    Opcode.SERVER_AGGR_RESPONSE: "answer",
    Opcode.KEY_DESYNC_ERROR: "refusal",
    Opcode.TERMINATE: "goodbye",
}


def opened(stolen: Keys, messages: Sequence[bytes]) -> str:
    """Name the messages that stolen keys open, one after another: each leads to the next keys."""
    known = [stolen]
    found = []
    for message in messages:
        opcode, _, round_number, direction = HEADER.unpack_from(message)
        for keys in known:
            if text := unsealed(keys, Direction(direction).name, message):
                found.append(f"{SHORT_NAMES[opcode]} {round_number}")
                ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
                known.append(evolve_c2s(keys, ciphertext, text[:NONCE_BYTES]))
                known.append(evolve_s2c(keys, text[1:], text[:1]))
                break
    return ", ".join(found)


def robbed(frames: Frames, lab: Lab) -> Generator[Frame, None, tuple[list[bytes], dict[str, Keys]]]:
    """Deliver everything, and return it with the keys of both ends while answer 1 is on its way.

    Those of the client are from the middle of round 1, those of the server from its end.
    """
    messages: list[bytes] = []
    stolen: dict[str, Keys] = {}
    for frame in frames:
        messages.append(frame.message)
        if frame.message[0] == Opcode.SERVER_AGGR_RESPONSE and not stolen:
            stolen = {end: dict(session._keys) for end, session in lab.sessions.items()}
        yield frame
    return messages, stolen


def told(found: dict[str, str]) -> str:
    return "; ".join(f"the keys of the {end} open {what}" for end, what in found.items() if what)


PAST = {"client": 3, "server": 4}  # messages that were opened or sealed before the theft
AFTER_ROUND_1 = "report 2, answer 2, report 3, answer 3, goodbye 4"


@on_path(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nothing",
    wins=told({"client": f"answer 1, {AFTER_ROUND_1}", "server": AFTER_ROUND_1}),
    inside=True,
)
def stolen_chain_keys(frames: Frames, lab: Lab) -> Frames:
    """Chain keys are stolen in round 1, and used."""
    messages, stolen = yield from robbed(frames, lab)
    following = {end: opened(stolen[end], messages[PAST[end] :]) for end in stolen}
    lab.outcome.learned = told(following)


@on_path("theft", "", None, goal=learned, inside=True)
def stolen_keys_backwards(frames: Frames, lab: Lab) -> Frames:
    """Stolen chain keys are tried on what came before."""
    messages, stolen = yield from robbed(frames, lab)
    past = {end: opened(stolen[end], messages[: PAST[end]]) for end in stolen}
    lab.outcome.learned = told(past)


@outside(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nothing",
    wins=f"the recorded reading {ClientData(READINGS[0]).body.decode()}",
)
def stolen_master_key(lab: Lab) -> None:
    """The master key opens an old recording."""
    hello, challenge, report = (frame.message for frame in lab.tape[:3])
    server = type(lab.sessions["client"])(VICTIM, DEMO_KEYS[VICTIM], Direction.S2C)
    server.open(hello)
    server_nonce = unsealed(server._keys, "S2C", challenge)[1 + NONCE_BYTES :]
    server._random_bytes = lambda length: server_nonce  # so that it repeats the challenge
    server.seal(ServerChallenge())
    lab.outcome.learned = f"the recorded reading {server.open(report).body.decode()}"


@outside(
    "theft",
    "client",
    PeerTerminated,
    goal=learned,
    noticed="the client, who is REPLACED",
    wins="the server takes a report of 900.0 from the thief",
)
def guessed_key(lab: Lab) -> None:
    """The key is a demo key, and an attacker uses it."""
    with lab.client(VICTIM) as impostor:
        impostor.report([900.0])
        lab.outcome.learned = "the server takes a report of 900.0 from the thief"


# The program --------------------------------------------------------------------------------------

DOCUMENTED = (  # the six kinds of attacks that the protocol description names, in its order
    "flip-reading",
    "flip-iv",
    "truncate",
    "extend",
    "flip-tag",
    "edit-round-number",
    "replay-rewritten",
    "drop-report",
    "drop-answer",
    "reorder",
    "replay-report",
    "replay-session",
    "recorded-server",
    "reflect",
    "reflect-rewritten",
)


def server_to_attack(options: argparse.Namespace) -> tuple[str, int] | None:
    """Return the address that --server asks for, None for a server of our own.

    Raises UserError, NoConnection.
    """
    asked: tuple[str, int] | None = options.server
    if not asked:
        if not can_bind(HOST, PORT):
            where = f"{HOST}:{PORT}"
            to_stderr(f"something listens on {where}; attack it with: --server {where}")
        return None
    if options.seed is not None or options.without is not None:
        raise UserError("--seed and --without need the lab's own server")
    _, address = choose_keys(None, asked[0])  # the demo keys are for loopback only
    if can_bind(address, asked[1]):
        where = host_and_port_of((address, asked[1]))
        raise NoConnection(f"no server at {where}: nothing listens there")
    return address, asked[1]


def can_bind(host: str, port: int) -> bool:
    """Return whether a port is free, without connecting or letting anyone connect."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        if sys.platform != "win32":  # as in server.py: connections that are over are no obstacle
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def add_flags(parser: Parser) -> None:
    parser.add_argument("--server", type=host_and_port, metavar="HOST:PORT", help="attack this one")
    parser.add_argument("--seed", help="repeat a run byte for byte")


def new_lab(options: argparse.Namespace, log: Any, parts: Any, observer: Any) -> Lab:
    seed = options.seed or secrets.token_hex(4)
    return Lab(seed, log, parts, server_to_attack(options), observer)


PROGRAM = Program(
    description="Attacks a server of its own, or the one that --server names.",
    attacks=ATTACKS,
    lab=new_lab,
    weakened="lab.weakened",
    title=opcode_of,
    add_flags=add_flags,
    module="attacks",
    sets=Path(__file__).parent / "classroom" / "sets.json",
    families={"documented": DOCUMENTED},
)

if __name__ == "__main__":
    run_program(PROGRAM.run)
