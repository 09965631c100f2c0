"""secure_chat on a real wire: what tshark has captured holds no password and no text.

A search that finds nothing shows little, so the same search must find the same words once the
rule that hides them is taken out.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import threading

import pytest

from companions.secure_chat import stage
from companions.secure_chat.stage import ALICE, ANSWER, BOB, EARLIER, LAST, Lab, Parts
from companions.secure_chat.weakened import without

TSHARK = shutil.which("tshark")
LIMIT_S = 60.0
WORDS = {
    "Alice's password": stage.PASSWORDS[ALICE],
    "Bob's password": stage.PASSWORDS[BOB],
    "first text": EARLIER,
    "second text": ANSWER,
    "last text": LAST,
}
MARK = b"the capture ends here"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"  # travels in the clear

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TSHARK is None, reason="tshark is not installed"),
    pytest.mark.usefixtures("quiet"),
]


def forms_of(secret: str) -> dict[str, bytes]:
    """Return what a word looks like in the clear, in base64 at any place, and hashed."""
    data = secret.encode()
    digest = hashlib.sha256(data).digest()
    found = {"clear": data, "hash": digest, "hash in hex": digest.hex().encode()}
    for shift in range(3):
        # what stands before a word moves its letters; those that its neighbours change are cut
        letters = base64.b64encode(bytes(shift) + data)
        begin, end = (0, 2, 3)[shift], len(letters.rstrip(b"=")) - 1
        found[f"base64, {shift}"] = letters[begin:end]
    found["hash in base64"] = base64.b64encode(digest)[:-2]
    return found


def found_in(captured: bytes) -> set[tuple[str, str]]:
    """Return which word is in a capture, in which form; base64 inside base64, too."""
    layers = [captured]
    for _ in range(2):
        parts = re.findall(rb"[A-Za-z0-9+/]{16,}={0,2}", layers[-1])
        opened = (part[: len(part) // 4 * 4] for part in parts)
        layers.append(b"\n".join(base64.b64decode(part) for part in opened))
    return {
        (name, form)
        for name, secret in WORDS.items()
        for form, data in forms_of(secret).items()
        if any(data in layer for layer in layers)
    }


class Capture:
    """What tshark sees on loopback, on one port, from here on."""

    def __init__(self, port: int) -> None:
        self._begun = threading.Event()
        self._ended = threading.Event()  # the last packet of ours was seen
        self._said: list[str] = []
        self._streams: dict[tuple[str, str], bytes] = {}  # by stream and sender
        self._process = subprocess.Popen(
            [str(TSHARK), "-i", "lo", "-f", f"tcp port {port}", "-l", "-Y", "tcp.len > 0"]
            + ["-T", "fields", "-e", "tcp.stream", "-e", "tcp.srcport", "-e", "tcp.payload"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [threading.Thread(target=one) for one in (self._listen, self._read)]

    def __enter__(self) -> Capture:
        for thread in self._threads:
            thread.start()
        assert self._begun.wait(LIMIT_S)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait(LIMIT_S)
        for thread in self._threads:
            thread.join(LIMIT_S)

    def _listen(self) -> None:
        assert self._process.stderr
        with self._process.stderr as lines:
            for line in lines:
                self._said.append(line)
                if "Capture started" in line:
                    self._begun.set()
        self._begun.set()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                stream, sender, payload = line.split()
                said = self._streams.get((stream, sender), b"") + bytes.fromhex(payload)
                self._streams[stream, sender] = said
                if MARK in said:
                    self._ended.set()
        self._ended.set()

    def up_to_the_mark(self) -> bytes:
        """Return what every stream carried in each direction, until MARK came."""
        assert self._ended.wait(LIMIT_S)
        if self._process.poll() is not None:
            pytest.skip(f"tshark may not capture here: {''.join(self._said)[-200:]}")
        return b"\n".join(self._streams.values())


def honest_session(parts: Parts) -> bytes:
    """Return what a session of Alice and Bob puts on the wire."""
    with Lab(lambda *_: None, parts) as lab, Capture(lab.address[1]) as capture:
        lab.honest_session()
        with lab.connect() as line:
            line.socket.sendall(MARK)
            return capture.up_to_the_mark()


def test_capture_shows_no_password_and_no_text() -> None:
    wire = honest_session(Parts())
    assert wire.count(b'"type":"server_hello"') == 2
    assert wire.count(b'"type":"msg"') == 3
    assert wire.count(b'"type":"receipt"') == 4
    assert CERTIFICATE in wire
    assert found_in(wire) == set()


def test_same_search_finds_all_of_it_without_encryption() -> None:
    wire = honest_session(without(["encryption"]))
    assert {name for name, _ in found_in(wire)} == set(WORDS)


@pytest.mark.parametrize("form", [*forms_of("x" * 20)])
@pytest.mark.parametrize("before", [b"", b"a", b"ab"])
def test_search_finds_each_form_of_a_word(form: str, before: bytes) -> None:
    hidden = before + forms_of(WORDS["last text"])[form]
    assert ("last text", form) in found_in(b'{"payload":"' + hidden + b'"}')
