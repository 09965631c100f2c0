"""Accounts: who may log in, with which password and which certificate.

Passwords reach this module inside the authenticated channel, and leave it only as argon2id strings
(RFC 9106). A refused login costs the same work and gets the same answer, whatever was wrong: the
reason is for the audit log. An account belongs to the e-mail address that its owner's certificate
names, so a renewed certificate still logs in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sql
from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError

from companions.secure_chat import tries
from companions.secure_chat.pki import ADDRESS, Identity, fold, now_ms
from companions.secure_chat.storage import (
    MAX_NAME_BYTES,
    Database,
    StorageFailed,
    Taken,
    resumable,
    sessions,
    users,
)
from companions.secure_chat.tries import Subject, Tries
from protocol_fsm import ProtocolError

TOKEN_BYTES = 32
TOKEN_LIFE_MS = 12 * 3_600_000  # a day's work
MEMORY_KIB = 19 * 1024  # these three are the OWASP cheat sheet's: some 50 ms
PASSES = 2
LANES = 1
MAX_MEMORY_KIB = 128 * 1024  # the most that a stored row may ask for
MAX_PASSES = 10
MAX_LANES = 4
MIN_PASSWORD = 8  # characters
MAX_PASSWORD = 1_024  # bytes
MAX_QUEUE = 64  # passwords that may wait for a processor: some two seconds
LOOPBACK = "127.0.0.1"

Result = TypeVar("Result")


class Refused(ProtocolError):
    """No such login, or no such registration: `got` is the reason, for the audit log only."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)
        self.reason = reason


class Busy(Refused):
    """Too many passwords wait to be hashed: this one was not looked at."""


@dataclass(frozen=True)
class Account:
    """One row of `users`, with the names as the database compares them."""

    user_id: int
    email: str
    username: str


