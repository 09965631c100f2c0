"""The database: accounts, sessions, and the audit log, in the document's tables; two more of ours.

SQLite in a file unless the settings name another database; SQLAlchemy writes both. Names are kept
as bytes, because databases disagree on which letters are the same: two names are one only if their
folded UTF-8 is. What an account or a peer says is a parameter of a statement, never a part of one.

    python -m companions.secure_chat.storage mysql     prints the schema (also: sqlite)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from companions.secure_chat.pki import fold
from program import Parser, UserError, reason_of, run_program
from protocol_fsm import ProtocolError

MAX_NAME_BYTES = 255  # of an e-mail address, a user name, a stored hash
BUSY_S = 30  # how long SQLite waits for another writer
DEADLOCK = 1213  # ER_LOCK_DEADLOCK
MAX_DEADLOCKS = 50  # of one row, as others insert the same
EVENT_TEXTS = ("event_type", "email", "client_cert_fingerprint", "reason", "ip_address")
MYSQL = {  # of each connection: times are in UTC, and nothing waits for ever
    "charset": "utf8mb4",
    "init_command": "SET time_zone = '+00:00'",
    "connect_timeout": 5,
    "read_timeout": BUSY_S,
    "write_timeout": BUSY_S,
}
DIALECTS = {"mysql": mysql.dialect, "sqlite": sqlite.dialect}


class StorageFailed(ProtocolError):
    """The database is unreachable, full, or altered."""


class Deadlock(StorageFailed):
    """The database gave up this one of two transactions that waited for each other."""


class Taken(ProtocolError):
    """A row with this e-mail address, user name or token exists already."""


# Tables -------------------------------------------------------------------------------------------

NAME = sql.LargeBinary(MAX_NAME_BYTES).with_variant(mysql.VARBINARY(MAX_NAME_BYTES), "mysql")
HASH = sql.String(64)  # SHA-256 in hex
SECONDS: Any = sqlite.DATETIME  # without annotations of its own
TIME = sql.TIMESTAMP().with_variant(SECONDS(truncate_microseconds=True), "sqlite")
SCHEMA = sql.MetaData()


def _now() -> Any:
    return sql.text("CURRENT_TIMESTAMP")


def _table(name: str, *columns: sql.Column[Any]) -> sql.Table:
    """Return a table; its texts are UTF-8 and compared as bytes, whatever the database's are."""
    return sql.Table(
        name,
        SCHEMA,
        *columns,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )


def _key() -> sql.Column[int]:
    return sql.Column("id", sql.Integer, primary_key=True, autoincrement=True)


