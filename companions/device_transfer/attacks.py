"""The adversary of this protocol: on the wire, with certificates of its own, with stolen keys.

    python -m companions.device_transfer.attacks
    python -m companions.device_transfer.attacks --without sequence,manifest replay-chunk

Everything is real: sockets, endpoints, frames, RSA keys. An attack on path is a generator over the
frames of the victim's connection: what it yields is delivered. One from outside has the lab, with
its recording and its certificates. The verdict is what the victims did, never whether bytes came
back. Nothing here weakens anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from companions.asymmetric import SIGNATURE_BYTES, PrivateKey
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
    parse_certificate,
)
from companions.device_transfer.protocol import (
    CERTIFICATE_AT,
    CHUNK_BYTES,
    CIPHERTEXT_AT,
    HEADER,
    KIND_BYTES,
    PLAIN,
    VERSION,
    BadSignature,
    Direction,
    Header,
    Kind,
    Message,
    RekeyOverdue,
    Session,
    UnexpectedKind,
    WrongSequence,
    WrongSession,
    digest_of,
    keys_of,
    next_secret,
)
from companions.device_transfer.stage import (
    AUTHORITY,
    LIMITS,
    MALLORY,
    PHOTO,
    REKEY_CHUNKS,
    SERVER,
    TEXT,
    VICTIM,
    Lab,
    alone,
    escaped,
    forged,
    given_up,
    kept,
    learned,
    littered,
    misbound,
)
from companions.device_transfer.transfer import (
    Announcement,
    BadManifest,
    BadManifestSignature,
    BadName,
    Manifest,
    TooLarge,
    sign_manifest,
)
from crypto_utils import BLOCK_BYTES, TAG_BYTES, aes_cbc_decrypt, pkcs7_unpad
from lab.catalogue import Catalogue, CutHere, first_of
from lab.ciphertexts import shown_by
from lab.frames import Frame, Frames, flipped
from lab.program import Program
from program import run_program
from protocol_fsm import BadTag, ConnectionCut, DeadlineExpired, WrongDirection, WrongPeer

# What the stories are told with -------------------------------------------------------------------

CATALOGUE = Catalogue(goal=forged)
ATTACKS = CATALOGUE.attacks
on_path = CATALOGUE.on_path  # (family, who refuses it, with which error, goal=...)
outside = CATALOGUE.outside

PHOTO_CHUNK = 2  # the first chunk is the text
PHOTO_CHUNKS = [PHOTO[start : start + CHUNK_BYTES] for start in range(0, len(PHOTO), CHUNK_BYTES)]
RSA_TRANSPORT = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def up_to(
    frames: Frames, kind: Kind, count: int = 1, to: str = "server"
) -> Generator[Frame, None, Frame]:
    """Deliver all before the first (second, ...) message of a kind, and return that. CutHere."""

    def is_wanted(frame: Frame) -> bool:
        return frame.to == to and frame.message.startswith(kind)

    return (yield from first_of(frames, is_wanted, count))


def taped(lab: Lab, kind: Kind, number: int = 0) -> Frame:
    """Return a message to the server from the recording."""
    to_server = [frame for frame in lab.tape if frame.to == "server"]
    return [frame for frame in to_server if frame.message.startswith(kind)][number]


def header_of(frame: Frame) -> Header:
    return Header(*HEADER.unpack_from(frame.message))


def edited(frame: Frame, **fields: Any) -> Frame:
    """Rewrite header fields of a record."""
    header = header_of(frame)._replace(**fields)
    return frame.changed(HEADER.pack(*header) + frame.message[HEADER.size :])


# Records: secrecy and integrity -------------------------------------------------------------------


@on_path("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """Chunks are compared, and searched for the text."""
    sealed: list[bytes] = []  # after the handshake
    for frame in frames:
        if not frame.message.startswith(tuple(PLAIN)):
            sealed.append(frame.message[CIPHERTEXT_AT:-TAG_BYTES])
        yield frame
    lab.outcome.learned = shown_by(sealed)
    if any(TEXT.encode() in text for text in sealed):
        lab.outcome.learned = f"the text: {TEXT}"


@on_path("integrity", "server", BadTag)
def flip_text(frames: Frames, lab: Lab) -> Frames:
    """One bit flips, to make door 3 door 1."""
    chunk = yield from up_to(frames, Kind.CHUNK)
    # a flip in the IV flips the first block of the text
    yield flipped(chunk, HEADER.size + TEXT.index("3"), ord("3") ^ ord("1"))


@on_path("integrity", "server", BadTag)
def flip_photo(frames: Frames, lab: Lab) -> Frames:
    """One bit of a chunk of the photo flips."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK)
    yield flipped(chunk, CIPHERTEXT_AT + 5)


