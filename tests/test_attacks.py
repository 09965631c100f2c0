"""The core's attacks: each against the real protocol, and some against weakened ones."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from Crypto.Cipher import AES

import attacks
from attacks import ATTACKS, in_the_middle, up_to
from crypto_utils import TAG_BYTES
from endpoint import DEMO_KEYS, HOST
from lab.catalogue import Catalogue
from lab.frames import Frame, Frames, flipped, xored
from lab.line import Line
from lab.stage import BYSTANDER, LIMITS, READINGS, VICTIM, Lab, Parts, forged
from lab.verdict import judge
from lab.weakened import DOCUMENTED, RULES, without
from program import UserError
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    BadTag,
    DeadlineExpired,
    Header,
    Keys,
    Opcode,
    PeerTerminated,
    Session,
    Status,
)
from server import Limits, Roster, Server
from tests.house import CORE
from tests.network import other_program, serving
from tests.programs import ROOT, Done, run


def ignore(deed: str, frame: Frame) -> None:
    """A log that nobody keeps."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One real lab for all attacks: each must leave it as it was."""
    with Lab("test", ignore) as real:
        yield real


def lab_without(*names: str) -> Lab:
    return Lab("test", ignore, without(names))


# In the middle


def test_an_honest_tap_passes_on_three_answers() -> None:
    answers = in_the_middle(iter)
    assert [answer["sum"] for answer in answers] == [sum(readings) for readings in READINGS]
    assert [answer["round"] for answer in answers] == [1, 2, 3]


def test_a_tap_that_flips_a_bit_ends_the_session() -> None:
    def flip(frames: Frames) -> Frames:
        report = yield from up_to(frames, Opcode.CLIENT_DATA)
        yield flipped(report, -1)
        yield from frames

    with pytest.raises(PeerTerminated) as caught:
        in_the_middle(flip, [[100.0]])
    assert caught.value.status is Status.VIOLATION


# Against the real protocol


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_meets_what_it_must(lab: Lab, name: str) -> None:
    attack = ATTACKS[name]
    outcome = lab.suffer(attack)
    result = judge(attack, lab)
    assert result.as_expected, (result.words, outcome)
    assert result.won == attack.wins
    assert lab.harm == []


def test_an_honest_session_works_after_all_of_them(lab: Lab) -> None:
    tape = lab.honest_session(VICTIM)
    assert [frame.message[0] for frame in tape] == [10, 20, 30, 40, 30, 40, 30, 40, 60]


def test_stolen_chain_keys_open_what_comes_and_not_what_was(lab: Lab) -> None:
    """Those from the middle of round 1 open its answer, and those from its end do not."""
    following = "report 2, answer 2, report 3, answer 3, goodbye 4"
    assert lab.suffer(ATTACKS["stolen-chain-keys"]).learned == (
        f"the keys of the client open answer 1, {following}; "
        f"the keys of the server open {following}"
    )
    assert not lab.suffer(ATTACKS["stolen-keys-backwards"]).learned


def test_a_stolen_master_key_opens_a_recording_whole(lab: Lab) -> None:
    reading = json.dumps(READINGS[0], separators=(",", ":"))
    assert lab.suffer(ATTACKS["stolen-master-key"]).learned == f"the recorded reading {reading}"


def test_a_guessed_key_is_a_guessed_key(lab: Lab) -> None:
    outcome = lab.suffer(ATTACKS["guessed-key"])
    assert [900.0] in outcome.accepted
    assert [900.0] not in outcome.sent


def test_a_held_report_is_late_and_not_lost(lab: Lab) -> None:
    outcome = lab.suffer(ATTACKS["hold"])
    assert outcome.accepted == [READINGS[0]], "nothing prevents that it arrives in the end"


# Against endpoints that are weak in ways of their own


class XorsWithOneByte(Session):
    """A cipher that is none: what is XORed in the same way twice shows that it is equal."""

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        return xored(padded, b"\x5a" * len(padded))

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
        return xored(ciphertext, b"\x5a" * len(ciphertext))


