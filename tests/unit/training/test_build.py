"""Checks and counts of a run before it reads data or weights."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from mtl_dist.config.load import Command, parse
from mtl_dist.config.recipe import OptimizerConfig, PhaseConfig, Recipe, TaskConfig, UntilConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.schedule.phases import compile_schedule
from mtl_dist.training.build import check_encoder, unit_sizes, warnings_of
from mtl_dist.training.run import run_on
from tests.utils.in_process import accelerator_here, setup_here
from tests.utils.tiny import tiny_recipe, tiny_recipe_file


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Recipe whose encoder has unreadable weights."""
    path = tiny_recipe_file(tmp_path)
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")
    return path


def refusal(recipe_file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check_encoder(parse(["--config", str(recipe_file), *overrides]).recipe)
    return str(error.value)


def warned(optimizer: OptimizerConfig, *phases: PhaseConfig) -> list[str]:
    recipe = Recipe(tasks={"a": TaskConfig(path="json")}, phases=list(phases), optimizer=optimizer)
    return warnings_of(recipe, compile_schedule(recipe, 4, 100))


def test_the_encoder_is_checked_without_its_weights(recipe_file: Path) -> None:
    config, skeleton = check_encoder(parse(["--config", str(recipe_file)]).recipe)
    assert config.num_hidden_layers == 4
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_keys_that_do_not_fit_the_encoder_are_refused(recipe_file: Path) -> None:
    many = "the encoder has 4 blocks, 0 to 3"
    assert refusal(recipe_file, 'phases.1.train=["blocks[4]"]') == f"phases[1].train: blocks[4]: {many}"
    assert refusal(recipe_file, 'model.freeze=["blocks[-5]"]') == f"model.freeze: blocks[-5]: {many}"
    message = "data.max_length: 41 is more than the 40 positions of the encoder"
    assert refusal(recipe_file, "data.max_length=41") == message
    check_encoder(parse(["--config", str(recipe_file), "data.max_length=40"]).recipe)
    assert refusal(recipe_file, "model.encoder=nowhere").startswith("model.encoder: nowhere: no folder here")
    message = refusal(recipe_file, "tasks.items.path=ag_news")
    assert message == "tasks: 'items' is a word that torch modules use themselves; choose another name"
    AutoConfig.for_model("albert").save_pretrained(recipe_file.parent / "encoder")
    assert refusal(recipe_file).startswith("model.encoder: the layout of 'albert' is not understood: ")


def test_the_plan_is_printed_without_weights(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = parse(["--config", str(recipe_file), "--plan", "optimizer.warmup_steps=12"])
    run_on(accelerator_here(), ProcessGroup(), command)
    lines = capsys.readouterr().out.splitlines()
    [rule] = [index for index, line in enumerate(lines) if line.startswith("---")]
    assert [line.split()[:2] for line in lines[rule + 1 : rule + 4]] == [
        ["heads", "1-4"],
        ["upper", "5-8"],
        ["all", "9-12"],
    ]
    assert lines[rule + 4].split(maxsplit=3) == ["whole", "run", "12", "topic 72 (1.50), mood 72 (1.50)"]
    assert sum("warning: optimizer.warmup_steps: 12, " in line for line in lines) == 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"^model\.encoder: cannot load the weights of "):
        run_on(accelerator_here(), ProcessGroup(), Command(command.recipe, plan_only=False))


def test_unit_sizes_equal_those_of_the_trained_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    setup = setup_here(recipe)
    sizes = unit_sizes(recipe, check_encoder(recipe)[1], setup.data)
    model = setup.engine.model
    assert sizes == {
        unit: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for unit, modules in model.unit_modules().items()
    }
    assert sum(sizes.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("warmup", "warns"), [(7, False), (8, True), (500, True)])
def test_a_warm_up_longer_than_the_run_gives_a_warning(warmup: int, warns: bool) -> None:
    phases = PhaseConfig(name="heads", train=["heads"], steps=5), PhaseConfig(name="all", train=["all"], steps=3)
    line = f"optimizer.warmup_steps: {warmup}, and the run has 8 steps: the full learning rate is never reached"
    assert warned(OptimizerConfig(warmup_steps=warmup), *phases) == [line] * warns


@pytest.mark.parametrize(("warmup", "warns"), [(0, False), (2, False), (3, True)])
def test_an_unfreeze_warm_up_longer_than_its_phase_gives_a_warning(warmup: int, warns: bool) -> None:
    phases = (
        PhaseConfig(name="heads", train=["heads"], steps=2),
        PhaseConfig(name="all", train=["all"], steps=3),
        PhaseConfig(name="again", train=["all"], steps=1),
    )
    line = (
        f"optimizer.unfreeze_warmup_steps: {warmup}, and phase 'all' has 3 steps:"
        " what is unfrozen there never reaches its full learning rate"
    )
    config = OptimizerConfig(warmup_steps=0, unfreeze_warmup_steps=warmup)
    assert warned(config, *phases) == [line] * warns


@pytest.mark.parametrize(("steps", "warns"), [(12, True), (13, False)])
def test_a_phase_too_short_for_its_until_gives_a_warning(steps: int, warns: bool) -> None:
    until = UntilConfig(metric="loss", patience=2, every_steps=4)
    phases = (
        PhaseConfig(name="heads", train=["heads"], steps=3),
        PhaseConfig(name="all", train=["all"], steps=steps, until=until),
    )
    line = "phases[1].until: ends a phase after 12 steps or more, and phase 'all' has 12: it is never cut short"
    assert warned(OptimizerConfig(warmup_steps=0), *phases) == [line] * warns


def test_a_run_without_steps_has_no_warnings() -> None:
    recipe = Recipe(tasks={"a": TaskConfig(path="json")})
    recipe.model.freeze = ["all"]
    assert warnings_of(recipe, compile_schedule(recipe, 12, 100)) == []
