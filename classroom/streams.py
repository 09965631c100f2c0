"""What each end of a TCP connection sent, put together from the packets of a capture file.

pcap and pcapng of any program, with several interfaces, each with a link type of its own. Packets
may be missing, cut short, repeated or out of order. Nothing is left out silently: what is not read
is in the notes, with the numbers of its packets. Nothing here knows a protocol above TCP.
"""

from __future__ import annotations

import ipaddress
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from classroom.output import needed

PCAPNG = b"\x0a\x0d\x0d\x0a"
PCAP = {  # and the byte order of its numbers
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",  # times in nanoseconds
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
}
INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET = (1, 2, 3, 6)  # blocks of pcapng
ETHERNET, COOKED, COOKED_2 = (1, 113, 276)  # link types; the others begin with IP
BEFORE_IP = {0: 4, 108: 4, 12: 0, 14: 0, 101: 0, 228: 0, 229: 0}
FRAGMENT = 44  # an extension header of IPv6
FIN = 1
SYN = 2
RST = 4
ACK = 16
FAR = 2**24  # bytes: no window is that large, so another connection has these numbers
MOST_NUMBERS = 5  # of packets in a note

Notes = dict[str, list[int]]  # what was not read, and the packets that it concerns
Flow = tuple[bytes, int, bytes, int]  # address and port of the sender, then of the receiver


class Packet(NamedTuple):
    """A packet as the file has it; on the wire it had `length` bytes."""

    link_type: int
    data: bytes
    length: int


class Segment(NamedTuple):
    """Some bytes at a place in a stream, from one packet; on the wire there were `length`."""

    number: int
    place: int
    data: bytes
    length: int


class Piece(NamedTuple):
    """Bytes of a stream without a gap; `ends` are places, each with the packet that filled it."""

    place: int
    data: bytearray
    ends: list[tuple[int, int]]

    @property
    def end(self) -> int:
        return self.place + len(self.data)


class Taken(NamedTuple):
    """Bytes taken from a stream, zero where they are missing; the packet that completed them."""

    data: bytes
    missing: frozenset[int]
    number: int


