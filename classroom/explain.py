"""Explain recorded messages byte by byte, and with a key log also what is inside and what it moves.

    python -m classroom.explain run.jsonl --keylog keys.log --html run.html
    python -m classroom.explain 003c0a01...

It takes an event log, a capture file, raw bytes of a stream, or hexadecimal text in a file or on
the command line: one message, or frames one after the other. It looks and computes, and judges
nothing: whether an end accepts a message depends on its state, which is not in the bytes. Of keys
it shows names only, the first 4 bytes of their SHA-256.

Reading is for any protocol whose frames begin with two bytes of length; `explain` is the core's.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import itertools
import re
import struct
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classroom.capture import tell
from classroom.events import parse_events, runs_of
from classroom.keylog import (
    KeyLog,
    PairOfKeys,
    describe_message,
    has_legal_length,
    open_with,
    read_keylog,
)
from classroom.output import filled, needed, write_whole
from classroom.wire import LAB
from crypto_utils import NONCE_BYTES, evolve_key, fingerprint
from program import Parser, UserError, reason_of, run_program
from protocol_fsm import ENDING, HEADER, Direction, Header, Opcode, Status

TEMPLATE = "explain.html.j2"
WIDTH = 79
ROW = 8
MOST_ROWS = 16
COLUMN = 33  # columns; bytes and rows of a part; its name


class Part(NamedTuple):
    """Some bytes of a message: where they are, what they are called, what they mean."""

    at: int
    data: bytes
    name: str
    meaning: str


NONCES = "client nonce || server nonce"


class Explained(NamedTuple):
    """All that can be said of one message. `inside` is its plaintext, if there are keys for it."""

    title: str
    parts: list[Part]
    inside: list[Part]
    steps: list[str]


Explain = Callable[[bytes, KeyLog], Explained]


class Recorded(NamedTuple):
    """A message as it was found, and where."""

    where: str
    message: bytes


# The core protocol --------------------------------------------------------------------------------


def explain(message: bytes, log: KeyLog) -> Explained:
    """Take one message apart; without its keys there is no plaintext and no step."""
    title = describe_message(message)[0]
    if not has_legal_length(message):
        return Explained(
            title,
            [
                Part(
                    0,
                    message,
                    "bytes",
                    "no message has this length, and a receiver reads no further [P 3.1]",
                )
            ],
            [],
            [],
        )
    header = Header(*HEADER.unpack_from(message))
    pairs = log.get((header.direction, header.client_id), [])
    for pair in reversed(pairs):
        if (plaintext := open_with([pair], message)) is not None:
            return Explained(
                title,
                outside(message),
                inside(header, plaintext),
                key_steps(log, header, message, plaintext, pair),
            )
    says = (
        [
            "No key in the log gives this tag: the message was changed on its way, or nobody wrote "
            "its keys down [P 3.6, step 5]"
        ]
        if log
        else []
    )
    return Explained(title, outside(message), [], says)


SAYS = {  # of a field, by its name or by what wire.py says of it
    "0: C2S": "client to server",
    "1: S2C": "server to client",
    "IV": "random, new for every message",
    "tag": "HMAC-SHA256 over every byte before it",
    "ciphertext": "{} bytes: AES-128-CBC of the padded plaintext",
}


def outside(message: bytes) -> list[Part]:
    """Take apart what anybody on the wire sees [P 3.2]."""
    return placed(
        (
            name,
            data,
            ", ".join(filter(None, (meaning, SAYS.get(meaning or name, "").format(len(data)))))
            + " [P 3.2]",
        )
        for name, data, meaning in LAB.fields(message)
    )


def placed(fields: Iterable[tuple[str, bytes, str]]) -> list[Part]:
    """Tell of fields, one after the other, where each begins."""
    parts: list[Part] = []
    at = 0
    for name, data, meaning in fields:
        parts.append(Part(at, data, name, meaning))
        at += len(data)
    return parts


def inside(header: Header, plaintext: bytes) -> list[Part]:
    """Take a plaintext apart, whatever it holds [P 3.3]; the padding is gone already."""
    fields = [("status", 1)] if header.direction == Direction.S2C else [("nonce", NONCE_BYTES)]
    if header.opcode == Opcode.CLIENT_HELLO:
        fields = [("client nonce", NONCE_BYTES), ("version", 1)]
    elif header.opcode == Opcode.SERVER_CHALLENGE:
        fields += [("client nonce", NONCE_BYTES), ("server nonce", NONCE_BYTES)]
    elif header.opcode in ENDING and header.direction == Direction.C2S:
        fields += [("status", 1)]
    rest = io.BytesIO(plaintext)
    found = ((name, rest.read(length)) for name, length in [*fields, ("body", len(plaintext))])
    return placed((name, data, meaning_of(name, data)) for name, data in found if data)


def meaning_of(name: str, data: bytes) -> str:
    if name == "status":
        known = {entry.value: entry.name for entry in Status}
        return f"{data[0]}: {known.get(data[0], 'unknown')} [P 3.3]"
    if name == "version":
        return f"{data[0]} [P 3.3]"
    if name == "body":
        return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data) + " [P 3.3]"
    return {
        "nonce": "random; it moves C2S-MAC of the next round [P 3.3]",
        "client nonce": "random, of the client; it binds the session [P 3.3]",
        "server nonce": "random, of the server; it binds the session [P 3.3]",
    }[name]


def key_steps(
    log: KeyLog, header: Header, message: bytes, plaintext: bytes, pair: PairOfKeys
) -> list[str]:
    """Say which keys this message moves, from what to what, and by which formula [P 3.4].

    A log has half of an encryption chain value, from which nobody can go on: the next key is the
    one that the log has beside the next MAC key.
    """
    way = Direction(header.direction).name
    lines = [
        f"opened with the encryption key {fingerprint(pair.encryption)} and the MAC key "
        f"{fingerprint(pair.mac)} of {way}"
    ]
    moving: Mapping[int, tuple[bytes, str, str, tuple[str, ...]]] = {
        Opcode.SERVER_CHALLENGE: (plaintext[1:], NONCES, NONCES, ("C2S", "S2C")),
        Opcode.CLIENT_DATA: (plaintext[:NONCE_BYTES], "ciphertext", "nonce", ("C2S",)),
        Opcode.SERVER_AGGR_RESPONSE: (plaintext[:1], "body", "status", ("S2C",)),
    }
    into_mac, enc_words, mac_words, ways = moving.get(header.opcode, (b"", "", "", ()))
    for moved in ways:
        known = log.get((Direction[moved], header.client_id), [])
        by_mac = {new.mac: new for new in known}
        moves = [
            (old, by_mac[mac])
            for old in ([pair] if moved == way else known)
            if (mac := evolve_key(old.mac, into_mac)) in by_mac
        ]
        if not moves:
            lines.append(f"{moved} moves, but the log does not have what comes next")
        for old, new in moves[-1:]:
            lines += [
                f"{moved}-ENC' = SHA-256({moved}-ENC || {enc_words}): "
                f"{fingerprint(old.encryption)} -> {fingerprint(new.encryption)} [P 3.4]",
                f"{moved}-MAC' = SHA-256({moved}-MAC || {mac_words}): "
                f"{fingerprint(old.mac)} -> {fingerprint(new.mac)} [P 3.4]",
            ]
    return lines if ways else [*lines, "it moves no key [P 3.4]"]


# What there is to explain -------------------------------------------------------------------------


def recorded(source: str) -> list[Recorded]:
    """Return the messages in a file or in hexadecimal text. Raises UserError."""
    path = Path(source)
    try:
        data = path.read_bytes() if path.exists() else b""
    except (OSError, ValueError) as error:  # a name may be too long, or have a NUL in it
        if not is_hex(source):
            raise UserError(f"cannot read {source[:60]}: {reason_of(error)}") from None
        data = b""
    if not data and not is_hex(source):
        raise UserError(f"{source[:60]} is neither a file with something in it nor hexadecimal")
    if found := messages_in(path, data or source.encode("ascii")):
        return found
    raise UserError(f"there is no message in {path}")


def is_hex(text: str) -> bool:
    return re.fullmatch(r"\s*([0-9a-fA-F]{2}[\s:]*)+", text) is not None


def messages_in(path: Path, data: bytes) -> list[Recorded]:
    """Tell by its first bytes what a file is, and return what is in it. Raises UserError."""
    text = data.decode("ascii", errors="replace")
    if data[:4] in PCAP or data[:4] == PCAPNG:
        return captured(path, data)
    if text.lstrip().startswith("{"):
        return logged(text, str(path))
    if not is_hex(text) and all(letter.isprintable() or letter.isspace() for letter in text):
        raise UserError(f"{path} is text, but neither hexadecimal nor an event log")
    stream = bytes.fromhex(re.sub(r"[\s:]", "", text)) if is_hex(text) else data
    if has_legal_length(stream) and not is_frames(stream):
        return [Recorded("a message without its length", stream)]
    return [Recorded(cut.words, cut.message) for cut in frames_in(stream)]


def logged(text: str, name: str) -> list[Recorded]:
    """Return the messages of an event log, and what was done to them. Raises UserError."""
    found: list[Recorded] = []
    for run in runs_of(parse_events(text, name)[0]):
        for number, (_, _, message, words) in enumerate(tell(run, LAB), 1):
            found.append(Recorded(f"{run.attack} {number}. {words.partition('. ')[2]}", message))
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
    """Tell whether the first two bytes are the length of a whole frame."""
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

    Of TCP streams that do not begin with a frame only those of the lab's own port are there.
    """
    found: list[tuple[int, Recorded]] = []
    for (source, sport, destination, dport), segments in flows_in(path, data).items():
        stream, ends = in_order(segments)
        if not stream or not (is_frames(stream) or LAB.port in (sport, dport)):
            continue
        for cut in frames_in(stream):
            number = next(number for end, number in ends if end >= cut.end)
            found.append(
                (
                    number,
                    Recorded(
                        f"packet {number}, {ipaddress.ip_address(source)}:{sport} to "
                        f"{ipaddress.ip_address(destination)}:{dport}, {cut.words}",
                        cut.message,
                    ),
                )
            )
    return [message for _, message in sorted(found, key=lambda pair: pair[0])]


