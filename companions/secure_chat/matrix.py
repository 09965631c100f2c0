"""Attack x defences, searched as lab/search.py says; every try is a lab on sockets.

python -m companions.secure_chat.matrix
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from companions.secure_chat.accounts import Refused
from companions.secure_chat.attacks import ATTACKS
from companions.secure_chat.pki import WrongPurpose
from companions.secure_chat.protocol import BadGroup, BadSignature
from companions.secure_chat.stage import Lab, Outcome
from companions.secure_chat.weakened import RULES, without
from lab.rules import Names
from lab.search import Matrix, Task, Trials, Tried, find
from program import run_program
from protocol_fsm import BadTag, DeadlineExpired

# A rule that is no check changes bytes, and could matter in any try. But a rule by which signatures
# are made, say, matters only where one was refused: all others were made and accepted by it.
NEEDS_ERROR = {
    BadSignature: {"role", "shares", "transcript"},
    BadTag: {"number", "direction-keys"},
    BadGroup: {"group"},
    WrongPurpose: {"purpose"},
    Refused: {"single-use"},
    DeadlineExpired: {"deadline"},
}
NEEDS_MEANS = {
    "listens": {"encryption", "group"},
    "steals": {"ephemeral", "server-hash", "slow-hash", "update", "update-secret"},
    "times": {"dummy-hash"},
    "judges": {"receipt-fields"},
}


def idle(outcome: Outcome) -> Names:
    """Return the rules that had nothing to do: no such refusal, and no such adversary."""
    met = {type(error) for errors in outcome.errors.values() for error in errors}
    useful = set(NEEDS_MEANS.get(outcome.means, ()))
    for error, names in NEEDS_ERROR.items():
        if error in met:
            useful |= names
    all_names = set().union(*NEEDS_ERROR.values(), *NEEDS_MEANS.values())
    return frozenset(all_names - useful)


TRIALS = Trials(
    attacks=ATTACKS,
    rules=RULES,
    parts=without,
    lab=lambda parts, number: Lab(lambda *_: None, parts),
    heard=("session", "trust", "pins", "accounts", "room"),
    also_checks=("check_revocation", "check_key"),
    idle=idle,
)


def trial(task: Task) -> list[Tried]:
    """Run attacks without some rules."""
    return TRIALS.trial(task)


PER_CORE = 2  # processes per core; with more the lab's deadlines would pass
MATRIX = Matrix(ATTACKS, RULES, Path(__file__).parent, partial(find, trial, PER_CORE))

if __name__ == "__main__":
    run_program(MATRIX.run)
