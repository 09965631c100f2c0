"""Your tests: the reference passes them, and implementations with a planted bug fail them.

Every function named test_... is called with an `Other` (other_side.py says what it can do), and
fails if it raises. A test that the reference fails does not count. You may add as many as you like.
No module of the protocol can be imported here; your vectors/key_schedule.json can be read.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from other_side import End, Other, refusal

KEY = bytes(range(16))
NONCE = bytes(16)
VECTORS = Path(__file__).parent / "vectors" / "key_schedule.json"


def begun(other: Other) -> tuple[End, End]:
    """Return the client and the server of a session after its handshake."""
    client = other.client(KEY)
    server = other.server(KEY)
    server.open(client.seal("hello"))
    client.open(server.seal("challenge"))
    return client, server


def test_padding(other: Other) -> None:
    """Padding: what is appended, what comes back, and what is refused."""
    for length in range(33):
        data = bytes(range(length))
        missing = 16 - length % 16
        padded = other.call("pkcs7_pad", data)
        assert padded == data + bytes([missing]) * missing
        assert other.call("pkcs7_unpad", padded) == data
    for wrong in (b"", bytes(15), bytes(16), bytes(15) + b"\x11", b"\x01" * 17, b"\x11" * 32):
        assert refusal(other.call, "pkcs7_unpad", wrong) == "ValueError"
    for ending in (b"\x00\x02", b"\x03\x02\x03", b"\x02\x03\x03"):
        wrong = bytes(16 - len(ending)) + ending
        assert refusal(other.call, "pkcs7_unpad", wrong) == "ValueError"


def test_encryption_and_tag(other: Other) -> None:
    """CBC and HMAC: known answers, lengths of keys, wrong tags."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")  # SP 800-38A, F.2.1
    iv = bytes(range(16))
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    secret = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2")
    assert other.call("aes_cbc_encrypt", plain, key, iv) == secret
    assert other.call("aes_cbc_decrypt", secret, key, iv) == plain
    for length in (15, 24, 32):
        assert refusal(other.call, "aes_cbc_encrypt", plain, bytes(length), iv) == "ValueError"
        assert refusal(other.call, "aes_cbc_decrypt", plain, bytes(length), iv) == "ValueError"
    text = b"what do ya want for nothing?"  # RFC 4231, test case 2
    tag = bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
    assert other.call("hmac_sha256", b"Jefe", text) == tag
    assert other.call("hmac_verify", b"Jefe", text, tag)
    for wrong in (b"", tag[:16], tag[:-1], tag + b"\0", bytes(32)):
        assert not other.call("hmac_verify", b"Jefe", text, wrong)
    for place in range(32):
        wrong = tag[:place] + bytes([tag[place] ^ 1]) + tag[place + 1 :]
        assert not other.call("hmac_verify", b"Jefe", text, wrong)


def outputs(case: dict[str, Any], step: str) -> dict[str, bytes]:
    """Return the keys that a step of a vector gives; some steps move two of them only."""
    return {label: bytes.fromhex(pair["output"]) for label, pair in case[step].items()}


def test_key_schedule(other: Other) -> None:
    """Key schedule: the public vectors of this dialect, step by step."""
    for case in json.loads(VECTORS.read_text("utf-8"))["cases"]:
        ciphertext, nonce = (bytes.fromhex(case["client_data"][x]) for x in ("ciphertext", "nonce"))
        body = bytes.fromhex(case["server_aggr_response"]["body"])
        master_key = bytes.fromhex(case["master_key"])
        keys = outputs(case, "start")
        for label, key in keys.items():
            assert other.call("derive_key", master_key, label) == key
        nonces = [bytes.fromhex(case[f"{end}_nonce"]) for end in ("client", "server")]
        assert other.call("bind_keys", keys, *nonces) == outputs(case, "binding")
        keys = outputs(case, "binding")
        moved = {**keys, **outputs(case, "c2s_ratchet")}
        assert other.call("evolve_c2s", keys, ciphertext, nonce) == moved
        keys = {**moved, **outputs(case, "s2c_ratchet")}
        assert other.call("evolve_s2c", moved, body, b"\0") == keys


