"""Draw the state machine of the documents from the code's own table.

    python -m tests.diagrams            rewrite the generated parts of the documents
"""

from __future__ import annotations

import re
from pathlib import Path

from protocol_fsm import Direction, ProtocolFSM, ProtocolState, State

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- generated from ProtocolFSM\.VALID_TRANSITIONS[^>]*-->\n)(.*?)"
                  r"(<!-- end of generated part -->)", re.DOTALL)
WHO = {Direction.C2S: "client", Direction.S2C: "server", None: "nobody"}


def transition_table() -> str:
    """Return every legal move as a Markdown table, moves that differ only in their sender joined."""
    senders: dict[tuple[State, str, State], list[str]] = {}
    for (state, opcode, sender), following in ProtocolFSM.VALID_TRANSITIONS.items():
        senders.setdefault((state, opcode.name, following), []).append(f"{sender.name}")
    rows = [
        f"| {state.name} | {state.phase.name} | {WHO[state.speaker]} | {opcode} | "
        f"{' or '.join(directions)} | {following.name} |"
        for (state, opcode, following), directions in senders.items()
    ]
    last = State.ENDED
    rows.append(f"| {last.name} | {last.phase.name} | {WHO[last.speaker]} | none | | |")
    order = [state.name for state in State]
    rows.sort(key=lambda row: order.index(row.split()[1]))
    return "\n".join([
        "| state | phase | whose turn | opcode | direction | next state |",
        "|---|---|---|---|---|---|",
        *rows,
    ])


def diagram() -> str:
    """Return the same as a Mermaid state diagram, one box for each phase."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> HELLO"]
    for phase in ProtocolState:
        names = [state.name for state in State if state.phase is phase]
        lines += [f"    state {phase.name} {{", *(f"        {name}" for name in names), "    }"]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, opcode, _), following in ProtocolFSM.VALID_TRANSITIONS.items():
        labels = arrows.setdefault((state, following), [])
        if opcode.name not in labels:
            labels.append(opcode.name)
    lines += [f"    {state.name} --> {following.name}: {', '.join(labels)}"
              for (state, following), labels in arrows.items()]
    return "\n".join([*lines, "    ENDED --> [*]", "```"])


def updated(text: str) -> str:
    """Return a document with its generated parts as they should be."""
    return PART.sub(lambda m: f"{m[1]}\n{transition_table()}\n\n{diagram()}\n\n{m[3]}", text)


def main() -> None:
    for path in sorted(ROOT.glob("*.md")):
        text = path.read_text("utf-8")
        if PART.search(text):
            path.write_text(updated(text), "utf-8")
            print(f"{path.name} is up to date")


if __name__ == "__main__":
    main()