class XorsWithAByteOfTheIV(Session):
    """A cipher that never repeats itself from one message to the next."""

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        return xored(padded, iv[:1] * len(padded))

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        ciphertext = message[CIPHERTEXT_AT:-TAG_BYTES]
        return xored(ciphertext, message[HEADER.size : HEADER.size + 1] * len(ciphertext))


class EncryptsBlocks(Session):
    """AES without chaining: equal blocks of plaintext are equal blocks of ciphertext."""

    def _encrypt(self, padded: bytes, iv: bytes) -> bytes:
        cipher = AES.new(self._key(self.sends, "ENC")[:16], AES.MODE_ECB)
        return b"".join(cipher.encrypt(padded[at : at + 16]) for at in range(0, len(padded), 16))

    def _decrypt(self, header: Header, message: bytes) -> bytes:
        cipher = AES.new(self._key(header.direction, "ENC")[:16], AES.MODE_ECB)
        return cipher.decrypt(message[CIPHERTEXT_AT:-TAG_BYTES])

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        return self._keys


@pytest.mark.parametrize("session", [XorsWithOneByte, XorsWithAByteOfTheIV, EncryptsBlocks])
def test_an_eavesdropper_sees_that_a_cipher_is_none(session: type[Session]) -> None:
    with Lab("test", ignore, Parts(session)) as weak:
        assert weak.suffer(ATTACKS["eavesdrop"]).learned


@pytest.mark.slow
@pytest.mark.parametrize("cap", [LIMITS.max_strangers - 1, 15])
def test_a_flood_is_refused_by_the_limit_that_is_set_and_by_no_other(cap: int) -> None:
    class Roomy(Server):
        def __init__(self, keys: Any, **options: Any) -> None:
            super().__init__(keys, **options)
            self._roster = Roster(cap)

    with Lab("test", ignore, Parts(server=Roomy)) as weak:
        won = ATTACKS["flood"].goal(weak.suffer(ATTACKS["flood"]))
    assert won == f"the server keeps {cap} strangers, where 8 is the limit"


# Against attacks that are not well made


MADE_BADLY = Catalogue(goal=forged)


@MADE_BADLY.on_path("integrity", "server", BadTag)
def waits_in_vain(frames: Frames, lab: Lab) -> Frames:
    """A frame is looked for that never comes."""
    yield from up_to(frames, Opcode.KEY_DESYNC_ERROR)


@MADE_BADLY.on_path("integrity", "server", BadTag)
def stumbles_on_path(frames: Frames, lab: Lab) -> Frames:
    report = yield from up_to(frames, Opcode.CLIENT_DATA)
    yield flipped(report, -1)  # which the server does refuse
    raise TypeError("no such thing")


@MADE_BADLY.outside("session", "server", BadTag)
def stumbles_outside(lab: Lab) -> None:
    with lab.connect() as line:
        line.send(lab.tape[0])
        line.receive()
        line.send(lab.tape[2])
        assert line.receive()
    raise TypeError("no such thing")


def test_an_attack_that_never_finds_its_frame_is_no_success(lab: Lab) -> None:
    """A verdict must not come from an attack that did not happen."""
    attack = MADE_BADLY.attacks["waits-in-vain"]
    lab.suffer(attack)
    assert not judge(attack, lab).as_expected


@pytest.mark.parametrize("name", ["stumbles-on-path", "stumbles-outside"])
def test_an_attack_that_raises_is_broken_though_the_server_refused(lab: Lab, name: str) -> None:
    attack = MADE_BADLY.attacks[name]
    outcome = lab.suffer(attack)
    assert "BadTag" in [type(error).__name__ for error in outcome.errors["server"]]
    result = judge(attack, lab)
    words = "the attack raised TypeError: no such thing"
    assert (result.as_expected, result.words) == (False, words)


