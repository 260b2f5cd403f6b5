import os
import re
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config import data_recipe
from mtl_dist.config import recipe as schema
from mtl_dist.config.data_recipe import SourceConfig, SplitConfig
from mtl_dist.config.load import parse, parse_recipe_of_run
from mtl_dist.config.recipe import PhaseConfig, Recipe, TaskConfig, UntilConfig
from mtl_dist.errors import UserError

SECTIONS = [
    section for module in (schema, data_recipe) for name, section in vars(module).items() if name.endswith("Config")
]
WEIGHTED = ["sampling.strategy=weighted"]
ROOT = Path(__file__).parents[3]
BASE = """
output_dir: runs/x
sources:
  tickets: {path: csv, data_files: tickets.csv, split: {validation: 0.1, test: 0.2}}
tasks:
  sentiment: {path: hub/sentiment, labels: ["no", "yes"]}
  topic: {path: hub/topic}
phases:
  - {name: heads, train: heads, epochs: 1}
  - {name: all, train: [all], epochs: 2}
"""


@pytest.fixture
def base(tmp_path: Path) -> str:
    return written(tmp_path / "base.yaml", BASE)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def recipe_of(*arguments: str) -> Recipe:
    return parse(arguments).recipe


def message(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_importing_leaves_the_heavy_libraries_out() -> None:
    modules = "import sys, mtl_dist.config.load"
    code = modules + "; print(*{'torch', 'transformers', 'datasets', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_file_over_defaults(base: str) -> None:
    assert recipe_of("--config", base) == Recipe(
        output_dir="runs/x",
        sources={
            "tickets": SourceConfig(
                path="csv", data_files={"train": ["tickets.csv"]}, split=SplitConfig(validation=0.1, test=0.2)
            )
        },
        tasks={
            "sentiment": TaskConfig(path="hub/sentiment", labels={"no": "no", "yes": "yes"}),
            "topic": TaskConfig(path="hub/topic"),
        },
        phases=[
            PhaseConfig(name="heads", train=["heads"], epochs=1.0),
            PhaseConfig(name="all", train=["all"], epochs=2.0),
        ],
    )


def test_later_files_win_key_by_key_and_replace_lists(base: str, tmp_path: Path) -> None:
    second = "{tasks: {topic: {weight: 2}}, phases: [{name: one, train: all, steps: 5}], optimizer: {lr: 3e-5}}"
    recipe = recipe_of("--config", base, "--config", written(tmp_path / "second.yaml", second))
    assert recipe.tasks["topic"] == TaskConfig(path="hub/topic", weight=2.0)
    assert recipe.tasks["sentiment"].labels == {"no": "no", "yes": "yes"}
    assert recipe.phases == [PhaseConfig(name="one", train=["all"], steps=5)]
    assert recipe.optimizer.lr == 3e-5


def test_plan_flag(base: str) -> None:
    assert parse(["--config", base, "--plan"]).plan_only
    assert not parse(["--config", base]).plan_only


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("optimizer.lr=3e-5", lambda recipe: recipe.optimizer.lr, 3e-5),
        ("optimizer.lr=1", lambda recipe: recipe.optimizer.lr, 1.0),
        ("optimizer.max_grad_norm=null", lambda recipe: recipe.optimizer.max_grad_norm, None),
        ("optimizer={eps: 1e-6}", lambda recipe: (recipe.optimizer.eps, recipe.optimizer.lr), (1e-6, 2e-5)),
        ("tasks.topic.weight=2", lambda recipe: recipe.tasks["topic"].weight, 2.0),
        ("tasks.topic.text=body", lambda recipe: recipe.tasks["topic"].text, ["body"]),
        ("tasks.topic.text=[premise, claim]", lambda recipe: recipe.tasks["topic"].text, ["premise", "claim"]),
        ("tasks.topic.labels=['0', '1']", lambda recipe: recipe.tasks["topic"].labels, {"0": "0", "1": "1"}),
        ("tasks.topic.path=a=b", lambda recipe: recipe.tasks["topic"].path, "a=b"),
        ("model.freeze=[all]", lambda recipe: recipe.model.freeze, ["all"]),
        ("model.freeze=all", lambda recipe: recipe.model.freeze, ["all"]),
        ("model.pooling=mean", lambda recipe: recipe.model.pooling, "mean"),
        ("phases.0.train=blocks[-4:]", lambda recipe: recipe.phases[0].train, ["blocks[-4:]"]),
        ("phases.0.epochs=2", lambda recipe: recipe.phases[0], PhaseConfig(name="heads", train=["heads"], epochs=2.0)),
        ("phases[1].epochs=0.5", lambda recipe: recipe.phases[1].epochs, 0.5),
        ("phases.1.train.0=backbone", lambda recipe: recipe.phases[1].train, ["backbone"]),
        ("tracking.wandb=true", lambda recipe: recipe.tracking.wandb, True),
        ("output_dir='5'", lambda recipe: recipe.output_dir, "5"),
    ],
)
def test_override(base: str, override: str, read: Callable[[Recipe], object], value: object) -> None:
    assert repr(read(recipe_of("--config", base, override))) == repr(value)


