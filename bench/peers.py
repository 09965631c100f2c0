"""The benchmark of peer_messaging: texts and their receipts, beside bare ZeroMQ and CURVE.

    python -m bench.peers [--texts N] [--turns N] [--json FILE]

All do the same work over loopback: a process sends texts, another takes each and sends a receipt
with its number back, over PUSH and PULL sockets. *Stream*: at most 100 texts have no receipt;
the clock runs from the first text to the last receipt. *Round trip*: each text waits for the
receipt of the one before. Both are done with texts of two sizes (measure.py says how).

- plain: as lean as Python allows; one thread, blocking sockets, no deadlines, no checks.
- curve: the same with CURVE, ZeroMQ's own secure channel (X25519, XSalsa20, Poly1305 of libsodium,
  in C and in the background); it has sequence numbers, but no timestamps and no trust.
- ours: two of `Node` as they are: handshake before the clock runs, then AES-256-GCM, numbers,
  timestamps, the table, the time limits, and a thread beside the one that sends.
"""

from __future__ import annotations

import queue
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import zmq

from bench.compare import Took, compare, counts, write_numbers
from bench.measure import LIMIT_S, Failed, Moment, hear, measurement, now, process, since
from companions.peer_messaging.identity import Trust, load_identity
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Event
from companions.peer_messaging.protocol import NUMBER
from endpoint import HOST
from program import run_program

NAMES = {"plain": "plain ZeroMQ", "curve": "ZeroMQ CURVE", "ours": "ours"}
PEOPLE = ("alice", "bob")
SIZES = (100, 4_000)  # bytes of a text
WAYS = {"stream": 100, "round trip": 1}  # how many texts may be without a receipt
TEXTS = 5_000
TURNS = 7
WARM_UP = 100  # texts
ROUND_TRIP_SHARE = 5  # of so many texts, one is sent as a round trip


class Work(NamedTuple):
    """What a slice does: texts of which size, how many, and how many may have no receipt."""

    size: int
    texts: int
    window: int


class Meeting(NamedTuple):
    """What the processes of Alice, who sends, and of Bob know of each other; all by name."""

    folder: Path  # of the identities
    ports: Mapping[str, int]
    keys: Mapping[str, tuple[bytes, bytes]]  # public and secret, for CURVE


# The lean rivals ----------------------------------------------------------------------------------


@contextmanager
def lean(
    meeting: Meeting, name: str, peer: str
) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Yield an inbox, which is the server in CURVE, and an outbox to that of the peer."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as inbox,
        context.socket(zmq.PUSH) as outbox,
    ):
        if meeting.keys:
            for sock in (inbox, outbox):
                sock.curve_publickey, sock.curve_secretkey = meeting.keys[name]
            inbox.curve_server = True
            outbox.curve_serverkey = meeting.keys[peer][0]
        inbox.bind(f"tcp://{HOST}:{meeting.ports[name]}")
        outbox.connect(f"tcp://{HOST}:{meeting.ports[peer]}")
        yield inbox, outbox


def receive_lean(pipe: Connection, meeting: Meeting, work: Work) -> None:
    """In the receiving process: a receipt for each text, then the processor time."""
    with lean(meeting, "bob", "alice") as (inbox, outbox):
        began_s = time.process_time()
        for number in range(WARM_UP + work.texts):
            inbox.recv()
            outbox.send(NUMBER.pack(number))
        pipe.send(time.process_time() - began_s)
        pipe.recv()


def send_lean(pipe: Connection, meeting: Meeting, work: Work) -> None:
    with lean(meeting, "alice", "bob") as (inbox, outbox):
        text = bytes(work.size)

        def send(count: int) -> None:
            sent = 0
            for received in range(count):
                while sent < min(count, received + work.window):
                    outbox.send(text)
                    sent += 1
                inbox.recv()

        measure(pipe, work, send)


# Ours ---------------------------------------------------------------------------------------------