@pytest.mark.parametrize("name", ["stumbles-on-path", "stumbles-outside"])
def test_a_broken_attack_without_a_docstring_is_told_and_exits_with_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = replace(attacks.PROGRAM, attacks={name: MADE_BADLY.attacks[name]})
    for flags, told in (
        (["--list"], f"  {name:<28}(an attack without a docstring)"),
        ([], "(an attack without a docstring)                      the attack raised"),
        ([name], "  the attack raised TypeError: no such thing"),
    ):
        monkeypatch.setattr(sys, "argv", ["attacks.py", "--seed", "1", *flags])
        assert program.run() == int(flags != ["--list"])
        out = capsys.readouterr().out
        assert f"{told}" in out
    assert out.splitlines()[-1].split() == [*MADE_BADLY.attacks[name].family.split(), *"10001"]


@MADE_BADLY.on_path("loss", "client", DeadlineExpired, noticed="the client's deadline")
def hangs(frames: Frames, lab: Lab) -> Frames:
    yield from up_to(frames, Opcode.CLIENT_DATA)
    RELEASED.wait()


RELEASED = threading.Event()


def test_an_attack_that_hangs_is_the_last_of_its_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could meddle with the next one; and the deadline that it meets is no refusal."""
    monkeypatch.setattr("lab.proxy.PATIENCE_S", 0.1)
    monkeypatch.setattr("lab.catalogue.GRACE_S", 0.1)
    names = {"hangs": MADE_BADLY.attacks["hangs"], "flip-tag": ATTACKS["flip-tag"]}
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--seed", "1", "--without", "tag"])
    try:
        assert replace(attacks.PROGRAM, attacks=names).run() == 1
    finally:
        RELEASED.set()
    told = capsys.readouterr().out
    assert "the attack has not ended\nhonest session last: worked" in told
    assert "flip" not in told


# Against a server that is not ours: what it says, and that it closes, is all there is to see


@pytest.mark.slow
def test_a_foreign_server_is_judged_by_what_it_says_before_it_closes() -> None:
    with serving(window_s=0.2) as (server, journal):
        done = run_attacks("--server", "{}:{}".format(*server.address))
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[0] == "honest session first: worked (server {}:{})".format(*server.address)
    assert sum("wire: TERMINATE" in line for line in told) > 15
    assert sum("wire: KEY_DESYNC_ERROR" in line for line in told) == 2
    assert sum("wire: closed" in line for line in told) == 1
    skipped = {line.partition(":")[0] for line in told if "skipped" in line}
    theft = {"stolen-chain-keys", "stolen-keys-backwards"}
    assert skipped == {"replay-hello", "cut", "slow-drip", "flood", *theft}
    met = {type(end.detail).__name__ for end in journal.of("end", VICTIM)}
    assert met >= {"BadTag", "RoundMismatch", "WrongPeer", "WrongDirection", "UnexpectedOpcode"}
    assert {
        end.detail.status
        for end in journal.of("end", BYSTANDER)
        if isinstance(end.detail, PeerTerminated)
    } == {Status.GOODBYE}


def test_a_foreign_server_that_lets_an_attack_through_is_found_out() -> None:
    """No win is claimed that cannot be seen from outside; that it was not refused can be."""
    weak = without(["binding"])
    with (
        weak.server(
            DEMO_KEYS, port=0, limits=Limits(window_s=0.2), new_session=weak.session
        ) as server,
        Lab("test", ignore, Parts(*weak), server.address) as outside,
    ):
        outside.suffer(ATTACKS["replay-session"])
        result = judge(ATTACKS["replay-session"], outside)
    assert (result.as_expected, result.words) == (False, "wire: SERVER_AGGR_RESPONSE")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flip-reading", "truncate", "swap-opcode", "forge-goodbye"])
def test_a_foreign_server_that_looks_at_no_tag_is_found_out(name: str) -> None:
    """It refuses in the end, but only what comes after it has believed a lie."""
    weak = without(["tag", "payload"])
    with (
        weak.server(
            DEMO_KEYS, port=0, limits=Limits(window_s=0.2), new_session=weak.session
        ) as server,
        Lab("test", ignore, None, server.address) as outside,
    ):
        outside.suffer(ATTACKS[name])
        assert not judge(ATTACKS[name], outside).as_expected


def test_only_the_server_that_is_asked_for_is_attacked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(window_s=0.2) as (server, journal):
        where = "{}:{}".format(*server.address)
        monkeypatch.setattr(attacks, "PORT", server.address[1])
        for flags in ([], ["--seed", "1"]):
            monkeypatch.setattr(sys, "argv", ["attacks.py", "flip-tag", *flags])
            assert attacks.PROGRAM.run() == 0
            told = capsys.readouterr()
            assert "worked (seed " in told.out
            assert told.err == f"something listens on {where}; attack it with: --server {where}\n"
        assert not journal.records
        monkeypatch.setattr(sys, "argv", ["attacks.py", "flip-tag", "--server", where])
        assert attacks.PROGRAM.run() == 0
        told = capsys.readouterr()
        assert (f"worked (server {where})" in told.out, told.err) == (True, "")
        assert journal.of("end", VICTIM)


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_a_port_that_is_taken_is_noticed_without_a_connection(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    port = taken.getsockname()[1]
    with taken:
        taken.settimeout(0)
        assert not attacks.can_bind(host, port)
        with pytest.raises(BlockingIOError):
            taken.accept()
    assert attacks.can_bind(host, port)


@pytest.mark.slow
def test_a_server_with_other_keys_or_of_another_kind_is_one_sentence() -> None:
    keys = {client_id: bytes(32) for client_id in DEMO_KEYS}
    with Server(keys, port=0) as server, other_program(b"HTTP/1.0 400 Bad Request\r\n") as other:
        for address in (server.address, other):
            where = "{}:{}".format(*address)
            done = run_attacks("--server", where, "flip-tag")
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(f"attacks.py: the program on {where} is not our server,")
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = "{}:{}".format(*taken.getsockname())
    done = run_attacks("--server", free, "flip-tag")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"attacks.py: no server at {free}: nothing listens there\n"


# Against weakened protocols

WINS = [  # an attack, the rules without which it wins, and what it then wins
    ("replay-report", "round,ratchet", "aggregates [100.0"),
    ("replay-session", "binding", "aggregates [100.0"),
    ("replay-session", "documented", "aggregates [100.0"),
    ("replay-hello", "established", "disturbed"),
    ("recorded-server", "documented", "an answer that the server did not give"),
    ("recorded-server", "binding,echo", "an answer that the server did not give"),
    ("flip-reading", "tag", "aggregates [900.0"),
    ("truncate", "tag", "aggregates [100.0, 20.5, 21.0]"),
    ("swap-opcode", "header-in-tag,payload", "the server believes that its peer has said goodbye"),
    ("swap-opcode", "documented", "the server believes that its peer has said goodbye"),
    ("forge-terminate", "tag,payload", "the client believes that its peer has said goodbye"),
    ("reflect-hello", "documented,direction", "the client reports to itself"),
    ("drop-report-keep-goodbye", "ratchet", "its peer has said goodbye"),
    ("forge-goodbye", "tag-on-terminate", "its peer has said goodbye"),
    ("cut", "cut-is-not-goodbye", "its peer has said goodbye"),
    ("flip-answer", "iv-in-tag", "an answer that the server did not give"),
    ("inject-report", "tag,encryption", "aggregates [900.0]"),
    ("unknown-client", "tag,encryption", "nobody's CLIENT_HELLO is answered"),
    ("slow-drip", "frame-deadline", "as long as it likes"),
    ("flood", "stranger-cap", "the server keeps 17 strangers, where 8 is the limit"),
    ("hold-until-reconnected", "hello-order", "the report counts all the same"),
    ("eavesdrop", "encryption", "a reading is 100.0"),
    ("stolen-keys-backwards", "ratchet", "the keys of the client open report 1; the keys of the"),
]


def waits(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if name in ("slow-drip", "flood") else []


@pytest.mark.parametrize(
    ("name", "rules", "won"),
    [pytest.param(*row, id=" ".join(row[:2]), marks=waits(row[0])) for row in WINS],
)
def test_attack_wins_when_its_defence_is_taken_away(name: str, rules: str, won: str) -> None:
    with lab_without(*rules.split(",")) as weak:
        assert won in ATTACKS[name].goal(weak.suffer(ATTACKS[name]))


@pytest.mark.slow
def test_the_padding_oracle_tells_the_secret_and_what_it_cost() -> None:
    with lab_without("tag-first", "uniform-answers", "binding") as weak:
        assert weak.suffer(ATTACKS["padding-oracle"]).learned == (
            "[100.0,20.5,21.0, in 854 connections"
        )


@pytest.mark.slow
def test_the_padding_oracle_forgives_an_answer_that_never_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that is busy for longer than a stranger's deadline closes without a word."""
    hear = Line.receive
    refusals = itertools.count(1)

    def lossy(line: Line) -> bytes:
        message = hear(line)
        is_lost = message[0] != Opcode.SERVER_CHALLENGE and next(refusals) % 20 == 0
        return b"" if is_lost else message

    with lab_without("tag-first", "uniform-answers", "binding") as weak:
        monkeypatch.setattr(Line, "receive", lossy)
        assert weak.suffer(ATTACKS["padding-oracle"]).learned.startswith("[100.0,20.5,21.0")
    assert next(refusals) > 800


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [*([name] for name in RULES), ["documented"], [*RULES]],
    ids=lambda rules: " ".join(rules)[:30],
)
def test_a_weakened_lab_lives_through_honest_sessions(rules: list[str]) -> None:
    if len(rules) == len(RULES):  # as many as can go together: finality keeps sessions alive
        rules = [rule for rule in rules if rule != "finality"]
    with lab_without(*rules) as weak:
        assert len(weak.tape) == 9
        assert weak.bystanders_go_on()


