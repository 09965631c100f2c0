"""The checks of tasks 1 to 12, in their order: what is asked of a submission, and our sentences.

Everything that is asked is drawn anew for each run. examiner.py says how a submission is asked, and
compared with the reference; the checks of task 13 are in others.py.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from classroom.kit.arena import wins
from classroom.kit.examiner import CHECKS, Bench, Check, Failed, check, named
from classroom.kit.sandbox import Gone, Raised
from lab.frames import flipped_bytes
from lab.weakened import RULES
from program import plural
from protocol_fsm import KEY_LABELS

C2S, S2C = 0, 1
STATES = ("HELLO", "CHALLENGE", "REPORT", "ANSWER", "ENDED")

# 1 Padding ----------------------------------------------------------------------------------------


@check(1, 2)
def pads(bench: Bench) -> None:
    """Padding is appended."""
    for length in range(50):
        bench.same(
            f"[P 1] Data of length {length} has to be padded to whole blocks of 16, and a full one "
            "gets another.",
            "pkcs7_pad(data)",
            data=bench.data(length),
        )


@check(1, 1)
def unpads(bench: Bench) -> None:
    """Padding is removed."""
    for length in range(50):
        missing = 16 - length % 16
        bench.same(
            f"[P 1] A padding of {plural(missing, 'byte')} has to be removed.",
            "pkcs7_unpad(data)",
            data=bench.data(length) + bytes([missing]) * missing,
        )


def takes_padding(bench: Bench) -> None:
    right = bench.data(11) + b"\5" * 5
    bench.takes("[P 1] Only a wrong padding is refused.", "pkcs7_unpad(data)", data=right)


@check(1, 1)
def checks_padding_length(bench: Bench) -> None:
    """Padding of an impossible length is refused."""
    takes_padding(bench)
    wrong = [bench.data(31) + bytes([last]) for last in (0, 17, 32, 255)]
    for data in (*wrong, bytes(16)):
        bench.same(
            f"[P 1] A last byte of {data[-1]} is no possible length of a padding: ValueError.",
            "pkcs7_unpad(data)",
            data=data,
        )
    for last in (17, 32):
        bench.same(
            f"[P 1] A padding of {last} bytes is longer than a block: ValueError.",
            "pkcs7_unpad(data)",
            data=bytes([last]) * 32,
        )
    for length in (0, 1, 15, 17):
        bench.same(
            f"[P 1] {plural(length, 'byte')} cannot be a positive number of whole blocks: "
            "ValueError.",
            "pkcs7_unpad(data)",
            data=b"\1" * length,
        )


@check(1, 1)
def checks_all_padding(bench: Bench) -> None:
    """Padding is checked in all its bytes."""
    takes_padding(bench)
    for missing in range(2, 17):
        for place in {0, missing - 2}:
            padding = bytearray([missing]) * missing
            padding[place] ^= bench.random.randrange(1, 256)
            bench.same(
                f"[P 1] All {missing} bytes of a padding have to hold its length: ValueError.",
                "pkcs7_unpad(data)",
                data=bench.data(32 - missing) + bytes(padding),
            )


# 2 CBC and HMAC -----------------------------------------------------------------------------------


@check(2, 1)
def encrypts(bench: Bench) -> None:
    """AES-128-CBC encrypts."""
    for blocks in (1, 2, 5):
        bench.same(
            "[P 1] AES-128 in CBC mode, with the IV that is given, has to give this ciphertext.",
            "aes_cbc_encrypt(data, key, iv)",
            data=bench.data(16 * blocks),
            key=bench.data(16),
            iv=bench.data(16),
        )


@check(2, 1)
def decrypts(bench: Bench) -> None:
    """AES-128-CBC decrypts."""
    for blocks in (1, 2, 5):
        bench.same(
            "[P 1] AES-128 in CBC mode has to give this plaintext, still padded.",
            "aes_cbc_decrypt(data, key, iv)",
            data=bench.data(16 * blocks),
            key=bench.data(16),
            iv=bench.data(16),
        )


@check(2, 1)
def refuses_long_keys(bench: Bench) -> None:
    """Keys of another length than 16 bytes are refused."""
    for name in ("aes_cbc_encrypt", "aes_cbc_decrypt"):
        code = f"{name}(data, key, iv)"
        values = {"data": bench.data(32), "iv": bench.data(16)}
        bench.takes("[P 1] A key has 16 bytes.", code, key=bench.data(16), **values)
        for length in (0, 15, 24, 32):
            say = f"[P 1] A key of {length} bytes is not a key of AES-128: ValueError."
            bench.same(say, code, key=bench.data(length), **values)


@check(2, 1)
def tags(bench: Bench) -> None:
    """HMAC-SHA256 gives tags."""
    for length in (16, 32, 64, 65, 131):
        bench.same(
            f"[P 1] HMAC-SHA256 under a key of {length} bytes has to give this tag of 32 bytes.",
            "hmac_sha256(key, data)",
            data=bench.data(bench.random.randrange(200)),
            key=bench.data(length),
        )


@check(2, 2)
def verifies_tags(bench: Bench) -> None:
    """Tags are verified, all of their bytes."""
    key = bench.data(32)
    data = bench.data(100)
    tag = bench.reference.do("hmac_sha256(key, data)", key=key, data=data)
    right = "[P 1] A right tag has to be accepted."
    bench.same(right, "hmac_verify(key, data, tag) is True", key=key, data=data, tag=tag)
    places = [0, 15, 16, 31, bench.random.randrange(32)]
    wrong = [bytes([*tag[:at], tag[at] ^ 1, *tag[at + 1 :]]) for at in places]
    for other in (*wrong, b"", tag[:16], tag[:31], tag + b"\0", bytes(32)):
        bench.same(
            "[P 1] A tag that differs anywhere, or is shorter or longer, has to be refused.",
            "hmac_verify(key, data, tag) is False",
            key=key,
            data=data,
            tag=other,
        )


@check(2, 1)
def verifies_in_constant_time(bench: Bench) -> None:
    """Tags are compared in constant time."""
    verifies_tags(bench)
    if not used_by(bench, "hmac_verify") & {"compare_digest", "verify", "^"}:
        raise Failed(
            "[P 1] A comparison by == ends at the first byte that differs, and an attacker can "
            "time it: use a comparison made for tags."
        )


def used_by(bench: Bench, function: str) -> set[str]:
    """Return the names that it uses of others, in helpers of its own too, and the operator ^."""
    used: set[str] = set()
    seen = {"hmac_sha256"}  # which has a ^ of another meaning, if it is written by hand
    names = [function]
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        own = bench.tree(f"crypto_utils:{name}")
        if own is None:
            used.add(name)
            continue
        for node in ast.walk(own):
            sign = "^" if isinstance(node, ast.BitXor) else ""
            names.append(sign or getattr(node, "id", "") or getattr(node, "attr", ""))
    return used


# 3 Key schedule -----------------------------------------------------------------------------------


@check(3, 2)
def derives(bench: Bench) -> None:
    """First chain keys are derived from the master key."""
    for length in (16, 20, 32, 64):
        for label in KEY_LABELS:
            bench.same(
                f"[P 3.4] The first chain key for {label} comes from the master key and the label "
                "by the formula of your dialect.",
                "derive_key(key, label)",
                key=bench.data(length),
                label=label,
            )


@check(3, 2)
def evolves(bench: Bench) -> None:
    """A chain key is evolved."""
    for length in (1, 16, 32, 100):
        bench.same(
            "[P 3.4] The next chain key comes from the last one and the material by the formula of "
            "your dialect.",
            "evolve_key(key, material)",
            key=bench.data(32),
            material=bench.data(length),
        )


def moves(bench: Bench, name: str, who: str, one: bytes, other: bytes) -> None:
    values = {"keys": bench.keys(), "one": one, "other": other}
    bench.same(
        f"[P 3.4] {name} has to move {who} keys, each by the value that your dialect names, and "
        "leave the others.",
        f"{name}(keys, one, other)",
        **values,
    )
    bench.same(
        f"[P 3.4] {name} has to return new keys, and leave the old ones as they are.",
        f"[{name}(keys, one, other) is keys, keys]",
        **values,
    )


@check(3, 2)
def moves_client_keys(bench: Bench) -> None:
    """The client's keys move after its report."""
    for _ in range(3):
        moves(bench, "evolve_c2s", "the client's two", bench.data(48), bench.data(16))


