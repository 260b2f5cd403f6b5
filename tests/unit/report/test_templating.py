"""Templates of the report: escaping, missing values, and their place in the wheel."""

import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from mtl_dist.report.markup import tag
from mtl_dist.report.templating import render

ROOT = Path(__file__).parents[3]


def test_a_template_escapes_its_values_and_leaves_markup_alone() -> None:
    page = render("events.html", events=[(1, "\ud800<b>&"), (2, tag("i", "x"))])
    assert "<td>?&lt;b&gt;&amp;</td>" in page
    assert "<td><i>x</i></td>" in page
    assert isinstance(page, Markup)


def test_a_template_refuses_a_missing_value() -> None:
    with pytest.raises(UndefinedError, match="'events' is undefined"):
        render("events.html")


def test_a_wheel_includes_every_file_of_the_report() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folder = ROOT / "mtl_dist" / "report"
    included = {path for pattern in settings["package-data"]["mtl_dist.report"] for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files == included
    assert folder / "templates" / "page.html" in files
