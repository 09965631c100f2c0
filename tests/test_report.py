"""The page of evidence: what it says is what the log says, it is one file, and it can be read."""

from __future__ import annotations

import html.parser
import itertools
import json
import random
import re
import shlex
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import ATTACKS
from classroom import evidence, pictures, report
from classroom.evidence import runs_needed
from classroom.output import write_whole
from classroom.wire import LAB, Field, changes, lab_fields, lab_title
from lab.claims import read_claims, read_sets
from lab.events import KINDS, Run, read_runs, run_of
from lab.observer import Event
from lab.verdict import kind_of
from program import UserError
from protocol_fsm import Opcode
from tests.programs import run as run_program

SAMPLE = (
    "flip-reading",
    "replay-report",
    "replay-rewritten",
    "truncate",
    "recorded-server",
    "reflect",
    "reorder",
    "drop-report",
    "hold",
    "replay-session",
    "guessed-key",
)
HOSTILE = "<script>alert(1)</script>\"'&\u2028"
CLAIMS = read_claims(LAB.data).claims
SETS = read_sets(LAB.data / "sets.json")


def logged(path: Path, *words: str, code: int = 0) -> Path:
    """Write an event log with attacks.py."""
    done = run_program("attacks.py", "--events", path, *words)
    assert (done.returncode, done.stderr) == (code, "")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One attack of each kind."""
    return logged(tmp_path_factory.mktemp("log") / "events.jsonl", "--seed", "report", *SAMPLE)


@pytest.fixture(scope="module")
def runs(log: Path) -> dict[str, Run]:
    return {run.attack: run for run in read_runs(log)}


@pytest.fixture(scope="module")
def page(runs: dict[str, Run]) -> str:
    return report.page([*runs.values()], LAB)


VOID = {"meta", "br", "hr", "img", "link"}  # which have no end


class Outline(html.parser.HTMLParser):
    """What a browser would make of the tags: which there are, and what is inside what."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[str]:
        """Return the values of one attribute, wherever it is."""
        return [given[name] or "" for _, given in self.tags if name in given]


# Messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [*Opcode, 0, 255])
def test_fields_add_up_to_the_bytes_of_the_message(opcode: int) -> None:
    for blocks in (0, 1, 2, 6):
        check_fields(opcode, blocks)


def check_fields(opcode: int, blocks: int) -> None:
    message = struct.pack(">BBIB", opcode, 3, 7, 1) + bytes(range(48 + 16 * blocks))
    fields = lab_fields(message)
    assert b"".join(field.content for field in fields) == message
    assert [field.name for field in fields] == [
        "opcode",
        "client id",
        "round",
        "direction",
        "IV",
        "ciphertext",
        "tag",
    ]
    assert [len(field.content) for field in fields] == [1, 1, 4, 1, 16, 16 * blocks, 32]
    name = Opcode(opcode).name if opcode in {*Opcode} else f"opcode {opcode}"
    assert lab_title(message) == f"{name}, round 7"


def test_a_message_that_is_too_short_is_still_all_there() -> None:
    for length in range(60):
        message = bytes(range(length))
        assert b"".join(field.content for field in lab_fields(message)) == message
        assert lab_title(message)


@pytest.mark.slow
def test_the_touched_bytes_are_those_that_differ(runs: dict[str, Run]) -> None:
    (step,) = [step for step in runs["flip-reading"].steps if step.kind == "changed"]
    differ = [at for at, (old, new) in enumerate(zip(step.sent, step.arrived)) if old != new]
    (view,) = report.message_views(runs["flip-reading"], LAB)
    shown: list[int] = []
    at = 0
    for field in view.fields:
        arrived = field.versions[-1][1]
        for piece in arrived:
            places = range(at, at + len(bytes.fromhex(piece.text)))
            shown += places if piece.is_touched else []
            at = places.stop
    assert shown == differ == [24]
    assert at == len(step.arrived)


@pytest.mark.slow
def test_a_field_that_lost_its_end_is_touched_there_and_the_tag_is_not(
    runs: dict[str, Run],
) -> None:
    (step,) = [step for step in runs["truncate"].steps if step.kind == "changed"]
    touched = {
        change.after.name: change.touched
        for change in changes(lab_fields(step.sent), lab_fields(step.arrived))
    }
    assert {name for name, places in touched.items() if places} == {"ciphertext"}
    assert {*range(32, 48)} < touched["ciphertext"], "the third block is gone"


# Runs ---------------------------------------------------------------------------------------------