@check(3, 2)
def moves_server_keys(bench: Bench) -> None:
    """The server's keys move after its answer."""
    for _ in range(3):
        moves(bench, "evolve_s2c", "the server's two", bench.data(30), bench.data(1))


@check(3, 1)
def follows_a_schedule(bench: Bench) -> None:
    """Keys follow five rounds."""
    bench.same(
        "[P 3.4] In five rounds the keys became different from the reference's: look for the first "
        "key in vectors/key_schedule.json that differs.",
        "schedule(key, texts)",
        key=bench.data(24),
        texts=[bench.data(32) for _ in range(5)],
    )


# 4 Framing ----------------------------------------------------------------------------------------


@check(4, 2)
def checks_lengths(bench: Bench) -> None:
    """Lengths that no message can have are refused."""
    lengths = [*range(0, 150), *range(65_500, 65_536), *(55 + 16 * n for n in range(0, 4100, 500))]
    for length in lengths:
        bench.same(
            f"[P 3.1] check_length is wrong about {plural(length, 'byte')}: a message has "
            "55 + 16n bytes, 71 to 65,527.",
            "check_length(length)",
            length=length,
        )


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def cut_up(bench: Bench, stream: bytes, most: int) -> list[bytes]:
    pieces = []
    while stream:
        size = bench.random.randint(1, most)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


@check(4, 2)
def reads_frames(bench: Bench) -> None:
    """Messages are found, however TCP cuts and joins them."""
    messages = [bench.data(55 + 16 * n) for n in (1, 2, 7, 4092)]
    stream = b"".join(map(framed, messages))
    for most in (40, 200, 70_000):
        bench.same(
            "[P 3.1] A stream has to give the messages that were written into it, however TCP cuts "
            "and joins them: recv gives 1 to n bytes.",
            "frames_of(pieces, 4)",
            pieces=cut_up(bench, stream, most),
        )


def takes_frame(bench: Bench) -> None:
    pieces = [framed(bench.data(87))]
    bench.takes("[P 3.1] A whole frame is taken.", "frames_of(pieces, 1)", pieces=pieces)


