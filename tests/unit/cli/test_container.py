"""The entry point of the container image; tests/docker runs it in the image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtl_dist.cli.container import RECIPE, launch_of, main
from mtl_dist.errors import UserError
from mtl_dist.resources import TRAIN_SCRIPT
from tests.distributed.launching import ROOT


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], ["--config", RECIPE]),
        (["seed=7", "--plan"], ["--config", RECIPE, "seed=7", "--plan"]),
        (
            ["--config", "a.yaml", "--config", "b.yaml", "seed=7"],
            ["--config", "a.yaml", "--config", "b.yaml", "seed=7"],
        ),
        (["--config=a.yaml"], ["--config=a.yaml"]),
        (["--processes", "2", "seed=7"], ["--config", RECIPE, "seed=7"]),
    ],
)
def test_arguments_are_passed_on_and_a_named_recipe_replaces_the_quickstart(
    words: list[str], arguments: list[str]
) -> None:
    assert list(launch_of(words, on_gpus=False).arguments) == arguments


@pytest.mark.parametrize(
    ("words", "on_gpus", "file"),
    [
        ([], False, "cpu"),
        ([], True, "gpu"),
        (["--processes", "2"], False, "multi_cpu"),
        (["--processes", "4"], True, "multi_gpu"),
        (["--nodes", "2", "--host", "a", "--processes", "4"], True, "multi_node_gpu"),
        (["--nodes", "2", "--host", "a"], False, "multi_node_cpu"),
    ],
)
def test_the_engine_file_fits_the_device_and_the_number_of_processes(
    words: list[str], on_gpus: bool, file: str
) -> None:
    found = Path(launch_of(words, on_gpus).engine_file)
    assert found == ROOT / "accelerate_configs" / f"{file}.yaml"
    assert found.is_file()


def test_the_launcher_command_of_the_second_of_two_nodes() -> None:
    words = ["--nodes", "2", "--node", "1", "--host", "first", "--processes", "4", "--config", "a.yaml"]
    words += ["--engine-file", "accelerate_configs/multi_node_fsdp2.yaml"]
    command = launch_of(words, on_gpus=True).command()
    assert command[command.index("--config_file") :] == [
        *("--config_file", "accelerate_configs/multi_node_fsdp2.yaml", "--num_processes", "8", "--num_machines", "2"),
        *("--machine_rank", "1", "--main_process_ip", "first", "--rdzv_backend", "static", "--same_network"),
        *("--main_process_port", "29500", str(TRAIN_SCRIPT), "--config", "a.yaml"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes: 0 is not at least 1"),
        (["--processes", "two"], "command line: argument --processes: invalid int value: 'two'"),
        (["--nodes", "2"], "--host: missing; name the machine of number 0"),
        (
            ["--nodes", "2", "--node", "2", "--host", "a"],
            "--node: 2 is not among 0 to 1; --nodes says how many there are",
        ),
    ],
)
def test_the_error_names_the_option(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch_of(words, on_gpus=False)
    assert str(error.value) == message


def test_containers_on_one_machine_share_no_port() -> None:
    assert launch_of([], on_gpus=False).port == 0  # any that is free
    assert launch_of(["--nodes", "2", "--host", "a"], on_gpus=False).port == 29500


def started(*words: str, device: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch/container.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MTL_DIST_DEVICE": device},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_key_with_a_value_is_not_taken_for_a_command() -> None:
    done = started("seed=7", "--processes", "0", device="cpu")
    assert (done.returncode, done.stderr) == (2, "error: --processes: 0 is not at least 1\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_the_image_for_gpus_requires_them() -> None:
    done = started("seed=7", "--plan", device="gpu")
    assert done.returncode == 2
    assert "accelerate_configs/gpu.yaml: asks for GPUs, this machine has none" in done.stderr


def test_a_recipe_without_config_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes/none.yaml"]) == 127
    assert "a recipe needs --config before it" in capsys.readouterr().err