def judged(attack: str, without: str, **fields: object) -> Event:
    """Return the last line of a run."""
    usual = dict.fromkeys(("story", "claim", "noticed", "words", "won"), "")
    line = {"attack": attack, "event": "judged", "without": without, "as_expected": True}
    return {**line, **usual, "bystanders": 1, **fields}


KINDS_SEEN = {
    "flip-reading": "passed passed changed passed",
    "replay-report": "passed passed passed held again held late late passed",
    "recorded-server": "dropped inserted",
    "reflect": "passed passed dropped reflected passed passed",
    "reorder": "passed passed held passed late passed",
    "drop-report": "passed passed dropped passed passed",
    "replay-session": "inserted inserted inserted inserted inserted answered answered",
    "guessed-key": "",
}


@pytest.mark.parametrize(("attack", "kinds"), KINDS_SEEN.items(), ids=KINDS_SEEN)
def test_steps_are_told_from_the_log(runs: dict[str, Run], attack: str, kinds: str) -> None:
    assert [step.kind for step in runs[attack].steps] == kinds.split()
    assert {*kinds.split()} <= KINDS.keys()


def test_the_message_that_was_refused_is_marked_with_the_check(runs: dict[str, Run]) -> None:
    refused = {
        attack: [(number, step.refused) for number, step in enumerate(run.steps) if step.refused]
        for attack, run in runs.items()
    }
    assert refused["flip-reading"] == [(2, "BadTag")]
    assert refused["replay-report"] == [(4, "RoundMismatch")], "the second delivery, not the first"
    assert refused["replay-session"] == [(1, "BadTag")]


def test_an_old_message_with_a_new_header_is_set_beside_the_old_one(runs: dict[str, Run]) -> None:
    (step,) = [step for step in runs["replay-rewritten"].steps if step.kind == "inserted"]
    touched = [
        change.after.name
        for change in changes(lab_fields(step.sent), lab_fields(step.arrived))
        if change.touched
    ]
    assert touched == ["round"]


def test_keys_of_both_ends_share_a_row_while_they_agree(runs: dict[str, Run]) -> None:
    labels, rows = report.key_rows(runs["flip-reading"], LAB)
    assert labels == ["C2S-ENC", "C2S-MAC", "S2C-ENC", "S2C-MAC"]
    assert [(row.number, row.who, row.differ) for row in rows] == [
        (1, "both ends", False),
        (2, "both ends", False),
        (3, "client", False),
    ]
    assert [moved for _, moved in rows[1].names] == [True] * 4, "the binding moves all four"
    assert [moved for _, moved in rows[2].names] == [True, True, False, False]


def test_a_message_that_comes_again_moves_keys_once(runs: dict[str, Run]) -> None:
    _, rows = report.key_rows(runs["replay-report"], LAB)
    assert [(row.number, row.who) for row in rows] == [
        (1, "both ends"),
        (2, "both ends"),
        (3, "both ends"),
        (4, "server"),  # the answer, which is held
        (7, "client"),
        (9, "client"),
    ]
    moved = [[is_new for _, is_new in row.names] for row in rows]
    assert moved[2:5] == [[True, True, False, False], *[[False, False, True, True]] * 2]


def test_keys_that_came_apart_are_said_to_differ() -> None:
    sent = bytes(80)
    arrived = bytes(79) + b"\1"
    lines: list[Event] = [
        {"event": "sent", "to": "server", "message": sent},
        {
            "event": "inserted",
            "to": "server",
            "message": arrived,
            "deed": "changed",
            "origin": sent,
        },
        {"event": "keys", "by": "client", "message": sent, "keys": {"K": "11111111"}},
        {"event": "keys", "by": "server", "message": arrived, "keys": {"K": "22222222"}},
    ]
    _, rows = report.key_rows(run_of([{"attack": "a", **line} for line in lines]), LAB)
    assert [(row.who, row.differ) for row in rows] == [("client", True), ("server", True)]


def numbered(event: str, deed: str, number: int, body: bytes = bytes(64)) -> Event:
    message = struct.pack(">BBIB", 30, 1, number, 0) + body
    return {"attack": "many", "event": event, "to": "server", "message": message, "deed": deed}


@pytest.mark.slow
def test_of_very_many_messages_the_middle_is_left_out_everywhere() -> None:
    lines = [numbered("inserted", "inserted", number) for number in range(3_000)]
    text = report.page([run_of(lines)], LAB)
    assert "... 2,987 messages more ..." in text
    assert "CLIENT_DATA, round 2999" in text
    assert len(text) < 200_000


