"""classroom/explore.py: it finds nothing in the real protocol, and something in every other one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from classroom.weakened import without

from attacks import random_source
from classroom.explore import (
    Explorer,
    Found,
    copied,
    explore,
    explorer,
    is_alive,
    lasts,
    main,
    mark_of,
    minimal_sets,
    needs,
    tell,
)
from classroom.matrix import SEEDS, SESSION_RULES
from classroom.stage import on_sockets
from classroom.story import CHANGES, CLIENTS, OLD, ROUNDS, Notes, Step, broken, menu, watched
from crypto_utils import BLOCK_BYTES, TAG_BYTES
from program import UserError
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    Direction,
    Keys,
    Message,
    Opcode,
    Session,
    Status,
    bind_keys,
)
from tests.helpers import MASTER_KEY, READINGS

ROOT = Path(__file__).parent.parent
REAL: frozenset[str] = frozenset()

# Sessions with a mistake that somebody could make -------------------------------------------------


class BindsHalf(Session):
    """Ties keys to the client nonce, and forgets the server's."""

    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        if message.opcode is Opcode.SERVER_CHALLENGE:
            return bind_keys(self._keys, message.body[:16], message.body[:16])
        return super()._next_keys(message, ciphertext)


class TagsAllButOneByte(Session):
    """Leaves the last byte of the IV out of what is tagged."""

    def _under_tag(self, untagged: bytes) -> bytes:
        return untagged[: CIPHERTEXT_AT - 1] + untagged[CIPHERTEXT_AT:]


class TrustsReports(Session):
    """Forgets to look at the tag of a report."""

    def _check_tag(self, header: object, message: bytes) -> None:
        if message[0] != Opcode.CLIENT_DATA:
            super()._check_tag(header, message)  # type: ignore[arg-type]


class KeepsReportKeys(Session):
    """Does not move the keys of the client after its reports."""

    def _next_keys(self, message: Message, ciphertext: bytes) -> Keys:
        is_report = message.opcode is Opcode.CLIENT_DATA
        return self._keys if is_report else super()._next_keys(message, ciphertext)


MISTAKES = [BindsHalf, TagsAllButOneByte, TrustsReports, KeepsReportKeys]


def told(found: Found) -> list[str]:
    return [str(step) for step in found.story]


# The real protocol --------------------------------------------------------------------------------


def test_nothing_breaks_with_one_session_and_there_is_nothing_else_to_see() -> None:
    found = Explorer(Session, 1).search(1_000)
    assert found.is_complete
    assert (found.story, found.words) == ((), "")
    assert found.depth > 8, "two rounds, a goodbye, and every farewell"


@pytest.mark.slow
def test_nothing_breaks_with_four_sessions_in_the_first_worlds() -> None:
    found = explorer(REAL).search(500)
    assert not found.story
    assert (len(found.marks), found.is_complete) == (500, False)
    assert found.depth >= 3
    assert found.transitions > 500


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_real_session_is_found(mistake: type[Session]) -> None:
    found = Explorer(mistake, 1).search(1_000)
    assert found.story
    assert found.words


@pytest.mark.slow
def test_the_first_steps_split_the_worlds_and_every_process_counts_the_same() -> None:
    real = explorer(REAL)
    firsts = [step.sender for _, step, _ in real.moves(real.start)]
    assert firsts == [*CLIENTS, *OLD], "whose CLIENT_HELLO server 1 accepts"
    one, other = (real.search(60, first).marks for first in (0, 1))
    assert len(one) == len(other) == 60
    assert not one & other
    assert Explorer(Session).search(60, 0).marks == one


def test_recordings_are_whole_sessions_in_which_nobody_interfered() -> None:
    for client, server in zip(*[iter(explorer(REAL).recorded)] * 2):
        opcodes = [word.opcode.name for word in client.session.said]
        assert opcodes == ["CLIENT_HELLO", *["CLIENT_DATA"] * ROUNDS, "TERMINATE"]
        assert server.session.heard == client.session.said
        assert client.session.heard == server.session.said
        assert client.is_closed
        assert server.is_closed


def test_a_world_counts_by_phases_rounds_and_keys() -> None:
    real = explorer(REAL)
    (number, _, new), *_ = real.moves(real.start)
    assert is_alive(new)
    assert not any(map(is_alive, real.start)), "who has accepted nothing is not counted"
    world = (*real.start[:number], new, *real.start[number + 1 :])
    assert mark_of(world) != mark_of(real.start)


