"""secure_chat: a client written from README.md alone, which imports nothing of ours but the server.

Numbers in brackets are the sections of its protocol.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from companions.secure_chat import gen_cert
from companions.secure_chat.accounts import Accounts
from companions.secure_chat.certs import load_credentials, load_trust
from companions.secure_chat.pki import utc_now
from companions.secure_chat.protocol import Party
from companions.secure_chat.server import Server
from companions.secure_chat.storage import Database
from companions.secure_chat.verify import Certificates
from companions.secure_chat.verify import verify as judge

PSS = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
PRIME = int(  # RFC 3526, section 3
    "FFFFFFFF FFFFFFFF C90FDAA2 2168C234 C4C6628B 80DC1CD1 29024E08 8A67CC74"
    "020BBEA6 3B139B22 514A0879 8E3404DD EF9519B3 CD3A431B 302B0A6D F25F1437"
    "4FE1356D 6D51C245 E485B576 625E7EC6 F44C42E9 A637ED6B 0BFF5CB6 F406B7ED"
    "EE386BFB 5A899FA5 AE9F2411 7C4B1FE6 49286651 ECE45B3D C2007CB8 A163BF05"
    "98DA4836 1C55D39A 69163FA8 FD24CF5F 83655D23 DCA3AD96 1C62F356 208552BB"
    "9ED52907 7096966D 670C354E 4ABC9804 F1746C08 CA18217C 32905E46 2E36CE3B"
    "E39E772C 180E8603 9B2783A2 EC07A28F B5C55DF0 6F4C52C9 DE2BCBF6 95581718"
    "3995497C EA956AE5 15D22618 98FA0510 15728E5A 8AACAA68 FFFFFFFF FFFFFFFF".replace(" ", ""),
    16,
)


def canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def pae(kind: str, *parts: bytes) -> bytes:  # [2]
    fields = [b"secure_chat", kind.encode("ascii"), b"\x01", *parts]
    return b"".join(len(one).to_bytes(4, "big") + one for one in fields)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Stranger:
    """A whole client: handshake, account, room, messages, transcript, receipts."""

    def __init__(self, certs: Path, name: str, address: tuple[str, int]) -> None:
        self.pem = (certs / f"{name}_cert.pem").read_text()
        self.certificate = x509.load_pem_x509_certificate(self.pem.encode())
        key = serialization.load_pem_private_key(
            (certs / f"{name}_private_key.pem").read_bytes(), None
        )
        assert isinstance(key, rsa.RSAPrivateKey)
        self.key = key
        self.ca = x509.load_pem_x509_certificate((certs / "ca_cert.pem").read_bytes())
        with socket.create_connection(address, 10) as sock:  # open as long as its stream
            self.stream = sock.makefile("rwb")
        self.r = b""  # the conversation hash
        self.keys: dict[str, bytes] = {}
        self.number = {0: 0, 1: 0}
        self.counts = True  # for R
        self.lines: list[str] = []
        self.chain = bytes(32)
        self.seqno = 0
        self.previous = bytes(32)

    # Frames and records [1], [4]

    def write(self, message: bytes) -> None:
        self.stream.write(len(message).to_bytes(4, "big") + message)
        self.stream.flush()
        self.count(message)

    def read(self) -> bytes:
        message = self.stream.read(int.from_bytes(self.stream.read(4), "big"))
        self.count(message)
        return message

    def count(self, message: bytes) -> None:
        if self.counts:
            self.r = sha256(self.r, sha256(message))

    def tag(self, direction: int, untagged: bytes) -> bytes:
        key = self.keys["C2S-MAC" if direction == 0 else "S2C-MAC"]
        place = bytes([direction]) + u64(self.number[direction])
        return hmac.digest(key, place + untagged, "sha256")

    def encrypt(self, plain: bytes) -> bytes:
        iv = os.urandom(16)
        pad = 16 - len(plain) % 16
        aes = Cipher(algorithms.AES(self.keys["C2S-ENC"]), modes.CBC(iv)).encryptor()
        return iv + aes.update(plain + bytes([pad]) * pad)

    def send(self, values: dict[str, Any], *, is_open: bool = False) -> None:
        if not is_open:
            payload = b64(self.encrypt(canonical(values)))
            values = {"type": values["type"], "payload": payload}
        tag = self.tag(0, canonical(values))
        self.write(canonical({**values, "tag": b64(tag)}))
        self.number[0] += 1

    def receive(self, kind: str) -> dict[str, Any]:
        record = json.loads(self.read())
        tag = base64.b64decode(record.pop("tag"))
        assert hmac.compare_digest(tag, self.tag(1, canonical(record)))
        self.number[1] += 1
        data = base64.b64decode(record["payload"])
        aes = Cipher(algorithms.AES(self.keys["S2C-ENC"]), modes.CBC(data[:16])).decryptor()
        plain = aes.update(data[16:])
        values: dict[str, Any] = json.loads(plain[: -plain[-1]])
        assert values["type"] == kind, values
        return values

    # Handshake and keys [2], [3]

    def begin(self) -> None:
        hello = {"type": "hello", "client_cert": self.pem, "nonce": b64(os.urandom(32))}
        self.write(canonical(hello))
        answer = json.loads(self.read())
        assert answer["type"] == "server_hello"
        self.server_pem = answer["server_cert"]
        self.server = x509.load_pem_x509_certificate(self.server_pem.encode())
        self.server.verify_directly_issued_by(self.ca)
        self.agree()
        self.session = self.r

    def agree(self) -> None:
        x = secrets.randbits(256)
        share = {"type": "dh_client", "g": 2, "p": PRIME, "A": pow(2, x, PRIME)}
        signed = pae("dh-client", self.r, canonical(share))
        message = {**share, "sig": b64(self.sign(signed))}
        if self.keys:
            self.send(message)
            before = self.r
            answer = self.receive("dh_server")
        else:
            self.write(canonical(message))
            before = self.r
            answer = json.loads(self.read())
        signature = base64.b64decode(answer.pop("sig"))
        verify(self.server, signature, pae("dh-server", before, canonical(answer)))
        shared = pow(answer["B"], x, PRIME).to_bytes(256, "big")
        secret = HKDF(hashes.SHA256(), 32, self.r, b"secure_chat v1 secret").derive(shared)
        for label, size in (("C2S-ENC", 16), ("S2C-ENC", 16), ("C2S-MAC", 32), ("S2C-MAC", 32)):
            info = b"secure_chat v1 " + label.encode()
            self.keys[label] = HKDFExpand(hashes.SHA256(), size, info).derive(secret)

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, PSS, hashes.SHA256())

    # Accounts and rooms [7], [8]

    def enter(self, credentials: dict[str, Any]) -> None:
        self.send(credentials)
        assert self.receive("welcome")["username"] == "stranger"
        self.agree()

    def join(self) -> None:
        self.send({"type": "join", "room": "lobby"})
        room = self.receive("room")
        self.counts = False
        self.start = bytes.fromhex(room["start"])
        self.base = self.head = bytes.fromhex(room["head"])
        self.index = self.first = room["index"]
        self.members = {one["session"]: one for one in room["members"]}

    # Messages [9]

    def say(self, text: str) -> None:
        r = os.urandom(32)
        plain = r + text.encode("utf-8")
        recipients = sorted(
            [fingerprint(one["certificate"]), session]
            for session, one in self.members.items()
            if session != self.session.hex()
        )
        self.ct = self.encrypt(plain)
        self.ts = time.time_ns() // 1_000_000
        commitment = sha256(b"secure_chat v1 commitment", plain)
        self.signed = pae(
            "msg",
            self.session,
            b"lobby",
            bytes.fromhex(fingerprint(self.pem)),
            b"".join(bytes.fromhex(one) for pair in recipients for one in pair),
            u64(self.seqno),
            u64(self.ts),
            self.previous,
            self.head,
            commitment,
            self.ct,
        )
        message = {
            "type": "msg",
            "seqno": self.seqno,
            "ts": self.ts,
            "ct": b64(self.ct),
            "sig": b64(self.sign(self.signed)),
            "session": self.session.hex(),
            "room": "lobby",
            "recipients": recipients,
            "previous": self.previous.hex(),
            "seen": self.head.hex(),
            "commitment": commitment.hex(),
        }
        self.send(message, is_open=True)
        self.previous = sha256(self.signed)
        self.seqno += 1

    def hear_own(self) -> None:
        relay = {name: base64.b64decode(value) for name, value in self.receive("relay").items()
                 if name != "type"}  # fmt: skip
        assert relay["msg"] == self.signed
        assert relay["opening"] == b""
        after = sha256(b"secure_chat v1 head", self.head, sha256(relay["msg"]), relay["sig"])
        ts = relay["head"][-4 - 32 - 8 : -4 - 32]
        head = pae("head", b"lobby", self.start, u64(self.index), ts, after)
        assert relay["head"] == head
        verify(self.server, relay["head_sig"], head)
        self.head = after
        self.keep(self.seqno - 1, self.ts, self.ct, relay["sig"], self.pem, self.signed)
        said_at = int.from_bytes(ts, "big")
        self.keep(self.index, said_at, after, relay["head_sig"], self.server_pem, head)
        self.index += 1

    # Transcript and receipts [10]

    def keep(self, seqno: int, ts: int, ct: bytes, sig: bytes, pem: str, signed: bytes) -> None:
        first = f"{seqno}|{ts}|{b64(ct)}|{b64(sig)}|{fingerprint(pem)}"
        last = b64(signed)
        self.chain = sha256(b"secure_chat v1 line", self.chain, f"{first}|{last}".encode())
        self.lines.append(f"{first}|{self.chain.hex()}|{last}\n")

    def settle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return both receipts, as they belong into files."""
        self.send({"type": "leave", "room": "lobby"})
        theirs = self.receive("receipt")["receipt"]
        self.counts = True
        known = {
            "type": "receipt",
            "version": 1,
            "first_seqno": self.first,
            "last_seqno": self.index - 1,
            "message_count": len(self.lines) // 2,
            "transcript_hash": hashlib.sha256("".join(self.lines).encode()).hexdigest(),
            "session_id": self.session.hex(),
            "room": "lobby",
            "base_head": self.base.hex(),
        }
        assert {name: theirs[name] for name in known} == known
        own = {
            **known,
            "peer": "server",
            "created_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "peer_cert_fingerprint": fingerprint(self.server_pem),
            "signer_cert": b64(self.pem.encode()),
        }
        own["signature"] = b64(self.sign(pae("receipt", canonical(own))))
        countersignature = b64(self.sign(pae("countersign", canonical(theirs))))
        self.send({"type": "receipt", "receipt": own, "countersignature": countersignature})
        answer = self.receive("countersign")["countersignature"]
        verify(self.server, base64.b64decode(answer), pae("countersign", canonical(own)))
        self.send({"type": "bye"})
        assert self.stream.read() == b""
        self.stream.close()
        return (
            {**own, "countersignature": answer},
            {**theirs, "countersignature": countersignature},
        )


