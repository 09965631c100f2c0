"""secure_chat: what the program shows of the audit log."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from companions.secure_chat import audit
from companions.secure_chat.options import DATABASE
from companions.secure_chat.storage import Database, audit_log
from program import UserError
from tests.companions.chat_helpers import ALICE, BOB
from tests.programs import ROOT, run

EVENTS = [
    ("login_failure", "Alice@Example.org", "wrong password", "2023-11-15 14:30:22"),
    ("login_failure", BOB, "unknown user", "2023-11-15 14:30:23"),
    ("cert_invalid", None, "expired\nyesterday", "2023-11-16 00:00:00"),
    ("other_certificate", ALICE, "before: 1234", "2023-11-17 08:00:00"),
]


@pytest.fixture(autouse=True)
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep some events in a database of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    database = Database(DATABASE)
    for number, (event, email, reason, time) in enumerate(EVENTS, 1):
        database.audit(event, email, "ab" * 32, reason, "127.0.0.1")
        with database.transaction() as connection:
            mine = audit_log.c.id == number
            connection.execute(
                audit_log.update().where(mine).values(occurred_at=datetime.fromisoformat(time))
            )
    database.close()
    return tmp_path


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    monkeypatch.setattr(sys, "argv", ["audit.py", *flags])
    assert audit.main() == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [1, 2, 3, 4]),
        (["--user", ALICE], [1, 4]),
        (["--user", "ALICE@example.org", "--event", "login_failure"], [1]),
        (["--event", "login_failure"], [1, 2]),
        (["--event", "LOGIN_FAILURE"], []),
        (["--user", "%"], []),
        (["--user", "' OR '1'='1"], []),
        (["--since", "2023-11-15T14:30:23Z"], [2, 3, 4]),
        (["--since", "2023-11-16"], [3, 4]),
        (["--until", "2023-11-15T14:30:23"], [1]),
        (["--since", "2023-11-15T14:30:23", "--until", "2023-11-17"], [2, 3]),
    ],
)
def test_events_are_found_by_user_type_and_time(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: list[int],
) -> None:
    lines = shown(monkeypatch, capsys, "--json", *flags).splitlines()
    assert [json.loads(line)["id"] for line in lines] == expected


def test_json_has_every_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first: dict[str, Any] = json.loads(shown(monkeypatch, capsys, "--json").splitlines()[0])
    assert first == {
        "id": 1,
        "event_type": "login_failure",
        "email": ALICE,
        "client_cert_fingerprint": "ab" * 32,
        "reason": "wrong password",
        "occurred_at": "2023-11-15T14:30:22Z",
        "ip_address": "127.0.0.1",
    }


def test_table_has_a_line_for_each_event_below_the_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *lines = shown(monkeypatch, capsys).splitlines()
    assert header.split() == list(audit.COLUMNS)
    assert len(lines) == len(EVENTS)
    place = header.index("reason")
    assert [line[place:] for line in lines][1:3] == ["unknown user", "expired\\nyesterday"]
    assert lines[2].split()[:3] == ["2023-11-16T00:00:00Z", "cert_invalid", "-"]


@pytest.mark.parametrize("time", ["yesterday", "2023-13-01", "", "2023-11-15T14:30:22+05:00"])
def test_time_that_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch, time: str) -> None:
    monkeypatch.setattr(sys, "argv", ["audit.py", "--since", time])
    with pytest.raises(UserError, match="a time in UTC"):
        audit.main()


@pytest.mark.slow
def test_settings_that_are_not_there_are_not_replaced_by_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["audit.py", "--env", "no.env"])
    with pytest.raises(UserError, match=r"there is no file no\.env"):
        audit.main()


def test_database_that_is_not_there_is_not_made(logged: Path) -> None:
    (logged / "chat.env").write_text("DATABASE_URL=sqlite:///other.db\n")
    words = ("-m", "companions.secure_chat.audit", "--env", "chat.env")
    done = run(*words, cwd=logged, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "audit.py: Database connection failed: there is no file other.db\n"
    assert not (logged / "other.db").exists()


@pytest.mark.parametrize(
    "edit",
    [
        "occurred_at = NULL",
        "occurred_at = 'yesterday'",
        "occurred_at = 5",
        "reason = x'ff'",
        "email = char(27) || '[31m'",
        "event_type = 'two' || char(10) || 'lines'",
    ],
)
def test_row_that_was_edited_is_one_sentence(
    logged: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    with contextlib.closing(sqlite3.connect(logged / "secure_chat.db")) as connection:
        connection.execute(f"UPDATE audit_log SET {edit} WHERE id = 3")
        connection.commit()
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    with pytest.raises(UserError, match="the audit log cannot be read: a row that was edited"):
        audit.main()


def test_table_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(DATABASE)
    with database.transaction() as connection:
        connection.execute(sql.text("DROP TABLE audit_log"))
    database.close()
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    with pytest.raises(UserError, match="no such table: audit_log"):
        audit.main()
