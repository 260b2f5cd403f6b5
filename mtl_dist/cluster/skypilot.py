"""SkyPilot: the task file for `sky jobs launch`, which restarts the task after a lost machine or exit code 75."""

import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from mtl_dist.cluster.job import WORKDIR_OF_IMAGE, Job, as_yaml, require_in_repository, run_folder_in_container
from mtl_dist.errors import Interrupted, UserError
from mtl_dist.resources import IS_CHECKOUT, ROOT

JOB_FILE = "job.sky.yaml"
RECIPE_PATH = "/tmp/mtl_dist-recipe.yaml"
PORT = 29500


def job_file(job: Job) -> str:
    """Text of the task file. Raises UserError."""
    require_in_repository(job, "skypilot")
    if job.image is None and not IS_CHECKOUT:
        raise UserError("--container-image: skypilot needs one here; without it the repository is sent, not a wheel")
    run = run_folder_in_container(job, "skypilot", WORKDIR_OF_IMAGE if job.image else PurePosixPath("~"))
    source, _, path = (job.volume or "").rpartition(":")
    resources: dict[str, Any] = {
        "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": [Interrupted.exit_code]}
    }
    if job.gpus is None:
        resources["cpus"] = f"{job.processes * job.cpus}+"
    elif job.gpu_type is None:
        raise UserError(f"--gpus-per-node: {job.gpus}: skypilot wants TYPE:COUNT, e.g. A100:{job.gpus}")
    else:
        resources["accelerators"] = job.gpus
    task: dict[str, Any] = {"name": job.name, "num_nodes": job.nodes, "resources": resources}
    extras = " deepspeed" if "zero" in Path(job.engine_file).name else ""
    if job.image is None:
        task |= {"workdir": str(ROOT), "setup": f"launch/install.sh{extras}\n"}
        enter, part = "", job.node_command(".venv/bin/python", PurePosixPath(), run)
    else:
        resources["image_id"] = f"docker:{job.image}"
        enter, part = f"cd {WORKDIR_OF_IMAGE}\n", job.node_command("python", WORKDIR_OF_IMAGE, run)
    task |= {
        "envs": job.environment_with_threads(),
        "file_mounts": {
            path: {"source" if "://" in source else "name": source, "mode": "MOUNT_CACHED"},
            RECIPE_PATH: str(job.recipe_path),
        },
        "run": (
            f'{enter}{shlex.join(part)} --alone --node "$SKYPILOT_NODE_RANK" \\\n'
            f'  --host "$(head -n 1 <<<"$SKYPILOT_NODE_IPS")" --port {PORT} -- --config {RECIPE_PATH}\n'
        ),
    }
    return as_yaml(task)


def submit(job: Job, path: Path) -> str:
    """Submits the task file at `path` as a managed job; returns what sky prints. Raises UserError."""
    command = ["sky", "jobs", "launch", "--yes", "--detach-run", str(path)]
    if shutil.which("sky") is None:
        raise UserError(f"sky: not found; where it is: {shlex.join(command)}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sky: {((done.stderr + done.stdout).strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()
