"""secure_chat: how often a password may be tried, and how many are hashed at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sql

from companions.asymmetric import PrivateKey
from companions.secure_chat import accounts, tries
from companions.secure_chat.accounts import Busy, Refused
from companions.secure_chat.pki import Identity
from companions.secure_chat.storage import Database, login_tries
from companions.secure_chat.tries import FREE_OF_ADDRESS, FREE_TRIES, Tries
from tests.companions.chat_databases import RIGHT, Owners, Place
from tests.companions.chat_helpers import ALICE, BOB, NOW_MS
from tests.network import at_once

WRONG = "battery staple"
ELSEWHERE = "203.0.113.7"


class Bank(Owners):
    """Accounts, and what became of tries to log in."""

    def outcome(self, identity: Identity, email: str, password: str, ip: str = "::1") -> str:
        """Return the reason of a refusal, or nothing."""
        try:
            self.accounts.login(identity, email, password, ip)
        except Refused as error:
            return error.reason.partition(":")[0]
        return ""

    def wait_ms(self, identity: Identity) -> int:
        mine = login_tries.c.subject == tries.of_certificate(identity.fingerprint).key
        with self.database.transaction() as connection:
            free_at = connection.execute(sql.select(login_tries.c.free_at).where(mine)).scalar_one()
        return int(free_at) - self.now

    def fails(self, times: int) -> None:
        """Let Alice try a wrong password so often, none of which has to wait."""
        for _ in range(times):
            assert self.outcome(self.alice, ALICE, WRONG) == "wrong password"

    def count(self, subject: tries.Subject) -> int:
        row = sql.select(login_tries.c.tries).where(login_tries.c.subject == subject.key)
        with self.database.transaction() as connection:
            return connection.scalar(row) or 0


@pytest.fixture
def bank(place: Place, keys: list[PrivateKey]) -> Iterator[Bank]:
    with contextlib.closing(Database(place.url)) as database:
        yield Bank(database, keys)


# Waits --------------------------------------------------------------------------------------------


def test_limits_are_those_of_readme() -> None:
    assert (FREE_TRIES, FREE_OF_ADDRESS, tries.FORGET_MS) == (5, 100, 15 * 60 * 1_000)
    assert (accounts.MIN_PASSWORD, accounts.MAX_QUEUE) == (8, 64)
    assert accounts.TOKEN_LIFE_MS == 12 * 60 * 60 * 1_000


@pytest.mark.slow
def test_five_tries_are_free_and_then_waits_double_to_a_minute(bank: Bank) -> None:
    bank.fails(FREE_TRIES)
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60):
        assert bank.wait_ms(bank.alice) == 1_000 * wait_s
        bank.now += 1_000 * wait_s
        assert bank.outcome(bank.alice, ALICE, WRONG) == "wrong password"


def test_right_password_is_refused_during_a_wait_and_taken_after_it(bank: Bank) -> None:
    bank.fails(FREE_TRIES)
    assert bank.outcome(bank.alice, ALICE, RIGHT) == "too many tries"
    bank.now += 999  # and what came too early makes the present wait no longer
    assert bank.outcome(bank.alice, ALICE, RIGHT) == "too many tries"
    bank.now += 1
    assert bank.outcome(bank.alice, ALICE, RIGHT) == ""


@pytest.mark.slow
def test_unknown_users_are_waited_for_like_known_ones(bank: Bank) -> None:
    seen = [
        [bank.outcome(who, name, WRONG) == "too many tries" for _ in range(FREE_TRIES + 2)]
        for who, name in ((bank.alice, ALICE), (bank.bob, "nobody@example.org"))
    ]
    assert seen[0] == seen[1] == [False] * FREE_TRIES + [True] * 2


def test_right_password_clears_the_account_and_not_the_certificate(bank: Bank) -> None:
    bank.outcome(bank.alice, BOB, WRONG)
    bank.outcome(bank.alice, ALICE, WRONG)
    assert bank.outcome(bank.alice, ALICE, RIGHT) == ""
    assert bank.count(tries.of_account(ALICE.encode(), bank.alice.fingerprint)) == 0
    assert bank.count(tries.of_account(BOB.encode(), bank.alice.fingerprint)) == 1
    assert bank.count(tries.of_certificate(bank.alice.fingerprint)) == 2


@pytest.mark.slow
def test_certificate_has_five_tries_for_all_accounts_together(bank: Bank) -> None:
    names = [f"user{number}@example.org" for number in range(FREE_TRIES)]
    for name in names:
        assert bank.outcome(bank.alice, name, WRONG) == "unknown user"
    assert bank.outcome(bank.alice, ALICE, RIGHT) == "too many tries"


@pytest.mark.slow
def test_tries_with_another_certificate_do_not_lock_the_owner_out(bank: Bank) -> None:
    for _ in range(20):
        bank.outcome(bank.bob, ALICE, WRONG)
        bank.outcome(bank.renewed, ALICE, WRONG)
    assert bank.outcome(bank.alice, ALICE, RIGHT) == ""


@pytest.mark.slow
def test_registrations_are_tries_too(bank: Bank) -> None:
    for _ in range(FREE_TRIES):
        with pytest.raises(Refused, match="taken"):
            bank.accounts.register(bank.alice, ALICE, "bob", RIGHT)
    with pytest.raises(Refused, match="too many tries"):
        bank.accounts.register(bank.alice, ALICE, "carol", RIGHT)


@pytest.mark.slow
def test_tries_are_forgotten_after_fifteen_quiet_minutes(bank: Bank) -> None:
    bank.fails(FREE_TRIES)
    bank.now += tries.FORGET_MS + tries.FIRST_WAIT_MS + 1
    bank.fails(FREE_TRIES)
    assert bank.outcome(bank.alice, ALICE, RIGHT) == "too many tries"


def test_tries_of_fifteen_minutes_ago_still_count(bank: Bank) -> None:
    subject = tries.of_certificate("")
    count = bank.accounts._tries.count
    for _ in range(FREE_TRIES):
        assert count(subject)
    bank.now += tries.FIRST_WAIT_MS + tries.FORGET_MS
    assert count(subject)
    assert not count(subject)


@pytest.mark.slow
def test_longest_wait_begins_at_once(bank: Bank) -> None:
    subject = tries.of_certificate("")
    count = bank.accounts._tries.count
    assert [count(subject) for _ in range(20)] == [True] * FREE_TRIES + [False] * 15
    bank.now += tries.FIRST_WAIT_MS
    assert count(subject)
    assert not count(subject)  # for a minute from now


def test_start_clears_what_was_tried_more_than_fifteen_minutes_ago(bank: Bank) -> None:
    subject = tries.of_certificate("")
    bank.accounts._tries.count(subject)
    for passed_ms, left in ((tries.FORGET_MS, 1), (1, 0)):
        bank.now += passed_ms
        Tries(bank.database, lambda: bank.now)
        assert bank.count(subject) == left


@pytest.mark.slow
def test_taking_a_try_back_ends_the_wait_that_it_began(bank: Bank) -> None:
    for _ in range(FREE_TRIES - 1):
        bank.outcome(bank.alice, BOB, WRONG)
    for _ in range(3):
        assert bank.outcome(bank.alice, ALICE, RIGHT) == ""


@pytest.mark.slow
def test_clock_that_is_set_back_locks_nobody_out(bank: Bank) -> None:
    bank.fails(FREE_TRIES)
    bank.now -= tries.MAX_WAIT_MS
    assert bank.outcome(bank.alice, ALICE, RIGHT) == ""


# Many at once -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sixty_four_wrong_logins_at_once_count_as_sixty_four(bank: Bank) -> None:
    reasons = at_once(*[lambda: bank.outcome(bank.alice, ALICE, WRONG)] * 64)
    assert bank.count(tries.of_certificate(bank.alice.fingerprint)) == 64
    assert bank.count(tries.of_account(ALICE.encode(), bank.alice.fingerprint)) == 64
    assert reasons.count("wrong password") <= FREE_TRIES
    assert set(reasons) == {"wrong password", "too many tries"}


@pytest.mark.slow
def test_two_servers_on_one_database_count_together(bank: Bank) -> None:
    bank.fails(FREE_TRIES - 1)
    bank.accounts = bank.opened()
    assert bank.outcome(bank.alice, ALICE, WRONG) == "wrong password"
    assert bank.outcome(bank.alice, ALICE, RIGHT) == "too many tries"


# Addresses ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_address_has_a_far_higher_rate_and_loopback_none(bank: Bank) -> None:
    subject = tries.of_address(ELSEWHERE, bank.now)
    assert subject
    for _ in range(FREE_OF_ADDRESS):
        bank.accounts._tries.count(subject)
    assert bank.outcome(bank.alice, ALICE, RIGHT, ELSEWHERE) == "too many tries"
    assert bank.outcome(bank.alice, ALICE, RIGHT, "203.0.113.8") == ""
    assert bank.outcome(bank.alice, ALICE, RIGHT, "127.0.0.1") == ""
    bank.now += 60_000  # another minute
    assert bank.outcome(bank.alice, ALICE, RIGHT, ELSEWHERE) == ""


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_not_counted(ip: str) -> None:
    assert tries.of_address(ip, NOW_MS) is None


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:203.0.113.7", ELSEWHERE, True),
        (ELSEWHERE, "203.0.113.6", False),
    ],
)
def test_subscriber_is_one_address(one: str, other: str, is_same: bool) -> None:
    assert (tries.of_address(one, NOW_MS) == tries.of_address(other, NOW_MS)) is is_same


def test_address_is_counted_anew_in_each_minute() -> None:
    first, last, following = (
        tries.of_address(ELSEWHERE, NOW_MS + passed_ms) for passed_ms in (0, 59_999, 60_000)
    )
    assert first == last != following


# The queue ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_queue_refuses_and_does_not_count(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_QUEUE", 1)
    bank.accounts = bank.opened()
    bank.outcome(bank.alice, ALICE, WRONG)
    places = 0
    while bank.accounts._places.acquire(blocking=False):
        places += 1
    assert places == bank.accounts.cores + 1
    with pytest.raises(Busy):
        bank.accounts.login(bank.alice, ALICE, RIGHT)
    assert bank.count(tries.of_account(ALICE.encode(), bank.alice.fingerprint)) == 1
    bank.accounts._places.release()
    assert bank.outcome(bank.alice, ALICE, RIGHT) == ""


@pytest.mark.slow
def test_no_more_passwords_are_hashed_at_once_than_there_are_processors(bank: Bank) -> None:
    bank.accounts = bank.opened()
    lock = threading.Lock()
    running = [0]
    most = [0]
    meet = threading.Barrier(bank.accounts.cores)

    def hashing() -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        meet.wait(60)
        with lock:
            running[0] -= 1
        return ""

    at_once(*[lambda: bank.accounts._work(hashing)] * 4 * bank.accounts.cores)
    assert most == [bank.accounts.cores]
