"""classroom/explore.py: it finds nothing in the real protocol, and something in every other one."""

from __future__ import annotations

import random
import re
import sys

import pytest

from attacks import ATTACKS
from classroom.explore import (
    ALL,
    LOOKED_AT,
    ONE,
    TWICE,
    TWO,
    Explorer,
    Found,
    Place,
    Standing,
    copied,
    explore,
    explorer,
    giving_way,
    is_alive,
    lasts,
    main,
    mark_of,
    minimal_sets,
    needs,
    rounds_of,
    tell,
    Clients,
)
from classroom.matrix import SEEDS, MemoryLab, Pieces
from classroom.stage import on_sockets
from classroom.story import CHANGES, OLD, ROUNDS, Notes, Step, broken, menu, theft_broken
from crypto_utils import BLOCK_BYTES, NONCE_BYTES, TAG_BYTES, hmac_sha256
from lab.search import wins
from lab.weakened import without
from program import UserError
from protocol_fsm import (
    CIPHERTEXT_AT,
    HEADER,
    KEY_LABELS,
    BadTag,
    ClientHello,
    Direction,
    EchoMismatch,
    Header,
    Keys,
    Opcode,
    PeerTerminated,
    ServerChallenge,
    Session,
    Status,
    bind_keys,
)
from server import Roster
from tests.helpers import MASTER_KEY, REPORT
from tests.programs import Done, run

REAL: frozenset[str] = frozenset()

# Sessions with a mistake that somebody could make -------------------------------------------------


class BindsHalf(Session):
    """Ties keys to the client nonce, and forgets the server's."""

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        if opcode is Opcode.SERVER_CHALLENGE:
            return bind_keys(self._keys, self._client_nonce, self._client_nonce)
        return super()._next_keys(opcode, plaintext, ciphertext)


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

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        if opcode is Opcode.CLIENT_DATA:
            return self._keys
        return super()._next_keys(opcode, plaintext, ciphertext)


class NumbersReports(Roster[Place]):
    """Puts sessions into the order of their first reports."""

    def establish(self, stranger: Place) -> None:
        self.number_hello(stranger)
        super().establish(stranger)


MISTAKES = [BindsHalf, TagsAllButOneByte, TrustsReports, KeepsReportKeys]

# Those that only a thief finds, one for each of the four chains


def forgetful(moves: str, label: str) -> type[Session]:
    """Return a session that leaves one chain as it is, in the handshake or in rounds."""

    class LeavesOneChain(Session):
        def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
            new = super()._next_keys(opcode, plaintext, ciphertext)
            is_binding = opcode is Opcode.SERVER_CHALLENGE
            leaves = is_binding if moves == "binding" else not is_binding
            return {**new, label: self._keys[label]} if leaves else new

    return LeavesOneChain


class MovesForTwoRounds(Session):
    """Moves no key in round 3 and later."""

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        if self.round_number > 2:
            return self._keys
        return super()._next_keys(opcode, plaintext, ciphertext)


# Those that another rule covers, and with which that rule alone would not do


def leaving_out(place: int) -> type[Session]:
    """Return a session that leaves one byte of the header out of what is tagged."""

    class LeavesOneByteOut(Session):
        def _under_tag(self, untagged: bytes) -> bytes:
            return untagged[:place] + untagged[place + 1 :]

    return LeavesOneByteOut


class TagsOfHalf(Session):
    """Compares 16 bytes of a tag."""

    half = slice(0, 16)

    def _check_tag(self, header: Header, message: bytes) -> None:
        untagged = self._under_tag(message[:-TAG_BYTES])
        tag = hmac_sha256(self._key(header.direction, "MAC"), untagged)
        if tag[self.half] != message[-TAG_BYTES:][self.half]:
            raise BadTag


class TagsOfTheOtherHalf(TagsOfHalf):
    half = slice(16, 32)


class EchoesHalf(Session):
    """Compares 8 bytes of the echo."""

    def _check_echo(self, client_nonce: bytes) -> None:
        if client_nonce[:8] != self._client_nonce[:8]:
            raise EchoMismatch("our own client nonce", "another")


class RefusesOldRoundsOnly(Session):
    def _check_round(self, header: Header) -> None:
        if header.round_number < self.round_number:
            super()._check_round(header)


