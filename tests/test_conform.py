"""The conformance checks: the program around them, and whether they see what is wrong."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import secrets
import shlex
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import channel
import client
import server
from channel import Channel
from classroom.conform.__main__ import ALL, junit, lines_of, main, parsed, run_all, run_of
from classroom.conform import targets
from classroom.conform.checks import Result, Unable, read_skips
from classroom.conform.client_checks import CLIENT, READINGS
from classroom.conform.peer import CLOSED, NOTHING, PATIENCE_S, RESET, Mismatch, Peer
from classroom.conform.runner import SESSIONS, ClientRun, ServerRun, side_by_side
from classroom.conform.server_checks import SERVER
from classroom.conform.targets import (
    CommandClients,
    CommandServers,
    ForeignServer,
    Process,
    Workshop,
    await_listener,
    end_strays,
    filled,
    free_port,
    words_of,
)
from client import Client
from endpoint import DEMO_KEYS, generate_keys
from lab.stage import Parts
from lab.weakened import RULES, without
from program import NoConnection, UserError
from protocol_fsm import (
    HEADER,
    BadPayload,
    ClientData,
    ClientHello,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Header,
    KeyDesync,
    LocalError,
    Message,
    Opcode,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    Status,
    Terminate,
)
from server import Contribution, Epoch, Epochs, Limits, Member, Roster, Server, own_part
from tests.network import wait_until
from tests.programs import ROOT, Done, Program, posix_only, run, running_server

KEYS = {**{n: secrets.token_bytes(32) for n in range(1, SESSIONS + 1)}, **DEMO_KEYS}
SILENT = {"server/silent-stranger", "server/stranger-without-report"}  # take 10 s
SEEN_BY = {  # a check that names the rule when it is missing
    "tag": "server/flip-tag-last",
    "tag-on-terminate": "server/farewell-tag",
    "header-in-tag": "server/handshake",
    "iv-in-tag": "server/handshake",
    "uniform-answers": "server/padding-first",
    "round": "server/replay",
    "turn": "client/early-answer",
    "direction": "server/direction",
    "id": "server/id-of-another",
    "payload": "server/nan",
    "echo": "client/echo",
    "ratchet": "server/three-rounds",
    "binding": "server/one-round",
    "direction-keys": "server/handshake",
    "client-keys": "client/one-report",
    "encryption": "server/handshake",
    "fresh-iv": "server/fresh-iv",
    "finality": "server/finality",
    "cut-is-not-goodbye": "client/cut",
    "established": "server/hello-replaces-nobody",
    "hello-order": "server/late-report",
    "frame-deadline": "server/slow-frame",
    "stranger-cap": "server/stranger-65",
}
INVISIBLE = {  # why no check can see that the rule is missing
    "tag-first": "a wrong tag and a wrong padding get the same answer; only their times differ",
    "decoy": "an unknown id meets the same silent close without the work; only its time differs",
}


class ServerHere(contextlib.ExitStack):
    """A server in this process."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.address = server.address
        self.enter_context(server)
        self.stop = self.close

    def wait(self, patience_s: float) -> None:
        """It has no process that could end."""

    def output(self) -> str:
        return ""


class ServersHere:
    """Servers in this process, with some rules taken out."""

    is_ours = True
    keys: Mapping[int, bytes] = KEYS

    def __init__(self, weak: Parts) -> None:
        self._weak = weak

    def start(self) -> ServerHere:
        return ServerHere(self._weak.server(KEYS, port=0, new_session=self._weak.session))


class Undirected(Session):
    """A session that takes any direction for its peer's."""

    def _check_direction(self, header: Header) -> None:
        """Let it pass."""

    def _check_tag(self, header: Header, message: bytes) -> None:
        super()._check_tag(header._replace(direction=self.receives), message)

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        return super()._decrypt(header._replace(direction=self.receives), message)

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        return super()._check_payload(header._replace(direction=self.receives), plaintext)


class LongPadded(Session):
    """A session that takes padding of more than a block."""

    def _unpad(self, padded: bytes) -> bytes:
        return padded[: -padded[-1]]


class ByteRound(Session):
    """A session that reads one byte of the round."""

    def _check_round(self, header: Header) -> None:
        super()._check_round(header._replace(round_number=header.round_number % 256))