@check(4, 1)
def refuses_at_two_bytes(bench: Bench) -> None:
    """A wrong length is refused when its two bytes are there."""
    takes_frame(bench)
    for length in (0, 55, 70, 72, 65_528, 65_535):
        bench.same(
            f"[P 3.1] A length of {length:,} has to be refused after two bytes, without reading "
            "more.",
            "read_and_left(pieces)",
            pieces=[length.to_bytes(2, "big"), bench.data(300)],
        )


@check(4, 1)
def notices_cuts(bench: Bench) -> None:
    """The end of a stream is a ConnectionCut that says whether it is inside a frame."""
    takes_frame(bench)
    whole = framed(bench.data(71))
    for length in (0, 1, 2, 3, 40, 72):
        bench.same(
            f"[P 3.1] A stream that ends after {plural(length, 'byte')} is a ConnectionCut, inside "
            "a frame if at least one byte of it has come.",
            "read_and_left(pieces)[0]",
            pieces=[whole[:length]] if length else [],
        )


@check(4, 1)
def writes_frames(bench: Bench) -> None:
    """A message is sent behind its length, in one piece."""
    for length in (71, 87, 65_527):
        bench.same(
            "[P 3.1] A message has to be sent behind its length of two bytes, the higher first, in "
            "one piece.",
            "written(message)",
            message=bench.data(length),
        )


# 5 State table ------------------------------------------------------------------------------------


def table_in(bench: Bench, states: Sequence[str], about: str) -> None:
    for state in states:
        bench.same(
            f"[P 3.5] The moves from {state} are not those of the table ({about}): each legal one "
            "has to be there with its next state, and no other.",
            "moves_from(state)",
            state=state,
        )


@check(5, 2)
def table_of_handshake(bench: Bench) -> None:
    """The handshake has its moves, and no others."""
    table_in(bench, STATES[:2], "a HELLO by the client, then a challenge by the server")


@check(5, 3)
def table_of_rounds(bench: Bench) -> None:
    """Rounds have their moves and farewells, and no others."""
    table_in(bench, STATES[2:4], "a report, an answer, or a farewell of either end")


@check(5, 2)
def counts_rounds(bench: Bench) -> None:
    """Rounds begin with the challenge, and rise with each answer."""
    for first in (1, bench.random.randrange(2, 10_000)):
        bench.same(
            "[P 3.5] The round is 0 in the handshake, begins with the challenge, and rises with "
            "each answer.",
            "rounds_of(first)",
            first=first,
        )


@check(5, 1)
def rounds_run_out(bench: Bench) -> None:
    """The session ends when rounds run out."""
    bench.same(
        "[P 3.5] After the answer of round 2^32 - 1 there is no next round: the session has ended.",
        "rounds_of(first)",
        first=2**32 - 2,
    )


# 6 Payloads ---------------------------------------------------------------------------------------


def parses(bench: Bench, opcode: int, sender: int, cases: dict[bytes, str]) -> None:
    for plaintext, about in cases.items():
        bench.same(
            f"[P 3.3] {about}.",
            "parse_message(opcode, sender, plaintext)",
            opcode=opcode,
            sender=sender,
            plaintext=plaintext,
        )


@check(6, 2)
def parses_handshake(bench: Bench) -> None:
    """HELLO and challenge are parsed, and checked."""
    nonce = bench.data(16)
    hello = "A CLIENT_HELLO is a nonce and the version 01, and nothing else"
    parses(bench, 10, C2S, {nonce + body: hello for body in (b"\1", b"", b"\0", b"\2", b"\1\1")})
    challenge = "A SERVER_CHALLENGE is the status OK and two nonces, and nothing else"
    bodies = [bench.data(length) for length in (32, 0, 16, 31, 33, 48)]
    parses(bench, 20, S2C, {b"\0" + body: challenge for body in bodies})


@check(6, 1)
def parses_heads(bench: Bench) -> None:
    """The nonce of a client and the status of a server stand before the body."""
    short = "A client's plaintext begins with a nonce of 16 bytes; a shorter one is a BadPayload"
    parses(bench, 30, C2S, {bench.data(length): short for length in (0, 1, 15)})
    parses(bench, 30, C2S, {bench.data(16) + b"[1.5]": short})
    status = "A server's answer begins with the status OK; any other is a BadPayload"
    parses(bench, 40, S2C, {head + b'{"a":1}': status for head in (b"\0", b"\1", b"\2", b"\xff")})
    parses(bench, 40, S2C, {b"": status, b"\0": status})


@check(6, 2)
def parses_farewells(bench: Bench) -> None:
    """Farewells carry one byte, with a status that is legal in them."""
    say = "A farewell's body is one byte: any status but OK in TERMINATE, VIOLATION in the other"
    bodies = [bytes([status]) for status in (*range(8), 255)] + [b"", b"\1\1", b"\2\2"]
    for opcode in (50, 60):
        parses(bench, opcode, S2C, {body: say for body in bodies})
        parses(bench, opcode, C2S, {bench.data(16) + body: say for body in bodies})


