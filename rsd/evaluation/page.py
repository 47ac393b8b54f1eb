"""Self-contained HTML pages from templates; all share the look of style.html."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

MISSING = "–"
HERE = Path(__file__).parent


def render_page(template: str, *, folder: Path = HERE, **values: Any) -> str:
    """Render a template. Filters: number(digits), percent(digits), and jinja's own.

    Args:
        template: Its file's name.
        folder: Where it is; it may include templates of this folder.
        values: What it shows.

    Raises:
        jinja2.UndefinedError: the template needs a value that was not given.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}  # tojson
    environment.filters |= {"number": format_number, "percent": format_percent}
    return environment.get_template(template).render(**values)


def format_number(value: float | None, digits: int = 1) -> str:
    """Fixed digits with thin spaces between thousands; a dash for None."""
    return MISSING if value is None else f"{value:,.{digits}f}".replace(",", "\u2009")


def format_percent(value: float | None, digits: int = 1) -> str:
    """A share in 0..1 as per cent, without the sign; a dash for None."""
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def data_url(path: Path, media_type: str) -> str:
    """A file as a data: URL, to stand inside a page."""
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
