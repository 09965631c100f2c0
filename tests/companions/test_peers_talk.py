"""What a person sees of a node, and what is typed: there is no socket here, and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companions.peer_messaging import talk
from companions.peer_messaging.identity import IdentityChanged, grouped
from companions.peer_messaging.peer import Event, Limits
from companions.peer_messaging.protocol import MessageLost, PeerAway, PeerLeft, Reason, Untimely
from companions.peer_messaging.talk import (
    MAX_ALARMS,
    MAX_UNDER_WAY,
    MAX_UNSEEN,
    Screen,
    Talk,
    columns,
)
from companions.terminal import bold
from program import UserError, escaped
from protocol_fsm import BadTag, LocalError, MalformedMessage, ProtocolError, WrongPeer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A talk notices at once that it is over."""
    monkeypatch.setattr(talk, "WAIT_S", 0.01)


# What a person sees -------------------------------------------------------------------------------


class Seen(list[str]):
    """Lines of a screen."""

    def __init__(self, peer: str = "bob", width: int = 79, **options: Any) -> None:
        super().__init__()
        self.width = width
        self.screen = Screen(
            peer,
            Path("alice") / "known_peers",
            show=self._show,
            width=lambda: self.width,
            **options,
        )

    def _show(self, text: str) -> None:
        self.extend(text.split("\n"))

    @property
    def joined(self) -> str:
        return " ".join(line.removeprefix("!!!").removeprefix("*").strip() for line in self)


PRINT = "0123456789abcdef" * 4


def columns_of(line: str) -> int:
    """Return how many columns a line takes at most, in any terminal."""
    return sum(1 if letter <= "~" else 2 for letter in line)


def test_the_first_meeting_is_loud_and_later_ones_are_not() -> None:
    seen = Seen()
    seen.screen.met(Event("met", PRINT, 1))
    assert grouped(PRINT) in seen
    assert all(line.startswith("!!! ") for line in seen if line != grouped(PRINT))
    assert "compare it with the one that bob's own node showed" in seen.joined
    seen.clear()
    seen.screen.ended(Event("ended", error=PeerLeft(Reason.GOODBYE)))
    seen.screen.met(Event("met", PRINT))
    assert seen == ["* bob has left", "* bob is here again"]
    seen.clear()
    seen.screen.ended(Event("ended"))
    seen.screen.met(Event("met", PRINT))
    assert seen == ["* a new session with bob has begun"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PeerAway("a word", "none"), "bob is away"),
        (PeerLeft(Reason.VIOLATION), "bob has ended the session, because it refused a"),
        (PeerLeft(Reason.VIOLATION), "or none came for a while"),  # bob took us for away [N 7]
        (MessageLost(3, 5), "has ended, and a new one will begin: MessageLost: expected 3, got 5"),
    ],
)
def test_why_a_session_is_over_is_said(error: Any, words: str) -> None:
    seen = Seen()
    seen.screen.ended(Event("ended", error=error))
    assert words in seen.joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, t\u00fcr \u4f60\u597d", "plain, t\u00fcr \u4f60\u597d"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202eevil\u2028line\x9b2J", "\\u202eevil\\u2028line\\x9b2J"),
    ],
)
def test_nothing_that_comes_moves_the_cursor_or_colours_the_terminal(
    text: str, expected: str
) -> None:
    assert escaped(text) == expected
    seen = Seen()
    seen.screen.text(Event("text", text))
    assert seen == [f"bob: {expected}"]


TEXTS = (
    "* bob has left " * 20,
    "!!! " * 100,
    "x" * 4_096,
    " " * 500,
    "a-b " * 999,
    "x" * 74 + "* mallory is here",
    "alice: \n!!! look",
    "\u4f60" * 200,
    "\u4dc0" * 200,
    "x" * 60 + "\u4dc0" * 14 + "* bob has left",
    "e\u0301" * 100,
    "x" + "\u4f60" * 200,
    "\u4f60x" * 150,
    "\u4f60\u597d " * 150,
    "\u3164" * 37 + "* bob has left",
    "\u3164 " * 99,
    "\u3164" * 500,
    "x\u3164" * 30 + "!!! look",
    "\u2800" * 75 + "* bob has left",
    "\u2800" * 500,
    "\uff01" * 99,
    "\u00e4" * 500,
    "\U0001f600" * 99,
    "x" * 70 + "\u4f60" * 3 + " * bob",
    "\u4f60",
)


