"""Whole pages: one file with its style and script inside, which loads nothing."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_dist.io import write_text_atomically
from mtl_dist.report.comparison import comparison_sections
from mtl_dist.report.formatting import DASH, duration
from mtl_dist.report.launches import describe_launch
from mtl_dist.report.records import RunRecord, read_run
from mtl_dist.report.sections import curves, environment, history, plan, results
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import asset, render
from mtl_dist.run_layout import REPORT


def page_of_run(run: RunRecord) -> str:
    """Returns the page of one run."""
    steps = curves.steps_of(run)
    sections = [
        results.results_section(run),
        curves.training_section(run, steps),
        curves.tasks_section(run, steps),
        curves.rates_section(run, steps),
        curves.what_trained_section(run, steps),
        results.confusion_section(run),
        curves.throughput_section(run, steps),
        plan.plan_section(run),
        history.events_section(run),
        environment.recipe_section(run),
        environment.environment_section(run),
    ]
    return render_page(
        "run.html",
        run.name,
        [section for section in sections if section is not None],
        finished=run.finished,
        done=run.done,
        total=run.total,
        share=run.done / run.total if run.total else 0.0,
        facts=_facts(run),
    )


def page_of_runs(runs: list[RunRecord]) -> str:
    """Returns the page that compares several runs."""
    return render_page("comparison.html", f"{len(runs)} runs", comparison_sections(runs))


def render_page(template: str, title: str, sections: Sequence[Section], **values: Any) -> str:
    """Renders a document from a template that extends page.html.

    Its content-security policy allows the page's own script and no loading.
    """
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return render(
        template, title=title, sections=sections, style=asset("page.css"), script=script, policy=policy, **values
    )


def write_report(folder: Path) -> Path:
    """Writes a run's report into its folder and returns the file's path.

    Raises UserError for a folder that is not a run, TrainingError where the disk refuses the file.
    """
    path = folder / REPORT
    write_text_atomically(path, page_of_run(read_run(folder)))
    return path


def _facts(run: RunRecord) -> list[tuple[str, str | int]]:
    """Returns names and values for the top of the page."""
    facts: list[tuple[str, str | int]] = [
        ("steps", f"{run.done:,}" if run.finished else f"{run.done:,} of {run.total:,}"),
        ("phases", len(run.spans)),
        ("tasks", len(run.tasks)),
        ("encoder", _encoder(run)),
    ]
    if run.setup:
        facts.append(("parameters", f"{sum(run.setup['units'].values()):,}"))
    if run.starts:
        facts.append(("ran on", describe_launch(run.starts[-1])))
    if run.finished:
        facts.append(("training time", duration(sum(phase["seconds"] for phase in run.summary["phases"]))))
    if len(run.starts) > 1:
        facts.append(("starts", len(run.starts)))
    return facts


def _encoder(run: RunRecord) -> str:
    """Returns the encoder's source, and its model type where setup.json has it."""
    source = str((run.recipe.get("model") or {}).get("encoder", DASH))
    kind = run.setup.get("model_type")
    return f"{source} ({kind})" if kind else source