def test_framing(other: Other) -> None:
    """Framing: every cut of the stream, illegal lengths, the end in mid-frame."""
    client = other.client(KEY)
    message = client.seal("hello")
    frame = len(message).to_bytes(2, "big") + message
    assert other.written(message) == [frame]
    stream = frame + frame
    for size in (1, 2, 3, 50, 73, 74, 200):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert other.read_frames(pieces) == [message, message]
    for length in (0, 55, 70, 72, 86, 65_526, 65_528, 65_535):
        assert refusal(other.call, "check_length", length) == "MalformedMessage"
        pieces = [length.to_bytes(2, "big"), bytes(100)]
        assert refusal(other.read_frames, pieces) == "MalformedMessage"
    for length in (71, 87, 65_527):
        assert not refusal(other.call, "check_length", length)
    for end in (1, 2, 40, 72):
        assert refusal(other.read_frames, [frame[:end]]) == "ConnectionCut"


def test_table(other: Other) -> None:
    """State table: a conversation of three rounds, and what is illegal in each state."""
    client = other.client(KEY)
    server = other.server(KEY)
    assert refusal(client.seal, "report", []) == "LocalError"
    assert refusal(client.seal, "terminate", 1) == "LocalError"
    assert refusal(server.seal, "challenge") == "LocalError"
    server.open(client.seal("hello"))
    assert refusal(client.seal, "hello") == "LocalError"
    assert refusal(server.seal, "terminate", 1) == "LocalError"
    client.open(server.seal("challenge"))
    for number in (1, 2, 3):
        assert (client.round_number(), server.round_number()) == (number, number)
        assert client.state() == server.state() == "REPORT"
        assert refusal(client.seal, "hello") == "LocalError"
        assert refusal(server.seal, "challenge") == "LocalError"
        assert refusal(server.seal, "answer", {}) == "LocalError"
        server.open(client.seal("report", [1.5]))
        assert client.state() == server.state() == "ANSWER"
        assert client.round_number() == server.round_number() == number
        assert refusal(client.seal, "report", []) == "LocalError"
        client.open(server.seal("answer", {"sum": 1.5}))
    client, server = begun(other)
    server.open(client.seal("report", []))
    server.seal("answer", {})  # which the client has not seen when it leaves
    assert refusal(server.open, client.seal("terminate", 1)) == "PeerTerminated"
    for has_report in (False, True):
        for who in (0, 1):
            for farewell in (("terminate", 2), ("desync", None)):
                ends = begun(other)
                if has_report:
                    ends[1].open(ends[0].seal("report", []))
                assert refusal(ends[1 - who].open, ends[who].seal(*farewell)) == "PeerTerminated"
                assert ends[0].state() == ends[1].state() == "ENDED"
                assert refusal(ends[0].seal, "report", []) == "LocalError"


def test_payloads(other: Other) -> None:
    """Payloads: the smallest and largest that are legal, and what is refused."""
    good_reports = (b"[]", b"[1]", b"[1e15,-1e15,0.5]", b"[" + b"1," * 1023 + b"1]")
    for body in good_reports:
        assert other.parse(30, 0, NONCE + body)[0] == "ClientData"
    wrong = [b"", b"{}", b"[true]", b"[NaN]", b"[1e400]", b'["1"]', b"[null]", b"[[1]]", b"1"]
    wrong += (b"[1.1e15]", b"[-1.1e15]", b"[" + b"1," * 1024 + b"1]", b"\xef\xbb\xbf[]", b"[1]x")
    for body in wrong:
        assert refusal(other.parse, 30, 0, NONCE + body) == "BadPayload"
    good = b'{"a":null,"b":"c","d":[1,"e",null],"f":-1.5}'
    assert other.parse(40, 1, b"\0" + good)[0] == "ServerAggrResponse"
    wrong = [b"[]", b'{"a":{}}', b'{"a":true}', b'{"a":[[]]}', b'{"a":"\\ud800"}', b'{"\\ud800":1}']
    wrong += (b'{"a":[true]}', b'{"a":1e400}', b"null", b"", b'{"a":["\\udfff"]}')
    for body in wrong:
        assert refusal(other.parse, 40, 1, b"\0" + body) == "BadPayload"
    for status in (1, 2, 3, 255):
        assert refusal(other.parse, 40, 1, bytes([status]) + good) == "BadPayload"
        assert refusal(other.parse, 20, 1, bytes([status]) + bytes(32)) == "BadPayload"
    for length in (0, 16, 31, 33, 48):
        assert refusal(other.parse, 20, 1, bytes(1 + length)) == "BadPayload"
    assert other.parse(20, 1, bytes(33))[0] == "ServerChallenge"
    assert other.parse(10, 0, NONCE + b"\1")[0] == "ClientHello"
    for body in (b"", b"\0", b"\2", b"\1\1"):
        assert refusal(other.parse, 10, 0, NONCE + body) == "BadPayload"
    for head, direction in ((NONCE, 0), (b"", 1)):
        for status in (1, 2, 3, 4, 5):
            assert other.parse(60, direction, head + bytes([status])) == ["Terminate", status]
        assert other.parse(50, direction, head + b"\2")[0] == "KeyDesync"
        for body in (b"", b"\0", b"\6", b"\1\1"):
            assert refusal(other.parse, 60, direction, head + body) == "BadPayload"
        for body in (b"", b"\0", b"\1", b"\3", b"\2\2"):
            assert refusal(other.parse, 50, direction, head + body) == "BadPayload"
    for short in (b"", bytes(15)):
        assert refusal(other.parse, 60, 0, short) == "BadPayload"


