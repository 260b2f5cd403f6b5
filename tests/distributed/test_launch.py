"""The files of accelerate_configs as a user launches them: the engine asked for is the one that runs, or none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtl_dist.config.load import parse
from tests.distributed.launching import ROOT, launch, launched, launched_on_nodes
from tests.utils.in_process import run_here
from tests.utils.tiny import tiny_recipe_file

FILES = sorted(path.name for path in (ROOT / "accelerate_configs").iterdir() if path.name != "cpu.yaml")
REPEATS = {
    "multi_cpu.yaml": "test_quickstart.py launches it",
    "fsdp2.yaml": "launched for the test of its checkpoint",
    **{
        f"multi_node_{name}.yaml": f"{name}.yaml, as multi_node_zero2.yaml is zero2.yaml" for name in ("zero1", "zero3")
    },
    "zero2.yaml": "multi_node_zero2.yaml is launched",
    "multi_node_gpu.yaml": "multi_gpu.yaml, as multi_node_cpu.yaml is multi_cpu.yaml",
}
"""Files whose engine and whose way to start are launched anyhow, and where."""
OF_ALL_MACHINES = {
    "num_machines": 2,
    "num_processes": 4,
    "rdzv_backend": "static",
    "same_network": True,
}
"""What a file for several machines says differently than the one for one machine."""
ENGINES = {"gpu": "single", "multi_cpu": "ddp", "multi_gpu": "ddp"}
"""By file, where the engine is not called as the file."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_recipe_file(tmp_path_factory.mktemp("launch")))


@pytest.fixture(scope="module")
def reference(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, by cpu.yaml."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    launched("launch/train.py", "--config", recipe, f"output_dir={folder}", config="cpu.yaml")
    assert (summary_of(folder)["engine"], summary_of(folder)["world_size"]) == ("single", 1)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def losses_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=pytest.mark.repeat if file in REPEATS else ()) for file in FILES]
)
def test_another_file_changes_the_engine_and_nothing_else(
    recipe: str, reference: Path, tmp_path: Path, file: str
) -> None:
    name = Path(file).stem
    processes = 1 if name == "gpu" else 2
    arguments = ("launch/train.py", "--config", recipe, f"output_dir={tmp_path}")
    if name.startswith("multi_node_"):
        launched_on_nodes(*arguments, nodes=processes, config=file)
    else:
        launched(*arguments, processes=processes, config=file, on_cpu=not name.endswith("cpu"))
    summary = summary_of(tmp_path)
    engine = name.replace("multi_node_", "multi_" if name.endswith(("cpu", "gpu")) else "")
    assert (summary["engine"], summary["world_size"]) == (ENGINES.get(engine, engine), processes)
    assert summary["digests"]["plan"] == summary_of(reference)["digests"]["plan"]
    assert losses_of(tmp_path) == pytest.approx(losses_of(reference), rel=1e-5)
    assert len(set(summary["params_sha256_by_rank"])) == 1


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("multi_node_")])
def test_a_file_for_several_machines_is_that_for_one_in_all_else(file: str) -> None:
    name = file.removeprefix("multi_node_")
    one, several = (
        yaml.safe_load((ROOT / "accelerate_configs" / path).read_text())
        for path in (f"multi_{name}" if name in ("cpu.yaml", "gpu.yaml") else name, file)
    )
    if name.startswith("zero"):  # else DeepSpeed would start the processes by ssh
        one["deepspeed_config"]["deepspeed_multinode_launcher"] = "standard"
    assert several == one | OF_ALL_MACHINES


def test_fsdp2_goes_on_from_a_checkpoint_of_one_process(tmp_path: Path) -> None:
    recipe = str(tiny_recipe_file(tmp_path))
    common = ("--config", recipe, "model.dtype=float64", "checkpoint.every_steps=10")
    run_here(parse(common).recipe)
    unbroken = summary_of(tmp_path / "run")
    # As if the machine had stopped after step 10, in the middle of a phase, and the next one had two processes.
    for name in ("summary.json", "checkpoints/step-0000000012"):
        (tmp_path / "run" / name).rename(tmp_path / Path(name).name)
    launched("launch/train.py", *common, processes=2, config="fsdp2.yaml", on_cpu=True)
    summary = summary_of(tmp_path / "run")
    assert (summary["engine"], summary["world_size"]) == ("fsdp2", 2)
    assert summary["digests"] == unbroken["digests"]
    assert summary["test/mood/loss"] == pytest.approx(unbroken["test/mood/loss"], rel=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize(
    "file",
    [  # docs/engines.md launches gpu.yaml, and tests/unit/test_launch_guard.py has the request of each file
        "fsdp2.yaml",
        *(pytest.param(file, marks=pytest.mark.repeat) for file in ("gpu.yaml", "multi_gpu.yaml", "zero2.yaml")),
    ],
)
def test_a_file_for_gpus_is_refused_where_there_are_none(file: str) -> None:
    processes = 1 if file == "gpu.yaml" else 2
    done = launch("launch/train.py", "--config", "recipes/quickstart.yaml", processes=processes, config=file)
    ours = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    override = "add --cpu to accelerate launch" if file == "gpu.yaml" else "set ACCELERATE_USE_CPU=true"
    why = f"asks for GPUs, this machine has none; {override} to run on CPUs"
    assert ours == [f"error: accelerate_configs/{file}: {why}"]
    assert done.returncode != 0
