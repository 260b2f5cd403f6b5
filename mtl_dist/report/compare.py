"""The parts of the page that compares runs: figures side by side, curves over each other, and what was different."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_dist.report.charts import SIZE, Axis, Band, Line, Steps, around, chart, frame, from_zero, key, legend
from mtl_dist.report.markup import DASH, Html, duration, joined, number, table, tag
from mtl_dist.report.records import FIGURES, RunRecord
from mtl_dist.report.sections import NAMES, Section, section
from mtl_dist.report.sections_end import place_of
from mtl_dist.report.series import Series, smoothed, window_for


def compared(runs: Sequence[RunRecord]) -> list[Section]:
    """All parts, in order."""
    names = names_of(runs)
    steps = Steps(max(run.total for run in runs), bands_of(runs))
    parts = [_overview(runs, names), _figures(runs, names), _curves(runs, names, steps), _tasks(runs, names, steps)]
    parts += [_phases(runs, names, steps), _speed(runs, names, steps)]
    parts.append(_differences("Recipe", [flat(run.recipe) for run in runs], names, "The keys whose values differ."))
    parts.append(_differences("Environment", [_environment(run) for run in runs], names, "What differs, digests too."))
    return parts


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names; where two are alike, with as many of the folders above as tell them apart."""
    paths = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate((run.name for run in runs), 1)]


def bands_of(runs: Sequence[RunRecord]) -> tuple[Band, ...]:
    """The phases, where those of all runs have the same ends."""
    each = [tuple(Band(span.name, span.start, span.stop) for span in run.spans) for run in runs]
    return each[0] if len(set(each)) == 1 else ()


