"""The test vectors, made by a second implementation that was written from PROTOCOL.md alone.

It imports nothing of the project. A vector that the project made of itself would agree with every
mistake in it; this program shares only the document with the code, so a difference between the two
is a mistake in one of three places. It is short and flat for the same reason: each line can be held
against a line of the document. It checks nothing, and it is not fast or safe to use for anything
else.

    python -m tests.make_vectors            (re)writes tests/vectors/*.json
    python -m tests.make_vectors --check    exit status 1, and names, if a file differs

Random bytes are not random here. Each vector has a stream of its own, which is

    SHA-256(label || integer of 8 bytes: 0) || SHA-256(label || integer of 8 bytes: 1) || ...

with an ASCII label that names the vector, and whoever draws takes the next bytes of it. So a new
vector leaves the others as they are.
"""

import hashlib
import hmac
import json
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from Crypto.Cipher import AES

DIRECTORY = Path(__file__).with_name("vectors")

Vector = dict[str, Any]
Keys = dict[str, bytes]
Draw = Callable[[int], bytes]

# 3.2 and 3.3: the numbers on the wire.
CLIENT_HELLO = 10
SERVER_CHALLENGE = 20
CLIENT_DATA = 30
SERVER_AGGR_RESPONSE = 40
KEY_DESYNC_ERROR = 50
TERMINATE = 60
NAMES = {
    10: "CLIENT_HELLO",
    20: "SERVER_CHALLENGE",
    30: "CLIENT_DATA",
    40: "SERVER_AGGR_RESPONSE",
    50: "KEY_DESYNC_ERROR",
    60: "TERMINATE",
}
C2S = 0
S2C = 1
ENDS = ("client", "server")  # who sends in direction 0, and who in 1
OK = 0
GOODBYE = 1
VIOLATION = 2
REPLACED = 3
SHUTDOWN = 4
TIMEOUT = 5
VERSION = b"\x01"
LAST_ROUND = 2**32 - 1
LARGEST = (2**53 - 1) * 2**971  # the largest IEEE 754 double

# 3.4
LABELS = ("C2S-ENC", "C2S-MAC", "S2C-ENC", "S2C-MAC")

# 3.6: the step at which each error is found.
STEPS = {
    "MalformedMessage": 1,
    "WrongPeer": 2,
    "WrongDirection": 2,
    "UnexpectedOpcode": 3,
    "RoundMismatch": 4,
    "BadTag": 5,
    "BadPadding": 7,
    "BadPayload": 8,
    "EchoMismatch": 8,
}

# ---------------------------------------------------------------- 1 Conventions


def sha256(x: bytes) -> bytes:
    """SHA-256(x) of section 1."""
    return hashlib.sha256(x).digest()


def hmac_sha256(key: bytes, x: bytes) -> bytes:
    """HMAC-SHA256(key, x) of section 1."""
    return hmac.new(key, x, hashlib.sha256).digest()


def aes_128_cbc(key: bytes, iv: bytes, x: bytes) -> bytes:
    """AES-128-CBC(key, IV, x) of section 1; x is padded already."""
    return AES.new(key, AES.MODE_CBC, iv=iv).encrypt(x)


def pad(x: bytes) -> bytes:
    """pad(x) of section 1."""
    n = 16 - len(x) % 16
    return x + bytes([n]) * n


def integer(value: int, n: int) -> bytes:
    """An integer of n bytes, as section 1 has it."""
    return value.to_bytes(n, "big")


def stream(label: str) -> Draw:
    """The stream of this label (see above), as a function that draws the next n bytes of it."""
    buffer = b""
    block = 0

    def draw(n: int) -> bytes:
        nonlocal buffer, block
        while len(buffer) < n:
            buffer = buffer + sha256(label.encode("ascii") + integer(block, 8))
            block = block + 1
        drawn = buffer[:n]
        buffer = buffer[n:]
        return drawn

    return draw


# ---------------------------------------------------------------- 3 On the wire


def chain_keys(master_key: bytes) -> Keys:
    """The four chain keys with which a session begins (3.4)."""
    return {label: sha256(master_key + label.encode("ascii")) for label in LABELS}


def protect(
    keys: Keys, opcode: int, client_id: int, round_: int, direction: int, iv: bytes, padded: bytes
) -> Vector:
    """One message (3.2) and its frame (3.1), with everything on the way there."""
    d = ("C2S", "S2C")[direction]
    header = struct.pack(">BBIB", opcode, client_id, round_, direction)
    ciphertext = aes_128_cbc(keys[d + "-ENC"][0:16], iv, padded)
    mac_input = header + iv + ciphertext
    tag = hmac_sha256(keys[d + "-MAC"], mac_input)
    message = mac_input + tag
    return {
        "iv": iv,
        "ciphertext": ciphertext,
        "mac_input": mac_input,
        "tag": tag,
        "message": message,
        "frame": integer(len(message), 2) + message,
    }


class Said(NamedTuple):
    """What one end says: the payload of 3.3, without what has to be drawn for it."""

    opcode: int
    direction: int
    status: int | None
    body: bytes


HELLO = Said(CLIENT_HELLO, C2S, None, VERSION)
CHALLENGE = Said(SERVER_CHALLENGE, S2C, OK, b"")  # session() fills in the nonces


def data(body: str) -> Said:
    """CLIENT_DATA with this JSON text."""
    return Said(CLIENT_DATA, C2S, None, body.encode("utf-8"))


def answer(body: str) -> Said:
    """SERVER_AGGR_RESPONSE with this JSON text."""
    return Said(SERVER_AGGR_RESPONSE, S2C, OK, body.encode("utf-8"))


def leave(direction: int, status: int, opcode: int = TERMINATE) -> Said:
    """TERMINATE, or KEY_DESYNC_ERROR."""
    return Said(opcode, direction, status, bytes([status]) if direction == C2S else b"")


def session(
    name: str, client_id: int, master_key: bytes, *script: Said, first_round: int = 1
) -> Vector:
    """A whole session, from the first message to the last.

    One set of chain keys is enough: at the end of each message both ends hold the same four.
    """
    draw = stream("session " + name)
    keys = chain_keys(master_key)
    round_ = 0
    state = "HELLO"
    client_nonce = b""
    vector: Vector = {
        "name": name,
        "client_id": client_id,
        "master_key": master_key,
        "first_round": first_round,
        "keys": keys,
        "messages": [],
    }
    for opcode, direction, status, said in script:
        body = said
        if direction == C2S:
            nonce = draw(16)
            random = [nonce]
            plaintext = nonce + body
        elif opcode == SERVER_CHALLENGE:
            server_nonce = draw(16)
            random = [server_nonce]
            body = client_nonce + server_nonce
            plaintext = bytes([OK]) + body
        else:
            random = []
            plaintext = bytes([status or OK]) + body
        iv = draw(16)
        random = random + [iv]
        header_round = round_
        padded = pad(plaintext)
        made = protect(keys, opcode, client_id, round_, direction, iv, padded)

        if opcode == CLIENT_HELLO:
            client_nonce = nonce
            state = "CHALLENGE"
        elif opcode == SERVER_CHALLENGE:
            keys = {label: sha256(keys[label] + client_nonce + server_nonce) for label in LABELS}
            round_ = first_round
            state = "REPORT"
        elif opcode == CLIENT_DATA:
            keys = keys | {
                "C2S-ENC": sha256(keys["C2S-ENC"] + made["ciphertext"]),
                "C2S-MAC": sha256(keys["C2S-MAC"] + nonce),
            }
            state = "ANSWER"
        elif opcode == SERVER_AGGR_RESPONSE:
            keys = keys | {
                "S2C-ENC": sha256(keys["S2C-ENC"] + body),
                "S2C-MAC": sha256(keys["S2C-MAC"] + bytes([OK])),
            }
            round_, state = round_ + 1, "REPORT" if round_ < LAST_ROUND else "ENDED"
        else:
            state = "ENDED"

        message = {
            "from": ENDS[direction],
            "name": NAMES[opcode],
            "opcode": opcode,
            "round": header_round,
            "random": random,
            "status": status,
            "body": body,
        }
        if opcode in (CLIENT_DATA, SERVER_AGGR_RESPONSE):
            message["text"] = body.decode("utf-8")
        vector["messages"].append(
            message
            | {"plaintext": plaintext, "padded": padded}
            | made
            | {
                "keys_after": keys if state != "ENDED" else None,
                "round_after": round_ if state != "ENDED" else None,
                "state_after": state,
            }
        )
    return vector