def flows_in(path: Path, data: bytes) -> dict[Flow, list[Segment]]:
    """Return what each end of each connection has sent. Raises UserError."""
    dpkt = needed("dpkt")
    flows: dict[Flow, list[Segment]] = {}
    try:
        reader = (dpkt.pcapng if data[:4] == PCAPNG else dpkt.pcap).Reader(io.BytesIO(data))
        for number, (_, packet) in enumerate(reader, 1):
            ip = ip_packet(dpkt, reader.datalink(), packet)
            if isinstance(getattr(ip, "data", None), dpkt.tcp.TCP):
                segment = Segment(number, ip.data.seq, bytes(ip.data.data))
                flows.setdefault((ip.src, ip.data.sport, ip.dst, ip.data.dport), []).append(segment)
    except (dpkt.Error, ValueError, IndexError, struct.error):
        raise UserError(f"{path} is no whole capture file") from None
    return flows


def ip_packet(dpkt: Any, link_type: int, packet: bytes) -> Any:
    """Return the IP packet in what an interface has seen; None if there is none."""
    with contextlib.suppress(dpkt.Error, IndexError):
        if link_type == ETHERNET:
            return dpkt.ethernet.Ethernet(packet).data
        if link_type == COOKED:
            return dpkt.sll.SLL(packet).data
        bare = packet[SKIPPED.get(link_type, 0) :]
        return (dpkt.ip6.IP6 if bare[0] >> 4 == 6 else dpkt.ip.IP)(bare)
    return None