@pytest.mark.parametrize("peer", ["bob", "\u4f60", "\u4f60\u597d\u3164", "\u4f60" * 64, "b" * 64])
@pytest.mark.parametrize("width", [20, 39, 40, 79])
def test_no_text_looks_like_a_word_of_ours_however_it_breaks(peer: str, width: int) -> None:
    """A line that is wider than the terminal would break there, and go on where ours begin."""
    for text in TEXTS:
        seen = Seen(peer, width=width)
        seen.screen.text(Event("text", text))
        assert seen[0].startswith(f"{peer}: "[: len(seen[0])])
        assert all(line.startswith("    ") for line in seen[1:]), text
        assert max(map(columns_of, seen)) <= width, text
        assert "".join([seen[0], *(line[4:] for line in seen[1:])]) == f"{peer}: {escaped(text)}"


def test_a_terminal_that_was_made_narrower_gets_shorter_lines() -> None:
    seen = Seen()
    seen.screen.text(Event("text", "x" * 70))
    seen.width = 30
    seen.screen.text(Event("text", "x" * 70))
    assert [len(line) for line in seen] == [75, 30, 30, 23]


@given(st.text())
def test_only_our_own_words_are_emphasized(text: str) -> None:
    """For a narrower terminal breaks lines that stand there already, and a text may begin a row."""
    seen = Seen("bob", emphasize=bold)
    seen.screen.text(Event("text", f"{bold(text)}* bob has left"))
    assert not any("\x1b" in line for line in seen)
    seen.clear()
    seen.screen.notice(f"not sent: {text}")
    seen.screen.alarm(text)
    seen.screen.fingerprint(PRINT)
    shown_lines = "\n".join(seen)
    assert shown_lines.count("\x1b") == 6
    for words in shown_lines.split("\x1b[0m")[:-1]:
        assert words.lstrip("\n").startswith("\x1b[1m")


@pytest.mark.parametrize("peer", ["bob", "\u4f60" * 10, "\u4f60" * 64, "b" * 64])
@pytest.mark.parametrize("width", [20, 39, 79])
def test_no_word_of_ours_is_wider_than_a_line(peer: str, width: int) -> None:
    seen = Seen(peer, width=width)
    seen.screen.met(Event("met", PRINT, 1))
    seen.screen.refused(IdentityChanged("bob with 1111", PRINT[:16]))
    assert all(line.startswith("!!! ") or line in grouped(PRINT) for line in seen)
    told = len(seen)
    seen.screen.waiting(1)
    seen.screen.unconfirmed(1, "\u4f60" * 500)
    seen.screen.ended(Event("ended", error=PeerAway("a word", "none")))
    assert all(line.startswith(("* ", "  ")) for line in seen[told:])
    assert max(map(columns_of, seen)) <= width


@pytest.mark.parametrize(
    ("terminal", "usable"),
    [(200, 79), (81, 79), (80, 79), (79, 78), (41, 40), (40, 39), (21, 20), (20, 20), (1, 20)],
)
def test_a_line_leaves_the_last_column_of_a_terminal_free(
    monkeypatch: pytest.MonkeyPatch, terminal: int, usable: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(terminal))
    assert columns() == usable


