"""secure_chat on a database that cuts connections, goes away and comes back; a server that dies."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from companions.asymmetric import PrivateKey
from companions.secure_chat.client import explain
from companions.secure_chat.protocol import PeerEnded
from companions.secure_chat.storage import Database, StorageFailed
from program import UserError
from tests.companions.chat_databases import MariaDb, MariaPlace, Place
from tests.companions.chat_helpers import ALICE, BOB
from tests.companions.chat_programs import LIMIT_S, PASSWORDS, PROGRAM, House, Typed, say

pytestmark = pytest.mark.slow


@pytest.fixture
def maria(mariadb: MariaDb) -> Iterator[MariaPlace]:
    with mariadb.place() as place:
        yield place


@pytest.fixture
def house(keys: list[PrivateKey], tmp_path: Path, maria: MariaPlace) -> Iterator[House]:
    with House(keys, tmp_path, maria.url).open() as house:
        yield house


def test_connections_killed_in_mid_chat_are_missed_by_nobody(
    house: House, maria: MariaPlace
) -> None:
    with house.members() as (alice, bob):
        say(alice, "before", bob)
        assert maria.server.kill_connections() > 0
        say(bob, "after", alice)
        kept = [alice.settle(), bob.settle()]
    assert [(one.is_countersigned, one.messages) for one in kept] == [(True, 2)] * 2
    assert maria.rows("SELECT message_count FROM sessions WHERE ended_at IS NOT NULL") == [
        (2,),
        (2,),
    ]


def test_database_that_goes_away_is_one_sentence_and_one_line_until_it_is_back(
    house: House, maria: MariaPlace, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)
    with house.members() as (alice, bob):
        maria.server.stop()
        try:
            with house.client() as other, pytest.raises(PeerEnded) as caught:
                other.log_in(ALICE, PASSWORDS[ALICE])
            say(alice, "we go on", bob)
        finally:
            maria.server.start()
        house.await_record(lambda record: isinstance(record.detail, StorageFailed))
        lines = [one.getMessage() for one in caplog.records if "database" in one.getMessage()]
        sentence = explain(caught.value)
        with house.client(BOB, 3) as again:
            again.log_in(BOB, PASSWORDS[BOB])
        assert alice.settle().is_countersigned
    assert sentence.startswith("the server ended the session")
    assert "\n" not in sentence
    assert len(lines) == 1
    assert "Can't connect to MySQL server" in lines[0]
    assert PASSWORDS[ALICE] not in lines[0]


def test_server_that_finds_no_database_says_so_in_one_sentence(maria: MariaPlace) -> None:
    for url in (maria.url + "x", maria.url.replace("hunter22", "hunter23")):
        with pytest.raises(UserError, match="Database connection failed: ") as caught:
            Database(url)
        assert "\n" not in str(caught.value)
        assert "hunter23" not in str(caught.value)


def test_tables_are_utf8_and_compare_bytes_where_the_default_is_latin1(maria: MariaPlace) -> None:
    Database(maria.url).close()
    assert maria.rows("SELECT @@character_set_database") == [("latin1",)]
    query = "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema ="
    found = maria.rows(f"{query} '{maria.name}' AND collation_name IS NOT NULL")
    assert found == [("utf8mb4_bin",)]
    kinds = maria.rows(
        f"SELECT data_type FROM information_schema.columns WHERE table_schema ="
        f" '{maria.name}' AND column_name IN ('email', 'username')"
        " AND table_name = 'users'"
    )
    assert kinds == [("varbinary",)] * 2


def test_times_are_in_utc_whatever_the_servers_zone(maria: MariaPlace) -> None:
    maria.server.execute("SET GLOBAL time_zone = '+05:00'")
    try:
        database = Database(maria.url)
        database.audit("login_failure", ALICE)
        [kept] = database.events()
        with database.transaction() as connection:
            now = connection.scalar(sql.text("SELECT UTC_TIMESTAMP()"))
        database.close()
    finally:
        maria.server.execute("SET GLOBAL time_zone = 'SYSTEM'")
    assert abs((now - kept["occurred_at"]).total_seconds()) < LIMIT_S


@contextlib.contextmanager
def running(typed: Typed) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server that need not live to the end; give its port, and its process."""
    with subprocess.Popen(
        [*PROGRAM, "companions.secure_chat.server", "--port", "0"],
        cwd=typed.folder,
        env=typed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip().rpartition(":")[2], process
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("place", ["sqlite", "mariadb"], indirect=True)
def test_server_that_is_killed_has_lost_nothing_that_it_acknowledged(
    keys: list[PrivateKey], tmp_path: Path, place: Place
) -> None:
    typed = Typed(keys, tmp_path)
    typed.environment["DATABASE_URL"] = place.url
    texts = [f"text {number}" for number in range(20)]
    with running(typed) as (port, process):
        words = [*PROGRAM, "companions.secure_chat.client", "--port", port]
        client = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=typed.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        with client:
            assert client.stdin
            assert client.stdout
            client.stdin.write("register\nalice\na very secret password\n")
            client.stdin.writelines(f"{text}\n" for text in texts)
            client.stdin.flush()
            while not client.stdout.readline().endswith(f"{ALICE}: {texts[-1]}\n"):
                assert client.poll() is None
            process.kill()
            process.wait(LIMIT_S)
    assert place.rows("SELECT username FROM users") == [(b"alice",)]
    assert len(place.rows("SELECT id FROM sessions")) == 1
    [transcript] = (tmp_path / "transcripts").glob("room_lobby_*.txt")
    assert len(transcript.read_text("ascii").splitlines()) == 2 * len(texts)
    with typed.server() as port:
        again = typed.client(port, "login\na very secret password\nquit\n")
        assert again.returncode == 0, again.stderr
