"""All of the device transfer at work on this computer, in real processes, and then its adversary.

    python3 run.py device [--keep FOLDER]

An authority certifies a server and two devices; both send at once; one is revoked and comes back;
the journal is verified; then all attacks run. Exits with 0 only if every part of it went as it
should. Everything is in a temporary folder that is removed at the end, or in FOLDER, which is kept.
"""

from __future__ import annotations

import filecmp
import re
from pathlib import Path

from classroom.output import write_whole
from companions.demo import Programs, heading, perform, show, show_all
from companions.device_transfer import media
from program import run_program

SESSION_END = re.compile(r": (done|ended)\b")  # as the server's log has it
MEDIA = {"device-1": ("door.png", media.image), "device-2": ("door.avi", media.video)}


class Stage(Programs):
    """The programs, and what the server has said."""

    package = "companions.device_transfer"
    example = "ca"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.said: list[str] = []  # by the server

    def next_line(self) -> tuple[str, str]:
        """Return the name of a program and its line; an empty line when it has ended."""
        name, line = super().next_line()
        if name == "server":
            self.said.append(line)
        return name, line

    def await_sessions(self, *names: str, sessions: int) -> None:
        """Show all lines until these, and `sessions` more at the server, have ended."""
        wanted = self._session_ends() + sessions
        while not self.ended >= {*names} or (
            self._session_ends() < wanted and "server" not in self.ended
        ):
            show(*self.next_line())

    def _session_ends(self) -> int:
        return len([line for line in self.said if SESSION_END.search(line)])


# The acts -----------------------------------------------------------------------------------------


def certify(stage: Stage) -> None:
    heading(
        "1 An authority says who is who",
        "Each gets a key of its own, and a certificate to show. Look at the roles: a device "
        "cannot play the server. Nobody but the authority needs pki/ca.",
    )
    show_all(stage.finish("ca", "create", "pki"))
    for name in ("server-1", "device-1", "device-2"):
        show_all(stage.finish("ca", "issue", "pki", name, "--role", name[:6]))
    show_all(stage.finish("ca", "list", "pki"))


def send(stage: Stage, name: str, *words: str | Path) -> None:
    identity = Path("pki") / name
    address = ("--to", "server-1", "--port", stage.port)
    stage.begin(name, "device", "--identity", identity, *address, *words)


def transfer(stage: Stage) -> None:
    heading(
        "2 Two devices send at the same time",
        "Look at the sessions: each has keys of its own, which are in no file. A device says "
        "`acknowledged` when the server has verified the signature and stored the content.",
    )
    folders = ("--identity", Path("pki") / "server-1", "--received", "received")
    stage.begin("server", "server", *folders, "--port", "0")
    stage.port = stage.listen(("server", "listens on ")).rpartition(":")[2]
    for device, (file, content) in MEDIA.items():
        write_whole(stage.folder / file, content())
        send(stage, device, "--text", "hi", file)
    stage.await_sessions(*MEDIA, sessions=len(MEDIA))
    for device, (file, _) in MEDIA.items():
        stage.check_end(device)
        sent = stage.folder / file
        came = stage.folder / "received" / file
        is_same = came.is_file() and filecmp.cmp(sent, came, shallow=False)
        stage.check(is_same, f"received/{file} is not what {device} sent")


def revoke(stage: Stage) -> None:
    heading(
        "3 A device is lost, and its certificate revoked",
        "The server reads the new list by itself, and tells nobody why it hangs up: look at "
        "its log.",
    )
    show_all(stage.finish("ca", "revoke", "pki", "device-2"))
    send(stage, "device-2", "--text", "let me in")
    stage.await_sessions("device-2", sessions=1)
    stage.check_end("device-2", 3)
    is_noticed = any("CertificateRevoked" in line for line in stage.said)
    stage.check(is_noticed, "the server did not notice the revocation")
    stage.stop("server")


def verify(stage: Stage) -> None:
    heading(
        "4 Anybody can verify the journal",
        "The journal keeps the signatures. With the authority's public key, and no secret at "
        "all, anybody can verify later who sent what, and when. What was signed before a "
        "revocation stays signed.",
    )
    authority = Path("pki") / "device-1" / "authority.json"
    lines = stage.finish("journal", "received", "--authority", authority)
    show_all(lines)
    stage.check(len(lines) == 2 * len(MEDIA), "the journal does not name all that was sent")


def attack(stage: Stage) -> None:
    heading(
        "5 The adversary",
        "Each attack is real: a proxy on the wire, bad certificates, stolen keys. Look at the "
        "name of the check that stops it, and at what nothing prevents.",
    )
    stage.play_attacks()


def main() -> int:
    return perform(
        "device",
        "Shows the device transfer, and its adversary.",
        "keys, files, journal",
        lambda folder: Stage(folder).play(certify, transfer, revoke, verify, attack),
    )


if __name__ == "__main__":
    run_program(main)
