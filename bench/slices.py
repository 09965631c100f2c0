"""One slice of a case: a fresh server process, fresh client processes, some rounds, the numbers.

The clients of a process are threads, which call as fast as they are answered. They warm up until
an epoch has them all: every client learns that from the same answer, so all begin in the same
epoch, do the same number of rounds, and end in the same epoch. Processes start, connections open
and TLS shakes hands before that, outside of what is measured.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.process import raise_descriptor_limit
from bench.rivals import BODIES, LIMIT_S, Caller, Meter, make_client, make_server, tls_context

SPAWN = multiprocessing.get_context("spawn")  # the same on every system
WARM_UP_ROUNDS = 50  # of one client alone; more than one find into one epoch first


class Case(NamedTuple):
    """What is measured: who, with how many clients, and which bodies."""

    rival: str
    clients: int
    body: str


class Slice(NamedTuple):
    """What one slice showed. Processor times are those of a round."""

    rounds: int
    wall_s: float
    latencies_s: list[float]
    server_s: float
    client_s: float
    channel: str


class Failed(Exception):
    """A process of the benchmark died, or took too long."""


class Share(NamedTuple):
    """What one client process tells of its clients, on the clock that all processes share."""

    began_s: float
    ended_s: float
    processor_s: float
    latencies_s: list[float]
    channel: str


def run_slice(case: Case, rounds_each: int, processes: int, folder: Path) -> Slice:
    """Run `rounds_each` rounds of every client, and return what was seen. Raises Failed."""
    with ExitStack() as stack:
        server = stack.enter_context(process(serve, case, folder))
        address = hear(server)
        shares = [range(first, case.clients + 1, processes) for first in range(1, processes + 1)]
        pipes = [
            stack.enter_context(process(call, case, address, [*ids], rounds_each, folder))
            for ids in shares
            if ids
        ]
        told: list[Share] = [hear(pipe) for pipe in pipes]
        server.send("stop")
        server_s = hear(server)
    rounds = rounds_each * case.clients
    return Slice(
        rounds,
        max(share.ended_s for share in told) - min(s.began_s for s in told),
        [latency for share in told for latency in share.latencies_s],
        server_s,
        sum(share.processor_s for share in told) / rounds,
        told[0].channel,
    )


@contextmanager
def process(target: Any, *arguments: object) -> Iterator[Connection]:
    """Start a process, and yield the pipe to it; at the end it ends, well or not."""
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
        child.join(LIMIT_S)
    finally:
        child.kill()
        child.join()


def hear(pipe: Connection) -> Any:
    """Return the next thing that a process tells. Raises Failed."""
    try:
        if pipe.poll(5 * LIMIT_S):
            return pipe.recv()
    except (EOFError, OSError):
        raise Failed("a process of the benchmark died; what it said stands above") from None
    raise Failed("a process of the benchmark takes too long")


# In the processes ---------------------------------------------------------------------------------


def serve(pipe: Connection, case: Case, folder: Path) -> None:
    raise_descriptor_limit()
    meter = Meter(case.clients, BODIES[case.body]().filling)
    with make_server(case.rival, case.clients, meter, folder) as server:
        pipe.send(server.address)
        pipe.recv()
    pipe.send(meter.processor_s())


def call(
    pipe: Connection,
    case: Case,
    address: tuple[str, int],
    ids: list[int],
    rounds_each: int,
    folder: Path,
) -> None:
    raise_descriptor_limit()
    body = BODIES[case.body]()
    tls = tls_context(case.rival, folder, is_server=False) if "tls" in case.rival else None
    callers = [make_client(case.rival, address, body, client_id, tls) for client_id in ids]
    work = [Work(caller, case.clients, rounds_each) for caller in callers]
    for each in work:
        each.start()
    for each in work:
        each.join()
    began_s = min(w.began for w in work)
    ended_s = max(w.ended for w in work)
    pipe.send(
        Share(
            began_s[0],
            ended_s[0],
            ended_s[1] - began_s[1],
            [latency for w in work for latency in w.latencies_s],
            callers[0].channel,
        )
    )
    for caller in callers:
        caller.close()


class Work(threading.Thread):
    """One client: warms up, then measures each of its rounds."""

    def __init__(self, caller: Caller, clients: int, rounds: int) -> None:
        super().__init__(daemon=True)
        self._caller = caller
        self._clients = clients
        self._rounds = rounds
        self.latencies_s: list[float] = []
        self.began = self.ended = (0.0, 0.0)  # on the clock, and in processor time

    def run(self) -> None:
        call = self._caller.call
        if self._clients == 1:
            for _ in range(WARM_UP_ROUNDS):
                call()
        while len(participants(call())) < self._clients:
            pass
        self.began = before, _ = time.perf_counter(), time.process_time()
        for _ in range(self._rounds):
            call()
            after = time.perf_counter()
            self.latencies_s.append(after - before)
            before = after
        self.ended = after, time.process_time()


def participants(answer: Any) -> list[int]:
    """Return who is in an answer; one that is no object (of the bare rival) is for one client."""
    return answer["participants"] if isinstance(answer, dict) else [1]
