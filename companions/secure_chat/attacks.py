"""The adversary of this protocol: on the wire, with certificates, as a member, as the server.

    python -m companions.secure_chat.attacks
    python -m companions.secure_chat.attacks --without commitment changed-text

Everything is real: sockets, endpoints, RSA keys, a database. An attack on path is a generator over
the frames of Alice's connection: what it yields is delivered. One from outside has the lab: its
recording, its certificates, a server that it may bribe, and what was stolen. The verdict is what
the ends did, never whether bytes came back. Nothing here weakens anything.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from companions.asymmetric import EXPONENT
from companions.canonical import canonical
from companions.secure_chat import dh, forms
from companions.secure_chat.accounts import Refused
from companions.secure_chat.authority import pem_of
from companions.secure_chat.client import Client, Left, NotLetIn, Updated
from companions.secure_chat.evidence import Kept
from companions.secure_chat.options import kind_name
from companions.secure_chat.pae import sign
from companions.secure_chat.pins import OtherKey
from companions.secure_chat.pki import (
    Expired,
    Identity,
    NotYetValid,
    Revoked,
    Role,
    RolledBackList,
    StaleList,
    Trust,
    UnknownIssuer,
    UnusableList,
    WeakKey,
    WrongName,
    WrongPurpose,
    fingerprint_of,
    now_ms,
    parse_pem,
)
from companions.secure_chat.protocol import (
    RECORD,
    BadGroup,
    BadShare,
    BadSignature,
    Direction,
    Kind,
    Message,
    OutsideSubgroup,
    Party,
    Session,
    UnexpectedKind,
    chained,
    keys_of,
    parse,
    to_base64,
)
from companions.secure_chat.rooms import (
    LOBBY,
    BadHead,
    BadMessageSignature,
    BadOpening,
    Entry,
    Fork,
    FromTheFuture,
    Said,
    Untimely,
    WrongRecipient,
    WrongRoom,
    WrongSender,
    WrongSeqno,
)
from companions.secure_chat.stage import (
    ALICE,
    ANSWER,
    BOB,
    LAST,
    LIMITS,
    MALLORY,
    PASSWORDS,
    SECRET,
    SERVER,
    TEXT,
    Bribe,
    Lab,
    Outcome,
    Told,
    alone,
    divided,
    forged,
    impersonated,
    learned,
    overheard,
    vanished,
)
from companions.secure_chat.transcript import TIME, UNCOUNTERSIGNED
from companions.secure_chat.tries import FREE_TRIES
from companions.secure_chat.verify import Certificates, Wrong, verify
from crypto_utils import BLOCK_BYTES, aes_cbc_decrypt, hmac_verify, pkcs7_unpad
from lab.catalogue import Catalogue, CutHere, first_of
from lab.frames import Frame, Frames, flipped_bytes
from lab.program import Program
from lab.tcp import PATIENCE_S
from program import run_program
from protocol_fsm import BadTag, ConnectionCut, DeadlineExpired

# What the stories are told with -------------------------------------------------------------------


def bundle(kept: Kept) -> Certificates:
    """Return the certificates that were kept beside a transcript."""
    name = kept.transcript.name.replace("transcript", "certs").replace(".txt", ".pem")
    return Certificates(kept.transcript.with_name(name).read_bytes())


def unverifiable(outcome: Outcome) -> str:
    """Say whether Bob left in peace with evidence that convinces nobody."""
    kept = outcome.kept.get(BOB)
    if kept is None:
        return ""
    try:
        verify(kept.receipt.read_bytes(), kept.transcript.read_bytes(), bundle(kept))
    except Wrong as wrong:
        return f"Bob's evidence convinces nobody: {wrong}"
    return ""


CATALOGUE = Catalogue(goal=forged)
ATTACKS = CATALOGUE.attacks
on_path = CATALOGUE.on_path  # (family, who refuses it, with which error, goal=...)
outside = CATALOGUE.outside


def up_to(
    frames: Frames, kind: Kind, count: int = 1, to: str = "server"
) -> Generator[Frame, None, Frame]:
    """Deliver all before the first (second, ...) message of a kind, and return that. CutHere."""

    def is_wanted(frame: Frame) -> bool:
        return frame.to == to and kind_name(frame.message) == kind.value

    return (yield from first_of(frames, is_wanted, count))


def edited(frame: Frame, **members: Any) -> Frame:
    """Rewrite members of a message."""
    return frame.changed(canonical({**parse(frame.message), **members}))


def flipped_in(frame: Frame, name: str, position: int) -> Frame:
    """Flip a bit of what a member holds in base64."""
    data = base64.b64decode(parse(frame.message)[name])
    return edited(frame, **{name: to_base64(flipped_bytes(data, position))})


def readable(plaintext: bytes) -> str:
    """Return what the adversary reads in decrypted bytes: a password or a text, or nothing."""
    for secret in (*PASSWORDS.values(), TEXT, ANSWER, LAST):
        if secret.encode() in plaintext:
            return secret
    return ""


# Secrecy ------------------------------------------------------------------------------------------


@on_path("secrecy", "", None, goal=learned)
def eavesdrop(frames: Frames, lab: Lab) -> Frames:
    """The wire is searched for the password and the texts."""
    lab.outcome.means = "listens"
    for frame in frames:
        values = parse(frame.message)
        for name in ("payload", "ct"):
            if found := readable(base64.b64decode(str(values.get(name, "")))):
                lab.outcome.learned = f"in clear: {found}"
        yield frame


@on_path("secrecy", "", None, goal=learned)
def smooth_prime(frames: Frames, lab: Lab) -> Frames:
    """A listener solves the logarithm in a weak group."""
    lab.outcome.means = "listens"
    seen: list[bytes] = []
    for frame in frames:
        seen.append(frame.message)
        yield frame
    lab.outcome.learned = solved(seen)


def solved(seen: Sequence[bytes]) -> str:
    """Return the password in the fifth frame, if p - 1 of the group has small factors only."""
    if len(seen) < 5:
        return ""
    share = parse(seen[2])
    prime = share["p"]
    exponent = logarithm(share["g"], share["A"], prime)
    if exponent is None:
        return ""
    return password_in(seen[:4], dh.shared_secret(exponent, parse(seen[3])["B"], prime), seen[4])


def password_in(handshake: Iterable[bytes], secret: bytes, login: bytes) -> str:
    """Return the password in a login after a handshake, nothing if the secret is another."""
    return decrypted(keys_of(reduce(chained, handshake, b""), secret), login)


def logarithm(base: int, power: int, prime: int) -> int | None:
    """Return the exponent, of 256 bits, from its rests by small factors of p - 1 (Pohlig-Hellman).

    None if there are not enough small factors, as for p - 1 = 2q with a prime q.
    """
    factors = [n for n in range(3, 4_096, 2) if (prime - 1) % n == 0 and is_prime(n)]
    order = math.prod(factors[:25])  # of the subgroup to which both are taken
    if order.bit_length() <= dh.EXPONENT_BITS:
        return None
    base = pow(base, (prime - 1) // order, prime)
    power = pow(power, (prime - 1) // order, prime)
    found = 0
    for factor in factors[:25]:
        rest = order // factor
        digit = searched(pow(base, rest, prime), pow(power, rest, prime), factor, prime)
        found += digit * rest * pow(rest, -1, factor)  # by the Chinese remainder theorem
    return found % order


def searched(base: int, power: int, order: int, prime: int) -> int:
    """Return the exponent below a small order: in baby steps, then in giant steps."""
    width = math.isqrt(order) + 1
    steps = {pow(base, step, prime): step for step in range(width)}
    giant = pow(base, -width, prime)
    for count in range(width):
        if power in steps:
            return count * width + steps[power]
        power = power * giant % prime
    return 0


def is_prime(number: int) -> bool:
    return all(number % n for n in range(2, math.isqrt(number) + 1))


def decrypted(keys: Mapping[str, bytes], message: bytes) -> str:
    """Return the password or text in a client's record, nothing if these keys do not fit."""
    values = parse(message)
    with suppress(ValueError):
        data = base64.b64decode(values.get("payload") or values["ct"])
        padded = aes_cbc_decrypt(data[BLOCK_BYTES:], keys["C2S-ENC"], data[:BLOCK_BYTES])
        return readable(pkcs7_unpad(padded))
    return ""