@pytest.mark.slow
def test_of_many_messages_the_one_that_was_touched_is_never_left_out() -> None:
    lines: list[Event] = []
    for number in range(40):
        lines += [numbered("sent", "", number), numbered("delivered", "passed", number)]
    changed = numbered("inserted", "changed", 20, bytes(63) + b"!")
    lines[2 * 20 + 1] = {**changed, "origin": lines[2 * 20]["message"]}
    text = report.page([run_of(lines)], LAB)
    assert "... 16 messages more ..." in text
    assert "... 15 messages more ..." in text
    assert "CLIENT_DATA, round 20" in text
    assert "CLIENT_DATA, round 19" not in text


# The page -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_attack_of_the_log_has_its_place(page: str, runs: dict[str, Run]) -> None:
    outline = Outline(page)
    assert [*runs] == [*SAMPLE]
    for attack, run in runs.items():
        assert f"run-{attack}" in outline.all("id")
        assert f"#run-{attack}" in outline.all("href")
        assert run.verdict["story"] in page
    assert page.count("<svg ") == sum(bool(run.steps) for run in runs.values()) == len(SAMPLE) - 1
    assert "refused by the server: BadTag" in page
    assert "not prevented, noticed by the client&#39;s deadline" in page


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "img", "iframe", "object"}
    assert outline.all("src") == []
    assert "url(" not in page
    assert "@import" not in page
    assert not [link for link in outline.all("href") if not link.startswith("#")]
    assert ("meta", {"charset": "utf-8"}) in outline.tags
    assert ("html", {"lang": "en"}) in outline.tags


def test_links_lead_somewhere_on_the_page(page: str) -> None:
    outline = Outline(page)
    assert {*outline.all("href")} <= {f"#{name}" for name in outline.all("id")}
    assert [name for name, count in Counter(outline.all("id")).items() if count > 1] == []


def test_every_claim_is_there_and_leads_to_its_attacks(page: str) -> None:
    assert len(CLAIMS) > 30
    assert all(f'id="claim-{claim.id}"' in page for claim in CLAIMS)
    assert all(f"<li><code>{name}</code>" in page for c in CLAIMS for name in c.code + c.tests)
    assert '<a href="#run-flip-reading"><code>flip-reading</code></a>' in page
    assert "<code>flip-iv</code>" in page, "which is not in this log, and so no link"
    assert "#run-flip-iv" not in page


def test_the_matrix_is_that_of_the_search_and_its_cells_lead_to_runs() -> None:
    won = judged("replay-report", "ratchet,round", won="it")
    text = report.page([run_of([won])], LAB)
    words = "set a: replay-report wins without round and ratchet"
    assert text.count(f'<a href="#run-replay-report-without-ratchet-round" title="{words}"') == 2
    assert "try python attacks.py --without tag flip-reading" in text


def test_the_summary_has_columns_only_for_what_was_run() -> None:
    whole = run_of([judged("one", "", claim="tags")])
    weakened = run_of([judged("one", "tag", claim="tags", won="it")])
    for runs, groups, counts in (
        ([whole], ["all rules"], "1 0 0"),
        ([weakened], ["rules taken out"], "1 1"),
        ([whole, weakened], ["all rules", "rules taken out"], "1 0 0 1 1"),
    ):
        table = report.page(runs, LAB).partition("</caption>")[2].partition("</table>")[0]
        assert re.findall(r'colspan="\d">(.*?)<', table) == groups
        assert re.findall(r'<td class="number">(\d)<', table) == counts.split()
        assert table.count('<th scope="col" class="number">') == len(counts.split())


@pytest.mark.parametrize(
    ("as_expected", "noticed", "won", "kind"),
    [
        (True, "", "", "held"),
        (True, "the clock", "", "open"),
        (True, "the clock", "time", "open"),
        (True, "", "it", "won"),
        (False, "", "it", "wrong"),
        (False, "the clock", "more", "wrong"),
        (False, "", "", "wrong"),
    ],
)
def test_a_verdict_is_the_one_of_the_terminal_and_says_what_was_won(
    as_expected: bool, noticed: str, won: str, kind: str
) -> None:
    line = judged("x", "tag", as_expected=as_expected, noticed=noticed, won=won)
    verdict = report.verdict_of(run_of([line]))
    assert verdict.kind == kind
    assert won in verdict.words
    terminal = {"held": "refused", "open": "not prevented"}.get(kind, kind)
    assert kind_of(as_expected, noticed, won) == terminal


