"""The benchmark of secure_chat: messages beside TLS, logins beside argon2, clients that are held.

    python -m bench.chat [--messages N] [--logins N] [--clients N] [--turns N] [--json FILE]

*Messages*: Alice says texts of 100 bytes, the server orders them, Bob and Alice hear them; at most
20 have not come back. The clock runs from the first text to the last that Alice has heard. Each is
signed by Alice and verified by all three, each place in the order by the server, and all three have
their lines on the disk (fsync) before they go on. In turns with it, the same over TLS (relay.py).

*Logins*: whole sessions, from the connection to `welcome` and the second keys; beside them argon2
alone, with the same parameters, in as many threads. *Clients*: how many one server holds in a room,
what they cost it, and how long a text takes to reach all of them.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from argon2 import PasswordHasher

from bench.compare import Took, compare, counts, write_numbers
from bench.measure import LIMIT_S, Moment, hear, measurement, now, process, since
from bench.members import (
    PASSWORD,
    PEOPLE,
    ask,
    certified,
    certify,
    enroll,
    our_client,
    party,
    serve_ours,
)
from bench.process import Usage, raise_descriptor_limit
from bench.relay import Member, serve_lean
from companions.asymmetric import new_identity
from companions.secure_chat.accounts import LANES, MEMORY_KIB, PASSES
from companions.secure_chat.client import Client
from companions.secure_chat.rooms import LOBBY, MAX_MEMBERS, Said
from program import run_program

NAMES = {"tls": "signed, over TLS", "ours": "ours"}
MESSAGES = 400
LOGINS = 40
TURNS = 5
TEXT = "x" * 100
WINDOW = 20  # messages that have not come back
WARM_UP = 20  # messages

# Messages -----------------------------------------------------------------------------------------


class Voice(NamedTuple):
    """A member of the lobby, of either rival."""

    say: Callable[[str], object]
    hear: Callable[[], object]  # waits for the next text


@contextlib.contextmanager
def voice(rival: str, folder: Path, name: str, address: tuple[str, int]) -> Iterator[Voice]:
    if rival == "tls":
        lean = Member(folder, name, address, LOBBY, PEOPLE)
        yield Voice(lean.say, lean.hear)
        return
    with our_client(folder, party(folder, name), address) as client:
        client.join()
        yield Voice(client.say, lambda: hear_said(client))
        client.settle()


def hear_said(client: Client) -> None:
    while not isinstance(client.hear(LIMIT_S), Said):
        pass


def listen(
    pipe: Connection, rival: str, folder: Path, address: tuple[str, int], count: int
) -> None:
    """In Bob's process: hear all that Alice says."""
    with voice(rival, folder, "bob", address) as bob:
        pipe.send("here")
        for _ in range(WARM_UP + count):
            bob.hear()
        pipe.send("heard")
        pipe.recv()


def speak(pipe: Connection, rival: str, folder: Path, address: tuple[str, int], count: int) -> None:
    """In Alice's process: say all of it."""
    with voice(rival, folder, "alice", address) as alice:
        say(alice, WARM_UP)
        pipe.send("warm")
        pipe.recv()
        began = now()
        say(alice, count)
        pipe.send(since(began))
        pipe.recv()


def say(alice: Voice, count: int) -> None:
    """Say so many texts, and hear all of them."""
    for number in range(count):
        if number >= WINDOW:
            alice.hear()
        alice.say(TEXT)
    for _ in range(min(count, WINDOW)):
        alice.hear()


def run_slice(rival: str, folder: Path, count: int) -> Took:
    """Have a rival carry so many messages, between three fresh processes. Raises Failed."""
    with process(serve_lean if rival == "tls" else serve_ours, folder) as server:
        address = hear(server)
        with process(listen, rival, folder, address, count) as bob:
            hear(bob)
            with process(speak, rival, folder, address, count) as alice:
                hear(alice)
                before_s, _ = ask(server)
                alice.send("go")
                took: Moment = hear(alice)
                server_s = ask(server)[0] - before_s
                hear(bob)
                alice.send("stop")
                bob.send("stop")
        server.send(None)
    processor_s = {"server": server_s / count, "sender": took.processor_s / count}
    return Took(took.wall_s / count, processor_s)


