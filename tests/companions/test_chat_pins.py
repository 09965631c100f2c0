"""Keys that a client of secure_chat has met: who is refused, who is told, and what is kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from companions.asymmetric import PrivateKey, write_private
from companions.secure_chat.client import Joined, Talk, explain, tell_doubts
from companions.secure_chat.pins import OtherKey, Pins, key_fingerprint
from companions.secure_chat.pki import Identity, utc_now
from program import UserError
from tests.companions.chat_helpers import ALICE, BOB, Authority
from tests.companions.chat_programs import LIMIT_S, PASSWORDS, House, Typed

SERVER = "localhost"

pytestmark = pytest.mark.usefixtures("quiet")


def server_of(authority: Authority, key: PrivateKey, name: str = SERVER) -> Identity:
    own = authority.issue("server", SERVER, key, now=utc_now())
    return authority.trust().identify(own.pem, "server", name, utc_now())


# What is kept -------------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_key_in_der(keys: list[PrivateKey]) -> None:
    key = keys[1].public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_fingerprint(key) == hashlib.sha256(der).hexdigest()


def test_first_key_is_taken_and_another_is_refused(keys: list[PrivateKey], tmp_path: Path) -> None:
    authority = Authority(keys[0])
    first = server_of(authority, keys[1])
    second = server_of(authority, keys[4])
    path = tmp_path / "known_keys.txt"
    pins = Pins(path)
    pins.check_key(first)
    assert pins.meet(first) is None
    for known in (pins, Pins(path)):  # at once, and in the next run
        known.check_key(first)
        known.check_key(server_of(authority, keys[1]))  # renewed for the same key
        with pytest.raises(OtherKey) as caught:
            known.check_key(second)
        assert caught.value.got == key_fingerprint(second.public_key)
        assert known.meet(first) == key_fingerprint(first.public_key)
    assert path.read_text() == f"{SERVER} {key_fingerprint(first.public_key)}\n"


def test_expected_key_counts_for_more_than_the_known_one(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    authority = Authority(keys[0])
    first = server_of(authority, keys[1])
    second = server_of(authority, keys[4])
    path = tmp_path / "known_keys.txt"
    Pins(path).meet(first)
    pins = Pins(path, key_fingerprint(second.public_key))
    with pytest.raises(OtherKey):
        pins.check_key(first)
    pins.check_key(second)
    assert pins.meet(second) == key_fingerprint(first.public_key)
    Pins(path).check_key(second)
    assert len(path.read_text().splitlines()) == 2  # what was known before can still be read
    with pytest.raises(OtherKey):
        Pins(None, key_fingerprint(second.public_key)).check_key(first)  # at the first meeting


def test_key_is_compared_to_its_last_digit(keys: list[PrivateKey]) -> None:
    server = server_of(Authority(keys[0]), keys[1])
    own = key_fingerprint(server.public_key)
    for other in (own[:-1] + f"{int(own[-1], 16) ^ 1:x}", f"{int(own[0], 16) ^ 1:x}" + own[1:]):
        with pytest.raises(OtherKey):
            Pins(None, other).check_key(server)


def test_server_that_is_called_in_capitals_is_the_same(keys: list[PrivateKey]) -> None:
    authority = Authority(keys[0])
    pins = Pins()
    for name in (SERVER, SERVER.upper()):
        assert (pins.meet(server_of(authority, keys[1], name)) is None) == (name == SERVER)
        with pytest.raises(OtherKey):
            pins.check_key(server_of(authority, keys[4], name))


def test_key_that_is_met_again_is_the_one_of_before(keys: list[PrivateKey]) -> None:
    authority = Authority(keys[0])
    pins = Pins()
    met = [pins.meet(server_of(authority, keys[number])) for number in (1, 4, 4)]
    assert met == [None, *(key_fingerprint(keys[number].public_key()) for number in (1, 4))]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_file_is_its_owners(keys: list[PrivateKey], tmp_path: Path) -> None:
    path = tmp_path / "known_keys.txt"
    Pins(path).meet(server_of(Authority(keys[0]), keys[1]))
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o755)  # which others cannot write, either
    Pins(path)


@pytest.mark.parametrize(
    "line",
    [
        "localhost",
        "localhost 12",
        f"local host {'0' * 64}",
        "",
        f"localhost {'0' * 64} more",
        f"localhost {'A' * 64}",
        f"caf\x7f {'0' * 64}",
    ],
)
def test_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "known_keys.txt"
    path.write_text(f"localhost {'0' * 64}\n{line}\n")
    path.chmod(0o600)
    with pytest.raises(UserError, match="line 2 is not a name"):
        Pins(path)


def test_file_that_cannot_be_used_is_one_sentence(keys: list[PrivateKey], tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "latin").chmod(0o600)
    for path in (tmp_path, tmp_path / "latin"):
        with pytest.raises(UserError, match="cannot read"):
            Pins(path)
    pins = Pins(tmp_path / "missing" / "known_keys.txt")
    with pytest.raises(UserError, match="cannot write"):
        pins.meet(server_of(Authority(keys[0]), keys[1]))


def test_line_without_its_end_is_not_joined_to_the_next(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    path = tmp_path / "known_keys.txt"
    for before in ("", f"other {'0' * 64}", f"other {'0' * 64}\n"):
        path.write_text(before)
        path.chmod(0o600)
        server = server_of(Authority(keys[0]), keys[1])
        Pins(path).meet(server)
        Pins(path).check_key(server)
        assert len(path.read_text().splitlines()) == (2 if before else 1)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_file_that_others_can_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "known_keys.txt"
    path.write_text(f"localhost {'0' * 64}\n")
    path.chmod(mode)
    with pytest.raises(UserError, match="others can write"):
        Pins(path)


# Servers and members ------------------------------------------------------------------------------


def test_server_with_another_key_is_refused_before_it_is_told_anything(
    house: House, keys: list[PrivateKey]
) -> None:
    pins = Pins()
    pins.meet(server_of(house.authority, keys[4]))
    client = house.client(pins=pins)
    with pytest.raises(OtherKey) as caught, client:
        pass
    own = key_fingerprint(keys[1].public_key())
    assert f"another key than the one we know: {own}" in explain(caught.value)
    assert house.await_record(lambda record: record.what == "end").detail.got == "bad-cert"
    with pytest.raises(OtherKey), house.client(pins=pins):  # it was not learnt from the refusal
        pass


@pytest.mark.slow
def test_server_is_new_once(house: House) -> None:
    pins = Pins()
    for is_first in (True, False):
        with house.client(pins=pins) as client:
            assert client.is_first_meeting is is_first


@pytest.mark.slow
def test_member_with_another_key_is_told_of_and_let_in(house: House) -> None:
    pins = Pins()
    shown: list[str] = []
    for key in (3, 4, 4):
        with house.client(pins=pins) as alice, house.client(BOB, key) as bob:
            for client, name in ((alice, ALICE), (bob, BOB)):
                if shown or key != 3:
                    client.log_in(name, PASSWORDS[name])
                else:
                    client.register(name, name.partition("@")[0], PASSWORDS[name])
            alice.join()
            bob.join()
            event = alice.hear(LIMIT_S)
            assert isinstance(event, Joined)
            Talk(alice, shown.append).tell(event)
    renewed = key_fingerprint(house.keys[4].public_key())
    warning = f"[!] {BOB} has another key than before, {renewed}; ask whether it is theirs"
    joined = f"[*] {BOB} joined"
    assert shown == [joined, joined, warning, joined]


@pytest.mark.slow
def test_member_who_is_there_already_is_told_of_too(house: House, keys: list[PrivateKey]) -> None:
    pins = Pins()
    pins.meet(house.party("client", BOB, 4).identity)
    shown: list[str] = []
    with house.member(BOB, 3), house.member(pins=pins) as alice:
        tell_doubts(alice, shown.append)
        tell_doubts(alice, shown.append)
    assert [line.partition(" has ")[0] for line in shown] == [f"[!] {BOB}"]


# The program --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_second_certificate_of_a_server_has_to_be_accepted(
    keys: list[PrivateKey], tmp_path: Path
) -> None:
    typed = Typed(keys, tmp_path)
    certs = tmp_path / "certs"
    first = key_fingerprint(keys[1].public_key())
    second = key_fingerprint(keys[4].public_key())
    with typed.server() as port:
        assert f"from now on its key must be {first}" in typed.client(port, "").stdout
        assert "from now on" not in typed.client(port, "").stdout
    assert f"our key is {first}" in typed.errors
    own = Authority(keys[0]).issue("server", SERVER, keys[4], now=utc_now())
    (certs / "server_cert.pem").write_text(own.pem)
    (certs / "server_private_key.pem").unlink()
    write_private(certs / "server_private_key.pem", keys[4])
    with typed.server() as port:
        refused = typed.client(port, "")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert second in refused.stderr
        assert typed.client(port, "", "--pin", first).returncode == 1
        assert typed.client(port, "", "--pin", "abc").returncode == 2
        accepted = typed.client(port, "", "--pin", second.upper())
        assert "[*] connected to localhost" in accepted.stdout
        assert "[*] connected to localhost" in typed.client(port, "").stdout
