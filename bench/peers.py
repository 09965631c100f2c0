"""The benchmark of peer_messaging: texts and their receipts, beside bare ZeroMQ and CURVE.

    python -m bench.peers [--texts N] [--turns N] [--json FILE]

All do the same work over loopback: a process sends texts, another takes each and sends a receipt
with its number back, over PUSH and PULL sockets. *Stream*: at most 100 texts have no receipt;
the clock runs from the first text to the last receipt. *Round trip*: each text waits for the
receipt of the one before. Each turn every rival does all of it once (measure.py).

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import zmq

from bench.flags import counts, write_numbers
from bench.measure import (
    LIMIT_S,
    Failed,
    Moment,
    Spread,
    bars,
    hear,
    measurement,
    now,
    process,
    ratio,
    since,
    told_turns,
)
from companions.peer_messaging.identity import Trust, load_identity
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Event
from companions.peer_messaging.protocol import NUMBER
from endpoint import HOST
from program import run_program

NAMES = {"plain": "plain ZeroMQ", "curve": "ZeroMQ CURVE", "ours": "ours"}
SIZES = (100, 4_000)  # bytes of a text
WAYS = {"stream": 100, "round trip": 1}  # how many texts may be without a receipt
TEXTS = 5_000
TURNS = 7
WARM_UP = 100  # texts
ROUND_TRIP_SHARE = 5  # of so many texts, one is sent as a round trip


class Work(NamedTuple):
    """What is measured: texts of which size, in which way."""

    size: int
    way: str

    def __str__(self) -> str:
        return f"{self.way}, {self.size} bytes"


class Slice(NamedTuple):
    """What one turn of one rival showed, all for one text."""

    sender: Mapping[Work, Moment]  # how long it took, and of its processor
    receiver_s: float  # processor time, over all work


WORK = [Work(size, way) for size in SIZES for way in WAYS]
Send = Callable[[int, int, int], None]  # so many texts, of which size, with how many under way


def count_of(work: Work, texts: int) -> int:
    return texts if work.way == "stream" else max(1, texts // ROUND_TRIP_SHARE)


def total(texts: int) -> int:
    """Return how many texts a slice sends in all."""
    return sum(WARM_UP + count_of(work, texts) for work in WORK)


# The lean rivals ----------------------------------------------------------------------------------

CurveKeys = tuple[bytes, bytes]  # public and secret, as ZeroMQ writes them


def lean_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    ours: CurveKeys | None,
    theirs: CurveKeys | None,
) -> zmq.Socket[bytes]:
    """Return a socket; a PULL is the server in CURVE, a PUSH knows the public key of its server."""
    sock = context.socket(kind)
    if ours and theirs:
        sock.curve_publickey, sock.curve_secretkey = ours
        if kind == zmq.PULL:
            sock.curve_server = True
        else:
            sock.curve_serverkey = theirs[0]
    return sock


@contextmanager
def lean(
    pipe: Connection, keys: Sequence[CurveKeys | None]
) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Yield an inbox and an outbox, connected to those of the process at the pipe's other end."""
    with (
        zmq.Context() as context,
        lean_socket(context, zmq.PULL, *keys) as inbox,
        lean_socket(context, zmq.PUSH, *keys) as outbox,
    ):
        port = inbox.bind_to_random_port(f"tcp://{HOST}")
        pipe.send(port)
        outbox.connect(f"tcp://{HOST}:{pipe.recv()}")
        yield inbox, outbox


def receive_lean(pipe: Connection, rival: str, folder: Path, texts: int) -> None:
    """In the receiving process: a receipt for each text, then the processor time."""
    keys = pipe.recv()
    with lean(pipe, keys) as (inbox, outbox):
        recv = inbox.recv
        send = outbox.send
        pack = NUMBER.pack
        began_s = time.process_time()
        for number in range(total(texts)):
            recv()
            send(pack(number))
        pipe.send(time.process_time() - began_s)
        pipe.recv()


def send_lean(pipe: Connection, rival: str, folder: Path, texts: int) -> None:
    keys = pipe.recv()
    with lean(pipe, keys) as (inbox, outbox):

        def send(count: int, size: int, window: int) -> None:
            sent = 0
            text = bytes(size)
            for received in range(count):
                while sent < count and sent - received < window:
                    outbox.send(text)
                    sent += 1
                inbox.recv()

        measure(pipe, texts, send)


# Ours ---------------------------------------------------------------------------------------------


class Sender:
    """A Node, and a thread that says the texts, at most so many ahead of the receipts."""

    def __init__(self) -> None:
        self.node: Node
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

    def __call__(self, count: int, size: int, window: int) -> None:
        say = self.node.say
        text = "x" * size
        for number in range(count):
            if number >= window:
                self._receipts.get(timeout=LIMIT_S)
            say(text)
        for _ in range(min(count, window)):
            self._receipts.get(timeout=LIMIT_S)


def our_node(
    pipe: Connection, folder: Path, name: str, peer: str, tell: Callable[[Event], object]
) -> Node:
    """Return our node; both processes learn beforehand where the other listens."""
    identity, _ = load_identity(folder / name, input)
    pinned, _ = load_identity(folder / peer, input)
    ports: dict[str, int] = pipe.recv()
    return Node(
        identity, Trust(peer, pinned.fingerprint), (HOST, ports[peer]), HOST, ports[name], tell=tell
    )