def sealed_anew(other: Other, end: End, message: bytes, padded: bytes, name: str = "C2S") -> bytes:
    """Return a message with a right tag and a plaintext of ours, already padded."""
    keys = end.keys()
    head = message[:23]
    secret = other.call("aes_cbc_encrypt", padded, keys[f"{name}-ENC"][:16], head[7:])
    return bytes(head + secret + other.call("hmac_sha256", keys[f"{name}-MAC"], head + secret))


def test_open(other: Other) -> None:
    """Session.open: each step refuses its own kind of fault, and then the session is over."""
    expected = {0: "UnexpectedOpcode", 1: "WrongPeer", 5: "RoundMismatch", 6: "WrongDirection"}
    for place in range(71):
        client, server = begun(other)
        report = bytearray(client.seal("report", [1.5]))
        report[place] ^= 4
        assert refusal(server.open, bytes(report)) == expected.get(
            place, "RoundMismatch" if 1 < place < 5 else "BadTag"
        )
        assert server.state() == "ENDED"
        assert not server.keys()
    check_order(other)
    client, server = other.client(KEY), other.server(KEY)
    hello = client.seal("hello")
    assert refusal(server.open, hello[:-1] + bytes([hello[-1] ^ 1])) == "BadTag"
    assert not server.keys()
    client, server = begun(other)
    keys = server.keys()
    template = client.seal("report", [1.5])
    for padded in (bytes(32), NONCE + b"\x11" * 16):
        one, two = begun(other)
        wrong = sealed_anew(other, two, one.seal("report", []), padded)
        assert refusal(two.open, wrong) == "BadPadding"
    one, two = begun(other)
    wrong = sealed_anew(other, two, one.seal("report", []), NONCE + b"{}" + b"\x0e" * 14)
    assert refusal(two.open, wrong) == "BadPayload"
    assert server.open(template) == ["ClientData", [1.5]]
    assert all(keys[label] != server.keys()[label] for label in ("C2S-ENC", "C2S-MAC"))
    assert refusal(server.open, template) == "UnexpectedOpcode"
    assert refusal(server.open, bytes(70)) == "UnexpectedOpcode" or server.state() == "ENDED"


def check_order(other: Other) -> None:
    """Check that of two faults the error names that of the earlier step."""
    names = ["MalformedMessage", "WrongPeer", "WrongDirection", "UnexpectedOpcode"]
    names += ("RoundMismatch", "BadTag")
    for one, two in pairwise(names):
        client, server = begun(other)
        report = bytearray(client.seal("report", [1.5]))
        places = {"WrongPeer": 1, "WrongDirection": 6, "UnexpectedOpcode": 0, "RoundMismatch": 5}
        for name in (one, two):
            report[places.get(name, 30)] ^= 1
        wrong = bytes(report[:-1]) if one == "MalformedMessage" else bytes(report)
        assert refusal(server.open, wrong) == one