users = _table(
    "users",
    _key(),
    sql.Column("email", NAME, unique=True, nullable=False),
    sql.Column("username", NAME, unique=True, nullable=False),
    sql.Column("pwd_hash", NAME, nullable=False),
    sql.Column("created_at", sql.TIMESTAMP, server_default=_now()),
    sql.Column("updated_at", sql.TIMESTAMP, server_default=_now(), onupdate=_now()),
)
sessions = _table(
    "sessions",
    _key(),
    sql.Column("user_id", sql.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    sql.Column("session_token", HASH, unique=True, nullable=False),
    sql.Column("client_cert_fingerprint", HASH, nullable=False),
    sql.Column("server_cert_fingerprint", HASH, nullable=False),
    sql.Column("transcript_hash", HASH),
    sql.Column("started_at", sql.TIMESTAMP, server_default=_now()),
    sql.Column("ended_at", sql.TIMESTAMP, nullable=True),
    sql.Column("message_count", sql.Integer, server_default=sql.text("0")),
)
resumable = _table(  # sessions whose token has not been used yet
    "resumable",
    sql.Column("session_id", sql.ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    sql.Column("expires_at", sql.BigInteger, nullable=False),  # in ms since 1970
)
audit_log = _table(
    "audit_log",
    _key(),
    sql.Column("event_type", sql.String(50), nullable=False),
    sql.Column("email", sql.String(255)),
    sql.Column("client_cert_fingerprint", HASH),
    sql.Column("reason", sql.String(255)),
    sql.Column("occurred_at", TIME, server_default=_now()),
    sql.Column("ip_address", sql.String(45)),
)
login_tries = _table(  # see tries.py
    "login_tries",
    sql.Column("subject", HASH, primary_key=True),
    sql.Column("tries", sql.Integer, nullable=False),
    sql.Column("free_at", sql.BigInteger, nullable=False),  # in ms since 1970
)


def schema(dialect: str) -> str:
    """Return the statements that make the tables, for "mysql" or "sqlite"."""
    compiled = (
        str(CreateTable(table).compile(dialect=DIALECTS[dialect]())).strip()
        for table in SCHEMA.sorted_tables
    )
    lines = (f"{one};".replace("\t", "  ").splitlines() for one in compiled)
    return "\n\n".join("\n".join(line.rstrip() for line in one) for one in lines) + "\n"


# The database -------------------------------------------------------------------------------------


class Database:
    """One database, for all threads. Raises UserError.

    The tables are made if there are none, unless somebody only wants to read. A connection that
    the database has closed meanwhile is found before it is used, and replaced.
    """

    def __init__(self, url: str, *, is_read_only: bool = False) -> None:
        try:
            address = make_url(url)
            is_sqlite = address.get_backend_name() == "sqlite"
            self._engine = sql.create_engine(
                address,
                pool_pre_ping=True,
                hide_parameters=True,
                connect_args={} if is_sqlite else MYSQL,
            )
            if is_sqlite:
                if not (is_read_only and Path(address.database or "").is_file()):
                    _make_file(address.database, is_read_only)
                sql.event.listen(self._engine, "connect", _prepare_sqlite)
            self._engine.connect().close()  # finds what is wrong with the address
            if not is_read_only:
                SCHEMA.create_all(self._engine)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise UserError(f"DATABASE_URL names no database: {error}") from None
        except (ValueError, TypeError):  # their words may quote a password
            raise UserError("DATABASE_URL has an invalid port or option") from None
        except (SQLAlchemyError, OSError) as error:
            raise UserError(f"Database connection failed: {_short(error)}") from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; all of the block is done, or nothing.

        Raises Taken for a row that is unique and exists, and StorageFailed.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise Taken("a row that is new", "one that exists") from None
        except SQLAlchemyError as error:
            kind = Deadlock if _is_deadlock(error) else StorageFailed
            raise kind("a database that works", _short(error)) from None

    def insert(self, table: sql.Table, row: Mapping[str, object]) -> int:
        """Insert a row, and return its id, 0 if it has none. Raises Taken and StorageFailed.

        Two that insert the same may wait for each other: the one that is given up tries again.
        """
        for _ in range(MAX_DEADLOCKS):
            with contextlib.suppress(Deadlock), self.transaction() as connection:
                assigned = connection.execute(table.insert().values(**row)).inserted_primary_key
                return int(assigned[0]) if assigned and "id" in table.c else 0
        raise StorageFailed("a database that works", f"{MAX_DEADLOCKS} deadlocks")

    def audit(
        self,
        event_type: str,
        email: str | None = None,
        fingerprint: str | None = None,
        reason: str | None = None,
        ip: str | None = None,
    ) -> None:
        """Keep an event. Texts are cut and escaped, whatever a peer put there. StorageFailed."""
        self.insert(
            audit_log,
            {
                "event_type": event_type,
                "email": _escaped(fold(email)) if email is not None else None,
                "client_cert_fingerprint": fingerprint,
                "reason": _escaped(reason),
                "ip_address": ip,
            },
        )

    def events(
        self,
        event_type: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """Return the events of a type, a user, a time in UTC, the oldest first. StorageFailed."""
        query = audit_log.select().order_by(audit_log.c.id)
        if event_type is not None:
            query = query.where(audit_log.c.event_type == event_type)
        if user is not None:
            query = query.where(audit_log.c.email == _escaped(fold(user)))
        if since is not None:
            query = query.where(audit_log.c.occurred_at >= since)
        if until is not None:
            query = query.where(audit_log.c.occurred_at < until)
        edited = StorageFailed("rows as they were written", "a row that was edited")
        with self.transaction() as connection:
            try:
                found = [dict(row) for row in connection.execute(query).mappings()]
            except (ValueError, TypeError):  # no time where there should be one
                raise edited from None
        if not all(map(_is_event, found)):
            raise edited
        return found

    def close(self) -> None:
        self._engine.dispose()


def _make_file(path: str | None, is_read_only: bool) -> None:
    """Make the file, which only its owner can read. Raises OSError."""
    if not path or path == ":memory:":
        raise OSError("each thread would have its own database in memory; name a file")
    if is_read_only:
        raise OSError(f"there is no file {path}")
    os.close(os.open(Path(path), os.O_RDWR | os.O_CREAT, 0o600))


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Let readers and a writer work at once, wait for other writers, and check foreign keys."""
    for pragma in ("journal_mode = WAL", f"busy_timeout = {BUSY_S * 1000}", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _escaped(text: str | None) -> str | None:
    """Return printable ASCII of at most 255 letters: no character set can refuse or change it."""
    return text if text is None else ascii(text)[1:-1][:255]


def _is_event(row: Mapping[str, Any]) -> bool:
    """Return whether a row is of the form in which `audit` keeps it, and so can be shown."""
    texts = [row[name] or "" for name in EVENT_TEXTS]
    is_shown = all(isinstance(text, str) and text.isprintable() for text in texts)
    return is_shown and isinstance(row["occurred_at"], datetime)


def _is_deadlock(error: SQLAlchemyError) -> bool:
    """Return whether MySQL or MariaDB says so, by its number."""
    original = getattr(error, "orig", None)
    return original is not None and original.args[:1] == (DEADLOCK,)


def _short(error: Exception) -> str:
    """Return what the driver says, without the statement and its parameters."""
    return reason_of(getattr(error, "orig", None) or error).partition("\n")[0][:200]


def main() -> int:
    parser = Parser("Print the statements that make the tables.")
    parser.add_argument("dialect", choices=sorted(DIALECTS))
    print(schema(parser.options().dialect), end="")
    return 0


if __name__ == "__main__":
    run_program(main)
