"""server.py and device.py as a person runs them: processes, signals, exit codes, disks, memory.

The default run has one story; what takes its time, and kills or fills something, is slow.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from companions.asymmetric import PrivateKey
from companions.device_transfer import ca
from companions.device_transfer.certificates import Role, load_identity, load_trust, utc_now
from companions.device_transfer.device import main as device_main
from companions.device_transfer.protocol import Kind, PeerFailed, Session
from companions.device_transfer.server import main as server_main
from program import end_signals
from tests.companions.network import Raw, files_in, raw_server
from tests.network import PATIENCE_S, free_port
from tests.programs import ROOT, Done, Program, posix_only, run, run_here, run_in_shell

MODULE = "companions.device_transfer."
proc_only = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured in /proc")
PASSPHRASE = "correct horse \u00fc"


@pytest.fixture(scope="module")
def known_keys(keys: list[PrivateKey]) -> Iterator[None]:
    """The authority makes no keys here, which takes its time."""
    supply = itertools.cycle(keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ca, "new_identity", lambda: next(supply))
        yield


def authority_with_two(folder: Path) -> Path:
    ca.create(folder)
    ca.issue(folder, "home", Role.SERVER)
    ca.issue(folder, "phone", Role.DEVICE)
    return folder


@pytest.fixture(scope="module")
def pki(known_keys: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and whom it knows; `elsewhere` beside it is another one."""
    top = tmp_path_factory.mktemp("lab")
    now = utc_now()
    day = timedelta(1)
    authority_with_two(top / "elsewhere")
    pki = authority_with_two(top / "pki")
    ca.issue(pki, "office", Role.SERVER)
    ca.issue(pki, "locked", Role.DEVICE, passphrase=PASSPHRASE)
    ca.issue(pki, "locked-home", Role.SERVER, passphrase=PASSPHRASE)
    ca.issue(pki, "old", Role.DEVICE, not_before=now - 2 * day, not_after=now - day)
    ca.issue(pki, "early", Role.DEVICE, not_before=now + day)
    ca.issue(pki, "old-home", Role.SERVER, not_before=now - 2 * day, not_after=now - day)
    ca.issue(pki, "lost", Role.DEVICE)
    ca.revoke(pki, "lost")
    for name, spoil in SPOILT.items():
        (folder := top / name).mkdir()
        for path in (pki / "phone").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
            (folder / path.name).chmod(0o600)
        spoil(folder)
    (top / "stale.json").write_bytes((top / "elsewhere" / "revocation_list.json").read_bytes())
    return pki


SPOILT: dict[str, Callable[[Path], object]] = {
    "keyless": lambda folder: (folder / "private_key.pem").unlink(),
    "bare": lambda folder: (folder / "certificate.json").unlink(),
    "alone": lambda folder: (folder / "authority.json").unlink(),
    "open": lambda folder: (folder / "private_key.pem").chmod(0o644),
    "garbled": lambda folder: (folder / "certificate.json").write_bytes(b"{}"),
    "noise": lambda folder: (folder / "private_key.pem").write_bytes(b"noise"),
}


def server_command(pki: Path, received: Path, who: str = "home") -> list[str]:
    words = f"-m {MODULE}server --port 0 --identity".split()
    return [*words, str(pki / who), "--received", str(received)]


class Running(NamedTuple):
    program: Program
    port: str
    received: Path


@contextlib.contextmanager
def serving(
    pki: Path, received: Path, *flags: object, who: str = "home", limit: str = ""
) -> Iterator[Running]:
    """Run server.py on a port of its own choice; `limit` is for ulimit."""
    arguments = [*server_command(pki, received, who), *map(str, flags)]
    with (Limited if limit else Program)(*arguments, *([limit] if limit else [])) as one:
        yield Running(one, one.wait_for(f"^{who} listens on 127").rpartition(":")[2], received)


