"""A Client in a program of one's own, and client.py: what its flags do, and how it ends."""

from __future__ import annotations

import array
import io
import json
import math
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from channel import Channel, EndRequested
from client import Client, explain, float_of, main, typed
from endpoint import DEMO_KEYS, DEMO_WARNING
from program import NoConnection, UserError
from protocol_fsm import (
    MAX_MAGNITUDE,
    BadTag,
    ClientData,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    MalformedMessage,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    Session,
    Status,
)
from server import Contribution
from tests.helpers import Pair
from tests.network import Journal, client_for, serving
from tests.programs import posix_only

Run = Callable[..., tuple[int, str, str]]
TABLE = "a,v\n1,5\n2,6\n"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept_signals: None
) -> Run:
    """Return a function that runs client 1: its exit code, and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["client.py", "1", *words])
        return main(), *capsys.readouterr()

    return run


def reported(journal: Journal) -> list[list[float]]:
    details = [record.detail for record in journal.of("report")]
    return [[*detail.readings] for detail in details if isinstance(detail, Contribution)]


COMMAS = "reads column 2, 'v': commas, decimal point\n"
SOURCES: dict[str, tuple[str, list[list[float]], float, str]] = {  # flags, reports, pauses, stderr
    "values": ("--values 1 -2.5e0", [[1.0, -2.5]] * 10, 0.5, ""),
    "pauses": ("--values 5 --rounds 3 --interval 0.25", [[5.0]] * 3, 0.25, ""),
    "simulated": ("--rounds 3", [[21.2], [21.45], [21.68]], 0.5, ""),
    "table": ("--file table", [[5.0], [6.0]], 0.5, COMMAS),
    "part of a table": (
        "--file titled --skip 1 --column a --rounds 1",
        [[1.0]],
        0.5,
        "reads column 1, 'a': commas, decimal point\n",
    ),
    "stream": ("--file -", [[], [5.0], [6.0]], 0.5, COMMAS),
    "part of a stream": ("--file - --rounds 1", [[], [5.0]], 0.5, COMMAS),
    "typed": ("--interactive", [[], [7.0, 8.0], [9.0]], 0.01, ""),
    "part of what is typed": ("--interactive --rounds 1", [[], [7.0, 8.0]], 0.01, ""),
}


@pytest.mark.parametrize("case", SOURCES)
def test_reports_are_those_that_the_flags_ask_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    words, reports, pause, told = SOURCES[case]
    monkeypatch.chdir(tmp_path)
    Path("table").write_text(TABLE)
    Path("titled").write_text(f"a table\n{TABLE}")
    stdin: object = io.StringIO("7 8\n9\nquit\n")
    if "--file -" in words:
        stdin = SimpleNamespace(fileno=lambda: os.open("table", os.O_RDONLY))
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(random, "uniform", lambda low, high: low + 2 * high)
    pauses: list[float] = []
    monkeypatch.setattr(Channel, "idle", lambda _, seconds: pauses.append(seconds))
    with serving() as (server, journal):
        code, out, err = run("--port", str(server.address[1]), *words.split())
        journal.wait("end")
    assert (code, err) == (0, told)
    assert reported(journal) == reports
    assert pauses == [pause] * (len(reports) - 1)
    lines = out.splitlines()
    assert lines[:2] == ["client 1: session with the server begun", DEMO_WARNING]
    assert lines[-1].endswith(f"client 1: goodbye said after round {len(reports)}")
    assert out.count("epoch ") == len(reports)


def test_lines_of_json_stand_alone_and_keys_of_ones_own_are_not_warned_about(
    run: Run, tmp_path: Path
) -> None:
    keys = tmp_path / "some.keys"
    keys.write_text(f"1:{DEMO_KEYS[1].hex()}\n")
    keys.chmod(0o600)
    with serving() as (server, _):
        words = ["--port", str(server.address[1]), "--keys", str(keys), "--values", "1"]
        _, out, _ = run(*words, "--values", "2", "3", "--rounds", "1", "--json")
        assert json.loads(out)["sum"] == 6
        _, out, _ = run(*words, "--rounds", "1")
        assert out.startswith("client 1: session with the server begun\nepoch 2 ")


def test_deadlines_are_those_of_the_flags(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(Exception):
        pass

    def make(*_: object, timeout_s: float, frame_timeout_s: float, **__: object) -> None:
        raise Made(timeout_s, frame_timeout_s)

    monkeypatch.setattr("client.Client", make)
    for words, limits in (
        ([], (2.0, 2.0)),
        (["--timeout", "7"], (7.0, 2.0)),
        (["--timeout", "7", "--patient"], (math.inf, math.inf)),
    ):
        with pytest.raises(Made) as caught:
            run(*words)
        assert caught.value.args == limits


@pytest.mark.parametrize("words", ["--column a", "--skip 1"])
def test_a_column_without_a_table_is_refused(run: Run, words: str) -> None:
    with pytest.raises(UserError, match="go with --file"):
        run(*words.split())


# How it ends

CUT = ConnectionCut(mid_frame=False)
MALFORMED = MalformedMessage("a frame", "none")
ENDS = [  # error, round, what is said
    (PeerTerminated(Opcode.TERMINATE, Status.SHUTDOWN), 1, "terminated by the server: SHUTDOWN"),
    (CUT, 0, "closed the connection in the handshake, and never says why"),
    (CUT, 1, "connection lost: it closed without a TERMINATE"),
    (MALFORMED, 0, "the program on that port is not our server: MalformedMessage"),
    (MALFORMED, 1, "session terminated: MalformedMessage"),
    (DeadlineExpired("a message", "none"), 0, "no answer in time"),
    (BadTag("a tag", "another"), 0, "session terminated: BadTag"),
]


@pytest.mark.parametrize(("error", "number", "words"), ENDS)
def test_each_end_has_its_sentence(error: ProtocolError, number: int, words: str) -> None:
    pair = Pair()
    if number:
        pair.hello()
        pair.challenge()
    assert words in explain(error, pair.client)


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (CUT, 3, "", "client 1: the server closed the connection"),
        (DeadlineExpired("a message", "none"), 3, "", "client 1: no answer in time"),
        (BadTag("a tag", "another"), 1, "", "client 1: session terminated: BadTag"),
        (EndRequested(Status.GOODBYE), 0, "client 1: goodbye said after round -1\n", ""),
    ],
)
def test_each_end_has_its_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, out: str, err: str
) -> None:
    def end(*_: object) -> None:
        raise error

    monkeypatch.setattr("client.run", end)
    done = run()
    assert done[:2] == (code, out)
    assert done[2].startswith(err)


def test_a_mistake_of_the_users_is_no_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise LocalError("this cannot be sent")

    monkeypatch.setattr("client.run", end)
    with pytest.raises(UserError, match="this cannot be sent"):
        run()


@pytest.mark.parametrize(
    ("flags", "where", "number"),
    [
        ("--values 1", "Channel.idle", 1),
        ("--values 1", "Session.seal", 0),
        ("--interactive", "describe", 1),  # so that it is noticed before a person is asked
        ("--interactive", "input", 1),
    ],
)
def test_ctrl_c_says_goodbye_and_the_next_one_does_not_cut_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: str, where: str, number: int
) -> None:
    leave = Channel.leave
    seal = Session.seal
    typed: list[str] = []

    def interrupt(*_: object) -> str:
        signal.raise_signal(signal.SIGINT)
        return ""

    def leave_late(channel: Channel[object], status: Status) -> None:
        interrupt()
        leave(channel, status)

    def seal_late(session: Session, message: Message) -> bytes:
        sealed = seal(session, message)
        if isinstance(message, ClientData):
            interrupt()
        return sealed

    def ask() -> str:
        if where == "input":
            interrupt()
        typed.append("a line")
        return "quit"

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(Channel, "leave", leave_late)
    if where != "input":
        monkeypatch.setattr(f"client.{where}", seal_late if "seal" in where else interrupt)
    with serving() as (server, journal):
        code, out, err = run("--port", str(server.address[1]), *flags.split())
        journal.wait("end")
    assert (code, err, typed) == (0, "", [])
    assert reported(journal) == [[1.0] if "--values" in flags else []]
    assert ("quit> \nclient 1:" in out) == (where == "input")  # the prompt has a line of its own
    assert out.endswith(f"client 1: goodbye said after round {number}\n")
    assert "GOODBYE" in str(journal.of("end")[0].detail)


def test_a_typed_decimal_comma_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("20,5\n1\u00a0234\nstatus\n20.5 21\nquit\n"))
    assert [*typed(Client(1, DEMO_KEYS))] == [[20.5, 21.0]]
    said = capsys.readouterr().out
    assert said.count("with a decimal point") == 2
    assert "<Session of client 1, sends C2S, HELLO, round 0>\nC2S-ENC" in said


@posix_only
def test_a_person_at_the_prompt_hears_of_the_servers_end_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, terminal = os.openpty()  # where nobody types anything
    with open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with serving() as (server, _):
            client = client_for(server, 1)
            client.connect()
            client.report([])
        with pytest.raises(PeerTerminated) as caught:
            next(typed(client))
    client.close()
    assert caught.value.status is Status.SHUTDOWN
    assert capsys.readouterr().out == "numbers, status, quit> \n"


# A Client in a program of one's own ---------------------------------------------------------------


def test_a_report_takes_any_real_numbers_and_names_the_limit_otherwise() -> None:
    with serving() as (server, _), client_for(server, 1) as client:
        assert client.report(array.array("d", [1.5, 2.5]))["sum"] == 4.0
        assert client.report((1, 2.5))["sum"] == 3.5
        assert client.report([Fraction(3, 2), 2])["sum"] == 3.5
        for wrong, words in (
            ([1] * 1_025, "at most 1,024 numbers, got 1025"),
            (["1"], "a reading is a real number, and this is a str"),
            ([True], "numbers of at most 1e"),
            ([1j], "and this is a complex"),
            ([2 * MAX_MAGNITUDE, 1], "numbers of at most 1e"),
        ):
            with pytest.raises(LocalError, match=words):
                client.report(wrong)  # type: ignore[arg-type]
        assert client.report([7])["sum"] == 7


@pytest.mark.slow
def test_a_report_takes_the_arrays_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    assert float_of(numpy.int64(3)) == 3
    with serving() as (server, _), client_for(server, 1) as client:
        assert client.report(numpy.array([1, 2]))["sum"] == 3
        assert client.report(numpy.array([1.5, 2.0], dtype=numpy.float32))["sum"] == 3.5


def test_a_client_reports_inside_its_with_block_only() -> None:
    with pytest.raises(LocalError, match="inside its with block"):
        Client(1, DEMO_KEYS).report([1.0])


def test_a_client_without_a_with_block_connects_once_and_closes_as_often_as_it_likes() -> None:
    with serving() as (server, journal):
        client = client_for(server, 1)
        client.close()
        client.connect()
        assert client.report([20.5, 21.0])["sum"] == 41.5
        with pytest.raises(LocalError, match="one session"):
            client.connect()
        client.close()
        client.close()
        (ended,) = journal.wait("end", 1)
        assert "GOODBYE" in str(ended.detail)
        with pytest.raises(LocalError, match="one session"):
            client.connect()


@pytest.mark.parametrize("error", [ConnectionRefusedError("nobody"), UnicodeError("no label")])
def test_a_server_has_five_seconds_to_be_there(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[object] = []

    def connect(*words: object) -> NoReturn:
        asked.extend(words)
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    client = Client(1)
    with pytest.raises(NoConnection, match=r"^no server at 127.0.0.1:9999: no"):
        client.connect()
    assert asked == [("127.0.0.1", 9999), 5.0]
    assert client.timeout_s == 2.0


def test_a_handshake_that_fails_leaves_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(1, port=silent.getsockname()[1], timeout_s=0.05)
        with pytest.raises(DeadlineExpired):
            client.connect()
        assert client.channel._sock.fileno() == -1


def test_a_key_file_without_the_id_is_said_to_be_that() -> None:
    with pytest.raises(UserError, match="no key for client 8, only for 7"):
        Client(8, {7: bytes(16)})
