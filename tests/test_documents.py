"""The documents and the code say the same: tables, numbers, diagrams, links, commands, recipes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from Crypto.Random import get_random_bytes

import protocol_fsm
from channel import DRAIN_S
from client import Client
from crypto_utils import TAG_BYTES, aes_cbc_decrypt, hmac_sha256, pkcs7_unpad
from endpoint import DEMO_KEYS, HOST, PORT
from protocol_fsm import CIPHERTEXT_AT, HEADER, KEY_LABELS, Direction, Opcode, State, Status
from server import Limits, Server
from tests import diagrams
from tests.books import formula, moves, moves_of
from tests.helpers import ANSWER, MASTER_KEY, REPORT, Pair, ciphertext_of, pair_in
from tests.house import CORE, tracked_files
from tests.network import client_for, serving
from tests.programs import ROOT, Program, run

DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))
README = (ROOT / "README.md").read_text("utf-8")
PROTOCOL = (ROOT / "PROTOCOL.md").read_text("utf-8")


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table whose header starts with `heading`."""
    table = document[document.index(f"| {heading}") :].split("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[2:]
    ]


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


# Tables, numbers, diagrams


def test_the_formulas_of_the_key_schedule_are_those_of_the_code() -> None:
    drawn: list[bytes] = []

    def noted(length_bytes: int) -> bytes:
        drawn.append(get_random_bytes(length_bytes))
        return drawn[-1]

    pair = Pair(client_random=noted, server_random=noted)  # a nonce, an IV, a nonce, an IV, ...
    pair.hello()
    keys = dict(pair.client._keys)
    assert keys == {label: formula(PROTOCOL, label, master_key=MASTER_KEY) for label in KEY_LABELS}
    pair.challenge()
    nonces = {"client_nonce": drawn[0], "server_nonce": drawn[2]}
    keys = {label: formula(PROTOCOL, "X'", X=key, **nonces) for label, key in keys.items()}
    assert pair.client._keys == keys
    pair.report()
    sealed = {"ciphertext": ciphertext_of(pair.transcript[-1]), "nonce": drawn[4]}
    for label in ("C2S-ENC", "C2S-MAC"):
        old = {label.replace("-", "_"): keys[label]}
        keys[label] = formula(PROTOCOL, f"{label}'", **old, **sealed)
    assert pair.server._keys == keys
    pair.answer()
    for label in ("S2C-ENC", "S2C-MAC"):
        old = {label.replace("-", "_"): keys[label]}
        sealed = {"body": ANSWER.body, "status": bytes([Status.OK])}
        keys[label] = formula(PROTOCOL, f"{label}'", **old, **sealed)
    assert pair.client._keys == keys


