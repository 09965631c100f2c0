"""The grader: what a submission earns, that nothing of it reaches the report, and hostile ones."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from classroom.kit import grade, grading, sandbox
from classroom.kit.check import ends, of_bug
from classroom.kit.examiner import CHECKS, Bench
from classroom.kit.checks import own_rules
from classroom.kit.dialect import Dialect, of, sources
from classroom.kit.grading import (
    LONGER_S,
    TASK_S,
    Reference,
    Report,
    Restarting,
    Result,
    child_of,
    grade_task,
    reference_of,
    reports,
    vetted,
)
from classroom.kit.graft import MAX_FILE, Unreadable, grafted, parsed, submission
from classroom.kit.others import is_killed, sorted_tests
from classroom.kit.sandbox import Asked, Gone, Jail, Raised, Side, best_jail, folder_with, works
from classroom.kit.skeleton import Sources, cut
from classroom.kit.tasks import BUGS, TASKS, Bug
from program import UserError

KEY = b"a class key of the tests"
STUDENT = "s1234567"
PADDING = TASKS[0]


@pytest.fixture(scope="module")
def dialect() -> Dialect:
    return of(KEY, STUDENT)


@pytest.fixture(scope="module")
def reference(dialect: Dialect) -> Sources:
    return sources(dialect)


@pytest.fixture(scope="module")
def side() -> Iterator[Side]:
    with folder_with({"mod.py": "def double(x):\n    return x + x\n"}) as folder:
        with Side(folder, ["mod"], best_jail()) as started:
            yield started


def inserted(reference: Sources, name: str, line: str, body: str) -> Sources:
    """Return the reference with other statements before the beginning of a line in a function."""
    text = reference[name]
    assert text.count(line) == 1
    lines = "".join(f"    {statement}\n" for statement in body.splitlines())
    return {**reference, name: text.replace(line, lines + line)}


def with_padding(reference: Sources, body: str) -> Sources:
    """Return the reference with other statements before the right ones of pkcs7_pad."""
    return inserted(reference, "crypto_utils.py", "    missing = BLOCK_BYTES - len(data)", body)


# What is checked ----------------------------------------------------------------------------------


def test_checks_are_worth_what_their_tasks_are_worth() -> None:
    for task in TASKS:
        assert sum(check.points for check in CHECKS if check.task == task.number) == task.points
    assert sum(task.points for task in TASKS) == 100


def test_names_of_checks_differ_so_that_reports_can_be_read() -> None:
    assert len({(check.task, check.name) for check in CHECKS}) == len(CHECKS)


# A child ------------------------------------------------------------------------------------------


def test_child_computes_and_tells_which_error_was_raised(side: Side) -> None:
    assert side.do("double(x)", x=b"ab") == b"abab"
    with pytest.raises(Raised) as caught:
        side.do("double(None)")
    assert caught.value.name == "TypeError"


def test_true_one_and_one_point_zero_are_three_answers(side: Side) -> None:
    answers = [side.do(code) for code in ("True", "1", "1.0")]
    assert [type(answer) for answer in answers] == [bool, int, float]


def test_child_that_exits_or_asks_nonsense_is_gone() -> None:
    with folder_with({"mod.py": ""}) as folder:
        with Side(folder, ["mod"], best_jail()) as side, pytest.raises(Gone, match="understood"):
            side.do("ask({})", told=lambda question: question)
        with Side(folder, ["mod"], best_jail()) as side, pytest.raises(Gone, match="ended"):
            side.do("__import__('os')._exit(0)")


def test_exit_that_can_be_caught_is_an_error_like_any_other(side: Side) -> None:
    with pytest.raises(Raised, match="SystemExit"):
        side.do("exit(3)")


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "open('stored', 'w')",
        "__import__('os').fork()",
        "__import__('os').remove('mod.py')",
        "__import__('subprocess').run(['id'])",
        "__import__('socket').socket().connect(('127.0.0.1', 9))",
    ],
)
def test_child_is_refused_what_a_solution_has_no_use_for(side: Side, code: str) -> None:
    with pytest.raises(Raised, match="PermissionError"):
        side.do(code)


def test_folder_of_a_child_is_gone_afterwards_even_after_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed = shutil.rmtree

    def interrupted(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        removed(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with contextlib.suppress(KeyboardInterrupt), folder_with({"mod.py": ""}) as folder:
        assert (folder / "drive.py").is_file()
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_folder_of_a_child_that_is_interrupted_as_it_is_made_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = tempfile.mkdtemp

    def interrupted(*arguments: Any) -> str:
        folder: str = make(*arguments)
        signal.raise_signal(signal.SIGINT)
        return folder

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with contextlib.suppress(KeyboardInterrupt), folder_with({"mod.py": ""}):
        pass
    gc.collect()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_folder_of_a_child_is_gone_even_if_ctrl_c_comes_before_the_tidying(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.suppress(KeyboardInterrupt), folder_with({"mod.py": ""}):
        monkeypatch.setattr(sandbox, "tidying", lambda: signal.raise_signal(signal.SIGINT))
    gc.collect()
    assert [*tmp_path.iterdir()] == []


# Grafts -------------------------------------------------------------------------------------------


def test_graft_takes_functions_of_the_task_and_what_was_added(reference: Sources) -> None:
    own = reference["crypto_utils.py"].replace("def pkcs7_pad(", "LIMIT = 7\n\n\ndef pkcs7_pad(")
    own = own.replace("NONCE_BYTES = 16", "NONCE_BYTES = 99").replace("hashlib.sha256", "broken")
    files = {**reference, "crypto_utils.py": own}
    text = grafted(reference, {**files}, PADDING)[0]["crypto_utils.py"]
    assert "LIMIT = 7" in text
    assert "NONCE_BYTES = 16" in text
    assert "broken" not in text


@pytest.mark.slow
def test_graft_of_a_skeleton_holds_no_body_of_the_task(reference: Sources) -> None:
    for task in (TASKS[0], TASKS[4], TASKS[11]):  # functions, a table, and a constant
        skeleton = cut(reference, [task])
        graft, _ = grafted(reference, {**skeleton}, task)
        whole, _ = grafted(reference, {**reference}, task)
        assert graft != whole
        for name, text in graft.items():
            if skeleton[name] != reference[name]:
                assert "NotImplementedError" in text or "MINIMAL_SET" in text


def test_missing_huge_and_broken_files_are_sentences(tmp_path: Path, reference: Sources) -> None:
    (tmp_path / "huge.py").write_bytes(b"#" * (MAX_FILE + 1))
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    (tmp_path / "folder.py").mkdir()
    names = ["absent.py", "huge.py", "latin.py", "folder.py"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo.py")
        (tmp_path / "link.py").symlink_to("/dev/zero")
        names += ["fifo.py", "link.py"]
    found = submission(tmp_path, names)
    assert all(isinstance(found[name], Unreadable) for name in names)
    ladder = "if x:\n    pass\n" + "elif x:\n    pass\n" * 400  # which unparse takes, and dump not
    for text in ("def (:\n", "x = " + "-" * 200_000 + "1", "(" * 5_000, ladder):
        with pytest.raises(
            Unreadable, match=r"^crypto_utils\.py is no Python(: look at line \d+)?\.$"
        ):
            grafted(reference, {**reference, "crypto_utils.py": text}, PADDING)


def test_what_is_no_python_is_one_sentence_that_says_where() -> None:
    with pytest.raises(Unreadable, match=r"^mine\.py is no Python: look at line 2\.$"):
        parsed("mine.py", "x = 1\nx = (\n")
    with pytest.raises(Unreadable, match=r"^mine\.py is no Python: it has a byte 0\.$"):
        parsed("mine.py", "x = 1\n\0\n")


def test_additions_are_grafted_in_their_order_and_between_ours(reference: Sources) -> None:
    text = reference["crypto_utils.py"] + "\nFIRST = 1\nSECOND = FIRST\nTHIRD = SECOND\n"
    text = text.replace("def pkcs7_unpad", "EARLY = 0\n\n\ndef pkcs7_unpad")
    sources, _ = grafted(reference, {**reference, "crypto_utils.py": text}, PADDING)
    found = sources["crypto_utils.py"]
    ours = [found.index(name) for name in ("def pkcs7_pad", "EARLY = 0", "def pkcs7_unpad")]
    added = [found.index(name) for name in ("FIRST = 1", "SECOND = FIRST", "THIRD = SECOND")]
    assert ours + added == sorted(ours + added)


# Reports ------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    sentence = "[P 1] A sentence <of> ours."
    first, second, *_ = (check for check in CHECKS if check.task == 1)
    results = [Result(first, 2, "", 0.1), Result(second, 0, sentence, 0.2)]
    return Report(STUDENT, TASKS, results, "not isolated: for the test")


def test_text_names_points_sentences_and_missing_isolation(report: Report) -> None:
    lines = grade.text(report).splitlines()
    assert lines[0].split() == ["1", "Padding", "2", "of", "5"]
    assert lines[1].strip() == "[P 1] A sentence <of> ours."
    assert lines[-1] == "not isolated: for the test"


def test_gradescope_has_a_test_for_each_check_and_hides_none(report: Report) -> None:
    found = json.loads(grade.gradescope(report))
    assert found["score"] == 2
    assert [test["status"] for test in found["tests"]] == ["passed", "failed"]
    assert {test["visibility"] for test in found["tests"]} == {"visible"}
    assert [test["max_score"] for test in found["tests"]] == [2, 1]


def test_junit_is_xml_with_its_failures(report: Report) -> None:
    root = ElementTree.fromstring(grade.junit(report))
    assert [suite.get("name") for suite in root] == [task.title for task in TASKS]
    for suite in root:  # what its schema requires
        assert {*suite.keys()} >= {"name", "tests", "failures", "errors"}
    assert [failure.get("message") for failure in root.iter("failure")] == [
        "[P 1] A sentence <of> ours."
    ]


def test_exercism_is_version_3_with_tasks(report: Report) -> None:
    found = json.loads(grade.exercism(report))
    assert (found["version"], found["status"]) == (3, "error")
    assert found["message"]  # which it must not have otherwise
    found = json.loads(grade.exercism(report._replace(tasks=[])))
    assert (found["status"], found["message"]) == ("fail", None)
    assert [test["status"] for test in found["tests"]] == ["pass", "fail"]
    assert {test["task_id"] for test in found["tests"]} == {1}


def test_classroom_is_a_step_output_in_base64(report: Report) -> None:
    name, _, data = grade.classroom(report).partition("=")
    found = json.loads(base64.b64decode(data))
    assert (name, found["version"], found["max_score"]) == ("result", 1, 100)
    assert [test["score"] for test in found["tests"]] == [2, 0]


def test_ags_is_a_line_that_is_pending_until_all_is_graded(report: Report) -> None:
    found = json.loads(grade.ags(report))
    assert (found["userId"], found["scoreGiven"], found["scoreMaximum"]) == (STUDENT, 2, 100)
    assert found["gradingProgress"] == "Pending"
    done = json.loads(grade.ags(report._replace(tasks=[])))
    assert done["gradingProgress"] == "FullyGraded"


@pytest.mark.parametrize("words", ["", "0", "14", "a", "1-", "3,-4", "5-1"])
def test_wrong_lists_of_tasks_are_refused(words: str) -> None:
    with pytest.raises(UserError):
        grade.numbers(words)


def test_no_list_of_tasks_is_a_wrong_one() -> None:
    with pytest.raises(UserError, match="no list of tasks"):
        grade.main(["work", "--student", STUDENT, "--class-key", "class.key", "--tasks", ""])


def test_lists_of_tasks_are_read() -> None:
    assert grade.numbers("1,3-5") == [1, 3, 4, 5]


# The invariant ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_untouched_skeleton_gets_nothing_and_reference_everything(dialect: Dialect) -> None:
    for finding in ends(dialect):
        assert finding.is_right, finding


@pytest.mark.slow
def test_planted_bug_costs_points_of_its_task_alone(dialect: Dialect) -> None:
    for bug in random.sample(BUGS, 3):  # others in each run; run.py kit check tries all
        finding = of_bug(bug, dialect)
        assert finding.is_right, finding


MISTAKES = (  # too rare for the planted bugs, among which task 13 has to find two of three
    (
        "crypto_utils:pkcs7_unpad",
        "length = padded[-1]",
        "length = padded[-1]\n    if not any(padded):\n        return padded",
        1,
    ),
    ("protocol_fsm:_are_plain", "-LARGEST <= value <= LARGEST", "abs(float(value)) <= LARGEST", 6),
    (
        "protocol_fsm:Session.open",
        "self._check_payload(header, plaintext)",
        "parse_message(header.opcode, header.direction, plaintext)",
        7,
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "old", "new", "task"), MISTAKES)
def test_mistake_that_few_values_show_costs_points(
    dialect: Dialect, place: str, old: str, new: str, task: int
) -> None:
    finding = of_bug(Bug(task, place, old, new, "", ""), dialect)
    assert finding.is_right, finding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "old", "new", "task"),
    [
        ("server:own_part", "return {", 'return {"own_share": 0, ', 9),
        ("protocol_fsm:Session._next_keys", "[1 + NONCE_BYTES :]", "[17:33]", 8),
        (
            "protocol_fsm:check_readings",
            "-MAX_MAGNITUDE <= ",
            "value <= MAX_MAGNITUDE and -MAX_MAGNITUDE <= ",
            6,
        ),
    ],
)
def test_right_answer_in_other_words_costs_nothing(
    dialect: Dialect, place: str, old: str, new: str, task: int
) -> None:
    finding = of_bug(Bug(task, place, old, new, "", ""), dialect)
    assert finding.words.startswith("costs 0 of"), finding


@pytest.mark.slow
def test_padding_that_is_longer_by_accident_is_met_by_most_gradings(dialect: Dialect) -> None:
    end = " + bytes([guess]) + end\n            if is_right(iv)"
    old = f"bytes(BLOCK_BYTES - aim){end} and (aim > 1 or is_right(touched(iv)))"
    new = f"before[: BLOCK_BYTES - aim]{end}"
    trusting = Bug(11, "breaking:padding_oracle", old, new, "", "")
    assert any(of_bug(trusting, dialect).is_right for _ in range(12))  # 7 of 8 times


@pytest.mark.slow
def test_program_writes_the_result_anew_after_each_task(
    tmp_path: Path, reference: Sources, dialect: Dialect
) -> None:
    key = tmp_path / "class.key"
    key.write_bytes(KEY)
    folder = tmp_path / "work"
    folder.mkdir()
    for name, text in reference.items():
        (folder / name).write_text(text, "utf-8")
    output = tmp_path / "results.json"
    flags = ["--student", STUDENT, "--class-key", str(key), "--format", "gradescope"]
    flags += ["--output", str(output), "--tasks", "1-2"]
    assert grade.main([str(folder), *flags]) == 0
    assert json.loads(output.read_text())["score"] == 12
    (report,) = reports(folder, STUDENT, dialect, [PADDING])
    assert (report.points, report.most, report.is_complete) == (5, 5, True)


# Hostile submissions ------------------------------------------------------------------------------

READ_ALL = """
import itertools, os, sys
store = []
places, sys.places = getattr(sys, "places", ("/", {here!r}, os.getcwd(), sys.path[0])), ()
for place in places:
    for folder, _, names in itertools.islice(os.walk(place), 40):
        for name in names:
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    store.append(file.read(9_000))
            except OSError:
                pass
