"""Whole runs of a tiny recipe in the test's own process, judged by the files that a user sees."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.format import folder_name, read_state
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.training import finish, trainer
from mtl_dist.training.callbacks import evaluator
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.checkpoints import steps_in
from tests.utils.in_process import metrics_of, run_here, setup_here, summary_of
from tests.utils.kills import Killed, kill_before_saving, kill_before_step
from tests.utils.tiny import TOPICS, tiny_recipe, tiny_recipe_file

TASKS = ("topic", "mood")
# Dropout is on, because a repeated run must repeat its dropout masks too.
COMMON = ("model.dropout=0.2", "model.encoder_dropout=0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with encoder, data and recipe, and all run folders."""
    return tiny_recipe_file(tmp_path_factory.mktemp("execution")).parent


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """Run folder of a finished run of the recipe."""
    recipe = recipe_of(folder, "finished")
    run_here(recipe)
    return Path(recipe.output_dir)


def recipe_of(folder: Path, name: str | Path, *overrides: str) -> Recipe:
    """Returns the recipe in `folder` with dropout, for the run folder `name` (in `folder` if it is relative)."""
    arguments = ["--config", str(folder / "recipe.yaml"), f"output_dir={folder / name}", *COMMON, *overrides]
    return parse(arguments).recipe


