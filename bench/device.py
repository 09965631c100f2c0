"""The benchmark of device_transfer: one file from process to disk, over ours and over TLS.

    python -m bench.device [--size MIB] [--turns N] [--json FILE]

All do the same work over loopback: a process reads the file and sends it, another writes it to its
disk, has the disk confirm that (fsync), and answers. The clock runs from the first byte to the
answer. Each turn every rival sends once (measure.py). The files are in the folder for temporary
ones: TMPDIR chooses the disk.

- plain, tls12, tls13: as lean as Python allows; large pieces, one buffer, no deadlines, no limits;
- digest: tls13, and both ends compute SHA-256 of the file and compare it, as a signed file needs;
- ours: `Device` and `Server` as they are, with rekeying, signature, journal and all their checks.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from getpass import getpass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.certificate import write_certificate
from bench.flags import counts, write_numbers
from bench.measure import (
    LIMIT_S,
    Failed,
    Moment,
    Spread,
    bars,
    hear,
    measurement,
    now,
    process,
    ratio,
    since,
    told_turns,
)
from bench.rivals import HOST, tls_context
from companions.device_transfer.certificates import Identity, Trust, load_identity, load_trust
from companions.device_transfer.device import Device
from companions.device_transfer.server import Server
from program import run_program

ROOT = Path(__file__).resolve().parent.parent
NAMES = {
    "plain": "plain TCP",
    "tls12": "TLS 1.2",
    "tls13": "TLS 1.3",
    "digest": "TLS 1.3 + digest",
    "ours": "ours",
}
SIZE_MIB = 256
TURNS = 7
PIECE_BYTES = 256 * 1_024  # of the lean rivals: larger is not faster
LEAN_NAME = "file"  # of what the lean rivals receive
MIB = 2**20


class Slice(NamedTuple):
    """What one sending showed, in seconds: on the clock, and of the processor at either end."""

    wall_s: float
    sender_s: float
    receiver_s: float
    channel: str


class Sent(NamedTuple):
    """What the sending process tells."""

    took: Moment
    channel: str


# The lean rivals ----------------------------------------------------------------------------------


def context(rival: str, folder: Path, *, is_server: bool) -> ssl.SSLContext | None:
    """Return what TLS needs; nothing for plain TCP."""
    if rival == "plain":
        return None
    return tls_context("tls12" if rival == "tls12" else "tls13", folder, is_server=is_server)


def receive_lean(pipe: Connection, rival: str, folder: Path) -> None:
    """In the receiving process: take one file to the disk, and answer with its digest, if any."""
    tls = context(rival, folder, is_server=True)
    with socket.create_server((HOST, 0)) as listener:
        pipe.send(listener.getsockname())
        sock = listener.accept()[0]
        before_s = time.process_time()
    with tls.wrap_socket(sock, server_side=True) if tls else sock as sock:
        sock.sendall(bytes(1))  # the handshake is over at both ends
        left = int.from_bytes(receive_exactly(sock, 8), "big")
        with open(folder / "received" / LEAN_NAME, "wb", buffering=0) as file:
            answer = take(sock, left, file.write, rival == "digest")
            os.fsync(file.fileno())
        sock.sendall(answer)
    pipe.send(time.process_time() - before_s)


def receive_exactly(sock: socket.socket, wanted: int) -> bytes:
    received = b""
    while len(received) < wanted:
        received += sock.recv(wanted - len(received)) or sys.exit("the sender is gone")
    return received


def take(
    sock: socket.socket, left: int, write: Callable[[memoryview], object], is_hashed: bool
) -> bytes:
    """Write what comes, and return its digest (32 bytes), or as many zeros."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    digest = hashlib.sha256()
    while left:
        filled = 0
        wanted = min(left, PIECE_BYTES)
        while filled < wanted:
            filled += sock.recv_into(buffer[filled:wanted]) or sys.exit("the sender is gone")
        if is_hashed:
            digest.update(buffer[:filled])
        write(buffer[:filled])
        left -= filled
    return digest.digest() if is_hashed else bytes(32)


def send_lean(rival: str, address: tuple[str, int], path: Path, folder: Path) -> Sent:
    """Send one file, in the sending process."""
    tls = context(rival, folder, is_server=False)
    sock = socket.create_connection(address)
    with tls.wrap_socket(sock, server_hostname=HOST) if tls else sock as sock:
        receive_exactly(sock, 1)
        began = now()
        with path.open("rb", buffering=0) as file:
            sock.sendall(path.stat().st_size.to_bytes(8, "big"))
            if isinstance(sock, ssl.SSLSocket):
                digest = give(sock, file.readinto, rival == "digest")
            else:
                sock.sendfile(file)
                digest = bytes(32)
        if receive_exactly(sock, 32) != digest:
            sys.exit("the file that came is not the one that was sent")
        return Sent(since(began), describe(sock))


def describe(sock: socket.socket) -> str:
    """Name the version and the cipher."""
    cipher = sock.cipher() if isinstance(sock, ssl.SSLSocket) else None
    return f"{cipher[1]}, {cipher[0]}" if cipher else "nothing protects it"