@check(6, 2)
def parses_numbers(bench: Bench) -> None:
    """Readings are finite numbers up to 1e15, and nothing else."""
    good = "A report is a JSON array of 0 to 1,024 numbers, each of at most 1e15"
    number = str(bench.random.randrange(10**6)).encode()
    texts = b"""
        [] [1] [1.5,-2] [1e15] [-1e15] [1000000000000000] [0.1] [1e16] [-1e16] [1000000000000001]
        [1e400] [-1e400] [true] [false] [NaN] [Infinity] ["1"] [null] [[1]] [{}]
        [1.0000000000000001e15]
    """.split()
    texts += (b"[1" + b"0" * 400 + b"]", b"[" + number + b"]")
    parses(bench, 30, C2S, {bench.data(16) + text: good for text in texts})


@check(6, 1)
def parses_arrays(bench: Bench) -> None:
    """A report is an array of at most 1,024 readings."""
    good = "A report is a JSON array of 0 to 1,024 numbers, in UTF-8"
    texts = [b"[" + b"1," * (count - 1) + b"1]" for count in (1, 2, 1_023, 1_024, 1_025, 3_000)]
    texts += [b"{}", b"1", b'"a"', b"null", b"", b"[", b"\xff\xfe[]", b"\xef\xbb\xbf[]", b"[1]x"]
    parses(bench, 30, C2S, {bench.data(16) + text: good for text in texts})


@check(6, 1)
def parses_answers(bench: Bench) -> None:
    """An answer is an object of strings, finite numbers, nulls, and arrays of them."""
    good = "An answer is an object of strings, finite numbers, nulls, and arrays of them"
    texts = rb"""
        {} {"a":null} {"a":"b"} {"a":1.5,"b":[1,"c",null]} {"a":[]} {"a":true} {"a":{}} {"a":[[]]}
        {"a":[true]} {"a":[{}]} [] {"a":"\ud800"} {"\ud800":1} {"a":["\udfff"]} {"a":1e400} null
        {"a":1e300} {"a":NaN} {"a":1,"a":true} 1
    """.split()
    texts.append('{"é":"日本"}'.encode())
    largest = int(sys.float_info.max)
    texts += [b'{"a":%d}' % number for number in (largest, largest + 1)]
    parses(bench, 40, S2C, {b"\0" + text: good for text in texts})


# 7 Session.open -----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where an end of a session stands."""

    sends: int
    state: str
    round_number: int
    keys: dict[str, bytes]
    client_id: int = 1
    nonce: bytes = b""  # of the client, in CHALLENGE


def placed(bench: Bench, state: str = "REPORT", sends: int = S2C) -> Place:
    """Return where an end stands, drawn anew."""
    round_number = 0 if state in ("HELLO", "CHALLENGE") else bench.random.randrange(1, 999)
    nonce = bench.data(16) if state == "CHALLENGE" else b""
    return Place(sends, state, round_number, bench.keys(), bench.random.randrange(1, 255), nonce)


def made(bench: Bench, place: Place, opcode: int, plaintext: bytes, **fields: Any) -> bytes:
    """Return a message with a right tag under the keys of a place, made by the reference."""
    defaults = {"sender": 1 - place.sends, "round_number": place.round_number}
    header = {**defaults, "client_id": place.client_id, "padded": None, **fields}
    message = bench.reference.do(
        "resealed(keys, opcode, plaintext, iv, header)",
        keys=place.keys,
        opcode=opcode,
        plaintext=plaintext,
        iv=bench.data(16),
        header=header,
    )
    return bytes(message)


def opens(bench: Bench, sentence: str, place: Place, message: bytes) -> Any:
    """Compare what opening does: result, state, round, keys, farewell."""
    return bench.same(
        sentence,
        "opened(place, message, seed)",
        place=[*place],
        message=message,
        seed=bench.data(16),
    )


def report_for(bench: Bench, place: Place, **fields: Any) -> bytes:
    return made(bench, place, 30, bench.data(16) + b"[1.5,2]", **fields)


def takes(bench: Bench, sentence: str, place: Place, message: bytes) -> None:
    """Fail a submission that refuses a right message, too."""
    seed = bench.data(16)
    code = "opened(place, message, seed)"
    bench.takes(sentence, code, place=[*place], message=message, seed=seed)


def takes_report(bench: Bench) -> Place:
    """Return where an end stands that takes a report which is right."""
    place = placed(bench)
    takes(bench, "[P 3.6] Only what is wrong is refused.", place, report_for(bench, place))
    return place


@check(7, 2)
def opens_a_session(bench: Bench) -> None:
    """What is right is accepted, and moves keys, round and state."""
    say = "[P 3.6] A {} that is right has to be accepted, and then keys, round and state move."
    place = placed(bench, "HELLO")
    hello = made(bench, place, 10, bench.data(16) + b"\1")
    opens(bench, say.format("CLIENT_HELLO"), place, hello)
    place = placed(bench, "CHALLENGE", C2S)
    challenge = made(bench, place, 20, b"\0" + place.nonce + bench.data(16))
    opens(bench, say.format("SERVER_CHALLENGE"), place, challenge)
    place = placed(bench)
    opens(bench, say.format("CLIENT_DATA"), place, report_for(bench, place))
    place = placed(bench, "ANSWER", C2S)
    answer = made(bench, place, 40, b'\0{"sum":3.5}')
    opens(bench, say.format("SERVER_AGGR_RESPONSE"), place, answer)


