"""The benchmark of secure_chat: messages beside TLS, logins beside argon2, clients that are held.

    python -m bench.chat [--messages N] [--logins N] [--clients N] [--turns N] [--json FILE]

*Messages*: Alice says texts of 100 bytes, the server orders them, Bob and Alice hear them; at most
20 have not come back. The clock runs from the first text to the last that Alice has heard. Each is
signed by Alice and verified by all three, each place in the order by the server, and all three have
their lines on the disk (fsync) before they go on. Beside it, in turns (measure.py):

- tls: the same signed messages, heads, transcripts and verifications, over Python's TLS 1.3, as
  lean as Python allows: no other check, no deadline, no state, no opening to encrypt again.

*Logins*: whole sessions, from the connection to `welcome` and the second keys; beside them argon2
alone, with the same parameters, in as many threads. *Clients*: how many one server holds in a room,
what they cost it, and how long a text takes to reach all of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import BinaryIO, NamedTuple, cast

from argon2 import PasswordHasher

from bench.certificate import write_certificate
from bench.flags import counts, write_numbers
from bench.measure import (
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
from bench.process import Usage, usage_of
from bench.rivals import HOST, tls_context
from companions.asymmetric import PrivateKey, new_identity
from companions.logs import start_log
from companions.secure_chat import authority, forms, gen_ca, gen_cert
from companions.secure_chat.accounts import LANES, MEMORY_KIB, PASSES, Accounts
from companions.secure_chat.certs import Credentials, load_authority, load_credentials, load_trust
from companions.secure_chat.client import Client
from companions.secure_chat.forms import NOTHING, OPENING_BYTES, Recipient
from companions.secure_chat.pae import is_signed, sign
from companions.secure_chat.pki import Role, now_ms, utc_now
from companions.secure_chat.protocol import Party
from companions.secure_chat.rooms import LOBBY, MAX_MEMBERS, Said
from companions.secure_chat.server import Server
from companions.secure_chat.storage import Database
from companions.secure_chat.transcript import Transcript
from program import run_program

NAMES = {"tls": "signed, over TLS", "ours": "ours"}
MESSAGES = 400
LOGINS = 40
TURNS = 5
TEXT = "x" * 100
WINDOW = 20  # messages that have not come back
WARM_UP = 20  # messages
PASSWORD = "correct horse"
START = bytes(range(32))  # of the lean room
SESSIONS = {"alice": b"A" * 32, "bob": b"B" * 32}  # of the lean rival


class Slice(NamedTuple):
    """What one turn showed, for one message: of the clock, and of the processors."""

    wall_s: float
    server_s: float
    sender_s: float


# Ours ---------------------------------------------------------------------------------------------


def party(certs: Path, name: str, role: Role) -> Party:
    own = load_credentials(certs, name)
    return our_party(certs, own, role)


def our_party(certs: Path, own: Credentials, role: Role) -> Party:
    identity = load_trust(certs).identify(own.pem, role, None, utc_now())
    return Party(identity, own.pem, own.key)


@contextlib.contextmanager
def our_client(folder: Path, own: Party, address: tuple[str, int]) -> Iterator[Client]:
    """Yield a client that has logged in, and registered before if it is new."""
    name = own.identity.name
    kept = folder / "kept" / name.partition("@")[0]
    client = Client(own, load_trust(folder), "localhost", kept, *address, timeout_s=120.0)
    with client:
        client.log_in(name, PASSWORD)
        yield client


def serve_ours(pipe: Connection, folder: Path) -> None:
    """In the server's process: tell the address, then processor time and usage when asked."""
    start_log(None, None)
    accounts = Accounts(Database(f"sqlite:///{folder / 'chat.db'}"))
    own = party(folder, "server", "server")
    with Server(own, load_trust(folder), accounts, folder / "kept", HOST, 0) as server:
        tell(pipe, server.address)


def tell(pipe: Connection, address: tuple[str, int]) -> None:
    pipe.send(address)
    while pipe.recv():
        pipe.send((time.process_time(), usage_of(os.getpid())))