def test_the_formulas_of_a_message_are_those_of_the_code() -> None:
    (half,) = re.findall(r"encryption key of C2S = C2S-ENC\[(\d+):(\d+)\]", PROTOCOL)
    assert "    MAC key of C2S        = C2S-MAC  " in PROTOCOL
    assert "HMAC-SHA256(MAC key of the direction, header || IV || ciphertext)" in PROTOCOL
    pair = pair_in(State.REPORT)
    keys = dict(pair.client._keys)
    pair.report()
    message = pair.transcript[-1]
    key = keys["C2S-ENC"][int(half[0]) : int(half[1])]
    padded = aes_cbc_decrypt(ciphertext_of(message), key, message[HEADER.size : CIPHERTEXT_AT])
    assert pkcs7_unpad(padded)[16:] == REPORT.body
    assert message[-32:] == hmac_sha256(keys["C2S-MAC"], message[:-32])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_parts_are_up_to_date(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert text == diagrams.updated(text), "run: python -m tests.diagrams"


def test_generated_parts_are_not_empty() -> None:
    assert PROTOCOL.count("CHALLENGE --> REPORT: SERVER_CHALLENGE") == 1
    assert moves(PROTOCOL) == moves_of(protocol_fsm)
    assert "ciphertext, decrypted" in README


def test_opcodes_are_those_of_the_code() -> None:
    assert {row[0]: int(row[1]) for row in rows(PROTOCOL, "opcode | value")} == {
        opcode.name: opcode.value for opcode in Opcode
    }


def test_statuses_and_who_carries_them_are_those_of_the_code() -> None:
    table = rows(PROTOCOL, "status | value")
    assert {row[0]: int(row[1]) for row in table} == {s.name: s.value for s in Status}
    for name, _, _, carried in table:
        for opcode, legal in protocol_fsm.FAREWELL_STATUS.items():
            assert (opcode.name in carried) == (Status[name] in legal), (name, opcode)


def test_the_message_layout_is_that_of_the_code() -> None:
    layout = {row[0]: (row[1], row[2]) for row in rows(PROTOCOL, "field | at")}
    assert layout["opcode"] == ("0", "1")
    assert layout["client id"] == ("1", "1")
    assert layout["round"] == ("2", "4")
    assert layout["direction"] == ("6", "1")
    assert layout["IV"] == (str(protocol_fsm.HEADER.size), "16")
    assert layout["ciphertext"] == (str(protocol_fsm.CIPHERTEXT_AT), "16n")
    assert layout["tag"] == ("23 + 16n", str(TAG_BYTES))


@pytest.mark.parametrize(
    "number",
    [
        protocol_fsm.MIN_MESSAGE,
        protocol_fsm.MAX_MESSAGE,
        protocol_fsm.OVERHEAD,
        protocol_fsm.MAX_BODY,
        protocol_fsm.MAX_READINGS,
        protocol_fsm.LAST_ROUND,
        protocol_fsm.MIN_MASTER_KEY,
    ],
)
def test_limits_of_the_code_stand_in_the_document(number: int) -> None:
    assert f"{number:,}" in PROTOCOL or f"{number}" in PROTOCOL


def test_steps_of_receiving_name_every_error_in_the_order_of_the_code() -> None:
    table = " ".join(row[2] for row in rows(PROTOCOL, "step | check"))
    document = re.findall(r"[A-Z]\w+", table)
    source = (ROOT / "protocol_fsm.py").read_text()
    code = re.findall(r'class (\w+)\(ProtocolError\):\n    """Step \d', source)
    assert document == code


def test_deadlines_are_the_defaults_of_the_server_and_the_client() -> None:
    limits = Limits()
    expected = [
        limits.stranger_timeout_s,
        limits.max_strangers,
        limits.frame_timeout_s,
        limits.silence_timeout_s,
        limits.window_s,
        2.0,
    ]
    values = [float(row[1].removesuffix(" s")) for row in rows(PROTOCOL, "rule | value")]
    assert values == expected
    assert f"{DRAIN_S} s" in PROTOCOL
    assert f"port {PORT}" in PROTOCOL
    assert HOST == "127.0.0.1"
    assert Client(1).timeout_s == 2.0


def test_members_of_an_answer_are_those_of_the_document() -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "integer": int,
        "number": (int, float),
        "number or null": (int, float, type(None)),
        "array of integers": list,
    }
    with serving() as (server, _), client_for(server, 1) as client:
        for readings in ([1.5, 2.0], []):
            answer = client.report(readings)
            documented = {
                name: row[1]
                for row in rows(PROTOCOL, "member | JSON type")
                for name in re.findall(r"`(\w+)`", row[0])
            }
            assert list(answer) == list(documented)
            for name, value in answer.items():
                assert isinstance(value, kinds[documented[name]]), name


def test_direction_values_and_demo_keys_are_as_documented() -> None:
    assert (Direction.C2S, Direction.S2C) == (0, 1)
    assert sorted(DEMO_KEYS) == [1, 2, 3, 4, 5]
    assert DEMO_KEYS[1] == b"client1_master_k"
    assert DEMO_KEYS[5].decode() in PROTOCOL


@pytest.mark.parametrize("module", CORE)
def test_sections_that_the_code_cites_exist(module: str) -> None:
    headings = set(re.findall(r"^#+ ([\d.]+) ", PROTOCOL, re.MULTILINE))
    cited = re.findall(r"\[P ([\d., ]+)\]", (ROOT / f"{module}.py").read_text())
    assert {section for group in cited for section in group.split(", ")} <= headings


def test_every_section_on_the_wire_is_cited_somewhere() -> None:
    cited = " ".join((ROOT / f"{module}.py").read_text() for module in CORE)
    for section in ("3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7"):
        assert re.search(rf"\[P [^]]*{re.escape(section)}", cited), section


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        document = ROOT / path if path else ROOT / name
        assert document.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_the_troubleshooting_sentences_are_what_the_programs_say() -> None:
    for sentence in (
        "Connection refused",
        "session terminated by the server",
        "connection lost",
        "cannot listen on",
        "no server at",
    ):
        spoken = "".join((ROOT / f"{module}.py").read_text() for module in ("client", "server"))
        if sentence not in ("Connection refused",):
            assert sentence in spoken
        assert sentence.split()[0].lower() in README.lower()


# Code in the README


