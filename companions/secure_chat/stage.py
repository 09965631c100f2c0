"""The stage of this companion: an authority, a server, Alice and Bob, a bystander, a recording.

All of it is real: sockets, endpoints, RSA keys, a database, files. Alice is the client of the
core's lab, and her connection is the one that an attack on path owns; Bob hears what she says. The
server is honest unless an attack bribes it. The stage says what became of the session, and nothing
of how an attack works.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from argon2 import PasswordHasher

from companions.asymmetric import PrivateKey, new_identity
from companions.secure_chat import transcript
from companions.secure_chat.accounts import Accounts
from companions.secure_chat.authority import (
    authority_certificate,
    certificate,
    pem_of,
    revocation_list,
    revoked_entry,
)
from companions.secure_chat.client import Client, Left, NotLetIn, Updated
from companions.secure_chat.evidence import Kept
from companions.secure_chat.pins import Pins
from companions.secure_chat.pki import (
    Identity,
    Role,
    Trust,
    client_name,
    fingerprint_of,
    now_ms,
    utc_now,
)
from companions.secure_chat.protocol import Party, PeerEnded, Session, read_frame, write_frame
from companions.secure_chat.rooms import Entry, Room, Said
from companions.secure_chat.server import Connection, Limits, Record, Server
from companions.secure_chat.storage import Database, login_tries, resumable
from companions.secure_chat.transcript import Receipt
from lab.catalogue import Attack, run_outside
from lab.frames import Frame, Log, recorder
from lab.observer import Observer
from lab.tcp import PATIENCE_S, TcpStage
from program import UserError
from protocol_fsm import LocalError, ProtocolError

SERVER = "localhost"
ALICE = "alice@example.org"
BOB = "bob@example.org"
CAROL = "carol@example.org"  # whom nobody attacks
MALLORY = "mallory@example.org"  # has a certificate and an account
PASSWORDS = {ALICE: "sunflower", BOB: "bobs password", CAROL: "carols one", MALLORY: "mallorys"}
EARLIER = "meet me at midnight"  # in the session that was recorded
TEXT = "meet me at noon"
ANSWER = "I will be there"
LAST = "bring 500"
SECRET = "Bob must not know"  # what Alice says when she believes that he has left
LIMITS = Limits(handshake_s=2.0, credentials_s=2.0, frame_s=0.3)
TIMEOUT_S = 1.5  # of a client under attack, for an answer
MEMORY_KIB = 19_456  # of the lab's argon2, in one pass: half of what it costs outside

Told = tuple[Entry, bytes]  # what a member is told: a message in its place, and its opening
Bribe = Callable[[str, Entry, bytes], Iterable[Told]]  # from whom it tells, and what


@dataclass
class Outcome:
    """What became of the session, and of what was said in anybody's name."""

    said: list[tuple[str, str]] = field(default_factory=list)  # by whom, by honest members
    heard: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    taken: list[tuple[str, str]] = field(default_factory=list)  # by the server, and from whom
    logins: list[tuple[str, str]] = field(default_factory=list)  # certificate, and account
    kept: dict[str, Kept] = field(default_factory=dict)  # the evidence of those who left in peace
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    learned: str = ""  # by the adversary
    means: str = ""  # that the adversary needed besides: "listens", "steals", "times", "judges"
    broken: Exception | None = None  # a mistake in the attack


# Goals: what the adversary has won, in words; empty if nothing


def learned(outcome: Outcome) -> str:
    """Say what the adversary knows now, or was given."""
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Say what an end believes that an honest member said, and that was not said."""
    for name, heard in {**outcome.heard, "the server": outcome.taken}.items():
        honest = [entry for entry in heard if entry[0] != MALLORY]
        if unsaid := Counter(honest) - Counter(outcome.said):
            sender, text = min(unsaid)
            return f"{name} hears from {sender}: {text}"
    return outcome.learned


def vanished(outcome: Outcome) -> str:
    """Say what Bob never heard, though he left in peace, and with a receipt."""
    heard = [text for _, text in outcome.heard[BOB]]
    for sender, text in outcome.said:
        if BOB in outcome.kept and sender == ALICE and text not in heard:
            return f"Bob's receipt lacks what Alice said: {text}"
    return ""


def divided(outcome: Outcome) -> str:
    """Say whether Alice and Bob left in peace with two histories."""
    if {ALICE, BOB} <= outcome.kept.keys() and outcome.heard[ALICE] != outcome.heard[BOB]:
        return "Alice and Bob have receipts of two histories"
    return forged(outcome)


def impersonated(outcome: Outcome) -> str:
    """Say whether somebody is in an account with another's certificate."""
    for name, account in outcome.logins:
        if name != account:
            return f"{name} is in the account of {account}"
    return outcome.learned


