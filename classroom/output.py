"""What programs that draw something share: optional packages, templates, files written whole."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from program import UserError, plural, write_whole

__all__ = ["filled", "needed", "write_whole"]


def needed(name: str) -> Any:
    """Return a module of an optional package. Raises UserError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}: pip install -r requirements-evidence.txt") from None


@functools.cache
def _template(jinja2: Any, name: str) -> Any:
    """Return a template of this folder, compiled."""
    environment = jinja2.Environment(
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["plural"] = plural
    return environment.from_string((Path(__file__).parent / name).read_text("utf-8"))


def filled(template: str, **values: object) -> str:
    """Return what a template of this folder makes; HTML is escaped. Raises UserError."""
    return str(_template(needed("jinja2"), template).render(**values))
