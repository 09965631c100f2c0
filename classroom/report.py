"""One page of evidence: what the attacks of an event log did, as pictures, bytes and tables.

    python attacks.py --seed 1 --events events.jsonl
    python -m classroom.report events.jsonl -o report.html

The page is one file, which loads nothing. Everything on it that happened comes from the log (see
EVENTS.md), every claim from claims.toml, every minimal set from sets.json. A Wire says where those
are and what a message looks like, so another protocol needs another Wire and nothing else. The
page judges nothing: verdicts are those of the log.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from classroom.drawing import diagram, in_words, shown
from classroom.output import filled, write_whole
from classroom.wire import LAB, Change, Wire, changes
from lab.claims import Claim, Sets, read_claims, read_sets
from lab.events import ENDS, KINDS, Event, Run, Step, read_events, runs_of
from program import Parser, run_program, to_stderr

TEMPLATE = "report.html.j2"
MOST_MESSAGES = 5  # of one run whose bytes are shown

# What the template is given -----------------------------------------------------------------------


class Piece(NamedTuple):
    """Some bytes of a field that were all touched, or all not."""

    text: str
    is_touched: bool


class FieldView(NamedTuple):
    """One field of one message, as it was sent and as it arrived."""

    number: int  # for its colour
    name: str
    versions: list[tuple[str, list[Piece], str]]  # which, its bytes, what they say


class MessageView(NamedTuple):
    number: int
    title: str
    deed: str
    step: Step
    fields: list[FieldView]


class KeyRow(NamedTuple):
    """What one end, or both, call their keys after one message."""

    number: int
    title: str
    who: str
    names: list[tuple[str, bool]]  # and whether it has moved since the row before
    differ: bool


class Verdict(NamedTuple):
    """How a run ended: `kind` is held, open, won, wrong or unknown."""

    kind: str
    words: str


SIGNS = {"held": "\u2713", "open": "\u25cb", "won": "\u2717", "wrong": "?", "unknown": "?"}


@dataclass
class RunView:
    """Everything that the page shows of one run."""

    run: Run
    anchor: str
    verdict: Verdict
    command: str
    svg: str = ""
    words: list[str] = field(default_factory=list)
    messages: list[MessageView] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # of the keys
    keys: list[KeyRow] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)


class Mark(NamedTuple):
    """One minimal set in one cell of the matrix, and the run that shows it."""

    letter: str
    words: str
    anchor: str


class MatrixRow(NamedTuple):
    attack: str
    anchor: str
    cells: list[list[Mark]]
    note: str


# A run --------------------------------------------------------------------------------------------


def anchors_of(runs: Sequence[Run]) -> list[str]:
    """Name the runs for links: of what a log may hold, letters and digits only, and each once."""
    found: list[str] = []
    for run in runs:
        words = "-without-".join(filter(None, (run.attack, "-".join(sorted(run.without)))))
        anchor = "run-" + (re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "unnamed")
        found.append(anchor if anchor not in found else f"{anchor}-{len(found)}")
    return found


def verdict_of(run: Run) -> Verdict:
    """Put the log's verdict into a few words."""
    told = run.verdict
    if not told:
        return Verdict("unknown", "no verdict in the log")
    if told["noticed"]:
        won = f"; won: {told['won']}" if told["won"] else ""
        return Verdict("open", f"not prevented, noticed by {told['noticed']}{won}")
    if told["won"]:
        return Verdict("won", f"won: {told['won']}")
    who, _, error = told["words"].partition(": ")
    words = f"refused by the {who}: {error}" if who in ENDS and error else told["words"]
    return Verdict("held" if told["as_expected"] else "wrong", words)


def pieces(content: bytes, touched: frozenset[int]) -> list[Piece]:
    """Cut bytes where touched ones begin and end."""
    return [
        Piece(content[group[0] : group[-1] + 1].hex(" "), is_touched)
        for is_touched, places in groupby(range(len(content)), touched.__contains__)
        for group in [[*places]]
    ]


