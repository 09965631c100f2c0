"""secure_chat: accounts, the database, the settings, and the schema."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sql
from argon2 import PasswordHasher, Type

from companions.asymmetric import PrivateKey
from companions.secure_chat import accounts, storage, tries
from companions.secure_chat.accounts import Account, Accounts, Refused
from companions.secure_chat.pki import Identity, fold
from companions.secure_chat.options import Settings, load_settings
from companions.secure_chat.storage import Database, StorageFailed, Taken
from program import UserError
from tests.companions.chat_databases import Place, SqliteFile, quick_accounts
from tests.companions.chat_helpers import ALICE, BOB, Authority, identity_of
from tests.network import at_once

PASSWORD = "correct horse"
FOLDER = Path(storage.__file__).parent


@pytest.fixture
def database(place: Place) -> Iterator[Database]:
    with contextlib.closing(Database(place.url)) as database:
        yield database


@pytest.fixture
def some(database: Database) -> Accounts:
    return quick_accounts(database)


@pytest.fixture
def real(database: Database) -> Accounts:
    """Accounts whose hashes take as long as outside of tests."""
    return Accounts(database)


@pytest.fixture
def alice(keys: list[PrivateKey]) -> Identity:
    return identity_of(Authority(keys[0]).issue("client", ALICE, keys[1]), "client", ALICE)


@pytest.fixture
def bob(keys: list[PrivateKey]) -> Identity:
    return identity_of(Authority(keys[0]).issue("client", BOB, keys[2]), "client", BOB)


@pytest.fixture
def account(some: Accounts, alice: Identity) -> Account:
    return some.register(alice, ALICE, "Alice", PASSWORD)


# Registration and login ---------------------------------------------------------------------------


@pytest.mark.slow
def test_registered_user_can_log_in(some: Accounts, alice: Identity, account: Account) -> None:
    assert account == some.login(alice, "ALICE@example.org", PASSWORD) == Account(1, ALICE, "alice")


@pytest.mark.slow
def test_table_has_an_argon2id_string_and_no_password(
    real: Accounts, alice: Identity, place: Place
) -> None:
    real.register(alice, ALICE, "Alice", PASSWORD)
    [(email, username, pwd_hash)] = place.rows("SELECT email, username, pwd_hash FROM users")
    assert (email, username) == (ALICE.encode(), b"alice")
    assert isinstance(pwd_hash, bytes)
    assert pwd_hash.startswith(b"$argon2id$v=19$m=19456,t=2,p=1$")
    files = [path.read_bytes() for path in place.folder.rglob("*") if path.is_file()]
    for secret in (PASSWORD.encode(), hashlib.sha256(PASSWORD.encode()).hexdigest().encode()):
        assert not any(secret in data for data in files)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_database_is_its_owners(tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'chat.db'}").close()
    assert (tmp_path / "chat.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_refused_login_gives_the_reason_to_the_log_only(
    some: Accounts, alice: Identity, bob: Identity
) -> None:
    tries = {
        "wrong password": (alice, ALICE, "battery staple"),
        "unknown user": (bob, BOB, PASSWORD),
        f"the certificate is of {BOB}": (bob, ALICE, PASSWORD),
    }
    for reason, attempt in tries.items():
        with pytest.raises(Refused) as caught:
            some.login(*attempt)
        assert caught.value.reason == reason


@pytest.mark.slow
def test_server_cannot_log_in_as_a_client(
    some: Accounts, alice: Identity, keys: list[PrivateKey]
) -> None:
    server = Authority(keys[0]).issue("server", "localhost", keys[3])
    with pytest.raises(Refused, match="certificate"):
        some.register(identity_of(server, "server", ALICE), ALICE, "alice", PASSWORD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("email", "username", "password"),
    [
        (BOB, "alice", PASSWORD),
        ("alice@elsewhere.example", "alice", PASSWORD),
        (ALICE, "", PASSWORD),
        (ALICE, "a" * 256, PASSWORD),
        (ALICE, " alice", PASSWORD),
        (ALICE, "al\nice", PASSWORD),
        (ALICE, "al\u200bice", PASSWORD),
        (ALICE, "\ud800", PASSWORD),
        (ALICE, "alice", "seven77"),
        (ALICE, "alice", "a" * 1_025),
        (ALICE, "alice", PASSWORD + "\ud800"),
        ("no address", "alice", PASSWORD),
        (f"{'a' * 250}@example.org", "alice", PASSWORD),
    ],
)
def test_unfit_registration_leaves_nothing(
    some: Accounts, alice: Identity, place: Place, email: str, username: str, password: str
) -> None:
    with pytest.raises(Refused):
        some.register(alice, email, username, password)
    assert place.rows("SELECT * FROM users") == []


@pytest.mark.slow
@pytest.mark.parametrize("username", ["Alice", "ALICE", "\uff41lice"])
@pytest.mark.usefixtures("account")
def test_name_that_looks_taken_is_taken(
    some: Accounts, alice: Identity, bob: Identity, username: str
) -> None:
    with pytest.raises(Refused, match="taken"):
        some.register(bob, BOB, username, PASSWORD)


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), [("alice", "alicé"), ("😀", "😁"), ("ß1", "s1")])
def test_names_of_other_bytes_are_others(
    some: Accounts, alice: Identity, bob: Identity, one: str, other: str
) -> None:
    first = some.register(alice, ALICE, one, PASSWORD)
    second = some.register(bob, BOB, other, PASSWORD)
    assert first.username != second.username
    assert some.login(bob, BOB, PASSWORD) == second


@pytest.mark.parametrize("name", ["ﬁ", "İ", "ǅ", "ẞ", "ͅ", "\uff21LICE", "a\u0301"])
def test_folding_twice_changes_nothing(name: str) -> None:
    assert fold(fold(name)) == fold(name)


@pytest.mark.slow
def test_password_is_the_same_from_every_keyboard(some: Accounts, alice: Identity) -> None:
    some.register(alice, ALICE, "alice", "caf\u00e9 au lait")
    some.login(alice, ALICE, "cafe\u0301 au lait")
    with pytest.raises(Refused):
        some.login(alice, ALICE, "\uff43af\u00e9 au lait")  # a wide c is another letter


@pytest.mark.slow
def test_statement_in_a_name_is_a_name(some: Accounts, alice: Identity, place: Place) -> None:
    some.register(alice, ALICE, "'); DROP TABLE users; --", PASSWORD)
    for email in ("' OR '1'='1", "%", "0", f"{ALICE}' --"):
        with pytest.raises(Refused):
            some.login(alice, email, PASSWORD)
    assert len(place.rows("SELECT * FROM users")) == 1


@pytest.mark.slow
def test_twenty_registrations_at_once_give_one_account(
    some: Accounts, alice: Identity, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "FREE_TRIES", 20)  # so that each is judged
    made = at_once(*[partial(some.register, alice, ALICE, "alice", PASSWORD)] * 20)
    assert Counter(map(type, made)) == {Account: 1, Refused: 19}
    assert len(place.rows("SELECT * FROM users")) == 1


# The same work ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_refused_login_hashes_once(
    real: Accounts, alice: Identity, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.register(alice, ALICE, "alice", PASSWORD)
    asked: list[bytes] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, stored: bytes, secret: bytes) -> bool:
        asked.append(stored)
        return bool(verify(self, stored, secret))

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    for attempt in ((alice, ALICE, "battery staple"), (bob, BOB, PASSWORD), (bob, ALICE, PASSWORD)):
        before = len(asked)
        with pytest.raises(Refused):
            real.login(*attempt)
        assert len(asked) == before + 1
    assert {one.split(b"$")[3] for one in asked} == {b"m=19456,t=2,p=1"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)  # the work is not the database's
def test_known_and_unknown_users_are_refused_equally_fast(
    real: Accounts, alice: Identity, bob: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    real.register(alice, ALICE, "alice", PASSWORD)
    monkeypatch.setattr(real, "_subjects", lambda *_: [])  # a try too early is not hashed at all

    def seconds(identity: Identity, email: str) -> float:
        begin = time.process_time()  # other processes are not counted
        with pytest.raises(Refused):
            real.login(identity, email, "battery staple")
        return time.process_time() - begin

    pairs: list[tuple[float, float]] = []
    for _ in range(200):
        pairs.append((seconds(bob, BOB), seconds(alice, ALICE)))
        unknown, known = map(min, zip(*pairs))  # a busy machine adds to times, and takes none away
        if len(pairs) >= 25 and unknown == pytest.approx(known, rel=0.2):
            break
    assert unknown == pytest.approx(known, rel=0.2)


# Stored hashes ------------------------------------------------------------------------------------


def store(database: Database, pwd_hash: bytes) -> None:
    with database.transaction() as connection:
        connection.execute(storage.users.update().values(pwd_hash=pwd_hash))


@pytest.mark.slow
def test_row_that_asks_for_too_much_work_is_refused_at_once(
    some: Accounts,
    alice: Identity,
    account: Account,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts, "MAX_MEMORY_KIB", 24 * 1024)
    costly = PasswordHasher(time_cost=1, memory_cost=2 * accounts.MAX_MEMORY_KIB).hash(PASSWORD)
    store(database, costly.encode())
    with pytest.raises(Refused, match="wrong password"):
        some.login(alice, ALICE, PASSWORD)
    hasher = PasswordHasher(time_cost=2, memory_cost=accounts.MAX_MEMORY_KIB, parallelism=1)
    store(database, hasher.hash(PASSWORD).encode())
    assert some.login(alice, ALICE, PASSWORD) == account


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"no hash",
        b"\xff\xfe",
        hashlib.sha256(PASSWORD.encode()).hexdigest().encode(),
        b"$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ",
        b"$argon2i$v=19$m=1024,t=2,p=1$c2FsdHNhbHQ$c2FsdHNhbHQ",
        *(
            hasher.hash(PASSWORD).encode()  # of the right password, but out of bounds
            for hasher in (
                PasswordHasher(accounts.MAX_PASSES + 1, 64, 1),
                PasswordHasher(1, 64, accounts.MAX_LANES + 1),
                PasswordHasher(1, 64, 1, type=Type.I),
            )
        ),
    ],
    ids=[
        *("empty", "no hash", "no text", "SHA-256", "much memory", "another argon2"),
        *("passes", "lanes", "argon2i"),
    ],
)
@pytest.mark.usefixtures("account")
def test_row_that_holds_no_hash_of_ours_is_refused(
    some: Accounts, alice: Identity, database: Database, stored: bytes
) -> None:
    store(database, stored)
    with pytest.raises(Refused, match="wrong password"):
        some.login(alice, ALICE, PASSWORD)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)  # elsewhere bytes stay bytes
@pytest.mark.parametrize("column", ["username", "pwd_hash"])
@pytest.mark.usefixtures("account")
def test_row_that_was_edited_as_text_is_a_failure_with_its_reason(
    some: Accounts, alice: Identity, database: Database, column: str
) -> None:
    with database.transaction() as connection:
        connection.execute(sql.text(f"UPDATE users SET {column} = CAST({column} AS TEXT)"))
    with pytest.raises(StorageFailed, match=f"an edited row of {ALICE}"):
        some.login(alice, ALICE, PASSWORD)


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_name_that_was_edited_into_nonsense_can_be_shown(
    some: Accounts, alice: Identity, database: Database
) -> None:
    with database.transaction() as connection:
        connection.execute(sql.text("UPDATE users SET username = X'FF'"))
    assert some.login(alice, ALICE, PASSWORD).username == "\ufffd"


@pytest.mark.slow
def test_weaker_hash_is_renewed_at_login(
    real: Accounts, alice: Identity, database: Database, place: Place
) -> None:
    real.register(alice, ALICE, "alice", PASSWORD)
    store(database, PasswordHasher(1, 1_024, 1).hash(PASSWORD).encode())
    real.login(alice, ALICE, PASSWORD)
    [(stored,)] = place.rows("SELECT pwd_hash FROM users")
    assert isinstance(stored, bytes)
    assert stored.startswith(b"$argon2id$v=19$m=19456,t=2,p=1$")
    real.login(alice, ALICE, PASSWORD)


@pytest.mark.slow
@pytest.mark.usefixtures("account")
def test_stolen_table_logs_nobody_in(some: Accounts, alice: Identity, place: Place) -> None:
    [(stored,)] = place.rows("SELECT pwd_hash FROM users")
    assert isinstance(stored, bytes)
    with pytest.raises(Refused):
        some.login(alice, ALICE, stored.decode())


# Sessions and the audit log -----------------------------------------------------------------------


@pytest.mark.slow
def test_session_keeps_the_hash_of_its_token_and_its_end(
    some: Accounts, alice: Identity, account: Account, place: Place
) -> None:
    token = some.new_session(account, "1" * 64, "2" * 64)
    some.end_session(token, "3" * 64, 5)
    other = some.new_session(account, "1" * 64, "2" * 64)
    [first, second] = place.rows(
        "SELECT session_token, client_cert_fingerprint, server_cert_fingerprint, transcript_hash,"
        " message_count, ended_at IS NULL FROM sessions ORDER BY id",
    )
    assert first == (hashlib.sha256(token).hexdigest(), "1" * 64, "2" * 64, "3" * 64, 5, 0)
    assert second == (hashlib.sha256(other).hexdigest(), "1" * 64, "2" * 64, None, 0, 1)


@pytest.mark.slow
def test_second_certificate_of_an_address_is_told(
    some: Accounts, alice: Identity, account: Account, database: Database
) -> None:
    for fingerprint in ("1" * 64, "1" * 64, "3" * 64):
        some.new_session(account, fingerprint, "2" * 64)
    [event] = database.events("other_certificate")
    assert event["email"] == ALICE
    assert event["client_cert_fingerprint"] == "3" * 64
    assert "1" * 64 in event["reason"]


def test_audit_log_answers_the_documents_questions(database: Database, place: Place) -> None:
    database.audit("login_failure", ALICE, "1" * 64, "wrong password", "127.0.0.1")
    database.audit("cert_invalid", None, None, "a|b\n" + "😀" * 300, "::1")
    question = "SELECT * FROM audit_log WHERE event_type = '{}'"
    [failure] = place.rows(question.format("login_failure"))
    [invalid] = place.rows(question.format("cert_invalid"))
    assert failure[1:5] == ("login_failure", ALICE, "1" * 64, "wrong password")
    reason = str(invalid[4])
    assert reason.startswith("a|b\\n\\U0001f600")
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) == 255


# The database -------------------------------------------------------------------------------------


def test_failed_transaction_leaves_nothing(database: Database) -> None:
    row = {"email": b"a", "username": b"a", "pwd_hash": b"a"}

    def insert_twice() -> None:
        with database.transaction() as connection:
            connection.execute(storage.users.insert().values(**row))
            connection.execute(storage.users.insert().values(**row))

    with pytest.raises(Taken):
        insert_twice()
    with database.transaction() as connection:
        assert connection.execute(sql.select(storage.users)).all() == []


def test_lost_table_is_a_failure_with_one_line(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(sql.text("DROP TABLE audit_log"))
    with pytest.raises(
        StorageFailed, match=r"no such table: audit_log|audit_log' doesn't exist"
    ) as caught:
        database.audit("login_failure", ALICE)
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "sqlite://",
        "sqlite:///no/such/folder/x.db",
        "nosuch://a/b",
        "mysql+pymysql://chat@localhost:hunter22/chat",
        "mysql+pymysql://chat@localhost/chat?nosuch=hunter22",
        "sqlite:///x.db?timeout=hunter22",
    ],
)
@pytest.mark.parametrize("is_read_only", [False, True])
def test_url_of_no_database_is_one_sentence(
    url: str, is_read_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"Database connection failed|DATABASE_URL") as caught:
        Database(url, is_read_only=is_read_only)
    assert "\n" not in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_failure_without_words_is_told_too() -> None:
    assert storage._short(OSError()) == ""


def test_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_bytes(b"something else, and long enough for a header " * 30)
    with pytest.raises(UserError, match="Database connection failed: file is not a database"):
        Database(f"sqlite:///{tmp_path / 'chat.db'}")


@pytest.mark.slow
def test_database_is_found_as_it_was_left(place: Place, alice: Identity) -> None:
    with contextlib.closing(Database(place.url)) as first:
        made = Accounts(first).register(alice, ALICE, "alice", PASSWORD)
    with contextlib.closing(Database(place.url)) as second:
        assert Accounts(second).login(alice, ALICE, PASSWORD) == made


def test_schema_file_is_the_tables() -> None:
    assert (FOLDER / "schema.sql").read_text("utf-8").endswith(storage.schema("mysql"))


def test_schema_makes_the_same_tables_by_hand(tmp_path: Path) -> None:
    made = SqliteFile(tmp_path)
    Database(made.url).close()
    (tmp_path / "other").mkdir()
    by_hand = SqliteFile(tmp_path / "other")
    with contextlib.closing(sqlite3.connect(by_hand.path)) as connection:
        connection.executescript(storage.schema("sqlite"))
    for table in storage.SCHEMA.tables:
        query = f"SELECT * FROM pragma_table_info('{table}')"
        assert made.rows(query) == by_hand.rows(query) != []


# Settings -----------------------------------------------------------------------------------------


def test_example_holds_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = FOLDER / ".env.example"
    written = [line.split("=")[0] for line in example.read_text().splitlines() if "=" in line]
    assert [name.lower() for name in written] == list(Settings.model_fields)
    for name in written:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_settings(example) == load_settings()


def test_secrets_of_the_settings_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=mysql+pymysql://chat:hunter22@localhost/chat\n")
    settings = load_settings(tmp_path / ".env")
    assert "hunter22" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert "hunter22" in settings.database_url.get_secret_value()


@pytest.mark.parametrize(
    "line", ["DATABSE_URL=sqlite:///x.db", "SERVER_PORT 5051", "SERVER_PORT", 'SERVER_NAME="x']
)
def test_line_that_would_be_ignored_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"# a comment\n\nexport certs = 'c'\n{line}\n")
    with pytest.raises(UserError, match=f"'{line.partition('=')[0]}' is not the NAME=VALUE"):
        load_settings(tmp_path / ".env")


def test_settings_from_a_windows_editor_are_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfSERVER_PORT=7\r\nSERVER_NAME=\r\n")
    settings = load_settings(tmp_path / ".env")
    assert (settings.server_port, settings.server_name) == (7, "")


def test_settings_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CERTS=\xff\n")
    with pytest.raises(UserError, match="cannot read"):
        load_settings(tmp_path / ".env")


@pytest.mark.parametrize("line", ["SERVER_PORT=70000", "SERVER_HOST=a\0b", "CERTS=a\0b"])
def test_wrong_setting_is_one_sentence(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"{line}\n")
    with pytest.raises(UserError, match=f"{line.partition('=')[0]}: ") as caught:
        load_settings(tmp_path / ".env")
    assert "\n" not in str(caught.value)