# ---------------------------------------------------------------- key_schedule.json


def hashed(x: bytes) -> Vector:
    """One step of the schedule: what goes into SHA-256, and what comes out."""
    return {"input": x, "output": sha256(x)}


def message_keys(keys: Keys) -> Vector:
    """The keys that a message is really protected with."""
    return {
        "C2S encryption": keys["C2S-ENC"][0:16],
        "C2S MAC": keys["C2S-MAC"],
        "S2C encryption": keys["S2C-ENC"][0:16],
        "S2C MAC": keys["S2C-MAC"],
    }


def schedule(name: str, master_key: bytes) -> Vector:
    """The key schedule of one session with one round, hash by hash."""
    _, challenge, report, reply = session(
        "key schedule " + name,
        7,
        master_key,
        HELLO,
        CHALLENGE,
        data("[1,2.5]"),
        answer('{"epoch":1,"round":1,"own_count":2,"own_sum":3.5,"own_share":1}'),
    )["messages"]
    client_nonce = challenge["body"][:16]
    server_nonce = challenge["body"][16:]
    first = chain_keys(master_key)
    bound = challenge["keys_after"]
    return {
        "name": name,
        "client_id": 7,
        "master_key": master_key,
        "start": {label: hashed(master_key + label.encode("ascii")) for label in LABELS},
        "start_message_keys": message_keys(first),
        "client_nonce": client_nonce,
        "server_nonce": server_nonce,
        "binding": {x: hashed(first[x] + client_nonce + server_nonce) for x in LABELS},
        "binding_message_keys": message_keys(bound),
        "client_data": {
            "round": 1,
            "nonce": report["random"][0],
            "iv": report["random"][1],
            "body": report["body"],
            "ciphertext": report["ciphertext"],
        },
        "c2s_ratchet": {
            "C2S-ENC": hashed(bound["C2S-ENC"] + report["ciphertext"]),
            "C2S-MAC": hashed(bound["C2S-MAC"] + report["random"][0]),
        },
        "c2s_ratchet_message_keys": message_keys(report["keys_after"]),
        "server_aggr_response": {
            "round": 1,
            "iv": reply["random"][0],
            "body": reply["body"],
            "status": bytes([OK]),
        },
        "s2c_ratchet": {
            "S2C-ENC": hashed(bound["S2C-ENC"] + reply["body"]),
            "S2C-MAC": hashed(bound["S2C-MAC"] + bytes([OK])),
        },
        "s2c_ratchet_message_keys": message_keys(reply["keys_after"]),
    }


def key_schedule() -> Vector:
    """key_schedule.json."""
    return {
        "comment": [
            "PROTOCOL.md 3.4, hash by hash, for master keys of several lengths.",
            "Byte strings are lower-case hex. Each {input, output} is one SHA-256 of the schedule:",
            "start is the four chain keys; binding is after SERVER_CHALLENGE; c2s_ratchet is after",
            "the CLIENT_DATA described in client_data; s2c_ratchet is after the",
            "SERVER_AGGR_RESPONSE described in server_aggr_response. A label that a ratchet does",
            "not name keeps its chain key. *_message_keys are the AES and HMAC keys that protect",
            "messages from then on.",
            "To check the key schedule alone, take ciphertext as given. It is also the real one:",
            "AES-128-CBC of pad(nonce || body) under the C2S key of binding_message_keys.",
        ],
        "cases": [
            schedule("demo key of client 3", b"client3_master_k"),
            schedule("17 bytes", stream("master key of 17 bytes")(17)),
            schedule("32 bytes", stream("master key of 32 bytes")(32)),
            schedule("48 bytes, with a label just one SHA-256 block", stream("48")(48)),
            schedule("49 bytes, with a label just two SHA-256 blocks", stream("49")(49)),
            schedule("100 bytes", stream("master key of 100 bytes")(100)),
            schedule("16 zero bytes", bytes(16)),
        ],
    }


# ---------------------------------------------------------------- sessions.json

ONE = session(
    "one round, goodbye in REPORT",
    1,
    b"client1_master_k",
    HELLO,
    CHALLENGE,
    data("[21.5, 22, -3.25]"),
    answer(
        '{"epoch":1,"round":1,"participants":[1],"count":3,"sum":40.25,'
        '"mean":13.416666666666666,"min":-3.25,"max":22,'
        '"own_count":3,"own_sum":40.25,"own_share":1}'
    ),
    leave(C2S, GOODBYE),
)

THREE = session(
    "three rounds, goodbye in ANSWER",
    2,
    b"client2_master_k",
    HELLO,
    CHALLENGE,
    data("[]"),
    answer(
        '{"epoch":1,"round":1,"participants":[2],"count":0,"sum":0,"mean":null,"min":null,'
        '"max":null,"own_count":0,"own_sum":0,"own_share":null}'
    ),
    data("[" + ",".join(str(i % 10) for i in range(1024)) + "]"),
    answer(
        '{"epoch":2,"round":2,"participants":[2,5],"count":1024,"sum":4596,'
        '"mean":4.48828125,"min":0,"max":9,"own_count":1024,"own_sum":4596,"own_share":1}'
    ),
    # nonce || body fills two blocks, status || body fills four: a whole block of padding each.
    data("[1.5,2.25,-3.75]"),
    answer('{"epoch":3,"round":3,"own_count":3,"own_sum":0,"own_share":null}'.ljust(79)),
    data("[4]"),
    leave(C2S, GOODBYE),
)

SESSIONS = [
    ONE,
    session(
        "no round, shutdown by the server",
        255,
        stream("key of client 255")(32),
        HELLO,
        CHALLENGE,
        leave(S2C, SHUTDOWN),
    ),
    THREE,
    session(
        "one round with text, replaced in REPORT",
        4,
        b"client4_master_k",
        HELLO,
        CHALLENGE,
        data("[1e15,-1e15,0.1,5e-324]"),
        answer(
            '{"epoch":7,"round":1,"own_count":4,"own_sum":0.1,"own_share":null,'
            '"site":"Z\u00fcrich \u2013 \u6771\u4eac \U0001f321",'
            '"notes":["\u00b0C",null,-2.5]}'
        ),
        leave(S2C, REPLACED),
    ),
    session(
        "key desync by the server in ANSWER",
        5,
        b"client5_master_k",
        HELLO,
        CHALLENGE,
        data("[0]"),
        leave(S2C, VIOLATION, KEY_DESYNC_ERROR),
    ),
    session(
        "key desync by the client in ANSWER",
        128,
        stream("key of client 128")(24),
        HELLO,
        CHALLENGE,
        data("[0]"),
        leave(C2S, VIOLATION, KEY_DESYNC_ERROR),
    ),
    session(
        "no round, goodbye in REPORT", 3, b"client3_master_k", HELLO, CHALLENGE, leave(C2S, GOODBYE)
    ),
    session(
        "violation, by the client in REPORT",
        10,
        stream("key of client 10")(16),
        HELLO,
        CHALLENGE,
        leave(C2S, VIOLATION),
    ),
    session(
        "timeout, by the client in ANSWER",
        20,
        stream("key of client 20")(16),
        HELLO,
        CHALLENGE,
        data("[1]"),
        leave(C2S, TIMEOUT),
    ),
    session(
        "timeout, by the server in ANSWER",
        30,
        stream("key of client 30")(16),
        HELLO,
        CHALLENGE,
        data("[1]"),
        leave(S2C, TIMEOUT),
    ),
    session(
        "the last round of all",
        60,
        stream("key of client 60")(33),
        HELLO,
        CHALLENGE,
        data("[1]"),
        answer('{"epoch":1,"round":4294967295,"own_count":1,"own_sum":1,"own_share":1}'),
        first_round=LAST_ROUND,
    ),
]