# What the promises are ----------------------------------------------------------------------------


def pair(cls: type[Notes], client_id: int = 1) -> tuple[Notes, Notes]:
    client, server = (cls(client_id, MASTER_KEY, sends) for sends in Direction)
    server.open(client.seal(Opcode.CLIENT_HELLO))
    assert not broken(server, [server, client]), "accepting a CLIENT_HELLO promises nothing"
    client.open(server.seal(Opcode.SERVER_CHALLENGE))
    return client, server


def test_partners_hold_the_same_nonces_and_hear_what_was_said() -> None:
    client, server = pair(watched(Session))
    server.open(client.seal(Opcode.CLIENT_DATA, READINGS))
    assert client.nonces == server.nonces
    assert len(client.nonces) == 2
    assert not broken(server, [client, server])
    assert "no partner" in broken(server, [server])
    assert "2 partner" in broken(server, [server, client, copied(client)])
    stranger = copied(client)
    stranger.client_id = 2
    assert "no partner" in broken(server, [server, stranger])
    client.said = client.said[:-1]
    assert "not what its partner sent" in broken(server, [client, server])


def test_notes_change_no_byte() -> None:
    plain, noted = (
        cls(1, MASTER_KEY, Direction.C2S, random_bytes=random_source("same"))
        for cls in (Session, watched(Session))
    )
    assert plain.seal(Opcode.CLIENT_HELLO) == noted.seal(Opcode.CLIENT_HELLO)


def test_a_copy_goes_its_own_way() -> None:
    client, server = pair(watched(Session))
    report = client.seal(Opcode.CLIENT_DATA, READINGS)
    twin = copied(server)
    twin.open(report)
    assert (len(server.heard), len(twin.heard)) == (1, 2)
    assert server.fingerprints() != twin.fingerprints()
    server.open(report)
    assert server.fingerprints() == twin.fingerprints()


# What the adversary can do ------------------------------------------------------------------------


def test_the_menu_leaves_frames_as_they_are_rewrites_flips_cuts_and_splices() -> None:
    client, server = pair(watched(Session))
    client.seal(Opcode.CLIENT_DATA, READINGS)
    step = Step("server 1", "gets", "client 1", 1)
    steps = [*menu(step, server, client), *menu(step, server, client, is_fine=True)]
    assert steps[0].changed(client) == client.sent[1]
    assert {change for _, *_, change, _ in steps} == {"", *CHANGES}
    assert {field for each in steps for field, _ in each.fields} == {
        "client_id",
        "round_number",
        "direction",
        "opcode",
    }
    lengths = {len(each.changed(client)) - len(client.sent[1]) for each in steps}
    assert {-BLOCK_BYTES, 0, BLOCK_BYTES} <= lengths
    spliced = next(each.changed(client) for each in steps if each.change == "the tag")
    assert (
        spliced[HEADER.size :]
        == client.sent[1][HEADER.size : -TAG_BYTES] + client.sent[0][-TAG_BYTES:]
    )


def test_a_header_is_made_to_fit_with_every_opcode() -> None:
    (client, _), (other, _) = pair(watched(Session)), pair(watched(Session), 2)
    steps = [*menu(Step("client 2", "gets", "client 1", 0), other, client)]
    fitted = {each.changed(client)[: HEADER.size] for each in steps if len(each.fields) == 4}
    assert fitted >= {
        HEADER.pack(opcode, 2, 1, Direction.S2C)
        for opcode in Opcode
        if opcode is not Opcode.CLIENT_HELLO
    }


def test_flips_inside_a_part_are_tried_where_one_at_its_edge_gets_through() -> None:
    weak = explorer(frozenset({"tag"}))
    flips = {step.change for _, step, _ in weak.moves(weak.start) if step.end == "server 1"}
    assert flips >= {f"a bit of byte {n} flipped" for n in range(HEADER.size, CIPHERTEXT_AT)}


