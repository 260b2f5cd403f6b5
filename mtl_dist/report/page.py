"""The page around its parts: one file, whose style and script are inside and which loads nothing."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from mtl_dist.io import write_text_atomically
from mtl_dist.report import sections, sections_end
from mtl_dist.report.compare import compared
from mtl_dist.report.markup import DASH, Html, duration, joined, tag
from mtl_dist.report.records import RunRecord, read_run
from mtl_dist.report.sections import Section
from mtl_dist.run_layout import REPORT


def page_of_run(run: RunRecord) -> str:
    """The page of one run."""
    steps = sections.steps_of(run)
    parts = [
        sections.results(run),
        sections.losses(run, steps),
        sections.tasks(run, steps),
        sections.rates(run, steps),
        sections.trained(run, steps),
        sections.confusions(run),
        sections.throughput(run, steps),
        sections.plan(run),
        sections_end.events(run),
        sections_end.recipe(run),
        sections_end.environment(run),
    ]
    return page(run.name, _header(run), [part for part in parts if part is not None])


def page_of_runs(runs: list[RunRecord]) -> str:
    """The page that compares several runs."""
    header = joined(tag("p", "Comparison of runs", cls="over"), tag("h1", f"{len(runs)} runs"))
    return page(f"{len(runs)} runs", header, compared(runs))


def write_report(folder: Path) -> Path:
    """Writes the report of a run into its folder. Raises UserError where that is no run, TrainingError for the disk."""
    path = folder / REPORT
    write_text_atomically(path, page_of_run(read_run(folder)))
    return path


def page(title: str, header: Html, parts: Sequence[Section]) -> str:
    """A whole document. Its policy lets a browser load nothing and run nothing but the page's own script."""
    here = files("mtl_dist.report")
    style, script = (Html(here.joinpath(name).read_text("utf-8")) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", f"{title} · mtl_dist"),
        tag("style", style),
    )
    content = tag(
        "body",
        tag("header", header, cls="top"),
        tag("nav", [tag("a", part.title, href=f"#{part.anchor}") for part in parts], aria_label="parts of this page"),
        tag("main", [part.html for part in parts]),
        tag("footer", "Made by mtl_dist from recipe.yaml, setup.json, metrics.jsonl and summary.json."),
        tag("script", script),
    )
    return f"<!doctype html>\n{tag('html', head, content, lang='en')}\n"


def _header(run: RunRecord) -> Html:
    share = run.done / run.total if run.total else 0.0
    state = "finished" if run.finished else "unfinished"
    facts = [
        ("steps", f"{run.done:,}" if run.finished else f"{run.done:,} of {run.total:,}"),
        ("phases", len(run.spans)),
        ("tasks", len(run.tasks)),
        ("encoder", _encoder(run)),
    ]
    if run.setup:
        facts.append(("parameters", f"{sum(run.setup['units'].values()):,}"))
    if run.starts:
        facts.append(("ran on", sections_end.place_of(run.starts[-1])))
    if run.finished:
        facts.append(("training time", duration(sum(phase["seconds"] for phase in run.summary["phases"]))))
    if len(run.starts) > 1:
        facts.append(("starts", len(run.starts)))
    alert = None
    if not run.finished:
        words = f"This run is not finished: {run.done:,} of {run.total:,} steps ({share:.0%}) are logged. "
        alert = tag("p", words, "What is here is what there was when the page was made.", cls="alert", role="note")
    return joined(
        tag("p", "Run", cls="over"),
        tag("h1", run.name, " ", tag("span", state, cls=f"state {state}")),
        alert,
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], cls="facts"),
    )


def _encoder(run: RunRecord) -> str:
    """Where it came from, of which type."""
    source = str((run.recipe.get("model") or {}).get("encoder", DASH))
    kind = run.setup.get("model_type")
    return f"{source} ({kind})" if kind else source
