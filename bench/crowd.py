"""A class in many rooms of secure_chat: what is lost, what comes twice, and how long it takes.

    python -m bench.crowd [--clients N] [--rooms N] [--seconds N] [--rate N] [--json FILE]

All clients are connected at once, and say texts in turn, so many a second in all, whatever has come
back. Every text must be heard once by everybody in its room, its sender included, and by nobody
else. The clock of a text runs until one of them has heard it, verified it and put it on the disk.
In turns (measure.py):

- tls: the same signed messages over TLS (relay.py).
- ours: server and clients as they are.
- attacked: the same, while others log in with wrong passwords and fresh certificates as fast as
  they can, strangers connect and say nothing, and in each room one member never reads.

The server has a process of its own, the clients are threads of another, the flood is in a third.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

from bench.compare import counts, told_turns, write_numbers
from bench.measure import LIMIT_S, Failed, hear, measurement, process, ratio
from bench.members import ask, certified, certify, enroll, our_client, party, serve_ours
from bench.process import Usage, raise_descriptor_limit
from bench.relay import Member, serve_lean
from companions.asymmetric import new_identity
from companions.secure_chat.certs import load_trust
from companions.secure_chat.client import Client, Joined, NotLetIn
from companions.secure_chat.evidence import Kept
from companions.secure_chat.rooms import Said
from program import NoConnection, run_program
from protocol_fsm import LocalError, ProtocolError

NAMES = {"tls": "signed, over TLS", "ours": "ours", "attacked": "ours, attacked"}
AT_ONCE = 4  # clients that log in: all at once would wait for the same two processors
FLOODERS = 2  # threads that log in with wrong passwords
STRANGERS = 80  # connections that say nothing; more than the server lets wait


class Plan(NamedTuple):
    """How many clients are in how many rooms, and what they say."""

    clients: int
    rooms: int
    seconds: float
    rate: float  # texts a second, of all of them together

    def members(self) -> dict[str, list[str]]:
        """Return the names of the members of each room."""
        found: dict[str, list[str]] = {f"room-{number}": [] for number in range(self.rooms)}
        for number in range(self.clients):
            found[f"room-{number % self.rooms}"].append(f"client{number}")
        return found


class Found(NamedTuple):
    """What a crowd has heard, and the seconds that half and 99 % of it took at most."""

    said: int
    heard: int
    lost: int
    doubled: int
    strange: int  # heard in another room, or never said
    p50_s: float
    p99_s: float


class Tally:
    """What was said, and by whom it was heard."""

    def __init__(self, members: Mapping[str, Sequence[str]]) -> None:
        self._members = members
        self._said: dict[str, tuple[str, float]] = {}  # room and time
        self._heard = Counter[tuple[str, str]]()
        self._latencies_s: list[float] = []
        self._changed = threading.Condition()

    def say(self, room: str, text: str) -> None:
        """Start the clock of a text."""
        with self._changed:
            self._said[text] = (room, time.perf_counter())

    def hear(self, name: str, text: str | None) -> None:
        """Note that somebody has heard a text; None: it was not said to them."""
        now_s = time.perf_counter()
        with self._changed:
            if text in self._said:
                self._latencies_s.append(now_s - self._said[text][1])
            self._heard[name, str(text)] += 1
            self._changed.notify_all()

    def found(self, within_s: float = 0.0) -> Found:
        """Return what has come, as soon as all has, or at the end of this time."""
        with self._changed:
            expected = {
                (name, text)
                for text, (room, _) in self._said.items()
                for name in self._members[room]
            }
            self._changed.wait_for(lambda: expected <= self._heard.keys(), within_s)
            cuts = quantiles([*self._latencies_s, *self._latencies_s], n=100, method="inclusive")
            return Found(
                len(self._said),
                self._heard.total(),
                len(expected - self._heard.keys()),
                sum(count - 1 for count in self._heard.values()),
                len(self._heard.keys() - expected),
                cuts[49],
                cuts[98],
            )


class Crowd:
    """Members that are all there: each can be told to say something, until it is over."""

    def __init__(self, folder: Path, address: tuple[str, int], plan: Plan) -> None:
        self.folder = folder  # of keys and certificates
        self.address = address  # of the server
        self.members = plan.members()  # by room
        self.tally = Tally(self.members)
        self.speakers: dict[str, tuple[str, Callable[[str], object]]] = {}  # with their rooms
        self.over = threading.Event()
        self.key = new_identity()  # one for all: a key takes long to make
        self.gate = threading.Semaphore(AT_ONCE)
        self._changed = threading.Condition()

    def come(self, name: str, room: str, say: Callable[[str], object]) -> None:
        with self._changed:
            self.speakers[name] = (room, say)
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Wait until so many are there, and know each other. Raises Failed."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.speakers) == count, 3 * LIMIT_S):
                raise Failed(f"{len(self.speakers)} of {count} clients came")

    def talk(self, plan: Plan) -> Found:
        """Let them speak in turn, at the plan's rate, and return what was heard."""
        began = time.perf_counter()
        speakers = [*self.speakers.items()]
        for number in range(round(plan.seconds * plan.rate)):
            time.sleep(max(0.0, began + number / plan.rate - time.perf_counter()))
            name, (room, say) = speakers[number % len(speakers)]
            text = f"{name} says {number} " + "x" * 80
            self.tally.say(room, text)
            say(text)
        return self.tally.found(LIMIT_S)


