"""The last parts of a run's page: what happened, the recipe, and what it ran on."""

import re

from mtl_dist.report.markup import Html, joined, table, tag
from mtl_dist.report.records import RunRecord
from mtl_dist.report.sections import Section, section

KEY = re.compile(r"^(\s*(?:- )?)([^\s:#'\"-][^:]*)(:)(\s.*)?$")
"""A line of YAML that begins with a key."""


def events(run: RunRecord) -> Section:
    """What happened, in the order of steps."""
    found: list[tuple[int, str]] = []
    for number, start in enumerate(run.starts):
        what = "started" if not number else "started again"
        when = f", {start['time'].replace('T', ' ').replace('+00:00', ' UTC')}" if "time" in start else ""
        found.append((start["step"], f"{what} on {place_of(start)}{when}"))
    found += skipped_steps(run)
    found += [(at, f"back to the weights of step {back}") for at, back in run.lines.rollbacks.items()]
    for span in run.spans:
        planned = span.planned.get("stop", 0) - span.planned.get("start", 0)
        if span.planned.get("until") and span.stop - span.start < planned:
            metric = span.planned["until"]["metric"]
            found.append((span.stop, f"phase {span.name} ended early: {metric} improved no more"))
    if run.finished:
        found.append((run.done, "finished"))
    rows = [(f"{step:,}", what) for step, what in sorted(found, key=lambda one: one[0])]
    lines = f"{run.lines.unreadable} lines of metrics.jsonl could not be read." if run.lines.unreadable else ""
    return section("Events", table(("after step", "what happened"), rows, label="events"), note=lines)


def skipped_steps(run: RunRecord) -> list[tuple[int, str]]:
    """Stretches of logged steps over which the count of gradients that were not finite grew."""
    found: list[tuple[int, str]] = []
    before, grown, at = 0.0, 0.0, 0
    for step, count in [*run.column("optim/nonfinite_steps"), (run.done, 0.0)]:
        if count > before:
            grown, at = grown + count - before, step
        elif grown:
            words = "1 step was skipped, its" if grown == 1 else f"{grown:.0f} steps were skipped, their"
            found.append((at, f"{words} gradient was not finite"))
            grown = 0.0
        before = count
    return found


def place_of(start: dict) -> str:
    """Where a run was started: processes, engine, precision, device."""
    processes = f"{start['world_size']} process{'es' if start['world_size'] > 1 else ''}"
    precision = "" if start["mixed_precision"] in ("no", None) else f", {start['mixed_precision']}"
    micro = f", {start['micro_steps']} micro-steps" if start.get("micro_steps", 1) > 1 else ""
    device = f", {start['device']}" if "device" in start else ""
    return f"{processes} ({start['engine']}{precision}{micro}{device})"


def recipe(run: RunRecord) -> Section:
    """The resolved recipe as it is in the folder."""
    lines = [_yaml_line(line) for line in run.recipe_text.rstrip().splitlines()]
    text = joined([joined(line, "\n") for line in lines])
    note = "Running from this file repeats the run."
    return section("Recipe", tag("pre", tag("code", text), tabindex="0", aria_label="recipe.yaml"), note=note)


def _yaml_line(line: str) -> Html:
    found = KEY.match(line)
    if found is None:
        return joined(line)
    indent, key, colon, value = found.groups()
    return joined(indent, tag("b", key), colon, value)


def environment(run: RunRecord) -> Section:
    """Versions, engine, digests."""
    start = run.starts[-1] if run.starts else {}
    rows: list[tuple[str, object]] = [("folder", str(run.folder))]
    if start:
        rows.append(("ran on", place_of(start)))
        rows += [(name, version) for name, version in start["versions"].items()]
    if "python" in start:
        rows.append(("python", start["python"]))
    digests = run.summary.get("digests") or run.setup.get("digests") or {}
    rows += [(f"digest of the {name}", tag("code", digest)) for name, digest in digests.items()]
    for key, name in (("params_sha256", "final parameters"), ("state_sha256", "final state")):
        if key in run.summary:
            rows.append((f"digest of the {name}", tag("code", run.summary[key])))
    return section("Environment", table(("what", "which"), rows, cls="environment", label="environment"))
