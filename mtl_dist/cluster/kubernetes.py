"""Kubernetes: a Kubeflow TrainJob (Trainer v2) with the runtime that says which exit codes start it again.

Trainer starts one container a node and tells each its number and the first one's address in PET_* variables.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mtl_dist.cluster.job import WORKDIR_OF_IMAGE, Job, as_yaml, container_run, require_in_repository
from mtl_dist.errors import Interrupted, UserError

JOB_FILE = "job.kubernetes.yaml"
API = "trainer.kubeflow.org/v1alpha1"
MAX_RESTARTS = 100
RECIPE_FOLDER = "/recipe"
CONTAINER = "node"
"""The name of the container, and of its job, that Trainer looks for."""
GROUP_OF_IMAGE = 1000
GRACE_SECONDS = 30
"""Beyond the time to save, until a container is killed."""


def job_file(job: Job) -> str:
    """The recipe as a ConfigMap, a TrainingRuntime and a TrainJob. Raises UserError."""
    if job.image is None:
        raise UserError("--container-image: kubernetes needs one, with this repository in /app")
    if job.gpu_type is not None:
        raise UserError(f"--gpus-per-node: {job.gpus}: kubernetes takes a COUNT; choose the type by the node pool")
    require_in_repository(job, "kubernetes")
    metadata = {"name": job.name}
    recipe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"recipe.yaml": job.resolved}}
    runtime = {
        "apiVersion": API,
        "kind": "TrainingRuntime",
        "metadata": metadata | {"labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": job.nodes, "torch": {}}, "template": {"spec": _job_set(job)}},
    }
    train_job = {
        "apiVersion": API,
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": API.partition("/")[0], "kind": "TrainingRuntime", "name": job.name},
            "trainer": {"numNodes": job.nodes, "numProcPerNode": job.processes},
        },
    }
    return as_yaml(recipe, runtime, train_job)


def submit(job: Job, path: Path) -> str:
    """Hands the file to kubectl; returns what it says. Raises UserError."""
    if shutil.which("kubectl") is None:
        raise UserError(f"kubectl: not found; where it is: kubectl replace --force -f {path}")
    # An ended TrainJob does not start again by itself: it is made anew.
    command = ["kubectl", "replace", "--force", "--filename", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"kubectl: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()


def _job_set(job: Job) -> dict[str, Any]:
    """What ends with 75, or goes with its node, starts again with all others; any other end is one."""
    stopped = Interrupted.exit_code
    on_pod = [
        {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [stopped]},
        },
    ]
    template = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": on_pod},
            "template": {"spec": _pod(job)},
        },
    }
    failed = {"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "failurePolicy": {"maxRestarts": MAX_RESTARTS, "rules": [failed]},
        "replicatedJobs": [{"name": CONTAINER, "template": template}],
    }


def _pod(job: Job) -> dict[str, Any]:
    run = container_run(job, "kubernetes", WORKDIR_OF_IMAGE)
    claim, _, path = (job.volume or "").rpartition(":")
    cpus = {"cpu": str(job.processes * job.cpus)}
    gpus = {"limits": {"nvidia.com/gpu": job.gpus}} if job.gpus else {}
    part = job.part("python", WORKDIR_OF_IMAGE, run)
    # A pod that another's end has ended is no failure of its own. PET_* would change the launcher's own settings.
    script = (
        'number=$PET_NODE_RANK host=$PET_MASTER_ADDR port=$PET_MASTER_PORT; unset "${!PET_@}"\n'
        f'exec {shlex.join(part)} --alone --lost-code {Interrupted.exit_code} --node "$number" --host "$host"'
        f' --port "$port" -- --config {RECIPE_FOLDER}/recipe.yaml\n'
    )
    container = {
        "name": CONTAINER,
        "image": job.image,
        "workingDir": str(WORKDIR_OF_IMAGE),
        "command": ["bash", "-c", script],
        "env": [{"name": name, "value": value} for name, value in job.environment_with_threads().items()],
        "resources": {"requests": cpus} | gpus,
        "volumeMounts": [
            {"name": "recipe", "mountPath": RECIPE_FOLDER},
            {"name": "runs", "mountPath": path},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.save_seconds + GRACE_SECONDS,
        "securityContext": {"fsGroup": GROUP_OF_IMAGE},  # else the volume is root's alone
        "containers": [container],
        "volumes": [
            {"name": "recipe", "configMap": {"name": job.name}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
