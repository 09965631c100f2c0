"""The adversary of this protocol: on the wire, with certificates of its own, with stolen keys.

Everything is real: sockets, endpoints, frames, RSA keys. The proxy, the verdicts and the event log
are those of the core's attacks.py; the client there is the device here. An on-path attack turns the
frames of the victim's connection into what is delivered instead; any other has the lab, and what
it holds. The verdict is what the victims did, never whether bytes came back.

    python -m companions.device_transfer.attacks
    python -m companions.device_transfer.attacks --without sequence,manifest replay-chunk
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from attacks import Attack, CutHere, Frame, Frames, Log, Proxy, flipped
from companions.adversary import Catalogue, Program, attacked, run
from companions.asymmetric import SIGNATURE_BYTES, PrivateKey, new_identity
from companions.device_transfer.certificates import (
    Certificate,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    Identity,
    RevocationListRolledBack,
    RevocationListStale,
    RevocationListUnusable,
    Role,
    Trust,
    UntrustedCertificate,
    WrongRole,
    issue,
    parse_certificate,
    sign_revocation_list,
    utc_now,
)
from companions.device_transfer.device import Device
from companions.device_transfer.protocol import (
    CIPHERTEXT_AT,
    HEADER,
    KIND_BYTES,
    BadSignature,
    Direction,
    Header,
    Kind,
    Message,
    PeerFailed,
    RekeyOverdue,
    Session,
    UnexpectedKind,
    WrongSequence,
    WrongSession,
    digest_of,
    keys_of,
    next_secret,
    read_frame,
    write_frame,
)
from companions.device_transfer.server import Limits, Record, Server
from companions.device_transfer.store import Store
from companions.device_transfer.transfer import (
    Announcement,
    BadManifest,
    BadManifestSignature,
    BadName,
    Incoming,
    Manifest,
    TooLarge,
    sign_manifest,
)
from crypto_utils import TAG_BYTES, aes_cbc_decrypt, hmac_verify, pkcs7_unpad
from program import UserError, run_program
from protocol_fsm import (
    BadTag,
    ConnectionCut,
    DeadlineExpired,
    LocalError,
    ProtocolError,
    WrongDirection,
    WrongPeer,
)

# The victims, and what is seen of them ------------------------------------------------------------

AUTHORITY = "school"
SERVER = "server-1"
VICTIM = "device-1"
BYSTANDER = "device-2"
MALLORY = "device-3"
TEXT = "door 3 is open"
PHOTO = bytes(2 * 65_536) + hashlib.shake_256(b"photo").digest(96_000)  # 4 chunks, 2 of them equal
REKEY_CHUNKS = 4  # the text, and 3 of the photo
LIMITS = Limits(handshake_s=0.8, frame_s=0.3, silence_s=10.0, max_bytes=2**20)
TIMEOUT_S = 0.6  # of a device, for an answer

RSA_TRANSPORT = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

Item = tuple[str, str]  # the name of a file, empty for a text; and the SHA-256 digest, in hex


def thing(name: str, content: bytes) -> Item:
    return name, hashlib.sha256(content).hexdigest()


@dataclass
class Outcome:
    """What became of the victim's session, and of what was sent in anybody's name."""

    sent: list[Item] = field(default_factory=list)  # by the victim
    acknowledged: list[Item] = field(default_factory=list)  # as the victim believes
    stored: list[tuple[str, Item]] = field(default_factory=list)  # by the server, and for whom
    errors: dict[str, list[Exception]] = field(default_factory=lambda: {"client": [], "server": []})
    named: list[str] = field(default_factory=list)  # whom the server took its peers for
    litter: list[str] = field(default_factory=list)  # files that nobody sent, or in a wrong place
    learned: str = ""  # by the adversary


# Goals: what the adversary has won, in words; empty if nothing
def learned(outcome: Outcome) -> str:
    return outcome.learned


def forged(outcome: Outcome) -> str:
    """Say what an end believes that its partner never said or did."""
    of_victim = [thing for sender, thing in outcome.stored if sender == VICTIM]
    if unsent := Counter(of_victim) - Counter(outcome.sent):
        name = min(unsent)[0]
        return f"the server keeps a {name or 'text'} that the device has not sent"
    if Counter(outcome.acknowledged) - Counter(of_victim):
        return "the device believes that what it sent has arrived"
    return learned(outcome)


def kept(outcome: Outcome) -> str:
    """Say if the text was kept, though it was touched."""
    return "the text is kept all the same" if outcome.stored else ""


def littered(outcome: Outcome) -> str:
    """Say if there are files now that should not be."""
    return f"there is a file {min(outcome.litter)}" if outcome.litter else forged(outcome)


def escaped(outcome: Outcome) -> str:
    """Say if there are files outside the folder of received ones."""
    outside = [name for name in outcome.litter if not name.startswith("received")]
    return f"there is a file {min(outside)}, outside the folder" if outside else ""


def misbound(outcome: Outcome) -> str:
    """Say if the victim's session was taken for the adversary's."""
    return f"the server takes {VICTIM} for {MALLORY}" if MALLORY in outcome.named else ""


def alone(outcome: Outcome) -> str:
    """Say if the device sends to a server that never heard of it."""
    return "the device sends to nobody" if outcome.sent and not outcome.named else ""


# The lab ------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What the lab is built from: the real parts, or weakened ones from weakened.py."""

    session: Callable[..., Session] = Session
    trust: Callable[..., Trust] = Trust
    incoming: Callable[..., Incoming] = Incoming
    store: Callable[..., Store] = Store
    server: Callable[..., Server] = Server
    device: Callable[..., Device] = Device


