"""Sections on how to repeat the run: its recipe, versions and digests."""

import re

from mtl_dist.report.launches import describe_launch
from mtl_dist.report.records import RunRecord
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import render

YAML_KEY = re.compile(r"^(\s*(?:- )?)([^\s:#'\"-][^:]*)(:(?:\s.*)?)$")
"""A line of YAML that begins with a key: indent, key, rest."""


def recipe_section(run: RunRecord) -> Section:
    """Returns the resolved recipe word for word, its keys highlighted."""
    lines = []
    for line in run.recipe_text.rstrip().splitlines():
        found = YAML_KEY.match(line)
        lines.append(found.groups() if found else (line, "", ""))
    return Section("Recipe", render("recipe.html", lines=lines), "Running from this file repeats the run.")


def environment_section(run: RunRecord) -> Section:
    """Returns the table of versions, processes and digests."""
    start = run.starts[-1] if run.starts else {}
    facts = [("folder", str(run.folder))]
    if start:
        facts.append(("ran on", describe_launch(start)))
        facts += start["versions"].items()
    if "python" in start:
        facts.append(("python", start["python"]))
    digests = list((run.summary.get("digests") or run.setup.get("digests") or {}).items())
    for key, name in (("params_sha256", "final parameters"), ("state_sha256", "final state")):
        if key in run.summary:
            digests.append((name, run.summary[key]))
    return Section("Environment", render("environment.html", facts=facts, digests=digests))
