"""Sections with curves over training steps: losses, figures, learning rates, trained units, throughput."""

from dataclasses import dataclass

from markupsafe import Markup

from mtl_dist.report.charts import COLOURS, Axis, Band, Line, Mark, Steps, around, chart, from_zero
from mtl_dist.report.formatting import DASH, percent
from mtl_dist.report.records import RATES, RunRecord
from mtl_dist.report.sections.section import Section
from mtl_dist.report.series import Series, smoothed, window_for
from mtl_dist.report.templating import render
from mtl_dist.report.unit_map import rows_of, unit_map
from mtl_dist.report.unit_names import group_name

NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "loss": "loss"}
"""Names of figures on the page, by their name in metrics.jsonl."""


@dataclass(frozen=True)
class PhaseTime:
    """Training time of a phase that has ended."""

    name: str
    steps: int
    seconds: float
    share: str
    """Percentage of the training time of all phases."""

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / max(1, self.steps)


def steps_of(run: RunRecord) -> Steps:
    """Returns the horizontal axis of a run's charts, with its phases, restarts and rolled-back steps."""
    bands = tuple(Band(span.name, span.start, span.stop) for span in run.spans)
    restarts = [start["step"] for start in run.starts[1:]]
    marks = [Mark(f"resumed after step {step}", step, step, "restart") for step in restarts]
    for at, back in run.lines.rollbacks.items():
        marks.append(Mark(f"after step {at} back to the weights of step {back}", back, at, "lost"))
    return Steps(run.total, bands, tuple(marks))


def training_section(run: RunRecord, steps: Steps) -> Section:
    """Returns the curve of the training loss over the whole width of the page."""
    lines = _with_mean("training loss", run.column("train/loss"))
    weights = {task: (run.recipe["tasks"][task] or {}).get("weight", 1.0) for task in run.tasks}
    what = "sum over tasks" if set(weights.values()) == {1.0} else "weighted sum over tasks"
    window = window_for(run.column("train/loss"))
    smooth = f" The bold line is the mean over {window} logged steps." if window > 1 else ""
    note = f"The {what} of the mean loss on each global batch.{smooth}"
    return Section("Training", chart("Loss", lines, steps, from_zero(lines), cls="wide"), note)


def tasks_section(run: RunRecord, steps: Steps) -> Section:
    """Returns a card for each task with its losses and its figures."""
    cards = [(task, _task_charts(run, task, run.evaluation_split, steps)) for task in run.tasks]
    return Section("Tasks", render("task_cards.html", cards=cards, legend=None))


def rates_section(run: RunRecord, steps: Steps) -> Section:
    """Returns the curves of the learning rates, one for each group of units that share theirs."""
    columns = {key.removeprefix(RATES): one for key, one in run.lines.columns.items() if key.startswith(RATES)}
    groups: dict[bytes, list[str]] = {}
    ordered = [unit for _, units in reversed(rows_of(run)) for unit in units if unit in columns]
    for unit in ordered:
        same_curve = columns[unit].steps.tobytes() + columns[unit].values.tobytes()
        groups.setdefault(same_curve, []).append(unit)
    lines: list[Line] = []
    for index, units in enumerate(reversed(groups.values())):
        series = columns[units[0]]
        covers_another = any(line.series.last == series.last for line in lines)
        lines.append(Line(group_name(units), series, index % (2 * COLOURS), dashed=covers_another))
    return Section("Learning rates", chart("Rate", lines, steps, from_zero(lines), cls="wide"))


def what_trained_section(run: RunRecord, steps: Steps) -> Section:
    """Returns the map of the units that trained at each step."""
    note = "Each row is a part of the model, the input at the bottom; an empty stretch is frozen."
    return Section("What trained", render("what_trained.html", unit_map=unit_map(run, steps)), note)


def throughput_section(run: RunRecord, steps: Steps) -> Section:
    """Returns the curves of tokens per second and of padding, and the training time by phase."""
    speed = _with_mean("tokens per second", run.column("perf/tokens_per_second"))
    charts = [chart("Speed", speed, steps, from_zero(speed), cls="small", points=300)]
    if len(run.column("perf/padding")):
        padding = _with_mean("computed per real token", run.column("perf/padding"), 1)
        top = max((value for line in padding for value in line.series.values), default=1.1)
        axis = Axis(1.0, 1.0 + 1.1 * max(0.05, top - 1.0))
        charts.append(chart("Padding", padding, steps, axis, cls="small", points=300))
    note = "Real tokens, over training time alone: measuring and saving are left out. Padding is 1 where there is none."
    return Section("Throughput", render("throughput.html", charts=charts, phases=_phase_times(run)), note)


def _with_mean(name: str, series: Series, colour: int = 0) -> list[Line]:
    """Returns a curve; one of many points as a faint curve and its moving average."""
    window = window_for(series)
    if window == 1:
        return [Line(name, series, colour)]
    return [Line("", series, colour, "faint"), Line(name, smoothed(series, window), colour)]


def _task_charts(run: RunRecord, task: str, split: str, steps: Steps) -> list[Markup]:
    losses = _with_mean("train", run.training_loss(task))
    losses.append(Line(split, run.measured(task, "loss"), 1, "points"))
    figures = [
        Line(NAMES[name], run.measured(task, name), colour, "points")
        for name, colour in (("accuracy", 2), ("macro_f1", 3))
    ]
    return [
        chart("Loss", losses, steps, from_zero(losses), cls="small", points=240),
        chart(f"On {split}", figures, steps, around(figures), cls="small", points=240),
    ]


def _phase_times(run: RunRecord) -> list[PhaseTime]:
    ended = [span for span in run.spans if span.outcome]
    total = sum(span.outcome["seconds"] for span in ended)
    return [
        PhaseTime(
            span.name,
            span.stop - span.start,
            span.outcome["seconds"],
            percent(span.outcome["seconds"] / total) if total else DASH,
        )
        for span in ended
    ]
