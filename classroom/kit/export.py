"""The assignment as one student gets it: run.py kit new DIR --student ID --class-key FILE

It holds only what is on a list; everything else of the project stays here. The second
implementation that makes the vectors, weakened endpoints, planted bugs, companions and the history
would each give the solution away.
"""

from __future__ import annotations

import re
from pathlib import Path

from classroom.kit import dialect
from classroom.kit.dialect import ROOT, Dialect
from classroom.kit.skeleton import cut
from classroom.kit.tasks import TASKS
from classroom.output import filled
from lab.rules import meaning
from lab.weakened import DOCUMENTED, RULES
from program import Parser, UserError, escaped, new_folder, reason_of

AS_THEY_ARE = ("LICENSE", "requirements.txt")
CHECKER = "classroom/kit/student/check.py"
HANDED_IN = ("crypto_utils.py", "protocol_fsm.py", "server.py", "breaking.py", "mine.py")


def handout(student: str) -> str:
    """Return HANDOUT.md."""
    text = filled(
        "kit/HANDOUT.md.j2",
        student=student,
        tasks=TASKS,
        points=sum(task.points for task in TASKS),
        handed_in=HANDED_IN,
        rules={name: meaning(rule) for name, rule in RULES.items()},
        documented=DOCUMENTED,
    )
    return f"{text}\n"


def files(chosen: Dialect, student: str) -> dict[str, bytes]:
    """Return all that a student gets, by path."""
    texts = cut(dialect.sources(chosen), TASKS)
    protocol = dialect.protocol(chosen)
    texts |= {f"vectors/{name}": text for name, text in dialect.vectors(chosen).items()}
    texts |= {"PROTOCOL.md": protocol, "HANDOUT.md": handout(student)}
    made = {name: text.encode() for name, text in texts.items()}
    made["check.py"] = (ROOT / CHECKER).read_bytes()
    for name in (*AS_THEY_ARE, *re.findall(r"\((pictures/[\w-]+\.svg)\)", protocol)):
        made[name] = (ROOT / name).read_bytes()
    return made


def write(folder: Path, made: dict[str, bytes]) -> None:
    """Write a new folder whole or not at all. Raises UserError."""
    try:
        with new_folder(folder) as unfinished:
            for name, content in made.items():
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            unfinished.chmod(0o755)  # it was kept from everybody else
    except (OSError, ValueError) as error:  # ValueError: the path has no name
        raise UserError(f"cannot write {escaped(str(folder))}: {reason_of(error)}") from None


def main(words: list[str] | None = None) -> int:
    parser = Parser("Writes the assignment of one student.", prog="run.py kit new")
    parser.add_argument("folder", metavar="DIR", help="to be made")
    parser.add_argument("--student", required=True, metavar="ID", help="as in your list")
    parser.add_argument(
        "--class-key", required=True, metavar="FILE", help="16 random bytes or more, kept secret"
    )
    options = parser.options(words)
    chosen = dialect.of(dialect.class_key(options.class_key), options.student)
    folder = Path(options.folder).absolute()
    write(folder, files(chosen, options.student))
    print(f"wrote the assignment of {escaped(options.student)} to {escaped(str(folder))}")
    return 0
