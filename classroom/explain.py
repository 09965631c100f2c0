"""Explain recorded messages byte by byte; with a key log, also their plaintexts and key steps.

    python -m classroom.explain run.jsonl --keylog keys.log --html run.html
    python -m classroom.explain 003c0a01...

It takes an event log, a capture file, raw bytes of a stream, or hexadecimal text in a file or on
the command line: one message, or one frame after the other. Each message is shown once; bytes that
the adversary changed have a * before them, and .. stands for bytes that a capture does not have. It
judges nothing: whether an end accepts a message depends on its state, which is not in the bytes.
Keys are shown by name only, the first 4 bytes of their SHA-256.

Any protocol whose frames begin with two bytes of length can be read; `explain` is the core's.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classroom.keylog import (
    STATUS_NAMES,
    KeyLog,
    PairOfKeys,
    describe_message,
    has_legal_length,
    open_with,
    plaintext_fields,
    printable,
    read_keylog,
)
from classroom.output import filled, write_whole
from classroom.recordings import ILLEGAL, Recorded, recorded
from classroom.wire import LAB
from crypto_utils import NONCE_BYTES, evolve_key, fingerprint
from program import (
    Parser,
    UserError,
    escaped,
    keep_inputs,
    output_path,
    plural,
    run_program,
    to_stderr,
)
from protocol_fsm import HEADER, Direction, Header, Opcode

TEMPLATE = "explain.html.j2"
WIDTH = 79  # columns
ROW = 8  # bytes
MOST_ROWS = 16  # of a part
MOST_CELLS = 65_536  # of a part, on a page
COLUMN = 33  # where the name of a part begins


class Part(NamedTuple):
    """Some bytes of a message: their place, their name and their meaning."""

    at: int
    data: bytes
    name: str
    meaning: str


class Explained(NamedTuple):
    """All that can be said about a message. `inside` is its plaintext, if its keys are known."""

    title: str
    parts: list[Part]
    inside: list[Part]
    steps: list[str]


# The core protocol --------------------------------------------------------------------------------


NO_KEY = (
    "No key in the log gives this tag: the message was changed on its way, or its "
    "keys were not logged [P 3.6, step 5]"
)


def explain(message: bytes, log: KeyLog) -> Explained:
    """Take one message apart; without its keys there is no plaintext and no step."""
    title = describe_message(message)[0]
    if not has_legal_length(message):
        return Explained(title, [Part(0, message, "bytes", ILLEGAL)], [], [])
    header = Header(*HEADER.unpack_from(message))
    for pair in reversed(log.get((header.direction, header.client_id), [])):
        plaintext = open_with([pair], message)
        if plaintext is not None:
            steps = key_steps(log, header, plaintext, pair)
            return Explained(title, outside(message), inside(header, plaintext), steps)
    return Explained(title, outside(message), [], [NO_KEY] if log else [])


def explain_recorded(found: Recorded, log: KeyLog) -> Explained:
    """Take apart what was recorded, whole or not; without all of its bytes no message is opened."""
    if found.nonsense:
        part = Part(0, found.message, "bytes", found.nonsense)
        return Explained(plural(len(found.message), "byte"), [part], [], [])
    if not found.missing:
        return explain(found.message, log)
    size = len(found.message)
    title = f"{size - len(found.missing)} of the {plural(size, 'byte')} of a message"
    if found.missing.isdisjoint(range(HEADER.size)):
        title = f"{describe_message(found.message)[0]}, {len(found.missing)} of them missing"
    parts = []
    for part in outside(found.message):
        lost = len(found.missing.intersection(range(part.at, part.at + len(part.data))))
        meaning = (
            f"{lost} of {plural(len(part.data), 'byte')} missing here" if lost else part.meaning
        )
        parts.append(part._replace(meaning=meaning))
    return Explained(title, parts, [], [])


IN_WORDS = {  # by the meaning that wire.py gives, or by the name
    "0: C2S": "0: C2S, client to server",
    "1: S2C": "1: S2C, server to client",
    "IV": "random, new for every message",
    "tag": "HMAC-SHA256 over every byte before it",
    "ciphertext": "{} bytes: AES-128-CBC of the padded plaintext",
    "nonce": "random; it moves C2S-MAC of the next round",
    "client nonce": "random, of the client; it binds the session",
    "server nonce": "random, of the server; it binds the session",
}


def outside(message: bytes) -> list[Part]:
    """Take apart what anybody on the wire sees [P 3.2]."""
    fields = []
    for name, content, meaning in LAB.fields(message):
        words = IN_WORDS.get(meaning or name, meaning).format(len(content))
        fields.append((name, content, f"{words} [P 3.2]"))
    return placed(fields)


def inside(header: Header, plaintext: bytes) -> list[Part]:
    """Take apart a plaintext without its padding, whatever it holds [P 3.3]."""
    fields = plaintext_fields(header, plaintext)
    return placed((name, data, f"{meaning_of(name, data)} [P 3.3]") for name, data in fields)


def placed(fields: Iterable[tuple[str, bytes, str]]) -> list[Part]:
    """Give each field its place, one after the other."""
    parts: list[Part] = []
    at = 0
    for name, content, meaning in fields:
        parts.append(Part(at, content, name, meaning))
        at += len(content)
    return parts


def meaning_of(name: str, content: bytes) -> str:
    if name == "status":
        return f"{content[0]}: {STATUS_NAMES.get(content[0], 'unknown')}"
    if name == "version":
        return str(content[0])
    if name == "body":
        return printable(content)
    return IN_WORDS[name]


class Move(NamedTuple):
    """What a message mixes into the keys of one or both directions."""

    ways: tuple[str, ...]
    mac_input: slice  # of the plaintext
    mac_words: str
    enc_words: str


NONCES = "client nonce || server nonce"
MOVES: Mapping[int, Move] = {  # [P 3.4]
    Opcode.SERVER_CHALLENGE: Move(("C2S", "S2C"), slice(1, None), NONCES, NONCES),
    Opcode.CLIENT_DATA: Move(("C2S",), slice(NONCE_BYTES), "nonce", "ciphertext"),
    Opcode.SERVER_AGGR_RESPONSE: Move(("S2C",), slice(1), "status", "body"),
}


def key_steps(log: KeyLog, header: Header, plaintext: bytes, pair: PairOfKeys) -> list[str]:
    """Return which keys this message moves, from what to what, and by which formula [P 3.4]."""
    sender = Direction(header.direction).name
    lines = [
        f"opened with the encryption key {fingerprint(pair.encryption)} and the MAC key "
        f"{fingerprint(pair.mac)} of {sender}"
    ]
    if header.opcode not in MOVES:
        return [*lines, "it moves no key [P 3.4]"]
    move = MOVES[header.opcode]
    for way in move.ways:
        known = log.get((Direction[way], header.client_id), [])
        olds = [pair] if way == sender else known
        lines += steps_of(way, move, plaintext[move.mac_input], olds, known)
    return lines


def steps_of(
    way: str, move: Move, mac_input: bytes, olds: Sequence[PairOfKeys], known: Sequence[PairOfKeys]
) -> list[str]:
    """Return how the pair of keys of one direction moves.

    A log has only half of an encryption chain value, from which the next one cannot be computed:
    the next encryption key is the one that the log has beside the next MAC key.
    """
    by_mac = {pair.mac: pair for pair in known}
    for old in reversed(olds):
        new = by_mac.get(evolve_key(old.mac, mac_input))
        if new:
            return [
                f"{way}-ENC' = SHA-256({way}-ENC || {move.enc_words}): "
                f"{fingerprint(old.encryption)} -> {fingerprint(new.encryption)} [P 3.4]",
                f"{way}-MAC' = SHA-256({way}-MAC || {move.mac_words}): "
                f"{fingerprint(old.mac)} -> {fingerprint(new.mac)} [P 3.4]",
            ]
    return [f"{way} moves, but the log does not have what comes next"]


# Showing it ---------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """One message, ready to be shown.

    `same_as` is the number of one with the same bytes, `made_from` of one that was changed to this.
    """

    number: int
    found: Recorded
    explained: Explained
    same_as: int = 0
    made_from: int = 0

    def cells(self, part: Part, most: int = MOST_CELLS) -> list[Cell]:
        """Return the first bytes of a part of the outside, which may be long if no message."""
        places = range(part.at, part.at + len(part.data))[:most]
        return [
            Cell(
                ".." if place in self.found.missing else f"{byte:02x}", place in self.found.touched
            )
            for place, byte in zip(places, part.data)
        ]


class Cell(NamedTuple):
    """One byte in hexadecimal."""

    text: str
    is_touched: bool = False


def all_shown(found: Sequence[Recorded], log: KeyLog) -> list[Shown]:
    """Explain each message the first time that it comes."""
    first: dict[Recorded, int] = {}
    shown = []
    for number, one in enumerate(found, 1):
        same_as = first.setdefault(one._replace(where=""), number)
        explained = explain_recorded(one, log)
        made_from = first.get(Recorded("", one.before), 0) if one.before else 0
        shown.append(Shown(number, one, explained, 0 if same_as == number else same_as, made_from))
    return shown


def as_text(shown: Shown) -> str:
    """Return lines of at most 79 columns."""
    explained = shown.explained
    lines = wrapped(f"{shown.number}. {shown.found.where}", WIDTH, subsequent_indent="   ")
    lines.append(f"   {explained.title}")
    if shown.same_as:
        return "\n".join([*lines, f"   the same bytes as {shown.same_as}."])
    for part in explained.parts:
        places = range(part.at, part.at + len(part.data))
        if not shown.made_from or not shown.found.touched.isdisjoint(places):
            lines += rows(part, shown.cells(part, MOST_ROWS * ROW))
    if shown.made_from:
        lines.append(f"   all other bytes are those of {shown.made_from}.")
    if explained.inside:
        lines.append("   plaintext")
    for part in explained.inside:
        lines += rows(part, [Cell(f"{byte:02x}") for byte in part.data])
    for step in explained.steps:
        lines += wrapped(step, WIDTH, initial_indent="   - ", subsequent_indent="     ")
    return "\n".join(lines)


def wrapped(text: str, width: int, **options: Any) -> list[str]:
    """Break lines, but neither inside [P 3.2] nor at the minus of a number."""
    lines = textwrap.wrap(text.replace("[P ", "[P\0"), width, break_on_hyphens=False, **options)
    return [line.replace("\0", " ") for line in lines]


def rows(part: Part, cells: Sequence[Cell]) -> list[str]:
    """Put bytes, name and meaning of a part side by side."""
    words = [f"{'*' if cell.is_touched else ' '}{cell.text}" for cell in cells[: MOST_ROWS * ROW]]
    starts = range(0, len(words), ROW)
    left = [f"{part.at + at:>6} {''.join(words[at : at + ROW])}" for at in starts]
    if len(part.data) > len(words):
        left.append(f"{len(part.data) - len(words):>6,}  more")
    right = wrapped(part.meaning, WIDTH - COLUMN - 14, max_lines=MOST_ROWS, placeholder=" ...")
    lines = itertools.zip_longest(left, right, fillvalue="")
    return [
        f"{bytes_:<{COLUMN}}{part.name if at == 0 else '':<14}{words}".rstrip()
        for at, (bytes_, words) in enumerate(lines)
    ]


def main() -> int:
    parser = Parser("Explains recorded messages byte by byte.")
    parser.add_argument(
        "source", metavar="FILE|HEX", help="event log, capture, bytes, or hexadecimal text"
    )
    parser.add_argument("--attack", metavar="NAME", help="only this attack of an event log")
    parser.add_argument("--keylog", metavar="FILE", help="show plaintexts and key steps as well")
    parser.add_argument(
        "--html", type=output_path, metavar="OUT", help="write a page instead of text"
    )
    options = parser.options()
    keep_inputs(options.html, options.source, options.keylog)
    log: KeyLog = {}
    if options.keylog is not None:
        path = Path(options.keylog)
        log = read_keylog(path)
        if not log and not path.exists():
            raise UserError(f"there is no key log {path}")
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        to_stderr(note)

    shown = all_shown(recorded(options.source, options.attack, say), log)
    if options.html is not None:
        title = escaped(Path(options.source).name[:60])
        page = filled(TEMPLATE, shown=shown, notes=notes, title=title)
        write_whole(options.html, page.encode("ascii", "xmlcharrefreplace"))
    else:
        print("\n\n".join(map(as_text, shown)))
    return 0


if __name__ == "__main__":
    run_program(main)
