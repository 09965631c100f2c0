"""The other side of a test: an implementation in a process of its own, which may be a wrong one.

A test of mine.py gets an `Other`, and asks it for what the protocol can do. When your work is
graded, behind it stands the reference, or the reference with one planted bug; `check.py` puts
your own modules there. Bytes, numbers, text, lists and dictionaries go through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Perform = Callable[[int, str, list[Any]], list[Any]]  # handle, method, arguments
FUNCTIONS = (  # what `Other.call` takes
    "pkcs7_pad",
    "pkcs7_unpad",
    "aes_cbc_encrypt",
    "aes_cbc_decrypt",
    "hmac_sha256",
    "hmac_verify",
    "derive_key",
    "evolve_key",
    "check_length",
    "bind_keys",
    "evolve_c2s",
    "evolve_s2c",
    "check_readings",
    "check_aggregate",
    "compute_aggregation",
    "own_part",
)


class Refused(Exception):
    """The other side raised an error; `name` is that of its type, as in "BadTag"."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def refusal(action: Callable[..., Any], *arguments: Any) -> str:
    """Return the name of the error with which something is refused, or nothing."""
    try:
        action(*arguments)
    except Refused as error:
        return error.name
    return ""


class Other:
    """Functions by name, and sessions."""

    def __init__(self, perform: Perform) -> None:
        self._perform = perform

    def _ask(self, handle: int, method: str, *arguments: Any) -> Any:
        kind, value = self._perform(handle, method, [*arguments])
        if kind == "refused":
            raise Refused(value)
        return value

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what one of FUNCTIONS returns. Raises Refused."""
        return self._ask(0, "call", name, *arguments)

    def parse(self, opcode: int, direction: int, plaintext: bytes) -> Any:
        """Return [name of the type, content] of a message. Raises Refused."""
        return self._ask(0, "parse", opcode, direction, plaintext)

    def read_frames(self, pieces: Sequence[bytes]) -> Any:
        """Return the messages in a stream that arrives in these pieces. Raises Refused."""
        return self._ask(0, "read_frames", [*pieces])

    def written(self, message: bytes) -> Any:
        """Return the pieces in which a message is written to a stream."""
        return self._ask(0, "written", message)

    def client(self, key: bytes, client_id: int = 1) -> End:
        """Return the client's end of a new session."""
        return End(self, self._ask(0, "session", key, client_id, 0))

    def server(self, key: bytes, client_id: int = 1) -> End:
        """Return the server's end of a new session."""
        return End(self, self._ask(0, "session", key, client_id, 1))


class End:
    """One end of a session on the other side."""

    def __init__(self, other: Other, handle: int) -> None:
        self._other = other
        self._handle = handle

    def seal(self, kind: str, content: Any = None) -> Any:
        """Return a message of a kind. Raises Refused.

        The kinds are "hello", "challenge", "report" and "answer" (with their content), "desync",
        and "terminate" (with its status as a number).
        """
        return self._other._ask(self._handle, "seal", kind, content)

    def open(self, message: bytes) -> Any:
        """Return [name of the type, content] of what arrived. Raises Refused."""
        return self._other._ask(self._handle, "open", message)

    def state(self) -> Any:
        """Return the name of the state."""
        return self._other._ask(self._handle, "state")

    def round_number(self) -> Any:
        return self._other._ask(self._handle, "round_number")

    def keys(self) -> Any:
        """Return the chain keys by label."""
        return self._other._ask(self._handle, "keys")


class Local:
    """What stands behind an Other: the modules of this process."""

    def __init__(self) -> None:
        import crypto_utils
        import protocol_fsm
        import server

        self._protocol = protocol_fsm
        self._modules = (crypto_utils, protocol_fsm, server)
        self._sessions: list[Any] = [None]

    def perform(self, handle: int, method: str, arguments: list[Any]) -> list[Any]:
        """Return ["value", what it is] or ["refused", name of the error]."""
        owner = "_session_" if handle else "_do_"
        action = getattr(self, owner + method)
        session = [self._sessions[handle]] if handle else []
        try:
            return ["value", action(*session, *arguments)]
        except Exception as error:
            return ["refused", type(error).__name__]

    def _do_call(self, name: str, *arguments: Any) -> Any:
        if name not in FUNCTIONS:
            raise NameError(name)
        for module in self._modules:
            if hasattr(module, name):
                return getattr(module, name)(*arguments)
        raise NameError(name)

    def _do_parse(self, opcode: int, direction: int, plaintext: bytes) -> Any:
        return self._described(self._protocol.parse_message(opcode, direction, plaintext))

    def _do_read_frames(self, pieces: list[bytes]) -> Any:
        left = [piece for piece in pieces if piece]
        messages = []

        def recv(length: int) -> bytes:
            if not left:
                return b""
            piece = left.pop(0)
            if piece[length:]:
                left.insert(0, piece[length:])
            return piece[:length]

        while left:
            messages.append(self._protocol.read_frame(recv))
        return messages

    def _do_written(self, message: bytes) -> Any:
        pieces: list[bytes] = []
        self._protocol.write_frame(pieces.append, message)
        return pieces

    def _do_session(self, key: bytes, client_id: int, sends: int) -> int:
        protocol = self._protocol
        self._sessions.append(protocol.Session(client_id, key, protocol.Direction(sends)))
        return len(self._sessions) - 1

    def _session_seal(self, session: Any, kind: str, content: Any) -> Any:
        protocol = self._protocol
        if kind == "report":
            return session.seal(protocol.ClientData(content))
        if kind == "answer":
            return session.seal(protocol.ServerAggrResponse(content))
        if kind == "terminate":
            return session.seal(protocol.Terminate(protocol.Status(content)))
        plain = {"hello": "ClientHello", "challenge": "ServerChallenge", "desync": "KeyDesync"}
        return session.seal(getattr(protocol, plain[kind])())

    def _session_open(self, session: Any, message: bytes) -> Any:
        return self._described(session.open(message))

    def _session_state(self, session: Any) -> str:
        return str(session.state.name)

    def _session_round_number(self, session: Any) -> int:
        return int(session.round_number)

    def _session_keys(self, session: Any) -> dict[str, bytes]:
        return {**session._keys}

    def _described(self, message: Any) -> list[Any]:
        for name in ("readings", "aggregate"):
            if hasattr(message, name):
                return [type(message).__name__, getattr(message, name)]
        status = getattr(message, "status", None)
        return [type(message).__name__, int(status or 0)]