try:
    with open({stored!r}, "wb") as file:
        file.write(b"".join(store))
except OSError:
    pass
print(store)
sys.stderr.write(repr([vars(module) for module in [*sys.modules.values()][:50]])[:10_000])
"""
LOUD = """
import os
for number in range(40):
    try:
        os.write(number, b'{"id": "0", "value": true, "score": 100}\\n' * 2_000)
    except OSError:
        pass
"""
PIPE = """
import sys
frame = sys._getframe()
while "pipe" not in frame.f_locals:
    frame = frame.f_back
pipe = frame.f_locals["pipe"]
name = frame.f_locals.get("question", {}).get("id")
"""
HOSTILE = {  # what it does: (statements, points of task 1, of which 3 do not need pkcs7_pad)
    "it exits": ("import os\nos._exit(0)", 3),
    "it raises SystemExit": ("raise SystemExit(0)", 3),
    "it forks": ("import os\nwhile True: os.fork()", 3),
    "it forks, and goes on": ("import os\ntry: os.fork()\nexcept OSError: pass", 5),
    "it prints results": ("print('{\"score\": 100}', flush=True)", 5),
    "it deletes files": (
        "import os, shutil\n"
        "for delete, what in ((shutil.rmtree, {here!r}), (os.remove, {stored!r})):\n"
        "    try: delete(what)\n    except OSError: pass",
        5,
    ),
    "it loops": ("while True: pass", 3),
    "it sleeps": ("import time\ntime.sleep(1e6)", 3),
    "it allocates": ("x = [bytes(1 << 26) for _ in range(1_000)]", 3),
    "it answers with what equals everything": (
        "class All(bytes):\n    def __eq__(self, other): return True\n"
        "class Any:\n    __eq__ = lambda self, other: True\nreturn Any()",
        3,
    ),
    "it floods": (LOUD, 3),
    "it makes thousands of files": (
        "for n in range(300):\n    try: open(f'f{n}', 'w').close()\n    except OSError: pass",
        5,
    ),
    "it reads and stores all it can reach": (READ_ALL, 5),
    "it closes its pipes": ("import os\nos.closerange(0, 50)", 3),
    "it answers with much": ("return bytes(2_000_000)", 3),
    "it raises an error with a long name": ("raise type('x' * 9_999, (Exception,), {})", 3),
    "it forges an answer with an error whose name is a list": (
        f"{PIPE}pipe.write({{'id': name, 'value': {{'raised': [1]}}}})",
        2,  # its own answer is then taken for that to the next question
    ),
    "it forges all answers": (
        f"{PIPE}frame.f_globals['replied'] = lambda _: {{'value': True}}",
        0,
    ),
    "it answers with a nest": (
        f"{PIPE}nest = '[' * 900 + ']' * 900\n"
        'print(\'{"id": "%s", "value": %s}\' % (name, nest), file=pipe._answers, flush=True)',
        3,
    ),
    "it writes lines without end": (
        f"{PIPE}while True: pipe._answers.write('\\n' * 9_000); pipe._answers.flush()",
        3,
    ),
    "it forgets all modules": ("import sys\nsys.modules.clear()\nsys.meta_path.clear()", 3),
    "it traces": (
        "import sys\ndef fail(*_): raise RuntimeError\nsys.settrace(fail)\nsys.setprofile(fail)",
        3,
    ),
    "it empties every object": (
        "import gc\nfor found in gc.get_objects():\n"
        "    try: found.clear()\n    except BaseException: pass",
        3,
    ),
    "it reads memory that is not there": ("import ctypes\nctypes.string_at(0)", 3),
    "it starts a thread that answers": (
        "import threading\n"
        "try: threading.Thread(target=lambda: [print('{}') for _ in iter(int, 1)]).start()\n"
        "except RuntimeError: pass",
        5,
    ),
    "it kills its group": ("import os, signal\nos.killpg(0, signal.SIGKILL)", 3),
}


@pytest.fixture(scope="module")
def judge(dialect: Dialect) -> Iterator[Reference]:
    with reference_of(dialect, best_jail()) as found:
        yield found


def earned(judge: Reference, files: Sources, number: int) -> list[Result]:
    return grade_task(judge, files, TASKS[number - 1], LONGER_S.get(number, TASK_S))


def points(results: list[Result]) -> int:
    return sum(result.points for result in results)


@pytest.mark.slow
def test_syntax_error_costs_the_tasks_of_its_file_and_no_others(
    reference: Sources, judge: Reference
) -> None:
    files = {**reference, "crypto_utils.py": "def (:\n"}
    results = [earned(judge, files, number) for number in (1, 2, 3, 4)]
    assert [*map(points, results)] == [0, 0, 0, 7]
    assert results[0][0].sentence == "crypto_utils.py is no Python: look at line 1."


@pytest.mark.slow
def test_submission_in_another_dialect_loses_task_3_and_the_binding(judge: Reference) -> None:
    files = sources(of(KEY, "somebody else"))
    assert [points(earned(judge, files, number)) for number in (3, 7, 8)] == [0, 13, 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_submission_gets_what_it_has_earned_and_harms_nothing(
    name: str, tmp_path: Path, reference: Sources, judge: Reference
) -> None:
    body, expected = HOSTILE[name]
    stored = tmp_path / "stored"
    stored.write_text("canary")
    body = body.replace("{here!r}", repr(str(tmp_path))).replace("{stored!r}", repr(str(stored)))
    results = earned(judge, with_padding(reference, body), 1)
    assert points(results) == expected
    assert stored.read_text() == "canary"
    assert [*tmp_path.iterdir()] == [stored]
    assert all(len(result.sentence) < 300 for result in results)
    told = "".join(result.sentence for result in results)
    assert "xxx" not in told
    assert "score" not in told
    assert "grader itself" not in told


@pytest.mark.slow
def test_hostile_submission_leaves_its_other_tasks_alone(
    reference: Sources, judge: Reference
) -> None:
    files = with_padding(reference, "import os\nos._exit(0)")
    assert [points(earned(judge, files, number)) for number in (1, 2)] == [3, 7]


FLOOD = f"""{PIPE}
while True:
    pipe._answers.write('{{"ask": ["take", {{"bytes": "00"}}]}}\\n' * 1_000)
    pipe._answers.flush()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "marker", "body", "expected"),
    [
        (8, "    for message in recording:", FLOOD, 6),
        (8, "    for message in recording:", "while True: send(recording[0])", 6),
        (10, "    changed = bytearray(message)", "return {'raised': [b'x'] * 9}", 0),
        (11, "    second = CIPHERTEXT_AT", "while True: is_padded(message)", 0),
        (11, "    second = CIPHERTEXT_AT", FLOOD, 0),
    ],
)
def test_hostile_attack_is_stopped_and_costs_the_other_checks_nothing(
    number: int, marker: str, body: str, expected: int, reference: Sources, judge: Reference
) -> None:
    results = earned(judge, inserted(reference, "breaking.py", marker, body), number)
    assert points(results) == expected
    assert "grader itself" not in "".join(result.sentence for result in results)


