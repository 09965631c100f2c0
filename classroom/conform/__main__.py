"""Is my implementation right? Checks of PROTOCOL.md against a server or a client in any language.

    python3 run.py conform --server-cmd 'node server.js {port} {keys}'
    python3 run.py conform --client 'node client.js {host} {port} {id} {key} {readings}'

Exits with 0 if no check failed and at least one passed, 1 if not, 2 for bad input, 3 if there is no
server. A tested program exits with 89 if it does not implement what the check needs.
"""

from __future__ import annotations

from pathlib import Path

import guard  # noqa: F401 (before all else that is ours: it says what the others lack)
import argparse
import contextlib
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from classroom.conform.checks import Check, Result, read_skips
from classroom.conform.client_checks import CLIENT
from classroom.conform.peer import Mismatch
from classroom.conform.runner import SESSIONS, ClientRun, ServerRun
from classroom.conform.server_checks import SERVER
from classroom.conform.targets import CommandClients, CommandServers, ForeignServer, Workshop
from endpoint import load_keys
from lab.screen import columns, painted, passing
from program import (
    Parser,
    UserError,
    host_and_port,
    output_path,
    plural,
    read_text,
    run_program,
    write_whole,
)

ALL: dict[str, Check[Any]] = {**SERVER, **CLIENT}
KINDS = {"failed": "won", "skipped": "faint", "not implemented": "not prevented"}  # colours
SANITY = ("server/handshake", "server/one-round", "client/hello", "client/one-report")


def chosen(names: Sequence[str], side: Mapping[str, Check[Any]]) -> list[Check[Any]]:
    """Return these checks of a side, or all of them. Raises UserError."""
    for name in names:
        if name not in side:
            raise UserError(f"there is no such check here: {name}; see --list")
    return [check for check in side.values() if not names or check.name in names]


@contextlib.contextmanager
def run_of(options: argparse.Namespace) -> Iterator[ServerRun | ClientRun]:
    """Give what runs the checks that the flags ask for. Raises UserError."""
    if options.server:
        keys = load_keys(options.keys) if options.keys else {}
        if len(keys) < SESSIONS:
            raise UserError(
                f"--server needs --keys FILE with {SESSIONS} ids or more; there are {len(keys)} "
                f"(server.py --generate-keys DIR --ids 1-{SESSIONS} makes some)"
            )
        yield ServerRun(ForeignServer(options.server, keys))
        return
    if options.keys:
        raise UserError("--keys goes with --server; for a command the key file is made here")
    highest_ids = range(256 - SESSIONS, 256)  # which a signed byte does not hold
    with Workshop(highest_ids) as shop:
        if options.client:
            clients = CommandClients(shop, options.client)
            yield ClientRun(clients.start, shop.keys)
        else:
            yield ServerRun(CommandServers(shop, options.server_cmd))


def lines_of(result: Result) -> Iterator[str]:
    """Yield lines about a check that has not passed."""
    check = result.check
    head = f"{result.end.upper()} {check.name} [P {check.section}] {check.meaning}"
    if result.end != "failed":
        yield from wrapped(f"{head}: {result.why}" if result.why else head)
        return
    yield from wrapped(head)
    yield from wrapped(f"    {result.why}")
    yield from (f"    | {line}"[: columns()] for line in result.output.splitlines()[-4:])


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, columns(), subsequent_indent="    ", break_on_hyphens=False)


def run_all(
    run: ServerRun | ClientRun, checks: Sequence[Check[Any]], skips: Mapping[str, str]
) -> Iterator[Result]:
    """Yield the results of all checks, and show how far it is. Raises UserError."""
    for check in checks:
        if check.name in skips:
            yield Result(check, "skipped", skips[check.name])
    wanted = [check for check in checks if check.name not in skips]
    try:
        for number, result in enumerate(run.results(wanted), 1):
            passing("")
            yield result
            passing(f"  {number} of {len(wanted)}: {result.check.name}")
    except Mismatch as error:  # the shared server did not start
        raise UserError(str(error)) from None
    passing("")


def summary(results: Sequence[Result], took_s: float) -> str:
    """Return how many checks ended how."""
    ends = Counter(result.end for result in results)
    counts = [f"{ends[end]} {end}" for end in ("passed", *KINDS) if ends[end]]
    return f"{plural(len(results), 'check')} in {took_s:.0f} s: {', '.join(counts)}"


