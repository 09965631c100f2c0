"""server.py and client.py as a person runs them: processes, exit codes, one sentence on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from client import main as client_main
from endpoint import generate_keys
from program import UserError
from protocol_fsm import PeerTerminated, State
from server import main as server_main
from tests.network import free_port, other_program
from tests.programs import (
    ROOT,
    TIMEOUT_S,
    Done,
    Program,
    named_signal,
    posix_only,
    run,
    run_here,
    run_in_shell,
    running_server,
)


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """The port of a server for cases that only need one to be there."""
    with running_server("--window", "0.3") as (_, number):
        yield number


@pytest.fixture
def closed_port() -> str:
    return str(free_port())


def key_file(path: Path, text: str | bytes, mode: int = 0o600) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return str(path)


def client(port: str, words: str, *more: str, given: str = "") -> Done:
    return run("client.py", "--port", port, *words.split(), *more, given=given)


GOOD_KEY = "ab" * 16
NOHUP = (
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "os.execv(sys.executable, [sys.executable, '-u', 'server.py', '--port', '0'])"
)

# program and flags, exit code, what the one line on stderr says. {tmp} is a directory of files
# made by `files` below, {port} a server with the demo keys, {closed} a port where nobody listens.
CASES = {
    "server absent": ("client.py 1 --port {closed}", 3, "no server at 127.0.0.1:.*refused"),
    "no such port": ("client.py 1 --port 70000", 2, "--port: '.*' is not a port, 0 to 65535"),
    "no such host": ("client.py 1 --host no.such.host.invalid", 2, "no host named"),
    "port is no number": ("client.py 1 --port x", 2, "--port: '.*' is not a port, 0 to 65535"),
    "id missing": ("client.py", 2, "required: id"),
    "id is no number": ("client.py one", 2, "id: 'one' is not a whole number"),
    "id without demo key": ("client.py 6 --port {port}", 2, "no key for client 6"),
    "id 0": ("client.py 0 --port {port}", 2, "no key for client 0"),
    "id 256": ("client.py 256 --port {port}", 2, "no key for client 256"),
    "unknown flag": ("client.py 1 --frobnicate", 2, "unrecognized arguments"),
    "two sources": ("client.py 1 --values 1 --file data/seattle.csv", 2, "not allowed with"),
    "no rounds": ("client.py 1 --rounds 0", 2, "--rounds: .* is not a whole"),
    "negative interval": ("client.py 1 --interval -1", 2, "--interval: "),
    "interval is NaN": (
        "client.py 1 --interval nan",
        2,
        "--interval: .* is not a number",
    ),
    "value is no number": (
        "client.py 1 --values 1 x",
        2,
        "--values: .* is not a number",
    ),
    "value too large": ("client.py 1 --values 1e16", 2, "--values: .* is not a number"),
    "ids without keys to make": ("server.py --ids 1-40", 2, "--ids goes with --generate-keys"),
    "prompts among JSON": ("client.py 1 --interactive --json", 2, "--json is for programs"),
    "column without a file": ("client.py 1 --column c --values 1", 2, "go with --file"),
    "negative number with a comma": ("client.py 1 --values -20,5", 2, "'-20,5' is not a number"),
    "file named like a number": ("client.py 1 --file 2024", 2, "cannot read 2024: No such file"),
    "file that begins like a number": (
        "client.py 1 --file -5.csv",
        2,
        "--file: expected one argument",
    ),
    "negative number in e notation": ("client.py 1 --port {closed} --values -1e3", 3, "no server"),
    "rounds without end": (
        "client.py 1 --rounds 99999999999999999999",
        2,
        "--rounds: .* is not a whole",
    ),
    "too many values": ("client.py 1 --port {port} --values" + 1025 * " 1", 2, "cannot be sent"),
    "host name of 70 letters": (
        f"client.py 1 --keys {{tmp}}/good.key --host {70 * 'a'}",
        3,
        "no server at aaa",
    ),
    "host name of 70 letters to listen on": (
        f"server.py --keys {{tmp}}/good.key --host {70 * 'a'}",
        3,
        "cannot listen on aaa",
    ),
    "CSV without a name": ("client.py 1 --port {port} --file=", 2, "cannot read"),
    "wrong key": (
        "client.py 1 --port {port} --keys {tmp}/wrong.key",
        3,
        "in the handshake, and never says why: a wrong key, an unknown id, tampering",
    ),
    "unknown id": (
        "client.py 77 --port {port} --keys {tmp}/unknown.key",
        3,
        "in the handshake, and never says why: a wrong key, an unknown id, tampering",
    ),
    "CSV missing": (
        "client.py 1 --port {port} --file {tmp}/none.csv",
        2,
        "cannot read .*none.csv: No such file",
    ),
    "CSV is a directory": ("client.py 1 --port {port} --file {tmp}", 2, "cannot read"),
    "CSV empty": ("client.py 1 --port {port} --file {tmp}/empty.csv", 2, "no readings in"),
    "CSV with a header only": (
        "client.py 1 --port {port} --file {tmp}/header.csv",
        2,
        "no readings in",
    ),
    "CSV with a bad cell": (
        "client.py 1 --port {port} --file {tmp}/bad.csv",
        2,
        "bad.csv line 5, column 2: 'warm' is not a number",
    ),
    "CSV with a bad cell in a named column": (
        "client.py 1 --port {port} --file {tmp}/bad.csv --column hour",
        2,
        "bad.csv line 2, column 1: '00:00' is not a number",
    ),
    "CSV with a short row": (
        "client.py 1 --port {port} --file {tmp}/short.csv --column b",
        2,
        "short.csv line 3 has 1 cell, and the first row has 2",
    ),
    "CSV without that column": (
        "client.py 1 --port {port} --file {tmp}/bad.csv --column x",
        2,
        "bad.csv line 1: there is no column 'x'",
    ),
    "CSV whose first reading has a letter in it": (
        "client.py 1 --port {port} --file {tmp}/letter.csv",
        2,
        "letter.csv line 1 has 2 cells and no header; name a column: --column 1 to 2",
    ),
    "CSV whose first reading is too large": (
        "client.py 1 --port {port} --file {tmp}/large.csv",
        2,
        "line 1, column 1: '9e99' is not",
    ),
    "CSV of infinity": (
        "client.py 1 --port {port} --file {tmp}/inf.csv",
        2,
        "inf.csv line 2, column 1: 'inf' is not a number",
    ),
    "CSV is no text": ("client.py 1 --port {port} --file {tmp}/binary.csv", 2, "binary.csv"),
    "keys missing": ("client.py 1 --keys {tmp}/none.key", 2, "cannot read keys .*: No such file"),
    "keys malformed": ("client.py 1 --keys {tmp}/malformed.key", 2, "malformed.key line 2 is not"),
    "keys too short": ("server.py --keys {tmp}/short.key", 2, "line 1 is not id:hex"),
    "keys of id 256": ("server.py --keys {tmp}/id256.key", 2, "line 1 is not id:hex"),
    "keys twice": ("server.py --keys {tmp}/twice.key", 2, "twice.key line 2 is not .* new id"),
    "keys are no text": ("server.py --keys {tmp}/binary.csv", 2, "cannot read keys"),
    "keys empty": ("server.py --keys {tmp}/empty.key", 2, "no keys in"),
    "demo keys to the network": ("client.py 1 --host 192.0.2.1", 2, "demo keys are published"),
    "demo keys for the network": ("server.py --host 0.0.0.0", 2, "demo keys are published"),
    "patient on the network": (
        "server.py --host 0.0.0.0 --patient --keys {tmp}/wrong.key",
        2,
        "--patient is for loopback only",
    ),
    "patient to the network": (
        "client.py 1 --host 192.0.2.1 --patient",
        2,
        "--patient is for loopback only",
    ),
    "port in use": (
        "server.py --port {port}",
        3,
        "cannot listen on 127.0.0.1 port .*(in use|Only one usage)",
    ),
    "key log into nowhere": (
        "client.py 1 --port {port} --keylog {tmp}/no/where",
        2,
        "cannot log keys to .*where: No such file",
    ),
    "no such address to listen on": ("server.py --host 127.0.0.1 --port -1", 2, "--port: "),
    "window of nothing": (
        "server.py --window 0",
        2,
        "--window: .* is not a number",
    ),
    "no strangers at all": (
        "server.py --max-strangers 0",
        2,
        "--max-strangers: .* is not a whole",
    ),
    "keys into what exists": ("server.py --generate-keys {tmp} --ids 1", 2, "it exists already"),
    "keys into nowhere": ("server.py --generate-keys {tmp}/no/where", 2, "No such file"),
    "keys for id 0": (
        "server.py --generate-keys {tmp}/x --ids 0-4",
        2,
        "--ids: .* is not a list",
    ),
    "keys for too many": (
        "server.py --generate-keys {tmp}/x --ids 1-999999999",
        2,
        "--ids: .* is not a list",
    ),
    "keys into here": ("server.py --generate-keys . --ids 1", 2, "it exists already"),
    "keys into a folder without a name": ("server.py --generate-keys=", 2, "it exists already"),
    "keys are a folder": ("server.py --keys data", 2, "cannot read keys .*: Is a directory"),
    "keys for nobody": (
        "server.py --generate-keys {tmp}/x --ids 4-1",
        2,
        "--ids: .* is not a list",
    ),
}
if os.name == "posix":
    CASES["keys readable by others"] = (
        "client.py 1 --keys {tmp}/open.key",
        2,
        "others can read .*chmod 600",
    )
    CASES["key log readable by others"] = (
        "server.py --port 0 --keylog {tmp}/open.key",
        2,
        "log keys to .*others can.*chmod 600",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("files")
    key_file(tmp / "wrong.key", f"1:{GOOD_KEY}\n")
    key_file(tmp / "good.key", f"1:{GOOD_KEY}\n")
    key_file(tmp / "unknown.key", f"77:{GOOD_KEY}\n")
    key_file(tmp / "malformed.key", f"1:{GOOD_KEY}\n2 {GOOD_KEY}\n")
    key_file(tmp / "short.key", "1:abcd\n")
    key_file(tmp / "id256.key", f"256:{GOOD_KEY}\n")
    key_file(tmp / "twice.key", f"1:{GOOD_KEY}\n1:{GOOD_KEY}\n")
    key_file(tmp / "open.key", f"1:{GOOD_KEY}\n", 0o644)
    key_file(tmp / "empty.key", "\n")
    key_file(tmp / "empty.csv", "")
    key_file(tmp / "header.csv", "hour,celsius\n\n")
    key_file(tmp / "bad.csv", "hour,celsius\n00:00,20.5\n\n01:00,20\n02:00,warm\n")
    key_file(tmp / "short.csv", "a,b\n1,2\n3\n")
    key_file(tmp / "letter.csv", "1,2O.5\n2,21\n")
    key_file(tmp / "large.csv", "9e99\n2\n")
    key_file(tmp / "inf.csv", "20\ninf\n")
    key_file(tmp / "binary.csv", bytes(range(256)) * 4)
    return tmp


QUICK = ("demo keys for the network", "port in use", "keys into what exists")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES],
)
def test_bad_input_ends_in_one_sentence(
    case: str, port: str, closed_port: str, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command, code, sentence = CASES[case]
    program, *flags = command.format(port=port, closed=closed_port, tmp=files).split()
    main = client_main if program == "client.py" else server_main
    done = run_here(main, capfd, program, *flags)
    assert done.returncode == code, done
    # how a table is read is said before a later row is refused
    lines = [line for line in done.stderr.splitlines() if not line.startswith("reads column")]
    assert len(lines) == 1, done.stderr
    assert re.search(sentence, lines[0]), lines[0]
    assert re.match(r"(client|server)\.py: |client \d+: ", lines[0]), lines[0]
    assert GOOD_KEY not in done.stdout + done.stderr
    assert not list(files.glob("*.partial"))


@pytest.mark.slow
def test_a_bad_cell_on_standard_input_ends_in_one_sentence(port: str) -> None:
    done = client(port, "1 --file -", given="1\n2\nx\n")
    assert done.returncode == 2
    assert re.search(
        r"^client\.py: standard input line 3, column 1: 'x' is not a number", done.stderr, re.M
    )


@pytest.mark.slow
def test_patient_lifts_the_deadlines_on_both_sides() -> None:
    limits = ["--stranger-timeout", "0.2", "--silence-timeout", "0.2", "--frame-timeout", "0.2"]
    with running_server(*limits, "--patient") as (_, port):
        done = client(port, "1 --rounds 2 --interval 0.8 --patient --timeout 0.05")
        assert (done.returncode, done.stderr) == (0, "")
    with running_server(*limits) as (_, port):
        done = client(port, "1 --rounds 2 --interval 0.8")
        assert done.stderr == "client 1: session terminated by the server: TIMEOUT\n"
        assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no such device here")
def test_the_exit_code_is_right_though_nobody_can_be_told_why(closed_port: str) -> None:
    for words, code in ((f"client.py 1 --port {closed_port}", 3), ("server.py --window x", 2)):
        assert run_in_shell(words.split(), "2> /dev/full").returncode == code


def test_a_wrong_flag_leaves_no_key_log(tmp_path: Path) -> None:
    done = run("server.py", "--keylog", str(tmp_path / "log"), "--nonsense")
    assert (done.returncode, [*tmp_path.iterdir()]) == (2, [])
    assert "WARNING" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="nobody can ask this server to stop")
def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    """As when text is selected in the server's window, or its terminal is paused."""
    command = [sys.executable, "server.py", "--port", "0", "--verbose"]
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        port = int(server.stdout.readline().rpartition(":")[2])  # type: ignore[union-attr]
        with Client(1, port=port) as client:
            for _ in range(700):  # of over 100 bytes each, and a pipe holds 65,536
                client.report([20.5, 21.0])
            with Client(2, port=port) as newcomer:
                assert newcomer.session.state is State.REPORT
            server.terminate()
            assert server.wait(TIMEOUT_S) == 0


