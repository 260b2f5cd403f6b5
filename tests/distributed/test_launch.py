"""Engine files as users launch them, by accelerate or `mtl-dist train`: the engine asked for is the one that runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtl_dist.config.load import parse
from tests.distributed.launching import ROOT, TIMEOUT, launch, launched, launched_on_nodes
from tests.distributed.test_local_backend import LONG_STEPS, wait_until
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
"""Files whose engine and whose way to start are launched by another test, and which."""
OF_ALL_MACHINES = {
    "num_machines": 2,
    "num_processes": 4,
    "rdzv_backend": "static",
    "same_network": True,
}
"""Values in a file for several machines that differ from those in the file for one."""
ENGINES = {"gpu": "single", "multi_cpu": "ddp", "multi_gpu": "ddp"}
"""Name of the engine by file, where they differ."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_recipe_file(tmp_path_factory.mktemp("launch")))


@pytest.fixture(scope="module")
def reference(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with cpu.yaml."""
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
    if name.startswith("zero"):  # DeepSpeed would start the processes by ssh otherwise
        one["deepspeed_config"]["deepspeed_multinode_launcher"] = "standard"
    assert several == one | OF_ALL_MACHINES


def test_fsdp2_resumes_from_a_checkpoint_of_one_process(tmp_path: Path) -> None:
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
    [  # docs/engines.md launches gpu.yaml, and tests/unit/distributed/test_launch_check.py has the request of each file
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


def started(*words: str, step_seconds: float = 0.0) -> subprocess.Popen[str]:
    """`mtl-dist train` with `words`, in steps that take at least `step_seconds`."""
    paths = os.pathsep.join([str(LONG_STEPS), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "mtl_dist", "train", *words],
        env=os.environ | {"PYTHONPATH": paths, "MTL_DIST_TEST_STEP_SECONDS": str(step_seconds)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of the command and its output."""
    output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def test_mtl_dist_train_is_the_run_of_accelerate_launch(recipe: str, tmp_path: Path) -> None:
    arguments = (recipe, f"output_dir={tmp_path / 'ours'}")
    code, output = ended(started(*arguments, "--engine", "multi_cpu", "--mixed-precision", "bf16"))
    assert code == 0, output
    launched(
        *("launch/train.py", "--config", recipe, f"output_dir={tmp_path / 'theirs'}"),
        processes=2,
        flags=("--main_process_port", "0", "--mixed_precision", "bf16"),
    )
    ours, theirs = summary_of(tmp_path / "ours"), summary_of(tmp_path / "theirs")
    assert (ours["engine"], ours["world_size"], ours["mixed_precision"]) == ("ddp", 2, "bf16")
    assert ours["params_sha256"] == theirs["params_sha256"]


@pytest.mark.parametrize("engine", ["cpu", pytest.param("multi_cpu", marks=pytest.mark.repeat)])
def test_mtl_dist_train_saves_on_a_signal_and_ends_with_the_codes_of_the_run(
    recipe: str, tmp_path: Path, engine: str
) -> None:
    words = (recipe, f"output_dir={tmp_path / 'run'}", "--engine", engine)
    code, output = ended(started(*words, "tasks.mood.label=feeling"))
    assert (code, output.count("mood.train.json: no column 'feeling'; choose from text, label")) == (2, 1)
    process = started(*words, step_seconds=1)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: True if metrics.exists() and "train/loss" in metrics.read_text() else None)
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code == 75, output
    assert "Traceback" not in output
    code, output = ended(started(*words))
    assert code == 0, output
    assert [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if "train/loss" in line] == [
        *range(1, 13)
    ]
