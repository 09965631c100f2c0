"""classroom/model/: the models are this protocol, the page is about them, and the runner reads it.

Each model is played with real bytes, beside real Sessions. What is `true` only ProVerif can say;
for what is `false` one bad run is enough, and it is here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from attacks import ATTACKS
from classroom.model.__main__ import UNKNOWN, expected_results, query_in, results_in
from lab.claims import read_claims
from lab.weakened import without
from protocol_fsm import (
    KEY_LABELS,
    VERSION,
    ClientData,
    ClientHello,
    Direction,
    LocalError,
    Message,
    Opcode,
    ProtocolError,
    ServerAggrResponse,
    ServerChallenge,
    Session,
    Status,
    Terminate,
)
from tests.applied_pi import Model, Role, Value, World, joined, tokens_of, without_comments
from tests.helpers import worded
from tests.programs import ROOT, run
from tests.sessions import refusal

FOLDER = ROOT / "classroom" / "model"
PAGE = (FOLDER / "README.md").read_text("utf-8")
TEXTS = {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.pv"))}
CLIENT_ID = 3
MASTER_KEY = b"client3_master_k"

OPCODES = {
    "HELLO": Opcode.CLIENT_HELLO,
    "CHAL": Opcode.SERVER_CHALLENGE,
    "DATA": Opcode.CLIENT_DATA,
    "RESP": Opcode.SERVER_AGGR_RESPONSE,
    "TERM": Opcode.TERMINATE,
}
LABELS = {"C2SE": "C2S-ENC", "C2SM": "C2S-MAC", "S2CE": "S2C-ENC", "S2CM": "S2C-MAC"}
STATUSES = {"OK": Status.OK, "BYE": Status.GOODBYE, "VIOL": Status.VIOLATION}
DIRECTIONS = {"C2S": Direction.C2S, "S2C": Direction.S2C}
CONSTANTS = {
    **{name: label.encode() for name, label in LABELS.items()},
    **{name: bytes([number]) for name, number in {**OPCODES, **STATUSES, **DIRECTIONS}.items()},
    **{f"R{number}": number.to_bytes(4, "big") for number in range(3)},
    "V1": VERSION,
}
SECRET = b",19.0]"
BODIES = {"d1": b"[21.5", "d2": b"[22.5", "a1": b'{"sum":40.5}', "a2": b'{"sum":41.5}'}
FILLER = {"(VIOL, VIOL)": "(VIOL)", "(=VIOL, u: bitstring)": "(=VIOL)"}  # the page says why
CHAIN = {"e": "C2S-ENC", "m": "C2S-MAC", "se": "S2C-ENC", "sm": "S2C-MAC"}  # names in the models
MOVED = {
    Opcode.SERVER_CHALLENGE: KEY_LABELS,
    Opcode.CLIENT_DATA: KEY_LABELS[:2],
    Opcode.SERVER_AGGR_RESPONSE: KEY_LABELS[2:],
}
WEAKENED = {"documented.pv": {"binding", "echo"}, "terminate_without_ratchet.pv": {"ratchet"}}


class Step(NamedTuple):
    """A message: who sends it, and the names that its random values and its body have."""

    sender: str
    opcode: Opcode
    draws: str
    body: str = ""
    status: Status = Status.OK


HANDSHAKE = [
    Step("Client", Opcode.CLIENT_HELLO, "cn iv0"),
    Step("Server", Opcode.SERVER_CHALLENGE, "sn siv0"),
]
ROUNDS = [
    *HANDSHAKE,
    Step("Client", Opcode.CLIENT_DATA, "n1 iv1", "d1"),
    Step("Server", Opcode.SERVER_AGGR_RESPONSE, "siv1", "a1"),
    Step("Client", Opcode.CLIENT_DATA, "n2 iv2", "d2"),
    Step("Server", Opcode.SERVER_AGGR_RESPONSE, "siv2", "a2"),
]
GOODBYE = [*ROUNDS[:3], Step("Client", Opcode.TERMINATE, "n2 iv2", status=Status.GOODBYE)]
REFUSAL = [*HANDSHAKE, Step("Server", Opcode.TERMINATE, "tiv1", status=Status.VIOLATION)]
CONVERSATIONS = [
    *((name, ROUNDS) for name in TEXTS if not name.startswith("terminate")),
    *(
        (name, steps)
        for name in TEXTS
        if name.startswith("terminate")
        for steps in (GOODBYE, REFUSAL)
    ),
]


def fresh(seed: str) -> Callable[[str], bytes]:
    """Return what draws a value by its name: the same 16 bytes for the same seed and name."""
    return lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()[:16]


class Play:
    """One session of a model: both of its ends, and what an attacker does between them."""

    def __init__(self, name: str, seed: str = "one", world: World | None = None) -> None:
        text = TEXTS[name]
        self.secret = SECRET if "SECRET" in text else b""
        for old, new in FILLER.items():
            text = text.replace(old, new)
        self.world = world or World(Model(text), {**CONSTANTS, "SECRET": self.secret})
        self.world.keys = [(bytes([CLIENT_ID]), MASTER_KEY)]
        self.fresh = fresh(seed)
        self.wire: list[Value] = []
        self.ends = {
            "Client": self._role("Client", bytes([CLIENT_ID]), MASTER_KEY),
            "Server": self._role("Server"),
        }

    def _role(self, process: str, *arguments: Value) -> Role:
        return Role(self.world, process, arguments, self.draw)

    def draw(self, name: str) -> bytes:
        return self.body(name) if name in BODIES else self.fresh(name)

    def body(self, name: str) -> bytes:
        """Return a body; a report ends with SECRET, where the model has no place for that."""
        return BODIES[name] + (SECRET if name[0] == "d" and not self.secret else b"")

    def next_message(self, step: Step) -> Value:
        """Return what is sent in this step; a refusal has to be provoked."""
        end = self.ends[step.sender]
        if step.status is Status.VIOLATION:
            assert end.provoke()
        self.wire.append(end.sent[sum(self.is_from(step.sender, m) for m in self.wire)])
        return self.wire[-1]

    @staticmethod
    def is_from(sender: str, message: Value) -> bool:
        return message[3] == CONSTANTS["C2S" if sender == "Client" else "S2C"]

    def receiver(self, step: Step) -> Role:
        return self.ends["Client" if step.sender == "Server" else "Server"]

    def go(self, steps: list[Step]) -> Play:
        for step in steps:
            assert self.receiver(step).deliver(self.next_message(step)), step
        return self

    def events(self, name: str) -> list[Value]:
        """Return the values of each event of this name, at both ends."""
        return [
            event[1:]
            for end in self.ends.values()
            for event in end.events
            if event[0] == name.encode()
        ]


class Code:
    """The same session by the code, which draws the same random values."""

    def __init__(self, name: str, play: Play) -> None:
        self.play = play
        self.wire: list[bytes] = []
        kind = without(WEAKENED.get(name, set())).session
        self.draws: dict[str, list[str]] = {"Client": [], "Server": []}
        self.ends = {
            end: kind(CLIENT_ID, MASTER_KEY, direction, random_bytes=self._source(end))
            for end, direction in (("Client", Direction.C2S), ("Server", Direction.S2C))
        }
        self.keys = defaultdict[str, list[bytes]](list)  # every value of each chain key
        self._note(KEY_LABELS)

    def _source(self, end: str) -> Callable[[int], bytes]:
        """Return what draws the values in `draws`; after them comes a farewell, which is any."""
        draws = self.draws[end]
        return lambda size: self.play.fresh(draws.pop(0) if draws else "farewell")

    def _note(self, labels: tuple[str, ...]) -> None:
        for label in labels:
            self.keys[label].append(self.ends["Client"]._keys[label])

    def next_message(self, step: Step) -> bytes:
        self.draws[step.sender] += step.draws.split()
        self.wire.append(self.ends[step.sender].seal(self.message_of(step)))
        return self.wire[-1]

    def message_of(self, step: Step) -> Message:
        if step.opcode is Opcode.CLIENT_DATA:
            return worded(ClientData([]), self.play.body(step.body) + self.play.secret)
        if step.opcode is Opcode.SERVER_AGGR_RESPONSE:
            return worded(ServerAggrResponse({}), self.play.body(step.body))
        if step.opcode is Opcode.TERMINATE:
            return Terminate(step.status)
        return ClientHello() if step.opcode is Opcode.CLIENT_HELLO else ServerChallenge()

    def receiver(self, step: Step) -> Session:
        return self.ends["Client" if step.sender == "Server" else "Server"]

    def go(self, steps: list[Step]) -> Code:
        for step in steps:
            message = self.next_message(step)
            if step.opcode is Opcode.TERMINATE:
                refusal(self.receiver(step), message)
                continue
            self.receiver(step).open(message)
            self._note(MOVED.get(step.opcode, ()))
        return self


# The models are this protocol


def test_every_message_label_direction_and_status_is_in_a_model_or_left_out_on_the_page() -> None:
    assert {name for text in TEXTS.values() for name in Model(text).constants} == set(CONSTANTS)
    assert set(LABELS.values()) == set(KEY_LABELS)
    assert set(DIRECTIONS.values()) == set(Direction)
    left_out = PAGE[PAGE.index("## What is left out") : PAGE.index("## How to run them")]
    absent = {o.name for o in Opcode} - {o.name for o in OPCODES.values()}
    absent |= {s.name for s in Status} - {s.name for s in STATUSES.values()}
    assert absent == {"KEY_DESYNC_ERROR", "REPLACED", "SHUTDOWN", "TIMEOUT"}
    assert all(name in left_out for name in absent)


@pytest.mark.parametrize(("name", "steps"), CONVERSATIONS)
def test_both_ends_of_a_model_send_what_the_code_sends(name: str, steps: list[Step]) -> None:
    """Opcodes, order of fields, formulas of keys, and what is under the tag, all at once."""
    play = Play(name).go(steps)
    code = Code(name, play).go(steps)
    assert [joined(message) for message in play.wire] == code.wire


@pytest.mark.parametrize(("name", "steps"), CONVERSATIONS)
def test_both_ends_of_a_model_have_the_chain_keys_of_the_code(name: str, steps: list[Step]) -> None:
    play = Play(name).go(steps)
    code = Code(name, play).go(steps)
    for end in play.ends.values():
        for short, label in CHAIN.items():
            values = [end.names[f"{short}{n}"] for n in range(4) if f"{short}{n}" in end.names]
            assert len(values) >= 2
            expected = code.keys[label][: len(values)]
            assert values[: len(expected)] == expected, label


def test_the_keys_that_are_stolen_are_those_of_round_3() -> None:
    play = Play("stolen_chain_keys.pv").go(ROUNDS)
    assert play.ends["Client"].sent[-1] == tuple(
        Code("stolen_chain_keys.pv", play).go(ROUNDS).keys[label][3] for label in KEY_LABELS
    )
    play = Play("stolen_master_key.pv").go(ROUNDS)
    assert play.ends["Client"].sent[-1] == MASTER_KEY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"), [("core.pv", ROUNDS), ("terminate.pv", GOODBYE), ("terminate.pv", REFUSAL)]
)
def test_a_message_with_one_field_changed_is_refused_by_model_and_code(
    name: str, steps: list[Step]
) -> None:
    for at, step in enumerate(steps):
        for field in range(7):
            play = Play(name).go(steps[:at])
            code = Code(name, play).go(steps[:at])
            fields = [*play.next_message(step)]
            value = joined(fields[field])
            fields[field] = value[:-1] + bytes([value[-1] ^ 1])
            assert not play.receiver(step).deliver(tuple(fields)), (step, field)
            code.next_message(step)
            with pytest.raises(ProtocolError):
                code.receiver(step).open(joined(tuple(fields)))


# What the models of one family share

CORE_TO_THEFT = [
    ("event Bad(bitstring).", ""),
    (
        "query i: bitstring, s: bitstring, r: bitstring, d: bitstring; "
        "inj-event(SAccept(i, s, r, d)) ==> inj-event(CSend(i, s, r, d)) || event(Bad(i)).",
        "",
    ),
    (
        "query i: bitstring, s: bitstring, r: bitstring, d: bitstring; "
        "inj-event(CAccept(i, s, r, d)) ==> inj-event(SSend(i, s, r, d)).",
        "",
    ),
    ("query i: bitstring, s: bitstring, d: bitstring; event(SAccept(i, s, R2, d)).", ""),
    (
        "event CAccept(i, sid, R2, a2).",
        "event CAccept(i, sid, R2, a2);"
        " let e3 = H2(e2, ct2) in let m3 = H2(m2, n2) in"
        " let se3 = H2(se2, a2) in let sm3 = H2(sm2, OK) in phase 1; out(c, STOLEN).",
    ),
    (
        "| !(new bid: bitstring; new bmk: key; event Bad(bid); insert keys(bid, bmk);"
        " out(c, (bid, bmk)))",
        "",
    ),
]
BOUND = (
    "let e1 = H3(e0, cn, sn) in let m1 = H3(m0, cn, sn) in let se1 = H3(se0, cn, sn) in"
    " let sm1 = H3(sm0, cn, sn) in"
)
UNBOUND = (
    "let e1 = H2(e0, ct0) in let m1 = H2(m0, cn) in let se1 = H2(se0, ({}, sn)) in"
    " let sm1 = H2(sm0, OK) in"
)
FAMILY = {  # what to change in a model to get another; each old text is there once
    "stolen_chain_keys.pv": ("core.pv", [*CORE_TO_THEFT, ("STOLEN", "(e3, m3, se3, sm3)")]),
    "stolen_master_key.pv": ("core.pv", [*CORE_TO_THEFT, ("STOLEN", "mk")]),
    "documented.pv": (
        "core.pv",
        [
            CORE_TO_THEFT[0],
            CORE_TO_THEFT[-1],
            ("|| event(Bad(i))", ""),
            (
                "(=OK, =cn, sn: bitstring) = dec(se0, sct0) in " + BOUND,
                "(=OK, cn': bitstring, sn: bitstring) = dec(se0, sct0) in " + UNBOUND.format("cn'"),
            ),
            (BOUND, UNBOUND.format("cn")),
            ("x1: bitstring", "=SECRET"),
            ("x2: bitstring", "=SECRET"),
        ],
    ),
    "terminate_in_handshake.pv": (
        "terminate.pv",
        [
            (
                "( in(c, (=CHAL,",
                "( in(c, (=TERM, =i, r: bitstring, =S2C, tiv: bitstring,"
                " tct: bitstring, tt: bitstring)); "
                "if tt = mac(sm0, (TERM, i, r, S2C, tiv, tct)) then "
                "let (=VIOL, u: bitstring) = dec(se0, tct) in event CTerm(i, VIOL) )"
                " | ( in(c, (=CHAL,",
            ),
            (
                "( if t0 =",
                "( in(c, bad: bitstring); new tiv0: bitstring; event STerm(i, VIOL);"
                " let tc0 = enc(se0, tiv0, (VIOL, VIOL)) in out(c, (TERM, i, R0, S2C, tiv0, tc0,"
                " mac(sm0, (TERM, i, R0, S2C, tiv0, tc0)))) ) | ( if t0 =",
            ),
        ],
    ),
    "terminate_without_ratchet.pv": (
        "terminate.pv",
        [
            (
                "let ct1 = enc(e1, iv1, (n1, d1)) in out(c, (DATA, i, R1, C2S, iv1, ct1,"
                " mac(m1, (DATA, i, R1, C2S, iv1, ct1)))); let e2 = H2(e1, ct1) in"
                " let m2 = H2(m1, n1) in",
                "let ct1 = enc(e1, iv1, (n1, d1)) in out(c, (DATA, i, R1, C2S, iv1, ct1,"
                " mac(m1, (DATA, i, R1, C2S, iv1, ct1)))); let e2 = e1 in let m2 = m1 in",
            ),
            ("let e2 = H2(e1, ct1) in let m2 = H2(m1, n1) in", "let e2 = e1 in let m2 = m1 in"),
        ],
    ),
}


def spelled(text: str) -> str:
    """Return a model with one blank between its words, and no comments."""
    return " ".join(tokens_of(text))


@pytest.mark.parametrize("name", FAMILY)
def test_a_model_is_the_one_it_comes_from_but_for_what_it_is_about(name: str) -> None:
    origin, changes = FAMILY[name]
    text = spelled(TEXTS[origin])
    for old, new in changes:
        assert text.count(spelled(old)) == 1, old
        text = text.replace(spelled(old), spelled(new))
    assert text.split() == spelled(TEXTS[name]).split()


def test_every_model_belongs_to_a_family() -> None:
    assert {*FAMILY, *(origin for origin, _ in FAMILY.values())} == set(TEXTS)


def test_families_declare_the_same_functions() -> None:
    declared = [
        re.findall(r"^(?:fun|reduc|type|table|free c)\b.*", without_comments(text), re.M)
        for text in (TEXTS["core.pv"], TEXTS["terminate.pv"])
    ]
    assert [line.rstrip() for line in declared[0]] == [line.rstrip() for line in declared[1]]


# What is false: one bad run of the model


def replayed(name: str) -> tuple[Play, Play]:
    """Play a session, and another one of which only the server, and the client, get its bytes."""
    first = Play(name).go(ROUNDS)
    second = Play(name, "two", first.world)
    for message in first.wire:
        for end, sender in (("Server", "Client"), ("Client", "Server")):
            if Play.is_from(sender, message):
                second.ends[end].deliver(message)
    return first, second


def bad_run_of_a_recorded_client(name: str) -> bool:
    first, second = replayed(name)
    return not set(second.events("SAccept")) <= {*first.events("CSend"), *second.events("CSend")}


def bad_run_of_a_recorded_server(name: str) -> bool:
    first, second = replayed(name)
    return not set(second.events("CAccept")) <= {*first.events("SSend"), *second.events("SSend")}


def bad_run_of_a_refusal_used_twice(name: str) -> bool:
    """A server is provoked wherever it can be, and two clients hear all that it said."""
    first = Play(name)
    first.ends["Server"].deliver(first.next_message(HANDSHAKE[0]))
    while first.ends["Server"].provoke():
        pass
    second = Play(name, "two", first.world)
    for message in first.ends["Server"].sent:
        for play in (first, second):
            play.ends["Client"].deliver(message)
    accepted = Counter(first.events("CTerm") + second.events("CTerm"))
    return bool(accepted - Counter(first.events("STerm")))


def bad_run_of_a_report_that_vanished(name: str) -> bool:
    play = Play(name).go(HANDSHAKE)
    for step in GOODBYE[2:]:
        message = play.next_message(step)
    play.receiver(step).deliver(message)
    return bool(play.events("SBye")) and not play.events("SGot")


def bad_run_of_a_stolen_master_key(name: str) -> bool:
    """Whoever has the key and the recording goes the way of the server."""
    wire = Play(name).go(ROUNDS)
    stolen = wire.ends["Client"].sent[-1]
    if not isinstance(stolen, bytes):
        return False
    thief = Play(name, "two", wire.world)
    thief.world.keys = [(bytes([CLIENT_ID]), stolen)]
    thief.fresh = wire.fresh  # it has read the server nonce
    for message in wire.wire:
        thief.ends["Server"].deliver(message)
    return SECRET in thief.ends["Server"].names.values()


def reaches(event: str, steps: list[Step], round_name: str = "") -> Callable[[str], bool]:
    return lambda name: any(
        not round_name or values[2] == CONSTANTS[round_name]
        for values in Play(name).go(steps).events(event)
    )


BAD_RUNS: dict[str, Callable[[str], bool]] = {  # by query
    "inj-event(SAccept) ==> inj-event(CSend)": bad_run_of_a_recorded_client,
    "inj-event(SAccept) ==> inj-event(CSend) || event(Bad)": bad_run_of_a_recorded_client,
    "inj-event(CAccept) ==> inj-event(SSend)": bad_run_of_a_recorded_server,
    "inj-event(CTerm) ==> inj-event(STerm)": bad_run_of_a_refusal_used_twice,
    "event(SBye) ==> event(SGot)": bad_run_of_a_report_that_vanished,
    "attacker(SECRET)": bad_run_of_a_stolen_master_key,
    "event(SAccept)": reaches("SAccept", ROUNDS, "R2"),
    "event(SBye)": reaches("SBye", GOODBYE),
    "event(CTerm)": reaches("CTerm", REFUSAL),
}


@pytest.mark.parametrize(
    ("name", "query"),
    [
        (name, query)
        for name in TEXTS
        for query in BAD_RUNS
        if query_in(query) in expected_results().get(name, {})
    ],
)
def test_a_result_is_false_where_a_bad_run_shows_it_and_nowhere_else(name: str, query: str) -> None:
    result = expected_results()[name][query_in(query)]
    if result != UNKNOWN:
        assert BAD_RUNS[query](name) == (result == "false")


def test_everything_that_is_false_has_its_bad_run() -> None:
    false = {
        query
        for results in expected_results().values()
        for query, result in results.items()
        if result == "false"
    }
    assert false <= {query_in(query) for query in BAD_RUNS}


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("documented.pv", "inj-event(SAccept) ==> inj-event(CSend)"),
        ("documented.pv", "inj-event(CAccept) ==> inj-event(SSend)"),
        ("terminate_without_ratchet.pv", "event(SBye) ==> event(SGot)"),
    ],
)
def test_the_bad_run_is_bad_only_in_the_model_it_is_for(name: str, query: str) -> None:
    assert BAD_RUNS[query](name)
    assert not BAD_RUNS[query](FAMILY[name][0])


def test_the_code_has_no_terminate_in_the_handshake() -> None:
    code = Code("terminate.pv", Play("terminate.pv")).go(HANDSHAKE[:1])
    with pytest.raises(LocalError):
        code.ends["Server"].seal(Terminate(Status.VIOLATION))


# The page


def test_the_page_has_every_query_of_every_model_in_the_same_order() -> None:
    asked = {
        name: [
            query_in(query)
            for query in re.findall(r"^query(.*?)\.$", without_comments(text), re.M | re.DOTALL)
        ]
        for name, text in TEXTS.items()
    }
    assert asked == {name: [*results] for name, results in expected_results().items()}
    assert min(map(len, asked.values())) >= 1
    assert {result for results in expected_results().values() for result in results.values()} == {
        "true",
        "false",
        UNKNOWN,
    }


def test_claims_of_the_page_are_claimed() -> None:
    named = set(re.findall(r"\bS-\d+\b", PAGE))
    assert named
    assert named <= {claim.id for claim in read_claims(ROOT / "classroom").claims}


def test_links_attacks_tests_and_commands_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert target.startswith("https://") or (FOLDER / target).exists(), target
    assert set(re.findall(r"attacks? `([\w-]+)`", PAGE)) <= set(ATTACKS)
    for path in re.findall(r"`(tests/\w+\.py)`", PAGE):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"`proverif (\w+\.pv)`", PAGE)) == set(TEXTS)
    for model in re.findall(r"python -m classroom\.model (\S+\.pv)", PAGE):
        assert model in TEXTS


def test_sections_that_the_models_cite_exist() -> None:
    protocol = (ROOT / "PROTOCOL.md").read_text("utf-8")
    headings = set(re.findall(r"^#+ ([\d.]+) ", protocol, re.M))
    for name, text in TEXTS.items():
        cited = {
            part for group in re.findall(r"\[P ([\d., ]+)\]", text) for part in group.split(", ")
        }
        assert cited, name
        assert cited <= headings, name
        assert max(map(len, text.splitlines())) <= 100, name


# The runner, with a ProVerif that says what we want it to say, and with the real one


def spoken(name: str) -> str:
    """Return what ProVerif would print for a model if all is as expected."""
    lines = ["Linear part:", "-- Query not attacker(SECRET[]) in process 0."]
    for query, result in expected_results()[name].items():
        terms = [
            f"{kind}({word}({'i_1,s' if kind != 'attacker' else ''}))".replace("()", "[]")
            for kind, word in query
        ]
        text = " || ".join([" ==> ".join(terms[:2]), *terms[2:]])
        negation = "" if len(terms) > 1 else "not "
        lines.append(f"RESULT {negation}{text} is {result if result != UNKNOWN else 'false'}.")
        if len(terms) > 1 and result == "false":
            lines.append(f"RESULT (but {text.replace('inj-', '')} is true.)")
    return "\n".join(lines)


def run_model(*arguments: str, path: str, timeout: float = 60) -> tuple[int, str, str]:
    done = run("-m", "classroom.model", *arguments, timeout_s=timeout, env={"PATH": path})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a proverif in it, which prints the file that is named like the model."""
    program = tmp_path / "proverif"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("cat")} "{tmp_path}/$1.txt"\n')
    program.chmod(0o755)
    for name in TEXTS:
        (tmp_path / f"{name}.txt").write_text(spoken(name))
    return tmp_path