class Pki:
    """An authority, those whom it knows, and an authority that nobody trusts."""

    def __init__(self) -> None:
        names = (AUTHORITY, SERVER, VICTIM, BYSTANDER, MALLORY, "elsewhere")
        self.keys = {name: new_identity() for name in names}
        self.now = utc_now()
        self.people = {SERVER: self.person(SERVER, Role.SERVER)}
        for name in (VICTIM, BYSTANDER, MALLORY):
            self.people[name] = self.person(name)

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
        return Identity(
            issue(
                self.keys[authority],
                issuer=AUTHORITY,
                common_name=name,
                role=role,
                serial=serial,
                public_key=key.public_key(),
                not_before=self.now + timedelta(begins),
                not_after=self.now + timedelta(ends),
            ),
            key,
        )

    def revocations(
        self, number: int, *revoked: Identity, ends: int = 1, authority: str = AUTHORITY
    ) -> bytes:
        return sign_revocation_list(
            self.keys[authority],
            issuer=AUTHORITY,
            number=number,
            this_update=self.now - timedelta(2),
            next_update=self.now + timedelta(ends),
            revoked=[person.certificate.serial for person in revoked],
        ).encoded


class Line:
    """An outsider's own connection to the server."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self.socket = sock
        self._log = log

    def send(self, message: bytes) -> None:
        self._log("inserted", Frame("server", message))
        with suppress(OSError):  # the server may have had enough
            write_frame(self.socket.sendall, message)

    def receive(self) -> bytes:
        """Return the next message, or nothing when the server has closed."""
        with suppress(OSError, ProtocolError):
            message = read_frame(self.socket.recv)
            self._log("sent", Frame("client", message))
            return message
        return b""


class Lab:
    """A server, a victim, a bystander whose session never ends, and a recording."""

    is_foreign = False

    def __init__(
        self, log: Log, parts: Parts | None = None, watch: Any = None, pki: Pki | None = None
    ) -> None:
        self.outcome = Outcome()
        self.attack = ""
        self._log = log
        self._watch = watch
        self.parts = parts or Parts()
        self.is_weakened = bool(parts)
        self.pki = pki or Pki()
        self._list_number = 0
        self.publish()
        self.trust = self._new_trust()
        self.victim: Device  # while it is connected
        self.harm: list[Exception] = []  # that has come to the bystander: there must be none
        self.rounds = 0  # that the bystander has done
        self._changed = threading.Condition()
        self._connections = 0  # that have not ended yet

    def _new_trust(self) -> Trust:
        return self.parts.trust(
            self.pki.keys[AUTHORITY].public_key(), AUTHORITY, lambda: self.revocations
        )

    def publish(self, *revoked: Identity, **options: Any) -> bytes:
        """Hand both ends a new revocation list."""
        self._list_number += 1
        self.revocations = self.pki.revocations(self._list_number, *revoked, **options)
        return self.revocations

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.folder = self.top / "received"
            self.photo = self.top / "photo.png"
            self.photo.write_bytes(PHOTO)
            self.server = stack.enter_context(
                self.parts.server(
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
            )
            self.tape = self.honest_session()
            bystander = self._device(self.pki.people[BYSTANDER], self.server.address)
            self._bystander = bystander.__enter__()
            stack.callback(self._dismiss)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def _dismiss(self) -> None:
        with suppress(ProtocolError, LocalError, UserError):  # an attack may have harmed it
            self._bystander.__exit__(None, None, None)

    def log(self, event: str, frame: Frame) -> None:
        self._log(event, frame)

    def new_session(
        self, identity: Identity, trust: Trust, peer_name: str | None = None
    ) -> Session:
        session = self.parts.session(identity, trust, peer_name, rekey_chunks=REKEY_CHUNKS)
        if self._watch and self.attack and identity.certificate.common_name in (SERVER, VICTIM):
            by = "client" if session.sends is Direction.D2S else "server"
            self._watch.noting(session, by, PeerFailed)
        return session

    def device(self, who: Identity, new_session: Callable[..., Session] | None = None) -> Device:
        """Return a device of the adversary's, whose messages are logged as its own."""
        device = self._device(who, self.server.address, new_session)
        seal = device.session.seal
        opened = device.session.open

        def told_seal(kind: Kind, body: bytes = b"") -> bytes:
            message = seal(kind, body)
            self.log("inserted", Frame("server", message))
            return message

        def told_open(message: bytes) -> Message:
            self.log("sent", Frame("client", message))
            return opened(message)

        vars(device.session).update(seal=told_seal, open=told_open)
        return device

    def _device(
        self,
        who: Identity,
        address: tuple[str, int],
        new_session: Callable[..., Session] | None = None,
    ) -> Device:
        """Return a device whose end the lab will wait for."""
        with self._changed:
            self._connections += who.certificate.common_name != BYSTANDER
        return self.parts.device(
            who,
            self.trust,
            SERVER,
            *address,
            timeout_s=TIMEOUT_S,
            new_session=new_session or self.new_session,
        )

    @contextlib.contextmanager
    def connect(self) -> Iterator[Line]:
        """Give an outsider's connection, whose end the lab will wait for."""
        with self._changed:
            self._connections += 1
        with socket.create_connection(self.server.address, 5.0) as sock:
            yield Line(sock, self.log)

    def honest_session(self) -> list[Frame]:
        """Let the victim live a whole session in peace, and return its recording. UserError."""
        tape: list[Frame] = []

        def listen(frames: Frames) -> Frames:
            for frame in frames:
                tape.append(frame)
                yield frame

        try:
            with (
                Proxy(self.server.address, listen, read_frame, write_frame) as proxy,
                self._device(self.pki.people[VICTIM], proxy.address) as device,
            ):
                device.send_text(TEXT)
                self.secret = device.session._secret  # for who steals it
                device.send_file(self.photo)
        except ProtocolError as error:
            raise UserError(f"no honest session: {error}") from None
        return tape

    def bystanders_go_on(self) -> bool:
        """Tell whether the bystander's session still works."""
        if not self.harm:
            try:
                self._bystander.send_text(f"all is well, {self.rounds}")
                self.rounds += 1
            except (ProtocolError, LocalError, UserError) as error:
                self.harm.append(error)
        return not self.harm

    def _see(self, record: Record) -> None:
        if record.sender == BYSTANDER:
            return
        with self._changed:
            if isinstance(record.detail, Incoming):
                came = record.detail.announcement.name, record.detail.digest.hex()
                self.outcome.stored.append((record.sender, came))
            else:
                self._connections -= 1
                self.outcome.named += [record.sender] * bool(record.sender)
                self.outcome.errors["server"] += [record.detail] if record.detail else []
            self._changed.notify_all()

    def suffer(self, attack: Attack) -> Outcome:
        """Let the victim live a session under attack, and return what became of it."""
        self.outcome = Outcome()
        self.attack = attack.name
        self.publish()
        if attack.is_on_path:
            tap = partial(attacked, attack, lab=self)
            with Proxy(self.server.address, tap, read_frame, write_frame) as proxy:
                self._live(proxy.address, attack)
        else:
            self._live(self.server.address, attack)
        with self._changed:
            self._changed.wait_for(lambda: self._connections == 0, 5.0)
        self._clear_up()
        return self.outcome

    def _clear_up(self) -> None:
        """Look for files that should not be, and remove what there is."""
        for path in [*self.folder.iterdir(), *self.top.iterdir()]:
            if path.is_file() and path.name != "journal.jsonl" and path != self.photo:
                if path.parent != self.folder or path.read_bytes() != PHOTO:
                    self.outcome.litter.append(str(path.relative_to(self.top)))
                path.unlink()

    def _live(self, address: tuple[str, int], attack: Attack) -> None:
        outcome = self.outcome
        text = thing("", TEXT.encode())
        photo = thing("photo.png", PHOTO)
        try:
            with self._device(self.pki.people[VICTIM], address) as self.victim:
                outcome.sent.append(text)
                self.victim.send_text(TEXT)
                outcome.acknowledged.append(text)
                if not attack.is_on_path:
                    attack.run(self)
                outcome.sent.append(photo)
                self.victim.send_file(self.photo)
                outcome.acknowledged.append(photo)
        except ProtocolError as error:
            outcome.errors["client"].append(error)


