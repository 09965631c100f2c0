"""The stage of this companion: an authority, a server, a victim, a bystander, and a recording.

All of it is real: sockets, endpoints, frames, RSA keys. The client of the core's lab is the device
here. The stage says what became of the victim's session, and nothing of how an attack works.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

from companions.asymmetric import PrivateKey, new_identity
from companions.device_transfer.certificates import (
    Identity,
    Role,
    Trust,
    issue,
    sign_revocation_list,
    utc_now,
)
from companions.device_transfer.device import Device
from companions.device_transfer.protocol import PeerFailed, Session, read_frame, write_frame
from companions.device_transfer.server import Limits, Record, Server
from companions.device_transfer.store import JOURNAL, Store
from companions.device_transfer.transfer import Incoming
from lab.catalogue import Attack, run_outside
from lab.frames import Frame, Log, recorder
from lab.observer import Observer
from lab.tcp import PATIENCE_S, TcpStage
from program import UserError
from protocol_fsm import DeadlineExpired, LocalError, ProtocolError

AUTHORITY = "school"
SERVER = "server-1"
VICTIM = "device-1"
BYSTANDER = "device-2"
MALLORY = "device-3"
TEXT = "door 3 is open"
PHOTO = bytes(2 * 65_536) + hashlib.shake_256(b"photo").digest(96_000)  # 4 chunks, 2 of them equal
REKEY_CHUNKS = 4  # the text, and 3 of the photo
LIMITS = Limits(handshake_s=2.0, frame_s=0.3, max_bytes=2**20)
LOSS_S = 0.6  # for an answer that an attack keeps back

Item = tuple[str, str]  # the name of a file, empty for a text; and the SHA-256 digest, in hex


def item(name: str, content: bytes) -> Item:
    """Return what an outcome notes of a file or, without a name, of a text."""
    return name, hashlib.sha256(content).hexdigest()


@dataclass
class Outcome:
    """What became of the victim's session, and of what was sent in anybody's name."""

    sent: list[Item] = field(default_factory=list)  # by the victim
    acknowledged: list[Item] = field(default_factory=list)  # as the victim believes
    stored: list[tuple[str, Item]] = field(default_factory=list)  # by the server, and for whom
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    named: list[str] = field(default_factory=list)  # devices that the server believed it talked to
    litter: list[str] = field(default_factory=list)  # files that nobody sent, or in a wrong place
    learned: str = ""  # by the adversary
    broken: Exception | None = None  # a mistake in the attack


# Goals: what the adversary has won, in words; empty if nothing


def learned(outcome: Outcome) -> str:
    """Say what the adversary knows now, or was given."""
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Say what an end believes that its partner never said or did."""
    of_victim = [item for sender, item in outcome.stored if sender == VICTIM]
    if unsent := Counter(of_victim) - Counter(outcome.sent):
        name = min(unsent)[0]
        return f"the server keeps a {name or 'text'} that the device has not sent"
    if Counter(outcome.acknowledged) - Counter(of_victim):
        return "the device believes that what it sent has arrived"
    return outcome.learned


def kept(outcome: Outcome) -> str:
    """Say whether the text was kept, though it was touched."""
    return "the text is kept all the same" if outcome.stored else ""


def given_up(outcome: Outcome) -> str:
    """Say whether the server accepted a forged FAIL."""
    has_failed = any(isinstance(error, PeerFailed) for error in outcome.errors["server"])
    return "the server believes that the device gave up" if has_failed else ""


def littered(outcome: Outcome) -> str:
    """Say whether there are files now that should not be."""
    return f"there is a file {min(outcome.litter)}" if outcome.litter else forged(outcome)


def escaped(outcome: Outcome) -> str:
    """Say whether there are files outside the folder of received ones."""
    outside = [name for name in outcome.litter if not name.startswith("received")]
    return f"there is a file {min(outside)}, outside the folder" if outside else ""


def misbound(outcome: Outcome) -> str:
    """Say whether the victim's session was taken for the adversary's."""
    return f"the server takes {VICTIM} for {MALLORY}" if MALLORY in outcome.named else ""