needs_sh = pytest.mark.skipif(sys.platform == "win32", reason="the fake proverif is a sh script")


@pytest.mark.slow
@needs_sh
def test_the_runner_is_content_if_all_is_as_expected(fake: Path) -> None:
    code, out, err = run_model(path=str(fake))
    assert (code, err) == (0, "")
    assert "WRONG" not in out
    assert [line for line in out.splitlines() if line[0] != " "] == [*expected_results()]


@pytest.mark.slow
@needs_sh
@pytest.mark.parametrize(
    "change",
    [
        ("is true", "is false"),
        ("is true", "cannot be proved"),
        ("RESULT not event(SBye", "nothing"),
        ("RESULT not", "RESULT not event(CSend(i)) is true.\nRESULT not"),
    ],
)
def test_the_runner_marks_each_unexpected_result(fake: Path, change: tuple[str, str]) -> None:
    text = fake / "terminate.pv.txt"
    text.write_text(text.read_text().replace(*change, 1))
    code, out, _ = run_model("terminate.pv", path=str(fake))
    assert code == 1
    assert out.count("WRONG") == 1


@pytest.mark.slow
@needs_sh
def test_a_model_that_proverif_does_not_take_is_one_sentence(fake: Path) -> None:
    (fake / "core.pv.txt").unlink()
    code, _, err = run_model("core.pv", path=str(fake))
    assert code == 2
    assert err.startswith("model: proverif fails on core.pv, and says: ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_without_proverif_the_runner_says_so_in_one_sentence(tmp_path: Path) -> None:
    code, out, err = run_model(path=str(tmp_path))
    assert (code, out) == (2, "")
    assert err == (
        "model: there is no proverif on PATH; classroom/model/README.md has how to get it\n"
    )
    assert run_model("other.pv", path=str(tmp_path))[0] == 2


def test_results_in_brackets_are_remarks() -> None:
    assert results_in(
        "RESULT not attacker_p1(SECRET[]) is true.\n"
        "RESULT inj-event(A(i_1,s)) ==> inj-event(B(i_1,s)) is false.\n"
        "RESULT (but event(A(i_1)) ==> event(B(i_1)) is true.)\n"
    ) == {query_in("attacker(SECRET)"): "true", query_in("inj-event(A) ==> inj-event(B)"): "false"}


@pytest.mark.slow
def test_proverif_finds_what_the_page_says() -> None:
    if not shutil.which("proverif"):
        pytest.skip("there is no proverif on PATH")
    code, out, err = run_model(path=os.environ["PATH"], timeout=900)
    assert (code, err) == (0, ""), out


@pytest.mark.parametrize("model", TEXTS)
def test_nothing_is_hidden_from_the_attacker_but_the_secret(model: str) -> None:
    """A private function or wire would make every result true, and worth nothing."""
    text = TEXTS[model]
    hidden = re.findall(r"^(.*)\[private\]", text, re.MULTILINE)
    assert {line.strip() for line in hidden} <= {"free SECRET: bitstring"}
    assert re.search(r"^free c: channel\.", text, re.MULTILINE)
    assert re.search(r"^  \| !Server\(\)", text, re.MULTILINE)
    assert "!Client(id, mk)" in text
