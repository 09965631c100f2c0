"""secure_chat: README.md says what the code does, and its commands are typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from companions.secure_chat import accounts, pki, protocol, rooms, server, storage
from companions.secure_chat.forms import Head, Message
from companions.secure_chat.protocol import ERROR_TYPES, MEMBERS, Kind
from companions.secure_chat.server import Limits
from companions.secure_chat.transcript import MEMBERS as RECEIPT_MEMBERS
from companions.secure_chat.verify import NAMES
from tests.network import free_port
from tests.programs import ROOT

FOLDER = ROOT / "companions" / "secure_chat"
README = (FOLDER / "README.md").read_text("utf-8")
LIMIT_S = 300  # on a machine that is busy with other things


def section(title: str) -> str:
    """Return a part of the README, without those below it."""
    return re.split(r"\n##", README[README.index(f" {title}\n") :], maxsplit=1)[0]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table with this first word in its head, cell by cell."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# The protocol -------------------------------------------------------------------------------------


def test_every_message_is_in_the_table_with_its_members() -> None:
    rows = table(section("1 Frames and messages"), "`type`")
    told = {quoted(kind)[0]: set(quoted(members)) for kind, _, members in rows}
    assert set(told) == {kind.value for kind in Kind}
    for kind, members in MEMBERS.items():
        if kind is Kind.MSG:
            assert told["msg"] < set(members)
        else:
            assert told[kind.value] == set(members), kind


def test_every_member_of_a_message_and_a_receipt_is_described() -> None:
    said = {name for row in table(section("9 Messages"), "member") for name in quoted(row[0])}
    assert said == set(MEMBERS[Kind.MSG])
    given = table(section("10 Transcripts and receipts"), "member")
    assert {name for row in given for name in quoted(row[0])} == set(RECEIPT_MEMBERS)
    assert "|".join(NAMES).replace("|ct|sig|", "|base64(ct)|base64(sig)|").replace(
        "|signed", "|base64(signed)"
    ) in section("10 Transcripts and receipts")
    members = table(section("8 Rooms"), "member")
    assert {name for row in members for name in quoted(row[0])} == set(rooms.MEMBER)


def test_signed_parts_are_listed_in_their_order() -> None:
    text = section("9 Messages")
    for kind, form in (("msg", Message), ("head", Head)):
        parts = re.search(rf'PAE\("{kind}", ([^)]+)\)', text)
        assert parts
        names = [name.split()[-1].replace("fingerprint", "sender") for name in parts[1].split(", ")]
        fields = list(form.__dataclass_fields__)
        assert [name.removesuffix("_n") for name in names] == fields


def test_every_error_is_named() -> None:
    assert set(quoted(section("11 Errors and the end").split("In the clear")[0])) == {
        "error_type",
        *ERROR_TYPES,
    }


@pytest.mark.parametrize(
    ("title", "number"),
    [
        ("1 Frames and messages", protocol.MAX_HANDSHAKE),
        ("1 Frames and messages", protocol.MAX_FROM_CLIENT),
        ("1 Frames and messages", protocol.MAX_FROM_SERVER),
        ("6 Receiving, in this order", server.MAX_POSTED),
        ("8 Rooms", rooms.MAX_ROOM_NAME),
        ("8 Rooms", rooms.MAX_MEMBERS),
        ("8 Rooms", Limits().max_rooms),
        ("8 Rooms", server.MAX_STAYS),
        ("9 Messages", protocol.MAX_TEXT_BYTES),
        ("9 Messages", rooms.KNOWN_HEADS),
        ("12 Certificates", pki.MAX_PEM),
        ("12 Certificates", pki.MIN_RSA_BITS),
        ("12 Certificates", pki.MAX_RSA_BITS),
        ("7 Accounts", storage.MAX_NAME_BYTES),
        ("7 Accounts", accounts.MAX_PASSWORD),
    ],
)
def test_limits_are_those_of_the_code(title: str, number: int) -> None:
    assert re.search(rf"(?<![\d,]){number:,}(?![\d,]*\d)", section(title)), number


def test_times_and_costs_are_those_of_the_code() -> None:
    limits = Limits()
    assert (limits.handshake_s, limits.credentials_s, limits.frame_s) == (10, 60, 5)
    assert (limits.silence_s, limits.max_tries) == (3_600, 5)
    assert (accounts.MEMORY_KIB, accounts.PASSES, accounts.LANES) == (19 * 1024, 2, 1)
    text = section("6 Receiving, in this order")
    assert "have 10 seconds in all, each try of a login 60 seconds, a frame 5" in text
    assert "silent for an hour" in text
    assert "(19 MiB, 2 passes, 1 lane)" in section("7 Accounts")
    assert accounts.TOKEN_LIFE_MS == 12 * 3_600_000
    assert "good once, for 12 hours," in section("7 Accounts")


def test_every_improvement_and_warning_of_the_document_is_answered() -> None:
    text = section("In production")
    improvements = table(text, "future improvement")
    warnings = table(text, "warning")
    assert (len(improvements), len(warnings)) == (8, 10)
    for row, words in zip(
        [*improvements, *warnings],
        (
            "Perfect Forward Secrecy",
            "Certificate pinning",
            "Rate limiting",
            "Key rotation",
            "Multi-party messaging",
            "Persistent session store",
            "TLS upgrade path",
            "Hardware security module",
            "TLS/SSL",
            "HSM",
            "certificate revocation",
            "rate limiting",
            "connection pooling",
            "audit logging",
            "Rotate certificates",
            "random number generation",
            "API authentication",
            "security audits",
        ),
        strict=True,
    ):
        assert words in row[0]
        assert row[1]


# The document's commands --------------------------------------------------------------------------

COMMANDS = [quoted(row[1])[0] for row in table(section("The document's commands"), "the document")]


def test_every_command_of_the_document_has_its_counterpart() -> None:
    """Those of its quick start, its tests, its audit and its troubleshooting, as it writes them."""
    theirs = [
        quoted(row[0])[0] for row in table(section("The document's commands"), "the document")
    ]
    for word in (
        "pip install -r requirements.txt",
        "cp .env.example .env",
        "mysql -u root -p < mysql/schema.sql",
        "python3 scripts/gen_ca.py",
        "python3 scripts/gen_cert.py client localhost",
        "python3 scripts/gen_cert.py server localhost",
        "python3 server/server.py",
        "python3 client/client.py",
        "bash tests/run_all_tests.sh",
        "python3 -m pytest tests/test_invalid_cert.py -v",
        "python3 -m pytest tests/test_replay_tamper.py -v",
        'mysql -u root -p -e "SELECT 1"',
        "SELECT * FROM audit_log WHERE event_type = 'login_failure';",
        "SELECT * FROM audit_log WHERE event_type = 'cert_invalid';",
        "openssl x509 -in certs/server_cert.pem -text | grep CN",
        "chmod 600 certs/*_private_key.pem",
        'tcp.port == 5000 && json.value contains "password"',
    ):
        assert word in theirs
    for command in COMMANDS:
        for path in re.findall(r"(?:companions|tests)/[\w./]+\.(?:py|txt|example)", command):
            assert (ROOT / path).is_file(), path


class Typist:
    """Types commands of the README in a folder of its own, with the project on Python's path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        (folder / "companions").symlink_to(ROOT / "companions")

    def __call__(self, part: str, said: str = "", code: int = 0) -> str:
        """Type the one command that has this part, and return what it prints."""
        [command] = [one for one in COMMANDS if part in one]
        return self.run(command, said, code)

    def run(self, command: str, said: str = "", code: int = 0) -> str:
        done = subprocess.run(
            command.replace("python ", f'"{sys.executable}" ', 1),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            input=said,
            text=True,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(name="server")
def started(tmp_path: Path) -> Typist:
    """A typist who has done all up to the server, and who will start it."""
    typist = Typist(tmp_path)
    assert "Certificate not found" in typist("secure_chat.server", code=2)
    typist("cp companions")
    env = (tmp_path / ".env").read_text()
    (tmp_path / ".env").write_text(env.replace("SERVER_PORT=5050", f"SERVER_PORT={free_port()}"))
    typist("gen_ca")
    typist("gen_cert client localhost")
    typist("gen_cert server localhost")
    return typist


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="types commands of a POSIX shell")
def test_documents_session_is_typed_from_the_first_command_to_the_last(server: Typist) -> None:
    [command] = [one for one in COMMANDS if "secure_chat.server" in one]
    process = subprocess.Popen(
        [sys.executable, *command.split()[1:]],
        cwd=server.folder,
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        assert "Secure Chat Server listening on 127.0.0.1:" in process.stdout.readline()
        first = server(
            "secure_chat.client", "register\nuser\ncorrect horse\nhello\nhistory\nquit\n"
        )
        assert first.count("client@localhost: hello") == 2
        server.run(
            "python -m companions.secure_chat.client", "login\nbattery staple\nquit\n", code=2
        )
        server.run("python -m companions.secure_chat.revoke certs/client_cert.pem")
        refused = server.run("python -m companions.secure_chat.client", "login\n", code=1)
        assert "bad-cert" in refused
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[0]
    assert rest == "stopped\n"
    server("chmod 600")
    if shutil.which("openssl"):
        assert "CN = SERVER: localhost" in server("openssl x509").replace("CN=", "CN = ")
    if shutil.which("sqlite3"):
        assert server("SELECT 1") == "1\n"
        assert "wrong password" in server("login_failure")
        assert "Revoked" in server("cert_invalid")
    judge(server)
    everything = b"".join(
        path.read_bytes()
        for path in server.folder.rglob("*")
        if path.is_file()
        and not path.is_relative_to(server.folder / "companions")
        and path.suffix != ".jsonl"
    )
    assert not [
        secret for secret in (b"correct horse", b"battery", b"hello") if secret in everything
    ]


def judge(server: Typist) -> None:
    """Type the verifier's command, with the names that the files really have."""
    [command] = [one for one in COMMANDS if "secure_chat.verify" in one]
    kept = server.folder / "transcripts"
    [transcript] = kept.glob("transcript_*.txt")
    moment = transcript.stem.removeprefix("transcript_")
    for role in ("client", "server"):
        typed = (
            command.replace("receipt.json", f"transcripts/receipt_{moment}_{role}.json")
            .replace("transcript.txt", f"transcripts/{transcript.name}")
            .replace("cert.pem", f"transcripts/certs_{moment}.pem")
        )
        assert server.run(f"{typed} --ca certs/ca_cert.pem").endswith("Valid\n")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_filter_for_wireshark_is_one_that_wireshark_takes(tmp_path: Path) -> None:
    capture = tmp_path / "empty.pcap"
    capture.write_bytes(bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000"))

    def take(filter_: str) -> int:
        command = ["tshark", "-r", str(capture), "-Y", filter_]
        return subprocess.run(command, capture_output=True, check=False).returncode

    [ours] = [one for one in COMMANDS if one.startswith("tcp.port")]
    assert take(ours) == 0
    assert take('tcp.port == 5000 && json.value contains "password"') != 0  # the document's own
