"""Endpoints with rules taken out, one by one, to see which attack each rule holds back.

An element is one rule of Session, Server or Client, taken out of both ends by overriding one method
(two where the rule is one of sending and receiving). A weakened lab still lives through honest
sessions. It refuses every address but loopback, and server.py and client.py cannot reach it.

    python attacks.py --without tag flip-reading
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from channel import EndRequested
from client import Client
from crypto_utils import TAG_BYTES, derive_key
from endpoint import DEMO_KEYS, HOST, is_loopback
from program import UserError
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    BadPadding,
    BadPayload,
    ConnectionCut,
    Direction,
    Header,
    Keys,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ProtocolFSM,
    ProtocolState,
    Session,
    State,
    Status,
    evolve_c2s,
    evolve_s2c,
)
from server import Member, Server

# Rules of Session: each class overrides what its rule is made of, and calls on for the rest -------


class NoTag(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Believe any tag."""


class NoTagOnTerminate(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Believe any tag on a TERMINATE."""
        if header.opcode != Opcode.TERMINATE:
            super()._check_tag(header, message)


class NoTagFirst(Session):
    def _check_tag(self, header: Header, message: bytes) -> None:
        """Decrypt and unpad before the tag is looked at, as MAC-then-encrypt would."""
        self._unpad(self._decrypt(header, message))
        super()._check_tag(header, message)


class NoHeader(Session):
    def _under_tag(self, untagged: bytes) -> bytes:
        """Leave the header out of what is tagged."""
        return super()._under_tag(untagged)[HEADER.size :]


class NoIV(Session):
    def _under_tag(self, untagged: bytes) -> bytes:
        """Leave the IV out of what is tagged. Comes after NoHeader in the order of calls."""
        return untagged[: HEADER.size] + untagged[CIPHERTEXT_AT:]


class Telling(Session):
    def fail(self, error: ProtocolError) -> None:
        """Answer bad padding by KEY_DESYNC_ERROR, and all else by TERMINATE."""
        if self.state.phase is ProtocolState.ACTIVE and not isinstance(error, ConnectionCut):
            told = Opcode.KEY_DESYNC_ERROR if isinstance(error, BadPadding) else Opcode.TERMINATE
            error.farewell = self.seal(told, status=Status.VIOLATION)
        super().fail(error)


class NoRound(Session):
    def _check_round(self, header: Header) -> None:
        """Take a message of any round."""


class NoTurn(Session):
    def _check_opcode(self, header: Header) -> None:
        """Take what is legal at some time in this phase, as if it were now."""
        for state in (self.state, *State):
            move = (state, header.opcode, self.receives)
            if state.phase is self.state.phase and move in ProtocolFSM.VALID_TRANSITIONS:
                self.fsm.state = state
                return
        super()._check_opcode(header)


class NoDirection(Session):
    def _check_direction(self, header: Header) -> None:
        """Take our own messages for the peer's."""


class NoId(Session):
    def _check_client_id(self, header: Header) -> None:
        """Take another client's message for this one's."""


class NoPayload(Session):
    def _check_payload(self, header: Header, plaintext: bytes) -> Message:
        """Make of the plaintext what can be made of it."""
        try:
            return super()._check_payload(header, plaintext)
        except BadPayload:
            c2s = header.direction == Direction.C2S
            ok = Status.OK
            nonce, body = (plaintext[:16], plaintext[16:]) if c2s else (b"", plaintext[1:])
            return Message(
                Opcode(header.opcode),
                header.client_id,
                header.round_number,
                Direction(header.direction),
                nonce,
                ok,
                body,
                [],
                {},
            )


class NoEcho(Session):
    def _check_echo(self, client_nonce: bytes) -> None:
        """Take a challenge that answers somebody else."""


class NoRatchet(Session):
    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        """Move no key by any of the documented formulas."""
        binds = message.opcode is Opcode.SERVER_CHALLENGE and not isinstance(self, NoBinding)
        return super()._next_keys(message, ciphertext) if binds else self._keys


class NoBinding(Session):
    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        """Let round 0 move keys as the documents have it: from what one side alone has chosen."""
        if message.opcode is Opcode.CLIENT_HELLO:
            self._hello = ciphertext, message.nonce
        if message.opcode is not Opcode.SERVER_CHALLENGE:
            return super()._next_keys(message, ciphertext)
        return evolve_s2c(evolve_c2s(self._keys, *self._hello), message.body, message.status)


class NoDirectionKeys(Session):
    def __init__(self, client_id: int, master_key: bytes, *rest: Any, **options: Any) -> None:
        """Derive both directions from the labels of one."""
        super().__init__(client_id, master_key, *rest, **options)
        for use in ("ENC", "MAC"):
            self._keys[f"S2C-{use}"] = derive_key(master_key, f"C2S-{use}")


class NoClientKeys(Session):
    def __init__(self, client_id: int, master_key: bytes, *rest: Any, **options: Any) -> None:
        """Give all clients that have a key the same one."""
        known = master_key in DEMO_KEYS.values()
        super().__init__(client_id, DEMO_KEYS[1] if known else master_key, *rest, **options)


class NoEncryption(Session):
    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        """Send the plaintext."""
        return padded

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Take what came for the plaintext."""
        return message[CIPHERTEXT_AT:-TAG_BYTES]


class NoFreshIV(Session):
    def _fresh_iv(self) -> bytes:
        """Use the same IV for ever."""
        return bytes(16)


class NoFinality(Session):
    def fail(self, error: ProtocolError) -> None:
        """Go on as if nothing had happened."""


class CutIsGoodbye(Session):
    def fail(self, error: ProtocolError) -> None:
        """Take a closed connection for a peer that is done."""
        if isinstance(error, ConnectionCut):
            raise PeerTerminated(Opcode.TERMINATE, Status.GOODBYE)
        super().fail(error)


# Rules of Server ----------------------------------------------------------------------------------


class NoEstablishedRule(Server):
    def number_hello(self, member: Member) -> None:
        """Let a HELLO alone take the place of the session that its id has."""
        with self._changed:
            if member.client_id in self._members:
                self._members[member.client_id].channel.request_end(Status.REPLACED)
                self._changed.notify_all()
        super().number_hello(member)


class NoHelloOrder(Server):
    def establish(self, member: Member) -> None:
        """Let an older session take the place of a newer one."""
        self._newest_hello.clear()
        super().establish(member)


class NoDecoy(Server):
    def session_for(self, client_id: int) -> Session:
        """Close at once on an unknown id, without the work that a known one costs."""
        if client_id not in self._keys and client_id:
            raise EndRequested(Status.VIOLATION)
        return super().session_for(client_id)


class NoFrameDeadline(Server):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Wait for the end of a frame as long as for its beginning."""
        super().__init__(*arguments, **options)
        self.limits = dataclasses.replace(self.limits, frame_timeout_s=math.inf)


class NoStrangerCap(Server):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Keep any number of strangers."""
        super().__init__(*arguments, **options)
        self.limits = dataclasses.replace(self.limits, max_strangers=1_000_000)


# Never on a network -------------------------------------------------------------------------------


class LoopbackServer(Server):
    def __init__(self, keys: Any, host: str = HOST, *rest: Any, **options: Any) -> None:
        """Refuse every host but this one. Raises UserError."""
        require_loopback(host)
        super().__init__(keys, host, *rest, **options)


class LoopbackClient(Client):
    def __init__(
        self, client_id: int, keys: Any, host: str = HOST, *rest: Any, **options: Any
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        require_loopback(host)
        super().__init__(client_id, keys, host, *rest, **options)


def require_loopback(host: str) -> None:
    if not is_loopback(host):
        raise UserError(f"weakened endpoints work on loopback only, and {host} is not")


# Names --------------------------------------------------------------------------------------------

ELEMENTS: dict[str, type] = {  # in the order in which their methods call each other
    "tag": NoTag,
    "tag-on-terminate": NoTagOnTerminate,
    "tag-first": NoTagFirst,
    "header-in-tag": NoHeader,
    "iv-in-tag": NoIV,
    "uniform-answers": Telling,
    "round": NoRound,
    "turn": NoTurn,
    "direction": NoDirection,
    "id": NoId,
    "payload": NoPayload,
    "echo": NoEcho,
    "ratchet": NoRatchet,
    "binding": NoBinding,
    "direction-keys": NoDirectionKeys,
    "client-keys": NoClientKeys,
    "encryption": NoEncryption,
    "fresh-iv": NoFreshIV,
    "finality": NoFinality,
    "cut-is-not-goodbye": CutIsGoodbye,
    "established": NoEstablishedRule,
    "hello-order": NoHelloOrder,
    "decoy": NoDecoy,
    "frame-deadline": NoFrameDeadline,
    "stranger-cap": NoStrangerCap,
}
DOCUMENTED = (  # what the protocol of the documents does without
    "header-in-tag",
    "payload",
    "echo",
    "binding",
    "cut-is-not-goodbye",
    "established",
    "hello-order",
    "decoy",
    "frame-deadline",
    "stranger-cap",
)


class Weakened(NamedTuple):
    """The endpoints without some rules."""

    session: type[Session]
    server: type[Server]
    client: type[Client]


def without(names: Iterable[str]) -> Weakened:
    """Return endpoints without these elements; `documented` stands for several. UserError."""
    wanted = {
        name for given in names for name in (DOCUMENTED if given == "documented" else (given,))
    }
    if unknown := wanted - ELEMENTS.keys():
        raise UserError(
            f"there is no element {min(unknown)}; there are: documented, " + ", ".join(ELEMENTS)
        )
    rules = [rule for name, rule in ELEMENTS.items() if name in wanted]
    of_session = [rule for rule in rules if issubclass(rule, Session)]
    of_server = [rule for rule in rules if issubclass(rule, Server)]
    return Weakened(
        type("WeakenedSession", (*of_session, Session), {}),
        type("WeakenedServer", (LoopbackServer, *of_server, Server), {}),
        LoopbackClient,
    )
