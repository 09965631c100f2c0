"""How often a login may be tried: counters in the database, which all threads and servers share.

Five tries are free; then each must wait, one second at first and twice as long every time, up to a
minute. A try is counted before it is judged, in one transaction that begins with the update: of
many tries at once each sees those before it. A try that comes too early is counted too, but does
not make the present wait longer. What was tried fifteen minutes ago is forgotten; that gains no
guess, since a try a minute is more than five in fifteen.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Callable
from typing import NamedTuple

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from companions.secure_chat.storage import Database, Deadlock, Taken, login_tries

FREE_TRIES = 5
FREE_OF_ADDRESS = 100  # in each minute: a school may be behind one address
FIRST_WAIT_MS = 1_000
MAX_WAIT_MS = 60_000
FORGET_MS = 900_000
IPV6_PREFIX = 64  # of an address: one subscriber has all that begin with it


class Subject(NamedTuple):
    """What tries are counted for."""

    key: str  # SHA-256 in hex
    free: int  # tries before the first wait
    is_cleared: bool  # by a success; others only take its own count back


class Tries:
    """The counters in a database, for all threads. `clock` is in milliseconds."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        with database.transaction() as connection:
            old = login_tries.c.free_at < clock() - FORGET_MS
            connection.execute(login_tries.delete().where(old))

    def count(self, subject: Subject) -> bool:
        """Count a try, and return whether it may be judged. Raises StorageFailed."""
        while True:
            with contextlib.suppress(Deadlock), self._database.transaction() as connection:
                one_more = {"tries": login_tries.c.tries + 1}
                changed = connection.execute(_update(subject).values(one_more))
                if changed.rowcount:  # the row is ours until the end of the transaction
                    return self._may(connection, subject)
            first = {"subject": subject.key, "tries": 0, "free_at": self._clock()}
            with contextlib.suppress(Taken):
                self._database.insert(login_tries, first)

    def _may(self, connection: Connection, subject: Subject) -> bool:
        row = sql.select(login_tries.c.tries, login_tries.c.free_at)
        tries, free_at = connection.execute(row.where(login_tries.c.subject == subject.key)).one()
        now = self._clock()
        if 0 < free_at - now <= MAX_WAIT_MS:  # longer only if the clock was set back
            return False
        if now - free_at > FORGET_MS:
            tries = 1
        values = {"tries": tries, "free_at": now + wait_ms(tries, subject.free)}
        connection.execute(_update(subject).values(values))
        return True

    def undo(self, subject: Subject) -> None:
        """Take back the count of a try that was right, or was not judged. Raises StorageFailed."""
        undone = {"tries": login_tries.c.tries - 1, "free_at": self._clock()}
        with self._database.transaction() as connection:
            connection.execute(_update(subject).values(undone))

    def clear(self, subject: Subject) -> None:
        """Forget all tries. Raises StorageFailed."""
        with self._database.transaction() as connection:
            connection.execute(login_tries.delete().where(login_tries.c.subject == subject.key))


def _update(subject: Subject) -> sql.Update:
    return login_tries.update().where(login_tries.c.subject == subject.key)


def wait_ms(tries: int, free: int) -> int:
    """Return how long nobody may try after so many tries."""
    doublings = tries - free
    if doublings < 0:
        return 0
    return min(FIRST_WAIT_MS << min(doublings, 16), MAX_WAIT_MS)


# Subjects -----------------------------------------------------------------------------------------


def of_account(email: bytes, fingerprint: str) -> Subject:
    """Count for an account with one certificate: tries with another never lock its owner out."""
    return _subject(FREE_TRIES, "account", email, fingerprint.encode("ascii"), is_cleared=True)


def of_certificate(fingerprint: str) -> Subject:
    """Count for a certificate, whatever accounts it is tried on."""
    return _subject(FREE_TRIES, "certificate", fingerprint.encode("ascii"))


def of_address(ip: str, now_ms: int) -> Subject | None:
    """Count for an IP address, in this minute; None on loopback, where a whole class sits."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback:
        return None
    length = IPV6_PREFIX if address.version == 6 else address.max_prefixlen
    network = ipaddress.ip_network((address, length), strict=False)
    minute = now_ms // MAX_WAIT_MS
    return _subject(FREE_OF_ADDRESS, "address", str(network).encode(), str(minute).encode())


def _subject(free: int, kind: str, *parts: bytes, is_cleared: bool = False) -> Subject:
    named = b"\0".join((kind.encode("ascii"), *parts))  # a folded name has no zero byte
    return Subject(hashlib.sha256(named).hexdigest(), free, is_cleared)
