"""The adversary of peer_messaging: every attack ends as it should, and shows that it can win."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classroom import report
from companions.asymmetric import PrivateKey
from companions.peer_messaging import attacks, stage, wire
from companions.peer_messaging.attacks import ATTACKS, readable, taped
from companions.peer_messaging.identity import Identity, Trust
from companions.peer_messaging.protocol import Kind, PeerAway
from companions.peer_messaging.stage import ANSWER, FIRST, SECOND, Lab, Outcome, forged
from companions.peer_messaging.weakened import DOCUMENTED, RULES, without
from lab.catalogue import Attack
from lab.events import parse_events, runs_of
from lab.frames import Frame, Frames
from lab.verdict import Result, judge
from program import UserError, plural


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
def test_an_attack_that_hangs_holds_up_no_run_and_is_no_success(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(frames: Frames, lab: Lab) -> Frames:
        yield next(frames)
        released.wait()

    monkeypatch.setattr(stage, "WIRE_S", 0.1)
    monkeypatch.setattr("lab.catalogue.GRACE_S", 0.1)
    attack = Attack("hang", "", "", hang, True, "client", PeerAway, forged)
    try:
        lab.suffer(attack)
        assert judge(attack, lab)[1:3] == (False, "the attack has not ended")
    finally:
        released.set()


def test_a_goal_that_raises_is_a_mistake_in_the_attack(lab: Lab) -> None:
    def goal(outcome: Outcome) -> str:
        raise ZeroDivisionError("oh")

    attack = Attack("pass", "", "", lambda frames, lab: frames, True, "", None, goal)
    lab.suffer(attack)
    assert judge(attack, lab)[1:3] == (False, "the attack raised ZeroDivisionError: oh")


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


def test_stories_fit_a_line() -> None:
    assert not [name for name, attack in ATTACKS.items() if len(attack.story) > 52]


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


def test_what_the_document_leaves_out_are_rules() -> None:
    assert not {*DOCUMENTED} - RULES.keys()


def test_weakened_nodes_refuse_every_address_but_loopback(people: dict[str, Identity]) -> None:
    node = without([]).node
    for at, host in ((("192.0.2.1", 5555), "127.0.0.1"), (("127.0.0.1", 5555), "0.0.0.0")):
        with pytest.raises(UserError, match="loopback only"):
            node(people["alice"], Trust("bob"), at, host)
    with node(people["alice"], Trust("bob"), ("localhost", 5555), "localhost") as weakened:
        assert weakened.address[0] == "127.0.0.1", "the name is not looked up again"
        assert weakened._at == ("127.0.0.1", 5555)


def test_a_name_of_no_rule_is_the_users_fault() -> None:
    with pytest.raises(UserError, match="there is no rule nonsense"):
        without(["nonsense"])


# The program --------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["attacks.py", *words])
    return attacks.PROGRAM.run()


@pytest.mark.slow
def test_the_program_tells_one_attack_in_detail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "swap-texts") == 0
    told = capsys.readouterr().out
    assert "swap-texts: The second text is delivered before the first." in told
    assert "inserted" not in told, "what was sent is delivered, in another order"
    assert "server ended: MessageLost: expected 1, got 2" in told
    assert re.search(r"^order +1 +1 +0 +0 +0$", told, re.MULTILINE)
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.slow
def test_the_program_fails_when_an_attack_wins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--json", "--without", "gap", "drop-text") == 1
    assert json.loads(capsys.readouterr().out)["won"] == "bob hears SECOND, and never FIRST"


@pytest.mark.slow
def test_the_event_log_tells_what_was_done_to_messages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    assert run(monkeypatch, "--events", str(log), "flip-tag", "reflect", "splice") == 0
    runs = runs_of(parse_events(log.read_text("ascii"), "log")[0])
    refused = [
        [(step.kind, step.refused) for step in run.steps if step.kind != "passed"] for run in runs
    ]
    assert [steps[0] for steps in refused] == [
        ("changed", "BadTag"),
        ("reflected", "WrongDirection"),
        ("replaced", "WrongSession"),
    ]


@pytest.mark.slow
def test_a_page_is_drawn_from_the_event_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    page = tmp_path / "report.html"
    assert run(monkeypatch, "--events", str(log), "flip-tag") == 0
    (flip,) = runs_of(parse_events(log.read_text("ascii"), "log")[0])
    assert {line["by"] for line in flip.keys} == {"client", "server"}
    monkeypatch.setattr(sys, "argv", ["wire.py", str(log), "-o", str(page)])
    assert report.main(wire.WIRE) == 0
    assert "N-2" in page.read_text("utf-8")


def message_of(kind: Kind) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=900).map(lambda rest: bytes([kind]) + rest)


@given(st.one_of(st.binary(max_size=200), *map(message_of, Kind)))
def test_the_fields_of_a_message_are_all_of_its_bytes(message: bytes) -> None:
    assert b"".join(field.content for field in wire.fields(message)) == message
    assert wire.title(message)
    assert wire.WIRE.describe(message).endswith(f", {plural(len(message), 'byte')}")
    assert wire.framed(message).endswith(message)


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


def test_the_program_lists_attacks_and_knows_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--list") == 0
    listed = re.findall(r"^  (\S+) ", capsys.readouterr().out, re.MULTILINE)
    assert sorted(listed) == sorted(ATTACKS)
    with pytest.raises(UserError, match="no attack is named nonsense"):
        run(monkeypatch, "nonsense")
