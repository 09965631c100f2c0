"""node.py as a person runs it: processes, signals, exit codes, a terminal. All of it is slow."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from companions.asymmetric import PrivateKey, write_private
from companions.peer_messaging.identity import grouped, known_peers, load_identity
from companions.peer_messaging.node import main
from program import end_signals
from tests.companions.peers_helpers import (
    ANOTHER_PART,
    ONE_PART,
    flood,
    greet,
    ours_alone,
    reset,
    wait_for_hello,
)
from tests.network import free_port
from tests.programs import ROOT, Program, posix_only, run, run_here, run_in_shell, write

MODULE = "companions.peer_messaging.node"
HOST = "127.0.0.1"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(ours_alone.__name__)]


class Pair:
    """Folders with keys for alice, bob and mallory, and a port for each of two nodes."""

    def __init__(self, folder: Path, keys: Sequence[PrivateKey]) -> None:
        self.folder = folder
        for name, key in zip(("alice", "bob", "mallory"), keys):
            (folder / name).mkdir()
            write_private(folder / name / "identity.pem", key)
        self.ports = {"alice": free_port(), "bob": free_port()}

    def words(self, name: str, *flags: object, folder: str = "") -> list[str]:
        peer = {"alice": "bob", "bob": "alice"}[name]
        return [
            "-m",
            MODULE,
            str(self.folder / (folder or name)),
            "--port",
            str(self.ports[name]),
            "--peer",
            peer,
            "--at",
            f"{HOST}:{self.ports[peer]}",
            *map(str, flags),
        ]

    def start(self, name: str, *flags: object, folder: str = "") -> Program:
        return Program(*self.words(name, *flags, folder=folder))

    @contextlib.contextmanager
    def both(self) -> Iterator[tuple[Program, Program]]:
        with self.start("alice") as alice, self.start("bob") as bob:
            alice.wait_for("bob is here")
            bob.wait_for("alice is here")
            yield alice, bob

    def fingerprint(self, name: str) -> str:
        return load_identity(self.folder / name, input)[0].fingerprint


@pytest.fixture
def pair(tmp_path: Path, keys: Sequence[PrivateKey]) -> Pair:
    return Pair(tmp_path, keys)


def close(program: Program) -> None:
    assert program.process.stdin
    program.process.stdin.close()


# Meeting and talking ------------------------------------------------------------------------------


def test_two_strangers_meet_talk_and_leave_and_know_each_other_afterwards(tmp_path: Path) -> None:
    pair = Pair(tmp_path, [])  # they make their own keys
    with pair.both() as (alice, bob):
        for program, name, peer in ((alice, "alice", "bob"), (bob, "bob", "alice")):
            program.wait_for(f"^. a new key is in .*{name}|identity.pem; keep it secret")
            assert grouped(pair.fingerprint(name)) in program.lines["out"], "our own"
            program.wait_for("here for the first time")
            program.wait_for(grouped(pair.fingerprint(peer)))
            program.wait_for("From now on no other is accepted: line 1 of")
            assert known_peers(tmp_path / name / "known_peers") == {peer: pair.fingerprint(peer)}
            if os.name == "posix":
                for file in ("identity.pem", "known_peers"):
                    assert (tmp_path / name / file).stat().st_mode & 0o777 == 0o600
        write(alice, "hello \x1b[2J bob\n")
        assert bob.wait_for("^alice: ") == "alice: hello \\x1b[2J bob"
        write(bob, "hello alice\n")
        assert alice.wait_for("^bob: ") == "bob: hello alice"
        close(bob)
        assert bob.finish() == 0
        alice.wait_for("bob has left")
        close(alice)
        assert alice.finish() == 0
        assert alice.lines["err"] == bob.lines["err"] == []
        assert alice.lines["out"][-1] == "* over: 1 sent, 1 received"
        assert max(map(len, alice.lines["out"] + bob.lines["out"])) <= 80
    with pair.both() as (alice, bob):
        alice.wait_for("bob is known: line 1 of")
        assert "!!!" not in "\n".join(alice.lines["out"] + bob.lines["out"])


def test_a_file_of_texts_arrives_whole_and_in_order_before_the_end(pair: Pair) -> None:
    texts = [f"text {n} {'x' * (n % 50)}!" for n in range(3_000)]
    with pair.start("bob") as bob:
        done = run(*pair.words("alice"), given="\n".join(texts))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("* over: 3000 sent, 0 received\n")
        bob.wait_for("alice has left")
        seen = [line for line in bob.lines["out"] if line.startswith("alice: ")]
        assert seen == [f"alice: {text}" for text in texts]


def test_who_says_something_to_nobody_is_told(pair: Pair) -> None:
    done = run(*pair.words("alice", "--patience", 0.3), given="one\ntwo\n")
    assert done.returncode == 1
    assert "* bob is not here; text 1, and what follows it, waits" in done.stdout
    assert done.stderr == "node: 2 texts have no receipt, and may not have arrived\n"


def test_a_text_that_is_too_long_is_told_and_the_others_arrive(pair: Pair) -> None:
    with pair.start("bob") as bob:
        done = run(*pair.words("alice"), given="one\n" + "\u4f60" * 1_366 + "\nthree\n")
        assert done.returncode == 1
        assert "* not sent: a text has 1 to 4,096 bytes, and this one 4,098\n" in done.stdout
        bob.wait_for("^alice: three")
        assert done.stderr == "node: 1 text has no receipt, and may not have arrived\n"


def test_a_pin_given_beforehand_needs_no_comparing(pair: Pair) -> None:
    pins = {name: grouped(pair.fingerprint(name)) for name in ("alice", "bob")}
    with (
        pair.start("alice", "--pin", pins["bob"], "--pinned-only") as alice,
        pair.start("bob", "--pin", pins["alice"], "--pinned-only") as bob,
    ):
        alice.wait_for(r"^\* bob is here")
        bob.wait_for(r"^\* alice is here")
        assert "!!!" not in "\n".join(alice.lines["out"] + bob.lines["out"])


def test_ipv6_addresses_are_understood(pair: Pair) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    with contextlib.ExitStack() as stack:
        programs = {}
        for name, peer in (("alice", "bob"), ("bob", "alice")):
            programs[name] = stack.enter_context(
                pair.start(name, "--host", "::1", "--at", f"[::1]:{pair.ports[peer]}")
            )
        programs["alice"].wait_for("bob is here")


def test_a_full_inbox_whose_connection_is_reset_crashes_no_node(pair: Pair) -> None:
    """With ZeroMQ's heartbeats, libzmq 4.3.5 aborts as soon as the next one is due."""
    with pair.start("alice") as alice:
        alice.wait_for("listening")
        stranger = socket.create_connection((HOST, pair.ports["alice"]))
        greet(stranger, b"PUSH")
        for _ in flood(stranger, 99_999 * ANOTHER_PART + ONE_PART, 10_000_000, 3.0):
            pass
        reset(stranger)
        with pair.start("bob"):
            alice.wait_for("bob is here")