class BindsServerNonce(Session):
    """Ties keys to the server's nonce, and forgets the client's."""

    def _next_keys(self, opcode: Opcode, plaintext: bytes, ciphertext: bytes) -> Keys:
        if opcode is Opcode.SERVER_CHALLENGE:
            return bind_keys(self._keys, b"", plaintext[1 + NONCE_BYTES :])
        return super()._next_keys(opcode, plaintext, ciphertext)


ID_AT, ROUND_AT, DIRECTION_AT = 1, 5, 6
COVERED: list[tuple[type[Session], str]] = [  # a mistake, and the rules that cover it
    (EchoesHalf, "tag"),
    (leaving_out(ID_AT), "id"),
    (leaving_out(DIRECTION_AT), "direction,payload,direction-keys"),
    (RefusesOldRoundsOnly, "header-in-tag"),
]


def both(mistake: type[Session], rules: str) -> type[Session]:
    """Return a session that makes a mistake and lacks some rules."""
    return type("Both", (mistake, without(rules.split(",")).session), {})


def told(found: Found) -> list[str]:
    return [str(step) for step in found.story]


# The real protocol --------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_breaks_with_one_session_and_there_is_nothing_else_to_see() -> None:
    found = Explorer(Session, ONE, rounds=3, has_thief=True).search(1_000)
    assert found.is_complete
    assert (found.story, found.words) == ((), "")
    assert found.depth > 12, "three rounds, a goodbye, and every farewell"


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", [*MISTAKES, TagsOfHalf, TagsOfTheOtherHalf, leaving_out(ROUND_AT)]
)
def test_a_mistake_in_the_real_session_is_found(mistake: type[Session]) -> None:
    found = Explorer(mistake, ONE).search(1_000)
    assert found.story
    assert found.words


@pytest.mark.slow
@pytest.mark.parametrize("moves", ["binding", "rounds"])
@pytest.mark.parametrize("label", KEY_LABELS)
def test_a_chain_that_stays_is_found_by_a_thief(moves: str, label: str) -> None:
    found = Explorer(forgetful(moves, label), ONE, has_thief=True).search(1_000)
    assert "holds a key of an old" in found.words


@pytest.mark.slow
@pytest.mark.parametrize("moves", ["binding", "rounds"])
@pytest.mark.parametrize("label", KEY_LABELS)
def test_a_chain_that_stays_is_covered_by_the_others_if_there_is_no_thief(
    moves: str, label: str
) -> None:
    assert not Explorer(forgetful(moves, label), ONE).search(1_000).story


@pytest.mark.slow
def test_keys_that_stay_from_the_third_round_on_take_three_rounds() -> None:
    for rounds in (2, 3):
        found = Explorer(MovesForTwoRounds, ONE, rounds=rounds, has_thief=True).search(1_000)
        assert bool(found.story) is (rounds == 3)
    assert rounds_of(ONE) == 3


@pytest.mark.slow
def test_clients_with_one_key_are_found_by_an_insider() -> None:
    mistake = without(["client-keys"]).session
    assert Explorer(mistake, ONE, has_thief=True).search(100).words == (
        "has a key that another client has, too"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "rules"), COVERED)
def test_a_mistake_is_covered_by_a_rule_that_is_not_enough_with_it(
    mistake: type[Session], rules: str
) -> None:
    """Without the mistake the same story breaks nothing."""
    assert not Explorer(mistake, ONE, has_thief=True).search(1_000).story
    alone = Explorer(without(rules.split(",")).session, ONE)
    found = Explorer(both(mistake, rules), ONE).search(
        1_000, is_enough=lambda story: not alone.play(story)
    )
    assert found.story


@pytest.mark.slow
def test_a_binding_by_the_server_alone_is_covered_by_the_echo() -> None:
    """A story ends at the challenge without a partner; the attack goes on to an answer."""
    assert not Explorer(BindsServerNonce, ONE, has_thief=True).search(1_000).story
    attack = ATTACKS["recorded-server"]
    for session, is_won in (
        (BindsServerNonce, False),
        (without(["echo"]).session, False),
        (both(BindsServerNonce, "echo"), True),
    ):
        with MemoryLab(Pieces(session)) as world:
            assert wins(attack, world) is is_won


