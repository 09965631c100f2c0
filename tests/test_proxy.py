"""The man in the middle by hand: every command, between a real server and real clients.

`until` makes these tests wait: it returns when such a message is in hand, and so has come.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from classroom.proxy import Table, main, reach, read_options
from classroom.proxy_commands import GRAMMAR, HELP, Command, parse, parse_script
from classroom.proxy_pair import OwnPair, Score
from client import Client
from endpoint import DEMO_KEYS, HOST, NewSession
from lab.frames import Frame
from lab.weakened import without
from program import NoConnection, UserError
from protocol_fsm import (
    BadTag,
    ClientData,
    ClientHello,
    ConnectionCut,
    Direction,
    MalformedMessage,
    PeerTerminated,
    RoundMismatch,
    Seen,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    Status,
    Terminate,
    UnexpectedOpcode,
    WrongDirection,
    WrongPeer,
    write_frame,
)
from server import Contribution
from tests.helpers import logging_to
from tests.network import PATIENCE_S, Journal, serving, wait_until
from tests.programs import ROOT, TIMEOUT_S, Done, Program, posix_only, run_here, running_server


class ImpatientTable(Table):
    """A table at which nobody waits for ever."""

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        super()._wait(lambda: until() or time.monotonic() > deadline)
        assert until(), "waited in vain"


class Seat:
    """A place at the table, between a server and the clients that connect to it."""

    def __init__(self, table: Table, journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
        self.table = table
        self.journal = journal
        self._capsys = capsys
        self.said = ""
        self._client: threading.Thread | None = None
        self.outcome: list[object] = []  # of the clients: answers and errors

    def type(self, *lines: str) -> str:
        """Type lines, and return the output meanwhile; a bad line is an error of the test."""
        self.read()
        for line in lines:
            command = parse(line)
            assert command is not None
            self.table.obey(command)
        return self.read()

    def read(self) -> str:
        printed = self._capsys.readouterr().out
        self.said += printed
        return printed

    def client(
        self,
        *reports: list[float],
        client_id: int = 1,
        new_session: NewSession = Session,
    ) -> None:
        """Let a client report through the proxy, in a thread."""

        def report() -> None:
            try:
                with Client(
                    client_id,
                    DEMO_KEYS,
                    HOST,
                    self.table.wire.address[1],
                    timeout_s=PATIENCE_S,
                    new_session=new_session,
                ) as client:
                    for readings in reports or ([100.0],):
                        self.outcome.append(client.report(readings)["sum"])
            except Exception as error:
                self.outcome.append(error)

        self._client = threading.Thread(target=report, daemon=True)
        self._client.start()

    def end(self) -> object:
        """Forward all that is left, and return the client's last answer or error."""
        self.type("until end")
        assert self._client
        self._client.join(PATIENCE_S)
        assert not self._client.is_alive()
        return self.outcome[-1]

    def over(self, connection: int) -> None:
        """Wait, without a command, until this connection is over."""
        table = self.table
        with table._changed:
            assert table._changed.wait_for(
                lambda: table._connection == connection and not table._connected, PATIENCE_S
            )

    def refusal(self, count: int = 1) -> object:
        return self.journal.wait("end", count=count)[-1].detail


@pytest.fixture
def seat(capsys: pytest.CaptureFixture[str]) -> Iterator[Seat]:
    with serving(window_s=0.2) as (server, journal):
        table = ImpatientTable(0, server.address, None)
        with table.wire:
            yield Seat(table, journal, capsys)
            table.leave()


def accepted(seat: Seat) -> list[list[float]]:
    return [
        [*record.detail.readings]
        for record in seat.journal.of("report")
        if isinstance(record.detail, Contribution)
    ]


# Looking on


