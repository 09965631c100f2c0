"""The programs that attack the companions: what each tells, logs, draws, lists and refuses."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classroom import report
from companions.device_transfer.protocol import Kind as DeviceKind
from companions.peer_messaging.protocol import Kind as PeerKind
from lab.events import parse_events, runs_of
from program import UserError, plural

pytestmark = pytest.mark.usefixtures("quiet")


@dataclass(frozen=True)
class Adversary:
    """One companion's attacks, and what they are expected to tell."""

    name: str
    told: tuple[str, str, str, str]  # an attack, its story, how it ends, and its family
    lost: tuple[str, str, str]  # a rule, an attack that wins without it, and what it wins
    deeds: tuple[tuple[str, str, str], ...]  # attacks, what is done to a message, and the refusal
    claim: str
    beginnings: tuple[bytes, ...]  # of messages

    def module(self, name: str) -> Any:
        return importlib.import_module(f"companions.{self.name}.{name}")


ADVERSARIES = {
    adversary.name: adversary
    for adversary in (
        Adversary(
            "device_transfer",
            (
                "swap-chunks",
                "Two chunks of the photo change places.",
                "server ended: WrongSequence: expected 6, got 7",
                "order",
            ),
            ("dates", "expired-certificate", "a device with an expired certificate is let in"),
            (("flip-tag", "changed", "BadTag"), ("reflect", "reflected", "WrongDirection")),
            "D-3",
            tuple(kind.value for kind in DeviceKind),
        ),
        Adversary(
            "peer_messaging",
            (
                "swap-texts",
                "The second text is delivered before the first.",
                "server ended: MessageLost: expected 1, got 2",
                "order",
            ),
            ("gap", "drop-text", "bob hears SECOND, and never FIRST"),
            (
                ("flip-tag", "changed", "BadTag"),
                ("reflect", "reflected", "WrongDirection"),
                ("splice", "replaced", "WrongSession"),
            ),
            "N-2",
            tuple(bytes([kind]) for kind in PeerKind),
        ),
        Adversary(
            "secure_chat",
            (
                "changed-text",
                "The server changes a text of Alice's.",
                "client ended: BadOpening: expected the text that was signed, got another",
                "honesty",
            ),
            ("commitment", "changed-text", "bob@example.org hears from alice@example.org: bring"),
            (("flip-text", "changed", "BadTag"),),
            "C-2",
            (b'{"type":"msg","seqno":7', b'{"type":"hello",'),
        ),
    )
}


@pytest.fixture(params=ADVERSARIES)
def adversary(request: pytest.FixtureRequest) -> Adversary:
    return ADVERSARIES[request.param]


@pytest.fixture
def attack(adversary: Adversary, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program with these words."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["attacks.py", *map(str, words)])
        code: int = adversary.module("attacks").PROGRAM.run()
        return code

    return run


def test_the_program_lists_attacks_and_knows_no_others(
    adversary: Adversary, attack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack("--list") == 0
    listed = re.findall(r"^  (\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == sorted(adversary.module("attacks").ATTACKS)
    with pytest.raises(UserError, match="no attack is named nonsense"):
        attack("nonsense")


def test_stories_fit_a_line_beside_their_results(adversary: Adversary) -> None:
    attacks = adversary.module("attacks").ATTACKS
    assert [name for name, attack in attacks.items() if len(attack.story) > 52] == []


def test_what_the_document_leaves_out_are_rules_and_no_others_can_be_taken_out(
    adversary: Adversary,
) -> None:
    weakened = adversary.module("weakened")
    assert {*weakened.DOCUMENTED} < weakened.RULES.keys()
    with pytest.raises(UserError, match="there is no rule nonsense"):
        weakened.without(["nonsense"])


@pytest.mark.slow
def test_the_program_tells_one_attack_in_detail(
    adversary: Adversary, attack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name, story, end, family = adversary.told
    assert attack(name) == 0
    told = capsys.readouterr().out
    assert f"\n{name}: {story}\n" in told
    assert f"\n  {end}\n" in told
    assert re.search(rf"^{family} +1 +1 +0 +0 +0$", told, re.MULTILINE)
    assert "inserted" not in told, "what was sent is delivered, in another order"
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.slow
def test_the_program_fails_when_an_attack_wins(
    adversary: Adversary, attack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, name, won = adversary.lost
    assert attack("--json", "--without", rule, name) == 1
    assert json.loads(capsys.readouterr().out)["won"].startswith(won)


@pytest.mark.slow
def test_event_log_and_page_tell_what_was_done_to_messages(
    adversary: Adversary, attack: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    page = tmp_path / "report.html"
    names = [name for name, _, _ in adversary.deeds]
    assert attack("--events", log, *names) == 0
    runs = [*runs_of(parse_events(log.read_text("ascii"), "log")[0])]
    for run, (name, deed, refused) in zip(runs, adversary.deeds, strict=True):
        found = next(step.refused for step in run.steps if step.kind == deed)
        assert (run.attack, found) == (name, refused)
    assert {line["by"] for line in runs[0].keys} == {"client", "server"}
    monkeypatch.setattr(sys, "argv", ["wire.py", str(log), "-o", str(page)])
    assert report.main(adversary.module("wire").WIRE) == 0
    text = page.read_text("utf-8")
    assert adversary.deeds[0][2] in text
    assert adversary.claim in text
    assert f"attacks {names[0]}</code>, with new keys and other bytes" in text


@pytest.mark.parametrize("name", ADVERSARIES)
@given(st.data())
def test_the_fields_of_a_message_are_all_of_its_bytes(name: str, data: st.DataObject) -> None:
    wire = ADVERSARIES[name].module("wire")
    beginning = data.draw(st.sampled_from((b"", *ADVERSARIES[name].beginnings)))
    message = beginning + data.draw(st.binary(max_size=900))
    assert b"".join(field.content for field in wire.fields(message)) == message
    assert wire.title(message)
    assert wire.WIRE.describe(message).endswith(f", {plural(len(message), 'byte')}")
    assert wire.framed(message).endswith(message)