class Picky(Session):
    """A session that refuses a farewell that its peer never needs."""

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        message = super()._check_payload(header, plaintext)
        needless = Status.REPLACED if self.receives is Direction.C2S else Status.GOODBYE
        if message == Terminate(needless):
            raise BadPayload("another status", "this one")
        return message


class RoundZero(Session):
    """A session whose farewells have the round 0."""

    def seal(self, message: Message) -> bytes:
        if isinstance(message, (Terminate, KeyDesync)):
            self.fsm.round_number = 0
        return super().seal(message)


class Words(Session):
    """A session whose integers have 64 bits."""

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        message = super()._check_payload(header, plaintext)
        if isinstance(message, ServerAggrResponse):
            for value in message.aggregate.values():
                if isinstance(value, int) and value >= 1 << 63:
                    raise BadPayload("an integer of 64 bits", "a longer one")
        return message


class PerRead(Channel[Message]):
    """A channel that gives each read the time of a whole frame."""

    def _recv(self, wanted: int) -> bytes:
        self._frame_begun = False
        self._deadline = math.inf
        return super()._recv(wanted)


class RestartingWindow(Epochs):
    """Epochs whose window begins with each report again."""

    def contribute(self, contribution: Contribution, now: float) -> Epoch:
        epoch = super().contribute(contribution, now)
        epoch.deadline = now + 1.0
        return epoch


class Remembering(Epochs):
    """Epochs that wait for the clients of every epoch before."""

    def close_if_due(self, now: float) -> Epoch | None:
        expected = self._expected
        epoch = super().close_if_due(now)
        self._expected = self._expected | expected
        return epoch


class Patient(Epochs):
    """Epochs that always wait for their window."""

    def close_if_due(self, now: float) -> Epoch | None:
        is_early = self.current.number > 1 and now < self.current.deadline
        return None if is_early else super().close_if_due(now)


class ByConnection(Roster[Member]):
    """A roster that numbers sessions by their connections."""

    def arrive(self, stranger: Member) -> None:
        super().number_hello(stranger)
        super().arrive(stranger)

    def number_hello(self, stranger: Member) -> None:
        """It has a number."""


class Forgetful(Roster[Member]):
    """A roster in which the end of an older session removes a newer one."""

    def leave(self, connection: Member) -> bool:
        self.members.pop(connection.client_id, None)
        return super().leave(connection)


class Unkind(Roster[Member]):
    """A roster that blames the stranger whom it evicts."""

    def arrive(self, stranger: Member) -> None:
        if len(self.strangers) == 64:
            self.strangers[0].request_end(Status.VIOLATION)
        super().arrive(stranger)


class ClientHere(threading.Thread):
    """A client in a thread, with the exit codes of client.py."""

    def __init__(self, weak: Parts, address: tuple[str, int], client_id: int) -> None:
        super().__init__(daemon=True)
        self._client: Client = weak.client(
            client_id, KEYS, *address, timeout_s=2.0, new_session=weak.session
        )
        self._code = 1
        self.start()

    def run(self) -> None:
        try:
            with self._client as client:
                for reading in READINGS:
                    if client.session.round_number > 1:
                        client.channel.idle(0.2)
                    client.report([reading])
            self._code = 0
        except (ConnectionCut, DeadlineExpired):
            self._code = 3
        except (ProtocolError, LocalError):
            pass  # whose code is the one that it has

    def code(self) -> int | None:
        return None if self.is_alive() else self._code

    def wait(self, patience_s: float) -> int | None:
        self.join(patience_s)
        return self.code()

    def end(self) -> None:
        self.join(10)

    def output(self) -> str:
        return ""


def results_without(*rules: str, names: Collection[str] = ALL.keys() - SILENT) -> list[Result]:
    """Return how these checks end at endpoints without these rules."""
    weak = without(rules)
    servers = ServerRun(ServersHere(weak))
    others = {n: key for n, key in KEYS.items() if n != 1}  # whose key one rule gives to all
    clients = ClientRun(lambda address, n: ClientHere(weak, address, n), others)
    at_server = [check for check in SERVER.values() if check.name in names]
    at_client = [check for check in CLIENT.values() if check.name in names]
    return [*servers.results(at_server), *clients.results(at_client)]


