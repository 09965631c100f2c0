"""Two nodes at work on this computer, in real processes, and then their adversary.

    python3 run.py peers [--keep FOLDER]

They meet and talk; one is killed and comes back; then somebody shows another key, and is refused;
then all attacks run. Exits with 0 only if every part of it went as it should. Everything is in a
temporary folder that is removed at the end, or in FOLDER, which is kept.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from companions.demo import COLUMNS, Programs, heading, perform, show
from companions.peer_messaging.identity import known_peers
from endpoint import HOST
from program import escaped, run_program

PREFIX = 11  # columns before each line, for the name of the program


def free_ports() -> tuple[int, int]:
    """Return two free ports: each node has to know the other's before it starts."""
    with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


class Stage(Programs):
    """The two nodes, each with its port, and the adversary."""

    package = "companions.peer_messaging"
    example = "node"
    environment: Mapping[str, str] = {"COLUMNS": str(COLUMNS - PREFIX)}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = dict(zip(("alice", "bob"), free_ports()))

    def node(self, name: str, peer: str, folder: str) -> None:
        theirs = f"{HOST}:{self.ports[peer]}"
        ours = str(self.ports[name])
        self.begin(name, "node", folder, "--port", ours, "--peer", peer, "--at", theirs)

    def say(self, name: str, text: str) -> None:
        """Type a line into a program, and show it."""
        show(name, f"> {escaped(text)}")
        self.type(name, text)

    def leave(self, name: str) -> None:
        """End a node's input, and check its exit code."""
        show(name, "> (end of the input)")
        stdin = self.processes[name].stdin
        if stdin:
            stdin.close()
        self.await_end(name)


# The acts -----------------------------------------------------------------------------------------


def meet(stage: Stage) -> None:
    heading(
        "1 Two nodes meet",
        "Each makes a key, and takes the first that comes for the other's: there is nobody "
        "else to ask. So compare the fingerprints, as the two people should. Neither is the "
        "server: both listen, and both call.",
    )
    stage.node("alice", "bob", "alice")
    stage.listen(("alice", "^. listening "))
    stage.node("bob", "alice", "bob")
    stage.listen(("alice", "no other is accepted"), ("bob", "no other is accepted"))
    pinned = [known_peers(stage.folder / name / "known_peers") for name in ("alice", "bob")]
    stage.check(
        [[*names] for names in pinned] == [["bob"], ["alice"]],
        "they have not pinned each other's keys",
    )


def talk(stage: Stage) -> None:
    heading(
        "2 They talk",
        "Every text is encrypted and numbered, and each gets a receipt. Nothing is said of "
        "receipts as long as they come. What a text carries cannot touch the terminal.",
    )
    for name, peer, text in (
        ("alice", "bob", "hello bob"),
        ("bob", "alice", "hello alice"),
        ("alice", "bob", "a red \x1b[31m text"),
    ):
        stage.say(name, text)
        stage.listen((peer, f"^{name}: {text[:5]}"))


def fall(stage: Stage) -> None:
    heading(
        "3 One falls, and comes back",
        "bob is killed in the middle of everything, and says no BYE. Look at the text that "
        "alice sends meanwhile: she is told that nobody knows whether it has arrived. bob "
        "starts again with the key that he had, so there is nothing to compare.",
    )
    stage.processes["bob"].kill()
    stage.await_end("bob", 1 if sys.platform == "win32" else -9)
    show("bob", "(killed)")
    stage.say("alice", "are you there?")
    stage.node("bob", "alice", "bob")
    stage.listen(
        ("alice", "text 3, .* is unconfirmed"),
        ("alice", "session with bob has begun|bob is here again"),
        ("bob", "alice is here"),
    )
    stage.say("bob", "back again")
    stage.listen(("alice", "^bob: back again"))
    stage.leave("bob")


def pose(stage: Stage) -> None:
    heading(
        "4 Somebody else answers for bob",
        "A node with another key listens where bob did: a new computer, or an attack? The "
        "program cannot know. It refuses, says so once, and leaves it to the two people.",
    )
    stage.node("bob", "alice", "not-bob")
    stage.listen(("alice", "ANOTHER KEY FOR bob"), ("alice", "--pin"))
    stage.say("alice", "nobody must read this")
    stage.listen(("alice", "text 4, .* waits"))
    for name in ("alice", "bob"):
        stage.stop(name, 143)


def attack(stage: Stage) -> None:
    heading(
        "5 The adversary",
        "Each attack is real: between the two nodes, in front of their inboxes, with their "
        "keys. There alice, who begins, is called the client, and bob the server. Look at "
        "the name of the check that stops it, and at what nothing prevents.",
    )
    stage.play_attacks()


def main() -> int:
    return perform(
        "peers",
        "Shows two nodes, and their adversary.",
        "keys, known peers",
        lambda folder: Stage(folder).play(meet, talk, fall, pose, attack),
    )


if __name__ == "__main__":
    run_program(main)
