"""The assignment of the course kit: what is cut, what a student gets, and the dialects."""

from __future__ import annotations

import ast
import difflib
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from classroom.keylog import PairOfKeys, plaintext_of
from classroom.kit import dialect, export, skeleton
from classroom.kit.dialect import MODULES, OWN, Dialect
from classroom.kit.export import HANDED_IN
from classroom.kit.others import planted
from classroom.kit.tasks import BUGS, TASKS
from program import UserError
from protocol_fsm import KEY_LABELS, Direction
from tests import diagrams
from tests.books import formula
from tests.house import tracked_files
from tests.programs import ROOT, Done, run

CLASS_KEY = b"a class key of a test"
ALICE = dialect.of(CLASS_KEY, "alice")
BOB = dialect.of(CLASS_KEY, "bob")
PLAIN = Dialect("0" * 8, False, False, False, False, False)
FLAGS = [field for field in Dialect._fields if field != "word"]
LIMIT_S = 120
NOT_EXPORTED = ("make_vectors", "weakened", "claims.toml", "sets.json", ".git")


def load(sources: dict[str, str]) -> Any:
    """Return protocol_fsm in a dialect, on a crypto_utils of its own."""
    crypto = types.ModuleType("crypto_utils")
    protocol = types.ModuleType("protocol_fsm_of_a_dialect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "crypto_utils", crypto)
        patch.setitem(sys.modules, protocol.__name__, protocol)
        exec(compile(sources["crypto_utils.py"], "crypto_utils.py", "exec"), vars(crypto))
        exec(compile(sources["protocol_fsm.py"], "protocol_fsm.py", "exec"), vars(protocol))
    return protocol


def statements_of(texts: dict[str, str]) -> Counter[str]:
    """Count the statements of Python files, each as one line in one spelling."""
    return Counter(
        ast.unparse(node)
        for name, text in texts.items()
        if name.endswith(".py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.stmt)
    )


def node_at(sources: dict[str, str], place: str) -> skeleton.Named:
    module, _, name = place.partition(":")
    return skeleton.find(skeleton.tree(sources[f"{module}.py"]), name)


def removed_statements(sources: dict[str, str]) -> Iterator[str]:
    """Yield what the tasks take out, with the statements inside it."""
    for task in TASKS:
        for place in task.functions:
            for statement in skeleton.statements(node_at(sources, place)):
                for part in ast.walk(statement):
                    if isinstance(part, ast.stmt):
                        yield ast.unparse(part)


# The skeleton


@pytest.mark.slow
def test_no_removed_statement_is_anywhere_in_an_export() -> None:
    """Statements that stand in code that stays, too, are counted."""
    sources = dialect.sources(ALICE)
    exported = {name: text.decode() for name, text in export.files(ALICE, "alice").items()}
    complete = statements_of({**sources, "check.py": exported["check.py"]})
    left = statements_of(exported)
    removed = Counter(removed_statements(sources))
    assert removed.total() > 200
    for statement, count in removed.items():
        assert left[statement] == complete[statement] - count, statement
    prose = " ".join(text for name, text in exported.items() if not name.endswith(".py"))
    for statement in removed:
        assert len(statement) < 20 or statement not in prose


def test_every_file_of_an_export_ends_its_last_line() -> None:
    for name, content in export.files(ALICE, "alice").items():
        assert content.endswith(b"\n"), name


@pytest.mark.slow
def test_all_that_is_not_cut_stays_byte_for_byte() -> None:
    sources = dialect.sources(ALICE)
    for name, text in skeleton.cut(sources, TASKS).items():
        lines = difflib.ndiff(sources[name].splitlines(True), text.splitlines(True))
        for line in lines:
            is_stub = re.search(r'raise NotImplementedError\("task \d+"\)|[{(][)}]  # task', line)
            assert not line.startswith("+") or is_stub, line
        for node in ast.walk(skeleton.tree(sources[name])):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert (ast.get_docstring(node, clean=False) or "") in text


@pytest.mark.slow
def test_the_modules_of_a_skeleton_can_be_loaded_and_its_table_is_empty() -> None:
    protocol = load(skeleton.cut(dialect.sources(ALICE), TASKS))
    assert protocol.ProtocolFSM.VALID_TRANSITIONS == {}
    with pytest.raises(NotImplementedError, match="task 4"):
        protocol.check_length(71)


def test_every_function_of_a_task_is_cut_and_no_two_tasks_share_one() -> None:
    places = [place for task in TASKS for place in task.functions]
    assert len({*places}) == len(places) >= 27
    texts = skeleton.cut(dialect.sources(ALICE), TASKS)
    for task in TASKS:
        for place in task.functions:
            (left,) = skeleton.statements(node_at(texts, place))
            written = ast.unparse(left)
            is_stub = written == f"raise NotImplementedError('task {task.number}')"
            assert is_stub or written.endswith(("= {}", "= ()")), place
    assert [task.number for task in TASKS] == [*range(1, 14)]


def test_comments_before_what_is_cut_are_cut_too() -> None:
    text = "def one() -> int:\n    # the reason\n    return 1\n\n\ntwo = 2\n"
    task = TASKS[0]._replace(functions=("file:one",))
    stub = '    raise NotImplementedError("task 1")\n'
    wanted = {"file.py": f"def one() -> int:\n{stub}\n\ntwo = 2\n"}
    assert skeleton.cut({"file.py": text}, [task]) == wanted


def test_an_edit_that_fits_nowhere_or_twice_is_an_error() -> None:
    sources = {"file.py": "def one() -> int:\n    return 1 + 1\n", "other.py": ""}
    made = skeleton.edited(sources, "file:one", "1 + 1", "2")
    assert made == {**sources, "file.py": "def one() -> int:\n    return 2\n"}
    for old in ("3", "1"):
        with pytest.raises(ValueError, match="times"):
            skeleton.edited(sources, "file:one", old, "2")
    with pytest.raises(LookupError):
        skeleton.edited(sources, "file:two", "1 + 1", "2")


# The export


@pytest.mark.slow
def test_an_export_holds_what_is_on_the_list_and_nothing_else() -> None:
    made = export.files(ALICE, "alice")
    wanted = {f"{name}.py" for name in (*MODULES, *OWN, "check")}
    wanted |= {"PROTOCOL.md", "HANDOUT.md", "LICENSE", "requirements.txt"}
    wanted |= {f"vectors/{n}.json" for n in ("key_schedule", "sessions", "rejected", "accepted")}
    wanted |= {"pictures/message-layout.svg", "pictures/nine-steps.svg"}
    assert made.keys() == wanted
    assert {*HANDED_IN} <= made.keys()
    ours = {path.read_bytes() for path in tracked_files() if path.suffix == ".py"}
    given = {f"{name}.py" for name in MODULES} | {"check.py", "other_side.py"}
    assert {name for name, text in made.items() if text in ours and name.endswith(".py")} < given
    for name, text in made.items():
        mentioned = [word for word in NOT_EXPORTED if word.encode() in text]
        assert not mentioned, f"{name} names {mentioned}"


def test_an_export_is_the_same_each_time() -> None:
    assert export.files(ALICE, "alice") == export.files(ALICE, "alice")


def test_the_handout_names_every_task_and_function_and_all_that_it_links() -> None:
    made = export.files(ALICE, "alice")
    text = made["HANDOUT.md"].decode()
    for task in TASKS:
        assert f"### {task.number} {task.title} ({task.points} points)" in text
        for place in task.functions:
            module, _, name = place.partition(":")
            assert f"- `{name}` in `{module}.py`" in text
    for document in ("HANDOUT.md", "PROTOCOL.md"):
        for target in re.findall(r"\]\(([^)#]+)", made[document].decode()):
            assert target in made, target
    assert "&#" not in text


def run_kit(*words: object) -> Done:
    return run("-m", "classroom.kit", *words, timeout_s=LIMIT_S)


@pytest.fixture
def class_key(tmp_path: Path) -> Path:
    path = tmp_path / "class.key"
    path.write_bytes(CLASS_KEY + b"\n")
    return path


@pytest.mark.slow
def test_kit_new_writes_the_folder_of_a_student(tmp_path: Path, class_key: Path) -> None:
    folder = tmp_path / "alice"
    flags = ("--student", "alice", "--class-key", class_key)
    done = run_kit("new", folder, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote the assignment of alice to {folder}\n"
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    made = export.files(ALICE, "alice")
    assert {*made} - {*found} == {"LICENSE"}
    assert all(found[name].read_bytes() == made[name] for name in found)
    done = run_kit("new", folder, *flags)
    assert done.returncode == 2
    assert "it exists already" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice", "class.key"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("teach",), ("new",)])
def test_a_wrong_command_of_the_kit_is_one_sentence(words: tuple[str, ...]) -> None:
    done = run_kit(*words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing" / "alice", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write"):
            export.write(folder, {"one": b"1"})
    with pytest.raises(TypeError):  # a mistake of ours leaves nothing half written, either
        export.write(tmp_path / "alice", {"one": b"1", "two": None})  # type: ignore[dict-item]
    assert not [*tmp_path.iterdir()]


# Dialects


def test_a_dialect_depends_on_the_class_key_and_the_student() -> None:
    assert dialect.of(CLASS_KEY, "alice") == ALICE
    drawn = {dialect.of(CLASS_KEY, f"student {number}") for number in range(200)}
    assert len({chosen.word for chosen in drawn}) == 200
    for flag in FLAGS:
        assert {getattr(chosen, flag) for chosen in drawn} == {True, False}
    assert len({chosen[1:] for chosen in drawn}) > 16
    assert dialect.of(CLASS_KEY + b"2", "alice") != ALICE


def test_an_accent_that_is_typed_in_two_ways_is_one_student() -> None:
    assert dialect.of(CLASS_KEY, "Zo\u00eb") == dialect.of(CLASS_KEY, "Zoe\u0308")


@pytest.mark.parametrize("student", ["", " alice", "alice ", "a\nb", "a" * 65])
def test_a_student_id_that_could_be_mistaken_is_refused(student: str) -> None:
    with pytest.raises(UserError, match="student id"):
        dialect.of(CLASS_KEY, student)


def test_a_class_key_is_a_file_with_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "class.key"
    with pytest.raises(UserError, match="cannot read"):
        dialect.class_key(str(path))
    path.write_bytes(b"too short\n" + b" " * 20)
    with pytest.raises(UserError, match="16 to 4,096 bytes"):
        dialect.class_key(str(path))
    path.write_bytes(bytes(5_000))
    with pytest.raises(UserError, match="16 to 4,096 bytes"):
        dialect.class_key(str(path))
    path.write_bytes(CLASS_KEY + b"\r\n")
    assert dialect.class_key(str(path)) == CLASS_KEY


def first_refusal(one: Any, other: Any) -> tuple[str, int]:
    """Play two rounds between two dialects; return the first error, and after how many messages."""
    key = b"a key of 16 byte"
    client = one.Session(1, key, one.Direction.C2S)
    server = other.Session(1, key, other.Direction.S2C)
    messages: list[Any] = [(one, "ClientHello", ()), (other, "ServerChallenge", ())]
    for _ in (1, 2):
        messages += [(one, "ClientData", ([1.5],)), (other, "ServerAggrResponse", ({"a": 1},))]
    for count, (module, name, content) in enumerate(messages):
        sender, receiver = (client, server) if count % 2 == 0 else (server, client)
        try:
            receiver.open(sender.seal(getattr(module, name)(*content)))
        except Exception as error:
            return type(error).__name__, count
    return "", len(messages)


def test_a_copied_module_of_another_dialect_meets_bad_tag_at_its_first_message() -> None:
    alice, bob = (load(dialect.sources(chosen)) for chosen in (ALICE, BOB))
    assert first_refusal(alice, bob) == ("BadTag", 0)
    assert first_refusal(bob, alice) == ("BadTag", 0)
    assert first_refusal(bob, bob) == ("", 6)


@pytest.mark.slow
def test_a_copied_step_is_wrong_even_where_two_dialects_differ_by_their_word_only() -> None:
    one, other = (load(dialect.sources(PLAIN._replace(word=word))) for word in ("0" * 8, "1" * 8))
    keys = dict.fromkeys(KEY_LABELS, b"x" * 32)
    assert one.derive_key(b"x", "C2S-ENC") != other.derive_key(b"x", "C2S-ENC")
    assert one.evolve_key(b"x", b"y") != other.evolve_key(b"x", b"y")
    other.evolve_key = one.evolve_key  # as when task 8 is graded: it is not of that task
    right = one.bind_keys(keys, b"1", b"2")
    assert all(other.bind_keys(keys, b"1", b"2")[label] != right[label] for label in KEY_LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_every_part_of_a_dialect_matters(flag: str) -> None:
    """Even if the labels were the same, each difference alone ends a session of two rounds."""
    changed = PLAIN._replace(**{flag: True})  # type: ignore[arg-type]
    one, other = (load(dialect.sources(chosen)) for chosen in (PLAIN, changed))
    error, count = first_refusal(one, other)
    assert error == "BadTag"
    assert count == {"label_first": 0, "material_first": 2, "server_first": 2}.get(flag, count)
    assert count in (0, 2, 4, 5)


@pytest.mark.parametrize("flag", ["word", *FLAGS])
def test_the_formulas_of_a_dialect_are_those_of_its_code(flag: str) -> None:
    chosen = ALICE if flag == "word" else PLAIN._replace(**{flag: True})  # type: ignore[arg-type]
    text = dialect.protocol(chosen)
    code = load(dialect.sources(chosen))
    keys = {label: formula(text, label, master_key=b"master key of 16") for label in KEY_LABELS}
    assert keys == {label: code.derive_key(b"master key of 16", label) for label in KEY_LABELS}
    bound = {
        label: formula(text, "X'", X=key, client_nonce=b"one", server_nonce=b"two")
        for label, key in keys.items()
    }
    assert bound == code.bind_keys(keys, b"one", b"two")
    moves = {
        "C2S": {"ciphertext": b"one", "nonce": b"two"},
        "S2C": {"body": b"one", "status": b"two"},
    }
    for direction, evolve in (("C2S", code.evolve_c2s), ("S2C", code.evolve_s2c)):
        moved = dict(keys)
        for label in (f"{direction}-ENC", f"{direction}-MAC"):
            values = {label.replace("-", "_"): keys[label], **moves[direction]}
            moved[label] = formula(text, f"{label}'", **values)
        assert moved == evolve(keys, b"one", b"two")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["word", *FLAGS])
def test_the_vectors_of_a_dialect_are_those_of_its_code(flag: str) -> None:
    chosen = BOB if flag == "word" else PLAIN._replace(**{flag: True})  # type: ignore[arg-type]
    code = load(dialect.sources(chosen))
    for case in json.loads(dialect.vectors(chosen)["key_schedule.json"])["cases"]:
        texts = {name: value for name, value in case.items() if isinstance(value, str)}
        nonces = [bytes.fromhex(texts[f"{end}_nonce"]) for end in ("client", "server")]
        keys = hashes(case["start"])
        master_key = bytes.fromhex(texts["master_key"])
        assert keys == {label: code.derive_key(master_key, label) for label in KEY_LABELS}
        bound = code.bind_keys(keys, *nonces)
        assert bound == hashes(case["binding"])
        for name, evolve, message, values in (
            ("c2s_ratchet", code.evolve_c2s, "client_data", ("ciphertext", "nonce")),
            ("s2c_ratchet", code.evolve_s2c, "server_aggr_response", ("body", "status")),
        ):
            moved = evolve(bound, *(bytes.fromhex(case[message][value]) for value in values))
            assert moved == bound | hashes(case[name])


def hashes(steps: dict[str, dict[str, str]]) -> dict[str, bytes]:
    return {label: bytes.fromhex(step["output"]) for label, step in steps.items()}


def test_the_page_of_a_dialect_differs_in_its_formulas_only() -> None:
    ours = (ROOT / "PROTOCOL.md").read_text("utf-8").splitlines()
    theirs = dialect.protocol(ALICE).splitlines()
    new = [line[2:] for line in difflib.ndiff(ours, theirs) if line.startswith("+ ")]
    assert 5 <= len(new) <= 10
    assert all("SHA-256(" in line or "`vectors/`" in line for line in new)
    assert "labels are ASCII, 16 bytes" in "\n".join(new)
    assert not any("generated" in line or "ratchet.svg" in line for line in theirs)


@pytest.mark.parametrize("chosen", [ALICE, BOB], ids=["alice", "bob"])
def test_a_dialect_leaves_the_messages_as_they_are_so_that_a_key_log_opens_them(
    chosen: Dialect,
) -> None:
    ours = json.loads((ROOT / "tests" / "vectors" / "sessions.json").read_text("ascii"))
    theirs = json.loads(dialect.vectors(chosen)["sessions.json"])
    opened = 0
    for our, their in zip(ours["sessions"], theirs["sessions"]):
        keys = their["keys"]
        assert keys != our["keys"]
        for one, other in zip(our["messages"], their["messages"]):
            for name in ("name", "round", "random", "plaintext", "state_after", "iv"):
                assert one[name] == other[name]
            message = bytes.fromhex(other["message"])
            assert message[:7].hex() == one["message"][:14]
            way = "C2S" if message[6] == 0 else "S2C"
            pair = [bytes.fromhex(keys[f"{way}-{use}"]) for use in ("ENC", "MAC")]
            log = {(int(Direction[way]), message[1]): [PairOfKeys(pair[0][:16], pair[1])]}
            assert plaintext_of(log, message) == bytes.fromhex(other["plaintext"])
            opened += 1
            keys = other["keys_after"] or keys
    assert opened > 20


# Slow only because every task starts a process


def checked(folder: Path, *numbers: int) -> list[str]:
    done = run(folder / "check.py", *numbers, timeout_s=LIMIT_S)
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_paths_of_the_kit_are_those_of_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "class.key").write_text("k" * 40)
    flags = ["--student", "s", "--class-key", "class.key"]
    for words in (["kit", "new", "work", *flags], ["grade", "work", *flags, "--tasks", "1"]):
        done = run(ROOT / "run.py", *words, cwd=tmp_path, timeout_s=LIMIT_S)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "HANDOUT.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("word", ["0", "99", "three", "\u00b2"])
def test_the_checker_refuses_a_task_that_there_is_not(word: str) -> None:
    done = run("-X", "utf8", ROOT / export.CHECKER, word)
    said = "check.py: tasks are numbered 1 to 13\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.slow
def test_the_checker_shows_a_letter_that_the_output_lacks(tmp_path: Path) -> None:
    """As that of Windows does in a pipe, and the checker reads what it has printed from one."""
    (tmp_path / "check.py").write_bytes((ROOT / export.CHECKER).read_bytes())
    (tmp_path / "crypto_utils.py").write_text(r"raise ValueError('\U0001f600')", "ascii")
    done = run(tmp_path / "check.py", 1, env={"PYTHONIOENCODING": "cp1252"})
    told = r" 1 padding                ValueError: \U0001f600 (crypto_utils.py line 1)"
    assert (done.stdout, done.stderr) == (f"{told}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [(ALICE, range(1, 14)), (BOB, (3, 7, 8)), (PLAIN, (3, 7, 8))],
    ids=["alice", "bob", "plain"],
)
def test_the_checker_passes_the_solutions_and_none_of_a_skeleton(
    tmp_path: Path, chosen: Dialect, numbers: Sequence[int]
) -> None:
    made = export.files(chosen, "a student")
    export.write(tmp_path / "skeleton", made)
    lines = checked(tmp_path / "skeleton", *numbers)
    assert len(lines) == len(numbers)
    assert not [line for line in lines if line.endswith("as in the vectors")]
    solved = {name: text.encode() for name, text in dialect.sources(chosen).items()}
    export.write(tmp_path / "solved", {**made, **solved})
    lines = checked(tmp_path / "solved", *numbers)
    assert [line for line in lines if not line.endswith(("as in the vectors", "can play it"))] == []


@pytest.mark.slow
def test_the_checker_names_what_a_module_of_another_dialect_does(tmp_path: Path) -> None:
    copied = {name: text.encode() for name, text in dialect.sources(BOB).items()}
    export.write(tmp_path / "copied", {**export.files(ALICE, "alice"), **copied})
    wrong = [line.split()[0] for line in checked(tmp_path / "copied") if "as in" not in line]
    assert {"3", "7", "8"} <= {*wrong}
    assert not {"1", "2", "4", "5", "6", "9"} & {*wrong}


def with_sources(folder: Path, sources: dict[str, str]) -> Path:
    """Make Alice's folder with other contents of the files that she has to write."""
    made = {name: text.encode() for name, text in sources.items()}
    export.write(folder, {**export.files(ALICE, "alice"), **made})
    return folder


@pytest.mark.slow
def test_the_checker_notices_each_planted_bug_that_the_grading_need_not_play(
    tmp_path: Path,
) -> None:
    whole = dialect.sources(ALICE)
    for number, bug in enumerate(bug for bug in BUGS if bug.task != 12):
        folder = with_sources(tmp_path / str(number), planted(whole, bug))
        (line,) = checked(folder, bug.task)
        assert not line.endswith("as in the vectors"), bug


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "task"), [("server:Epochs.withdraw", 9), ("breaking:own_attack", 12)]
)
def test_the_checker_says_that_a_function_is_not_written_yet(
    tmp_path: Path, place: str, task: int
) -> None:
    left = TASKS[task - 1]._replace(functions=(place,))
    folder = with_sources(tmp_path / "work", skeleton.cut(dialect.sources(ALICE), [left]))
    (line,) = checked(folder, task)
    assert line.endswith(f"not written yet (task {task})")


