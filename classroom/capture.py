"""Turn an event log into packets: what the adversary saw and did, for Wireshark.

    python attacks.py --seed 1 --events run.jsonl
    python -m classroom.capture run.jsonl -o run.pcapng

Each attack has a TCP connection on either side of the adversary. Each side is an interface of the
file, and each packet has a comment: what it is, what was done to it, which end refused it and why.
All of that comes from the log [lab/EVENTS.md]. The rest of TCP is made up, and always the same:
addresses, ports, one packet per millisecond. Two things are not in the log, and so not here: how
many connections an outsider had (here: one per attack), and what was sent byte by byte.

Nothing here knows a protocol: a `Wire` gives the port, the framing, and the name of a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classroom.output import needed, write_whole
from classroom.wire import LAB, Wire
from lab.events import ENDS, KINDS, Run, Step, read_runs
from program import Parser, UserError, escaped, keep_inputs, output_path, plural, run_program

# What is said of them -----------------------------------------------------------------------------


class Told(NamedTuple):
    """A message on one side of the adversary, with its comment."""

    end: str  # the side
    is_sent: bool  # by that end; else that end gets it
    message: bytes
    words: str
    step: Step


def tell(run: Run, wire: Wire) -> Iterator[Told]:
    """Yield each message with what it is, what was done to it, and which end refused it."""
    times = Counter[tuple[str, bytes]]()
    for step in run.steps:
        if step.comes_in:
            words = f"{wire.describe(step.sent)}. Sent by the {step.source}; {KINDS[step.kind]}."
            yield Told(step.source, True, step.sent, words, step)
        if step.goes_on:
            times[step.to, step.arrived] += 1
            note = wire.what_changed(step.sent, step.arrived)
            if step.kind == "again":
                note = f"delivery {times[step.to, step.arrived]}"
            words = f"{wire.describe(step.arrived)}. The {step.to} gets this: {KINDS[step.kind]}"
            words += f" ({note})." if note else "."
            if step.refused:
                words += f" The {step.to} refused it: {step.refused}."
            yield Told(step.to, False, step.arrived, words, step)


# Packets ------------------------------------------------------------------------------------------

SIDES = ("client side", "server side")  # of the adversary; each is an interface
HOSTS = {  # of connecting and of listening end; these addresses are for documentation (RFC 5737)
    "client side": (b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x09"),
    "server side": (b"\xc6\x33\x64\x09", b"\xc6\x33\x64\x01"),
}
FIRST_PORT = 40_001
EPOCH_S = 946_684_800  # 2000-01-01 00:00:00 UTC
STEP_US = 1_000  # from packet to packet
SEGMENT_BYTES = 1_460
RAW_IP = 101  # LINKTYPE_RAW: an interface without Ethernet
FIN = 1
SYN = 2
PSH = 8
ACK = 16
MOST_LETTERS = 2_000  # of a comment, whose length has two bytes


class Packet(NamedTuple):
    """An IP packet on one of the two sides of the adversary."""

    side: str
    data: bytes
    comment: str


class Connection:
    """A TCP connection: the connecting end is 0, the listening one 1."""

    def __init__(self, side: str, ports: tuple[int, int], dpkt: Any) -> None:
        self.side = side
        self._ports = ports
        self._dpkt = dpkt
        self._next = [0, 0]  # sequence numbers; relative ones are easier to read

    def packet(self, end: int, flags: int, comment: str, data: bytes = b"") -> Packet:
        segment = self._dpkt.tcp.TCP(
            sport=self._ports[end],
            dport=self._ports[1 - end],
            seq=self._next[end],
            ack=self._next[1 - end] if flags & ACK else 0,
            flags=flags,
            win=65_535,
            data=data,
        )
        hosts = HOSTS[self.side]
        packet = self._dpkt.ip.IP(src=hosts[end], dst=hosts[1 - end], p=6, ttl=64, data=segment)
        self._next[end] += len(data)
        if flags & (SYN | FIN):
            self._next[end] += 1
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


def packets(runs: Sequence[Run], wire: Wire) -> Iterator[Packet]:
    """Return the packets of a whole log, attack by attack. Raises UserError if dpkt is missing."""
    dpkt = needed("dpkt")
    for number, run in enumerate(runs):
        told = [*tell(run, wire)]
        ports = (FIRST_PORT + number % (65_536 - FIRST_PORT), wire.port)
        connections = {
            end: Connection(side, ports, dpkt)
            for end, side in zip(ENDS, SIDES)
            if any(message.end == end for message in told)
        }
        for end, connection in connections.items():
            who = "the client" if end == "client" else "the adversary"
            yield from connection.connect(f"{run.attack}: {who}")
        for end, is_sent, message, words, _ in told:
            honest = ENDS.index(end)  # the client connects to the adversary, the server listens
            try:
                framed = wire.framed(message)
            except OverflowError:
                size = f"{len(message):,} bytes"
                raise UserError(f"{run.attack}: no frame holds a message of {size}") from None
            yield from connections[end].carry(
                honest if is_sent else 1 - honest, framed, f"{run.attack}: {words}"
            )
        for end, connection in connections.items():
            yield from connection.close(*closing(run, end, wire))


def closing(run: Run, end: str, wire: Wire) -> tuple[int, tuple[str, str]]:
    """Return which end closes first on one side, and the comments on both."""
    honest = ENDS.index(end)
    errors = [error for by, error in run.ended.elements() if by == end]
    words = f"{run.attack}: the {end} closes"
    if errors:
        sessions = "session" if len(errors) == 1 else "sessions"
        words += f"; its {sessions} ended with {', '.join(errors)}"
    comments = [f"{run.attack}: the adversary closes"] * 2
    comments[honest] = words
    is_cut = {*errors} == {wire.cut}
    return 1 - honest if is_cut else honest, (comments[0], comments[1])


# The file -----------------------------------------------------------------------------------------


def pcapng(found: Sequence[Packet]) -> bytes:
    """Return a capture file with two named interfaces and a comment on each packet."""
    png = needed("dpkt").pcapng

    def options(**texts: str) -> list[Any]:
        found = [
            png.PcapngOptionLE(
                code=getattr(png, f"PCAPNG_OPT_{name.upper()}"), data=text[:MOST_LETTERS].encode()
            )
            for name, text in texts.items()
        ]
        return [*found, png.PcapngOptionLE(code=png.PCAPNG_OPT_ENDOFOPT)]

    remark = "Made from an event log: addresses, ports and times are made up"
    head = options(comment=remark, shb_userappl="classroom.capture")
    blocks = [png.SectionHeaderBlockLE(opts=head)]
    blocks += [
        png.InterfaceDescriptionBlockLE(linktype=RAW_IP, snaplen=0, opts=options(if_name=side))
        for side in SIDES
    ]
    for number, packet in enumerate(found):
        time_us = EPOCH_S * 1_000_000 + number * STEP_US
        blocks.append(
            png.EnhancedPacketBlockLE(
                iface_id=SIDES.index(packet.side),
                ts_high=time_us >> 32,
                ts_low=time_us & 0xFFFFFFFF,
                pkt_data=packet.data,
                opts=options(comment=packet.comment),
            )
        )
    return b"".join(map(bytes, blocks))


def main(wire: Wire = LAB) -> int:
    parser = Parser("Makes a capture file for Wireshark from an event log.")
    parser.add_argument("events", metavar="EVENTS", type=Path, help="from attacks.py --events")
    parser.add_argument("-o", "--output", metavar="FILE", type=output_path, required=True)
    options = parser.options()
    keep_inputs(options.output, options.events)
    found = [*packets(read_runs(options.events), wire)]
    if not found:
        raise UserError(f"there is no message in {options.events}")
    write_whole(options.output, pcapng(found))
    print(f"{plural(len(found), 'packet')} in {escaped(str(options.output))}")
    return 0


if __name__ == "__main__":
    run_program(main)
