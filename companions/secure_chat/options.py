"""What server and client share besides the protocol: certificates in files, flags, the log."""

from __future__ import annotations

import argparse
import logging
import os
import re
from pathlib import Path

from companions import logs
from companions.secure_chat.certs import load_credentials
from companions.secure_chat.pki import BadCertificate, Role, Trust, utc_now
from companions.secure_chat.protocol import Party
from companions.secure_chat.settings import Settings, load_settings
from program import Lines, Parser, UserError, port_number, reason_of
from protocol_fsm import Seen

TYPE = re.compile(rb'"type":"([a-z_]+)"')  # of a frame

log = logging.getLogger("secure_chat")


class ChatParser(Parser):
    """The flags of server and client; what they leave out is in `.env`."""

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.add_argument("--env", type=Path, metavar="FILE", help="default: .env, if there is one")
        self.add_argument("--host", help="default: SERVER_HOST")
        self.add_argument("--port", type=port_number, help="default: SERVER_PORT")
        self.add_argument("--certs", type=Path, metavar="FOLDER", help="default: CERTS")
        self.add_argument("--transcripts", type=Path, metavar="FOLDER", help="default: TRANSCRIPTS")
        self.add_argument("--log", type=Path, metavar="FILE", help="write the log there")
        self.add_argument("--debug", action="store_true", help="log every message, without secrets")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings of `.env`, overridden by the flags. Raises UserError."""
    if options.env and not options.env.is_file():
        raise UserError(f"there is no file {options.env}")
    settings = load_settings(options.env or Path(".env"))
    flags = {
        "server_host": options.host,
        "server_port": options.port,
        "certs": options.certs,
        "transcripts": options.transcripts,
        "server_log": options.log,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    return settings.model_copy(update=given)


def require_folder(path: Path) -> None:
    """Make a folder to keep evidence in, unless there is one. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot keep evidence in {path}: {reason_of(error)}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot keep evidence in {path}: it cannot be written to")


# Certificates -------------------------------------------------------------------------------------


def load_party(certs: Path, name: str, role: Role, trust: Trust) -> Party:
    """Return our certificate and key. Raises UserError.

    If ours has been revoked, the peer will say so: its list and clock decide.
    """
    own = load_credentials(certs, name)
    try:
        identity = trust.identify(own.pem, role, None, utc_now())
    except BadCertificate as error:
        raise UserError(f"Certificate validation failed: {name}_cert.pem: {error}") from None
    return Party(identity, own.pem, own.key)


# The log ------------------------------------------------------------------------------------------


def start_log(path: Path | None, stream: Lines | None, *, debug: bool) -> None:
    """Log events, with `debug` every message too. Raises UserError."""
    logs.start_log(path, stream)
    log.setLevel(logging.DEBUG if debug else logging.INFO)


def log_frame(seen: Seen) -> None:
    """Log what everybody on the wire can see of a message, for --debug."""
    kind = TYPE.search(seen.message)
    name = kind[1].decode("ascii") if kind else "nonsense"
    log.debug("%s %s, %d bytes, keys %s", seen.verdict, name, len(seen.message), seen.fingerprints)
