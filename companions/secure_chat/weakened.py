"""Endpoints with rules taken out, one by one, to see which attack each rule holds back.

A rule of Trust, Pins, Session, Accounts, Room, Receipt or Server is taken out of both ends by
overriding what it is made of; those that are one check stand in the table at the end only. A
weakened lab still lives through honest sessions. It refuses every address but loopback, and
server.py and client.py cannot reach it.

    python -m companions.secure_chat.attacks --without shares man-in-the-middle
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification

from companions.asymmetric import PublicKey
from companions.canonical import canonical
from companions.secure_chat import dh, forms, tries
from companions.secure_chat.accounts import Accounts, Refused
from companions.secure_chat.client import Client
from companions.secure_chat.pae import pae
from companions.secure_chat.pins import Pins
from companions.secure_chat.pki import (
    USAGES,
    Identity,
    Role,
    Trust,
    UnknownIssuer,
    alternative_names,
    usages_of,
)
from companions.secure_chat.protocol import Direction, Kind, Party, Session, State, parse
from companions.secure_chat.rooms import Member, Room
from companions.secure_chat.server import Server
from companions.secure_chat.stage import Parts
from companions.secure_chat.storage import login_tries
from companions.secure_chat.transcript import Receipt
from companions.secure_chat.tries import Subject
from crypto_utils import BLOCK_BYTES
from endpoint import HOST
from lab.rules import chosen, lacking, require_loopback, unchecked

PLANTED_PRIME = int(  # the lab's own: p - 1 is twice a product of primes below 4,096
    "D5C3ACC8716423C86BA5A72B4649DD03DBECE3F7795C8133C8C160432817CFC79FF73BE6764869B83CB7C81E"
    "82337CE2DD259997790156513824D0B2829C9337BF64B244BEF8340D8CE2E53DDC777C56BE595071CBAF498B"
    "D88F7AE1D901CC5314FA79F87ECD7A88DC28689229CC2A0FF71D3F1CF051AF5ADB09938BBFE76625DE691147"
    "2C359F2839340620DAB207313B714C337039A47BAF7D27840C766C7AF686E8DD42D5117483AA2B376CF874F6"
    "0E8BC632E16BE80D8805F8D7E89D4D21510C4B7D4F6DA90ED38FA58EC9A32CFEFEA64FD22D54B92431D948D0"
    "02757914CC5AED94847FB7244F2EFB1947DD3AC34247D38B40EF862F59ECCFA8B918AB4F",
    16,
)

# Rules of Trust -----------------------------------------------------------------------------------


class NoPurpose(Trust):
    def _purpose_policy(self, role: Role) -> verification.ExtensionPolicy:
        """Take a client's certificate for a server's: no usage is asked for."""
        return verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
            x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None
        )


class NoCaBit(Trust):
    def _check_path(self, chain: list[x509.Certificate], role: Role, now: datetime) -> None:
        """Let anybody with a certificate issue others."""
        *issued, last = chain
        issuer_role: Role = "server" if USAGES["server"] in usages_of(last) else "client"
        super()._check_path([last], issuer_role, now)
        for certificate in issued:
            try:
                certificate.verify_directly_issued_by(last)
            except InvalidSignature:
                raise UnknownIssuer("the certificate behind it", "another") from None

    def _check_name(
        self, chain: list[x509.Certificate], role: Role, name: str | None, now: datetime
    ) -> str:
        """Look for the name without asking the library about the path again."""
        names = [str(one.value) for one in alternative_names(chain[0])]
        return name if name in names and name else super()._check_name(chain, role, name, now)


class NoDates(Trust):
    def _check_path(self, chain: list[x509.Certificate], role: Role, now: datetime) -> None:
        """Take a certificate of any time."""
        super()._check_path(chain, role, chain[0].not_valid_before_utc)


class NoKeySize(Trust):
    def _check_key(self, leaf: x509.Certificate) -> PublicKey:
        """Take a key of any size."""
        key = leaf.public_key()
        if not isinstance(key, PublicKey):
            return super()._check_key(leaf)
        return key


class NoName(Trust):
    def _check_name(
        self, chain: list[x509.Certificate], role: Role, name: str | None, now: datetime
    ) -> str:
        """Talk to any server that the authority knows."""
        return super()._check_name(chain, role, None, now)


# Rules of Session ---------------------------------------------------------------------------------


class NoRole(Session):
    _hellos = b""

    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Remember what was said before the first share."""
        super()._commit(kind, frame, sender)
        if kind is Kind.SERVER_HELLO:
            self._hellos = self._running

    def _under_signature(self, kind: Kind, share: Mapping[str, Any]) -> bytes:
        """Sign both shares alike, whoever sends them."""
        value = share["A" if kind is Kind.DH_CLIENT else "B"]
        return pae("dh-client", self._hellos, str(value).encode())