def in_order(segments: Sequence[Segment]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the bytes of one direction up to the first that is missing, and when they came.

    That is a list of places in the stream, each with the packet by which everything before it was
    there. What came twice counts once.
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
    number, where, (title, parts, inside, steps) = shown
    lines = [*wrapped(f"{number}. {where}", WIDTH, subsequent_indent="   "), f"   {title}"]
    for part in parts:
        lines += rows(part)
    if inside:
        lines += ["   plaintext"]
    for part in inside:
        lines += rows(part)
    for step in steps:
        lines += wrapped(step, WIDTH, initial_indent="   - ", subsequent_indent="     ")
    return "\n".join(lines) + "\n"


def wrapped(text: str, width: int, **options: Any) -> list[str]:
    """Break lines, but not inside [P 3.2] or at the minus of a number."""
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


def main(explain: Explain = explain) -> int:
    parser = Parser("Explains recorded messages byte by byte.")
    parser.add_argument(
        "source", metavar="FILE|HEX", help="event log, capture, bytes, or hexadecimal text"
    )
    parser.add_argument("--keylog", metavar="FILE", help="show plaintexts and key steps as well")
    parser.add_argument("--html", metavar="OUT", help="write a page instead of text")
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
        write_whole(Path(options.html), page.encode("ascii", "xmlcharrefreplace"))
    else:
        print("\n".join(map(as_text, shown)), end="")
    return 0


if __name__ == "__main__":
    run_program(main)
