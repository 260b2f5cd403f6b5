"""Runs with early stopping in the test's own process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import PhaseConfig, Recipe
from mtl_dist.schedule.early_stopping import value_of
from tests.unit.schedule.test_early_stopping import ends_after
from tests.utils.in_process import metrics_of, run_here
from tests.utils.kills import Killed, kill_before_saving, kill_before_step
from tests.utils.tiny import tiny_recipe_file

PHASES = (
    "{name: heads, train: heads, steps: 7, until: {metric: topic/loss, patience: 2, every_steps: 1}}",
    '{name: upper, train: [heads, "blocks[-1]"], steps: 9, until: {metric: mood/loss, patience: 1, every_steps: 2}}',
    "{name: whole, train: all, steps: 3}",
    "{name: last, train: all, steps: 9, until: {metric: accuracy, patience: 1, every_steps: 1, min_delta: 1}}",
)
FIXED = ("phases.0.until=null", "phases.1.until=null", "phases.3.until=null")
# Dropout, because a resumed run must repeat it; learning rates so high that metrics go up and down, and a seed with
# which every phase with `until` ends early.
COMMON = (
    *("seed=5", "evaluation.split=validation", "optimizer.lr=1e-2", "optimizer.unfreeze_warmup_steps=2"),
    *("model.dropout=0.2", "model.encoder_dropout=0.1", "sampling.length_window=64"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe_file(tmp_path_factory.mktemp("until"), layers=2).parent


def recipe_of(folder: Path, name: str, *overrides: str) -> Recipe:
    phases = f"phases=[{', '.join(PHASES)}]"
    arguments = ["--config", str(folder / "recipe.yaml"), f"output_dir={folder / name}", *COMMON, phases, *overrides]
    return parse(arguments).recipe


@pytest.fixture(scope="module")
def whole(folder: Path) -> Recipe:
    """Recipe of a finished run."""
    recipe = recipe_of(folder, "whole run")
    run_here(recipe)
    return recipe


@pytest.fixture(scope="module")
def fixed(folder: Path) -> Path:
    """Run folder of a run without `until`."""
    run_here(recipe_of(folder, "fixed run", *FIXED))
    return folder / "fixed run"


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def lines_of(folder: Path, phase: str, key: str) -> list[dict[str, Any]]:
    """Returns the metrics lines of a phase that have `key`."""
    return [line for line in metrics_of(folder) if line["phase"] == phase and key in line]


def measured(folder: Path, phase: PhaseConfig) -> list[float]:
    """Returns the values of the metric in the phase's `until`, computed from the metrics lines of the phase."""
    assert phase.until is not None
    figures = [
        {
            task: {name: line[f"eval/{task}/{name}"] for name in ("loss", "accuracy", "macro_f1")}
            for task in ("topic", "mood")
        }
        for line in lines_of(folder, phase.name, "eval/topic/loss")
    ]
    return [value_of(phase.until.metric, one) for one in figures]


def ends(recipe: Recipe) -> dict[str, int]:
    """Returns for each phase the steps done at its end, as its own metrics and the rule of early stopping require."""
    done, stops = 0, {}
    for phase in recipe.phases:
        assert phase.steps is not None
        length = phase.steps
        if phase.until is not None:
            number = ends_after(measured(Path(recipe.output_dir), phase), phase.until)
            assert number is not None
            length = number * phase.until.every_steps
            assert length < phase.steps
        done += length
        stops[phase.name] = done
    return stops


def test_phases_end_at_the_step_that_their_metric_requires(whole: Recipe) -> None:
    stops = ends(whole)
    lines = metrics_of(Path(whole.output_dir))
    steps = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, stops["last"] + 1))
    assert {phase: max(line["step"] for line in steps if line["phase"] == phase) for phase in stops} == stops
    # The metric improved at least once; otherwise even a wrong rule would end the phase at its second evaluation.
    upper = measured(Path(whole.output_dir), whole.phases[1])
    assert min(upper) < upper[0]
    summary = summary_of(Path(whole.output_dir))
    lengths = [stop - start for start, stop in zip([0, *stops.values()], stops.values(), strict=False)]
    assert [(phase["name"], phase["steps"]) for phase in summary["phases"]] == list(zip(stops, lengths, strict=True))
    assert summary["steps"] == stops["last"]


def test_each_evaluation_for_until_writes_one_metrics_line(whole: Recipe) -> None:
    stops = ends(whole)
    evaluations = [
        (line["phase"], line["step"]) for line in metrics_of(Path(whole.output_dir)) if "eval/mood/loss" in line
    ]
    assert evaluations == [
        *(("heads", step) for step in range(1, stops["heads"] + 1)),
        *(("upper", step) for step in range(stops["heads"] + 2, stops["upper"] + 1, 2)),
        ("whole", stops["whole"]),
        *(("last", step) for step in range(stops["whole"] + 1, stops["last"] + 1)),
        ("end", stops["last"]),
    ]