@pytest.mark.slow
def test_the_first_steps_split_the_worlds_and_every_process_counts_the_same() -> None:
    real = explorer(REAL)
    firsts = [step.sender for _, step, _ in real.moves(real.start)]
    assert firsts == [*ALL, *OLD], "whose CLIENT_HELLO server 1 accepts"
    one, other = (real.search(60, first).marks for first in (0, 1))
    assert len(one) == len(other) == 60
    assert not one & other
    assert Explorer(Session).search(60, 0).marks == one


def test_recordings_are_whole_sessions_in_which_nobody_interfered() -> None:
    for client, server in zip(*[iter(explorer(REAL).recorded)] * 2):
        words = [str(said) for said in client.notes.said]
        assert words == ["CLIENT_HELLO", *["CLIENT_DATA"] * ROUNDS, "TERMINATE (GOODBYE)"]
        assert server.notes.heard == client.notes.said
        assert client.notes.heard == server.notes.said
        assert client.is_closed
        assert server.is_closed


@pytest.mark.slow
def test_a_world_counts_by_phases_rounds_and_keys() -> None:
    real = explorer(REAL)
    (number, _, new), *_ = real.moves(real.start)
    assert is_alive(new)
    assert not any(map(is_alive, real.start)), "an end that has accepted nothing does not count"
    world = (*real.start[:number], new, *real.start[number + 1 :])
    assert mark_of(world) != mark_of(real.start)


# What the promises are ----------------------------------------------------------------------------


class Watched:
    """A session, and notes of what it seals and accepts."""

    def __init__(self, sends: Direction, client_id: int, cls: type[Session]) -> None:
        self.notes = Notes(client_id, sends)
        self.session = cls(
            client_id,
            MASTER_KEY,
            sends,
            watchers=[self.notes.watch],
            key_log=self.notes.hold,
        )
        self.notes.attach(self.session)


def pair(client_id: int = 1, cls: type[Session] = Session) -> tuple[Watched, Watched]:
    client, server = (Watched(sends, client_id, cls) for sends in Direction)
    server.session.open(client.session.seal(ClientHello()))
    everybody = [server.notes, client.notes]
    assert not broken(server.notes, everybody), "accepting a CLIENT_HELLO promises nothing"
    client.session.open(server.session.seal(ServerChallenge()))
    return client, server


def test_partners_hold_the_same_nonces_and_hear_what_was_said() -> None:
    client, server = pair()
    server.session.open(client.session.seal(REPORT))
    me = server.notes
    assert client.notes.nonces == me.nonces
    assert len(me.nonces) == 2
    assert not broken(me, [client.notes, me])
    assert "no partner" in broken(me, [me])
    twin = copied(client.session, client.notes)[1]
    assert "2 partner" in broken(me, [me, client.notes, twin])
    twin.client_id = 2
    assert "no partner" in broken(me, [me, twin])
    client.notes.said = client.notes.said[:-1]
    assert "not what its partner sent" in broken(me, [client.notes, me])


def test_what_is_accepted_is_what_was_sent_byte_by_byte() -> None:
    client, server = pair()
    server.session.open(client.session.seal(REPORT))
    ends = [client.notes, server.notes]
    assert not broken(server.notes, ends)
    server.notes.got = (server.notes.got[0], server.notes.got[1][:-1] + b"?")
    assert "not what its partner sent" in broken(server.notes, ends)


def test_keys_are_of_what_is_on_its_way_and_of_nothing_else() -> None:
    client, server = pair()
    report = client.session.seal(REPORT)
    ends = [client.notes, server.notes]
    assert not broken(server.notes, ends, has_thief=True), "the report is on its way"
    old = dict(server.session._keys)
    server.session.open(report)
    assert not broken(server.notes, ends, has_thief=True)
    server.session._keys = old
    assert not broken(server.notes, ends)
    assert broken(server.notes, ends, has_thief=True) == "holds a key of an old CLIENT_DATA"
    client.notes.client_id = 2
    client.notes.nonces = ()
    assert "another client" in theft_broken(server.notes, ends)


def test_a_session_gives_way_to_a_later_one_that_has_reported_and_to_no_other() -> None:
    (client, server), (again, later) = pair(), pair()
    (other, stranger) = pair(2)
    server.session.open(client.session.seal(REPORT))
    stranger.session.open(other.session.seal(REPORT))
    server.session.goodbye(Status.REPLACED)
    ends = [end.notes for end in (client, server, again, later, other, stranger)]
    assert "no later session" in broken(server.notes, ends)
    later.session.open(again.session.seal(REPORT))
    assert not broken(server.notes, ends)
    ends.remove(server.notes)
    assert "no later session" in broken(server.notes, [*ends, server.notes])