@check(7, 1)
def opens_farewells(bench: Bench) -> None:
    """A farewell ends the session, in any round."""
    say = "[P 3.6] A farewell is accepted with any round, and raises PeerTerminated."
    for state, sends in itertools.product(("REPORT", "ANSWER"), (S2C, C2S)):
        place = placed(bench, state, sends)
        plaintext = b"\2" if sends == C2S else bench.data(16) + b"\2"
        for opcode, away in itertools.product((50, 60), (0, 1)):
            number = place.round_number + away
            message = made(bench, place, opcode, plaintext, round_number=number)
            opens(bench, say, place, message)


@check(7, 1)
def checks_peer(bench: Bench) -> None:
    """Step 2: another id or direction is refused."""
    place = takes_report(bench)
    say = "[P 3.6] Step 2: a message with another client's id is a WrongPeer."
    opens(bench, say, place, report_for(bench, place, client_id=place.client_id ^ 1))
    opens(bench, say, place, flipped_bytes(report_for(bench, place), 1))
    say = "[P 3.6] Step 2: a message in our own direction is a WrongDirection."
    opens(bench, say, place, report_for(bench, place, sender=S2C))
    opens(bench, say, place, flipped_bytes(report_for(bench, place), 6))
    opens(bench, say, place, flipped_bytes(report_for(bench, place), 6, 0x82))


@check(7, 1)
def checks_opcode(bench: Bench) -> None:
    """Step 3: what the table does not allow is refused."""
    takes_report(bench)
    illegal = {"HELLO": (30, 60, 50), "REPORT": (10, 31, 0, 255), "ANSWER": (30,)}
    for state, opcodes in illegal.items():
        place = placed(bench, state)
        for opcode in opcodes:
            message = made(bench, place, opcode, bench.data(16) + b"\1")
            say = f"[P 3.6] Step 3: opcode {opcode} in {state} is an UnexpectedOpcode."
            opens(bench, say, place, message)


@check(7, 1)
def checks_round(bench: Bench) -> None:
    """Step 4: another round is refused."""
    place = takes_report(bench)
    for number in (place.round_number - 1, place.round_number + 1, 2**32 - 1):
        say = "[P 3.6] Step 4: an older or later round is a RoundMismatch, with its farewell."
        opens(bench, say, place, report_for(bench, place, round_number=number))


@check(7, 2)
def checks_tag(bench: Bench) -> None:
    """Step 5: a tag that is not right for every byte is refused."""
    place = takes_report(bench)
    message = report_for(bench, place)
    say = "[P 3.6] Step 5: a message that differs in one bit of IV, ciphertext or tag is a BadTag."
    for at in (7, 15, 22, 23, 40, len(message) - 33, -32, -1, bench.random.randrange(7, 71)):
        opens(bench, say, place, flipped_bytes(message, at, 1 << bench.random.randrange(8)))
    other = place._replace(keys=bench.keys())
    say = "[P 3.6] Step 5: a message under other keys is a BadTag."
    opens(bench, say, place, report_for(bench, other))


@check(7, 1)
def checks_padding(bench: Bench) -> None:
    """Steps 6 and 7: a wrong padding under a right tag is refused."""
    place = takes_report(bench)
    for last in (b"\0" * 16, b"\x11" * 16, b"]" + b"\0" * 14 + b"\x0f", bytes(14) + b"\3\2"):
        message = report_for(bench, place, padded=bench.data(16) + last)
        say = "[P 3.6] Step 7: a wrong padding under a right tag is a BadPadding."
        opens(bench, say, place, message)


@check(7, 1)
def checks_payload(bench: Bench) -> None:
    """Step 8: a wrong payload or echo is refused, and nothing moves."""
    place = takes_report(bench)
    for body in (b"{}", b"[NaN]", b"", b"[true]"):
        message = made(bench, place, 30, bench.data(16) + body)
        say = "[P 3.6] Step 8: a wrong payload is a BadPayload, and ends the session."
        opens(bench, say, place, message)
    place = placed(bench, "CHALLENGE", C2S)
    message = made(bench, place, 20, b"\0" + bench.data(32))
    opens(bench, "[P 3.6] Step 8: _check_payload looks at the echo, too.", place, message)


@check(7, 1)
def checks_in_order(bench: Bench) -> None:
    """The first step that fails gives the error."""
    place = takes_report(bench)
    faults: dict[str, dict[str, Any]] = {
        "id": {"client_id": place.client_id ^ 1},
        "direction": {"sender": S2C},
        "round": {"round_number": place.round_number + 1},
        "padding": {"padded": bytes(32)},
    }
    say = "[P 3.6] A message with two faults ({}, {}) is refused for the earlier step."
    for earlier, later in itertools.pairwise(faults):
        message = report_for(bench, place, **faults[earlier], **faults[later])
        opens(bench, say.format(earlier, later), place, message)
    message = flipped_bytes(flipped_bytes(report_for(bench, place), 0, 0xFF), 5)
    opens(bench, say.format("opcode", "round"), place, message)
    message = flipped_bytes(report_for(bench, place, round_number=place.round_number + 1), -1)
    opens(bench, say.format("round", "tag"), place, message)
    message = flipped_bytes(report_for(bench, place, padded=bytes(32)), -1)
    opens(bench, say.format("tag", "padding"), place, message)
    opens(bench, say.format("length", "id"), place, flipped_bytes(report_for(bench, place), 1)[:-1])


