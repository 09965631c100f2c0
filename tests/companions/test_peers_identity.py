"""Who a node is, and whom it takes for its peer."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from Crypto.PublicKey import ECC, RSA

from companions.asymmetric import PrivateKey, public_pem, write_private
from companions.peer_messaging.identity import (
    KEY_BYTES,
    Identity,
    IdentityChanged,
    Trust,
    UnknownPeer,
    UnusableKey,
    fingerprint_of,
    grouped,
    known_peers,
    line_of,
    load_identity,
    peer_name,
    remember,
)
from program import UserError
from protocol_fsm import ProtocolError, WrongPeer
from tests.companions.peers_helpers import World, ours_alone
from tests.programs import posix_only, run

pytestmark = pytest.mark.usefixtures(ours_alone.__name__)


@pytest.fixture(scope="module")
def world(keys: Sequence[PrivateKey]) -> World:
    return World(keys)


def never_asked(prompt: str) -> str:
    pytest.fail(f"nobody should be asked: {prompt}")


# Identities ---------------------------------------------------------------------------------------


def test_a_fingerprint_is_sha_256_of_the_pem_in_hex(keys: Sequence[PrivateKey]) -> None:
    for key in keys:
        who = Identity(key)
        assert who.public_pem == public_pem(key.public_key())
        assert len(who.public_pem.encode()) == KEY_BYTES == 451
        assert who.fingerprint == hashlib.sha256(who.public_pem.encode()).hexdigest()
        assert who.fingerprint == fingerprint_of(who.public_pem)


def test_people_read_a_fingerprint_in_groups_of_four() -> None:
    assert grouped("0123456789abcdef" * 4) == " ".join(["0123 4567 89ab cdef"] * 4)


def test_an_identity_shows_no_key(world: World) -> None:
    assert repr(world.alice) == f"<Identity {world.alice.fingerprint[:16]}>"
    with pytest.raises(TypeError):
        pickle.dumps(world.alice)


@pytest.mark.slow
@posix_only
def test_a_new_identity_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "alice"
    who, is_new = load_identity(folder, never_asked)
    assert is_new
    assert [path.name for path in folder.iterdir()] == ["identity.pem"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "identity.pem").stat().st_mode) == 0o600
    again, is_new = load_identity(folder, never_asked)
    assert (again.fingerprint, is_new) == (who.fingerprint, False)


@pytest.mark.slow
def test_a_folder_that_is_there_already_gets_a_key(tmp_path: Path) -> None:
    who, is_new = load_identity(tmp_path, never_asked)
    assert is_new
    assert load_identity(tmp_path, never_asked)[0].fingerprint == who.fingerprint


@posix_only
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660])
def test_a_key_that_others_can_read_is_not_used(world: World, tmp_path: Path, mode: int) -> None:
    write_private(tmp_path / "identity.pem", world.alice.private_key)
    (tmp_path / "identity.pem").chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        load_identity(tmp_path, never_asked)


@pytest.mark.slow
def test_an_encrypted_key_asks_for_its_passphrase(world: World, tmp_path: Path) -> None:
    write_private(tmp_path / "identity.pem", world.alice.private_key, "swordfish")
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return ["sword", "swordfish"][len(asked) - 1]

    with pytest.raises(UserError, match="passphrase is wrong"):
        load_identity(tmp_path, ask)
    assert load_identity(tmp_path, ask)[0].fingerprint == world.alice.fingerprint
    assert all("identity.pem" in prompt for prompt in asked)


def test_a_key_that_is_none_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "identity.pem").write_bytes(b"not a key")
    (tmp_path / "identity.pem").chmod(0o600)
    with pytest.raises(UserError, match="not a private key"):
        load_identity(tmp_path, never_asked)
    assert (tmp_path / "identity.pem").read_bytes() == b"not a key"


@posix_only
def test_a_link_that_leads_nowhere_is_no_reason_for_a_new_key(tmp_path: Path) -> None:
    (tmp_path / "identity.pem").symlink_to(tmp_path / "usb-stick" / "identity.pem")
    with pytest.raises(UserError, match="cannot read the key"):
        load_identity(tmp_path, never_asked)


def test_a_folder_whose_name_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot make .*identity\.pem: "):
        load_identity(tmp_path / ("a" * 300), never_asked)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_where_no_folder_can_be_there_is_no_identity(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot make"):
        load_identity(tmp_path / "file" / inside, never_asked)


# Trust --------------------------------------------------------------------------------------------


def refusal(trust: Trust, own: Identity, pem: bytes) -> ProtocolError:
    pinned = trust.pinned
    with pytest.raises(ProtocolError) as caught:
        trust.check(own, pem)
    assert trust.pinned == pinned, "what is refused leaves no trace"
    return caught.value


def test_a_pinned_key_is_the_only_one(world: World) -> None:
    trust = Trust("bob", world.bob.fingerprint)
    assert (
        public_pem(trust.check(world.alice, world.bob.public_pem.encode())) == world.bob.public_pem
    )
    error = refusal(trust, world.alice, world.mallory.public_pem.encode())
    assert type(error) is IdentityChanged
    assert (error.expected, error.got) == (
        f"bob with {world.bob.fingerprint[:16]}",
        world.mallory.fingerprint[:16],
    )
    almost = world.bob.fingerprint[:-1] + ("0" if world.bob.fingerprint[-1] != "0" else "1")
    refused = refusal(Trust("bob", almost), world.alice, world.bob.public_pem.encode())
    assert type(refused) is IdentityChanged, "all 64 digits count"


def test_the_first_key_is_taken_and_after_it_no_other(world: World) -> None:
    kept: list[str] = []
    trust = Trust("bob", keep=kept.append)
    for who in (world.mallory, world.bob):  # to be checked pins nothing
        trust.check(world.alice, who.public_pem.encode())
    assert (trust.pinned, kept) == ("", [])
    assert trust.pin(world.bob.public_pem)
    assert trust.pinned == world.bob.fingerprint
    assert not trust.pin(world.bob.public_pem), "it is known by now"
    assert not trust.pin(world.mallory.public_pem)
    assert (trust.pinned, kept) == (world.bob.fingerprint, [world.bob.fingerprint])
    assert type(refusal(trust, world.alice, world.mallory.public_pem.encode())) is IdentityChanged


def test_a_trust_that_nobody_keeps_is_one_too(world: World) -> None:
    assert Trust("bob").pin(world.bob.public_pem)


def test_where_only_pinned_keys_are_taken_the_first_is_not(world: World) -> None:
    error = refusal(Trust("bob", first_use=False), world.alice, world.bob.public_pem.encode())
    assert type(error) is UnknownPeer
    assert error.got == world.bob.fingerprint[:16]
    trust = Trust("bob", world.bob.fingerprint, first_use=False)
    assert trust.check(world.alice, world.bob.public_pem.encode())


@pytest.mark.parametrize("pinned", ["", "alice", "bob"])
def test_our_own_key_is_nobody_elses_whatever_is_pinned(world: World, pinned: str) -> None:
    names = {"": "", "alice": world.alice.fingerprint, "bob": world.bob.fingerprint}
    for first_use in (True, False):
        trust = Trust("bob", names[pinned], first_use=first_use)
        assert type(refusal(trust, world.alice, world.alice.public_pem.encode())) is WrongPeer


@pytest.mark.slow
def test_what_is_no_key_of_ours_is_unusable(world: World) -> None:
    pem = world.bob.public_pem
    others = [
        RSA.generate(1_024).public_key().export_key("PEM") + b"\n",
        ECC.generate(curve="P-256").public_key().export_key(format="PEM").encode(),
        RSA.construct((RSA.import_key(pem).n, 3)).export_key("PEM") + b"\n",
    ]
    for bad in (
        b"",
        b"\xff" * 451,
        bytes(451),
        pem.encode()[:-1],
        pem.encode() + b"\n",
        pem.replace("\n", "\r\n").encode(),
        pem.lower().encode(),
        pem.replace("PUBLIC", "PRIVATE").encode(),
        *others,
    ):
        error = refusal(Trust("bob"), world.alice, bad)
        assert type(error) is UnusableKey, bad
        assert error.farewell == b""
    assert Trust("bob").check(world.alice, pem.encode())


# The file -----------------------------------------------------------------------------------------

ONE = "1" * 64
TWO = "0123456789abcdef" * 4
ABC = "fedcba9876543210" * 4


def test_no_file_knows_nobody(tmp_path: Path) -> None:
    assert known_peers(tmp_path / "known_peers") == {}
    assert known_peers(tmp_path / "nowhere" / "known_peers") == {}


@posix_only
def test_whom_we_remember_we_know(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    remember(path, "bob", ONE)
    remember(path, "bob@home:5555", TWO)
    assert path.read_text() == f"bob {ONE}\nbob@home:5555 {TWO}\n"
    assert known_peers(path) == {"bob": ONE, "bob@home:5555": TWO}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_whom_we_remember_has_a_line_of_its_own_whatever_an_editor_left(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    path.write_text(f"bob {ONE}")
    remember(path, "carol", TWO)
    assert path.read_bytes() == f"bob {ONE}\ncarol {TWO}\n".encode()


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    path.write_bytes(b"\xef\xbb\xbf" + f"bob {ONE} # a\u2028b\n".encode())
    remember(path, "carol", TWO)
    assert known_peers(path) == {"bob": ONE, "carol": TWO}


@pytest.mark.slow
def test_names_are_written_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    code = (
        "import sys; from pathlib import Path; from companions.peer_messaging import identity; "
        "identity.remember(Path(sys.argv[1]), 'b\\xfcro \\u4f60', '1' * 64)"
    )
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("-c", code, path, env=env)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == f"b\u00fcro \u4f60 {ONE}\n".encode()


def test_whom_we_cannot_remember_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        remember(tmp_path / "nowhere" / "known_peers", "bob", ONE)


@pytest.mark.parametrize("name", ["b", "x" * 64, "büro", "[::1]:5555"])
def test_a_name_is_1_to_64_letters_of_any_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "known_peers").write_text(f"{name} {TWO}", "utf-8")
    assert known_peers(tmp_path / "known_peers") == {name: TWO}


NFC = "m\u00fcller"
NFD = "mu\u0308ller"


@pytest.mark.parametrize("name", [NFC, NFD])
def test_one_name_written_in_two_ways_is_one_peer(tmp_path: Path, name: str) -> None:
    """A keyboard and a file name may differ in how they write a letter with an accent."""
    path = tmp_path / "known_peers"
    path.write_text(f"{name} {ONE}\n", "utf-8")
    assert known_peers(path) == {NFC: ONE}
    assert peer_name(NFC) == peer_name(NFD) == NFC
    assert line_of(path, peer_name(NFD)) == 1
    remember(path, peer_name(NFD), ONE)
    assert len(path.read_text("utf-8").splitlines()) == 1
    path.write_text(f"{NFC} {ONE}\n{NFD} {TWO}\n", "utf-8")
    with pytest.raises(UserError, match=f"has {NFC} twice, in line 1 and 2"):
        known_peers(path)


@pytest.mark.parametrize(
    "line",
    [
        f"bob {ABC}",
        f"bob  {ABC}",
        f" bob\t{ABC} ",
        f"bob {ABC.upper()}",
        f"bob {grouped(ABC)}",
        f"bob\u00a0{ABC}",
        f"bob {ABC} # since May",
        f"bob {ABC}#",
    ],
)
def test_a_line_may_be_written_as_people_write(tmp_path: Path, line: str) -> None:
    path = tmp_path / "known_peers"
    path.write_text(f"# whom we know\n{line}\n  # and nobody else\n#carol {ONE}\n", "utf-8")
    assert known_peers(path) == {"bob": ABC}
    assert line_of(path, "bob") == 2
    assert line_of(path, "carol") is None


@pytest.mark.parametrize(
    "line",
    [
        "bob",
        f" {TWO}",
        f"bob {TWO[:-1]}",
        f"bob {TWO}0",
        f"bob {'g' * 64}",
        f"bob # {TWO}",
        f"a b {TWO}",
        f"{'x' * 65} {TWO}",
        f"b\x1bob {TWO}",
        f"bob {TWO} alice {TWO}",
    ],
)
def test_a_line_that_is_not_a_name_and_a_fingerprint_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "known_peers"
    path.write_text(f"alice {ONE}\n{line}\ncarol {ONE}\n", "utf-8")
    with pytest.raises(UserError, match="known_peers line 2 is not a name and 64 hex digits"):
        known_peers(path)
    assert line_of(path, "alice") is None


@pytest.mark.parametrize("digits", [ONE, TWO])
def test_a_second_line_for_a_name_is_refused(tmp_path: Path, digits: str) -> None:
    """Nobody should have to guess which of the two counts."""
    path = tmp_path / "known_peers"
    path.write_text(f"alice {ONE}\n\nalice {digits}\n")
    with pytest.raises(UserError, match="has alice twice, in line 1 and 3"):
        known_peers(path)


def test_empty_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    path.write_text(f"\nbob {ONE}\n\n \t\r\ncarol {TWO}\n\n", "utf-8")
    assert known_peers(path) == {"bob": ONE, "carol": TWO}
    assert line_of(path, "carol") == 5
    path.write_text(f"\n \nbob {ONE} dave\n", "utf-8")
    with pytest.raises(UserError, match="known_peers line 3 is not a name and 64 hex digits"):
        known_peers(path)


# Full disks ---------------------------------------------------------------------------------------

FULL = """
import resource, sys
sys.dont_write_bytecode = True
from pathlib import Path
from companions.peer_messaging import identity
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    {call}
except (identity.UserError, OSError) as error:
    print(error)
