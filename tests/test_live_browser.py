"""The live page in a real Chromium: a hand on the wire, rules as switches, finished logs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import playwright  # noqa: F401 (it drives the browser; without it this file is left out)
import pytest

from classroom import pictures
from classroom.live.app import in_background
from classroom.live.room import Room
from classroom.live.scene import Feed
from classroom.live.views import PROTOCOLS
from tests.programs import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not pictures.find_chromium(), reason="there is no Chromium"),
]
SHOW_ALL = """() => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync("* { content-visibility: visible !important; }");
    document.adoptedStyleSheets = [sheet];
}"""
PANELS = ("hand", "rules", "attacks", "script", "logs", "claims")
SCREENS = ((1280, 720), (1280, 800), (1920, 1080), (2560, 1080))
AT_900 = 24  # the byte of a report in which one bit makes 100 a 900
LOGS = {  # of each protocol: what writes one, and the name that the page finds for it
    "classroom": ("attacks.py", "1 run of the lab's own protocol"),
    "device_transfer": ("-m companions.device_transfer.attacks", "1 run of device_transfer"),
    "peer_messaging": ("-m companions.peer_messaging.attacks", "1 run of peer_messaging"),
    "secure_chat": ("-m companions.secure_chat.attacks", "1 run of secure_chat"),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with pictures.browser() as found:
        yield found


class Page:
    """A lab of its own, and a browser that looks at it."""

    def __init__(self, room: Room, view: Any) -> None:
        self.room = room
        self.view = view

    def has(self, text: str, where: str = "#hand-title") -> None:
        """Wait until an element has this text in it."""
        self.view.locator(where).filter(has_text=text).first.wait_for()

    def press(self, name: str) -> None:
        """Press a button of the hand."""
        self.view.locator(".actions button").filter(has_text=re.compile(f"^{name}$")).click()

    def open(self, panel: str) -> None:
        """Open a panel on the right; the run of attacks and logs is on the left then."""
        self.view.click(f"nav a[href='#{panel}']")

    def up_to_report(self) -> None:
        for kind in ("CLIENT_HELLO", "SERVER_CHALLENGE"):
            self.has(kind)
            self.press("Forward")
        self.has("CLIENT_DATA")

    def flip(self, at: int, bit: int) -> None:
        """Click a byte in the hex, and a bit in it."""
        self.view.click(f".byte[data-at='{at}']")
        self.view.click(f".bit[data-bit='{bit}']")
        self.view.locator(f".byte.changed[data-at='{at}']").wait_for()


@pytest.fixture(params=[{}], ids=[""])
def page(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Page]:
    """The page as a lecturer sees it. It says nothing to the console, and asks nobody else."""
    look = {"viewport": {"width": 1280, "height": 800}, **request.param}
    view = chromium.new_page(**look)
    view.set_default_timeout(10_000)
    said: list[str] = []
    asked: set[str] = set()
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.add(request.url.split("/")[2]))
    with Room() as room, in_background(room) as door:
        view.goto(door.address)
        assert view.url == f"{door.origin}/"
        yield Page(room, view)
        view.close()
        assert (said, asked) == ([], {door.host})


LOOKS = pytest.mark.parametrize(
    "page",
    [
        {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
        for width, scheme in ((1280, "light"), (400, "dark"))
    ],
    indirect=True,
    ids=["wide light", "narrow dark"],
)


# The hand -----------------------------------------------------------------------------------------


def test_a_bit_that_is_clicked_is_refused_by_its_step_with_a_link_to_the_claim(page: Page) -> None:
    page.up_to_report()
    page.flip(AT_900, 3)
    page.press("Forward")
    page.has("refused: BadTag", "#ladder .row.changed .half.right")
    row = page.view.locator("#ladder .row.changed")
    assert row.locator(".steps .good").all_inner_texts() == [
        "1 shape ✓",
        "2 id and direction ✓",
        "3 opcode ✓",
        "4 round ✓",
    ]
    assert row.locator(".steps .bad").inner_text() == "5 tag ✗"
    assert row.locator(".chip.touched").count() == 1
    row.locator(".claims a").first.click()
    assert page.view.locator("#claim-list > div:target dt").inner_text().startswith("S-3")
    page.has("ENDED", "#end-server")
    page.has("BadTag", "#end-server")


def test_without_the_tag_the_same_click_is_a_900(page: Page) -> None:
    page.up_to_report()
    page.open("rules")
    page.view.click("[data-rule='tag']")
    page.has("1 taken out", "#rules-title")
    page.open("hand")
    page.up_to_report()
    page.flip(AT_900, 3)
    page.press("Forward")
    page.has("YOU WIN: the server accepted CLIENT_DATA [900.0,20.5,21.0,22.5]", "#said")
    page.has("1 won", "#end-adversary")
    page.has("accepted: you win", "#ladder .row.changed .verdict.won")
    assert "900" not in page.view.inner_text("#ladder"), "an eavesdropper sees no reading"
    page.view.click("#inside")
    page.has("[900.0", "#ladder .half.right .inside")
    page.view.click("#inside")
    page.view.locator("#ladder .inside").first.wait_for(state="detached")


def test_ctrl_z_takes_back_what_was_not_forwarded(page: Page) -> None:
    page.up_to_report()
    page.flip(AT_900, 3)
    page.view.keyboard.press("Control+z")
    page.view.locator(".byte.changed").first.wait_for(state="detached")
    page.press("Drop")
    page.has("#3 dropped", "#ladder .row summary")
    page.view.keyboard.press("Control+z")
    page.has("#3 CLIENT_DATA")
    page.view.keyboard.press("Control+z")
    page.has("what has been forwarded stays forwarded", "#said")


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    page.has("CLIENT_HELLO")
    keyboard = page.view.keyboard
    page.view.focus(".byte[data-at='0']")
    keyboard.press("f")
    page.has("SERVER_CHALLENGE")
    keyboard.press("f")
    page.has("CLIENT_DATA")
    for _ in range(AT_900):
        keyboard.press("ArrowRight")
    assert page.view.evaluate("document.activeElement.dataset.at") == str(AT_900)
    keyboard.press("3")
    page.view.locator(f".byte.changed[data-at='{AT_900}']").wait_for()
    assert page.view.evaluate("document.activeElement.dataset.at") == str(AT_900), "focus stays"
    keyboard.press("h")
    page.has("aside", "#ladder .row summary")
    page.view.focus("#line")
    page.view.keyboard.type("release 3\n")
    page.has("CLIENT_DATA")


def test_header_reflection_splice_and_replay_are_typed_as_in_the_proxy(
    page: Page, tmp_path: Path
) -> None:
    page.up_to_report()
    page.view.select_option("select[aria-label='opcode']", "TERMINATE")
    page.has("TERMINATE", ".bytes-in-hand")
    page.press("Undo")
    page.has("CLIENT_DATA", ".bytes-in-hand")
    page.press("Reflect")
    page.has("to client")
    page.press("Undo")
    page.has("to server")
    page.view.click(".more summary")
    page.view.select_option("select[aria-label='message of a recording']", "other 3")
    page.view.click("text=Splice in its place")
    page.view.locator(".byte.changed").first.wait_for()
    page.press("Forward")
    page.has("refused: WrongPeer", "#ladder .row.replaced")
    page.view.locator("#ladder .row.replaced summary").click()
    page.view.locator("#ladder .row.replaced table.bytes mark").first.wait_for()
    page.open("script")
    with page.view.expect_download() as download:
        page.view.click("#save")
    path = tmp_path / "scene.txt"
    download.value.save_as(path)
    assert path.read_text().splitlines()[5:] == [
        "until CLIENT_DATA",
        "edit opcode=TERMINATE",
        "undo",
        "reflect",
        "undo",
        "splice other 3",
        "forward",
    ]


def test_a_session_goes_by_itself_and_the_epoch_is_shown(page: Page) -> None:
    page.has("CLIENT_HELLO")
    page.press("Forward all")
    page.has("connection 1 is over", "#ladder .note")
    page.has("epoch 4", "#end-adversary")
    page.has("participants [1,4]", "#end-adversary")
    page.press("Forward all")
    page.press("New session")
    page.has("CLIENT_HELLO")
    page.has("connection 2 has begun", "#ladder .note")


def test_rows_out_of_sight_leave_the_document_and_come_back(page: Page) -> None:
    page.room.pair.reports = [[100.0]] * 40
    page.has("CLIENT_HELLO")
    page.press("Forward all")
    page.has("connection 1 is over", "#ladder .note")
    page.press("New session")
    page.has("connection 2 is over", "#ladder .note")
    first = page.view.locator("#ladder .row summary").filter(has_text="#1 passed")
    first.wait_for(state="detached")
    page.view.evaluate("() => { document.getElementById('view').scrollTop = -1e6; }")
    first.wait_for()
    page.has("SERVER_AGGR_RESPONSE, round 1", "#ladder .row")


# Attacks ------------------------------------------------------------------------------------------


def test_an_attack_of_the_catalogue_is_a_button_with_its_story_and_enters_the_score(
    page: Page,
) -> None:
    page.open("attacks")
    attack = page.view.locator("tr:has(button[data-attack='flip-reading'])")
    assert "One bit flips, to make the reading 100 a 900." in attack.text_content()
    attack.locator("button[data-attack]").click()
    page.has("refused by the server: BadTag", "#run")
    page.has("server: BadTag", "#board td")
    attack.locator("summary").click()
    attack.locator("li button", has_text="without tag").first.click()
    page.has("without tag", "#attack-rules")
    attack.locator("button[data-attack]").click()
    page.has("WON", "#board td")
    heads = page.view.locator("#board thead th").all_inner_texts()
    assert heads == ["attack", "all rules", "without tag"]


def test_as_documented_is_one_button(page: Page) -> None:
    page.open("rules")
    page.view.click("#documented")
    page.has("10 taken out", "#rules-title")
    page.open("attacks")
    page.view.click("button[data-attack='replay-session']")
    page.has("won:", "#run")
    page.has("as documented", "#board thead")
    page.open("rules")
    assert page.view.is_visible("#wire"), "the rules are those of the hand's ends"
    page.view.click("#all-rules")
    page.has("all in place", "#rules-title")


def test_the_deadlines_come_back_with_a_switch(page: Page) -> None:
    page.has("CLIENT_HELLO")
    page.view.click("#patient")
    page.has("the ends have begun anew", "#said")
    page.has("CLIENT_HELLO")
    page.has("ENDED", "#end-client")  # it waits two seconds for an answer


# Finished logs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_finished_log_of_any_protocol_is_opened_by_the_file_picker(
    page: Page, protocol: str, tmp_path: Path
) -> None:
    program, name = LOGS[protocol]
    attack = "flip-reading" if protocol == "classroom" else "flip-text"
    log = tmp_path / "events.jsonl"
    done = run(*program.split(), "--events", str(log), attack)
    assert done.returncode == 0, done.stderr
    page.open("logs")
    page.view.select_option("#protocol", protocol)  # flip-text is an attack on each companion
    page.view.set_input_files("#file", log)
    page.has(name, "#log-note")
    page.has("changed", "#log-run .row summary")
    page.view.locator("#log-run .row .chip.touched").first.wait_for()


def test_a_file_that_is_no_log_is_one_sentence(page: Page, tmp_path: Path) -> None:
    page.open("logs")
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8<script>")
    page.view.set_input_files("#file", path)
    page.has("the log line 1 is not an event", "#log-note")
    (tmp_path / "evil.jsonl").write_text(
        '{"attack": "<img src=x onerror=alert(1)>", "event": "sent", "to": "server", '
        '"message": "0a"}\n'
    )
    page.view.set_input_files("#file", tmp_path / "evil.jsonl")
    page.has("<img src=x onerror=alert(1)>", "#log-run h2")
    assert page.view.locator("#log-run img").count() == 0


DROP = """name => {
    const data = new DataTransfer();
    data.items.add(new File(["no event"], name));
    const drop = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: data});
    return !document.querySelector("#wire").dispatchEvent(drop);
}"""


def test_a_file_that_is_dropped_anywhere_is_opened_and_the_page_stays(page: Page) -> None:
    page.has("CLIENT_HELLO")
    assert page.view.evaluate(DROP, "events.jsonl")
    page.has("the log line 1 is not an event", "#log-note")


HELD = """() => {
    window.answers = [];
    window.fetch = () => new Promise(done => answers.push(
        error => done({ok: true, json: async () => ({error})})
    ));
}"""


def test_the_answer_to_a_file_that_was_chosen_earlier_changes_nothing(page: Page) -> None:
    page.open("logs")
    page.view.evaluate(HELD)
    for name in ("earlier", "later"):
        page.view.set_input_files("#file", {"name": name, "mimeType": "", "buffer": b"{}"})
    for answer in ("answers[1]('the later')", "answers[0]('the earlier')"):
        page.view.evaluate(f"() => {{ {answer} }}")
    page.has("the later", "#log-note")


def test_a_ninth_window_is_told_why_it_shows_nothing(page: Page) -> None:
    page.has("CLIENT_HELLO")
    others: list[Any] = [Feed() for _ in range(8)]
    for feed in others:
        page.room.feeds.add(feed)
    page.view.reload()
    page.has("too many windows show this page already", "#status")
    for feed in others:
        page.room.feeds.remove(feed)


# To be seen and heard -----------------------------------------------------------------------------


def flip_and_play(page: Page) -> Iterator[str]:
    """Give each panel in turn, after a bit was flipped and while all is open."""
    page.up_to_report()
    page.view.click("#inside")
    page.flip(AT_900, 3)
    page.press("Forward")
    page.has("refused: BadTag", "#ladder .row")
    page.view.locator("#ladder .row.changed summary").click()
    page.view.click(".more summary")
    page.open("attacks")
    page.view.click("button[data-attack='flip-reading']")
    page.has("refused by the server", "#run")
    page.view.evaluate(SHOW_ALL)
    for panel in PANELS:
        page.open(panel)
        page.view.wait_for_selector(f"#{panel}")
        yield panel


@LOOKS
def test_it_never_scrolls_sideways_and_letters_are_large(page: Page) -> None:
    for panel in flip_and_play(page):
        assert page.view.evaluate("document.documentElement.scrollWidth <= innerWidth"), panel
        smallest = page.view.evaluate("""Math.min(...[...document.querySelectorAll('body *')]
            .filter(e => e.innerText && !e.children.length && e.checkVisibility())
            .map(e => parseFloat(getComputedStyle(e).fontSize)))""")
        assert smallest >= 12, panel


@pytest.mark.parametrize(
    "page",
    [{"viewport": {"width": width, "height": height}} for width, height in SCREENS],
    indirect=True,
)
def test_on_a_wide_screen_all_is_in_sight(page: Page) -> None:
    for panel in flip_and_play(page):
        assert page.view.evaluate("document.documentElement.scrollHeight <= innerHeight"), panel
        seen = page.view.locator("#command button").bounding_box()
        assert seen, panel
        assert seen["y"] + seen["height"] <= page.view.viewport_size["height"], panel


@LOOKS
def test_axe_finds_nothing(page: Page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for panel in flip_and_play(page):
        found = axe.Axe().run(page.view)
        assert [
            (panel, rule["id"], [node["html"] for node in rule["nodes"]][:3])
            for rule in found.response["violations"]
        ] == []


# Slow and closed browsers -------------------------------------------------------------------------


def test_a_page_whose_lab_has_ended_says_so(chromium: Any) -> None:
    other = chromium.new_page()
    with Room() as room, in_background(room) as door:
        other.goto(door.address)
        other.locator("#hand-title").filter(has_text="CLIENT_HELLO").wait_for()
    other.locator("#status").filter(has_text="the lab is gone").wait_for()
    other.close()


def test_a_closed_browser_holds_up_no_end(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.has("CLIENT_HELLO")
    page.view.goto("about:blank")
    over = threading.Event()
    finish = page.room.table._finish

    def finished() -> None:
        finish()
        over.set()

    monkeypatch.setattr(page.room.table, "_finish", finished)
    page.room.type("auto")
    assert over.wait(10)