def digest_of(parameters: Mapping[str, torch.Tensor]) -> str:
    """Returns `params_sha256` by its definition: the hash of sorted names, shapes and bytes."""
    each = [
        sha256(f"{name}{tuple(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, value in sorted(parameters.items())
    ]
    return sha256("".join(each).encode()).hexdigest()


def require_same_run(one: Path, other: Path) -> None:
    """Requires two runs to have the same metrics, except for timings, and the same weights."""
    assert metrics_of(one) == metrics_of(other)
    assert summary_of(one)["params_sha256"] == summary_of(other)["params_sha256"]
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


def test_the_summary_has_results_phases_and_digests(finished: Path) -> None:
    summary = summary_of(finished)
    parameters = dict(MultitaskTransformer.from_pretrained(finished / "model").named_parameters())
    in_use = setup_here(recipe_of(finished.parent, "in use")).engine.model.named_parameters()
    sizes = {name: value.numel() for name, value in in_use}
    assert sizes.keys() == parameters.keys()
    heads = sum(size for name, size in sizes.items() if name.startswith("heads."))
    upper = sum(size for name, size in sizes.items() if ".layer.2." in name or ".layer.3." in name)
    phases = [("heads", 4, heads), ("upper", 4, heads + upper), ("all", 4, sum(sizes.values()))]
    assert [(phase["name"], phase["steps"], phase["trainable_parameters"]) for phase in summary["phases"]] == phases
    assert all(phase["seconds"] > 0 for phase in summary["phases"])
    assert summary["steps"] == 12
    assert summary["nonfinite_steps"] == 0
    assert (summary["world_size"], summary["engine"], summary["mixed_precision"]) == (1, "single", "no")
    assert summary["params_sha256"] == digest_of(parameters)
    assert summary["params_sha256_by_rank"] == [summary["params_sha256"]]
    for name in ("loss", "accuracy", "macro_f1"):
        assert all(0 < summary[f"test/{task}/{name}"] < 10 for task in TASKS)
    assert set(summary["digests"]) == {"recipe", "data", "plan", "schedule"}
    assert summary["versions"]["torch"] == torch.__version__


def test_metrics_have_a_line_for_every_step_every_boundary_and_the_end(finished: Path) -> None:
    lines = metrics_of(finished)
    phases = ["heads"] * 5 + ["upper"] * 5 + ["all"] * 4 + ["end"]
    steps = [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    assert [(line["step"], line["phase"]) for line in lines] == list(zip(steps, phases, strict=True))
    figures = {f"{task}/{name}" for task in TASKS for name in ("loss", "accuracy", "macro_f1")}
    names = figures | {f"{task}/confusion" for task in TASKS}
    boundary, end = set(lines[4]), set(lines[-1])
    assert boundary == {"step", "phase"} | {f"eval/{name}" for name in names}
    assert end == boundary | {f"test/{name}" for name in names}
    heads = {"optim/lr/heads.topic", "optim/lr/heads.mood"}
    of_tasks = {f"train/{task}/{name}" for task in TASKS for name in ("loss", "draws", "passes")}
    others = {"step", "phase", "train/loss", "optim/grad_norm", "optim/nonfinite_steps", "plan/digest", "plan/tokens"}
    phase = {"phase/index", "phase/trainable_parameters"}
    norms = {key.replace("lr", "grad_norm") for key in heads}
    assert set(lines[0]) == heads | norms | of_tasks | others | phase
    upper = {f"optim/{figure}/blocks.{block}" for figure in ("lr", "grad_norm") for block in (2, 3)}
    assert set(lines[5]) == set(lines[0]) | upper
    assert all(line["train/loss"] == line["train/topic/loss"] + line["train/mood/loss"] for line in lines[:4])
    assert {f"test/{name}": lines[-1][f"test/{name}"] for name in figures}.items() <= summary_of(finished).items()


def test_the_model_folder_reproduces_the_test_results(folder: Path, finished: Path) -> None:
    model = MultitaskTransformer.from_pretrained(finished / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(finished / "model")
    for task in TASKS:
        rows = list(map(json.loads, (folder / f"data/{task}.test.json").read_text().splitlines()))
        right = 0
        for row in rows:
            tokens = tokenizer(row["text"], return_tensors="pt")
            with torch.no_grad():
                label = int(model(tokens["input_ids"], tokens["attention_mask"], task).argmax())
            right += label == (sorted(TOPICS).index(row["label"]) if task == "topic" else row["label"])
        assert summary_of(finished)[f"test/{task}/accuracy"] == right / len(rows)
    assert model.labels == {"topic": tuple(sorted(TOPICS)), "mood": ("0", "1", "2")}


def test_transformers_reads_the_encoder_of_the_model_folder(finished: Path) -> None:
    ours = MultitaskTransformer.from_pretrained(finished / "model").sentence_transformer.encoder.state_dict()
    theirs = AutoModel.from_pretrained(finished / "model").state_dict()
    assert ours
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_repeats_from_the_recipe_in_its_folder(folder: Path, finished: Path) -> None:
    recipe = parse(["--config", str(finished / "recipe.yaml")]).recipe
    assert recipe == recipe_of(folder, "finished")
    run_here(recipe.model_copy(update={"output_dir": str(folder / "repeated")}))
    require_same_run(folder / "repeated", finished)


def test_another_seed_gives_a_different_run(folder: Path, finished: Path) -> None:
    """Otherwise the comparisons of this file could hold for any two runs."""
    run_here(recipe_of(folder, "other seed", "seed=43"))
    other, line = metrics_of(folder / "other seed")[0], metrics_of(finished)[0]
    assert other["plan/digest"] != line["plan/digest"]
    assert summary_of(folder / "other seed")["params_sha256"] != summary_of(finished)["params_sha256"]


def test_the_recipe_is_written_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    """The first gradient is not finite, because weights of the encoder overflow, and ends the run."""
    weights = load_file(folder / "encoder/model.safetensors")
    broken = tmp_path / "encoder"
    broken.mkdir()
    for path in (folder / "encoder").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights["embeddings.LayerNorm.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    overrides = (f"model.encoder={broken}", "optimizer.max_nonfinite_steps=1")
    recipe = recipe_of(folder, tmp_path / "run", *overrides)
    with pytest.raises(TrainingError):
        run_here(recipe)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "setup.json", "metrics.jsonl"}
    assert parse(["--config", str(tmp_path / "run" / "recipe.yaml")]).recipe == recipe
    assert metrics_of(tmp_path / "run") == []


def test_diverging_training_ends_with_one_error_line_and_no_summary(folder: Path) -> None:
    recipe = recipe_of(folder, "diverged", "optimizer.lr=1e30", "optimizer.max_nonfinite_steps=2")
    with pytest.raises(TrainingError) as error:
        run_here(recipe)
    assert len(str(error.value).splitlines()) == 1
    assert not (folder / "diverged" / "summary.json").exists()
    steps = [line for line in metrics_of(folder / "diverged") if "train/loss" in line]
    assert steps[-1]["optim/nonfinite_steps"] == 1


def test_a_run_with_everything_frozen_only_evaluates(folder: Path) -> None:
    recipe = recipe_of(folder, "frozen", "model.freeze=[all]", "checkpoint.every_steps=1")
    run_here(recipe)
    run = folder / "frozen"
    assert [line["phase"] for line in metrics_of(run)] == ["end"]
    summary = summary_of(run)
    assert (summary["steps"], summary["phases"]) == (0, [])
    assert summary["params_sha256"] == digest_of(setup_here(recipe).engine.weights())
    assert MultitaskTransformer.from_pretrained(run / "model").labels["mood"] == ("0", "1", "2")
    files = {"recipe.yaml", "setup.json", "metrics.jsonl", "summary.json", "report.html"}
    assert {path.name for path in run.iterdir()} == files | {"model"}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("[backbone]", "sentence_transformer."), ("[heads.mood]", "heads.mood.")],
)
def test_parameters_that_the_recipe_freezes_stay_unchanged(folder: Path, freeze: str, frozen: str) -> None:
    recipe = recipe_of(folder, f"frozen {freeze}", f"model.freeze={freeze}")
    before = setup_here(recipe).engine.weights()
    run_here(recipe)
    after = dict(MultitaskTransformer.from_pretrained(Path(recipe.output_dir) / "model").named_parameters())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(frozen) for name in moved)
    assert {name for name in after if name.startswith("heads.topic.")} <= moved


