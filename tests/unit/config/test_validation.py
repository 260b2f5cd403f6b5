import math
from typing import Any, Literal

import pytest

from mtl_dist.config.data_recipe import SplitConfig
from mtl_dist.config.recipe import PhaseConfig, Recipe, TaskConfig, UntilConfig
from mtl_dist.config.validation import check_recipe
from tests.utils.recipes import message

FILES = {"train": ["train.jsonl"], "test": ["test.jsonl"]}


def valid_recipe() -> Recipe:
    return Recipe(tasks={"a": TaskConfig(path="json", data_files=dict(FILES)), "b": TaskConfig(path="hub/set")})


def changed(key: str, value: object) -> Recipe:
    """The valid recipe with one dotted key set."""
    recipe = valid_recipe()
    *sections, name = key.split(".")
    node: Any = recipe
    for section in sections:
        match node:
            case dict():
                node = node[section]
            case list():
                node = node[int(section)]
            case _:
                node = getattr(node, section)
    setattr(node, name, value)
    return recipe


def test_valid_recipe() -> None:
    check_recipe(valid_recipe())


def test_gradients_are_compared_only_where_a_batch_has_several_tasks() -> None:
    recipe = changed("tracking.gradient_cosine_every_steps", 10)
    check_recipe(recipe)
    recipe.sampling.batches = "one_task"
    assert message(recipe).startswith("tracking.gradient_cosine_every_steps: compares tasks in one batch; ")
    recipe.sampling.batches = "mixed"
    recipe.tasks.popitem()
    assert message(recipe).startswith("tracking.gradient_cosine_every_steps: compares the gradients of two tasks")


