"""The core's endpoints with rules taken out, to see which attack each rule holds back.

A rule of Session is taken out of both ends, a rule of Roster or Server only of the server, by
overriding one method (two for a rule of sending and receiving). Honest sessions still work in a
weakened lab. It refuses every address but loopback, and server.py and client.py cannot reach it.

    python attacks.py --without tag flip-reading
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from channel import EndRequested
from client import Client
from crypto_utils import NONCE_BYTES, TAG_BYTES, derive_key
from endpoint import DEMO_KEYS, HOST
from lab.rules import chosen, lacking, require_loopback
from lab.stage import Parts
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    PHASE,
    BadPadding,
    BadPayload,
    ClientData,
    ClientHello,
    ConnectionCut,
    Header,
    KeyDesync,
    Keys,
    Message,
    Opcode,
    PeerTerminated,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    State,
    Status,
    Terminate,
    evolve_c2s,
    evolve_s2c,
)
from server import Connection, Roster, Server

# Rules of Session: each class overrides what its rule is made of, and leaves the rest to super() --


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
        if self.has_farewell and not isinstance(error, ConnectionCut):
            farewell: Message = Terminate(Status.VIOLATION)
            if isinstance(error, BadPadding):
                farewell = KeyDesync()
            error.farewell = self.seal(farewell)
        super().fail(error)


class NoRound(Session):
    def _check_round(self, header: Header) -> None:
        """Accept a message of any round."""


class NoTurn(Session):
    def _check_opcode(self, header: Header) -> None:
        """Accept now what is legal at any time in this phase."""
        for state in (self.state, *State):
            move = (state, header.opcode, self.receives)
            if PHASE[state] is PHASE[self.state] and move in self.fsm.VALID_TRANSITIONS:
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
        """Take a wrong payload for an empty one."""
        try:
            return super()._check_payload(header, plaintext)
        except BadPayload:
            return EMPTY[Opcode(header.opcode)]


EMPTY: dict[Opcode, Message] = {
    Opcode.CLIENT_HELLO: ClientHello(),
    Opcode.SERVER_CHALLENGE: ServerChallenge(),
    Opcode.CLIENT_DATA: ClientData([]),
    Opcode.SERVER_AGGR_RESPONSE: ServerAggrResponse({}),
    Opcode.KEY_DESYNC_ERROR: KeyDesync(),
    Opcode.TERMINATE: Terminate(Status.VIOLATION),
}


class NoEcho(Session):
    def _check_echo(self, client_nonce: bytes) -> None:
        """Accept a challenge that answers another CLIENT_HELLO."""


class NoRatchet(Session):
    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        """Move no key by any of the documented formulas."""
        if opcode is Opcode.SERVER_CHALLENGE and not isinstance(self, NoBinding):
            return super()._next_keys(opcode, plaintext, ciphertext)
        return self._keys


class NoBinding(Session):
    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        """Let round 0 move keys as documented: by values that one side alone has chosen."""
        if opcode is Opcode.CLIENT_HELLO:
            self._hello = ciphertext, plaintext[:NONCE_BYTES]
        if opcode is not Opcode.SERVER_CHALLENGE:
            return super()._next_keys(opcode, plaintext, ciphertext)
        return evolve_s2c(evolve_c2s(self._keys, *self._hello), plaintext[1:], plaintext[:1])


class NoDirectionKeys(Session):
    def __init__(self, client_id: int, master_key: bytes, *rest: Any, **options: Any) -> None:
        """Derive both directions from the labels of one."""
        super().__init__(client_id, master_key, *rest, **options)
        for use in ("ENC", "MAC"):
            self._keys[f"S2C-{use}"] = derive_key(master_key, f"C2S-{use}")


class NoClientKeys(Session):
    def __init__(self, client_id: int, master_key: bytes, *rest: Any, **options: Any) -> None:
        """Give all known clients the same key."""
        known = master_key in DEMO_KEYS.values()
        super().__init__(client_id, DEMO_KEYS[1] if known else master_key, *rest, **options)


class NoEncryption(Session):
    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        """Send the plaintext."""
        return padded

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        """Take the ciphertext for the plaintext."""
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
        """Take a closed connection for a goodbye."""
        if isinstance(error, ConnectionCut):
            raise PeerTerminated(Opcode.TERMINATE, Status.GOODBYE)
        super().fail(error)


# Rules of Roster and Server -----------------------------------------------------------------------


class NoEstablishedRule(Roster[Connection]):
    def number_hello(self, stranger: Connection) -> None:
        """Let a HELLO alone evict the session that its id has."""
        if stranger.client_id in self.members:
            self.members[stranger.client_id].request_end(Status.REPLACED)
        super().number_hello(stranger)


class NoHelloOrder(Roster[Connection]):
    def establish(self, stranger: Connection) -> None:
        """Let an older session evict a newer one."""
        self._newest_hello.clear()
        super().establish(stranger)


class NoStrangerCap(Roster[Connection]):
    def __init__(self, max_strangers: int) -> None:
        """Keep any number of strangers."""
        super().__init__(1_000_000)


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


# Never on a network -------------------------------------------------------------------------------


class LoopbackServer(Server):
    def __init__(self, keys: Any, host: str = HOST, *rest: Any, **options: Any) -> None:
        """Refuse every host but this one. Raises UserError."""
        super().__init__(keys, require_loopback(host), *rest, **options)


class LoopbackClient(Client):
    def __init__(
        self, client_id: int, keys: Any, host: str = HOST, *rest: Any, **options: Any
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        super().__init__(client_id, keys, require_loopback(host), *rest, **options)


# Names --------------------------------------------------------------------------------------------

RULES: dict[str, type] = {  # in the order in which their methods call each other
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
DOCUMENTED = (  # rules that the protocol of the original documents lacks
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


def without(names: Iterable[str]) -> Parts:
    """Return endpoints without these rules; `documented` stands for several. UserError."""
    rules = chosen(names, RULES, DOCUMENTED)
    server = lacking(Server, rules, LoopbackServer)
    server.roster_class = lacking(Roster, rules)
    return Parts(lacking(Session, rules), server, LoopbackClient)