class NoShares(Session):
    def _under_signature(self, kind: Kind, share: Mapping[str, Any]) -> bytes:
        """Sign who talks to whom, but not the share."""
        return pae(self._role_of(kind), self._running)

    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Leave the shares out of what was said, too."""
        before = self._running
        super()._commit(kind, frame, sender)
        if kind is Kind.DH_CLIENT:
            self._running = before


class NoTranscript(Session):
    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Sign, and bind the keys to, nonces and shares alone: not who shows which certificate."""
        values = parse(frame)
        for name in ("client_cert", "server_cert", "sig"):
            values.pop(name, None)
        super()._commit(kind, canonical(values), sender)


class NoGroup(Session):
    def _group(self) -> tuple[int, int]:
        """Use the group of a configuration file that somebody has planted."""
        return dh.GENERATOR, PLANTED_PRIME

    def _check_group(self, generator: int, prime: int) -> None:
        """Take any group."""


class NoEphemeral(Session):
    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Use the same exponent for ever, made from our long-term key."""
        super()._commit(kind, frame, sender)
        self._exponent = static_exponent(self.party)


def static_exponent(party: Party) -> int:
    """Return the exponent that somebody with a copy of the private key computes, too."""
    encoded = party.private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return int.from_bytes(hashlib.sha256(encoded).digest(), "big")


class NoEncryption(Session):
    def encrypt(self, plaintext: bytes) -> bytes:
        """Send the plaintext, under a good tag."""
        return self._random_bytes(BLOCK_BYTES) + plaintext

    def decrypt(self, data: bytes) -> bytes:
        """Take what came for the plaintext."""
        return data[BLOCK_BYTES:]


class NoNumber(Session):
    def _commit(self, kind: Kind, frame: bytes, sender: Direction) -> None:
        """Do not count records."""
        super()._commit(kind, frame, sender)
        self._number = {Direction.C2S: 0, Direction.S2C: 0}


class NoDirectionKeys(Session):
    def _key(self, sender: Direction, use: str) -> bytes:
        """Use the keys of one direction for both."""
        return self._keys[f"C2S-{use}"]


class NoUpdate(Session):
    def _next_keys(self) -> None:
        """Keep the old keys after a key update."""
        before = self._keys
        super()._next_keys()
        if self.state is State.UPDATING:
            self._keys = before


class NoUpdateSecret(Session):
    def _next_keys(self) -> None:
        """Derive the next keys from the last ones, as a ratchet without new secrets does."""
        if self.state is State.UPDATING:
            self._shared = self._keys["C2S-MAC"]
        super()._next_keys()


# Rules of Accounts --------------------------------------------------------------------------------


class NoServerHash(Accounts):
    def _hash(self, password: str) -> bytes:
        """Store what was sent, which in the document is already the hash."""
        return password.encode()

    def _is_right(self, stored: bytes, password: str) -> bool:
        """Compare what was sent with what is stored."""
        return secrets.compare_digest(stored, password.encode())

    def _is_outdated(self, stored: bytes) -> bool:
        return False


class NoSlowHash(Accounts):
    def _hash(self, password: str) -> bytes:
        """Store a salted SHA-256, as the document does."""
        salt = secrets.token_bytes(16)
        return f"{salt.hex()}${salted(salt, password)}".encode()

    def _is_right(self, stored: bytes, password: str) -> bool:
        """Compare salted hashes."""
        salt, _, known = stored.decode().partition("$")
        return secrets.compare_digest(salted(bytes.fromhex(salt), password), known)

    def _is_outdated(self, stored: bytes) -> bool:
        return False


def salted(salt: bytes, password: str) -> str:
    """Return the document's SHA256(salt || password), in hex."""
    return hashlib.sha256(salt + password.encode()).hexdigest()


