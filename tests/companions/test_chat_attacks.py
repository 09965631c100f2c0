"""The adversary of secure_chat: every attack ends as it should, and shows that it can win."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from companions.secure_chat import attacks, server, wire
from companions.secure_chat.attacks import ATTACKS
from companions.secure_chat.stage import (
    ALICE,
    ANSWER,
    BOB,
    LAST,
    MALLORY,
    PASSWORDS,
    TEXT,
    Lab,
    Outcome,
    alone,
    divided,
    forged,
    impersonated,
    overheard,
    pki,
    vanished,
)
from companions.secure_chat.stage import SECRET as TO_OTHERS
from companions.secure_chat.verify import Wrong, compare, read_lines
from companions.secure_chat.weakened import DOCUMENTED, RULES, without
from lab.catalogue import Attack
from lab.frames import Frame
from lab.verdict import Result, judge
from program import UserError
from tests.programs import ROOT

SETS = json.loads((ROOT / "companions/secure_chat/sets.json").read_text("ascii"))["sets"]
WINNING = [(name, ",".join(sets[0])) for name, sets in SETS.items() if sets]

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
    assert bool(result.won) <= bool(ATTACKS[name].noticed), "won, though something prevents it"


@pytest.mark.slow
def test_members_live_a_whole_session_when_nobody_attacks(lab: Lab) -> None:
    attack = Attack(
        "nothing", "Nobody does anything.", "", lambda lab: None, False, "", None, alone
    )
    outcome = lab.suffer(attack)
    said = [(ALICE, TEXT), (BOB, ANSWER), (ALICE, LAST)]
    assert outcome.said == outcome.taken == said
    assert outcome.heard == {ALICE: said, BOB: said}
    assert outcome.logins == [(BOB, BOB), (ALICE, ALICE)]
    assert {name for name, kept in outcome.kept.items() if kept.is_countersigned} == {ALICE, BOB}
    assert outcome.errors == {"client": [], "server": []}
    for goal in (alone, divided, forged, impersonated, overheard, vanished):
        assert goal(outcome) == ""


@pytest.mark.slow
def test_histories_that_never_cross_are_exposed_by_comparing(lab: Lab) -> None:
    suffer(lab, "uncrossed-histories")
    told = [
        list(read_lines(kept.transcript.read_bytes(), attacks.bundle(kept)))
        for kept in (lab.outcome.kept[name] for name in (ALICE, BOB))
    ]
    heads = [lines[-1].content for lines in told]
    assert heads[0] != heads[1]
    with pytest.raises(Wrong, match="two histories"):
        compare(*told)


# Against weakened ends ----------------------------------------------------------------------------


@pytest.mark.slow
def test_without_their_rules_attacks_win() -> None:
    """Some, others in each run: a run of all attacks takes minutes."""
    for name, rules in random.sample(WINNING, 6):
        result = lost_without(rules, name)
        assert result.words.startswith("WON: "), (name, rules, result.words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rules", "won"),
    [
        ("changed-text", "commitment", f"{BOB} hears from {ALICE}: bring 5000"),
        ("replaced-shares", "shares", f"the password: {PASSWORDS[ALICE]}"),
    ],
)
def test_what_is_won_is_told(name: str, rules: str, won: str) -> None:
    assert lost_without(rules, name).won == won


@pytest.mark.slow
def test_the_documented_protocol_loses_the_password() -> None:
    assert lost_without("documented", "man-in-the-middle").won
    assert {*DOCUMENTED} < RULES.keys()


@pytest.mark.slow
def test_weakened_ends_refuse_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = without(["tag"])
    nobody: Any = None
    with pytest.raises(UserError, match="loopback only"):
        parts.server(nobody, nobody, nobody, Path(), "0.0.0.0")
    with pytest.raises(UserError, match="loopback only"):
        parts.client(nobody, nobody, "localhost", Path(), "192.0.2.1")
    alice = pki().people[ALICE]
    client = parts.client(alice, nobody, "localhost", Path(), "localhost", 1)
    assert client._address == ("127.0.0.1", 1), "the name is not looked up again"

    def listen(host: str, port: int) -> socket.socket:
        assert host == "127.0.0.1", "nor here"
        return socket.socket()

    monkeypatch.setattr(server, "listen", listen)
    parts.server(nobody, nobody, nobody, Path(), "localhost", 0).close()


def test_rule_that_leaves_out_a_check_names_one_that_its_part_has() -> None:
    for rule in RULES.values():
        own = [name for name in vars(rule) if not name.startswith("__")]
        assert any(hasattr(part, name) for part in rule.__bases__ for name in own), rule


# Goals --------------------------------------------------------------------------------------------


def test_goals_name_what_was_won() -> None:
    said = [(ALICE, TEXT)]
    assert "hears from" in forged(Outcome(taken=said))
    assert forged(Outcome(said=said, taken=said)) == ""
    assert forged(Outcome(taken=[(MALLORY, "in her own name")])) == ""
    assert impersonated(Outcome(logins=[(MALLORY, ALICE)]))
    heard = {ALICE: said, BOB: []}
    assert alone(Outcome(heard={ALICE: said}))
    assert not divided(Outcome(said=said, heard=heard))
    assert overheard(Outcome(heard={BOB: [(ALICE, TO_OTHERS)]}))


@pytest.mark.slow
def test_solver_needs_small_factors() -> None:
    from companions.secure_chat import dh
    from companions.secure_chat.weakened import PLANTED_PRIME

    exponent = dh.new_exponent()
    for prime, found in ((PLANTED_PRIME, exponent), (dh.PRIME, None)):
        assert attacks.logarithm(2, pow(2, exponent, prime), prime) == found


# Pages --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_byte_of_every_recorded_frame_is_in_a_field(lab: Lab) -> None:
    for frame in lab.tape:
        found = wire.fields(frame.message)
        assert b"".join(field.content for field in found) == frame.message
        assert len({field.name for field in found}) == len(found)
    titles = [wire.title(frame.message) for frame in lab.tape]
    assert titles[:4] == ["hello", "server_hello", "dh_client", "dh_server"]
    assert "msg, number 1" in titles
    for nonsense in (b"", b"nonsense", b'{"type":"msg"'):
        assert b"".join(field.content for field in wire.fields(nonsense)) == nonsense
