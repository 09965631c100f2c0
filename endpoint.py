"""What server.py and client.py share: their flags, key files, key log and trace.

Keys are read and made here, never shown; only --keylog writes them down, and says so.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import os
import re
import secrets
import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crypto_utils import AES_KEY_BYTES, TAG_BYTES, fingerprint
from program import (
    Parser,
    UserError,
    flag_type,
    keep_inputs,
    new_folder,
    plain,
    port_number,
    read_whole,
    reason_of,
    to_stderr,
)
from protocol_fsm import (
    HEADER,
    MIN_MASTER_KEY,
    Direction,
    Header,
    Json,
    Keys,
    Opcode,
    Seen,
    Session,
    Watcher,
)

HOST = "127.0.0.1"
PORT = 9999
DEMO_KEYS = {n: f"client{n}_master_k".encode() for n in range(1, 6)}  # published: no secrets
OPCODE_NAMES = {opcode.value: opcode.name for opcode in Opcode}
DEMO_WARNING = "warning: the demo keys are published, and protect nothing"


def loopback_address(host: str) -> str:
    """Return an address of `host` if all of them are this machine's own, else "". UserError.

    That address is to be used: a moment later the name could lead elsewhere.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host named {host!r}") from None
    addresses = [ipaddress.ip_address(str(entry[4][0])) for entry in found]
    if not all(address.is_loopback for address in addresses):
        return ""
    return str(min(addresses, key=lambda address: address.version))  # of IPv4 if it has one


def choose_keys(path: str | None, host: str) -> tuple[dict[int, bytes], str]:
    """Return master keys by client id, and the host to use with them. Raises UserError.

    Without a key file these are the demo keys, and an address on loopback.
    """
    if path is not None:
        return load_keys(Path(path)), host
    address = loopback_address(host)
    if not address:
        raise UserError(
            f"the demo keys are published, and {host} is not loopback; make your own: "
            "python server.py --generate-keys DIR --ids 1-40"
        )
    return dict(DEMO_KEYS), address