def test_a_whole_session_is_shown_and_nothing_is_delivered_before_forward(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA")
    assert seat.journal.of("report") == []
    assert seat.end() == 100.0
    assert isinstance(seat.refusal(), PeerTerminated)
    titles = [
        line.partition(", client 1, ")[0] for line in seat.said.splitlines() if line.startswith("#")
    ]
    assert titles == [
        "#1 to server: CLIENT_HELLO",
        "#2 to client: SERVER_CHALLENGE",
        "#3 to server: CLIENT_DATA",
        "#4 to client: SERVER_AGGR_RESPONSE",
        "#5 to server: TERMINATE",
    ]
    assert [line for line in seat.said.splitlines() if line.startswith("forwarded ")] == [
        "forwarded #1 CLIENT_HELLO to server",
        "forwarded #2 SERVER_CHALLENGE to client",
        "forwarded #3 CLIENT_DATA to server",
        "forwarded #4 SERVER_AGGR_RESPONSE to client",
        "forwarded #5 TERMINATE to server",
    ]
    for end in ("client", "server"):
        assert f"the {end} has closed its side\n" in seat.said
    assert seat.said.splitlines()[-1] == "connection 1 is over"


def test_forward_delivers_one_message_and_no_more(seat: Seat) -> None:
    seat.client()
    seat.type("until SERVER_CHALLENGE", "forward", "until CLIENT_DATA")
    seat.type("forward")
    seat.journal.wait("report")
    seat.type("until SERVER_AGGR_RESPONSE")
    assert seat.outcome == []
    assert seat.end() == 100.0


def test_auto_forwards_until_it_is_off(seat: Seat) -> None:
    seat.client([1.0], [2.0])
    seat.type("auto")
    seat.over(1)
    seat.type("auto off")
    seat.client([3.0])
    seat.type("until CLIENT_DATA")
    assert accepted(seat) == [[1.0], [2.0]]
    seat.type("auto")
    seat.over(2)
    seat.client([4.0])
    seat.type("until CLIENT_DATA")
    assert accepted(seat) == [[1.0], [2.0], [3.0]], (
        "a command that waits for a message takes it in hand"
    )
    assert seat.end() == 4.0


def test_with_a_key_log_plaintexts_are_shown(seat: Seat, tmp_path: Path) -> None:
    seat.table._keylog = tmp_path / "log"
    seat.client(new_session=logging_to(tmp_path / "log"))
    seat.type("until SERVER_CHALLENGE", "forward", "until CLIENT_DATA")
    assert "version 01" in seat.said
    assert "[100.0]" in seat.said
    assert "no key in the log fits" not in seat.said
    changed = seat.type("flip -1", "show")
    assert "no key in the log fits" in changed
    assert "in hand: #3 CLIENT_DATA to server, changed\n" in changed
    unchanged = seat.type("undo", "show")
    assert "[100.0]" in unchanged
    assert "in hand: #3 CLIENT_DATA to server\n" in unchanged
    seat.type("until SERVER_AGGR_RESPONSE")
    assert '"sum":100.0' in seat.said
    (tmp_path / "log").write_text("nonsense\n")
    assert "log is no key log: line 1 cannot be in one" in seat.type("show")
    assert seat.end() == 100.0


def test_show_has_every_byte_and_list_the_fate_of_every_message(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "flip 0.1")
    message = seat.table._came[0].frame.message
    rows = [line.split("  ")[-1] for line in seat.type("show 1").splitlines()[2:]]
    assert b"".join(map(bytes.fromhex, rows)) == message
    assert "#3 to server: opcode 28, " in seat.type("show")
    seat.type("hold", "replay 1")
    assert [" ".join(line.split()) for line in seat.type("list").splitlines()] == [
        "connection 1 #1 CLIENT_HELLO to server waits, forwarded",
        "connection 1 #2 SERVER_CHALLENGE to client forwarded",
        "connection 1 #3 CLIENT_DATA to server put aside",
    ]


def test_list_has_the_last_18_messages(seat: Seat) -> None:
    for _ in range(4):
        seat.client()
        seat.end()
    lines = seat.type("list").splitlines()
    assert len(seat.table._came) == 20
    assert [re.findall(r"#\d+", line) for line in lines] == [[f"#{n}"] for n in range(3, 21)]


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_a_person_at_a_terminal_has_a_prompt(
    monkeypatch: pytest.MonkeyPatch, types: bool, reads: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: types))
        patch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: reads))
        table = Table(0, (HOST, 1), "some.log")
    table.wire._listener.close()
    assert table.prompt == ("proxy> " if types and reads else "")
    assert table._keylog == Path("some.log")


