"""Explain recorded messages byte by byte; with a key log, also their plaintexts and key steps.

    python -m classroom.explain run.jsonl --keylog keys.log --html run.html
    python -m classroom.explain 003c0a01...

It takes an event log, a capture file, raw bytes of a stream, or hexadecimal text in a file or on
the command line: one message, or one frame after the other. It judges nothing: whether an end
accepts a message depends on its state, which is not in the bytes. Keys are shown by name only,
the first 4 bytes of their SHA-256.

Any protocol whose frames begin with two bytes of length can be read; `explain` is the core's.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import itertools
import re
import struct
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classroom.capture import tell
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
from classroom.output import filled, needed, write_whole
from classroom.wire import LAB
from crypto_utils import NONCE_BYTES, evolve_key, fingerprint
from lab.events import parse_events, runs_of
from program import Parser, UserError, output_path, reason_of, run_program
from protocol_fsm import HEADER, Direction, Header, Opcode

TEMPLATE = "explain.html.j2"
WIDTH = 79  # columns
ROW = 8  # bytes
MOST_ROWS = 16  # of a part
COLUMN = 33  # where the name of a part begins


class Part(NamedTuple):
    """Some bytes of a message: their place, their name and their meaning."""

    at: int
    data: bytes
    name: str
    meaning: str


class Explained(NamedTuple):
    """All that can be said of one message. `inside` is its plaintext, if its keys are known."""

    title: str
    parts: list[Part]
    inside: list[Part]
    steps: list[str]


class Recorded(NamedTuple):
    """A message as it was found, and where."""

    where: str
    message: bytes


# The core protocol --------------------------------------------------------------------------------


NO_KEY = (
    "No key in the log gives this tag: the message was changed on its way, or nobody wrote "
    "its keys down [P 3.6, step 5]"
)


def explain(message: bytes, log: KeyLog) -> Explained:
    """Take one message apart; without its keys there is no plaintext and no step."""
    title = describe_message(message)[0]
    if not has_legal_length(message):
        meaning = "no message has this length, and a receiver reads no further [P 3.1]"
        return Explained(title, [Part(0, message, "bytes", meaning)], [], [])
    header = Header(*HEADER.unpack_from(message))
    for pair in reversed(log.get((header.direction, header.client_id), [])):
        plaintext = open_with([pair], message)
        if plaintext is not None:
            steps = key_steps(log, header, plaintext, pair)
            return Explained(title, outside(message), inside(header, plaintext), steps)
    return Explained(title, outside(message), [], [NO_KEY] if log else [])


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
    """Say which keys this message moves, from what to what, and by which formula [P 3.4]."""
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
    way: str,
    move: Move,
    mac_input: bytes,
    olds: Sequence[PairOfKeys],
    known: Sequence[PairOfKeys],
) -> list[str]:
    """Say how the pair of keys of one direction moves.

    A log has half of an encryption chain value, which is not enough to go on from: the next
    encryption key is the one that the log has beside the next MAC key.
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


# What there is to explain -------------------------------------------------------------------------


def recorded(source: str) -> list[Recorded]:
    """Return the messages in a file or in hexadecimal text. Raises UserError."""
    path = Path(source)
    data = b""
    try:
        if path.exists():
            data = path.read_bytes()
    except (OSError, ValueError) as error:  # a name may be too long, or have a NUL in it
        if not is_hex(source):
            raise UserError(f"cannot read {source[:60]}: {reason_of(error)}") from None
    if not data and not is_hex(source):
        raise UserError(f"{source[:60]} is neither a file with something in it nor hexadecimal")
    found = messages_in(path, data or source.encode("ascii"))
    if not found:
        raise UserError(f"there is no message in {path}")
    return found


def is_hex(text: str) -> bool:
    return re.fullmatch(r"\s*([0-9a-fA-F]{2}[\s:]*)+", text) is not None


