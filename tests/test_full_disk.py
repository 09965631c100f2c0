"""What programs leave behind when no file has room: a sentence, and nothing half written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT, posix_only, run

BOUND = "import resource, runpy, sys; size = int(sys.argv.pop(1))"
BOUND += "; resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))"
BOUND += "; sys.argv.pop(0); sys.path[0] = ''"
BOUND += "; sys.dont_write_bytecode = True; "  # or those who come later find half of it
SCRIPT = BOUND + "runpy.run_path(sys.argv[0], run_name='__main__')"
MODULE = BOUND + "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
ROOM = 600  # bytes of a file
CHAT = "companions.secure_chat"
DEVICE = "companions.device_transfer"
READ = {  # what programs read, by what makes it
    "events.jsonl": "attacks.py --seed 1 --events {folder}/events.jsonl flip-tag",
    "run.pcapng": "-m classroom.capture -o {folder}/run.pcapng {folder}/events.jsonl",
    "certs": "-m companions.secure_chat.gen_ca --certs {folder}/certs",
    "pki": "-m companions.device_transfer.ca create {folder}/pki",
}
PROGRAMS = [
    "server.py --generate-keys {new} --ids 1-9",
    "attacks.py --events {new} flip-tag",
    "-m classroom.see capture -o {new} flip-tag",
    "-m classroom.report -o {new} {folder}/events.jsonl",
    "-m classroom.capture -o {new} {folder}/events.jsonl",
    "-m classroom.explain --html {new} {folder}/run.pcapng",
    "-m classroom.cheatsheet {new}",
    "-m classroom.kit new {new} --student one --class-key {folder}/run.pcapng",
    f"-m {CHAT}.gen_ca --certs {{new}}",
    f"-m {CHAT}.gen_cert server localhost --certs {{folder}}/certs",
    f"-m {CHAT}.revoke --certs {{folder}}/certs",
    f"-m {DEVICE}.ca create {{new}}",
    f"-m {DEVICE}.ca issue {{folder}}/pki device-1 --role device",
    "-m companions.peer_messaging.node {new} --port 0 --peer bob --at 127.0.0.1:1",
]


def split(words: str, **places: Path) -> list[str]:
    return shlex.split(words.format(**places))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that programs read here."""
    made = tmp_path_factory.mktemp("read")
    for words in READ.values():
        assert run(*split(words, folder=made)).returncode == 0
    return made


def found(*folders: Path) -> dict[Path, bytes]:
    """Return the content of all files in these folders."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("words", PROGRAMS)
def test_a_full_disk_is_a_sentence_and_nothing_is_half_written(
    words: str, folder: Path, tmp_path: Path
) -> None:
    """Some of these write several files, of which small ones have room."""
    before = found(folder, tmp_path)
    command = split(words, folder=folder, new=tmp_path / "new")
    kind, rest = (MODULE, command[1:]) if command[0] == "-m" else (SCRIPT, command)
    done = run("-c", kind, ROOM, *rest)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "cannot " in done.stderr.splitlines()[-1]
    assert found(folder, tmp_path) == before


@pytest.mark.slow
@posix_only
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no such device here")
@pytest.mark.parametrize("words", ["client.py", f"-m {DEVICE}.ca", f"-m {DEVICE}.ca issue"])
def test_help_that_cannot_be_printed_is_no_success(words: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *words.split(), "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr in [f"{name}: No space left on device\n" for name in ("client.py", "ca.py")]