class Limited(Program):
    """A program under a limit of ulimit, which comes last."""

    def __init__(self, *arguments: str) -> None:
        *arguments_, limit = arguments
        popen = subprocess.Popen

        def limited(command: list[str], **options: Any) -> Any:
            return popen(
                [
                    "sh",
                    "-c",
                    f'ulimit {limit}; PYTHONDONTWRITEBYTECODE=1 exec "$@"',
                    "sh",
                    *command,
                ],
                **options,
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", limited)
            super().__init__(*arguments_)


def command(
    pki: Path, port: str, *arguments: object, who: str = "phone", to: str = "home"
) -> list[str]:
    words = f"-m {MODULE}device --to {to} --port {port} --identity".split()
    return [*words, str(pki / who), *map(str, arguments)]


def device(pki: Path, port: str, *arguments: object) -> Program:
    return Program(*command(pki, port, *arguments))


def send(pki: Path, port: str, *arguments: object, who: str = "phone", to: str = "home") -> Done:
    return run(*command(pki, port, *arguments, who=who, to=to))


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


# The story


@pytest.mark.slow
def test_a_text_and_a_file_arrive_and_ctrl_c_stops_the_server(
    known_keys: None, tmp_path: Path
) -> None:
    pki = authority_with_two(tmp_path / "pki")
    (picture := tmp_path / "t\u00fcr.png").write_bytes(b"picture" * 30_000)
    with serving(pki, tmp_path / "received", "--log", tmp_path / "log") as server:
        done = send(pki, server.port, "--text", "all is well", picture)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "session with home begun",
            "text of 11 characters: acknowledged",
            "'t\\xfcr.png': 210,000 bytes acknowledged",
            "done: 2 sent and acknowledged",
        ]
        server.program.wait_for("done, 2 received", "err")
        server.program.interrupt()
        assert server.program.finish() == 0
    assert files_in(server.received) == {"t\u00fcr.png": picture.read_bytes()}
    assert server.program.lines["out"][-1] == "stopped"
    assert (tmp_path / "log").read_text().splitlines() == server.program.lines["err"]
    if os.name == "posix":
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600, "texts are in it"


# What can go wrong. {pki}, {tmp}, {lab} are folders, {port} is a server's, {closed} nobody's.

