"""The adversary of device_transfer: every attack ends as it should, and shows that it can win."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from companions.device_transfer import attacks, wire
from companions.device_transfer.attacks import ATTACKS
from companions.device_transfer.certificates import Trust
from companions.device_transfer.protocol import Kind, Session, UnexpectedKind
from companions.device_transfer.stage import (
    AUTHORITY,
    BYSTANDER,
    MALLORY,
    PHOTO,
    SERVER,
    TEXT,
    VICTIM,
    Lab,
    Outcome,
    Parts,
    pki,
    forged,
    item,
)
from companions.device_transfer.weakened import RULES, without
from lab.catalogue import Attack
from lab.events import parse_events, runs_of
from lab.frames import Frame, Frames
from lab.verdict import Result, judge
from program import UserError

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab for all attacks: none may leave a trace in it that another one sees."""
    with Lab(nobody_logs) as lab:
        yield lab


def nobody_logs(deed: str, frame: Frame) -> None:
    """Note nothing."""


def suffer(lab: Lab, name: str) -> Result:
    lab.suffer(ATTACKS[name])
    return judge(ATTACKS[name], lab)


def lost_without(rules: str, name: str) -> Result:
    """Run an attack on endpoints that lack some rules."""
    with Lab(nobody_logs, without(rules.split(","))) as lab:
        return suffer(lab, name)


# Against the real thing ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_met_by_the_error_it_names_and_the_bystander_goes_on(
    lab: Lab, name: str
) -> None:
    result = suffer(lab, name)
    assert result.as_expected, result.words
    assert result.won == ATTACKS[name].wins


@pytest.mark.slow
def test_the_victim_lives_a_whole_session_when_nobody_attacks(lab: Lab) -> None:
    def nothing(frames: Frames, lab: Lab) -> Frames:
        return iter(())

    attack = Attack("nothing", "Nobody does anything.", "", nothing, True, "", None, forged)
    outcome = lab.suffer(attack)
    wanted = [item("", TEXT.encode()), item("photo.png", PHOTO)]
    assert outcome.sent == outcome.acknowledged == wanted
    assert outcome.stored == [(VICTIM, each) for each in wanted]
    assert outcome.errors == {"client": [], "server": []}
    assert outcome.named == [VICTIM]
    assert not outcome.litter


@pytest.mark.slow
def test_stolen_session_keys_open_what_comes_until_the_next_rekeying(lab: Lab) -> None:
    assert suffer(lab, "stolen-session-keys").won == "chunks 1, 2, 3, 4"
    assert suffer(lab, "stolen-keys-across-rekeying").won == ""


def test_goals_see_what_was_never_sent_and_what_never_arrived() -> None:
    text = item("", b"x")
    assert not forged(Outcome([text], [text], [(VICTIM, text)]))
    assert "has not sent" in forged(Outcome([], [], [(VICTIM, text)]))
    assert "has not sent" in forged(Outcome([text], [], [(VICTIM, text)] * 2))
    assert "has arrived" in forged(Outcome([text], [text], []))
    assert not forged(Outcome([], [], [(MALLORY, text)])), "who speaks for himself forges nothing"


class Refusing(Session):
    def _check_kind(self, kind: Kind) -> None:
        raise UnexpectedKind("nothing", kind.name)


def test_without_an_honest_session_there_is_no_lab() -> None:
    with (
        pytest.raises(UserError, match="no honest session"),
        Lab(nobody_logs, Parts(Refusing)),
    ):
        pass


# Against weakened endpoints -----------------------------------------------------------------------

SHOWN = (  # rules, attack, what is won; all others stand in SECURITY.md
    ("ephemeral", "stolen-server-key", f"the recorded text: {TEXT}"),
    ("transcript", "misbinding", f"the server takes {VICTIM} for {MALLORY}"),
    ("fresh-iv", "eavesdrop", "two blocks are equal, and so is what they encrypt"),
    ("tag,manifest", "flip-text", "the server keeps a text that the device has not sent"),
    ("name,plain-name", "path-name", "there is a file outside.txt, outside the folder"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "name", "won"), SHOWN)
def test_without_its_rules_an_attack_wins(rules: str, name: str, won: str) -> None:
    assert lost_without(rules, name).won == won


def test_without_rekeying_stolen_keys_open_all() -> None:
    won = lost_without("rekey-limit", "stolen-keys-across-rekeying").won
    assert won == "with the first keys, chunks after rekeying: 1"


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_without_one_rule_honest_sessions_still_work(rule: str) -> None:
    with Lab(nobody_logs, without([rule])) as lab:
        assert lab.bystanders_go_on()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "stolen-server-key",
        "other-server",
        "path-name",
        "expired-certificate",
        "revoked-certificate",
        "provoke",
    ],
)
def test_what_the_document_leaves_out_lets_attacks_win(name: str) -> None:
    result = lost_without("documented", name)
    assert result.won, result.words


def test_weakened_endpoints_refuse_every_address_but_loopback(tmp_path: Path) -> None:
    parts = without([])
    trust = Trust(pki().keys[AUTHORITY].public_key(), AUTHORITY, bytes)
    with pytest.raises(UserError, match="loopback only"):
        parts.device(pki().people[VICTIM], trust, SERVER, "192.0.2.1")
    with pytest.raises(UserError, match="loopback only"):
        parts.server(pki().people[SERVER], trust, tmp_path, "0.0.0.0")
    device = parts.device(pki().people[VICTIM], trust, SERVER, "localhost", 1)
    assert device._address == ("127.0.0.1", 1), "the name is not looked up again"


# The program --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_event_log_tells_of_a_device_of_the_adversary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its messages were sent by the adversary, its keys are those of no victim."""
    log = tmp_path / "events.jsonl"
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--events", str(log), "stolen-device-key"])
    assert attacks.PROGRAM.run() == 0
    [stolen] = runs_of(parse_events(log.read_text("ascii"), "log")[0])
    assert stolen.is_from_outside
    kinds = [(attacks.kind_name(step.arrived or step.sent), step.kind) for step in stolen.steps]
    handshake = [
        (kind, deed) for kind in ("HELLO", "SHARE", "CONFIRM") for deed in ("inserted", "answered")
    ]
    text = [("TEXT", "inserted"), ("CHUNK", "inserted"), ("MANIFEST", "inserted")]
    ends = [("ACK", "answered"), ("END", "inserted"), ("ACK", "answered")]
    assert kinds == [*handshake, *text, *ends]
    assert {line["by"] for line in stolen.keys} == {"server"}


def test_fields_say_what_they_mean(lab: Lab) -> None:
    hello, _, share = (frame.message for frame in lab.tape[:3])
    assert [(field.name, field.meaning) for field in wire.fields(hello)] == [
        ("kind", "HELLO"),
        ("version", "1"),
        ("nonce", ""),
        ("certificate", VICTIM),
    ]
    assert [len(field.content) for field in wire.fields(share)] == [6, 32, 256]
    confirm = lab.tape[5].message
    assert [(field.name, field.meaning) for field in wire.fields(confirm)][:4] == [
        ("kind", "CONFIRM"),
        ("session", ""),
        ("direction", "1: S2D"),
        ("sequence", "0"),
    ]
    assert wire.title(confirm) == "CONFIRM, number 0"


def test_the_people_of_the_lab_are_not_each_other() -> None:
    names = {SERVER, VICTIM, BYSTANDER, MALLORY}
    assert {person.certificate.common_name for person in pki().people.values()} == names
    assert len({person.certificate.serial for person in pki().people.values()}) == len(names)