# Integrity and order on the wire ------------------------------------------------------------------


@on_path("integrity", "server", BadTag)
def flip_text(frames: Frames, lab: Lab) -> Frames:
    """A bit of an encrypted text is flipped."""
    message = yield from up_to(frames, Kind.MSG)
    yield flipped_in(message, "ct", 2 * BLOCK_BYTES)  # of the block before the text


@on_path("integrity", "server", BadTag)
def edit_seqno(frames: Frames, lab: Lab) -> Frames:
    """A message gets another sequence number."""
    message = yield from up_to(frames, Kind.MSG)
    yield edited(message, seqno=1)


@on_path("integrity", "client", BadTag)
def flip_relay(frames: Frames, lab: Lab) -> Frames:
    """A bit of what the server relays is flipped."""
    relay = yield from up_to(frames, Kind.RELAY, to="client")
    yield flipped_in(relay, "payload", BLOCK_BYTES + 200)


@on_path("integrity", "server", BadTag)
def relabel(frames: Frames, lab: Lab) -> Frames:
    """A join is turned into a bye."""
    join = yield from up_to(frames, Kind.JOIN)
    yield edited(join, type="bye")


@on_path("order", "server", BadTag)
def replay_message(frames: Frames, lab: Lab) -> Frames:
    """A message is sent twice."""
    message = yield from up_to(frames, Kind.MSG)
    yield message
    yield message


@on_path("order", "server", BadTag, goal=vanished)
def drop_message(frames: Frames, lab: Lab) -> Frames:
    """A message is dropped."""
    yield from up_to(frames, Kind.MSG, 2)


@on_path("order", "server", UnexpectedKind)
def skip_login(frames: Frames, lab: Lab) -> Frames:
    """The login is dropped, and a join sent in its place."""
    yield from up_to(frames, Kind.LOGIN)
    yield Frame("server", canonical({"payload": "", "tag": "", "type": "join"}))


@on_path("order", "client", UnexpectedKind)
def reflect(frames: Frames, lab: Lab) -> Frames:
    """A message is sent back to its sender."""
    message = yield from up_to(frames, Kind.MSG)
    yield message.reflected()


@on_path("order", "client", BadTag)
def reflect_as_relay(frames: Frames, lab: Lab) -> Frames:
    """A message comes back as a relay."""
    message = yield from up_to(frames, Kind.MSG)
    values = parse(message.message)
    record = {"type": "relay", "payload": values["ct"], "tag": values["tag"]}
    yield message.reflected().changed(canonical(record))


@on_path("order", "client", ConnectionCut)
def cut(frames: Frames, lab: Lab) -> Frames:
    """The connection is cut in the middle."""
    yield from up_to(frames, Kind.MSG, 2)
    raise CutHere


@outside("session", "server", BadSignature)
def replay_session(lab: Lab) -> None:
    """A whole recorded session is replayed."""
    with lab.connect() as line:
        for frame in lab.tape:
            if frame.to == "server":
                line.send(frame)
        for _ in lab.tape:
            line.receive()