def sessions() -> Vector:
    """sessions.json."""
    return {
        "comment": [
            "Whole sessions. All bytes are lower-case hex; keys are the chain keys of the start.",
            "Each message has, in the order in which they are made: from (who sends it), name and",
            "opcode, round (in its header), random (what the sender draws, in order), status (null",
            "where the message has none), body (all that follows the nonce C2S or the status S2C;",
            "so a TERMINATE or KEY_DESYNC_ERROR C2S has its status there, too), text (the body as",
            "text, if it is JSON), plaintext, padded, iv, ciphertext, mac_input, tag, message,",
            "frame; then keys_after, round_after and state_after, of both ends: the sender's when",
            "it has sealed, the receiver's when it has accepted. keys_after and round_after are",
            "null when the session has ended.",
            "first_round is the round that SERVER_CHALLENGE begins: in the protocol always 1, but",
            "one session begins at the last round, which nobody could reach otherwise. Leave that",
            "one out if your implementation has no such hook.",
            "To test a sender: let random be what its random source returns, and compare message.",
            "To test a receiver: feed frame, compare keys, round and state. Each message is opened",
            "as soon as it is sealed; when a server that owes an answer reads is not tested here.",
        ],
        "sessions": SESSIONS,
    }


# ---------------------------------------------------------------- rejected.json


class Place(NamedTuple):
    """A point in a session: so many messages were accepted, and this end receives now."""

    session: Vector
    accepted: int
    receiver: str

    def after(self, what: str) -> Any:
        """Keys, round or state after the messages that were accepted."""
        if self.accepted:
            return self.session["messages"][self.accepted - 1][what + "_after"]
        return {"keys": self.session["keys"], "round": 0, "state": "HELLO"}[what]

    def keys(self) -> Keys:
        """The chain keys here."""
        keys: Keys = self.after("keys")
        return keys

    def round(self) -> int:
        """The round here."""
        return int(self.after("round"))

    def state(self) -> str:
        """The state here."""
        return str(self.after("state"))

    def direction(self) -> int:
        """The direction of what arrives here."""
        return C2S if self.receiver == "server" else S2C

    def genuine(self) -> bytes:
        """The message that really came here."""
        message: bytes = self.session["messages"][self.accepted]["message"]
        return message

    def summary(self) -> Vector:
        """For the files."""
        return {
            "session": self.session["name"],
            "accepted": self.accepted,
            "receiver": self.receiver,
            "state": self.state(),
        }


# The places of the session ONE: S_ where the server receives, C_ where the client does.
S_HELLO = Place(ONE, 0, "server")
C_HELLO = Place(ONE, 0, "client")
S_CHALLENGE = Place(ONE, 1, "server")
C_CHALLENGE = Place(ONE, 1, "client")
S_REPORT = Place(ONE, 2, "server")
C_REPORT = Place(ONE, 2, "client")
S_ANSWER = Place(ONE, 3, "server")
C_ANSWER = Place(ONE, 3, "client")
S_REPORT_2 = Place(ONE, 4, "server")
C_REPORT_2 = Place(ONE, 4, "client")
CLIENT_NONCE: bytes = ONE["messages"][0]["random"][0]
SERVER_NONCE: bytes = ONE["messages"][1]["random"][0]


def outlined(frame: bytes, *parts: tuple[bytes, int]) -> Vector:
    """Describe a frame that is too long to print, by the parts of its plaintext."""
    return {"plaintext_outline": parts, "iv": frame[9:25], "frame_sha256": sha256(frame)}


def forge(
    name: str,
    place: Place,
    opcode: int,
    body: bytes = b"",
    *,
    status: int = OK,
    plaintext: bytes | None = None,
    padded: bytes | None = None,
    client_id: int | None = None,
    round_: int | None = None,
    direction: int | None = None,
    keys: Keys | None = None,
) -> bytes:
    """A message sealed as the peer would seal it in this place, but for what is told otherwise.

    The plaintext is a nonce or the status, then the body, unless it is given as a whole.
    """
    draw = stream("message " + name)
    nonce = draw(16)
    iv = draw(16)
    if plaintext is None:
        plaintext = (nonce if place.direction() == C2S else bytes([status])) + body
    message: bytes = protect(
        place.keys() if keys is None else keys,
        opcode,
        place.session["client_id"] if client_id is None else client_id,
        place.round() if round_ is None else round_,
        place.direction() if direction is None else direction,
        iv,
        pad(plaintext) if padded is None else padded,
    )["message"]
    return message


def farewell(name: str, place: Place, error: str) -> Vector | None:
    """What the receiver must send for this error (3.6), drawing from a stream of its own."""
    if place.state() not in ("REPORT", "ANSWER"):
        return None
    draw = stream("farewell " + name)
    opcode = KEY_DESYNC_ERROR if error == "RoundMismatch" else TERMINATE
    if place.receiver == "client":
        random = [draw(16), draw(16)]
        plaintext = random[0] + bytes([VIOLATION])
    else:
        random = [draw(16)]
        plaintext = bytes([VIOLATION])
    made = protect(
        place.keys(),
        opcode,
        place.session["client_id"],
        place.round(),
        1 - place.direction(),
        random[-1],
        pad(plaintext),
    )
    return {
        "opcode": opcode,
        "name": NAMES[opcode],
        "status": VIOLATION,
        "random": random,
        "frame": made["frame"],
    }


REJECTED: list[Vector] = []


def reject(
    error: str,
    place: Place,
    name: str,
    why: str,
    message: bytes,
    *,
    frame: bytes | None = None,
    outline: Vector | None = None,
) -> None:
    """One case for rejected.json: this message, or this beginning of a frame, or this outline."""
    REJECTED.append(
        {
            "name": name,
            "why": why,
            **place.summary(),
            **(
                outline or {"frame": integer(len(message), 2) + message if frame is None else frame}
            ),
            "step": STEPS[error],
            "error": error,
            "farewell": farewell(name, place, error),
        }
    )


def refuse(
    error: str, place: Place, name: str, why: str, opcode: int, body: bytes = b"", **fault: Any
) -> None:
    """One case for rejected.json: a message that is sealed well, with this fault in it."""
    reject(error, place, name, "well sealed; " + why, forge(name, place, opcode, body, **fault))


def flip(message: bytes, bit: int) -> bytes:
    """The message with one bit turned over, counted from the first byte's most significant one."""
    changed = bytearray(message)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


def reject_shapes() -> None:
    """3.6 step 1."""
    for place, lengths in (
        (S_REPORT, (0, 1, 7, 39, 54, 55, 70, 72, 86, 88, 102, 104)),
        (C_ANSWER, (0, 55, 70, 72)),
    ):
        for length in lengths:
            reject(
                "MalformedMessage",
                place,
                f"length {length} in {place.state()}",
                f"a frame of {length} bytes: the genuine message, cut short or with zeros after",
                (place.genuine() + bytes(64))[:length],
            )
    for length in (65_526, 65_528, 65_535):
        reject(
            "MalformedMessage",
            S_REPORT,
            f"length {length}",
            f"a frame that announces {length} bytes; only its first two bytes are here, and"
            " they are enough",
            b"",
            frame=integer(length, 2),
        )
    reject(
        "MalformedMessage",
        S_HELLO,
        "length 70 in HELLO",
        "a CLIENT_HELLO cut short",
        S_HELLO.genuine()[:70],
    )
    reject(
        "MalformedMessage",
        C_CHALLENGE,
        "length 102 in CHALLENGE",
        "a SERVER_CHALLENGE without its last byte",
        C_CHALLENGE.genuine()[:-1],
    )