def failing(results: list[Result]) -> set[str]:
    return {result.check.name for result in results if result.end != "passed"}


# What the checks see


@pytest.mark.slow
def test_endpoints_with_all_rules_pass_every_check() -> None:
    assert not failing(results_without())


@pytest.mark.slow
def test_a_missing_rule_is_named_by_a_check() -> None:
    for rule, name in SEEN_BY.items():
        print("without", rule)
        assert name in failing(results_without(rule, names={name}))


def seen_at(server: Any, name: str) -> bool:
    """Return whether a check names what such a server does wrong."""
    (result,) = ServerRun(ServersHere(server)).results([SERVER[name]])
    return result.end == "failed"


@pytest.mark.parametrize(
    ("session", "name"),
    [
        (Undirected, "server/direction-alone"),
        (LongPadded, "server/padding-17"),
        (ByteRound, "server/round-256"),
        (Picky, "server/farewell-of-any-status"),
        (RoundZero, "server/farewell-round"),
    ],
)
def test_a_check_that_is_no_rule_names_what_is_wrong(session: type[Session], name: str) -> None:
    assert not seen_at(SimpleNamespace(server=Server, session=Session), name)
    assert seen_at(SimpleNamespace(server=Server, session=session), name)


@pytest.mark.parametrize(
    ("name", "member", "change"),
    [
        ("server/members-of-answer", "own_count", float),
        ("server/shared-epoch", "own_sum", lambda own_sum: own_sum + 0.025),
        ("server/doubles", "own_sum", lambda own_sum: round(own_sum, 9)),
    ],
)
def test_an_answer_of_another_type_or_sum_is_named(
    name: str, member: str, change: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(readings: Sequence[float], total: float) -> dict[str, Any]:
        part = own_part(readings, total)
        return {**part, member: change(part[member])}

    honest = SimpleNamespace(server=Server, session=Session)
    assert not seen_at(honest, name)
    monkeypatch.setattr(server, "own_part", wrong)
    assert seen_at(honest, name)


def seen_at_client(session: type[Session], name: str) -> bool:
    """Return whether a check names what a client with such sessions does wrong."""
    weak = Parts(session=session)
    run = ClientRun(lambda address, n: ClientHere(weak, address, n), KEYS)
    (result,) = run.results([CLIENT[name]])
    return result.end == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("session", "name"),
    [
        (Picky, "client/farewell-of-any-status"),
        (RoundZero, "client/farewell-round"),
        (Words, "client/long-integer"),
    ],
)
def test_a_check_that_is_no_rule_names_what_is_wrong_with_a_client(
    session: type[Session], name: str
) -> None:
    assert not seen_at_client(Session, name)
    assert seen_at_client(session, name)


@pytest.mark.slow
@pytest.mark.parametrize("drain_s", [0.0, 3.0])
def test_an_end_that_closes_too_early_or_too_late_after_its_farewell_is_named(
    drain_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "DRAIN_S", drain_s)
    assert seen_at(Parts(), "server/half-close")
    assert seen_at_client(Session, "client/half-close")


