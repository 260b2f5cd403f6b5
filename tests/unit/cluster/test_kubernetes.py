"""The Kubernetes job file, checked against the models published with Kubeflow Trainer."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from launch import submit
from mtl_dist.config.load import parse

RECIPE = (
    "tasks: {topic: {path: hub/topic}}\nphases: [{name: all, train: [all], epochs: 2}]\noutput_dir: runs/my_Run.1\n"
)
ARGUMENTS = (
    *("--backend", "kubernetes", "--nodes", "2", "--gpus-per-node", "4", "--cpus-per-process", "3"),
    *("--container-image", "image:1", "--volume", "claim:/app/runs", "--env", "A=b", "--dry-run"),
)


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    assert submit.main([*ARGUMENTS, "--config", "recipe.yaml"]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def container_of(runtime: Any) -> Any:
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_all_fields_are_known_to_kubeflow(documents: list[Any]) -> None:
    """The models ignore unknown fields, which are then missing after a round trip."""
    kinds = {
        "ConfigMap": models.IoK8sApiCoreV1ConfigMap,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "TrainJob": models.TrainerV1alpha1TrainJob,
    }
    assert [document["kind"] for document in documents] == list(kinds)
    for document in documents:
        model = kinds[document["kind"]].from_dict(document)
        assert model is not None
        assert model.to_dict() == document


def test_a_field_that_kubeflow_does_not_know_is_noticed(documents: list[Any]) -> None:
    """Negative control of the test above."""
    train_job = documents[2]
    train_job["spec"]["trainer"]["numProcsPerNode"] = 4
    model = models.TrainerV1alpha1TrainJob.from_dict(train_job)
    assert model is not None
    assert model.to_dict() != train_job


def test_the_documents_are_one_job(documents: list[Any]) -> None:
    recipe, runtime, train_job = documents
    names = {document["metadata"]["name"] for document in documents}
    assert names == {train_job["spec"]["runtimeRef"]["name"]}
    assert re.fullmatch("mtl-my-run-1-[0-9a-f]{8}", names.pop())
    assert train_job["spec"]["trainer"] == {"numNodes": 2, "numProcPerNode": 4}
    assert container_of(runtime)["resources"] == {"requests": {"cpu": "12"}, "limits": {"nvidia.com/gpu": "4"}}
    assert {"name": "A", "value": "b"} in container_of(runtime)["env"]
    assert recipe["data"].keys() == {"recipe.yaml"}


def test_the_job_contains_the_recipe(documents: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "from_job.yaml"
    path.write_text(documents[0]["data"]["recipe.yaml"])
    assert parse(["--config", str(path)]).recipe == parse(["--config", "recipe.yaml"]).recipe


def test_command_of_a_node(documents: list[Any], tmp_path: Path) -> None:
    """Runs the shell script with a fake python and the variables that Trainer sets in a container."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" "${PET_NNODES-unset}"\n')
    python.chmod(0o755)
    variables = {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "first", "PET_MASTER_PORT": "29400", "PET_NNODES": "2"}
    command = container_of(documents[1])["command"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "/app/launch/on_node.py --run /app/runs/my_Run.1 --engine-file /app/accelerate_configs/multi_node_gpu.yaml"
        " --nodes 2 --processes 4 --save-seconds 120 --alone --lost-code 75 --node 1 --host first --port 29400"
        " -- --config /recipe/recipe.yaml unset\n"
    )


def test_a_stopped_run_is_restarted_and_a_failed_one_is_not(documents: list[Any]) -> None:
    job_set = documents[1]["spec"]["template"]["spec"]
    rules = job_set["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Count", "FailJob"]
    assert rules[1]["onExitCodes"] == {"containerName": "node", "operator": "NotIn", "values": [75]}
    (failed,) = job_set["failurePolicy"]["rules"]
    assert (failed["action"], failed["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