def reject_peers() -> None:
    """3.6 step 2: id, then direction."""
    for client_id in (0, 2, 255):
        refuse(
            "WrongPeer",
            S_REPORT,
            f"client id {client_id}",
            f"the id is {client_id}, not 1",
            CLIENT_DATA,
            b"[]",
            client_id=client_id,
        )
    refuse(
        "WrongPeer",
        C_CHALLENGE,
        "client id 3 in a challenge",
        "the id is 3, not 1",
        SERVER_CHALLENGE,
        CLIENT_NONCE + SERVER_NONCE,
        client_id=3,
    )
    refuse(
        "WrongPeer",
        C_ANSWER,
        "client id 2 in an answer",
        "the id is 2, not 1",
        SERVER_AGGR_RESPONSE,
        b"{}",
        client_id=2,
    )
    refuse(
        "WrongPeer",
        S_REPORT,
        "client id 2 in a goodbye",
        "the id is 2, not 1",
        TERMINATE,
        bytes([GOODBYE]),
        client_id=2,
    )
    refuse(
        "WrongPeer",
        S_REPORT,
        "client id and direction both wrong",
        "two faults, of which the id is checked first",
        CLIENT_DATA,
        b"[]",
        client_id=2,
        direction=S2C,
    )

    reject(
        "WrongDirection",
        C_ANSWER,
        "report reflected to the client",
        "the client's own CLIENT_DATA comes back to it",
        ONE["messages"][2]["message"],
    )
    reject(
        "WrongDirection",
        C_CHALLENGE,
        "hello reflected to the client",
        "the client's own CLIENT_HELLO comes back to it",
        ONE["messages"][0]["message"],
    )
    reject(
        "WrongDirection",
        S_REPORT,
        "challenge reflected to the server",
        "the server's own SERVER_CHALLENGE comes back to it",
        ONE["messages"][1]["message"],
    )
    for direction in (1, 2, 255):
        # Under the C2S keys, so that the header is the only fault.
        made = protect(
            S_REPORT.keys()
            | {"S2C-ENC": S_REPORT.keys()["C2S-ENC"], "S2C-MAC": S_REPORT.keys()["C2S-MAC"]},
            CLIENT_DATA,
            1,
            1,
            S2C,
            bytes(16),
            pad(bytes(16) + b"[]"),
        )["mac_input"]
        changed = made[:6] + bytes([direction]) + made[7:]
        reject(
            "WrongDirection",
            S_REPORT,
            f"direction {direction}, from the client",
            f"direction {direction} in its header; the tag is right, under C2S-MAC",
            changed + hmac_sha256(S_REPORT.keys()["C2S-MAC"], changed),
        )
    refuse(
        "WrongDirection",
        S_REPORT,
        "goodbye of the server's, to the server",
        "a TERMINATE from the server to itself, under the S2C keys",
        TERMINATE,
        plaintext=bytes([GOODBYE]),
        direction=S2C,
    )
    refuse(
        "WrongDirection",
        C_ANSWER,
        "goodbye of the client's, to the client",
        "a TERMINATE from the client to itself, under the C2S keys",
        TERMINATE,
        plaintext=bytes(16) + bytes([GOODBYE]),
        direction=C2S,
    )


def reject_opcodes() -> None:
    """3.6 step 3: whatever is no move of the state, from either end's point of view."""
    legal = [
        (S_HELLO, CLIENT_HELLO),
        (C_CHALLENGE, SERVER_CHALLENGE),
        (S_REPORT, CLIENT_DATA),
        (C_ANSWER, SERVER_AGGR_RESPONSE),
    ]
    legal += [
        (place, opcode)
        for place in (S_REPORT, C_REPORT, S_ANSWER, C_ANSWER)
        for opcode in (KEY_DESYNC_ERROR, TERMINATE)
    ]
    for place in (
        S_HELLO,
        C_HELLO,
        S_CHALLENGE,
        C_CHALLENGE,
        S_REPORT,
        C_REPORT,
        S_ANSWER,
        C_ANSWER,
    ):
        violation = bytes([VIOLATION]) if place.receiver == "server" else b""
        for opcode, status, body in (
            (CLIENT_HELLO, OK, VERSION),
            (SERVER_CHALLENGE, OK, CLIENT_NONCE + SERVER_NONCE),
            (CLIENT_DATA, OK, b"[]"),
            (SERVER_AGGR_RESPONSE, OK, b"{}"),
            (KEY_DESYNC_ERROR, VIOLATION, violation),
            (TERMINATE, VIOLATION, violation),
        ):
            if (place, opcode) not in legal:
                refuse(
                    "UnexpectedOpcode",
                    place,
                    f"{NAMES[opcode]} to the {place.receiver} in {place.state()}",
                    f"but no move of {place.state()} from the {ENDS[place.direction()]}",
                    opcode,
                    body,
                    status=status,
                )
    for opcode in (0, 1, 31, 70, 255):
        refuse(
            "UnexpectedOpcode",
            S_REPORT,
            f"opcode {opcode}",
            "there is no such opcode",
            opcode,
            b"[]",
        )
    refuse("UnexpectedOpcode", C_ANSWER, "opcode 41", "there is no such opcode", 41, b"{}")
    reject(
        "UnexpectedOpcode",
        S_ANSWER,
        "report repeated at once",
        "the CLIENT_DATA of this round again, byte for byte, while its answer is due",
        ONE["messages"][2]["message"],
    )
    reject(
        "UnexpectedOpcode",
        Place(THREE, 5, "server"),
        "report replayed out of turn",
        "the CLIENT_DATA of round 1 while the answer of round 2 is due; two faults, of which the"
        " opcode is checked first",
        THREE["messages"][2]["message"],
    )
    reject(
        "UnexpectedOpcode",
        C_REPORT_2,
        "answer repeated at once",
        "the SERVER_AGGR_RESPONSE of the round before, byte for byte",
        ONE["messages"][3]["message"],
    )


def reject_rounds() -> None:
    """3.6 step 4."""
    for place, opcode, body, rounds in (
        (S_HELLO, CLIENT_HELLO, VERSION, (1, LAST_ROUND)),
        (C_CHALLENGE, SERVER_CHALLENGE, CLIENT_NONCE + SERVER_NONCE, (1,)),
        (S_REPORT, CLIENT_DATA, b"[]", (0, 2, 257, 0x01000001, LAST_ROUND)),
        (C_ANSWER, SERVER_AGGR_RESPONSE, b"{}", (0, 2, LAST_ROUND)),
        (S_REPORT_2, CLIENT_DATA, b"[]", (0, 1, 3)),
    ):
        for round_ in rounds:
            refuse(
                "RoundMismatch",
                place,
                f"round {round_} in {NAMES[opcode]} of {place.round()}",
                f"the round is {round_}, not {place.round()}",
                opcode,
                body,
                round_=round_,
            )
    reject(
        "RoundMismatch",
        S_REPORT_2,
        "report replayed one round later",
        "the CLIENT_DATA of round 1, byte for byte, in round 2",
        ONE["messages"][2]["message"],
    )
    reject(
        "RoundMismatch",
        Place(THREE, 5, "client"),
        "answer replayed one round later",
        "the SERVER_AGGR_RESPONSE of round 1, byte for byte, in round 2",
        THREE["messages"][3]["message"],
    )
    reject(
        "RoundMismatch",
        Place(THREE, 8, "server"),
        "report replayed three rounds later",
        "the CLIENT_DATA of round 1, byte for byte, in round 4",
        THREE["messages"][2]["message"],
    )
    name = "wrong round and wrong tag"
    reject(
        "RoundMismatch",
        S_REPORT,
        name,
        "two faults, of which the round is checked first",
        forge(name, S_REPORT, CLIENT_DATA, b"[]", round_=9)[:-32] + bytes(32),
    )


def reject_bits() -> None:
    """One bit of a genuine message turned over, in each field: steps 2 to 5."""
    for place in (S_HELLO, C_CHALLENGE, S_REPORT, C_ANSWER):
        message = place.genuine()
        what = NAMES[place.genuine()[0]]
        tag = (len(message) - 32) * 8
        for error, field, bit in (
            ("UnexpectedOpcode", "opcode", 7),
            ("WrongPeer", "client id", 8),
            ("RoundMismatch", "round, first bit", 16),
            ("RoundMismatch", "round, last bit", 47),
            ("WrongDirection", "direction, first bit", 48),
            ("WrongDirection", "direction, last bit", 55),
            ("BadTag", "IV, first bit", 56),
            ("BadTag", "IV, last bit", 183),
            ("BadTag", "ciphertext, first bit", 184),
            ("BadTag", "ciphertext, last bit", tag - 1),
            ("BadTag", "tag, first bit", tag),
            ("BadTag", "tag, last bit", tag + 255),
        ):
            if (place, field) != (S_HELLO, "client id"):  # which is where a server learns the id
                reject(
                    error,
                    place,
                    f"bit of {what}: {field}",
                    f"the genuine {what} with bit {bit} turned over",
                    flip(message, bit),
                )