@check(7, 2)
def ends_for_good(bench: Bench) -> None:
    """A failure ends the session, with the farewell that belongs to it."""
    for state, sends in (("HELLO", S2C), ("CHALLENGE", C2S), ("REPORT", S2C), ("ANSWER", C2S)):
        for name in ("BadTag()", "RoundMismatch(1, 2)", "DeadlineExpired()", "ConnectionCut(True)"):
            bench.same(
                "[P 3.5] After a failure the session has ended and its keys are gone; the farewell "
                "is a KEY_DESYNC_ERROR for a wrong round, a TERMINATE with TIMEOUT or VIOLATION "
                "otherwise, and none in the handshake or after a cut.",
                f"failed(place, {name}, seed)",
                place=[*placed(bench, state, sends)],
                seed=bench.data(16),
            )


# 8 Binding and echo -------------------------------------------------------------------------------


MESSAGES = 64  # that a replay may deliver


@check(8, 3)
def replays(bench: Bench) -> None:
    """A recorded session is replayed against a server without binding."""
    for _ in range(3):
        count = bench.random.randrange(1, 5)
        reports = [[float(bench.random.randrange(1000))] for _ in range(count)]
        key = bench.data(16)
        tape = bench.reference.do("unbound_recording(key, reports)", key=key, reports=reports)
        bench.reference.do("target = Unbound(key)", key=key)

        def told(question: list[Any]) -> bytes:
            answer = bench.reference.do("target.take(message)", message=message_of(question))
            return bytes(answer)

        say = "[P 3.4] Without binding, the client's recorded messages are all that is needed."
        code = "replay(tape, lambda message: ask('take', message))"
        ask(bench, say, code, told, MESSAGES, tape=tape)
        taken = bench.reference.do("target.reports")
        bench.true(f"{say} Your target has not taken all reports.", taken == reports)


def message_of(question: list[Any]) -> bytes:
    """Return the message that a submission delivers. Raises Failed."""
    message = question[1] if len(question) == 2 else None
    if not (isinstance(message, bytes) and len(message) <= 65_535):
        raise Failed("[P 3.1] Yours delivered something that is no message.")
    return message


def ask(
    bench: Bench,
    sentence: str,
    code: str,
    told: Callable[[list[Any]], Any],
    most: int,
    **values: Any,
) -> Any:
    """Let the submission do something in the middle of which it asks us, but not too often."""
    count = itertools.count(1)

    def careful(question: list[Any]) -> Any:
        if next(count) > most:
            raise Failed(f"{sentence} It may be asked {most:,} times, and yours asks more.")
        try:
            return told(question)
        except Raised:
            raise Failed(f"{sentence} Yours delivered something that is no message.") from None

    return bench.ask(sentence, code, told=careful, **values)


@check(8, 2)
def binds(bench: Bench) -> None:
    """All four keys are bound to both nonces."""
    for _ in range(3):
        bench.same(
            "[P 3.4] bind_keys moves all four keys by both nonces, in the order of your dialect.",
            "bind_keys(keys, one, other)",
            keys=bench.keys(),
            one=bench.data(16),
            other=bench.data(16),
        )


@check(8, 2)
def checks_echo(bench: Bench) -> None:
    """A challenge that answers another HELLO is refused."""
    place = placed(bench, "CHALLENGE", C2S)
    for nonce in (
        bench.data(16),
        flipped_bytes(place.nonce, 15),
        flipped_bytes(place.nonce, 0),
        bytes(16),
    ):
        message = made(bench, place, 20, b"\0" + nonce + bench.data(16))
        say = "[P 3.6] Step 8: a challenge that echoes another nonce is an EchoMismatch."
        opens(bench, say, place, message)
    message = made(bench, place, 20, b"\0" + place.nonce + bench.data(16))
    takes(bench, "[P 3.6] A challenge that echoes our nonce is accepted.", place, message)


@check(8, 2)
def moves_keys_by_opcode(bench: Bench) -> None:
    """Each opcode moves the keys that it has to move."""
    for opcode in (10, 20, 30, 40, 50, 60):
        bench.same(
            "[P 3.4] The challenge binds with the nonce that each end drew; a report moves the "
            "client's keys, an answer the server's, anything else none.",
            "next_keys(place, opcode, plaintext, ciphertext)",
            place=[*placed(bench, "CHALLENGE", C2S)],
            opcode=opcode,
            plaintext=bench.data(33),
            ciphertext=bench.data(48),
        )


# 9 Epochs -----------------------------------------------------------------------------------------


def drawn_readings(bench: Bench, count: int) -> list[float]:
    return [round(bench.random.uniform(-1000, 1000), 2) for _ in range(count)]


@check(9, 2)
def aggregates(bench: Bench) -> None:
    """Readings are aggregated."""
    cases: list[dict[int, list[float]]] = [{}, {3: []}, {2: [1e15, 1.0, -1e15], 1: [0.1] * 10}]
    for _ in range(4):
        ids = bench.random.sample(range(1, 256), bench.random.randrange(1, 6))
        cases.append({n: drawn_readings(bench, bench.random.randrange(4)) for n in ids})
    for given in cases:
        bench.same(
            "[P 4] The aggregate names the participants in order, the count, the exact sum, the "
            "mean, the least and the greatest reading; of nothing they are null.",
            "compute_aggregation(given)",
            given=given,
        )


