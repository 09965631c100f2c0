"""The front door: python3 run.py COMMAND (on Windows: py run.py COMMAND).

The packages that a command needs are taken from this Python if it has them all, otherwise from
.venv beside this file, which is made and filled when it is first needed.

This file has to parse on every Python since 2.7: an old one must say that it is too old.
There is no #! line, because the Windows launcher would look for it in the wrong place.
"""

# ruff: noqa: UP031, B904, E402
import sys


def end_quietly(kind, error, traceback):
    """Let Ctrl-C be no traceback, not even while the modules below are loaded."""
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    sys.__excepthook__(kind, error, traceback)


if __name__ == "__main__":
    sys.excepthook = end_quietly

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time

NEEDED = (3, 10)
HERE = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.join(HERE, ".venv")
PATIENCE_S = 600  # for another run.py that makes .venv
WHEELHOUSE = "wheelhouse"  # beside this file: packages are then taken from there, and no network
DEFAULT = "demo"
START = "--start"  # what run.py tells the run.py that has the packages
# What to type: (which packages it needs, what is to run in turn, what it is for). What runs is a
# script, a module whose main() is called, or with -m a tool, which needs this folder.
# One process more than cores: many tests wait for a socket most of the time.
TESTS = "-m pytest -n %d --dist worksteal" % ((os.cpu_count() or 1) + 1)
COMMANDS = {
    "demo": (
        "requirements.txt",
        ["classroom.first"],
        "one bit flips, then every attack is tried",
    ),
    "attacks": ("requirements.txt", ["attacks.py"], "the adversary; its flags follow"),
    "report": (
        "requirements-evidence.txt",
        ["classroom.see report"],
        "attacks, drawn on a page that opens; names of attacks may follow",
    ),
    "capture": (
        "requirements-evidence.txt",
        ["classroom.see capture"],
        "the same as packets, in Wireshark",
    ),
    "classroom": (
        "requirements.txt",
        ["classroom.demo"],
        "an undisturbed server and three clients, with their answers",
    ),
    "device": (
        "companions/device_transfer/requirements.txt",
        ["companions.device_transfer.demo"],
        "two devices send files; certificates, and their adversary",
    ),
    "peers": (
        "companions/peer_messaging/requirements.txt",
        ["companions.peer_messaging.demo"],
        "two nodes talk; trust on first use, and their adversary",
    ),
    "chat": (
        "companions/secure_chat/requirements.txt",
        ["companions.secure_chat.demo"],
        "members talk in a room; signed evidence, and their adversary",
    ),
    "kit": (
        "requirements-evidence.txt",
        ["classroom.kit.__main__"],
        "a course week: new DIR writes a student's assignment",
    ),
    "grade": (
        "requirements-evidence.txt",
        ["classroom.kit.__main__ grade"],
        "grades what a student has handed in; DIR and flags follow",
    ),
    "live": (
        "classroom/live/requirements.txt",
        ["classroom.live.show"],
        "the man in the middle in a browser: your hand on the wire",
    ),
    "server": ("requirements.txt", ["server.py"], "the server; its flags follow, as in: server -h"),
    "client": ("requirements.txt", ["client.py"], "a client; its id and flags follow"),
    "test": (
        "requirements-dev.txt",
        [TESTS],
        "the tests; flags for pytest may follow",
    ),
    "test core": (
        "requirements-dev.txt",
        [
            TESTS + " tests/test_crypto_utils.py tests/test_protocol_fsm.py "
            "tests/test_vectors.py tests/test_channel.py tests/test_server.py "
            "tests/test_programs.py"
        ],
        "only the tests of the protocol, the server and the client",
    ),
    "test slow": ("requirements-slow.txt", [TESTS + " -m slow"], "the tests that take long"),
    "mutate": (
        "requirements-dev.txt",
        ["-m tests.mutants"],
        "breaks the code on purpose: does a test notice each time?",
    ),
    "bench": ("requirements.txt", ["bench.bench"], "our channel beside TLS, measured"),
    "conform": (
        "requirements.txt",
        ["classroom.conform.__main__"],
        "whether your own server or client, in any language, is right",
    ),
    "check": (
        "requirements-check.txt",
        [
            "-m ruff check .",
            "-m ruff format --check .",
            "-m mypy",
            "-m mypy --platform win32 --cache-dir .mypy_cache/win32 --exclude ^(tests/|run.py) .",
        ],
        "style and types, and whether all calls are ones that Windows has",
    ),
}
SLOW = {  # what is said before it starts
    "test slow": "takes a quarter of an hour or more; -x stops at the first failure",
    "mutate": "takes hours; --changed or --minutes 10 take less",
    "bench": "takes some minutes; --quick takes a minute or two",
}
# Asked in another interpreter: a venv may have a Python that is too old, or none any more.
PROBE = """
import importlib.metadata, json, sys
if sys.version_info < %r:
    sys.exit(1)
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
""" % (NEEDED,)
# name, name>=1.2, or either of them for older Pythons only
REQUIREMENT = re.compile(
    r'(\w[\w.-]*)\s*(?:>=\s*([\d.]+))?(?:\s*;\s*python_version < "([\d.]+)")?$'
)
# Why pip cannot fetch anything, in its words, and what to do; the first that fits counts.
FAILURES = (
    (
        "CERTIFICATE_VERIFY_FAILED|ssl certificate",
        "this computer does not trust the certificate that it is shown, which may be that of a "
        "proxy; ask for the proxy's CA file, and put its path into PIP_CERT",
    ),
    (
        "ProxyError|proxy connection|Tunnel connection|407 ",
        "the proxy lets nothing through; look at HTTPS_PROXY",
    ),
    ("Client Error|Server Error|too many", "the package index refuses; look at PIP_INDEX_URL"),
    (
        "",
        "nothing answers; connect this computer to a network, then give the same command again",
    ),
)