class NoDummyHash(Accounts):
    def _unknown_user(self) -> bytes:
        """Answer at once that there is no such user."""
        return b""

    def _is_right(self, stored: bytes, password: str) -> bool:
        return bool(stored) and super()._is_right(stored, password)


class NoAtomicLimit(Accounts):
    @contextlib.contextmanager
    def _limited(self, identity: Identity, email: bytes, ip: str) -> Iterator[None]:
        """Read the counts, judge, and write them afterwards, as if nobody else were trying."""
        subjects = self._subjects(identity, email, ip)
        before = [self._read(one) for one in subjects]
        if any(count >= one.free for one, count in zip(subjects, before)):
            raise Refused("too many tries")
        try:
            yield
        except Refused:
            for one, count in zip(subjects, before):
                self._write(one, count + 1)
            raise

    def _read(self, subject: Subject) -> int:
        count = sql.select(login_tries.c.tries).where(login_tries.c.subject == subject.key)
        with self.database.transaction() as connection:
            return connection.scalar(count) or 0

    def _write(self, subject: Subject, count: int) -> None:
        row = {"subject": subject.key, "tries": count, "free_at": 0}
        with self.database.transaction() as connection:
            mine = login_tries.c.subject == subject.key
            connection.execute(login_tries.delete().where(mine))
            connection.execute(login_tries.insert().values(row))


class NoOwnTries(Accounts):
    def _subjects(self, identity: Identity, email: bytes, ip: str) -> list[Subject]:
        """Count all tries for the account, whoever makes them."""
        return [tries.of_account(email, "")]


class NoSingleUse(Accounts):
    def _spend(self, session: int) -> bool:
        """Let a token be used again and again."""
        return True


# Rules of Room ------------------------------------------------------------------------------------


class NoSession(Room):
    def _check_sender(self, message: forms.Message) -> Member:
        """Take a message of any session of somebody in the room."""
        for member in self.members.values():
            if member.identity.fingerprint == message.sender:
                return member
        return super()._check_sender(message)


# Rules of Receipt and Server ----------------------------------------------------------------------


class NoReceiptFields(Receipt):
    def signed(self) -> bytes:
        """Sign the hash of the lines alone, as the document does."""
        return pae("receipt", self.transcript_hash.encode())