def test_rules_are_known_by_name() -> None:
    assert set(DOCUMENTED) < set(RULES)
    with pytest.raises(UserError, match="no rule nonsense"):
        without(["nonsense"])


def test_weakened_endpoints_refuse_every_address_but_loopback() -> None:
    weak = without(["tag"])
    with pytest.raises(UserError, match="loopback only"):
        weak.server({1: b"k" * 16}, "0.0.0.0", 0)
    with pytest.raises(UserError, match="loopback only"):
        weak.client(1, {1: b"k" * 16}, "192.0.2.1", 9)


@pytest.mark.slow
def test_programs_cannot_reach_weakened_rules() -> None:
    for name in CORE:
        assert "weakened" not in (ROOT / f"{name}.py").read_text()
    loaded = "import attacks, sys; print('lab.weakened' in sys.modules)"
    assert run("-c", loaded).stdout.strip() == "False", "attacks.py loads it only for --without"


# The program


def run_attacks(*flags: str, given: str = "") -> Done:
    if not {*flags} & {"--server", "--seed", "--without"}:
        flags = ("--seed", "test", *flags)
    return run("attacks.py", *flags, given=given)


@pytest.mark.slow
def test_the_demo_tells_every_story_in_ascii_of_80_columns() -> None:
    done = run_attacks()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    for attack in ATTACKS.values():
        assert done.stdout.count(f"\n{attack.story:<53}") == 1
    assert "honest session first: worked" in done.stdout
    assert "honest session last: worked" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_details_of_an_attack_fit_on_twenty_lines() -> None:
    done = run_attacks("-v")
    assert done.returncode == 0
    blocks = done.stdout.split("\n\n")[:-1]
    stories = [block for block in blocks if block.startswith(tuple(f"{n}:" for n in ATTACKS))]
    assert len(stories) >= len(ATTACKS) - 1, "the first one follows the first line"
    assert max(len(block.splitlines()) for block in blocks) <= 21
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_one_attack_is_told_with_the_bytes_that_it_touched() -> None:
    done = run_attacks("flip-reading")
    assert "  server ended: BadTag" in done.stdout
    assert "changed on the way\n    byte 24: " in done.stdout