def field_view(number: int, change: Change, is_pair: bool) -> FieldView:
    before, after, touched = change
    if not is_pair or not touched:
        return FieldView(number, after.name, [("", pieces(after.content, touched), after.meaning)])
    return FieldView(
        number,
        after.name,
        [
            (which, pieces(one.content, touched), one.meaning)
            for which, one in (("sent", before), ("arrived", after))
        ],
    )


def message_views(run: Run, wire: Wire) -> list[MessageView]:
    """Return the messages that the adversary touched, or that somebody refused, byte by byte."""
    views: list[MessageView] = []
    seen: list[Step] = []
    for number, step in shown(run.steps):
        quiet = ("passed", "answered", "held", "late", "dropped")
        if not step or not step.arrived or (step.kind in quiet and not step.refused):
            continue
        if step in seen:  # the same once more teaches nothing
            continue
        seen.append(step)
        before = step.sent or step.arrived
        fields = [
            field_view(place, change, bool(step.sent))
            for place, change in enumerate(changes(wire.fields(before), wire.fields(step.arrived)))
        ]
        views.append(MessageView(number, wire.title(step.arrived), KINDS[step.kind], step, fields))
    return views


def key_rows(run: Run, wire: Wire) -> tuple[list[str], list[KeyRow]]:
    """Return the labels of the keys, and their names after each message that moved them."""
    labels = [*dict.fromkeys(label for line in run.keys for label in line["keys"])]
    rows: list[KeyRow] = []
    last: dict[str, list[str]] = {}
    for number, step in shown(run.steps):
        told: dict[str, Event] = {}
        for line in run.keys:
            if step and line["message"] in (step.sent, step.arrived):
                told.setdefault(line["by"], line)
        rows += rows_of_step(number, step, told, labels, last, wire) if step else []
    return labels, rows


def rows_of_step(
    number: int,
    step: Step,
    told: Mapping[str, Event],
    labels: Sequence[str],
    last: dict[str, list[str]],
    wire: Wire,
) -> list[KeyRow]:
    """Return one row if both ends call their keys the same, else one for each end."""
    names = {end: [line["keys"].get(label, "") for label in labels] for end, line in told.items()}
    agree = len(names) == 2 and names["client"] == names["server"]
    title = wire.title(step.sent or step.arrived)
    rows: list[KeyRow] = []
    for end, new in names.items():
        if new != last.get(end):
            old = last.get(end, new)
            rows.append(
                KeyRow(
                    number,
                    title,
                    end,
                    [(a, a != b) for a, b in zip(new, old)],
                    len(names) == 2 and not agree,
                )
            )
            last[end] = new
    if agree and len(rows) == 2:
        return [rows[0]._replace(who="both ends")]
    return rows


def view_of(run: Run, anchor: str, wire: Wire) -> RunView:
    rules = ",".join(sorted(run.without))
    command = " ".join(filter(None, (wire.attacks, rules and f"--without {rules}", run.attack)))
    labels, keys = key_rows(run, wire)
    view = RunView(
        run,
        anchor,
        verdict_of(run),
        command,
        labels=labels,
        keys=keys,
        messages=message_views(run, wire),
    )
    if run.steps:
        view.svg = diagram(run, wire, anchor)
        view.words = in_words(run, wire)
    return view


# The tables ---------------------------------------------------------------------------------------


def matrix_rows(
    matrix: Sets, runs: Sequence[RunView], wire: Wire
) -> tuple[list[str], list[MatrixRow]]:
    """Return the elements, and a row an attack: in each cell the minimal sets that it is in."""
    anchors = {(view.run.attack, view.run.without): view.anchor for view in reversed(runs)}
    order = [
        *dict.fromkeys(rule for found in matrix.sets.values() for rules in found for rule in rules)
    ]
    rows = []
    for name in [*matrix.sets, *matrix.not_prevented]:
        marks: list[tuple[Sequence[str], Mark]] = []
        for letter, rules in zip("abcdefghijklmnopqrstuvwxyz", matrix.sets.get(name, [])):
            anchor = anchors.get((name, frozenset(rules)), "")
            words = f"set {letter}: {name} wins without {' and '.join(rules)}"
            how = f"; try {wire.attacks} --without {','.join(rules)} {name}"
            marks.append((rules, Mark(letter, words + ("" if anchor else how), anchor)))
        note = (
            f"not prevented, noticed by {matrix.not_prevented[name]}"
            if name in matrix.not_prevented
            else ""
            if marks
            else "no set found"
        )
        cells = [[mark for rules, mark in marks if rule in rules] for rule in order]
        rows.append(MatrixRow(name, anchors.get((name, frozenset()), ""), cells, note))
    return order, rows


