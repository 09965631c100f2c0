"""The container of .devcontainer has what everything here needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.house import tracked_files
from tests.programs import ROOT

CONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("ascii"))


def with_those_they_name(requirements: set[Path]) -> set[Path]:
    """Return requirements files, and all that they include by -r."""
    named = {
        (path.parent / line.removeprefix("-r ").strip()).resolve()
        for path in requirements
        for line in path.read_text("ascii").splitlines()
        if line.startswith("-r ")
    }
    return requirements if named <= requirements else with_those_they_name(requirements | named)


def test_all_packages_of_all_requirements_are_installed() -> None:
    installed = re.findall(r"-r (\S+)", CONTAINER["postCreateCommand"])
    wanted = {path for path in tracked_files() if re.match(r"requirements.*\.txt", path.name)}
    assert len(wanted) >= 8
    assert with_those_they_name({ROOT / name for name in installed}) == wanted


def test_the_programs_that_slow_tests_need_are_installed() -> None:
    elsewhere = (ROOT / ".ci" / "run").read_text("ascii").replace("\\\n", "")
    found = [
        re.findall(r"--no-install-recommends ([\w -]+)", " ".join(text.split()))[0].split()
        for text in (elsewhere.partition("\nfi")[0], CONTAINER["onCreateCommand"])
    ]
    assert found[0] == found[1] != []