def test_overrides_of_one_dict(base: str) -> None:
    recipe = recipe_of("sampling.weights.topic=2", "--config", base, "sampling.weights.sentiment=1", *WEIGHTED)
    assert recipe.sampling.weights == {"topic": 2.0, "sentiment": 1.0}


def test_a_whole_task_by_overrides(base: str) -> None:
    assert recipe_of("tasks.a.weight=2", "tasks.a.path=x").tasks == {"a": TaskConfig(path="x", weight=2.0)}
    assert list(recipe_of("--config", base, "tasks.a.weight=2", "tasks.a.path=x").tasks) == ["sentiment", "topic", "a"]


def test_interpolation(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("LR", "3e-5")
    monkeypatch.setenv("UNITS", "heads.topic")
    recipe = recipe_of(
        *("--config", base, "tasks.topic.path=${oc.env:DATA}/topic", "optimizer.lr=${oc.env:LR}"),
        *("micro_batch_size=${batch_size}", "model.freeze=${oc.env:UNITS}"),
    )
    assert recipe.tasks["topic"].path == "/data/topic"
    assert (recipe.optimizer.lr, recipe.micro_batch_size, recipe.model.freeze) == (3e-5, 8, ["heads.topic"])


VALIDATED = ["evaluation.split=validation", "phases.0.until={metric: loss, patience: 2}"]


def test_a_section_that_may_be_null(base: str, tmp_path: Path) -> None:
    """Inside a list item: set, changed by key and by file, and removed again."""
    assert recipe_of("--config", base, *VALIDATED).phases[0].until == UntilConfig(metric="loss", patience=2)
    recipe = recipe_of("--config", base, *VALIDATED, "phases.0.until.every_steps=7")
    assert [phase.until for phase in recipe.phases] == [UntilConfig(metric="loss", patience=2, every_steps=7), None]
    recipe = recipe_of("--config", base, *VALIDATED, "phases[0].until=null")
    assert recipe == recipe_of("--config", base, VALIDATED[0])
    phase = "{name: all, train: all, steps: 9, until: {metric: topic/loss, min_delta: 1}}"
    file = written(tmp_path / "until.yaml", f"{{evaluation: {{split: validation}}, phases: [{phase}]}}")
    expected = UntilConfig(metric="topic/loss", min_delta=1.0)
    assert recipe_of("--config", base, "--config", file).phases == [
        PhaseConfig(name="all", train=["all"], steps=9, until=expected)
    ]


KEY_MISTAKES = [
    ("optimizer: {lrr: 1}", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
    ("optimiser: {lr: 1}", "optimiser: unknown key; did you mean optimizer?"),
    ("checkpoint: {often: 1}", "checkpoint.often: unknown key; choose from every_steps, every_minutes"),
    ("tasks: {topic: {wieght: 1}}", "tasks.topic.wieght: unknown key; did you mean tasks.topic.weight?"),
    ("phases: [{nam: a}]", "phases[0].nam: unknown key; did you mean phases[0].name?"),
    ("phases: [{until: {metrc: a}}]", "phases[0].until.metrc: unknown key; did you mean phases[0].until.metric?"),
    ("phases: [{until: loss}]", "phases[0].until: 'loss' is not a mapping"),
    ("phases: [{until: {patience: null}}]", "phases[0].until.patience: null is not a whole number"),
    ("tasks: {yes: {path: x}}", "tasks.True: the key True is not text; quote it"),
    ("optimizer: {lr: abc}", "optimizer.lr: 'abc' is not a number"),
    ("optimizer: {lr: '1'}", "optimizer.lr: '1' is not a number"),
    ("optimizer: {lr: true}", "optimizer.lr: True is not a number"),
    ("optimizer: {lr: null}", "optimizer.lr: null is not a number"),
    ("optimizer: {max_grad_norm: [1]}", "optimizer.max_grad_norm: [1] is not a number"),
    ("seed: 1.0", "seed: 1.0 is not a whole number"),
    ("seed: true", "seed: True is not a whole number"),
    ("tracking: {wandb: 1}", "tracking.wandb: 1 is not true or false"),
    ("model: {pooling: men}", "model.pooling: 'men' is not one of first_token, mean"),
    ("model: {pooling: [mean]}", "model.pooling: ['mean'] is not one of first_token, mean"),
    ("model: {freeze: {all: 1}}", "model.freeze: {'all': 1} is not a list"),
    ("model: {freeze: [1]}", "model.freeze[0]: 1 is not text; quote it"),
    ("tasks: {topic: null}", "tasks.topic: null is not a mapping"),
    ("tasks: [topic]", "tasks: ['topic'] is not a mapping"),
    ("phases: {a: {}}", "phases: {'a': {}} is not a list"),
    ("optimizer: 5", "optimizer: 5 is not a mapping"),
    ('"a\\nb": 1', "a b: unknown key; choose from output_dir, "),
    ("sampling: {weights: {topic: x}}", "sampling.weights.topic: 'x' is not a number"),
    ("output_dir: !!python/object/apply:pathlib.Path [x]", "output_dir: PosixPath('x') is not text"),
    ("output_dir: ${", "output_dir: "),
    ("optimizer: {lr: x, lrr: 1}", "optimizer.lr: 'x' is not a number"),
    ("optimizer: {lrr: 1, lr: x}", "optimizer.lrr: unknown key"),
]


@pytest.mark.parametrize(("text", "expected"), KEY_MISTAKES)
def test_mistake_in_a_file(base: str, tmp_path: Path, text: str, expected: str) -> None:
    file = written(tmp_path / "wrong.yaml", text)
    assert message("--config", base, "--config", file).startswith(f"{file}: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nmodel: [a", "line 2: "),
        ("seed: 1\nseed: 2", "line 2: found duplicate key seed"),
        ("tasks:\n  a: {path: x}\n  a: {path: y}", "line 3: found duplicate key a"),
        ("seed: 1\noutput_dir: !!python/object/apply:os.getcwd []", "line 2: could not determine a constructor"),
        ("phases:\n- train: [heads, blocks[-4:]]", "line 2: "),
        ("- a", "is not a mapping"),
        ("text", "is not a mapping"),
        ("5", "is not a mapping"),
        ("seed: \x01", "unacceptable character #x0001"),
    ],
)
def test_file_that_is_not_a_recipe(tmp_path: Path, text: str, expected: str) -> None:
    file = written(tmp_path / "wrong.yaml", text)
    assert message("--config", file).startswith(f"{file}: {expected}")


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"]
)
@pytest.mark.parametrize("place", ["file", "override"])
def test_tags_of_yaml_run_no_code(tmp_path: Path, tag: str, place: str) -> None:
    mark = tmp_path / "ran"
    value = f"!!{tag} ['touch {mark}']"
    arguments = ["--config", written(tmp_path / "wrong.yaml", f"output_dir: {value}")]
    assert "could not determine a constructor" in message(*(arguments if place == "file" else [f"output_dir={value}"]))
    assert not mark.exists()