def test_another_key_is_alarming_once_and_says_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "known_peers").write_text(f"carol {PRINT}\nbob {PRINT}\n")
    seen = Seen()
    seen.screen.known = tmp_path / "known_peers"
    for _ in range(3):
        seen.screen.refused(IdentityChanged("bob with 1111", PRINT[:16]))
    assert all(line.startswith("!!! ") for line in seen)
    assert seen.joined.count("SOMEBODY SHOWS ANOTHER KEY FOR bob: 0123 4567 89ab cdef") == 1
    assert "remove line 2 of" in seen.joined
    for n in range(10):
        seen.screen.refused(IdentityChanged("bob with 1111", f"{n:016}"))
    assert seen.joined.count("SOMEBODY SHOWS") == MAX_ALARMS, "anybody can show any number of keys"
    seen.clear()
    seen.screen.total(0)
    assert seen == ["* messages refused: 13 IdentityChanged", "* over: 0 sent, 0 received"]


def test_other_refusals_are_counted_and_told_when_asked_for() -> None:
    seen = Seen()
    told = Seen(verbose=True)
    for error in (BadTag(), BadTag(), MalformedMessage("a kind", "ff")):
        seen.screen.refused(error)
        told.screen.refused(error)
    assert seen == []
    assert len(told) == 3
    seen.screen.total(2)
    assert seen[0] == "* messages refused: 2 BadTag, 1 MalformedMessage"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WrongPeer("another node", "ourselves"), "our own key"),
        (Untimely("at most 30 s", "-60.0 s"), "the clocks differ, and bob and we cannot meet"),
    ],
)
def test_a_refusal_that_a_person_can_mend_is_told_once(error: ProtocolError, told: str) -> None:
    seen = Seen()
    for _ in range(2):
        seen.screen.refused(error)
    assert seen.joined.count(told) == 1


def test_a_peer_that_never_answers_is_worth_a_hint() -> None:
    play = Play()
    assert play.play(Event("unanswered", number=3), "") == 0
    assert "bob has answered none of 3 HELLOs" in play.seen.joined
    assert "Its --at has to name our --port, and our --at its --port" in play.seen.joined


def test_a_text_that_waits_was_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    play = Play()
    assert play.play("only this", "") == 1
    assert play.said == ["only this"]
    assert play.seen[-1] == "* over: 0 sent, 0 received"
    assert "1 text has no receipt" in capsys.readouterr().err


def test_a_receipt_is_worth_a_word_only_if_it_took_long() -> None:
    seen = Seen()
    seen.screen.arrived(1, "quick", 0.1)
    assert seen == []
    seen.screen.arrived(2, "slow\n" + "x" * 100, 3.21)
    assert seen == ['* text 2, "slow\\nxxxxxxxxxxxxxxxxxxx...", has arrived after 3.2 s']


# Between a person and a node ----------------------------------------------------------------------


class Play:
    """A Talk with a node that is none: `answers` says what it tells of each text."""

    def __init__(self, *answers: str, patience_s: float = 10.0) -> None:
        self.seen = Seen()
        self.said: list[str] = []
        self.taken = 0
        self.time = 0.0
        self.most_under_way = 0
        self.answers = answers
        self.talk = Talk(self.seen.screen, patience_s, self._timer)
        self.failure: Exception | None = None

    def _timer(self) -> float:
        self.time += 0.5
        return self.time

    def check(self) -> None:
        if self.failure:
            raise self.failure

    def say(self, text: str) -> None:
        if text == "bad":
            raise LocalError("a text has 1 to 4,096 bytes")
        self.said.append(text)
        self.most_under_way = max(self.most_under_way, len(self.talk._under_way) + 1)
        for what in self.answers:
            self.talk.happenings.put(Event(what, number=len(self.said)))

    def take(self) -> None:
        self.taken += 1

    def play(self, *happenings: Event | str | int) -> int:
        for happening in happenings:
            self.talk.happenings.put(happening)
        self.talk.run(self, self.take)
        return self.talk.finish()


def test_texts_with_receipts_are_a_success() -> None:
    play = Play("sent", "receipt")
    assert play.play(Event("met", PRINT), "one", "two", "") == 0
    assert (play.said, play.taken) == (["one", "two"], 2)
    assert play.seen[-1] == "* over: 2 sent, 0 received"