def reject_tags() -> None:
    """3.6 step 5: tags that would be right for something else."""
    message = S_REPORT.genuine()
    keys = S_REPORT.keys()
    c2s_enc = keys["C2S-ENC"]
    c2s_mac = keys["C2S-MAC"]
    for name, why, tag in (
        ("tag of zeros", "the tag is 32 zero bytes", bytes(32)),
        (
            "tag half right",
            "only the first 16 bytes of the tag are right",
            message[-32:-16] + bytes(16),
        ),
        (
            "tag without the header",
            "the tag is one of IV || ciphertext",
            hmac_sha256(c2s_mac, message[7:-32]),
        ),
        (
            "tag without the IV",
            "the tag is one of header || ciphertext",
            hmac_sha256(c2s_mac, message[:7] + message[23:-32]),
        ),
        (
            "tag without the direction",
            "the tag is one of all but byte 6",
            hmac_sha256(c2s_mac, message[:6] + message[7:-32]),
        ),
        (
            "tag under 16 bytes of the key",
            "the tag is one under C2S-MAC[0:16]",
            hmac_sha256(c2s_mac[:16], message[:-32]),
        ),
        (
            "tag under the encryption key",
            "the tag is one under C2S-ENC",
            hmac_sha256(c2s_enc, message[:-32]),
        ),
        (
            "tag under the key of the other direction",
            "the tag is one under S2C-MAC",
            hmac_sha256(keys["S2C-MAC"], message[:-32]),
        ),
        (
            "tag that is only a hash",
            "the tag is SHA-256(C2S-MAC || ...), not HMAC",
            sha256(c2s_mac + message[:-32]),
        ),
    ):
        reject("BadTag", S_REPORT, name, "the genuine CLIENT_DATA, but " + why, message[:-32] + tag)

    for place, name, opcode, body, wrong_keys in (
        (S_REPORT, "report under keys that are not bound", CLIENT_DATA, b"[]", ONE["keys"]),
        (S_REPORT_2, "report under keys that have not moved", CLIENT_DATA, b"[]", S_REPORT.keys()),
        (
            S_REPORT,
            "report under keys that have moved too far",
            CLIENT_DATA,
            b"[]",
            S_REPORT_2.keys(),
        ),
        (
            C_ANSWER,
            "answer under keys that have moved too far",
            SERVER_AGGR_RESPONSE,
            b"{}",
            S_REPORT_2.keys(),
        ),
        (S_HELLO, "hello under another master key", CLIENT_HELLO, VERSION, THREE["keys"]),
        (
            C_CHALLENGE,
            "challenge under another master key",
            SERVER_CHALLENGE,
            CLIENT_NONCE + SERVER_NONCE,
            THREE["keys"],
        ),
        (
            S_REPORT,
            "goodbye bound to other nonces",
            TERMINATE,
            bytes([GOODBYE]),
            {label: sha256(ONE["keys"][label] + bytes(32)) for label in LABELS},
        ),
    ):
        reject(
            "BadTag",
            place,
            name,
            f"a good {NAMES[opcode]}, but under the wrong keys",
            forge(name, place, opcode, body, keys=wrong_keys),
        )

    name = "goodbye changed to key desync"
    reject(
        "BadTag",
        S_REPORT,
        name,
        "a well sealed TERMINATE, its opcode changed to KEY_DESYNC_ERROR afterwards",
        bytes([KEY_DESYNC_ERROR]) + forge(name, S_REPORT, TERMINATE, bytes([VIOLATION]))[1:],
    )
    reject(
        "BadTag",
        S_REPORT,
        "report changed to goodbye",
        "the genuine CLIENT_DATA, its opcode changed to TERMINATE",
        b"\x3c" + message[1:],
    )
    name = "goodbye with its round changed"
    reject(
        "BadTag",
        C_ANSWER,
        name,
        "TERMINATE may have any round, but not another one than it was sealed with",
        flip(forge(name, C_ANSWER, TERMINATE, status=SHUTDOWN), 47),
    )
    name = "wrong tag and wrong padding"
    reject(
        "BadTag",
        S_REPORT,
        name,
        "two faults, of which the tag is checked first",
        forge(name, S_REPORT, CLIENT_DATA, padded=bytes(32))[:-32] + bytes(32),
    )


def reject_paddings() -> None:
    """3.6 step 7. The tags are right, so that only the padding can be at fault."""
    nonce = stream("nonce of the padding cases")(16)
    for place, opcode, first, block in (
        (S_REPORT, CLIENT_DATA, nonce, b"[1,2,3,4,5]"),
        (C_ANSWER, SERVER_AGGR_RESPONSE, b"", b'\x00{"abc":12}'),
    ):
        # The block lacks 5 bytes, so the right padding is 05 05 05 05 05.
        for what, last in (
            ("0", block + bytes(5)),
            ("17", block + b"\x11" * 5),
            ("32", block + b"\x20" * 5),
            ("255", block + b"\xff" * 5),
            ("first byte unequal", block + b"\x00\5\5\5\5"),
            ("last but one unequal", block + b"\5\5\5\4\5"),
            ("4 for 5", block + b"\4\4\4\4\5"),
            ("one too long", block + b"\6\6\6\6\6"),
            ("as ANSI X9.23 has it", block + b"\0\0\0\0\5"),
            ("as ISO/IEC 7816-4 has it", block + b"\x80\0\0\0\0"),
            ("16, first byte wrong", b"\x0f" + b"\x10" * 15),
            ("16, all but the last wrong", bytes(15) + b"\x10"),
            ("16, middle byte wrong", b"\x10" * 8 + b"\x11" + b"\x10" * 7),
            ("17 in a whole block", b"\x11" * 16),
        ):
            refuse(
                "BadPadding",
                place,
                f"padding of {NAMES[opcode]}: {what}",
                f"the last block is {last.hex()}",
                opcode,
                padded=first + last,
            )
        # 17 and 32 bytes that would be padding, if so much were allowed.
        for n, spaces in ((17, 4), (32, 5)):
            refuse(
                "BadPadding",
                place,
                f"padding of {NAMES[opcode]}: {n} bytes of {n}",
                f"the last {n} bytes all hold {n}, after a good payload",
                opcode,
                padded=first + block + b" " * spaces + bytes([n]) * n,
            )
    for place, opcode, padded in (
        (S_HELLO, CLIENT_HELLO, nonce + VERSION + bytes(15)),
        (
            C_CHALLENGE,
            SERVER_CHALLENGE,
            bytes([OK]) + CLIENT_NONCE + SERVER_NONCE + b"\x0e" * 14 + b"\x0f",
        ),
        (S_ANSWER, TERMINATE, nonce + bytes([GOODBYE]) + b"\x0e" * 14 + b"\x0f"),
        (C_REPORT, KEY_DESYNC_ERROR, bytes([VIOLATION]) + b"\x10" * 15),
    ):
        refuse(
            "BadPadding",
            place,
            f"padding of {NAMES[opcode]}",
            f"the last block is {padded[-16:].hex()}",
            opcode,
            padded=padded,
        )


