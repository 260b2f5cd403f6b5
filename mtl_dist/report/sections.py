"""The parts of the page of one run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtl_dist.report.charts import COLOURS, Axis, Band, Line, Mark, Steps, around, chart, from_zero
from mtl_dist.report.confusion import confusion_matrix
from mtl_dist.report.markup import DASH, Html, duration, joined, number, table, tag
from mtl_dist.report.records import FIGURES, RATES, RunRecord
from mtl_dist.report.series import Series, smoothed, window_for
from mtl_dist.report.unit_map import rows_of, shades_key, unit_map
from mtl_dist.schedule.phases import format_units

NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "loss": "loss"}


@dataclass(frozen=True)
class Section:
    """A part of the page; the navigation leads to it."""

    title: str
    html: Html

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def section(title: str, *content: object, note: str = "") -> Section:
    """A part of the page with its heading."""
    part = Section(title, Html())
    about = tag("p", note, cls="note") if note else None
    return replace(part, html=tag("section", tag("h2", title), about, *content, id=part.anchor))


def steps_of(run: RunRecord) -> Steps:
    """The horizontal axis of a run, with its phases, restarts and what it lost."""
    bands = tuple(Band(span.name, span.start, span.stop) for span in run.spans)
    again = [start["step"] for start in run.starts[1:]]
    marks = [Mark(f"started again after step {step}", step, step, "restart") for step in again]
    for at, back in run.lines.rollbacks.items():
        marks.append(Mark(f"after step {at} back to the weights of step {back}", back, at, "lost"))
    return Steps(run.total, bands, tuple(marks))


def with_smooth(name: str, series: Series, colour: int = 0) -> list[Line]:
    """A line as it is, or, where it has many points, its mean over it."""
    window = window_for(series)
    if window == 1:
        return [Line(name, series, colour)]
    return [Line("", series, colour, "faint"), Line(name, smoothed(series, window), colour)]


def results(run: RunRecord) -> Section:
    """The table of figures: those of the test, or the last that there are."""
    last = run.last_evaluation()
    if last is None:
        return section("Results", tag("p", "Nothing has been measured yet.", cls="note"))
    split = "test" if last.split == "test" else run.recipe.get("evaluation", {}).get("split", "evaluation")
    rows = []
    for task in [task for task in run.tasks if task in last.figures] or list(last.figures):
        figures = last.figures[task]
        known = run.setup.get("tasks", {}).get(task, {})
        size = known.get("rows", {}).get(split)
        classes = len(run.labels(task)) or DASH
        rows.append((task, *(_figure(figures.get(name), name) for name in FIGURES), _count(size), classes))
    if len(rows) > 1:
        means = [sum(one.get(name, 0.0) for one in last.figures.values()) / len(last.figures) for name in FIGURES]
        rows.append(("mean", *(_figure(mean, name) for mean, name in zip(means, FIGURES, strict=True)), "", ""))
    header = ("task", "accuracy", "macro-F1", "loss", "rows", "classes")
    note = "On the test split, at the end." if last.split == "test" else f"On {split}, after step {last.step:,}."
    return section("Results", table(header, rows, cls="figures results", label="figures by task"), note=note)


def losses(run: RunRecord, steps: Steps) -> Section:
    """The loss that is trained on, over the whole width."""
    lines = with_smooth("training loss", run.column("train/loss"))
    weights = {task: (run.recipe["tasks"][task] or {}).get("weight", 1.0) for task in run.tasks}
    what = "sum over tasks" if set(weights.values()) == {1.0} else "weighted sum over tasks"
    window = window_for(run.column("train/loss"))
    smooth = f" The bold line is the mean over {window} logged steps." if window > 1 else ""
    note = f"The {what} of the mean loss on each global batch.{smooth}"
    return section("Training", chart("Loss", lines, steps, from_zero(lines), cls="wide"), note=note)


def tasks(run: RunRecord, steps: Steps) -> Section:
    """A card for each task: losses, and what was measured."""
    cards = []
    split = run.recipe.get("evaluation", {}).get("split", "evaluation")
    for task in run.tasks:
        losses = with_smooth("train", run.training_loss(task))
        losses.append(Line(split, run.measured(task, "loss"), 1, "points"))
        figures = [
            Line(NAMES[name], run.measured(task, name), colour, "points")
            for name, colour in (("accuracy", 2), ("macro_f1", 3))
        ]
        bare = Steps(steps.total, steps.bands, steps.marks)
        content = (
            chart("Loss", losses, bare, from_zero(losses), cls="small", points=240),
            chart(f"On {split}", figures, bare, around(figures), cls="small", points=240),
        )
        cards.append(tag("article", tag("h3", task), content, cls="card"))
    return section("Tasks", tag("div", cards, cls="cards"))


def rates(run: RunRecord, steps: Steps) -> Section:
    """Learning rates of like units."""
    columns = {key.removeprefix(RATES): one for key, one in run.lines.columns.items() if key.startswith(RATES)}
    groups: dict[bytes, list[str]] = {}
    ordered = [unit for _, units in reversed(rows_of(run)) for unit in units if unit in columns]
    for unit in ordered:
        alike = columns[unit].steps.tobytes() + columns[unit].values.tobytes()
        groups.setdefault(alike, []).append(unit)
    lines: list[Line] = []
    for index, units in enumerate(reversed(groups.values())):
        series = columns[units[0]]
        hides = any(line.series.last == series.last for line in lines)
        lines.append(Line(group_name(units), series, index % (2 * COLOURS), dashed=hides))
    return section("Learning rates", chart("Rate", lines, steps, from_zero(lines), cls="wide"))


def trained(run: RunRecord, steps: Steps) -> Section:
    """The map of units by step."""
    note = "Each row is a part of the model, the input at the bottom; an empty stretch is frozen."
    return section("What trained", unit_map(run, steps), shades_key(), note=note)


def group_name(units: Sequence[str]) -> str:
    """Units in a few words: all heads together, runs of blocks as one range."""
    heads = [unit for unit in units if unit.startswith("heads.")]
    others = [unit for unit in units if unit not in heads]
    words = [format_units(others)] if others else []
    if heads:
        words.append(heads[0] if len(heads) == 1 else f"{len(heads)} heads")
    return " ".join(words)


def confusions(run: RunRecord) -> Section | None:
    """The last matrix of each task, and those of the boundaries before."""
    measured = [one for one in run.lines.evaluations.values() if one.confusions]
    if not measured:
        return None
    last = run.last_evaluation()
    earlier = [one for one in measured if one.split == "eval" and one is not last and one.step < run.done][-6:]
    cards = []
    for task in run.tasks:
        if last is None or task not in last.confusions:
            continue
        labels = run.labels(task)
        folds = [
            tag("div", tag("h4", f"after step {one.step:,}"), confusion_matrix(one.confusions[task], labels))
            for one in reversed(earlier)
            if task in one.confusions
        ]
        before = tag("details", tag("summary", f"{len(folds)} earlier"), folds) if folds else None
        matrix = confusion_matrix(last.confusions[task], labels)
        cards.append(tag("article", tag("h3", task), matrix, before, cls="card"))
    where = "on the test split, at the end" if last is not None and last.split == "test" else "as last measured"
    note = f"True classes downwards, {where}; shades are shares of a row."
    return section("Confusion", tag("div", cards, cls="cards wide"), note=note)


def throughput(run: RunRecord, steps: Steps) -> Section:
    """Tokens in a second, the padding, and where the time went."""
    speed = with_smooth("tokens per second", run.column("perf/tokens_per_second"))
    padding = with_smooth("computed per real token", run.column("perf/padding"), 1)
    top = max((value for line in padding for value in line.series.values), default=1.1)
    charts = [chart("Speed", speed, steps, from_zero(speed), cls="small", points=300)]
    if len(run.column("perf/padding")):
        axis = Axis(1.0, 1.0 + 1.1 * max(0.05, top - 1.0))
        charts.append(chart("Padding", padding, steps, axis, cls="small", points=300))
    outcomes = [span for span in run.spans if span.outcome]
    total = sum(span.outcome["seconds"] for span in outcomes)
    rows = [
        (
            span.name,
            f"{span.stop - span.start:,}",
            duration(span.outcome["seconds"]),
            f"{span.outcome['seconds'] / total:.0%}" if total else DASH,
            f"{span.outcome['seconds'] / max(1, span.stop - span.start):.3f}",
        )
        for span in outcomes
    ]
    header = ("phase", "steps", "training time", "share", "seconds per step")
    by_phase = table(header, rows, cls="figures", label="time by phase") if rows else None
    note = "Real tokens, over training time alone: measuring and saving are left out. Padding is 1 where there is none."
    return section("Throughput", tag("div", charts, cls="pair"), by_phase, note=note)


def plan(run: RunRecord) -> Section | None:
    """What each phase trains, and how often each task's rows are seen."""
    if not run.setup:
        return None
    everything = sum(run.setup["units"].values())
    rows = []
    for span in run.spans:
        phase = span.planned
        length = span.stop - span.start
        planned = phase["stop"] - phase["start"]
        cut = f" of {planned:,}" if planned != length else ""
        until = tag("small", f"until {phase['until']['condition']}") if phase["until"] else None
        share = phase["parameters"] / everything
        rows.append(
            (
                joined(span.name, until),
                f"{span.start + 1:,}{DASH}{span.stop:,}",
                f"{length:,}{cut}",
                short_names_with_heads(span.units),
                f"{phase['parameters']:,} ({share:.1%})",
                planned_rates(phase["rates"]),
            )
        )
    header = ("phase", "steps", "length", "trains", "parameters", "learning rate: highest to last")
    return section("Plan", table(header, rows, cls="figures plan", label="phases"), _draws(run))


