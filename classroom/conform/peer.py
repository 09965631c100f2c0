"""The tester's end of one connection: it says what it likes, and names what it hears.

Its session is the core's own; messages that this would never send are forged under the same keys.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable

from crypto_utils import (
    AES_KEY_BYTES,
    NONCE_BYTES,
    aes_cbc_encrypt,
    derive_key,
    hmac_sha256,
    pkcs7_pad,
)
from endpoint import opcode_of
from protocol_fsm import (
    HEADER,
    KEY_LABELS,
    ConnectionCut,
    Direction,
    Keys,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    Seen,
    Session,
    read_frame,
    write_frame,
)

PATIENCE_S = 5.0  # for whatever must come; longer than every deadline that is not itself checked

LINGER_0 = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # closing sends a reset

CLOSED = "the end of the connection"
RESET = "a reset, by which data can be lost"  # an end, too, except where a farewell is at stake
NOTHING = "nothing"
VIOLATION = "TERMINATE (VIOLATION)"
DESYNC = "KEY_DESYNC_ERROR (VIOLATION)"
TIMEOUT = "TERMINATE (TIMEOUT)"
REPLACED = "TERMINATE (REPLACED)"


class Mismatch(Exception):
    """The implementation did something else than the protocol says."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")


class Peer:
    """One end of one session. `sends` C2S plays a client to a server, S2C a server to a client."""

    def __init__(
        self, sock: socket.socket, client_id: int, master_key: bytes, sends: Direction
    ) -> None:
        self.socket = sock
        self.keys: Keys = {label: derive_key(master_key, label) for label in KEY_LABELS}
        self.heard: list[bytes] = []  # all messages that came
        self.plaintexts: list[bytes] = []  # of those that were accepted
        self.session = Session(
            client_id, master_key, sends, watchers=[self._watch], key_log=self._hold
        )
        self.sent: bytes  # the last message that we sent
        with contextlib.suppress(OSError):  # the other end may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _hold(self, keys: Keys) -> None:
        self.keys = keys

    def _watch(self, seen: Seen) -> None:
        if seen.verdict == "accepted":
            self.plaintexts.append(seen.plaintext)

    # What it says

    def say(self, *messages: Message | bytes) -> None:
        """Send messages of the session, or bytes in place of one, in one segment."""
        frames = bytearray()
        for message in messages:
            self.sent = message if isinstance(message, bytes) else self.session.seal(message)
            write_frame(frames.extend, self.sent)
        self.pour(bytes(frames))

    def pour(self, data: bytes) -> None:
        """Send bytes without a frame; a connection that is closed already takes none."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(PATIENCE_S)
            self.socket.sendall(data)

    def finish(self) -> None:
        """Close our sending half."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def forged(
        self,
        opcode: int,
        body: bytes,
        *,
        sender: Direction | None = None,
        client_id: int | None = None,
        round_number: int | None = None,
        plaintext: bytes | None = None,
        padded: bytes | None = None,
        keys: Keys | None = None,
    ) -> bytes:
        """Return a message under the current keys, with a right tag; it moves none of them.

        Before the body goes a nonce (C2S) or the status OK (S2C); `plaintext` replaces both, and
        `padded` replaces what is encrypted.
        """
        sends = self.session.sends if sender is None else sender
        head = secrets.token_bytes(NONCE_BYTES) if sends is Direction.C2S else b"\0"
        blocks = pkcs7_pad(head + body if plaintext is None else plaintext)
        chain = keys or self.keys
        header = HEADER.pack(
            opcode,
            self.session.client_id if client_id is None else client_id,
            self.session.round_number if round_number is None else round_number,
            sends,
        )
        iv = secrets.token_bytes(16)
        encryption_key = chain[f"{sends.name}-ENC"][:AES_KEY_BYTES]
        ciphertext = aes_cbc_encrypt(blocks if padded is None else padded, encryption_key, iv)
        untagged = header + iv + ciphertext
        return untagged + hmac_sha256(chain[f"{sends.name}-MAC"], untagged)

    def reset(self) -> None:
        """Close in the same way as a process that is killed."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.socket.close()

    # What it hears

    def hear(self, patience_s: float = PATIENCE_S) -> str | Message:
        """Return the next message, or the name of what came in place of one."""
        came = self._read(patience_s)
        return came if isinstance(came, str) else self._opened(came)

    def raw_opcode(self) -> str:
        """Return the opcode of the next message, unopened, or the name of what came instead."""
        came = self._read(PATIENCE_S)
        return came if isinstance(came, str) else opcode_of(came)

    def _read(self, patience_s: float) -> str | bytes:
        deadline = time.monotonic() + patience_s

        def recv(wanted: int) -> bytes:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            return self.socket.recv(wanted)

        try:
            self.heard.append(read_frame(recv))
        except TimeoutError:
            return NOTHING
        except ConnectionCut as error:
            return "a frame that is cut short" if error.mid_frame else CLOSED
        except OSError:
            return RESET
        except ProtocolError as error:
            return f"bytes that are no frame ({error})"
        return self.heard[-1]

    def _opened(self, message: bytes) -> str | Message:
        try:
            return self.session.open(message)
        except PeerTerminated as error:
            return f"{error.opcode.name} ({error.status.name})"
        except ProtocolError as error:
            return f"{opcode_of(message)}, which has to be refused ({error})"

    def expect(self, *wanted: str, patience_s: float = PATIENCE_S) -> str:
        """Return which of these came. Raises Mismatch for anything else."""
        heard = self.hear(patience_s)
        if heard not in wanted:
            raise Mismatch(" or ".join(wanted), named(heard))
        return str(heard)

    def expect_message(self, opcode: Opcode) -> Message:
        """Return the message, which must have this opcode and be acceptable. Raises Mismatch."""
        heard = self.hear()
        if isinstance(heard, str) or heard.opcode is not opcode:
            raise Mismatch(opcode.name, named(heard))
        return heard

    def expect_end(self, *farewell: str) -> None:
        """Expect a farewell, if one is named, and that the connection then closes. Mismatch."""
        if farewell:
            self.expect(*farewell)
        heard = self.hear()
        if heard not in (CLOSED, RESET):
            raise Mismatch(CLOSED, named(heard))

    def ends_s(self) -> tuple[float, float]:
        """Return after how many seconds it sends no more, and when it takes no more (2 at most)."""
        began = time.monotonic()
        self.hear()
        half_s = time.monotonic() - began
        whole_s = half_s
        with contextlib.suppress(OSError):
            while whole_s < 2.0:
                self.socket.sendall(b"\0")
                time.sleep(0.02)
                whole_s = time.monotonic() - began
        return half_s, whole_s

    def say_last(self, message: Message | bytes, *farewell: str) -> None:
        """Send a message, and expect a farewell, if one is named, and the end. Mismatch."""
        self.say(message)
        self.expect_end(*farewell)


def expect_timeout_of_trickle(peer: Peer) -> None:
    """Send a byte of a frame now and then, and expect TIMEOUT all the same. Raises Mismatch."""
    heard: str | Message = NOTHING
    for byte in b"\0\x67" + bytes(5):
        if heard == NOTHING:
            peer.pour(bytes([byte]))
            heard = peer.hear(0.6)
    if heard != TIMEOUT:
        raise Mismatch(TIMEOUT, named(heard))


def require_own_round(peer: Peer) -> None:
    """Require that the farewell that came last has its sender's round. Raises Mismatch."""
    wanted = peer.session.round_number
    got = HEADER.unpack_from(peer.heard[-1])[2]
    if got != wanted:
        raise Mismatch(f"a farewell of round {wanted}", f"one of round {got}")


def require_half_close(refused: Callable[[], Peer]) -> None:
    """Require that a farewell is followed by a half close, then a close. Raises Mismatch.

    `refused` makes a connection on which the farewell has come. The best of three counts.
    """
    for _ in range(3):
        half_s, whole_s = refused().ends_s()
        if half_s < 0.2 and 0.1 < whole_s < 1.0:
            return
    ends = f"after {half_s:.2f} s, then none or the rest after {whole_s:.2f} s"
    raise Mismatch("the end of the sending half at once, the rest after 0.25 s", ends)


def named(heard: str | Message) -> str:
    """Return what a failure says of what was heard."""
    return heard if isinstance(heard, str) else heard.opcode.name
