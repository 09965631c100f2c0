"""Every check of the core is needed: taken out, it is missed by the test that says so.

The fast tests hold the table of `tests/patches.py` against today's source, so that a new check
cannot come without a patch. The slow ones apply every patch to a copy of the project and run one
test there, which must fail; and not because the copy cannot be imported.
"""
from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.patches import PATCHES, Patch
from tests.test_house import tracked_files
from tests.test_programs import posix_only

ROOT = Path(__file__).parent.parent
FILES = ("protocol_fsm.py", "server.py", "endpoint.py")
LIMIT_S = 120  # for one test of one copy; what takes longer hangs
WORKERS = 2

# Functions where no patch is: what they do is no check, and other tests say what it is.
WITHOUT_A_PATCH = {
    "protocol_fsm.py": {
        "Session.state", "Session.round_number",  # they only read
        "ProtocolError.__init__",
    },
    "server.py": {
        "Epoch.__init__", "Member.__init__", "Member.client_id", "Server.__enter__",  # they hold
        "limit", "Server.summary",  # flags, and what is printed
    },
    "endpoint.py": {
        "EndRequested.__init__", "Channel.__init__", "Channel.receive", "Channel._show",
        "Lines.__init__", "Lines.write_line", "Lines.drain", "Lines._print",
        "to_stderr", "run_program",  # words, and how programs end
    },
}

class Span(NamedTuple):
    """Some of a file's text, from one character to before another."""

    start: int
    end: int

    def overlaps(self, other: Span) -> bool:
        return self.start < other.end and other.start < self.end

@functools.cache
def source_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")

@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(source_of(name))

@functools.cache
def line_starts(name: str) -> list[int]:
    starts = [0]
    for line in source_of(name).splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts

def span_of(name: str, node: ast.AST) -> Span:
    """Return where `node` stands. The core is ASCII, so that bytes are characters."""
    starts = line_starts(name)
    return Span(starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
                starts[node.end_lineno - 1] + node.end_col_offset)  # type: ignore[attr-defined]

@functools.cache
def touched(patch: Patch) -> tuple[Span, ...]:
    """Return what `patch` really changes: `old` without the parts that stay.

    An insertion changes no character; it counts for both that it stands between.
    """
    at = source_of(patch.file).index(patch.old)
    old, new = (re.findall(r"\w+|\s+|.", text) for text in (patch.old, patch.new))
    offsets = [at]
    for word in old:
        offsets.append(offsets[-1] + len(word))
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return tuple(Span(offsets[low] - (low == high), offsets[high] + (low == high))
                 for kind, low, high, _, _ in matcher.get_opcodes() if kind != "equal")

def touches(patch: Patch, name: str, span: Span) -> bool:
    return patch.file == name and any(each.overlaps(span) for each in touched(patch))

def applied(patch: Patch, source: str) -> str:
    return source.replace(patch.old, patch.new)

def difference(patch: Patch) -> str:
    before = source_of(patch.file)
    return "".join(difflib.unified_diff(
        before.splitlines(keepends=True), applied(patch, before).splitlines(keepends=True),
        patch.file, patch.file, n=2))

# The table and today's source

def test_every_patch_has_a_name_and_a_change_of_its_own() -> None:
    assert not [name for name, times in Counter(p.name for p in PATCHES).items() if times > 1]
    changed = Counter((p.file, applied(p, source_of(p.file))) for p in PATCHES)
    assert max(changed.values()) == 1
    assert not [p.name for p in PATCHES if p.name.endswith(".") or "  " in p.name]

@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_patch_fits_the_source_of_today(patch: Patch) -> None:
    assert patch.file in FILES
    source = source_of(patch.file)
    assert source.count(patch.old) == 1, f"{patch.name}: not there, or not once: {patch.old}"
    assert applied(patch, source) != source
    compile(applied(patch, source), patch.file, "exec")