@pytest.mark.slow
def test_the_cases_leave_the_server_untouched(port: str) -> None:
    done = client(port, "1 --rounds 2 --interval 0.01")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "code", "sentence"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n", 1, "the program on that port is not our server"),
        (b"", 3, "or a port of another program"),
    ],
)
def test_another_program_is_not_taken_for_an_attack(says: bytes, code: int, sentence: str) -> None:
    with other_program(says) as (_, port):
        done = run("client.py", "1", "--port", str(port))
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert sentence in done.stderr


# One client


@pytest.mark.slow
def test_standard_input_is_reported_line_by_line_after_an_empty_report(port: str) -> None:
    done = client(port, "3 --interval 0.01 --json --file -", given="celsius\n20.5\n\n21\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["own_count"], a["own_sum"]) for a in answers] == [(0, 0.0), (1, 20.5), (1, 21.0)]
    how = "reads column 1, 'celsius': one cell a row, decimal point\n"
    assert (done.returncode, done.stderr) == (0, how)


@pytest.mark.slow
def test_interactive_takes_numbers_status_and_quit(port: str) -> None:
    done = client(port, "4 --interactive", given="20 21.5\nstatus\nnonsense\n\n1e16\nquit\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "own_count 2  own_sum 41.5" in done.stdout
    assert "<Session of client 4, sends C2S, REPORT, round 3>" in done.stdout
    assert re.search(r"C2S-ENC.*[0-9a-f]{8}", done.stdout)
    assert done.stdout.count("numbers up to 1e15, please") == 2
    assert "goodbye" in done.stdout


@pytest.mark.slow
def test_interactive_takes_no_endless_line(port: str) -> None:
    done = client(port, "4 --interactive", given="0" * 1_000_001)
    words = "standard input has a line of 1,000,000 characters or more"
    assert (done.returncode, done.stderr) == (2, f"client.py: {words}\n")


@pytest.mark.slow
def test_output_of_a_client_is_ascii_of_at_most_80_columns(port: str) -> None:
    done = client(port, "4 --rounds 2 --trace --interval 0.01")
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) > 15
    assert all(len(line) <= 80 and line.isascii() for line in lines), lines


@pytest.mark.slow
def test_trace_shows_messages_and_fingerprints_on_stderr_only(port: str) -> None:
    done = client(port, "4 --rounds 1 --trace --json")
    assert len(done.stdout.splitlines()) == 1
    names = re.findall(r"^(<-|->) ([A-Z_]+) ", done.stderr, re.MULTILINE)
    assert names == [
        ("->", "CLIENT_HELLO"),
        ("<-", "SERVER_CHALLENGE"),
        ("->", "CLIENT_DATA"),
        ("<-", "SERVER_AGGR_RESPONSE"),
        ("->", "TERMINATE"),
    ]
    assert done.stderr.count("keys now C2S-ENC ") == 5
    assert "client4_master_k" not in done.stderr + done.stdout


@pytest.mark.slow
def test_trace_of_the_server_shows_what_it_refuses_and_with_which_keys(files: Path) -> None:
    with running_server("--trace") as (server, port):
        done = client(port, "1 --trace --keys", str(files / "wrong.key"))
        shown = server.wait_for("keys now C2S-ENC", "err").split()
        assert server.wait_for("^<- CLIENT_HELLO", "err")
        assert shown[3] not in done.stderr, "the names differ, and that is what the class looks for"
        with socket.create_connection(("127.0.0.1", int(port))) as raw:
            raw.sendall((87).to_bytes(2, "big") + bytes([77, 1]) + bytes(85))
            server.wait_for("^<- opcode 77 id 1", "err")


@pytest.mark.slow
@posix_only
def test_a_client_whose_reader_leaves_ends_quietly(port: str) -> None:
    words = f"client.py 5 --port {port} --rounds 500 --interval 0.01"
    done = run_in_shell(words.split(), "| grep -m 1 ^epoch; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.startswith("epoch")


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(closed_port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run("client.py", "1", "--port", str(silent.getsockname()[1]), "--timeout", "0.3")
    assert done.returncode == 3
    assert done.stderr.startswith("client 1: no answer in time")


# Keys


@pytest.mark.slow
def test_generated_keys_work_and_one_client_has_only_its_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    done = run("server.py", "--generate-keys", str(keys), "--ids", "2,40", "--ids", "1-3")
    assert (done.returncode, done.stderr) == (0, "")
    names = {"server.keys", "client-1.key", "client-2.key", "client-3.key", "client-40.key"}
    assert {path.name for path in keys.iterdir()} == names
    whole = (keys / "server.keys").read_text().split()
    assert [line.split(":")[0] for line in whole] == ["1", "2", "3", "40"]
    assert len({line.split(":")[1] for line in whole}) == 4
    assert (keys / "client-40.key").read_text().split() == whole[3:]
    assert not any(line.split(":")[1] in done.stdout for line in whole)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
        assert keys.stat().st_mode & 0o777 == 0o700
    with running_server("--keys", str(keys / "server.keys")) as (server, port):
        done = client(port, "40 --rounds 1 --keys", str(keys / "client-40.key"))
        assert (done.returncode, done.stderr) == (0, "")
        assert "demo" not in done.stdout + "".join(server.lines["err"])


@pytest.mark.slow
def test_generating_keys_removes_nothing_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "keys.partial").mkdir()
    (tmp_path / "keys.partial" / "thesis").write_text("mine")
    assert run("server.py", "--generate-keys", str(tmp_path / "keys"), "--ids", "1").returncode == 0
    assert (tmp_path / "keys.partial" / "thesis").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"keys", "keys.partial"}


def test_key_generation_that_fails_halfway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left"):
        generate_keys(tmp_path / "keys", [1, 2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@posix_only
def test_ctrl_c_while_the_keys_are_awaited_stops_the_server(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys", 0o600)
    with Program("server.py", "--keys", str(tmp_path / "keys"), "--port", "0") as server:
        while True:
            try:  # a fifo can be opened for writing only when somebody reads it
                writer = os.open(tmp_path / "keys", os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"it ended with {server.process.wait(0.05)}")
        server.interrupt()
        assert server.finish() == 130
        os.close(writer)


@pytest.mark.slow
def test_demo_keys_are_warned_about_on_both_sides() -> None:
    with running_server() as (server, port):
        assert "demo keys" in client(port, "1 --rounds 1").stdout
        server.wait_for("demo keys are published", "err")


# Several programs, and what happens to them


@pytest.mark.slow
@posix_only
def test_ctrl_c_on_the_server_tells_the_clients_and_prints_the_summary() -> None:
    with (
        running_server() as (server, port),
        Program("client.py", "1", "--port", port, "--rounds", "500") as client,
    ):
        client.wait_for("^epoch", count=2)
        server.interrupt()
        assert server.finish() == 0
        assert client.finish() == 1
        assert client.lines["err"] == ["client 1: session terminated by the server: SHUTDOWN"]
        assert server.lines["out"][1] == "client  sessions  reports"
        assert server.lines["out"][2].split()[:2] == ["1", "1"]
        assert server.lines["out"][-1] == "strangers: none"


@pytest.mark.slow
@posix_only
def test_many_signals_at_once_stop_the_server_as_one_does() -> None:
    with running_server() as (server, _):
        for number in [signal.SIGINT, signal.SIGTERM] * 20:
            server.process.send_signal(number)
        assert server.finish() == 0


@pytest.mark.slow
@posix_only
def test_two_ctrl_c_at_once_do_not_cut_the_goodbye() -> None:
    with (
        running_server() as (server, port),
        Program("client.py", "1", "--port", port, "--interactive") as client,
    ):
        client.wait_for("^epoch")
        client.interrupt()
        client.interrupt()
        assert client.finish() == 0
        assert client.lines["err"] == []
        server.wait_for("client 1: left", "err")


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(
    "redirection", [">&-", "<&-", "2>&-", "> /dev/full", "--trace 2>&1 | head -1"]
)
def test_streams_that_are_closed_or_full_cost_no_goodbye_and_no_traceback(redirection: str) -> None:
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("there is no such device here")
    with running_server() as (server, port):
        words = f"client.py 1 --port {port} --rounds 2 --interval 0.1"
        done = run_in_shell(words.split(), redirection)
        assert "Traceback" not in done.stderr + done.stdout
        assert len(done.stderr.splitlines()) <= 1
        server.wait_for("client 1: left", "err")


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_kill_and_a_closed_terminal_are_like_ctrl_c_for_the_server(name: str) -> None:
    with running_server() as (server, port):
        with Client(1, port=int(port)) as client:
            client.report([1.0])
            server.process.send_signal(named_signal(name))
            with pytest.raises(PeerTerminated, match="SHUTDOWN"):
                client.channel.receive(time.monotonic() + TIMEOUT_S)
        assert server.finish() == 0


@pytest.mark.slow
@posix_only
def test_below_nohup_a_server_outlives_its_terminal() -> None:
    with Program("-c", NOHUP) as server:
        server.wait_for("^listening on ")
        server.process.send_signal(signal.SIGHUP)
        server.interrupt()
        assert server.finish() == 0


@pytest.mark.slow
@posix_only
def test_ctrl_c_on_a_client_says_goodbye() -> None:
    with running_server() as (server, port):
        for flags in (["--rounds", "500"], ["--interactive"], ["--file", "-"]):
            with Program("client.py", "1", "--port", port, *flags) as client:
                client.wait_for("^epoch")
                client.interrupt()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.process.wait(2)
                client.interrupt()  # if the first came in the moment before Python reads a line
                assert client.finish() == 0
                assert client.lines["err"] == []
                assert "goodbye" in client.lines["out"][-1]
        server.wait_for("client 1: left", "err", count=3)


@posix_only
@pytest.mark.slow
def test_a_killed_client_is_a_cut_connection_to_the_server_and_nothing_to_others() -> None:
    with (
        running_server() as (server, port),
        Program("client.py", "1", "--port", port, "--rounds", "500") as killed,
        Program(
            "client.py", "2", "--port", port, "--rounds", "12", "--json", "--interval", "0.2"
        ) as other,
    ):
        killed.wait_for("^epoch")
        other.wait_for(r"\"participants\": \[1, 2\]")
        killed.process.kill()
        server.wait_for("client 1: ended after .*ConnectionCut", "err")
        assert other.finish() == 0
        assert json.loads(other.lines["out"][-1])["participants"] == [2]


@pytest.mark.slow
@posix_only
def test_a_killed_server_is_a_lost_connection_to_the_client() -> None:
    with (
        running_server() as (server, port),
        Program("client.py", "1", "--port", port, "--rounds", "500") as client,
    ):
        client.wait_for("^epoch")
        server.process.kill()
        assert client.finish() == 3
        assert client.lines["err"] == ["client 1: connection lost: it closed without a TERMINATE"]


@pytest.mark.slow
def test_of_two_clients_with_one_id_the_later_stays() -> None:
    with (
        running_server() as (_, port),
        Program("client.py", "1", "--port", port, "--rounds", "500") as first,
    ):
        first.wait_for("^epoch")
        assert client(port, "1 --rounds 3 --interval 0.05").returncode == 0
        assert first.finish() == 1
        assert first.lines["err"] == ["client 1: session terminated by the server: REPLACED"]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["server.py", "client.py"])
def test_help_names_every_flag_of_the_readme(program: str) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "--patient" in done.stdout
