"""The conformance checks: the program around them, and whether they see what is wrong."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from classroom.conform.checks import Result
from classroom.conform.client_checks import CLIENT, READINGS
from classroom.conform.runner import SESSIONS, ClientRun, ServerRun
from classroom.conform.server_checks import SERVER
from client import Client
from endpoint import DEMO_KEYS
from lab.weakened import RULES, Weakened, without
from protocol_fsm import ConnectionCut, DeadlineExpired, LocalError, ProtocolError
from server import Server

KEYS = {**{n: secrets.token_bytes(32) for n in range(1, SESSIONS + 1)}, **DEMO_KEYS}
SILENT = {"server/silent-stranger", "server/stranger-without-report"}  # take 10 s
# Why no check can see that a rule is missing.
INVISIBLE = {
    "tag-first": "a wrong tag and a wrong padding get the same answer; only their times differ",
    "decoy": "an unknown id meets the same silent close without the work; only its time differs",
}


class ServerHere:
    """A server in this process."""

    def __init__(self, server: Server) -> None:
        self.address = server.address
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(server)
        self.stop = self._closing.close

    def wait(self, patience_s: float) -> None:
        """It has no process that could end."""

    def output(self) -> str:
        return ""


class ServersHere:
    """Servers in this process, with some rules taken out."""

    is_ours = True
    keys: Mapping[int, bytes] = KEYS

    def __init__(self, weak: Weakened) -> None:
        self._weak = weak

    @contextlib.contextmanager
    def start(self) -> Iterator[ServerHere]:
        server = ServerHere(self._weak.server(KEYS, port=0, new_session=self._weak.session))
        try:
            yield server
        finally:
            server.stop()


class ClientHere(threading.Thread):
    """A client in a thread, with the exit codes of client.py."""

    def __init__(self, weak: Weakened, address: tuple[str, int], client_id: int) -> None:
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
            self._code = 1

    def code(self) -> int | None:
        return None if self.is_alive() else self._code

    def wait(self, patience_s: float) -> int | None:
        self.join(patience_s)
        return self.code()

    def end(self) -> None:
        self.join(10)

    def output(self) -> str:
        return ""


def results_without(*rules: str) -> list[Result]:
    """Return how the checks end at endpoints without these rules."""
    weak = without(rules)
    servers = ServerRun(ServersHere(weak))
    clients = ClientRun(lambda address, n: ClientHere(weak, address, n), KEYS)
    checks = [check for check in SERVER.values() if check.name not in SILENT]
    return [*servers.results(checks), *clients.results([*CLIENT.values()])]


def failing(results: list[Result]) -> set[str]:
    return {result.check.name for result in results if result.end != "passed"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_missing_rule_fails_some_check(rule: str) -> None:
    assert bool(failing(results_without(rule))) is (rule not in INVISIBLE)
