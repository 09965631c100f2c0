"""The rivals of the benchmark: the same work over other channels, and over ours.

The work of one round is the same for all. The client sends a report, a JSON array of numbers; the
server parses it, enters it into the epoch, and when all clients are in computes the answer with
`compute_aggregation` and `own_part` of server.py, as JSON for each member; the client parses that.

- plain, tls12, tls13: as lean as Python allows. Blocking sockets without timeouts, one buffered
  reader a connection, one sendall a frame, a thread a client, and an epoch that waits for a known
  number of clients, and whose members wake each other as in ours. They check nothing but the
  syntax of JSON.
- floor: plain, plus pycryptodome's AES, HMAC and SHA-256 as often as we use them, and nothing
  else: no header, state, nonce, limits or checks but the tag. What ours could be at best.
- bare, tls_echo: no JSON and no epochs; frames of our sizes, sent and answered, over TCP and over
  TLS 1.3: what it takes to be two processes that wake each other.
- ours: `Server` and `Client` as they are, with all their checks and deadlines.
- over_tls: the same two over TLS 1.2, which has taken the place of our cryptography: what is left
  of a session is its table, its header and its checks of what a message carries.

All have TCP_NODELAY and the frame of [P 3.1]: 2 bytes of length, then that many bytes.
"""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from Crypto.Random import get_random_bytes

from bench.measure import LIMIT_S
from channel import Channel
from client import Client
from crypto_utils import (
    AES_KEY_BYTES,
    BLOCK_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    aes_cbc_decrypt,
    aes_cbc_encrypt,
    evolve_key,
    hmac_sha256,
    hmac_verify,
    pkcs7_pad,
    pkcs7_unpad,
)
from lab.weakened import LoopbackClient, LoopbackServer, without
from protocol_fsm import MAX_READINGS, OVERHEAD, ClientHello, Json, Session
from server import Contributions, Limits, Server, compute_aggregation, own_part

HOST = "127.0.0.1"
RIVALS = ("plain", "floor", "tls12", "tls13", "over_tls", "ours")
LIMITS = Limits(window_s=LIMIT_S, stranger_timeout_s=LIMIT_S, max_strangers=256)
TLS_KEEPS = ("tag", "encryption", "fresh-iv", "ratchet", "binding")  # rules, in its own way
OURS = "AES-128-CBC, HMAC-SHA256, a ratchet"  # what protects it, in words
TLS12_CIPHER = "AES128-SHA256"  # TLS_RSA_WITH_AES_128_CBC_SHA256: AES-128-CBC and HMAC-SHA256
encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one a call


class Body(NamedTuple):
    """What a round carries: the readings of a report, and text to fill the answer with."""

    readings: Sequence[float]
    filling: str

    @property
    def report(self) -> bytes:
        return encode(self.readings).encode()


Aggregation = Callable[[Contributions], dict[str, Json]]
BODIES = {
    "small": Body([20.5, 21.25, 19.75, 20.0], ""),
    # readings with all their digits, about 20 KB, and about 60 KB of answer
    "large": Body([20 + n / 7_919 for n in range(MAX_READINGS)], "x" * 60_000),
}


def aggregate(filling: str, contributions: Contributions) -> dict[str, Json]:
    """Return the answer of all rivals: that of server.py, and text to fill it with."""
    shared = compute_aggregation(contributions)
    return {**shared, "text": filling} if filling else shared


class Floor:
    """One direction of a channel: the primitives, and the keys that they move."""

    def __init__(self) -> None:
        self._aes_chain = self._mac_chain = bytes(32)

    def seal(self, body: bytes) -> bytes:
        iv = get_random_bytes(BLOCK_BYTES)
        ciphertext = aes_cbc_encrypt(pkcs7_pad(body), self._aes_chain[:AES_KEY_BYTES], iv)
        tag = hmac_sha256(self._mac_chain, iv + ciphertext)
        self._move(iv, ciphertext)
        return iv + ciphertext + tag

    def open(self, message: bytes) -> bytes:
        iv = message[:BLOCK_BYTES]
        ciphertext = message[BLOCK_BYTES:-TAG_BYTES]
        if not hmac_verify(self._mac_chain, message[:-TAG_BYTES], message[-TAG_BYTES:]):
            raise ValueError("a wrong tag")
        body = pkcs7_unpad(aes_cbc_decrypt(ciphertext, self._aes_chain[:AES_KEY_BYTES], iv))
        self._move(iv, ciphertext)
        return body

    def _move(self, iv: bytes, ciphertext: bytes) -> None:
        self._aes_chain = evolve_key(self._aes_chain, ciphertext)
        self._mac_chain = evolve_key(self._mac_chain, iv)


