"""Fill the report's templates; all text that enters one is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent


def fill(name: str, **values: Any) -> str:
    """Return a template with these values in it.

    Args:
        name: a file beside this one or in `sections`.
        values: by the names that the template uses.
    """
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    """Return what the templates are compiled by, once each."""
    return Environment(
        loader=FileSystemLoader([FOLDER, FOLDER / "sections"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
