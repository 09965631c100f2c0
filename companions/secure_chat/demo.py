"""All of the secure chat at work on this computer, in real processes, and then its adversary.

    python3 run.py chat [--keep FOLDER]

An authority certifies a server and two members; they register, talk, and leave with receipts, which
a third party verifies; one is revoked and comes back; then the adversary plays. Exits with 0 only
if every part of it went as it should. Everything is in a temporary folder that is removed at the
end, or in FOLDER, which is kept.
"""

from __future__ import annotations

import json

from companions.demo import Programs, heading, perform, show_all
from program import run_program

PEOPLE = {"alice": "sunflower of 1988", "bob": "correct battery"}
PLAYED = (  # of the attacks: some on the wire, some by the server, some by members
    "eavesdrop",
    "replay-session",
    "man-in-the-middle",
    "replaced-shares",
    "client-as-server",
    "share-of-one",
    "known-password",
    "crack-the-table",
    "forged-message",
    "changed-text",
    "two-histories",
    "leave-first",
)


class Stage(Programs):
    """The programs."""

    package = "companions.secure_chat"
    example = "server"


# The acts -----------------------------------------------------------------------------------------


def certify(stage: Stage) -> None:
    heading(
        "1 An authority says who is who",
        "A member is an e-mail address, a server a host name, and neither can play the other: "
        "look at the certificates with `openssl x509 -text`. Private keys have mode 0600.",
    )
    show_all(stage.finish("gen_ca"))
    show_all(stage.finish("gen_cert", "server", "localhost"))
    for name in PEOPLE:
        show_all(stage.finish("gen_cert", "client", f"{name}@example.org", "--name", name))


def come(stage: Stage, name: str, choice: str) -> None:
    """Let somebody register or log in, and come into the room."""
    stage.begin(name, "client", "--name", name, "--port", stage.port, "--transcripts", name)
    names = [name] if choice == "register" else []
    stage.type(name, choice, *names, PEOPLE[name])


def talk(stage: Stage) -> None:
    heading(
        "2 Two members register and talk",
        "Passwords are sent only when each end has proved who it is, and are stored as argon2id. "
        "Each text is signed by its sender; the server orders, and signs the order.",
    )
    stage.begin("server", "server", "--port", "0")
    stage.port = stage.listen(("server", "listening on ")).rpartition(":")[2]
    come(stage, "alice", "register")
    stage.listen(("alice", "in lobby"))
    come(stage, "bob", "register")
    stage.listen(("bob", "in lobby"), ("alice", "joined"))
    stage.type("alice", "shall we meet at noon?")
    stage.listen(("bob", "at noon"))
    stage.type("bob", "at noon, at the station")
    stage.listen(("alice", "at the station"))
    for name in PEOPLE:
        stage.type(name, "quit")
        stage.await_end(name)


def verify(stage: Stage) -> None:
    heading(
        "3 Anybody can verify what was said",
        "A receipt counts the lines, and both ends have signed it. A text is disclosed by its line "
        "of `openings`; without that, the transcript does not show it.",
    )
    kept = next((stage.folder / "alice").glob("transcript_*.txt"), None)
    if kept is None:
        stage.check(False, "Alice has no transcript")
        return
    stamp = kept.stem.removeprefix("transcript_")
    files = [f"alice/receipt_{stamp}_server.json", f"alice/{kept.name}", f"alice/certs_{stamp}.pem"]
    lines = stage.finish(
        "verify", *files, "--ca", "certs/ca_cert.pem", "--openings", f"alice/openings_{stamp}.jsonl"
    )
    show_all(lines)
    is_shown = any("at the station" in line for line in lines)
    stage.check(lines[-1:] == ["Valid"] and is_shown, "the receipt does not verify")


def revoke(stage: Stage) -> None:
    heading(
        "4 A certificate is revoked",
        "The server reads the new list by itself. On the wire there is only `bad-cert`; the log "
        "and the table audit_log have the reason.",
    )
    show_all(stage.finish("revoke", "certs/bob_cert.pem"))
    come(stage, "bob", "login")
    stage.listen(("bob", ""), ("server", "Revoked"))
    stage.check_end("bob", 1)
    stage.stop("server")


def attack(stage: Stage) -> None:
    heading(
        "5 The adversary",
        "Some attacks, each a real one: on the wire, with certificates, as a member, and as a "
        "bribed server. Look at the name of the check that stops it. `attacks` alone plays all.",
    )
    for line in stage.finish("attacks", "--json", "--events", "events.jsonl", "--", *PLAYED):
        if line.startswith("{"):
            result = json.loads(line)
            print(f"{result['attack']:<24} {result['words']}", flush=True)
    stage.finish("wire", "events.jsonl", "-o", "report.html")
    is_there = (stage.folder / "report.html").is_file()
    stage.check(is_there, "there is no page that shows the attacks")
    print("report.html shows each of these, message by message.", flush=True)


def main() -> int:
    return perform(
        "chat",
        "Shows the secure chat, and its adversary.",
        "certificates, transcripts, report.html",
        lambda folder: Stage(folder).play(certify, talk, verify, revoke, attack),
    )


if __name__ == "__main__":
    run_program(main)
