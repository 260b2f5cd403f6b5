"""Jinja2 environment of the report; the templates are in the folder `templates`."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mtl_dist.report.formatting import count, duration, is_finite, number, percent
from mtl_dist.report.markup import printable


def render(template: str, **values: Any) -> Markup:
    """Renders a template. Every value that is not `Markup` is escaped; a name without a value is an error."""
    return Markup(_environment().get_template(template).render(**values))


def asset(name: str) -> Markup:
    """Returns the page's style sheet or script unescaped, as it stands beside the templates."""
    return Markup(files("mtl_dist.report").joinpath("templates", name).read_text("utf-8"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mtl_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "count": count, "percent": percent, "duration": duration}
    environment.tests["finite"] = is_finite
    return environment
