"""What both programs share: hosts, key files, ids, flags, and how an answer is shown."""

from __future__ import annotations

import argparse
import random
import secrets
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from client import Client
from endpoint import (
    DEMO_KEYS,
    EndpointParser,
    choose_keys,
    describe,
    generate_keys,
    id_list,
    load_keys,
    loopback_address,
    session_factory,
)
from lab.rules import require_loopback
from program import UserError
from protocol_fsm import ClientHello, DeadlineExpired, Direction
from tests.programs import posix_only

GOOD_KEY = "ab" * 16


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["127.0.0.1", "192.0.2.1"], ""),
        (["::1", "127.0.0.1"], "127.0.0.1"),
        (["::1"], "::1"),
    ],
    ids=["ours", "one is foreign", "IPv4 comes first", "only IPv6"],
)
def test_a_host_is_loopback_if_all_its_addresses_are(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], chosen: str
) -> None:
    found = [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert loopback_address("some.host") == chosen


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("no label")])
def test_a_host_without_an_address_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def resolve(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UserError, match="there is no host named 'nowhere'"):
        loopback_address("nowhere")


class Names:
    """A name that leads to this machine when it is asked for first, and elsewhere later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[object] = []
        self._resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: object, *rest: Any, **options: Any) -> Any:
        if host != "turncoat":
            return self._resolve(host, *rest, **options)  # type: ignore[arg-type]
        self.asked.append(host)
        return self._resolve("127.0.0.1" if len(self.asked) == 1 else "192.0.2.1", *rest, **options)


def test_the_address_that_was_checked_is_the_one_that_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)
    assert choose_keys(None, "turncoat")[1] == "127.0.0.1"
    names.asked.clear()
    assert EndpointParser("").options(["--patient", "--host", "turncoat"]).host == "127.0.0.1"
    names.asked.clear()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(1, None, "turncoat", listener.getsockname()[1], timeout_s=0.1)
        with pytest.raises(DeadlineExpired):
            client.__enter__()
    assert len(names.asked) == 1
    names.asked.clear()
    assert require_loopback("turncoat") == "127.0.0.1"
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("128.0.0.1", False),
        ("126.255.255.255", False),
        ("10.0.0.1", False),
        ("192.168.0.1", False),
        ("169.254.1.1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("2001:db8::127", False),
    ],
)
def test_an_address_and_not_a_name_makes_a_host_loopback(
    monkeypatch: pytest.MonkeyPatch, address: str, is_ours: bool
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = [(family, socket.SOCK_STREAM, 6, "", (address, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    for name in ("127.example.org", "localhost.example.org", "::1.example", "far"):
        assert loopback_address(name) == (address if is_ours else "")
        if is_ours:
            assert choose_keys(None, name) == (DEMO_KEYS, address)
        else:
            with pytest.raises(UserError, match="the demo keys are published"):
                choose_keys(None, name)


def test_generated_keys_are_whole_and_from_the_operating_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = secrets.token_hex

    def draw(length: int) -> str:
        drawn.append(real(length))
        return drawn[-1]

    monkeypatch.setattr(secrets, "token_hex", draw)
    generate_keys(tmp_path / "new", [*range(1, 256)])
    assert {len(text) for text in drawn} == {64}
    written = load_keys(tmp_path / "new" / "server.keys")
    assert [key.hex() for key in written.values()] == drawn
    for client_id in written:
        own = load_keys(tmp_path / "new" / f"client-{client_id}.key")
        assert own == {client_id: written[client_id]}


@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 64, 100])
def test_a_key_of_any_length_is_read_whole(tmp_path: Path, length: int) -> None:
    key = random.randbytes(length)
    path = tmp_path / "some.keys"
    path.write_text(f"7:{key.hex()}\n")
    path.chmod(0o600)
    assert load_keys(path) == {7: key}
    assert choose_keys(str(path), "192.0.2.1") == ({7: key}, "192.0.2.1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"0:{GOOD_KEY}\n", "line 1 is not id:hex"),
        (f"256:{GOOD_KEY}\n", "line 1 is not id:hex"),
        (f"1:{GOOD_KEY[2:]}\n", "line 1 is not id:hex"),
        (f"1:{GOOD_KEY}\n1:{'cd' * 16}\n", "line 2 is not id:hex"),
        (f"1:{GOOD_KEY} # the first\n", "line 1 is not id:hex"),
        (f"1:{GOOD_KEY}\nand that is all\n", "line 2 is not id:hex"),
        (f"\u0661:{GOOD_KEY}\n", "line 1 is not id:hex"),
        ("\n \n", "no keys in"),
    ],
    ids=[
        "id 0",
        "id 256",
        "short key",
        "id twice",
        "more behind it",
        "a line of prose",
        "an Arabic 1",
        "nothing",
    ],
)
def test_a_malformed_key_file_is_refused_and_no_key_shown(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"\ufeff\n 255 : {GOOD_KEY.upper()} \n", "utf-8")
    path.chmod(0o600)
    assert load_keys(path) == {255: bytes.fromhex(GOOD_KEY)}
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=why) as caught:
        load_keys(path)
    assert GOOD_KEY not in str(caught.value)


def test_a_key_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "binary").touch(0o600)
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, words in (("none", "No such"), ("folder", "Is a dir"), ("binary", "'utf-8' codec")):
        with pytest.raises(UserError, match=f"^cannot read keys from .*{name}: {words}"):
            load_keys(tmp_path / name)


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o601], ids=oct)
def test_a_key_file_that_others_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "some.keys"
    path.write_text(f"1:{GOOD_KEY}\n")
    path.chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_keys(path)


@pytest.mark.parametrize("text", ["0", "4-1", "1-256", "1,,2", "1_0", "\u0662", ""])
def test_a_list_of_ids_outside_its_limits_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        id_list(text)


def test_ids_are_listed_once_each_and_rising() -> None:
    assert id_list("3-5,1,255,4") == [1, 3, 4, 5, 255]


def test_a_session_is_traced_only_if_that_was_asked_for() -> None:
    for trace, count in ((False, 0), (True, 1)):
        lines: list[str] = []
        make = session_factory(argparse.Namespace(keylog=None, trace=trace), lines.append)
        hello = make(1, DEMO_KEYS[1], Direction.C2S).seal(ClientHello())
        make(1, DEMO_KEYS[1], Direction.S2C).open(hello)
        assert len(lines) == 2 * count
        for line, arrow in zip(lines, ("->", "<-")):
            assert line.startswith(f"{arrow} CLIENT_HELLO id 1 round 0")


def test_flags_have_their_defaults() -> None:
    assert vars(EndpointParser("").options(["--host", "192.0.2.1"])) == {
        "host": "192.0.2.1",
        "port": 9999,
        "keys": None,
        "patient": False,
        "trace": False,
        "keylog": None,
    }


def test_a_key_file_is_no_place_for_a_key_log() -> None:
    with pytest.raises(UserError):
        EndpointParser("").options(["--keys", "some.keys", "--keylog", "some.keys"])


def test_to_have_no_deadlines_is_for_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--patient"])
    assert EndpointParser("").options().patient
    monkeypatch.setattr(sys, "argv", ["program", "--patient", "--host", "192.0.2.1"])
    with pytest.raises(UserError, match=r"for loopback only, which 192\.0\.2\.1 is not"):
        EndpointParser("").options()


# How an answer is shown


def test_an_answer_is_shown_in_ascii_and_moves_no_cursor() -> None:
    shown = describe(
        {"text": "21 \u00b0C \x1b]0;x\x07", "n\x1b": 1, "none": None, "x": [1 / 3, None]}
    )
    text = '"21 \\u00b0C \\u001b]0;x\\u0007"'
    assert shown == f"text {text}  n\\u001b 1  none null  x [0.333333,null]"
    long = describe({f"name{n}": float(n) for n in range(40)})
    assert all(len(line) <= 79 for line in long.splitlines())
    assert not [line for line in long.splitlines() if line.split()[-1].startswith("name")]


def test_a_line_has_79_columns_and_a_list_of_more_than_40_has_blanks() -> None:
    for digits, count in ((72, 1), (73, 2)):
        assert len(describe({"a": 1, "b": int("1" * digits)}).splitlines()) == count
    for first, count in ((100, 1), (1000, 13)):
        items: list[str | float | None] = [first, 100, *[10] * 11]
        assert len(describe({"x": items}).split()) == count + 1


def test_no_number_of_many_clients_is_broken_in_two() -> None:
    participants: list[str | float | None] = [*range(2, 42)]
    lines = describe({"epoch": 12, "participants": participants, "count": 40}).splitlines()
    assert max(map(len, lines)) <= 79
    found = " ".join(lines).partition("participants")[2].partition("count")[0]
    assert [int(word) for word in found.strip(" []").split(",")] == participants
