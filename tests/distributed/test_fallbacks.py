"""Launches that Accelerate would silently turn into a different run: refused with one line, or corrected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.distributed.launching import ROOT, TIMEOUT
from tests.utils.tiny import tiny_recipe_file

MACHINES = ("--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", "1")
TWO = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a launcher with a recipe whose output_dir is `folder`/run."""
    return subprocess.run(
        [sys.executable, "-m", *command, "launch/train.py", "--config", str(tiny_recipe_file(folder))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def accelerate(folder: Path, *flags: str, **file: object) -> list[str]:
    """Returns an `accelerate launch` command with these flags and, if there are settings, a config file."""
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump({**TWO, **file}))
    return ["accelerate.commands.launch", *(["--config_file", str(path)] if file else []), *flags]


@pytest.mark.parametrize(
    ("flags", "file", "reason"),
    [
        # Accelerate would start a single process.
        ((), {"distributed_type": "MULTI_CPU", "use_cpu": True}, "asks for 2 processes, 1 started; MULTI_CPU starts "),
        # Accelerate would start a separate run on each machine.
        (("--cpu", *MACHINES, "--num_processes", "2"), {}, "asks for 2 processes, 1 started"),
        (("--cpu", *MACHINES, "--num_processes", "1"), {}, "asks for 2 machines, this run has 1 process"),
        # Accelerate would train in fp32.
        (("--mixed_precision", "fp16"), {"distributed_type": "NO", "num_processes": 1}, "mixed_precision fp16 is not"),
        # Accelerate would start two independent runs.
        ((), {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "asks for GPUs, this machine has none"),
        # The model would not be compiled, because Accelerate does not prepare it.
        (("--dynamo_backend", "inductor"), {"distributed_type": "NO", "num_processes": 1, "use_cpu": True}, "dynamo_b"),
    ],
)
def test_a_launch_that_would_start_a_different_run_is_refused(
    tmp_path: Path, flags: tuple[str, ...], file: dict[str, object], reason: str
) -> None:
    done = run(accelerate(tmp_path, *flags, **file), tmp_path)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert f": {reason}" in line
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


def test_torchrun_without_any_variable_is_one_run_of_two_processes(tmp_path: Path) -> None:
    """By default, Accelerate would start two runs of one process each on a machine without a GPU."""
    done = run(
        ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 2
