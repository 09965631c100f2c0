"""What the programs read from `.env`: addresses, folders, and the database with its password.

The environment overrides the file, and a program's flags override both. Secrets are shown as stars
wherever settings are printed. The only module that knows pydantic.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from endpoint import HOST
from program import UserError

DATABASE = "sqlite:///secure_chat.db"
PORT = 5050  # the document's 5000 is taken on macOS


class Settings(BaseSettings):
    """One field per line of `.env.example`."""

    model_config = SettingsConfigDict(env_file_encoding="utf-8", extra="ignore")

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


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Return the settings of a file, which need not exist. Raises UserError."""
    try:
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])).upper()
        raise UserError(f"{env_file}: {name}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {env_file}: {error}") from None