@pytest.mark.slow
def test_the_checker_can_check_task_7_before_task_8_is_written(tmp_path: Path) -> None:
    sources = skeleton.cut(dialect.sources(ALICE), [TASKS[7]])
    (line,) = checked(with_sources(tmp_path / "work", sources), 7)
    assert line.endswith("as in the vectors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "old", "new", "task", "said"),
    [
        ("crypto_utils:aes_cbc_encrypt", "_aes_128(key)", "key[:5]", 2, r"\(crypto_utils\.py line"),
        ("protocol_fsm:evolve_s2c", "    return {", "    _ = {", 3, "has to return the four keys"),
        (
            "protocol_fsm:evolve_c2s",
            "**keys",
            "**(keys.update({'S2C-ENC': b''}) or keys)",
            3,
            "evolve_c2s changes the keys that it is given",
        ),
        ("protocol_fsm:Session._decrypt", "[:AES_KEY_BYTES]", "", 7, "genuine CLIENT_HELLO is ref"),
        ("protocol_fsm:Session.fail", "self.has_farewell", "False", 7, "has to be TERMINATE with"),
        (
            "protocol_fsm:Session.fail",
            " and not isinstance(error, ConnectionCut)",
            "",
            7,
            "farewell of ConnectionCut has to be empty",
        ),
        (
            "protocol_fsm:Session.open",
            "self._check_payload(header, plaintext)",
            "parse_message(header.opcode, header.direction, plaintext)",
            7,
            "open looks at no echo",
        ),
        (
            "protocol_fsm:Session._next_keys",
            "self._client_nonce",
            "plaintext[1:17]",
            8,
            "the client binds with a copy of its nonce",
        ),
        ("server:Epochs.close_if_due", "BaseException", "Exception", 9, r"SystemExit \(server\.py"),
        ("breaking:MINIMAL_SET", '"round"', '"rounds"', 12, "a tuple of two to four rules"),
    ],
)
def test_the_checker_says_in_the_words_of_the_student_what_is_wrong(
    tmp_path: Path, place: str, old: str, new: str, task: int, said: str
) -> None:
    sources = skeleton.edited(dialect.sources(ALICE), place, old, new)
    (line,) = checked(with_sources(tmp_path / "work", sources), task)
    assert re.search(said, line), line