def test_each_evaluation_has_a_training_line_of_its_step(folder: Path, whole: Recipe) -> None:
    """This also holds if few steps are logged: the last step of every phase always is, however the phase ended."""
    run_here(recipe_of(folder, "sparse", "tracking.log_every_steps=100"))
    every, sparse = (
        [line for line in metrics_of(run) if line["phase"] != "end"]
        for run in (Path(whole.output_dir), folder / "sparse")
    )
    evaluated = {line["step"] for line in every if "eval/topic/loss" in line}
    assert sparse == [line for line in every if line["step"] in evaluated]


def test_samples_depend_on_the_step_and_learning_rates_on_the_planned_phases(whole: Recipe, fixed: Path) -> None:
    run = Path(whole.output_dir)
    digests = [line["plan/digest"] for line in metrics_of(fixed) if "plan/digest" in line]
    ours = [line["plan/digest"] for line in metrics_of(run) if "plan/digest" in line]
    assert ours == digests[: len(ours)]
    for phase in ("heads", "upper", "whole", "last"):
        planned, actual = lines_of(fixed, phase, "train/loss"), lines_of(run, phase, "train/loss")
        assert 0 < len(actual) <= len(planned)
        for line, other in zip(actual, planned, strict=False):
            rates, others = ({k: v for k, v in one.items() if k.startswith("optim/lr/")} for one in (line, other))
            assert rates == others
    # The runs are equal up to the first early end of a phase.
    stop = ends(whole)["heads"]
    assert [line["train/loss"] for line in lines_of(run, "heads", "train/loss")] == [
        line["train/loss"] for line in lines_of(fixed, "heads", "train/loss")
    ][:stop]


def test_the_console_prints_why_a_phase_ended(folder: Path, whole: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run_here(recipe_of(folder, "console"))
    lines = capsys.readouterr().out.splitlines()
    stops, figures = ends(whole), measured(Path(whole.output_dir), whole.phases[0])
    best = min(figures)
    early = [line for line in lines if " ends early, " in line]
    assert [line.split(":")[0] for line in early] == [
        f"phase {phase} ends early, after step {stops[phase]}" for phase in ("heads", "upper", "last")
    ]
    reason = f"topic/loss stopped improving; its best was {best:.4f} after step {1 + figures.index(best)}"
    assert early[0].endswith(f": {reason}")
    total = stops["last"]
    assert [line.split()[1] for line in lines if line.startswith("step ")][-1] == f"{total}/{total}"
    assert sum(line.startswith("whole run  28 at most  ") for line in lines) == 1


def saved_at(line: str) -> int:
    """Returns the step in a line such as `resuming from step-..., step 3 of 28`."""
    return int(line.split(", step ")[1].split()[0])


def total_after(recipe: Recipe, stops: dict[str, int], step: int) -> int:
    """Returns the total steps as known after `step`: finished phases by their steps, the others in full length."""
    over = max((stop for stop in stops.values() if stop <= step), default=0)
    return over + sum(phase.steps or 0 for phase in recipe.phases if stops[phase.name] > step)


STOPS: dict[str, tuple[int, Callable[[int], Callable[[pytest.MonkeyPatch], None]]]] = {
    "before a step, saved at each": (1, kill_before_step),
    "before a step, saved at every third": (3, kill_before_step),
    "between evaluation and saving": (1, kill_before_saving),
}


@pytest.mark.parametrize("kind", STOPS)
def test_a_run_killed_at_any_step_resumes_with_the_same_bits(
    folder: Path, whole: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Each step has a run that is killed at that step and then resumed."""
    every, killed = STOPS[kind]
    reference = Path(whole.output_dir)
    stops = ends(whole)
    for step in range(1, stops["last"]):
        recipe = recipe_of(folder, f"{kind} {step}", f"checkpoint.every_steps={every}")
        with monkeypatch.context() as patch:
            killed(step)(patch)
            with pytest.raises(Killed):
                run_here(recipe)
        capsys.readouterr()
        run_here(recipe)
        resumed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming")]
        assert all(line.endswith(f" of {total_after(whole, stops, saved_at(line))}") for line in resumed)
        run = Path(recipe.output_dir)
        assert metrics_of(run) == metrics_of(reference), step
        ours, theirs = summary_of(run), summary_of(reference)
        assert ours["params_sha256"] == theirs["params_sha256"], step
        assert [phase["steps"] for phase in ours["phases"]] == [phase["steps"] for phase in theirs["phases"]]