@on_path("integrity", "server", BadTag, goal=kept)
def flip_tag(frames: Frames, lab: Lab) -> Frames:
    """One bit of a tag flips."""
    chunk = yield from up_to(frames, Kind.CHUNK)
    yield flipped(chunk, -1)


@on_path("integrity", "server", BadTag)
def truncate_chunk(frames: Frames, lab: Lab) -> Frames:
    """A chunk loses its end, and is padded."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK)
    beginning = chunk.message[: -TAG_BYTES - BLOCK_BYTES]
    shorter = chunk.changed(beginning + chunk.message[-TAG_BYTES:])
    # of the zeros at the end the last one becomes a padding of 1 byte
    yield flipped(shorter, -TAG_BYTES - BLOCK_BYTES - 1)


@on_path("integrity", "server", BadTag, goal=given_up)
def relabel_end(frames: Frames, lab: Lab) -> Frames:
    """An END is relabelled as a FAIL."""
    end = yield from up_to(frames, Kind.END)
    yield edited(end, kind=Kind.FAIL)


# Records: order, freshness, sessions, direction ---------------------------------------------------


@on_path("order", "server", UnexpectedKind)
def relabel_manifest(frames: Frames, lab: Lab) -> Frames:
    """A manifest is relabelled as an END."""
    manifest = yield from up_to(frames, Kind.MANIFEST)
    yield edited(manifest, kind=Kind.END)


@on_path("freshness", "server", WrongSequence)
def replay_chunk(frames: Frames, lab: Lab) -> Frames:
    """The last chunk of the photo is delivered twice."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 3)
    yield from (chunk, chunk)


@on_path("freshness", "server", BadTag)
def replay_rewritten(frames: Frames, lab: Lab) -> Frames:
    """A chunk comes again, in the place of the next one."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 1)
    yield chunk
    following = next(frames)
    yield edited(following.replaced(chunk), sequence=header_of(following).sequence)


@on_path("freshness", "server", WrongSequence)
def replay_text(frames: Frames, lab: Lab) -> Frames:
    """A whole text comes again, with its manifest."""
    text = yield from up_to(frames, Kind.TEXT)
    yield text
    chunk = next(frames)
    yield chunk
    manifest = next(frames)
    yield manifest
    yield next(frames)  # it is acknowledged
    yield from (text, chunk, manifest)


@on_path("order", "server", WrongSequence)
def swap_chunks(frames: Frames, lab: Lab) -> Frames:
    """Two chunks of the photo change places."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK + 1)
    yield next(frames)
    yield chunk


@on_path("order", "server", WrongSequence)
def drop_chunk(frames: Frames, lab: Lab) -> Frames:
    """A chunk of the photo vanishes."""
    yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK)


@on_path("session", "server", WrongSession)
def splice_chunk(frames: Frames, lab: Lab) -> Frames:
    """A chunk of an earlier session comes instead."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK)
    yield chunk.replaced(taped(lab, Kind.CHUNK, 1))


@on_path("session", "server", BadTag)
def splice_rewritten(frames: Frames, lab: Lab) -> Frames:
    """The same, with this session's id on it."""
    chunk = yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK)
    yield edited(chunk.replaced(taped(lab, Kind.CHUNK, 1)), session=header_of(chunk).session)


@on_path("direction", "client", WrongDirection, goal=alone)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """The device's CONFIRM comes back to it."""
    confirm = yield from up_to(frames, Kind.CONFIRM)
    yield confirm.reflected()


@on_path("direction", "client", BadTag, goal=alone)
def reflect_rewritten(frames: Frames, lab: Lab) -> Frames:
    """The same, dressed up as the server's."""
    confirm = yield from up_to(frames, Kind.CONFIRM)
    yield edited(confirm.reflected(), direction=Direction.S2D)


