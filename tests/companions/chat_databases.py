"""Databases for the tests of secure_chat: a file, and a MariaDB server of the tests' own.

The server listens on loopback, in a folder that goes with it, and needs no service manager. Its
default character set is latin1, as it may be wherever a student installs ours.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from companions.asymmetric import PrivateKey
from companions.secure_chat import accounts
from companions.secure_chat.storage import Database
from tests.companions.chat_helpers import ALICE, BOB, NOW_MS, Authority, identity_of

USER = "chat"
PASSWORD = "hunter22"
RIGHT = "correct horse"  # password of an account
LIMIT_S = 120.0  # for a server to start: other tests may run beside it
Rows = list[tuple[Any, ...]]


def quick_accounts(database: Database, *clock: Callable[[], int]) -> accounts.Accounts:
    """Return accounts whose hashes are quickly made, for tests that are about other things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "PASSES", 1)
        patch.setattr(accounts, "MEMORY_KIB", 64)
        return accounts.Accounts(database, *clock)


class Owners:
    """Accounts whose clock is set by hand, and two owners."""

    def __init__(self, database: Database, keys: list[PrivateKey]) -> None:
        self.now = NOW_MS
        self.database = database
        self.accounts = self.opened()
        authority = Authority(keys[0])
        self.alice = identity_of(authority.issue("client", ALICE, keys[1]), "client", ALICE)
        self.bob = identity_of(authority.issue("client", BOB, keys[2]), "client", BOB)
        self.renewed = identity_of(authority.issue("client", ALICE, keys[3]), "client", ALICE)
        self.account = self.accounts.register(self.alice, ALICE, "alice", RIGHT)
        self.accounts.register(self.bob, BOB, "bob", RIGHT)

    def opened(self) -> accounts.Accounts:
        """Return the accounts as another server on the same database has them."""
        return quick_accounts(self.database, lambda: self.now)


class Place(Protocol):
    """A database to test with, and another way to ask it than the code's."""

    url: str
    folder: Path  # where all that it keeps is

    def rows(self, query: str) -> Rows: ...


class SqliteFile:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "chat.db"
        self.url = f"sqlite:///{self.path}"

    def rows(self, query: str) -> Rows:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()


class MariaDb:
    """A server, which can be stopped, killed and started again. Skips the test if there is none."""

    def __init__(self) -> None:
        search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
        self._program = shutil.which("mariadbd", path=search)
        self._install = shutil.which("mariadb-install-db", path=search)
        if not self._program or not self._install:
            pytest.skip("MariaDB is not installed")
        pytest.importorskip("pymysql")
        self._numbers = itertools.count(1)
        self._user = ["--user=mysql"] if os.name == "posix" and os.geteuid() == 0 else []

    def __enter__(self) -> MariaDb:
        with contextlib.ExitStack() as stack:
            self._home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.folder = self._home / "data"
            self.folder.mkdir()
            if self._user:
                for path in (self._home, self.folder):
                    shutil.chown(path, "mysql")
            self._set_up()
            # kept bound, but silent, so that nobody else is given the port while the server is down
            port = stack.enter_context(socket.socket())
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", 0))
            self.port: int = port.getsockname()[1]
            stack.callback(self.stop)
            self.start()
            self.execute(f"CREATE USER {USER}@localhost IDENTIFIED BY '{PASSWORD}'")
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _set_up(self) -> None:
        flags = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin"]
        subprocess.run(
            [str(self._install), "--no-defaults", f"--datadir={self.folder}", *self._user, *flags],
            check=True,
            capture_output=True,
        )

    def start(self) -> None:
        """Start the server, and wait until it says that it is ready."""
        self._process = subprocess.Popen(
            [
                str(self._program),
                "--no-defaults",
                *self._user,
                f"--datadir={self.folder}",
                f"--socket={self._home / 'socket'}",
                f"--pid-file={self._home / 'pid'}",
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                "--character-set-server=latin1",
                "--collation-server=latin1_swedish_ci",
                "--innodb-buffer-pool-size=16M",
                "--innodb-log-file-size=8M",
            ],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        is_ready = threading.Event()  # or at its end
        said: list[str] = []
        threading.Thread(target=self._read, args=(said, is_ready), daemon=True).start()
        assert is_ready.wait(LIMIT_S), said
        assert any("ready for connections" in line for line in said), said

    def _read(self, said: list[str], is_ready: threading.Event) -> None:
        """Read what the server logs, to its end, so that it never waits for us."""
        assert self._process.stderr
        with self._process.stderr as lines:
            for line in lines:
                said.append(line)
                if "ready for connections" in line:
                    is_ready.set()
        is_ready.set()

    def stop(self) -> None:
        """Let the server write what it has, and end."""
        self._process.terminate()
        self._process.wait(LIMIT_S)

    def execute(self, statement: str, database: str | None = None) -> Rows:
        """Do something as the administrator, with nothing of SQLAlchemy."""
        import pymysql

        with pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True
        ) as connection:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall())

    def kill_connections(self) -> int:
        """Cut every connection of the code under test, and return how many there were."""
        from pymysql.err import OperationalError

        query = f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'"
        found = self.execute(query)
        for (number,) in found:
            with contextlib.suppress(OperationalError):  # it has gone by itself
                self.execute(f"KILL {number}")
        return len(found)

    @contextlib.contextmanager
    def place(self, dialect: str = "mysql") -> Iterator[MariaPlace]:
        """Give a new database, which is dropped again."""
        name = f"chat{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        self.execute(f"GRANT ALL ON {name}.* TO {USER}@localhost")
        yield MariaPlace(self, name, dialect)
        self.kill_connections()
        self.execute(f"DROP DATABASE {name}")


class MariaPlace:
    def __init__(self, server: MariaDb, name: str, dialect: str) -> None:
        self.server = server
        self.folder = server.folder
        self.name = name
        self.url = f"{dialect}+pymysql://{USER}:{PASSWORD}@127.0.0.1:{server.port}/{name}"

    def rows(self, query: str) -> Rows:
        return self.server.execute(query, self.name)
