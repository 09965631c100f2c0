"""The benchmark: texts and their receipts between two processes, ours beside bare ZeroMQ and CURVE.

    python -m companions.peer_messaging.bench [--texts N] [--turns N] [--profile] [--json FILE]

All do the same work over loopback: a process sends texts, another takes each and sends a receipt
with its number back, over PUSH and PULL sockets. *Stream*: at most 100 texts have no receipt;
the clock runs from the first text to the last receipt. *Round trip*: each text waits for the
receipt of the one before. Turn by turn every rival does all of it once, in fresh processes, so
that what else the machine does meets all alike; a ratio compares two of the same turn.

- plain: as lean as Python allows; one thread, blocking sockets, no deadlines, no checks.
- curve: the same with CURVE, ZeroMQ's own secure channel (X25519, XSalsa20, Poly1305 of libsodium,
  in C and in the background); it has sequence numbers, but no timestamps and no trust.
- ours: two of `Node` as they are: handshake before the clock runs, then AES-256-GCM, numbers,
  timestamps, the table, the time limits, and a thread beside the one that sends.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import queue
import socket
import sys
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

from bench.report import BAR, spread
from bench.rivals import LIMIT_S
from bench.slices import Failed, hear, process
from companions.peer_messaging.identity import Trust, load_identity
from companions.peer_messaging.node import Node
from companions.peer_messaging.peer import Event, Peer
from companions.peer_messaging.protocol import NUMBER
from endpoint import HOST
from program import Parser, positive, run_program, write_text

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


class Slice(NamedTuple):
    """What one turn of one rival showed: seconds a text, and of the processor at both ends."""

    wall_s: Mapping[Work, float]
    sender_s: Mapping[Work, float]
    receiver_s: float  # over all of it


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
    wall_s: dict[Work, float] = {}
    processor_s: dict[Work, float] = {}
    for work in WORK:
        count = count_of(work, texts)
        window = WAYS[work.way]
        send(WARM_UP, work.size, window)
        began_s = time.perf_counter(), time.process_time()
        send(count, work.size, window)
        wall_s[work] = (time.perf_counter() - began_s[0]) / count
        processor_s[work] = (time.process_time() - began_s[1]) / count
    pipe.send((wall_s, processor_s))
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
        wall_s, sender_s = hear(sender)
        receiver_s = hear(receiver)
        sender.send("stop")
        receiver.send("stop")
    return Slice(wall_s, sender_s, receiver_s / total(texts))


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


def run(texts: int, turns: int) -> dict[str, list[Slice]]:
    """Return the slices of every rival, in the order of turns. Raises Failed."""
    seen: dict[str, list[Slice]] = {rival: [] for rival in NAMES}
    with tempfile.TemporaryDirectory() as name:
        for who in ("alice", "bob"):
            load_identity(Path(name) / who, input)
        for turn in range(turns):
            first = turn % len(NAMES)
            for rival in [*NAMES][first:] + [*NAMES][:first]:  # who is first changes
                seen[rival].append(run_slice(rival, Path(name), texts))
                wall_s = seen[rival][-1].wall_s
                print(
                    f"turn {turn + 1} of {turns}: {NAMES[rival]}, "
                    + ", ".join(f"{1 / wall_s[work]:,.0f}" for work in WORK)
                    + " texts/s",
                    file=sys.stderr,
                    flush=True,
                )
    return seen


# What it tells ------------------------------------------------------------------------------------


def of(ours: Sequence[Slice], theirs: Sequence[Slice], work: Work) -> tuple[float, float, float]:
    """Return what share of their speed is ours: median over the turns, and both quartiles."""
    return spread([their.wall_s[work] / our.wall_s[work] for our, their in zip(ours, theirs)])


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
        rival: 1 / median(one.wall_s[work] for one in slices) for rival, slices in seen.items()
    }
    for rival, slices in seen.items():
        cost_s = median(one.sender_s[work] for one in slices)
        ratio = "{:.2f} ({:.2f}-{:.2f})".format(*of(seen["ours"], slices, work))
        lines.append(
            f"{NAMES[rival]:13} {rates[rival]:9,.0f}   {1e6 / rates[rival]:9.1f}   "
            f"{1e6 * cost_s:12.1f}   {'' if rival == 'ours' else ratio}".rstrip()
        )
    best = max(rates.values())
    bars = [
        f"{NAMES[rival]:13} |{'#' * round(BAR * rate / best):{BAR}}|"
        for rival, rate in rates.items()
    ]
    return "\n".join([*lines, "", *bars, ""])


def as_json(texts: int, seen: Mapping[str, Sequence[Slice]]) -> str:
    def named(values: Mapping[Work, float]) -> dict[str, float]:
        return {f"{work.way}, {work.size} bytes": value for work, value in values.items()}

    return (
        json.dumps(
            {
                "python": platform.python_version(),
                "zeromq": zmq.zmq_version(),
                "processors": os.cpu_count(),
                "texts": texts,
                "slices": {
                    rival: [
                        {
                            "wall_s": named(one.wall_s),
                            "sender_s": named(one.sender_s),
                            "receiver_s": one.receiver_s,
                        }
                        for one in slices
                    ]
                    for rival, slices in seen.items()
                },
                "ours_of": {
                    rival: {
                        f"{work.way}, {work.size} bytes": of(seen["ours"], slices, work)
                        for work in WORK
                    }
                    for rival, slices in seen.items()
                },
            },
            indent=1,
        )
        + "\n"
    )


# Where the time goes ------------------------------------------------------------------------------


def profile(texts: int) -> None:
    """Print what a text and its receipt cost two peers without sockets, function by function."""
    with tempfile.TemporaryDirectory() as name:
        parties = [load_identity(Path(name) / who, input)[0] for who in ("alice", "bob")]
    alice, bob = (Peer(own, Trust("peer")) for own in parties)
    there = bob.receive(alice.tick()[0])
    while there:  # REPLY, CONFIRM, WELCOME
        there, alice, bob = alice.receive(there[0]), bob, alice
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(texts):
        bob.receive(alice.receive(bob.say("x" * SIZES[0])[0])[0])
        alice.tick()
        bob.tick()
    profiler.disable()
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(25)


def parse() -> argparse.Namespace:
    parser = Parser("Sends texts over ours and over bare ZeroMQ, and compares.")
    parser.add_argument(
        "--texts",
        type=positive,
        default=TEXTS,
        metavar="N",
        help=f"of each size in a stream; default {TEXTS}",
    )
    parser.add_argument("--turns", type=positive, default=TURNS, help=f"default {TURNS}")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="show instead where the time goes in ours, without sockets",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    return parser.options()


def main() -> int:
    options = parse()
    if options.profile:
        profile(options.texts)
        return 0
    try:
        seen = run(options.texts, options.turns)
    except Failed as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(f"Texts and their receipts, {options.turns} times each\n")
    for work in WORK:
        print(table(work, options.texts, seen))
    if options.json:
        write_text(options.json, as_json(options.texts, seen))
    return 0


if __name__ == "__main__":
    run_program(main)