def test_a_farewell_that_a_program_only_believes_is_noted_once() -> None:
    _, server = pair()
    server.notes.stop(PeerTerminated(Opcode.TERMINATE, Status.GOODBYE))
    assert str(server.notes.heard[-1]) == "TERMINATE (GOODBYE)"
    server.notes.stop(PeerTerminated(Opcode.TERMINATE, Status.GOODBYE))
    assert len(server.notes.heard) == 2


def test_a_copy_goes_its_own_way() -> None:
    client, server = pair()
    report = client.session.seal(REPORT)
    twin, notes = copied(server.session, server.notes)
    twin.open(report)
    assert (len(server.notes.heard), len(notes.heard)) == (1, 2)
    assert server.session.fingerprints() != twin.fingerprints()
    server.session.open(report)
    assert server.session.fingerprints() == twin.fingerprints()


def test_the_roster_of_the_server_says_who_gives_way() -> None:
    fresh, greeted, member, gone = (
        Standing(1, rank, is_closed)
        for rank, is_closed in ((0, False), (1, False), (2, False), (2, True))
    )

    def others(*standings: Standing, number: int, rank: int) -> list[int]:
        return giving_way(Roster(8), standings, number, rank)

    assert others(member, fresh, number=1, rank=1) == []
    assert others(member, greeted, number=1, rank=2) == [0]
    assert others(greeted, member, number=0, rank=2) == [0], "itself, since its HELLO is older"
    assert others(greeted, gone, number=0, rank=2) == [0]
    assert others(greeted, gone, greeted, number=2, rank=2) == []
    assert others(member._replace(client_id=2), greeted, number=1, rank=2) == []


# What the adversary can do ------------------------------------------------------------------------


def test_the_menu_leaves_frames_as_they_are_rewrites_flips_cuts_and_splices() -> None:
    sender, server = pair()
    sender.session.seal(REPORT)
    client = sender.notes
    step = Step("server 1", "gets", "client 1", 1)
    steps = [
        *menu(step, server.session, client),
        *menu(step, server.session, client, is_fine=True),
    ]
    assert steps[0].changed(client) == client.sent[1]
    assert {change for _, *_, change, _ in steps} == {"", *CHANGES}
    places = (n for flip in CHANGES for n in re.findall(r"a bit of byte (\d+) flipped", flip))
    assert [*map(int, places)] == [*range(CIPHERTEXT_AT + BLOCK_BYTES)]
    assert sum("of its tag flipped" in flip for flip in CHANGES) == TAG_BYTES
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
    (client, _), (other, _) = pair(), pair(2)
    steps = [*menu(Step("client 2", "gets", "client 1", 0), other.session, client.notes)]
    fitted = {each.changed(client.notes)[: HEADER.size] for each in steps if len(each.fields) == 4}
    assert fitted >= {
        HEADER.pack(opcode, 2, 1, Direction.S2C)
        for opcode in Opcode
        if opcode is not Opcode.CLIENT_HELLO
    }


@pytest.mark.slow
def test_flips_inside_a_part_are_tried_where_one_at_its_edge_gets_through() -> None:
    weak = explorer(frozenset({"tag"}))
    flips = {step.change for _, step, _ in weak.moves(weak.start) if step.end == "server 1"}
    assert flips >= {f"a bit of byte {n} flipped" for n in range(HEADER.size, CIPHERTEXT_AT)}


def test_a_known_report_becomes_a_goodbye_where_nobody_looks_at_the_tag() -> None:
    client, server = pair(cls=without(["tag-on-terminate"]).session)
    client.session.seal(REPORT)
    steps = menu(Step("", "gets", "", 1), server.session, client.notes)
    step = next(step for step in steps if "goodbye" in step.change)
    with pytest.raises(PeerTerminated, match="GOODBYE"):
        server.session.open(step.changed(client.notes))
    assert str(server.notes.heard[-1]) == "TERMINATE (GOODBYE)"


# Weakened protocols -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_story_is_the_shortest_and_is_told_in_words() -> None:
    tale = tell((frozenset({"binding"}), 1_000, False))
    assert told(tale.shortest) == [
        "server 1 gets the CLIENT_HELLO of the old client 1",
        "server 1 gets the CLIENT_DATA of the old client 1",
    ]
    assert tale.shortest.end == "server 1"
    assert tale.shortest.words == "accepts CLIENT_DATA, and has no partner with the same nonces"
    assert tale.needed == {"binding"}
    assert tale.whole is tale.shortest


