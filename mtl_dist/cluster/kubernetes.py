"""Kubernetes: a Kubeflow TrainJob (Trainer v2) and a runtime that defines which exit codes restart it.

Trainer starts one container per node; PET_* variables hold the rank of the node and the address of the first node.
"""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from mtl_dist.cluster.job import WORKDIR_OF_IMAGE, Job, as_yaml, require_in_repository, run_folder_in_container
from mtl_dist.errors import Interrupted, UserError

JOB_FILE = "job.kubernetes.yaml"
API = "trainer.kubeflow.org/v1alpha1"
MAX_RESTARTS = 100
RECIPE_FOLDER = "/recipe"
CONTAINER = "node"
"""Name that Trainer expects of the container and of its job."""
GROUP_OF_IMAGE = 1000
"""Group id of the user in the image."""
GRACE_SECONDS = 30
"""Seconds after the time to save until a container is killed."""


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
    """Submits the file at `path` with kubectl; returns what kubectl prints. Raises UserError."""
    if shutil.which("kubectl") is None:
        raise UserError(f"kubectl: not found; where it is: kubectl replace --force -f {path}")
    # A TrainJob that has ended cannot be restarted, only replaced.
    command = ["kubectl", "replace", "--force", "--filename", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"kubectl: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()


def _job_set(job: Job) -> dict[str, Any]:
    """The JobSet: exit code 75 or the loss of a node restarts all containers; any other failure ends the job."""
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
    run = run_folder_in_container(job, "kubernetes", WORKDIR_OF_IMAGE)
    claim, _, path = (job.volume or "").rpartition(":")
    cpus = {"cpu": str(job.processes * job.cpus)}
    gpus = {"limits": {"nvidia.com/gpu": job.gpus}} if job.gpus else {}
    part = job.node_command("python", WORKDIR_OF_IMAGE, run)
    # --lost-code: a pod that only lost contact with another one must not count as failed.
    # The launcher would take PET_* variables for its own settings.
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
        "securityContext": {"fsGroup": GROUP_OF_IMAGE},  # otherwise only root can write to the volume
        "containers": [container],
        "volumes": [
            {"name": "recipe", "configMap": {"name": job.name}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
