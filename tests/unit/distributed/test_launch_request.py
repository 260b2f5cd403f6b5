"""Requests read from real command lines and config files, compared with what Accelerate makes of them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from mtl_dist.distributed import launch_request
from mtl_dist.distributed.launch_request import LaunchRequest, launcher_command, read_request
from tests.utils.launch_files import SCRIPT, write_config

pytestmark = pytest.mark.usefixtures("plain_environment")
WAITING = "echo begun; read line\n"
"""A shell script that ends when its input does."""

FILES: dict[str, dict[str, Any]] = {
    "none": {},
    "one cpu": {"distributed_type": "NO", "use_cpu": True, "mixed_precision": "no", "num_processes": 1},
    "bf16": {"distributed_type": "NO", "mixed_precision": "bf16"},
    "two gpus": {"distributed_type": "MULTI_GPU", "num_processes": 2, "num_machines": 1},
    "cpus": {"distributed_type": "MULTI_CPU", "num_processes": 4, "num_machines": 2, "use_cpu": True},
    "fp16": {"distributed_type": "NO", "mixed_precision": "fp16", "num_machines": 1},
    "fsdp": {"distributed_type": "FSDP", "num_processes": 2, "mixed_precision": "bf16"},
    "fsdp with settings": {
        "distributed_type": "FSDP",
        "num_processes": 2,
        "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": True},
    },
    "deepspeed": {
        "distributed_type": "DEEPSPEED",
        "num_processes": 2,
        "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": 4},
    },
}
FLAGS: list[list[str]] = [
    [],
    ["--num_processes", "3"],
    ["--mixed_precision", "bf16", "--num_machines", "1"],
    ["--cpu"],
    ["--multi_gpu", "--num_processes", "2"],
    ["--zero_stage", "3", "--fsdp-reshard-after-forward", "false", "--gradient_accumulation_steps", "2"],
]


@contextmanager
def running(*words: str) -> Iterator[psutil.Process]:
    """A process of WAITING with this command line, which has started."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.communicate()


@pytest.mark.parametrize("name", ["accelerate", "accelerate-launch", "python"])
def test_the_launchers_arguments_are_found(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.write_text(WAITING)
    words = {"accelerate": ["launch"], "accelerate-launch": [], "python": ["-m", "accelerate.commands.launch"]}[name]
    with running("/bin/sh", str(program), *words, "--cpu", *SCRIPT) as process:
        assert launcher_command(process) == ["--cpu", *SCRIPT]


def test_other_parents_have_no_launcher_command(tmp_path: Path) -> None:
    (tmp_path / "accelerate").write_text(WAITING)
    with running("/bin/sh", str(tmp_path / "accelerate"), "config", "update") as process:
        assert launcher_command(process) == []
    assert launcher_command(process) == []  # it has ended
    assert launcher_command(None) == []


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("file", FILES)
def test_a_request_is_what_accelerate_reads_from_flags_and_file(tmp_path: Path, file: str, flags: list[str]) -> None:
    path = write_config(tmp_path / "config.yaml", FILES[file]) if FILES[file] else None
    command = [*(["--config_file", path] if path else []), *flags, *SCRIPT]
    request = read_request(command)
    resolved, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    for ours, theirs in (
        (request.processes, resolved.num_processes),
        (request.machines, resolved.num_machines),
        (request.precision, resolved.mixed_precision),
    ):
        assert ours in (None, theirs)
    assert (request.device == "cpu") == bool(resolved.cpu or resolved.use_cpu)
    assert (request.engine == DistributedType.MULTI_GPU) == resolved.multi_gpu
    assert (request.engine == DistributedType.FSDP) == resolved.use_fsdp
    assert (request.engine == DistributedType.DEEPSPEED) == resolved.use_deepspeed
    for key, value in request.settings.items():
        assert str(getattr(resolved, key)).lower() == str(value).lower()
    if request.accumulation is not None:
        assert request.accumulation == int(resolved.gradient_accumulation_steps)
    assert request.source == (path or f"accelerate launch {' '.join(command[:4])} ...")


def test_flags_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.yaml", FILES["fsdp"])
    flags = ["--num_processes", "3", "--num_machines", "2", "--mixed_precision", "no", "--multi_gpu"]
    engine = DistributedType.MULTI_GPU
    assert read_request(["--config_file", path, *SCRIPT]) == LaunchRequest(
        path, 2, 1, "bf16", DistributedType.FSDP, "gpu"
    )
    assert read_request(["--config_file", path, *flags, *SCRIPT]) == LaunchRequest(path, 3, 2, "no", engine, "gpu")


def test_an_engines_flags_take_precedence_over_its_section_of_the_file(tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.yaml", FILES["deepspeed"])
    flags = ["--zero_stage", "3", "--fsdp_reshard_after_forward", "false"]  # the latter is not DeepSpeed's
    assert read_request(["--config_file", path, *flags, *SCRIPT]).settings == {"zero_stage": 3}
    assert read_request(["--config_file", path, *SCRIPT]).settings == {"zero_stage": 2}
    assert read_request(["--config_file", path, *SCRIPT]).accumulation == 4
    flags = ["--gradient_accumulation_steps", "2"]
    assert read_request(["--config_file", path, *flags, *SCRIPT]).accumulation == 2
    assert read_request([*flags, "train.py"]).accumulation == 2


def test_use_cpu_false_in_a_file_requests_a_gpu(tmp_path: Path) -> None:
    """Accelerate ignores `use_cpu: false` on a machine without a GPU."""
    for settings, device in (({}, None), ({"use_cpu": False}, "gpu"), ({"use_cpu": True}, "cpu")):
        path = write_config(tmp_path / "config.yaml", {"distributed_type": "NO", "num_processes": 1, **settings})
        assert read_request(["--config_file", path, *SCRIPT]).device == device


def test_the_users_default_file_is_read_unless_cpu_is_requested() -> None:
    path = write_config(Path(launch_request.default_config_file), FILES["bf16"])
    assert read_request(SCRIPT) == LaunchRequest(path, 1, 1, "bf16", DistributedType.NO)
    assert read_request(["--cpu", *SCRIPT]) == LaunchRequest(
        "accelerate launch --cpu launch/train.py --config recipe.yaml ...", device="cpu"
    )


def test_what_flags_and_file_leave_open_is_none(tmp_path: Path) -> None:
    path = write_config(tmp_path / "config.yaml", {"distributed_type": "MULTI_CPU"})
    assert read_request(["--config_file", path, *SCRIPT]) == LaunchRequest(
        path, None, 1, None, DistributedType.MULTI_CPU
    )
    assert read_request(["train.py"]) == LaunchRequest("accelerate launch train.py ...")


def test_without_accelerates_launcher_only_the_world_size_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_request([]) == LaunchRequest("the environment")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert read_request([]) == LaunchRequest("the environment", processes=3)