def give(
    sock: socket.socket, readinto: Callable[[memoryview], int | None], is_hashed: bool
) -> bytes:
    """Send all of a file, and return its digest (32 bytes), or as many zeros."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    digest = hashlib.sha256()
    while size := readinto(buffer):
        if is_hashed:
            digest.update(buffer[:size])
        sock.sendall(buffer[:size])
    return digest.digest() if is_hashed else bytes(32)


# Ours ---------------------------------------------------------------------------------------------


def party(folder: Path, name: str) -> tuple[Identity, Trust]:
    return load_identity(folder / "pki" / name, getpass), load_trust(folder / "pki" / name)


def receive_ours(pipe: Connection, rival: str, folder: Path) -> None:
    """In the receiving process: serve until the sender has what it wants."""
    with Server(*party(folder, "server-1"), folder / "received", HOST, 0) as server:
        before_s = time.process_time()
        pipe.send(server.address)
        pipe.recv()
        pipe.send(time.process_time() - before_s)


def send_ours(rival: str, address: tuple[str, int], path: Path, folder: Path) -> Sent:
    """Send one file, in the sending process."""
    with Device(*party(folder, "device-1"), "server-1", *address, timeout_s=LIMIT_S) as device:
        began = now()
        device.send_file(path)
        return Sent(since(began), "device_transfer v1, AES128-CBC, HMAC-SHA256")


# One slice, and all of them -----------------------------------------------------------------------


def send(pipe: Connection, rival: str, address: tuple[str, int], path: Path, folder: Path) -> None:
    """In the sending process."""
    pipe.send((send_ours if rival == "ours" else send_lean)(rival, address, path, folder))


def run_slice(rival: str, path: Path, folder: Path) -> Slice:
    """Have `rival` send the file once, from a fresh process to another one. Raises Failed."""
    with process(receive_ours if rival == "ours" else receive_lean, rival, folder) as receiver:
        address = hear(receiver)
        with process(send, rival, address, path, folder) as sender:
            sent: Sent = hear(sender)
        if rival == "ours":
            receiver.send("stop")
        receiver_s = hear(receiver)
    check_received(rival, path, folder)
    return Slice(sent.took.wall_s, sent.took.processor_s, receiver_s, sent.channel)


def check_received(rival: str, path: Path, folder: Path) -> None:
    """Hold what came against what was sent, and remove it. Raises Failed."""
    received = folder / "received" / (path.name if rival == "ours" else LEAN_NAME)
    if not received.exists() or not filecmp.cmp(path, received, shallow=False):
        raise Failed(f"{NAMES[rival]} has not sent all of the file")
    received.unlink()


def certify(pki: Path) -> None:
    """Make an authority, a server and a device, with the program that does so. Raises Failed."""
    for words in (
        ["create"],
        ["issue", "server-1", "--role=server"],
        ["issue", "device-1", "--role=device"],
    ):
        command = [
            sys.executable,
            "-m",
            "companions.device_transfer.ca",
            words[0],
            str(pki),
            *words[1:],
        ]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
            raise Failed("the authority did not make its certificates")


def prepare(folder: Path, size_bytes: int) -> Path:
    """Make certificates for all, and a file of random bytes; return its path."""
    write_certificate(folder, HOST)
    certify(folder / "pki")
    (folder / "received").mkdir()
    path = folder / "video.bin"
    with path.open("wb") as file:
        for at in range(0, size_bytes, MIB):
            file.write(os.urandom(min(MIB, size_bytes - at)))
        os.fsync(file.fileno())
    return path


def run(size_bytes: int, turn_count: int) -> dict[str, list[Slice]]:
    """Return the slices of every rival, in the order of turns. Raises Failed."""
    with tempfile.TemporaryDirectory() as name:
        path = prepare(Path(name), size_bytes)
        return told_turns(
            NAMES,
            turn_count,
            lambda rival: run_slice(rival, path, Path(name)),
            lambda seen: f"{size_bytes / 1e6 / seen.wall_s:,.0f} MB/s",
        )


# What it tells ------------------------------------------------------------------------------------


def of(ours: Sequence[Slice], theirs: Sequence[Slice]) -> Spread:
    """Return what share of their speed is ours."""
    return ratio([each.wall_s for each in theirs], [each.wall_s for each in ours])


def table(size_bytes: int, seen: Mapping[str, Sequence[Slice]]) -> str:
    """Return the table and the bars, in ASCII of at most 79 columns."""
    rates = {
        rival: size_bytes / 1e6 / median(each.wall_s for each in slices)
        for rival, slices in seen.items()
    }
    lines = [
        "                     MB/s   processor ms a MB    ours, of its speed",
        "                            sender  receiver     median (quartiles)",
    ]
    for rival, slices in seen.items():
        cost = [
            1e9 * median(times) / size_bytes
            for times in zip(*((each.sender_s, each.receiver_s) for each in slices))
        ]
        share = "" if rival == "ours" else of(seen["ours"], slices)
        lines.append(
            f"{NAMES[rival]:17} {rates[rival]:7,.0f}   {cost[0]:7.2f}   {cost[1]:7.2f}     {share}"
        )
    notes = [f"{NAMES[rival]}: {slices[0].channel}" for rival, slices in seen.items()]
    return "\n".join(
        [
            f"A file of {size_bytes / MIB:,.0f} MiB, {len(seen['ours'])} times each",
            *notes,
            "",
            *lines,
            "",
            *bars({NAMES[rival]: rate for rival, rate in rates.items()}, 17),
        ]
    )


def numbers(size_bytes: int, seen: Mapping[str, Sequence[Slice]]) -> Mapping[str, object]:
    """Return all that was found, for a file."""
    return {
        "openssl": ssl.OPENSSL_VERSION,
        "size_bytes": size_bytes,
        "slices": {rival: [each._asdict() for each in given] for rival, given in seen.items()},
        "ours_of": {rival: of(seen["ours"], given) for rival, given in seen.items()},
    }


@measurement
def main() -> int:
    options = counts(
        "Sends one file over ours and over TLS, and compares.",
        {"--size": (SIZE_MIB, "MiB of the file"), "--turns": (TURNS, "of all rivals")},
    )
    seen = run(options.size * MIB, options.turns)
    print(table(options.size * MIB, seen))
    write_numbers(options, numbers(options.size * MIB, seen))
    return 0


if __name__ == "__main__":
    run_program(main)