def reject_payloads() -> None:
    """3.6 step 8, but for JSON."""
    nonce = stream("nonce of the payload cases")(16)
    both = CLIENT_NONCE + SERVER_NONCE
    for place, opcode, plaintexts in (
        (
            S_HELLO,
            CLIENT_HELLO,
            {
                "nothing": b"",
                "a nonce of 15 bytes, and no version": nonce[:15],
                "a nonce of 15 bytes, and the version": nonce[:15] + VERSION,
                "no version": nonce,
                "version 0": nonce + b"\x00",
                "version 2": nonce + b"\x02",
                "version 1 in two bytes": nonce + b"\x00\x01",
                "the version twice": nonce + b"\x01\x01",
                "version 1 in ASCII": nonce + b"1",
            },
        ),
        (
            C_CHALLENGE,
            SERVER_CHALLENGE,
            {
                "nothing": b"",
                "a status and no more": b"\x00",
                "no status": both,
                "one nonce only": b"\x00" + CLIENT_NONCE,
                "31 bytes of nonces": b"\x00" + both[:-1],
                "33 bytes of nonces": b"\x00" + both + b"\x00",
                "status 1": b"\x01" + both,
                "status 2": b"\x02" + both,
                "status 6": b"\x06" + both,
                "status 255": b"\xff" + both,
            },
        ),
        (
            S_REPORT,
            CLIENT_DATA,
            {"nothing": b"", "a nonce of 15 bytes": nonce[:15], "JSON and no nonce": b"[]"},
        ),
        (
            C_ANSWER,
            SERVER_AGGR_RESPONSE,
            {
                "nothing": b"",
                "no status": b"{}",
                **{f"status {i}": bytes([i]) + b"{}" for i in (1, 2, 3, 4, 5, 6, 255)},
            },
        ),
        (
            S_REPORT,
            TERMINATE,
            {
                "nothing": b"",
                "no nonce": b"\x01",
                "no status": nonce,
                "a nonce of 15 bytes": nonce[:15] + b"\x01",
                "two statuses": nonce + b"\x01\x01",
                **{f"status {i}": nonce + bytes([i]) for i in (0, 6, 255)},
            },
        ),
        (
            S_ANSWER,
            KEY_DESYNC_ERROR,
            {
                "nothing": b"",
                "no status": nonce,
                "two statuses": nonce + b"\x02\x02",
                **{f"status {i}": nonce + bytes([i]) for i in (0, 1, 3, 4, 5, 6)},
            },
        ),
        (
            C_ANSWER,
            TERMINATE,
            {
                "nothing": b"",
                "a body": b"\x04\x04",
                "a nonce, as C2S": nonce + b"\x04",
                **{f"status {i}": bytes([i]) for i in (0, 6, 255)},
            },
        ),
        (
            C_REPORT,
            KEY_DESYNC_ERROR,
            {
                "nothing": b"",
                "a body": b"\x02\x02",
                **{f"status {i}": bytes([i]) for i in (0, 1, 3, 4, 5, 6)},
            },
        ),
    ):
        for what, plaintext in plaintexts.items():
            refuse(
                "BadPayload",
                place,
                f"{NAMES[opcode]} to the {place.receiver}, with {what}",
                f"the plaintext has {what}",
                opcode,
                plaintext=plaintext,
            )
    for what, echo in (
        ("its first bit flipped", flip(CLIENT_NONCE, 0)),
        ("its last bit flipped", flip(CLIENT_NONCE, 127)),
        ("zeros", bytes(16)),
        ("the server nonce", SERVER_NONCE),
        ("its bytes in reverse", CLIENT_NONCE[::-1]),
        ("another session's client nonce", THREE["messages"][0]["random"][0]),
    ):
        refuse(
            "EchoMismatch",
            C_CHALLENGE,
            f"echo: {what}",
            f"in the place of the client nonce there is {what}",
            SERVER_CHALLENGE,
            echo + SERVER_NONCE,
        )


def reject_json() -> None:
    """3.6 step 8: what is not RFC 8259, and what is but is not allowed here."""
    for what, body in (
        ("empty body", b""),
        ("white space only", b" \n"),
        ("object", b"{}"),
        ("string", b'"1"'),
        ("number", b"1"),
        ("null", b"null"),
        ("NaN", b"[NaN]"),
        ("Infinity", b"[Infinity]"),
        ("-Infinity", b"[-Infinity]"),
        ("1e400", b"[1e400]"),
        ("-1e400", b"[-1e400]"),
        ("true", b"[true]"),
        ("false", b"[false]"),
        ("null in it", b"[1,null]"),
        ("string in it", b'["1"]'),
        ("nested array", b"[[1]]"),
        ("nested empty array", b"[[]]"),
        ("nested object", b"[{}]"),
        ("1,025 numbers", b"[" + b",".join([b"0"] * 1025) + b"]"),
        ("integer above the limit", b"[1000000000000001]"),
        ("integer below the limit", b"[-1000000000000001]"),
        ("double next above the limit", b"[1000000000000000.125]"),
        ("double next below the limit", b"[-1000000000000000.125]"),
        ("above the limit, with an exponent", b"[1.0000000000000001e15]"),
        ("1e16", b"[1e16]"),
        ("5,000-digit integer", b"[" + b"9" * 5000 + b"]"),
        ("10,000 arrays deep", b"[" * 10_000 + b"]" * 10_000),
        ("UTF-16, little-endian", "[1]".encode("utf-16-le")),
        ("UTF-16, big-endian", "[1]".encode("utf-16-be")),
        ("UTF-16, with a byte order mark", b"\xff\xfe" + "[1]".encode("utf-16-le")),
        ("UTF-32, little-endian", "[1]".encode("utf-32-le")),
        ("byte order mark", b"\xef\xbb\xbf[1]"),
        ("invalid UTF-8", b"[1\xff]"),
        ("trailing letter", b"[1]x"),
        ("trailing zero byte", b"[1]\x00"),
        ("leading zero byte", b"\x00[1]"),
        ("two arrays", b"[1][2]"),
        ("trailing comma", b"[1,]"),
        ("only a comma", b"[,]"),
        ("missing comma", b"[1 2]"),
        ("not closed", b"[1"),
        ("not opened", b"1]"),
        ("closed by a brace", b"[1}"),
        ("leading zero", b"[01]"),
        ("leading zero, negative", b"[-01]"),
        ("leading plus", b"[+1]"),
        ("no digit before the point", b"[.5]"),
        ("no digit after the point", b"[1.]"),
        ("no digit in the exponent", b"[1e]"),
        ("minus alone", b"[-]"),
        ("hexadecimal", b"[0x10]"),
        ("underscore", b"[1_000]"),
        ("digit that is not ASCII", "[1\u0663]".encode()),
        ("white space that is not JSON's, U+00A0", "[\u00a01]".encode()),
        ("white space that is not JSON's, form feed", b"[1\x0c]"),
        ("comment", b"[1/* one */]"),
    ):
        refuse(
            "BadPayload",
            S_REPORT,
            f"readings: {what}",
            f"the body is {shown(body)}",
            CLIENT_DATA,
            body,
        )
    for what, body in (
        ("empty body", b""),
        ("white space only", b"  "),
        ("array", b"[]"),
        ("string", b'"{}"'),
        ("number", b"0"),
        ("null", b"null"),
        ("true", b'{"a":true}'),
        ("false", b'{"a":false}'),
        ("true in an array", b'{"a":[true]}'),
        ("nested object", b'{"a":{}}'),
        ("object in an array", b'{"a":[{}]}'),
        ("array in an array", b'{"a":[[1]]}'),
        ("2,000 arrays deep", b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}"),
        ("NaN", b'{"a":NaN}'),
        ("Infinity", b'{"a":Infinity}'),
        ("-Infinity in an array", b'{"a":[-Infinity]}'),
        ("1e400", b'{"a":1e400}'),
        ("1e400 in an array", b'{"a":[1e400]}'),
        ("double that rounds up to infinity", b'{"a":1.7976931348623159e308}'),
        ("integer next above the largest double", b'{"a":%d}' % (LARGEST + 1)),
        ("310-digit integer", b'{"a":1' + b"0" * 309 + b"}"),
        ("5,000-digit integer", b'{"a":' + b"7" * 5000 + b"}"),
        ("310-digit integer in an array", b'{"a":[-1' + b"0" * 309 + b"]}"),
        ("UTF-16, little-endian", '{"a":1}'.encode("utf-16-le")),
        ("byte order mark", b'\xef\xbb\xbf{"a":1}'),
        ("byte FF in a string", b'{"a":"\xff"}'),
        ("byte FF in a name", b'{"\xff":1}'),
        ("overlong UTF-8", b'{"a":"\xc0\x80"}'),
        ("UTF-8 cut short", b'{"a":"\xe2\x82"}'),
        ("UTF-8 beyond U+10FFFF", b'{"a":"\xf4\x90\x80\x80"}'),
        ("surrogate encoded in UTF-8", b'{"a":"\xed\xa0\x80"}'),
        ("surrogate pair encoded in UTF-8", b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}'),
        ("lone high surrogate", b'{"a":"\\ud83d"}'),
        ("lone low surrogate", b'{"a":"\\ude00"}'),
        ("surrogates in the wrong order", b'{"a":"\\ude00\\ud83d"}'),
        ("high surrogate, then a pair", b'{"a":"\\ud83d\\ud83d\\ude00"}'),
        ("high surrogate, then a letter", b'{"a":"\\ud83dx"}'),
        ("lone surrogate in a name", b'{"\\ud83d":1}'),
        ("lone surrogate in an array", b'{"a":["x","\\udfff"]}'),
        ("line feed in a string", b'{"a":"x\ny"}'),
        ("zero byte in a string", b'{"a":"x\x00y"}'),
        ("unknown escape", b'{"a":"\\x41"}'),
        ("escape of three digits", b'{"a":"\\u0e9"}'),
        ("escape with a sign", b'{"a":"\\u+0e9"}'),
        ("single quotes", b"{'a':1}"),
        ("name without quotes", b"{a:1}"),
        ("name that is a number", b"{1:1}"),
        ("no value", b'{"a"}'),
        ("trailing comma", b'{"a":1,}'),
        ("not closed", b'{"a":1'),
        ("string not closed", b'{"a":"1}'),
        ("trailing brace", b'{"a":1}}'),
        ("trailing zero byte", b'{"a":1}\x00'),
        ("comment", b'{"a":1} // one'),
    ):
        refuse(
            "BadPayload",
            C_ANSWER,
            f"aggregate: {what}",
            f"the body is {shown(body)}",
            SERVER_AGGR_RESPONSE,
            body,
        )

    name = "aggregate: 65,456 bytes"
    spaces = 65_454
    message = forge(name, C_ANSWER, SERVER_AGGR_RESPONSE, b"{" + b" " * spaces + b"}")
    reject(
        "BadPayload",
        C_ANSWER,
        name,
        "well sealed; an empty object and white space, one byte longer than a body may be",
        message,
        outline=outlined(
            integer(len(message), 2) + message, (bytes([OK]) + b"{", 1), (b" ", spaces), (b"}", 1)
        ),
    )