def junit(results: Sequence[Result]) -> bytes:
    """Return results in JUnit's XML, which most build servers read."""
    suite = ElementTree.Element("testsuite", name="conform", tests=str(len(results)))
    ends = Counter(result.end for result in results)
    suite.set("failures", str(ends["failed"]))
    suite.set("errors", "0")
    suite.set("skipped", str(ends["skipped"] + ends["not implemented"]))
    for result in results:
        side, _, name = result.check.name.partition("/")
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"conform.{side}", name=name, time=f"{result.seconds:.3f}"
        )
        words = f"[P {result.check.section}] {result.check.meaning}"
        if result.end == "failed":
            failure = ElementTree.SubElement(case, "failure", message=f"{words}: {result.why}")
            failure.text = result.output
        elif result.end != "passed":
            ElementTree.SubElement(case, "skipped", message=result.why or result.end)
    text: bytes = ElementTree.tostring(suite, "utf-8", xml_declaration=True)
    return text


def listing() -> Iterator[str]:
    """Yield lines about all checks."""
    for check in ALL.values():
        note = " (needs a server of its own)" if check.is_alone else ""
        yield from wrapped(f"{check.name} [P {check.section}] {check.meaning}{note}")


def tell(result: Result) -> None:
    """Print a check that has not passed."""
    if result.end != "passed":
        first, *rest = lines_of(result)
        print(painted(first, KINDS[result.end]), *rest, sep="\n", flush=True)


def what_helps(results: Sequence[Result], output: str) -> Iterator[str]:
    """Yield lines to print below failures: where to begin, and what the server said last."""
    failed = {result.check.name for result in results if result.end == "failed"}
    basic = [name for name in SANITY if name in failed]
    if basic:
        yield f"begin with {basic[0]}: until it passes, the others tell little"
        if basic[0].endswith(("/handshake", "/hello")):
            yield "a program that has other keys fails like this, too"
    if failed and output:
        yield "the last lines of the server:"
        yield from (f"    | {line}"[: columns()] for line in output.splitlines())


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of the command line, or of these words. Raises UserError."""
    parser = Parser(
        "Checks of PROTOCOL.md against an implementation in any language. A program that exits "
        "with 89 says that it does not implement what a check needs.",
        "run.py conform",
    )
    tested = parser.add_mutually_exclusive_group()
    tested.add_argument(
        "--server-cmd", metavar="CMD", help="starts a server; with {port} and {keys}, a file"
    )
    tested.add_argument(
        "--client",
        metavar="CMD",
        help="starts a client; with {host} {port} {id}, {key} in hex or {keys}, and {readings}, a "
        "file of numbers: one per line, and one report for each",
    )
    tested.add_argument(
        "--server", type=host_and_port, metavar="HOST:PORT", help="a running server"
    )
    parser.add_argument("--keys", type=Path, metavar="FILE", help="its keys, with 16 ids or more")
    parser.add_argument("--skip", type=Path, metavar="FILE", help="lines: a check, and the reason")
    parser.add_argument("--junit", type=output_path, metavar="FILE", help="write results for CI")
    parser.add_argument("--list", action="store_true", help="list all checks, and exit")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="default all")
    options = parser.options(words)
    if not (options.list or options.server_cmd or options.client or options.server):
        raise UserError("say what to test: --server-cmd, --client or --server; or --list")
    return options


def main() -> int:
    options = parsed()
    if options.list:
        print("\n".join(listing()))
        return 0
    skips = read_skips(read_text(options.skip), ALL) if options.skip else {}
    checks = chosen(options.checks, CLIENT if options.client else SERVER)
    results = []
    began = time.monotonic()
    with run_of(options) as run:
        for result in run_all(run, checks, skips):
            results.append(result)
            tell(result)
    print(*what_helps(results, run.output), summary(results, time.monotonic() - began), sep="\n")
    if options.junit:
        write_whole(options.junit, junit(results))
    ends = {result.end for result in results}
    return int("failed" in ends or "passed" not in ends)


if __name__ == "__main__":
    run_program(main)