POSITIVE = [0.0, -1.0, math.nan, math.inf]
NOT_NEGATIVE = [-1, math.nan, math.inf]
COUNT = [0, -1]
BELOW_1 = [-0.1, 1.0, math.nan]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", [-1, 2**63]),
        ("batch_size", COUNT),
        ("micro_batch_size", COUNT),
        ("model.dropout", BELOW_1),
        ("model.encoder_dropout", BELOW_1),
        ("data.max_length", [2]),
        ("sampling.length_window", COUNT),
        ("optimizer.lr", POSITIVE),
        ("optimizer.head_lr_multiplier", POSITIVE),
        ("optimizer.block_lr_decay", [0.0, 1.1, math.nan]),
        ("optimizer.weight_decay", NOT_NEGATIVE),
        ("optimizer.beta1", BELOW_1),
        ("optimizer.beta2", BELOW_1),
        ("optimizer.eps", POSITIVE),
        ("optimizer.max_grad_norm", POSITIVE),
        ("optimizer.warmup_steps", [-1]),
        ("optimizer.unfreeze_warmup_steps", [-1]),
        ("optimizer.max_nonfinite_steps", COUNT),
        ("evaluation.batch_size", COUNT),
        ("checkpoint.every_steps", COUNT),
        ("tracking.log_every_steps", COUNT),
        ("tracking.gradient_cosine_every_steps", COUNT),
        ("tracking.misclassified", [-1]),
        ("tasks.a.weight", POSITIVE),
        ("tasks.a.max_rows", COUNT),
        ("phases.0.epochs", POSITIVE),
    ],
)
def test_number_out_of_range(key: str, values: list[float]) -> None:
    for value in values:
        assert message(changed(key, value)).startswith(f"{key.replace('.0.', '[0].')}: {value} is not ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("micro_batch_size", 1),
        ("model.dropout", 0.0),
        ("data.max_length", 3),
        ("sampling.length_window", 1),
        ("optimizer.block_lr_decay", 1.0),
        ("optimizer.weight_decay", 0.0),
        ("optimizer.beta1", 0.0),
        ("optimizer.max_grad_norm", None),
        ("optimizer.warmup_steps", 0),
        ("checkpoint.every_steps", 1),
        ("tasks.a.max_rows", 1),
        ("tasks.a.text", ["premise", "hypothesis"]),
        ("tasks.a.labels", ["no", "yes"]),
        ("batch_size", 2),
        ("phases.0.epochs", 0.01),
        ("model.freeze", ["all"]),
    ],
)
def test_value_at_the_edge(key: str, value: object) -> None:
    check_recipe(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("output_dir", "", "output_dir: empty"),
        ("tasks", {}, "tasks: none"),
        ("tasks", {"a.b": TaskConfig(path="x")}, "tasks: 'a.b' is no name"),
        ("tasks", {"": TaskConfig(path="x")}, "tasks: '' is no name"),
        ("tasks", {"a\n": TaskConfig(path="x")}, r"tasks: 'a\n' is no name"),
        ("tasks", {"all": TaskConfig.model_construct()}, "tasks.all.path: missing"),
        ("tasks.a.path", "", "tasks.a.path: missing"),
        ("tasks.a.data_files", {}, "tasks.a.data_files: missing; path json reads files"),
        ("tasks.a.data_files", {"train": ["x"]}, "tasks.a.data_files: no file for the split test; name one, or hold "),
        ("tasks.a.data_files", {"test": ["x"]}, "tasks.a.data_files: no file for the split train"),
        ("tasks.a.text", [], "tasks.a.text: 0 columns"),
        ("tasks.a.text", ["x", "y", "z"], "tasks.a.text: 3 columns"),
        ("tasks.a.labels", ["x"], "tasks.a.labels: 1 given"),
        ("tasks.a.labels", ["x", "y", "x"], "tasks.a.labels: 'x' stands twice"),
        ("batch_size", 1, "batch_size: 1 is smaller than its 2 tasks"),
        ("tracking.also", ["tensorbord"], "tracking.also: no tracker 'tensorbord'; did you mean tensorboard?"),
        ("tracking.also", ["wandb"], "tracking.also: wandb has a key of its own; set tracking.wandb: true"),
        ("tracking.also", ["trackio", "trackio"], "tracking.also: 'trackio' stands twice"),
        ("sampling.weights", {"a": 1.0}, "sampling.weights: strategy uniform has none"),
        ("sampling.strategy", "weighted", "sampling.weights: no weight for task a"),
        ("evaluation.split", "validation", "tasks.a.data_files: no file for the split validation"),
        ("model.freeze", ["heads.c"], "model.freeze: no task 'c'"),
        ("phases", [], "phases: none"),
        ("phases.0.name", "all", "phases: 'all' stands twice"),
        ("phases.0.name", "", "phases[0].name: missing"),
        ("phases.0.epochs", None, "phases[0]: give either epochs or steps"),
        ("phases.0.steps", 5, "phases[0]: give either epochs or steps"),
        ("phases.0.train", [], "phases[0].train: empty"),
        ("phases.0.train", ["all", "heads"], "phases[0].train: all and heads both name heads.a"),
    ],
)
def test_violated_rule(key: str, value: object, expected: str) -> None:
    assert message(changed(key, value)).startswith(expected)


@pytest.mark.parametrize("steps", COUNT)
def test_phase_without_steps(steps: int) -> None:
    recipe = changed("phases", [PhaseConfig.model_construct(name="only", train=["all"], steps=steps)])
    assert message(recipe).startswith(f"phases[0].steps: {steps} is not at least 1")


@pytest.mark.parametrize("path", ["csv", "json", "parquet", "arrow", "text"])
def test_file_reader_needs_files(path: str) -> None:
    recipe = changed("tasks", {"a": TaskConfig(path=path)})
    assert message(recipe) == f"tasks.a.data_files: missing; path {path} reads files"


