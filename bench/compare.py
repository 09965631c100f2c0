"""What the benchmarks of the companions share: flags, rivals in turns, one table, one file.

Each says what a rival does in one slice, and what one thing is: a message, a text, a MB. Numbers
are of one thing; a ratio compares two slices of the same turn (measure.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.measure import Seen, Spread, bars, by_rival, machine, ratio, turns
from program import Parser, output_path, positive, write_text


class Took(NamedTuple):
    """What one thing took, in seconds: on the clock, and of the processors of both ends."""

    wall_s: float
    processor_s: Mapping[str, float]  # by end
    note: str = ""  # what protects it, in the channel's own words


def counts(description: str, flags: Mapping[str, tuple[int, str]]) -> argparse.Namespace:
    """Return the options: numbers by flag, each with a default and its meaning, and --json."""
    parser = Parser(description)
    for flag, (default, meaning) in flags.items():
        words = f"{meaning}; default {default}"
        parser.add_argument(flag, type=positive, default=default, metavar="N", help=words)
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write all numbers there")
    return parser.options()


def write_numbers(options: argparse.Namespace, found: Mapping[str, object]) -> None:
    """Write what was found where --json says, if it does. Raises UserError."""
    if options.json:
        write_text(options.json, json.dumps({**machine(), **found}, indent=1) + "\n")


def told_turns(
    names: Mapping[str, str], count: int, run: Callable[[str], Seen], words: Callable[[Seen], str]
) -> dict[str, list[Seen]]:
    """Return what each rival showed, in the order of turns, and tell of it meanwhile on stderr."""

    def run_one(rival: str) -> Seen:
        seen = run(rival)
        print(f"{names[rival]}: {words(seen)}", file=sys.stderr, flush=True)
        return seen

    return by_rival(turns([*names], count, run_one))


def compare(
    title: str, unit: str, names: Mapping[str, str], turn_count: int, run: Callable[[str], Took]
) -> dict[str, object]:
    """Measure all rivals, print the table, and return the numbers for a file. Raises Failed."""
    seen = told_turns(names, turn_count, run, lambda took: f"{1 / took.wall_s:,.0f} {unit}/s")
    print(table(title, unit, {names[rival]: slices for rival, slices in seen.items()}))
    return {
        "slices": {rival: [each._asdict() for each in slices] for rival, slices in seen.items()},
        "ours_of": {rival: of(seen["ours"], slices) for rival, slices in seen.items()},
    }


def of(ours: Sequence[Took], theirs: Sequence[Took]) -> Spread:
    """Return what share of their speed is ours."""
    return ratio([each.wall_s for each in theirs], [each.wall_s for each in ours])


def table(title: str, unit: str, seen: Mapping[str, Sequence[Took]]) -> str:
    """Return the table and the bars by names, in ASCII of at most 79 columns."""
    ends = [*seen["ours"][0].processor_s]
    notes = [f"{name}: {slices[0].note}" for name, slices in seen.items() if slices[0].note]
    lines = [
        title,
        "-" * len(title),
        *notes,
        f"{unit + '/s':>26}   us each        processor us   ours, of its speed",
        f"{'':38}{ends[0]:>9} {ends[1]:>9}    median (quartiles)",
    ]
    rates = {name: 1 / median(each.wall_s for each in slices) for name, slices in seen.items()}
    for name, slices in seen.items():
        costs = [1e6 * median(each.processor_s[end] for each in slices) for end in ends]
        share = "" if name == "ours" else of(seen["ours"], slices)
        line = f"{name:17}{rates[name]:9,.0f}{1e6 / rates[name]:10,.1f}  "
        line += f"{costs[0]:9,.1f} {costs[1]:9,.1f}    {share}"
        lines.append(line.rstrip())
    return "\n".join([*lines, "", *bars(rates, 17), ""])
