"""Many clients for many minutes: they wait, report, leave and die at random; every sum is checked.

    python -m bench.soak --minutes 10 --clients 200

The server has a process of its own; the clients are threads of this one. Progress is printed now
and then, and at the end a summary with everything that was wrong, for which the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import secrets
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.process import ServerProcess, Usage, higher, settled
from client import Client
from endpoint import HOST, choose_keys, generate_keys
from program import Parser, UserError, positive, run_program, seconds
from protocol_fsm import ClientData, ConnectionCut, Json, ProtocolError, Status, write_frame

TIMEOUT_S = 20.0  # for an answer; a busy machine is no fault of the server
KEPT_EPOCHS = 1_000  # unchecked, because answers of the last ones may still be on their way
GROWTH_KB = 20 * 1024  # of the server, after the first tenth of the time
LINGER_0 = b"\x01\0\0\0\0\0\0\0"  # for SO_LINGER: closing the socket sends a reset
SHARED = ("participants", "count", "sum", "mean", "min", "max")


class Part(NamedTuple):
    """What one client was told of an epoch, and what it had sent."""

    client_id: int
    readings: tuple[float, ...]
    answer: Mapping[str, Json]


class Ledger:
    """All reports and answers: no reading may be lost, counted twice or taken from an old epoch.

    A client that may die before it hears its answer sends `[its id]` in that round: so what it
    contributed is known if it appears among the participants.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.answers = 0
        self.epochs = 0
        self._parts: dict[int, list[Part]] = {}
        self._newest = 0
        self._unanswered: Counter[int] = Counter()  # deaths that may still appear in an epoch
        self._lock = threading.Lock()

    def died(self, client_id: int) -> None:
        """Note that a report `[client_id]` may be summed up, though nobody heard the answer."""
        with self._lock:
            self._unanswered[client_id] += 1

    def answered(
        self,
        client_id: int,
        round_number: int,
        readings: Sequence[float],
        answer: Mapping[str, Json],
    ) -> None:
        """Note an answer, and check what it says of this client alone."""
        own = answer["round"], answer["own_count"], answer["own_sum"]
        with self._lock:
            if own != (round_number, len(readings), math.fsum(readings)):
                self.wrong.append(f"client {client_id} sent {readings}, and was told {answer}")
            epoch = int(str(answer["epoch"]))
            self._parts.setdefault(epoch, []).append(Part(client_id, tuple(readings), answer))
            self.answers += 1
            self._newest = max(epoch, self._newest)
            if len(self._parts) > 2 * KEPT_EPOCHS:
                self._settle(self._newest - KEPT_EPOCHS)

    def settle(self) -> None:
        """Check all epochs that have not been checked."""
        with self._lock:
            self._settle(self._newest + 1)

    def _settle(self, end: int) -> None:
        for number in [epoch for epoch in sorted(self._parts) if epoch < end]:
            self.epochs += 1
            if fault := self._fault(self._parts.pop(number)):
                self.wrong.append(f"epoch {number}: {fault}")

    def _fault(self, parts: list[Part]) -> str:
        """Return what is wrong with an epoch, or nothing. Readings are whole: sums are exact."""
        told = parts[0].answer
        if any(
            [part.answer[name] for name in SHARED] != [told[name] for name in SHARED]
            for part in parts
        ):
            return "its members were told different things"
        ids = [part.client_id for part in parts]
        members = told["participants"]
        if not isinstance(members, list) or len({*ids}) != len(ids) or not {*ids} <= {*members}:
            return f"{sorted(ids)} were answered, of {members}"
        silent = [int(str(member)) for member in members if member not in ids]
        self._unanswered.subtract(silent)  # a death explains one epoch
        if unknown := [member for member in silent if self._unanswered[member] < 0]:
            return f"{unknown} took part, and did not"
        readings = [x for part in parts for x in part.readings] + [float(n) for n in silent]
        total = math.fsum(readings)
        mean = total / len(readings) if readings else None
        expected = [
            sorted({*ids, *silent}),
            len(readings),
            total,
            mean,
            min(readings, default=None),
            max(readings, default=None),
        ]
        got = [told[name] for name in SHARED]
        return "" if got == expected else f"expected {expected[1:]}, got {got[1:]}"


