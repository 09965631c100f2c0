"""Run the models with ProVerif, and compare what it says with the table in README.md.

    python -m classroom.model
    python -m classroom.model terminate.pv documented.pv

It exits with 0 if every result is the one in the table, 1 if one is not, and 2 without ProVerif.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from program import Parser, UserError, run_program

FOLDER = Path(__file__).parent
UNKNOWN = "not known"  # in the table: any result of ProVerif is right
Query = tuple[tuple[str, str], ...]  # as (("inj-event", "CAccept"), ("inj-event", "SSend"))


def query_in(text: str) -> Query:
    """Return the subject of a query, however ProVerif, a model or the page writes it."""
    return tuple(re.findall(r"((?:inj-)?event|attacker)(?:_p\d+)?\((\w+)", text))


def expected_results() -> dict[str, dict[Query, str]]:
    """Return the results in the table of the page, by model and query."""
    results: dict[str, dict[Query, str]] = {}
    page = (FOLDER / "README.md").read_text("utf-8")
    row = r"^\| `(\w+\.pv)` \| `(.+?)` \| ([\w ]+) \|"
    for model, query, result in re.findall(row, page, re.M):
        results.setdefault(model, {})[query_in(query)] = result
    return results


def results_in(output: str) -> dict[Query, str]:
    """Return ProVerif's results. One in brackets only explains the one above it."""
    found = re.findall(r"^RESULT (?!\()(.+?) (is true|is false|cannot be proved)", output, re.M)
    return {query_in(query): result.removeprefix("is ") for query, result in found}


def shown(query: Query) -> str:
    words = [f"{kind}({name})" for kind, name in query]
    return " || ".join([" ==> ".join(words[:2]), *words[2:]])


def compare(expected: Mapping[Query, str], found: Mapping[Query, str]) -> bool:
    """Print a line for each query, and return whether all results are as expected."""
    is_right = True
    for query in dict.fromkeys([*expected, *found]):
        want = expected.get(query, "no such query")
        got = found.get(query, "no result")
        line = f"  {got:<16} {shown(query)}"
        if got != want and not (want == UNKNOWN and query in found):
            line += f"  WRONG: expected {want}"
            is_right = False
        print(line, flush=True)
    return is_right


def run(program: str, model: str) -> dict[Query, str]:
    """Return the results for one model. Raises UserError if ProVerif does not take it."""
    done = subprocess.run(
        [program, model],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["nothing"]
        raise UserError(f"proverif fails on {model}, and says: {said[-1]}")
    return results_in(done.stdout)


def main() -> int:
    parser = Parser("Run the models with ProVerif 2.05.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="such as core.pv; default all")
    expected = expected_results()
    models = parser.options().models or [*expected]
    if unknown := set(models) - expected.keys():
        raise UserError(f"no model is named {min(unknown)}; there are {', '.join(expected)}")
    program = shutil.which("proverif")
    if not program:
        raise UserError("there is no proverif on PATH; classroom/model/README.md has how to get it")
    code = 0
    for model in models:
        print(model, flush=True)
        if not compare(expected[model], run(program, model)):
            code = 1
    return code


if __name__ == "__main__":
    run_program(main)