def test_one_task_batches_may_be_smaller_than_the_number_of_tasks() -> None:
    recipe = changed("sampling.batches", "one_task")
    recipe.batch_size = 1
    check_recipe(recipe)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": 1.0}, "sampling.weights: no weight for task b"),
        ({"a": 1.0, "b": 0.0}, "sampling.weights.b: 0.0 is not "),
        ({"a": 1.0, "b": math.nan}, "sampling.weights.b: nan is not "),
        ({"alpha": 1.0, "b": 1.0}, "sampling.weights: no task 'alpha'; choose from a, b"),
    ],
)
def test_sampling_weights(weights: dict[str, float], expected: str) -> None:
    recipe = changed("sampling.strategy", "weighted")
    recipe.sampling.weights = {"a": 0.1, "b": 3.0}
    check_recipe(recipe)
    recipe.sampling.weights = weights
    assert message(recipe).startswith(expected)


def with_until(until: UntilConfig, split: Literal["test", "validation"] | None = "validation") -> Recipe:
    recipe = changed("phases.1.until", until)
    recipe.tasks["a"].data_files["validation"] = ["validation.jsonl"]
    recipe.evaluation.split = split
    return recipe


@pytest.mark.parametrize("metric", ["loss", "accuracy", "macro_f1", "a/loss", "b/macro_f1"])
def test_metrics_that_may_end_a_phase(metric: str) -> None:
    check_recipe(with_until(UntilConfig(metric=metric, patience=1, every_steps=1)))


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ({}, "metric: missing"),
        ({"metric": ""}, "metric: missing"),
        ({"metric": "accurcy"}, "metric: no metric 'accurcy'; did you mean accuracy?"),
        ({"metric": "a"}, "metric: no metric 'a'; choose from loss, accuracy, macro_f1"),
        ({"metric": "a/"}, "metric: no metric ''; choose from loss, accuracy, macro_f1"),
        ({"metric": "a/f1"}, "metric: no metric 'f1'; choose from loss, accuracy, macro_f1"),
        ({"metric": "c/loss"}, "metric: no task 'c'; choose from a, b"),
        ({"metric": "/loss"}, "metric: no task ''; choose from a, b"),
        ({"metric": "eval/a/loss"}, "metric: no task 'eval/a'; choose from a, b"),
        ({"metric": "loss", "patience": 0}, "patience: 0 is not at least 1"),
        ({"metric": "loss", "every_steps": 0}, "every_steps: 0 is not at least 1"),
        ({"metric": "loss", "min_delta": -0.1}, "min_delta: -0.1 is not a finite number, 0 or above"),
        ({"metric": "loss", "min_delta": math.nan}, "min_delta: nan is not a finite number, 0 or above"),
    ],
)
def test_invalid_until(until: dict[str, Any], expected: str) -> None:
    assert message(with_until(UntilConfig.model_construct(**until))) == f"phases[1].until.{expected}"


def test_a_run_is_not_steered_by_the_split_that_it_reports_on() -> None:
    expected = "would steer the run by the split that it reports on; set evaluation.split: validation"
    assert message(with_until(UntilConfig(metric="loss"), split="test")) == f"phases[1].until: {expected}"


STEERED = (
    "phases[1].until: would steer the run by the split that it reports on; give {} validation data,"
    " e.g. split: {{validation: 0.1}}"
)


def test_until_needs_validation_data_of_a_task_that_it_measures() -> None:
    recipe = with_until(UntilConfig(metric="loss"), split=None)
    check_recipe(recipe)
    recipe.phases[1].until = UntilConfig(metric="a/loss")
    check_recipe(recipe)
    del recipe.tasks["a"].data_files["validation"]
    assert message(recipe) == STEERED.format("a")
    recipe.phases[1].until = UntilConfig(metric="b/loss")
    check_recipe(recipe)  # a data set on the hub may have a validation split
    recipe.phases[1].until = UntilConfig(metric="loss")
    check_recipe(recipe)
    recipe.tasks["b"] = recipe.tasks["a"]
    assert message(recipe) == STEERED.format("a or b")
    recipe.tasks["b"] = recipe.tasks["a"].model_copy(update={"split": SplitConfig(validation=0.1)})
    check_recipe(recipe)