class Accounts:
    """The accounts in a database, for all threads. Each rule is a method, for the lab to remove."""

    def __init__(self, database: Database, clock: Callable[[], int] = now_ms) -> None:
        self.database = database
        self._clock = clock
        self._tries = Tries(database, clock)
        self._hasher = PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
        )
        self.cores = os.cpu_count() or 1
        self._workers = ThreadPoolExecutor(self.cores)  # each keeps its 19 MiB
        self._places = threading.Semaphore(self.cores + MAX_QUEUE)
        self._nobody = self._hash(secrets.token_hex(16))

    def register(
        self, identity: Identity, email: str, username: str, password: str, ip: str = LOOPBACK
    ) -> Account:
        """Make an account for the owner of a certificate. Raises Refused and StorageFailed."""
        with self._limited(identity, name_key(email), ip):
            if not ADDRESS.fullmatch(fold(email)):
                raise Refused("the e-mail address is none")
            self._check_binding(identity, email)
            names = {"email": name_key(email), "username": name_key(username)}
            row = {**names, "pwd_hash": self._hash(password)}
            try:
                made = self.database.insert(users, row)
            except Taken:  # the database decides, so that of many at once only one succeeds
                raise Refused("the e-mail address or the user name is taken") from None
            return Account(made, fold(email), fold(username))

    def login(self, identity: Identity, email: str, password: str, ip: str = LOOPBACK) -> Account:
        """Return the account of this address, password and certificate. Raises Refused.

        The password of an unknown user is compared with a hash that no password has.
        """
        with self._limited(identity, name_key(email), ip):
            row = self._find(email)
            stored = row.pwd_hash if row else self._unknown_user()
            is_right = self._is_right(stored, password)
            if row is None:
                raise Refused("unknown user")
            if not is_right:
                raise Refused("wrong password")
            self._check_binding(identity, email)
            if self._is_outdated(row.pwd_hash):
                self._store_hash(row.id, self._hash(password))
            return account_of(row.id, row)

    # Sessions

    def new_session(self, account: Account, client_fp: str, server_fp: str) -> bytes:
        """Begin a session, and return its token (32 bytes), of which the hash is kept.

        The audit log notes if another certificate was used for this address before.
        """
        token = secrets.token_bytes(TOKEN_BYTES)
        mine = sessions.c.user_id == account.user_id
        latest = sql.select(sessions.c.client_cert_fingerprint).where(mine)
        with self.database.transaction() as connection:
            before = connection.scalar(latest.order_by(sessions.c.id.desc()).limit(1))
            made = connection.execute(
                sessions.insert().values(
                    user_id=account.user_id,
                    session_token=token_hash(token),
                    client_cert_fingerprint=client_fp,
                    server_cert_fingerprint=server_fp,
                )
            )
            expires_at = self._clock() + TOKEN_LIFE_MS
            row = {"session_id": made.lastrowid, "expires_at": expires_at}
            connection.execute(resumable.insert().values(row))
        if before not in (None, client_fp):
            self.database.audit("other_certificate", account.email, client_fp, f"before: {before}")
        return token

    def end_session(self, token: bytes, transcript_hash: str, message_count: int) -> None:
        """Keep what the session's transcript was. Raises StorageFailed."""
        mine = sessions.c.session_token == token_hash(token)
        with self.database.transaction() as connection:
            connection.execute(
                sessions.update()
                .where(mine)
                .values(
                    transcript_hash=transcript_hash,
                    message_count=message_count,
                    ended_at=sql.func.current_timestamp(),
                )
            )

    def resume(self, identity: Identity, token: bytes) -> Account:
        """Return the account of the session that had this token, once. Raises Refused.

        A token shown too late, or with another certificate, is spent too: it is in the wrong hands.
        """
        found = self._session_of(token)
        if found is None or not self._spend(found.id):
            raise Refused("an unknown or used token")
        self._check_expiry(found.expires_at)
        self._check_holder(identity, found.client_cert_fingerprint)
        return account_of(found.user_id, found)

    def forget_token(self, token: bytes) -> None:
        """Let nobody resume a session that ended in peace. Raises StorageFailed."""
        found = self._session_of(token)
        if found:
            self._spend(found.id)

    def _session_of(self, token: bytes) -> Any:
        """Return the session that can be resumed with a token, and its account."""
        query = sql.select(
            sessions.c.id,
            sessions.c.user_id,
            sessions.c.client_cert_fingerprint,
            resumable.c.expires_at,
            users.c.email,
            users.c.username,
        )
        query = query.join_from(sessions, resumable).join(users)
        with self.database.transaction() as connection:
            mine = sessions.c.session_token == token_hash(token)
            return connection.execute(query.where(mine)).one_or_none()

    # Rules

    def _spend(self, session: int) -> bool:
        """Return whether this is the first use of a session's token: of many at once, one is."""
        with self.database.transaction() as connection:
            mine = resumable.c.session_id == session
            return connection.execute(resumable.delete().where(mine)).rowcount == 1

    def _check_expiry(self, expires_at: int) -> None:
        if self._clock() >= expires_at:
            raise Refused("a token that has expired")

    def _check_holder(self, identity: Identity, fingerprint: str) -> None:
        """Raise Refused unless the token was given to the owner of this very certificate."""
        if identity.fingerprint != fingerprint:
            raise Refused(f"a token of another certificate than that of {identity.name}")

    def _subjects(self, identity: Identity, email: bytes, ip: str) -> list[Subject]:
        """Return the subjects that this try counts for."""
        found = [
            tries.of_account(email, identity.fingerprint),
            tries.of_certificate(identity.fingerprint),
            tries.of_address(ip, self._clock()),
        ]
        return [one for one in found if one]

    @contextlib.contextmanager
    def _limited(self, identity: Identity, email: bytes, ip: str) -> Iterator[None]:
        """Count a try before the block judges it, and take back one that was right. Raises Refused.

        The wait depends on the number of tries only, so it reveals nothing about an account.
        """
        subjects = self._subjects(identity, email, ip)
        may = [self._tries.count(one) for one in subjects]
        if not all(may):
            raise Refused("too many tries: this one came too early")
        try:
            yield
        except Busy:
            for one in subjects:
                self._tries.undo(one)
            raise
        for one in subjects:
            if one.is_cleared:
                self._tries.clear(one)
            else:
                self._tries.undo(one)

    def _check_binding(self, identity: Identity, email: str) -> None:
        """Raise Refused unless the certificate names this address."""
        if identity.role != "client" or identity.name != fold(email):
            raise Refused(f"the certificate is of {identity.name}")

    def _unknown_user(self) -> bytes:
        """Return a hash for an unknown user, whose login must take as long as any."""
        return self._nobody

    def _hash(self, password: str) -> bytes:
        """Return what is stored for a password. Raises Refused for one too short or too long."""
        if len(password) < MIN_PASSWORD:
            raise Refused(f"a password of fewer than {MIN_PASSWORD} characters")
        secret = password_bytes(password)
        return self._work(lambda: self._hasher.hash(secret)).encode("ascii")

    def _is_right(self, stored: bytes, password: str) -> bool:
        """Return whether the password is the stored one; no if the row asks for too much work."""
        is_bounded = _is_bounded(stored)
        known = stored if is_bounded else self._nobody
        secret = password_bytes(password)
        try:
            return self._work(lambda: self._hasher.verify(known, secret)) and is_bounded
        except (VerificationError, InvalidHashError):
            return False

    def _work(self, hashing: Callable[[], Result]) -> Result:
        """Wait in the queue, and hash, on as many processors as there are. Raises Busy."""
        if not self._places.acquire(blocking=False):
            raise Busy("too many passwords at once")
        try:
            return self._workers.submit(hashing).result()
        finally:
            self._places.release()

    def _is_outdated(self, stored: bytes) -> bool:
        return self._hasher.check_needs_rehash(stored.decode("ascii"))

    # Rows

    def _find(self, email: str) -> sql.Row[int, bytes, bytes, bytes] | None:
        query = sql.select(users.c.id, users.c.email, users.c.username, users.c.pwd_hash)
        with self.database.transaction() as connection:
            row = connection.execute(query.where(users.c.email == name_key(email))).one_or_none()
        if row and not all(isinstance(one, bytes) for one in row[1:]):
            raise StorageFailed("names and hash as bytes", f"an edited row of {fold(email)}")
        return row

    def _store_hash(self, user_id: int, pwd_hash: bytes) -> None:
        with self.database.transaction() as connection:
            mine = users.c.id == user_id
            connection.execute(users.update().where(mine).values(pwd_hash=pwd_hash))