def messages_in(path: Path, data: bytes) -> list[Recorded]:
    """Return the messages in a file, whose kind its first bytes show. Raises UserError."""
    text = data.decode("ascii", errors="replace")
    if data[:4] in PCAP or data[:4] == PCAPNG:
        return captured(path, data)
    if text.lstrip().startswith("{"):
        return logged(text, str(path))
    stream = data
    if is_hex(text):
        stream = bytes.fromhex(re.sub(r"[\s:]", "", text))
    elif all(letter.isprintable() or letter.isspace() for letter in text):
        raise UserError(f"{path} is text, but neither hexadecimal nor an event log")
    if has_legal_length(stream) and not is_frames(stream):
        return [Recorded("a message without its length", stream)]
    return [Recorded(cut.words, cut.message) for cut in frames_in(stream)]


def logged(text: str, name: str) -> list[Recorded]:
    """Return the messages of an event log, with what was done to them. Raises UserError."""
    found: list[Recorded] = []
    for run in runs_of(parse_events(text, name)[0]):
        for number, told in enumerate(tell(run, LAB), 1):
            deed = told.words.partition(". ")[2]  # of the message itself more is said below
            found.append(Recorded(f"{run.attack} {number}. {deed}", told.message))
    return found


class Cut(NamedTuple):
    """A message cut out of a stream, and where it ends there."""

    message: bytes
    end: int
    words: str


def frames_in(stream: bytes) -> list[Cut]:
    """Cut a stream into messages; from what is no whole frame to the end is one piece."""
    found: list[Cut] = []
    at = 0
    while at < len(stream):
        length = int.from_bytes(stream[at : at + 2], "big")
        message = stream[at + 2 : at + 2 + length]
        end = at + 2 + length
        words = f"byte {at} and on: {stream[at : at + 2].hex(' ')}, length {length} [P 3.1]"
        if len(message) < length or not has_legal_length(message):
            message = stream[at:]
            end = len(stream)
            words = f"byte {at} and on: no whole frame"
        found.append(Cut(message, end, words))
        at = end
    return found


def is_frames(stream: bytes) -> bool:
    """Return whether the first two bytes are the length of a whole frame."""
    return has_legal_length(stream[2 : 2 + int.from_bytes(stream[:2], "big")])


# Captures -----------------------------------------------------------------------------------------

