"""The run sheet, its notes, the event log: commands are typed, and what they quote looked for."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from attacks import ATTACKS
from lab.events import DEEDS
from lab.weakened import DOCUMENTED
from tests.programs import ROOT, TIMEOUT_S, Program, posix_only, run, write

README = (ROOT / "README.md").read_text("utf-8")
LESSON = (ROOT / "classroom" / "LESSON.md").read_text("utf-8")
NOTES = (ROOT / "classroom" / "INSTRUCTOR.md").read_text("utf-8")
EVENTS = (ROOT / "lab" / "EVENTS.md").read_text("utf-8")
KEYLOG = (ROOT / "classroom" / "KEYLOG.md").read_text("utf-8")
INSTALLING = {"python3 -m venv .venv", ". .venv/bin/activate", "pip install -r requirements.txt"}
TWO_CLIENTS = "Two clients"
BYTES = "One message"
WIRESHARK = "In Wireshark"
BY_HAND = "By hand"
TROUBLE = "If something"
CLASS_ADDRESS = "192.0.2.1"  # stands for the teacher's machine


class Section(NamedTuple):
    """What the run sheet or its notes have below one heading."""

    commands: list[list[str]]
    looks: list[str]
    typed: list[str]
    code: list[str]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks in one language, without the indent that a list gives them."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def section(text: str) -> Section:
    commands = [line.split() for block in blocks(text, "sh") for line in block.splitlines()]
    return Section(
        [words for words in commands if " ".join(words) not in INSTALLING],
        blocks(text, "text"),
        blocks(text, "input"),
        blocks(text, "python"),
    )


def sections() -> dict[str, Section]:
    """Return the sections of both by heading."""
    parts = re.split(r"^## (.*)\n", f"{LESSON}\n{NOTES}", flags=re.MULTILINE)
    headings = parts[1::2]
    assert len(headings) == len({*headings})
    return {heading: section(text) for heading, text in zip(headings, parts[2::2])}


def named(start: str) -> Section:
    (found,) = (part for heading, part in sections().items() if heading.startswith(start))
    return found


def is_like(pattern: str, line: str) -> bool:
    """Compare a quoted line with a printed one: `...` is anything, columns and times are alike."""
    pattern, line = (re.sub(r"\d\d:\d\d:\d\d", "12:00:00", text) for text in (pattern, line))
    words = [re.escape(" ".join(part.split())) for part in pattern.split("...")]
    return re.fullmatch(r" ?.*? ?".join(words), " ".join(line.split())) is not None


def shows(lines: list[str], look: str) -> bool:
    """Return whether all lines of a quotation are there, in their order."""
    rest = iter(lines)
    return all(any(is_like(pattern, line) for line in rest) for pattern in look.splitlines())


def check_looks(looks: list[str], outputs: list[list[str]]) -> None:
    """Check that each quotation is in the lines of one stream."""
    for look in looks:
        assert any(shows(lines, look) for lines in outputs), f"not seen:\n{look}\nbut {outputs}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a student's folder, into which the lesson writes."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for folder in ("classroom", "lab"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


def replaced(words: list[str], flag: str, value: str) -> list[str]:
    """Return the words with this flag at this value, wherever it was."""
    if flag in words:
        at = words.index(flag)
        words = words[:at] + words[at + 2 :]
    return [*words, flag, value]


def play(commands: list[list[str]], folder: Path) -> list[list[str]]:
    """Type the commands one after the other, and return the lines of each stream.

    Servers listen on a port of their choice, which the clients after them get; they are stopped
    at the end by Ctrl-C. An attack that wins exits with 1, everything else with 0.
    """
    outputs: list[list[str]] = []
    port = "0"
    with contextlib.ExitStack() as stack:
        servers: list[Program] = []
        for command in commands:
            assert command[0] == "python", f"a command that nobody tests: {command}"
            words = ["127.0.0.1" if word == CLASS_ADDRESS else word for word in command[1:]]
            if words[0] == "server.py" and "--generate-keys" not in words:
                server = Program(*replaced(words, "--port", "0"), cwd=folder)
                servers.append(stack.enter_context(server))
                port = server.wait_for("^listening on ").rpartition(":")[2]
                continue
            if words[0] == "client.py":
                words = replaced(replaced(words, "--port", port), "--interval", "0.01")
            done = run(*words, cwd=folder)
            assert done.stderr == "", words
            assert done.returncode == int("WON: " in done.stdout), words
            outputs.append(done.stdout.splitlines())
        for server in servers:
            server.interrupt()
            assert server.finish() == 0
            outputs += [server.lines["out"], server.lines["err"]]
    return outputs


# The run sheet

PLAYED = [
    name
    for name in sections()
    if not name.startswith((TWO_CLIENTS, BYTES, WIRESHARK, BY_HAND)) and sections()[name].commands
]


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_the_commands_of_the_lesson_show_the_lines_that_it_quotes(name: str, copy: Path) -> None:
    part = named(name)
    for code in part.code:
        (copy / "my_attack.py").write_text(code)
    looks = [look for look in part.looks if not re.match(r"(server|client)\.py: ", look)]
    outputs = play(part.commands, copy)
    check_looks(looks, outputs)
    won = [lines for lines in outputs if any("WON: " in line for line in lines)]
    assert len(won) == sum("WON: " in look for look in looks)


@pytest.mark.slow
@posix_only
def test_two_clients_show_what_the_lesson_says() -> None:
    part = named(TWO_CLIENTS)
    server_flags, first_flags, second_flags, again_flags = (words[1:] for words in part.commands)
    with Program(*server_flags, "--port", "0") as server, contextlib.ExitStack() as stack:
        where = ("--port", server.wait_for("^listening on ").rpartition(":")[2])
        first = stack.enter_context(Program(*first_flags, *where))
        first.wait_for("^epoch 1 ")
        second = stack.enter_context(Program(*second_flags, *where))
        server.wait_for(" client 2: round 1, ", "err")
        write(first, part.typed[0])
        second.wait_for("^epoch 2 ")
        first.wait_for("epoch 2 ")
        write(first, part.typed[1])
        write(second, "quit\n")
        assert (first.finish(), second.finish()) == (0, 0)
        again = stack.enter_context(Program(*again_flags, *where))
        assert again.finish() == 0
        server.interrupt()
        assert server.finish() == 0
        programs = (server, first, second, again)
        check_looks(
            part.looks, [program.lines[name] for program in programs for name in ("out", "err")]
        )
        report = "CLIENT_DATA id 1 round 2 "
        assert names_below(server, f"<- {report}") == names_below(first, f"-> {report}")
        assert names_below(first, "-> CLIENT_HELLO") == names_below(again, "-> CLIENT_HELLO")
        challenge = "<- SERVER_CHALLENGE"
        assert not set(names_below(first, challenge)) & set(names_below(again, challenge))
        answer = "<- SERVER_AGGR_RESPONSE id 1 round 2 "
        moved = [
            old != new
            for old, new in zip(names_below(first, f"-> {report}"), names_below(first, answer))
        ]
        assert moved == [False, False, True, True]


@posix_only
@pytest.mark.slow
def test_the_man_in_the_middle_by_hand_sees_what_the_lesson_says(copy: Path) -> None:
    part = named(BY_HAND)
    server_flags, proxy_flags, *clients = (words[1:] for words in part.commands)
    with contextlib.ExitStack() as stack:
        programs: list[Program] = []

        def start(words: list[str]) -> Program:
            programs.append(stack.enter_context(Program(*words, cwd=copy)))
            return programs[-1]

        server = start([*server_flags, "--port", "0"])
        where = server.wait_for("^listening on ").rpartition(" ")[2]
        proxy = start([*replaced(proxy_flags, "--listen", "0"), "--server", where])
        port = proxy.wait_for("^listening on ").partition(";")[0].rpartition(":")[2]
        first, second = (replaced(flags, "--port", port) for flags in clients)
        refused = start(first)
        write(proxy, part.typed[0] + part.typed[1])
        assert refused.finish() == 1
        proxy.wait_for("^connection 1 is over")
        honest = start(second)
        write(proxy, part.typed[2])
        assert (honest.finish(), proxy.finish()) == (0, 0)
        assert proxy.lines["err"] == []
        server.wait_for(" stranger .* BadTag", "err", count=2)
        server.interrupt()
        assert server.finish() == 0
        check_looks(
            part.looks, [program.lines[name] for program in programs for name in ("out", "err")]
        )
        assert all(line.isascii() and len(line) <= 80 for line in proxy.lines["out"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("tshark"), reason="there is no tshark here")
def test_the_filters_of_the_lesson_find_packets(tmp_path: Path) -> None:
    part = named(WIRESHARK)
    script = ("-X", "lua_script:classroom/wireshark/seclab.lua")
    assert part.commands[1] == ["wireshark", *script, "run.pcapng"]
    logged(tmp_path / "events.jsonl", "--seed", "1")
    capture = str(tmp_path / "run.pcapng")
    words = part.commands[0][1:3] + [str(tmp_path / "events.jsonl"), "-o", capture]
    assert part.commands[0][1:] == [*words[:2], "events.jsonl", "-o", "run.pcapng"]
    done = called(sys.executable, *words)
    check_looks(part.looks, [done.replace(capture, "run.pcapng").splitlines()])
    filters = "".join(blocks(LESSON, "filter")).splitlines()
    assert len(filters) == 3
    for shown in filters:
        assert called("tshark", "-r", capture, *script, "-Y", shown), shown


def called(*words: str) -> str:
    """Run a program that must succeed, and return what it printed."""
    return subprocess.run(
        words, cwd=ROOT, text=True, capture_output=True, timeout=2 * TIMEOUT_S, check=True
    ).stdout


def names_below(program: Program, line: str) -> list[str]:
    """Return the names of the four keys as the trace has them below its first such line."""
    trace = program.lines["err"]
    at = next(number for number, shown in enumerate(trace) if shown.startswith(line))
    return re.findall(r" ([0-9a-f]{8})\b", trace[at + 1])


def test_the_bytes_of_the_lesson_are_those_of_the_readme() -> None:
    (look,) = named(BYTES).looks
    assert shows(README.splitlines(), look)
    assert "## One real session\n" in README
    assert "](../README.md#one-real-session)" in LESSON


def test_all_that_the_blocks_need_is_installed_before_class() -> None:
    before, _, rest = LESSON.partition("## Before class")[2].partition("\n## ")
    named = re.findall(r"`(\S*requirements\S*\.txt)`", before)
    assert {*named} == {
        "requirements-evidence.txt",
        "requirements-notebook.txt",
        "classroom/live/requirements.txt",
    }
    assert all((ROOT / name).is_file() for name in named)
    assert "pip install" not in rest


def test_the_installation_is_that_of_the_readme() -> None:
    assert all(f"\n{line}\n" in README and f"\n{line}\n" in LESSON for line in INSTALLING)


@pytest.mark.slow
@posix_only
def test_a_port_that_is_taken_and_a_server_that_is_absent_are_named_as_the_lesson_says() -> None:
    quoted = [look for look in named(TROUBLE).looks if re.match(r"(server|client)\.py: ", look)]
    assert len(quoted) == 2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        said = run("server.py", "--port", port).stderr
    said += run("client.py", "1", "--port", port).stderr
    assert said.replace(port, "9999") == "".join(quoted)


def test_the_minutes_of_each_plan_rise_and_end_in_time() -> None:
    plans = LESSON.partition("## Three plans")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", plans, re.MULTILINE)
    for table, minutes in zip(tables, (50, 90, 90, 90), strict=True):
        begins = [int(minute) for minute in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
        assert begins == sorted({0, *begins})
        assert begins[-1] < minutes
        assert len(begins) == table.count("\n") - 2


def test_each_block_stands_in_a_plan_and_has_a_checkpoint_that_is_answered() -> None:
    plans, _, rest = LESSON.partition("## Before class")
    blocks_of = {
        heading: text
        for heading, text in re.findall(
            r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", rest, re.DOTALL | re.MULTILINE
        )
    }
    for heading, text in blocks_of.items():
        assert f"[{heading}](#" in plans or f"[{heading.lower()}](#" in plans
        if heading not in ("Questions", "Homework"):
            assert text.count("*Checkpoint*") == 1, heading
            assert f"**{heading.partition(':')[0]}.**" in NOTES, heading


def test_no_question_of_the_lesson_has_its_answer_beside_it() -> None:
    questions = LESSON.partition("## Questions")[2].partition("## Homework")[0]
    answers = NOTES.partition("## Answers to the questions")[2]
    numbers = re.findall(r"^(\d)\. ", questions, re.MULTILINE)
    assert numbers == re.findall(r"^(\d)\. ", answers, re.MULTILINE) != []
    assert not blocks(questions, "sh") + blocks(questions, "text")


def test_links_of_the_lesson_and_the_event_log_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", LESSON + NOTES + README, re.MULTILINE)
    }
    for folder, text in (("classroom", LESSON + NOTES + KEYLOG), ("lab", EVENTS)):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            assert not path or (ROOT / folder / path).exists(), target
            assert not anchor or anchor in anchors, target


def test_the_rules_that_documented_removes_are_as_many_as_the_lesson_says() -> None:
    assert len(DOCUMENTED) == 10
    assert "`documented` removes ten rules" in " ".join(LESSON.split())


def test_headings_of_the_readme_that_the_homework_names_are_there() -> None:
    for heading in ("Add a message of your own", "Change what the server computes"):
        assert f'"{heading}"' in " ".join(LESSON.split())
        assert f"\n## {heading}\n" in README


def test_the_worked_attack_is_as_short_as_the_lesson_asks_for() -> None:
    (code,) = named("Homework").code
    body = code.partition("@on_path")[2]
    assert 5 <= len(body.strip().splitlines()) <= 15
    assert "stale-answer" not in ATTACKS


def test_a_quotation_that_was_not_shown_is_noticed() -> None:
    lines = ["first 12 bytes", "WON: 900"]
    assert shows(lines, "first ... bytes\nWON: 900\n")
    assert not shows(lines, "WON: 900\nfirst ... bytes\n")
    assert not shows(lines, "first\n")
    assert not shows(lines, "WON: 90\n")
    with pytest.raises(AssertionError, match="not seen"):
        check_looks(["WON: 100"], [lines])


# The event log


def cells(heading: str) -> list[str]:
    """Return the first cells of the table in EVENTS.md that starts with `heading`."""
    table = EVENTS[EVENTS.index(f"| {heading} |") :].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def logged(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run attacks.py with an event log, and return its lines."""
    done = run("attacks.py", "--events", path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    text = path.read_bytes().decode("ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


SAMPLE = (
    "replay-report",
    "replay-session",
    "recorded-server",
    "flip-reading",
    "inject-report",
    "splice-client",
    "reflect",
    "reorder",
    "drop-report",
    "unknown-client",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """Some attacks of each kind, twice with the same seed."""
    folder = tmp_path_factory.mktemp("events")
    found = [logged(folder / run, "--seed", "events", *SAMPLE) for run in ("one", "two")]
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    return found


@pytest.mark.slow
def test_every_field_of_a_line_is_documented_and_none_is_missing(
    runs: list[list[dict[str, Any]]],
) -> None:
    types = {"string": str, "boolean": bool, "integer": int, "object": dict}
    rows = EVENTS.partition("| event |")[0]
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w ,]+) \|", rows, re.MULTILINE)
    assert [name for name, _, _ in table] == cells("field")
    optional = {name for name, _, on in table if on.endswith(", if there is one")}
    assert optional == {"origin"}
    for line in runs[0]:
        assert [*line][:2] == ["attack", "event"]
        wanted = {
            name: types[kind]
            for name, kind, on in table
            if on == "all" or line["event"] in on.partition(",")[0].split()
        }
        found = {name: type(value) for name, value in line.items()}
        assert found == {name: wanted[name] for name in wanted if name in found}
        assert wanted.keys() - found.keys() <= optional


@pytest.mark.slow
def test_the_values_of_a_line_are_those_of_the_document(runs: list[list[dict[str, Any]]]) -> None:
    assert {line["event"] for line in runs[0]} == {*cells("event")}
    deeds = re.findall(r"^\| `(\w+)` \| (delivered|inserted) \|", EVENTS, re.MULTILINE)
    assert deeds == [(deed, event) for event in DEEDS for deed in DEEDS[event]]
    assert {(line["deed"], line["event"]) for line in runs[0] if "deed" in line} == {*deeds}
    assert {line["by"] for line in runs[0] if "by" in line} == {"client", "server"}
    assert {line["error"] for line in runs[0] if "error" in line} >= {"BadTag", "PeerTerminated"}
    assert {line["to"] for line in runs[0] if "to" in line} == {"client", "server"}
    assert {line["attack"] for line in runs[0]} <= ATTACKS.keys()
    assert all(
        re.fullmatch("([0-9a-f]{2})+", line["message"]) for line in runs[0] if "message" in line
    )
    names = [name for line in runs[0] if line["event"] == "keys" for name in line["keys"].values()]
    assert names
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names)