@on_path("direction", "client", WrongRole, goal=alone)
def reflect_hello(frames: Frames, lab: Lab) -> Frames:
    """The device's HELLO comes back to it."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield hello.reflected()


# Endings and loss ---------------------------------------------------------------------------------


@on_path("ending", "server", ConnectionCut, goal=littered)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut in the middle of the photo."""
    yield (yield from up_to(frames, Kind.CHUNK, PHOTO_CHUNK))
    raise CutHere


@on_path("loss", "client", DeadlineExpired, noticed="the device's deadline")
def drop_ack(frames: Frames, lab: Lab) -> Frames:
    """The acknowledgement of the text vanishes."""
    yield from up_to(frames, Kind.ACK, to="client")


# The handshake ------------------------------------------------------------------------------------


@on_path("identity", "server", BadSignature)
def replace_share(frames: Frames, lab: Lab) -> Frames:
    """The device's share is replaced."""
    share = yield from up_to(frames, Kind.SHARE)
    yield flipped(share, KIND_BYTES)


@on_path("identity", "server", BadSignature)
def replace_nonce(frames: Frames, lab: Lab) -> Frames:
    """The device's nonce is replaced."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield flipped(hello, KIND_BYTES + len(VERSION))


class Gullible(Trust):
    """The adversary does not care whom it talks to."""

    def check(self, encoded: bytes, role: Role) -> Certificate:
        return parse_certificate(encoded)


def posing(lab: Lab, who: Identity, sends: Direction) -> Session:
    """Return an end for the adversary, which accepts any certificate, in any role."""
    trust = Gullible(lab.pki.keys[AUTHORITY].public_key(), AUTHORITY, lambda: b"")
    session = lab.parts.session(who, trust)
    session.sends = sends
    session.receives = Direction(1 - sends)
    return session


def impostor(frames: Frames, lab: Lab, who: Identity) -> Frames:
    """Play the server for the device; the real one hears nothing."""
    session = posing(lab, who, Direction.S2D)
    content = hashlib.sha256()
    for frame in frames:
        if frame.to == "client":
            continue
        message = session.open(frame.message)
        if message.kind is Kind.CHUNK:
            content.update(message.body)
        elif message.kind in (Kind.MANIFEST, Kind.END):
            yield Frame("client", session.seal(Message(Kind.ACK, content.digest())))
            content = hashlib.sha256()
        elif message.kind not in (Kind.TEXT, Kind.FILE):  # which are not answered
            yield Frame("client", session.seal(Message(message.kind)))


@on_path("identity", "client", WrongRole)
def device_as_server(frames: Frames, lab: Lab) -> Frames:
    """Another device plays the server."""
    yield from impostor(frames, lab, lab.pki.people[MALLORY])


@on_path("identity", "client", WrongPeer)
def other_server(frames: Frames, lab: Lab) -> Frames:
    """Another server, a real one, plays this server."""
    who = lab.pki.person("server-2", Role.SERVER, key=lab.pki.keys[MALLORY])
    yield from impostor(frames, lab, who)


@on_path("identity", "client", BadSignature)
def borrowed_server_certificate(frames: Frames, lab: Lab) -> Frames:
    """The server is played with its certificate alone."""
    yield from impostor(frames, lab, borrowed(lab, SERVER))


def borrowed(lab: Lab, name: str) -> Identity:
    """Return an identity with another's certificate, and without the key to it."""
    return Identity(lab.pki.people[name].certificate, lab.pki.keys[MALLORY])


@on_path("identity", "server", BadSignature, goal=learned)
def man_in_the_middle(frames: Frames, lab: Lab) -> Frames:
    """One handshake with each, with borrowed certificates."""
    to_client = posing(lab, borrowed(lab, SERVER), Direction.S2D)
    to_server = posing(lab, borrowed(lab, VICTIM), Direction.D2S)
    for frame in frames:
        if frame.to == "server":
            message = to_client.open(frame.message)
            yield frame.changed(to_server.seal(message))
        else:
            message = to_server.open(frame.message)
            yield frame.changed(to_client.seal(message))
        if message.kind is Kind.CHUNK and not lab.outcome.learned:
            lab.outcome.learned = f"the text: {message.body.decode()}"


