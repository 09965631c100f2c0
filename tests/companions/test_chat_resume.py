"""Sessions of secure_chat that are resumed: by whom, how often, until when; what a person sees."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from channel import EndRequested
from companions.asymmetric import PrivateKey
from companions.secure_chat import client as program
from companions.secure_chat.accounts import TOKEN_LIFE_MS, Account, Refused
from companions.secure_chat.client import Client, NotLetIn, Run, Talk
from companions.secure_chat.pki import Identity
from companions.secure_chat.protocol import Party, to_base64
from companions.secure_chat.storage import Database
from protocol_fsm import ConnectionCut, Status
from tests.companions.chat_databases import Owners, Place
from tests.companions.chat_helpers import ALICE
from tests.companions.chat_programs import LIMIT_S, PASSWORDS, House, say
from tests.network import Noted, at_once, free_port

pytestmark = pytest.mark.usefixtures("quiet")


# Tokens -------------------------------------------------------------------------------------------


class Desk(Owners):
    """Accounts, and what a token of Alice's is good for."""

    def token(self) -> bytes:
        return self.accounts.new_session(self.account, self.alice.fingerprint, "2" * 64)

    def resume(self, who: Identity, token: bytes) -> Account | str:
        """Return the account, or why it was refused."""
        try:
            return self.accounts.resume(who, token)
        except Refused as error:
            return error.reason


@pytest.fixture
def desk(place: Place, keys: list[PrivateKey]) -> Iterator[Desk]:
    with contextlib.closing(Database(place.url)) as database:
        yield Desk(database, keys)


@pytest.mark.slow
def test_token_is_good_for_one_use(desk: Desk) -> None:
    token = desk.token()
    other = desk.token()
    assert desk.resume(desk.alice, bytes(32)) == "an unknown or used token"
    assert desk.resume(desk.alice, token) == desk.account
    assert desk.resume(desk.alice, token) == "an unknown or used token"
    assert desk.resume(desk.alice, other) == desk.account


@pytest.mark.slow
def test_of_many_uses_at_once_one_succeeds(desk: Desk) -> None:
    found = at_once(*[partial(desk.resume, desk.alice, desk.token())] * 8)
    assert found.count(desk.account) == 1
    assert found.count("an unknown or used token") == 7


@pytest.mark.slow
def test_token_expires_to_the_millisecond(desk: Desk) -> None:
    tokens = [desk.token(), desk.token()]
    desk.now += TOKEN_LIFE_MS - 1
    assert desk.resume(desk.alice, tokens[0]) == desk.account
    desk.now += 1
    assert desk.resume(desk.alice, tokens[1]) == "a token that has expired"


@pytest.mark.slow
def test_token_shown_with_another_certificate_is_spent(desk: Desk) -> None:
    own = desk.alice.fingerprint
    similar = replace(desk.alice, fingerprint=own[:-1] + "01"[own[-1] == "0"])
    for who in (desk.bob, desk.renewed, similar):
        token = desk.token()
        assert desk.resume(who, token) == f"a token of another certificate than that of {who.name}"
        assert desk.resume(desk.alice, token) == "an unknown or used token"


@pytest.mark.slow
def test_forgotten_token_resumes_nothing(desk: Desk) -> None:
    tokens = [desk.token(), desk.token()]
    desk.accounts.forget_token(tokens[0])
    desk.accounts.forget_token(tokens[0])
    assert desk.resume(desk.alice, tokens[0]) == "an unknown or used token"
    assert desk.resume(desk.alice, tokens[1]) == desk.account


# Sessions -----------------------------------------------------------------------------------------