def test_custom_aggregations_of_the_readme_work(monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in blocks("python") if "median_of_all" in block)
    names: dict[str, object] = {}
    # on a port that is free, and without a person who types Enter
    monkeypatch.setattr(
        Server.__init__, "__defaults__", (HOST, 0, *(Server.__init__.__defaults__ or ())[2:])
    )
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    exec(compile(code, "README.md", "exec"), names)
    for name, expected in (
        ("median_of_all", {"participants": [1], "median": median([5, 1, 30])}),
        ("weighted_mean", {"weighted_mean": 12.0}),
    ):
        with serving(names[name]) as (server, _), client_for(server, 1) as client:  # type: ignore
            answer = client.report([5, 1, 30])
            assert {key: answer[key] for key in expected} == expected
            assert answer["own_sum"] == 36
            nothing = client.report([])
            assert None in nothing.values()


def test_weights_of_the_readme_weigh() -> None:
    code = next(block for block in blocks("python") if "weighted_mean" in block)
    names: dict[str, object] = {}
    exec(compile(code.partition("\nwith ")[0], "README.md", "exec"), names)
    assert names["weighted_mean"]({1: [10.0], 2: [40.0]}) == {  # type: ignore[operator]
        "weighted_mean": (2 * 10.0 + 1 * 40.0) / 3
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project as it would be committed, nothing else."""
    for path in tracked_files():
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


PING = """
from endpoint import DEMO_KEYS
from protocol_fsm import ClientPing, parse_message
from client import Client
from server import Server
from tests.helpers import pair_in, State
from tests.sessions import refusal

with Server(DEMO_KEYS, port=0) as server, Client(1, None, *server.address) as client:
    client.ping()
    print(client.report([4.0])["sum"])
    client.ping()
    client.ping()
    print(client.report([5.0])["sum"])

pair = pair_in(State.REPORT)
ping = pair.client.seal(ClientPing())
print(pair.server.open(ping).opcode.name)
print(type(refusal(pair.server, ping)).__name__)

try:
    parse_message(35, 0, bytes(17))
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
def test_three_steps_to_a_new_opcode(copy: Path) -> None:
    patches = blocks("diff")
    assert len(patches) == 8
    for patch in patches:
        header, *lines = patch.splitlines()
        path = copy / header.removeprefix("--- ")
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        source = path.read_text()
        assert source.count(before) == 1, f"{header}: not the code that the README shows"
        path.write_text(source.replace(before, after))
    done = run("-c", PING, cwd=copy)
    assert done.stderr == ""
    assert done.stdout.split() == ["4.0", "5.0", "CLIENT_PING", "BadTag", "BadPayload"]


# Commands in the README


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        yield from (line for line in block.splitlines() if line.strip())


ELSEWHERE = {  # run by others: tests of run.py and of conform, .ci/run, which installs from nothing
    "python3 run.py",
    "python3 run.py test",
    "python3 run.py offline wheelhouse",
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "pip install -r requirements.txt",
}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sh blocks; interrupts")
def test_commands_of_the_readme_work_in_a_clean_copy(copy: Path) -> None:
    """Servers are started on a free port, and stopped by Ctrl-C; clients find that port."""
    port = ""
    servers = []
    clients = 0
    for line in commands():
        if line in ELSEWHERE or line.startswith("python3 run.py conform "):
            continue
        words = line.split()
        assert words[0] == "python", f"a command that nobody tests: {line}"
        if words[1] == "server.py" and "--generate-keys" not in words:
            servers.append(Program(*words[1:], "--port", "0", cwd=copy))
            port = servers[-1].wait_for("^listening on ").rpartition(":")[2]
            continue
        if words[1] == "attacks.py":
            done = run(*line.replace(":9999", f":{port}").split()[1:], cwd=copy, timeout_s=180)
            assert ("WON" in done.stdout) == ("--without" in words), line
            assert done.returncode == ("--without" in words), line
            continue
        extra = ["--port", port, "--interval", "0.01"] if words[1] == "client.py" else []
        done = run(*words[1:], *extra, cwd=copy)
        how_a_file_is_read = r"(reads column 2, 'temperature_f': .*\n)?"
        assert done.returncode == 0, line
        assert re.fullmatch(how_a_file_is_read, done.stderr), line
        clients += words[1] == "client.py"
    for server in servers:
        server.interrupt()
        assert server.finish() == 0
        server.__exit__()
    assert (len(servers), clients) == (2, 6)


def test_the_readme_shows_no_command_in_another_way() -> None:
    assert not re.findall(r"^\$ ", README, re.MULTILINE)
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) <= {
        "",
        "sh",
        "python",
        "diff",
        "text",
    }


def test_the_notebook_example_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(block for block in blocks("python") if block.startswith("from client"))
    with serving() as (server, _):
        monkeypatch.setattr(
            Client.__init__, "__defaults__", (None, server.address[0], server.address[1])
        )
        exec(compile(code, "README.md", "exec"), {})
    assert "'sum': 41.5" in capsys.readouterr().out
