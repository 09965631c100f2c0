"""What server.py and client.py share: a Session on a socket, key files, and how a program ends.

One thread owns a Channel, any other may only ask it to end. Nothing waits without a limit: a
recv wakes every POLL_S to look at deadlines and requests. Keys are read and made, never shown.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import json
import math
import os
import queue
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from crypto_utils import AES_KEY_BYTES, TAG_BYTES
from protocol_fsm import (
    HEADER,
    MIN_MASTER_KEY,
    ConnectionCut,
    DeadlineExpired,
    Direction,
    Header,
    Json,
    Keys,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ProtocolState,
    Session,
    Status,
    read_frame,
    write_frame,
)

HOST = "127.0.0.1"
PORT = 9999
POLL_S = 0.2  # how soon a waiting thread notices a request
FRAME_S = 2.0  # a frame, once begun, must be whole within this
DRAIN_S = 0.25  # how long the peer has to read a farewell [P 3.7]
DEMO_KEYS = {n: f"client{n}_master_k".encode() for n in range(1, 6)}  # published: no secrets
OPCODE_NAMES = {opcode.value: opcode.name for opcode in Opcode}
DEMO_WARNING = "warning: these are the published demo keys; they protect nothing"


class UserError(Exception):
    """The user asked for what cannot be done; the message is a sentence for them."""

    exit_code = 2


class NoConnection(UserError):
    """There is no server to reach, or no port to listen on."""

    exit_code = 3


class EndRequested(Exception):
    """Our own side wants the session to end; `status` is what the peer will be told."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"ended by this side ({status.name})")
        self.status = status


class Channel:
    """A Session on a connected socket. Its owner calls `leave` at the end, however that came."""

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        frame_timeout_s: float = FRAME_S,
        trace: Callable[[str], object] | None = None,
    ) -> None:
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.session = session
        self._sock = sock
        self._trace = trace
        self._frame_timeout_s = frame_timeout_s
        self._frame_begun = False
        self._deadline = 0.0
        self._received = b""
        self._farewell = b""
        self._is_stuck = False  # a message of ours is sealed, and not sent
        self._requested: Status | None = None

    def request_end(self, status: Status) -> None:
        """Ask the owner to end the session. Any thread may; the first reason stands."""
        self._requested = self._requested or status

    def send_away(self, status: Status) -> None:
        """Ask the owner to end the session; if it leaves without a word, at once."""
        self.request_end(status)
        if self.session.state.phase is not ProtocolState.ACTIVE:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)  # which wakes it

    def check_request(self) -> None:
        if self._requested:
            raise EndRequested(self._requested)

    def read(self, deadline: float) -> bytes:
        """Return the next message, unopened. Its first byte has until `deadline` (monotonic)."""
        self._deadline = deadline
        self._frame_begun = False
        try:
            return read_frame(self._recv)
        except ProtocolError as error:
            self.session.fail(error)
            self._farewell = error.farewell
            raise

    def open(self, message: bytes) -> Message:
        try:
            return self.session.open(message)
        except ProtocolError as error:  # which has failed the session already
            self._farewell = error.farewell
            raise
        finally:  # what is refused is shown too
            self._show("<-", message)

    def receive(self, deadline: float) -> Message:
        return self.open(self.read(deadline))

    def send(self, opcode: Opcode, body: bytes = b"") -> None:
        """Seal and send. A peer that cannot be written to may have had a last word [P 3.7]."""
        message = self.session.seal(opcode, body)
        self._is_stuck = True  # until all of it is sent, no farewell can be understood
        self._show("->", message)
        try:
            self._write(message)
        except OSError:
            self.receive(time.monotonic() + FRAME_S)
            error = ConnectionCut(mid_frame=True)
            self.session.fail(error)
            raise error from None

    def idle(self, seconds: float) -> None:
        """Wait. What arrives meanwhile can only be the end; open it."""
        self._deadline = time.monotonic() + seconds
        self._frame_begun = False
        try:
            self._received = self._received or self._wait_for_bytes()
        except DeadlineExpired:
            return
        self.receive(time.monotonic() + FRAME_S)

    def leave(self, status: Status) -> None:
        """Say the farewell of a failure, or TERMINATE if the session is alive, and close [P 3.7].

        After a farewell the socket closes when the peer has closed it, or 0.25 s later.
        """
        with self._sock:
            if self.session.state.phase is ProtocolState.ACTIVE:
                self._farewell = self.session.seal(Opcode.TERMINATE, status=status)
            if self._farewell and not self._is_stuck:
                with contextlib.suppress(OSError):
                    self._say_farewell()

    def _say_farewell(self) -> None:
        self._show("->", self._farewell)
        self._write(self._farewell, DRAIN_S)
        self._sock.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + DRAIN_S
        while (left := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left)
            if not self._sock.recv(65_536):
                break

    def _recv(self, wanted: int) -> bytes:
        self._received = self._received or self._wait_for_bytes()
        if not self._frame_begun:
            self._frame_begun = True
            self._deadline = min(self._deadline, time.monotonic() + self._frame_timeout_s)
        taken = self._received[:wanted]
        self._received = self._received[wanted:]
        return taken

    def _wait_for_bytes(self) -> bytes:
        while True:
            self.check_request()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExpired("a whole frame" if self._frame_begun else "a message", "none")
            try:
                self._sock.settimeout(min(left, POLL_S))
                received = self._sock.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                received = b""  # a reset connection is a closed one
            self.check_request()
            return received

    def _write(self, message: bytes, limit_s: float = FRAME_S) -> None:
        self._sock.settimeout(limit_s)
        write_frame(self._sock.sendall, message)
        self._is_stuck = False

    def _show(self, arrow: str, message: bytes) -> None:
        if self._trace:
            opcode, client_id, round_number, direction = HEADER.unpack_from(message)
            name = OPCODE_NAMES.get(opcode, f"opcode {opcode}")
            keys = " ".join(map(" ".join, self.session.fingerprints().items()))
            self._trace(
                f"{arrow} {name} id {client_id} round {round_number} direction {direction}"
                f", {len(message)} bytes, tag {message[-TAG_BYTES:][:4].hex()}..\n"
                f"   keys now {keys}"
            )