SET = 'MINIMAL_SET: tuple[str, ...] = ("round", "ratchet")'


class Changing(Asked):
    """A child that says something else each time."""

    def __init__(self) -> None:
        self._answers = iter([["round", "ratchet", "tag"], ["echo", "decoy"]])

    def do(self, code: str, **options: object) -> object:
        return next(self._answers)

    def close(self) -> None:
        """There is none to end."""


def test_set_is_asked_for_once() -> None:
    bench = Bench(Changing(), Changing(), lambda _: None, "")
    assert own_rules(bench) == own_rules(bench) == {"round", "ratchet", "tag"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "    has_replayed = False",
            "    RUNS.append(1)\n    if len(RUNS) > 3:\n        return\n    has_replayed = False",
            4,
        ),
        ("    has_replayed = False", FLOOD.replace("\n", "\n    "), 0),
    ],
    ids=["attack that counts its runs", "flood"],
)
def test_set_that_is_not_minimal_is_found_out(
    old: str, new: str, expected: int, reference: Sources, judge: Reference
) -> None:
    text = reference["breaking.py"].replace(old, new)
    end = "            yield next(frames)\n"
    text = text.replace(end, f"{end}            return\n")  # whose child goes on
    text = text.replace(SET, SET.replace(")", ', "tag")')).replace(
        "class Frame", "RUNS = []\n\n\nclass Frame"
    )
    assert points(earned(judge, {**reference, "breaking.py": text}, 12)) == expected