def alone(outcome: Outcome) -> str:
    """Say whether the device sends to a server that never heard of it."""
    return "the device sends to nobody" if outcome.sent and not outcome.named else ""


# The stage


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from weakened.py."""

    session: type[Session] = Session
    trust: type[Trust] = Trust
    incoming: type[Incoming] = Incoming
    store: type[Store] = Store
    server: type[Server] = Server
    device: type[Device] = Device


class Pki:
    """An authority, the server and devices that it certified, and an authority nobody trusts."""

    def __init__(self) -> None:
        names = (AUTHORITY, SERVER, VICTIM, BYSTANDER, MALLORY, "elsewhere")
        self.keys = {name: new_identity() for name in names}
        self.now = utc_now()
        self.people = {name: self.person(name) for name in (VICTIM, BYSTANDER, MALLORY)}
        self.people[SERVER] = self.person(SERVER, Role.SERVER)

    def person(
        self,
        name: str,
        role: Role = Role.DEVICE,
        *,
        key: PrivateKey | None = None,
        authority: str = AUTHORITY,
        begins: int = -1,
        ends: int = 1,
    ) -> Identity:
        """Return an identity; its days are counted from now."""
        key = key or self.keys[name]
        serial = hashlib.sha256(f"{name} {role} {begins}".encode()).hexdigest()[:16]
        certificate = issue(
            self.keys[authority],
            issuer=AUTHORITY,
            common_name=name,
            role=role,
            serial=serial,
            public_key=key.public_key(),
            not_before=self.now + timedelta(begins),
            not_after=self.now + timedelta(ends),
        )
        return Identity(certificate, key)

    def revocations(
        self, number: int, revoked: Sequence[Identity], ends: int, authority: str
    ) -> bytes:
        """Return a revocation list that should be replaced `ends` days from now."""
        return sign_revocation_list(
            self.keys[authority],
            issuer=AUTHORITY,
            number=number,
            this_update=self.now - timedelta(2),
            next_update=self.now + timedelta(ends),
            revoked=[person.certificate.serial for person in revoked],
        ).encoded


@functools.cache
def pki() -> Pki:
    """Return the keys of this process: making them takes longer than an attack."""
    return Pki()


@contextlib.contextmanager
def in_peace() -> Iterator[None]:
    """Turn an error in an undisturbed session into a UserError."""
    try:
        yield
    except ProtocolError as error:
        raise UserError(f"no honest session: {error}") from None


class Lab(TcpStage):
    """The stage of one run: the bystander's session never ends, the victim has one per attack."""

    def __init__(
        self, log: Log, parts: Parts | None = None, observer: Observer | None = None
    ) -> None:
        super().__init__(log, observer, read_frame, write_frame)
        self.outcome: Outcome = Outcome()
        self.is_weakened = bool(parts)
        self.parts = parts or Parts()
        self.pki = pki()
        self.victim: Device  # while it is connected
        self._list_number = 0
        self.publish()
        authority = self.pki.keys[AUTHORITY].public_key()
        self.trust = self.parts.trust(authority, AUTHORITY, lambda: self.revocations)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.folder = self.top / "received"
            self.photo = self.top / "photo.png"
            self.photo.write_bytes(PHOTO)
            server = self.parts.server(
                self.pki.people[SERVER],
                self.trust,
                self.folder,
                port=0,
                limits=LIMITS,
                new_session=self.new_session,
                new_incoming=self.parts.incoming,
                new_store=self.parts.store,
                record=self._see,
            )
            self.address = server.address
            stack.enter_context(server)
            self.tape = self.honest_session()
            bystander = self._device(self.pki.people[BYSTANDER], self.address, self.new_session)
            with in_peace():
                self._bystander = stack.enter_context(bystander)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProtocolError, LocalError, UserError):  # an attack may have harmed bystanders
            self._close()

    def publish(self, *revoked: Identity, ends: int = 1, authority: str = AUTHORITY) -> None:
        """Hand both ends a new revocation list."""
        self._list_number += 1
        self.revocations = self.pki.revocations(self._list_number, revoked, ends, authority)

    # Those who live on it

    def new_session(
        self, identity: Identity, trust: Trust, peer_name: str | None = None
    ) -> Session:
        """Return a session of an honest end; those of server and victim are observed."""
        ends = {SERVER: "server", VICTIM: "client"}
        watchers = self.watchers(ends.get(identity.certificate.common_name, ""))
        return self.parts.session(
            identity, trust, peer_name, watchers=watchers, rekey_chunks=REKEY_CHUNKS
        )

    def device(self, who: Identity, rekey_chunks: int = REKEY_CHUNKS) -> Device:
        """Return a device of the adversary's, whose messages are logged as its own."""
        new_session = partial(
            self.parts.session, watchers=[self.watch_own], rekey_chunks=rekey_chunks
        )
        return self._device(who, self.address, new_session)

    def _device(
        self, who: Identity, address: tuple[str, int], new_session: Callable[..., Session]
    ) -> Device:
        """Return a device whose end the lab will wait for."""
        if who.certificate.common_name != BYSTANDER:
            self._await_one_more()
        return self.parts.device(
            who, self.trust, SERVER, *address, timeout_s=PATIENCE_S, new_session=new_session
        )

    def _victim(self, address: tuple[str, int]) -> Device:
        return self._device(self.pki.people[VICTIM], address, self.new_session)

    def honest_session(self) -> list[Frame]:
        """Let the victim live an undisturbed session, and return its recording. UserError."""
        tape: list[Frame] = []
        with in_peace(), self.proxy(recorder(tape)) as proxy, self._victim(proxy.address) as device:
            device.send_text(TEXT)
            device.send_file(self.photo)
        return tape

    def bystanders_go_on(self) -> bool:
        """Return whether the bystander's session still works."""
        if not self.harm:
            try:
                self._bystander.send_text(f"all is well, {self.rounds}")
                self.rounds += 1
            except (ProtocolError, LocalError, UserError) as error:
                self.harm.append(error)
        return not self.harm

    # An attack

    def undergo(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""
        outcome = self.outcome = Outcome()
        self.attack = attack.name
        self.publish()
        self.attack_on(attack, partial(self._live, attack))
        self._await_all_ends()
        self._clear_up()
        return outcome

    def _live(self, attack: Attack, address: tuple[str, int]) -> None:
        outcome = self.outcome
        text = item("", TEXT.encode())
        photo = item(self.photo.name, PHOTO)
        try:
            with self._victim(address) as self.victim:
                if attack.error is DeadlineExpired and attack.who == "client":
                    self.victim.timeout_s = LOSS_S  # only now: no handshake is kept back
                outcome.sent.append(text)
                self.victim.send_text(TEXT)
                outcome.acknowledged.append(text)
                if not attack.is_on_path:
                    run_outside(attack, self)
                outcome.sent.append(photo)
                self.victim.send_file(self.photo)
                outcome.acknowledged.append(photo)
        except ProtocolError as error:
            outcome.errors["client"].append(error)

    def _see(self, record: Record) -> None:
        detail = record.detail
        outcome = self.outcome
        if record.sender == BYSTANDER:
            return
        if isinstance(detail, Incoming):
            came = (detail.announcement.name, detail.digest.hex())
            outcome.stored.append((record.sender, came))
            return
        if record.sender:
            outcome.named.append(record.sender)
        if detail:
            outcome.errors["server"].append(detail)
        self._one_has_ended()

    def _clear_up(self) -> None:
        """Look for files that should not be, and remove what there is."""
        ours = (self.photo, self.folder / JOURNAL)
        for path in [*self.folder.iterdir(), *self.top.iterdir()]:
            if path.is_dir() or path in ours:
                continue
            if path.parent != self.folder or path.read_bytes() != PHOTO:
                self.outcome.litter.append(str(path.relative_to(self.top)))
            path.unlink()