@dataclass
class Stream:
    """What one end sent on one connection. Its first byte is 0 if the capture has its beginning."""

    flow: Flow
    first: int  # packet
    base: int  # the sequence number of place 0
    has_beginning: bool
    end: int = 0
    is_over: bool = False
    segments: list[Segment] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    beginnings: list[int] = field(default_factory=list)  # places of segments, in order

    @property
    def name(self) -> str:
        source, sport, destination, dport = self.flow
        return (
            f"{ipaddress.ip_address(source)}:{sport} to {ipaddress.ip_address(destination)}:{dport}"
        )

    def place_of(self, sequence: int) -> int:
        """Return the place of a sequence number, which begins again at 0 after 4 GiB."""
        return self.end + (sequence - self.base - self.end + 2**31) % 2**32 - 2**31

    def add(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.end = max(self.end, segment.place + segment.length)

    def join(self, notes: Notes) -> None:
        """Put the segments in order; of bytes that came twice the first count."""
        segments = sorted(self.segments, key=lambda segment: (segment.place, segment.number))
        self.beginnings = [segment.place for segment in segments]
        reached = 0 if self.has_beginning or not segments else segments[0].place
        for segment in segments:
            if segment.place > reached:
                note(notes, "Bytes of a stream are missing before", segment.number)
            reached = max(reached, segment.place + segment.length)
            if segment.data:
                self._join(segment, notes)

    def _join(self, segment: Segment, notes: Notes) -> None:
        _, place, data, _ = segment
        if not self.pieces or place > self.pieces[-1].end:
            self.pieces.append(Piece(place, bytearray(), []))
        piece = self.pieces[-1]
        known = piece.data[place - piece.place :][: len(data)]
        if known != data[: len(known)]:
            note(notes, "Other bytes than before, and so not shown, are in", segment.number)
        if len(data) > len(known):
            piece.data.extend(data[len(known) :])
            latest = max(segment.number, piece.ends[-1][1] if piece.ends else 0)
            piece.ends.append((piece.end, latest))

    def take(self, place: int, count: int) -> Taken:
        """Return some bytes of a stream whose segments were joined."""
        data = bytearray(count)
        missing: set[int] = set()
        number = 0
        reached = place
        for at in range(self.index(place), len(self.pieces)):
            piece = self.pieces[at]
            if piece.place >= place + count:
                break
            start = max(place, piece.place)
            end = min(place + count, piece.end)
            if start < end:
                there = slice(start - piece.place, end - piece.place)
                data[start - place : end - place] = piece.data[there]
                missing.update(range(reached - place, start - place))
                reached = end
                number = max(number, piece.ends[bisect_left(piece.ends, (end, 0))][1])
        missing.update(range(reached - place, count))
        return Taken(bytes(data), frozenset(missing), number)

    def end_of_piece(self, place: int) -> int:
        """Return where the next gap is."""
        return self.pieces[self.index(place)].end

    def index(self, place: int) -> int:
        """Return which piece has a place, or is the last before it; 0 if there is none."""
        return max(0, bisect_right(self.pieces, place, key=lambda piece: piece.place) - 1)


def note(notes: Notes, reason: str, number: int) -> None:
    notes.setdefault(reason, []).append(number)


def sentences(notes: Notes) -> list[str]:
    """Return a sentence for each thing that was not read, or not whole."""
    found = []
    for reason, numbers in notes.items():
        named = ", ".join(map(str, numbers[:MOST_NUMBERS]))
        more = f" and {len(numbers) - MOST_NUMBERS} more" if len(numbers) > MOST_NUMBERS else ""
        found.append(f"{reason} packet{'s' if len(numbers) > 1 else ''} {named}{more}")
    return found


# The file -----------------------------------------------------------------------------------------


def is_capture(data: bytes) -> bool:
    return data[:4] in PCAP or data[:4] == PCAPNG


def packets_in(data: bytes) -> Iterator[Packet]:
    """Return the packets of a file. Raises struct.error or IndexError where the file goes wrong."""
    return pcapng_packets(data) if data[:4] == PCAPNG else pcap_packets(data)


def pcap_packets(data: bytes) -> Iterator[Packet]:
    order = PCAP[data[:4]]
    (link_type,) = struct.unpack_from(f"{order}H" if order == "<" else ">2xH", data, 20)
    at = 24
    while at < len(data):
        captured, length = struct.unpack_from(f"{order}8xII", data, at)
        yield Packet(link_type, piece_of(data, at + 16, captured), length)
        at += 16 + captured


def pcapng_packets(data: bytes) -> Iterator[Packet]:
    """Sections may differ in byte order; an interface is named by its number in its section."""
    order = "<"
    interfaces: list[tuple[int, int]] = []  # link types and snapshot lengths
    at = 0
    while at < len(data):
        if data[at : at + 4] == PCAPNG:
            order = "<" if data[at + 8 : at + 9] == b"\x4d" else ">"
            interfaces = []
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if size < 12:
            raise struct.error
        block = piece_of(data, at, size)
        if kind == INTERFACE:
            interfaces.append(struct.unpack_from(f"{order}H2xI", block, 8))
        elif kind in (PACKET, OLD_PACKET):
            number = f"{order}{'I' if kind == PACKET else 'H2x'}8xII"
            interface, captured, length = struct.unpack_from(number, block, 8)
            yield Packet(interfaces[interface][0], piece_of(block, 28, captured), length)
        elif kind == SIMPLE_PACKET:
            link_type, most = interfaces[0]
            (length,) = struct.unpack_from(f"{order}I", block, 8)
            yield Packet(link_type, piece_of(block, 12, min(length, most or length)), length)
        at += size


def piece_of(data: bytes, at: int, count: int) -> bytes:
    """Return some bytes that have to be there. Raises struct.error."""
    return bytes(struct.unpack_from(f"{count}s", data, at)[0])


# Packets ------------------------------------------------------------------------------------------


class NotRead(Exception):
    """A packet that has nothing for us; the message is a sentence that its number ends."""


def tcp_in(packet: Packet, dpkt: Any) -> tuple[Any, int]:
    """Return the IP packet with TCP in a packet, and the bytes that TCP carried. Raises NotRead."""
    try:
        ip = ip_in(packet, dpkt)
    except (dpkt.Error, IndexError):
        raise NotRead("Cut before its TCP header, or no packet at all:") from None
    is_6 = isinstance(ip, dpkt.ip6.IP6)
    is_ip = isinstance(ip, (dpkt.ip.IP, dpkt.ip6.IP6))
    if not is_ip or getattr(ip, "p", None) != dpkt.ip.IP_PROTO_TCP:  # encrypted IPv6 has no p
        raise NotRead("Not TCP, and so not read:")
    if FRAGMENT in ip.extension_hdrs if is_6 else ip.offset or ip.mf:
        raise NotRead("A fragment of an IP packet, and so not read:")
    if not isinstance(ip.data, dpkt.tcp.TCP):
        raise NotRead("Cut before the end of its TCP header, and so not read:")
    headers = 4 * ip.data.off + (
        sum(ext.length for ext in ip.all_extension_headers) if is_6 else 4 * ip.hl
    )
    declared = ip.plen if is_6 else ip.len  # 0 if the network card cuts the packet later
    carried = declared - headers if declared else len(ip.data.data) + missing_in(packet)
    return ip, max(carried, len(ip.data.data))


def missing_in(packet: Packet) -> int:
    return packet.length - len(packet.data)


def ip_in(packet: Packet, dpkt: Any) -> Any:
    """Return what the link layer carries. Raises NotRead, IndexError and errors of dpkt."""
    link_type, data, _ = packet
    if link_type == COOKED:
        return dpkt.ethernet.Ethernet(bytes(12) + data[14:]).data
    if link_type == COOKED_2:
        return dpkt.ethernet.Ethernet(bytes(12) + data[:2] + data[20:]).data
    if link_type == ETHERNET:
        return dpkt.ethernet.Ethernet(data).data
    if link_type not in BEFORE_IP:
        raise NotRead(f"Of link type {link_type}, which is not read here:")
    bare = data[BEFORE_IP[link_type] :]
    return dpkt.ip6.IP6(bare) if bare[0] >> 4 == 6 else dpkt.ip.IP(bare)


# Streams ------------------------------------------------------------------------------------------


class Connections:
    """The streams of a capture. Each SYN begins a new one, even between the same ports."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._current: dict[Flow, Stream] = {}

    def add(self, number: int, ip: Any, carried: int) -> None:
        """Add what a packet with TCP carries to the stream that it belongs to."""
        tcp = ip.data
        flow = (ip.src, tcp.sport, ip.dst, tcp.dport)
        stream = self._current.get(flow)
        first = (tcp.seq + 1) % 2**32 if tcp.flags & SYN else tcp.seq
        if tcp.flags & SYN and (stream is None or stream.is_over or stream.base != first):
            if not tcp.flags & ACK:
                self._current.pop((ip.dst, tcp.dport, ip.src, tcp.sport), None)
            stream = self._begin(flow, number, first, has_beginning=True)
        elif stream is None or abs(stream.place_of(first) - stream.end) > FAR:
            stream = self._begin(flow, number, first, has_beginning=False)
        if carried or not (stream.is_over or tcp.flags & RST):  # a FIN has a number, but no byte
            place = stream.place_of(first)
            stream.add(Segment(number, place, bytes(tcp.data), carried))
        stream.is_over = stream.is_over or bool(tcp.flags & (FIN | RST))

    def _begin(self, flow: Flow, number: int, base: int, *, has_beginning: bool) -> Stream:
        stream = Stream(flow, number, base, has_beginning)
        self._current[flow] = stream
        self.streams.append(stream)
        return stream


def streams_in(data: bytes, notes: Notes) -> list[Stream]:
    """Return the streams of a capture file, in the order of their first packets. UserError."""
    dpkt = needed("dpkt")
    connections = Connections()
    number = 0
    try:
        for number, packet in enumerate(packets_in(data), 1):
            try:
                ip, carried = tcp_in(packet, dpkt)
            except NotRead as reason:
                note(notes, str(reason), number)
                continue
            if carried > len(ip.data.data):
                note(notes, "Cut short when it was captured:", number)
            connections.add(number, ip, carried)
    except (struct.error, IndexError):
        note(notes, "The file is cut off or damaged, and nothing could be read after", number)
    for stream in connections.streams:
        stream.join(notes)
    return connections.streams