def overheard(outcome: Outcome) -> str:
    """Say whether Bob reads what was not said to him."""
    is_read = (ALICE, SECRET) in outcome.heard[BOB]
    return "Bob reads what Alice said to others only" if is_read else ""


def alone(outcome: Outcome) -> str:
    """Say whether Alice talks to a server that never heard of her."""
    is_talking = bool(outcome.heard[ALICE])
    return "Alice talks to nobody" if is_talking and not outcome.taken else outcome.learned


# The stage


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from weakened.py."""

    session: type[Session] = Session
    trust: type[Trust] = Trust
    accounts: type[Accounts] = Accounts
    room: type[Room] = Room
    receipt: type[Receipt] = Receipt
    server: type[Server] = Server
    client: type[Client] = Client
    pins: type[Pins] = Pins


class Pki:
    """An authority, all whom it certified, and an authority that nobody trusts."""

    def __init__(self) -> None:
        names = ("ca", "elsewhere", SERVER, ALICE, BOB, CAROL, MALLORY)
        self.keys = {name: new_identity() for name in names}
        self.now = utc_now()
        self.authorities = {
            name: authority_certificate(self.keys[name], self.now - timedelta(30))
            for name in ("ca", "elsewhere")
        }
        self.people = {name: self.person(name) for name in (ALICE, BOB, CAROL, MALLORY)}
        self.people[SERVER] = self.person(SERVER, "server")

    def person(
        self,
        name: str,
        role: Role = "client",
        *,
        key: PrivateKey | None = None,
        authority: str = "ca",
        begins: int = 0,
        days: int = 2,
    ) -> Party:
        """Return a party with a certificate; its days begin so many days from now."""
        key = key or self.keys[name]
        made = certificate(
            self.keys[authority],
            self.authorities[authority],
            role,
            name,
            key.public_key(),
            self.now + timedelta(begins),
            days,
        )
        return self.party(made, role, key)

    def party(self, made: Any, role: Role, key: PrivateKey) -> Party:
        """Return who shows a certificate, whatever that is worth."""
        name = client_name(made) if role == "client" else SERVER
        identity = Identity(name, role, fingerprint_of(made), made, key.public_key())
        return Party(identity, pem_of(made).decode("ascii"), key)

    def revocations(
        self, number: int, revoked: Sequence[Party], days: int, authority: str
    ) -> bytes:
        """Return a revocation list, good for `days` from the day before yesterday."""
        made = revocation_list(
            self.keys[authority],
            self.authorities["ca"],
            number,
            [revoked_entry(one.identity.certificate.serial_number, self.now) for one in revoked],
            self.now - timedelta(2),
            days,
        )
        return pem_of(made)


@functools.cache
def pki() -> Pki:
    """Return the keys of this process: making them takes longer than an attack."""
    return Pki()


@contextlib.contextmanager
def in_peace() -> Iterator[None]:
    """Turn an error in an undisturbed session into a UserError."""
    try:
        yield
    except (ProtocolError, LocalError, NotLetIn) as error:
        raise UserError(f"no honest session: {error!r}") from None


class Lab(TcpStage):
    """The stage of one run: Carol stays connected, Alice and Bob have a session per attack."""

    def __init__(
        self, log: Log, parts: Parts | None = None, observer: Observer | None = None
    ) -> None:
        super().__init__(log, observer, read_frame, write_frame)
        self.outcome: Outcome = Outcome()
        self.is_weakened = bool(parts)
        self.parts = parts or Parts()
        self.pki = pki()
        self.alice: Client  # while they are connected
        self.bob: Client
        self.known = self.parts.pins()  # by Alice, from her undisturbed session
        self.bribe: Bribe | None = None
        self.told: list[tuple[str, Entry, bytes]] = []  # by the server, in this session
        self.seats: dict[str, Connection] = {}  # at the server, by name
        self.start = b""  # of the rooms that the bribed server makes; empty: by chance
        self._list_number = 0
        self.publish()
        authority = pem_of(self.pki.authorities["ca"])
        self.trust = self.parts.trust(authority, lambda: self.revocations)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(patch.object(transcript, "Receipt", self.parts.receipt))
            self.database = Database(f"sqlite:///{self.folder / 'chat.db'}")
            stack.callback(self.database.close)
            self.accounts = self._accounts()
            server = self.parts.server(
                self.pki.people[SERVER],
                self.trust,
                self.accounts,
                self.folder / "server",
                port=0,
                limits=LIMITS,
                new_session=self.new_session,
                new_room=self.new_room,
                new_connection=partial(Bribed, self),
                record=self._see,
            )
            self.address = server.address
            stack.enter_context(server)
            self._bystander = self._client(self.pki.people[CAROL], self.address, PATIENCE_S)
            with in_peace():
                self.tape = self.honest_session()
                self.earlier = self.told
                stack.enter_context(self._bystander)
                self._bystander.log_in(CAROL, PASSWORDS[CAROL])
                self._bystander.join()
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProtocolError, LocalError, UserError):  # an attack may have harmed bystanders
            self._close()

    def _accounts(self) -> Accounts:
        """Return accounts for everybody, with a hash that costs less than it should."""
        begin = now_ms()
        accounts = self.parts.accounts(self.database, lambda: begin)  # no wait ends by itself
        accounts._hasher = PasswordHasher(1, MEMORY_KIB, 1)
        accounts._nobody = accounts._hash("nobody's password")
        for name, password in PASSWORDS.items():
            identity = self.pki.people[name].identity
            accounts.register(identity, name, name.partition("@")[0], password)
        return accounts

    def publish(self, *revoked: Party, days: int = 4, authority: str = "ca") -> None:
        """Hand all ends a new revocation list."""
        self._list_number += 1
        self.revocations = self.pki.revocations(self._list_number, revoked, days, authority)

    def new_room(self, name: str, start: bytes, index: int, head: bytes, *rest: Any) -> Room:
        """Return a room of the server's, which begins as the adversary wants."""
        return self.parts.room(name, self.start or start, index, self.start or head, *rest)

    # Those who live on it

    def new_session(self, party: Party, trust: Trust, server_name: str | None = None) -> Session:
        """Return a session of an honest end; those of the server and of Alice are observed."""
        ends = {SERVER: "server", ALICE: "client"}
        watchers = self.watchers(ends.get(party.identity.name, ""))
        return self.parts.session(party, trust, server_name, watchers=watchers)

    def client(self, who: Party, later_ms: int = 0) -> Client:
        """Return a client of the adversary's, whose messages are logged as its own."""
        return self._client(
            who,
            self.address,
            PATIENCE_S,
            new_session=partial(self.parts.session, watchers=[self.watch_own]),
            clock=lambda: now_ms() + later_ms,
        )

    def _client(
        self, who: Party, address: tuple[str, int], timeout_s: float, **options: Any
    ) -> Client:
        """Return a client whose end the lab will wait for."""
        if who.identity.name != CAROL:
            self._await_one_more()
        options.setdefault("new_session", self.new_session)
        return self.parts.client(
            who,
            self.trust,
            SERVER,
            self.folder / who.identity.name,
            *address,
            timeout_s=timeout_s,
            new_room=self.parts.room,
            **options,
        )

    def honest_session(self) -> list[Frame]:
        """Let Alice and Bob live an undisturbed session, and return a recording of hers."""
        tape: list[Frame] = []
        self.outcome = Outcome()
        self._forget_tries()
        with (
            in_peace(),
            self.proxy(recorder(tape)) as proxy,
            self._client(self.pki.people[BOB], self.address, PATIENCE_S) as bob,
            self._client(
                self.pki.people[ALICE], proxy.address, PATIENCE_S, pins=self.known
            ) as alice,
        ):
            self._talk(alice, bob, None, EARLIER)
        self._await_all_ends()
        if forged(self.outcome) or len(self.outcome.taken) != 3:
            raise UserError("no honest session")
        self.evidence_kept = dict(self.outcome.kept)
        return tape

    def _forget_tries(self) -> None:
        """Let nobody wait for what an earlier attack has tried."""
        with self.database.transaction() as connection:
            connection.execute(login_tries.delete())

    def let_tokens_expire(self) -> None:
        """Let half a day pass for all sessions that could be resumed."""
        with self.database.transaction() as connection:
            connection.execute(resumable.update().values(expires_at=0))

    def has_harmed_victim(self, attack: Attack) -> bool:
        """Return whether the victim met more than a newer session of its own account."""
        errors = self.outcome.errors["client"]
        is_replaced = [error.got == "replaced" for error in errors if isinstance(error, PeerEnded)]
        return super().has_harmed_victim(attack) and not (is_replaced and all(is_replaced))

    def bystanders_go_on(self) -> bool:
        """Return whether Carol can still say something in the room, and hear it."""
        if not self.harm:
            try:
                self._bystander.say(f"all is well, {self.rounds}")
                self.rounds += 1
                while not self._is_own(self._bystander.hear(PATIENCE_S)):
                    pass
            except (ProtocolError, LocalError, UserError) as error:
                self.harm.append(error)
        return not self.harm

    def _is_own(self, event: object) -> bool:
        return isinstance(event, Said) and event.member.identity.name == CAROL

    # An attack

    def undergo(self, attack: Attack) -> Outcome:
        """Let Alice and Bob live a session under attack, and return what became of it."""
        outcome = self.outcome = Outcome()
        self.attack = attack.name
        self.told = []
        self.publish()
        self._forget_tries()
        try:
            self.attack_on(attack, partial(self._live, attack))
        finally:
            self.bribe = None
            self.start = b""
            self.publish()  # a good one, by which Carol judges who came meanwhile
        self._await_all_ends()
        return outcome

    def _live(self, attack: Attack, address: tuple[str, int]) -> None:
        self.bob = self._client(self.pki.people[BOB], self.address, TIMEOUT_S)
        self.alice = self._client(self.pki.people[ALICE], address, TIMEOUT_S)
        try:
            with self.bob, self.alice:
                self._talk(self.alice, self.bob, None if attack.is_on_path else attack)
        except ProtocolError as error:
            self.outcome.errors["client"].append(error)
        except NotLetIn:
            pass

    def _talk(self, alice: Client, bob: Client, outside: Attack | None, first: str = TEXT) -> None:
        """Let two members come, talk, and leave with receipts; Alice asks for new keys."""
        for client, name in ((bob, BOB), (alice, ALICE)):
            client.log_in(name, PASSWORDS[name])
            client.join()
        self._say(alice, first)
        self._hear(alice, bob)
        alice.update()
        while not isinstance(event := alice.hear(alice.timeout_s), Updated):
            self._note(alice, event)
        if outside:
            run_outside(outside, self)
        self._say(bob, ANSWER)
        self._hear(bob, alice)
        self._say(alice, LAST)
        alice.leave()
        while not self._has_left(bob, bob.hear(bob.timeout_s)):
            pass
        bob.leave()
        for client in (alice, bob):
            self._settle(client)

    def _settle(self, client: Client) -> None:
        """Hear the rest, up to the receipts; what counts is the first room that was left."""
        while not isinstance(event := client.hear(client.timeout_s), Kept):
            self._note(client, event)
        self.outcome.kept.setdefault(client.party.identity.name, event)

    def move(self, room: str) -> None:
        """Let Alice and Bob leave in peace, and meet again in another room."""
        for client in (self.alice, self.bob):
            client.leave()
            self._settle(client)
        self.bribe = None  # which was about the room that they have left
        for client in (self.alice, self.bob):
            client.join(room)

    def _say(self, speaker: Client, text: str) -> None:
        self.outcome.said.append((speaker.party.identity.name, text))
        speaker.say(text)

    def _hear(self, *clients: Client) -> None:
        """Let each of them hear what an honest member has said."""
        for client in clients:
            while not self._note(client, client.hear(client.timeout_s)):
                pass

    def _has_left(self, client: Client, event: object) -> bool:
        """Return whether Alice has left, after all that she had said."""
        self._note(client, event)
        return isinstance(event, Left) and event.member.identity.name == ALICE

    def say_unheard(self, text: str) -> None:
        """Let Alice say something that the adversary keeps from Bob."""
        self._say(self.alice, text)
        self._hear(self.alice)

    def _note(self, client: Client, event: object) -> bool:
        """Note what a client hears; return whether it was said by somebody honest."""
        if not isinstance(event, Said):
            return False
        sender = event.member.identity.name
        if event.text is not None:
            self.outcome.heard[client.party.identity.name].append((sender, event.text))
        return sender != MALLORY

    def _see(self, record: Record) -> None:
        outcome = self.outcome
        if record.name == CAROL:
            return
        if record.what == "said":
            outcome.taken.append((record.name, record.detail))
        elif record.what == "login":
            outcome.logins.append((record.name, record.detail.email))
        elif record.detail:  # of a refusal, or of the end
            outcome.errors["server"].append(record.detail)
        if record.what == "end":
            self._one_has_ended()


class Bribed(Connection):
    """A connection of a server that does what the adversary wants, if it wants anything."""

    def __init__(self, lab: Lab, *arguments: Any) -> None:
        self._lab = lab
        super().__init__(*arguments)

    def tell(self, entry: Entry, opening: bytes) -> None:
        lab = self._lab
        lab.seats[self.name] = self
        bribe = lab.bribe
        for told in bribe(self.name, entry, opening) if bribe else [(entry, opening)]:
            lab.told.append((self.name, *told))
            super().tell(*told)