def shown(body: bytes) -> str:
    """A body for the eye: as it is where that is plain ASCII, else in hex; long ones in outline."""
    plain = body.isascii() and body.decode("ascii").isprintable()
    text = body.decode("ascii") if plain else body.hex(" ")
    text = text if len(text) <= 80 else f"{text[:24]}...{text[-16:]}, {len(body):,} bytes"
    return text or "empty"


def ignored() -> None:
    """3.6, last line: what arrives in ENDED. There is no error for it, and nothing to say."""
    over = len(THREE["messages"])
    late = forge("late answer", Place(THREE, over - 1, "client"), SERVER_AGGR_RESPONSE, b"{}")
    for place, name, why, message in (
        (
            Place(ONE, len(ONE["messages"]), "server"),
            "ENDED: the goodbye again",
            "the client's TERMINATE, a second time",
            ONE["messages"][-1]["message"],
        ),
        (
            Place(ONE, len(ONE["messages"]), "server"),
            "ENDED: an old report",
            "the CLIENT_DATA of round 1",
            ONE["messages"][2]["message"],
        ),
        (
            Place(THREE, over, "client"),
            "ENDED: the answer comes late",
            "the client has left in ANSWER; the answer crossed its TERMINATE",
            late,
        ),
        (Place(THREE, over, "client"), "ENDED: zeros", "71 zero bytes", bytes(71)),
        (Place(THREE, over, "server"), "ENDED: one byte", "a malformed message", bytes(1)),
    ):
        REJECTED.append(
            {
                "name": name,
                "why": why,
                **place.summary(),
                "frame": integer(len(message), 2) + message,
                "step": None,
                "error": None,
                "farewell": None,
            }
        )


def rejected() -> Vector:
    """rejected.json."""
    REJECTED.clear()
    reject_shapes()
    reject_peers()
    reject_opcodes()
    reject_rounds()
    reject_bits()
    reject_tags()
    reject_paddings()
    reject_payloads()
    reject_json()
    ignored()
    return {
        "comment": [
            "For what opens messages (when a server that owes an answer reads is not tested here).",
            "One bad frame each, with one fault (where it has two, the case is about their order).",
            "Byte strings are lower-case hex. Play the first `accepted` messages of `session` in",
            "sessions.json, all of them good; both ends are then in `state`. Now `receiver` gets",
            "`frame` from its peer, and must refuse it for the reason told in `why`: with the",
            "error `error` of PROTOCOL.md 3.6, found at `step` there. Where the step is 1 and",
            "`frame` is only two bytes long, they must be enough to refuse it.",
            "`farewell` is what the receiver must then send, sealed with the random bytes `random`",
            "drawn in this order; null: it sends nothing. Afterwards the receiver is in ENDED.",
            "Messages of the steps 3, 4, 7 and 8 have a right tag unless `why` says otherwise.",
            "One frame is not printed, because it is long. Its plaintext is each byte string of",
            "plaintext_outline, so many times, one after the other; seal it with `iv` and the",
            "keys of the place, as SERVER_AGGR_RESPONSE; frame_sha256 is the SHA-256 of the frame.",
            "The last cases have no error: they arrive in ENDED, and must be ignored.",
        ],
        "cases": REJECTED,
    }


# ---------------------------------------------------------------- accepted.json

ACCEPTED: list[Vector] = []


def accept(
    place: Place,
    name: str,
    opcode: int,
    body: bytes,
    *,
    status: int | None = None,
    round_: int | None = None,
    spaces: int = 0,
    **value: Any,
) -> None:
    """One case for accepted.json. The body may have that many spaces before its last byte."""
    draw = stream("message " + name)
    direction = place.direction()
    keys = place.keys()
    nonce = draw(16)
    iv = draw(16)
    begin = (nonce if direction == C2S else bytes([status or OK])) + body[:-1]
    end = body[-1:]
    plaintext = begin + b" " * spaces + end
    body = body[:-1] + b" " * spaces + end
    header_round = place.round() if round_ is None else round_
    made = protect(
        keys, opcode, place.session["client_id"], header_round, direction, iv, pad(plaintext)
    )
    case = {
        "name": name,
        **place.summary(),
        "opcode": opcode,
        "round": header_round,
        "status": status,
    }
    case |= (
        outlined(made["frame"], (begin, 1), (b" ", spaces), (end, 1))
        if spaces
        else {"body": body, "frame": made["frame"]}
    )
    case |= value
    if opcode == CLIENT_DATA:
        keys = keys | {
            "C2S-ENC": sha256(keys["C2S-ENC"] + made["ciphertext"]),
            "C2S-MAC": sha256(keys["C2S-MAC"] + nonce),
        }
        case |= {"keys_after": keys, "round_after": place.round(), "state_after": "ANSWER"}
    elif opcode == SERVER_AGGR_RESPONSE:
        keys = keys | {
            "S2C-ENC": sha256(keys["S2C-ENC"] + body),
            "S2C-MAC": sha256(keys["S2C-MAC"] + bytes([OK])),
        }
        case |= {"keys_after": keys, "round_after": place.round() + 1, "state_after": "REPORT"}
    else:
        case |= {"keys_after": None, "round_after": None, "state_after": "ENDED"}
    ACCEPTED.append(case)


def accept_readings(what: str, body: bytes, value: Sequence[float]) -> None:
    """CLIENT_DATA that must be accepted, with the numbers in it."""
    accept(S_REPORT, f"readings: {what}", CLIENT_DATA, body, value=value)