class Problem(Exception):
    """The message is a sentence for the user, which says what to do."""


def tell(stream, text):
    """Print, and return whether it is printed: on a full disk or a closed stream it is not."""
    try:
        stream.write(text)
        stream.flush()
    except AttributeError:  # it was closed when we began
        return False
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def say(line):
    tell(sys.stderr, "run.py: " + line + "\n")


def help_text():
    lines = ["  %-9s  %s\n" % (name, entry[2]) for name, entry in COMMANDS.items()]
    return (
        "python3 run.py COMMAND, or on Windows py run.py COMMAND, where COMMAND is one of\n"
        "%s  offline    DIR: fill it with all packages, for rooms without a network\n"
        "  help       this list\nWithout one it is %s.\n" % ("".join(lines), DEFAULT)
    )


def plan(words):
    """Return the requirements file, and the command lines without their Python. Raises Problem."""
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is None:
        raise Problem(
            "there is no command %r; there are: %s, offline, help" % (words[0], ", ".join(COMMANDS))
        )
    requirements, lines, _ = COMMANDS[name]
    rest = words[len(name.split()) :]
    if name in SLOW and not rest:
        say("%s %s ..." % (name, SLOW[name]))
    return requirements, [line.split() + rest for line in lines]


def version_numbers(text):
    """Return the leading dotted numbers, without zeros at their end: 3.19 is 3.19.0."""
    numbers = [int(part) for part in re.match(r"[\d.]*", text).group().split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def read_requirements(name):
    """Return minimum versions by package. Raises Problem for a line that it cannot check."""
    wanted = {}
    with open(os.path.join(HERE, name)) as lines:
        for line in lines:
            line = line.split("#")[0].strip()
            match = REQUIREMENT.match(line)
            if line.startswith("-r "):
                wanted.update(read_requirements(line[3:].strip()))
            elif match:
                package, version, below = match.groups()
                if not below or sys.version_info < version_numbers(below):
                    wanted[package] = version_numbers(version or "")
            elif line:
                raise Problem("%s has a line that is not name>=1.2: %s" % (name, line))
    return wanted


def quietly(command):
    """Run it out of sight, and return its exit code and what it printed on stdout and stderr."""
    try:
        done = subprocess.run(
            command,
            cwd=HERE,  # a json.py where the user is would be taken for Python's
            # utf-16 could not be read, and warnings that are errors stop pip
            env=dict(os.environ, PYTHONIOENCODING="utf-8", PYTHONWARNINGS=""),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr


def missing(python, wanted):
    """Return the names of what that interpreter lacks, or None if it does not work."""
    code, out, _ = quietly([python, "-c", PROBE] + sorted(wanted))
    answers = [line for line in out.splitlines() if line.startswith("{")]  # a venv may print more
    if code != 0 or not answers:
        return None
    found = json.loads(answers[-1])
    return [
        name
        for name in sorted(wanted)
        if name not in found or version_numbers(found[name] or "") < wanted[name]
    ]


def venv_python():
    folder, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return os.path.join(VENV, folder, name)


def prepare(requirements):
    """Return an interpreter that has those packages, made if need be. Raises Problem."""
    wanted = read_requirements(requirements)
    if missing(sys.executable, wanted) == []:
        return sys.executable
    python = venv_python()
    if missing(python, wanted) == []:
        return python
    lock = VENV + ".lock"
    take(lock)
    try:
        return fill(python, requirements, wanted)
    finally:
        if os.path.isdir(lock):  # nobody has deleted it by hand
            os.rmdir(lock)


def take(lock):
    """Make that folder, or wait until the run.py in another terminal is done. Raises Problem."""
    give_up = time.time() + PATIENCE_S
    waiting = False
    while True:
        try:
            return os.mkdir(lock)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise Problem(
                    "cannot make .venv in %s (%s); copy that folder to where you may write"
                    % (HERE, error.strerror)
                )
        if os.path.lexists(lock) and not os.path.isdir(lock):
            raise Problem("%s is not a folder that run.py made; move it away" % lock)
        if time.time() > give_up:
            raise Problem(
                "another run.py has not finished making .venv; "
                "if there is none, delete the folder .venv.lock"
            )
        if not waiting:
            say(
                "waiting for the run.py that makes .venv "
                "(if there is none, delete the folder .venv.lock) ..."
            )
        waiting = True
        time.sleep(0.2)


def fill(python, requirements, wanted):
    """Make .venv, or put into it what it lacks, and return its interpreter. Raises Problem."""
    is_there = os.path.lexists(VENV)
    if is_there and not is_venv():
        raise Problem(
            "%s is a link, or no virtual environment, so it is left as it is; "
            "move it away, then give the same command again" % VENV
        )
    lacking = missing(python, wanted)
    if lacking == []:  # another run.py has filled it meanwhile
        return python
    if lacking is not None:
        bootstrap_pip(python, requirements)
        install(python, requirements, wanted, lacking)
        return python
    require_venv()
    try:
        make_venv("remaking the broken" if is_there else "making")
        install(python, requirements, wanted, sorted(wanted))
    except BaseException:  # Ctrl-C too
        shutil.rmtree(VENV, ignore_errors=True)
        raise
    return python


def is_venv():
    """Return whether .venv is a venv and no link: anything else of that name is not ours."""
    real = os.path.join(os.path.realpath(HERE), os.path.basename(VENV))
    return os.path.realpath(VENV) == real and os.path.isfile(os.path.join(VENV, "pyvenv.cfg"))


def require_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise Problem(
            "this Python cannot make a virtual environment; on Debian or Ubuntu, "
            "install what it lacks with: sudo apt install python3-venv"
        )


def make_venv(doing):
    say("%s .venv, which takes some seconds ..." % doing)
    result = quietly([sys.executable, "-m", "venv", "--clear", VENV])
    if result[0] != 0:
        raise Problem("cannot make .venv in %s: %s" % (HERE, last_words(result)))


def bootstrap_pip(python, requirements):
    """Put pip into a venv that has none, as uv makes it, or an interrupted venv."""
    if missing(python, {"pip": ()}):
        result = quietly([python, "-m", "ensurepip"])
        if result[0] != 0:
            raise Problem(
                "%s has no pip and cannot get it (%s); fill it with the tool that made it, as in: "
                "uv pip install -r %s" % (VENV, last_words(result), requirements)
            )


def last_words(result):
    code, out, error = result
    return ((error or out).strip().splitlines() or ["exit code %d" % code])[-1]


def install(python, requirements, wanted, names):
    """Let pip put packages into .venv, and see that they are there. Raises Problem."""
    wheels = os.path.join(HERE, WHEELHOUSE)
    is_offline = os.path.isdir(wheels)
    source = " from %s" % WHEELHOUSE if is_offline else ""
    say("installing %s into .venv%s, which may take a minute ..." % (", ".join(names), source))
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-vv"]
    # whatever the user's configuration of pip says, it is this venv that is filled
    command += ["--require-virtualenv", "--no-user", "--target="]
    if is_offline:
        command += ["--no-index", "--find-links", wheels]
    code, out, error = quietly(command + ["-r", os.path.join(HERE, requirements)])
    if code != 0:
        why = reason_of_pip(out + error) or last_words((code, out, error))
        raise Problem("pip cannot install %s%s: %s" % (", ".join(names), source, why))
    lacking = missing(python, wanted)
    if lacking != []:
        raise Problem(
            "pip ends as if all were well, but .venv has no %s; look for prefix, root and the like "
            "in pip's configuration, and for variables PIP_..." % ", ".join(lacking or names)
        )


def offline(words):
    """Fill a folder with the packages of all commands but `test slow`. Raises Problem."""
    if not words or not words[0] or words[0].startswith("-"):  # "" would be this folder
        raise Problem("say which folder to fill: offline DIR")
    folder = os.path.abspath(words[0])
    python = sys.executable
    if missing(python, {"pip": ()}) != []:
        python = prepare("requirements.txt")
    is_new = not os.path.exists(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise Problem("cannot make %s: %s" % (folder, error.strerror))
    say("fetching packages into %s, which may take some minutes ..." % folder)
    command = [python, "-m", "pip", "download", "--disable-pip-version-check", "-vv"]
    command += ["--dest", folder] + words[1:]
    for name in sorted(set(entry[0] for key, entry in COMMANDS.items() if key != "test slow")):
        command += ["-r", os.path.join(HERE, name)]
    code, out, error = quietly(command)
    if code != 0:
        if is_new and not os.listdir(folder):  # an empty wheelhouse would hide the network
            os.rmdir(folder)
        raise Problem(
            "pip cannot fetch them: %s"
            % (reason_of_pip(out + error) or last_words((code, out, error)))
        )
    say(
        "%d packages are in %s; copy it beside run.py, with the name %s"
        % (len(os.listdir(folder)), folder, WHEELHOUSE)
    )


def reason_of_pip(said):
    """Return what to do, and why, from all that pip -vv has printed."""
    fetching = re.findall(r"(.* timed out.*|.*Max retries exceeded.*)", said)
    if "(from versions: none)" in said:  # else one index of several may lack what another has
        fetching = re.findall(r"Could not fetch URL \S+: (.*) - skipping", said)
    for pattern, advice in FAILURES if fetching else ():
        if re.search(pattern, fetching[0]):
            return "%s (pip: %s)" % (advice, re.sub("<.*?>: ", "", fetching[0].strip()))
    if "ERROR: Exception:" in said:  # and pip's traceback, which ends with the reason
        return said.strip().splitlines()[-1]
    errors = re.findall(r"^ERROR: (.*)", said, re.MULTILINE)
    return errors[0] if errors else ""


def run(command, directory):
    """Run it to its end, and return its exit code; signals are for it, not for us."""
    child = subprocess.Popen(command, cwd=directory)
    # a terminal sends Ctrl-C to the child too; what came to us alone has to be passed on
    on_terminal = sys.platform == "win32" or os.isatty(0)

    def pass_on(number, frame):
        if number != signal.SIGINT or not on_terminal:
            child.send_signal(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        handle(name, pass_on)
    code = child.wait()
    return code if code >= 0 else 128 - code  # a signal's number comes negated


def start(module, *words):
    """Call main() of a module of ours, in a Python that has its packages."""
    import guard  # noqa: F401 (before all else that is ours: it says what the others lack)
    import importlib

    from program import run_program

    sys.argv[1:] = words  # the name stays: it is run.py that the user has typed
    run_program(importlib.import_module(module).main)


def handle(name, handler):
    """Handle a signal, if this system has it; under nohup SIGHUP stays ignored."""
    number = getattr(signal, name, None)
    is_nohup = name == "SIGHUP" and number and signal.getsignal(number) is signal.SIG_IGN
    if number is not None and not is_nohup:
        signal.signal(number, handler)


def main(words):
    if sys.version_info < NEEDED:
        say(
            "this is Python %s, and %s or newer is needed"
            % (sys.version.split()[0], ".".join(map(str, NEEDED)))
        )
        return 2
    # SAFEPATH would hide this folder from `python -m`; the others would make Python or pip use
    # another installation, and put the packages there
    for name in ("PYTHONSAFEPATH", "PYTHONHOME", "PYTHONEXECUTABLE", "PIP_PYTHON"):
        os.environ.pop(name, None)
    words = words or [DEFAULT]
    if words[0] in ("help", "-h", "--help"):
        if tell(sys.stdout, help_text()):
            return 0
        say("the help cannot be written")
        return 2
    try:
        if words[0] == "offline":
            offline(words[1:])
            return 0
        requirements, lines = plan(words)
        python = prepare(requirements)
    except Problem as problem:
        say(str(problem))
        return 2
    codes = []
    for line in lines:
        if line[0] == "-m":
            codes.append(run([python] + line, HERE))
        elif line[0].endswith(".py"):  # where the user is, so that paths mean what they say
            codes.append(run([python, os.path.join(HERE, line[0])] + line[1:], None))
        else:
            codes.append(run([python, os.path.join(HERE, "run.py"), START] + line, None))
        if codes[-1] >= 128:  # stopped, so nothing more is wanted
            return codes[-1]
    return codes[0] if len(codes) == 1 else int(any(codes))


if __name__ == "__main__" and sys.argv[1:2] == [START]:
    start(*sys.argv[2:])
elif __name__ == "__main__":
    # as an exception, so that no half-made .venv stays
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal
        handle(name, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
