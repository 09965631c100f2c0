"""The rules of the house: who may import whom, names the documents use, sizes, and no leftovers."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import sys

import pytest

import protocol_fsm
from protocol_fsm import ProtocolError
from tests.house import CORE, imports_of, long_functions, tracked_files, tree_of
from tests.programs import ROOT

BELOW: dict[str, set[str]] = {  # what each module of the core may import from the core
    "guard": set(),
    "crypto_utils": set(),
    "protocol_fsm": {"crypto_utils"},
    "channel": {"protocol_fsm"},
    "program": set(),
    "endpoint": {"crypto_utils", "protocol_fsm", "program"},
    "server": {"guard", "crypto_utils", "protocol_fsm", "channel", "program", "endpoint"},
    "readings": {"protocol_fsm", "program"},
    "client": {
        "guard",
        "crypto_utils",
        "protocol_fsm",
        "channel",
        "program",
        "endpoint",
        "readings",
    },
}
PROMISED = {
    "crypto_utils": "aes_cbc_encrypt aes_cbc_decrypt pkcs7_pad pkcs7_unpad hmac_sha256 hmac_verify "
    "derive_key evolve_key",
    "protocol_fsm": "Opcode Direction ProtocolState StateMachine ProtocolFSM Session read_frame "
    "write_frame ClientHello ServerChallenge ClientData ServerAggrResponse KeyDesync Terminate",
    "channel": "Channel",
    "program": "UserError Parser run_program",
    "server": "compute_aggregation Roster Epochs Server",
    "client": "Client",
}


@pytest.mark.parametrize("module", CORE)
def test_core_imports_the_standard_library_pycryptodome_and_what_is_below(module: str) -> None:
    foreign = imports_of(ROOT / f"{module}.py") - set(sys.stdlib_module_names) - {"Crypto"}
    assert foreign <= BELOW[module]


def test_the_lab_imports_nothing_from_above() -> None:
    above = {"attacks", "classroom", "companions", "bench", "tests", "run"}
    for path in (ROOT / "lab").glob("*.py"):
        assert not imports_of(path) & above, path.name


@pytest.mark.parametrize("module", ["crypto_utils", "protocol_fsm"])
def test_the_protocol_does_no_input_or_output(module: str) -> None:
    assert not imports_of(ROOT / f"{module}.py") & {"socket", "threading", "time", "logging", "os"}


def test_crypto_comes_from_libraries_and_tags_are_compared_in_constant_time() -> None:
    assert "hmac.compare_digest(" in (ROOT / "crypto_utils.py").read_text()
    for module in CORE[1:]:
        assert not imports_of(ROOT / f"{module}.py") & {"hmac", "hashlib"}, module
        assert "Crypto.Cipher" not in (ROOT / f"{module}.py").read_text(), module


@pytest.mark.parametrize("module", CORE)
def test_no_assert_guards_the_core_and_no_except_is_bare(module: str) -> None:
    for node in ast.walk(tree_of(ROOT / f"{module}.py")):
        assert not isinstance(node, ast.Assert)
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


@pytest.mark.parametrize("module", CORE)
def test_the_core_reads_only_the_monotonic_clock(module: str) -> None:
    tree = tree_of(ROOT / f"{module}.py")
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    }
    assert used <= {"monotonic", "sleep"}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert not imported & {"datetime", "localtime", "gmtime"}


def test_no_test_module_is_imported_by_another() -> None:
    """What tests share stands in modules without tests, so that a test can be moved alone."""
    for path in (ROOT / "tests").rglob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) .*\btest_.*", path.read_text("utf-8"), re.M)
        assert not imported, f"{path.name} imports {imported}"


@pytest.mark.parametrize("module", PROMISED)
def test_names_of_the_documents_are_there(module: str) -> None:
    loaded = importlib.import_module(module)
    assert not [name for name in PROMISED[module].split() if not hasattr(loaded, name)]


def test_names_inside_the_classes_are_there() -> None:
    assert protocol_fsm.ProtocolFSM.VALID_TRANSITIONS
    assert protocol_fsm.ProtocolFSM().round_number == 0
    assert [state.name for state in protocol_fsm.ProtocolState] == ["INIT", "ACTIVE", "TERMINATED"]
    assert not [field for field in vars(protocol_fsm.ProtocolFSM()) if "key" in field]


@pytest.mark.parametrize("module", CORE)
def test_functions_are_readable_in_one_breath(module: str) -> None:
    assert not long_functions(tree_of(ROOT / f"{module}.py"))


def test_every_public_thing_of_the_core_has_a_docstring() -> None:
    trivial = {"Opcode", "Direction", "Status", "ProtocolState", "main"}  # their lines say it
    for name in CORE:
        for node in tree_of(ROOT / f"{name}.py").body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or node.name in trivial, f"{name}.{node.name}"


def test_every_error_type_is_raised_by_some_test() -> None:
    kinds = {
        name
        for name, value in vars(protocol_fsm).items()
        if isinstance(value, type) and issubclass(value, ProtocolError)
    } - {"ProtocolError"}
    kinds |= {"LocalError", "UserError", "NoConnection", "EndRequested"}
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    programs = {"UserError"}  # seen as exit code 2 in test_programs.py
    assert not {kind for kind in kinds - programs if not re.search(rf"\b{kind}\b", tests)}


def test_no_file_names_a_machine_or_a_path_of_one() -> None:
    # put together here, so that this file does not contain what it looks for
    unwanted = [f"/{name}/" for name in ("work", "root", "farm", "home")] + ["." + "library"]
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".lua", ".sh", ""}:
            text = path.read_text("utf-8", errors="replace")
            found = [word for word in unwanted if word in text]
            assert not found, f"{path.relative_to(ROOT)} has {found}"


COUNTED = re.compile(
    r",? (more )?(characters|checks|clients|messages|others|packets|points|readings|rounds|rows"
    r"|rules|runs|sessions|steps|worlds)\b"
)


@pytest.mark.slow
def test_what_may_be_one_is_counted_by_plural() -> None:
    """Counts that are written in capitals are constants, and more than one."""
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        if path.suffix == ".py" and not {"tests", "bench", "run.py"} & {*parts}:
            for node in ast.walk(tree_of(path)):
                values = node.values if isinstance(node, ast.JoinedStr) else []
                for count, words in itertools.pairwise(values):
                    is_counted = isinstance(words, ast.Constant) and COUNTED.match(str(words.value))
                    if is_counted and isinstance(count, ast.FormattedValue):
                        assert ast.unparse(count.value).isupper(), f"{path}: {ast.unparse(node)}"
