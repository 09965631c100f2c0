"""The live page without a browser: who is let in, what is told, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession, WSMessage, WSServerHandshakeError

from attacks import ATTACKS
from classroom.live import app, show
from classroom.live import scene as scene_module
from classroom.live import table as table_module
from classroom.live.app import FILES, MOST_REQUEST, TOO_MANY, in_background
from classroom.live.plays import Plays, QuietTeller
from classroom.live.room import Room
from classroom.live.safe import Door
from classroom.live.scene import MOST_ROWS, ROWS_AT_ONCE, Feed, Feeds, Scene, hand_view
from classroom.live.views import (
    MOST_BYTES,
    MOST_LETTERS,
    MOST_RUNS,
    PROTOCOLS,
    STEPS,
    bytes_view,
    facts,
    folder_of,
    log_view,
    protocol_of,
    short,
    step_view,
)
from classroom.proxy_commands import GRAMMAR, Command
from classroom.wire import LAB
from endpoint import OPCODE_NAMES
from lab.claims import read_claims, read_sets
from lab.events import LONGEST, Step
from lab.frames import Frame, flipped
from lab.stage import BYSTANDER
from lab.weakened import DOCUMENTED, RULES
from program import UserError
from protocol_fsm import ClientData, Direction, Seen, State
from server import Record
from tests.helpers import pair_in
from tests.network import PATIENCE_S, wait_until
from tests.programs import ROOT, posix_only, run, run_here


class Reader:
    """A browser that may be let in: it asks for pages, and keeps its cookie."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.cookie = ""

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        **headers: str | Sequence[str],
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """Return status, headers and text; `headers` in place of those that a browser sends."""
        wanted = {"Host": self.door.host, "Cookie": self.cookie, **headers}
        connection = http.client.HTTPConnection("127.0.0.1", int(self.door.host.split(":")[1]))
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, values in wanted.items():
                for value in [values] if isinstance(values, str) else values:
                    if value:
                        connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def enter(self) -> None:
        """Swap the token for the cookie."""
        status, headers, _ = self.ask(self.door.address.removeprefix(self.door.origin))
        assert status == 303
        self.cookie = headers["Set-Cookie"].split(";")[0]


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with Room() as found:
        yield found


@pytest.fixture
def reader(room: Room) -> Iterator[Reader]:
    with in_background(room) as door:
        yield Reader(door)


# Who is let in ------------------------------------------------------------------------------------


def test_the_token_is_swapped_for_a_cookie_and_leaves_the_address(reader: Reader) -> None:
    address = reader.door.address
    status, headers, _ = reader.ask(address.removeprefix(reader.door.origin))
    assert (status, headers["Location"]) == (303, "/")
    (cookie,) = SimpleCookie(headers["Set-Cookie"]).values()
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
    assert cookie["domain"] == ""
    assert cookie.value not in address
    reader.cookie = f"{cookie.key}={cookie.value}"
    assert reader.ask("/")[0] == 200


def test_a_token_opens_the_page_once(reader: Reader) -> None:
    path = reader.door.address.removeprefix(reader.door.origin)
    assert reader.ask(path[:-1])[2].endswith("; copy all of it")
    assert reader.ask(path)[0] == 303
    status, headers, text = reader.ask(path)
    assert (status, headers["Set-Cookie"]) == (403, None)
    assert text == "the address that the terminal shows opens this page once; start it again"
    assert reader.ask("/?token=")[0] == 403  # the used one is nothing now


@pytest.mark.slow
@pytest.mark.parametrize("path", [*FILES, "/ws", "/nothing", "/?token=wrong", "/live.js?token=x"])
def test_without_the_cookie_there_is_nothing(reader: Reader, path: str) -> None:
    assert reader.ask(path)[0] == 403
    assert reader.ask(path, Cookie=f"live{reader.door.host.split(':')[1]}=wrong")[0] == 403


def test_a_cookie_that_is_no_utf_8_is_a_wrong_one(reader: Reader) -> None:
    name = f"live{reader.door.host.split(':')[1]}"
    assert reader.ask("/", Cookie=f"{name}=\xff\xfe")[0] == 403  # sent as Latin-1


def test_a_token_is_not_spent_on_another_path_or_method(reader: Reader) -> None:
    query = reader.door.address.partition("?")[2]
    assert reader.ask(f"/live.js?{query}")[0] == 403
    assert reader.ask(f"/?{query}", "POST", b"", Origin=reader.door.origin)[0] == 403
    reader.enter()


@pytest.mark.parametrize("host", ["evil.example", "localhost:{port}", "127.0.0.1", "[::1]:{port}"])
def test_another_host_is_refused_even_with_the_cookie(reader: Reader, host: str) -> None:
    reader.enter()
    port = reader.door.host.split(":")[1]
    status, _, text = reader.ask("/", Host=host.format(port=port))
    assert (status, text) == (403, "this is another host")


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://{host}", "http://{host}0"]
)
def test_another_origin_is_refused_even_with_the_cookie(reader: Reader, origin: str) -> None:
    reader.enter()
    status, _, text = reader.ask("/", Origin=origin.format(host=reader.door.host))
    assert (status, text) == (403, "this comes from another page")
    assert reader.ask("/", Origin=reader.door.origin)[0] == 200


def test_two_hosts_or_origins_are_refused_though_one_is_ours(reader: Reader) -> None:
    reader.enter()
    host, origin = reader.door.host, reader.door.origin
    for other in ([host, "evil.example"], ["evil.example", host]):
        assert reader.ask("/", Host=other)[0] in (400, 403)
    for other in ([origin, "http://evil.example"], ["http://evil.example", origin]):
        assert reader.ask("/", Origin=other)[0] == 403


def test_a_page_may_be_asked_for_its_headers_alone(reader: Reader) -> None:
    reader.enter()
    assert reader.ask("/", "HEAD")[0] == 200


def test_what_is_posted_must_name_its_origin(reader: Reader) -> None:
    reader.enter()
    assert reader.ask("/log", "POST", b"{}")[0] == 403
    assert reader.ask("/log", "POST", b"{}", Origin=reader.door.origin)[0] == 200


