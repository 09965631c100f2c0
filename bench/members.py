"""Certificates, accounts, server and clients of secure_chat, for all programs that measure it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from bench.certificate import write_certificate
from bench.measure import LIMIT_S, hear
from bench.process import Usage, usage_of
from bench.rivals import HOST
from companions.asymmetric import PrivateKey
from companions.logs import start_log
from companions.secure_chat import authority, gen_ca, gen_cert
from companions.secure_chat.accounts import Accounts
from companions.secure_chat.certs import Credentials, load_authority, load_credentials, load_trust
from companions.secure_chat.client import Client
from companions.secure_chat.pki import Role, utc_now
from companions.secure_chat.protocol import Party
from companions.secure_chat.server import Server
from companions.secure_chat.storage import Database

PEOPLE = ("alice", "bob")
PASSWORD = "correct horse"


def certify(folder: Path) -> None:
    """Make an authority, a server, accounts of Alice and Bob, and a certificate for TLS."""
    write_certificate(folder, HOST)
    gen_ca.create(folder)
    gen_cert.issue(folder, "server", "localhost", "server")
    for name in PEOPLE:
        gen_cert.issue(folder, "client", f"{name}@example.org", name)
    enroll(folder, [party(folder, name) for name in PEOPLE])


def enroll(folder: Path, people: Iterable[Party]) -> None:
    """Make an account for everybody, under what stands before the @ of their address."""
    accounts = Accounts(Database(f"sqlite:///{folder / 'chat.db'}"))
    for who in people:
        name = who.identity.name
        accounts.register(who.identity, name, name.partition("@")[0], PASSWORD)
    accounts.database.close()


def party(folder: Path, name: str) -> Party:
    """Return Alice or Bob."""
    return party_of(folder, load_credentials(folder, name), "client")


def certified(folder: Path, name: str, key: PrivateKey) -> Party:
    """Return a client with a certificate of today."""
    own = load_authority(folder)
    address = f"{name}@example.org"
    made = authority.certificate(
        own.key, own.certificate, "client", address, key.public_key(), utc_now()
    )
    pem = authority.pem_of(made).decode("ascii")
    return party_of(folder, Credentials(pem, made, key), "client")


def party_of(folder: Path, own: Credentials, role: Role) -> Party:
    identity = load_trust(folder).identify(own.pem, role, None, utc_now())
    return Party(identity, own.pem, own.key)


@contextmanager
def our_client(folder: Path, own: Party, address: tuple[str, int]) -> Iterator[Client]:
    """Yield a client that has logged in."""
    name = own.identity.name
    kept = folder / "kept" / name.partition("@")[0]
    with Client(own, load_trust(folder), "localhost", kept, *address, timeout_s=LIMIT_S) as client:
        client.log_in(name, PASSWORD)
        yield client


def serve_ours(pipe: Connection, folder: Path) -> None:
    """In the server's process: tell the address, then what is asked."""
    start_log(None, None)
    accounts = Accounts(Database(f"sqlite:///{folder / 'chat.db'}"))
    own = party_of(folder, load_credentials(folder, "server"), "server")
    with Server(own, load_trust(folder), accounts, folder / "kept", HOST, 0) as server:
        tell(pipe, server.address)


def tell(pipe: Connection, address: tuple[str, int]) -> None:
    """In a server's process: answer each `ask`, until there are no more."""
    pipe.send(address)
    while pipe.recv():
        pipe.send((time.process_time(), usage_of(os.getpid())))


def ask(server: Connection) -> tuple[float, Usage]:
    """Return processor time and usage of the server's process."""
    server.send("tell")
    found: tuple[float, Usage] = hear(server)
    return found