def accept_aggregate(what: str, body: bytes, value: dict[str, Any]) -> None:
    """SERVER_AGGR_RESPONSE that must be accepted, with what it says."""
    accept(C_ANSWER, f"aggregate: {what}", SERVER_AGGR_RESPONSE, body, status=OK, value=value)


def accepted() -> Vector:
    """accepted.json."""
    ACCEPTED.clear()
    for what, body, value in (
        ("white space everywhere", b" \t\r\n[ 1\t,\n2\r, 3 ]\n", [1, 2, 3]),
        ("empty, with white space", b"[ ]", []),
        (
            "1e15 and -1e15 exactly",
            b"[1e15,-1e15,1000000000000000,1E+15]",
            [1e15, -1e15, 1e15, 1e15],
        ),
        ("just inside the limit", b"[999999999999999.875]", [999999999999999.875]),
        ("the limit, by a negative exponent", b"[100000000000000000e-2]", [1e15]),
        (
            "rounds down to the limit",
            b"[1.00000000000000001e15,-1000000000000000.01]",
            [1e15, -1e15],
        ),
        ("minus zero", b"[-0,-0.0,0,0e0,-0E-0]", [0, 0, 0, 0, 0]),
        ("exponents", b"[1e2,1E2,1e+2,1E-2,0.25e1,12e00]", [100, 100, 100, 0.01, 2.5, 12]),
        ("a number that underflows", b"[1e-400,5e-324]", [0, 5e-324]),
        (
            "more digits than a double holds",
            b"[0.1000000000000000055511151231257827021181583404541015625]",
            [0.1],
        ),
        ("401 digits, and an exponent that takes them back", b"[1" + b"0" * 400 + b"e-400]", [1]),
        ("1,024 numbers, with white space", b"[" + b" ,".join([b"7"] * 1024) + b"]", [7] * 1024),
    ):
        accept_readings(what, body, value)
    for what, text, told in (
        ("empty object", b"{}", {}),
        ("white space everywhere", b'\n{ "a"\t:\r1 , "b" : [ ] }  ', {"a": 1, "b": []}),
        ("a name twice", b'{"a":1,"b":2,"a":3}', {"a": 3, "b": 2}),
        ("a name twice, once escaped", b'{"a":1,"\\u0061":2}', {"a": 2}),
        (
            "a name three times, the first two with what is not allowed",
            b'{"a":true,"a":[[1]],"a":3}',
            {"a": 3},
        ),
        ("a name twice, first with half a surrogate pair", b'{"a":"\\ud83d","a":"x"}', {"a": "x"}),
        (
            "escapes",
            b'{"a":"\\u00e9\\u00E9\\n\\/\\\\\\"\\b\\f\\r\\t"}',
            {"a": '\u00e9\u00e9\n/\\"\b\f\r\t'},
        ),
        ("zero escaped", b'{"a":"\\u0000"}', {"a": "\x00"}),
        ("surrogate pair", b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ("surrogate pair in a name", b'{"\\uD83D\\uDE00":0}', {"\U0001f600": 0}),
        ("an escaped backslash before ud83d", b'{"a":"\\\\ud83d"}', {"a": "\\ud83d"}),
        (
            "four bytes of UTF-8",
            '{"a":"\U0001f600\U0010ffff"}'.encode(),
            {"a": "\U0001f600\U0010ffff"},
        ),
        (
            "U+FEFF, U+2028, U+007F inside",
            '{"a":"\ufeff\u2028\x7f"}'.encode(),
            {"a": "\ufeff\u2028\x7f"},
        ),
        ("empty name and empty string", b'{"":""}', {"": ""}),
        ("array of everything", b'{"a":["x",null,-1.5,"",0]}', {"a": ["x", None, -1.5, "", 0]}),
        (
            "words in strings",
            b'{"a":"NaN","b":"true","c":"[[{}]]","Infinity":null}',
            {"a": "NaN", "b": "true", "c": "[[{}]]", "Infinity": None},
        ),
        ("numbers above the limit of readings", b'{"a":1e16,"b":-1e308}', {"a": 1e16, "b": -1e308}),
        ("the largest double", b'{"a":1.7976931348623157e308}', {"a": 1.7976931348623157e308}),
        (
            "the largest double, as an integer",
            b'{"a":[%d,-%d]}' % (LARGEST, LARGEST),
            {"a": [1.7976931348623157e308, -1.7976931348623157e308]},
        ),
        (
            "rounds down to the largest double",
            b'{"a":1.7976931348623158e308}',
            {"a": 1.7976931348623157e308},
        ),
        ("integer of 309 digits", b'{"a":1' + b"0" * 308 + b"}", {"a": 1e308}),
        ("none of the members of section 4", b'{"own":1}', {"own": 1}),
    ):
        accept_aggregate(what, text, told)
    for place, opcode, statuses in (
        (S_REPORT, TERMINATE, range(1, 6)),
        (S_ANSWER, TERMINATE, (GOODBYE,)),
        (C_REPORT, TERMINATE, range(1, 6)),
        (C_ANSWER, TERMINATE, (SHUTDOWN,)),
        (S_REPORT, KEY_DESYNC_ERROR, (VIOLATION,)),
        (C_REPORT, KEY_DESYNC_ERROR, (VIOLATION,)),
    ):
        for status in statuses:
            accept(
                place,
                f"{NAMES[opcode]}, status {status}, to the {place.receiver} in {place.state()}",
                opcode,
                bytes([status]) if place.receiver == "server" else b"",
                status=status,
            )
    for round_ in (0, 2, LAST_ROUND):
        for place, opcode in (
            (S_REPORT, TERMINATE),
            (C_ANSWER, TERMINATE),
            (S_ANSWER, KEY_DESYNC_ERROR),
            (C_ANSWER, KEY_DESYNC_ERROR),
        ):
            accept(
                place,
                f"{NAMES[opcode]} with round {round_}, to the {place.receiver}",
                opcode,
                bytes([VIOLATION]) if place.receiver == "server" else b"",
                status=VIOLATION,
                round_=round_,
            )
    accept(S_REPORT, "readings: 65,455 bytes", CLIENT_DATA, b"[]", spaces=65_453, value=[])
    accept(
        C_ANSWER,
        "aggregate: 65,455 bytes",
        SERVER_AGGR_RESPONSE,
        b"{}",
        status=OK,
        spaces=65_453,
        value={},
    )
    return {
        "comment": [
            "One odd but legal message each. Byte strings are lower-case hex. Play the first",
            "`accepted` messages of `session` in sessions.json; both ends are then in `state`. Now",
            "`receiver` gets `frame` from its peer, and must accept it. In its header are `opcode`",
            "and `round`; its payload has `status` (null if it has none) and `body` (as in",
            "sessions.json). For JSON, `value` is what the body means, numbers as doubles.",
            "Afterwards the receiver has keys_after, round_after and state_after, as in",
            "sessions.json. The peer may be one that a careful sender never is, with a round that",
            "is not its own in a TERMINATE.",
            "Two messages have a body as long as a body may be. They are not printed: their",
            "plaintext is each byte string of plaintext_outline, so many times, one after the",
            "other; seal it with `iv`, and frame_sha256 is the SHA-256 of the frame.",
        ],
        "cases": ACCEPTED,
    }


# ---------------------------------------------------------------- the files


def files() -> dict[str, str]:
    """Name and content of every vector file. bytes become hex; everything else is JSON as it is."""
    return {
        name: json.dumps(content, indent=1, default=bytes.hex) + "\n"
        for name, content in (
            ("key_schedule.json", key_schedule()),
            ("sessions.json", sessions()),
            ("rejected.json", rejected()),
            ("accepted.json", accepted()),
        )
    }


def differing() -> list[str]:
    """The names of the files that are not what this program would write."""
    return [
        name
        for name, text in files().items()
        if not (DIRECTORY / name).is_file()
        or (DIRECTORY / name).read_text(encoding="ascii") != text
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or with --check compare them."""
    if arguments == ["--check"]:
        for name in (different := differing()):
            print(f"{name} differs from what tests/make_vectors.py makes", file=sys.stderr)
        return 1 if different else 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in files().items():
        (DIRECTORY / name).write_text(text, encoding="ascii", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
