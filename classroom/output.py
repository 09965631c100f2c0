"""What programs that write a file share: optional packages, templates, files written whole."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from program import UserError, reason_of


def needed(name: str) -> Any:
    """Return a module of an optional package. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install -r requirements-evidence.txt") from None


def filled(template: str, **values: object) -> str:
    """Return a page made from a template of this folder, with escaping on. Raises UserError."""
    jinja2 = needed("jinja2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = Path(__file__).with_name(template).read_text("utf-8")
    return str(environment.from_string(text).render(**values))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UserError."""
    try:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        if path.exists() and not path.is_file():  # a pipe, for example
            path.write_bytes(data)
            return
        try:
            with partial.open("xb") as file:
                file.write(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: the path has no name
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None