def test_a_known_report_becomes_a_goodbye_where_nobody_looks_at_the_tag() -> None:
    client, server = pair(watched(without(["tag-on-terminate"]).session))
    client.seal(Opcode.CLIENT_DATA, READINGS)
    step = next(
        step for step in menu(Step("", "gets", "", 1), server, client) if "goodbye" in step.change
    )
    with pytest.raises(Exception, match="GOODBYE"):
        server.open(step.changed(client))
    assert server.heard[-1] == (Opcode.TERMINATE, Status.GOODBYE, 0, 0, 0, b"", b"")


# Weakened protocols -------------------------------------------------------------------------------


def test_a_story_is_the_shortest_and_is_told_in_words() -> None:
    tale = tell((frozenset({"binding"}), 1_000, False))
    assert told(tale.shortest) == [
        "server 1 gets the CLIENT_HELLO of the old client 1",
        "server 1 gets the CLIENT_DATA of the old client 1",
    ]
    assert (
        tale.shortest.words == "accepts CLIENT_DATA (OK), and has no partner with the same nonces"
    )
    assert tale.needed == {"binding"}
    assert tale.whole is tale.shortest


def test_a_story_needs_its_rules_to_be_missing_and_no_others() -> None:
    echo = frozenset({"echo"})
    binding = frozenset({"binding"})
    story = explorer(echo).search(100).story
    assert lasts(echo | binding, story)
    assert needs(echo | binding, story) == echo
    assert not explorer(REAL).play(story)
    assert not lasts(binding, story)


def test_a_story_works_on_sockets_only_where_the_rules_are_missing() -> None:
    story = explorer(frozenset({"echo"})).search(100).story
    assert "no partner" in on_sockets(without(["echo"]), story)
    assert on_sockets(without([]), story) == ""


def test_a_report_in_clear_is_seen() -> None:
    found = Explorer(without(["encryption"]).session, 1).search(100)
    assert told(found)[-1] == "client 1 reports"
    assert found.words == "sends what can be read on the wire"


def test_sets_are_those_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = minimal_sets()
    assert len(sets) > 20
    assert {frozenset({"tag"}), frozenset({"round", "ratchet"})} <= {*sets}
    monkeypatch.setattr(Path, "read_text", lambda *_: "")
    with pytest.raises(UserError):
        minimal_sets()


# The program --------------------------------------------------------------------------------------


def run_explore(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "classroom.explore", *flags],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def test_one_story_from_end_to_end_through_a_pipe() -> None:
    done = run_explore("--without", "binding")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "without {binding}",
        "  1. server 1 gets the CLIENT_HELLO of the old client 1",
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\r" not in done.stderr
    assert "100%" in done.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--without", "established"], "established"),
        (["--without", "nonsense"], "nonsense"),
        (["--without", "tag", "--sets"], "--sets"),
        (["--states", "0"], "--states"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(
    flags: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["explore", *flags])
    with pytest.raises(UserError, match=word):
        main()


# Slow ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_breaks_in_a_hundred_thousand_worlds_of_four_sessions() -> None:
    done = run_explore("--states", "100000", "--sessions", "4")
    assert done.returncode == 0, done.stderr
    assert "no promise was broken" in done.stdout
    worlds, transitions, depth = (
        int(line.split()[0].replace(",", "")) for line in done.stdout.splitlines()[1:4]
    )
    assert worlds >= 100_000
    assert transitions > worlds
    assert depth >= 5
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_nothing_breaks_in_any_world_of_two_sessions() -> None:
    found = explore(2, 100_000)
    assert found.is_complete
    assert not found.story
    assert len(found.marks) > 1_000


@pytest.mark.slow
def test_every_minimal_set_has_a_story_that_works_on_sockets() -> None:
    done = run_explore("--sets", "--replay")
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "On sockets:" not in done.stdout, "all are the same there"
    sets = minimal_sets()
    assert done.stdout.count("without {") == len(sets)
    assert done.stdout.count("Not looked at") == sum(
        not names <= SESSION_RULES.keys() for names in sets
    )


@pytest.mark.slow
def test_stories_of_minimal_sets_break_nothing_in_the_real_protocol() -> None:
    for names in minimal_sets():
        if names <= SESSION_RULES.keys():
            tale = tell((names, 100_000, False))
            assert tale.shortest.story
            assert tale.needed, "a story that needs nothing to be missing"
            assert tale.whole.story or tale.whole.is_complete
            for found in (tale.shortest, tale.whole):
                assert not any(explorer(REAL, seed).play(found.story) for seed in SEEDS), names
