"""Compare your work with the public vectors: python check.py, or python check.py 3 4

Each task runs in a process of its own, for 20 s at most. Everything here uses your own modules, so
a task may need earlier ones: 7 needs all before it. The grading does not: it takes the functions of
other tasks from a reference, and it uses values of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    from Crypto.Cipher import AES
except ImportError:
    print(
        "check.py: this Python has no package Crypto; activate .venv, as in HANDOUT.md",
        file=sys.stderr,
    )
    sys.exit(2)

HERE = Path(__file__).parent
TASKS = (
    "padding",
    "CBC and HMAC",
    "key schedule",
    "framing",
    "state table",
    "payloads",
    "Session.open",
    "binding and echo",
    "epochs of the server",
    "bit flip",
    "padding oracle",
    "attack of your own",
    "tests of your own",
)
YOURS = ("crypto_utils.py", "protocol_fsm.py", "server.py", "breaking.py", "mine.py")
PATIENCE_S = 20
STEPS = (
    "MalformedMessage",
    "WrongPeer",
    "WrongDirection",
    "UnexpectedOpcode",
    "RoundMismatch",
    "BadTag",
    "BadPadding",
    "BadPayload",
)
Vector = dict[str, Any]


def load(name: str) -> Any:
    """Return the vectors of one file, without its explanation."""
    content = json.loads((HERE / "vectors" / f"{name}.json").read_text("ascii"))
    return next(value for key, value in content.items() if key != "comment")


def check(is_right: bool, sentence: str) -> None:
    if not is_right:
        raise AssertionError(sentence)


def refusal(action: Callable[..., object], *arguments: object) -> str:
    """Return the name of the error that is raised, or nothing."""
    try:
        action(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error).__name__
    return ""


def told(error: BaseException) -> str:
    """Return an error in words, with the line of your files that raised it."""
    name = type(error).__name__
    words = str(error)
    if not words.startswith(name):
        words = f"{name}: {words}"
    return f"{words.removesuffix(': ')}{place(error)}"


def place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).name in YOURS]
    return f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""


def done(what: str, action: Callable[..., Any], *arguments: Any) -> Any:
    """Return what an action returns that must not raise."""
    try:
        return action(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {told(error)}") from None


def raw(value: Any) -> Any:
    """Return a vector with bytes for its hexadecimal text."""
    if isinstance(value, dict):
        return {name: raw(member) for name, member in value.items()}
    return bytes.fromhex(value)


# Tasks 1 to 4: functions of bytes -----------------------------------------------------------------


def check_1() -> None:
    from crypto_utils import pkcs7_pad, pkcs7_unpad

    for data, end in (
        (b"", "10" * 16),
        (b"a", "0f" * 15),
        (bytes(15), "01"),
        (bytes(16), "10" * 16),
    ):
        padded = data + bytes.fromhex(end)
        check(pkcs7_pad(data) == padded, f"{len(data)} bytes are padded wrongly")
        check(pkcs7_unpad(padded) == data, f"the padding of {len(data)} bytes is removed wrongly")
    for wrong in (
        b"",
        bytes(16),
        bytes(15) + b"\x11",
        bytes(13) + b"\2\2\xff",
        bytes(13) + b"\3\2\3",
        b"\x20" * 32,
        bytes(14) + b"\1",
    ):
        error = refusal(pkcs7_unpad, wrong) or "nothing"
        said = (
            f"pkcs7_unpad has to raise ValueError, and raises {error}: {wrong.hex() or 'no bytes'}"
        )
        check(error == "ValueError", said)


def check_2() -> None:
    from crypto_utils import aes_cbc_decrypt, aes_cbc_encrypt, hmac_sha256, hmac_verify

    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")  # SP 800-38A, F.2.1
    text = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    secret = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2")
    iv = bytes(range(16))
    check(aes_cbc_encrypt(text, key, iv) == secret, "SP 800-38A F.2.1 is encrypted differently")
    check(aes_cbc_decrypt(secret, key, iv) == text, "SP 800-38A F.2.2 is decrypted differently")
    for action in (aes_cbc_encrypt, aes_cbc_decrypt):
        error = refusal(action, text, key * 2, iv)
        check(error == "ValueError", f"{action.__name__}: 32 bytes are no key")
    tag = bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    words = b"what do ya want for nothing?"  # RFC 4231, test case 2
    check(hmac_sha256(b"Jefe", words) == tag, "test case 2 of RFC 4231 has another tag")
    check(hmac_verify(b"Jefe", words, tag), "a right tag is refused")
    for wrong in (b"", bytes(32), tag[:16], tag[:16] + bytes(16), tag + b"\0"):
        check(not hmac_verify(b"Jefe", words, wrong), f"a wrong tag is accepted: {wrong.hex()}")


def check_3() -> None:
    from crypto_utils import derive_key
    from protocol_fsm import evolve_c2s, evolve_s2c

    for case in load("key_schedule"):
        master_key = raw(case["master_key"])
        for label, step in case["start"].items():
            check(
                derive_key(master_key, label) == raw(step["output"]),
                f"{label} begins differently; SHA-256 has to be given {step['input']}",
            )
        bound = {label: raw(step["output"]) for label, step in case["binding"].items()}
        report, answer = case["client_data"], case["server_aggr_response"]
        values = raw(report["ciphertext"]), raw(report["nonce"])
        check_moved(case["c2s_ratchet"], bound, evolve_c2s, *values)
        values = raw(answer["body"]), raw(answer["status"])
        check_moved(case["s2c_ratchet"], bound, evolve_s2c, *values)


def check_moved(
    steps: Vector, before: dict[str, bytes], move: Callable[..., Any], *values: bytes
) -> None:
    """Move keys, and compare all four; those that a step does not name stay."""
    given = dict(before)
    after = move(given, *values)
    check(isinstance(after, dict), f"{move.__name__} has to return the four keys")
    check(given == before, f"{move.__name__} changes the keys that it is given")
    wanted = before | {label: raw(step["output"]) for label, step in steps.items()}
    for label, key in wanted.items():
        hint = f"; SHA-256 has to be given {steps[label]['input']}" if label in steps else ""
        check(after.get(label) == key, f"{label} moves differently{hint}")


def check_4() -> None:
    from protocol_fsm import ConnectionCut, read_frame, write_frame

    frames = [raw(message["frame"]) for message in load("sessions")[0]["messages"]]
    stream = b"".join(frames)
    for size in (1, 2, 3, 70, len(stream)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        recv = receiver(pieces)
        for frame in frames:
            message = done(f"pieces of size {size}", read_frame, recv)
            check(message == frame[2:], f"pieces of size {size} are joined wrongly")
    sent: list[bytes] = []
    write_frame(sent.append, frames[0][2:])
    check(sent == [frames[0]], "a frame is not sent in one piece, its length first")
    for case in rejected("MalformedMessage"):
        error = refusal(read_frame, receiver([raw(case["frame"])[:2]]))
        said = f"{case['name']}: {error or 'accepted'}, not MalformedMessage"
        check(error == "MalformedMessage", said)
    for end in (0, 1, 30):
        try:
            read_frame(receiver([frames[0][:end]]))
            error = "accepted"
        except ConnectionCut as cut:
            error = "" if cut.mid_frame is (end > 0) else f"mid_frame is {cut.mid_frame}"
        except Exception as other:
            error = told(other)
        check(not error, f"a stream that ends at byte {end}: {error}")


def receiver(pieces: list[bytes]) -> Callable[[int], bytes]:
    """Return a recv that gives these pieces, or the beginning of one; then it gives nothing."""
    left = list(pieces)

    def recv(wanted: int) -> bytes:
        piece = left.pop(0) if left else b""
        if piece[wanted:]:
            left.insert(0, piece[wanted:])
        return piece[:wanted]

    return recv


# Tasks 5 to 8: the session ------------------------------------------------------------------------


def rejected(*errors: str) -> Iterator[Vector]:
    for case in load("rejected"):
        if case["error"] in errors and "frame" in case:
            yield case


def check_5() -> None:
    from protocol_fsm import Direction, Opcode, ProtocolFSM, State

    for session in load("sessions"):
        fsm = ProtocolFSM(session["first_round"])
        for message in session["messages"]:
            sender = Direction.C2S if message["from"] == "client" else Direction.S2C
            move = f"{message['name']} in {fsm.state.name}"
            check(fsm.allows(message["opcode"], sender), f"there is no move for {move}")
            fsm.advance(Opcode(message["opcode"]), sender)
            check(fsm.state.name == message["state_after"], f"{move} leads to {fsm.state.name}")
            is_right = message["round_after"] in (fsm.round_number, None)
            check(is_right, f"after {move} the round is {fsm.round_number}")
    for case in rejected("UnexpectedOpcode"):
        fsm = ProtocolFSM()
        fsm.state = State(case["state"])
        frame = raw(case["frame"])
        check(not fsm.allows(frame[2], frame[8]), f"{case['name']}: there is a move")
    for name, farewell, end in itertools.product(("REPORT", "ANSWER"), (50, 60), Direction):
        fsm = ProtocolFSM()
        fsm.state = State(name)
        move = f"{Opcode(farewell).name} ({end.name}) in {name}"
        check(fsm.allows(farewell, end), f"there is no move for {move}")


def check_6() -> None:
    from protocol_fsm import parse_message

    for session in load("sessions"):
        for message in session["messages"]:
            direction = 0 if message["from"] == "client" else 1
            plaintext = raw(message["plaintext"])
            what = f"{message['name']} is refused"
            found = done(what, parse_message, message["opcode"], direction, plaintext)
            wanted = made(message)
            is_right = type(found) is type(wanted) and found.status is wanted.status
            check(is_right, f"{message['name']} is parsed as {str(found)[:60]}")
    for case in load("accepted"):
        if "value" not in case or "body" not in case:
            continue
        head = bytes(16) if case["opcode"] == 30 else b"\0"
        plaintext = head + raw(case["body"])
        what = f"{case['name']}: it is refused"
        found = done(what, parse_message, case["opcode"], case["opcode"] == 40, plaintext)
        value = getattr(found, "readings", getattr(found, "aggregate", None))
        is_right = as_doubles(value) == as_doubles(case["value"])
        check(is_right, f"{case['name']}: it is parsed as {str(value)[:60]}")
    for case in rejected("BadPayload"):
        message = raw(case["frame"])[2:]
        error = refusal(parse_message, message[0], message[6], plaintext_of(case, message))
        check(error == "BadPayload", f"{case['name']}: {error or 'accepted'}, not BadPayload")


def as_doubles(value: Any) -> Any:
    """Return a JSON value with every number in it as a double."""
    if isinstance(value, dict):
        return {name: as_doubles(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_doubles(member) for member in value]
    return float(value) if isinstance(value, (int, float)) else value


def keys_before(case: Vector) -> dict[str, bytes]:
    """Return the chain keys at the place of a case."""
    session = next(one for one in load("sessions") if one["name"] == case["session"])
    sent = session["messages"][: case["accepted"]]
    keys: dict[str, bytes] = raw(sent[-1]["keys_after"] if sent else session["keys"])
    return keys


def plaintext_of(case: Vector, message: bytes) -> bytes:
    key = keys_before(case)["S2C-ENC" if message[6] else "C2S-ENC"][:16]
    padded = AES.new(key, AES.MODE_CBC, iv=message[7:23]).decrypt(message[23:-32])
    return padded[: -padded[-1]]


class Ends:
    """Both ends of a session of the vectors, played so far.

    With `keys_are_given` they take what task 8 has to write from the vectors.
    """

    def __init__(
        self, session: Vector, length: int | None = None, keys_are_given: bool = False
    ) -> None:
        from protocol_fsm import Direction, Session

        self._draws: list[bytes] = []
        self._keys: dict[str, bytes] = raw(session["keys"])
        self._committed: tuple[bytes, ...] = ()
        self._echoes: list[bytes] = []
        options = {"random_bytes": self._draw, "first_round": session["first_round"]}
        key = raw(session["master_key"])
        names = {"client": Direction.C2S, "server": Direction.S2C}
        self.ends = {
            name: Session(session["client_id"], key, sends, **options)
            for name, sends in names.items()
        }
        if keys_are_given:
            for end in self.ends.values():
                vars(end)["_next_keys"] = self._given_keys
                vars(end)["_check_echo"] = self._echoes.append
        for message in session["messages"][:length]:
            self.play(message)

    def _given_keys(self, _: int, *committed: bytes) -> dict[str, bytes]:
        self._committed = committed
        return self._keys

    def _draw(self, length: int) -> bytes:
        return self._draws.pop(0)

    def draw(self, message: Vector) -> None:
        """Let the next random values be those of a message."""
        self._draws[:] = [raw(value) for value in message["random"]]

    def play(self, message: Vector) -> None:
        """Seal a message at one end, and open it at the other."""
        name = message["name"]
        other = "server" if message["from"] == "client" else "client"
        self.draw(message)
        self._keys = raw(message["keys_after"] or {})
        sealed = done(f"{name} is not sealed", self.ends[message["from"]].seal, made(message))
        hint = "; does open take what is right from the message before?"
        check(sealed == raw(message["message"]), f"{name} is sealed differently{hint}")
        if name in ("TERMINATE", "KEY_DESYNC_ERROR"):
            error = refusal(self.ends[other].open, sealed) or "nothing"
            said = f"open has to raise PeerTerminated for {name}, and raises {error}"
            check(error == "PeerTerminated", said)
        else:
            done(f"the genuine {name} is refused", self.ends[other].open, sealed)
        self.check_keys(message)
        if self._committed:
            is_right = self._committed == (raw(message["plaintext"]), raw(message["ciphertext"]))
            check(is_right, f"{name}: open commits another plaintext or ciphertext")
            if name == "SERVER_CHALLENGE":
                check(bool(self._echoes), "open looks at no echo, as _check_payload does")

    def check_keys(self, message: Vector) -> None:
        for name, end in self.ends.items():
            is_right = end._keys == raw(message["keys_after"] or {})
            check(is_right, f"after {message['name']} the keys of the {name} are wrong")

    def receive(self, case: Vector) -> tuple[str, bytes]:
        """Give a frame to its receiver; return the error that it raises, and the farewell."""
        farewell = case.get("farewell")
        self._draws[:] = [raw(value) for value in farewell["random"]] if farewell else []
        try:
            self.ends[case["receiver"]].open(raw(case["frame"])[2:])
        except NotImplementedError:
            raise
        except Exception as error:
            return type(error).__name__, getattr(error, "farewell", b"")
        return "", b""


def made(message: Vector) -> Any:
    """Return the message that a vector describes; JSON in the very bytes that it has."""
    import protocol_fsm

    name = message["name"]
    if "text" in message:
        is_report = name == "CLIENT_DATA"
        kind = protocol_fsm.ClientData if is_report else protocol_fsm.ServerAggrResponse
        content = kind(json.loads(message["text"]))
        vars(content)["body"] = raw(message["body"])
        return content
    if name == "TERMINATE":
        return protocol_fsm.Terminate(protocol_fsm.Status(message["status"]))
    plain = {"CLIENT_HELLO": "ClientHello", "SERVER_CHALLENGE": "ServerChallenge"}
    return getattr(protocol_fsm, plain.get(name, "KeyDesync"))()


def check_7() -> None:
    sessions = {session["name"]: session for session in load("sessions")}
    for case in rejected(*STEPS):
        ends = Ends(sessions[case["session"]], case["accepted"], keys_are_given=True)
        error, farewell = ends.receive(case)
        said = f"{case['name']}: {error or 'accepted'}, not {case['error']}; {case['why']}"
        check(error == case["error"], said)
        end = ends.ends[case["receiver"]]
        check(end.state.name == "ENDED", f"{case['name']}: the session goes on")
        check(not end._keys, f"{case['name']}: the session keeps its keys")
        check_farewell(case, farewell)
    for case in load("accepted"):
        if "frame" in case:
            ends = Ends(sessions[case["session"]], case["accepted"], keys_are_given=True)
            error, _ = ends.receive(case)
            wanted = "PeerTerminated" if case["opcode"] in (50, 60) else ""
            check(error == wanted, f"{case['name']}: {error or 'no PeerTerminated'}")
    check_fail(sessions["timeout, by the server in ANSWER"])


def check_fail(session: Vector) -> None:
    """Compare the farewells of the two errors that no message causes."""
    from protocol_fsm import ConnectionCut, DeadlineExpired

    *played, last = session["messages"]
    for error, farewell in ((ConnectionCut(True), b""), (DeadlineExpired(), raw(last["message"]))):
        ends = Ends(session, len(played), keys_are_given=True)
        ends.draw(last)
        ends.ends["server"].fail(error)
        words = "TERMINATE with status 5" if farewell else "empty"
        said = f"the farewell of {type(error).__name__} has to be {words}"
        check(error.farewell == farewell, said)


def check_farewell(case: Vector, farewell: bytes) -> None:
    wanted = case["farewell"]
    words = f"{wanted['name']} with status {wanted['status']}" if wanted else "empty"
    is_right = farewell == (raw(wanted["frame"])[2:] if wanted else b"")
    check(is_right, f"{case['name']}: the farewell of the error has to be {words}")


def check_8() -> None:
    from breaking import replay

    from protocol_fsm import Opcode, bind_keys

    for case in load("key_schedule"):
        keys = {label: raw(step["output"]) for label, step in case["start"].items()}
        nonces = raw(case["client_nonce"]), raw(case["server_nonce"])
        check_moved(case["binding"], keys, bind_keys, *nonces)
    sessions = {session["name"]: session for session in load("sessions")}
    for session in sessions.values():
        Ends(session)
    for case in rejected("EchoMismatch"):
        error, _ = Ends(sessions[case["session"]], case["accepted"]).receive(case)
        check(error == "EchoMismatch", f"{case['name']}: {error or 'accepted'}, not EchoMismatch")
    session = next(iter(sessions.values()))
    messages = session["messages"]
    client = Ends(session, 1).ends["client"]
    plaintext = b"\0" + bytes(16) + raw(messages[1]["plaintext"])[17:]
    keys = client._next_keys(Opcode.SERVER_CHALLENGE, plaintext, b"")
    said = "the client binds with a copy of its nonce, not with the nonce that it drew"
    check(keys == raw(messages[1]["keys_after"]), said)
    sent: list[bytes] = []
    answers = [raw(message["message"]) for message in messages if message["from"] == "server"]

    def send(message: bytes) -> bytes:
        sent.append(message)
        return b"".join(answers[len(sent) - 1 : len(sent)])

    replay([raw(message["message"]) for message in messages], send)
    wanted = [raw(message["message"]) for message in messages if message["from"] == "client"]
    check(sent[: len(wanted) - 1] == wanted[:-1], "the server does not get what the client said")


# Task 9: the server -------------------------------------------------------------------------------


class Giver:
    """A connection, as far as epochs are concerned."""

    hello_number = 1

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id


def check_9() -> None:
    from server import compute_aggregation, own_part

    aggregate = compute_aggregation({7: [0.1] * 10, 2: [1.0]})
    mean = 2.0 / 11
    wanted = {"participants": [2, 7], "count": 11, "sum": 2.0, "mean": mean, "min": 0.1, "max": 1.0}
    check(aggregate == wanted, f"the aggregate is {aggregate}")
    aggregate = compute_aggregation({3: []})
    wanted = {"participants": [3], "count": 0, "sum": 0.0, "mean": None, "min": None, "max": None}
    check(aggregate == wanted, f"the aggregate of no readings is {aggregate}")
    own = own_part([1.0, 0.5], 3.0)
    check(own == {"own_count": 2, "own_sum": 1.5, "own_share": 0.5}, f"the own part is {own}")
    for readings, total in (([], 0.0), ([1e300], 1e-300)):
        share = own_part(readings, total)["own_share"]
        check(share is None, f"the share of {readings} in {total} is {share}")
    check_epochs()


def check_epochs() -> None:
    from server import Contribution, Epochs, compute_aggregation

    epochs: Any = Epochs(1.0, compute_aggregation)

    def add(giver: Any, reading: float, now: float) -> None:
        epochs.contribute(Contribution(giver, 1, [reading]), now)

    one, two, new_one = Giver(1), Giver(2), Giver(1)
    add(one, 1.0, 0.0)
    check(epochs.close_if_due(0.0) is not None, "the first epoch waits, and nobody is expected")
    add(two, 2.0, 5.0)
    check(epochs.close_if_due(5.5) is None, "the epoch does not wait for client 1")
    check(epochs.close_if_due(6.0) is not None, "the window is over, and the epoch is still open")
    check(epochs.current.number == 3, "epochs are not numbered one by one")
    add(two, 2.0, 7.0)
    check(epochs.close_if_due(7.0) is not None, "an epoch waits for one that missed the last")
    add(one, 1.0, 8.0)
    add(new_one, 3.0, 8.5)
    givers = [entry.giver for entry in epochs.current.contributions.values()]
    check(givers == [new_one], "the report of a newer session does not replace the older one's")
    epochs.withdraw(one)
    givers = [entry.giver for entry in epochs.current.contributions.values()]
    check(givers == [new_one], "a session that ends takes the report of a newer one along")
    closed = epochs.close_if_due(9.0)
    check(closed is not None, "the window does not begin with the first report of an epoch")
    add(two, 2.0, 10.0)
    epochs.withdraw(two)
    check(epochs.close_if_due(20.0) is None, "an epoch closes without any report")
    failing: list[Any] = [lambda _: sys.exit(), lambda _: {"sum": float("nan")}]
    for aggregation in failing:
        epochs = Epochs(1.0, aggregation)
        add(one, 1.0, 0.0)
        closed = epochs.close_if_due(0.0)
        is_empty = closed is not None and closed.answers == {} == closed.aggregate
        check(is_empty, "an aggregation that fails leaves an aggregate or answers")


# Tasks 10 to 13: breaking, and tests --------------------------------------------------------------


def report_of_the_vectors() -> tuple[bytes, bytes]:
    """Return a CLIENT_DATA, and the key that it is encrypted with."""
    messages = load("sessions")[0]["messages"]
    at = next(at for at, message in enumerate(messages) if message["name"] == "CLIENT_DATA")
    return raw(messages[at]["message"]), raw(messages[at - 1]["keys_after"])["C2S-ENC"][:16]


def opened(message: bytes, key: bytes) -> bytes:
    return AES.new(key, AES.MODE_CBC, iv=message[7:23]).decrypt(message[23:-32])


def check_10() -> None:
    from breaking import flip

    message, key = report_of_the_vectors()
    before = opened(message, key)
    known = before[16:20]
    after = opened(flip(message, known, b"[9.9"), key)
    check(after[16:20] == b"[9.9", f"the body begins with {after[16:20]!r}")
    check(after[20:] == before[20:], "more than the beginning of the body has changed")


def check_11() -> None:
    from breaking import padding_oracle

    message, key = report_of_the_vectors()
    queries = 0

    def is_padded(forged: bytes) -> bool:
        nonlocal queries
        queries += 1
        plaintext = opened(forged, key)
        return (
            plaintext[-1:] * plaintext[-1] == plaintext[-plaintext[-1] :] and 0 < plaintext[-1] < 17
        )

    found = padding_oracle(message, is_padded)
    check(found == opened(message, key)[28:32], f"it finds {found!r}")
    check(queries <= 1024, f"it asks {queries} times")


def check_12() -> str:
    from breaking import MINIMAL_SET, own_attack

    own_attack(iter([]))  # only to see whether it is written
    rules = re.findall(r"^\| `([a-z-]+)` \|", (HERE / "HANDOUT.md").read_text("utf-8"), re.M)
    is_set = isinstance(MINIMAL_SET, (tuple, list)) and 2 <= len(MINIMAL_SET) <= 4
    check(is_set and {*MINIMAL_SET} <= {*rules}, "MINIMAL_SET is a tuple of two to four rules")
    return "only the grading can play it"


def check_13() -> None:
    import mine

    foreign = {path.stem for path in HERE.glob("*.py")} - {"check", "mine", "other_side"}
    imported = ", ".join(foreign & {*sys.modules})
    check(not imported, f"mine.py may not import {imported}")
    from other_side import Local, Other

    tests = {name: test for name, test in vars(mine).items() if name.startswith("test_")}
    check(bool(tests), "there is no test")
    for test in tests.values():
        test(Other(Local().perform))


def inside(number: int) -> int:
    """Check one task in this process, and print one line."""
    sys.path.insert(0, str(HERE))
    try:
        words = globals()[f"check_{number}"]()
    except NotImplementedError as error:
        print(f"not written yet ({error})" if str(error) else "not written yet")
        return 1
    except AssertionError as error:
        print(str(error) or f"a test of yours fails{place(error)}")
        return 1
    except (Exception, SystemExit) as error:
        print(told(error))
        return 1
    print(words or "as in the vectors")
    return 0


def main(words: list[str]) -> int:
    if words[:1] == ["--inside"]:
        return inside(int(words[1]))
    numbers = range(1, len(TASKS) + 1)
    if not {*words} <= {str(number) for number in numbers}:
        print(f"check.py: tasks are numbered 1 to {len(TASKS)}", file=sys.stderr)
        return 2
    wrong = 0
    for number in [int(word) for word in words] or numbers:
        command = [sys.executable, __file__, "--inside", str(number)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
            lines = done.stdout.splitlines() or ["it ended without a result"]
            wrong += done.returncode != 0
        except subprocess.TimeoutExpired:
            lines = [f"not finished after {PATIENCE_S} s"]
            wrong += 1
        print(f"{number:>2} {TASKS[number - 1]:<22} {lines[-1]}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    # in a pipe, Windows has few letters, and a value may have any
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(main(sys.argv[1:]))
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or a pipe into head
        os._exit(130)