class Herd(ABC):
    """Clients that live and die at random until they are told to stop; faults are in `wrong`."""

    deaths: Sequence[str]  # each as likely as the others
    kept_descriptors = 0  # that the server may open once and keep

    def __init__(self, address: tuple[str, int], clients: Sequence[int], seed: str) -> None:
        self.wrong: list[str] = []
        self.lives = Counter[str]()
        self.longest_s = 0.0  # that anybody waited for an answer
        self.stop = threading.Event()
        self._address = address
        self._seed = seed
        self._threads = [threading.Thread(target=self._live, args=(n,)) for n in clients]

    def __enter__(self) -> Herd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    @abstractmethod
    def told(self) -> str:
        """Return what was checked so far."""

    @abstractmethod
    def live(self, number: int, rng: random.Random, death: str) -> None:
        """Live a client's life up to a death. ProtocolError, UserError, OSError are faults."""

    def progress(self) -> str:
        return f"{self.told()}, {self.lives.total()} lives, {len(self.wrong)} wrong"

    def waited(self, began: float) -> None:
        """Note for how long somebody has waited, since a moment of the monotonic clock."""
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _live(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        while not self.stop.wait(rng.uniform(0, 2)):
            death = rng.choice(self.deaths)
            try:
                if death == "stranger":  # it connects, says nothing and leaves
                    with socket.create_connection(self._address, TIMEOUT_S):
                        self.stop.wait(rng.uniform(0, 1))
                else:
                    self.live(number, rng, death)
            except (ProtocolError, UserError, OSError) as error:
                self.wrong.append(f"client {number}, which would {death}: {error!r}")
            self.lives[death] += 1


class Reporters(Herd):
    """Clients of the core, which report readings."""

    deaths = ("goodbye", "cut", "reset", "unanswered", "mid-frame", "stranger")

    def __init__(self, address: tuple[str, int], keys: Mapping[int, bytes], seed: str) -> None:
        super().__init__(address, [*keys], seed)
        self.ledger = Ledger()
        self.wrong = self.ledger.wrong
        self._keys = keys

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.ledger.settle()

    def told(self) -> str:
        return f"{self.ledger.answers} answers in {self.ledger.epochs} epochs, every sum checked"

    def live(self, number: int, rng: random.Random, death: str) -> None:
        with Client(number, self._keys, *self._address, timeout_s=TIMEOUT_S) as client:
            for round_number in range(1, rng.randint(2, 20)):
                readings = [float(rng.randrange(-(10**6), 10**6)) for _ in range(rng.randint(0, 8))]
                began = time.monotonic()
                answer = client.report(readings)
                self.waited(began)
                self.ledger.answered(number, round_number, readings, answer)
                if self.stop.is_set():
                    return
                client.channel.idle(0.001 + min(rng.expovariate(1.0), 5.0))
            if death != "goodbye":
                self._die(client, death)

    def _die(self, client: Client, death: str) -> None:
        """End without a GOODBYE, as a process that is killed or a cable that is pulled."""
        client_id = client.session.client_id
        sock = client.channel._sock
        if death == "unanswered":
            self.ledger.died(client_id)
            client.channel.send(ClientData([float(client_id)]))
        if death == "mid-frame":
            write_frame(lambda frame: sock.sendall(frame[:20]), client.session.seal(ClientData([])))
        if death in ("reset", "mid-frame"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        client.session.fail(ConnectionCut(mid_frame=death == "mid-frame"))  # so it says nothing
        client.channel.leave(Status.GOODBYE)


def watch(server: ServerProcess, herd: Herd, length_s: float, every_s: float) -> dict[str, Usage]:
    """Let the herd live for `length_s`, and look every second; print a line now and then."""
    began = time.monotonic()
    next_line = every_s
    seen = dict.fromkeys(("before", "first tenth", "peak"), server.usage())
    with contextlib.suppress(KeyboardInterrupt), herd:
        while (passed := time.monotonic() - began) < length_s:
            if server.process.poll() is not None:
                herd.wrong.append("the server ended by itself")
                break
            usage = server.usage()
            seen["peak"] = higher(seen["peak"], usage)
            if passed < length_s / 10:
                seen["first tenth"] = seen["peak"]
            if passed >= next_line:
                next_line += every_s
                print(f"{passed:6.0f} s  {herd.progress()}  {usage}", flush=True)
            time.sleep(min(1.0, length_s - passed))
    return seen


def soak(server: ServerProcess, herd: Herd, options: argparse.Namespace) -> int:
    """Let the herd live, and print progress and a summary; return the exit code."""
    minutes = options.minutes
    print(f"{options.clients} clients, {minutes:g} minutes, seed {options.seed}", flush=True)
    seen = watch(server, herd, 60 * minutes, options.progress)
    before = seen["before"]
    most = before._replace(descriptors=before.descriptors + herd.kept_descriptors)
    after = settled(server, most)
    is_back = before.descriptors <= after.descriptors <= most.descriptors
    if after.threads != before.threads or not is_back:
        herd.wrong.append(f"not back where it began: {before} before, {after} after")
    if seen["peak"].resident_kb - seen["first tenth"].resident_kb > GROWTH_KB:
        herd.wrong.append(
            f"it grew: {seen['first tenth']} in the first tenth, {seen['peak']} later"
        )
    code, stop_s = server.stop()
    if code != 0 or "Traceback" in "\n".join(server.log()):
        herd.wrong.append(f"exit code {code}, and the log ends with {server.log()[-20:]}")
    lines = [
        herd.told(),
        f"{herd.lives.total()} lives: "
        + ", ".join(f"{number} {death}" for death, number in sorted(herd.lives.items())),
        f"longest wait for an answer {herd.longest_s:.2f} s; stopped in {stop_s:.2f} s",
        *(f"{when:11} {usage}" for when, usage in {**seen, "after": after}.items()),
        f"{len(herd.wrong)} wrong",
        *herd.wrong[:20],
    ]
    print(*lines, sep="\n")
    return int(bool(herd.wrong))


def soak_options(description: str, clients: int) -> argparse.Namespace:
    """Return the flags of every soak."""
    parser = Parser(description)
    parser.add_argument("--minutes", type=seconds, default=10.0, help="default 10")
    parser.add_argument("--clients", type=positive, default=clients, help=f"default {clients}")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of what the clients do")
    words = "seconds between two lines of progress; default 15"
    parser.add_argument("--progress", type=seconds, default=15.0, metavar="S", help=words)
    return parser.options()


def main() -> int:
    options = soak_options("Many clients for many minutes; every sum is checked.", clients=200)
    if options.clients > 255:
        raise UserError("there are ids for 255 clients only")
    with tempfile.TemporaryDirectory() as directory:
        generate_keys(Path(directory) / "keys", [*range(1, options.clients + 1)])
        path = str(Path(directory) / "keys" / "server.keys")
        with ServerProcess("--keys", path) as server:
            keys = choose_keys(path, HOST)[0]
            return soak(server, Reporters(server.address, keys, options.seed), options)


if __name__ == "__main__":
    run_program(main)