def test_a_full_outbox_whose_connection_is_reset_crashes_no_node(pair: Pair) -> None:
    with socket.create_server((HOST, pair.ports["bob"])) as listener, pair.start("alice") as alice:
        stranger, _ = listener.accept()
        greet(stranger, b"PULL")
        wait_for_hello(stranger)
        for _ in flood(stranger, ONE_PART, 20_000, 3.0):
            pass
        reset(stranger)
        listener.close()
        with pair.start("bob"):
            alice.wait_for("bob is here")


# Coming and going ---------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize("number", end_signals())
def test_a_node_that_is_stopped_says_goodbye(pair: Pair, number: signal.Signals) -> None:
    with pair.both() as (alice, bob):
        alice.process.send_signal(number)
        assert alice.finish() == 128 + number
        bob.wait_for(r"^\* alice has left")
        assert alice.lines["err"] == []


@contextlib.contextmanager
def stalled(pair: Pair) -> Iterator[tuple[subprocess.Popen[bytes], Program]]:
    """Alice has far more to show than a pipe holds, and nobody reads it."""
    with (
        pair.start("bob", "--verbose") as bob,
        subprocess.Popen(
            [sys.executable, *pair.words("alice")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as alice,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(alice.kill)
        bob.wait_for("alice is here")
        write(bob, f"{'x' * 4_096}\n" * 99)
        bob.wait_for("text 99, .* has arrived")
        yield alice, bob


@posix_only
@pytest.mark.parametrize("number", end_signals())
def test_the_second_signal_ends_a_node_whose_output_nobody_reads(
    pair: Pair, number: signal.Signals
) -> None:
    with stalled(pair) as (alice, _):
        alice.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            alice.wait(0.5)  # it has to show all that first
        for _ in range(20):  # of two that come too close, a system may drop one
            alice.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                alice.wait(0.5)
                break
        assert alice.poll() == -number


@posix_only
def test_the_first_signal_is_enough_once_somebody_reads_again(pair: Pair) -> None:
    with stalled(pair) as (alice, bob):
        alice.send_signal(signal.SIGINT)
        out, _ = alice.communicate(timeout=30)
        assert alice.returncode == 130
        assert out.count(b"bob: ") == 99
        assert out.endswith(b"* over: 0 sent, 99 received\n")
        bob.wait_for("alice has left")


@posix_only
def test_ctrl_c_before_anybody_came_ends_it_too(pair: Pair) -> None:
    with pair.start("alice") as alice:
        alice.wait_for("listening")
        write(alice, "x\n")
        alice.wait_for("waits")
        alice.interrupt()
        assert alice.finish() == 130
        assert alice.lines["err"] == ["node: 1 text has no receipt, and may not have arrived"]


def test_who_is_killed_and_comes_back_is_met_again(pair: Pair) -> None:
    with pair.both() as (alice, bob):
        bob.process.kill()
        bob.finish()
        write(alice, "are you there?\n")
        with pair.start("bob") as bob:
            alice.wait_for("a new session with bob has begun")
            alice.wait_for('text 1, "are you there\\?", is unconfirmed')
            write(alice, "again\n")
            bob.wait_for("^alice: again")
            write(bob, "yes\n")
            alice.wait_for("^bob: yes")
            close(alice)
            assert alice.finish() == 1, "one text has no receipt"
            assert "are you there" not in "\n".join(bob.lines["out"])


@posix_only
def test_who_is_silent_is_away_and_may_come_back(pair: Pair) -> None:
    with pair.both() as (alice, bob):
        bob.process.send_signal(signal.SIGSTOP)
        alice.wait_for("bob is away")
        write(alice, "wait for me\n")
        alice.wait_for("text 1, and what follows it, waits")
        bob.process.send_signal(signal.SIGCONT)
        alice.wait_for("bob is here again")
        bob.wait_for("^alice: wait for me")
        close(alice)
        assert alice.finish() == 0


def test_another_key_is_refused_until_a_person_mends_it(pair: Pair) -> None:
    with pair.both() as (alice, bob):
        close(bob)
        assert bob.finish() == 0
        alice.wait_for("bob has left")
        with pair.start("bob", folder="mallory") as bob:
            alice.wait_for(
                f"SOMEBODY SHOWS ANOTHER KEY FOR bob: {grouped(pair.fingerprint('mallory')[:16])} "
            )
            write(bob, "it is me, bob\n")
            write(alice, "the door code is 4711\n")
            alice.wait_for("bob is not here; text 1")
            bob.wait_for("alice is not here; text 1")
            alice.process.terminate()
            alice.finish()
            assert sum("SOMEBODY" in line for line in alice.lines["out"]) == 1
            assert not [line for line in alice.lines["out"] if line.startswith("bob: ")]
            (pair.folder / "alice" / "known_peers").unlink()  # its only line
            with pair.start("alice", "--pin", pair.fingerprint("mallory")) as alice:
                alice.wait_for("^bob: it is me, bob")


def test_a_folder_that_goes_away_ends_the_node_in_a_sentence(pair: Pair) -> None:
    with pair.start("alice") as alice:
        alice.wait_for("listening")
        (pair.folder / "alice").rename(pair.folder / "moved")
        with pair.start("bob"):
            assert alice.finish() == 2
        assert len(alice.lines["err"]) == 1
        assert re.match(r"node.py: cannot write .*known_peers: No such file", alice.lines["err"][0])


def test_who_talks_to_themselves_is_told(pair: Pair) -> None:
    with pair.start("alice", "--at", f"{HOST}:{pair.ports['alice']}") as alice:
        alice.wait_for("refused: our own key. Either --at leads to this node itself")


def test_noise_is_counted_or_told(pair: Pair) -> None:
    with (
        zmq.Context() as context,
        pair.start("alice", "--verbose") as alice,
        pair.start("bob") as bob,
        context.socket(zmq.PUSH) as push,
    ):
        for program, peer in ((alice, "bob"), (bob, "alice")):
            program.wait_for(f"{peer} is here")
        for name in pair.ports:
            push.connect(f"tcp://{HOST}:{pair.ports[name]}")
        for noise in (b"", b"\x05", bytes([5]) * 46, bytes(4_142), b"\x01" * 749) * 2:
            push.send(noise)
        alice.wait_for("^. refused: MalformedMessage")
        write(alice, "still there?\n")
        bob.wait_for("^alice: still there")
        close(alice)
        close(bob)
        assert (alice.finish(), bob.finish()) == (0, 0)
        bob.wait_for(r"^\* messages refused: ")
        assert not [line for line in bob.lines["out"] if "refused: Malformed" in line]


# What can go wrong at the start: {tmp} is the folder of folders, {taken} a port -------------------

CASES = {
    "a taken port": ("{tmp}/alice --port {taken} --peer bob --at h:1", 2, "no host named 'h'"),
    "a taken port, and a host": (
        "{tmp}/alice --port {taken} --peer bob --at 127.0.0.1:1",
        3,
        "cannot listen on 127.0.0.1 port .*in use",
    ),
    "host of nobody": (
        "{tmp}/alice --port 0 --host 192.0.2.1 --peer bob --at 127.0.0.1:1",
        3,
        "cannot listen on 192.0.2.1 port 0: ",
    ),
    "a file for a folder": ("{tmp}/file --peer bob --at 127.0.0.1:1", 2, "file/identity.pem"),
    "a key that is none": ("{tmp}/noise --peer bob --at 127.0.0.1:1", 2, "it is not a private key"),
    "known_peers that are none": (
        "{tmp}/odd --port 0 --peer bob --at 127.0.0.1:1",
        2,
        "known_peers line 2 is not a name and 64 hex digits",
    ),
    "another pin": (
        "{tmp}/alice --port 0 --peer bob --at 127.0.0.1:1 --pin " + "0" * 64,
        2,
        "line 1 of .* has another key for bob",
    ),
    "nobody pinned": (
        "{tmp}/alice --port 0 --peer carol --at 127.0.0.1:1 --pinned-only",
        2,
        "carol is not in .* add --pin",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_a_sentence(
    pair: Pair, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    for folder in ("noise", "odd"):
        (pair.folder / folder).mkdir()
    (pair.folder / "file").touch()
    (pair.folder / "noise" / "identity.pem").write_bytes(b"noise")
    (pair.folder / "noise" / "identity.pem").chmod(0o600)
    (pair.folder / "odd" / "known_peers").write_text(f"carol {'a' * 64}\nbob {'b' * 63}\n")
    (pair.folder / "odd" / "identity.pem").write_bytes(
        (pair.folder / "alice" / "identity.pem").read_bytes()
    )
    (pair.folder / "odd" / "identity.pem").chmod(0o600)
    (pair.folder / "alice" / "known_peers").write_text(f"bob {'a' * 64}\n")
    line, code, why = CASES[name]
    with socket.create_server((HOST, 0)) as listener:
        words = line.format(tmp=pair.folder, taken=listener.getsockname()[1]).split()
        done = run_here(main, capfd, "node.py", *words)
    assert done.returncode == code, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(f"^node.py: .*{why}", done.stderr), done.stderr


# Its input and output -----------------------------------------------------------------------------


@posix_only
def test_nobody_reads_the_output_or_there_is_no_input(pair: Pair) -> None:
    with pair.start("bob"):
        for redirection, codes in (
            ("< /dev/null | head -1 >&2; exit ${PIPESTATUS[0]}", (141, 0)),
            ("< /dev/null >&- 2>&-", (0,)),
            ("<&-", (0,)),
            ("< /dev/null > /dev/full", (2,)),
            ("<<< hello", (0,)),
            ("<<< hello 2> /dev/full", (0,)),
        ):
            done = run_in_shell(pair.words("alice"), redirection)
            assert done.returncode in codes, (redirection, done)
            assert "Traceback" not in done.stderr, (redirection, done.stderr)
            assert "Fatal" not in done.stderr, (redirection, done.stderr)


def test_the_word_quit_in_piped_lines_is_a_text(pair: Pair) -> None:
    with pair.both() as (alice, bob):
        write(alice, "one\nquit\nthree\n")
        close(alice)
        assert alice.finish() == 0
        assert alice.lines["out"][-1] == "* over: 3 sent, 0 received"
        bob.wait_for("^alice: three")
        assert "alice: quit" in bob.lines["out"]


@posix_only
@pytest.mark.parametrize(("ending", "code"), [("quit\r", 1), ("\x04", 1), ("\x03", 130)])
def test_at_a_terminal(pair: Pair, ending: str, code: int) -> None:
    """One of the texts is too long to be sent, so the exit code is 1."""
    pexpect = pytest.importorskip("pexpect")
    with pair.start("bob") as bob:
        child = pexpect.spawn(
            sys.executable,
            pair.words("alice"),
            cwd=str(ROOT),
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            encoding="utf-8",
            dimensions=(24, 60),
            timeout=30,
        )
        child.expect_exact("\x1b[1m!!! bob is here")
        child.send("t\u00fc")
        write(bob, "hello\n")
        child.expect("bob: hello")
        child.send("r\r")
        bob.wait_for("^alice: t\u00fcr$")
        child.send("\x1b[200~" + "x" * 4_096 + "\nsecond\x1b[201~\r")
        bob.wait_for("^alice: second$")
        assert sum(line.count("x") for line in bob.lines["out"] if "xxx" in line) == 4_096
        child.send("\x1b[200~" + "x" * 5_000 + "\x1b[201~\r")
        child.expect("a text has 1 to 4,096 bytes, and this one")
        child.send(ending)
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == code
        bob.wait_for("alice has left")


def test_an_encrypted_key_needs_somebody_who_types(pair: Pair, keys: Sequence[PrivateKey]) -> None:
    path = pair.folder / "alice" / "identity.pem"
    path.unlink()
    write_private(path, keys[0], "correct horse")
    done = run(*pair.words("alice"))
    assert done.returncode == 2
    assert done.stderr.endswith("the key needs a passphrase, and nobody types one\n")