@on_path("identity", "client", BadSignature, goal=misbound)
def misbinding(frames: Frames, lab: Lab) -> Frames:
    """HELLO and SHARE are sent on in another name."""
    who = lab.pki.people[MALLORY]
    hello = yield from up_to(frames, Kind.HELLO)
    renamed = hello.changed(hello.message[:CERTIFICATE_AT] + who.certificate.encoded)
    yield renamed
    answer = next(frames)
    yield answer
    share = next(frames)
    session = lab.parts.session(who, lab.trust)  # signs the device's share as its own
    session._transcript = [renamed.message, answer.message]
    session._share = share.message[KIND_BYTES:-SIGNATURE_BYTES]
    yield share.changed(Kind.SHARE.value + session._compose(Message(Kind.SHARE)))


@on_path("session", "client", BadSignature)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = [frame for frame in lab.tape if frame.to == "client"]
    for frame in frames:
        if frame.to == "server" and answers:
            yield answers.pop(0)
        elif frame.to == "server":
            yield frame.reflected()


@outside("session", "server", BadSignature)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame)
        for _ in lab.tape:
            line.receive()


# Certificates -------------------------------------------------------------------------------------


def knock(lab: Lab, who: Identity, what: str) -> None:
    """Try a session of one's own as somebody, and to send something in it."""
    with lab.device(who) as device:
        lab.outcome.learned = f"{what} is let in"
        device.send_text("let me in")


@outside("identity", "server", CertificateExpired)
def expired_certificate(lab: Lab) -> None:
    """A certificate of the day before yesterday is shown."""
    knock(lab, lab.pki.person(MALLORY, begins=-3, ends=-1), "a device with an expired certificate")


@outside("identity", "server", CertificateNotYetValid)
def future_certificate(lab: Lab) -> None:
    """A certificate that is not yet valid is shown."""
    knock(
        lab, lab.pki.person(MALLORY, begins=1, ends=2), "a device with a certificate not yet valid"
    )


@outside("identity", "server", UntrustedCertificate)
def forged_certificate(lab: Lab) -> None:
    """A certificate is edited, to say device-1."""
    own = lab.pki.people[MALLORY]
    encoded = own.certificate.encoded.replace(MALLORY.encode(), VICTIM.encode())
    knock(lab, replace(own, certificate=parse_certificate(encoded)), "a forged device-1")


@outside("identity", "server", UntrustedCertificate)
def other_authority(lab: Lab) -> None:
    """A device-1 of another authority comes."""
    who = lab.pki.person(VICTIM, key=lab.pki.keys[MALLORY], authority="elsewhere")
    knock(lab, who, "another authority's device-1")


@outside("identity", "server", BadSignature)
def borrowed_certificate(lab: Lab) -> None:
    """Device-1's certificate is shown, without its key."""
    knock(lab, borrowed(lab, VICTIM), "a device with a copied certificate")


@outside("revocation", "server", CertificateRevoked)
def revoked_certificate(lab: Lab) -> None:
    """A device with a revoked certificate connects."""
    lab.publish(lab.pki.people[MALLORY])
    knock(lab, lab.pki.people[MALLORY], "a device that was revoked")


@outside("revocation", "server", RevocationListRolledBack)
def old_revocation_list(lab: Lab) -> None:
    """The server is handed an older revocation list."""
    older = lab.revocations
    lab.publish(lab.pki.people[MALLORY])
    with lab.device(lab.pki.people[VICTIM]):
        pass  # so that the server sees the new one
    lab.revocations = older
    knock(lab, lab.pki.people[MALLORY], "a device that was revoked")


@outside("revocation", "server", RevocationListStale)
def stale_revocation_list(lab: Lab) -> None:
    """New revocation lists are withheld from the server."""
    lab.publish(ends=-1)  # its last, from before it was revoked
    knock(lab, lab.pki.people[MALLORY], "a device that was revoked since")


@outside("revocation", "server", RevocationListUnusable)
def forged_revocation_list(lab: Lab) -> None:
    """The server is handed a forged revocation list."""
    lab.publish(authority="elsewhere")
    knock(lab, lab.pki.people[MALLORY], "a device that was revoked")


# Devices that are let in, and behave badly --------------------------------------------------------