def run_crowd(
    pipe: Connection, folder: Path, address: tuple[str, int], plan: Plan, rival: str
) -> None:
    """In the clients' process: come, tell, talk when told to, tell what was found, and go."""
    raise_descriptor_limit()
    crowd = Crowd(folder, address, plan)
    threads = begin_all(crowd, rival)
    crowd.wait(plan.clients)
    pipe.send("all are here")
    pipe.recv()
    pipe.send(crowd.talk(plan))
    pipe.recv()
    crowd.over.set()
    for thread in threads:
        thread.join(LIMIT_S)
    pipe.send(sum(thread.is_alive() for thread in threads))


def begin(target: Callable[..., object], *given: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=given, daemon=True)
    thread.start()
    return thread


def begin_all(crowd: Crowd, rival: str) -> list[threading.Thread]:
    """Begin a thread for each client, and return those that end by themselves."""
    threads = []
    for room, names in crowd.members.items():
        size = len(names) + (rival == "attacked")
        for name in names:
            if rival == "tls":
                begin(live_lean, crowd, name, room)
            else:
                threads.append(begin(live_ours, crowd, name, room, size))
        if rival == "attacked":
            begin(idle, crowd, room)
    return threads


@contextlib.contextmanager
def member(crowd: Crowd, name: str, room: str) -> Iterator[tuple[Client, int]]:
    """Yield a client in a room, and how many are there."""
    with contextlib.ExitStack() as stack:
        with crowd.gate:
            own = certified(crowd.folder, name, crowd.key)
            client = stack.enter_context(our_client(crowd.folder, own, crowd.address))
            count = len(client.join(room))
        yield client, count


def live_ours(crowd: Crowd, name: str, room: str, size: int) -> None:
    """Live the life of a member: hear all, say what it is told to, and leave with a receipt."""
    with member(crowd, name, room) as (client, count):

        def say(text: str) -> None:
            client.channel.post(partial(client.say, text))

        def leave() -> None:
            crowd.over.wait()
            client.channel.post(client.leave)

        if count == size:
            crowd.come(name, room, say)
        begin(leave)
        while not isinstance(event := client.hear(), Kept):
            if isinstance(event, Said):
                crowd.tally.hear(name, event.text)
            elif isinstance(event, Joined) and len(client.seat.room.members) == size:
                crowd.come(name, room, say)


def idle(crowd: Crowd, room: str) -> None:
    """Come into a room, and never read."""
    with member(crowd, f"idle-{room}", room) as (client, _):
        client.channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        crowd.over.wait()


def live_lean(crowd: Crowd, name: str, room: str) -> None:
    """Live the same life over TLS."""
    lean = Member(crowd.folder, name, crowd.address, room, crowd.members[room])
    crowd.come(name, room, lean.say)
    while True:  # until the process ends
        crowd.tally.hear(name, lean.hear())


# The flood ----------------------------------------------------------------------------------------


def flood(pipe: Connection, folder: Path, address: tuple[str, int]) -> None:
    """In a process of its own: log in, wrongly, as fast as it goes; tell how often, at the end."""
    raise_descriptor_limit()
    key = new_identity()
    tries = Counter[str]()
    begun = threading.Event()
    over = threading.Event()

    def guess() -> None:
        while not over.is_set():
            mallory = certified(folder, "mallory", key)  # a new certificate has five tries
            with contextlib.suppress(ProtocolError, LocalError, NoConnection):
                with Client(mallory, load_trust(folder), "localhost", folder, *address) as client:
                    while not over.is_set():
                        with contextlib.suppress(NotLetIn):
                            client.log_in("client0@example.org", "a wrong password")
                        tries["logins"] += 1
                        begun.set()

    def knock() -> None:
        with contextlib.ExitStack() as stack:
            socks: list[socket.socket] = []
            while not over.wait(0.05):
                with contextlib.suppress(OSError):
                    socks.append(stack.enter_context(socket.create_connection(address, 1.0)))
                    tries["strangers"] += 1
                if len(socks) > STRANGERS:
                    socks.pop(0).close()

    threads = [begin(deed) for deed in (*[guess] * FLOODERS, knock)]
    begun.wait(LIMIT_S)
    pipe.send("begun")
    pipe.recv()
    over.set()
    for thread in threads:
        thread.join(LIMIT_S)
    pipe.send(dict(tries))