def in_order(each: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys of all, each once; one that only some have stands behind that which they have before it."""
    keys: list[str] = []
    for mapping in each:
        place = 0
        for one in mapping:
            if one in keys:
                place = keys.index(one) + 1
            else:
                keys.insert(place, one)
                place += 1
    return keys


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys to values as text; mappings in a list count as `phases[0].name`, an empty mapping as nothing."""
    if isinstance(value, Mapping):
        pairs = [(f"{prefix}.{name}" if prefix else str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        pairs = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    return {key: text for name, item in pairs for key, text in flat(item, name).items()}


def _overview(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    rows = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        state = "finished" if run.finished else "unfinished"
        seconds = sum(phase["seconds"] for phase in run.summary.get("phases", ()))
        speeds = [value for value in run.column("perf/tokens_per_second").values if math.isfinite(value)]
        rows.append(
            (
                key(name, Line(name, Series(), index).classes),
                tag("span", state, cls=f"state {state}"),
                f"{run.done:,}" if run.finished else f"{run.done:,} of {run.total:,}",
                duration(seconds) if run.finished else DASH,
                f"{sum(speeds) / len(speeds):,.0f}" if speeds else DASH,
                place_of(run.starts[-1]) if run.starts else DASH,
                tag("code", str(run.folder)),
            )
        )
    header = ("run", "state", "steps", "training time", "tokens/s", "ran on", "folder")
    return section("Runs", table(header, rows, cls="figures runs", label="runs"))


def _figures(runs: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Test figures, or the last ones measured; the best of a row is marked."""
    last = [run.last_evaluation() for run in runs]
    figures = [{} if one is None else one.figures for one in last]
    rows = []
    for task in _union(runs):
        for name in FIGURES:
            values = [of_run.get(task, {}).get(name) for of_run in figures]
            label = joined(tag("b", task) if name == FIGURES[0] else tag("span", task, cls="again"))
            rows.append((label, NAMES[name], *_marked(values, -1 if name == "loss" else 1)))
    for name in FIGURES:
        values = [
            sum(of_task[name] for of_task in of_run.values()) / len(of_run) if of_run else None for of_run in figures
        ]
        label = tag("b", "mean") if name == FIGURES[0] else tag("span", "mean", cls="again")
        rows.append((label, NAMES[name], *_marked(values, -1 if name == "loss" else 1)))
    unfinished = [name for one, name in zip(last, names, strict=True) if one is not None and one.split != "test"]
    note = "At the end, on the test split. The best of a row is bold; small figures are distances from the first run's."
    if unfinished:
        note += f" As last measured while training: {', '.join(unfinished)}."
    header = ("task", "figure", *(key(name, Line(name, Series(), index).classes) for index, name in enumerate(names)))
    return section("Figures", table(header, rows, cls="figures compared", label="figures by run"), note=note)


def _marked(values: Sequence[float | None], sign: int) -> list[Html]:
    known = [value for value in values if value is not None]
    best = max(known, key=lambda value: sign * value, default=None)
    alike = len(set(known)) < 2
    cells = []
    for index, value in enumerate(values):
        first = values[0]
        gap = None
        if index and value is not None and first is not None:
            gap = tag("small", f"{value - first:+.4f}", cls="better" if sign * (value - first) > 0 else "gap")
        chosen = value is not None and value == best and not alike
        cells.append(tag("span", tag("b", number(value)) if chosen else number(value), gap, cls="figure"))
    return cells


def _curves(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    lines = _overlaid(names, (run.column("train/loss") for run in runs))
    note = "Means over a fortieth of the logged steps, where there are 60 or more."
    return section("Training", chart("Loss", lines, steps, from_zero(lines), cls="wide"), note=note)


def _tasks(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    cards = []
    for task in _union(runs):
        training = _overlaid(names, [run.training_loss(task) for run in runs])
        measured = [
            Line(name, run.measured(task, "accuracy"), index, "points")
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        content = (
            chart("Training loss", training, steps, from_zero(training), cls="small bare", points=240),
            chart("Accuracy as measured", measured, steps, around(measured), cls="small bare", points=240),
        )
        cards.append(tag("article", tag("h3", task), content, cls="card"))
    names_once = legend([Line(name, Series(), index) for index, name in enumerate(names)])
    return section("Tasks", tag("p", names_once), tag("div", cards, cls="cards"))


def _phases(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    """A strip for each run, with its phases."""
    shapes, inside = [], []
    for index, run in enumerate(runs):
        top = 100 * (index + 0.5) / len(runs)
        for place, span in enumerate(run.spans):
            left, width = steps.axis.share(span.start), steps.axis.share(span.stop - span.start)
            size = {"x": f"{SIZE * left:.2f}", "y": 10 * index + 1, "width": f"{SIZE * width:.2f}", "height": 8}
            shapes.append(tag("rect", **size, cls=f"strip b{place % 2}"))
            style = f"left:{100 * left:.2f}%;width:{100 * width:.2f}%;top:{top:.2f}%"
            title = f"{span.name}: steps {span.start + 1} to {span.stop}"
            inside.append(tag("span", span.name, title=title, style=style))
    box, title = f"0 0 {SIZE} {10 * len(runs)}", "phases of each run"
    drawing = tag("svg", shapes, viewBox=box, preserveAspectRatio="none", role="img", aria_label=title)
    labels = [
        tag("span", name, title=name, style=f"bottom:{100 * (len(runs) - index - 0.5) / len(runs):.2f}%")
        for index, name in enumerate(names)
    ]
    plot = tag("div", drawing, tag("div", inside, cls="inside"), cls="plot", style=f"height:{30 * len(runs)}px")
    return section("Phases", tag("figure", frame(plot, labels, steps), cls="chart map"))


def _speed(runs: Sequence[RunRecord], names: Sequence[str], steps: Steps) -> Section:
    speed = _overlaid(names, (run.column("perf/tokens_per_second") for run in runs))
    padding = _overlaid(names, (run.column("perf/padding") for run in runs))
    top = max((value for line in padding for value in line.series.values if math.isfinite(value)), default=1.1)
    axis = Axis(1.0, 1.0 + 1.1 * max(0.05, top - 1.0))
    charts = (
        chart("Tokens per second", speed, steps, from_zero(speed), cls="small", points=300),
        chart("Computed per real token", padding, steps, axis, cls="small", points=300),
    )
    return section("Throughput", tag("div", charts, cls="pair"))


def _overlaid(names: Sequence[str], columns: Iterable[Series]) -> list[Line]:
    """A line for each run."""
    return [
        Line(name, smoothed(series, window_for(series)), index)
        for index, (name, series) in enumerate(zip(names, columns, strict=True))
    ]


def _differences(title: str, each: Sequence[Mapping[str, str]], names: Sequence[str], note: str) -> Section:
    keys = in_order(each)
    rows = [
        (tag("code", key), *(of_run.get(key, DASH) for of_run in each))
        for key in keys
        if len({of_run.get(key) for of_run in each}) > 1 and key != "output_dir"
    ]
    if not rows:
        return section(title, tag("p", "The same in all runs.", cls="note"))
    return section(title, table(("key", *names), rows, cls="differences", label=f"{title} differences"), note=note)


def _environment(run: RunRecord) -> dict[str, str]:
    start = run.starts[-1] if run.starts else {}
    kept = ("engine", "world_size", "mixed_precision", "device")
    found = {key: str(start[key]) for key in kept if key in start}
    found |= {f"version of {name}": str(version) for name, version in start.get("versions", {}).items()}
    digests = run.summary.get("digests") or run.setup.get("digests") or {}
    if "params_sha256" in run.summary:
        digests = {**digests, "final parameters": run.summary["params_sha256"]}
    # Enough of it to tell two apart; the page of a run has all.
    found |= {f"digest of the {name}": str(digest)[:16] for name, digest in digests.items()}
    return found


def _union(runs: Sequence[RunRecord]) -> list[str]:
    """The tasks of all runs, each once."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))