@pytest.mark.slow
def test_the_six_documented_families_can_be_asked_for() -> None:
    done = run_attacks("documented")
    for name in attacks.DOCUMENTED:
        assert f"\n{ATTACKS[name].story}" in done.stdout
    assert done.returncode == 0


@pytest.mark.slow
def test_a_family_can_be_asked_for_by_name() -> None:
    done = run_attacks("loss", "secrecy")
    stories = [ATTACKS[name].story for name in ("drop-report", "drop-answer", "hold", "eavesdrop")]
    told = [line[:53].rstrip() for line in done.stdout.splitlines()[1:5]]
    assert (told, done.returncode) == (stories, 0)


@pytest.mark.slow
def test_list_names_all_attacks_below_their_families() -> None:
    families: dict[str, list[str]] = {}
    for line in run_attacks("--list").stdout.splitlines():
        assert len(line) < 80
        if re.match("  [a-z]", line):
            families[[*families][-1]].append(line.split()[0])
        elif not line.startswith(" "):
            families[line.rstrip(":")] = []
    assert {name: family for family in families for name in families[family]} == {
        name: attack.family for name, attack in ATTACKS.items()
    }


@pytest.mark.slow
def test_rules_are_named_with_what_is_done_without_them() -> None:
    lines = run_attacks("--rules").stdout.splitlines()
    assert max(map(len, lines)) <= 79
    named = [line.split()[0] for line in lines if line[0] != " "]
    assert named == ["rule", *RULES, "documented"]
    assert "tag                   Believe any tag" in lines