CASES = {
    "no server": (
        "device --identity {pki}/phone --to home --port {closed} --text x",
        3,
        "no server at 127.0.0.1:.*refused",
    ),
    "no identity": (
        "device --identity {tmp}/none --to home --text x",
        2,
        "cannot read .*none.*: No such file",
    ),
    "no key": ("device --identity {lab}/keyless --to home --text x", 2, "cannot read the key"),
    "no certificate": (
        "device --identity {lab}/bare --to home --text x",
        2,
        "cannot read .*certificate.json: No such",
    ),
    "no authority": (
        "device --identity {lab}/alone --to home --text x",
        2,
        "cannot read .*authority.json: No such",
    ),
    "a certificate that is none": (
        "device --identity {lab}/garbled --to home --text x",
        2,
        "certificate.json is not a certificate",
    ),
    "a key that is none": (
        "device --identity {lab}/noise --to home --text x",
        2,
        "cannot open the key .*: it is not a private key",
    ),
    "a server as device": (
        "device --identity {pki}/home --to home --text x",
        2,
        "the certificate of home is for a server, and a device is needed here",
    ),
    "a device as server": (
        "server --identity {pki}/phone --received {tmp}/r",
        2,
        "the certificate of phone is for a device, and a server is needed here",
    ),
    "port in use": (
        "server --identity {pki}/home --port {port} --received {tmp}/r",
        3,
        "cannot listen on 127.0.0.1:.*in use",
    ),
    "host of nobody": (
        "server --identity {pki}/home --host 192.0.2.1 --received {tmp}/r",
        3,
        "cannot listen on 192.0.2.1:9998: ",
    ),
    "no such host": (
        "server --identity {pki}/home --host no.host.invalid --received {tmp}/r",
        3,
        "cannot listen on no.host.invalid:9998: ",
    ),
    "a folder that cannot be": (
        "server --identity {pki}/home --port 0 --received {tmp}/no/where",
        2,
        "cannot keep files in .*where: No such file",
    ),
    "a file for a folder": (
        "server --identity {pki}/home --port 0 --received {pki}/revocation_list.json",
        2,
        "cannot keep files in .*: ",
    ),
    "a log that cannot be": (
        "server --identity {pki}/home --port 0 --received {tmp}/r --log "
        "{pki}/revocation_list.json/where",
        2,
        "cannot log to .*where: File exists",
    ),
    "files of no bytes": (
        "server --identity {pki}/home --max-bytes 0",
        2,
        "--max-bytes: .* is not",
    ),
    "nothing to send": ("device --identity {pki}/phone --to home", 2, "nothing to send"),
    "a folder to send": ("device --identity {pki}/phone --to home {pki}", 2, "it is a folder"),
    "who is not there": (
        "device --identity {pki}/phone --to office --port {port} --text x",
        1,
        "another server is there: WrongPeer: expected office, got home",
    ),
    "another authority": (
        "device --identity {lab}/elsewhere/phone --to home --port {port} --text x",
        3,
        "in the handshake, and never says why",
    ),
    "a list of another authority": (
        "device --identity {pki}/phone --to home --port {port} --text x --revocations "
        "{lab}/stale.json",
        1,
        "no certificate is accepted without a good revocation list",
    ),
    "no list": (
        "device --identity {pki}/phone --to home --port {port} --text x --revocations {tmp}/none",
        1,
        "without a good revocation list.*No such file",
    ),
}
for who, why in (
    ("old", "CertificateExpired"),
    ("early", "CertificateNotYetValid"),
    ("lost", "CertificateRevoked"),
):
    CASES[f"{why} at the device"] = (
        f"device --identity {{pki}}/{who} --to home --port {{port}} --text x",
        3,
        "closed the connection in the handshake, and never says why",
    )
if os.name == "posix":
    CASES["a key for everybody"] = (
        "device --identity {lab}/open --to home --text x",
        2,
        "others can read the key .*chmod 600",
    )