def misbehave(
    lab: Lab,
    what: str,
    *,
    name: str = "note.txt",
    announced: int = 4,
    key: PrivateKey | None = None,
    **changes: Any,
) -> None:
    """Send a file of 4 bytes as device-3; `changes` are to its manifest."""
    who = lab.pki.people[MALLORY]
    content = b"note"
    with lab.device(who) as device:
        announcement = Announcement("file", name, announced, lab.pki.now)
        device.channel.send(Message(Kind.FILE, announcement.encode()))
        device.channel.send(Message(Kind.CHUNK, content))
        honest = Manifest(
            "file",
            name,
            len(content),
            hashlib.sha256(content).hexdigest(),
            lab.pki.now,
            device.session.session_id.hex(),
            0,
            MALLORY,
            SERVER,
        )
        signed = sign_manifest(key or who.private_key, replace(honest, **changes))
        device.channel.send(Message(Kind.MANIFEST, signed))
        device.receive()
        lab.outcome.learned = f"the server keeps {what}"


@outside("files", "server", BadName, goal=escaped)
def path_name(lab: Lab) -> None:
    """A file is named ../outside.txt."""
    misbehave(lab, "a file outside its folder", name="../outside.txt")


@outside("files", "server", TooLarge)
def more_than_announced(lab: Lab) -> None:
    """A file is longer than was announced."""
    misbehave(lab, "more than was announced", announced=3)


@outside("files", "server", BadManifest)
def wrong_digest(lab: Lab) -> None:
    """A manifest is signed for another file."""
    misbehave(lab, "content that was not signed", digest=hashlib.sha256(b"other").hexdigest())


@outside("files", "server", BadManifest)
def old_manifest(lab: Lab) -> None:
    """A manifest is an hour old."""
    misbehave(lab, "content that was signed an hour ago", time=lab.pki.now - timedelta(hours=1))


@outside("files", "server", BadManifestSignature)
def unsigned_file(lab: Lab) -> None:
    """A manifest is signed with another key."""
    misbehave(lab, "content that the device could deny", key=lab.pki.keys["elsewhere"])


@outside("files", "server", TooLarge)
def too_large(lab: Lab) -> None:
    """A file is larger than the server takes."""
    large = lab.top / "large.bin"
    large.write_bytes(bytes(LIMITS.max_bytes + 1))
    with lab.device(lab.pki.people[MALLORY]) as device:
        device.send_file(large)
        lab.outcome.learned = "the server keeps more than it may"


@outside("keys", "server", RekeyOverdue)
def never_rekey(lab: Lab) -> None:
    """A device never asks for new keys."""
    with lab.device(lab.pki.people[MALLORY], rekey_chunks=2**62) as device:
        device.send_file(lab.photo)  # as many chunks as one generation may serve
        device.send_text("one chunk more")
        lab.outcome.learned = "one generation of keys serves for ever"


# What the wire tells, and how long it takes -------------------------------------------------------


@outside("secrecy", "server", UntrustedCertificate)
def provoke(lab: Lab) -> None:
    """Two refusals are provoked, and compared."""
    who = lab.pki.person(MALLORY, authority="elsewhere")
    hello = posing(lab, who, Direction.D2S).seal(Message(Kind.HELLO))
    answers = []
    for message in (hello, hello[:-1]):
        with lab.connect() as line:
            line.send(message)
            answers.append(line.receive())
    refusals = {answer for answer in answers if not answer.startswith(Kind.HELLO)}
    if len(refusals) > 1:  # silence is an answer, too
        reasons = (answer[KIND_BYTES:].decode() or "nothing" for answer in refusals)
        told = " or ".join(sorted(reasons))
        lab.outcome.learned = f"the server says why: {told}"


@outside("availability", "server", DeadlineExpired)
def slow_drip(lab: Lab) -> None:
    """A HELLO drips in, byte by byte."""
    with lab.connect() as line:
        line.socket.settimeout(LIMITS.frame_s / 10)  # so 10 bytes fit into the deadline
        for byte in (1_000).to_bytes(4, "big") + Kind.HELLO.value + bytes(20):
            line.socket.sendall(bytes([byte]))
            with suppress(TimeoutError):
                line.socket.recv(1)
                return
        lab.outcome.learned = "a frame takes as long as it likes"


# Theft --------------------------------------------------------------------------------------------