def test_syntax_error_in_a_list_tells_how_to_quote_ranges(tmp_path: Path) -> None:
    file = written(tmp_path / "wrong.yaml", "phases:\n- train: [heads, blocks[-4:]]")
    assert message("--config", file).endswith('inside a list, quote text like "blocks[-4:]"')
    assert message("phases.0.train=[heads,blocks[-4:]]").startswith("command line: phases.0.train: line 1: ")
    assert recipe_of("tasks.a.path=x", 'phases.0.train=[heads,"blocks[-4:]"]').phases[0].train[1] == "blocks[-4:]"


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert message("--config", str(tmp_path / "no.yaml")) == f"{tmp_path}/no.yaml: No such file or directory"
    assert message("--config", str(tmp_path)) == f"{tmp_path}: Is a directory"
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: \xe9")
    assert message("--config", str(tmp_path / "latin.yaml")) == f"{tmp_path}/latin.yaml: is not text in UTF-8"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("optimizer.lr.x=1", "optimizer.lr: {'x': 1} is not a number"),
        ("optimizer.lr=abc", "optimizer.lr: 'abc' is not a number"),
        ("optimizer.lr=", "optimizer.lr: null is not a number"),
        ("optimizer.lr={", "optimizer.lr: line "),
        ("output_dir=${", "output_dir: "),
        ("tasks.sentimnet.weight=2", "tasks.sentimnet.weight: no task sentimnet; did you mean sentiment?"),
        ("tasks.x={weight: 2}", "tasks.x: no task x; choose from sentiment, topic"),
        ("sources.ticket.split.test=0.2", "sources.ticket.split.test: no source ticket; did you mean tickets?"),
        ("tasks.topic.labels={1: a, 1.0: b}", "tasks.topic.labels: line 1: 1 and 1.0 are one key"),
        ("phases.0.epoch=2", "phases[0].epoch: unknown key; did you mean phases[0].epochs?"),
        ("phases.2.epochs=2", "phases.2: no such item; phases has 2, counted from 0"),
        ("phases.-1.epochs=2", "phases.-1: no such item"),
        ("phases.last.epochs=2", "phases.last: no such item"),
        ("=1", "'=1' is not key=value"),
        ("a..b=1", "a: unknown key"),
        ("base.yaml", "'base.yaml' is not key=value; a recipe file needs --config before it"),
        ("--plann", "--plann: unknown option; did you mean --plan?"),
        ("--pla", "--pla: unknown option; did you mean --plan?"),
        ("--config", "argument --config: expected one argument"),
        ("--plan=3", "argument --plan: ignored explicit argument '3'"),
    ],
)
def test_mistake_on_the_command_line(base: str, override: str, expected: str) -> None:
    assert message("--config", base, override).startswith(f"command line: {expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tasks.a.weight=2", "tasks.a.path: missing"),
        ("phases=[{train: all, steps: 1}]", "phases[0].name: missing"),
        ("phases.0.until={}", "phases[0].until.metric: missing"),
        ("output_dir=${oc.env:NO_SUCH_VARIABLE}", "output_dir: "),
        ("output_dir=${no.such.key}", "output_dir: Interpolation key 'no.such.key' not found"),
        ("output_dir=${no_such_resolver:1}", "output_dir: Unsupported interpolation type no_such_resolver"),
        ("seed=${seed}", "seed: Recursive interpolation detected"),
        ("optimizer.lr=${output_dir}", "optimizer.lr: "),
        ("sources.s.split.test=0.2", "sources.s.path: missing"),
        ("sources.s.path=''", "sources.s.path: missing"),
        ("optimizer=${model}", "command line: optimizer: '${model}' is not a mapping"),
    ],
)
def test_mistake_that_shows_in_the_merged_recipe(override: str, expected: str) -> None:
    assert message(override).startswith(expected)


