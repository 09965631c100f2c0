"""The thirteen tasks of the assignment: what is cut, what it is worth, and how it goes wrong.

The one source of truth. The skeleton is cut after `functions`, the handout and the instructor's
table are drawn from here, and `run.py kit check` grades every planted bug: each loses points of
its own task, and of no other.
"""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """One task. `functions` are named module:qualified name; `goal` is read by students."""

    number: int
    title: str
    points: int
    functions: tuple[str, ...]
    reading: str  # sections of PROTOCOL.md
    goal: str


class Bug(NamedTuple):
    """A planted bug: `old`, which stands once in that function of the reference, becomes `new`."""

    task: int
    function: str  # module:qualified name
    old: str
    new: str
    idea: str  # the wrong idea behind it
    say: str  # to a student who has it


TASKS = (
    Task(
        1,
        "Padding",
        5,
        ("crypto_utils:pkcs7_pad", "crypto_utils:pkcs7_unpad"),
        "1",
        "Fill the last block, and check every byte of the padding before you remove it.",
    ),
    Task(
        2,
        "CBC and HMAC",
        7,
        (
            "crypto_utils:aes_cbc_encrypt",
            "crypto_utils:aes_cbc_decrypt",
            "crypto_utils:hmac_sha256",
            "crypto_utils:hmac_verify",
        ),
        "1",
        "Call the library correctly: the mode, the key's length, and a comparison in constant "
        "time. A key of 24 or 32 bytes is a ValueError.",
    ),
    Task(
        3,
        "Key schedule",
        9,
        (
            "crypto_utils:derive_key",
            "crypto_utils:evolve_key",
            "protocol_fsm:evolve_c2s",
            "protocol_fsm:evolve_s2c",
        ),
        "3.4",
        "Derive the first chain keys, and move them. This is where your dialect differs from "
        "those of others: read your own PROTOCOL.md.",
    ),
    Task(
        4,
        "Framing",
        7,
        (
            "protocol_fsm:check_length",
            "protocol_fsm:read_frame",
            "protocol_fsm:read_exactly",
            "protocol_fsm:write_frame",
        ),
        "3.1",
        "Find the messages in a stream that TCP cuts and joins as it likes.",
    ),
    Task(
        5,
        "State table",
        8,
        ("protocol_fsm:ProtocolFSM.VALID_TRANSITIONS", "protocol_fsm:ProtocolFSM.advance"),
        "3.5",
        "Write every legal move, and nothing else; then count the rounds.",
    ),
    Task(
        6,
        "Payloads",
        9,
        (
            "protocol_fsm:parse_message",
            "protocol_fsm:_parse_farewell",
            "protocol_fsm:_parse_challenge",
            "protocol_fsm:_is_number",
            "protocol_fsm:check_readings",
            "protocol_fsm:check_aggregate",
        ),
        "3.3",
        "Turn a verified plaintext into a message, or refuse it with BadPayload.",
    ),
    Task(
        7,
        "Session.open",
        13,
        (
            "protocol_fsm:Session.open",
            "protocol_fsm:Session._check_client_id",
            "protocol_fsm:Session._check_direction",
            "protocol_fsm:Session._check_opcode",
            "protocol_fsm:Session._check_round",
            "protocol_fsm:Session._check_tag",
            "protocol_fsm:Session._decrypt",
            "protocol_fsm:Session._unpad",
            "protocol_fsm:Session.fail",
        ),
        "3.6",
        "Check what arrives, step by step and in order; a failure changes nothing, and ends the "
        "session for good.",
    ),
    Task(
        8,
        "Binding and echo",
        9,
        (
            "breaking:replay",
            "protocol_fsm:bind_keys",
            "protocol_fsm:Session._check_echo",
            "protocol_fsm:Session._next_keys",
        ),
        "3.4",
        "First replay a recorded session against a server without binding; then mend it.",
    ),
    Task(
        9,
        "Epochs of the server",
        8,
        (
            "server:compute_aggregation",
            "server:own_part",
            "server:Epochs.contribute",
            "server:Epochs.withdraw",
            "server:Epochs.close_if_due",
        ),
        "4",
        "Add up what several clients report, and close an epoch neither too early nor too late.",
    ),
    Task(
        10,
        "A bit flip",
        4,
        ("breaking:flip",),
        "3.2",
        "Change a reading in a message whose tag nobody checks.",
    ),
    Task(
        11,
        "The padding oracle",
        8,
        ("breaking:padding_oracle",),
        "3.6",
        "Read four secret bytes from a server that checks the padding first, in at most 1,024 "
        "queries.",
    ),
    Task(
        12,
        "An attack of your own",
        6,
        ("breaking:own_attack", "breaking:MINIMAL_SET"),
        "3.6",
        "Win against a server that lacks some rules, and name the smallest set of rules that "
        "has to be missing.",
    ),
    Task(
        13,
        "Tests of your own",
        7,
        (
            "mine:test_padding",
            "mine:test_encryption_and_tag",
            "mine:test_key_schedule",
            "mine:test_framing",
            "mine:test_table",
            "mine:test_payloads",
            "mine:test_open",
            "mine:check_order",
        ),
        "3",
        "Write tests that the reference passes and that planted bugs fail.",
    ),
)
BUGS: tuple[Bug, ...] = ()