def _draws(run: RunRecord) -> Html:
    """Examples of each task by phase, and how many times its rows are gone through."""
    spans = run.spans
    rows = []
    for task in run.tasks:
        size = run.setup["tasks"][task]["rows"]["train"]
        of_phases = [int((span.outcome or span.planned)["draws"][task]) for span in spans]
        shown = [f"{draws:,} ({draws / size:.2f})" for draws in of_phases]
        rows.append((task, f"{size:,}", *shown, f"{sum(of_phases):,} ({sum(of_phases) / size:.2f})"))
    header = ("task", "training rows", *(span.name for span in spans), "whole run")
    caption = "Examples drawn, and in brackets passes over the task's rows"
    early = "" if run.finished else ", as planned"
    return joined(tag("h3", f"{caption}{early}"), table(header, rows, cls="figures", label="draws by task"))


def planned_rates(rates: dict[str, list[float]]) -> str:
    """Groups of like units with their highest rate and the last."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for unit, pair in rates.items():
        groups.setdefault(tuple(pair), []).append(unit)
    return ", ".join(f"{group_name(units)} {top:.2e} to {end:.2e}" for (top, end), units in groups.items())


def short_names_with_heads(units: Sequence[str]) -> str:
    """All units of a phase, single heads only where there are few."""
    heads = sum(unit.startswith("heads.") for unit in units)
    return format_units(units) if heads <= 4 else group_name(units)


def _figure(value: float | None, name: str) -> Html:
    """A figure, with a bar under it where it is a share."""
    bar = None
    if name != "loss" and value is not None and math.isfinite(value):
        bar = tag("i", tag("i", style=f"width:{100 * value:.2f}%"), cls="bar")
    return tag("span", number(value), bar, cls="figure")


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"