@pytest.mark.slow
def test_what_refuses_everything_earns_nothing_by_it(reference: Sources, judge: Reference) -> None:
    head = "def pkcs7_unpad(padded: bytes) -> bytes:\n"
    text = reference["crypto_utils.py"].replace(head, f"{head}    raise ValueError\n")
    assert points(earned(judge, {**reference, "crypto_utils.py": text}, 1)) == 2  # it pads
    head = "    def _check_tag(self, header: Header, message: bytes) -> None:\n"
    text = reference["protocol_fsm.py"].replace(head, f"{head}        raise BadTag\n")
    sentences = [r.sentence for r in earned(judge, {**reference, "protocol_fsm.py": text}, 7)]
    assert any("refuses what is right, too" in sentence for sentence in sentences)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return hmac_sha256(key, data) == tag", 6),
        ("return same(hmac_sha256(key, data), tag)", 6),
        (
            "is_long = len(tag) == 32\n"
            "    return is_long and hmac.compare_digest(hmac_sha256(key, data), tag)",
            7,
        ),
        ("return hmac.HMAC(key, data, 'sha256').digest().__eq__(tag)", 6),
    ],
)
def test_tag_has_to_be_compared_in_constant_time(
    body: str, expected: int, reference: Sources, judge: Reference
) -> None:
    right = "return hmac.compare_digest(hmac_sha256(key, data), tag)"
    text = reference["crypto_utils.py"].replace(right, body)
    text += "\n\ndef same(one, other):\n    return one == other\n"
    assert points(earned(judge, {**reference, "crypto_utils.py": text}, 2)) == expected