class NoDeadline(Server):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Wait for a handshake, and for the end of a frame, for ever."""
        super().__init__(*arguments, **options)
        self.limits = dataclasses.replace(self.limits, handshake_s=1e6, frame_s=1e6)


# Never on a network -------------------------------------------------------------------------------


class LoopbackServer(Server):
    def __init__(
        self,
        party: Any,
        trust: Any,
        accounts: Any,
        folder: Path,
        host: str = HOST,
        *rest: Any,
        **options: Any,
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        super().__init__(party, trust, accounts, folder, require_loopback(host), *rest, **options)


class LoopbackClient(Client):
    def __init__(
        self,
        party: Any,
        trust: Any,
        server_name: str,
        folder: Path,
        host: str = HOST,
        *rest: Any,
        **options: Any,
    ) -> None:
        """Refuse every host but this one. Raises UserError."""
        address = require_loopback(host)
        super().__init__(party, trust, server_name, folder, address, *rest, **options)


# Names --------------------------------------------------------------------------------------------

RULES: dict[str, type] = {
    "purpose": NoPurpose,
    "ca-bit": NoCaBit,
    "dates": NoDates,
    "key-size": NoKeySize,
    "name": NoName,
    "revocation": unchecked(Trust, "check_revocation", "Look at no revocation list"),
    "list-number": unchecked(Trust, "_check_list_number", "Go back to an older list"),
    "list-dates": unchecked(
        Trust, "_check_list_dates", "Take a list that should have been replaced"
    ),
    "pin": unchecked(
        Pins, "check_key", "Take any certificate of the authority, as if we had never met its owner"
    ),
    "possession": unchecked(
        Session,
        "_check_signature",
        "Believe that anyone who shows a certificate has its key, as the document does",
    ),
    "role": NoRole,
    "shares": NoShares,
    "transcript": NoTranscript,
    "group": NoGroup,
    "range": unchecked(Session, "_check_range", "Take 0, 1 and p - 1 for public values"),
    "subgroup": unchecked(Session, "_check_subgroup", "Take public values of any order"),
    "ephemeral": NoEphemeral,
    "update": NoUpdate,
    "update-secret": NoUpdateSecret,
    "recheck": unchecked(
        Session, "check_again", "Do not look at a certificate again once its session has begun"
    ),
    "encryption": NoEncryption,
    "tag": unchecked(Session, "_check_tag", "Believe any tag"),
    "number": NoNumber,
    "direction-keys": NoDirectionKeys,
    "binding": unchecked(
        Accounts,
        "_check_binding",
        "Let anybody with a certificate and the password into an account",
    ),
    "server-hash": NoServerHash,
    "slow-hash": NoSlowHash,
    "dummy-hash": NoDummyHash,
    "atomic-limit": NoAtomicLimit,
    "own-tries": NoOwnTries,
    "single-use": NoSingleUse,
    "token-expiry": unchecked(Accounts, "_check_expiry", "Let a token be used at any time"),
    "token-holder": unchecked(
        Accounts, "_check_holder", "Let anybody with a certificate use a token"
    ),
    "room": unchecked(Room, "_check_room", "Take a message that was said in another room"),
    "session": NoSession,
    "message-signature": unchecked(
        Room, "_check_signature", "Believe the server that somebody said this"
    ),
    "recipient": unchecked(
        Room, "_check_recipient", "Read what was said to others, or to an earlier session of ours"
    ),
    "seqno": unchecked(Room, "_check_seqno", "Take a message again, or without those before it"),
    "age": unchecked(Room, "_check_age", "Take a message of any time before now"),
    "future": unchecked(
        Room, "_check_future", "Take a message that is dated tomorrow, as the document does"
    ),
    "previous": unchecked(Room, "_check_previous", "Do not ask what the sender said before"),
    "seen": unchecked(Room, "_check_seen", "Do not ask what the sender has seen"),
    "commitment": unchecked(Room, "_check_commitment", "Believe the server what the text is"),
    "head": unchecked(Room, "_check_head", "Take any head that the server signed"),
    "head-signature": unchecked(
        Room, "_check_head_signature", "Take a head that the server can deny"
    ),
    "receipt-fields": NoReceiptFields,
    "deadline": NoDeadline,
}
DOCUMENTED = (  # what the seed document does without
    "purpose",
    "ca-bit",
    "key-size",
    "revocation",
    "list-number",
    "list-dates",
    "pin",
    "possession",
    "range",
    "subgroup",
    "update",
    "recheck",
    "tag",
    "number",
    "direction-keys",
    "binding",
    "server-hash",
    "room",
    "session",
    "recipient",
    "future",
    "previous",
    "seen",
    "commitment",
    "head",
    "head-signature",
    "receipt-fields",
    "deadline",
)


def without(names: Iterable[str]) -> Parts:
    """Return parts without these rules; `documented` stands for several. UserError."""
    rules = chosen(names, RULES, DOCUMENTED)
    return Parts(
        lacking(Session, rules),
        lacking(Trust, rules),
        lacking(Accounts, rules),
        lacking(Room, rules),
        lacking(Receipt, rules),
        lacking(Server, rules, LoopbackServer),
        LoopbackClient,
        lacking(Pins, rules),
    )