"""


def on_a_full_disk(call: str, folder: Path, room: int) -> str:
    """Return the error of a call in a process none of whose files can outgrow `room` bytes."""
    done = run("-c", FULL.format(call=call), folder, room)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("room", [0, 100])
def test_a_key_for_which_there_is_no_room_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    said = on_a_full_disk("identity.load_identity(Path(sys.argv[1]), input)", tmp_path, room)
    assert said.startswith("cannot make ")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("room", [0, 10])
def test_a_peer_for_whom_there_is_no_room_leaves_the_others(tmp_path: Path, room: int) -> None:
    path = tmp_path / "known_peers"
    path.write_text(f"bob {ONE}")
    call = f"identity.remember(Path(sys.argv[1]), 'carol', {TWO!r})"
    assert on_a_full_disk(call, path, path.stat().st_size + room)
    assert path.read_text() == f"bob {ONE}"
    remember(path, "carol", TWO)
    assert known_peers(path) == {"bob": ONE, "carol": TWO}


@pytest.mark.slow
@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_nodes_that_begin_at_once_one_has_the_key(
    monkeypatch: pytest.MonkeyPatch, keys: Sequence[PrivateKey], tmp_path: Path, has_links: bool
) -> None:
    def another_was_faster() -> PrivateKey:
        write_private(tmp_path / "identity.pem", keys[0])
        return keys[1]

    if has_links:
        monkeypatch.setattr("companions.peer_messaging.identity.new_identity", another_was_faster)
        with pytest.raises(UserError, match="exists"):
            load_identity(tmp_path, never_asked)
    else:
        monkeypatch.delattr(os, "link")
        assert load_identity(tmp_path, never_asked)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["identity.pem"]
    assert not load_identity(tmp_path, never_asked)[1]


@posix_only
@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022])
@pytest.mark.parametrize("name", ["alice", "alice/known_peers"])
def test_what_others_can_write_says_nothing_about_anybody(
    tmp_path: Path, name: str, mode: int
) -> None:
    path = tmp_path / "alice" / "known_peers"
    own = tmp_path / name
    path.parent.mkdir()
    path.write_text(f"bob {ONE}\n")
    own.chmod(own.stat().st_mode | 0o755)
    assert known_peers(path) == {"bob": ONE}, "others may read it"
    own.chmod(own.stat().st_mode | mode)
    for use in (known_peers, lambda path: remember(path, "carol", TWO)):
        with pytest.raises(UserError, match=f"^others can write {own}; .*: chmod go-w {own}$"):
            use(path)
    assert path.read_text() == f"bob {ONE}\n"
    own.chmod(own.stat().st_mode & ~0o022)  # as the sentence says
    assert known_peers(path) == {"bob": ONE}


@posix_only
def test_a_folder_that_others_can_write_may_have_had_a_file_that_they_took(tmp_path: Path) -> None:
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice").chmod(0o777)
    with pytest.raises(UserError, match=r"others can write .*alice; make it yours"):
        known_peers(tmp_path / "alice" / "known_peers")


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link that leads nowhere": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "a link that leads to itself": (lambda path: path.symlink_to(path), "Too many levels"),
    "a FIFO": (lambda path: os.mkfifo(path, 0o600), "it is not a regular file"),
    "a folder": (lambda path: path.mkdir(), "it is not a regular file"),
}


@posix_only
@pytest.mark.parametrize("place", PLACES)
def test_what_stands_in_the_place_of_the_file_is_refused_at_once(
    tmp_path: Path, place: str
) -> None:
    """It never means that nobody is known, and nobody waits for somebody to write into a FIFO."""
    path = tmp_path / "known_peers"
    told: list[str] = []
    make, why = PLACES[place]
    make(path)

    def try_both() -> None:
        for use in (known_peers, lambda path: remember(path, "bob", ONE)):
            with pytest.raises(UserError) as caught:
                use(path)
            told.append(str(caught.value))

    thread = threading.Thread(target=try_both, daemon=True)
    thread.start()
    thread.join(5.0)
    assert len(told) == 2, "it is refused, and soon"
    assert told[0] == told[1]
    assert told[0].startswith(f"cannot read {path}: {why}")


@posix_only
def test_a_link_to_a_file_of_ours_will_do(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(f"bob {ONE}\n")
    (tmp_path / "known_peers").symlink_to(tmp_path / "elsewhere")
    assert known_peers(tmp_path / "known_peers") == {"bob": ONE}


def test_what_we_know_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "known_peers"
    for _ in range(2):
        remember(path, "bob", ONE)
    remember(path, "carol", ONE)
    assert path.read_text() == f"bob {ONE}\ncarol {ONE}\n"


def test_who_has_a_key_gets_no_second_one(tmp_path: Path) -> None:
    """Two nodes with one folder, both before their first contact."""
    path = tmp_path / "known_peers"
    remember(path, "bob", ONE)
    with pytest.raises(UserError, match=r"^another program has just put another key for bob"):
        remember(path, "bob", TWO)
    assert path.read_text() == f"bob {ONE}\n"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"b\xfcro " + TWO.encode())
    for name in ("folder", "latin"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            known_peers(tmp_path / name)


@posix_only
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_is_locked_away_is_told(tmp_path: Path) -> None:
    (tmp_path / "known_peers").write_text(f"bob {TWO}\n")
    (tmp_path / "known_peers").chmod(0)
    with pytest.raises(UserError, match="cannot read"):
        known_peers(tmp_path / "known_peers")