def unsealed(keys: Mapping[str, bytes], message: bytes) -> bytes:
    """Return the text or the piece of the photo in a record, nothing if these keys do not fit."""
    iv = message[HEADER.size : CIPHERTEXT_AT]
    ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
    decrypted = aes_cbc_decrypt(ciphertext, keys["D2S-ENC"], iv)
    for padded in (decrypted, ciphertext):  # which needs no key where nothing is encrypted
        with suppress(ValueError):
            if (body := pkcs7_unpad(padded)) in (TEXT.encode(), *PHOTO_CHUNKS):
                return body
    return b""


@outside("theft", "", None, goal=learned)
def stolen_server_key(lab: Lab) -> None:
    """The server's key is stolen, for an old recording."""
    handshake = [frame.message for frame in lab.tape[:4]]
    share = handshake[2][KIND_BYTES:-SIGNATURE_BYTES]
    try:
        premaster = lab.pki.keys[SERVER].decrypt(share, RSA_TRANSPORT)
    except ValueError:
        return  # it never encrypted anything
    keys = keys_of(next_secret(digest_of(handshake), premaster))
    if text := unsealed(keys, taped(lab, Kind.CHUNK).message):
        lab.outcome.learned = f"the recorded text: {text.decode()}"


Robbed = tuple[list[bytes], list[dict[str, bytes]]]


def robbed(frames: Frames, lab: Lab) -> Generator[Frame, None, Robbed]:
    """Deliver everything; return the chunks, and the keys of the device as it sent each."""
    chunks: list[bytes] = []
    stolen: list[dict[str, bytes]] = []
    for frame in frames:
        if frame.to == "server" and frame.message.startswith(Kind.CHUNK):
            chunks.append(frame.message)
            stolen.append(dict(lab.victim.session._keys))
        yield frame
    return chunks, stolen


def opened(keys: Mapping[str, bytes], chunks: Sequence[bytes]) -> str:
    return ", ".join(str(n) for n, chunk in enumerate(chunks, 1) if unsealed(keys, chunk))


@on_path("theft", "", None, goal=learned, noticed="nothing", wins="chunks 1, 2, 3, 4")
def stolen_session_keys(frames: Frames, lab: Lab) -> Frames:
    """The session's keys are stolen in the middle of it."""
    chunks, stolen = yield from robbed(frames, lab)
    lab.outcome.learned = f"chunks {opened(stolen[0], chunks[:REKEY_CHUNKS])}"


@on_path("theft", "", None, goal=learned)
def stolen_keys_across_rekeying(frames: Frames, lab: Lab) -> Frames:
    """Stolen keys are tried after and before a rekeying."""
    chunks, stolen = yield from robbed(frames, lab)
    if behind := opened(stolen[0], chunks[REKEY_CHUNKS:]):
        lab.outcome.learned = f"with the first keys, chunks after rekeying: {behind}"
    elif before := opened(stolen[-1], chunks[:REKEY_CHUNKS]):
        lab.outcome.learned = f"with the last keys, chunks before rekeying: {before}"


@outside(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nobody, until the certificate is revoked",
    wins="a second device-1 is let in",
)
def stolen_device_key(lab: Lab) -> None:
    """The RSA key of device-1 is stolen, and used."""
    knock(lab, lab.pki.people[VICTIM], "a second device-1")


@outside(
    "theft",
    "",
    None,
    goal=learned,
    noticed="anyone who reads the list of issued certificates",
    wins="a device-1 with another key is let in",
)
def stolen_authority_key(lab: Lab) -> None:
    """A stolen authority key certifies a false device-1."""
    knock(lab, lab.pki.person(VICTIM, key=lab.pki.keys[MALLORY]), "a device-1 with another key")


# The program --------------------------------------------------------------------------------------


def kind_name(message: bytes) -> str:
    """Return the name of a message's kind."""
    with suppress(ValueError):
        return Kind(message[:KIND_BYTES]).name
    return "nonsense"


PROGRAM = Program(
    description="Attacks devices and a server of its own, on loopback.",
    attacks=ATTACKS,
    lab=lambda options, log, parts, observer: Lab(log, parts, observer),
    weakened="companions.device_transfer.weakened",
    title=kind_name,
    beginning="making keys for an authority, a server and three devices ...",
    module="companions.device_transfer.attacks",
    sets=Path(__file__).parent / "sets.json",
)

if __name__ == "__main__":
    run_program(PROGRAM.run)
