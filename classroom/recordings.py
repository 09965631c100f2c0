"""Messages as they were recorded: in an event log, a capture, raw bytes, or hexadecimal text.

The first bytes of a file say what it is; it may be compressed with gzip. `say` is told, in a
sentence each, what is not read or not whole.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from classroom.capture import tell
from classroom.keylog import has_legal_length, is_legal
from classroom.streams import Notes, Segment, Stream, is_capture, note, sentences, streams_in
from classroom.wire import LAB, changes
from endpoint import OPCODE_NAMES
from lab.events import Run, Step, not_known, parse_events, runs_of
from program import UserError, read_whole, reason_of

Say = Callable[[str], object]
GZIP = b"\x1f\x8b"
COMPRESSED = {b"\xfd7zX": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
FOREIGN = {  # captures that dpkt does not read
    b"\x34\xcd\xb2\xa1": "modified pcap",
    b"\xa1\xb2\xcd\x34": "modified pcap",
    b"snoop\0": "snoop",
    b"GMBU": "Network Monitor",
}
MOST_NAMES = 8
MOST_BYTES = 2**28  # of a file that was compressed
ILLEGAL = "no message has this length, and a receiver reads no further [P 3.1]"
HEADLESS = "the beginning of this message is missing, so its bytes have no names"


class Recorded(NamedTuple):
    """A message as it was found, and where.

    `missing` are the places of bytes that a capture does not have, `touched` those that the
    adversary changed in the message `before`. `nonsense` says why it is no message, if it is none.
    """

    where: str
    message: bytes
    missing: frozenset[int] = frozenset()
    touched: frozenset[int] = frozenset()
    before: bytes = b""
    nonsense: str = ""


def recorded(source: str, attack: str | None, say: Say) -> list[Recorded]:
    """Return the messages in a file or in hexadecimal text, or of one attack. Raises UserError."""
    path = Path(source)
    data = b""
    try:
        if path.exists():
            data = read_whole(path)
    except (OSError, ValueError) as error:  # a name may be too long, or have a NUL in it
        if not is_hex(source):
            raise UserError(f"cannot read {str(path)[:60]}: {reason_of(error)}") from None
    if not data and not is_hex(source):
        raise UserError(f"{source[:60]} is neither a file that has bytes nor hexadecimal")
    found = messages_in(str(path), unpacked(data, path, say) or source.encode(), attack, say)
    if not found:
        raise UserError(f"there is no message in {path}")
    return found


def unpacked(data: bytes, path: Path, say: Say) -> bytes:
    """Return the content of a file that may be compressed. Raises UserError."""
    for magic, name in COMPRESSED.items():
        if data.startswith(magic):
            raise UserError(f"{path} is compressed with {name}; unpack it first")
    for magic, name in FOREIGN.items():
        if data.startswith(magic):
            raise UserError(f"{path} is a capture ({name}); convert it: editcap -F pcapng")
    if not data.startswith(GZIP):
        return data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, MOST_BYTES)
    except zlib.error:
        raise UserError(f"{path} is damaged: its gzip cannot be unpacked") from None
    if unpacker.unconsumed_tail:
        raise UserError(f"{path} is too large: unpacked it has over {MOST_BYTES} bytes")
    if not unpacker.eof or unpacker.unused_data:
        say(f"Not all of {path} could be unpacked")
    return content


def messages_in(name: str, data: bytes, attack: str | None, say: Say) -> list[Recorded]:
    """Return the messages in a file, whose kind its first bytes show. Raises UserError."""
    text = data.decode("utf-8-sig", errors="replace")
    if not is_capture(data) and text.lstrip().startswith("{"):
        return logged(text, name, attack, say)
    if attack is not None:
        raise UserError(f"--attack is for event logs, and {name} is none")
    stream = data if is_capture(data) else bytes_of(name, data, text)
    if is_capture(stream):
        return captured(stream, say)
    if has_legal_length(stream) and not is_frames(stream):
        return [Recorded("a message without its length", stream)]
    return [recorded for _, recorded in frames_in(stream_of(stream))]


# Text ---------------------------------------------------------------------------------------------


def bytes_of(name: str, data: bytes, text: str) -> bytes:
    """Return the bytes that a text shows; what is no text stands for itself. Raises UserError."""
    dumped = dump_of(text)
    if dumped is not None:
        return dumped
    if is_hex(text) and not has_offsets(text):
        return bytes.fromhex(re.sub(r"[\s:]", "", text))
    if all(letter.isprintable() or letter.isspace() for letter in text):
        raise UserError(
            f"{name} is text, but neither an event log nor hexadecimal; of dumps with offsets, "
            "those of xxd, hexdump -v -C and od -v -A x -t x1 are read"
        )
    return data


def is_hex(text: str) -> bool:
    return re.fullmatch(r"\s*([0-9a-fA-F]{2}[\s:]*)+", text) is not None


OFFSET = re.compile(r"(?:0x)?([0-9a-f]{4,})(:?)(?: +|$)", re.IGNORECASE)
ROWS = {  # of bytes, by what follows the offset
    ":": re.compile(r"([0-9a-f]{2}){1,2}( ([0-9a-f]{2}){1,2})*(?=  |$)", re.IGNORECASE),
    "": re.compile(
        r"[0-9a-f]{2}( [0-9a-f]{2})*"
        r"((?<=^.{23})  [0-9a-f]{2}( [0-9a-f]{2})*)?"  # a second blank after 8 bytes
        r"(?=  |$)",
        re.IGNORECASE,
    ),
}


def has_offsets(text: str) -> bool:
    """Return whether a text begins with what may be an offset: with zeros, or a longer group."""
    first, *others = re.split(r"[\s:]+", text.strip().partition("\n")[0].strip())
    is_longer = len(others) > 1 and all(len(first) > len(group) for group in others)
    return is_longer or (others != [] and re.fullmatch("0{4,}", first) is not None)


def dump_of(text: str) -> bytes | None:
    """Return the bytes of a dump with an offset in each line; None if it is none.

    Offsets may be hexadecimal, octal or decimal, and have to be right, down to the last line: so
    no letter beside the bytes is taken for a byte, and no line is missing.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    for base in (16, 8, 10):
        data = bytearray()
        for line in lines:
            offset = OFFSET.match(line)
            if not offset or not is_number(offset[1], base, len(data)):
                break
            row = ROWS[offset[2]].match(line[offset.end() :])
            data += bytes.fromhex(row[0]) if row else b""
        else:
            return bytes(data) or None
    return None