@check(9, 1)
def computes_own_part(bench: Bench) -> None:
    """Each member is told its own part."""
    for readings, total in (([1.5, 2.0], 7.0), ([], 5.0), ([1.0], 0.0), ([1e300], 1e-300)):
        bench.same(
            "[P 4] A member is told its own count and sum, and its share of the total, which is "
            "null if there is none.",
            "own_part(readings, total)",
            readings=readings,
            total=total,
        )
    for _ in range(3):
        readings = drawn_readings(bench, 5)
        bench.same(
            "[P 4] A member's share is its own sum divided by the total.",
            "own_part(readings, total)",
            readings=readings,
            total=bench.random.uniform(1, 5000),
        )


def plays(bench: Bench, sentence: str, *steps: list[Any], aggregation: str = "right") -> None:
    """Compare what a series of contributions, withdrawals and closings leads to."""
    code = "epochs_played(steps, aggregation)"
    bench.same(sentence, code, steps=[*steps], aggregation=aggregation)


@check(9, 2)
def closes_when_complete(bench: Bench) -> None:
    """An epoch closes when its members are there, or its window is over."""
    say = (
        "[P 4] An epoch waits for the members of the last one, but not longer than its window "
        "after its first report."
    )
    one, two, three = bench.random.sample(range(1, 200), 3)
    start = bench.random.uniform(0, 1000)
    first = drawn_readings(bench, 2)
    plays(bench, say, ["close", start])
    plays(bench, say, ["add", one, first, start], ["close", start])
    steps = [["add", one, first, start], ["add", two, [1.0], start], ["close", start]]
    again = [["add", one, [2.0], start + 5], ["close", start + 5], ["close", start + 5.5]]
    plays(bench, say, *steps, *again, ["add", two, [3.0], start + 5.6], ["close", start + 5.7])
    plays(bench, say, *steps, *again, ["close", start + 5.99], ["close", start + 6.0])
    late = [["add", two, [3.0], start + 5.9], ["close", start + 6.01], ["close", start + 9]]
    plays(bench, say, *steps, ["add", three, [2.0], start + 5], ["close", start + 5.1], *late)
    plays(bench, say, *steps, *again, ["gone", two], ["close", start + 5.6])
    other = [["add", one, [2.0], start + 5], ["add", three, [3.0], start + 5]]
    plays(bench, say, *steps, *other, ["close", start + 5.5], ["close", start + 6.1])
    alone = [["add", one, [2.0], start + 5], ["close", start + 6.1]]
    plays(bench, say, *steps, *alone, ["add", one, [4.0], start + 9], ["close", start + 9.1])
    say = "[P 4] A second report of an id in an epoch, by a newer session, takes the first's place."
    plays(bench, say, ["add", one, [1.0], start], ["add", one, [2.0], start], ["close", start])


@check(9, 1)
def answers_all_members(bench: Bench) -> None:
    """Every member of an epoch gets its answer."""
    one, two = bench.random.sample(range(1, 200), 2)
    plays(
        bench,
        "[P 4] Each member's answer has the epoch, its own round, the aggregate, and its own part.",
        ["add", one, drawn_readings(bench, 3), 1.0],
        ["add", two, drawn_readings(bench, 2), 1.1],
        ["close", 1.2],
        ["add", one, drawn_readings(bench, 1), 2.0],
        ["add", two, [], 2.1],
        ["close", 2.2],
    )


@check(9, 1)
def withdraws(bench: Bench) -> None:
    """What an ended session has contributed is withdrawn, and nothing else."""
    one, two = bench.random.sample(range(1, 200), 2)
    say = "[P 4] A report is withdrawn with the session that gave it, not with another of its id."
    steps = [["add", one, [1.0], 1.0], ["add", two, [2.0], 1.1]]
    plays(bench, say, *steps, ["withdraw", one], ["close", 1.2])
    plays(bench, say, *steps, ["withdraw other", one], ["close", 1.2])
    plays(bench, say, ["withdraw", one], *steps, ["withdraw", one], ["withdraw", two], ["close", 9])


@check(9, 1)
def survives_an_aggregation(bench: Bench) -> None:
    """An aggregation that fails leaves the server running, without answers."""
    say = (
        "[P 4] An aggregation that raises anything, or gives what cannot be sent, leaves no "
        "aggregate and no answers."
    )
    steps = [["add", 1, [1.0], 1.0], ["close", 1.1], ["add", 1, [1.0], 2.0], ["close", 3.5]]
    for aggregation in ("raises", "exits", "unsendable", "right"):
        plays(bench, say, *steps, aggregation=aggregation)


# 10 A bit flip ------------------------------------------------------------------------------------


def flips(bench: Bench) -> list[tuple[list[float], list[float]]]:
    """Return what three fresh targets read, and what they were to read."""
    return bench.once("flips", lambda: [one_flip(bench) for _ in range(3)])


def one_flip(bench: Bench) -> tuple[list[float], list[float]]:
    digits = bench.random.sample(range(1, 10), 2)
    tail = bench.random.randrange(10, 100)
    rest = [float(bench.random.randrange(1000)) for _ in range(4)]
    known, wanted = (f"[{digit}{tail}.0," for digit in digits)
    sent = [float(known[1:-1]), *rest]
    bench.reference.do("target = FlipTarget(readings)", readings=sent)
    changed = bench.ask(
        "[P 3.2] A flip in a block of ciphertext flips the same bit in the next block.",
        "flip(message, known, wanted)",
        message=bench.reference.do("target.message"),
        known=known.encode(),
        wanted=wanted.encode(),
    )
    try:
        read = bench.reference.do("target.reads(message)", message=changed)
    except (Raised, ValueError, TypeError):
        raise Failed("[P 3.2] The target refused what yours delivered.") from None
    return read, [float(wanted[1:-1]), *rest]