@pytest.mark.slow
def test_two_runs_with_one_seed_are_the_same_byte_for_byte(
    runs: list[list[dict[str, Any]]],
) -> None:
    assert runs[0] == runs[1]
    assert {line["attack"] for line in runs[0]} == {*SAMPLE}


@pytest.mark.slow
def test_all_attacks_with_one_seed_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    whole = [logged(tmp_path / run, "--seed", "7") for run in ("one", "two")]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    silent = EVENTS.partition("no message on the wire at all:")[2].partition("have none")[0]
    heard = {line["attack"] for line in whole[0] if "to" in line}
    assert {*re.findall(r"`([a-z-]+)`", silent)} == ATTACKS.keys() - heard


@pytest.mark.slow
def test_another_seed_gives_other_bytes_and_another_choice_of_attacks_the_same(
    tmp_path: Path,
) -> None:
    one = logged(tmp_path / "one", "--seed", "1", "flip-tag")
    assert one != logged(tmp_path / "two", "--seed", "2", "flip-tag")
    assert one == [
        line
        for line in logged(tmp_path / "both", "--seed", "1", "flip-iv", "flip-tag")
        if line["attack"] == "flip-tag"
    ]


@pytest.mark.slow
def test_the_example_of_the_event_log_is_real(tmp_path: Path) -> None:
    logged(tmp_path / "events.jsonl", "--seed", "1", "flip-reading")
    assert "`python attacks.py --seed 1 --events events.jsonl flip-reading`" in EVENTS
    (example,) = blocks(EVENTS, "text")
    assert shows((tmp_path / "events.jsonl").read_text().splitlines(), example)