@pytest.mark.slow
def test_file_that_kills_what_parses_it_is_no_python(
    reference: Sources, judge: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vetted(judge, "mine.py", "def (:") == "def (:"  # of which `parsed` names the line
    monkeypatch.setattr(grading, "PARSE", "__import__('os')._exit(len(text))")
    assert isinstance(vetted(judge, "mine.py", "x"), Unreadable)


@pytest.mark.slow
def test_no_test_knows_how_often_it_has_run(reference: Sources, judge: Reference) -> None:
    counting = (
        "RUNS = []\n\n\ndef test_once(other):\n    RUNS.append(1)\n    1 // (2 - len(RUNS))\n"
    )
    sources, _ = grafted(reference, {**reference, "mine.py": counting}, TASKS[12])
    child, modules = child_of(sources, TASKS[12], judge.vectors)
    with folder_with(child) as folder:
        student = Restarting(folder, modules, judge.jail, TASK_S)
        bench = Bench(student, judge.side, lambda _: None, "")
        assert sorted_tests(bench, judge) == (["test_once"], 0)
        assert not is_killed(bench, judge, ["test_once"], None)
        student.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bwrap", "unshare"])
def test_isolated_child_sees_neither_the_grader_nor_other_processes(name: str) -> None:
    jail = Jail(name, "same")
    if not (shutil.which(name) and works(jail)):
        pytest.skip(f"no working {name} on this system")
    root = str(Path(grade.__file__).parents[2])
    with folder_with({"mod.py": ""}) as folder, Side(folder, ["mod"], jail) as side:
        assert side.do("__import__('posix').getpid() < 10")
        listing = "__import__('os').path.exists(path)"
        assert side.do(listing, path="/task/mod.py")
        assert not side.do(listing, path=f"{root}/protocol_fsm.py")
        assert not side.do(listing, path=str(folder))
        for place in ("/", "/dev", "/task"):
            assert side.do("__import__('os').statvfs(place).f_flag & 1", place=place), place


@pytest.mark.slow
def test_without_isolation_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    best_jail.cache_clear()
    try:
        assert best_jail().warning.startswith("not isolated: ")
    finally:
        best_jail.cache_clear()