def test_a_frozen_encoder_has_no_dropout_in_the_whole_run(folder: Path) -> None:
    """This also holds after an evaluation at a phase end, which puts the whole model into eval mode."""
    phases = 'phases=[{name: "first", train: heads, steps: 3}, {name: "second", train: heads, steps: 3}]'
    runs = []
    for dropout in (0.0, 0.5):
        recipe = recipe_of(folder, f"dropout {dropout}", phases, f"model.encoder_dropout={dropout}")
        run_here(recipe)
        runs.append(Path(recipe.output_dir))
    require_same_run(*runs)


def test_a_second_run_moves_the_first_aside(folder: Path) -> None:
    recipe = recipe_of(folder, "twice")
    run_here(recipe)
    names = {path.name for path in Path(recipe.output_dir).iterdir()}
    run_here(recipe)
    assert {path.name for path in Path(recipe.output_dir).iterdir()} == names | {"previous"}
    require_same_run(Path(recipe.output_dir) / "previous" / "1", Path(recipe.output_dir))


def test_the_evaluation_split_is_used_at_phase_ends_and_test_at_the_end(folder: Path) -> None:
    run_here(recipe_of(folder, "validated", "evaluation.split=validation", "tracking.log_every_steps=3"))
    lines = metrics_of(folder / "validated")
    # Every third step and the last step of each phase are logged.
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == [3, 4, 6, 8, 9, 12]
    boundaries = [line for line in lines if "eval/topic/loss" in line]
    assert [line["step"] for line in boundaries] == [4, 8, 12]
    assert ["test/topic/loss" in line for line in boundaries] == [False, False, True]
    assert boundaries[-1]["eval/topic/loss"] != boundaries[-1]["test/topic/loss"]


def test_nothing_in_a_run_folder_is_a_pickle(folder: Path) -> None:
    run_here(recipe_of(folder, "files", "checkpoint.every_steps=5"))
    endings = {path.suffix for path in (folder / "files").rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".jsonl", ".yaml", ".html", ".md"}


def kill_before_the_summary(patch: pytest.MonkeyPatch) -> None:
    def raise_killed(folder: Path, summary: dict[str, Any]) -> None:
        raise Killed

    patch.setattr(finish, "write_summary", raise_killed)