@pytest.mark.slow
def test_blanks_between_rules_do_not_matter() -> None:
    done = run_attacks("--without", "tag, payload", "--json", "flip-reading")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["won"]


@pytest.mark.slow
def test_rules_of_a_second_without_are_taken_out_too() -> None:
    both = ("--without", "header-in-tag", "--without", "payload")
    done = run_attacks(*both, "--json", "swap-opcode")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["won"]


@pytest.mark.slow
def test_json_has_one_object_per_attack() -> None:
    results = [
        json.loads(line) for line in run_attacks("--json", "cut", "hold").stdout.splitlines()
    ]
    assert results == [
        {"attack": "cut", "as_expected": True, "words": "server: ConnectionCut", "won": ""},
        {"attack": "hold", "as_expected": True, "words": "not prevented", "won": ""},
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_events_byte_for_byte(tmp_path: Path) -> None:
    logs = [tmp_path / "one", tmp_path / "two", tmp_path / "other"]
    for path, seed in zip(logs, ("7", "7", "8")):
        assert run_attacks("--seed", seed, "--events", str(path)).returncode == 0
    one, two, other = (path.read_bytes() for path in logs)
    assert one == two
    assert one != other
    events = [json.loads(line) for line in one.splitlines()]
    assert {event["attack"] for event in events} >= {"flip-reading", "replay-session"}
    assert {event["event"] for event in events} == {
        "sent",
        "delivered",
        "inserted",
        "keys",
        "refused",
        "ended",
        "judged",
    }


@pytest.mark.slow
def test_step_waits_for_enter_before_each_attack() -> None:
    done = run_attacks("--step", "cut", "flip-tag", given="\n\n")
    assert done.stdout.count("Enter starts ") == 2
    assert done.returncode == 0


@pytest.mark.slow
def test_step_asks_beside_lines_of_json() -> None:
    done = run_attacks("--step", "--json", "cut", given="\n")
    assert (done.returncode, done.stderr) == (0, "Enter starts cut ")
    assert [json.loads(line)["attack"] for line in done.stdout.splitlines()] == ["cut"]


@pytest.mark.slow
def test_a_won_attack_is_an_exit_code_and_capital_letters() -> None:
    done = run_attacks("--without", "tag", "flip-reading")
    assert done.returncode == 1
    assert "WON: the server aggregates [900.0, 20.5, 21.0, 22.5]" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["nonsense"], "no attack is named nonsense"),
        (["--without", "nonsense"], "there is no rule nonsense"),
        (["--without", "tag,", "echo"], "'tag,' is not a list of rules like tag,echo"),
        (["--events", "/no/where", "cut"], "cannot write /no/where"),
        (["--server", "127.0.0.1:1", "--without", "tag"], "need the lab's own server"),
        (["--server", "192.0.2.1:9"], "the demo keys are published"),
        (["--server", "nonsense"], "'nonsense' is not HOST:PORT"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_sentence(flags: list[str], sentence: str) -> None:
    done = run_attacks(*flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert sentence in done.stderr


# A file of one's own

OWN = """
from attacks import Frames, Lab, edited, on_path, outside, up_to
from dataclasses import dataclass
from protocol_fsm import BadTag, Opcode

@dataclass
class Unused:
    number: int

@on_path("freshness", "client", BadTag)
def stale_answer(frames: Frames, lab: Lab) -> Frames:
    old = yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)
    yield old
    yield from up_to(frames, Opcode.SERVER_AGGR_RESPONSE)
    yield edited(old, round_number=2)

@outside("order", "server", BadTag)
def with_a_typo(lab: Lab) -> None:
    with lab.connect() as line:
        line.sent(lab.tape[0])
"""


@pytest.mark.slow
def test_a_file_of_attacks_is_run_beside_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "my attacks"
    path.write_text(OWN)
    done = run_attacks("--file", str(path))
    assert (done.returncode, done.stderr) == (1, "")
    told = done.stdout.splitlines()
    assert "stale-answer: (an attack without a docstring)" in told
    assert "  client: BadTag" in told
    assert "  the attack raised AttributeError: 'Line' object has no attribute 'sent'" in told
    assert [line.split() for line in told if line.startswith(("freshness", "order"))] == [
        ["freshness", *"11000"],
        ["order", *"10001"],
    ]
    assert not [*tmp_path.glob("__pycache__")]


@pytest.mark.slow
def test_a_file_of_attacks_is_known_to_all_flags(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text(OWN)
    assert "stale-answer" in run_attacks("--file", str(path), "--list").stdout
    done = run_attacks(
        "--file", str(path), "--without", "ratchet,header-in-tag", "stale-answer", "flip-tag"
    )
    assert "WON: the client believes an answer that the server did not give" in done.stdout
    events = tmp_path / "events.jsonl"
    assert run_attacks("--file", str(path), "stale-answer", "--events", str(events)).returncode == 0
    judged = json.loads(events.read_text().splitlines()[-1])
    assert judged["again"] == f"--seed test --file {path}"


DECORATED = 10 if sys.version_info >= (3, 11) else 11  # where a failing decorator is shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot read {}: No such file or directory"),
        ("", "there is no attack in {}: put @on_path(...) or @outside(...) before one"),
        ("\nfor", "{}: SyntaxError: invalid syntax ("),
        ("\n\nnonsense", "{} line 3: NameError: name 'nonsense' is not defined"),
        ("import sys\nsys.exit(0)", "{} line 2: SystemExit: 0"),
        ("raise ValueError('a\\nb')", "{} line 1: ValueError: a b"),
        (
            OWN.replace("stale_answer", "flip_tag"),
            f"{{}} line {DECORATED}: UserError: there are two attacks",
        ),
        (
            OWN.replace('"client", BadTag', '"client", "BadTag"'),
            f"{{}} line {DECORATED}: UserError: stale-answer: the error must be",
        ),
        (
            OWN.replace('"client"', '"sever"'),
            f"{{}} line {DECORATED}: UserError: stale-answer is refused by",
        ),
    ],
)
def test_a_file_without_attacks_is_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.py"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--file", str(path)])
    with pytest.raises(UserError) as caught:
        attacks.PROGRAM.run()
    assert str(caught.value).startswith(sentence.format(path))
    assert "\n" not in str(caught.value)


def test_a_file_without_a_name_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in --file "$MINE", where nothing has set it: all other attacks would run instead."""
    monkeypatch.setattr(sys, "argv", ["attacks.py", "--list", "--file", ""])
    with pytest.raises(UserError, match="cannot read"):
        attacks.PROGRAM.run()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_a_signal_in_the_middle_of_an_attack_ends_the_program(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_text(OWN.replace("line.sent(lab.tape[0])", "import os; os.kill(os.getpid(), 15)"))
    done = run_attacks("--file", str(path), "with-a-typo")
    assert (done.returncode, done.stderr) == (143, "")