@pytest.mark.slow
def test_the_checker_refuses_tests_that_import_what_the_grading_does_not_have(
    tmp_path: Path,
) -> None:
    sources = dialect.sources(ALICE)
    sources["mine.py"] = sources["mine.py"].replace("import json\n", "import json\nimport guard\n")
    (line,) = checked(with_sources(tmp_path / "work", sources), 13)
    assert line.endswith("mine.py may not import guard")


# Planted bugs


def test_there_are_planted_bugs_for_every_task() -> None:
    assert len(BUGS) >= 40
    assert {bug.task for bug in BUGS} == {task.number for task in TASKS}
    for task in TASKS:
        assert {bug.function for bug in BUGS if bug.task == task.number} <= {*task.functions}


@pytest.mark.slow
def test_every_planted_bug_changes_the_code_in_every_dialect() -> None:
    for chosen in (PLAIN, ALICE, BOB):
        sources = dialect.sources(chosen)
        made = set()
        for bug in BUGS:
            name = bug.function.partition(":")[0] + ".py"
            text = planted(sources, bug)[name]
            assert text != sources[name], bug
            made.add((name, text))
        assert len(made) == len(BUGS)
    for name, text in made:  # differing by layout only would be differing text
        assert ast.parse(text), name
    assert all(bug.idea.endswith(".") and bug.say.endswith(".") for bug in BUGS)