@contextlib.contextmanager
def flooded(
    folder: Path, address: tuple[str, int], tries: dict[str, float], *, is_on: bool
) -> Iterator[None]:
    """Flood a server meanwhile, if asked to; `tries` gets what the flood did. Raises Failed."""
    if not is_on:
        yield
        return
    with process(flood, folder, address) as pipe:
        hear(pipe)
        yield
        began = time.perf_counter()
        with our_client(folder, party(folder, "bob"), address):
            tries["a login took, s"] = time.perf_counter() - began
        pipe.send("stop")
        tries.update(hear(pipe))


# One slice ----------------------------------------------------------------------------------------


class Slice(NamedTuple):
    """What one turn of a rival showed: of the crowd, of the server, and of the flood."""

    found: Found
    server_s: float  # of its processor
    usage: Usage
    flood: dict[str, float]


def run_slice(rival: str, folder: Path, plan: Plan) -> Slice:
    """Let a crowd talk over a rival. Raises Failed."""
    tries: dict[str, float] = {}
    with process(serve_lean if rival == "tls" else serve_ours, folder) as server:
        address = hear(server)
        with process(run_crowd, folder, address, plan, rival) as crowd:
            hear(crowd)
            with flooded(folder, address, tries, is_on=rival == "attacked"):
                before_s, _ = ask(server)
                crowd.send("go")
                found: Found = hear(crowd)
                after_s, usage = ask(server)
            crowd.send("over")
            if stuck := hear(crowd):
                raise Failed(f"{stuck} clients did not leave")
        server.send(None)
    return Slice(found, after_s - before_s, usage, tries)


# What it tells ------------------------------------------------------------------------------------


def table(seen: Mapping[str, Sequence[Slice]]) -> str:
    """Return the table, in ASCII of at most 79 columns."""
    lines = [
        "                   heard   lost  twice     p50, of that      p99, of that",
        "                            or elsewhere   over TLS          over TLS",
    ]
    for rival, slices in seen.items():
        heard = sum(one.found.heard for one in slices)
        lost = sum(one.found.lost for one in slices)
        wrong = sum(one.found.doubled + one.found.strange for one in slices)
        p50 = ratio([one.found.p50_s for one in slices], [one.found.p50_s for one in seen["tls"]])
        p99 = ratio([one.found.p99_s for one in slices], [one.found.p99_s for one in seen["tls"]])
        line = f"{NAMES[rival]:17} {heard:6,} {lost:6,} {wrong:6,}"
        lines.append(f"{line}     {p50!s:17} {p99}")
    return "\n".join(lines)


def sentences(seen: Mapping[str, Sequence[Slice]]) -> list[str]:
    """Return what else was found, each in a line."""
    lines = ["the server's processor time, and what it held in the end:"]
    for rival, slices in seen.items():
        share = sum(one.server_s for one in slices) / len(slices)
        lines.append(f"{NAMES[rival]:17} {share:6.1f} s, {slices[-1].usage}")
    for one in seen["attacked"]:
        words = ", ".join(f"{value:,.4g} {name}" for name, value in sorted(one.flood.items()))
        lines += textwrap.wrap(f"flood: {words}", 79)
    return lines


def is_whole(slices: Sequence[Slice]) -> bool:
    """Return whether everything was heard, once, and in its room."""
    return not any(one.found.lost or one.found.doubled or one.found.strange for one in slices)


@measurement
def main() -> int:
    options = counts(
        "Many clients in many rooms of secure_chat: counted, timed, and attacked.",
        {
            "--clients": (100, "in all"),
            "--rooms": (10, "for them"),
            "--seconds": (30, "of a slice"),
            "--rate": (10, "texts a second"),
            "--turns": (3, "of all rivals"),
        },
    )
    plan = Plan(options.clients, options.rooms, options.seconds, options.rate)
    names = [f"client{number}" for number in range(plan.clients)]
    names += [f"idle-{room}" for room in plan.members()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certify(folder)
        key = new_identity()
        enroll(folder, [certified(folder, name, key) for name in names])
        seen = told_turns(
            NAMES,
            options.turns,
            lambda rival: run_slice(rival, folder, plan),
            lambda one: f"{one.found.heard} texts heard",
        )
    print(f"{plan.clients} clients in {plan.rooms} rooms, {plan.rate} texts/s, {plan.seconds} s")
    print("", table(seen), "", *sentences(seen), sep="\n")
    numbers = {rival: [one._asdict() for one in each] for rival, each in seen.items()}
    write_numbers(options, {"openssl": ssl.OPENSSL_VERSION, **plan._asdict(), "slices": numbers})
    if not all(map(is_whole, seen.values())):
        print("some texts were lost, or heard twice, or elsewhere", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_program(main)
