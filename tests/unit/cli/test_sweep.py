"""The shipped sweep, its command filled and started by the agent of W&B, and errors of the command."""

import os
import subprocess
import sys
from multiprocessing import Queue
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.wandb_agent import Agent

from mtl_dist.config.load import parse
from tests.utils.tiny import tiny_recipe_file
from tests.utils.wandb_files import of_kind, records_in

ROOT = Path(__file__).parents[3]
SWEEP = ROOT / "recipes" / "sweep.yaml"


@pytest.fixture
def sweep() -> dict[str, Any]:
    return yaml.safe_load(SWEEP.read_text(encoding="utf-8"))


def test_the_keys_of_the_sweep_exist_in_its_recipe(sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for key, parameter in sweep["parameters"].items():
        for value in parameter["values"]:
            parse(["--config", "recipes/quickstart.yaml", f"{key}={value}"])
    tasks = parse(["--config", "recipes/quickstart.yaml"]).recipe.tasks
    assert sweep["metric"]["name"] in {f"eval/{task}/accuracy.max" for task in tasks}


def test_the_agent_starts_a_run_with_its_keys_in_the_group_of_the_sweep(
    tmp_path: Path, sweep: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the tiny recipe, in a folder of the test; the rest of the command is the file's."""
    tiny = {"recipes/quickstart.yaml": str(tiny_recipe_file(tmp_path))}
    command = [tiny.get(word, word).replace("runs/sweep", str(tmp_path / "runs")) for word in sweep["command"]]
    monkeypatch.chdir(ROOT)
    for name, value in (
        ("WANDB_SWEEP_ID", "s33p"),
        ("WANDB_DIR", str(tmp_path)),
        ("WANDB_MODE", "offline"),
        ("PYTHONPATH", str(ROOT)),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_SERVICE"):
        monkeypatch.setenv(name, "")  # to be as before when the agent has set it
        monkeypatch.delenv(name)
    wandb.teardown()
    agent = Agent(None, Queue(), sweep_id="s33p")
    agent._sweep_command = command
    values = {"optimizer.lr": {"value": 2e-4}, "optimizer.block_lr_decay": {"value": 0.9}}
    agent._command_run({"run_id": "f1rst", "program": sweep["program"], "args": values})
    assert agent._run_processes["f1rst"].wait() == 0
    folder = tmp_path / "runs" / "f1rst"
    assert (folder / "summary.json").exists()
    recipe = parse(["--config", str(folder / "recipe.yaml")]).recipe
    assert (recipe.optimizer.lr, recipe.optimizer.block_lr_decay) == (2e-4, 0.9)
    (run,) = of_kind(records_in(folder), "run")
    assert (run.run_id, run.run_group, run.sweep_id) == ("f1rst", "sweep-s33p", "s33p")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [str(SWEEP)],
            "a sweep lives at W&B, which hands out its runs, so that there is none offline or without a key",
        ),
        ([], "command line: give a sweep's file"),
        ([str(SWEEP), "many"], "command line: give a sweep's file"),
        (["nowhere.yaml"], "nowhere.yaml: No such file or directory"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "no netrc"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")