def is_number(digits: str, base: int, number: int) -> bool:
    try:
        return int(digits, base) == number
    except ValueError:
        return False


# Event logs ---------------------------------------------------------------------------------------


def logged(text: str, name: str, attack: str | None, say: Say) -> list[Recorded]:
    """Return the messages of an event log, with what was done to them. Raises UserError."""
    events, unknown = parse_events(text, name)
    if unknown:
        say(not_known(name, unknown))
    runs = [*runs_of(events)]
    if attack is not None and attack not in (names := {run.attack: None for run in runs}):
        raise UserError(f"{name} has no attack {attack}; it has {in_short([*names])}")
    return [one for run in runs if attack in (None, run.attack) for one in steps_of(run)]


def in_short(names: list[str]) -> str:
    """Return the names in a list, but not so many that they would hide the sentence."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def steps_of(run: Run) -> list[Recorded]:
    """Return the messages of a run; one that was passed on as it was is there once."""
    found: list[Recorded] = []
    for told in tell(run, LAB):
        step = told.step
        if not (told.is_sent and step.goes_on and step.sent == step.arrived):
            deed = told.words.partition(". ")[2]  # of the message itself more is said below
            one = Recorded(f"{run.attack} {len(found) + 1}. {deed}", told.message)
            if not told.is_sent and step.is_changed:
                one = one._replace(touched=touched_in(step), before=step.sent)
            found.append(one)
    return found


def touched_in(step: Step) -> frozenset[int]:
    """Return the places of what the adversary changed in a message."""
    found: set[int] = set()
    at = 0
    for change in changes(LAB.fields(step.sent), LAB.fields(step.arrived)):
        places = range(at, at + len(change.after.content))
        found.update(place for place in places if place - at in change.touched)
        at = places.stop
    return frozenset(found)


# Frames -------------------------------------------------------------------------------------------


def is_frames(stream: bytes) -> bool:
    """Return whether the first two bytes are the length of a whole frame."""
    return has_legal_length(stream[2 : 2 + int.from_bytes(stream[:2], "big")])


def stream_of(data: bytes) -> Stream:
    """Return bytes as a stream that has them all."""
    stream = Stream((b"", 0, b"", 0), 0, 0, has_beginning=True)
    stream.add(Segment(0, 0, data, len(data)))
    stream.join({})
    return stream


def frame_begins(stream: Stream, place: int) -> bool:
    """Return whether a frame may begin in the middle of a stream: with a length and an opcode."""
    beginning = stream.take(place, 3)
    length = int.from_bytes(beginning.data[:2], "big")
    return not beginning.missing and is_legal(length) and beginning.data[2] in OPCODE_NAMES


def frames_in(stream: Stream) -> Iterator[tuple[int, Recorded]]:
    """Cut a stream into messages, each with the packet that completed it.

    After a gap that hides where a frame begins, the next one that begins with a segment is looked
    for. What is between, and what follows an illegal length, is one piece up to the next gap.
    """
    at = 0 if stream.has_beginning else stream.pieces[0].place
    is_sure = stream.has_beginning
    while at < stream.end:
        head = stream.take(at, 2)
        length = int.from_bytes(head.data, "big")
        is_whole = not head.missing
        if (is_whole and is_legal(length)) if is_sure else frame_begins(stream, at):
            yield frame_at(stream, at, length)
            at += 2 + length
            is_sure = True
            continue
        is_illegal = is_sure and is_whole
        end = next_frame(stream, stream.end_of_piece(at) if is_illegal else at)
        yield from rest(stream, at, end, ILLEGAL if is_illegal else HEADLESS)
        at = end
        is_sure = False


def frame_at(stream: Stream, at: int, length: int) -> tuple[int, Recorded]:
    head = stream.take(at, 2)
    message, missing, number = stream.take(at + 2, length)
    words = f"byte {at} and on: {head.data.hex(' ')}, length {length} [P 3.1]"
    if missing:
        words += f"; {len(missing)} of its bytes missing here"
    return max(number, head.number), Recorded(words, message, missing)


def next_frame(stream: Stream, place: int) -> int:
    """Return where the next segment begins that begins with a frame, else the end."""
    for at in stream.beginnings[bisect_right(stream.beginnings, place) :]:
        if frame_begins(stream, at):
            return at
    return stream.end


def rest(stream: Stream, at: int, end: int, why: str) -> Iterator[tuple[int, Recorded]]:
    """Return what there is between two places, each piece of it as it is."""
    for piece in stream.pieces[stream.index(at) :]:
        start = max(at, piece.place)
        data, _, number = stream.take(start, max(0, min(end, piece.end) - start))
        if data:
            yield number, Recorded(f"byte {start} and on: no whole frame", data, nonsense=why)


def captured(data: bytes, say: Say) -> list[Recorded]:
    """Return all messages of a capture, in the order in which they were whole.

    A stream that does not begin with a frame counts only on the lab's own port.
    """
    notes: Notes = {}
    found: list[tuple[int, Recorded]] = []
    for stream in streams_in(data, notes):
        _, sport, _, dport = stream.flow
        if not stream.pieces:
            continue
        if LAB.port not in (sport, dport) and not frame_begins(stream, stream.pieces[0].place):
            note(
                notes, "On another port, with no frame first, and so not read: since", stream.first
            )
            continue
        for number, one in frames_in(stream):
            where = f"packet {number}, {stream.name}, {one.where}"
            found.append((number, one._replace(where=where)))
    for sentence in sentences(notes):
        say(sentence)
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]