KILLS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int | None]] = {
    "before the first checkpoint": (kill_before_step(2), None),
    "in the first phase": (kill_before_step(3), 3),
    "at a boundary": (kill_before_step(4), 4),
    "in a later phase": (kill_before_step(7), 6),
    "between evaluation and saving": (kill_before_saving(8), 6),
    "before the summary": (kill_before_the_summary, 12),
}


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """Uninterrupted run with one task per batch, so that optimizer state is missing for heads or differs in age."""
    run_here(recipe_of(folder, "uninterrupted", "sampling.batches=one_task"))
    return folder / "uninterrupted"


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_resumes_with_the_same_bits(
    folder: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kill: str
) -> None:
    arrange, saved = KILLS[kill]
    recipe = recipe_of(folder, f"killed {kill}", "sampling.batches=one_task", "checkpoint.every_steps=3")
    with monkeypatch.context() as patch:
        arrange(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    assert not (Path(recipe.output_dir) / "summary.json").exists()
    capsys.readouterr()
    run_here(recipe)
    lines = capsys.readouterr().out.splitlines()
    expected = [] if saved is None else [f"resuming from step-{saved:010d}, step {saved} of 12"]
    assert [line for line in lines if line.startswith("resuming")] == expected
    require_same_run(Path(recipe.output_dir), uninterrupted)
    summary = summary_of(Path(recipe.output_dir))
    assert summary["steps"] == 12
    assert all(phase["seconds"] > 0 for phase in summary["phases"])  # including the time before the kill


def test_a_checkpoint_has_the_metrics_of_its_step(folder: Path) -> None:
    """Evaluations take place at phase ends, for `until`, and at the end of the run if the best checkpoint is kept."""
    until = "phases.1.until={metric: loss, every_steps: 2, patience: 9}"
    settings = ("checkpoint.every_steps=1", "checkpoint.keep=99", "evaluation.split=validation", until)
    for name, best in (("figures", "null"), ("best", "loss")):
        run_here(recipe_of(folder, name, *settings, f"checkpoint.keep_best={best}"))
    lines = {line["step"]: line for line in metrics_of(folder / "best") if "eval/topic/loss" in line}
    for name, measured in (("figures", {4, 6, 8}), ("best", {4, 6, 8, 12})):
        for step in range(1, 13):
            figures = read_state(folder / name / "checkpoints" / folder_name(step), step)["figures"]
            assert set(figures) == (set(TASKS) if step in measured else set())
            for task, of_task in figures.items():
                assert of_task == {key: lines[step][f"eval/{task}/{key}"] for key in ("loss", "accuracy", "macro_f1")}
    require_same_run(folder / "best", folder / "figures")


def test_the_best_checkpoint_is_kept_to_the_end_of_the_run(folder: Path) -> None:
    run_here(recipe_of(folder, "kept", "checkpoint.every_steps=2", "checkpoint.keep=1", "checkpoint.keep_best=loss"))
    boundaries = [line for line in metrics_of(folder / "kept") if "eval/topic/loss" in line]
    best = {min(reversed(boundaries), key=lambda line: line[f"eval/{task}/loss"])["step"] for task in TASKS}
    assert steps_in(folder / "kept" / "checkpoints") == sorted(best | {12})


def test_a_run_does_not_resume_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, "checkpoint.every_steps=3")
    with monkeypatch.context() as patch:
        kill_before_step(4)(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    file = tmp_path / "data" / "topic.train.json"
    file.write_text(file.read_text().replace("cat1", "cat2"))
    with pytest.raises(UserError, match="belongs to a run that differs in data_sha256; change back"):
        run_here(recipe)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_the_seconds_of_a_phase_exclude_saving_and_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each save and evaluation puts a simulated clock forward by an hour."""
    clock = [0.0]
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def takes_time(action: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            clock[0] += seconds
            return action(*arguments)

        return slow

    monkeypatch.setattr(checkpoint, "save", takes_time(checkpoint.save, 3600))
    monkeypatch.setattr(evaluator, "evaluate", takes_time(evaluator.evaluate, 3600))
    step = takes_time(LayerwiseLearningRateTrainer.training_step, 1)
    monkeypatch.setattr(LayerwiseLearningRateTrainer, "training_step", step)
    until = "phases.1.until={metric: loss, every_steps: 1, patience: 9}"
    run_here(recipe_of(folder, "timed", "checkpoint.every_steps=1", "evaluation.split=validation", until))
    assert [phase["seconds"] for phase in summary_of(folder / "timed")["phases"]] == [4, 4, 4]
