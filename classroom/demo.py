"""A first look: one server and three clients at work, and a check that their answers agree.

    python3 run.py classroom

Exits with 0 only if every process did, every round was done, and every epoch agreed.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from program import Parser, end_signals, plural, positive, run_program, seconds

ROOT = Path(__file__).resolve().parent.parent
FILES = {1: "data/seattle.csv", 2: "data/san-francisco.csv", 3: "data/seattle-july.csv"}
PERSONAL = {"round", "own_count", "own_sum", "own_share"}  # the rest is the same for all members
POLL_S = 0.2  # how soon Windows, which cannot interrupt a wait, notices a Ctrl-C
END_S = 3.0  # how long a process has to end by itself
Answer = dict[str, Any]  # as a client prints it


class Crew:
    """The processes of the demo. None of them outlives the `with` block, however it ends."""

    def __init__(self, limit_s: float) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.ended: set[str] = set()
        self._heard: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
        self._deadline = time.monotonic() + limit_s

    def __enter__(self) -> Crew:
        # a signal waits in the queue: as an exception it could lose a process just started
        for number in end_signals():
            signal.signal(number, lambda number, _: self._heard.put(("signal", str(number))))
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, *arguments: str) -> None:
        """Start a program of Python, and show which process it is."""
        self.launch(name, *arguments)
        show(name, f"is process {self.processes[name].pid}")

    def launch(self, name: str, *arguments: str, **options: Any) -> None:
        """Start a program of Python; `options` are those of Popen."""
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, *arguments],
            **{"cwd": ROOT, "stdin": subprocess.DEVNULL, **options},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=deaf_to_ctrl_c if sys.platform != "win32" else None,
        )
        self.processes[name] = process
        threading.Thread(target=self._listen, args=(name, process), daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._heard.put((name, line.rstrip()))
        self._heard.put((name, None))

    def hear(self) -> tuple[str, str]:
        """Return a process and a line it printed, empty if it has ended. Raises SystemExit."""
        while (left := self._deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                name, line = self._heard.get(timeout=min(left, POLL_S))
                if name == "signal":
                    sys.exit(128 + int(line or 0))
                if line is None:
                    self.ended.add(name)
                return name, line or ""
        sys.exit("the demo took too long, and was stopped")

    def stop(self, name: str) -> None:
        """End a process, and show its last lines; on Windows it is killed, and has none."""
        self.processes[name].terminate()
        while name not in self.ended:
            show(*self.hear())

    def failures(self) -> list[str]:
        """Return which processes failed, after the block; on Windows the server was killed."""
        codes = {name: process.returncode for name, process in self.processes.items()}
        return [
            f"{name} ended with exit code {code}"
            for name, code in codes.items()
            if code and not (name == "server" and sys.platform == "win32")
        ]


def deaf_to_ctrl_c() -> None:
    """Ignore Ctrl-C in a new process until it installs its own handler."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def show(name: str, line: str) -> None:
    if line:
        print(f"{name:<8} | {line}", flush=True)


def listen(crew: Crew) -> dict[int, list[Answer]]:
    """Show all output until the clients have ended; return their answers by client id."""
    answers: dict[int, list[Answer]] = {client_id: [] for client_id in FILES}
    while not crew.ended >= crew.processes.keys() - {"server"}:
        name, line = crew.hear()
        if line.startswith("{"):
            answer: Answer = json.loads(line)
            answers[int(name.split()[1])].append(answer)
            told = [f"{key} {cell(answer[key])}" for key in ("sum", "mean") if key in answer]
            show(
                name,
                f"round {answer['round']:>2}: {answer['own_sum']:g} reported; epoch "
                f"{answer['epoch']:>2}: {', '.join(told)}",
            )
        else:
            show(name, line)
    return answers


def shared(answer: Answer) -> Answer:
    """Return the part of an answer that all members of an epoch get."""
    return {key: value for key, value in answer.items() if key not in PERSONAL}


def disagreements(answers: Mapping[int, Sequence[Answer]], rounds: int) -> list[str]:
    """Return the mistakes in the answers, as sentences."""
    problems = []
    epochs: dict[int, dict[int, Answer]] = {}
    for client_id, told in answers.items():
        if [answer["round"] for answer in told] != [*range(1, rounds + 1)]:
            problems.append(f"client {client_id} did {len(told)} of {plural(rounds, 'round')}")
        for answer in told:
            epochs.setdefault(answer["epoch"], {})[client_id] = shared(answer)
    for epoch, members in epochs.items():
        first = next(iter(members.values()))
        if any(told != first for told in members.values()):
            problems.append(f"epoch {epoch}: its members were told different numbers")
        elif first.get("participants", sorted(members)) != sorted(members):
            problems.append(f"epoch {epoch}: its participants are not those who were told of it")
    return problems


def cell(value: Any) -> str:
    items = value if isinstance(value, list) else [value]
    return " ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in items)


def table(answers: Mapping[int, Sequence[Answer]]) -> str:
    """Return one row per epoch, with the numbers that its members got."""
    epochs = {answer["epoch"]: shared(answer) for told in answers.values() for answer in told}
    columns = [*next(iter(epochs.values()), {})]
    rows = [columns, *([cell(epochs[n][key]) for key in columns] for n in sorted(epochs))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def main() -> int:
    parser = Parser("The classroom demo.", prog="run.py classroom")
    parser.add_argument("--rounds", type=positive, default=8, help="of each client; default 8")
    parser.add_argument(
        "--interval", type=seconds, default=0.3, help="seconds between; default 0.3"
    )
    options = parser.options()
    with Crew(limit_s=30 + options.rounds * (options.interval + 2)) as crew:
        crew.start("server", "server.py", "--port", "0")
        _, first_line = crew.hear()
        show("server", first_line)
        if not first_line.startswith("listening on "):
            sys.exit("the server did not start")
        for client_id, file in FILES.items():
            crew.start(
                f"client {client_id}",
                "client.py",
                str(client_id),
                "--port",
                first_line.rpartition(":")[2],
                "--file",
                file,
                "--json",
                "--rounds",
                str(options.rounds),
                "--interval",
                str(options.interval),
            )
            show(f"client {client_id}", f"reports {plural(options.rounds, 'reading')} from {file}")
        answers = listen(crew)
        print("", table(answers), "", sep="\n", flush=True)
        crew.stop("server")
    problems = crew.failures() + disagreements(answers, options.rounds)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    if not problems:
        print("All members of each epoch were told the same numbers.")
    return int(bool(problems))


if __name__ == "__main__":
    run_program(main)
