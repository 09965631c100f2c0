"""Run checks beside each other, and report how each ended."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

from channel import POLL_S
from classroom.conform.checks import Check, Result, Unable
from classroom.conform.client_checks import ClientTrial, Start
from classroom.conform.peer import Mismatch
from classroom.conform.server_checks import Running, ServerTrial

NOT_IMPLEMENTED = 89  # the exit code that says so, as in BoringSSL's runner
SESSIONS = 16  # checks at a time on one server, each with an id of its own
FRESH = 3  # servers at a time beside that one
CLIENTS = 8  # at a time
DYING_S = 0.5  # until a program that has closed its connections has ended

AnyTrial = TypeVar("AnyTrial", bound=AbstractContextManager[Any])
Job = Callable[[], Result]


class AnyServer(Running, Protocol):
    """A server under test, and what can be known of its process."""

    def wait(self, patience_s: float) -> int | None:
        """Wait for its end, and return the exit code; None if it goes on, or nobody knows."""

    def output(self) -> str:
        """Return its last lines."""


class Servers(Protocol):
    """Where servers come from."""

    keys: Mapping[int, bytes]
    is_ours: bool  # can be started as often as needed, and be had alone

    def start(self) -> AbstractContextManager[AnyServer]:
        """Give a server that listens. Raises Mismatch if it does not, and UserError."""


def tried(check: Check[AnyTrial], trial: AnyTrial) -> Result:
    """Run one check, and return how it ended."""
    began = time.monotonic()
    end = "passed"
    why = ""
    try:
        check.run(trial)
    except Mismatch as error:
        end = "failed"
        why = str(error)
    except Unable as reason:
        end = "skipped"
        why = str(reason)
    return Result(check, end, why, time.monotonic() - began)


def with_exit_code(result: Result, code: int | None, output: str) -> Result:
    """Return a result in the light of how the tested program has ended."""
    if result.end != "failed":
        return result
    if code == NOT_IMPLEMENTED:
        return result._replace(end="not implemented", why="")
    why = result.why if code is None else f"{result.why}; the program ended with exit code {code}"
    return result._replace(why=why, output=output)


class ServerRun:
    """Checks of servers: most share one, each with an id of its own; some have a fresh one."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._ids: queue.SimpleQueue[int] = queue.SimpleQueue()
        for client_id in sorted(servers.keys)[:SESSIONS]:
            self._ids.put(client_id)
        self.output = ""  # of the shared server, in the end

    def results(self, checks: Sequence[Check[ServerTrial]]) -> Iterator[Result]:
        """Yield results as they come. Raises Mismatch if no server listens, and UserError."""
        with self._servers.start() as shared:
            alone = [partial(self._alone, check) for check in checks if check.is_alone]
            others = [partial(self._together, c, shared) for c in checks if not c.is_alone]
            yield from side_by_side((FRESH, alone), (SESSIONS, others))
            self.output = shared.output()

    def _together(self, check: Check[ServerTrial], server: AnyServer) -> Result:
        client_id = self._ids.get()
        try:
            with ServerTrial(server, self._servers.keys, client_id) as trial:
                result = tried(check, trial)
        finally:
            self._ids.put(client_id)
        if result.end == "failed" and server.wait(DYING_S) is not None:
            return self._alone(check)  # any check beside this one may have killed the server
        return result

    def _alone(self, check: Check[ServerTrial]) -> Result:
        if not self._servers.is_ours:
            return Result(check, "skipped", "needs a server of its own: --server-cmd")
        client_id = min(self._servers.keys)
        try:
            with self._servers.start() as server:
                with ServerTrial(server, self._servers.keys, client_id) as trial:
                    result = tried(check, trial)
                code = server.wait(DYING_S) if result.end == "failed" else None
                return with_exit_code(result, code, server.output())
        except Mismatch as error:
            return Result(check, "failed", str(error))


class ClientRun:
    """Checks of clients: each starts its own."""

    output = ""

    def __init__(self, start: Start, keys: Mapping[int, bytes]) -> None:
        self._start = start
        self._keys = keys

    def results(self, checks: Sequence[Check[ClientTrial]]) -> Iterator[Result]:
        """Yield results as they come. Raises Mismatch if no client connects, and UserError."""
        if checks:
            self._try_one()
        ids = itertools.cycle(sorted(self._keys))
        yield from side_by_side((CLIENTS, [partial(self._run, *pair) for pair in zip(checks, ids)]))

    def _try_one(self) -> None:
        """See that a client connects at all: each check would wait for it, and name it alone."""
        with ClientTrial(self._start, self._keys, min(self._keys)) as trial:
            try:
                trial.connected()
            except Mismatch:
                if trial.client is None or trial.client.code() != NOT_IMPLEMENTED:
                    raise

    def _run(self, check: Check[ClientTrial], client_id: int) -> Result:
        with ClientTrial(self._start, self._keys, client_id) as trial:
            result = tried(check, trial)
            client = trial.client
            if client is None or result.end != "failed":
                return result
            return with_exit_code(result, client.wait(DYING_S), client.output())


def side_by_side(*groups: tuple[int, Sequence[Job]]) -> Iterator[Result]:
    """Do jobs, of each group so many at a time, and yield what they return as it comes.

    An interrupt may come anywhere here. So the threads are daemons, for which nobody waits then,
    and this one shares no lock with them that is written in Python and could stay locked.
    """
    ended: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
    for count, jobs in groups:
        left: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            left.put(job)
        for _ in range(count):
            threading.Thread(target=work, args=(left, ended), daemon=True).start()
    running = sum(len(jobs) for _, jobs in groups)
    while running:
        try:
            result = ended.get(timeout=POLL_S)  # without a limit it holds up Ctrl-C on Windows
        except queue.Empty:
            continue
        running -= 1
        if isinstance(result, Exception):
            raise result
        yield result


def work(left: queue.SimpleQueue[Job], ended: queue.SimpleQueue[Result | Exception]) -> None:
    """Do jobs until none is left."""
    with contextlib.suppress(queue.Empty):
        while True:
            job = left.get_nowait()
            try:
                ended.put(job())
            except Exception as error:
                ended.put(error)
