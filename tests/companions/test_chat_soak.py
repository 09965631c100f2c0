"""The soak of secure_chat: a short one without a fault, and faults that it must find."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bench import chat_soak
from bench.chat_soak import History
from companions.secure_chat import forms
from companions.secure_chat.rooms import Entry
from tests.companions.chat_helpers import START


def said(text: str | None, seqno: int = 0, index: int = 0, signed: bytes = b"signed") -> Any:
    head = forms.Head("red", START, index, 0, START).encode()
    message = SimpleNamespace(seqno=seqno)
    return SimpleNamespace(entry=Entry(signed, b"", head, b""), message=message, text=text)


def test_members_must_be_told_one_history() -> None:
    history = History()
    assert history.fault(said("0 in red")) == ""
    assert history.fault(said(None)) == "", "who comes late is not told the text"
    assert "two histories" in history.fault(said("0 in red", signed=b"other"))
    assert "heard as message 1" in history.fault(said("0 in red", seqno=1, index=1))
    assert "heard as message 2" in history.fault(said("2 in blue", seqno=2, index=2))
    assert history.texts == 5


def test_places_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_soak, "KEPT_PLACES", 3)
    history = History()
    for index in range(10):
        history.fault(said(None, index=index))
    assert len(history._places) == 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "made up"])
def test_short_soak_finds_what_is_wrong_and_nothing_else(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault:
        monkeypatch.setattr(History, "fault", lambda *_: fault)
    monkeypatch.setattr(
        sys, "argv", ["soak", "--minutes", "0.15", "--clients", "5", "--progress", "2"]
    )
    assert chat_soak.main() == bool(fault)
    out = capsys.readouterr().out
    assert out.endswith("\n0 wrong\n") != bool(fault)
    assert (f"\n{fault}\n" in out) == bool(fault)
    assert len(re.findall(r"^ +\d+ s  ", out, re.MULTILINE)) >= 2, "progress"