def test_the_tables_of_the_instructor_are_those_of_the_tasks() -> None:
    text = (ROOT / "classroom" / "kit" / "INSTRUCTOR.md").read_text("utf-8")
    assert text == diagrams.updated(text), "run: python -m tests.diagrams"
    assert all(f"| {bug.idea} | {bug.say} |" in text for bug in BUGS)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / "classroom" / "kit" / target).exists(), target


# The handouts of the companions

HANDOUTS = sorted((ROOT / "classroom" / "kit" / "handouts").glob("*.md"))


@pytest.mark.parametrize("path", HANDOUTS, ids=[path.stem for path in HANDOUTS])
def test_a_handout_of_a_companion_names_what_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    (module,) = re.findall(r"`(companions/\w+/\w+\.py)`", text)
    assert f"companions/{path.stem}/" in module
    for name in re.findall(r"`((?:[A-Z]\w+\.)?_?[a-z]+_?\w+)`", text.split("delete the bod")[1]):
        skeleton.find(skeleton.tree((ROOT / module).read_text("utf-8")), name)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / target).exists(), target
    for test in re.findall(r"tests/companions/\w+\.py", text):
        assert (ROOT / test).exists(), test


@pytest.mark.slow
@pytest.mark.parametrize("path", HANDOUTS, ids=[path.stem for path in HANDOUTS])
def test_the_attacks_of_a_handout_win_without_the_rule_and_else_do_not(path: Path) -> None:
    commands = re.findall(
        r"^ +python -m (companions\.\S+attacks .*)$", path.read_text("utf-8"), re.M
    )
    assert len(commands) >= 2
    for command in commands:
        done = run("-m", *command.split(), timeout_s=LIMIT_S)
        assert ("WON" in done.stdout) == ("--without" in command), command
