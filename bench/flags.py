"""The flags of the companions' benchmarks: how often to do what, and where the numbers go."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from bench.measure import machine
from program import Parser, output_path, positive, write_text


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