def load_keys(path: Path) -> dict[int, bytes]:
    """Read lines of id:hex, ids 1 to 255, keys of 16 bytes or more. Raises UserError."""
    keys: dict[int, bytes] = {}
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        if sys.platform != "win32" and path.stat().st_mode & 0o077:
            raise UserError(f"others can read the keys in {path}; make it yours: chmod 600 {path}")
        lines = read_whole(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read keys from {path}: {reason_of(error)}") from None
    for number, line in enumerate(lines, 1):
        if match := re.fullmatch(r"\s*([0-9]{1,3})\s*:\s*((?:[0-9a-fA-F]{2})+)\s*", line):
            client_id = int(match[1])
            key = bytes.fromhex(match[2])
            if 1 <= client_id <= 255 and len(key) >= MIN_MASTER_KEY and client_id not in keys:
                keys[client_id] = key
                continue
        if line.strip():
            raise UserError(
                f"{path} line {number} is not id:hex with a new id from 1 to 255 and "
                f"{MIN_MASTER_KEY} bytes or more"
            )
    if not keys:
        raise UserError(f"there are no keys in {path}")
    return keys


def generate_keys(directory: Path, ids: list[int]) -> None:
    """Write server.keys and a client-N.key for each id, mode 0600, all or nothing. UserError."""
    lines = {f"client-{n}.key": f"{n}:{secrets.token_hex(32)}\n" for n in ids}
    try:
        with new_folder(directory) as unfinished:
            for name, text in {"server.keys": "".join(lines.values()), **lines}.items():
                with open(os.open(unfinished / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(text)
    except OSError as error:
        raise UserError(f"cannot write keys to {directory}: {reason_of(error)}") from None


NewSession = Callable[[int, bytes, Direction], Session]  # client id, master key, what it sends


def opcode_of(message: bytes) -> str:
    """Name the opcode of a message, whatever stands there."""
    return OPCODE_NAMES.get(message[0], f"opcode {message[0]}")


def trace_line(seen: Seen) -> str:
    """Show a message in two lines: its public fields, and the names of the keys after it."""
    header = Header(*HEADER.unpack_from(seen.message))
    arrow = "->" if seen.verdict == "sealed" else "<-"
    keys = " ".join(map(" ".join, seen.fingerprints.items()))
    return (
        f"{arrow} {opcode_of(seen.message)} id {header.client_id} round {header.round_number} "
        f"direction {header.direction}, {len(seen.message)} bytes, "
        f"tag {seen.message[-TAG_BYTES:][:4].hex()}..\n   keys now {keys}"
    )


class KeyLogger:
    """Writes the keys and messages of one session [classroom/KEYLOG.md]; nothing else does."""

    def __init__(self, write: Callable[[str], object], client_id: int, sends: Direction) -> None:
        self._write = write
        self._client_id = client_id
        self._end = "client" if sends is Direction.C2S else "server"
        self._latest: dict[str, str] = {}  # fingerprints by direction, of what is written already

    def log_keys(self, keys: Keys) -> None:
        """Write the pair of keys of each direction, if it has moved."""
        for way in ("C2S", "S2C"):
            encryption = keys[f"{way}-ENC"][:AES_KEY_BYTES]
            mac = keys[f"{way}-MAC"]
            if self._latest.get(way) != fingerprint(mac):
                self._latest[way] = fingerprint(mac)
                self._write(f"core {way} {self._client_id} {encryption.hex()} {mac.hex()}\n")

    def log_message(self, seen: Seen) -> None:
        """Write a message, and its plaintext if it was sealed or accepted."""
        message = seen.message.hex()
        plaintext = seen.plaintext.hex() or "-"
        self._write(f"core-text {self._end} {seen.verdict} {message} {plaintext}\n")


def open_key_log(path: str) -> Callable[[str], object]:
    """Open a key log, and return what appends a line to it in one write. Raises UserError."""
    try:
        binary = getattr(os, "O_BINARY", 0)  # else Windows writes a long line in pieces
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | binary, 0o600)
        if sys.platform != "win32" and os.fstat(file).st_mode & 0o077:
            raise PermissionError(0, "others can read it; make it yours with chmod 600")
    except OSError as error:
        raise UserError(f"cannot log keys to {path}: {reason_of(error)}") from None
    to_stderr(f"WARNING: all keys go to {path}; anyone who reads it can read everything")

    lock = threading.Lock()

    def write(line: str) -> None:
        with lock:  # the threads of a server share the place in the file
            if ends_inside_a_line(file):
                line = f"\n{line}"
            written = os.write(file, line.encode())
        if written < len(line):
            raise OSError(errno.ENOSPC, "a line of the log is cut short")

    return write


def ends_inside_a_line(file: int) -> bool:
    """Return whether the last line of a file has no end, as on a disk that was full."""
    try:
        os.lseek(file, -1, os.SEEK_END)
    except OSError:  # it is empty, or a pipe
        return False
    return os.read(file, 1) != b"\n"


def session_factory(
    options: argparse.Namespace, write_line: Callable[[str], object] = to_stderr
) -> NewSession:
    """Return what makes sessions, watched as --trace and --keylog ask. Raises UserError."""
    write_key = None if options.keylog is None else open_key_log(options.keylog)

    def new_session(client_id: int, master_key: bytes, sends: Direction) -> Session:
        watchers: list[Watcher] = []
        log_keys = None
        if write_key:
            logger = KeyLogger(write_key, client_id, sends)
            log_keys = logger.log_keys
            watchers.append(logger.log_message)
        if options.trace:
            watchers.append(lambda seen: write_line(trace_line(seen)))
        return Session(client_id, master_key, sends, watchers=watchers, key_log=log_keys)

    return new_session


class EndpointParser(Parser):
    """The flags that server and client share."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.add_argument("--host", default=HOST, help=f"default {HOST}")
        self.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
        self.add_argument("--keys", metavar="FILE", help="master keys, lines of id:hex")
        self.add_argument("--patient", action="store_true", help="no deadlines (loopback only)")
        self.add_argument("--trace", action="store_true", help="show every message on stderr")
        self.add_argument(
            "--keylog", metavar="FILE", help="write all keys to FILE, for tools that decrypt"
        )

    def options(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the flags of this command line, or of these words. Raises UserError."""
        options = super().options(words)
        keep_inputs(options.keylog, options.keys)
        if options.patient:
            address = loopback_address(options.host)
            if not address:
                raise UserError(f"--patient is for loopback only, which {options.host} is not")
            options.host = address
        return options


@flag_type("a list of ids from 1 to 255, like 1-40 or 1,3,7-9")
def id_list(text: str) -> list[int]:
    """Return the client ids in text like 1-40 or 1,3,7-9. Raises WrongValue."""
    ids: set[int] = set()
    for part in plain(text).split(","):
        low, _, high = part.partition("-")
        if not 1 <= int(low) <= int(high or low) <= 255:
            raise ValueError(text)
        ids.update(range(int(low), int(high or low) + 1))
    return sorted(ids)


def describe(answer: Mapping[str, Json], columns: int = 79) -> str:
    """Put an aggregate into lines of at most 79 columns, with each name beside its value."""
    words = []
    for name, value in answer.items():
        items = value if isinstance(value, list) else [value]
        # JSON escapes control characters and all that is not ASCII
        shown = [f"{item:.6g}" if isinstance(item, float) else json.dumps(item) for item in items]
        comma = ", " if len(",".join(shown)) > 40 else ","  # a line may end at a blank
        text = f"[{comma.join(shown)}]" if isinstance(value, list) else shown[0]
        words.append(f"{json.dumps(name)[1:-1]}\0{text}")
    return textwrap.fill("  ".join(words), columns, subsequent_indent="    ").replace("\0", " ")
