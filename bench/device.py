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
import sys
import tempfile
import time
from collections.abc import Callable
from getpass import getpass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench.certificate import write_certificate
from bench.compare import Took, compare, counts, write_numbers
from bench.measure import LIMIT_S, Failed, Moment, hear, measurement, now, process, since
from bench.rivals import HOST, tls_context
from companions.device_transfer import ca
from companions.device_transfer.certificates import Identity, Role, Trust, load_identity, load_trust
from companions.device_transfer.device import Device
from companions.device_transfer.server import Server
from program import run_program

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


class Sent(NamedTuple):
    """What the sending process tells."""

    took: Moment
    channel: str


# The lean rivals ----------------------------------------------------------------------------------


def receive_lean(pipe: Connection, rival: str, folder: Path) -> None:
    """In the receiving process: take one file to the disk, and answer with its digest, if any."""
    tls = tls_context(rival, folder, is_server=True)
    with socket.create_server((HOST, 0)) as listener:
        pipe.send(listener.getsockname())
        sock = listener.accept()[0]
        before_s = time.process_time()
    with (
        sock if rival == "plain" else tls.wrap_socket(sock, server_side=True) as sock,
        sock.makefile("rb") as stream,
        open(folder / "received" / LEAN_NAME, "wb", buffering=0) as file,
    ):
        sock.sendall(bytes(1))  # the handshake is over at both ends
        left = int.from_bytes(stream.read(8), "big")
        answer = copy(stream.readinto, file.write, left, rival == "digest")
        os.fsync(file.fileno())
        sock.sendall(answer)
    pipe.recv()
    pipe.send(time.process_time() - before_s)


def send_lean(rival: str, address: tuple[str, int], path: Path, folder: Path) -> Sent:
    """Send one file, in the sending process."""
    tls = tls_context(rival, folder, is_server=False)
    sock = socket.create_connection(address)
    with (
        sock if rival == "plain" else tls.wrap_socket(sock, server_hostname=HOST) as sock,
        sock.makefile("rb") as stream,
        path.open("rb", buffering=0) as file,
    ):
        stream.read(1)
        began = now()
        size = path.stat().st_size
        sock.sendall(size.to_bytes(8, "big"))
        if isinstance(sock, ssl.SSLSocket):
            digest = copy(file.readinto, sock.sendall, size, rival == "digest")
            channel = f"{sock.version()}, {(sock.cipher() or '?')[0]}"
        else:
            sock.sendfile(file)
            digest = bytes(32)
            channel = "nothing protects it"
        if stream.read(32) != digest:
            sys.exit("the file that came is not the one that was sent")
        return Sent(since(began), channel)


def copy(
    readinto: Callable[[memoryview], int | None],
    write: Callable[[memoryview], object],
    left: int,
    is_hashed: bool,
) -> bytes:
    """Pass so many bytes on, and return their digest (32 bytes), or as many zeros."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    digest = hashlib.sha256()
    while left:
        filled = readinto(buffer[:left]) or sys.exit("the other end is gone")
        if is_hashed:
            digest.update(buffer[:filled])
        write(buffer[:filled])
        left -= filled
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


def run_slice(rival: str, path: Path, folder: Path) -> Took:
    """Have a rival send the file once, from a fresh process to another; per MB. Raises Failed."""
    with process(receive_ours if rival == "ours" else receive_lean, rival, folder) as receiver:
        address = hear(receiver)
        with process(send, rival, address, path, folder) as sender:
            sent: Sent = hear(sender)
        receiver.send("stop")
        receiver_s = hear(receiver)
    check_received(rival, path, folder)
    size_mb = path.stat().st_size / 1e6
    processor_s = {"sender": sent.took.processor_s / size_mb, "receiver": receiver_s / size_mb}
    return Took(sent.took.wall_s / size_mb, processor_s, sent.channel)


def check_received(rival: str, path: Path, folder: Path) -> None:
    """Compare what came with what was sent, and remove it. Raises Failed."""
    received = folder / "received" / (path.name if rival == "ours" else LEAN_NAME)
    if not received.exists() or not filecmp.cmp(path, received, shallow=False):
        raise Failed(f"{NAMES[rival]} has not sent all of the file")
    received.unlink()


def prepare(folder: Path, size_mib: int) -> Path:
    """Make certificates for all, and a file of random bytes; return its path."""
    write_certificate(folder, HOST)
    ca.create(folder / "pki")
    ca.issue(folder / "pki", "server-1", Role.SERVER)
    ca.issue(folder / "pki", "device-1", Role.DEVICE)
    (folder / "received").mkdir()
    path = folder / "video.bin"
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    return path


@measurement
def main() -> int:
    options = counts(
        "Sends one file over ours and over TLS, and compares.",
        {"--size": (SIZE_MIB, "MiB of the file"), "--turns": (TURNS, "of all rivals")},
    )
    title = f"A file of {options.size:,} MiB, {options.turns} times each"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = prepare(folder, options.size)
        found = compare(title, "MB", NAMES, options.turns, lambda one: run_slice(one, path, folder))
    size_bytes = options.size * MIB
    write_numbers(options, {"openssl": ssl.OPENSSL_VERSION, "size_bytes": size_bytes, **found})
    return 0


if __name__ == "__main__":
    run_program(main)
