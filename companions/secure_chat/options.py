"""What server and client share besides the protocol: settings, flags, certificates, the log.

Settings are read from `.env`: addresses, folders, and the database with its password. The
environment overrides the file, and a program's flags override both. Secrets are shown as stars
wherever settings are printed. The only module that knows pydantic and dotenv.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
from pathlib import Path

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from companions import logs
from companions.secure_chat.certs import load_credentials
from companions.secure_chat.pki import BadCertificate, Role, Trust, utc_now
from companions.secure_chat.protocol import Party
from endpoint import HOST
from program import Lines, Parser, UserError, port_number, read_text, reason_of
from protocol_fsm import Seen

DATABASE = "sqlite:///secure_chat.db"
PORT = 5050  # the document's 5000 is taken on macOS

log = logging.getLogger("secure_chat")


# Settings -----------------------------------------------------------------------------------------


class Settings(BaseSettings):
    """One field per line of `.env.example`."""

    model_config = SettingsConfigDict(env_file_encoding="utf-8-sig", extra="ignore")

    server_host: str = HOST
    server_port: int = Field(PORT, ge=0, le=65_535)
    server_name: str = "localhost"
    database_url: SecretStr = SecretStr(DATABASE)
    certs: Path = Path("certs")
    transcripts: Path = Path("transcripts")
    server_log: Path = Path("logs/server.log")

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a NUL is in it")
        return value


def load_settings(named: Path | None = None) -> Settings:
    """Return the settings of the named file, or else of `.env`, if there is one. UserError."""
    if named and not named.is_file():
        raise UserError(f"there is no file {named}")
    env_file = named or Path(".env")
    if env_file.is_file():
        _check_lines(read_text(env_file), env_file)
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])).upper()
        raise UserError(f"{env_file}: {name}: {first['msg']}") from None


def _check_lines(text: str, env_file: Path) -> None:
    """Raise UserError for a line that would be ignored, such as one with a misspelled name."""
    for line in parse_stream(io.StringIO(text)):
        is_comment = line.key is None and not line.error
        is_setting = line.value is not None and str(line.key).lower() in Settings.model_fields
        if not is_comment and not is_setting:
            name = line.original.string.strip().partition("=")[0]
            raise UserError(f"{env_file}: {name[:40]!a} is not the NAME=VALUE of a setting")


# Flags --------------------------------------------------------------------------------------------


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
    settings = load_settings(options.env)
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
    name = kind_name(seen.message)
    log.debug("%s %s, %d bytes, keys %s", seen.verdict, name, len(seen.message), seen.fingerprints)


def kind_name(message: bytes) -> str:
    """Return the name of a message's type."""
    found = re.search(rb'"type":"([a-z_]+)"', message)
    return found[1].decode("ascii") if found else "nonsense"
