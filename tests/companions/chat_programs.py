"""What tests of the server and its clients share: a house with members, and programs that run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from companions.asymmetric import PrivateKey, write_private
from companions.secure_chat.authority import pem_of
from companions.secure_chat.client import Client, Joined
from companions.secure_chat.evidence import Kept
from companions.secure_chat.pki import utc_now
from companions.secure_chat.protocol import Party
from companions.secure_chat.rooms import LOBBY, Said
from companions.secure_chat.server import Limits, Record, Server
from companions.secure_chat.storage import Database
from companions.secure_chat.verify import Certificates, History, verify
from tests.companions.chat_databases import quick_accounts
from tests.companions.chat_helpers import ALICE, BOB, Authority
from tests.network import Noted
from tests.programs import ROOT

LIMIT_S = 60.0  # for what must come: other tests may run beside these
CAROL = "carol@example.org"
PASSWORDS = {ALICE: "alices secret word", BOB: "bobs secret word", CAROL: "carols secret word"}
AnyEvent = TypeVar("AnyEvent")
PROGRAM = [sys.executable, "-W", "error", "-m"]


class House:
    """An authority of today, a server that runs, and its members."""

    def __init__(self, keys: list[PrivateKey], folder: Path, url: str = "") -> None:
        self.keys = keys
        self.folder = folder
        self.authority = Authority(keys[0])
        self.authority.publish(now=utc_now())
        self.trust = self.authority.trust()
        self.database = Database(url or f"sqlite:///{folder / 'chat.db'}")
        self.accounts = quick_accounts(self.database)
        self.noted = Noted[Record]()
        self.server: Server

    def party(self, role: Any, name: str, key: int) -> Party:
        own = self.authority.issue(role, name, self.keys[key], now=utc_now())
        return Party(self.trust.identify(own.pem, role, None, utc_now()), own.pem, own.key)

    @contextlib.contextmanager
    def open(self, **changes: Any) -> Iterator[House]:
        limits = Limits(**{"handshake_s": 5.0, **changes})
        party = self.party("server", "localhost", 1)
        with contextlib.closing(self.database):
            self.server = Server(
                party,
                self.trust,
                self.accounts,
                self.folder / "server",
                port=0,
                limits=limits,
                record=self.noted,
            )
            with self.server:
                yield self

    def await_record(self, is_it: Callable[[Record], bool]) -> Record:
        """Wait for an event at the server, and return it."""
        self.noted.wait_until(lambda: any(map(is_it, self.noted.records)), LIMIT_S)
        return next(filter(is_it, self.noted.records))

    def client(self, name: str = ALICE, key: int = 2, **options: Any) -> Client:
        options.setdefault("timeout_s", LIMIT_S)
        folder = self.folder / name
        party = options.pop("party", None) or self.party("client", name, key)
        return Client(party, self.trust, "localhost", folder, *self.server.address, **options)

    @contextlib.contextmanager
    def member(
        self, name: str = ALICE, key: int = 2, room: str = LOBBY, **options: Any
    ) -> Iterator[Client]:
        """Give a client with a new account, in a room."""
        with self.client(name, key, **options) as client:
            client.register(name, name.partition("@")[0], PASSWORDS[name])
            client.join(room)
            yield client

    @contextlib.contextmanager
    def members(self) -> Iterator[tuple[Client, Client]]:
        with self.member() as alice, self.member(BOB, 3) as bob:
            assert isinstance(alice.hear(LIMIT_S), Joined)
            yield alice, bob

    def judged(self, kept: Kept) -> History:
        """Return what a third party finds in the evidence of a stay; both receipts have to hold."""
        stem = kept.transcript.stem.removeprefix("transcript")
        folder = kept.transcript.parent
        bundle = (folder / f"certs{stem}.pem").read_bytes()
        certificates = Certificates(bundle, pem_of(self.authority.certificate))
        for role in ("client", "server"):
            receipt, is_countersigned, history = verify(
                (folder / f"receipt{stem}_{role}.json").read_bytes(),
                kept.transcript.read_bytes(),
                certificates,
            )
            assert is_countersigned
            assert {message.room for message in history.messages.values()} <= {receipt.room}
        return history

    def revoke(self, party: Party) -> None:
        self.authority.revoke([party.identity.certificate], utc_now())
        self.authority.publish(now=utc_now())


def next_of(client: Client, kind: type[AnyEvent]) -> AnyEvent:
    """Return the next event of a kind."""
    while not isinstance(event := client.hear(LIMIT_S), kind):
        pass
    return event


def hear(client: Client) -> str | None:
    """Return the next text."""
    return next_of(client, Said).text


def say(speaker: Client, text: str, *others: Client) -> None:
    """Let somebody say a text, which is what all of these hear next."""
    speaker.say(text)
    for one in (speaker, *others):
        assert hear(one) == text


class Typed:
    """A folder with certificates in it, and programs that run there."""

    def __init__(self, keys: list[PrivateKey], folder: Path) -> None:
        self.folder = folder
        house = Authority(keys[0])
        house.publish(now=utc_now())
        certs = folder / "certs"
        certs.mkdir()
        (certs / "ca_cert.pem").write_bytes(pem_of(house.certificate))
        (certs / "ca_crl.pem").write_bytes(house.list)
        for name, role, who, key in (
            ("server", "server", "localhost", keys[1]),
            ("client", "client", ALICE, keys[2]),
        ):
            own = house.issue(role, who, key, now=utc_now())  # type: ignore[arg-type]
            (certs / f"{name}_cert.pem").write_text(own.pem)
            write_private(certs / f"{name}_private_key.pem", key)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "TZ": "Asia/Karachi"}

    @contextlib.contextmanager
    def server(self, *words: str) -> Iterator[str]:
        process = subprocess.Popen(
            [*PROGRAM, "companions.secure_chat.server", "--port", "0", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            line = process.stdout.readline() if process.stdout else ""
            assert line.startswith("[*] Secure Chat Server listening on 127.0.0.1:")
            yield line.strip().rpartition(":")[2]
        finally:
            process.terminate()
            out, self.errors = process.communicate(timeout=LIMIT_S)
        if os.name == "posix":
            assert (process.returncode, out) == (0, "stopped\n")

    def client(self, port: str, typed: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, "companions.secure_chat.client", "--port", port, *words],
            cwd=self.folder,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
