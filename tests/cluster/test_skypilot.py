"""Task files for SkyPilot, read by SkyPilot itself.

SkyPilot is installed in an environment of its own, because it needs many packages in versions that conflict with ours.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch import submit
from tests.distributed.launching import ROOT

PYTHON = ROOT / ".venv-skypilot" / "bin" / "python"
READ = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps({
    "name": task.name, "nodes": task.num_nodes, "accelerators": resources.accelerators, "cpus": resources.cpus,
    "image": resources.extract_docker_image(), "recovery": resources.job_recovery, "envs": task.envs, "run": task.run,
    "setup": task.setup, "storage": list(task.storage_mounts), "files": task.file_mounts,
}))
"""
RECIPE = "tasks: {topic: {path: hub/topic}}\nphases: [{name: all, train: [all], epochs: 2}]\n"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="SkyPilot is not in .venv-skypilot; make test-cluster puts it there"
    ),
]


def read(folder: Path, *arguments: str) -> Any:
    """Returns the fields that SkyPilot reads from the task file of a submission with these arguments."""
    (folder / "recipe.yaml").write_text(RECIPE)
    run = folder / "runs" / "x"
    run.mkdir(parents=True)
    command = ["--backend", "skypilot", "--nodes", "2", "--volume", f"bucket-of-runs:{folder}/runs", *arguments]
    # Everything is written; then there is no `sky` to hand it to.
    assert submit.main([*command, "--config", str(folder / "recipe.yaml"), f"output_dir={run}"]) == 2
    environment = os.environ | {"HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [PYTHON, "-c", READ, run / "job.sky.yaml"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_skypilot_reads_a_task_on_gpus(tmp_path: Path) -> None:
    task = read(tmp_path, "--gpus-per-node", "A100:4", "--container-image", "image:1", "--env", "A=b")
    assert (task["nodes"], task["accelerators"], task["image"]) == (2, {"A100": 4}, "image:1")
    assert task["recovery"]["recover_on_exit_codes"] == [75]
    assert task["envs"] == {"OMP_NUM_THREADS": "1", "A": "b"}
    assert task["storage"] == [f"{tmp_path}/runs"]


def test_skypilot_reads_a_task_on_cpus(tmp_path: Path) -> None:
    task = read(tmp_path, "--processes-per-node", "2", "--cpus-per-process", "2")
    assert (task["cpus"], task["setup"]) == ("4+", "launch/install.sh\n")
    assert task["run"].startswith(".venv/bin/python launch/on_node.py ")
    assert task["files"]["/tmp/mtl_dist-recipe.yaml"] == f"{tmp_path}/runs/x/job.yaml"
