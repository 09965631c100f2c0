"""The mutants: the two lists fit the source of today, and the tool says what survives."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants import kills, named
from tests.mutants.source import ROOT, operator_mutants
from tests.mutants.table import MODULES, wider
from tests.programs import Done, run

DOOR = """
def is_tall(height, limit):
    if height < limit:
        return False
    return True

def twice(number):
    return number + number
"""
DOOR_TESTS = """
from door import is_tall, twice
from tests.heights import TREE

def test_a_tree_is_tall():
    assert is_tall(TREE, 3)

def test_grass_is_not_tall():
    assert not is_tall(1, 3)

def test_twice_is_twice():
    assert twice(3) == 6
"""
SLOW_TESTS = """
import pytest
from door import is_tall

@pytest.mark.slow
def test_at_the_limit_it_is_tall():
    assert is_tall(3, 3)
"""
TABLE = """
MODULES = {"door.py": ("tests/test_door.py", "tests/test_slow.py")}

def wider(module):
    return ()
"""
SURVIVOR = "door.py: is_tall: height < limit => height <= limit"


class House:
    """A project of one module and its tests, with the tool inside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mutants = folder / "tests" / "mutants"
        shutil.copytree(Path(named.__file__).parent, self.mutants)
        (self.mutants / "kills.json").unlink(missing_ok=True)
        (self.mutants / "table.py").write_text(TABLE)
        (folder / "door.py").write_text(DOOR)
        (folder / "tests" / "heights.py").write_text("TREE = 20\n")
        (folder / "tests" / "test_door.py").write_text(DOOR_TESTS)
        (folder / "tests" / "test_slow.py").write_text("")  # as if all its tests were slow
        self.write_lists("", "")

    def write_lists(self, named_lines: str, equivalent_lines: str) -> None:
        (self.mutants / "named.txt").write_text(f"[door.py]\n{named_lines}\n")
        (self.mutants / "equivalents.txt").write_text(f"[door.py]\n{equivalent_lines}\n")

    def mutate(self, *flags: str) -> Done:
        return run("-m", "tests.mutants", "--limit", "2", *flags, cwd=self.folder, timeout_s=120)

    def kills(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads((self.mutants / "kills.json").read_text())
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


# The lists


@pytest.mark.slow
def test_every_line_of_both_lists_fits_the_source() -> None:
    assert named.unresolved_lines() == []


@pytest.mark.slow
def test_a_named_mutant_is_none_that_an_operator_makes() -> None:
    lines = named.named_mutants()
    for module in {line.module for line in lines}:
        made = {
            (mutant.scope, mutant.old, mutant.new)
            for mutant in operator_mutants(module, named.tree_of(module))
        }
        assert not [line for line in lines if line.module == module and line[1:4] in made]


def test_each_named_mutant_has_a_consequence_of_its_own() -> None:
    times = Counter((line.module, line.why) for line in named.named_mutants())
    assert [why for why, count in times.items() if count > 1] == []


def test_modules_and_tests_of_the_table_exist() -> None:
    for module, tests in MODULES.items():
        for path in (module, *tests, *wider(module)):
            assert (ROOT / path).is_file(), path
    listed = {line.module for line in [*named.named_mutants(), *named.equivalents()]}
    assert listed <= {*MODULES}


@pytest.mark.slow
def test_a_test_is_found_though_its_helpers_import_each_other() -> None:
    path = "tests/companions/conftest.py"
    helpers = kills.helpers_of(path)
    assert any(path in kills.helpers_of(helper) for helper in helpers)
    assert kills.is_there("tests/companions/test_chat_pins.py::test_server_is_new_once")


# The tool, on a project of its own


@pytest.mark.slow
def test_a_survivor_is_shown_and_a_hang_is_none(house: House) -> None:
    house.write_lists("is_tall: return True => while height: pass  # there is no end", "")
    tests = house.folder / "tests" / "test_door.py"
    tests.write_text(f"{DOOR_TESTS}\ndef test_nonsense():\n    assert is_tall(1, 3)\n")
    done = house.mutate()
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stdout.splitlines() if "=>" in line] == [SURVIVOR]
    assert "-    if height < limit:\n+    if height <= limit:\n" in done.stdout
    assert "says nothing: tests/test_door.py::test_nonsense" in done.stdout
    assert {*house.kills()} == {"door.py::twice"}


@pytest.mark.slow
def test_only_changed_mutants_are_tried_again_and_no_equivalents(house: House) -> None:
    house.write_lists("", SURVIVOR.removeprefix("door.py: ") + "  # nothing is that tall")
    done = house.mutate()
    assert done.returncode == 0, done.stdout
    assert {*house.kills()} == {"door.py::is_tall", "door.py::twice"}
    assert "0 mutants tried" in house.mutate("--changed").stdout
    tests = house.folder / "tests" / "test_door.py"
    tests.write_text(DOOR_TESTS.replace("twice(3) == 6", "twice(4) == 8"))
    no_time = ("--changed", "--minutes", "0.00001")
    assert "No time for all of 1: door.py::twice\n" in house.mutate(*no_time).stdout
    (house.folder / "tests" / "heights.py").write_text("TREE = 30\n")
    both = "No time for all of 2: door.py::is_tall, door.py::twice\n"
    assert both in house.mutate(*no_time).stdout


@pytest.mark.slow
def test_slow_tests_are_asked_with_a_flag_and_then_by_name(house: House) -> None:
    (house.folder / "pytest.ini").write_text(
        "[pytest]\nmarkers = slow: takes long\naddopts = -m 'not slow'\n"
    )
    (house.folder / "tests" / "test_slow.py").write_text(SLOW_TESTS)
    assert SURVIVOR in house.mutate().stdout
    for flags in (["--slow"], []):
        done = house.mutate(*flags)
        assert done.returncode == 0, done.stdout
    assert "tests/test_slow.py::test_at_the_limit_it_is_tall" in house.kills()["door.py::is_tall"]


@pytest.mark.slow
def test_a_named_mutant_that_does_not_fit_is_named(house: House) -> None:
    house.write_lists("is_tall: height < 2 => height < 1  # trees are tall", "")
    done = house.mutate()
    assert (done.returncode, done.stdout) == (2, "")
    assert "trees are tall: `old` is there 0 times" in done.stderr
    check = house.mutate("--check")
    assert check.returncode == 1
    assert "trees are tall" in check.stdout