class Sender:
    """A Node, and a thread that says texts, at most so many ahead of the receipts."""

    def __init__(self, work: Work) -> None:
        self.node: Node
        self._work = work
        self._receipts: queue.SimpleQueue[int] = queue.SimpleQueue()  # no lock is faster
        self._met = threading.Event()

    def tell(self, event: Event) -> None:
        if event.what == "receipt":
            self._receipts.put(event.number)
        elif event.what == "met":
            self._met.set()
        elif event.what == "ended" or (event.what == "refused" and self._met.is_set()):
            raise Failed(f"the session did not last: {event}")

    def wait(self) -> None:
        while not self._met.wait(1.0):
            self.node.check()

    def __call__(self, count: int) -> None:
        text = "x" * self._work.size
        for number in range(count):
            if number >= self._work.window:
                self._receipts.get(timeout=LIMIT_S)
            self.node.say(text)
        for _ in range(min(count, self._work.window)):
            self._receipts.get(timeout=LIMIT_S)


def our_node(meeting: Meeting, name: str, peer: str, tell: Callable[[Event], object]) -> Node:
    identity, _ = load_identity(meeting.folder / name, input)
    pinned, _ = load_identity(meeting.folder / peer, input)
    trust = Trust(peer, pinned.fingerprint)
    ports = meeting.ports
    return Node(identity, trust, (HOST, ports[peer]), HOST, ports[name], tell=tell)


def receive_ours(pipe: Connection, meeting: Meeting, work: Work) -> None:
    done = threading.Event()
    left = WARM_UP + work.texts

    def tell(event: Event) -> None:
        nonlocal left
        left -= event.what == "text"
        if not left:
            done.set()

    with our_node(meeting, "bob", "alice", tell) as node:
        began_s = time.process_time()
        while not done.wait(1.0):
            node.check()
        pipe.send(time.process_time() - began_s)
        pipe.recv()


def send_ours(pipe: Connection, meeting: Meeting, work: Work) -> None:
    sender = Sender(work)
    with our_node(meeting, "alice", "bob", sender.tell) as sender.node:
        sender.wait()
        measure(pipe, work, sender)


# One slice, and all of them -----------------------------------------------------------------------


def measure(pipe: Connection, work: Work, send: Callable[[int], None]) -> None:
    """In the sending process: send so many texts, and tell how long they took."""
    send(WARM_UP)
    began = now()
    send(work.texts)
    pipe.send(since(began))
    pipe.recv()


def run_slice(rival: str, folder: Path, work: Work) -> Took:
    """Have a rival do the work, between two fresh processes; per text. Raises Failed."""
    take, give = (receive_ours, send_ours) if rival == "ours" else (receive_lean, send_lean)
    keys = {name: zmq.curve_keypair() for name in PEOPLE} if rival == "curve" else {}
    meeting = Meeting(folder, dict(zip(PEOPLE, free_ports())), keys)
    with process(take, meeting, work) as receiver:
        with process(give, meeting, work) as sender:
            took: Moment = hear(sender)
            receiver_s = hear(receiver) / (WARM_UP + work.texts)
            sender.send("stop")
        receiver.send("stop")  # now: ours would take it for the end of the session
    processor_s = {"sender": took.processor_s / work.texts, "receiver": receiver_s}
    return Took(took.wall_s / work.texts, processor_s)


def free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def works(texts: int) -> dict[str, Work]:
    """Return all that is measured, by title."""
    found = {}
    for size in SIZES:
        for way, window in WAYS.items():
            count = max(1, texts // ROUND_TRIP_SHARE) if window == 1 else texts
            found[f"{way}: {count:,} texts of {size:,} bytes"] = Work(size, count, window)
    return found


@measurement
def main() -> int:
    options = counts(
        "Sends texts over ours and over bare ZeroMQ, and compares.",
        {"--texts": (TEXTS, "of each size in a stream"), "--turns": (TURNS, "of all rivals")},
    )
    found: dict[str, object] = {"zeromq": zmq.zmq_version()}
    print(f"Texts and their receipts, {options.turns} times each\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for who in PEOPLE:
            load_identity(folder / who, input)
        for title, work in works(options.texts).items():
            run = partial(run_slice, folder=folder, work=work)
            found[title] = compare(title, "texts", NAMES, options.turns, run)
    write_numbers(options, found)
    return 0


if __name__ == "__main__":
    run_program(main)