def is_loopback(host: str) -> bool:
    """Tell whether every address of `host` is this machine's own. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host named {host!r}") from None
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)


def choose_keys(path: str | None, host: str) -> dict[int, bytes]:
    """Return master keys by client id: from the key file, or the demo keys if on loopback."""
    if path is not None:
        return load_keys(Path(path))
    if not is_loopback(host):
        raise UserError(
            f"the demo keys are published, and {host} is not loopback; make your own: "
            "python server.py --generate-keys DIR --ids 1-40"
        )
    return dict(DEMO_KEYS)


def load_keys(path: Path) -> dict[int, bytes]:
    """Read lines of id:hex, ids 1 to 255, keys of 16 bytes or more. Raises UserError."""
    keys: dict[int, bytes] = {}
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UserError(f"others can read the keys in {path}; make it yours: chmod 600 {path}")
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read keys from {path}: {reason_of(error)}") from None
    for number, line in enumerate(lines, 1):
        if match := re.fullmatch(r"\s*(\d{1,3})\s*:\s*((?:[0-9a-fA-F]{2})+)\s*", line):
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
        if directory.exists():
            raise FileExistsError(0, "it exists already")
        unfinished = Path(tempfile.mkdtemp(".partial", directory.name, directory.parent))
        try:
            for name, text in {"server.keys": "".join(lines.values()), **lines}.items():
                with open(os.open(unfinished / name, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                    file.write(text)
            unfinished.rename(directory)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write keys to {directory}: {reason_of(error)}") from None


class LoggedSession(Session):
    """Tells `log` its keys, and what it made of each message [classroom/KEYLOG.md].

    It is the only way in which keys and plaintexts leave a session.
    """

    def __init__(
        self, log: Callable[[str], object], client_id: int, key: bytes, sends: Direction
    ) -> None:
        super().__init__(client_id, key, sends)
        self._log = log
        self._who = ("client", "server")[sends]
        self._plaintext_seen = b""

    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        keys = super()._next_keys(message, ciphertext)
        begins = self.round_number == 0
        for way in ("C2S", "S2C"):
            enc = keys[f"{way}-ENC"][:AES_KEY_BYTES]
            mac = keys[f"{way}-MAC"]
            if begins or mac != self._keys[f"{way}-MAC"]:
                self._log(f"core {way} {self.client_id} {enc.hex()} {mac.hex()}\n")
        return keys

    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        self._plaintext_seen = plaintext
        return super()._check_payload(header, plaintext)

    def seal(self, opcode: Opcode, body: bytes = b"", *, status: Status = Status.OK) -> bytes:
        message = super().seal(opcode, body, status=status)
        self._log(f"core-text {self._who} sealed {message.hex()} {self._plaintext_seen.hex()}\n")
        return message

    def open(self, message: bytes) -> Message:
        verdict = "accepted"
        try:
            return super().open(message)
        except ProtocolError as error:
            verdict = verdict if isinstance(error, PeerTerminated) else type(error).__name__
            raise
        finally:
            plaintext = self._plaintext_seen.hex() if verdict == "accepted" else "-"
            self._log(f"core-text {self._who} {verdict} {message.hex()} {plaintext}\n")


def keylog(path: str) -> Callable[[int, bytes, Direction], Session]:
    """Return what makes sessions that append to a file [classroom/KEYLOG.md]. Raises UserError.

    Programs may share a file: a line, a write.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        if os.name == "posix" and os.fstat(file).st_mode & 0o077:
            raise PermissionError(0, "others can read it; make it yours with chmod 600")
    except OSError as error:
        raise UserError(f"cannot log keys to {path}: {reason_of(error)}") from None
    to_stderr(f"WARNING: all keys go to {path}; whoever reads it reads everything")

    def write(line: str) -> None:
        if os.write(file, line.encode()) < len(line):
            raise OSError(errno.ENOSPC, "a key is not in the log")

    return partial(LoggedSession, write)