@check(10, 2)
def flips_a_reading(bench: Bench) -> None:
    """The reading is the wanted one, on three fresh targets."""
    for read, wanted in flips(bench):
        bench.true(
            "[P 3.2] The first reading has to be the wanted one on each of three fresh targets.",
            read[:1] == wanted[:1],
        )


@check(10, 2)
def flips_nothing_else(bench: Bench) -> None:
    """All other readings stay, on three fresh targets."""
    for read, wanted in flips(bench):
        bench.true(
            "[P 3.2] All other readings have to stay as they are: flip in the block before.",
            read == wanted,
        )


# 11 The padding oracle ----------------------------------------------------------------------------

QUERIES = 1_024


def bytes_read(bench: Bench) -> int:
    """Return how many of the last bytes were read of the worst of three fresh targets."""
    return bench.once("oracle", lambda: min(one_oracle(bench, length) for length in (2, 3, 4)))


def one_oracle(bench: Bench, length: int) -> int:
    """Ask for a text in which a wrong guess can give a padding of this length by accident."""
    text = bench.data(16 - length) + bytes([length]) * (length - 1) + bench.data(1)
    bench.reference.do("target = OracleTarget(text)", text=text)

    def told(question: list[Any]) -> bool:
        return bench.reference.do("target.is_padded(message)", message=message_of(question)) is True

    found = ask(
        bench,
        "[P 3.6] A server that looks at the padding first can be asked for a byte at a time.",
        "padding_oracle(message, lambda message: ask('padded', message))",
        told,
        QUERIES,
        message=bench.reference.do("target.message"),
    )
    if not isinstance(found, bytes) or len(found) != 4:
        raise Failed("[P 3.6] padding_oracle returns four bytes.")
    count = 0
    while count < 4 and found[3 - count] == text[15 - count]:
        count += 1
    return count


def reads(bench: Bench, count: int, words: str) -> None:
    bench.true(
        f"[P 3.6] {words} of the block has to be right on each of three fresh targets.",
        bytes_read(bench) >= count,
    )


LAST_BYTES = (
    "The last byte",
    "The last but one byte",
    "The third byte from the end",
    "The fourth byte from the end",
)
for _count, _words in enumerate(LAST_BYTES, 1):
    _run = partial(reads, count=_count, words=_words)
    CHECKS.append(Check(11, 2, f"{_words} is read, on three fresh targets", _run))


# 12 An attack of their own ------------------------------------------------------------------------


@check(12, 2)
def attack_wins(bench: Bench) -> None:
    """The attack wins where its rules are missing, on three fresh targets."""
    bench.true(
        "[P 3.6] The attack has to win against a server that lacks the rules of MINIMAL_SET, on "
        "each of three fresh targets.",
        bench.once("wins", lambda: all(wins_once(bench) for _ in range(3))),
    )


def wins_once(bench: Bench) -> bool:
    """Return whether the attack wins, at the second try at the latest: a machine may be busy."""
    return attacked(bench, own_rules(bench)) or attacked(bench, own_rules(bench))


@check(12, 2)
def attack_fails(bench: Bench) -> None:
    """The attack fails where all rules stand."""
    attack_wins(bench)
    bench.true(
        "[P 3.6] With all rules the attack has to fail, and yours wins: tell your instructor.",
        not attacked(bench, frozenset()),
    )


@check(12, 2)
def set_is_minimal(bench: Bench) -> None:
    """No rule of the set can be put back."""
    attack_wins(bench)
    rules = own_rules(bench)
    for rule in sorted(rules):
        bench.true(
            f"[P 3.6] The set is not minimal: the attack wins with the rule {rule} put back, too.",
            not attacked(bench, rules - {rule}),
        )


def own_rules(bench: Bench) -> frozenset[str]:
    """Return the rules of MINIMAL_SET, which is asked for once. Raises Failed."""
    return bench.once("rules", partial(told_rules, bench))


def told_rules(bench: Bench) -> frozenset[str]:
    wanted = bench.ask("[P 3.6] MINIMAL_SET is a tuple of names of rules.", "list(MINIMAL_SET)")
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise Failed("[P 3.6] MINIMAL_SET is a tuple of names of rules.")
    rules = frozenset(wanted)
    if not rules <= RULES.keys():
        raise Failed("[P 3.6] MINIMAL_SET has a name that is no rule; the handout lists them.")
    if not 2 <= len(rules) <= 4:
        raise Failed("[P 3.6] MINIMAL_SET has two to four rules: one alone is for tasks 10 and 11.")
    return rules


def attacked(bench: Bench, rules: frozenset[str]) -> bool:
    """Return whether the submission's attack wins in a lab of ours without some rules."""
    seed = bench.data(8).hex()
    try:
        return wins(bench.student, seed, rules)
    except Raised as error:
        raise Failed(f"[P 3.6] own_attack has to run. Yours raised {named(error.name)}.") from None
    except Gone as error:
        raise Failed(f"[P 3.6] own_attack has to run. Yours {error}.") from None