@pytest.mark.parametrize(("old", "new"), schema.RENAMED_KEYS.items())
def test_a_renamed_key_is_answered_with_its_new_name(base: str, tmp_path: Path, old: str, new: str) -> None:
    section, name = old.split(".")
    answer = f"{old}: unknown key; it is called {new} now"
    assert message("--config", base, f"{old}=3") == f"command line: {answer}"
    file = written(tmp_path / "old.yaml", f"{section}: {{{name}: 3}}")
    assert message("--config", base, "--config", file) == f"{file}: {answer}"
    recipe = recipe_of("--config", base, f"{new}=3")
    assert recipe.model_dump()[section][new.removeprefix(f"{section}.")] == 3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("seed", "7", 7), ("optimizer.lr", "3e-5", 3e-5), ("tracking.wandb", "true", True), ("output_dir", "7", "7")],
)
def test_an_environment_variable_is_converted_to_the_type_of_its_key(
    monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: object
) -> None:
    monkeypatch.setenv("VALUE", text)
    recipe: Any = recipe_of("tasks.a.path=x", f"{key}=${{oc.env:VALUE}}")
    assert repr(attrgetter(key)(recipe)) == repr(value)


def test_the_value_of_an_interpolation_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUE", "many")
    expected = {
        "seed": "'many' is not a whole number",
        "tracking.wandb": "'many' is not true or false",
        "model.pooling": "'many' is not one of first_token, mean",
    }
    for key, problem in expected.items():
        assert message("tasks.a.path=x", f"{key}=${{oc.env:VALUE}}") == f"{key}: {problem}"
    # Like any wrong type, before the rules of values.
    assert message("tasks.a.path=x", "seed=-1", "tracking.wandb=${oc.env:VALUE}").startswith("tracking.wandb: 'many'")
    monkeypatch.setenv("VALUE", "0")
    assert message("tasks.a.path=x", "batch_size=${oc.env:VALUE}") == "batch_size: 0 is not at least 1"