@on_path("session", "client", BadSignature, goal=alone)
def recorded_server(frames: Frames, lab: Lab) -> Frames:
    """A recording plays the server."""
    answers = [frame for frame in lab.tape if frame.to == "client"]
    for frame in frames:
        if frame.to == "server" and answers:
            yield answers.pop(0)


# Who is there -------------------------------------------------------------------------------------


class Gullible(Trust):
    """The adversary does not care whom it talks to."""

    def verify(self, pem: str, role: Role, name: str | None, now: datetime) -> Identity:
        certificate = parse_pem(pem)[0]
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise UnknownIssuer("RSA", "another key")
        return Identity(name or ALICE, role, fingerprint_of(certificate), certificate, key)


def posing(lab: Lab, who: Party, sends: Direction) -> Session:
    """Return an end for the adversary, which accepts any certificate, in any role."""
    trust = Gullible(pem_of(lab.pki.authorities["ca"]), lambda: b"")
    session = lab.parts.session(who, trust)
    session.sends = sends
    session.receives = Direction(1 - sends)
    return session


def borrowed(lab: Lab, name: str) -> Party:
    """Return a party with another's certificate, and without the key to it."""
    return replace(lab.pki.people[name], private_key=lab.pki.keys[MALLORY])


def impostor(frames: Frames, lab: Lab, who: Party) -> Frames:
    """Play the server for Alice, until she has told her password; the real one hears nothing."""
    session = posing(lab, who, Direction.S2C)
    answers = {Kind.HELLO: Kind.SERVER_HELLO, Kind.DH_CLIENT: Kind.DH_SERVER}
    for frame in frames:
        if frame.to == "client":
            continue
        message = session.open(frame.message)
        if message.kind in answers:
            yield Frame("client", session.seal(Message(answers[message.kind])))
        elif message.kind is Kind.LOGIN:
            lab.outcome.learned = f"the password: {message['pwd']}"
            return


@on_path("identity", "client", WrongPurpose, goal=learned)
def client_as_server(frames: Frames, lab: Lab) -> Frames:
    """Another client plays the server."""
    yield from impostor(frames, lab, lab.pki.people[MALLORY])


@on_path("identity", "client", WrongName, goal=learned)
def other_server(frames: Frames, lab: Lab) -> Frames:
    """Another server, a real one, plays this server."""
    key = lab.pki.keys[MALLORY]
    yield from impostor(frames, lab, lab.pki.person("elsewhere.example", "server", key=key))


@on_path("identity", "client", BadSignature, goal=learned)
def borrowed_server_certificate(frames: Frames, lab: Lab) -> Frames:
    """The server is played with its certificate alone."""
    yield from impostor(frames, lab, borrowed(lab, SERVER))


@on_path("identity", "client", OtherKey, goal=learned)
def second_certificate(frames: Frames, lab: Lab) -> Frames:
    """The authority certifies another key for the server."""
    lab.alice.pins = lab.known
    key = lab.pki.keys[MALLORY]
    yield from impostor(frames, lab, lab.pki.person(SERVER, "server", key=key))