def test_what_is_told_at_a_prompt_moves_the_typed_text_below_it(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    readline = SimpleNamespace(get_line_buffer=lambda: "sho")
    stdout = SimpleNamespace(write=done.append, flush=lambda: done.append("flush"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "readline", readline)
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(seat.table, "prompt", "> ")
        patch.setattr(seat.table, "_at_prompt", True)
        seat.table.tell("")
        seat.table.tell("news")
        seat.table.leave()
    assert done == ["\r     \rnews\n> sho", "flush", "\n"]


def test_a_prompt_is_noticed_and_a_line_ends_it(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = seat.table
    hooks: list[Callable[[], object]] = []
    readline = SimpleNamespace(set_pre_input_hook=hooks.append)
    monkeypatch.setitem(sys.modules, "readline", readline)
    table.preloop()
    assert not hooks, "there is no prompt in a pipe"
    monkeypatch.setattr(table, "prompt", "> ")
    table.preloop()
    hooks[0]()
    assert table._at_prompt
    assert table.onecmd("# nothing") is False
    assert not table._at_prompt
    assert table.onecmd("EOF") is True


def test_ctrl_c_ends_what_is_waited_for(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(until: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(seat.table, "_wait", interrupt)
    assert seat.table.onecmd("until CLIENT_DATA") is False
    assert seat.table._goal == ""
    assert seat.read().endswith("\ninterrupted\n")


# Meddling: a command when the report is in hand, and the error of the server

MEDDLING = {
    "flip 24.3": BadTag,
    "edit round=2": RoundMismatch,
    "edit direction=S2C": WrongDirection,
    "replay 1": UnexpectedOpcode,
    "inject 00": MalformedMessage,
    "flip 7": BadTag,
    "flip -1.7": BadTag,
    "edit opcode=TERMINATE": BadTag,
    "edit opcode=0": UnexpectedOpcode,
    "edit client_id=2": WrongPeer,
    f"inject {'1e' * 71}": WrongPeer,
}


def some(cases: Iterable[str], quick: int) -> list[object]:
    """Return all cases; those after the first few are for the slow run."""
    return [
        case if number < quick else pytest.param(case, marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize("line", some(MEDDLING, 5))
def test_a_changed_or_inserted_message_is_refused_by_the_server(seat: Seat, line: str) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", line)
    assert seat.journal.records == []
    seat.type("forward")
    assert type(seat.refusal()) is MEDDLING[line]
    assert seat.type("list").count("forwarded") == 3 - ("replay" in line or "inject" in line)
    assert isinstance(seat.end(), (PeerTerminated, ConnectionCut))
    assert accepted(seat) == []


def test_a_report_that_comes_again_is_refused(seat: Seat) -> None:
    seat.client()
    seat.type("until SERVER_AGGR_RESPONSE", "replay 3", "forward")
    assert isinstance(seat.refusal(), RoundMismatch)
    assert accepted(seat) == [[100.0]]
    seat.type("until KEY_DESYNC_ERROR")
    assert seat.end() == 100.0, "the client had its answer, and has left"


def test_a_message_turned_round_is_refused_by_the_client(seat: Seat) -> None:
    seat.client()
    text = seat.type("until CLIENT_DATA", "reflect")
    assert "in hand: #3 CLIENT_DATA to client" in text
    seat.type("forward")
    assert isinstance(seat.end(), WrongDirection)
    assert accepted(seat) == []


def test_bytes_can_be_sent_to_the_client_too(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "drop", "inject 1e1e client", "forward")
    assert isinstance(seat.end(), MalformedMessage)


def test_a_dropped_message_is_not_delivered(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "drop", "cut")
    assert isinstance(seat.refusal(), ConnectionCut)
    seat.table.onecmd("list")
    assert not seat.read().splitlines()[-1].endswith("forwarded")
    assert accepted(seat) == []


def test_a_message_put_aside_lets_the_next_pass_and_comes_back_in_front(seat: Seat) -> None:
    seat.client()
    seat.type("until SERVER_AGGR_RESPONSE", "replay 2", "hold")
    assert "in hand: #4" in seat.type("drop", "undo")
    assert "in hand: #2" in seat.type("release 2")
    assert seat.table._desk.held == ()
    seat.type("drop")
    assert seat.end() == 100.0


def test_cut_ends_both_sides_without_a_word(seat: Seat) -> None:
    seat.client([1.0], [2.0])
    seat.type("until SERVER_AGGR_RESPONSE", "cut")
    assert isinstance(seat.refusal(), ConnectionCut)
    seat._client.join(PATIENCE_S)  # type: ignore[union-attr]
    assert isinstance(seat.outcome[-1], ConnectionCut)


# Undo


def test_what_still_comes_after_a_cut_or_at_the_end_is_ignored(seat: Seat) -> None:
    table = seat.table
    table._begin("")
    table._arrive("client", b"\x0a a message")
    table._arrive("client", b"")
    assert [item.number for item in table._desk.waiting] == [1, 0], "an end has no number"
    seat.type("cut")
    table._arrive("server", b"\x14 too late")
    assert not table._desk.waiting
    table._begin("")
    seat.read()
    table.leave()
    table._arrive("client", b"\x0a after all")
    assert not table._desk.waiting
    assert not seat.read()


def test_a_connection_is_over_once_both_of_its_own_ends_have_closed(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = seat.table
    monkeypatch.setattr(table.wire, "send", lambda frame: frame.to == "server")
    for _ in range(2):
        table._begin("")
        table._arrive("client", b"")
        assert table._connected
        table._arrive("server", b"")
        assert not table._connected
    table._begin("")
    table._arrive("server", b"\x14 a message")
    table._arrive("client", b"\x0a another")
    assert "to client: nobody is there" in seat.type("forward")
    assert "nobody" not in seat.type("forward")
    seat.type("cut")
    table._begin("there is no server")
    assert seat.read() == "there is no server\n"
    assert (table._connection, table._connected) == (3, False)


CHANGES = [
    "flip 24.3",
    "drop",
    "hold",
    "play tape",
    "edit round=7",
    "reflect",
    "replay 1",
    "inject 00",
    "play tape client",
]


@pytest.mark.parametrize("line", some(CHANGES, 4))
def test_undo_takes_back_the_last_change_though_messages_have_come_since(
    seat: Seat, line: str
) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "record tape")
    before = seat.table._desk
    seat.type("flip 24.3", "flip 24.3", line)
    assert seat.table._desk != before
    waits = " (it waits)" if seat.table._desk.waiting else ""
    seat.table._arrive("client", b"later")
    assert f"#4 to server{waits}: " in seat.read()
    seat.type("undo", "undo", "undo")
    assert seat.table._desk.held == ()
    assert seat.table._desk.waiting[:-1] == before.waiting
    assert seat.table._desk.waiting[-1].frame.message == b"later"
    seat.type("forward", "drop")
    assert seat.end() == 100.0
    assert accepted(seat) == [[100.0]]


def test_undo_of_release_puts_aside_again(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "hold", "release 3", "undo")
    assert [item.number for item in seat.table._desk.held] == [3]
    seat.type("release 3")
    assert seat.end() == 100.0


def test_a_forwarded_message_cannot_be_undone(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "hold", "replay 2", "forward")
    with pytest.raises(UserError, match="what has been forwarded stays forwarded"):
        seat.type("undo")
    assert [item.number for item in seat.table._desk.held] == [3]
    seat.end()


# Recordings, and connections one after the other


def test_a_recorded_session_is_played_to_the_server_on_a_connection_of_our_own(seat: Seat) -> None:
    seat.client()
    assert seat.end() == 100.0
    assert "tape: 5 messages of connection 1" in seat.type("record tape")
    text = seat.type("play tape")
    assert "tape: 3 messages to the server\nin hand: #1 CLIENT_HELLO to server" in text
    text = seat.type("forward", "until SERVER_CHALLENGE", "drop")
    assert "connection 2 has begun" in text
    assert isinstance(seat.refusal(2), BadTag), "the binding"
    seat.type("until end")
    assert accepted(seat) == [[100.0]]


def test_a_recording_is_played_into_the_session_of_another_client(seat: Seat) -> None:
    seat.client()
    seat.end()
    seat.type("record tape")
    seat.client(client_id=2)
    seat.type("until SERVER_CHALLENGE", "drop", "play tape client", "forward")
    assert isinstance(seat.end(), WrongPeer)


def test_messages_keep_their_numbers_from_connection_to_connection(seat: Seat) -> None:
    for _ in range(2):
        seat.client()
        seat.end()
    assert [item.number for item in seat.table._came] == [*range(1, 11)]
    assert [item.connection for item in seat.table._came] == [1] * 5 + [2] * 5
    assert "tape: 5 messages of connection 2" in seat.type("record tape")
    seat.type("replay 3", "forward")
    assert isinstance(seat.refusal(3), UnexpectedOpcode)
    seat.over(3)  # and said so, so that the line does not appear between two tests


# Mistakes

MISTAKES = {
    "frobnicate": "there is no command 'frobnicate'; help names them all",
    "flip": r"^usage: flip BYTE\[.BIT\]: flip a bit in it, 0 \(the lowest\) to 7$",
    "flip 1.8": "^usage: .*flip",
    "flip x": "^usage: .*flip",
    "flip 999": "it has only 87 bytes, from 0",
    "flip -88": "it has only 87 bytes",
    "edit round": "^usage: edit FIELD=VALUE: opcode, client_id, ",
    "edit colour=1": "^usage: .*edit",
    "edit round=soon": "^usage: .*edit",
    "edit opcode=256": "opcode has no room for 256",
    "edit round=4294967296": "round has no room for 4294967296",
    "inject": r"^usage: inject HEX \[client\]: bytes of your own",
    "inject 1": "^usage: .*inject",
    "inject xy": "^usage: .*inject",
    "inject 00 nobody": "^usage: .*inject",
    "replay": "^usage: replay N: any message once more",
    "replay 99": "no message 99 has come",
    "replay 0": "no message 0 has come",
    "release 1": "no message 1 was put aside",
    "show 99": "no message 99 has come",
    "show x": r"^usage: show \[N\], list: a message",
    "play nothing": "no recording nothing with messages to the server",
    "play": "^usage: .*play",
    "record": "^usage: .*record",
    "record ../x": "^usage: .*record",
    "until": "^usage: until OPCODE or end: forward until",
    "until then": "^usage: .*until",
    "auto on": r"^usage: auto \[off\]: forward everything",
    "drop 1": "^usage: .*drop",
    "undo": "nothing to undo",
}


def test_a_mistake_costs_one_sentence_and_changes_nothing(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA")
    before = seat.table._desks
    seat.read()
    for line, sentence in MISTAKES.items():
        assert seat.table.onecmd(line) is False
        said = seat.read()
        assert said.count("\n") == 1, said
        assert len(said) <= 80
        assert re.search(sentence, said), said
        assert seat.table._desks == before
    assert seat.journal.records == []
    assert seat.end() == 100.0


def test_without_a_connection_nothing_is_forwarded_even_by_auto(seat: Seat) -> None:
    assert "in hand: yours, " in seat.type("auto", "inject 0a")
    assert "dropped yours, " in seat.type("drop")


def test_who_waits_for_a_connection_or_a_message_is_woken_by_it(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classroom.proxy.POLL_S", 2 * PATIENCE_S)
    began = time.monotonic()
    seat.type("inject 0a", "until CLIENT_HELLO", "forward", "until end")
    seat.client()
    seat.type("until CLIENT_DATA")
    assert seat.end() == 100.0
    assert time.monotonic() - began < PATIENCE_S / 2


SAID = [
    ("inject 0a010000000100", "in hand: yours, CLIENT_HELLO to server"),
    ("edit round=2", "header: 0a 01 00 00 00 01 00 -> 0a 01 00 00 00 02 00"),
    ("flip -7.0", "byte -7: 0a -> 0b"),
    ("flip 6.0", "byte 6: 00 -> 01"),
    ("hold", "put aside yours, opcode 11 to server"),
    ("inject 14", "in hand: yours, SERVER_CHALLENGE to server"),
    ("hold", "put aside yours, SERVER_CHALLENGE to server"),
    ("release 0", "in hand: yours, opcode 11 to server"),
    ("release 0", "in hand: yours, SERVER_CHALLENGE to server"),
    ("auto off", "from now on you decide"),
    ("auto", "from now on all is forwarded"),
]


def test_each_command_says_what_it_has_done(seat: Seat) -> None:
    for line, said in SAID:
        told = seat.type(line).splitlines()
        assert said in told
        assert line != "auto off" or told == [said], "the hand is as it was"
        assert seat.table._connected == (line == "auto"), "which needs a connection"
        if line.startswith("edit"):
            with pytest.raises(UserError, match="only 7 bytes"):
                seat.type("flip 7")


def test_a_person_who_waits_without_a_client_is_told_how_to_stop(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat.table, "_wait", lambda until: None)
    for is_connected, in_script in itertools.product((False, True), repeat=2):
        monkeypatch.setattr(seat.table, "_connected", is_connected)
        monkeypatch.setattr(seat.table, "_in_script", in_script)
        is_told = "waiting for a client; Ctrl-C stops it" in seat.type("until CLIENT_DATA")
        assert is_told == (not is_connected and not in_script)


class Living:
    """A pair whose client of the last session is still about at the first looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.lived: list[int] = []

    @property
    def is_living(self) -> bool:
        self.looks -= 1
        return self.looks >= 0

    def live(self, address: object) -> None:
        self.lived.append(self.looks)


def test_a_session_waits_for_the_client_of_the_last_one_unless_that_is_connected(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classroom.proxy.POLL_S", 0.001)
    for is_connected in (False, True):
        pair: Any = Living(3)
        monkeypatch.setattr(seat.table, "_pair", pair)
        monkeypatch.setattr(seat.table, "_connected", is_connected)
        seat.type("session")
        assert [left < 0 for left in pair.lived] == [not is_connected]


def test_an_until_that_fails_is_forgotten(seat: Seat) -> None:
    seat.table._goal = "CLIENT_DATA"
    seat.table._failure = "there is no server"
    with seat.table._changed, pytest.raises(NoConnection, match="there is no server"):
        Table._wait(seat.table, lambda: False)
    assert seat.table._goal == seat.table._failure == ""
    seat.table._begin("")
    seat.table._arrive("client", b"\x0a a message")
    seat.table._failure = "there was no server"
    seat.type("until CLIENT_HELLO", "cut")


def test_with_nothing_in_hand_that_is_said(seat: Seat) -> None:
    for line in ("forward", "drop", "hold", "reflect", "flip 0", "edit round=1", "show", ""):
        seat.table.onecmd(line)
        assert seat.read() == "there is no message in hand\n"
    seat.table.onecmd("cut")
    assert seat.read() == "there is no connection to cut\n"
    seat.table.onecmd("record tape")
    assert seat.read() == "there are no messages to record\n"


def test_a_header_that_is_not_there_cannot_be_edited(seat: Seat) -> None:
    seat.type("inject 1e01")
    with pytest.raises(UserError, match="it has no whole header"):
        seat.type("edit round=1")
    seat.type("flip 1", "drop")


def test_a_server_that_has_gone_is_said_and_the_table_stays(
    seat: Seat, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((HOST, 0)) as gone:
        address = gone.getsockname()
    seat.table.wire._server = address
    seat.table.onecmd("inject 00")
    seat.table.onecmd("forward")
    assert f"no server at {HOST}:{address[1]}: Connection refused\n" in seat.read()
    assert [item.frame.message for item in seat.table._desk.waiting] == [b"\0"]
    seat.type("drop")
    seat.client()
    with pytest.raises(NoConnection, match="here: no server at"):
        seat.table.run_script([("here", Command("until", ("CLIENT_HELLO",)))])
    assert not seat.table._failure, "it is said once"


# Scripts


def script(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_script_is_what_would_be_typed(tmp_path: Path) -> None:
    path = script(
        tmp_path / "s",
        "# a title\n\nuntil  CLIENT_DATA # wait\n  flip 24.3\nflip -1\n"
        "edit opcode = TERMINATE\ninject 0aFF client\nquit\n",
    )
    assert [command for _, command in parse_script(path)] == [
        Command("until", ("CLIENT_DATA",)),
        Command("flip", (24, 8)),
        Command("flip", (-1, 1)),
        Command("edit", ("opcode", 60)),
        Command("inject", (b"\x0a\xff", "client")),
        Command("quit", ()),
    ]
    assert parse_script(path)[0][0] == f"{path} line 3"


def test_a_script_runs_to_its_end_or_to_quit(seat: Seat, tmp_path: Path) -> None:
    path = script(tmp_path / "s", "until CLIENT_DATA\nflip 24.3\nforward\nuntil end\n")
    seat.client()
    assert seat.table.run_script(parse_script(path)) is False
    assert not seat.table._in_script
    assert isinstance(seat.refusal(), BadTag)
    assert seat.table.run_script([("", Command("quit")), ("", Command("frobnicate"))]) is True


def test_a_script_that_waits_in_vain_says_where(seat: Seat, tmp_path: Path) -> None:
    path = script(tmp_path / "s", "until SERVER_AGGR_RESPONSE\nuntil KEY_DESYNC_ERROR\n")
    seat.client()
    sentence = "s line 2: connection 1 was over before a KEY_DESYNC_ERROR came"
    with pytest.raises(NoConnection, match=sentence):
        seat.table.run_script(parse_script(path))


def test_the_end_of_a_connection_is_waited_for_once_however_soon_it_came(
    seat: Seat, tmp_path: Path
) -> None:
    seat.client()
    first = parse_script(script(tmp_path / "s", "until TERMINATE\nforward\n"))
    seat.table.run_script(first)
    seat.over(1)
    with pytest.raises(NoConnection, match="connection 1 was over before a CLIENT_HELLO came"):
        seat.table.run_script([("here", Command("until", ("CLIENT_HELLO",)))])
    seat.table._ended = True
    seat.client()
    end = Command("until", ("end",))
    hello = Command("until", ("CLIENT_HELLO",))
    seat.table.run_script([("here", end), ("here", hello), ("here", end)])
    assert len(seat.table._came) == 10


def test_values_are_names_or_numbers_and_help_needs_none() -> None:
    for line, values in (
        ("edit direction=C2S", ("direction", 0)),
        ("edit direction = S2C", ("direction", 1)),
        ("edit round=256", ("round_number", 256)),
        ("help me", ()),
    ):
        assert parse(line) == Command(line.split()[0], values)


@pytest.mark.parametrize(
    "text",
    ["until CLIENT_HELLO\nforward\nflop\n", "drop\n\ndrop 7\n", "# ?\nundo\nedit opcode=300"],
)
def test_a_wrong_line_is_named_before_anything_is_done(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"/s line 3: "):
        parse_script(script(tmp_path / "s", text))


# The program


def proxy(capfd: pytest.CaptureFixture[str], *flags: str) -> Done:
    return run_here(main, capfd, "proxy.py", *flags)


def test_the_program_ends_in_one_sentence_and_an_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = script(tmp_path / "wrong", "until end\nflop\n")
    with socket.create_server((HOST, 0)) as listener, socket.create_server((HOST, 0)) as closed:
        here = "{}:{}".format(*listener.getsockname())
        gone = "{}:{}".format(*closed.getsockname())
        closed.close()
        for arguments, code, sentence in (
            (["--script", wrong, "--server", here], 2, "wrong line 2: there is no command 'flop'"),
            (["--script", str(tmp_path)], 2, "cannot read"),
            (["--keylog", str(tmp_path)], 2, "cannot read"),
            (["--server", "9999"], 2, "--server: '9999' is not HOST:PORT"),
            (["--server", gone], 3, f"no server at {gone}: Connection refused"),
            (["--server", here, "--listen", here.split(":")[1]], 3, "cannot listen on 127.0.0.1"),
        ):
            done = proxy(capfd, *arguments)
            assert (done.returncode, done.stdout) == (code, ""), done
            assert done.stderr.startswith("proxy.py: ")
            assert sentence in done.stderr
            assert done.stderr.count("\n") == 1
            listener.settimeout(PATIENCE_S if "--listen" in arguments else 0.01)
            with contextlib.suppress(TimeoutError), listener.accept()[0] as visit:
                assert visit.recv(1) == b"", "it looks whether there is a server, no more"
                assert "--listen" in arguments


def test_flags_choose_the_server_or_the_pair(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: object) -> None:
        raise UserError(f"{words}")

    monkeypatch.setattr("classroom.proxy.reach", refuse)
    monkeypatch.setattr("classroom.proxy.OwnPair", lambda names, say, wait: refuse(names, wait))
    assert proxy(capfd).stderr == "proxy.py: (('127.0.0.1', 9999),)\n"
    assert proxy(capfd, "--without", "tag").stderr == "proxy.py: ('tag', True)\n"
    twice = ("--without", "tag", "--without", "echo")
    assert proxy(capfd, *twice).stderr == "proxy.py: ('tag,echo', True)\n"
    assert proxy(capfd, "--own", "--deadlines").stderr == "proxy.py: ('', False)\n"
    monkeypatch.setattr(sys, "argv", ["proxy.py"])
    assert read_options().listen == 9000


def test_a_server_may_be_silent_for_as_long_as_it_likes() -> None:
    with socket.create_server((HOST, 0)) as listener, reach(listener.getsockname()) as sock:
        assert sock.gettimeout() is None
    with pytest.raises(NoConnection):
        reach(("x" * 64, 1))


def test_the_end_of_a_stream_is_passed_on_and_ends_a_client_of_our_own(seat: Seat) -> None:
    wire = seat.table.wire
    client, its_peer = socket.socketpair()
    server, other_peer = socket.socketpair()
    own, its_other_end = socket.socketpair()
    with client, its_peer, server, other_peer, own, its_other_end:
        wire._ends = {"client": client, "server": server}
        wire._own = own
        assert wire.send(Frame("server", b""))
        assert other_peer.recv(1) == b""
        assert wire._own is own
        assert wire.send(Frame("client", b""))
        assert its_peer.recv(1) == its_other_end.recv(1) == b""
        assert wire._own is None
        assert not wire.send(Frame("client", b"nobody is there"))


def test_a_connection_lasts_until_what_has_come_is_delivered_or_the_wire_closes(
    seat: Seat,
) -> None:
    wire = seat.table.wire
    for is_closing in (False, True):
        client, its_peer = socket.socketpair()
        server, other_peer = socket.socketpair()
        with client, its_peer, server, other_peer:
            ends = {"client": client, "server": server}
            carrying = threading.Thread(target=wire._carry, args=(ends,), daemon=True)
            if is_closing:
                wire._closing.set()
                carrying.start()
            else:
                wire._over.set()  # as the connection before has left it
                write_frame(its_peer.sendall, b"\x0a" + bytes(86))
                its_peer.close()
                other_peer.close()
                carrying.start()
                carrying.join(0.05)
                assert carrying.is_alive(), "the message is still in hand"
                seat.type("cut")
            carrying.join(PATIENCE_S / 2)
            assert not carrying.is_alive()


@pytest.mark.slow
def test_three_programs_and_a_script(tmp_path: Path) -> None:
    path = script(tmp_path / "s", "until CLIENT_DATA\nflip 24.3\nforward\nuntil end\n")
    with (
        running_server("--patient") as (server, port),
        Program(
            "-m", "classroom.proxy", "--listen", "0", "--server", f"{HOST}:{port}", "--script", path
        ) as middle,
    ):
        here = middle.wait_for("^listening on ").partition(";")[0].rpartition(":")[2]
        with Program("client.py", "1", "--port", here, "--patient", "--values", "100") as client:
            assert client.finish() == 1
            assert client.lines["err"] == ["client 1: session terminated by the server: VIOLATION"]
        middle.wait_for("^connection 1 is over")
        server.wait_for("ended: BadTag", "err")
        assert middle.process.stdin
        middle.process.stdin.write("list\n")
        middle.process.stdin.close()  # and that is the end of the commands
        assert middle.finish() == 0
        assert middle.lines["err"] == []
        assert all(len(line) <= 80 and line.isascii() for line in middle.lines["out"])
        assert middle.lines["out"][-1].startswith("connection 1  #4 TERMINATE to client")


@pytest.mark.slow
@posix_only
def test_ctrl_c_ends_the_program() -> None:
    with (
        running_server() as (_, port),
        Program("-m", "classroom.proxy", "--listen", "0", "--server", f"{HOST}:{port}") as middle,
    ):
        middle.wait_for("^listening on ")
        middle.interrupt()
        assert middle.finish() == 130
        assert middle.lines["err"] == []


def test_help_names_every_command_and_fits_a_screen() -> None:
    lines = HELP.splitlines()
    assert len(lines) <= 22, "24 rows, without the line that was typed and the next prompt"
    assert all(len(line) < 80 and line.isascii() for line in lines)
    for name in GRAMMAR:
        assert callable(getattr(Table, f"do_{name}"))
        assert name == "help" or any(f"{name}" in line[:22] for line in lines), name


# A pair of its own


class Scored:
    """Two sessions without some rules, whose score is kept; messages go where the test says."""

    def __init__(self, *missing: str) -> None:
        self.score = Score()
        self.said: list[str] = []
        self.client = self._session(Direction.C2S, missing)
        self.server = self._session(Direction.S2C, missing)
        self.hello = self.client.seal(ClientHello())
        self.server.open(self.hello)
        self.client.open(self.server.seal(ServerChallenge()))

    def _session(self, sends: Direction, missing: Sequence[str]) -> Session:
        session: Session = without(missing).session(
            1,
            DEMO_KEYS[1],
            sends,
            watchers=[lambda seen: self.said.append(self.score.see(sends, seen))],
        )
        return session

    def counts(self) -> tuple[int, int, int]:
        return self.score.won, self.score.genuine, self.score.refused


def test_what_arrives_as_it_was_sent_is_no_win() -> None:
    pair = Scored()
    pair.server.open(pair.client.seal(ClientData([100.0])))
    pair.client.open(pair.server.seal(ServerAggrResponse({})))
    with pytest.raises(PeerTerminated):
        pair.server.open(pair.client.seal(Terminate(Status.GOODBYE)))
    assert pair.counts() == (0, 4, 0)
    assert "the server accepted TERMINATE, as it was sent" in pair.said


def test_a_refused_message_is_no_win() -> None:
    pair = Scored()
    with pytest.raises(BadTag):
        pair.server.open(pair.client.seal(ClientData([100.0]))[:-1] + b"?")
    assert pair.counts() == (0, 1, 1)
    assert pair.said[-2:] == ["the server refused CLIENT_DATA: BadTag", ""]


def test_a_changed_message_that_is_accepted_is_one_win_and_told_with_its_text() -> None:
    pair = Scored("tag", "ratchet")
    flipped = bytearray(pair.client.seal(ClientData([100.0])))
    flipped[24] ^= 8
    pair.server.open(bytes(flipped))
    assert pair.said[-1] == "YOU WIN: the server accepted CLIENT_DATA [900.0], which nobody sent"
    pair.client.open(pair.server.seal(ServerAggrResponse({})))
    pair.server.open(pair.client.seal(ClientData([101.0])))
    assert pair.counts() == (1, 3, 0)


def test_a_message_that_is_accepted_twice_is_a_win() -> None:
    pair = Scored("round", "ratchet")
    report = pair.client.seal(ClientData([100.0]))
    pair.server.open(report)
    pair.server.seal(ServerAggrResponse({}))
    pair.server.open(report)
    assert pair.said[-1].startswith("YOU WIN: the server accepted CLIENT_DATA [100.0]")
    assert pair.counts() == (1, 2, 0)


def test_a_goodbye_that_is_accepted_without_the_report_before_it_is_a_win() -> None:
    pair = Scored("ratchet", "round")
    pair.client.seal(ClientData([100.0]))
    with pytest.raises(PeerTerminated):
        pair.server.open(pair.client.seal(Terminate(Status.GOODBYE)))
    assert pair.said[-1] == "YOU WIN: the server accepted TERMINATE, and does not miss 1 before it"
    assert pair.counts() == (1, 1, 0)


def test_a_recording_that_is_accepted_on_another_connection_is_a_win() -> None:
    pair = Scored("binding")
    report = pair.client.seal(ClientData([100.0]))
    pair.server.open(report)
    pair.score.begin()
    other = pair._session(Direction.S2C, ["binding"])
    other.open(pair.hello)
    other.seal(ServerChallenge())
    other.open(report)
    assert pair.said[-1].startswith("YOU WIN: the server accepted CLIENT_DATA [100.0]")
    assert pair.counts() == (1, 2, 0)


def test_each_message_counts_once_and_a_gap_is_excused_once_by_a_substitute() -> None:
    score = Score()

    def accepted(number: int) -> str:
        said = score.see(Direction.C2S, Seen("accepted", bytes([40, number]), b"\0[7]", {}))
        return said.removeprefix("the client accepted SERVER_AGGR_RESPONSE, ")

    for number in range(10):
        score.see(Direction.S2C, Seen("sealed", bytes([40, number]), b"", {}))
    genuine = "as it was sent"
    forged = "YOU WIN: the client accepted SERVER_AGGR_RESPONSE [7], which nobody sent"
    gap = "YOU WIN: the client accepted SERVER_AGGR_RESPONSE, and does not miss 1 before it"
    for number, said in (
        (0, genuine),
        (2, gap),
        (1, forged),
        (2, forged),
        (5, genuine),  # in place of 3 and 4 came the two above
        (7, gap),
        (8, genuine),
        (99, forged),
        (99, forged),
        (9, genuine),
    ):
        assert accepted(number) == said, number
    assert (score.won, score.genuine, score.refused) == (6, 4, 0)


@pytest.mark.parametrize("is_patient", [False, True])
def test_a_pair_has_one_session_at_a_time_and_only_a_patient_one_waits_for_ever(
    is_patient: bool,
) -> None:
    said: list[str] = []
    waits = math.inf if is_patient else 2.0
    with OwnPair("", said.append, is_patient) as pair:
        client = pair.client(1, pair.address)
        assert (client.timeout_s, client._frame_timeout_s) == (waits, waits)
        assert (pair._server.limits.silence_timeout_s == math.inf) == is_patient
        with socket.create_server((HOST, 0)) as nobody:
            pair.live(nobody.getsockname())
            with pytest.raises(UserError, match="still in its session"):
                pair.live(nobody.getsockname())
        wait_until(lambda: not pair.is_living)
        pair.live(pair.address)
    assert (pair.score.genuine, pair._server._epochs.current.number) == (8, 4)
    assert not pair.is_living


def test_a_pair_can_be_left_before_its_client_has_begun() -> None:
    with OwnPair("", print, True) as pair:
        assert not pair.is_living


def test_without_an_honest_session_there_is_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise ConnectionCut(mid_frame=False)

    monkeypatch.setattr(OwnPair, "_report", cut)
    with pytest.raises(UserError, match="no honest session: "), OwnPair("", print, True):
        pytest.fail("there is a pair")


@pytest.mark.slow
def test_with_a_pair_of_its_own_a_student_wins_and_keeps_the_score(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text(
        "until CLIENT_DATA\nflip 24.3\nforward\nuntil end\n"
        "session\nuntil CLIENT_DATA\nrecord one\nuntil end\nsession\nuntil end\nscore\nquit\n"
    )
    done = proxy(capfd, "--listen", "0", "--without", "tag", "--script", str(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert "YOU WIN: the server accepted CLIENT_DATA [900.0,20.5,21.0,22.5]" in done.stdout
    *_, asked, last = [line for line in done.stdout.splitlines() if line.startswith("score: 1 ")]
    assert last == asked


def test_a_session_and_a_score_are_there_only_without_rules(seat: Seat) -> None:
    for line in ("session", "score"):
        with pytest.raises(UserError, match="only with --without"):
            seat.type(line)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--without tag --server 127.0.0.1:9", "--without and --own bring a server"),
        ("--own --keylog keys.log", "--without and --own bring a server"),
        ("--without tag --without nonsense", "there is no rule nonsense"),
        ("--own --keylog=", "--without and --own bring a server"),
        ("--own --script=", "cannot read"),
        ("--keylog=", "cannot read"),
        ("--deadlines", "--deadlines is for --without and --own"),
    ],
)
def test_flags_that_do_not_fit_a_pair_are_one_sentence(
    flags: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = proxy(capfd, *flags.split())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert sentence in done.stderr


def test_a_splice_puts_a_message_of_a_recording_in_the_place_of_the_one_in_hand(seat: Seat) -> None:
    seat.client()
    seat.type("until CLIENT_DATA", "record one", "until end")
    seat.client()
    seat.type("until CLIENT_DATA")
    for number in (0, 4):
        with pytest.raises(UserError, match=f"no recording one with a message {number}"):
            seat.type(f"splice one {number}")
    with pytest.raises(UserError, match="no recording two with a message 1"):
        seat.type("splice two 1")
    assert "one 1 in its place: 0a 01 00 00 00 00 00" in seat.type("splice one 1")
    assert "undone" in seat.type("undo")
    assert "one 3 in its place: 1e 01 00 00 00 01 00" in seat.type("splice one 3")
    seat.type("forward")
    assert isinstance(seat.refusal(2), BadTag)
    seat.end()


def test_a_pair_of_its_own_with_all_rules_refuses_and_has_recordings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text(
        "until CLIENT_DATA\nplay older server\nshow\nundo\nsplice older 3\nforward\nuntil end\n"
        "session\nuntil CLIENT_DATA\nsplice other 3\nforward\nuntil end\nquit\n"
    )
    done = proxy(capfd, "--listen", "0", "--own", "--deadlines", "--script", str(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert "in hand: yours, CLIENT_HELLO to server" in done.stdout
    assert "yours, to server: " in done.stdout
    assert "the server refused CLIENT_DATA: BadTag" in done.stdout
    assert "the server refused CLIENT_DATA: WrongPeer" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("score: 0 ")


# At a terminal


@pytest.mark.slow
@posix_only
def test_at_a_terminal_an_arriving_message_keeps_the_prompt_and_the_typed_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pexpect = pytest.importorskip("pexpect")
    with serving(window_s=0.2) as (server, journal):
        middle = pexpect.spawn(
            sys.executable,
            ["-m", "classroom.proxy", "--listen", "0", "--server", "{}:{}".format(*server.address)],
            cwd=str(ROOT),
            timeout=TIMEOUT_S,
            encoding="ascii",
            dimensions=(24, 80),
            env={"TERM": "dumb", "PATH": ""},
        )
        middle.expect(r"listening on 127.0.0.1:(\d+);")
        address = (HOST, int(middle.match[1]))
        middle.expect_exact("proxy> ")
        middle.send("sho")
        middle.expect_exact("sho")
        session = Session(1, DEMO_KEYS[1], Direction.C2S)
        with socket.create_connection(address) as sock:
            hello = session.seal(ClientHello())
            sock.sendall(len(hello).to_bytes(2, "big") + hello)
            middle.expect_exact("#1 to server: CLIENT_HELLO")
            middle.expect(r"tag \w+\.\.\r+\nproxy> sho")
            middle.sendline("w")
            middle.expect_exact(f"IV              7  {hello[7:23].hex(' ')}")
            middle.expect_exact("proxy> ")
            middle.sendline("flip 0.1")
            middle.expect_exact("byte 0: 0a -> 08")
            middle.sendline("undo")
            middle.expect_exact("undone")
            middle.sendline("flop")
            middle.expect_exact("there is no command 'flop'")
            middle.sendline("")
            middle.expect_exact("forwarded #1 CLIENT_HELLO to server")
            middle.expect_exact("#2 to client: SERVER_CHALLENGE")
            middle.sendline("until KEY_DESYNC_ERROR")
            middle.expect_exact("forwarded #2")
            middle.sendintr()
            middle.expect_exact("interrupted")
            middle.sendline("cut")
            middle.expect_exact("connection 1 is over")
            middle.expect_exact("proxy> ")
        middle.sendeof()
        middle.expect(pexpect.EOF)
        middle.close()
        assert (middle.exitstatus, middle.signalstatus) == (0, None)
        assert isinstance(journal.wait("end")[0].detail, ConnectionCut)