@pytest.mark.slow
def test_an_end_that_gives_each_read_the_time_of_a_frame_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "Channel", PerRead)
    monkeypatch.setattr(client, "Channel", PerRead)
    assert seen_at(Parts(), "server/trickling-frame")
    assert seen_at_client(Session, "client/trickling-answer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "name"),
    [
        (RestartingWindow, "server/window-of-first-report"),
        (Remembering, "server/window"),
        (Patient, "server/shared-epoch"),
    ],
)
def test_epochs_that_close_late_are_named(
    epochs: type[Epochs], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "Epochs", epochs)
    assert seen_at(Parts(), name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("roster", "name"),
    [
        (ByConnection, "server/order-of-hellos"),
        (Forgetful, "server/replaced"),
        (Unkind, "server/stranger-65"),
    ],
)
def test_a_roster_that_mixes_up_sessions_is_named(
    roster: type[Roster[Member]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "roster_class", roster)
    assert seen_at(Parts(), name)


@pytest.mark.slow
def test_a_stranger_whose_time_begins_with_its_hello_is_named() -> None:
    late = functools.partial(Server, limits=Limits(stranger_timeout_s=14.0))
    honest = SimpleNamespace(server=late, session=Session)
    assert seen_at(honest, "server/stranger-without-report")


@pytest.mark.slow
def test_every_wrong_payload_is_named_where_the_rule_is_missing() -> None:
    at_server = ["lowest-long", "wrapped", "plus", "point", "suffix", "arabic-digit", "form-feed"]
    at_client = ["control", "escape", "form-feed", "integer", "challenge-status", "farewell-status"]
    names = {f"server/{name}" for name in at_server} | {f"client/{name}" for name in at_client}
    assert failing(results_without("payload", names=names)) == names


@pytest.mark.parametrize("side", ["--server-cmd", "--client"])
def test_the_ids_of_a_run_are_too_large_for_a_signed_byte(side: str) -> None:
    options = parsed([side, "x {port} {keys} {readings}"])
    with run_of(options) as run:
        keys = run._keys if isinstance(run, ClientRun) else run._servers.keys
        assert min(keys) > 127


def test_readings_show_whether_a_client_rounds_them() -> None:
    for reading in READINGS[1:]:
        (single,) = struct.unpack("f", struct.pack("f", reading))
        assert reading not in (single, round(reading, 3))


@pytest.mark.slow
@pytest.mark.parametrize("rule", INVISIBLE)
def test_a_rule_of_which_only_the_time_tells_is_named_by_none(rule: str) -> None:
    assert not failing(results_without(rule))


def test_every_rule_is_either_seen_or_has_a_reason() -> None:
    assert {*SEEN_BY} | {*INVISIBLE} == {*RULES}
    assert {*SEEN_BY.values()} <= {*ALL}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "command"),
    [
        ("--server-cmd", "server.py --port {port} --keys {keys}"),
        ("--client", "client.py {id} --host {host} --port {port} --keys {keys} --file {readings}"),
    ],
)
def test_our_own_programs_pass_every_check(flag: str, command: str, tmp_path: Path) -> None:
    python = shlex.quote(sys.executable) if os.name == "posix" else f'"{sys.executable}"'
    report = tmp_path / "report.xml"
    done = conform(flag, f"{python} {ROOT / command}", "--junit", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    side = CLIENT if flag == "--client" else SERVER
    suite = ElementTree.parse(report).getroot()
    assert [suite.get(name) for name in ("tests", "failures")] == [str(len(side)), "0"]


# The tester's end


@contextlib.contextmanager
def peers() -> Iterator[tuple[Peer, Peer]]:
    """Give both ends of a connection, a client and a server."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        near = stack.enter_context(socket.create_connection(listener.getsockname()))
        far = stack.enter_context(listener.accept()[0])
        yield Peer(near, 1, KEYS[1], Direction.C2S), Peer(far, 1, KEYS[1], Direction.S2C)


def test_what_a_tester_forges_is_accepted_and_moves_nothing() -> None:
    with peers() as (client, server):
        client.say(ClientHello())
        server.expect_message(Opcode.CLIENT_HELLO)
        server.say(ServerChallenge())
        client.expect_message(Opcode.SERVER_CHALLENGE)
        assert (len(client.plaintexts), len(server.plaintexts)) == (1, 1)
        other = client.forged(Opcode.CLIENT_DATA, b"", client_id=9, round_number=7)
        assert HEADER.unpack_from(other) == (Opcode.CLIENT_DATA, 9, 7, Direction.C2S)
        client.say(client.forged(Opcode.CLIENT_DATA, b"[1]"))
        assert server.expect_message(Opcode.CLIENT_DATA) == ClientData([1])
        client.session.seal(ClientData([2]))
        server.say(server.forged(Opcode.SERVER_AGGR_RESPONSE, b"{}", keys=client.keys))
        client.expect_message(Opcode.SERVER_AGGR_RESPONSE)


def test_what_a_tester_does_not_expect_is_named() -> None:
    with peers() as (client, server):
        noise = bytes([63, Opcode.CLIENT_DATA]) + bytes(69)
        client.say(ClientHello(), noise, noise, noise)
        with pytest.raises(Mismatch, match="expected CLIENT_DATA, got CLIENT_HELLO"):
            server.expect_message(Opcode.CLIENT_DATA)
        assert server.raw_opcode() == "opcode 63"
        with pytest.raises(Mismatch, match="expected nothing, got opcode 63, which has to be"):
            server.expect(NOTHING)
        with pytest.raises(Mismatch, match="expected the end of the connection, got opcode 63"):
            server.expect_end()
        assert server.hear(0) == NOTHING
        client.finish()
        assert server.raw_opcode() == CLOSED
        with pytest.raises(Mismatch, match="expected CLIENT_DATA, got the end of the connection"):
            server.expect_message(Opcode.CLIENT_DATA)
        server.expect_end()


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"\0", "a frame that is cut short"), (b"\0\0", "bytes that are no frame"), (b"", CLOSED)],
)
def test_bytes_that_are_no_message_are_named(data: bytes, name: str) -> None:
    with peers() as (client, server):
        client.pour(data)
        client.finish()
        assert str(server.hear()).startswith(name)


def test_a_reset_is_told_from_a_close_and_nobody_is_waited_for_without_an_end() -> None:
    with peers() as (client, server):
        client.pour(b"")
        assert client.socket.gettimeout() == PATIENCE_S
        assert client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.reset()
        assert server.hear() == RESET


# The program


def conform(*words: str, cwd: Path = ROOT) -> Done:
    return run(ROOT / "run.py", "conform", *words, cwd=cwd, timeout_s=120)


def program(tmp_path: Path, *lines: str) -> str:
    """Write a program of Python, and return a command that runs it with a port and a key file."""
    path = tmp_path / "implementation.py"
    path.write_text("\n".join(["import signal, socket, subprocess, sys", *lines]))
    python = shlex.quote(sys.executable) if os.name == "posix" else f'"{sys.executable}"'
    return f"{python} {path} {{port}} {{keys}}"


@pytest.mark.slow
def test_the_list_has_every_check_with_its_section_in_80_columns() -> None:
    done = conform("--list")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) < 80
    for check in ALL.values():
        assert re.search(rf"^{check.name} \[P {check.section}\] \w", done.stdout, re.MULTILINE)


def test_every_check_cites_a_section_of_the_protocol_and_says_what_it_checks() -> None:
    protocol = (ROOT / "PROTOCOL.md").read_text("utf-8")
    for check in ALL.values():
        assert re.search(rf"^##+ {re.escape(check.section)} ", protocol, re.MULTILINE), check.name
        assert not check.meaning[0].islower(), check.name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "say what to test"),
        (["--server-cmd", "x {keys}"], r"the command has no \{port\}"),
        (["--server-cmd", "x {port}"], r"the command has no \{keys\}"),
        (["--client", "x {port} {readings}"], r"the command has no \{key\} or \{keys\}"),
        (["--client", "x '{port} {readings} {key}"], "cannot cut .* into words"),
        (["--client", "no-such-program {port} {readings} {key}"], "cannot start 'no-such-program'"),
        (["--server-cmd", "no-such-program {port} {keys}"], "cannot start 'no-such-program'"),
        (["--server-cmd", "x {port} {keys}", "client/cut"], "there is no such check here"),
        (["--server-cmd", "x {port} {keys}", "--keys", "y"], "--keys goes with --server"),
        (["--server-cmd", "x {port} {keys}", "--skip", "no-such-file"], "cannot read no-such-file"),
        (["--server", "127.0.0.1:1"], "with 16 ids or more; there are 0"),
        (["--server", "somewhere"], "is not HOST:PORT"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conform", *words])
    with pytest.raises(UserError, match=sentence) as caught:
        main()
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_the_commands_of_the_readme_are_understood() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(r"^python3 run\.py conform (.*)$", readme, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        options = parsed(shlex.split(line))
        command = options.server_cmd or options.client
        assert words_of(command, [["port"], ["key", "keys"]])[0] == "node"


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("linux", ["--port=7", "my server", "ab", '"q"', "a b", ";", "$HOME"]),
        ("win32", ["--port=7", "my server", "a\\b", "'\"q\"'", "a b", ";", "$HOME"]),
    ],
)
def test_a_command_is_cut_into_words_and_given_to_no_shell(
    system: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "sys", SimpleNamespace(platform=system))
    command = r"""--port={port} "my server" a\b '"q"' "{keys}" ; $HOME"""
    cut = words_of(command, [["port"], ["keys"]])
    assert filled(cut, {"port": 7, "keys": "a b"}) == words


@pytest.mark.parametrize("line", ["server/nan", "server/nan  ", "1:00112233 secret", "nan why"])
def test_a_line_of_skips_that_is_not_a_check_and_a_reason_is_refused_unseen(line: str) -> None:
    with pytest.raises(UserError, match="line 3 of the skips") as caught:
        read_skips(f"# known\n\n{line}\n", ALL)
    assert line.split()[0] not in str(caught.value)


def test_skipped_checks_are_named_with_their_reasons_and_not_run(tmp_path: Path) -> None:
    skips = read_skips("client/cut  other exit codes #7\n", ALL)
    run = ClientRun(lambda *_: pytest.fail("a client was started"), KEYS)
    (result,) = run_all(run, [CLIENT["client/cut"]], skips)
    assert (result.end, result.why) == ("skipped", "other exit codes #7")
    assert next(lines_of(result)).startswith("SKIPPED client/cut [P 3.7]")


def test_the_report_for_build_servers_has_failures_and_reasons() -> None:
    check = SERVER["server/nan"]
    ends = ["passed", "failed", "skipped", "not implemented"]
    results = [Result(check, end, f"<{end}>", 0.5, "said & done") for end in ends]
    suite = ElementTree.fromstring(junit(results))
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == ["4", "1", "2"]
    assert [case.get("classname") for case in suite] == 4 * ["conform.server"]
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "[P 3.3] NaN is refused: <failed>"
    assert failure.text == "said & done"
    assert [skip.get("message") for skip in suite.iter("skipped")] == [
        "<skipped>",
        "<not implemented>",
    ]


def test_a_failure_says_what_was_expected_and_what_came_in_80_columns() -> None:
    result = Result(
        SERVER["server/stranger-without-report"],
        "failed",
        "expected A, got B",
        output="x" * 200,
    )
    lines = [*lines_of(result)]
    assert max(map(len, lines)) < 80
    assert lines[0].startswith("FAILED server/stranger-without-report [P 5]")
    assert "    expected A, got B" in lines


# Programs that are started, without any


class Fake:
    """A process that has ended, or never does; its clock goes while somebody waits for it."""

    def __init__(self, code: int | None, output: str) -> None:
        self.now = 100.0
        self.calls: list[str] = []
        self.code = code
        self.printed = output

    def wait(self, patience_s: float) -> int | None:
        self.now += patience_s
        return self.code

    def output(self) -> str:
        return self.printed

    def stop(self) -> None:
        self.calls.append("stop")

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize(
    ("code", "output", "got"),
    [
        (5, "one\nno such luck", r"its end with exit code 5 \(no such luck\)$"),
        (1, "x\nError: no y\n    at z\nNode.js", r"its end with exit code 1 \(Error: no y\)$"),
        (2, "x" * 5_000, r"its end with exit code 2 \(x{200}\)$"),
        (0, "", "its end with exit code 0$"),
        (None, "", "none within 20 s$"),
    ],
)
def test_a_server_that_does_not_listen_is_waited_for_until_it_ends_and_not_for_ever(
    code: int | None, output: str, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process: Any = Fake(code, output)
    monkeypatch.setattr(targets, "time", SimpleNamespace(monotonic=lambda: process.now))
    with pytest.raises(Mismatch, match=got):
        await_listener(process, free_port())
    assert process.now == pytest.approx(100.05 if code is not None else 120.0, abs=0.06)


def test_a_server_of_a_command_gets_a_free_port_and_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process: Any = Fake(None, "ready")
    started: list[list[str]] = []
    awaited: list[object] = []

    def start(words: list[str]) -> object:
        started.append(words)
        return process

    shop: Any = SimpleNamespace(folder=tmp_path, keys=KEYS, start=start)
    monkeypatch.setattr(targets, "await_listener", lambda *words: awaited.append(words))
    servers = CommandServers(shop, "serve {port} {keys}")
    with servers.start() as server:
        host, port = server.address
        assert (host, awaited) == ("127.0.0.1", [(process, port)])
        assert port > 1_023
        assert (server.wait(1), server.output()) == (None, "ready")
        server.stop()
    assert started == [["serve", str(port), str(tmp_path / "keys" / "server.keys")]]
    assert process.calls == ["stop", "end"]
    assert servers.is_ours


def test_a_client_of_a_command_gets_all_that_it_needs(tmp_path: Path) -> None:
    started: list[list[str]] = []
    shop: Any = SimpleNamespace(folder=tmp_path, keys={3: b"\x07\x08"}, start=started.append)
    clients = CommandClients(shop, "report {host} {port} {id} {key} {keys} {readings}")
    clients.start(("here", 9), 3)
    file = tmp_path / "readings.csv"
    key = tmp_path / "keys" / "client-3.key"
    assert started == [["report", "here", "9", "3", "0708", str(key), str(file)]]
    assert [*map(float, file.read_text().splitlines())] == [*READINGS]


def test_a_server_that_runs_already_has_to_be_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ForeignServer(listener.getsockname(), KEYS)
        with server.start() as found:
            assert found is server
    for address in (server.address, ("x" * 64, 1)):
        with pytest.raises(NoConnection, match="no server at "), ForeignServer(address, {}).start():
            pytest.fail("there is a server")
    assert not server.is_ours
    assert server.keys is KEYS


def test_a_workshop_leaves_no_process_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workshop([1, 7]) as shop:
        process = shop.start([sys.executable, "-c", "import time; time.sleep(60)"])
        assert process.code() is None
        assert {*shop.keys} == {1, 7}
        ended = shop.start([sys.executable, "-c", ""])
        assert ended.wait(30) == 0
        monkeypatch.setattr(ended, "stop", lambda: pytest.fail("it has ended already"))
    assert process.code() is not None
    assert not shop.folder.exists()
    with pytest.raises(Unable):
        shop.start([sys.executable, "-c", ""])


@posix_only
def test_only_what_bears_the_mark_of_a_run_is_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[int, int]] = []
    for number, mark in (("17", "ours"), ("18", "theirs")):
        (tmp_path / number).mkdir()
        (tmp_path / number / "environ").write_text(f"A=1\0CONFORM_RUN={mark}\0")
    (tmp_path / "19").mkdir()  # of another user, say
    monkeypatch.setattr(targets, "Path", lambda _: tmp_path)
    monkeypatch.setattr(os, "kill", lambda *words: ended.append(words))
    for system in ("darwin", "linux"):  # only the second has such a folder
        monkeypatch.setattr(targets, "sys", SimpleNamespace(platform=system))
        end_strays("ours")
    assert ended == [(17, signal.SIGKILL)]


# Programs that misbehave


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_sentence_with_its_last_line(tmp_path: Path) -> None:
    command = program(tmp_path, "print('no such luck')", "sys.exit(5)")
    done = conform("--server-cmd", command)
    assert done.returncode == 2
    assert re.fullmatch(
        r"run.py: expected a server on port \d+, got its end with exit code 5 \(no such luck\)\n",
        done.stderr,
    )


def test_a_program_that_prints_without_end_fills_no_memory() -> None:
    words = "print('x' * 3_000_000, *range(20), 'the\x1b[31m end', sep='\\n')"
    process = Process([sys.executable, "-c", words])
    try:
        assert process.wait(30) == 0
        assert process.output().splitlines() == [*map(str, range(9, 20)), "the\\x1b[31m end"]
        assert len(process._printed) == 4_096
    finally:
        process.end()


@posix_only
def test_a_program_has_our_environment_and_the_mark_and_is_asked_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (
        "import atexit, os, signal, sys, time",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))",
        "atexit.register(print, 'bye')",
        "print(os.environ['CONFORM_RUN'], 'PATH' in os.environ, flush=True)",
        "time.sleep(60)",
    )
    process = Process([sys.executable, "-c", "\n".join(lines)], "m")
    waits: list[float] = []
    join = process._reader.join

    def noted(limit_s: float) -> None:
        waits.append(limit_s)
        join(limit_s)

    monkeypatch.setattr(process._reader, "join", noted)
    wait_until(lambda: process.output() == "m True")
    assert not waits, "it runs"
    process.end()
    assert (process.output(), waits) == ("m True\nbye", [2.0])
    assert process.code() == 7


@pytest.mark.slow
@posix_only
def test_a_program_that_will_not_end_is_ended_with_what_it_started() -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); "
    child = f"subprocess.Popen([sys.executable, '-c', {deaf + 'signal.pause()'!r}]); "
    parent = f"import subprocess, sys; {child}{deaf}signal.pause()"
    process = Process([sys.executable, "-c", parent])
    wait_until(lambda: process.output().count("deaf") == 2)
    process.end()
    assert process.code() == -9
    process.output()  # which ends when both have
    assert not process._reader.is_alive()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows who was started by whom")
def test_a_daemon_is_ended_too(tmp_path: Path) -> None:
    command = program(
        tmp_path,
        "import os, time",
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))",
        "if os.fork(): s.close(); time.sleep(0.5); os._exit(0)",
        "os.setsid()",
        "os.closerange(0, 3)",
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",
        "while True: s.accept()[0].close()",
    )
    assert conform("--server-cmd", command, "server/handshake").returncode == 1
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not has_environment(pid))


def has_environment(pid: int) -> bool:
    """Return whether it runs: what waits to be reaped has none."""
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/environ").read_bytes())
    return False


@pytest.mark.slow
def test_a_client_that_does_not_connect_is_one_sentence_with_its_last_line(tmp_path: Path) -> None:
    command = program(tmp_path, "print('no such luck')", "sys.exit(5)") + " {readings}"
    done = conform("--client", command)
    assert (done.returncode, done.stdout) == (2, "")
    said = "run.py: expected a client's connection, got the exit code 5 (no such luck)\n"
    assert done.stderr == said


@pytest.mark.slow
def test_exit_code_89_is_not_implemented_and_a_crash_fails_one_check(tmp_path: Path) -> None:
    """Both servers end at the first byte, and each check is then tried on one of its own."""
    listening = ["s = socket.create_server(('127.0.0.1', int(sys.argv[1])))", "while True:"]
    once = "    if s.accept()[0].recv(1): sys.exit(CODE)"
    names = ["server/handshake", "server/nan"]
    for code, words in ((89, "2 not implemented"), (7, "2 failed")):
        command = program(tmp_path, *listening, once.replace("CODE", str(code)))
        done = conform("--server-cmd", command, *names)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1].endswith(f": {words}")
    assert "the program ended with exit code 7" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_server_that_runs_is_checked_but_for_what_needs_one_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    generate_keys(keys, [*range(1, 21)])
    with running_server("--keys", str(keys / "server.keys")) as (_, port):
        where = ["--server", f"127.0.0.1:{port}", "--keys", str(keys / "server.keys")]
        done = conform(*where, "server/handshake", "server/window", "server/unknown-id")
    assert done.returncode == 0, done.stdout
    assert "SKIPPED server/window" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(": 2 passed, 1 skipped")


@pytest.mark.slow
@posix_only
def test_ctrl_c_leaves_no_server_behind(tmp_path: Path) -> None:
    command = program(
        tmp_path,
        "s = socket.create_server(('127.0.0.1', int(sys.argv[1])))",
        f"open({str(tmp_path / 'port')!r}, 'w').write(sys.argv[1])",
        "kept = []",
        "while True: kept.append(s.accept())",
    )
    with Program("run.py", "conform", "--server-cmd", command) as running:
        wait_until((tmp_path / "port").exists)
        running.interrupt()
        assert running.finish() == 130
    port = int((tmp_path / "port").read_text())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_an_interrupt_waits_for_no_check() -> None:
    is_over = threading.Event()
    results = []

    def long() -> Result:
        is_over.wait(5)
        results.append("long")
        return Result(SERVER["server/nan"], "passed")

    running = side_by_side((1, [long]), (1, [lambda: Result(SERVER["server/nan"], "passed")]))
    next(running)
    del running  # which ends it, as an interrupt does
    assert not results
    is_over.set()


def test_what_goes_wrong_in_a_check_is_raised_where_its_result_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        next(side_by_side((1, [lambda: 1 // 0])))  # type: ignore[list-item, return-value]


@posix_only
def test_a_second_ctrl_c_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "END_S", 0.01)
    monkeypatch.setattr(targets, "end_strays", lambda mark: None)  # or it would end them, too
    monkeypatch.setattr(Process, "stop", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), Workshop([1]) as shop:
        processes = [shop.start(["sleep", "60"]) for _ in range(2)]
    assert [process.code() for process in processes] == [-9, -9]
    assert not shop.folder.exists()