# The catalogue ------------------------------------------------------------------------------------

CATALOGUE = Catalogue(forged)
ATTACKS = CATALOGUE.attacks
attack = CATALOGUE.attack


def change(
    claim: str,
    who: str,
    error: type[Exception],
    name: str,
    story: str,
    how: Callable[[Frame, Lab], Frame | None],
    at: Kind,
    count: int = 1,
    **options: Any,
) -> None:
    """Register an attack on one message to the server: what `how` returns takes its place."""
    CATALOGUE.change(
        claim, who, error, name, story, how, lambda frames: up_to(frames, at, count), **options
    )


def up_to(
    frames: Frames, kind: Kind, count: int = 1, to: str = "server"
) -> Generator[Frame, None, Frame]:
    """Deliver all before the first (second, ...) message of a kind, and return that. CutHere."""
    for frame in frames:
        count -= frame.to == to and frame.message.startswith(kind)
        if not count:
            return frame
        yield frame
    raise CutHere


def edited(frame: Frame, **fields: Any) -> Frame:
    """Rewrite header fields of a record."""
    header = Header(*HEADER.unpack_from(frame.message))._replace(**fields)
    return frame._replace(message=HEADER.pack(*header) + frame.message[HEADER.size :])


def taped(lab: Lab, kind: Kind, number: int = 0) -> Frame:
    """Return a message to the server from the recording."""
    return [frame for frame in lab.tape if frame.to == "server" and frame.message.startswith(kind)][
        number
    ]


