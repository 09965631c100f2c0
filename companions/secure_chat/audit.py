"""Shows the audit log, by user, event and time, as a table or as JSON.

    python -m companions.secure_chat.audit --event login_failure --since 2023-11-15
    python -m companions.secure_chat.audit --user alice@example.org --json

Times are in UTC, in flags and in output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from companions.secure_chat.options import load_settings
from companions.secure_chat.storage import Database, StorageFailed
from program import Parser, UserError, flag_type, run_program

TIME = "%Y-%m-%dT%H:%M:%SZ"
COLUMNS = ("occurred_at", "event_type", "email", "ip_address", "client_cert_fingerprint", "reason")
SHOWN_OF_FINGERPRINT = 16  # characters, in the table; JSON has all 64


@flag_type("a time in UTC like 2023-11-15 or 2023-11-15T14:30:22Z")
def moment(text: str) -> datetime:
    """Return a time without a zone, as the database has it."""
    given = datetime.fromisoformat(text.removesuffix("Z"))
    if given.tzinfo:
        raise ValueError(text)
    return given


def as_json(events: list[dict[str, Any]]) -> str:
    """Return a line of JSON for each event, with every column."""
    lines = ({**one, "occurred_at": one["occurred_at"].strftime(TIME)} for one in events)
    return "\n".join(json.dumps(line) for line in lines)


def as_table(events: list[dict[str, Any]]) -> str:
    """Return a line of text for each event, below the names of the columns."""
    rows = [COLUMNS, *map(cells, events)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def cells(event: dict[str, Any]) -> tuple[str, ...]:
    shown = {**event, "occurred_at": event["occurred_at"].strftime(TIME)}
    fingerprint = shown["client_cert_fingerprint"] or ""
    shown["client_cert_fingerprint"] = fingerprint[:SHOWN_OF_FINGERPRINT]
    return tuple(shown[name] or "-" for name in COLUMNS)


def parsed() -> argparse.Namespace:
    parser = Parser("Shows the audit log, the oldest event first.")
    parser.add_argument("--user", metavar="EMAIL", help="as it was given at the login")
    parser.add_argument("--event", metavar="TYPE", help="login_failure, cert_invalid, ...")
    parser.add_argument("--since", type=moment, metavar="TIME", help="this time, or later")
    parser.add_argument("--until", type=moment, metavar="TIME", help="before this time")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each event")
    parser.add_argument("--env", type=Path, metavar="FILE", help="default: .env, if there is one")
    return parser.options()


def main() -> int:
    options = parsed()
    url = load_settings(options.env).database_url.get_secret_value()
    with contextlib.closing(Database(url, is_read_only=True)) as database:
        try:
            events = database.events(options.event, options.user, options.since, options.until)
        except StorageFailed as error:
            raise UserError(f"the audit log cannot be read: {error.got}") from None
    text = as_json(events) if options.json else as_table(events)
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    run_program(main)
