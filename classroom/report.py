"""One page of evidence: what the attacks of an event log did, as pictures, bytes and tables.

    python attacks.py --seed 1 --events events.jsonl
    python -m classroom.report events.jsonl -o report.html

The page is one file, which loads nothing and links to nothing but itself. Everything on it that
happened comes from the log (see EVENTS.md), every claim from claims.toml, every minimal set from
sets.json. A Wire says where those are and what a message looks like, so another protocol needs
another Wire and nothing else. The page judges nothing: verdicts are those of the log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from classroom.drawing import diagram, in_words
from classroom.output import filled, write_whole
from classroom.wire import LAB, ROOT, Change, Wire, changes
from lab.claims import Claim, Sets, read_claims, read_sets
from lab.events import ENDS, KINDS, Run, Step, read_runs, shown
from lab.observer import Event
from lab.verdict import kind_of
from program import Parser, escaped, keep_inputs, output_path, plural, run_program

TEMPLATE = "report.html.j2"
MOST_MESSAGES = 5  # of one run whose bytes are shown

# What the template is given -----------------------------------------------------------------------


class Piece(NamedTuple):
    """Bytes of a field, either all touched or all untouched."""

    text: str
    is_touched: bool


class FieldView(NamedTuple):
    """One field of one message, as it was sent and as it arrived."""

    number: int  # for its colour
    name: str
    versions: list[tuple[str, list[Piece], str]]  # which, its bytes, their meaning


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
    names: list[tuple[str, bool]]  # and whether each has moved since the row before
    differ: bool


class Verdict(NamedTuple):
    """How a run ended: `kind` is one of SIGNS."""

    kind: str
    words: str


SIGNS = {"held": "\u2713", "open": "\u25cb", "won": "\u2717", "wrong": "?", "unknown": "?"}


class RunView(NamedTuple):
    """Everything that the page shows of one run."""

    run: Run
    anchor: str
    verdict: Verdict
    command: str
    svg: str
    words: list[str]
    messages: list[MessageView]
    labels: list[str]  # of the keys
    keys: list[KeyRow]
    claims: list[str]  # by id, that it tests


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
    """Name the runs for links: with letters and digits only, and each name once."""
    found: list[str] = []
    for run in runs:
        words = re.sub(r"[^a-z0-9]+", "-", run.title.lower()).strip("-")
        anchor = "run-" + (words or "unnamed")
        found.append(anchor if anchor not in found else f"{anchor}-{len(found)}")
    return found


def verdict_of(run: Run) -> Verdict:
    """Put the log's verdict into a few words."""
    told = run.verdict
    if not told:
        return Verdict("unknown", "no verdict in the log")
    kind = kind_of(told["as_expected"], told["noticed"], told["won"])
    if kind == "not prevented":
        won = f"; won: {told['won']}" if told["won"] else ""
        return Verdict("open", f"not prevented, noticed by {told['noticed']}{won}")
    if told["won"]:
        return Verdict(kind, f"won: {told['won']}")
    who, _, error = told["words"].partition(": ")
    words = f"refused by the {who}: {error}" if who in ENDS and error else told["words"]
    return Verdict("held" if kind == "refused" else "wrong", words)


def pieces(content: bytes, touched: frozenset[int]) -> list[Piece]:
    """Cut bytes where touched ones begin and end."""
    found = []
    for is_touched, group in groupby(range(len(content)), touched.__contains__):
        places = [*group]
        found.append(Piece(content[places[0] : places[-1] + 1].hex(" "), is_touched))
    return found


def field_view(number: int, change: Change) -> FieldView:
    before, after, touched = change
    arrived = pieces(after.content, touched)
    if not touched:
        return FieldView(number, after.name, [("", arrived, after.meaning)])
    sent = pieces(before.content, touched)
    versions = [("sent", sent, before.meaning), ("arrived", arrived, after.meaning)]
    return FieldView(number, after.name, versions)


def message_views(run: Run, wire: Wire) -> list[MessageView]:
    """Return, byte by byte, the messages that the adversary touched or an end refused."""
    views: list[MessageView] = []
    seen: list[Step] = []
    for number, step in shown(run.steps):
        if step and step.arrived and (step.is_touched or step.refused) and step not in seen:
            seen.append(step)  # the same once more teaches nothing
            before = wire.fields(step.sent or step.arrived)
            fields = [
                field_view(place, change)
                for place, change in enumerate(changes(before, wire.fields(step.arrived)))
            ]
            title = wire.title(step.arrived)
            views.append(MessageView(number, title, KINDS[step.kind], step, fields))
    return views