def test_the_tests_that_the_patches_name_are_there() -> None:
    for patch in PATCHES:
        path, *names = patch.caught_by.partition("[")[0].split("::")
        body: list[ast.stmt] = tree_of(path).body
        for name in names:
            found = [node for node in body
                     if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
            assert len(found) == 1, f"{patch.name}: there is no {patch.caught_by}"
            body = found[0].body

# The checks of the source, and the table

def functions(name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield every function and method of a file, with the name of its class before it."""
    for node in tree_of(name).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner

@pytest.mark.parametrize("name", FILES)
def test_every_function_of_the_core_is_patched_or_excused(name: str) -> None:
    unpatched = {title for title, node in functions(name)
                 if not any(touches(patch, name, span_of(name, node)) for patch in PATCHES)}
    assert unpatched == WITHOUT_A_PATCH[name]

def test_no_check_is_excused() -> None:
    opening = dict(functions("protocol_fsm.py"))["Session.open"]
    steps = {f"Session.{node.attr}" for node in ast.walk(opening) if isinstance(node, ast.Attribute)
             and node.attr.startswith("_")}
    assert {"Session._check_tag", "Session._decrypt", "Session._unpad"} < steps
    named = {title for file in FILES for title, _ in functions(file) if "check_" in title}
    assert not (steps | named) & set().union(*WITHOUT_A_PATCH.values())

def checks(name: str) -> Iterator[tuple[str, Span, list[Span]]]:
    """Yield every condition, alone enough to raise, with the others that stand beside it.

    A `raise` that stands under an `if` is guarded by the operands of its `or`, and each limit of
    a `not low <= x <= high` is one of these. Where there is only one, or none, it is enough that
    a patch changes something between the beginning of the `if` (or `except`, or function) and the
    end of the `raise`.
    """
    tree = tree_of(name)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise):
            continue
        guard = parents[node]
        while not isinstance(guard, (ast.If, ast.ExceptHandler, ast.FunctionDef)):
            guard = parents[guard]
        where = f"{name}:{node.lineno}: {ast.unparse(node)}"
        if isinstance(guard, ast.If) and node in guard.body:
            spans = [span for each in alternatives(guard.test) for span in limits(name, each)]
            if len(spans) > 1:
                for span in spans:
                    yield where, span, [other for other in spans if other is not span]
                continue
        yield where, Span(span_of(name, guard).start, span_of(name, node).end), []

def alternatives(test: ast.expr) -> list[ast.expr]:
    """Return the operands of an `or`, or the whole condition."""
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]

def limits(name: str, test: ast.expr) -> list[Span]:
    """Return each limit of `not low <= x <= high`, or the whole condition."""
    whole = span_of(name, test)
    if not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
            and isinstance(test.operand, ast.Compare) and len(test.operand.ops) > 1):
        return [whole]
    terms = [span_of(name, term) for term in (test.operand.left, *test.operand.comparators)]
    return [Span(low.start if number == 0 else low.end, high.end if number else high.start)
            for number, (low, high) in enumerate(itertools.pairwise(terms))]

@pytest.mark.parametrize("name", FILES)
def test_every_check_that_can_raise_is_taken_out_by_a_patch_of_its_own(name: str) -> None:
    found = list(checks(name))
    assert len(found) >= {"protocol_fsm.py": 30, "server.py": 4, "endpoint.py": 20}[name]
    for where, span, others in found:
        alone = [patch for patch in PATCHES if touches(patch, name, span)
                 and not any(touches(patch, name, other) for other in others)]
        text = source_of(name)[span.start : span.end]
        assert alone, f"{where}\nno patch takes out this alone: {text}"

@pytest.mark.parametrize("name", FILES)
def test_the_core_is_ascii(name: str) -> None:
    assert source_of(name).isascii(), "or span_of counts wrongly"

# Every patch, applied

class Outcome(NamedTuple):
    """How pytest ended: its exit code (None: it had to be killed), and what it said."""

    code: int | None
    output: str

    @property
    def failed(self) -> bool:
        """Tell whether a test has failed, and not an import, a fixture or the command line."""
        summary = re.search(r"^1 failed\b.* in [\d.]+s", self.output, re.MULTILINE)
        return self.code == 1 and summary is not None

class Workshop:
    """A copy of the project as it would be committed, and patched copies of that copy."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clean = directory / "clean"
        for path in tracked_files():
            target = self._clean / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        self.closed = threading.Event()  # set: end what is running

    def try_unpatched(self) -> Outcome:
        tests = sorted({patch.caught_by for patch in PATCHES})
        return self._pytest(self._clean, *tests)

    def try_patch(self, patch: Patch) -> Outcome:
        copy = self._directory / f"patch-{PATCHES.index(patch)}"
        shutil.copytree(self._clean, copy)
        shutil.rmtree(copy / "__pycache__", ignore_errors=True)  # only of tests it may stay
        source = (copy / patch.file).read_text("utf-8")
        (copy / patch.file).write_text(applied(patch, source), "utf-8")
        try:
            return self._pytest(copy, patch.caught_by)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _pytest(self, tree: Path, *tests: str) -> Outcome:
        """Run tests in a session of their own, so that what they start can be ended with them."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=short",
                   "-p", "no:cacheprovider", "-m", "", *tests]
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("PYTEST_", "PYTHONPATH"))}
        written = tree.with_suffix(".out")  # a file: a pipe would stay open in what is left over
        with open(written, "w") as output:
            process = subprocess.Popen(command, cwd=tree, env=environment, stdout=output,
                                       stderr=output, stdin=subprocess.DEVNULL,
                                       start_new_session=True)
        try:
            code = self._wait(process)
        finally:
            if process.poll() is None:  # and so its session is still its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Outcome(code, written.read_text("utf-8", errors="replace"))

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and not self.closed.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(1.0)
        return None

@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    shop = Workshop(tmp_path_factory.mktemp("patches"))
    try:
        yield shop
    finally:
        shop.closed.set()

@pytest.fixture(scope="module")
def outcomes(
    workshop: Workshop, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[Outcome]]]:
    """Begin with all patches whose tests were asked for, some at a time; in the order of tests."""
    chosen = [patch for item in request.session.items if isinstance(item, pytest.Function)
              and "broken" in item.fixturenames
              and isinstance(patch := item.callspec.params["broken"], Patch)]
    with ThreadPoolExecutor(WORKERS) as workers:
        try:
            yield {patch.name: workers.submit(workshop.try_patch, patch) for patch in chosen}
        finally:
            workshop.closed.set()
            workers.shutdown(wait=False, cancel_futures=True)

@posix_only
@pytest.mark.slow
def test_unpatched_every_test_of_the_table_passes(workshop: Workshop) -> None:
    outcome = workshop.try_unpatched()
    assert outcome.code == 0, outcome.output

@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("broken", PATCHES, ids=lambda patch: patch.name)
def test_a_check_that_is_gone_is_missed(
    broken: Patch, outcomes: dict[str, Future[Outcome]]
) -> None:
    outcome = outcomes[broken.name].result()
    said = f"\n{broken.caught_by}\n{difference(broken)}\n{outcome.output[-4000:]}"
    if outcome.code is None:
        assert broken.hangs, f"{broken.name}, and its test waits for ever: {said}"
    assert outcome.code != 0, f"{broken.name}, and no test fails: {said}"
    assert outcome.failed or broken.hangs, f"{broken.name}, and no test gets that far: {said}"