def test_nothing_to_say_is_a_success_too() -> None:
    assert Play().play("") == 0


def test_texts_without_receipts_are_waited_for_and_then_a_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    play = Play(patience_s=3.0)
    assert play.play("one", "two", "") == 1
    assert play.time >= 3.0
    assert capsys.readouterr().err == "node: 2 texts have no receipt, and may not have arrived\n"


def test_an_unconfirmed_text_is_told_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    play = Play("unconfirmed")
    assert play.play(Event("met", PRINT), "one", "") == 1
    assert '* text 1, "one", is unconfirmed: it may have arrived, or not' in play.seen
    assert capsys.readouterr().err == "node: 1 text has no receipt, and may not have arrived\n"


def test_a_text_that_cannot_be_sent_is_told_and_a_failure() -> None:
    play = Play("sent", "receipt")
    assert play.play(Event("met", PRINT), "bad", "good", "") == 1
    assert "* not sent: a text has 1 to 4,096 bytes" in play.seen
    assert (play.said, play.taken) == (["good"], 2)


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_ends_it_whatever_is_under_way(number: int) -> None:
    assert Play().play("one", number, "two") == 128 + number
    assert Play("sent", "receipt").play(number) == 128 + number


def test_no_more_texts_are_under_way_than_a_node_keeps() -> None:
    play = Play()
    play.play(*["text"] * 150, 2)
    assert len(play.said) == play.taken == play.most_under_way == MAX_UNDER_WAY
    assert Limits().max_waiting >= MAX_UNDER_WAY
    play = Play("receipt", patience_s=1e9)
    assert play.play(*["text"] * 500, "") == 0
    assert len(play.said) == 500


def test_that_texts_wait_is_said_once_an_absence() -> None:
    play = Play()
    play.play(
        "one",
        "two",
        Event("met", PRINT),
        "three",
        Event("ended", error=PeerAway("a word", "none")),
        "four",
        2,
    )
    assert [line for line in play.seen if "waits" in line] == [
        "* bob is not here; text 1, and what follows it, waits",
        "* bob is not here; text 4, and what follows it, waits",
    ]


def test_what_ends_the_node_ends_the_talk() -> None:
    play = Play()
    play.failure = UserError("cannot write known_peers")
    with pytest.raises(UserError, match="cannot write"):
        play.play("one")


def test_of_what_was_refused_little_waits_and_of_the_rest_all() -> None:
    """A person may have stopped the output, and anybody can put junk into an inbox."""
    play = Play()
    play.talk.happenings.put("one")
    for _ in range(MAX_UNSEEN + 500):
        play.talk.hear(Event("refused", error=BadTag()))
    assert play.talk.happenings.qsize() == MAX_UNSEEN
    play.talk.hear(Event("met", PRINT))
    for number in range(2 * MAX_UNSEEN):
        play.talk.hear(Event("text", f"text {number}"))
        play.talk.hear(Event("refused", error=BadTag()))
    play.talk.hear(Event("sent", "one", 1))
    play.talk.hear(Event("receipt", number=1))
    assert play.play("") == 0, "the receipt was there"
    assert [line for line in play.seen if line.startswith("bob: ")] == [
        f"bob: text {number}" for number in range(2 * MAX_UNSEEN)
    ]
    assert play.seen[-2:] == [
        f"* messages refused: {MAX_UNSEEN - 1} BadTag",
        f"* over: 1 sent, {2 * MAX_UNSEEN} received",
    ]
    play.talk.hear(Event("refused", error=BadTag()))
    assert play.talk.happenings.qsize() == 1, "now there is room again"


def test_what_comes_at_the_very_end_is_shown() -> None:
    play = Play()
    play.talk.happenings.put(2)
    play.talk.run(play, play.take)
    play.talk.happenings.put(Event("text", "one more thing"))
    play.talk.finish()
    assert play.seen == ["bob: one more thing", "* over: 0 sent, 1 received"]