def id_list(text: str) -> list[int]:
    """Return the client ids in text like 1-40 or 1,3,7-9. Raises ValueError."""
    ids: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not 1 <= int(low) <= int(high or low) <= 255:
            raise ValueError(text)
        ids.update(range(int(low), int(high or low) + 1))
    return sorted(ids)


def seconds(text: str) -> float:
    """Return a finite number above 0. Raises ValueError."""
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def positive(text: str) -> int:
    """Return a whole number above 0. Raises ValueError."""
    if not 1 <= int(text) <= sys.maxsize:
        raise ValueError(text)
    return int(text)


def describe(answer: Mapping[str, Json]) -> str:
    """Put an aggregate into lines of at most 79 columns, with each name beside its value."""
    words = []
    for name, value in answer.items():
        items = value if isinstance(value, list) else [value]
        # JSON keeps what is no number to ASCII, and control characters from the terminal
        shown = [f"{item:.6g}" if isinstance(item, float) else json.dumps(item) for item in items]
        comma = ", " if len(",".join(shown)) > 40 else ","  # where a line may end
        words.append(f"{json.dumps(name)[1:-1]}\0{comma.join(shown)}")
    return textwrap.fill("  ".join(words), 79, subsequent_indent="    ").replace("\0", " ")


def port_number(text: str) -> int:
    """Return a TCP port; 0 lets the system choose. Raises ValueError."""
    if not 0 <= int(text) <= 65_535:
        raise ValueError(text)
    return int(text)


def host_and_port(text: str) -> tuple[str, int]:
    """Return the two parts of HOST:PORT. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(text)
    return host.strip("[]"), port_number(port)


host_and_port.__name__ = "HOST:PORT"  # for argparse, which quotes it


class Lines:
    """Lines to stderr for which nobody waits: what a paused terminal does not take is dropped.

    Else whoever selects text in the server's window would stop all of its clients.
    """

    def __init__(self) -> None:
        self._texts: queue.Queue[str] = queue.Queue(10_000)
        threading.Thread(target=self._print, daemon=True).start()

    def write(self, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(text)

    def write_line(self, line: str) -> None:
        self.write(f"{line}\n")

    def drain(self) -> None:
        """Wait until all is printed, but not longer than half a second."""
        deadline = time.monotonic() + 0.5
        while self._texts.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _print(self) -> None:
        while True:
            text = self._texts.get()
            with contextlib.suppress(OSError):  # sys.stderr's lock is needed at the end
                os.write(2, text.encode(sys.stderr.encoding, "backslashreplace"))
            self._texts.task_done()


def to_stderr(line: str) -> None:
    """Print a line where it disturbs no output; that it cannot be printed disturbs no session."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """The flags of server and client; a wrong one is a UserError like any other."""

    def __init__(self, description: str, is_endpoint: bool = True) -> None:
        super().__init__(description=description)
        if not is_endpoint:
            return
        self.add_argument("--host", default=HOST, help=f"default {HOST}")
        self.add_argument("--port", type=port_number, default=PORT, help=f"default {PORT}")
        self.add_argument("--keys", metavar="FILE", help="master keys, lines of id:hex")
        self.add_argument("--patient", action="store_true", help="no deadlines (loopback only)")
        self.add_argument(
            "--trace", action="store_const", const=to_stderr, help="show every message on stderr"
        )
        self.add_argument("--keylog", metavar="FILE", help="write all keys there, to look inside")
        self.set_defaults(new_session=Session)

    def options(self) -> argparse.Namespace:
        options = self.parse_args()
        if vars(options).get("patient") and not is_loopback(options.host):
            raise UserError(f"--patient is for loopback only, which {options.host} is not")
        if "new_session" in options and options.keylog is not None:
            options.new_session = keylog(options.keylog)
        return options

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, without the rest."""
    reason: str = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        known = os.strerror(error.errno)
        return reason if known.startswith("Unknown error") else known  # of Windows' sockets
    return reason


def write_text(path: str, text: str) -> None:
    """Write a file of ASCII lines, the same on every system. Raises UserError."""
    try:
        with open(path, "w", encoding="ascii", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main`, and exit with its code or with one sentence on stderr; tidily on SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="replace" if mode == "r" else "backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
    except UserError as error:
        to_stderr(f"{Path(sys.argv[0]).name}: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, EOFError):
        code = 130  # before there was a session to end
    except BrokenPipeError:  # whoever read our output is gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # of our own output: a full disk, say
        to_stderr(f"{Path(sys.argv[0]).name}: {reason_of(error)}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 2
    sys.exit(code)