@on_path("identity", "client", UnknownIssuer, goal=learned)
def leaf_issues(frames: Frames, lab: Lab) -> Frames:
    """A client's certificate issues one for the server."""
    own = lab.pki.people[MALLORY]
    made = (
        x509.CertificateBuilder()
        .subject_name(own.identity.certificate.subject)
        .issuer_name(own.identity.certificate.subject)
        .public_key(lab.pki.keys["elsewhere"].public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(lab.pki.now - timedelta(hours=1))
        .not_valid_after(lab.pki.now + timedelta(1))
    )
    for extension in lab.pki.people[SERVER].identity.certificate.extensions:
        made = made.add_extension(extension.value, extension.critical)
    issued = made.sign(own.private_key, hashes.SHA256())
    party = lab.pki.party(issued, "server", lab.pki.keys["elsewhere"])
    yield from impostor(frames, lab, replace(party, pem=party.pem + own.pem))


@on_path("identity", "server", BadSignature, goal=learned)
def man_in_the_middle(frames: Frames, lab: Lab) -> Frames:
    """One handshake with each, with borrowed certificates."""
    to_client = posing(lab, borrowed(lab, SERVER), Direction.S2C)
    to_server = posing(lab, borrowed(lab, ALICE), Direction.C2S)
    for frame in frames:
        if frame.to == "server":
            message = to_client.open(frame.message)
            yield frame.changed(to_server.seal(message))
        else:
            message = to_server.open(frame.message)
            yield frame.changed(to_client.seal(message))
        if message.kind is Kind.LOGIN:
            lab.outcome.learned = f"the password: {message['pwd']}"
            return


@on_path("identity", "server", BadSignature, goal=learned)
def replaced_shares(frames: Frames, lab: Lab) -> Frames:
    """Both shares are replaced, and all else is passed on."""
    exponent = dh.new_exponent()
    share = pow(dh.GENERATOR, exponent, dh.PRIME)
    hello = next(frames)
    yield hello
    hello_back = next(frames)
    yield hello_back
    offer = next(frames)
    yield edited(offer, A=share)
    answer = edited(next(frames), B=share)
    yield answer
    login = next(frames)
    secret = dh.shared_secret(exponent, parse(offer.message)["A"])
    for offered in ([offer.message], []):  # whatever the keys are bound to
        handshake = (hello.message, hello_back.message, *offered, answer.message)
        if found := password_in(handshake, secret, login.message):
            lab.outcome.learned = f"the password: {found}"


@on_path("identity", "client", BadSignature)
def reflected_share(frames: Frames, lab: Lab) -> Frames:
    """Alice's own signed share comes back to her."""
    key = lab.pki.keys[ALICE]
    twin = lab.pki.person(SERVER, "server", key=key)  # a server that Alice runs, with one key
    offer = None
    for frame in frames:
        kind = kind_name(frame.message)
        if kind == Kind.SERVER_HELLO.value:
            yield edited(frame, server_cert=twin.pem)
        elif kind == Kind.DH_CLIENT.value and offer is None:
            offer = parse(frame.message)
            answer = {"type": "dh_server", "B": offer["A"], "sig": offer["sig"]}
            yield Frame("client", canonical(answer))
        elif kind == Kind.LOGIN.value:
            lab.outcome.learned = "Alice answers herself, and takes it for the server"
            return
        elif frame.to == "server":
            yield frame


@on_path("identity", "client", BadSignature, goal=impersonated)
def misbinding(frames: Frames, lab: Lab) -> Frames:
    """Hello and share are sent on in Mallory's name."""
    who = lab.pki.people[MALLORY]
    hello = yield from up_to(frames, Kind.HELLO)
    renamed = edited(hello, client_cert=who.pem)
    yield renamed
    answer = next(frames)
    yield answer
    offer = parse(next(frames).message)
    session = posing(lab, who, Direction.C2S)
    session._commit(Kind.HELLO, renamed.message, Direction.C2S)
    session._commit(Kind.SERVER_HELLO, answer.message, Direction.S2C)
    share = {name: offer[name] for name in ("g", "p", "A")}
    signature = sign(who.private_key, session._under_signature(Kind.DH_CLIENT, share))
    signed = {**share, "type": "dh_client", "sig": to_base64(signature)}
    yield Frame("server", canonical(signed))
    yield from frames


@on_path("identity", "server", BadSignature)
def replace_nonce(frames: Frames, lab: Lab) -> Frames:
    """Alice's nonce is replaced."""
    hello = yield from up_to(frames, Kind.HELLO)
    yield edited(hello, nonce=to_base64(bytes(32)))


# Certificates -------------------------------------------------------------------------------------


def knock(lab: Lab, who: Party, what: str) -> None:
    """Try to get a session as somebody."""
    with lab.client(who):
        lab.outcome.learned = f"{what} is let in"


@outside("certificates", "server", Expired)
def expired_certificate(lab: Lab) -> None:
    """A certificate of last week is shown."""
    knock(lab, lab.pki.person(MALLORY, begins=-7, days=3), "an expired certificate")


@outside("certificates", "server", NotYetValid)
def future_certificate(lab: Lab) -> None:
    """A certificate that is not yet valid is shown."""
    knock(lab, lab.pki.person(MALLORY, begins=1), "a certificate not yet valid")


@outside("certificates", "server", UnknownIssuer)
def other_authority(lab: Lab) -> None:
    """An alice of another authority comes."""
    who = lab.pki.person(ALICE, key=lab.pki.keys[MALLORY], authority="elsewhere")
    knock(lab, who, "another authority's alice")


@outside("certificates", "server", BadSignature)
def borrowed_certificate(lab: Lab) -> None:
    """Alice's certificate is shown, without its key."""
    knock(lab, borrowed(lab, ALICE), "a copied certificate")


@outside("certificates", "server", WrongPurpose)
def server_as_client(lab: Lab) -> None:
    """A server's certificate logs in as a client."""
    server = lab.pki.people[SERVER]
    client = replace(server, identity=replace(server.identity, role="client"))
    knock(lab, client, "a server's certificate")


@outside("certificates", "server", WeakKey)
def weak_key(lab: Lab) -> None:
    """A certificate has a key of 1,024 bits."""
    key = rsa.generate_private_key(public_exponent=EXPONENT, key_size=1_024)
    knock(lab, lab.pki.person(MALLORY, key=key), "a key of 1,024 bits")


@outside("certificates", "server", Revoked)
def revoked_certificate(lab: Lab) -> None:
    """A client with a revoked certificate connects."""
    lab.publish(lab.pki.people[MALLORY])
    knock(lab, lab.pki.people[MALLORY], "a revoked certificate")


@outside("certificates", "server", Revoked)
def revoked_meanwhile(lab: Lab) -> None:
    """A member's certificate is revoked inside a room.

    It stays until the next key update.
    """
    with lab.client(lab.pki.people[MALLORY]) as client:
        client.log_in(MALLORY, PASSWORDS[MALLORY])
        client.join("elsewhere")  # alone: others would judge her by the newer list
        lab.publish(lab.pki.people[MALLORY])
        client.update()
        while not isinstance(client.hear(PATIENCE_S), Updated):
            pass
        lab.outcome.learned = "a revoked member goes on under new keys"


@outside("certificates", "server", RolledBackList)
def old_list(lab: Lab) -> None:
    """The server is handed an older revocation list."""
    older = lab.revocations
    lab.publish(lab.pki.people[MALLORY])
    with suppress(Revoked):
        lab.trust.verify(lab.pki.people[MALLORY].pem, "client", None, lab.pki.now)
    lab.revocations = older
    knock(lab, lab.pki.people[MALLORY], "a revoked certificate")


@outside("certificates", "server", StaleList)
def stale_list(lab: Lab) -> None:
    """New revocation lists are withheld from the server."""
    lab.publish(days=1)  # its last, from before mallory was revoked
    knock(lab, lab.pki.people[MALLORY], "a certificate revoked since")


@outside("certificates", "server", UnusableList)
def forged_list(lab: Lab) -> None:
    """The server is handed a forged revocation list."""
    lab.publish(authority="elsewhere")
    knock(lab, lab.pki.people[MALLORY], "a certificate on no true list")


# Shares of a client that cheats -------------------------------------------------------------------


def cheat(lab: Lab, share: Mapping[str, int], candidates: Callable[[int], Sequence[int]]) -> int:
    """Offer the server a share, and return which of the candidates for the secret it has.

    The candidates follow from the server's own share; its answer to nonsense shows which is right.
    Raises ConnectionCut if it does not answer.
    """
    who = lab.pki.people[MALLORY]
    session = lab.parts.session(who, lab.trust, SERVER)
    offered = {"g": dh.GENERATOR, "p": dh.PRIME, "A": 2, **share}
    session._offer = lambda kind: offered  # type: ignore[method-assign]
    with lab.connect() as line:
        line.send(session.seal(Message(Kind.HELLO)))
        session.open(line.receive())
        line.send(session.seal(Message(Kind.DH_CLIENT)))
        answer = line.receive()
        line.send(canonical({"payload": "", "tag": "", "type": "login"}))
        refusal = line.receive()
    if not refusal:
        raise ConnectionCut(mid_frame=False)
    found = candidates(parse(answer)["B"])
    session._commit(Kind.DH_SERVER, answer, Direction.S2C)
    secrets = [one.to_bytes(dh.ELEMENT_BYTES, "big") for one in found]
    fits = [is_sealed(keys_of(session._running, one), refusal) for one in secrets]
    return fits.index(True)


def is_sealed(keys: Mapping[str, bytes], record: bytes) -> bool:
    """Return whether this is the server's first record under these keys."""
    values = parse(record)
    tag = base64.b64decode(values.pop("tag"))
    place = RECORD.pack(Direction.S2C, 0)
    return hmac_verify(keys["S2C-MAC"], place + canonical(values), tag)


@outside("handshake", "server", BadGroup, goal=learned)
def chosen_group(lab: Lab) -> None:
    """A client names a group of its own."""
    with suppress(ValueError):  # whatever the secret is
        cheat(lab, {"p": dh.PRIME - 2}, lambda share: [share])
    lab.outcome.learned = "the server takes a group that the client made"


@outside("handshake", "server", BadShare, goal=learned)
def share_of_one(lab: Lab) -> None:
    """A client offers the share 1: the secret is 1."""
    cheat(lab, {"A": 1}, lambda share: [1])
    lab.outcome.learned = "a session whose keys any listener can compute"


@outside("handshake", "server", OutsideSubgroup, goal=learned)
def bit_of_the_exponent(lab: Lab) -> None:
    """A client offers a share outside the subgroup."""
    bit = cheat(lab, {"A": dh.PRIME - 2}, lambda share: [share, dh.PRIME - share])
    lab.outcome.learned = f"the last bit of the server's exponent, {bit}, and no more"


# Accounts -----------------------------------------------------------------------------------------


@outside("accounts", "server", Refused, goal=impersonated)
def known_password(lab: Lab) -> None:
    """Alice's password is used with Mallory's certificate."""
    log_in(lab, lab.pki.people[MALLORY], PASSWORDS[ALICE])


def log_in(lab: Lab, who: Party, password: str) -> None:
    """Try to get into Alice's account."""
    with suppress(NotLetIn), lab.client(who) as client:
        client.log_in(ALICE, password)
        lab.outcome.learned = "in the account of Alice"


def stolen_row(lab: Lab) -> bytes:
    """Return what the table of users has about Alice's password."""
    row = lab.accounts._find(ALICE)
    return bytes(row.pwd_hash) if row else b""


@outside("accounts", "server", Refused, goal=learned)
def pass_the_hash(lab: Lab) -> None:
    """The stored hash is sent as the password."""
    lab.outcome.means = "steals"
    log_in(lab, lab.pki.people[MALLORY], stolen_row(lab).decode())


@outside("accounts", "", None, goal=learned)
def crack_the_table(lab: Lab) -> None:
    """A stolen table is cracked with a list of words."""
    lab.outcome.means = "steals"
    stored = stolen_row(lab)
    words = [f"{word}{number}" for word in ("dragon", "monkey", "winter") for number in range(400)]
    deadline = time.monotonic() + 0.5
    for word in [*words, PASSWORDS[ALICE]]:
        if lab.accounts._is_right(stored, word):
            lab.outcome.learned = f"the password: {word}"
        if time.monotonic() > deadline:
            return


@outside("accounts", "server", Refused, goal=learned)
def probe_names(lab: Lab) -> None:
    """Names are tried, to learn which exist."""
    lab.outcome.means = "times"
    times: dict[str, list[float]] = {ALICE: [], "nobody@example.org": []}
    for _ in range(3):  # with three certificates, each of which has five tries
        with suppress(NotLetIn), lab.client(lab.pki.person(MALLORY)) as client:
            for name in [*times] * 2:
                times[name].append(time_of(client, name))
    known, unknown = (min(found) for found in times.values())
    if unknown < known / 2:
        lab.outcome.learned = "who has an account, by the time of the answer"


def time_of(client: Client, name: str) -> float:
    begun = time.process_time()  # the server is in this process: no other slows its answer
    with suppress(NotLetIn):
        client.log_in(name, "a wrong password")
    return time.process_time() - begun


@outside("accounts", "server", Refused, goal=learned)
def parallel_guesses(lab: Lab) -> None:
    """A stolen key guesses Alice's password, six at once.

    And once more, when the six have been counted.
    """
    lab.outcome.means = "steals"
    wrong = [f"a wrong guess, {number}" for number in range(6)]
    meet = threading.Barrier(len(wrong) + 1)

    def guess(password: str) -> None:
        with suppress(NotLetIn), lab.client(lab.pki.people[ALICE]) as client:
            meet.wait(PATIENCE_S)
            client.log_in(ALICE, password)

    with ThreadPoolExecutor(len(wrong)) as threads, lab.client(lab.pki.people[ALICE]) as last:
        guesses = [threads.submit(guess, one) for one in wrong]
        meet.wait(PATIENCE_S)
        for one in guesses:
            one.result()
        with suppress(NotLetIn):
            last.log_in(ALICE, PASSWORDS[ALICE])
            lab.outcome.learned = f"the password: {PASSWORDS[ALICE]}"


def resume(lab: Lab, who: Party, token: str) -> None:
    """Try to get into Alice's account with a token."""
    with suppress(NotLetIn), lab.client(who) as client:
        client.resume(token)
        lab.outcome.learned = "in the account of Alice"


@outside("accounts", "server", Refused, goal=learned)
def used_token(lab: Lab) -> None:
    """Alice's token is used again, with her stolen key."""
    token = lab.alice.token
    with lab.client(lab.pki.people[ALICE]) as alice:
        alice.resume(token)
        resume(lab, lab.pki.people[ALICE], token)


@outside("accounts", "server", Refused, goal=learned)
def late_token(lab: Lab) -> None:
    """Alice's token is used a day late, with her key."""
    lab.let_tokens_expire()
    resume(lab, lab.pki.people[ALICE], lab.alice.token)


@outside("accounts", "server", Refused, goal=impersonated)
def stolen_token(lab: Lab) -> None:
    """Alice's token is used with Mallory's certificate."""
    resume(lab, lab.pki.people[MALLORY], lab.alice.token)


@outside("availability", "server", Refused, goal=learned)
def lock_out(lab: Lab) -> None:
    """Mallory tries to have Alice's account locked."""
    with lab.client(lab.pki.people[ALICE]) as alice:
        with lab.client(lab.pki.people[MALLORY]) as client:
            for _ in range(FREE_TRIES):
                with suppress(NotLetIn):
                    client.log_in(ALICE, "a wrong password")
        try:
            alice.log_in(ALICE, PASSWORDS[ALICE])
        except NotLetIn:
            lab.outcome.learned = "Alice is locked out of her account"


# A server that is bribed --------------------------------------------------------------------------


class Story:
    """What a bribed server tells one member: its heads follow from what it tells."""

    def __init__(self, lab: Lab, client: Client) -> None:
        self._key = lab.pki.keys[SERVER]
        self._room = client.seat.room
        self._index = self._room.index
        self._head = self._room.head

    def tell(self, entry: Entry, opening: bytes) -> Told:
        """Return what it says of this message, in the next place, whatever its head was."""
        self._head = forms.next_head(self._head, entry.signed, entry.signature)
        room = self._room
        head = forms.Head(room.name, room.start, self._index, now_ms(), self._head).encode()
        self._index += 1
        return entry._replace(head=head, head_signature=sign(self._key, head)), opening


def is_by(lab: Lab, name: str, entry: Entry) -> bool:
    """Return whether this member has said this."""
    sender = forms.parse_message(entry.signed).sender
    return sender == lab.pki.people[name].identity.fingerprint


def to_bob(change: Callable[[Entry, bytes], Iterable[Told]]) -> Bribe:
    """Return a bribe that changes only what Bob is told."""

    def bribe(name: str, entry: Entry, opening: bytes) -> Iterable[Told]:
        return change(entry, opening) if name == BOB else [(entry, opening)]

    return bribe


def before_all(lie: Told) -> Bribe:
    """Return a bribe that tells Bob something else before what he should be told."""
    return to_bob(lambda entry, opening: [lie, (entry, opening)])


def first_told(told: Iterable[tuple[str, Entry, bytes]]) -> Told:
    """Return the first of all that Bob was told."""
    return next((entry, opening) for name, entry, opening in told if name == BOB)


@outside("honesty", "client", BadMessageSignature)
def forged_message(lab: Lab) -> None:
    """The server says something in Alice's name."""
    seat = lab.alice.seat
    opening = os.urandom(32) + b"I owe you 1000"
    message = forms.Message(
        session=lab.alice.address.session,
        room=seat.room.name,
        sender=lab.alice.address.fingerprint,
        recipients=(
            forms.Recipient(lab.bob.party.identity.fingerprint, lab.bob.session.session_id),
        ),
        seqno=seat._seqno,
        ts=now_ms(),
        previous=seat._previous,
        seen=seat.room.head,
        commitment=forms.commitment(opening[:32], opening[32:]),
        ct=os.urandom(64),
    )
    signed = message.encode()
    forged = Entry(signed, sign(lab.pki.keys[MALLORY], signed), b"", b"")
    lab.bribe = before_all(Story(lab, lab.bob).tell(forged, opening))


@outside("honesty", "client", BadOpening)
def changed_text(lab: Lab) -> None:
    """The server changes a text of Alice's."""

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        return [(entry, opening[:32] + b"bring 5000" if is_by(lab, ALICE, entry) else opening)]

    lab.bribe = to_bob(change)


@outside("honesty", "client", WrongSeqno)
def repeated_message(lab: Lab) -> None:
    """The server tells Bob a message of Alice's twice."""
    lab.bribe = before_all(Story(lab, lab.bob).tell(*first_told(lab.told)))


@outside("honesty", "client", WrongSeqno, goal=vanished)
def dropped_message(lab: Lab) -> None:
    """The server withholds a message of Alice's from Bob."""
    story = Story(lab, lab.bob)
    dropped: list[Entry] = []

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        if not dropped:
            dropped.append(entry)
            return []
        return [story.tell(entry, opening)]

    lab.bribe = to_bob(change)
    lab.say_unheard("this never arrives")


@on_path("honesty", "client", WrongSender)
def earlier_session(frames: Frames, lab: Lab) -> Frames:
    """What Alice said in an earlier session is repeated."""
    story: list[Story] = []

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        if not story:
            story.append(Story(lab, lab.bob))
            return [story[0].tell(*first_told(lab.earlier))]
        return [story[0].tell(entry, opening)]

    lab.bribe = to_bob(change)
    yield from frames


@outside("honesty", "client", WrongRoom)
def other_room(lab: Lab) -> None:
    """What Alice said in one room is repeated in another.

    The other room begins with the same head.
    """
    said = first_told(lab.told)
    lab.start = forms.parse_message(said[0].signed).seen
    lab.move("elsewhere")
    lab.bribe = before_all(Story(lab, lab.bob).tell(*said))


@outside("honesty", "client", WrongRecipient, goal=overheard)
def forwarded_message(lab: Lab) -> None:
    """Bob is told what Alice said only to the others."""
    openings: dict[bytes, bytes] = {}

    def bribe(name: str, entry: Entry, opening: bytes) -> Iterable[Told]:
        openings[entry.signed] = opening or openings.get(entry.signed, b"")  # of Carol's
        yield entry, openings[entry.signed] if name == BOB else opening

    lab.bribe = bribe
    left = {"room": LOBBY, "session": lab.bob.address.session.hex()}
    lab.seats[ALICE].post(Message(Kind.LEFT, left))
    while not isinstance(lab.alice.hear(lab.alice.timeout_s), Left):
        pass
    lab.say_unheard(SECRET)


def other_words(lab: Lab, entry: Entry) -> Told:
    """Return what Mallory says to Bob in place of what she says to all others."""
    opening = os.urandom(32) + b"I pay 1000"
    message = forms.parse_message(entry.signed)
    other = replace(message, commitment=forms.commitment(opening[:32], opening[32:]))
    signed = other.encode()
    signature = sign(lab.pki.keys[MALLORY], signed)
    return entry._replace(signed=signed, signature=signature), opening


@outside("honesty", "client", Fork, goal=divided)
def two_histories(lab: Lab) -> None:
    """The server and Mallory tell Bob another history."""
    story = Story(lab, lab.bob)

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        told = other_words(lab, entry) if is_by(lab, MALLORY, entry) else (entry, opening)
        return [story.tell(*told)]

    lab.bribe = to_bob(change)
    speak(lab, "I pay 10")


@outside(
    "honesty",
    "",
    None,
    goal=divided,
    noticed="two members who compare heads or transcripts",
    wins="Alice and Bob have receipts of two histories",
)
def uncrossed_histories(lab: Lab) -> None:
    """The same, but both leave before anything crosses."""
    two_histories(lab)
    lab.move("elsewhere")


@outside("honesty", "client", BadHead, goal=divided)
def two_histories_one_head(lab: Lab) -> None:
    """The same, with one head for both histories."""

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        return [other_words(lab, entry) if is_by(lab, MALLORY, entry) else (entry, opening)]

    lab.bribe = to_bob(change)
    speak(lab, "I pay 10")


@outside("honesty", "client", BadHead, goal=unverifiable)
def deniable_head(lab: Lab) -> None:
    """The server signs a head with another key."""

    def change(entry: Entry, opening: bytes) -> Iterable[Told]:
        return [(entry._replace(head_signature=sign(lab.pki.keys[MALLORY], entry.head)), opening)]

    lab.bribe = to_bob(change)


# Members that cheat -------------------------------------------------------------------------------


def speak(lab: Lab, text: str, later_ms: int = 0) -> None:
    """Say something as Mallory, by a clock that is so much ahead."""
    with lab.client(lab.pki.people[MALLORY], later_ms) as client:
        client.log_in(MALLORY, PASSWORDS[MALLORY])
        client.join()
        client.say(text)
        while not isinstance(client.hear(1.0), Said):
            pass
        if later_ms:
            lab.outcome.learned = "a message of another day is in the transcript"


@outside("time", "server", FromTheFuture, goal=learned)
def message_of_tomorrow(lab: Lab) -> None:
    """A member dates a message a day ahead."""
    speak(lab, "as I said tomorrow", 86_400_000)


@outside("time", "server", Untimely, goal=learned)
def message_of_yesterday(lab: Lab) -> None:
    """A member dates a message a day back."""
    speak(lab, "as I said yesterday", -86_400_000)


# Evidence -----------------------------------------------------------------------------------------


@outside("evidence", "client", Wrong, goal=learned)
def edited_receipt(lab: Lab) -> None:
    """A receipt is backdated, and shown to a third party."""
    lab.outcome.means = "judges"
    kept = lab.evidence_kept[BOB]
    members = json.loads(kept.receipt.read_bytes())
    created = datetime.strptime(members["created_at"], TIME) - timedelta(365)
    members.update(created_at=created.strftime(TIME), countersignature=UNCOUNTERSIGNED)
    try:
        verify(canonical(members) + b"\n", kept.transcript.read_bytes(), bundle(kept))
    except Wrong as wrong:
        lab.outcome.errors["client"].append(wrong)
        return
    lab.outcome.learned = "a receipt of another day verifies"


@on_path(
    "evidence",
    "",
    None,
    goal=learned,
    noticed="the word uncountersigned in the receipt",
    wins="Alice has only her own word for what was said",
)
def leave_first(frames: Frames, lab: Lab) -> Frames:
    """The server leaves before it has countersigned."""
    yield from up_to(frames, Kind.RECEIPT)
    lab.outcome.learned = "Alice has only her own word for what was said"
    raise CutHere


# Theft --------------------------------------------------------------------------------------------


@outside("theft", "", None, goal=learned)
def stolen_server_key(lab: Lab) -> None:
    """The server's key is stolen, for an old recording."""
    from companions.secure_chat.weakened import static_exponent  # what an end must not have

    lab.outcome.means = "steals"
    *handshake, login = [frame.message for frame in lab.tape[:5]]
    exponent = static_exponent(lab.pki.people[SERVER])
    secret = dh.shared_secret(exponent, parse(handshake[2])["A"])
    if found := password_in(handshake, secret, login):
        lab.outcome.learned = f"the recorded password: {found}"


@outside("theft", "server", Refused, goal=impersonated)
def stolen_client_key(lab: Lab) -> None:
    """Alice's key is stolen, and her password is not."""
    log_in(lab, lab.pki.people[ALICE], "not her password")


@outside(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nobody, until the certificate is revoked",
    wins="in the account of Alice",
)
def stolen_key_and_password(lab: Lab) -> None:
    """Alice's key and her password are stolen."""
    log_in(lab, lab.pki.people[ALICE], PASSWORDS[ALICE])


@on_path(
    "theft",
    "",
    None,
    goal=learned,
    noticed="nothing, until the next key update",
    wins=f"up to the update: {TEXT}",
)
def stolen_session_keys(frames: Frames, lab: Lab) -> Frames:
    """The session's keys are stolen in the middle of it."""
    lab.outcome.means = "steals"
    message = yield from up_to(frames, Kind.MSG)
    found = decrypted(lab.alice.session._keys, message.message)
    lab.outcome.learned = f"up to the update: {found}"
    yield message


@on_path("theft", "", None, goal=learned)
def keys_before_update(frames: Frames, lab: Lab) -> Frames:
    """A thief of session keys listens after a key update."""
    lab.outcome.means = "steals"
    message = yield from up_to(frames, Kind.MSG)
    keys = dict(lab.alice.session._keys)
    running = lab.alice.session._running
    yield message
    for kind, to in ((Kind.DH_CLIENT, "server"), (Kind.DH_SERVER, "client")):
        share = yield from up_to(frames, kind, to=to)
        running = chained(running, share.message)
        yield share
    message = yield from up_to(frames, Kind.MSG)
    for candidate in (keys, keys_of(running, keys["C2S-MAC"])):  # the same, or derived from them
        if found := decrypted(candidate, message.message):
            lab.outcome.learned = f"after the update: {found}"
    yield message


@on_path("theft", "", None, goal=learned)
def keys_after_update(frames: Frames, lab: Lab) -> Frames:
    """A thief of new session keys opens what came before."""
    lab.outcome.means = "steals"
    recorded = yield from up_to(frames, Kind.MSG)
    yield recorded
    message = yield from up_to(frames, Kind.MSG)
    keys = lab.alice.session._keys
    if found := decrypted(keys, recorded.message):
        lab.outcome.learned = f"before the update: {found}"
    yield message


@on_path("theft", "server", BadSignature, goal=learned)
def keys_in_the_middle(frames: Frames, lab: Lab) -> Frames:
    """A thief puts her own shares into a key update."""
    message = yield from up_to(frames, Kind.MSG)
    to_client = going_on(lab, SERVER, Direction.S2C)
    to_server = going_on(lab, ALICE, Direction.C2S)
    yield message
    for frame in frames:
        if frame.to == "client":
            yield frame.changed(to_client.seal(to_server.open(frame.message)))
            continue
        said = to_client.open(frame.message)
        if said.kind is Kind.MSG:
            text = readable(to_client.decrypt(base64.b64decode(said["ct"])))
            lab.outcome.learned = f"after the update: {text}"
            return
        yield frame.changed(to_server.seal(said))


def going_on(lab: Lab, name: str, sends: Direction) -> Session:
    """Return an end that has the session keys of Alice's session, and nobody's signing key."""
    stolen = lab.alice.session
    session = posing(lab, borrowed(lab, name), sends)
    session.fsm = copy.copy(stolen.fsm)
    session._keys = dict(stolen._keys)
    session._number = dict(stolen._number)
    session._running = stolen._running
    other = lab.pki.people[ALICE if name == SERVER else SERVER]
    session.peer_pem = other.pem
    session._peer = other.identity
    return session


@on_path(
    "theft",
    "",
    None,
    goal=learned,
    noticed="anyone who reads the list of issued certificates",
    wins=f"the password: {PASSWORDS[ALICE]}",
)
def stolen_authority_key(frames: Frames, lab: Lab) -> Frames:
    """A stolen authority key certifies a false server."""
    key = lab.pki.keys[MALLORY]
    yield from impostor(frames, lab, lab.pki.person(SERVER, "server", key=key))


# Availability -------------------------------------------------------------------------------------


@outside("availability", "server", DeadlineExpired, goal=learned)
def slow_drip(lab: Lab) -> None:
    """A hello drips in, byte by byte."""
    with lab.connect() as line:
        line.socket.settimeout(LIMITS.frame_s / 10)  # so 10 bytes fit into the deadline
        for byte in (1_000).to_bytes(4, "big") + bytes(26):
            line.socket.sendall(bytes([byte]))
            with suppress(TimeoutError):
                line.socket.recv(1)
                return
        lab.outcome.learned = "a frame takes as long as it likes"


# The program --------------------------------------------------------------------------------------


PROGRAM = Program(
    description="Attacks members and a server of its own, on loopback.",
    attacks=ATTACKS,
    lab=lambda options, log, parts, observer: Lab(log, parts, observer),
    weakened="companions.secure_chat.weakened",
    title=kind_name,
    beginning="making keys for an authority, a server and four members ...",
    module="companions.secure_chat.attacks",
    sets=Path(__file__).parent / "sets.json",
)

if __name__ == "__main__":
    run_program(PROGRAM.run)
