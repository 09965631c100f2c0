"""Turn an event log into packets: what the adversary saw and did, for Wireshark.

    python attacks.py --seed 1 --events run.jsonl
    python -m classroom.capture run.jsonl -o run.pcapng

Each attack has a TCP connection on either side of the adversary, each side is an interface of the
file, and each packet has a comment: what it is, what was done to it, who refused it and why. All
of that comes from the log [EVENTS.md]. What TCP needs beside it is made up, and always the same:
addresses, ports, a packet every millisecond. What the log does not tell is not there: how many
connections an outsider had (here: one an attack), and what was sent in pieces that are no messages.

Nothing here knows a protocol: a `Wire` tells the port, the framing, and how to name a message.
"""
from __future__ import annotations

import importlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classroom.keylog import describe_message
from endpoint import PORT, Parser, UserError, reason_of, run_program

ENDS = ("client", "server")
MESSAGES = ("sent", "delivered", "inserted")  # the kinds of events that have bytes
REQUIREMENTS = "requirements-evidence.txt"
NEAR, FEW, ALIKE = 20, 4, 16  # messages to look back; bytes that differ, or begin alike

class Wire(NamedTuple):
    """What has to be known of a protocol; a companion calls `main` with one of its own."""

    port: int  # of the server
    framed: Callable[[bytes], bytes]  # what TCP carries for a message
    describe: Callable[[bytes], str]  # a message in a few words
    other_ends: frozenset[str]  # errors that refuse no message
    cuts: frozenset[str]  # those of them that say that the other end has closed first

CORE = Wire(PORT, lambda message: len(message).to_bytes(2, "big") + message,
            lambda message: describe_message(message)[0],
            frozenset({"PeerTerminated", "ConnectionCut", "DeadlineExpired", "EndRequested"}),
            frozenset({"ConnectionCut"}))

# The event log ------------------------------------------------------------------------------------

class Event(NamedTuple):
    """A line of the log. `end` is for whom a message is, or which end was over; see EVENTS.md."""

    attack: str
    kind: str
    end: str
    message: bytes
    error: str

def read_events(path: Path) -> list[Event]:
    """Return the messages and ends in a file, as `parse_events` does. Raises UserError."""
    try:
        return parse_events(path.read_text("ascii"), str(path))
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None