# Servers ------------------------------------------------------------------------------------------


def read_frame(stream: BufferedReader) -> bytes:
    return stream.read(int.from_bytes(stream.read(2), "big"))


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


class LeanServer:
    """A thread per client, and an epoch of all of them; clients are numbered as they come."""

    def __init__(self, clients: int, aggregation: Aggregation, tls: ssl.SSLContext | None) -> None:
        self._clients = clients
        self._aggregation = aggregation
        self._tls = tls
        self._changed = threading.Condition()
        self._epoch = 1
        self._reports: dict[int, list[float]] = {}
        self._answers: dict[int, bytes] = {}
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> LeanServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        for client_id in range(1, self._clients + 1):
            sock = self._listener.accept()[0]
            threading.Thread(target=self._serve, args=(client_id, sock), daemon=True).start()

    def _serve(self, client_id: int, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            sock = self._tls.wrap_socket(sock, server_side=True)
        with sock, sock.makefile("rb") as stream:
            self._serve_rounds(client_id, sock, stream)

    def _serve_rounds(self, client_id: int, sock: socket.socket, stream: BufferedReader) -> None:
        while report := read_frame(stream):
            sock.sendall(frame(self._contribute(client_id, json.loads(report))))
            self._wake_next()

    def _contribute(self, client_id: int, readings: list[float]) -> bytes:
        with self._changed:
            epoch = self._epoch
            self._reports[client_id] = readings
            if len(self._reports) == self._clients:
                self._close_epoch()
            while self._epoch == epoch:
                self._changed.wait()
            return self._answers[client_id]

    def _close_epoch(self) -> None:
        shared = self._aggregation(self._reports)
        total = math.fsum(reading for readings in self._reports.values() for reading in readings)
        head = {"epoch": self._epoch, "round": self._epoch}
        self._answers = {
            client_id: encode({**head, **shared, **own_part(readings, total)}).encode()
            for client_id, readings in self._reports.items()
        }
        self._epoch = self._epoch + 1
        self._reports = {}

    def _wake_next(self) -> None:
        """Wake one for its answer, as `Server.wake_next`: with 250 clients that helps these too."""
        with self._changed:
            self._changed.notify()


class FloorServer(LeanServer):
    def _serve_rounds(self, client_id: int, sock: socket.socket, stream: BufferedReader) -> None:
        reports = Floor()
        answers = Floor()
        while message := read_frame(stream):
            answer = self._contribute(client_id, json.loads(reports.open(message)))
            sock.sendall(frame(answers.seal(answer)))
            self._wake_next()


class BareServer(LeanServer):
    """Answers each frame with a frame of the size that it asks for in its first 2 bytes."""

    def _serve_rounds(self, client_id: int, sock: socket.socket, stream: BufferedReader) -> None:
        answer = b""
        while request := read_frame(stream):
            wanted = int.from_bytes(request[:2], "big")
            answer = answer if len(answer) == wanted else bytes(wanted)
            sock.sendall(frame(answer))


class NothingUnderTag(Session):
    def _under_tag(self, untagged: bytes) -> bytes:
        """Leave nothing to tag, where TLS has a tag of its own."""
        return b""


OverTLSSession = type("OverTLSSession", (NothingUnderTag, without(TLS_KEEPS).session), {})


class OverTLSServer(LoopbackServer):
    """Our server without our cryptography, on a listener whose connections speak TLS."""

    def __init__(self, clients: int, aggregation: Aggregation, tls: ssl.SSLContext) -> None:
        super().__init__(
            keys(clients), HOST, 0, LIMITS, aggregation=aggregation, new_session=OverTLSSession
        )
        self._listener = tls.wrap_socket(
            self._listener, server_side=True, do_handshake_on_connect=False
        )


def make_server(rival: str, clients: int, body: Body, folder: Path) -> Server | LeanServer:
    """Return a server that serves inside `with`."""
    aggregation = partial(aggregate, body.filling)
    if rival == "ours":
        return Server(keys(clients), HOST, 0, LIMITS, aggregation=aggregation)
    tls = tls_context(rival, folder, is_server=True) if "tls" in rival else None
    if rival == "over_tls" and tls:
        return OverTLSServer(clients, aggregation, tls)
    lean = {"bare": BareServer, "tls_echo": BareServer, "floor": FloorServer}
    kind = lean.get(rival, LeanServer)
    return kind(clients, aggregation, tls)


# Clients ------------------------------------------------------------------------------------------


class Caller(NamedTuple):
    """One connected client."""

    channel: str
    call: Callable[[], object]  # one round


def lean_call(sock: socket.socket, stream: BufferedReader, body: Body) -> Callable[[], object]:
    def call() -> object:
        sock.sendall(frame(body.report))
        return json.loads(read_frame(stream))

    return call


def floor_call(sock: socket.socket, stream: BufferedReader, body: Body) -> Callable[[], object]:
    reports = Floor()
    answers = Floor()

    def call() -> object:
        sock.sendall(frame(reports.seal(body.report)))
        return json.loads(answers.open(read_frame(stream)))

    return call


def bare_call(sock: socket.socket, stream: BufferedReader, body: Body) -> Callable[[], object]:
    """Send and get messages of the sizes that ours have for the same bodies."""
    report_bytes, answer_bytes = message_sizes(body)
    request = answer_bytes.to_bytes(2, "big") + bytes(report_bytes - 2)

    def call() -> object:
        sock.sendall(frame(request))
        return read_frame(stream)

    return call


class OverTLSClient(LoopbackClient):
    """Our client without our cryptography, on a connection that speaks TLS."""

    def __init__(self, client_id: int, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        super().__init__(
            client_id, keys(client_id), *address, timeout_s=LIMIT_S, new_session=OverTLSSession
        )
        self._tls = tls

    def __enter__(self) -> OverTLSClient:
        sock = self._tls.wrap_socket(socket.create_connection(self._address), server_hostname=HOST)
        self._channel = Channel(sock, self.session)
        self.channel.send(ClientHello())
        self.channel.receive(time.monotonic() + LIMIT_S)
        return self


@contextmanager
def connected(
    rival: str, address: tuple[str, int], body: Body, client_id: int, tls: ssl.SSLContext | None
) -> Iterator[Caller]:
    """Yield a client of a rival."""
    client: Client | OverTLSClient
    if rival == "ours":
        with Client(client_id, keys(client_id), *address, timeout_s=LIMIT_S) as client:
            yield Caller(
                "AES-128-CBC, HMAC-SHA256, a ratchet", partial(client.report, body.readings)
            )
        return
    if rival == "over_tls" and tls:
        with OverTLSClient(client_id, address, tls) as client:
            yield Caller("TLS 1.2 in place of it", partial(client.report, body.readings))
        return
    sock = socket.create_connection(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    channel = f"{OURS}; no protocol" if rival == "floor" else "TCP"
    if tls:
        sock = secured = tls.wrap_socket(sock, server_hostname=HOST)
        channel = f"{secured.version()} {(secured.cipher() or '?')[0]}"
    calls = {"bare": bare_call, "tls_echo": bare_call, "floor": floor_call}
    with sock, sock.makefile("rb") as stream:
        yield Caller(channel, calls.get(rival, lean_call)(sock, stream, body))


def example_answer(body: Body, clients: int = 1) -> bytes:
    """Return an answer as each of so many clients gets it, all of whom reported the same."""
    readings = body.readings
    shared = aggregate(body.filling, dict.fromkeys(range(1, clients + 1), readings))
    return encode(
        {
            "epoch": 1_000,
            "round": 1_000,
            **shared,
            **own_part(readings, clients * math.fsum(readings)),
        }
    ).encode()


def message_sizes(body: Body) -> tuple[int, int]:
    """Return the bytes of our two messages [P 3.2], for a report and its answer."""

    def size_of(plaintext_bytes: int) -> int:
        return OVERHEAD + plaintext_bytes + BLOCK_BYTES - plaintext_bytes % BLOCK_BYTES

    return size_of(NONCE_BYTES + len(body.report)), size_of(1 + len(example_answer(body)))


# Keys ---------------------------------------------------------------------------------------------


def keys(last_id: int) -> dict[int, bytes]:
    return {n: b"benchmark key %03d" % n for n in range(1, last_id + 1)}


def tls_context(rival: str, folder: Path, *, is_server: bool) -> ssl.SSLContext:
    """Return a context for one version of TLS, without compression."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    is_1_2 = rival in ("tls12", "over_tls")
    version = ssl.TLSVersion.TLSv1_2 if is_1_2 else ssl.TLSVersion.TLSv1_3
    context.minimum_version = version
    context.maximum_version = version
    context.options |= ssl.OP_NO_COMPRESSION
    if is_1_2:
        context.set_ciphers(TLS12_CIPHER)
    if is_server:
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    else:
        context.load_verify_locations(folder / "certificate.pem")
    return context