def fingerprint(pem: str) -> str:
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


def verify(certificate: x509.Certificate, signature: bytes, data: bytes) -> None:
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(signature, data, PSS, hashes.SHA256())


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 10])
def test_client_written_from_the_readme_registers_talks_and_gets_a_receipt(
    tmp_path: Path, certs: Path, count: int
) -> None:
    gen_cert.issue(certs, "server", "localhost", "server")
    gen_cert.issue(certs, "client", "stranger@example.org", "stranger")
    own = load_credentials(certs, "server")
    trust = load_trust(certs)
    party = Party(trust.identify(own.pem, "server", None, utc_now()), own.pem, own.key)
    accounts = Accounts(Database(f"sqlite:///{tmp_path / 'chat.db'}"))
    with Server(party, trust, accounts, tmp_path / "server", port=0) as server:
        client = Stranger(certs, "stranger", server.address)
        client.begin()
        login = {"email": "stranger@example.org", "pwd": "correct horse"}
        client.enter({**login, "type": "register", "username": "stranger"})
        client.stream.close()
        client = Stranger(certs, "stranger", server.address)
        client.begin()
        client.enter({**login, "type": "login"})
        client.join()
        for number in range(count):
            client.say(f"text {number}")
            client.hear_own()
        receipts = client.settle()
    certificates = Certificates(
        (client.pem + client.server_pem).encode(),
        (certs / "ca_cert.pem").read_bytes(),
        (certs / "ca_crl.pem").read_bytes(),
    )
    for receipt in receipts:
        judged, is_countersigned, history = judge(
            canonical(receipt) + b"\n", "".join(client.lines).encode(), certificates
        )
        assert is_countersigned
        assert judged.message_count == len(history.messages) == count