def test_defaults_can_be_interpolated() -> None:
    """Including defaults of sections that exist only because the recipe names them."""
    recipe = recipe_of("tasks.a.path=x", "tasks.a.name=${tasks.a.label}", "evaluation.batch_size=${batch_size}")
    assert (recipe.tasks["a"].name, recipe.evaluation.batch_size) == ("label", 8)


def test_rules_are_checked(base: str) -> None:
    assert message() == "tasks: none; a run needs at least one"
    assert message("--config", base, "batch_size=1") == "batch_size: 1 is smaller than its 2 tasks"
    assert message("--config", base, "optimizer.lr=.nan").startswith("optimizer.lr: nan is not ")


def test_print_config(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse(["--config", base, "optimizer.lr=3e-5", "--print-config"])
    assert done.value.code == 0
    printed = written(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert recipe_of("--config", printed) == recipe_of("--config", base, "optimizer.lr=3e-5")


@pytest.mark.parametrize("flag", ["--help", "--print-config"])
def test_other_ranks_print_nothing(
    base: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(SystemExit) as done:
        parse(["--config", base, flag])
    assert (done.value.code, capsys.readouterr().out) == (0, "")


def test_help_has_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for section in (Recipe, *SECTIONS):
        for name in section.model_fields:
            assert re.search(rf"^ +{name}(\.<name>|\[i\])?:", text, re.MULTILINE), name
    words = " ".join(text.split())
    assert "usage: launch/train.py [--config FILE]... " in words
    assert 'pooling: first_token | mean, default "first_token" How the last hidden states become one vector' in words
    assert "read: keys as in sources.<name>.read split: keys as in sources.<name>.split" in words
    assert "data_files: a file, a list of files, or a mapping of splits to their files, default {} Files" in words
    assert "labels: a list of values, or a mapping of values to class names or null, default null Values of" in words
    assert "freeze: a list of text or a single text, default [] Frozen" in words
    assert "path: text, required Kind of the files in `data_files`" in words
    assert "max_grad_norm: number or null, default 1.0 Clip the norm" in words
    assert "weights: mapping of names to numbers, default {} Share of each task" in words
    assert "tasks.<name>: One classification task" in words
    assert "until: keys or null, default null A metric that ends the phase" in words
    assert (
        'phases[i]: A range of consecutive steps with one set of trainable parameters. Default: [{"name": "heads", '
        in words
    )


@pytest.mark.parametrize("name", ["quickstart.yaml", "seed.yaml"])
def test_recipes_of_the_repository(name: str) -> None:
    assert recipe_of("--config", str(ROOT / "recipes" / name)).tasks


def test_entry_point_reports_one_line_and_exit_code_2() -> None:
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "optimizer.lrr=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: command line: optimizer.lrr: unknown key; did you mean optimizer.lr?\n"


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (["phases.0.steps=5"], (None, 5)),
        (["phases[0].steps=5"], (None, 5)),
        (["phases.0.steps=5", "phases.0.epochs=null"], (None, 5)),
        (["phases.0.epochs=null", "phases.0.steps=5"], (None, 5)),
        (["phases.0.steps=null"], (1.0, None)),
        (["phases.0.epochs=0.5"], (0.5, None)),
        (["phases.1.epochs=0.5"], (1.0, None)),
    ],
)
def test_an_override_of_a_phases_length_replaces_the_length_of_the_file(
    tmp_path: Path, overrides: list[str], length: tuple[float | None, int | None]
) -> None:
    path = tmp_path / "recipe.yaml"
    phases = "[{name: a, train: [heads], epochs: 1}, {name: b, train: [all], steps: 7}]"
    path.write_text(f"tasks: {{t: {{path: csv, data_files: {{train: a, test: b}}}}}}\nphases: {phases}\n")
    first, second = parse(["--config", str(path), *overrides]).recipe.phases
    assert (first.epochs, first.steps) == length
    assert (second.epochs, second.steps) == ((0.5, None) if overrides == ["phases.1.epochs=0.5"] else (None, 7))


def test_two_lengths_of_a_phase_on_the_command_line_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("tasks: {t: {path: csv, data_files: {train: a, test: b}}}\n")
    with pytest.raises(UserError, match=r"phases\[0\]: give either epochs or steps"):
        parse(["--config", str(path), "phases.0.steps=5", "phases.0.epochs=2"])


def test_the_recipe_that_an_older_version_wrote_is_read_under_todays_names(tmp_path: Path) -> None:
    """In a run folder; what a user writes is answered with the new name."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "tasks: {t: {path: csv, data_files: {train: a, test: b}}}\noptimizer: {thaw_warmup_steps: 7, lr: 1.0}\n"
    )
    recipe = parse_recipe_of_run(path)
    assert (recipe.optimizer.unfreeze_warmup_steps, recipe.optimizer.lr) == (7, 1.0)
    with pytest.raises(UserError, match=r"it is called optimizer\.unfreeze_warmup_steps now"):
        parse(["--config", str(path)])
    other = tmp_path / "other.yaml"
    other.write_text("optimizer: {thaw_warmup_steps: 7}\n")
    with pytest.raises(UserError, match=r"it is called optimizer\.unfreeze_warmup_steps now"):
        parse_recipe_of_run(path, str(other))
