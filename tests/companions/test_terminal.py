"""A passphrase that cannot be had is an error."""

from __future__ import annotations

import getpass

import pytest

from companions.terminal import ask_passphrase
from program import UserError


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (EOFError(), "the key needs a passphrase, and nobody types one"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "a passphrase is text"),
    ],
)
def test_a_passphrase_that_cannot_be_read_is_the_users_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(prompt: str) -> str:
        raise error

    monkeypatch.setattr(getpass, "getpass", fail)
    with pytest.raises(UserError, match=why):
        ask_passphrase("passphrase: ")


def test_a_passphrase_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getpass", lambda prompt: f"typed at {prompt}")
    assert ask_passphrase("passphrase: ") == "typed at passphrase: "
