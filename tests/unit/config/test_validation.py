import math
from typing import Any, Literal

import pytest

from mtl_dist.config.data_recipe import ReadConfig, SourceConfig, SplitConfig
from mtl_dist.config.recipe import PhaseConfig, Recipe, TaskConfig, UntilConfig
from mtl_dist.config.validation import check_recipe
from mtl_dist.errors import UserError

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


def message(recipe: Recipe) -> str:
    with pytest.raises(UserError) as error:
        check_recipe(recipe)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


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


def shared(**changes: Any) -> Recipe:
    """Tasks a and b on the rows of the source t, which holds out rows, and c on a data set of its own."""
    source = {"path": "csv", "data_files": {"train": ["t.csv"]}, "split": SplitConfig(validation=0.1, test=0.2)}
    return Recipe(
        sources={"t": SourceConfig(**{**source, **changes})},
        tasks={"a": TaskConfig(source="t", label="x"), "b": TaskConfig(source="t"), "c": TaskConfig(path="hub/c")},
    )


def test_tasks_with_a_source() -> None:
    check_recipe(shared())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "tasks.a.path: missing; or name a source: t"),
        (
            {"data_files": {"train": ["a.TSV.gz", "b.csv"]}},
            "tasks.a.path: missing; its files end like those of path: csv",
        ),
        ({"data_files": {"train": ["a.csv"], "test": ["b.json"]}}, "tasks.a.path: missing; or name a source: t"),
        ({"data_files": {"train": ["a"]}}, "tasks.a.path: missing; or name a source: t"),
        ({"path": "t.csv"}, "tasks.a.path: t.csv is a file; write path: csv, data_files: t.csv"),
        ({"path": "x/t.jsonl.gz"}, "tasks.a.path: x/t.jsonl.gz is a file; write path: json, data_files: x/t.jsonl.gz"),
        ({"source": "T"}, "tasks.a.source: no source 'T'; choose from t"),
        ({"source": "tt"}, "tasks.a.source: no source 'tt'; did you mean t?"),
        ({"source": ""}, "tasks.a.source: no source ''; choose from t"),
        *(
            (
                {"source": "t", field: value},
                f"tasks.a.{field}: the rows come from the source t; set sources.t.{field}, or tasks.a.source: null",
            )
            for field, value in {
                "path": "csv",
                "name": "x",
                "data_files": {"test": ["x.csv"]},
                "read": ReadConfig(delimiter=";"),
                "split": SplitConfig(test=0.1),
                "max_rows": 5,
            }.items()
        ),
    ],
)
def test_where_a_tasks_rows_are(fields: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.tasks["a"] = TaskConfig(**fields)
    assert message(recipe) == expected


def test_a_source_that_no_task_uses_is_no_mistake() -> None:
    """An override can give a task other rows, and cannot take a source away."""
    recipe = shared()
    recipe.tasks = {"c": recipe.tasks["c"]}
    check_recipe(recipe)


TEST_HINT = "; name one, or hold out rows, e.g. split: {test: 0.2}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_files": {}}, "data_files: missing; path csv reads files"),
        ({"path": "t.csv", "data_files": {}}, "path: t.csv is a file; write path: csv, data_files: t.csv"),
        ({"split": SplitConfig()}, f"data_files: no file for the split test{TEST_HINT}"),
        ({"path": "hub/x", "split": SplitConfig()}, f"data_files: no file for the split test{TEST_HINT}"),
        ({"split": SplitConfig(validation=0.1)}, f"data_files: no file for the split test{TEST_HINT}"),
        (
            {"data_files": {"validation": ["v"]}, "split": SplitConfig(test=0.1)},
            "data_files: no file for the split train",
        ),
        (
            {"data_files": {"train": ["a"], "val": ["b"]}},
            "data_files: no split 'val'; choose from train, validation, test",
        ),
        ({"data_files": {"train": ["a"], "tets": ["b"]}}, "data_files: no split 'tets'; did you mean test?"),
        (
            {"path": "hub/x", "data_files": {"train": ["a"], "dev": ["b"]}},
            "data_files: no split 'dev'; choose from train, validation, test",
        ),
        *(
            (
                {"data_files": {"train": ["a"], split: ["b"]}},
                f"split.{split}: there are files for this split too; leave out one of both",
            )
            for split in ("validation", "test")
        ),
        ({"path": "json", "read": ReadConfig(delimiter=";")}, "read.delimiter: goes with path csv, not json"),
        ({"path": "text", "read": ReadConfig(quotechar=None)}, "read.quotechar: goes with path csv, not text"),
        ({"path": "json", "read": ReadConfig(header=False)}, "read.header: goes with path csv, not json"),
        (
            {"path": "parquet", "read": ReadConfig(encoding="cp1252")},
            "read.encoding: goes with path csv or json or text, not parquet",
        ),
        (
            {"path": "hub/x", "data_files": {}, "read": ReadConfig(header=False)},
            "read.header: goes with path csv, not hub/x",
        ),
    ],
)
def test_mistake_in_a_source(changes: dict[str, Any], expected: str) -> None:
    """In one that tasks share, in one that no task uses, and in that of a task."""
    recipe = shared(**changes)
    assert message(recipe) == f"sources.t.{expected}"
    unused = recipe.model_copy(update={"tasks": {"c": recipe.tasks["c"]}})
    assert message(unused) == f"sources.t.{expected}"
    own = {field: getattr(recipe.sources["t"], field) for field in ("path", "data_files", "read", "split")}
    assert message(Recipe(tasks={"a": TaskConfig(**own)})) == f"tasks.a.{expected}"


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "hub/x", "data_files": {}},  # the data set itself says which splits it has
        {"path": "hub/x", "data_files": {}, "split": SplitConfig()},
        {"split": SplitConfig(test=0.1, by="customer")},
        {"split": SplitConfig(test=0.1, stratify="label")},
        {"data_files": {"train": ["a"], "test": ["b"]}, "split": SplitConfig(validation=0.1)},
        {"read": ReadConfig(delimiter=";", encoding="cp1252", quotechar=None, header=False)},
        {"path": "json", "read": ReadConfig(encoding="utf-16")},
        {"path": "text", "read": ReadConfig(encoding="utf-16")},
    ],
)
def test_valid_source(changes: dict[str, Any]) -> None:
    check_recipe(shared(**changes))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"validation": 0.5, "test": 0.5}, "validation and test leave no rows to train on; their sum is below 1"),
        ({"validation": 0.9, "test": 0.2}, "validation and test leave no rows to train on; their sum is below 1"),
        ({"by": "x"}, "by goes with the share of validation or test"),
        ({"stratify": "x"}, "stratify goes with the share of validation or test"),
        ({"test": 0.1, "by": "x", "stratify": "y"}, "by and stratify cannot both hold; give one of them"),
    ],
)
def test_mistake_in_a_split(split: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.sources["t"].split = SplitConfig.model_construct(**split)
    assert message(recipe) == f"sources.t.split: {expected}"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_share_out_of_range(split: str, share: float) -> None:
    recipe = shared()
    recipe.sources["t"].split = SplitConfig.model_construct(**{split: share})
    assert message(recipe) == f"sources.t.split.{split}: {share} is not above 0 and below 1"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ({"delimiter": "ab"}, "read.delimiter: 'ab' is not one character"),
        ({"delimiter": "\n"}, "read.delimiter: '\\n' is not one character; quote it, e.g. \"|\""),
        ({"delimiter": ""}, "read.delimiter: '' is not one character; quote it, e.g. \"|\""),
        ({"delimiter": "\0"}, "read.delimiter: '\\x00' is not one character"),
        ({"quotechar": ""}, "read.quotechar: '' is not one character; quote it, e.g. \"|\""),
        ({"quotechar": "''"}, "read.quotechar: \"''\" is not one character"),
        ({"quotechar": ";", "delimiter": ";"}, "read: delimiter and quotechar are both ';'"),
        ({"delimiter": '"'}, "read: delimiter and quotechar are both '\"'"),
        ({"encoding": "latin-15x"}, "read.encoding: no encoding 'latin-15x'; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": ""}, "read.encoding: no encoding ''; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": "base64"}, "read.encoding: no encoding 'base64'; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": "utf-8\0"}, "read.encoding: no encoding 'utf-8\\x00'; e.g. utf-8, cp1252, utf-16"),
    ],
)
def test_mistake_in_how_files_are_read(read: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.sources["t"].read = ReadConfig.model_construct(**read)
    assert message(recipe) == f"sources.t.{expected}"


def test_evaluation_on_validation_needs_validation_rows_in_every_source() -> None:
    recipe = shared()
    recipe.evaluation.split = "validation"
    check_recipe(recipe)
    recipe.sources["t"].split.validation = None
    hint = "; name one, or hold out rows, e.g. split: {validation: 0.2}"
    assert message(recipe) == f"sources.t.data_files: no file for the split validation{hint}"
    recipe.evaluation.split = None
    check_recipe(recipe)


@pytest.mark.parametrize("kind", ["source", "task"])
@pytest.mark.parametrize("name", ["a.b", "", "a\n", "a b", "a/b", "ä", "a (x)"])
def test_names_are_plain(kind: str, name: str) -> None:
    recipe = shared()
    if kind == "source":
        recipe.sources[name] = recipe.sources["t"]
    else:
        recipe.tasks[name] = recipe.tasks["a"]
    assert message(recipe) == f"{kind}s: {name!r} is no name for a {kind}; use letters, digits, _ and -"


def test_a_source_and_a_task_with_other_rows_have_different_names() -> None:
    recipe = shared()
    recipe.tasks["t"] = TaskConfig(source="t", label="y")
    check_recipe(recipe)
    recipe.tasks["t"] = TaskConfig(path="hub/t")
    assert message(recipe) == "sources.t: a task with other rows has this name; rename one of both"
    recipe.sources["u"] = recipe.sources["t"]
    recipe.tasks["t"] = TaskConfig(source="u")
    assert message(recipe) == "sources.t: a task with other rows has this name; rename one of both"
    for task in ("a", "b"):
        recipe.tasks[task].source = "u"
    check_recipe(recipe)  # the source t has no rows in this run


def test_a_batch_has_room_for_each_group_of_tasks_that_share_rows() -> None:
    recipe = shared()
    recipe.batch_size = 2
    check_recipe(recipe)
    recipe.batch_size = 1
    assert message(recipe) == "batch_size: 1 is smaller than its 2 groups of tasks with rows of their own"
    recipe.sampling.batches = "one_task"
    check_recipe(recipe)
    recipe.sampling.batches, recipe.sampling.rows, recipe.batch_size = "mixed", "per_task", 2
    assert message(recipe) == "batch_size: 2 is smaller than its 3 tasks"
    recipe.sampling.rows = "shared"
    recipe.tasks["b"].text = ["title"]  # other texts, so rows of its own
    assert message(recipe) == "batch_size: 2 is smaller than its 3 tasks"


def test_tasks_that_share_rows_have_one_weight() -> None:
    recipe = shared()
    recipe.sampling.strategy = "weighted"
    recipe.sampling.weights = {"a": 2.0, "b": 2.0, "c": 1.0}
    check_recipe(recipe)
    recipe.sampling.weights["b"] = 1.0
    expected = "sampling.weights: a and b share rows, and so one weight; or set sampling.rows: per_task"
    assert message(recipe) == expected
    recipe.sampling.rows = "per_task"
    check_recipe(recipe)
    recipe.sampling.rows = "shared"
    recipe.tasks["b"].text = ["title"]
    check_recipe(recipe)


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
