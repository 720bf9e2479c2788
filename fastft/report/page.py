"""Self-contained HTML pages from jinja2 templates, the number formats that they use, and what compared things share."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from beton_tools import __version__
from beton_tools.base.console import format_bytes, format_duration
from fastft.recipe.check import show_value


def render_page(template: str, **values: Any) -> str:
    """Render a page with inline style and script. It loads nothing from the network."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return render(template, version=__version__, made=now, **values)


def render(template: str, **values: Any) -> Markup:
    """Render a template, such as one for a part of a page."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("fastft.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "figure": figure,
        "hours": format_duration,
        "option": show_value,
        "size": format_bytes,
        "percent": percent,
        "flags": flags,
    }
    return environment


def figure(value: float) -> str:
    """Format with at least three significant digits: 1,234 / 123 / 12.3 / 1.23 / 0.120."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 or size == 0 else f"{value:#.3g}"


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def joined(*parts: str | None) -> str:
    """Join the parts that are not empty by commas."""
    return ", ".join(filter(None, parts))


def named(values: Mapping[str, object]) -> str:
    """Format as "family 26, model 2", without the values that are None or empty."""
    return joined(*(f"{name} {value}" for name, value in values.items() if value))


def flags(text: str) -> Markup:
    """Mark up command-line options in a sentence as code."""
    words = [Markup("<code>{}</code>").format(w) if w.startswith("--") else escape(w) for w in text.split(" ")]
    return Markup(" ").join(words)


# pages that compare ---------------------------------------------------------------------------------------------------

COLOURS = 6  # in style.css, as file-1 to file-6


class Fact(NamedTuple):
    """A row in the table of what the compared things are: a name, and the value for each of them."""

    name: str
    values: list[object]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


def facts(columns: Sequence[Mapping[str, object]]) -> list[Fact]:
    """Return a row for each name that one of the columns has. A column is what is known about one thing."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [Fact(name, [column.get(name, "–") for column in columns]) for name in names]


def colour(number: int) -> str:
    """Return the CSS class of the compared thing with this number, from 0."""
    return f"file-{1 + number % COLOURS}"