def hear_ours(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    """In Bob's process: hear all that Alice says."""
    with our_client(folder, party(folder, "bob", "client"), address) as client:
        client.join()
        pipe.send("here")
        heard = 0
        while heard < WARM_UP + count:
            heard += isinstance(client.hear(120.0), Said)
        pipe.send("heard")
        pipe.recv()
        client.settle()


def say_ours(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    """In Alice's process: say all of it."""
    with our_client(folder, party(folder, "alice", "client"), address) as client:
        client.join()

        def say(messages: int) -> None:
            for _ in range(messages):
                client.say(TEXT)
                while client.seat.pending >= WINDOW:
                    client.hear(120.0)
            while client.seat.pending:
                client.hear(120.0)

        measure(pipe, count, say)
        client.settle()


def measure(pipe: Connection, count: int, say: Callable[[int], None]) -> None:
    say(WARM_UP)
    pipe.send("warm")
    pipe.recv()
    began = now()
    say(count)
    pipe.send(since(began))
    pipe.recv()


# The same over TLS --------------------------------------------------------------------------------


def write(stream: BinaryIO, *parts: bytes) -> None:
    for part in parts:
        stream.write(len(part).to_bytes(4, "big") + part)
    stream.flush()


def read(stream: BinaryIO, count: int) -> list[bytes]:
    return [stream.read(int.from_bytes(stream.read(4), "big")) for _ in range(count)]


def lean_stream(sock: socket.socket, context: ssl.SSLContext, *, is_server: bool) -> BinaryIO:
    name = None if is_server else HOST
    with context.wrap_socket(sock, server_side=is_server, server_hostname=name) as wrapped:
        return cast(BinaryIO, wrapped.makefile("rwb"))  # which keeps it open


def serve_tls(pipe: Connection, folder: Path) -> None:
    """In the server's process: order what Alice says, and relay it to both."""
    context = tls_context("tls13", folder, is_server=True)
    with socket.create_server((HOST, 0)) as listener, ThreadPoolExecutor(1) as pool:

        def relay() -> None:
            with lean_stream(listener.accept()[0], context, is_server=True) as bob:
                with lean_stream(listener.accept()[0], context, is_server=True) as alice:
                    relay_lean(folder, alice, bob)

        done = pool.submit(relay)
        tell(pipe, listener.getsockname())
        done.result()


def relay_lean(folder: Path, alice: BinaryIO, bob: BinaryIO) -> None:
    """Put what Alice says in order, until she is gone."""
    room = LeanRoom(folder, LOBBY)
    room.streams = [alice, bob]
    while room.relay(read(alice, 3)):
        pass
    room.lines.close()


class LeanRoom:
    """A room of the lean rival, in which all have Alice's key: verifies, orders, signs, keeps."""

    def __init__(self, folder: Path, name: str) -> None:
        self.streams: list[BinaryIO] = []  # of those who hear what is said
        self.lock = threading.Lock()  # for a server in which several speak
        self._name = name
        self._own = load_credentials(folder, "server")
        self._key = load_credentials(folder, "alice").key.public_key()
        self._index = 0
        self._head = START
        path = folder / "kept" / f"tls_{os.getpid()}_{name}.txt"
        self.lines = Transcript(path, self._own.fingerprint, START)

    def relay(self, said: Sequence[bytes]) -> bool:
        """Tell everybody what was said; return whether anything was."""
        signed, signature, opening = said
        if not signed:
            return False
        message = forms.parse_message(signed)
        if not is_signed(self._key, signed, signature) or not opens(message, opening):
            sys.exit("what came is not what was signed")
        self._head = forms.next_head(self._head, signed, signature)
        place = forms.Head(self._name, START, self._index, now_ms(), self._head).encode()
        self._index += 1
        entry = (signed, signature, place, sign(self._own.key, place))
        self.lines.add(*entry)
        for stream in self.streams:
            write(stream, *entry, opening)
        return True


def opens(message: forms.Message, opening: bytes) -> bool:
    return forms.opens(message.commitment, opening[:OPENING_BYTES], opening[OPENING_BYTES:])


class LeanMember:
    """One end of the lean rival, with Alice's key: signs, verifies, and keeps its lines."""

    def __init__(
        self,
        folder: Path,
        name: str,
        address: tuple[str, int],
        room: str = LOBBY,
        session: bytes = SESSIONS["alice"],
        others: Sequence[bytes] = (SESSIONS["bob"],),
    ) -> None:
        context = tls_context("tls13", folder, is_server=False)
        self.stream = lean_stream(socket.create_connection(address), context, is_server=False)
        self.own = load_credentials(folder, "alice")
        self.server = load_credentials(folder, "server")
        self.room = room
        self.session = session
        bob = load_credentials(folder, "bob").fingerprint
        self.others = tuple(Recipient(bob, one) for one in sorted(others))
        path = folder / "kept" / f"tls_{os.getpid()}_{name}.txt"
        self.lines = Transcript(path, self.server.fingerprint, START)
        self.head = START
        self.seqno = 0
        self.previous = NOTHING

    def __enter__(self) -> LeanMember:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()
        self.lines.close()

    def say(self, stream: BinaryIO, text: str = TEXT) -> None:
        opening = os.urandom(OPENING_BYTES) + text.encode()
        message = forms.Message(
            self.session,
            self.room,
            self.own.fingerprint,
            self.others,
            self.seqno,
            now_ms(),
            self.previous,
            self.head,
            forms.commitment(opening[:OPENING_BYTES], opening[OPENING_BYTES:]),
            os.urandom(16) + opening,
        )
        signed = message.encode()
        self.previous = forms.message_hash(signed)
        self.seqno += 1
        write(stream, signed, sign(self.own.key, signed), opening)

    def hear(self) -> str:
        signed, signature, head, head_signature, opening = read(self.stream, 5)
        message = forms.parse_message(signed)
        self.head = forms.next_head(self.head, signed, signature)
        is_good = (
            is_signed(self.own.key.public_key(), signed, signature)
            and is_signed(self.server.key.public_key(), head, head_signature)
            and forms.parse_head(head).head == self.head
            and opens(message, opening)
        )
        if not is_good:
            sys.exit("what came is not what was sent")
        self.lines.add(signed, signature, head, head_signature)
        return opening[OPENING_BYTES:].decode()


def hear_tls(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    with LeanMember(folder, "bob", address) as bob:
        pipe.send("here")
        for _ in range(WARM_UP + count):
            bob.hear()
        pipe.send("heard")
        pipe.recv()


def say_tls(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    with LeanMember(folder, "alice", address) as alice:

        def say(messages: int) -> None:
            for number in range(messages):
                alice.say(alice.stream)
                if number >= WINDOW - 1:
                    alice.hear()
            for _ in range(min(messages, WINDOW - 1)):
                alice.hear()

        measure(pipe, count, say)


# Messages -----------------------------------------------------------------------------------------

PROCESSES = {"ours": (serve_ours, hear_ours, say_ours), "tls": (serve_tls, hear_tls, say_tls)}


def run_slice(rival: str, folder: Path, count: int) -> Slice:
    """Have a rival carry so many messages, between three fresh processes. Raises Failed."""
    serve, listen, speak = PROCESSES[rival]
    with process(serve, folder) as server:
        address = hear(server)
        with process(listen, folder, address, count) as bob:
            hear(bob)
            with process(speak, folder, address, count) as alice:
                hear(alice)
                before_s, _ = ask(server)
                alice.send("go")
                took: Moment = hear(alice)
                server_s = ask(server)[0] - before_s
                hear(bob)
                alice.send("stop")
                bob.send("stop")
        server.send(None)
    return Slice(took.wall_s / count, server_s / count, took.processor_s / count)


def ask(server: Connection) -> tuple[float, Usage]:
    """Return processor time and usage of the server's process."""
    server.send("tell")
    found: tuple[float, Usage] = hear(server)
    return found


def certify(folder: Path) -> None:
    """Make an authority, a server, and accounts of Alice and Bob."""
    write_certificate(folder, HOST)
    gen_ca.create(folder)
    gen_cert.issue(folder, "server", "localhost", "server")
    for name in SESSIONS:
        gen_cert.issue(folder, "client", f"{name}@example.org", name)
    enroll(folder, [party(folder, name, "client") for name in SESSIONS])


def enroll(folder: Path, people: Iterable[Party]) -> None:
    """Make an account for everybody, under what stands before the @ of their address."""
    accounts = Accounts(Database(f"sqlite:///{folder / 'chat.db'}"))
    for who in people:
        name = who.identity.name
        accounts.register(who.identity, name, name.partition("@")[0], PASSWORD)
    accounts.database.close()


def messages(folder: Path, count: int, turn_count: int) -> dict[str, list[Slice]]:
    """Return the slices of both rivals, in the order of turns. Raises Failed."""
    return told_turns(
        NAMES,
        turn_count,
        lambda rival: run_slice(rival, folder, count),
        lambda seen: f"{1 / seen.wall_s:,.0f} messages/s",
    )


# Logins -------------------------------------------------------------------------------------------


def log_in(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    """In the clients' process: so many logins, from two threads, and how long they took."""
    own = {name: party(folder, name, "client") for name in SESSIONS}

    def one(name: str) -> None:
        for _ in range(count // 2):
            with our_client(folder, own[name], address):
                pass

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, SESSIONS))
    pipe.send(time.perf_counter() - began)


def logins(folder: Path, count: int) -> float:
    """Return logins a second. Raises Failed."""
    with process(serve_ours, folder) as server:
        with process(log_in, folder, hear(server), count) as clients:
            took_s: float = hear(clients)
        server.send(None)
    return count / took_s


def floor(count: int) -> float:
    """Return how often a second argon2 alone answers, in two threads."""
    hasher = PasswordHasher(PASSES, MEMORY_KIB, LANES)
    stored = hasher.hash(PASSWORD)
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: hasher.verify(stored, PASSWORD), range(count)))
    return count / (time.perf_counter() - began)


# Clients that are held ----------------------------------------------------------------------------


class Held(NamedTuple):
    """A room: the server with one client, with all, and how long a text took to reach them."""

    clients: int
    before: Usage
    after: Usage
    spread_s: float


def certified(folder: Path, name: str, key: PrivateKey) -> Party:
    """Return a client with a certificate of today."""
    own = load_authority(folder)
    address = f"{name}@example.org"
    made = authority.certificate(
        own.key, own.certificate, "client", address, key.public_key(), utc_now()
    )
    pem = authority.pem_of(made).decode("ascii")
    return our_party(folder, Credentials(pem, made, key), "client")


def fill(pipe: Connection, folder: Path, address: tuple[str, int], count: int) -> None:
    """In the clients' process: so many clients in one room, with a thread for each."""
    key = new_identity()  # one for all: a key takes long to make
    accounts = Accounts(Database(f"sqlite:///{folder / 'chat.db'}"))
    heard = threading.Semaphore(0)
    here = threading.Semaphore(0)
    first = threading.Event()

    def live(number: int) -> None:
        mine = certified(folder, f"client{number}", key)
        accounts.register(mine.identity, mine.identity.name, f"client{number}", PASSWORD)
        with our_client(folder, mine, address) as client:
            client.join()
            here.release()
            if number == 0:
                first.wait()
                while len(client.seat.room.members) < count:
                    client.hear()
                client.say(TEXT)
            while not isinstance(client.hear(), Said):
                pass
            heard.release()
            threading.Event().wait()  # until the process ends

    for number in range(count):
        threading.Thread(target=live, args=(number,), daemon=True).start()
        here.acquire()
        if number == 0:
            pipe.send("one is here")
            pipe.recv()
    pipe.send("all are here")
    pipe.recv()
    began = time.perf_counter()
    first.set()
    for _ in range(count):
        heard.acquire()
    pipe.send(time.perf_counter() - began)
    pipe.recv()


def held(folder: Path, count: int) -> Held:
    """Return what a room with so many clients cost. Raises Failed."""
    with process(serve_ours, folder) as server:
        address = hear(server)
        with process(fill, folder, address, count) as clients:
            hear(clients)
            before = ask(server)[1]
            clients.send("go")
            hear(clients)
            after = ask(server)[1]
            clients.send("go")
            spread_s: float = hear(clients)
            clients.send("stop")
        server.send(None)
    return Held(count, before, after, spread_s)


# What it tells ------------------------------------------------------------------------------------


def of(ours: Sequence[Slice], theirs: Sequence[Slice]) -> Spread:
    """Return what share of their speed is ours."""
    return ratio([each.wall_s for each in theirs], [each.wall_s for each in ours])


def table(count: int, seen: Mapping[str, Sequence[Slice]]) -> str:
    """Return the table and the bars, in ASCII of at most 79 columns."""
    rates = {rival: 1 / median(one.wall_s for one in each) for rival, each in seen.items()}
    lines = [
        f"{count:,} signed messages of {len(TEXT)} bytes, {len(seen['ours'])} times each",
        "",
        "                   messages/s   processor ms a message   ours, of its speed",
        "                                    server    sender     median (quartiles)",
    ]
    for rival, slices in seen.items():
        server_ms = 1e3 * median(each.server_s for each in slices)
        sender_ms = 1e3 * median(each.sender_s for each in slices)
        share = "" if rival == "ours" else of(seen["ours"], slices)
        lines.append(
            f"{NAMES[rival]:17} {rates[rival]:11,.0f} {server_ms:13.2f} {sender_ms:9.2f}"
            f"     {share}".rstrip()
        )
    return "\n".join([*lines, "", *bars({NAMES[rival]: rate for rival, rate in rates.items()}, 17)])


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certify(folder)
        seen = messages(folder, options.messages, options.turns)
        rate = logins(folder, options.logins)
        most = floor(options.logins)
        room = held(folder, options.clients)
    print(table(options.messages, seen))
    print("", *sentences(rate, most, room), sep="\n")
    found = {
        "openssl": ssl.OPENSSL_VERSION,
        "messages": options.messages,
        "slices": {rival: [one._asdict() for one in each] for rival, each in seen.items()},
        "ours_of": {"tls": of(seen["ours"], seen["tls"])},
        "logins_per_s": rate,
        "argon2_per_s": most,
        "held": room,
    }
    write_numbers(options, found)
    return 0


if __name__ == "__main__":
    run_program(main)
