"""bench/fuzz.py: a million frames end in an answer or a typed error, and a flaw would be found."""

from __future__ import annotations

import re

import pytest

from bench import fuzz
from protocol_fsm import ProtocolError, Session, State
from tests.programs import Done, run


def fuzzed(*flags: str) -> Done:
    return run("-m", "bench.fuzz", *flags, timeout_s=600)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_frames() -> None:
    assert fuzz.try_chunk(("seed", 1), 300).fates == fuzz.try_chunk(("seed", 1), 300).fates
    assert fuzz.try_chunk(("seed", 1), 300).fates != fuzz.try_chunk(("seed", 2), 300).fates


@pytest.mark.parametrize("flaw", ["keys stay", "lives on", "no farewell", "another error"])
def test_fuzzing_finds_a_session_that_does_not_end_as_it_should(
    flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def revive(session: Session, error: ProtocolError) -> None:
        fail(session, error)
        session.fsm.state = State.REPORT

    def mute(session: Session, error: ProtocolError) -> None:
        fail(session, error)
        error.farewell = b""

    def clumsy(session: Session, padded: bytes) -> bytes:
        try:
            return unpad(session, padded)
        except ProtocolError:
            raise KeyError from None

    fail = Session.fail
    unpad = Session._unpad
    name, broken = {
        "keys stay": ("_forget_keys", lambda session: None),
        "lives on": ("fail", revive),
        "no farewell": ("fail", mute),
        "another error": ("_unpad", clumsy),
    }[flaw]
    assert not fuzz.try_chunk(("seed", 1), 200).defects
    monkeypatch.setattr(Session, name, broken)
    assert fuzz.try_chunk(("seed", 1), 200).defects


@pytest.mark.slow
def test_many_frames_are_accepted_or_end_the_session_with_a_typed_error() -> None:
    done = fuzzed("--frames", "50000")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\w+) +(\d+) +(\d+) of them sealed correctly$", done.stdout, re.MULTILINE)
    met = {name for name, _, _ in lines}
    silent = {"DeadlineExpired"}  # of a clock, which no frame can hit
    kinds = {
        kind.__name__
        for kind in ProtocolError.__subclasses__()
        if kind.__module__ == ProtocolError.__module__
    }  # not those of companions
    assert met == kinds - silent | {"accepted"}
    share = re.findall(r"([\d.]+)% of them ", done.stdout)[0]
    assert sum(int(number) for _, number, _ in lines) == 50_000
    assert float(share) >= 30.0
