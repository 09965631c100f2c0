"""The rival of secure_chat: a relay of the same signed messages, over Python's TLS 1.3.

It is as lean as Python allows: the same messages, heads, transcripts and verifications, and no
other check, no deadline, no state, no opening to encrypt again. All members have Alice's key. A
member has two connections, one for each direction, because no two threads may be in one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, cast

from bench.members import tell
from bench.rivals import HOST, tls_context
from companions.secure_chat import forms
from companions.secure_chat.certs import load_credentials
from companions.secure_chat.forms import NOTHING, OPENING_BYTES, Recipient
from companions.secure_chat.pae import is_signed, sign
from companions.secure_chat.pki import now_ms
from companions.secure_chat.transcript import Transcript

START = bytes(range(32))  # of every room


def write(stream: BinaryIO, *parts: bytes) -> None:
    for part in parts:
        stream.write(len(part).to_bytes(4, "big") + part)
    stream.flush()


def read(stream: BinaryIO, count: int) -> list[bytes]:
    """Return so many parts; after the end they are empty."""
    return [stream.read(int.from_bytes(stream.read(4), "big")) for _ in range(count)]


def stream_over(sock: socket.socket, context: ssl.SSLContext, host: str | None) -> BinaryIO:
    """Return a stream over TLS; without a host this is the server's end."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # no reply brings its ACK
    with context.wrap_socket(sock, server_side=not host, server_hostname=host) as wrapped:
        return cast(BinaryIO, wrapped.makefile("rwb"))  # which keeps it open


def transcript(folder: Path, name: str) -> Transcript:
    path = folder / "kept" / f"tls_{os.getpid()}_{name}.txt"
    return Transcript(path, load_credentials(folder, "server").fingerprint, START)


def opens(message: forms.Message, opening: bytes) -> bool:
    return forms.opens(message.commitment, opening[:OPENING_BYTES], opening[OPENING_BYTES:])


# The server ---------------------------------------------------------------------------------------


class Room:
    """Verifies, orders, signs and keeps what is said, and tells it to all who listen."""

    def __init__(self, folder: Path, name: str) -> None:
        self.streams: list[BinaryIO] = []  # of those who hear what is said
        self.lock = threading.Lock()
        self._name = name
        self._own = load_credentials(folder, "server")
        self._key = load_credentials(folder, "alice").key.public_key()
        self._index = 0
        self._head = START
        self._lines = transcript(folder, name)

    def relay(self, signed: bytes, signature: bytes, opening: bytes) -> None:
        message = forms.parse_message(signed)
        if not is_signed(self._key, signed, signature) or not opens(message, opening):
            sys.exit("what came is not what was signed")
        self._head = forms.next_head(self._head, signed, signature)
        place = forms.Head(self._name, START, self._index, now_ms(), self._head).encode()
        self._index += 1
        entry = (signed, signature, place, sign(self._own.key, place))
        self._lines.add(*entry)
        for stream in self.streams:
            write(stream, *entry, opening)


class Relay:
    """Rooms, which are made when the first member comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = tls_context("tls13", folder, is_server=True)
        self._rooms: dict[str, Room] = {}
        self._lock = threading.Lock()

    def accept(self, listener: socket.socket) -> None:
        while True:
            sock = listener.accept()[0]
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with stream_over(sock, self._context, None) as stream:
            way, name = (part.decode() for part in read(stream, 2))
            room = self._room(name)
            if way == "down":
                with room.lock:
                    room.streams.append(stream)
                write(stream, b"here")
                threading.Event().wait()  # until the process ends
            while (said := read(stream, 3))[0]:
                with room.lock:
                    room.relay(*said)

    def _room(self, name: str) -> Room:
        with self._lock:
            if name not in self._rooms:
                self._rooms[name] = Room(self._folder, name)
            return self._rooms[name]


def serve_lean(pipe: Connection, folder: Path) -> None:
    """In the server's process: relay what comes up to all who have come down."""
    with socket.create_server((HOST, 0), backlog=256) as listener:
        relay = Relay(folder)
        threading.Thread(target=relay.accept, args=(listener,), daemon=True).start()
        tell(pipe, listener.getsockname())


# A member -----------------------------------------------------------------------------------------


def session_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Member:
    """Signs, verifies, and keeps its lines; one thread may say while another one hears."""

    def __init__(
        self, folder: Path, name: str, address: tuple[str, int], room: str, members: Sequence[str]
    ) -> None:
        self._own = load_credentials(folder, "alice")
        self._server_key = load_credentials(folder, "server").key.public_key()
        bob = load_credentials(folder, "bob").fingerprint
        others = sorted(session_of(one) for one in members if one != name)
        self._others = tuple(Recipient(bob, session) for session in others)
        self._session = session_of(name)
        self._room = room
        self._lines = transcript(folder, name)
        self._head = START
        self._seqno = 0
        self._previous = NOTHING
        self._down = self._connect(folder, address, b"down")
        read(self._down, 1)
        self._up = self._connect(folder, address, b"up")

    def _connect(self, folder: Path, address: tuple[str, int], way: bytes) -> BinaryIO:
        context = tls_context("tls13", folder, is_server=False)
        stream = stream_over(socket.create_connection(address), context, HOST)
        write(stream, way, self._room.encode())
        return stream

    def say(self, text: str) -> None:
        opening = os.urandom(OPENING_BYTES) + text.encode()
        message = forms.Message(
            self._session,
            self._room,
            self._own.fingerprint,
            self._others,
            self._seqno,
            now_ms(),
            self._previous,
            self._head,
            forms.commitment(opening[:OPENING_BYTES], opening[OPENING_BYTES:]),
            os.urandom(16) + opening,
        )
        signed = message.encode()
        self._previous = forms.message_hash(signed)
        self._seqno += 1
        write(self._up, signed, sign(self._own.key, signed), opening)

    def hear(self) -> str:
        """Return the next text of anybody."""
        signed, signature, head, head_signature, opening = read(self._down, 5)
        message = forms.parse_message(signed)
        self._head = forms.next_head(self._head, signed, signature)
        is_good = (
            is_signed(self._own.key.public_key(), signed, signature)
            and is_signed(self._server_key, head, head_signature)
            and forms.parse_head(head).head == self._head
            and opens(message, opening)
        )
        if not is_good:
            sys.exit("what came is not what was sent")
        self._lines.add(signed, signature, head, head_signature)
        return opening[OPENING_BYTES:].decode()
