"""Sections of the page that compares runs: figures side by side, curves over each other, and differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mtl_dist.config.earlier import todays_form
from mtl_dist.report.charts import Axis, Band, Line, Steps, around, chart, from_zero, key, legend
from mtl_dist.report.differences import environment_of, flattened, merged_keys, run_names
from mtl_dist.report.formatting import DASH, duration
from mtl_dist.report.launches import describe_launch
from mtl_dist.report.phase_strips import phase_strips
from mtl_dist.report.records import FIGURES, RunRecord
from mtl_dist.report.sections.curves import NAMES
from mtl_dist.report.sections.section import Section
from mtl_dist.report.series import Series, smoothed, window_for
from mtl_dist.report.templating import render


@dataclass(frozen=True)
class RunRow:
    """One run in the table of runs."""

    key: Markup
    """Name beside the colour of its lines."""
    finished: bool
    steps: str
    time: str
    speed: str
    place: str
    """Processes, engine and device."""
    folder: str


@dataclass(frozen=True)
class FigureCell:
    """A figure of one run."""

    value: float | None
    best: bool
    """Whether it is the best of its row."""
    gap: float | None
    """Difference to the first run's figure; None for the first run and where either is missing."""
    better: bool
    """Whether it is better than the first run's."""


@dataclass(frozen=True)
class FigureRow:
    """One figure of all runs."""

    figure: str
    cells: list[FigureCell]


def comparison_sections(runs: Sequence[RunRecord]) -> list[Section]:
    """Returns all sections in order."""
    names = run_names(runs)
    steps = Steps(max(run.total for run in runs), _common_bands(runs))
    recipes = [flattened(todays_form(run.recipe)) for run in runs]
    environments = [environment_of(run) for run in runs]
    return [
        _runs_section(runs, names),
        _figures_section(runs, names),
        _training_section(runs, names, steps),
        _tasks_section(runs, names, steps),
        Section("Phases", phase_strips(runs, names, steps)),
        _throughput_section(runs, names, steps),
        _differences_section("Recipe", recipes, names, "The keys whose values differ."),
        _differences_section("Environment", environments, names, "What differs, digests too."),
    ]


def _common_bands(runs: Sequence[RunRecord]) -> tuple[Band, ...]:
    """Returns the phases where all runs have the same ones; otherwise none."""
    bands = [tuple(Band(span.name, span.start, span.stop) for span in run.spans) for run in runs]
    return bands[0] if len(set(bands)) == 1 else ()


def _runs_section(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    rows = [_run_row(run, run_key) for run, run_key in zip(runs, _keys(names), strict=True)]
    return Section("Runs", render("runs.html", runs=rows))


def _run_row(run: RunRecord, run_key: Markup) -> RunRow:
    seconds = sum(phase["seconds"] for phase in run.summary.get("phases", ()))
    speeds = [value for value in run.column("perf/tokens_per_second").values if math.isfinite(value)]
    return RunRow(
        key=run_key,
        finished=run.finished,
        steps=f"{run.done:,}" if run.finished else f"{run.done:,} of {run.total:,}",
        time=duration(seconds) if run.finished else DASH,
        speed=f"{sum(speeds) / len(speeds):,.0f}" if speeds else DASH,
        place=describe_launch(run.starts[-1]) if run.starts else DASH,
        folder=str(run.folder),
    )


def _figures_section(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Returns the table of test figures, or of the last ones measured."""
    last = [run.last_evaluation() for run in runs]
    figures = [{} if one is None else one.figures for one in last]
    groups = [
        (task, [_figure_row(name, [by_task.get(task, {}).get(name) for by_task in figures]) for name in FIGURES])
        for task in _all_tasks(runs)
    ]
    groups.append(("mean", [_figure_row(name, [_mean(by_task, name) for by_task in figures]) for name in FIGURES]))
    unfinished = [name for one, name in zip(last, names, strict=True) if one is not None and one.split != "test"]
    note = "At the end, on the test split. The best of a row is bold; small figures are distances from the first run's."
    if unfinished:
        note += f" As last measured while training: {', '.join(unfinished)}."
    return Section("Figures", render("figures.html", groups=groups, keys=_keys(names)), note)


def _figure_row(name: str, values: Sequence[float | None]) -> FigureRow:
    sign = -1 if name == "loss" else 1
    known = [value for value in values if value is not None]
    best = max(known, key=lambda value: sign * value, default=None)
    distinct = len(set(known)) > 1
    first = values[0]
    cells = []
    for index, value in enumerate(values):
        gap = value - first if index and value is not None and first is not None else None
        is_best = distinct and value is not None and value == best
        cells.append(FigureCell(value, is_best, gap, gap is not None and sign * gap > 0))
    return FigureRow(NAMES[name], cells)


def _mean(by_task: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    return sum(figures[name] for figures in by_task.values()) / len(by_task) if by_task else None


def _training_section(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    lines = _overlaid(names, (run.column("train/loss") for run in runs))
    note = "Means over a fortieth of the logged steps, where there are 60 or more."
    return Section("Training", chart("Loss", lines, steps, from_zero(lines), cls="wide"), note)


def _tasks_section(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    cards = []
    for task in _all_tasks(runs):
        training = _overlaid(names, [run.training_loss(task) for run in runs])
        measured = [
            Line(name, run.measured(task, "accuracy"), index, "points")
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        charts = (
            chart("Training loss", training, steps, from_zero(training), cls="small bare", points=240),
            chart("Accuracy as measured", measured, steps, around(measured), cls="small bare", points=240),
        )
        cards.append((task, charts))
    shared_legend = legend([Line(name, Series(), index) for index, name in enumerate(names)])
    return Section("Tasks", render("task_cards.html", cards=cards, legend=shared_legend))


def _throughput_section(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    speed = _overlaid(names, (run.column("perf/tokens_per_second") for run in runs))
    padding = _overlaid(names, (run.column("perf/padding") for run in runs))
    top = max((value for line in padding for value in line.series.values if math.isfinite(value)), default=1.1)
    axis = Axis(1.0, 1.0 + 1.1 * max(0.05, top - 1.0))
    charts = (
        chart("Tokens per second", speed, steps, from_zero(speed), cls="small", points=300),
        chart("Computed per real token", padding, steps, axis, cls="small", points=300),
    )
    return Section("Throughput", render("throughput.html", charts=charts, phases=[]))


def _overlaid(names: Sequence[str], columns: Iterable[Series]) -> list[Line]:
    """Returns a curve for each run; of many points, their moving average."""
    return [
        Line(name, smoothed(series, window_for(series)), index)
        for index, (name, series) in enumerate(zip(names, columns, strict=True))
    ]


def _differences_section(title: str, mappings: Sequence[Mapping[str, str]], names: Sequence[str], note: str) -> Section:
    rows = [
        (name, [mapping.get(name, DASH) for mapping in mappings])
        for name in merged_keys(mappings)
        if len({mapping.get(name) for mapping in mappings}) > 1 and name != "output_dir"
    ]
    content = render("differences.html", rows=rows, names=names, label=f"{title} differences")
    return Section(title, content, note if rows else "")


def _keys(names: Sequence[str]) -> list[Markup]:
    """Returns the name of each run beside the colour of its lines."""
    return [key(name, Line(name, Series(), index).classes) for index, name in enumerate(names)]


def _all_tasks(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the tasks of all runs, each once."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))