def parse_events(text: str, name: str) -> list[Event]:
    """Return the messages and ends in a log; lines of other kinds are left out. Raises UserError.

    Of a log without a message nothing can be shown, so that is an error too.
    """
    found = list[Event]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found += parse_event(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{name} line {number} is no line of an event log") from None
    if not any(event.kind in MESSAGES for event in found):
        raise UserError(f"there is no message in {name}")
    return found

def parse_event(line: dict[str, str]) -> list[Event]:
    """Return one event, or none if its kind is not known here; else KeyError, TypeError, ..."""
    attack, kind = line["attack"] + "", line["event"] + ""
    if kind not in (*MESSAGES, "ended"):
        return []
    end = line["by" if kind == "ended" else "to"]
    if end not in ENDS:
        raise ValueError(end)
    if kind == "ended":
        return [Event(attack, kind, end, b"", line["error"] + "")]
    return [Event(attack, kind, end, bytes.fromhex(line["message"]), "")]

def other(end: str) -> str:
    return ENDS[end == "client"]

# What was done to it ------------------------------------------------------------------------------

class Told(NamedTuple):
    """A message of an attack and what is to be said of it."""

    event: Event
    words: str

def tell(events: Sequence[Event], wire: Wire) -> list[Told]:
    """Say of each message of one attack what it is, what was done to it, and who refused it.

    The log names the error of an end and not the message: where several were meddled with, it may
    have been any of those.
    """
    messages = [event for event in events if event.kind in MESSAGES]
    deeds = [deed(messages, at) for at in range(len(messages))]
    meddled = Counter(event.end for event, (_, is_meddling) in zip(messages, deeds) if is_meddling)
    errors = {end: [over.error for over in events if (over.kind, over.end) == ("ended", end)
                    and over.error not in wire.other_ends] for end in ENDS}
    told = list[Told]()
    for event, (words, is_meddling) in zip(messages, deeds):
        sentences = [wire.describe(event.message), words]
        if is_meddling and errors[event.end]:
            which = "it" if meddled[event.end] == 1 else (
                f"this or another of the {meddled[event.end]} that were meddled with")
            sentences.append(f"The {event.end} refused {which}: {', '.join(errors[event.end])}")
        told.append(Told(event, ". ".join(sentences) + "."))
    return told

def deed(messages: Sequence[Event], at: int) -> tuple[str, bool]:
    """Say what was done with one message, and whether its end gets what it should not."""
    event = messages[at]
    if event.kind == "sent":
        return f"Sent by the {other(event.end)}; {fate(messages, at)}", False
    if event.kind == "inserted":
        return f"Put in by the adversary: {origin(messages[max(0, at - NEAR) : at], event)}", True
    sent, passed = ([earlier.message for earlier in messages[:at] if earlier.end == event.end
                     and (earlier.kind == "sent") is is_sent] for is_sent in (True, False))
    times = passed.count(event.message) + 1
    if times > sent.count(event.message):
        return f"Passed on again, for the {ordinal(times)} time", True
    if sent.index(event.message) > len(passed):
        return "Passed on, though what was sent before it was not", True
    return "Passed on as it was", False

def fate(messages: Sequence[Event], at: int) -> str:
    """Say what became of a message that an honest end has sent."""
    event, following = messages[at], messages[min(at + 1, len(messages) - 1)]
    if following[1:4] == ("delivered", event.end, event.message):
        return "passed on at once"
    if messages[0].kind == "inserted":  # nobody had sent anything: see EVENTS.md
        return "it answers the adversary, who is an outsider here"
    if any(later[1:4] == ("delivered", event.end, event.message) for later in messages[at:]):
        return "held, and passed on later"
    if following.kind == "inserted" and following.end == event.end:
        return "not passed on: the adversary puts another in its place"
    if following.kind == "inserted":
        return "not passed on: the adversary answers by itself"
    return "dropped"

def origin(before: Sequence[Event], event: Event) -> str:
    """Say what an inserted message has to do with those that were sent shortly before."""
    sent = [earlier.message for earlier in before if earlier.kind == "sent"]
    if event.message in sent:
        return f"sent back to the {event.end}, who sent it"
    models = [message for message in sent if len(message) == len(event.message)]
    model = min(models, key=lambda model: len(differences(model, event.message)), default=b"")
    places = differences(model, event.message)
    if alike := [message for message in sent if message != model
                 and message[:ALIKE] == event.message[:ALIKE]]:
        return f"what was sent before, made {len(event.message)} bytes of {len(alike[-1])}"
    if not model or len(places) > FEW:
        return "it is not much like anything that was sent in this attack"
    return "what was sent before, with " + ", ".join(
        f"byte {n} changed ({model[n]:02x} to {event.message[n]:02x})" for n in places)

def differences(one: bytes, two: bytes) -> list[int]:
    return [n for n, (old, new) in enumerate(zip(one, two)) if old != new]

def ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")

# Packets ------------------------------------------------------------------------------------------

SIDES = ("client side", "server side")  # of the adversary; each is an interface
HOSTS = {  # of connecting and of listening end; these addresses are for documentation (RFC 5737)
    "client side": (b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x09"),
    "server side": (b"\xc6\x33\x64\x09", b"\xc6\x33\x64\x01"),
}
FIRST_PORT, EPOCH_S, STEP_US = 40_001, 946_684_800, 1_000  # it is always 2000-01-01 00:00:00 UTC
SEGMENT_BYTES = 1_460
RAW_IP = 101  # LINKTYPE_RAW: an interface without Ethernet
FIN, SYN, PSH, ACK = 1, 2, 8, 16

class Packet(NamedTuple):
    """An IP packet on one of the two sides of the adversary."""

    side: str
    data: bytes
    comment: str

class Connection:
    """A TCP connection: the connecting end is 0, the listening one 1."""

    def __init__(self, side: str, ports: tuple[int, int], dpkt: Any) -> None:
        self.side, self._ports, self._dpkt = side, ports, dpkt
        self._next = [0, 0]  # the sequence number of each end, relative ones being easier to read

    def packet(self, end: int, flags: int, comment: str, data: bytes = b"") -> Packet:
        acknowledged = self._next[1 - end] if flags & ACK else 0
        segment = self._dpkt.tcp.TCP(
            sport=self._ports[end], dport=self._ports[1 - end], seq=self._next[end],
            ack=acknowledged, flags=flags, win=65_535, data=data)
        hosts = HOSTS[self.side]
        packet = self._dpkt.ip.IP(src=hosts[end], dst=hosts[1 - end], p=6, ttl=64, data=segment)
        self._next[end] += len(data) + bool(flags & (SYN | FIN))
        return Packet(self.side, bytes(packet), comment)

    def connect(self, words: str) -> Iterator[Packet]:
        yield self.packet(0, SYN, f"{words} connects")
        yield self.packet(1, SYN | ACK, "TCP")
        yield self.packet(0, ACK, "TCP")

    def carry(self, end: int, data: bytes, comment: str) -> Iterator[Packet]:
        parts = [data[at : at + SEGMENT_BYTES] for at in range(0, len(data), SEGMENT_BYTES)]
        for number, part in enumerate(parts, 1):
            which = f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
            yield self.packet(end, PSH | ACK, comment + which, part)
            yield self.packet(1 - end, ACK, "TCP: it has arrived")

    def close(self, first: int, comments: tuple[str, str]) -> Iterator[Packet]:
        for end in (first, 1 - first):
            yield self.packet(end, FIN | ACK, comments[end])
            yield self.packet(1 - end, ACK, "TCP")

def packets(events: Sequence[Event], wire: Wire) -> Iterator[Packet]:
    """Return the packets of a whole log, attack by attack. Raises UserError if dpkt is missing."""
    dpkt = needed("dpkt")
    runs = itertools.groupby(events, lambda event: event.attack)
    for number, (attack, run) in enumerate(runs):
        lines = list(run)
        told = tell(lines, wire)
        sides = [side for side in SIDES if any(side == side_of(event) for event, _ in told)]
        ports = (FIRST_PORT + number % (65_536 - FIRST_PORT), wire.port)
        connections = {side: Connection(side, ports, dpkt) for side in sides}
        for side, connection in connections.items():
            who = "the client" if side == SIDES[0] else "the adversary"
            yield from connection.connect(f"{attack}: {who}")
        for event, words in told:
            side = side_of(event)
            honest = SIDES.index(side)  # the client connects to the adversary, the server listens
            yield from connections[side].carry(
                honest if event.kind == "sent" else 1 - honest, wire.framed(event.message),
                f"{attack}: {words}")
        for side, connection in connections.items():
            yield from connection.close(*farewell(attack, side, lines, wire))

def side_of(event: Event) -> str:
    """Return where a message is seen: at the end that sent it, or at the one that gets it."""
    end = other(event.end) if event.kind == "sent" else event.end
    return SIDES[ENDS.index(end)]

def farewell(attack: str, side: str, events: Sequence[Event],
             wire: Wire) -> tuple[int, tuple[str, str]]:
    """Return who closes first on one side, and what is said of both."""
    honest = SIDES.index(side)
    errors = [event.error for event in events
              if event.kind == "ended" and event.end == ENDS[honest]]
    words = [f"{attack}: the adversary closes"] * 2
    words[honest] = f"{attack}: the {ENDS[honest]} closes" + (
        f"; its sessions ended with {', '.join(errors)}" if len(errors) > 1 else
        f"; its session ended with {errors[0]}" if errors else "")
    is_cut = bool(errors) and wire.cuts.issuperset(errors)
    return 1 - honest if is_cut else honest, (words[0], words[1])

# The file -----------------------------------------------------------------------------------------

def pcapng(found: Sequence[Packet]) -> bytes:
    """Return a capture file with two named interfaces and a comment on each packet."""
    png = needed("dpkt").pcapng

    def options(*pairs: tuple[int, str]) -> list[Any]:
        return [png.PcapngOptionLE(code=code, data=text.encode())
                for code, text in pairs] + [png.PcapngOptionLE(code=png.PCAPNG_OPT_ENDOFOPT)]

    blocks = [png.SectionHeaderBlockLE(opts=options(
        (png.PCAPNG_OPT_COMMENT, "Made from an event log: addresses, ports and times are made up"),
        (png.PCAPNG_OPT_SHB_USERAPPL, "classroom.capture")))]
    blocks += [png.InterfaceDescriptionBlockLE(linktype=RAW_IP, snaplen=0, opts=options(
        (png.PCAPNG_OPT_IF_NAME, side))) for side in SIDES]
    for number, packet in enumerate(found):
        time_us = EPOCH_S * 1_000_000 + number * STEP_US
        blocks.append(png.EnhancedPacketBlockLE(
            iface_id=SIDES.index(packet.side), ts_high=time_us >> 32, ts_low=time_us & 0xFFFFFFFF,
            pkt_data=packet.data, opts=options((png.PCAPNG_OPT_COMMENT, packet.comment))))
    return b"".join(map(bytes, blocks))

def needed(name: str) -> Any:
    """Return a module that not everybody has installed. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install -r {REQUIREMENTS}") from None

def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe, say
            path.write_bytes(data)
            return
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None

def main(wire: Wire = CORE) -> int:
    parser = Parser("Makes a capture file for Wireshark from an event log.", is_endpoint=False)
    parser.add_argument("events", metavar="EVENTS", type=Path, help="from attacks.py --events")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    options = parser.options()
    found = list(packets(read_events(options.events), wire))
    write_whole(options.output, pcapng(found))
    print(f"{len(found)} packets in {options.output}")
    return 0

if __name__ == "__main__":
    run_program(main)
