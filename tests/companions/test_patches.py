"""Every check of the companions is needed: taken out, it is missed by the test that says so.

As tests/test_patches.py does for the core, and by its means: the fast tests hold the table of
patches.py and peers_patches.py against today's source, so that a new check cannot come without a
patch; the slow ones apply every patch to a copy of the project and run one test there, which must
fail.
"""
from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.companions.patches import PATCHES as DEVICE_PATCHES
from tests.companions.peers_patches import PEER_FILES, PEERS, PEERS_WITHOUT_A_PATCH
from tests.patches import Patch
from tests.test_patches import (
    WORKERS, Outcome, Workshop, applied, checks, difference, functions, source_of, span_of,
    touches, tree_of,
)
from tests.test_programs import posix_only

PATCHES = [*DEVICE_PATCHES, *PEERS]
FOLDER = "companions/device_transfer/"
FILES = ("companions/asymmetric.py", "companions/channel.py", *(FOLDER + name for name in (
    "protocol.py", "certificates.py", "transfer.py", "store.py", "server.py", "device.py", "ca.py",
    "journal.py", "options.py")), *PEER_FILES)

# Functions where no patch is: what they do is no check, and other tests say what it is.
WITHOUT_A_PATCH: dict[str, set[str]] = {
    "companions/asymmetric.py": {"new_share", "hkdf_expand", "public_pem"},  # what others return
    "companions/channel.py": {
        "Speaking.max_message", "Speaking.seal", "Speaking.open", "Speaking.fail"},  # only names
    FOLDER + "protocol.py": {"Session.state", "Session._offer"},
    FOLDER + "certificates.py": {"utc_now", "_signed", "issue", "Trust.__init__"},
    FOLDER + "transfer.py": {"Outgoing.digest", "Incoming._check_name", "Incoming.digest",
                             "Incoming.text"},
    FOLDER + "store.py": {"Store.begin", "Partial.__enter__", "Partial.sync", "sync_folder"},
    FOLDER + "journal.py": {"Entry.encode", "Journal._missing_end", "_Progress.__init__"},
    FOLDER + "ca.py": {"moment", "parse_arguments", "main"},
    FOLDER + "server.py": {"Server.__enter__", "Member.__init__", "Member.__str__"},
    FOLDER + "options.py": {
        "PartyParser.__init__", "LineFormatter.__init__", "Pace.__init__"},  # what is in them
    FOLDER + "device.py": {"Device.send_text", "Device.receive", "shown"},
    **PEERS_WITHOUT_A_PATCH,
}
COVERED = {  # what nobody could miss, because something else covers for it
    "not isinstance(value, int)",  # parse_canonical has looked; for mypy
    "except FileExistsError:\n        raise",  # the other way to give a name raises it, too
}

@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)

def patches_of(file: str) -> list[Patch]:
    return [patch for patch in PATCHES if patch.file == file]

# The table and today's source ---------------------------------------------------------------------

def test_every_patch_has_a_name_and_a_change_of_its_own() -> None:
    assert not [name for name, times in Counter(p.name for p in PATCHES).items() if times > 1]
    changed = Counter((p.file, p.old, p.new) for p in PATCHES)
    assert max(changed.values()) == 1
    assert not [p.name for p in PATCHES if p.name.endswith(".") or "  " in p.name]

def test_every_patch_fits_the_source_of_today() -> None:
    for patch in PATCHES:
        assert patch.file in FILES
        times = source_of(patch.file).count(patch.old)
        assert times == 1, f"{patch.name}: there {times} times: {patch.old}"
        assert patch.old != patch.new

@pytest.mark.slow
def test_every_patched_file_is_python() -> None:
    for patch in PATCHES:
        compile(applied(patch, source_of(patch.file)), patch.file, "exec")

def test_the_tests_that_the_patches_name_are_there() -> None:
    for patch in PATCHES:
        path, name = patch.caught_by.partition("[")[0].split("::")
        assert re.search(rf"^def {name}\(", source_of(path), re.MULTILINE), patch.caught_by

@pytest.mark.slow
def test_every_function_is_patched_or_excused(file: str) -> None:
    unpatched = {title for title, node in functions(file)
                 if not any(touches(patch, file, span_of(file, node))
                            for patch in patches_of(file))}
    assert unpatched == WITHOUT_A_PATCH.get(file, set())

def test_no_check_is_excused() -> None:
    assert not [title for titles in WITHOUT_A_PATCH.values() for title in titles
                if ("._check" in title and title != "Incoming._check_name")  # whose call is patched
                or title in ("Session.open", "Trust.check", "Incoming.finish")]
    for file in FILES:
        assert tree_of(file).body
        assert source_of(file).isascii(), "or span_of counts wrongly"

@pytest.mark.slow
def test_every_check_that_can_raise_is_taken_out_by_a_patch_of_its_own(file: str) -> None:
    for where, span, others in checks(file):
        alone = [patch for patch in patches_of(file) if touches(patch, file, span)
                 and not any(touches(patch, file, other) for other in others)]
        text = source_of(file)[span.start : span.end]
        assert alone or text in COVERED, f"{where}\nno patch takes out this alone: {text}"

# Every patch, applied -----------------------------------------------------------------------------

class OurWorkshop(Workshop):
    """A copy of the project, and copies of that with patches of ours."""

    def try_unpatched(self) -> Outcome:
        return self._pytest(self._clean, *sorted({patch.caught_by for patch in PATCHES}))

    def try_patch(self, patch: Patch) -> Outcome:
        copy = self._directory / f"patch-{PATCHES.index(patch)}"
        shutil.copytree(self._clean, copy, ignore=shutil.ignore_patterns("__pycache__"))
        source = (copy / patch.file).read_text("utf-8")
        (copy / patch.file).write_text(applied(patch, source), "utf-8")
        try:
            return self._pytest(copy, patch.caught_by)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurWorkshop]:
    shop = OurWorkshop(tmp_path_factory.mktemp("patches"))
    try:
        yield shop
    finally:
        shop.closed.set()

@pytest.fixture(scope="module")
def outcomes(workshop: OurWorkshop, request: pytest.FixtureRequest
             ) -> Iterator[dict[str, Future[Outcome]]]:
    """Begin with all patches whose tests were asked for, some at a time; in the order of tests."""
    chosen = [item.callspec.params["gone"] for item in request.session.items
              if isinstance(item, pytest.Function) and "gone" in item.fixturenames]
    with ThreadPoolExecutor(WORKERS) as workers:
        try:
            yield {patch.name: workers.submit(workshop.try_patch, patch)  # type: ignore[attr-defined,arg-type]
                   for patch in chosen}
        finally:
            workshop.closed.set()
            workers.shutdown(wait=False, cancel_futures=True)

@posix_only
@pytest.mark.slow
def test_unpatched_every_test_of_the_table_passes(workshop: OurWorkshop) -> None:
    outcome = workshop.try_unpatched()
    assert outcome.code == 0, outcome.output

@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("gone", PATCHES, ids=lambda patch: patch.name)
def test_a_check_that_is_gone_is_missed(gone: Patch, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[gone.name].result()
    said = f"\n{gone.caught_by}\n{difference(gone)}\n{outcome.output[-4000:]}"
    if outcome.code is None:
        assert gone.hangs, f"{gone.name}, and its test waits for ever: {said}"
    assert outcome.code != 0, f"{gone.name}, and no test fails: {said}"
    assert outcome.failed or gone.hangs, f"{gone.name}, and no test gets that far: {said}"