PHOTO_CHUNK = 2  # the first chunk is the text

# Records on their way


@attack("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Chunks are compared, and searched for the text."""
    known: set[bytes] = set()
    for frame in frames:
        content = frame.message[CIPHERTEXT_AT:-TAG_BYTES]
        if TEXT.encode() in frame.message:
            lab.outcome.learned = f"the text: {TEXT}"
        if frame.message.startswith(Kind.CHUNK) and content[:1_024] in known:
            lab.outcome.learned = "two chunks of the photo are equal"
        known.add(content[:1_024])
        yield frame


change(
    "integrity",
    "server",
    BadTag,
    "flip-text",
    "One bit flips, to make door 3 door 1.",
    lambda chunk, lab: flipped(chunk, HEADER.size + TEXT.index("3"), ord("3") ^ ord("1")),
    Kind.CHUNK,
)
change(
    "integrity",
    "server",
    BadTag,
    "flip-photo",
    "One bit of a chunk of the photo flips.",
    lambda chunk, lab: flipped(chunk, CIPHERTEXT_AT + 5),
    Kind.CHUNK,
    PHOTO_CHUNK,
)
change(
    "integrity",
    "server",
    BadTag,
    "flip-tag",
    "One bit of a tag flips.",
    lambda chunk, lab: flipped(chunk, -1),
    Kind.CHUNK,
    goal=kept,
)


def shortened(chunk: Frame, lab: Lab) -> Frame:
    """Cut off the last block; of the zeros before it the last becomes a padding of 1 byte."""
    message = chunk.message[: -TAG_BYTES - 16] + chunk.message[-TAG_BYTES:]
    return flipped(chunk._replace(message=message), -TAG_BYTES - 17)


change(
    "integrity",
    "server",
    BadTag,
    "truncate-chunk",
    "A chunk loses its end, and is padded.",
    shortened,
    Kind.CHUNK,
    PHOTO_CHUNK,
)
change(
    "integrity",
    "server",
    BadTag,
    "relabel-end",
    "An END is relabelled as a FAIL.",
    lambda end, lab: edited(end, kind=Kind.FAIL),
    Kind.END,
    goal=lambda outcome: (
        "the server believes that the device gave up"
        if any(isinstance(error, PeerFailed) for error in outcome.errors["server"])
        else ""
    ),
)
change(
    "order",
    "server",
    UnexpectedKind,
    "relabel-manifest",
    "A manifest is relabelled as an END.",
    lambda manifest, lab: edited(manifest, kind=Kind.END),
    Kind.MANIFEST,
)


@attack("freshness", "server", WrongSequence)
def replay_chunk(frames: Frames, lab: Lab) -> Frames:
    """The last chunk of the photo is delivered twice."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 3)
    yield from (chunk, chunk)


@attack("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A chunk comes again, in the place of the next one."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 1)
    header = Header(*HEADER.unpack_from(next(frames).message))
    yield from (chunk, edited(chunk, sequence=header.sequence))


@attack("freshness", "server", WrongSequence)
def replay_text(frames: Frames, lab: Lab) -> Frames:
    """A whole text comes again, with its manifest."""
    first = yield from up_to(frames, Kind.TEXT)
    others = [next(frames), next(frames)]
    yield from (first, *others)
    yield next(frames)  # it is acknowledged
    yield from (first, *others)


@attack("order", "server", WrongSequence)
def swap_chunks(frames: Frames, lab: Lab) -> Frames:
    """Two chunks of the photo change places."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 1)
    yield from (next(frames), chunk)


change(
    "order",
    "server",
    WrongSequence,
    "drop-chunk",
    "A chunk of the photo vanishes.",
    lambda chunk, lab: None,
    Kind.CHUNK,
    PHOTO_CHUNK,
)
change(
    "session",
    "server",
    WrongSession,
    "splice-chunk",
    "A chunk of an earlier session comes instead.",
    lambda chunk, lab: taped(lab, Kind.CHUNK, 1),
    Kind.CHUNK,
    PHOTO_CHUNK,
)
change(
    "session",
    "server",
    BadTag,
    "splice-rewritten",
    "The same, with this session's id on it.",
    lambda chunk, lab: edited(taped(lab, Kind.CHUNK, 1), session=chunk.message[6:22]),
    Kind.CHUNK,
    PHOTO_CHUNK,
)
change(
    "direction",
    "client",
    WrongDirection,
    "reflect",
    "The device's CONFIRM comes back to it.",
    lambda confirm, lab: Frame("client", confirm.message),
    Kind.CONFIRM,
    goal=alone,
)
change(
    "direction",
    "client",
    BadTag,
    "reflect-rewritten",
    "The same, dressed up as the server's.",
    lambda confirm, lab: edited(Frame("client", confirm.message), direction=Direction.S2D),
    Kind.CONFIRM,
    goal=alone,
)
change(
    "direction",
    "client",
    WrongRole,
    "reflect-hello",
    "The device's HELLO comes back to it.",
    lambda hello, lab: Frame("client", hello.message),
    Kind.HELLO,
    goal=alone,
)


@attack("ending", "server", ConnectionCut, goal=littered)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut in the middle of the photo."""
    yield (yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK))
    raise CutHere


@attack("loss", "client", DeadlineExpired, noticed="the device's deadline")
def drop_ack(frames: Frames, lab: Lab) -> Frames:
    """The acknowledgement of the text vanishes."""
    yield from up_to(frames, Kind.ACK, to="client")


# The handshake

change(
    "identity",
    "server",
    BadSignature,
    "replace-share",
    "The device's share is replaced.",
    lambda share, lab: flipped(share, KIND_BYTES),
    Kind.SHARE,
)
change(
    "identity",
    "server",
    BadSignature,
    "replace-nonce",
    "The device's nonce is replaced.",
    lambda hello, lab: flipped(hello, KIND_BYTES + 1),
    Kind.HELLO,
)


def posing(lab: Lab, who: Identity, sends: Direction) -> Session:
    """Return an end for the adversary, who believes any certificate, in any role."""
    trust = Gullible(lab.pki.keys[AUTHORITY].public_key(), AUTHORITY, lambda: b"")
    session = lab.parts.session(who, trust)
    session.sends = sends
    session.receives = Direction(1 - sends)
    return session


class Gullible(Trust):
    """The adversary wants to talk, and not to know with whom."""

    def check(self, encoded: bytes, role: Role) -> Certificate:
        return parse_certificate(encoded)


def impostor(frames: Frames, lab: Lab, who: Identity) -> Frames:
    """Play the server for the device; the real one hears nothing."""
    session = posing(lab, who, Direction.S2D)
    content = hashlib.sha256()
    for frame in frames:
        if frame.to == "client":
            continue
        kind, body = session.open(frame.message)
        if kind is Kind.CHUNK:
            content.update(body)
        if kind in (Kind.HELLO, Kind.SHARE, Kind.CONFIRM, Kind.REKEY):
            yield Frame("client", session.seal(kind))
        if kind in (Kind.MANIFEST, Kind.END):
            yield Frame("client", session.seal(Kind.ACK, content.digest()))
            content = hashlib.sha256()


@attack("identity", "client", WrongRole)
def device_as_server(frames: Frames, lab: Lab) -> Frames:
    """Another device plays the server."""
    yield from impostor(frames, lab, lab.pki.people[MALLORY])


@attack("identity", "client", WrongPeer)
def other_server(frames: Frames, lab: Lab) -> Frames:
    """Another server, a real one, plays this server."""
    who = lab.pki.person("server-2", Role.SERVER, key=lab.pki.keys[MALLORY])
    yield from impostor(frames, lab, who)


@attack("identity", "client", BadSignature)
def borrowed_server_certificate(frames: Frames, lab: Lab) -> Frames:
    """The server is played with its certificate alone."""
    who = Identity(lab.pki.people[SERVER].certificate, lab.pki.keys[MALLORY])
    yield from impostor(frames, lab, who)


@attack("identity", "server", BadSignature, goal=learned)
def man_in_the_middle(frames: Frames, lab: Lab) -> Frames:
    """One handshake with each, with borrowed certificates."""
    key = lab.pki.keys[MALLORY]
    people = lab.pki.people
    to_client = posing(lab, Identity(people[SERVER].certificate, key), Direction.S2D)
    to_server = posing(lab, Identity(people[VICTIM].certificate, key), Direction.D2S)
    for frame in frames:
        heard, says = (to_client, to_server) if frame.to == "server" else (to_server, to_client)
        kind, body = heard.open(frame.message)
        if kind is Kind.CHUNK:
            lab.outcome.learned = lab.outcome.learned or f"the text: {body.decode()}"
        yield Frame(frame.to, says.seal(kind, body))


@attack("identity", "client", BadSignature, goal=misbound)
def misbinding(frames: Frames, lab: Lab) -> Frames:
    """HELLO and SHARE are sent on in another name."""
    who = lab.pki.people[MALLORY]
    hello = yield from up_to(frames, Kind.HELLO)
    renamed = hello.message[: KIND_BYTES + 17] + who.certificate.encoded
    yield Frame("server", renamed)
    answer = next(frames)
    yield answer
    share = next(frames).message
    session = lab.parts.session(who, lab.trust)
    session._transcript = [renamed, answer.message]
    session._share = share[KIND_BYTES:-SIGNATURE_BYTES]
    yield Frame("server", Kind.SHARE.value + session._own_body(Kind.SHARE))


@attack("session", "client", BadSignature)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = (frame for frame in lab.tape if frame.to == "client")
    for frame in frames:
        if frame.to == "server":
            yield next(answers, Frame("client", frame.message))


@attack("session", "server", BadSignature)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame.message)
        for _ in lab.tape:
            line.receive()


# Certificates


def knock(lab: Lab, who: Identity, what: str) -> None:
    """Try a session of one's own as somebody, and to send something in it."""
    with suppress(ProtocolError), lab.device(who) as device:
        lab.outcome.learned = f"{what} is let in"
        device.send_text("let me in")


@attack("identity", "server", CertificateExpired)
def expired_certificate(lab: Lab) -> None:
    """A certificate of the day before yesterday is shown."""
    knock(lab, lab.pki.person(MALLORY, begins=-3, ends=-1), "who has an expired certificate")


@attack("identity", "server", CertificateNotYetValid)
def future_certificate(lab: Lab) -> None:
    """A certificate of tomorrow is shown."""
    knock(lab, lab.pki.person(MALLORY, begins=1, ends=2), "who has a certificate of tomorrow")


@attack("identity", "server", UntrustedCertificate)
def forged_certificate(lab: Lab) -> None:
    """A certificate is edited, to say device-1."""
    own = lab.pki.people[MALLORY]
    encoded = own.certificate.encoded.replace(MALLORY.encode(), VICTIM.encode())
    knock(lab, replace(own, certificate=parse_certificate(encoded)), "a forged device-1")


@attack("identity", "server", UntrustedCertificate)
def other_authority(lab: Lab) -> None:
    """A device-1 of another authority comes."""
    who = lab.pki.person(VICTIM, key=lab.pki.keys[MALLORY], authority="elsewhere")
    knock(lab, who, "another authority's device-1")


@attack("identity", "server", BadSignature)
def borrowed_certificate(lab: Lab) -> None:
    """Device-1's certificate is shown, without its key."""
    who = Identity(lab.pki.people[VICTIM].certificate, lab.pki.keys[MALLORY])
    knock(lab, who, "who copied a certificate")


@attack("revocation", "server", CertificateRevoked)
def revoked_certificate(lab: Lab) -> None:
    """A device comes whose certificate was revoked."""
    lab.publish(lab.pki.people[MALLORY])
    knock(lab, lab.pki.people[MALLORY], "who was revoked")


@attack("revocation", "server", RevocationListRolledBack)
def old_revocation_list(lab: Lab) -> None:
    """The server is handed an older revocation list."""
    older = lab.revocations
    lab.publish(lab.pki.people[MALLORY])
    with suppress(ProtocolError), lab.device(lab.pki.people[VICTIM]):
        pass  # so that the server sees the new one
    lab.revocations = older
    knock(lab, lab.pki.people[MALLORY], "who was revoked")


@attack("revocation", "server", RevocationListStale)
def stale_revocation_list(lab: Lab) -> None:
    """New revocation lists are kept from the server."""
    lab.publish(ends=-1)  # its last, from before it was revoked
    knock(lab, lab.pki.people[MALLORY], "who was revoked since")


@attack("revocation", "server", RevocationListUnusable)
def forged_revocation_list(lab: Lab) -> None:
    """The server is handed a forged revocation list."""
    lab.publish(authority="elsewhere")
    knock(lab, lab.pki.people[MALLORY], "who was revoked")


# Devices that are let in, and behave badly


def misbehave(
    lab: Lab,
    what: str,
    *,
    name: str = "note.txt",
    announced: int = 4,
    content: bytes = b"note",
    key: PrivateKey | None = None,
    **changes: Any,
) -> None:
    """Send a file as device-3; `changes` are to its manifest."""
    who = lab.pki.people[MALLORY]
    with suppress(ProtocolError), lab.device(who) as device:
        device.channel.send(Kind.FILE, Announcement("file", name, announced).encode())
        device.channel.send(Kind.CHUNK, content)
        manifest = replace(
            Manifest(
                "file",
                name,
                len(content),
                hashlib.sha256(content).hexdigest(),
                lab.pki.now,
                device.session.session_id.hex(),
                0,
                MALLORY,
                SERVER,
            ),
            **changes,
        )
        device.channel.send(Kind.MANIFEST, sign_manifest(key or who.private_key, manifest))
        device.receive()
        lab.outcome.learned = f"the server keeps {what}"


@attack("files", "server", BadName, goal=escaped)
def path_name(lab: Lab) -> None:
    """A file is named ../outside.txt."""
    misbehave(lab, "a file outside its folder", name="../outside.txt")


@attack("files", "server", TooLarge)
def more_than_announced(lab: Lab) -> None:
    """A file is longer than was announced."""
    misbehave(lab, "more than was announced", announced=3)


@attack("files", "server", BadManifest)
def wrong_digest(lab: Lab) -> None:
    """A manifest is signed for another file."""
    misbehave(lab, "what was not signed", digest=hashlib.sha256(b"other").hexdigest())


@attack("files", "server", BadManifest)
def old_manifest(lab: Lab) -> None:
    """A manifest is an hour old."""
    misbehave(lab, "what was signed an hour ago", time=lab.pki.now - timedelta(hours=1))


@attack("files", "server", BadManifestSignature)
def unsigned_file(lab: Lab) -> None:
    """A manifest is signed with another key."""
    misbehave(lab, "what the device could deny", key=lab.pki.keys["elsewhere"])


@attack("files", "server", TooLarge)
def too_large(lab: Lab) -> None:
    """A file is larger than the server takes."""
    (lab.top / "large.bin").write_bytes(bytes(LIMITS.max_bytes + 1))
    with suppress(ProtocolError), lab.device(lab.pki.people[MALLORY]) as device:
        device.send_file(lab.top / "large.bin")
        lab.outcome.learned = "the server keeps more than it may"


@attack("keys", "server", RekeyOverdue)
def never_rekey(lab: Lab) -> None:
    """A device never asks for new keys."""
    new_session = partial(lab.parts.session, rekey_chunks=2**62)
    device = lab.device(lab.pki.people[MALLORY], new_session=new_session)
    with suppress(ProtocolError), device:
        device.send_file(lab.photo)
        device.send_file(lab.photo)
        lab.outcome.learned = "one generation of keys serves for ever"


# What the wire tells, and how long it takes


@attack("secrecy", "server", UntrustedCertificate)
def provoke(lab: Lab) -> None:
    """A refusal is asked for, to learn from it."""
    who = lab.pki.person(MALLORY, authority="elsewhere")
    with lab.connect() as line:
        line.send(posing(lab, who, Direction.D2S).seal(Kind.HELLO))
        if (answer := line.receive()).startswith(Kind.FAIL):
            lab.outcome.learned = f"the server says why: {answer[KIND_BYTES:40].decode()}"


@attack("availability", "server", DeadlineExpired)
def slow_drip(lab: Lab) -> None:
    """A HELLO drips in, byte by byte."""
    with lab.connect() as line, suppress(ConnectionError):
        line.socket.settimeout(LIMITS.frame_s / 10)  # so 10 bytes fit into the deadline
        for byte in (1_000).to_bytes(4, "big") + Kind.HELLO.value + bytes(20):
            line.socket.sendall(bytes([byte]))
            with suppress(TimeoutError):
                line.socket.recv(1)
                return
        lab.outcome.learned = "a frame takes as long as it likes"


# Theft


def unsealed(keys: dict[str, bytes], message: bytes) -> bytes:
    """Return the body of a record to the server, nothing if these keys do not fit."""
    with suppress(ValueError):
        if hmac_verify(keys["D2S-MAC"], message[:-TAG_BYTES], message[-TAG_BYTES:]):
            iv = message[HEADER.size : CIPHERTEXT_AT]
            ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
            return pkcs7_unpad(aes_cbc_decrypt(ciphertext, keys["D2S-ENC"], iv))
    return b""


@attack("theft", "", None, goal=learned)
def stolen_server_key(lab: Lab) -> None:
    """The server's key is stolen, for an old recording."""
    handshake = [frame.message for frame in lab.tape[:4]]
    key = lab.pki.keys[SERVER]
    share = handshake[2][KIND_BYTES:-SIGNATURE_BYTES]
    with suppress(ValueError):  # it never encrypted anything
        premaster = key.decrypt(share, RSA_TRANSPORT)
        keys = keys_of(next_secret(digest_of(handshake), premaster))
        text = unsealed(keys, taped(lab, Kind.CHUNK).message)
        lab.outcome.learned = f"the recorded text: {text.decode()}"


@attack("theft", "", None, goal=learned, noticed="nothing")
def stolen_session_keys(frames: Frames, lab: Lab) -> Frames:
    """The session's keys are stolen in the middle of it."""
    chunks: list[bytes] = []
    keys: dict[str, bytes] = {}
    for frame in frames:
        if frame.to == "server" and frame.message.startswith(Kind.CHUNK):
            chunks.append(frame.message)
            keys = keys or dict(lab.victim.session._keys)
        yield frame
    is_open = ["open" if unsealed(keys, chunk) else "closed" for chunk in chunks]
    lab.outcome.learned = "chunks: " + ", ".join(is_open)


@attack("theft", "", None, goal=learned, noticed="nobody, until the certificate is revoked")
def stolen_device_key(lab: Lab) -> None:
    """The RSA key of device-1 is stolen, and used."""
    knock(lab, lab.pki.people[VICTIM], "a second device-1")


@attack("theft", "", None, goal=learned, noticed="who reads the list of issued certificates")
def stolen_authority_key(lab: Lab) -> None:
    """The authority's key is stolen, and makes a device-1."""
    knock(lab, lab.pki.person(VICTIM, key=lab.pki.keys[MALLORY]), "a device-1 with another key")


# Telling it ---------------------------------------------------------------------------------------


def kind_name(message: bytes) -> str:
    with suppress(ValueError):
        return Kind(message[:KIND_BYTES]).name
    return "nonsense"


def main() -> int:
    def parts(names: Sequence[str]) -> Parts:
        from companions.device_transfer.weakened import without  # loaded when it is asked for

        return Parts(*without(names))

    return run(
        Program(
            "Attacks devices and a server of its own, on loopback.",
            ATTACKS,
            Lab,
            parts,
            kind_name,
            "making keys for an authority, a server and three devices ...",
        )
    )


if __name__ == "__main__":
    run_program(main)
