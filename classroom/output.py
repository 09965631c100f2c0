"""What programs that draw something share: optional packages, templates, files written whole."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from program import UserError, write_whole

__all__ = ["filled", "needed", "write_whole"]


def needed(name: str) -> Any:
    """Return a module of an optional package. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install -r requirements-evidence.txt") from None


def filled(template: str, **values: object) -> str:
    """Return what a template of this folder makes; HTML is escaped. Raises UserError."""
    jinja2 = needed("jinja2")
    environment = jinja2.Environment(
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = (Path(__file__).parent / template).read_text("utf-8")
    return str(environment.from_string(text).render(**values))