def receive_ours(pipe: Connection, rival: str, folder: Path, texts: int) -> None:
    done = threading.Event()
    left = [total(texts)]

    def tell(event: Event) -> None:
        if event.what == "text":
            left[0] -= 1
            if not left[0]:
                done.set()

    with our_node(pipe, folder, "bob", "alice", tell) as node:
        began_s = time.process_time()
        while not done.wait(1.0):
            node.check()
        pipe.send(time.process_time() - began_s)
        pipe.recv()


def send_ours(pipe: Connection, rival: str, folder: Path, texts: int) -> None:
    sender = Sender()
    with our_node(pipe, folder, "alice", "bob", sender.tell) as sender.node:
        sender.wait()
        measure(pipe, texts, sender)


# One slice, and all of them -----------------------------------------------------------------------


def measure(pipe: Connection, texts: int, send: Send) -> None:
    """In the sending process: do all the work, and tell of each the seconds a text."""
    took: dict[Work, Moment] = {}
    for work in WORK:
        count = count_of(work, texts)
        window = WAYS[work.way]
        send(WARM_UP, work.size, window)
        began = now()
        send(count, work.size, window)
        took[work] = Moment(*(seconds / count for seconds in since(began)))
    pipe.send(took)
    pipe.recv()


def run_slice(rival: str, folder: Path, texts: int) -> Slice:
    """Have `rival` do all the work, between two fresh processes. Raises Failed."""
    take, give = (receive_ours, send_ours) if rival == "ours" else (receive_lean, send_lean)
    with (
        process(take, rival, folder, texts) as receiver,
        process(give, rival, folder, texts) as sender,
    ):
        if rival == "ours":
            told = dict(zip(("alice", "bob"), free_ports()))
            receiver.send(told)
            sender.send(told)
        else:
            introduce(receiver, sender, is_secure=rival == "curve")
        sent: Mapping[Work, Moment] = hear(sender)
        receiver_s = hear(receiver)
        sender.send("stop")
        receiver.send("stop")
    return Slice(sent, receiver_s / total(texts))


def introduce(receiver: Connection, sender: Connection, *, is_secure: bool) -> None:
    """Tell two lean processes their keys, and where the other listens."""
    one, other = (zmq.curve_keypair(), zmq.curve_keypair()) if is_secure else (None, None)
    receiver.send((one, other))
    sender.send((other, one))
    at_receiver = hear(receiver)
    at_sender = hear(sender)
    receiver.send(at_sender)
    sender.send(at_receiver)


def free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def run(texts: int, turn_count: int) -> dict[str, list[Slice]]:
    """Return the slices of every rival, in the order of turns. Raises Failed."""
    with tempfile.TemporaryDirectory() as name:
        for who in ("alice", "bob"):
            load_identity(Path(name) / who, input)
        return told_turns(
            NAMES, turn_count, lambda rival: run_slice(rival, Path(name), texts), rates_of
        )


def rates_of(seen: Slice) -> str:
    return ", ".join(f"{1 / seen.sender[work].wall_s:,.0f}" for work in WORK) + " texts/s"


# What it tells ------------------------------------------------------------------------------------


def of(ours: Sequence[Slice], theirs: Sequence[Slice], work: Work) -> Spread:
    """Return what share of their speed is ours."""
    return ratio(
        [each.sender[work].wall_s for each in theirs], [each.sender[work].wall_s for each in ours]
    )


def table(work: Work, texts: int, seen: Mapping[str, Sequence[Slice]]) -> str:
    """Return the table and the bars of one kind of work, in ASCII of at most 79 columns."""
    title = f"{work.way}: {count_of(work, texts):,} texts of {work.size:,} bytes"
    lines = [
        title,
        "-" * len(title),
        "                texts/s   us a text   processor us   ours, of its speed",
        "                                        of sender     median (quartiles)",
    ]
    rates = {
        rival: 1 / median(each.sender[work].wall_s for each in slices)
        for rival, slices in seen.items()
    }
    for rival, slices in seen.items():
        cost_s = median(each.sender[work].processor_s for each in slices)
        share = "" if rival == "ours" else of(seen["ours"], slices, work)
        lines.append(
            f"{NAMES[rival]:13} {rates[rival]:9,.0f}   {1e6 / rates[rival]:9.1f}   "
            f"{1e6 * cost_s:12.1f}   {share}".rstrip()
        )
    drawn = bars({NAMES[rival]: rate for rival, rate in rates.items()}, 13)
    return "\n".join([*lines, "", *drawn, ""])


def numbers(texts: int, seen: Mapping[str, Sequence[Slice]]) -> Mapping[str, object]:
    """Return all that was found, for a file."""
    slices = {
        rival: [
            {
                "sender": {str(work): took._asdict() for work, took in each.sender.items()},
                "receiver_s": each.receiver_s,
            }
            for each in given
        ]
        for rival, given in seen.items()
    }
    ours_of = {
        rival: {str(work): of(seen["ours"], given, work) for work in WORK}
        for rival, given in seen.items()
    }
    return {"zeromq": zmq.zmq_version(), "texts": texts, "slices": slices, "ours_of": ours_of}


@measurement
def main() -> int:
    options = counts(
        "Sends texts over ours and over bare ZeroMQ, and compares.",
        {"--texts": (TEXTS, "of each size in a stream"), "--turns": (TURNS, "of all rivals")},
    )
    seen = run(options.texts, options.turns)
    print(f"Texts and their receipts, {options.turns} times each\n")
    for work in WORK:
        print(table(work, options.texts, seen))
    write_numbers(options, numbers(options.texts, seen))
    return 0


if __name__ == "__main__":
    run_program(main)