# Logins -------------------------------------------------------------------------------------------


def rate(count: int, once: Callable[[str], object]) -> float:
    """Return how often a second two threads do something, each for one of two people."""
    each = (count + 1) // 2

    def again(name: str) -> None:
        for _ in range(each):
            once(name)

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(again, PEOPLE))
    return 2 * each / (time.perf_counter() - began)


def logins(folder: Path, count: int) -> float:
    """Return logins a second. Raises Failed."""
    own = {name: party(folder, name) for name in PEOPLE}
    with process(serve_ours, folder) as server:
        address = hear(server)

        def log_in(name: str) -> None:
            with our_client(folder, own[name], address):
                pass

        found = rate(count, log_in)
        server.send(None)
    return found


def floor(count: int) -> float:
    """Return how often a second argon2 alone answers."""
    hasher = PasswordHasher(PASSES, MEMORY_KIB, LANES)
    stored = hasher.hash(PASSWORD)
    return rate(count, lambda _: hasher.verify(stored, PASSWORD))


# Clients that are held ----------------------------------------------------------------------------


class Held(NamedTuple):
    """A room: the server with one client, with all, and how long a text took to reach them."""

    clients: int
    before: Usage
    after: Usage
    spread_s: float


def held(folder: Path, count: int) -> Held:
    """Fill a room with so many clients, and let a text reach them all. Raises Failed."""
    key = new_identity()  # one for all: a key takes long to make
    people = [certified(folder, f"client{number}", key) for number in range(count)]
    enroll(folder, people)
    with process(serve_ours, folder) as server:
        address = hear(server)
        usage: list[Usage] = []
        with contextlib.ExitStack() as stack:
            clients: list[Client] = []
            for who in people:
                clients.append(stack.enter_context(our_client(folder, who, address)))
                clients[-1].join()
                usage.append(ask(server)[1])
            for client in clients:
                while len(client.seat.room.members) < count:
                    client.hear()
            began = time.perf_counter()
            clients[0].say(TEXT)
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(hear_said, clients))
            spread_s = time.perf_counter() - began
        server.send(None)
    return Held(count, usage[0], usage[-1], spread_s)


# What it tells ------------------------------------------------------------------------------------


def sentences(rate: float, most: float, room: Held) -> list[str]:
    """Return what was found of logins and clients."""
    each_kb = (room.after.resident_kb - room.before.resident_kb) / max(1, room.clients - 1)
    return [
        f"logins: {rate:.1f}/s, {rate / most:.2f} of argon2 alone ({most:.1f}/s)",
        f"clients: {room.clients} in a room; server {room.after}",
        f"         {each_kb:,.0f} kB for each; a text reached all in {room.spread_s:.2f} s",
    ]


@measurement
def main() -> int:
    options = counts(
        "Measures messages, logins and clients of secure_chat.",
        {
            "--messages": (MESSAGES, "of a slice"),
            "--logins": (LOGINS, "one after another"),
            "--clients": (MAX_MEMBERS, "in a room"),
            "--turns": (TURNS, "of all rivals"),
        },
    )
    count = options.messages
    title = f"{count:,} signed messages of {len(TEXT)} bytes, {options.turns} times each"
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certify(folder)
        found = compare(
            title, "messages", NAMES, options.turns, lambda one: run_slice(one, folder, count)
        )
        logged_in = logins(folder, options.logins)
        most = floor(options.logins)
        room = held(folder, options.clients)
    print(*sentences(logged_in, most, room), sep="\n")
    found = {
        "openssl": ssl.OPENSSL_VERSION,
        "messages": count,
        **found,
        "logins_per_s": logged_in,
        "argon2_per_s": most,
        "held": room,
    }
    write_numbers(options, found)
    return 0


if __name__ == "__main__":
    run_program(main)