PCAPNG = b"\x0a\x0d\x0d\x0a"
PCAP = {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"}
ETHERNET = 1
COOKED = 113
SKIPPED = {0: 4, 108: 4}  # link types; others begin with IP
Flow = tuple[bytes, int, bytes, int]  # address and port of the sender, then of the receiver


class Segment(NamedTuple):
    """What a TCP packet carries, and which packet of the file it is."""

    number: int
    sequence: int
    data: bytes


def captured(path: Path, data: bytes) -> list[Recorded]:
    """Return all messages of a capture, in the order in which they were whole. Raises UserError.

    A TCP stream that does not begin with a frame counts only on the lab's own port.
    """
    found: list[tuple[int, Recorded]] = []
    for (source, sport, destination, dport), segments in flows_in(path, data).items():
        stream, ends = in_order(segments)
        if not stream or not (is_frames(stream) or LAB.port in (sport, dport)):
            continue
        for cut in frames_in(stream):
            number = next(number for end, number in ends if end >= cut.end)
            where = (
                f"packet {number}, {ipaddress.ip_address(source)}:{sport} to "
                f"{ipaddress.ip_address(destination)}:{dport}, {cut.words}"
            )
            found.append((number, Recorded(where, cut.message)))
    return [message for _, message in sorted(found, key=lambda pair: pair[0])]


def flows_in(path: Path, data: bytes) -> dict[Flow, list[Segment]]:
    """Return the segments that each end of each connection has sent. Raises UserError."""
    dpkt = needed("dpkt")
    flows: dict[Flow, list[Segment]] = {}
    try:
        kind = dpkt.pcapng if data[:4] == PCAPNG else dpkt.pcap
        reader = kind.Reader(io.BytesIO(data))
        for number, (_, packet) in enumerate(reader, 1):
            ip = ip_packet(dpkt, reader.datalink(), packet)
            if isinstance(getattr(ip, "data", None), dpkt.tcp.TCP):
                segment = Segment(number, ip.data.seq, bytes(ip.data.data))
                flows.setdefault((ip.src, ip.data.sport, ip.dst, ip.data.dport), []).append(segment)
    except (dpkt.Error, ValueError, IndexError, struct.error):
        raise UserError(f"{path} is no whole capture file") from None
    return flows


def ip_packet(dpkt: Any, link_type: int, packet: bytes) -> Any:
    """Return the IP packet in a packet of an interface; None if there is none."""
    with contextlib.suppress(dpkt.Error, IndexError):
        if link_type == ETHERNET:
            return dpkt.ethernet.Ethernet(packet).data
        if link_type == COOKED:
            return dpkt.sll.SLL(packet).data
        bare = packet[SKIPPED.get(link_type, 0) :]
        if bare[0] >> 4 == 6:
            return dpkt.ip6.IP6(bare)
        return dpkt.ip.IP(bare)
    return None


def in_order(segments: Sequence[Segment]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the bytes of one direction up to the first that is missing, and when they came.

    When is a list of places in the stream, each with the packet by which all bytes before it had
    arrived. Bytes that came twice count once.
    """
    first = segments[0].sequence
    with_data = sorted(
        (segment for segment in segments if segment.data),
        key=lambda segment: (segment.sequence - first + 2**31) % 2**32,
    )
    stream = bytearray()
    ends: list[tuple[int, int]] = []
    latest = 0
    for number, sequence, data in with_data:
        place = (sequence - with_data[0].sequence) % 2**32
        if place > len(stream):
            break
        if place + len(data) > len(stream):
            stream += data[len(stream) - place :]
            latest = max(latest, number)
            ends.append((len(stream), latest))
    return bytes(stream), ends


# Showing it ---------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """One message, ready to be shown."""

    number: int
    where: str
    explained: Explained


def as_text(shown: Shown) -> str:
    """Return lines of at most 79 columns, in ASCII."""
    explained = shown.explained
    lines = wrapped(f"{shown.number}. {shown.where}", WIDTH, subsequent_indent="   ")
    lines.append(f"   {explained.title}")
    for part in explained.parts:
        lines += rows(part)
    if explained.inside:
        lines.append("   plaintext")
    for part in explained.inside:
        lines += rows(part)
    for step in explained.steps:
        lines += wrapped(step, WIDTH, initial_indent="   - ", subsequent_indent="     ")
    return "\n".join(lines)


def wrapped(text: str, width: int, **options: Any) -> list[str]:
    """Break lines, but neither inside [P 3.2] nor at the minus of a number."""
    lines = textwrap.wrap(text.replace("[P ", "[P\0"), width, break_on_hyphens=False, **options)
    return [line.replace("\0", " ") for line in lines]


def rows(part: Part) -> list[str]:
    """Put bytes, name and meaning of a part side by side."""
    starts = range(0, len(part.data), ROW)
    left = [f"{part.at + at:>6}  {part.data[at : at + ROW].hex(' ')}" for at in starts[:MOST_ROWS]]
    if len(starts) > MOST_ROWS:
        left.append(f"{len(part.data) - MOST_ROWS * ROW:>6}  bytes more")
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
    parser.add_argument("--keylog", metavar="FILE", help="show plaintexts and key steps as well")
    parser.add_argument(
        "--html", type=output_path, metavar="OUT", help="write a page instead of text"
    )
    options = parser.options()
    log: KeyLog = {}
    if options.keylog is not None:
        if not Path(options.keylog).exists():
            raise UserError(f"there is no key log {options.keylog}")
        log = read_keylog(Path(options.keylog))
    shown = [
        Shown(number, where, explain(message, log))
        for number, (where, message) in enumerate(recorded(options.source), 1)
    ]
    if options.html is not None:
        page = filled(TEMPLATE, shown=shown, title=Path(options.source).name[:60])
        write_whole(options.html, page.encode("ascii", "xmlcharrefreplace"))
    else:
        print("\n\n".join(map(as_text, shown)))
    return 0


if __name__ == "__main__":
    run_program(main)