@pytest.mark.parametrize("path", ["/", "/live.js", "/nothing"])
@pytest.mark.parametrize("is_in", [True, False])
def test_every_answer_has_the_headers(reader: Reader, path: str, is_in: bool) -> None:
    if is_in:
        reader.enter()
    _, headers, _ = reader.ask(path)
    wanted = {
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    assert {name: headers[name] for name in wanted} == wanted
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": f"'self' ws://{reader.door.host}",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_only_the_page_s_own_files_are_served(reader: Reader) -> None:
    reader.enter()
    assert sorted(name for name, _ in FILES.values()) == sorted(os.listdir(app.PAGE))
    for path, (_, kind) in FILES.items():
        status, headers, _ = reader.ask(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    for path in ("/app.py", "/../app.py", "/%2e%2e/app.py", "/page/live.js"):
        assert reader.ask(path)[0] == 404


def test_the_page_makes_no_html_of_text_and_loads_nothing_from_elsewhere() -> None:
    texts = {name: (app.PAGE / name).read_text("utf-8") for name, _ in FILES.values()}
    for name, text in texts.items():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not found, f"{name}: {found}"
        links = re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", text)
        assert not links, f"{name}: {links}"
    assert not re.search(r"<script(?! type=\"module\" src=)|\son\w+=|style=", texts["index.html"])


# The WebSocket


async def handshake(door: Door, headers: dict[str, str]) -> int:
    async with ClientSession() as session:
        try:
            async with session.ws_connect(f"ws://{door.host}/ws", headers=headers) as talk:
                await talk.close()
                return 101
        except WSServerHandshakeError as error:
            return error.status


async def first_told(door: Door, headers: dict[str, str]) -> WSMessage:
    """Return the first message to a window."""
    async with ClientSession() as session:
        async with session.ws_connect(f"ws://{door.host}/ws", headers=headers) as talk:
            return await talk.receive(PATIENCE_S)


def test_a_websocket_has_to_name_our_origin(reader: Reader) -> None:
    reader.enter()
    own = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    for headers, status in (
        (own, 101),
        ({"Cookie": reader.cookie}, 403),
        ({**own, "Origin": "http://evil.example"}, 403),
        ({**own, "Host": "evil.example"}, 403),
        ({"Origin": reader.door.origin}, 403),
    ):
        assert asyncio.run(handshake(reader.door, headers)) == status, headers


class Talk:
    """A page's WebSocket, without the page."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.rows: dict[int, dict[str, Any]] = {}
        self.said: list[str] = []
        self.told: dict[str, Any] = {}

    async def type(self, line: str) -> None:
        await self.socket.send_str(json.dumps({"type": line}))

    async def until(self, seen: Callable[[], object]) -> None:
        """Listen until it is so."""
        while not seen():
            told = await asyncio.wait_for(self.socket.receive(), PATIENCE_S)
            await self.socket.send_str('{"drawn": true}')
            message = json.loads(told.data)
            self.rows.update({row["id"]: row for row in message.pop("rows", [])})
            self.said += message.pop("said", [])
            self.told.update(message)

    async def has(self, kind: str) -> None:
        """Wait until a message of this kind is in hand."""
        await self.until(lambda: kind in self.hand["name"])

    @property
    def hand(self) -> dict[str, Any]:
        found = self.told.get("state", {}).get("table", {}).get("hand")
        return found or {"name": ""}


Scenario = Callable[[Talk], Awaitable[None]]


async def with_socket(reader: Reader, scene: Scenario) -> None:
    """Let a coroutine talk to a lab that lets a browser in."""
    await asyncio.to_thread(reader.enter)
    headers = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    async with ClientSession() as session:
        address = f"ws://{reader.door.host}/ws"
        async with session.ws_connect(address, headers=headers, max_msg_size=0) as socket:
            await scene(Talk(socket))


def talk(rules: str, scene: Scenario) -> Room:
    """Let a coroutine talk to a lab of its own, which lacks these rules; return the lab."""
    with Room(rules) as room, in_background(room) as door:
        asyncio.run(with_socket(Reader(door), scene))
    return room


async def up_to_report(page: Talk) -> None:
    await page.has("CLIENT_HELLO")
    await page.type("forward")
    await page.has("SERVER_CHALLENGE")
    await page.type("forward")
    await page.has("CLIENT_DATA")


@pytest.mark.slow
def test_a_flipped_bit_is_refused_by_step_5_and_the_row_says_so() -> None:
    async def scene(page: Talk) -> None:
        await up_to_report(page)
        await page.type("flip 24.3")
        await page.until(lambda: page.hand.get("changed") == [24])
        await page.type("forward")
        await page.until(lambda: any(row.get("verdict") == "BadTag" for row in page.rows.values()))
        (row,) = [row for row in page.rows.values() if row.get("verdict") == "BadTag"]
        assert (row["kind"], row["to"], row["number"]) == ("changed", "server", 3)
        assert row["what"].startswith("ciphertext: ")
        assert "inside" not in row
        await page.until(lambda: page.told["state"]["ends"]["server"]["state"] == "ENDED")
        assert page.told["facts"]["errors"]["BadTag"]["step"] == 5

    talk("", scene)


def test_without_the_tag_the_same_click_makes_a_900() -> None:
    async def scene(page: Talk) -> None:
        await page.socket.send_str(json.dumps({"inside": True}))
        await up_to_report(page)
        for line in ("flip 24.3", "undo", "flip 24.3", "forward"):
            await page.type(line)
        await page.until(lambda: any("[900.0,20.5" in line for line in page.said))
        await page.until(
            lambda: any("900.0" in str(row.get("inside")) for row in page.rows.values())
        )
        await page.until(lambda: page.told["state"]["ends"]["score"]["won"] == 1)
        await page.until(lambda: any(row.get("verdict") == "won" for row in page.rows.values()))

    talk("tag", scene)


@pytest.mark.slow
def test_the_script_of_a_scene_replays_it_in_the_proxy(tmp_path: Path) -> None:
    async def scene(page: Talk) -> None:
        await up_to_report(page)
        for line in ("list", "hold", "release 3", "flip 24.3", "show", "forward"):
            await page.type(line)
        await page.has("SERVER_AGGR_RESPONSE")
        for line in ("cut", "session"):
            await page.type(line)
        await page.has("CLIENT_HELLO")
        for line in ("drop", "undo", "splice older 1", "forward"):
            await page.type(line)
        await page.until(lambda: page.told["script"].endswith("splice older 1\nforward\n"))

    script = tmp_path / "scene.txt"
    text = talk("tag", scene).script()
    assert text.startswith("# python -m classroom.proxy --without tag --script FILE\n")
    assert not re.search("^(list|show)", text, re.MULTILINE), "what changes nothing is left out"
    script.write_text(f"{text}until SERVER_CHALLENGE\nquit\n")
    done = run(
        "-m", "classroom.proxy", "--listen", "0", "--without", "tag", "--script", str(script)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "YOU WIN: the server accepted CLIENT_DATA [900.0,20.5,21.0,22.5]" in done.stdout
    assert "older 1 in its place" in done.stdout


class Told:
    """A feed that only notes what changed, and then does something."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.rows: list[int] = []
        self.topics: list[str] = []
        self.said = 0
        self._then = then

    def touch(self, rows: Iterable[int], topics: Iterable[str]) -> None:
        self.rows += rows
        self.topics += topics
        self._then()

    def news(self) -> tuple[list[int], list[str]]:
        """Return what has changed since the last call."""
        told = (self.rows, self.topics)
        self.rows = []
        self.topics = []
        return told


def test_other_ends_have_other_rules_and_nothing_of_the_old_ones_stays() -> None:
    with Room(",".join(RULES), shows_inside=True) as room:
        for rules, is_patient, flags in (
            ("documented", False, "--without documented --deadlines"),
            ("", True, "--own"),
        ):
            room.table.type("until CLIENT_HELLO")
            wait_until(lambda: room.view()["ends"]["epoch"])
            ends = room.view()["ends"]
            assert ends["server"]["state"] == "none", "recordings are not shown"
            assert ends["epoch"]["participants"] == [BYSTANDER]
            past = room.scene.ids()
            old = room.pair
            room._restart(rules, is_patient)
            assert not {*past} & {*room.scene.ids()}
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(old.address)
            assert {*room.pair.tapes} == {"older", "other"}
            assert all(tape[-1].to == "server" for tape in room.pair.tapes.values())
            room.table.type("until CLIENT_HELLO")
            view = room.view()
            assert view["ends"]["client"]["state"] == "CHALLENGE"
            assert (view["rules"], view["patient"]) == ([rules] if rules else [], is_patient)
            assert (view["inside"], view["busy"]) == (True, False)
            assert view["script"] == ["until CLIENT_HELLO"]
            room.table.type("hold")
            assert room.view()["script"] == ["hold"]
            head = f"# python -m classroom.proxy {flags} --script FILE"
            cued = "until CLIENT_HELLO\n"
            assert room.script() == f"{head}\n{cued}{cued}hold\n"
            room.table.type("undo")
        said = [line for _, line in room.scene.said]
        for words in ("without documented", "with all rules"):
            assert f"the ends have begun anew, {words}" in said
        with pytest.raises(UserError, match="no rule nonsense"):
            room._restart("nonsense", True)
        assert room.view()["rules"] == []
        address = room.pair.address
    assert not room.table.view()["connected"]
    wait_until(lambda: not room.pair._bystander.is_alive())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_room_with_a_wrong_rule_is_refused_and_shows_no_plaintext_unasked() -> None:
    with pytest.raises(UserError, match="no rule nonsense"):
        Room("nonsense")
    room = Room()
    assert (room.scene.shows_inside, room.is_patient) == (False, True)


def test_what_the_table_has_is_told() -> None:
    with Room() as room:
        table = room.table
        table.type("until CLIENT_HELLO")
        for number in (2, 3):
            table._arrive("client", bytes([30, number]))
        table._arrive("client", b"")
        table.type("hold")
        view = table.view()
        assert view["hand"]["name"] == "#2 CLIENT_DATA to server"
        del view["hand"]
        tapes = view.pop("tapes")
        assert view == {
            "waiting": ["#3 CLIENT_DATA to server"],
            "held": [{"number": 1, "name": "#1 CLIENT_HELLO to server"}],
            "came": 3,
            "undo": True,
            "auto": False,
            "connected": True,
            "connection": 1,
        }
        assert {*tapes} == {"older", "other"}
        assert tapes["older"][:2] == ["CLIENT_HELLO to server", "SERVER_CHALLENGE to client"]
        words = [row["words"] for row in room.scene.rows_view(room.scene.ids()[1:])]
        assert words == ["put aside", "in your hand", "waits behind it"]
        with table._changed:
            table._auto = True
            assert table.view()["hand"] is None, "nobody has to decide"
            table._auto = False
        table.type("flip 1")
        assert table.view()["hand"]["changed"] == [1]
        table.type("undo")
        table.type("inject 0a")
        hand = table.view()["hand"]
        assert (hand["name"], hand["number"]) == ("yours, CLIENT_HELLO to server", 0)
        assert hand["changed"] == []
        for _ in range(3):
            table.type("undo")
            table.type("drop")
        table.type("until end")
        notes = [row.get("note") for row in room.scene.rows_view(room.scene.ids())]
        assert notes[0] == "connection 1 has begun"
        assert "the end of what the client sends is passed on" in notes
        assert notes[-1] == "connection 1 is over"
        assert not table.view()["undo"]
        last = room.scene.ids()[-1]
        table._begin("no server")
        assert room.scene.ids()[-1] == last
        table._begin("")
        (note,) = room.scene.rows_view([last + 1])
        assert note["note"] == "connection 2 has begun"


def test_a_script_waits_for_what_a_command_needs_once() -> None:
    with Room() as room:
        table = room.table
        table.type("until CLIENT_HELLO")
        for line in ("show", "list", "help", "score"):
            table.type(line)
        assert table.script == ["until CLIENT_HELLO"], "these change nothing"
        with table._changed:
            needless = set()
            for name in GRAMMAR:
                table._cued = 0
                if not table._cue(Command(name)):
                    needless.add(name)
            assert table._cue(Command("session")) == ["until end"]
            assert table._cue(Command("drop")) == ["until CLIENT_HELLO"]
            assert table._cue(Command("drop")) == []
        assert needless == {*["undo", "list", "quit", "score", "release", "show", "until", "help"]}
        table._arrive("client", bytes([99, 0]))
        table.type("drop")
        assert table._cue(Command("drop")) == [], "no script knows its name"
        table.type("inject 0a")
        assert table._cue(Command("drop")) == [], "nobody has to send it"
        table.type("drop")
        table.type("drop")
        assert table._cue(Command("drop")) == []
        table._connection = 0
        assert table._cue(Command("session")) == []


def test_a_room_at_a_terminal_has_no_prompt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(sys, stream, SimpleNamespace(isatty=lambda: True))
    with Room() as room:
        assert room.table.prompt == ""


def test_what_is_typed_is_said_and_quit_is_for_the_terminal(room: Room) -> None:
    room.table.type("until CLIENT_HELLO")  # after which nobody else says anything
    script = [*room.table.script]
    room.table.type("  score # how far? ")
    room.table.type("# nothing")
    said = [line for _, line in room.scene.said]
    assert said[-2:] == ["> score # how far?", str(room.pair.score)]
    with pytest.raises(UserError, match="to leave, close the page"):
        room.table.type("quit")
    assert room.table.script == script


def test_a_command_that_waits_in_vain_is_given_up(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "WAIT_S", -1.0)
    with room.table._changed:
        room.table._goal = "TERMINATE"
        with pytest.raises(UserError, match="nothing of that kind has come"):
            room.table._wait(lambda: False)
        assert room.table._goal == ""


def test_too_much_at_once_is_refused_and_a_defect_of_ours_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Room()
    told: Any = Told()
    room.feeds.add(told)
    monkeypatch.setattr(room, "_waiting", threading.Semaphore(0))
    with pytest.raises(UserError, match="too much at once"):
        room.type("list")
    room._do(lambda: room.type("list"))
    room._do(lambda: 1 // 0)
    assert told.topics == 2 * ["said", "state", "script"]
    assert [line for _, line in room.scene.said] == [
        "too much at once; wait a moment",
        "internal error: ZeroDivisionError: integer division or modulo by zero",
    ]
    assert room._waiting.acquire(blocking=False)


def test_the_page_knows_whether_an_attack_is_playing() -> None:
    room = Room()
    told: Any = Told()
    room.feeds.add(told)
    playing: Any = SimpleNamespace(play=lambda *_: told.touch([], [f"busy: {room.is_busy}"]))
    room.plays = playing
    room._play([], "")
    assert told.topics == ["state", "busy: True", "state"]
    assert not room.is_busy


def test_both_ends_the_epoch_and_the_score_are_told() -> None:
    epochs: list[Any] = []
    with Room() as room:
        told: Any = Told(lambda: epochs.append(room.view()["ends"]["epoch"]))
        room.feeds.add(told)
        nothing = {"state": "none", "phase": "", "round": 0, "keys": {}, "fate": ""}
        assert room.pair._end_view("nobody") == nothing
        room.table.type("until end")
        wait_until(lambda: room.view()["ends"]["server"]["fate"])
        ends = room.view()["ends"]
        session = room.pair._sessions["client"]
        rows = room.scene.rows_view(room.scene.ids())
    told_rows = [(row["kind"], row["verdict"]) for row in rows if "kind" in row]
    assert told_rows == 9 * [("passed", "accepted")]
    keys = session.fingerprints()
    end = {"state": "ENDED", "phase": "TERMINATED", "round": 4, "keys": keys}
    assert ends["client"] == {**end, "fate": ""}
    assert ends["server"] == {**end, "fate": "PeerTerminated: TERMINATE (GOODBYE)"}
    assert ends["client_id"] == 1
    assert ends["score"] == {"won": 0, "genuine": 8, "refused": 0}
    both = [epoch for epoch in epochs if epoch and epoch["participants"] == [1, BYSTANDER]]
    assert {epoch["min"] for epoch in both} == {1.0}
    assert both[-1]["number"] > 1


def test_what_an_end_refuses_is_told_until_it_has_another_session(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = room.pair
    key = bytes(32)
    refusal = Seen("BadTag", b"\x1e", b"", {})

    def fate() -> object:
        return pair.view()["server"]["fate"]

    refused = pair.score.refused
    pair._new_session(1, key, Direction.S2C)
    watch = pair.watcher(1, Direction.S2C)
    watch(refusal)
    assert (fate(), pair.score.refused) == ("refused: BadTag", refused + 1)
    watch(Seen("sealed", b"\x1e", b"", {}))
    assert fate() == "refused: BadTag"
    for other in (0, BYSTANDER):
        pair.watcher(other, Direction.S2C)(refusal)
        pair._new_session(other, key, Direction.S2C)
    assert (fate(), pair.score.refused) == ("refused: BadTag", refused + 1)
    session = pair._new_session(1, key, Direction.S2C)
    assert (fate(), pair._sessions["server"]) == ("", session)
    pair.see(Record("end", 1, UserError("\x1b")))
    pair.see(Record("end", BYSTANDER, UserError("of another")))
    assert fate() == "\\x1b"
    tellers: list[int] = []
    monkeypatch.setattr(pair, "_changed", lambda: tellers.append(threading.get_ident()))
    pair.see(Record("end", 1, UserError("gone")))
    assert tellers.count(threading.get_ident()) == 1
    pair._live(("127.0.0.1", 0))
    assert tellers.count(threading.get_ident()) == 2


@pytest.mark.slow
def test_what_cannot_be_understood_is_said_and_harms_nothing() -> None:
    async def scene(page: Talk) -> None:
        for text in ("", "[", "[]", '{"type": 1}', '{"rules": ["tag"]}', '{"play": [1]}', "1" * 9):
            await page.socket.send_str(text)
        await page.until(lambda: sum("cannot be understood" in line for line in page.said) == 7)
        for line in (
            "quit",
            "nonsense",
            "flip 999",
            "until TERMINATE x",
            "release 5",
            "splice x 1",
        ):
            await page.type(line)
        await page.until(lambda: any("no recording x" in line for line in page.said))
        await page.socket.send_str(json.dumps({"rules": ["nonsense"], "patient": True}))
        await page.until(lambda: any("no rule nonsense" in line for line in page.said))
        await page.socket.send_str(json.dumps({"play": ["nonsense"]}))
        await page.until(lambda: any("no attack is named" in line for line in page.said))
        await up_to_report(page)

    talk("", scene)


@pytest.mark.slow
def test_a_flood_of_requests_keeps_no_other_window_waiting(room: Room, reader: Reader) -> None:
    async def scene(page: Talk) -> None:
        await page.has("CLIENT_HELLO")
        for _ in range(20_000):
            await page.type("nonsense")
        status, _, _ = await asyncio.to_thread(reader.ask, "/")
        assert status == 200
        assert room.scene._lines < 20_000, "the flood is not over yet"

    asyncio.run(with_socket(reader, scene))


def test_too_long_a_request_ends_the_talk_and_not_the_lab(room: Room, reader: Reader) -> None:
    async def to_the_end(socket: Any) -> None:
        async for _ in socket:
            pass

    async def scene(page: Talk) -> None:
        await page.socket.send_str("x" * (MOST_REQUEST + 1))
        await asyncio.wait_for(to_the_end(page.socket), PATIENCE_S)
        assert page.socket.close_code == 1009

    asyncio.run(with_socket(reader, scene))
    assert reader.ask("/")[0] == 200


class Noted:
    """It notes what it is asked for, instead of a room or a feed."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("scene", "plays", "drawn"):
            return self
        return lambda *words: self.seen.append((name, *words))


def test_a_ninth_window_is_refused_until_another_is_closed(room: Room, reader: Reader) -> None:
    reader.enter()
    headers = {"Cookie": reader.cookie, "Origin": reader.door.origin}
    others: list[Any] = [Noted() for _ in range(8)]
    for feed in others:
        room.feeds.add(feed)
    refused = asyncio.run(first_told(reader.door, headers))
    assert (refused.data, refused.extra) == (1013, TOO_MANY.decode())
    room.feeds.remove(others.pop())
    assert "facts" in json.loads(asyncio.run(first_told(reader.door, headers)).data)
    for feed in others:
        room.feeds.remove(feed)


def test_a_log_that_is_too_large_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.MOST_LOG == 67_108_864
    monkeypatch.setattr(app, "MOST_LOG", 10)
    with in_background(room) as door:
        reader = Reader(door)
        reader.enter()
        assert reader.ask("/log", "POST", bytes(10), Origin=door.origin)[0] == 200
        assert reader.ask("/log", "POST", bytes(11), Origin=door.origin)[0] == 413


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ('{"type": "list"}', ("type", "list")),
        ('{"rules": ["tag"], "patient": false}', ("restart", ["tag"], False)),
        ('{"inside": true}', ("show_inside", True)),
        ('{"play": ["replay"]}', ("play", ["replay"])),
        ('{"stop": true}', ("stop",)),
        ('{"drawn": true}', ("set",)),
        ('{"rules": ["tag", 1], "patient": true}', None),
        ('{"play": [1, "replay"]}', None),
        ('{"type": 1}', None),
        ("[", None),
        ("[" * 100_000, None),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_each_request_does_one_thing_and_what_is_none_is_said(
    text: str, done: tuple[object, ...] | None
) -> None:
    noted: Any = Noted()
    live = object.__new__(app.Live)
    live._room = noted
    live._hear(text, noted)
    refusal = ("say", "the page asked for something that cannot be understood")
    assert noted.seen == [done or refusal]


def test_why_a_request_is_refused_is_said() -> None:
    def refuse(names: list[str]) -> None:
        raise UserError(f"no attack is named {names}")

    noted: Any = Noted()
    noted.play = refuse
    live = object.__new__(app.Live)
    live._room = noted
    live._hear('{"play": ["x"]}', noted)
    assert noted.seen == [("say", "no attack is named ['x']")]


# What is told -------------------------------------------------------------------------------------


def flipped_report() -> tuple[Frame, Frame]:
    pair = pair_in(State.REPORT)
    report = Frame("server", pair.client.seal(ClientData([100.0])))
    return report, flipped(report, 24, 8)


def scene_of(*frames: Frame) -> Scene:
    """Return a scene in which these were sent."""
    scene = Scene(Feeds())
    scene.begin(1)
    for number, frame in enumerate(frames, 1):
        scene.sent(number, frame)
    return scene


def test_a_message_is_told_by_its_fields_whose_bytes_are_all_of_it() -> None:
    report, _ = flipped_report()
    view = bytes_view(report.message, LAB)
    assert "".join(field["hex"] for field in view["fields"]) == report.message.hex()
    assert [field["at"] for field in view["fields"]] == [0, 1, 2, 6, 7, 23, 23 + 48 - 16]
    assert (view["title"], view["size"]) == ("CLIENT_DATA, round 1", len(report.message))
    assert view["fields"][0]["says"] == "30: CLIENT_DATA"
    long = bytes_view(report.message[:23] + bytes(4_096) + report.message[-32:], LAB)
    (ciphertext,) = [field for field in long["fields"] if field["name"] == "ciphertext"]
    assert (ciphertext["size"], len(ciphertext["hex"])) == (4_096, 2 * MOST_BYTES)
    assert long["fields"][-1]["hex"] == report.message[-32:].hex(), "what is cut hides no tag"


def test_the_page_is_told_the_rules_the_attacks_and_the_claims() -> None:
    told = facts()
    flip = ATTACKS["flip-reading"]
    assert {"name": "tag", "without": "Believe any tag"} in told["rules"]
    assert {
        "name": flip.name,
        "story": flip.story,
        "family": flip.family,
        "noticed": "",
        "sets": read_sets(LAB.data / "sets.json").sets[flip.name],
    } in told["attacks"]
    (claim,) = [claim for claim in read_claims(LAB.data).claims if flip.name in claim.attacks]
    assert {
        "id": claim.id,
        "claim": claim.claim,
        "condition": claim.condition,
        "verdict": claim.verdict,
        "attacks": claim.attacks,
        "code": claim.code,
    } in told["claims"]
    assert told["errors"]["BadTag"]["when"] == "step 5: not sealed under our keys"
    assert (told["steps"], told["documented"]) == (STEPS, [*DOCUMENTED])
    assert told["names"] == {"opcode": OPCODE_NAMES, "direction": {0: "C2S", 1: "S2C"}}
    assert told["protocols"] == ["classroom", "device_transfer", "peer_messaging", "secure_chat"]


def test_every_error_of_the_nine_steps_has_its_step_and_claims_that_are_there() -> None:
    told = facts()
    ids = {claim["id"] for claim in told["claims"]}
    steps = {name: error["step"] for name, error in told["errors"].items() if error["step"]}
    assert steps == {
        "MalformedMessage": 1,
        "WrongPeer": 2,
        "WrongDirection": 2,
        "UnexpectedOpcode": 3,
        "RoundMismatch": 4,
        "BadTag": 5,
        "BadPadding": 7,
        "BadPayload": 8,
        "EchoMismatch": 8,
    }
    for name in steps:
        assert told["errors"][name]["claims"], name
        assert {*told["errors"][name]["claims"]} <= ids, name


def test_the_rows_of_a_scene_are_those_that_an_event_log_of_it_has() -> None:
    report, changed = flipped_report()
    other = Frame("server", report.message[::-1])
    scene = scene_of(report)
    scene.waits({1: "in hand"})
    (row,) = scene.rows_view(scene.ids()[1:])
    assert (row["kind"], row["words"]) == ("in hand", "in your hand")
    scene.delivered(changed)
    scene.judged("server", changed.message, "BadTag", "")
    scene.sent(2, other)
    scene.waits({2: "aside"})
    scene.delivered(report)
    scene.delivered(report)
    scene.delivered(other)
    rows = scene.rows_view(scene.ids()[1:])
    assert [(row["kind"], row["number"], row["verdict"]) for row in rows] == [
        ("changed", 1, "BadTag"),
        ("held", 2, ""),
        ("late", 0, ""),
        ("again", 0, ""),
        ("late", 0, ""),
    ]
    assert rows[0]["what"] == f"ciphertext: {report.message[24]:02x} -> {changed.message[24]:02x}"


def test_a_bit_that_is_flipped_back_leaves_a_message_as_it_was() -> None:
    report, changed = flipped_report()
    scene = scene_of(report)
    scene.delivered(flipped(changed, 24, 8))
    scene.delivered(report.reflected())
    row, other = scene.rows_view(scene.ids()[1:])
    assert (row["kind"], row["got"]) == ("passed", None)
    assert (other["kind"], other["to"]) == ("reflected", "client")


def test_what_the_ends_see_is_told_only_while_it_is_asked_for() -> None:
    report, _ = flipped_report()
    scene = scene_of(report)
    scene.judged("client", report.message, "sealed", "[100.0]")
    assert "inside" not in scene.rows_view(scene.ids())[1]
    scene.show_inside(True)
    assert scene.rows_view(scene.ids())[1]["inside"] == ["[100.0]", None]
    scene.show_inside(False)
    assert "100.0" not in json.dumps(scene.rows_view(scene.ids()))


def test_a_browser_is_told_of_each_row_that_has_changed_and_of_no_other() -> None:
    report, changed = flipped_report()
    second = Frame("server", report.message[::-1])
    told: Any = Told()
    feeds = Feeds()
    feeds.add(told)
    scene = Scene(feeds)
    scene.begin(7)
    assert told.news() == ([1], ["state"])
    scene.sent(1, report)
    assert told.news() == ([2], [])
    scene.waits({1: "aside", 99: "in hand"})  # the second has left the page
    assert told.news() == ([2], ["state"])
    assert scene.rows_view([2])[0]["words"] == "put aside"
    scene.waits({})
    assert told.news() == ([2], ["state"])
    assert scene.rows_view([2])[0]["words"] == "not delivered"
    scene.delivered(changed)
    assert told.news() == ([2], ["state"])
    scene.sent(2, second)
    told.news()
    scene.delivered(second)
    assert told.news() == ([3], ["state"])
    scene.judged("server", second.message, "accepted", "")
    assert told.news() == ([3], ["state"])
    scene.judged("server", second.message, "sealed", "")
    assert scene.rows_view(told.news()[0])[0]["verdict"] == "accepted"
    scene.judged("server", b"never delivered", "BadTag", "")
    assert scene.rows_view(told.news()[0]) == []
    scene.show_inside(True)
    assert told.news() == ([1, 2, 3], ["state"])
    scene.judged("server", changed.message, "BadTag", "")
    assert scene.rows_view([2])[0]["inside"] == [None, None]
    told.news()
    scene.clear()
    assert (told.news()[1], scene.ids(), scene.first()) == (["state"], [], 4)
    assert not scene._row_of


def test_a_message_that_is_delivered_late_changes_the_row_that_held_it() -> None:
    report, _ = flipped_report()
    told: Any = Told()
    feeds = Feeds()
    scene = Scene(feeds)
    scene.sent(1, report)
    scene.begin(2)
    scene.sent(2, report)
    scene.sent(3, Frame("server", report.message[::-1]))
    feeds.add(told)
    scene.delivered(report)
    assert told.rows == [3, 4, 5]
    kinds = [row["kind"] for row in scene.rows_view([1, 3, 4, 5])]
    assert kinds == ["dropped", "held", "dropped", "late"]


def test_a_connection_begins_with_nothing_behind_it() -> None:
    report, _ = flipped_report()
    scene = scene_of(report)
    scene.waits({1: "in hand"})
    scene.delivered(report)
    scene.judged("server", report.message, "accepted", "[100.0]")
    scene.begin(2)
    scene.judged("server", report.message, "BadTag", "")
    scene.sent(2, report)
    scene.delivered(report)
    before, note, now = scene.rows_view(scene.ids()[1:])
    assert (before["verdict"], before["connection"]) == ("accepted", 1)
    assert (note["note"], note["connection"]) == ("connection 2 has begun", 2)
    assert (now["kind"], now["verdict"], now["connection"]) == ("passed", "", 2)
    scene.clear()
    scene.note("new ends")
    scene.sent(1, report)
    scene.show_inside(True)
    note, now = scene.rows_view(scene.ids())
    assert (note["note"], note["connection"]) == ("new ends", 0)
    assert (now["kind"], now["inside"]) == ("dropped", [None, None])


def test_a_row_has_the_time_at_which_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_module, "time", SimpleNamespace(time=lambda: 1.5))
    report, changed = flipped_report()
    scene = scene_of(report)
    scene.delivered(report)
    scene.delivered(changed)
    assert [row["at"] for row in scene.rows_view(scene.ids())] == 3 * [1_500.0]


def test_a_browser_is_told_each_line_once() -> None:
    scene = Scene(Feeds())
    feed: Any = Told()
    scene.say("one\n\ntwo")
    assert scene.news(feed) == ["one", "two"]
    assert scene.news(feed) == []
    scene.say("three")
    assert scene.news(feed) == ["three"]


def test_where_a_message_in_hand_differs_from_how_it_came_is_told() -> None:
    report, changed = flipped_report()
    view = hand_view(changed, "#1 CLIENT_DATA to server, changed", 1, report.message)
    assert view == {
        "name": "#1 CLIENT_DATA to server, changed",
        "number": 1,
        "to": "server",
        "bytes": bytes_view(changed.message, LAB),
        "changed": [24],
    }
    assert hand_view(changed, "yours", 0, b"")["changed"] == []


def test_old_rows_leave_the_page_and_no_memory_behind() -> None:
    report, _ = flipped_report()
    messages = [report.message + number.to_bytes(4, "big") for number in range(MOST_ROWS + 100)]
    scene = Scene(Feeds())
    scene.begin(1)
    for number, message in enumerate(messages, 1):
        scene.judged("client", message, "sealed", "[100.0]")
        scene.sent(number, Frame("server", message))
    assert len(scene.ids()) == MOST_ROWS
    assert scene.first() == scene.ids()[0] == 102  # and the note of the beginning
    assert len(scene._row_of) == len(scene._inside) == MOST_ROWS


def test_a_browser_is_told_the_newest_rows_first_and_more_when_it_has_drawn_them() -> None:
    async def scene() -> Feed:
        feed = Feed()
        feed.touch(range(1, 2 * ROWS_AT_ONCE + 1), ["state"])
        feed.drawn.set()
        rows, topics = await feed.changes()
        assert (rows, topics) == ([*range(ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 1)], {"state"})
        assert feed._wake.is_set(), "there are more"
        later = asyncio.ensure_future(feed.changes())
        done, _ = await asyncio.wait({later}, timeout=0.05)
        assert not done, "it has not drawn these yet"
        feed.touch([99], ["said"])
        feed.drawn.set()
        assert await later == ([*range(2, ROWS_AT_ONCE + 1), 99], {"said"})
        feed.drawn.set()
        assert await feed.changes() == ([1], set())
        assert not feed._wake.is_set(), "there is nothing more"
        return feed

    feed = asyncio.run(scene())
    feed.touch([1], [])  # it has gone, and not everybody knows yet
    lines = Scene(Feeds())
    lines.say("one")
    assert lines.news(feed) == ["one"]


def test_a_browser_that_reads_nothing_holds_up_no_end() -> None:
    with Room() as room, in_background(room) as door:
        table = room.table

        def over() -> bool:
            with table._changed:
                return table._changed.wait_for(lambda: table._ended, PATIENCE_S)

        async def scene(page: Talk) -> None:
            await page.has("CLIENT_HELLO")
            await page.type("auto")  # from here on nothing is read
            assert await asyncio.to_thread(over)

        asyncio.run(with_socket(Reader(door), scene))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_log_s_protocol_is_found_by_its_attacks(protocol: str) -> None:
    sets = read_sets(folder_of(protocol) / "sets.json")
    assert protocol_of(sets.sets) == protocol
    assert protocol_of(sets.not_prevented) == protocol


def test_a_log_that_is_none_or_of_no_protocol_is_one_sentence() -> None:
    with pytest.raises(UserError, match="the log line 1 is not an event"):
        log_view("{}", "")
    with pytest.raises(UserError, match="there is no protocol 'no'"):
        log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "no")
    view = log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "")
    assert (view["protocol"], view["note"]) == ("classroom", "")
    assert (view["runs"][0]["ended"], view["runs"][0]["command"]) == ("client: e (1)", "")


def test_a_line_of_a_log_is_read_by_its_kind_whatever_else_it_has() -> None:
    lines = [
        {"attack": "a", "event": "ended", "by": "client", "error": "e", "to": "server"},
        {"attack": "a", "event": "sent", "to": "server", "message": "0a", "deed": 5, "by": []},
    ]
    (run,) = log_view("\n".join(map(json.dumps, lines)), "")["runs"]
    assert (run["ended"], len(run["rows"])) == ("client: e (1)", 1)


def test_a_run_of_a_log_is_told_with_its_ladder_and_its_verdict() -> None:
    lines: list[dict[str, object]] = [
        {"event": "sent", "to": "server", "message": "0a01"},
        {
            "event": "inserted",
            "to": "server",
            "message": "0a02",
            "deed": "changed",
            "origin": "0a01",
        },
        {"event": "inserted", "to": "client", "message": "1401", "deed": "inserted"},
        {"event": "refused", "by": "client", "error": "BadTag", "message": "1401"},
        {"event": "sent", "to": "client", "message": "1402"},
        {"event": "news"},
        {
            "event": "judged",
            "story": "A bit flips.",
            "claim": "S-3",
            "noticed": "",
            "without": "tag",
            "as_expected": True,
            "words": "WON: all",
            "won": "all",
            "bystanders": 0,
            "again": "--seed 7",
        },
    ]
    text = "\n".join(json.dumps({"attack": "flip-reading", **line}) for line in lines)
    view = log_view(text, "")
    (run,) = view.pop("runs")
    assert view == {
        "protocol": "classroom",
        "name": "the lab's own protocol",
        "count": 1,
        "note": "the log: not shown, because not known here: news",
    }
    changed, inserted, dropped = run.pop("rows")
    assert run == {
        "attack": "flip-reading",
        "title": "flip-reading without tag",
        "story": "A bit flips.",
        "command": "python attacks.py --seed 7 --without tag flip-reading",
        "verdict": {"kind": "won", "words": "won: all"},
        "ended": "",
    }
    assert changed == {
        "id": 1,
        "kind": "changed",
        "words": "changed on the way",
        "to": "server",
        "in": True,
        "on": True,
        "touched": True,
        "sent": bytes_view(b"\x0a\x01", LAB),
        "got": bytes_view(b"\x0a\x02", LAB),
        "what": "client id: 01 -> 02",
        "verdict": "",
    }
    assert (inserted["in"], inserted["got"], inserted["verdict"]) == (False, None, "BadTag")
    assert (dropped["on"], dropped["got"], dropped["what"]) == (False, None, "")
    replaced = step_view(Step("replaced", "server", b"\x0a\x01", b"\x0a\x02"), LAB)
    assert replaced["what"] == "", "nobody changed these bytes"
    assert step_view(Step("inserted", "server"), LAB)["sent"] is None


def test_a_text_is_cut_when_the_page_has_no_room_for_it() -> None:
    longest = MOST_LETTERS * "x"
    assert (short(longest), short(f"{longest}y")) == (longest, f"{longest} ...")


@pytest.mark.slow
def test_of_a_huge_log_the_page_is_told_what_it_has_room_for() -> None:
    sent = {"event": "sent", "to": "server", "message": "0a" * 1_000}
    lines = [{"attack": f"{number:01000}", **sent} for number in range(MOST_RUNS + 5)]
    lines += [{"attack": "last", **sent}] * 1_000
    view = log_view("\n".join(map(json.dumps, lines)), "")
    assert (view["count"], len(view["runs"])) == (MOST_RUNS + 6, MOST_RUNS)
    assert len(json.dumps(view["runs"][0])) < 3 * MOST_LETTERS + 4 * MOST_BYTES
    (run,) = log_view("\n".join(map(json.dumps, lines[-1_000:])), "")["runs"]
    assert len(run["rows"]) == LONGEST
    assert {"note": "987 messages more"} in run["rows"]


def test_a_log_whose_protocol_lacks_a_package_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, PROTOCOLS["secure_chat"], None)  # then importing it fails
    with pytest.raises(UserError, match=r"pip install -r companions/secure_chat/requirements\.txt"):
        log_view('{"attack": "a", "event": "ended", "by": "client", "error": "e"}', "secure_chat")


def test_played_attacks_enter_the_board_under_their_rules_and_are_runs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.program.details", lambda *_: pytest.fail("nobody reads this"))
    feeds = Feeds()
    plays = Plays(feeds)
    seen: list[Any] = []
    told: Any = Told(lambda: seen.append(plays.run_view()))
    feeds.add(told)
    plays.play(["replay-report", "flip-reading"], "tag")
    assert [*dict.fromkeys(told.topics)] == ["run", "board"]
    assert [*plays.board] == ["tag"]
    assert [*plays.board["tag"]] == ["replay-report", "flip-reading"]
    cell = plays.board["tag"]["flip-reading"]
    assert (cell["kind"], "900.0" in cell["won"]) == ("won", True)
    run = plays.run_view()
    assert run is not None
    assert run["verdict"] == {"kind": "won", "words": cell["words"].replace("WON", "won")}
    assert run["command"].endswith("--without tag flip-reading")
    assert [row["kind"] for row in run["rows"]][:3] == ["passed", "passed", "changed"]
    assert "BadPadding" in [row["verdict"] for row in run["rows"]]
    assert (run["shown"], run["now"]) == (2, "")
    assert [(view["shown"], view["now"]) for view in (seen[0], seen[-2])] == [
        (1, "replay-report"),
        (2, "flip-reading"),
    ]
    assert capfd.readouterr().out == ""


def test_an_attack_that_has_only_begun_is_a_run_without_rows() -> None:
    plays = Plays(Feeds())
    with pytest.raises(UserError, match="no attack is named 'nonsense'"):
        plays.play(["nonsense"], "")
    assert plays.run_view() is None
    plays._teller = QuietTeller([], Feeds())
    plays._begin = 0
    assert plays.run_view() == {"shown": 0, "now": "", "rows": [], "attack": ""}


def test_after_a_stop_no_other_attack_begins_until_some_are_asked_for() -> None:
    feeds = Feeds()
    plays = Plays(feeds)
    told: Any = Told(plays.stop)
    feeds.add(told)
    for name in ("flip-reading", "replay-report"):
        plays.play([name, "eavesdrop"], "")
    assert [*plays.board[""]] == ["flip-reading", "replay-report"]
    assert {cell["kind"] for cell in plays.board[""].values()} == {"refused"}


@pytest.mark.slow
@posix_only
def test_the_program_serves_until_it_is_stopped() -> None:
    words = [sys.executable, "-m", "classroom.live.show", "--no-browser", "--without", "tag"]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE) as program:
        assert program.stdout
        assert program.stdout.readline() == "open this, once; Ctrl-C ends it:\n"
        line = program.stdout.readline()
        match = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=\S+\n", line)
        assert match
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(match[1], timeout=PATIENCE_S)
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE_S) == 0


def test_what_is_still_asked_for_is_not_done_when_the_room_is_left() -> None:
    done: list[str] = []

    def ask(room: Room, executor: ThreadPoolExecutor) -> None:
        room._soon(executor, lambda: wait_until(lambda: executor._shutdown))
        room._soon(executor, lambda: done.append("late"))

    with Room() as room:
        ask(room, room._hand)
        ask(room, room._stage)
    assert room.plays._stop.is_set()
    assert (room._hand._shutdown, room._stage._shutdown) == (True, True)
    assert not done


def test_a_second_ctrl_c_does_not_disturb_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Left(Room):
        def __exit__(self, *exception: object) -> None:
            signal.raise_signal(signal.SIGINT)
            super().__exit__(*exception)

    monkeypatch.setattr(show, "show", interrupted)
    monkeypatch.setattr(show, "Room", Left)
    monkeypatch.setattr(logging.root.manager, "disable", logging.root.manager.disable)
    done = run_here(show.main, capfd, "show.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.slow
def test_wrong_flags_are_one_sentence() -> None:
    for flags in (["--without", "nonsense"], ["--port", "x"], ["--without", ""]):
        done = run("-m", "classroom.live.show", "--no-browser", *flags)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), flags
        assert done.stderr.startswith("show.py: ")
