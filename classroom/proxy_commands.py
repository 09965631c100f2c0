"""The commands of the proxy, typed or in a script: each line is checked before anything is done.

A line is a word, followed by the values that GRAMMAR names; # begins a comment. proxy.py carries
the commands out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from endpoint import OPCODE_NAMES
from program import UserError, read_text

END = "end"
FIELDS = {
    "opcode": "opcode",
    "client_id": "client_id",
    "round": "round_number",
    "direction": "direction",
}
NUMBERS = {**{name: code for code, name in OPCODE_NAMES.items()}, "C2S": 0, "S2C": 1}
HELP = """\
The first message is in hand. Byte 0 is its opcode, -1 its last byte.
  forward, or Enter     deliver the message in hand, as it is now
  drop                  throw it away
  hold                  put it aside
  reflect               send it back where it came from
  flip BYTE[.BIT]       flip a bit in it, 0 (the lowest) to 7
  edit FIELD=VALUE      opcode, client_id, round, direction; names or numbers
  splice NAME N         put message N of a recording in its place
These put a message before it, which then is in hand:
  release N             one that was put aside
  replay N              any message once more, as it came
  inject HEX [client]   bytes of your own to the server, or to the client
  play NAME [client]    all that a recording has for the server or client
The rest:
  undo                  take back the last of these, but not what was forwarded
  record NAME           keep the messages of this connection for play
  show [N], list        a message byte by byte; all messages and their fate
  until OPCODE or end   forward until such a message is in hand
  auto [off]            forward everything that comes
  cut, quit             end the connection without a farewell; leave
  session, score        with --without or --own: another session; the score
With no client connected, what you send goes over a connection of your own."""


class Command(NamedTuple):
    """One line of a person or a script."""

    name: str
    values: tuple[Any, ...] = ()


def header_change(field: str, value: str) -> tuple[str, int]:
    """Return the field of a header and its new value. Raises UserError."""
    number = NUMBERS[value] if value in NUMBERS else int(value)
    if number >= 2 ** (32 if field == "round" else 8):
        raise UserError(f"{field} has no room for {value}")
    return FIELDS[field], number


ALONE: tuple[str, Callable[..., tuple[Any, ...]]] = ("", lambda: ())
NUMBER = (r"(\d{1,9})", lambda number: (int(number),))
GRAMMAR: dict[str, tuple[str, Callable[..., tuple[Any, ...]]]] = {  # for the rest of a line
    "forward": ALONE,
    "drop": ALONE,
    "hold": ALONE,
    "reflect": ALONE,
    "undo": ALONE,
    "list": ALONE,
    "cut": ALONE,
    "quit": ALONE,
    "session": ALONE,
    "score": ALONE,
    "release": NUMBER,
    "replay": NUMBER,
    "flip": (r"(-?\d{1,9})(?:\.([0-7]))?", lambda byte, bit: (int(byte), 1 << int(bit or 0))),
    "edit": (rf"({'|'.join(FIELDS)}) ?= ?(\d{{1,10}}|{'|'.join(NUMBERS)})", header_change),
    "inject": (
        r"((?:[0-9a-fA-F]{2}){1,65535})(?: (client|server))?",
        lambda text, to: (bytes.fromhex(text), to or "server"),
    ),
    "play": (r"(\w+)(?: (client|server))?", lambda name, to: (name, to or "server")),
    "splice": (r"(\w+) (\d{1,9})", lambda name, number: (name, int(number))),
    "record": (r"(\w+)", lambda name: (name,)),
    "show": (r"(\d{1,9})?", lambda number: (int(number or 0),)),
    "until": (rf"({'|'.join([*OPCODE_NAMES.values(), END])})", lambda kind: (kind,)),
    "auto": (r"(off)?", lambda off: (not off,)),
    "help": (r"\w*", lambda: ()),
}


def parse(line: str) -> Command | None:
    """Return the command of a line, None if it has none. Raises UserError."""
    name, _, rest = " ".join(re.sub(r"(^|\s)#.*", "", line).split()).partition(" ")
    if not name:
        return None
    if name not in GRAMMAR:
        raise UserError(f"there is no command {name[:30]!r}; help names them all")
    pattern, convert = GRAMMAR[name]
    match = re.fullmatch(pattern, rest, re.ASCII)
    if not match:
        usage = next(row for row in HELP.splitlines() if re.match(rf"  (.*, )?{name}\b", row))
        raise UserError(f"usage: {re.sub('  +', ': ', usage.strip())}")
    return Command(name, convert(*match.groups()))


def parse_script(path: str) -> list[tuple[str, Command]]:
    """Return the commands of a file with their places, if all are right. Raises UserError."""
    commands: list[tuple[str, Command]] = []
    lines = read_text(Path(path)).splitlines()
    try:
        for number, line in enumerate(lines, 1):
            place = f"{path} line {number}"
            if command := parse(line):
                commands.append((place, command))
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return commands
