"""What is shown on a terminal is harmless, and a passphrase that cannot be had is an error."""

from __future__ import annotations

import getpass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.terminal import ask_passphrase, shown
from program import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("z\u00fcrich \U0001f6aa", "z\u00fcrich \U0001f6aa"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
)
def test_a_letter_that_a_terminal_obeys_or_hides_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(st.text())
def test_whatever_is_shown_is_printable(text: str) -> None:
    assert shown(text).isprintable()
    assert shown(shown(text)) == shown(text)


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
