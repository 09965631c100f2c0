"""The adversary of peer_messaging: every attack ends as it should, and shows that it can win."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from companions.asymmetric import PrivateKey
from companions.peer_messaging import stage, wire
from companions.peer_messaging.attacks import ATTACKS, readable, taped
from companions.peer_messaging.identity import Identity, Trust
from companions.peer_messaging.protocol import Kind
from companions.peer_messaging.stage import ANSWER, FIRST, SECOND, Lab, Outcome, forged
from companions.peer_messaging.weakened import RULES, without
from lab.catalogue import Attack
from lab.frames import Frame, Frames
from lab.verdict import Result, judge
from program import UserError


@pytest.fixture(scope="module", autouse=True)
def people(keys: list[PrivateKey]) -> Iterator[dict[str, Identity]]:
    """Give the lab keys that are there already: to make its own takes long."""
    people = dict(zip(("alice", "bob", "carol", "dave", "mallory"), map(Identity, keys)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "people", lambda: people)
        yield people


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def lab(people: dict[str, Identity]) -> Iterator[Lab]:
    """One lab for all attacks: none may leave a trace in it that another one sees."""
    with Lab(nobody_logs) as lab:
        yield lab


def nobody_logs(deed: str, frame: Frame) -> None:
    """Note nothing."""


def suffer(lab: Lab, name: str) -> Result:
    lab.suffer(ATTACKS[name])
    return judge(ATTACKS[name], lab)


def lost_without(rules: str, name: str) -> Result:
    """Run an attack on nodes that lack some rules."""
    with Lab(nobody_logs, without(rules.split(","))) as lab:
        return suffer(lab, name)


# Against the real thing ---------------------------------------------------------------------------

QUICK = ("flip-text", "swap-texts", "replay-hello", "other-key", "junk")


def check_attack(lab: Lab, name: str) -> None:
    result = suffer(lab, name)
    assert result.as_expected, result.words
    assert result.won == ATTACKS[name].wins


@pytest.mark.parametrize("name", QUICK)
def test_an_attack_is_met_by_the_error_it_names(lab: Lab, name: str) -> None:
    check_attack(lab, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - set(QUICK)))
def test_every_other_attack_is_met_by_the_error_it_names(lab: Lab, name: str) -> None:
    check_attack(lab, name)


def test_the_victims_live_a_whole_session_when_nobody_attacks(lab: Lab) -> None:
    def nothing(frames: Frames, lab: Lab) -> Frames:
        return iter(())

    attack = Attack("nothing", "Nobody does anything.", "", nothing, True, "", None, forged)
    outcome = lab.suffer(attack)
    assert outcome.heard == {"client": [ANSWER], "server": [FIRST, SECOND]}
    assert [len(outcome.met[end]) for end in outcome.met] == [1, 1]
    assert [frame.message[0] for frame in lab.tape][:4] == [1, 2, 3, 4]


@pytest.mark.slow
def test_stolen_session_keys_open_that_session_and_no_other(lab: Lab) -> None:
    stolen: dict[str, bytes] = {}
    opened: list[str] = []

    def steal(frames: Frames, lab: Lab) -> Frames:
        for frame in frames:
            if frame.to == "server" and frame.message[0] == Kind.TEXT:
                stolen.update(lab.alices_session()._keys)
                opened.append(readable(frame.message, stolen))
            yield frame

    lab.suffer(Attack("steal", "", "", steal, True, "", None, forged))
    assert opened == [FIRST, SECOND]
    assert readable(taped(lab, Kind.TEXT).message, stolen) == "", "of another session"


def test_goals_see_what_was_never_said_and_what_never_arrived() -> None:
    gap = Outcome({"client": ["a", "b"], "server": []}, {"client": [], "server": ["b"]})
    assert not forged(gap), "which is another goal's business"
    assert "bob hears" in forged(Outcome(heard={"client": [], "server": ["a"]}))
    twice = Outcome({"client": ["a"], "server": []}, {"client": [], "server": ["a", "a"]})
    assert "bob hears" in forged(twice)
    turned = Outcome({"client": ["a", "b"], "server": []}, {"client": [], "server": ["b", "a"]})
    assert "bob hears" in forged(turned)
    assert "alice believes" in forged(Outcome(confirmed={"client": [1], "server": []}))


def test_a_harmed_bystander_is_a_result_that_is_wrong(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "wait", lambda *_: False)
    assert suffer(lab, "flip-tag").words == "a bystander was harmed"
    monkeypatch.undo()
    assert lab.wait(lambda: lab._told == lab.rounds, 5.0)


# Against weakened nodes ---------------------------------------------------------------------------

SHOWN = (  # rules, attack, what is won; all others stand in SECURITY.md
    ("ephemeral", "stolen-identities", f"the recorded text: {FIRST}"),
    ("fresh-nonce", "eavesdrop", f"from one text the next: {SECOND[:23]}"),
    ("pin", "other-key", f"mallory is told: {FIRST}"),
    ("replay", "replay-text", "bob hears a text that was not sent, or not like that"),
    ("memory,admission", "replay-hello", "bob gives up his session with alice"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "name", "won"), SHOWN[:1])
def test_without_its_rules_an_attack_wins(rules: str, name: str, won: str) -> None:
    assert lost_without(rules, name).won == won


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "name", "won"), SHOWN[1:])
def test_without_other_rules_other_attacks_win(rules: str, name: str, won: str) -> None:
    assert lost_without(rules, name).won == won


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_without_one_rule_honest_sessions_still_work(rule: str) -> None:
    with Lab(nobody_logs, without([rule])) as lab:
        assert lab.bystanders_go_on()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other-key", "stolen-identities", "stolen-memory", "forged-bye"])
def test_what_the_document_leaves_out_lets_attacks_win(name: str) -> None:
    result = lost_without("documented", name)
    assert result.won, result.words


def test_weakened_nodes_refuse_every_address_but_loopback(people: dict[str, Identity]) -> None:
    node = without([]).node
    for at, host in ((("192.0.2.1", 5555), "127.0.0.1"), (("127.0.0.1", 5555), "0.0.0.0")):
        with pytest.raises(UserError, match="loopback only"):
            node(people["alice"], Trust("bob"), at, host)
    with node(people["alice"], Trust("bob"), ("localhost", 5555), "localhost") as weakened:
        assert weakened.address[0] == "127.0.0.1", "the name is not looked up again"
        assert weakened._at == ("127.0.0.1", 5555)


# The program --------------------------------------------------------------------------------------


def test_fields_say_what_they_mean(lab: Lab) -> None:
    hello, reply, confirm = (frame.message for frame in lab.tape[:3])
    assert [field.name for field in wire.fields(hello)] == [
        "kind",
        "version",
        "timestamp",
        "share",
        "public key",
        "signature",
    ]
    assert [len(field.content) for field in wire.fields(reply)] == [1, 1, 8, 32, 32, 451, 256]
    assert [(field.name, field.meaning) for field in wire.fields(confirm)][:4] == [
        ("kind", "CONFIRM"),
        ("session", ""),
        ("sender", "0: INITIATOR"),
        ("sequence", "0"),
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT.*Z", wire.fields(confirm)[4].meaning)
    assert wire.title(confirm) == "CONFIRM, number 0"