def account_of(user_id: int, row: Any) -> Account:
    """Return the account whose names are in a row."""
    return Account(user_id, row.email.decode("utf-8"), row.username.decode("utf-8", "replace"))


def token_hash(token: bytes) -> str:
    """Return what is stored of a token (hex): a thief of the table can resume nothing."""
    return hashlib.sha256(token).hexdigest()


def name_key(name: str) -> bytes:
    """Return the bytes by which a name is compared: 1 to 255, of folded text. Raises Refused."""
    folded = fold(name)
    try:
        key = folded.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("a name with half a character") from None
    if not 1 <= len(key) <= MAX_NAME_BYTES or folded != folded.strip() or not folded.isprintable():
        raise Refused("a name of the wrong length, or with spaces or unprintable characters")
    return key


def password_bytes(password: str) -> bytes:
    """Return the same bytes for a password from any keyboard: NFC, UTF-8. Raises Refused."""
    try:
        secret = unicodedata.normalize("NFC", password).encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("a password with half a character") from None
    if len(secret) > MAX_PASSWORD:
        raise Refused(f"a password of more than {MAX_PASSWORD} bytes")
    return secret


def _is_bounded(stored: bytes) -> bool:
    """Return whether a stored string is argon2id, and asks for no more work than is allowed."""
    try:
        asked = extract_parameters(stored.decode("ascii"))
    except (InvalidHashError, ValueError):
        return False
    return (
        asked.type is Type.ID
        and asked.memory_cost <= MAX_MEMORY_KIB
        and asked.time_cost <= MAX_PASSES
        and asked.parallelism <= MAX_LANES
    )
