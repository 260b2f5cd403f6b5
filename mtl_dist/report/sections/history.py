"""Section on the run's events, in the order of steps."""

from mtl_dist.report.launches import describe_launch
from mtl_dist.report.records import RunRecord
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import render


def events_section(run: RunRecord) -> Section:
    """Returns the table of starts, skipped steps, rollbacks, early stops and the end."""
    found = _starts(run) + _skipped_steps(run)
    found += [(at, f"back to the weights of step {back}") for at, back in run.lines.rollbacks.items()]
    found += _early_ends(run)
    if run.finished:
        found.append((run.done, "finished"))
    note = f"{run.lines.unreadable} lines of metrics.jsonl could not be read." if run.lines.unreadable else ""
    return Section("Events", render("events.html", events=sorted(found, key=lambda one: one[0])), note)


def _starts(run: RunRecord) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for number, start in enumerate(run.starts):
        what = "resumed" if number else "started"
        when = f", {start['time'].replace('T', ' ').replace('+00:00', ' UTC')}" if "time" in start else ""
        found.append((start["step"], f"{what} on {describe_launch(start)}{when}"))
    return found


def _skipped_steps(run: RunRecord) -> list[tuple[int, str]]:
    """Returns stretches of logged steps over which the count of non-finite gradients grew, with the last step."""
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


def _early_ends(run: RunRecord) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for span in run.spans:
        planned = span.planned.get("stop", 0) - span.planned.get("start", 0)
        if span.planned.get("until") and span.stop - span.start < planned:
            metric = span.planned["until"]["metric"]
            found.append((span.stop, f"phase {span.name} ended early: {metric} improved no more"))
    return found
