"""The processes of one case: a server and its clients, which make rounds when they are told to.

The clients of a process are threads, which call as fast as they are answered. Before the first
order they call until an epoch has them all: every client learns that from the same answer, so all
begin in the same epoch, make the same number of rounds, and end in the same epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import Ends, Share, Slice, hear, now, process, tell_processor_time
from bench.process import raise_descriptor_limit
from bench.rivals import BODIES, Caller, connected, make_server, tls_context

WARM_UP_ROUNDS = 50  # of all clients together


class Case(NamedTuple):
    """What is measured: who, with how many clients, and which bodies."""

    rival: str
    clients: int
    body: str


@contextmanager
def ends_of(case: Case, processes: int, folder: Path) -> Iterator[tuple[Ends, str]]:
    """Yield a server and its clients, which are warm, and the name of their channel. Failed."""
    with ExitStack() as stack:
        server = stack.enter_context(process(serve, case, folder))
        address = hear(server)
        shares = [range(first, case.clients + 1, processes) for first in range(1, processes + 1)]
        clients = [
            stack.enter_context(process(call, case, address, [*ids], folder))
            for ids in shares
            if ids
        ]
        channels: list[str] = [hear(client) for client in clients]
        ends = Ends(server, clients, case.clients)
        ends.run(-(-WARM_UP_ROUNDS // case.clients))
        yield ends, channels[0]
        ends.stop()


def run_slice(case: Case, rounds_each: int, processes: int, folder: Path) -> tuple[Slice, str]:
    """Return what so many rounds of every client showed, and the name of the channel. Failed."""
    with ends_of(case, processes, folder) as (ends, channel):
        return ends.run(rounds_each), channel


# In the processes ---------------------------------------------------------------------------------


def serve(pipe: Connection, case: Case, folder: Path) -> None:
    raise_descriptor_limit()
    with make_server(case.rival, case.clients, BODIES[case.body], folder) as server:
        pipe.send(server.address)
        tell_processor_time(pipe)


def call(
    pipe: Connection, case: Case, address: tuple[str, int], ids: list[int], folder: Path
) -> None:
    raise_descriptor_limit()
    body = BODIES[case.body]
    tls = tls_context(case.rival, folder, is_server=False) if "tls" in case.rival else None
    with ExitStack() as stack, ThreadPoolExecutor(len(ids)) as pool:
        callers = [
            stack.enter_context(connected(case.rival, address, body, client_id, tls))
            for client_id in ids
        ]
        list(pool.map(partial(meet, clients=case.clients), callers))
        pipe.send(callers[0].channel)
        while (rounds := pipe.recv()) is not None:
            shares = list(pool.map(partial(make_rounds, rounds=rounds), callers))
            began = min(share.began for share in shares)
            ended = max(share.ended for share in shares)
            pipe.send(Share(began, ended, [s for share in shares for s in share.latencies_s]))


def meet(caller: Caller, clients: int) -> None:
    """Call until all are in one epoch."""
    while len(participants(caller.call())) < clients:
        pass


def make_rounds(caller: Caller, rounds: int) -> Share:
    """Make rounds as fast as they are answered, and measure each."""
    call = caller.call
    latencies_s = []
    began = now()
    before_s = began.wall_s
    for _ in range(rounds):
        call()
        after_s = time.perf_counter()
        latencies_s.append(after_s - before_s)
        before_s = after_s
    return Share(began, now(), latencies_s)


def participants(answer: Any) -> list[int]:
    """Return who is in an answer; one that is no object (of the bare rival) is for one client."""
    return answer["participants"] if isinstance(answer, dict) else [1]
