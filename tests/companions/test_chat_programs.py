"""secure_chat: server and clients on sockets, in threads and as programs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channel import EndRequested
from companions.asymmetric import PrivateKey, write_private
from companions.listening import listen
from companions.secure_chat import options, server
from companions.secure_chat.client import (
    Client,
    Left,
    NotLetIn,
    Talk,
    ask_password,
    explain,
)
from companions.secure_chat.evidence import Kept
from companions.secure_chat.pki import BadCertificate, NotYetValid, Revoked, StaleList, utc_now
from companions.secure_chat.protocol import Kind, Message, PeerEnded
from companions.secure_chat.transcript import EvidenceFailed
from program import NoConnection, UserError
from protocol_fsm import ConnectionCut, DeadlineExpired, LocalError, Status
from tests.companions.chat_helpers import ALICE, BOB
from tests.companions.chat_programs import CAROL, LIMIT_S, PASSWORDS, House, Typed, hear, say
from tests.companions.chat_sessions import World
from tests.network import at_once, free_port
from tests.programs import run

pytestmark = pytest.mark.usefixtures("quiet")


# Members ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_client_does_not_load_a_database() -> None:
    """It takes as long to load as all the rest of the client."""
    done = run(
        "-c", "import companions.secure_chat.client, sys; print('sqlalchemy' in sys.modules)"
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_members_talk_and_leave_with_evidence_that_verifies(house: House) -> None:
    with house.members() as (alice, bob):
        say(alice, "one", bob)
        say(bob, "two", alice)
        say(alice, "\U0001f600 | \n", bob)
        kept = [alice.settle(), bob.settle()]
    for one in kept:
        assert one.is_countersigned
        assert one.messages == len(house.judged(one).messages) == 3
    hashes = {
        row.transcript_hash
        for row in rows(house, "SELECT transcript_hash, message_count FROM sessions")
    }
    assert hashes == {hashlib.sha256(one.transcript.read_bytes()).hexdigest() for one in kept}


def rows(house: House, query: str) -> list[Any]:
    import sqlalchemy as sql

    with house.database.transaction() as connection:
        return list(connection.execute(sql.text(query)))


@pytest.mark.slow
def test_five_hundred_texts_of_two_at_once_arrive_in_one_order(house: House) -> None:
    heard: dict[str, list[str | None]] = {}

    def live(client: Client, name: str) -> None:
        for number in range(100):
            client.say(f"{name} {number}")
        heard[name] = [hear(client) for _ in range(200)]

    with house.members() as (alice, bob):
        at_once(partial(live, alice, ALICE), partial(live, bob, BOB))
        assert heard[ALICE] == heard[BOB]
        for name in (ALICE, BOB):
            own = [text for text in heard[name] if text and text.startswith(name)]
            assert own == [f"{name} {number}" for number in range(100)]


@pytest.mark.slow
@pytest.mark.parametrize("is_resumed", [False, True])
def test_newer_session_takes_the_place_of_an_older_one(house: House, is_resumed: bool) -> None:
    """Even if the client has lost a connection that the server still has."""
    renewed = house.party("client", ALICE, 2)
    with (
        house.members() as (alice, _),
        house.client(party=alice.party if is_resumed else renewed) as again,
    ):
        if is_resumed:
            again.resume(alice.token)
        else:
            again.log_in(ALICE, PASSWORDS[ALICE])
        again.join()
        with pytest.raises(PeerEnded, match="replaced"):
            hear(alice)
        assert again.settle().is_countersigned


@pytest.mark.slow
def test_text_for_an_older_session_is_not_told_to_the_newer_one(house: House) -> None:
    with house.members() as (alice, bob), house.client(party=bob.party) as again:
        again.log_in(BOB, PASSWORDS[BOB])
        again.join()
        alice.say("for the older one")  # Alice has not heard yet that there is another
        assert hear(again) is None
        assert hear(alice) == "for the older one"


@pytest.mark.slow
def test_account_has_one_session_even_outside_a_room(house: House) -> None:
    """Else one member could hold any number of threads for an hour."""
    with house.client() as alice, house.client() as again:
        alice.register(ALICE, "alice", PASSWORDS[ALICE])
        again.log_in(ALICE, PASSWORDS[ALICE])
        end = house.await_record(lambda record: record.what == "end")
        assert isinstance(end.detail, EndRequested)
        assert end.detail.status is Status.REPLACED
        again.join()


@pytest.mark.slow
def test_certificate_that_is_shown_with_nonsense_spoils_nobodys_evidence(house: House) -> None:
    odd = house.party("client", BOB, 3)
    odd = replace(odd, pem=f"nonsense\n{odd.pem.rstrip()}\n-----BEGIN X-----\n")
    with house.member() as alice, house.member(BOB, party=odd) as bob, house.member(CAROL) as carol:
        for client in (bob, carol):
            client.say("hello")
            assert hear(alice) == "hello"
        house.judged(alice.settle())


@pytest.mark.slow
def test_receipt_that_cannot_be_kept_ends_one_session_and_is_no_defect(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *rest: object) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    defects: list[object] = []
    with house.members() as (alice, bob):
        with monkeypatch.context() as context:
            context.setattr("companions.secure_chat.evidence.save_receipt", full)
            context.setattr(server.log, "exception", lambda *words: defects.append(words))
            with pytest.raises(PeerEnded, match="shutdown"):
                alice.settle()
            end = house.await_record(lambda record: record.what == "end")
        assert isinstance(end.detail, UserError)
        assert not defects
        say(bob, "on we go")


@pytest.mark.slow
def test_message_that_cannot_be_kept_leaves_the_room_as_it_was(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*entry: bytes) -> None:
        raise EvidenceFailed("room for a line", "No space left on device")

    with house.members() as (alice, bob):
        [room] = house.server._rooms.values()
        with monkeypatch.context() as context:
            context.setattr(room._transcript, "add", full)
            alice.say("lost")
            with pytest.raises(PeerEnded):
                alice.hear(LIMIT_S)
        assert isinstance(bob.hear(LIMIT_S), Left)
        say(bob, "on we go")


@pytest.mark.slow
def test_second_stay_of_a_session_is_refused(house: House) -> None:
    with house.members() as (alice, _):
        alice.settle()
        with pytest.raises(PeerEnded, match="violation"):
            alice.join()


@pytest.mark.slow
def test_room_with_another_kind_of_name_is_refused(house: House) -> None:
    with house.client() as alice:
        alice.register(ALICE, "alice", PASSWORDS[ALICE])
        with pytest.raises(PeerEnded, match="violation"):
            alice.join("No such room")


@pytest.mark.slow
def test_member_that_is_cut_off_has_an_uncountersigned_receipt_and_is_said_to_have_left(
    house: House,
) -> None:
    with house.members() as (alice, bob):
        say(bob, "before", alice)
        alice.channel._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionCut):
            alice.hear(LIMIT_S)
        alice.keep()
        assert alice.kept
        assert not alice.kept.is_countersigned
        assert isinstance(bob.hear(LIMIT_S), Left)
        assert bob.settle().is_countersigned
    assert (house.folder / ALICE).glob("receipt_*.json")


# Accounts -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refused_login_is_one_answer_and_the_reason_is_in_the_table(house: House) -> None:
    with house.client() as alice:
        with pytest.raises(NotLetIn):
            alice.log_in(ALICE, "no such user")
        for email, password in ((BOB, PASSWORDS[ALICE]), (ALICE, "short")):
            with pytest.raises(NotLetIn):
                alice.register(email, "alice", password)
        alice.register(ALICE, "alice", PASSWORDS[ALICE])
    events = house.database.events("login_failure")
    assert [(event["email"], event["reason"]) for event in events] == [(ALICE, "unknown user")]
    assert len(house.database.events("register_failure")) == 2
    assert {event["ip_address"] for event in events} == {"127.0.0.1"}


@pytest.mark.slow
def test_sixth_try_finds_a_closed_connection(house: House) -> None:
    with house.client() as alice:
        for _ in range(5):
            with pytest.raises(NotLetIn):
                alice.log_in(ALICE, "a wrong one")
        with pytest.raises((PeerEnded, ConnectionCut)):
            alice.log_in(ALICE, "a wrong one")


@pytest.mark.slow
def test_session_in_the_table_names_both_certificates(house: House) -> None:
    with house.members() as members:
        query = "SELECT client_cert_fingerprint, server_cert_fingerprint FROM sessions ORDER BY id"
        server = house.server.party.identity.fingerprint
        expected = [(one.party.identity.fingerprint, server) for one in members]
        assert rows(house, query) == expected


# Certificates -------------------------------------------------------------------------------------


def test_revoked_client_is_told_bad_cert_and_the_table_why(house: House) -> None:
    party = house.party("client", ALICE, 2)
    house.revoke(party)
    with pytest.raises(PeerEnded, match="bad-cert") as caught, house.client(party=party):
        pass
    assert "bad-cert" in explain(caught.value)
    end = house.await_record(lambda record: record.what == "end")
    assert isinstance(end.detail, Revoked)
    [event] = house.database.events("cert_invalid")
    assert event["reason"].startswith("Revoked")


@pytest.mark.slow
def test_revoked_certificate_ends_no_session_before_its_key_update(house: House) -> None:
    with house.members() as (alice, bob):
        house.revoke(bob.party)
        say(bob, "still here", alice)


def test_client_refuses_another_server_before_it_says_anything(house: House) -> None:
    party = house.party("client", ALICE, 2)
    client = Client(party, house.trust, "elsewhere", house.folder, *house.server.address)
    with pytest.raises(BadCertificate) as caught, client:
        pass
    assert "the server's" in explain(caught.value)
    assert house.await_record(lambda record: record.what == "end").detail.got == "bad-cert"


def test_certificate_that_ends_a_session_is_not_always_the_servers() -> None:
    assert "our revocation list" in explain(StaleList("a list for today", "another"))
    assert "or a member's" in explain(NotYetValid("from tomorrow", "today"))


# Bad input and bad luck ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(4),
        (10_000_000).to_bytes(4, "big") + b"x",
        (2).to_bytes(4, "big") + b"{}",
        (8).to_bytes(4, "big") + b"[" * 8,
        b"\0\0",
    ],
)
def test_nonsense_on_the_wire_is_not_answered_and_harms_nobody(house: House, sent: bytes) -> None:
    with house.members() as (alice, bob):
        with socket.create_connection(house.server.address, LIMIT_S) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        say(alice, "all is well", bob)


def test_strangers_are_few_and_the_oldest_goes_first(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    with House(keys, tmp_path).open(max_strangers=2) as house, contextlib.ExitStack() as stack:
        address = house.server.address
        socks = [stack.enter_context(socket.create_connection(address, LIMIT_S)) for _ in range(3)]
        assert socks[0].recv(1) == b""
        socks[2].settimeout(0.05)
        with pytest.raises(TimeoutError):
            socks[2].recv(1)


def test_handshake_and_login_have_their_time(keys: list[PrivateKey], tmp_path: Path) -> None:
    with House(keys, tmp_path).open(handshake_s=0.1, credentials_s=0.1) as house:
        with socket.create_connection(house.server.address, LIMIT_S) as sock:
            assert sock.recv(1) == b""
        end = house.await_record(lambda record: record.what == "end")
        assert isinstance(end.detail, DeadlineExpired)


@pytest.mark.slow
def test_member_that_cheats_is_ended_and_the_others_go_on(house: House) -> None:
    with house.members() as (alice, bob):
        said = alice.seat.compose("text", alice.clock())
        alice.channel.send(Message(Kind.MSG, {**said.members, "seqno": 7}))
        with pytest.raises(PeerEnded, match="violation"):
            alice.hear(LIMIT_S)
        assert isinstance(bob.hear(LIMIT_S), Left)
        say(bob, "on we go")


@pytest.mark.slow
def test_server_that_stops_says_so(house: House) -> None:
    with house.members() as (alice, _):
        for connection in house.server._connections:
            connection.channel.request_end(Status.SHUTDOWN)
        with pytest.raises(PeerEnded, match="shutdown"):
            alice.hear(LIMIT_S)


@pytest.mark.slow
def test_member_that_never_reads_is_sent_away_and_stops_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companions.secure_chat.server.MAX_POSTED", 3)
    with house.members() as (alice, _):
        connection = next(one for one in house.server._connections if one.name == BOB)
        block = threading.Event()
        connection.channel.post(lambda: block.wait(LIMIT_S))
        for number in range(8):
            say(alice, str(number))
        block.set()
        end = house.await_record(lambda record: record.what == "end" and record.name == BOB)
        assert isinstance(end.detail, EndRequested)


def test_taken_port_and_missing_server_are_one_sentence(house: House, tmp_path: Path) -> None:
    with pytest.raises(NoConnection, match="cannot listen"):
        listen(*house.server.address)
    party = house.party("client", ALICE, 2)
    with pytest.raises(NoConnection, match="no server"):
        Client(party, house.trust, "localhost", tmp_path, "127.0.0.1", free_port()).__enter__()


# What a person types and sees ---------------------------------------------------------------------


@pytest.mark.slow
def test_client_takes_any_number_of_lines_at_once(house: House) -> None:
    taken: list[int] = []
    with house.members() as (alice, _):
        for number in range(2_000):
            alice.channel.post(partial(taken.append, number))
        alice.channel.act()
        say(alice, "still here")
    assert taken == [*range(2_000)]


@pytest.mark.slow
def test_typed_lines_are_said_and_quit_leaves_with_a_receipt(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    with house.members() as (alice, bob):
        typed = tmp_path / "typed.txt"
        lines = [b"caf\xe9", b"first", b"history", b"x" * 5_000, b"quit", b"never said"]
        typed.write_bytes(b"\n".join(lines))
        monkeypatch.setattr(sys, "stdin", typed.open(encoding="utf-8"))
        say(bob, "\x1b[2Jfrom bob")
        kept = Talk(alice, shown.append).run()
        sys.stdin.close()
        assert isinstance(kept, Kept)
        assert hear(bob) == "first"
    assert any(line.endswith(f"{BOB}: \\x1b[2Jfrom bob") for line in shown)
    assert len([line for line in shown if line.endswith(f"{ALICE}: first")]) == 2  # and history
    assert any(line.startswith("[!] not sent: a text has at most") for line in shown)
    assert any(line.startswith("[!] not sent: it has characters") for line in shown)
    assert not any("never said" in line for line in shown)


@pytest.mark.parametrize(
    "answer", [b"caf\xe9 caf\xe9\n", b"x" * 5_000], ids=["other letters", "very long"]
)
def test_answer_that_would_be_taken_for_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """Letters that are replaced by one and the same would make many passwords one."""
    (tmp_path / "typed.txt").write_bytes(answer)
    with (tmp_path / "typed.txt").open(encoding="utf-8", errors="replace") as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(UserError, match="an answer"):
            ask_password("Password: ")


def test_settings_that_were_named_must_be_there(tmp_path: Path) -> None:
    parser = options.ChatParser("")
    with pytest.raises(UserError, match="there is no file"):
        options.settings_of(parser.options(["--env", str(tmp_path / "no.env")]))


@pytest.mark.slow
def test_debug_run_holds_no_secret(keys: list[PrivateKey], tmp_path: Path) -> None:
    """Not in logs, the database, transcripts or what is printed, in clear, base64 or hashed."""
    typed = Typed(keys, tmp_path)
    password, text = "a very secret password", "a very secret text"
    with typed.server("--debug", "--log", "server.log") as port:
        words = ("--debug", "--log", "client.log")
        done = typed.client(port, f"register\nalice\n{password}\n{text}\nquit\n", *words)
        assert done.returncode == 0, done.stderr
        again = typed.client(port, f"login\nwrong one\nlogin\n{password}\n", *words)
        assert again.returncode == 0, again.stderr
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path: data for path, data in kept.items() if "openings" not in path.name}
    private = {path for path in kept if "private_key" in path.name}
    everything = b"".join(data for path, data in kept.items() if path not in private)
    everything += typed.errors.encode() + (done.stderr + again.stderr + again.stdout).encode()
    assert b"sealed login" in everything
    for secret in (password, text, "wrong one"):
        data = secret.encode()
        for form in (data, base64.b64encode(data)[:-4], hashlib.sha256(data).hexdigest().encode()):
            assert form not in everything


@pytest.mark.slow
def test_programs_end_with_their_codes_and_one_sentence(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    typed = Typed(keys, tmp_path)
    none = typed.client("9", "")
    assert (none.returncode, none.stderr.count("\n")) == (3, 1)
    missing = typed.client("9", "", "--name", "nobody")
    assert missing.returncode == 2
    assert "Certificate not found" in missing.stderr
    with typed.server() as port:
        ended = typed.client(port, "login\nno such user\n")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        other = typed.client(port, "", "--server", "elsewhere")
        assert other.returncode == 1
        assert "Certificate validation failed" in other.stderr
        wrong = typed.client(port, "login\n" + "login\n".join(["wrong\n"] * 7))
        assert wrong.returncode in (1, 3)


@pytest.mark.slow
def test_certificate_that_does_not_hold_is_told_at_the_start(
    house: House, tmp_path: Path, keys: list[PrivateKey]
) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    own = house.authority.issue("client", ALICE, keys[2], now=utc_now())
    (certs / "client_cert.pem").write_text(own.pem)
    write_private(certs / "client_private_key.pem", keys[2])
    assert options.load_party(certs, "client", "client", house.trust).identity.name == ALICE
    with pytest.raises(UserError, match="Certificate validation failed"):
        options.load_party(certs, "client", "server", house.trust)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such terminals")
def test_password_is_not_shown_on_a_terminal(keys: list[PrivateKey], tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")

    typed = Typed(keys, tmp_path)
    with typed.server() as port:
        words = ["-m", "companions.secure_chat.client", "--port", port]
        person = pexpect.spawn(
            sys.executable, words, cwd=str(tmp_path), env=typed.environment, timeout=LIMIT_S
        )
        person.logfile_read = shown = io.BytesIO()
        for prompt, answer in (
            ("Login: ", "1"),
            ("Username: ", "alice"),
            ("Password: ", PASSWORDS[ALICE]),
            ("in lobby: ", "hello there"),
            (f"{ALICE}: hello there", "quit"),
        ):
            person.expect_exact(prompt)
            person.sendline(answer)
        person.expect_exact("countersigned by the server")
        person.expect(pexpect.EOF)
        person.close()
        assert person.exitstatus == 0
        assert PASSWORDS[ALICE].encode() not in shown.getvalue()


OUT_OF_ORDER: dict[str, Callable[[Client], object]] = {
    "register": lambda client: client.register(ALICE, "alice", PASSWORDS[ALICE]),
    "log_in": lambda client: client.log_in(ALICE, PASSWORDS[ALICE]),
    "resume": lambda client: client.resume("AAAA"),
    "join": lambda client: client.join(),
    "say": lambda client: client.say("text"),
    "update": lambda client: client.update(),
    "hear": lambda client: client.hear(),
    "leave": lambda client: client.leave(),
    "settle": lambda client: client.settle(),
}


def test_client_that_has_not_begun_can_do_nothing(keys: list[PrivateKey], tmp_path: Path) -> None:
    world = World(keys)
    client = Client(world.alice, world.authority.trust(), "localhost", tmp_path)
    for call in OUT_OF_ORDER.values():
        with pytest.raises(LocalError):
            call(client)
    with pytest.raises(LocalError):
        client.channel.request_end(Status.SHUTDOWN)
    with pytest.raises(LocalError):
        client.seat.compose("text", 0)


@pytest.mark.slow
def test_client_can_do_nothing_out_of_order(house: House) -> None:
    def try_all_but(*good: str) -> None:
        state = alice.session.state
        for name, call in OUT_OF_ORDER.items():
            if name not in good:
                with pytest.raises(LocalError):
                    call(alice)
        assert alice.session.state is state, "nothing has changed"

    alice = house.client()
    with alice:
        with pytest.raises(LocalError), alice:
            pytest.fail("entered twice")
        try_all_but("register", "log_in", "resume")
        alice.register(ALICE, "alice", PASSWORDS[ALICE])
        try_all_but("join")
        alice.join()
        try_all_but("say", "update", "hear", "leave", "settle")
        alice.settle()
        try_all_but("join")
    try_all_but()