def link_claims(views: Sequence[RunView], claims: Sequence[Claim]) -> None:
    """Tell each run which claims it tries."""
    for view in views:
        view.claims = [claim.id for claim in claims if view.run.attack in claim.attacks]


def summary(views: Sequence[RunView]) -> list[tuple[str, dict[str, int]]]:
    """Count the verdicts by what the attacks are about; apart those with rules taken out."""
    counts: dict[str, dict[str, int]] = {}
    for view in views:
        of_claim = counts.setdefault(
            view.run.verdict.get("claim", "?"),
            dict.fromkeys(("held", "open", "other", "weakened", "weakened won"), 0),
        )
        kind = view.verdict.kind
        if view.run.without:
            of_claim["weakened"] += 1
            of_claim["weakened won"] += kind == "won"
        else:
            of_claim[kind if kind in ("held", "open") else "other"] += 1
    return [*counts.items()]


# The page -----------------------------------------------------------------------------------------


def page(runs: Sequence[Run], wire: Wire, claims_at: str, matrix: Sets | None = None) -> str:
    """Return the page; `claims_at` is where CLAIMS.md is, as seen from it. Raises UserError."""
    told = read_claims(wire.data)
    order = [*dict.fromkeys(run.attack for run in runs)]  # runs of one attack stand together
    runs = sorted(runs, key=lambda run: order.index(run.attack))
    views = [view_of(run, anchor, wire) for run, anchor in zip(runs, anchors_of(runs))]
    link_claims(views, told.claims)
    elements, rows = matrix_rows(matrix or read_sets(wire.data / "sets.json"), views, wire)
    return filled(
        TEMPLATE,
        wire=wire,
        views=views,
        summary=summary(views),
        signs=SIGNS,
        kinds=KINDS,
        elements=elements,
        matrix=rows,
        redundant=told.redundant,
        claims=told.claims,
        claims_at=f"{claims_at}#the-claims",
        most=MOST_MESSAGES,
        anchors={view.run.attack: view.anchor for view in reversed(views)},
    )


def link_to(target: Path, page: Path) -> str:
    """Return the relative link from a page to a file; another drive has none, and gets a URL."""
    with contextlib.suppress(ValueError):
        return quote(Path(os.path.relpath(target, page.resolve().parent)).as_posix())
    return target.as_uri()


def main(wire: Wire = LAB) -> int:
    parser = Parser("Draws what the attacks of an event log did, on one page.")
    parser.add_argument(
        "events",
        nargs="+",
        type=Path,
        metavar="EVENTS",
        help=f"a file of {wire.attacks} --events; more than one for several runs",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="default report.html",
    )
    parser.add_argument(
        "--matrix",
        type=Path,
        metavar="FILE",
        help="of classroom.matrix --json; default: the protocol's sets.json",
    )
    options = parser.options()
    runs: list[Run] = []
    for path in options.events:
        events, unknown = read_events(path)
        runs += runs_of(events)
        if unknown:
            to_stderr(f"{path}: not shown, because not known here: {', '.join(unknown)}")
    matrix = read_sets(options.matrix) if options.matrix else None
    text = page(runs, wire, link_to(wire.claims, options.output), matrix)
    write_whole(options.output, text.encode("utf-8", "replace"))
    print(f"wrote {options.output}: {len(runs)} runs")
    return 0


if __name__ == "__main__":
    run_program(main)