def key_rows(run: Run, wire: Wire) -> tuple[list[str], list[KeyRow]]:
    """Return the labels of the keys, and their names after each message that moved them."""
    labels = [*dict.fromkeys(label for line in run.keys for label in line["keys"])]
    rows: list[KeyRow] = []
    last: dict[str, list[str]] = {}  # names by end
    left = [*run.keys]
    for number, step in shown(run.steps):
        if step is None:
            continue
        told: dict[str, list[str]] = {}
        for line in [line for line in left if is_about(line, step)]:
            if line["by"] not in told:  # else the same message moves keys once more, later
                told[line["by"]] = [line["keys"].get(label, "") for label in labels]
                left.remove(line)
        rows += rows_of_step(number, wire.title(step.sent or step.arrived), told, last)
        last.update(told)
    return labels, rows


def is_about(line: Event, step: Step) -> bool:
    """Return whether an end moved these keys when it sent or got the message of a step."""
    if line["by"] == step.to:
        return step.goes_on and line["message"] == step.arrived
    return step.comes_in and line["message"] == step.sent


def rows_of_step(
    number: int, title: str, told: Mapping[str, list[str]], last: Mapping[str, list[str]]
) -> list[KeyRow]:
    """Return one row if both ends call their keys the same, else one for each end."""
    agree = told.get("client") == told.get("server")
    rows: list[KeyRow] = []
    for end, new in told.items():
        old = last.get(end)
        if new != old:
            names = [(name, name != before) for name, before in zip(new, old or new)]
            rows.append(KeyRow(number, title, end, names, len(told) == 2 and not agree))
    if agree and len(rows) == 2:
        return [rows[0]._replace(who="both ends")]
    return rows


def command_of(run: Run, wire: Wire) -> str:
    """Return what to type to see a run again."""
    command = f"{wire.attacks} {run.again}".strip()
    if run.without:
        command += f" --without {','.join(sorted(run.without))}"
    return f"{command} {run.attack}"


def view_of(run: Run, anchor: str, wire: Wire, claims: Sequence[Claim] = ()) -> RunView:
    labels, keys = key_rows(run, wire)
    return RunView(
        run,
        anchor,
        verdict_of(run),
        command_of(run, wire),
        diagram(run, wire, anchor) if run.steps else "",
        in_words(run, wire),
        message_views(run, wire),
        labels,
        keys,
        [claim.id for claim in claims if run.attack in claim.attacks],
    )


# The tables ---------------------------------------------------------------------------------------


def matrix_rows(
    matrix: Sets, runs: Sequence[RunView], wire: Wire
) -> tuple[list[str], list[MatrixRow]]:
    """Return the rules, and one row per attack: in each cell the minimal sets with that rule."""
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
            if not anchor:
                words += f"; try {wire.attacks} --without {','.join(rules)} {name}"
            marks.append((rules, Mark(letter, words, anchor)))
        note = "" if marks else "no set found"
        if name in matrix.not_prevented:
            note = f"not prevented, noticed by {matrix.not_prevented[name]}"
        cells = [[mark for rules, mark in marks if rule in rules] for rule in order]
        rows.append(MatrixRow(name, anchors.get((name, frozenset()), ""), cells, note))
    return order, rows


def summary(views: Sequence[RunView]) -> dict[str, Counter[str]]:
    """Count the verdicts by family, and separately the runs with rules taken out."""
    counts: dict[str, Counter[str]] = {}
    for view in views:
        of_claim = counts.setdefault(view.run.verdict.get("claim", "?"), Counter())
        kind = view.verdict.kind
        if view.run.without:
            of_claim["runs"] += 1
            of_claim["won"] += kind == "won"
        else:
            of_claim[{"held": "refused", "open": "not prevented"}.get(kind, "other")] += 1
    return counts


# The page -----------------------------------------------------------------------------------------


def page(runs: Sequence[Run], wire: Wire, matrix: Sets | None = None) -> str:
    """Return the page. Raises UserError."""
    told = read_claims(wire.data)
    order = [*dict.fromkeys(run.attack for run in runs)]  # runs of one attack stand together
    runs = sorted(runs, key=lambda run: order.index(run.attack))
    views = [view_of(run, name, wire, told.claims) for run, name in zip(runs, anchors_of(runs))]
    rules, rows = matrix_rows(matrix or read_sets(wire.data / "sets.json"), views, wire)
    return filled(
        TEMPLATE,
        wire=wire,
        views=views,
        summary=summary(views),
        signs=SIGNS,
        kinds=KINDS,
        rules=rules,
        matrix=rows,
        redundant=told.redundant,
        claims=told.claims,
        claims_in=wire.claims.relative_to(ROOT).as_posix(),
        most=MOST_MESSAGES,
        anchors={view.run.attack: view.anchor for view in reversed(views)},
    )


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
        type=output_path,
        default="report.html",
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
    keep_inputs(options.output, options.matrix, *options.events)
    runs = [run for path in options.events for run in read_runs(path)]
    matrix = read_sets(options.matrix) if options.matrix else None
    text = page(runs, wire, matrix)
    write_whole(options.output, text.encode("utf-8", "replace"))
    print(f"wrote {escaped(str(options.output))}: {plural(len(runs), 'run')}")
    return 0


if __name__ == "__main__":
    run_program(main)