def cut(house: House, name: str = ALICE) -> None:
    """Cut a client's connection, as a network does."""
    for connection in house.server._connections:
        if connection.name == name:
            connection.channel._sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_session_that_was_cut_is_resumed_with_fresh_keys_and_no_password(house: House) -> None:
    with house.members() as (alice, bob):
        cut(house)
        with pytest.raises(ConnectionCut):
            alice.hear(LIMIT_S)
        with house.client(party=alice.party) as again:
            again.resume(alice.token)
            assert again.username == "alice"
            assert again.session.session_id != alice.session.session_id
            assert set(again.session.fingerprints()) == set(alice.session.fingerprints())
            for label, key in alice.session.fingerprints().items():
                assert again.session.fingerprints()[label] != key
            assert again.token not in ("", alice.token)
            again.join()
            say(again, "back", bob)


@pytest.mark.slow
def test_refusals_are_uniform_and_the_reason_is_in_the_table(house: House) -> None:
    with house.members() as (alice, bob):
        cut(house)
        with house.client(party=alice.party) as again:
            again.resume(alice.token)
        for token in (
            alice.token,  # used
            again.token,  # of a session that ended in peace
            to_base64(bytes(32)),
            bob.token,
        ):
            with house.client(party=alice.party) as thief, pytest.raises(NotLetIn):
                thief.resume(token)
    events = house.database.events("resume_failure")
    assert [event["email"] for event in events] == [ALICE] * 4
    assert {event["reason"] for event in events} == {
        "an unknown or used token",
        f"a token of another certificate than that of {ALICE}",
    }


# The program --------------------------------------------------------------------------------------


class Gate:
    """A room's lock, which holds the first that comes."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.reached.set()
        assert self.opened.wait(LIMIT_S)
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class Person:
    """Types into the program, and reads what it shows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, self._writing = os.pipe()
        self._stdin = os.fdopen(reading, encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", self._stdin)
        self._noted = Noted[str]()
        self.shown = self._noted.records
        monkeypatch.setattr(program, "show", self._noted)

    def types(self, *lines: str) -> None:
        os.write(self._writing, "".join(f"{line}\n" for line in lines).encode())

    def sees(self, words: str) -> None:
        """Wait until something has been shown that ends so."""
        self._noted.wait_until(lambda: any(line.endswith(words) for line in self.shown), LIMIT_S)

    def leaves(self) -> None:
        os.close(self._writing)
        self._stdin.close()


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, kept_signals: None) -> Iterator[Person]:
    person = Person(monkeypatch)
    yield person
    person.leaves()


def member(house: House) -> Party:
    """Return Alice, who has an account."""
    alice = house.party("client", ALICE, 2)
    house.accounts.register(alice.identity, ALICE, "alice", PASSWORDS[ALICE])
    return alice


def live(run: Run, what_happens: Callable[[], None]) -> None:
    """Run the program here, where signals are, and what happens to it in another thread."""
    with ThreadPoolExecutor(1) as threads:
        happened = threads.submit(what_happens)
        run.chat()
        happened.result()


@pytest.mark.slow
def test_person_whose_session_is_cut_goes_on_and_is_told_what_may_be_lost(
    house: House, person: Person
) -> None:
    alice = member(house)
    gate = Gate()
    person.types("login", PASSWORDS[ALICE], "before")

    def happens() -> None:
        person.sees(f"{ALICE}: before")
        room = house.server._rooms["lobby"]
        room._lock, lock = gate, room._lock  # type: ignore[assignment]
        person.types("in between")
        assert gate.reached.wait(LIMIT_S)
        cut(house)
        person.sees("this may not have been said: in between")
        person.types("after")
        gate.opened.set()
        person.sees(f"{ALICE}: after")
        room._lock = lock
        person.types("quit")

    live(Run(partial(house.client, party=alice), "lobby"), happens)
    assert any(line.startswith("[*] back as alice; in lobby: ") for line in person.shown)
    receipts = [line for line in person.shown if line.startswith("[*] receipt: ")]
    assert [line.rpartition(", ")[2] for line in receipts] == [
        "uncountersigned",
        "countersigned by the server",
    ]