@pytest.fixture(scope="module")
def running(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for cases that only need one to be there."""
    with serving(pki, tmp_path_factory.mktemp("shared") / "received") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_in_a_sentence(
    pki: Path, running: Running, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    line, code, why = CASES[name]
    program, *arguments = line.format(
        pki=pki, lab=pki.parent, tmp=tmp_path, port=running.port, closed=free_port()
    ).split()
    main = device_main if program == "device" else server_main
    done = run_here(main, capfd, f"{program}.py", *arguments)
    remarks = ("our own certificate", "so no device is let in")
    [said] = [
        line for line in done.stderr.splitlines() if not any(remark in line for remark in remarks)
    ]
    assert (done.returncode, done.stdout) == (code, ""), done
    assert re.search(f"^{program}(.py)?: .*{why}", said), done.stderr
    assert not list(tmp_path.glob("r/*"))


@pytest.mark.slow
def test_a_passphrase_that_nobody_types_is_a_sentence(pki: Path) -> None:
    done = send(pki, "1", "--text", "x", who="locked")
    assert done.returncode == 2
    assert done.stderr.endswith(": the key needs a passphrase, and nobody types one\n")


@pytest.mark.slow
def test_a_certificate_that_does_not_hold_is_remarked_at_home(pki: Path, running: Running) -> None:
    done = send(pki, running.port, "--text", "x", who="old")
    assert re.match(r"20\S+Z our own certificate is not valid: CertificateExpired: ", done.stderr)
    running.program.wait_for("a stranger at 127.0.0.1:.* CertificateExpired", "err")


@pytest.mark.slow
def test_a_server_with_an_old_certificate_is_refused_by_devices(pki: Path, tmp_path: Path) -> None:
    with serving(pki, tmp_path / "received", who="old-home") as server:
        server.program.wait_for("our own certificate is not valid: CertificateExpired", "err")
        done = send(pki, server.port, "--text", "x", to="old-home")
        assert done.returncode == 1
        assert "device: the server's certificate is refused: CertificateExpired" in done.stderr


@pytest.mark.slow
def test_a_revocation_needs_no_restart(pki: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_bytes((pki / "revocation_list.json").read_bytes())
    with serving(pki, tmp_path / "received", "--revocations", listed) as server:
        assert send(pki, server.port, "--text", "x").returncode == 0
        listed.unlink()
        assert send(pki, server.port, "--text", "x").returncode == 3
        server.program.wait_for("RevocationListUnusable.*No such file", "err")
        listed.write_bytes((pki / "revocation_list.json").read_bytes())
        assert send(pki, server.port, "--text", "x").returncode == 0


# Killed, interrupted, full


@posix_only
@pytest.mark.slow
def test_a_killed_device_leaves_nothing_and_a_killed_server_is_cleaned_up_after(
    pki: Path, tmp_path: Path
) -> None:
    large = sparse(tmp_path / "large.bin", 2**30)
    received = tmp_path / "received"
    with serving(pki, received) as server:
        with device(pki, server.port, large) as sender:
            server.program.wait_for("large.bin': .* MB", "err")
            sender.process.kill()
        server.program.wait_for("phone at .*ended after 0 received: connection lost", "err")
        assert not partials(received)
        with device(pki, server.port, large) as sender:
            server.program.wait_for("large.bin': .* MB", "err", count=2)
            server.program.process.kill()
            assert sender.finish() == 3
            assert sender.lines["err"][-1] == (
                "device: connection lost; what was not acknowledged may not have arrived"
            )
    assert len(partials(received)) == 1
    with serving(pki, received) as server:
        server.program.wait_for("unfinished files of an earlier server, removed: 1", "err")
        assert not files_in(received)


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("number", end_signals())
def test_a_server_that_is_stopped_tells_its_devices(
    pki: Path, tmp_path: Path, number: signal.Signals
) -> None:
    large = sparse(tmp_path / "large.bin", 2**31)
    with (
        serving(pki, tmp_path / "received") as server,
        device(pki, server.port, large) as sender,
        socket.create_connection(("127.0.0.1", int(server.port))) as stranger,
    ):
        server.program.wait_for("large.bin': .* MB", "err")
        for _ in range(3):  # more than one changes nothing
            server.program.process.send_signal(number)
        assert server.program.finish() == 0
        assert server.program.lines["out"][-1] == "stopped"
        assert sender.finish() == 1
        assert sender.lines["err"][-1].startswith(
            "device: the server ended the session; only its log"
        )
        assert stranger.recv(1) == b""
    assert not files_in(server.received)


def hears_nothing(raw: Raw, ready: Callable[[], object]) -> None:
    raw.socket.recv(1)
    ready()
    raw.rest()


def hears_a_file(raw: Raw, ready: Callable[[], object]) -> None:
    raw.answer_handshake()
    for number in itertools.count():
        if raw.receive().kind is Kind.REKEY:
            raw.send(Kind.REKEY)
        if number == 100:
            ready()


def answers_nothing(raw: Raw, ready: Callable[[], object]) -> None:
    raw.answer_handshake()
    raw.until(Kind.MANIFEST)
    ready()
    raw.receive()


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("number", end_signals())
@pytest.mark.parametrize("stage", [hears_nothing, hears_a_file, answers_nothing])
def test_an_interrupted_device_says_so(
    pki: Path,
    tmp_path: Path,
    number: signal.Signals,
    stage: Callable[[Raw, Callable[[], object]], None],
) -> None:
    identity = load_identity(pki / "home", input)
    senders: list[Program] = []
    heard: list[str] = []
    path = sparse(tmp_path / "x.bin", 10 if stage is answers_nothing else 2**33)

    def interrupt() -> None:
        while not senders:
            pass
        senders[0].process.send_signal(number)

    def play(raw: Raw) -> None:
        try:
            stage(raw, interrupt)
        except PeerFailed:
            heard.append("FAIL")
            raw.rest()

    with raw_server(lambda: Session(identity, load_trust(pki / "home")), play) as address:
        with device(pki, str(address[1]), "--timeout", 60, path) as sender:
            senders.append(sender)
            code = sender.finish()
    assert code == 128 + number
    if stage is hears_nothing:  # there is no session yet
        assert not heard
        return
    assert sender.lines["err"][-1] == (
        "device: stopped; what was not acknowledged may not have arrived"
    )
    assert heard == ["FAIL"]


@posix_only
@pytest.mark.slow
def test_a_full_disk_ends_a_session_and_not_the_server(pki: Path, tmp_path: Path) -> None:
    (small := tmp_path / "small.png").write_bytes(b"small")
    large = sparse(tmp_path / "large.bin", 3_000_000)
    with serving(pki, tmp_path / "received", limit="-f 2048") as server:  # 1 MiB, or 2
        done = send(pki, server.port, large)
        assert done.returncode == 1
        assert "the server ended the session; only its log says why" in done.stderr
        server.program.wait_for("StoreFailed: expected room for .*, got File too large", "err")
        assert send(pki, server.port, small).returncode == 0
        assert files_in(server.received) == {"small.png": b"small"}


@posix_only
@pytest.mark.slow
def test_what_no_longer_fits_into_the_journal_is_not_kept(pki: Path, tmp_path: Path) -> None:
    (small := tmp_path / "small.png").write_bytes(b"small")
    with serving(pki, tmp_path / "received", limit="-f 16") as server:  # 8 or 16 KiB
        codes = [send(pki, server.port, small).returncode for _ in range(10)]
        assert set(codes) == {0, 1}
        assert codes == sorted(codes)
        assert len(files_in(server.received)) == codes.count(0)
        server.program.wait_for("StoreFailed: expected a line in the journal, got File too", "err")
        journal = (server.received / "journal.jsonl").read_bytes()
        assert journal.endswith(b"\n")
        assert journal.count(b"\n") == codes.count(0)


# Its output


@posix_only
@pytest.mark.slow
def test_nobody_reads_the_output(pki: Path, running: Running, tmp_path: Path) -> None:
    words = [*command(pki, running.port, "--text", "a", "--text", "b")]
    for redirection, code in (
        ("| head -1 >&2; exit ${PIPESTATUS[0]}", (141, 0)),
        (">&- 2>&-", (0,)),
        ("> /dev/full", (2,)),
        ("2> /dev/full", (0,)),
    ):
        done = run_in_shell(words, redirection)
        assert done.returncode in code, (redirection, done)
        assert "Traceback" not in done.stderr, (redirection, done.stderr)
    quoted = shlex.join([sys.executable, *server_command(pki, tmp_path / "r")])
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                ["bash", "-c", f"exec {quoted} 2> >(exit)"],
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        port = server.stdout.readline().strip().rpartition(":")[2]
        for _ in range(3):
            done = send(pki, port, "--text", "x")
            assert done.returncode == 0, "that nobody reads the log disturbs no session"
        server.send_signal(signal.SIGINT)
        assert server.stdout.read() == "stopped\n"
        assert server.wait(PATIENCE_S) == 0


@posix_only
@pytest.mark.slow
def test_a_bar_is_for_terminals_and_stays_in_80_columns(
    pki: Path, running: Running, tmp_path: Path
) -> None:
    pexpect = pytest.importorskip("pexpect")
    path = sparse(tmp_path / ("v\u00fc" + "n" * 100 + ".mp4"), 300_000_000)
    child = pexpect.spawn(
        sys.executable,
        command(pki, running.port, path),
        cwd=str(ROOT),
        timeout=120,
        dimensions=(24, 80),
        encoding="utf-8",
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "%|" in child.before
    pieces = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", child.before))
    assert max(map(len, pieces)) <= 80
    assert "\x1b[2J" not in child.before
    done = send(pki, running.port, path)
    assert "%|" not in done.stderr
    assert all(
        re.fullmatch(r"v\\xfcn+\.\.\.?mp4: \d+ of 300 MB", line)
        for line in done.stderr.splitlines()
    ), done.stderr


@posix_only
@pytest.mark.slow
def test_a_passphrase_is_asked_for_and_not_shown(
    pki: Path, running: Running, tmp_path: Path
) -> None:
    pexpect = pytest.importorskip("pexpect")
    server = server_command(pki, tmp_path / "r", "locked-home")
    sender = command(pki, running.port, "--text", "x", who="locked")
    for arguments, shown in ((sender, "acknowledged"), (server, "locked-home listens on")):
        for typed, code in ((PASSPHRASE + "\r", 0), ("wrong\r", 2), ("\x04", 2), ("\x03", 130)):
            child = pexpect.spawn(
                sys.executable, arguments, cwd=str(ROOT), timeout=30, encoding="utf-8"
            )
            child.expect(r"passphrase for \S+private_key.pem: ")
            child.send(typed)
            if code == 0:
                child.expect(shown)
                if arguments is server:
                    child.send("\x03")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == code, (typed, child.before)
            assert "horse" not in child.before
            assert ("the passphrase is wrong" in " ".join(child.before.split())) is (
                typed == "wrong\r"
            )


# Memory, and what is left


def status(program: Program, field: str) -> int:
    text = Path(f"/proc/{program.process.pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


@proc_only
@pytest.mark.slow
def test_a_file_of_128_mebibytes_needs_less_than_64_megabytes_at_either_end(
    pki: Path, tmp_path: Path
) -> None:
    large = sparse(tmp_path / "large.bin", 2**27)
    with large.open("r+b") as file:  # not all of it alike
        for place in range(0, 2**27, 2**23):
            file.seek(place)
            file.write(b"%d" % place)
    with large.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    peak = 0
    with serving(pki, tmp_path / "received") as server, device(pki, server.port, large) as sender:
        for count in itertools.count(1):
            with contextlib.suppress(AssertionError, OSError, TypeError):
                peak = max(peak, status(sender, "VmHWM"))
            if sender.process.poll() is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                sender.process.wait(0.2)
            assert count < 1_500, "5 minutes"
        assert sender.finish() == 0
        stored = server.received / "large.bin"
        with stored.open("rb") as file:
            arrived = hashlib.sha256()
            while block := file.read(2**20):
                arrived.update(block)
        assert arrived.digest() == digest.digest()
        stored.unlink()
        large.unlink()
        print(f"peak: device {peak} kB, server {status(server.program, 'VmHWM')} kB")
        assert 0 < peak < 64_000
        assert 0 < status(server.program, "VmHWM") < 64_000


@proc_only
@pytest.mark.slow
def test_a_crowd_that_says_nothing_leaves_nothing(pki: Path, tmp_path: Path) -> None:
    """A thousand connections, with 256 descriptors for the server, while devices come and go."""
    with serving(pki, tmp_path / "received", limit="-n 256") as server:
        assert send(pki, server.port, "--text", "warm up").returncode == 0
        fds = Path(f"/proc/{server.program.process.pid}/fd")
        before = len(os.listdir(fds)), status(server.program, "Threads")
        for _ in range(5):
            with contextlib.ExitStack() as stack:
                for _ in range(200):
                    stack.enter_context(
                        socket.create_connection(("127.0.0.1", int(server.port)), PATIENCE_S)
                    )
                assert send(pki, server.port, "--text", "x").returncode == 0
        server.program.wait_for("ended", "err", count=900)
        for _ in range(100):
            after = len(os.listdir(fds)), status(server.program, "Threads")
            if after <= before:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.program.process.wait(0.1)
        assert after <= before
        assert send(pki, server.port, "--text", "still here").returncode == 0
