"""Run folders for tests of the report: two tasks, two blocks, two phases of four steps."""

import copy
import json
from pathlib import Path
from typing import Any

TASKS = ("topic", "mood")
UNITS = {"embeddings": 50, "blocks.0": 20, "blocks.1": 20, "heads.topic": 6, "heads.mood": 4}
LABELS = {"topic": ["art", "sea", "law"], "mood": ["bad", "good"]}
PHASES = (("heads", 0, 4, ("heads.topic", "heads.mood")), ("all", 4, 8, tuple(UNITS)))
VERSIONS = {"mtl_dist": "1.0", "torch": "2.13"}
DIGESTS = {"recipe": "ab" * 32, "data": "cd" * 32}


def recipe_of_run() -> dict[str, Any]:
    return {
        "output_dir": "runs/one",
        "batch_size": 12,
        "model": {"encoder": "somewhere/encoder", "freeze": []},
        "tasks": {task: {"path": "json", "labels": None, "weight": 1.0} for task in TASKS},
        "phases": [{"name": name, "train": [name], "steps": 4} for name, *_ in PHASES],
        "optimizer": {"lr": 0.001},
        "evaluation": {"split": "validation"},
    }


def setup_of_run() -> dict[str, Any]:
    phases = [
        {
            "name": name,
            "start": start,
            "stop": stop,
            "units": list(units),
            "parameters": sum(UNITS[unit] for unit in units),
            "until": None,
            "rates": {unit: [0.005, 0.001] if unit.startswith("heads") else [0.001, 0.0] for unit in units},
            "draws": dict.fromkeys(TASKS, 24),
        }
        for name, start, stop, units in PHASES
    ]
    start = {"step": 0, "time": "2026-01-02T03:04:05+00:00", "engine": "single", "world_size": 1, "micro_steps": 1}
    return {
        "model_type": "bert",
        "tasks": {
            task: {"labels": LABELS[task], "rows": {"train": 48, "validation": 12, "test": 16}} for task in TASKS
        },
        "units": dict(UNITS),
        "phases": phases,
        "digests": dict(DIGESTS),
        "starts": [{**start, "mixed_precision": "no", "device": "cpu", "python": "3.11", "versions": dict(VERSIONS)}],
    }


def lines_of_run() -> list[dict[str, Any]]:
    """Returns a line for each step, one for each phase end; all numbers other than counts are floats."""
    lines: list[dict[str, Any]] = []
    for name, start, stop, units in PHASES:
        for step in range(start + 1, stop + 1):
            losses = {"topic": 1.5 - step / 10, "mood": 0.5 + 1 / step}
            line: dict[str, Any] = {"step": step, "phase": name, "train/loss": sum(losses.values())}
            line |= {f"train/{task}/loss": loss for task, loss in losses.items()}
            line |= {f"optim/lr/{unit}": (5.0 if unit[0] == "h" else 1.0) * (9 - step) / 1e4 for unit in units}
            line |= {"optim/grad_norm": 1.25, "optim/nonfinite_steps": 0, "plan/digest": f"{step:032x}"}
            line |= {"plan/tokens": 100 + step, "perf/tokens_per_second": 1000.0 + step, "perf/padding": 1.0625}
            lines.append(line)
        measured: dict[str, Any] = {"step": stop, "phase": name if stop == 4 else "end"}
        for split in ("eval", "test") if stop == 8 else ("eval",):
            right = stop // 4 + 1
            confusions = {"topic": [[0, 0, right], [0, 2, 1], [1, 1, 4], [2, 0, 3]], "mood": [[0, 0, right], [1, 0, 2]]}
            for task in TASKS:
                figures = {"loss": 2.0 / stop, "accuracy": right / 4, "macro_f1": right / 8}
                measured |= {f"{split}/{task}/{name}": value for name, value in figures.items()}
                measured[f"{split}/{task}/confusion"] = confusions[task]
        lines.append(measured)
    return lines


def summary_of_run() -> dict[str, Any]:
    end = lines_of_run()[-1]
    phases = [
        {"name": name, "steps": stop - start, "seconds": 1.5 * (stop - start), "draws": dict.fromkeys(TASKS, 24)}
        for name, start, stop, _ in PHASES
    ]
    return {
        **{key: value for key, value in end.items() if key.startswith("test/") and not key.endswith("confusion")},
        "steps": 8,
        "phases": phases,
        "nonfinite_steps": 0,
        "world_size": 1,
        "engine": "single",
        "mixed_precision": "no",
        "params_sha256": "ef" * 32,
        "state_sha256": "01" * 32,
        "digests": dict(DIGESTS),
        "versions": dict(VERSIONS),
    }


_DEFAULT: dict[str, Any] = {}


def write_run(
    folder: Path,
    *,
    recipe: dict[str, Any] | None = None,
    lines: list[dict[str, Any]] | None = None,
    setup: dict[str, Any] | None = _DEFAULT,
    summary: dict[str, Any] | None = _DEFAULT,
) -> Path:
    """Writes a run folder with the files of a finished run, unless others are given.

    None for `setup` or `summary` leaves that file out.
    """
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe or recipe_of_run(), indent=1), encoding="utf-8")
    written = lines_of_run() if lines is None else lines
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written), encoding="utf-8")
    for name, value, default in (("setup", setup, setup_of_run()), ("summary", summary, summary_of_run())):
        content = copy.deepcopy(default) if value is _DEFAULT else value
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def two_runs(folder: Path) -> list[Path]:
    """Writes two finished runs of the same name that differ in two keys of the recipe and in two figures."""
    other, summary = recipe_of_run(), summary_of_run()
    other["optimizer"]["lr"], other["model"]["freeze"] = 0.01, ["embeddings"]
    other["output_dir"] = "runs/two"
    lines = lines_of_run()
    lines[-1] |= {"test/mood/accuracy": 0.875, "test/mood/loss": 0.125}
    return [
        write_run(folder / "a" / "run"),
        write_run(folder / "b" / "run", recipe=other, lines=lines, summary=summary),
    ]