@pytest.mark.slow
def test_a_story_needs_its_rules_to_be_missing_and_no_others() -> None:
    echo = frozenset({"echo"})
    binding = frozenset({"binding"})
    story = explorer(echo).search(100).story
    assert lasts(echo | binding, story)
    assert needs(echo | binding, story) == echo
    assert not explorer(REAL).play(story)
    assert not lasts(binding, story)


@pytest.mark.slow
def test_a_story_works_on_sockets_only_where_the_rules_are_missing() -> None:
    story = explorer(frozenset({"echo"})).search(100).story
    assert "no partner" in on_sockets(without(["echo"]), story, story[-1].end)
    assert on_sockets(without([]), story, story[-1].end) == ""


@pytest.mark.slow
def test_a_session_that_gives_way_to_a_mere_hello_is_found() -> None:
    tale = tell((frozenset({"established"}), 1_000, False))
    assert told(tale.shortest)[-1].startswith("server 2 gets the CLIENT_HELLO of")
    assert (tale.shortest.end, tale.shortest.words) == (
        "server 1",
        "is replaced, and no later session of its client has reported",
    )


@pytest.mark.slow
def test_a_report_in_clear_is_seen() -> None:
    found = Explorer(without(["encryption"]).session, ONE).search(100)
    assert told(found)[-1] == "client 1 reports"
    assert found.words == "sends what can be read on the wire"


def test_sets_are_those_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = minimal_sets()
    assert len(sets) > 20
    assert {frozenset({"tag"}), frozenset({"round", "ratchet"})} <= {*sets}
    monkeypatch.setattr("lab.claims.read_text", lambda path: "")
    with pytest.raises(UserError):
        minimal_sets()


# The program --------------------------------------------------------------------------------------


def run_explore(*flags: str) -> Done:
    return run("-m", "classroom.explore", *flags, timeout_s=300)


@pytest.mark.slow
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
    assert re.match(r"looking at up to [\d,]+ worlds at a time, .*\n", done.stderr)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--without", "stranger-cap"], "stranger-cap"),
        (["--without", "nonsense"], "nonsense"),
        (["--without", "nonsense", "--without", "tag"], "nonsense"),
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
def test_nothing_breaks_in_three_thousand_worlds_of_four_sessions() -> None:
    done = run_explore("--states", "3000", "--sessions", "4")
    assert done.returncode == 0, done.stderr
    assert "no promise was broken" in done.stdout
    worlds, transitions, depth = (
        int(line.rpartition(": ")[2].partition(", ")[0].replace(",", ""))
        for line in done.stdout.splitlines()[1:4]
    )
    assert worlds >= 3_000
    assert transitions > worlds
    assert depth >= 3
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("clients", [TWO, TWICE], ids=["of two clients", "of one client"])
def test_nothing_breaks_in_any_world_of_two_sessions(clients: Clients) -> None:
    found = explore(clients, 100_000)
    assert found.is_complete
    assert not found.story
    assert len(found.marks) > 1_000


@pytest.mark.slow
def test_a_roster_that_takes_a_held_report_for_new_is_found() -> None:
    found = Explorer(Session, TWICE, roster=NumbersReports).search(100_000)
    assert told(found)[-1] == "server 1 gets the CLIENT_DATA of client 1"
    assert (found.end, found.words[:11]) == ("server 2", "is replaced")


@pytest.mark.slow
def test_stories_of_minimal_sets_work_on_sockets_and_break_nothing_in_the_real_protocol() -> None:
    sets = [names for names in minimal_sets() if names <= LOOKED_AT]
    for names in random.sample(sets, 1):  # others in each run: `--sets --replay` takes minutes
        print("without", sorted(names))
        tale = tell((names, 100_000, True))
        assert tale.shortest.story
        assert tale.on_sockets == (tale.shortest.words, tale.whole.words)
        assert tale.needed, "a story that needs nothing to be missing"
        assert tale.whole.story or tale.whole.is_complete
        for found in (tale.shortest, tale.whole):
            assert not any(explorer(REAL, seed=seed).play(found.story) for seed in SEEDS)
