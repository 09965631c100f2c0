"""The demo of secure_chat, as run.py starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from companions.secure_chat import demo
from companions.secure_chat.demo import PLAYED
from tests.programs import run


@pytest.mark.slow
def test_demo_shows_every_act_and_keeps_what_it_made(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    done = run("run.py", "chat", "--keep", folder, timeout_s=400)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2_000:]
    assert done.stdout.rstrip().endswith("All went as it should.")
    for words in ("at noon, at the station", "Valid", "bad-", "Revoked", *PLAYED):
        assert words in done.stdout
    *lines, _, _, _ = done.stdout.splitlines()  # the last of all name the folder
    assert max(map(len, lines)) <= 79
    for kept in ("report.html", "secure_chat.db", "certs/ca_cert.pem", "logs/server.log"):
        assert (folder / kept).is_file()
    assert len([*folder.glob("*/receipt_*_client.json")]) >= 2


def test_members_of_the_demo_have_passwords() -> None:
    assert all(len(password) >= 8 for password in demo.PEOPLE.values())