def test_the_command_that_repeats_a_run_has_its_flags(runs: dict[str, Run]) -> None:
    found = run_of([judged("cut", "tag", again="--seed 'a b'")])
    command = "python attacks.py --seed 'a b' --without tag cut"
    assert report.view_of(found, "", LAB).command == command
    assert report.view_of(run_of([judged("cut", "")]), "", LAB).command == "python attacks.py cut"
    assert runs["flip-reading"].again.startswith("--seed ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [[], ["--without", "documented"]], ids=["all rules", "documented"]
)
def test_the_command_of_a_run_repeats_it_byte_for_byte(flags: list[str], tmp_path: Path) -> None:
    names = ["flip-tag", "replay-rewritten", "flip-answer", "hold", "cut", "replay-hello"]
    log = tmp_path / "events"
    assert run_program("attacks.py", *flags, "--events", str(log), *names).returncode in (0, 1)
    lines = log.read_bytes().splitlines()
    for run in read_runs(log):
        words = shlex.split(report.view_of(run, "", LAB).command)[1:]
        alone = tmp_path / run.attack
        assert run_program(*words, "--events", str(alone)).returncode in (0, 1)
        mine = [line for line in lines if json.loads(line)["attack"] == run.attack]
        assert alone.read_bytes().splitlines() == mine, run.attack


def test_runs_of_one_attack_stand_together() -> None:
    found = [
        run_of([judged(attack, without)])
        for attack, without in (("one", ""), ("two", ""), ("one", "tag"), ("one", "tag"))
    ]
    text = report.page(found, LAB)
    assert re.findall('<h3 id="(.*?)">', text) == [
        "run-one",
        "run-one-without-tag",
        "run-one-without-tag-2",
        "run-two",
    ]


def test_all_that_the_matrix_found_is_run_for_the_evidence() -> None:
    needed = runs_needed(SETS)
    assert needed[""] == []
    assert {(name, rules) for rules, names in needed.items() for name in names} == {
        (name, ",".join(rules)) for name, found in SETS.sets.items() for rules in found
    }


def test_the_same_log_makes_the_same_page(page: str, runs: dict[str, Run]) -> None:
    assert report.page([*runs.values()], LAB) == page


def hostile_lines() -> list[Event]:
    words = dict.fromkeys(("story", "claim", "noticed", "words", "won"), HOSTILE)
    lines: list[Event] = [
        {"event": "sent", "to": "server", "message": "0a"},
        {"event": "inserted", "to": "server", "message": "", "deed": "changed", "origin": "0a"},
        {"event": "keys", "by": "client", "keys": {HOSTILE: HOSTILE}, "message": "0a"},
        {"event": "refused", "by": "server", "error": HOSTILE, "message": ""},
        {"event": "ended", "by": "server", "error": HOSTILE},
        judged(HOSTILE, f"{HOSTILE},\ud800", **words, bystanders=10**9),
    ]
    return [{"attack": HOSTILE, **line} for line in lines]