@pytest.mark.slow
def test_person_whose_session_ends_is_told_what_may_not_have_been_said(
    house: House, person: Person
) -> None:
    alice = member(house)
    gate = Gate()
    person.types("login", PASSWORDS[ALICE], "before")
    run = Run(partial(house.client, party=alice), "lobby")

    def happens() -> None:
        person.sees(f"{ALICE}: before")
        house.server._rooms["lobby"]._lock = gate  # type: ignore[assignment]
        person.types("in between")
        assert gate.reached.wait(LIMIT_S)
        run._client.channel.request_end(Status.SHUTDOWN)

    with pytest.raises(EndRequested):
        live(run, happens)
    gate.opened.set()
    assert "[!] this may not have been said: in between" in person.shown
    assert person.shown[-1].endswith("uncountersigned")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["one", "two", ""], ["[!] not sent: one, and what follows it"]),
        (["quit", "one"], []),
        ([""], []),
        ([], []),
    ],
)
def test_person_whose_session_ends_is_told_what_was_not_sent(
    house: House,
    person: Person,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    shown: list[str],
) -> None:
    monkeypatch.setattr(program, "MAX_PENDING", 0)
    with house.members() as (alice, _):
        talk = Talk(alice, person.shown.append)
        talk._typed.extend(typed)
        alice.channel.request_end(Status.SHUTDOWN)
        with pytest.raises(EndRequested):
            talk.run()
    assert person.shown == shown


@pytest.mark.slow
def test_line_that_waited_for_the_old_session_is_done_in_the_new_one(
    house: House, person: Person
) -> None:
    with house.members() as (alice, _), contextlib.ExitStack() as stack:
        cut(house)

        def come_back() -> Client:
            again = stack.enter_context(house.client(party=alice.party))
            again.resume(alice.token)
            again.join()
            return again

        talk = Talk(alice, person.shown.append, come_back)
        talk._typed.append("quit")  # as if a text had not come back yet
        assert talk.run().is_countersigned


@pytest.mark.slow
def test_session_that_cannot_be_resumed_ends_as_it_was_cut(house: House, person: Person) -> None:
    alice = member(house)
    person.types("login", PASSWORDS[ALICE], "before")
    run = Run(partial(house.client, party=alice), "lobby")

    def happens() -> None:
        person.sees(f"{ALICE}: before")
        with house.database.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM resumable")
        cut(house)
        person.sees("coming back")

    with pytest.raises(ConnectionCut):
        live(run, happens)
    assert len([line for line in person.shown if line.startswith("[*] receipt: ")]) == 1


@pytest.mark.slow
def test_signal_during_the_handshake_of_a_resumed_session_ends_the_run(
    house: House, person: Person
) -> None:
    alice = member(house)
    person.types("login", PASSWORDS[ALICE], "before")
    runs: list[Run] = []

    def new_client() -> Client:
        for run in runs:
            run._leave(signal.SIGINT, None)
        return house.client(party=alice)

    def happens() -> None:
        person.sees(f"{ALICE}: before")
        cut(house)
        person.types("quit")

    runs.append(Run(new_client, "lobby"))
    with pytest.raises(EndRequested):
        live(runs[0], happens)


@pytest.mark.slow
def test_server_that_stays_away_is_given_up(
    house: House, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = member(house)
    monkeypatch.setattr(program, "RETRY_S", (0.0, 0.0))
    person.types("login", PASSWORDS[ALICE], "before")
    ports = [house.server.address[1]]

    def new_client() -> Client:
        client = house.client(party=alice)
        client._address = (client._address[0], ports[0])
        return client

    def happens() -> None:
        person.sees(f"{ALICE}: before")
        ports[0] = free_port()
        cut(house)

    with pytest.raises(ConnectionCut):
        live(Run(new_client, "lobby"), happens)
    assert len([line for line in person.shown if line.startswith("[*] receipt: ")]) == 1