def of(lines: list[dict[str, Any]], name: str, event: str) -> list[tuple[str, str]]:
    return [
        (line["to"], line["message"])
        for line in lines
        if (line["attack"], line["event"]) == (name, event)
    ]


@pytest.mark.slow
def test_ends_that_hold_the_same_keys_name_them_alike(runs: list[list[dict[str, Any]]]) -> None:
    """And the check that refused is told with the message that it refused."""
    lines = [line for line in runs[0] if line["attack"] == "flip-reading"]
    keys = {
        end: {
            line["message"]: line["keys"]
            for line in lines
            if line["event"] == "keys" and line["by"] == end
        }
        for end in ("client", "server")
    }
    both = {*keys["client"]} & {*keys["server"]}
    assert [message[:2] for message in keys["client"]] == ["0a", "14", "1e"]
    assert sorted(message[:2] for message in both) == ["0a", "14"]
    assert all(keys["client"][message] == keys["server"][message] for message in both)
    (inserted,) = of(lines, "flip-reading", "inserted")
    (refused,) = [line for line in lines if line["event"] == "refused"]
    assert (refused["by"], refused["message"], refused["error"]) == (*inserted, "BadTag")
    assert lines[-1]["event"] == "judged"


@pytest.mark.slow
def test_events_can_be_read_as_the_document_says(runs: list[list[dict[str, Any]]]) -> None:
    lines = runs[0]
    report = next(item for item in of(lines, "replay-report", "sent") if item[1][:2] == "1e")
    assert of(lines, "replay-report", "sent").count(report) == 1
    assert of(lines, "replay-report", "delivered").count(report) == 2
    assert deeds_of(lines, "replay-report", report[1]) == ["passed", "again"]
    held = next(message for _, message in of(lines, "reorder", "sent") if message[:2] == "1e")
    assert deeds_of(lines, "reorder", held) == ["late"]
    dropped = {*of(lines, "drop-report", "sent")} - {*of(lines, "drop-report", "delivered")}
    assert [message[:2] for _, message in dropped] == ["1e"]
    assert of(lines, "drop-report", "inserted") == []
    for attack, deed in (
        ("flip-reading", "changed"),
        ("splice-client", "replaced"),
        ("reflect", "reflected"),
    ):
        (made,) = [line for line in lines if line["attack"] == attack and "origin" in line]
        assert made["deed"] == deed
        assert ("server", made["origin"]) in of(lines, attack, "sent")
    assert {to for to, _ in of(lines, "replay-session", "inserted")} == {"server"}
    assert {to for to, _ in of(lines, "replay-session", "sent")} == {"client"}


def deeds_of(lines: list[dict[str, Any]], name: str, message: str) -> list[str]:
    return [
        line["deed"]
        for line in lines
        if (line["attack"], line.get("message")) == (name, message) and "deed" in line
    ]


@pytest.mark.slow
def test_verdicts_have_the_members_that_the_document_names() -> None:
    done = run("attacks.py", "--seed", "1", "--json", "flip-tag")
    members = re.search(r"with the members(.*?)\.\n", EVENTS, re.DOTALL)
    assert members
    assert [*json.loads(done.stdout)] == re.findall(r"`(\w+)`", members[1])


@pytest.mark.slow
@posix_only
def test_an_interrupted_run_leaves_no_file(tmp_path: Path) -> None:
    path = str(tmp_path / "events.jsonl")
    with Program("attacks.py", "--seed", "1", "--events", path) as program:
        program.wait_for("^A report is delivered twice")
        program.interrupt()
        assert program.finish() == 130
    assert list(tmp_path.iterdir()) == []