@pytest.mark.slow
def test_nothing_in_a_log_becomes_a_tag_of_the_page(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    output = tmp_path / "report.html"
    log.write_text("".join(json.dumps(line) + "\n" for line in hostile_lines()))
    title = LAB._replace(
        name=HOSTILE,
        title=lambda message: HOSTILE,
        attacks=HOSTILE,
        fields=lambda message: [Field(HOSTILE, message, HOSTILE)],
    )
    for wire in (LAB, title):
        page = report.page(read_runs(log), wire)
        write_whole(output, page.encode("utf-8", "replace"))
        text = output.read_text("utf-8")
        outline = Outline(text)
        assert "script" not in {tag for tag, _ in outline.tags}
        assert all(re.fullmatch(r"[\w-]+", name) for name in outline.all("id"))
        assert "alert(1)" in text
        assert len(text) < 200_000


# Bad input ----------------------------------------------------------------------------------------

LINE = '{"attack": "a", "event": "ended", "by": "server", "error": "BadTag"}\n'


def spoken(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Return the sentence with which the program ends."""
    monkeypatch.setattr(sys, "argv", ["report.py", *words])
    with pytest.raises(UserError) as caught:
        report.main()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_bad_log_is_one_sentence_and_leaves_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_text(LINE + "{broken\n")
    told = spoken(monkeypatch, str(tmp_path / "log"), "-o", str(tmp_path / "report.html"))
    assert told.endswith("log line 2 is not an event")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_files_that_are_not_there_or_not_right_are_one_sentence(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    output = ("-o", str(tmp_path / "report.html"))
    assert "cannot read " in spoken(monkeypatch, str(tmp_path / "none"), *output)
    assert "cannot read " in spoken(monkeypatch, str(tmp_path / "odd"), *output)
    assert "cannot write " in spoken(monkeypatch, str(log), "-o", str(tmp_path / "folder"))
    assert "cannot write " in spoken(monkeypatch, str(log), "-o", str(tmp_path / "no" / "where"))
    (tmp_path / "matrix").write_text("{}")
    assert "is not what a search for minimal sets writes" in spoken(
        monkeypatch, str(log), *output, "--matrix", str(tmp_path / "matrix")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"odd", "folder", "matrix"}


def test_without_jinja_the_page_says_what_to_install(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    told = spoken(monkeypatch, str(log), "-o", str(tmp_path / "report.html"))
    assert told.endswith("pip install -r requirements-evidence.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_event_of_a_kind_that_is_not_known_is_skipped_and_said(
    log: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.write_text(LINE + '{"attack": "a", "event": "applause", "by": "nobody"}\n')
    matrix = tmp_path / "matrix"
    matrix.write_text('{"size": 1, "sets": {"a": [["tag"]]}, "not_prevented": {}}')
    output = tmp_path / "report.html"
    done = run_program("-m", "classroom.report", log, more, "--matrix", matrix, "-o", output)
    said = f"wrote {output}: {len(SAMPLE) + 1} runs\n"
    assert (done.returncode, done.stdout) == (0, said)
    assert done.stderr == f"{more}: not shown, because not known here: applause\n"
    text = output.read_text("utf-8")
    assert "set a: a wins without tag" in text
    assert "no verdict in the log" in text


# In a browser -------------------------------------------------------------------------------------

CHROMIUM = pictures.find_chromium()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with pictures.browser() as found:
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all attacks, and of one that wins."""
    folder = tmp_path_factory.mktemp("whole")
    one = logged(folder / "1", "--seed", "1")
    other = logged(folder / "2", "--seed", "1", "--without", "tag", "flip-reading", code=1)
    done = run_program("-m", "classroom.report", one, other, "-o", folder / "report.html")
    assert done.stdout.endswith(f": {len(ATTACKS) + 1} runs\n"), done.stderr
    return folder / "report.html"


class TestInABrowser:
    pytestmark = pytest.mark.slow

    @pytest.fixture(
        params=[(1280, "light"), (390, "dark")],
        ids=lambda param: f"{param[0]} {param[1]}",
    )
    def view(self, request: pytest.FixtureRequest, chromium: Any, whole: Path) -> Iterator[Any]:
        """The page as it is shown; it must have said nothing to the console, and asked nobody."""
        width, scheme = request.param
        view = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: asked.append(request.url))
        view.goto(whole.as_uri())
        yield view
        view.close()
        assert (said, asked) == ([], [whole.as_uri()])

    def test_it_never_scrolls_sideways(self, view: Any) -> None:
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        wide = view.evaluate("""[...document.querySelectorAll('body *')].filter(
            e => !e.closest('.scroll') && !e.closest('.skip')
                 && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)""")
        assert wide == []

    def test_letters_are_large_enough_to_read(self, view: Any) -> None:
        assert (
            view.evaluate("""Math.min(...[...document.querySelectorAll('svg text')].map(e =>
            parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a))""")
            >= 10
        )
        assert (
            view.evaluate("""Math.min(...[...document.querySelectorAll('td, th, p, li')].map(e =>
            parseFloat(getComputedStyle(e).fontSize)))""")
            >= 12
        )

    def test_texts_of_a_diagram_stay_inside_it_and_apart(self, view: Any) -> None:
        overlaps = view.evaluate("""[...document.querySelectorAll('svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent,
                t.getBoundingClientRect()]);
            return texts.filter(([t, b]) => b.left < frame.left || b.right > frame.right).concat(
                texts.flatMap(([t, a], i) => texts.slice(i + 1).filter(([u, b]) =>
                    a.left < b.right && b.left < a.right && a.top + 3 < b.bottom
                    && b.top + 3 < a.bottom).map(([u, b]) => [t, u])));
        }).map(pair => pair[0] + ' / ' + pair[1])""")
        assert overlaps == []

    def test_headings_landmarks_and_names_are_there(self, view: Any) -> None:
        levels = view.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later <= sooner + 1 for sooner, later in itertools.pairwise(levels))
        assert view.evaluate(
            "['main', 'nav', 'body > header', 'footer'].map("
            "s => document.querySelectorAll(s).length)"
        ) == [1, 1, 1, 1]
        names = view.evaluate("""[...document.querySelectorAll('svg')].map(svg =>
            svg.getAttribute('aria-labelledby').split(' ').map(id =>
                document.getElementById(id).textContent).join(': '))""")
        assert len({*names}) == len(names) > 30
        assert all(
            view.evaluate("""[...document.querySelectorAll('figure')].map(figure =>
            figure.nextElementSibling.querySelectorAll('li').length > 0)""")
        )

    def test_on_a_telephone_what_is_too_wide_says_that_it_scrolls(self, view: Any) -> None:
        is_narrow = view.viewport_size["width"] < 768
        wide, hints = view.evaluate("""[...document.querySelectorAll('.swipe')].reduce(
            ([wide, hints], hint) => [
                wide + (hint.nextElementSibling.scrollWidth > hint.nextElementSibling.clientWidth),
                hints + (hint.offsetHeight > 0)], [0, 0])""")
        assert hints == (wide if is_narrow else 0)
        assert hints > 30 or not is_narrow
        colours = view.evaluate("""[...document.querySelectorAll('.scroll')].filter(
            e => !getComputedStyle(e).backgroundAttachment.includes('local'))""")
        assert colours == []

    def test_the_tab_key_goes_through_the_page_from_top_to_bottom(self, view: Any) -> None:
        wanted = view.evaluate("""[...document.querySelectorAll('a[href], summary, [tabindex]')]
            .slice(0, 60).map(e => e.outerHTML)""")
        visited = []
        for _ in wanted:
            view.keyboard.press("Tab")
            visited.append(view.evaluate("document.activeElement.outerHTML"))
        assert visited == wanted

    def test_axe_finds_nothing(self, view: Any) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(view)
        assert [
            (rule["id"], [node["html"] for node in rule["nodes"]][:3])
            for rule in found.response["violations"]
        ] == []


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_pictures_are_made_anew_and_small(tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    done = run_program("-m", "classroom.pictures", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {*pictures.PICTURES, *pictures.LIVE}
    for path in tmp_path.iterdir():
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size < 150_000


@pytest.mark.slow
def test_a_page_prints_on_paper(tmp_path: Path, whole: Path, chromium: Any) -> None:
    view = chromium.new_page()
    view.goto(whole.as_uri())
    assert len(view.pdf(format="A4")) > 100_000
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    view.close()


@pytest.mark.slow
def test_the_evidence_shows_minimal_sets_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some sets, others in each run: all of them take minutes."""
    needed = evidence.runs_needed(SETS)
    taken = random.sample([rules for rules in needed if rules], 6)
    assert sum(len(needed[rules]) for rules in needed) == sum(map(len, SETS.sets.values()))
    part = {rules: needed[rules] for rules in ("", *taken)}
    monkeypatch.setattr(evidence, "runs_needed", lambda sets: part)
    monkeypatch.setattr(sys, "argv", ["evidence", str(tmp_path / "evidence")])
    assert evidence.main() == 0
    text = (tmp_path / "evidence" / "report.html").read_text("utf-8")
    others = [rules for rules in needed if rules and rules not in taken]
    cells = sum(len(rules.split(",")) * len(needed[rules]) for rules in others)
    assert text.count('<span title="set ') == cells, "a cell that leads nowhere, or one too many"
    taken_out = [
        run
        for path in (tmp_path / "evidence").glob("*.jsonl")
        for run in read_runs(path)
        if run.without
    ]
    assert len(taken_out) == sum(len(part[rules]) for rules in taken)
    assert [run.title for run in taken_out if report.verdict_of(run).kind != "won"] == []


@pytest.mark.slow
def test_every_attack_is_drawn_or_said_to_have_no_message(whole: Path) -> None:
    text = whole.read_text("utf-8")
    for attack in ATTACKS:
        article = text.partition(f'<article aria-labelledby="run-{attack}">')[2]
        article = article.partition("</article>")[0]
        assert ("<svg" in article) != ("there is nothing to draw" in article), attack


@pytest.mark.parametrize("words", [["log", "read", "-o", "read"], ["log", "--matrix=m", "-o", "m"]])
def test_a_page_does_not_replace_what_it_is_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", *words])
    with pytest.raises(UserError, match="it is read here"):
        report.main()
