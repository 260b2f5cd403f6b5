"""What a launch asked for, read from real command lines and files; and that nothing else is run in its place."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from mtl_dist import launch_guard
from mtl_dist.engines import engine_class_of
from mtl_dist.errors import UserError
from mtl_dist.launch_guard import Asked, bf16_hint, check_given, check_request, launcher_command, read_request
from tests.in_process import accelerator_here

ROOT = Path(__file__).parents[2]
SCRIPT = ["launch/train.py", "--config", "recipe.yaml", "--num_processes", "9"]
WAITING = "echo begun; read line\n"
"""A shell script that ends when its input does."""
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

FILES: dict[str, dict[str, Any]] = {
    "none": {},
    "one cpu": {"distributed_type": "NO", "use_cpu": True, "mixed_precision": "no", "num_processes": 1},
    "bf16": {"distributed_type": "NO", "mixed_precision": "bf16"},
    "two gpus": {"distributed_type": "MULTI_GPU", "num_processes": 2, "num_machines": 1},
    "cpus": {"distributed_type": "MULTI_CPU", "num_processes": 4, "num_machines": 2, "use_cpu": True},
    "fp16": {"distributed_type": "NO", "mixed_precision": "fp16", "num_machines": 1},
    "fsdp": {"distributed_type": "FSDP", "num_processes": 2, "mixed_precision": "bf16"},
}
FLAGS: list[list[str]] = [
    [],
    ["--num_processes", "3"],
    ["--mixed_precision", "bf16", "--num_machines", "1"],
    ["--cpu"],
    ["--multi_gpu", "--num_processes", "2"],
]


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a launcher and without a file of the user's own."""
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch_guard, "default_config_file", str(tmp_path / "default_config.yaml"))


def written(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def refusal(asked: Asked) -> str:
    with pytest.raises(UserError) as error:
        check_request(asked)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@contextmanager
def running(*words: str) -> Iterator[psutil.Process]:
    """A process of WAITING with this command line; it has begun."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.communicate()


@pytest.mark.parametrize("name", ["accelerate", "accelerate-launch", "python"])
def test_the_launchers_command_line_is_found(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.write_text(WAITING)
    words = {"accelerate": ["launch"], "accelerate-launch": [], "python": ["-m", "accelerate.commands.launch"]}[name]
    with running("/bin/sh", str(program), *words, "--cpu", *SCRIPT) as process:
        assert launcher_command(process) == ["--cpu", *SCRIPT]


def test_other_parents_ask_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "accelerate").write_text(WAITING)
    with running("/bin/sh", str(tmp_path / "accelerate"), "config", "update") as process:
        assert launcher_command(process) == []
    assert launcher_command(process) == []  # it has ended
    assert launcher_command(None) == []


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("file", FILES)
def test_a_request_is_what_accelerate_makes_of_flags_and_file(tmp_path: Path, file: str, flags: list[str]) -> None:
    path = written(tmp_path / "config.yaml", FILES[file]) if FILES[file] else None
    command = [*(["--config_file", path] if path else []), *flags, *SCRIPT]
    asked = read_request(command)
    resolved, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    for ours, theirs in (
        (asked.processes, resolved.num_processes),
        (asked.machines, resolved.num_machines),
        (asked.precision, resolved.mixed_precision),
    ):
        assert ours in (None, theirs)
    assert asked.cpu == bool(resolved.cpu or resolved.use_cpu)
    assert (asked.engine == DistributedType.MULTI_GPU) == resolved.multi_gpu
    assert (asked.engine == DistributedType.FSDP) == resolved.use_fsdp
    assert asked.source == (path or f"accelerate launch {' '.join(command[:4])} ...")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", FILES["fsdp"])
    flags = ["--num_processes", "3", "--num_machines", "2", "--mixed_precision", "no", "--multi_gpu"]
    engine = DistributedType.MULTI_GPU
    assert read_request(["--config_file", path, *SCRIPT]) == Asked(path, 2, 1, "bf16", DistributedType.FSDP)
    assert read_request(["--config_file", path, *flags, *SCRIPT]) == Asked(path, 3, 2, "no", engine)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cpu.yaml", {"processes": 1, "engine": DistributedType.NO}),
        ("multi_cpu.yaml", {"processes": 2, "engine": DistributedType.MULTI_GPU}),
    ],
)
def test_the_files_that_come_with_the_project(file: str, expected: dict[str, Any]) -> None:
    path = str(ROOT / "accelerate_configs" / file)
    asked = read_request(["--config_file", path, *SCRIPT])
    assert asked == Asked(path, machines=1, precision="no", cpu=True, **expected)
    check_request(asked)


def test_the_users_own_file_counts_unless_cpu_is_asked_for() -> None:
    path = written(Path(launch_guard.default_config_file), FILES["bf16"])
    assert read_request(SCRIPT) == Asked(path, 1, 1, "bf16", DistributedType.NO)
    assert read_request(["--cpu", *SCRIPT]) == Asked(
        "accelerate launch --cpu launch/train.py --config recipe.yaml ...", cpu=True
    )


def test_what_flags_and_file_leave_open_is_not_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", {"distributed_type": "MULTI_CPU"})
    assert read_request(["--config_file", path, *SCRIPT]) == Asked(path, None, 1, None, DistributedType.MULTI_CPU)
    assert read_request(["train.py"]) == Asked("accelerate launch train.py ...")


def test_without_accelerates_launcher_only_the_world_size_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_request([]) == Asked("the environment")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert read_request([]) == Asked("the environment", processes=3)


@pytest.mark.parametrize(
    ("flag", "engine"),
    [
        ("--use_deepspeed", "DEEPSPEED"),
        ("--use_megatron_lm", "MEGATRON_LM"),
        ("--tpu", "XLA"),
    ],
)
def test_engines_that_are_not_there_yet(tmp_path: Path, flag: str, engine: str) -> None:
    path = written(tmp_path / "config.yaml", {"distributed_type": engine, "num_processes": 2, "use_cpu": True})
    ending = f": engine {engine} is not supported yet; use one process, DDP or FSDP2"
    assert refusal(read_request(["--config_file", path, *SCRIPT])) == path + ending
    assert refusal(read_request([flag, "train.py"])) == f"accelerate launch {flag} train.py ..." + ending


def fsdp(tmp_path: Path, **settings: object) -> Asked:
    """The request of a config file with these settings of FSDP."""
    file = {"distributed_type": "FSDP", "num_processes": 2, "use_cpu": True, "fsdp_config": settings}
    return read_request(["--config_file", written(tmp_path / "config.yaml", file), *SCRIPT])


def test_fsdp2_with_settings_that_it_follows(tmp_path: Path) -> None:
    asked = fsdp(tmp_path, fsdp_version=2, fsdp_reshard_after_forward=False)
    check_request(asked)
    assert engine_class_of(asked).keywords == {"reshard_after_forward": False}  # pyrefly: ignore
    check_request(fsdp(tmp_path, fsdp_version=2))


@pytest.mark.parametrize(
    ("settings", "ending"),
    [
        ({}, "fsdp_version: only 2 is supported; say so under fsdp_config of a config file"),
        ({"fsdp_version": 1}, "fsdp_version: only 2 is supported; say so under fsdp_config of a config file"),
        ({"fsdp_version": 2, "fsdp_offload_params": True}, "fsdp_offload_params: True is not supported; use False"),
        (
            {"fsdp_version": 2, "fsdp_min_num_params": 5},
            f"fsdp_min_num_params is not supported; leave only {', '.join(launch_guard.FSDP_SETTINGS)}",
        ),
    ],
)
def test_fsdp_settings_that_would_be_passed_over(tmp_path: Path, settings: dict[str, object], ending: str) -> None:
    asked = fsdp(tmp_path, **settings)
    assert refusal(asked) == f"{asked.source}: {ending}"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_that_only_the_environment_asks_for(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    engine = variable.rpartition("_")[2]
    ending = f"does not ask for {engine}; ask by accelerate launch and a file"
    assert refusal(read_request([])) == f"{variable}: the environment {ending}"


def test_gpus_of_another_make() -> None:
    asked = Asked("a.yaml", engine=DistributedType.MULTI_XPU)
    assert refusal(asked) == "a.yaml: engine MULTI_XPU is not supported yet; use one process, DDP or FSDP2"


@without_gpu
def test_gpus_on_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked("a.yaml", 2, engine=DistributedType.MULTI_GPU)
    assert refusal(asked) == (
        "a.yaml: asks for GPUs, this machine has none; set ACCELERATE_USE_CPU=true to run on CPUs"
    )
    check_request(Asked("a.yaml", 2, engine=DistributedType.MULTI_GPU, cpu=True))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_request(asked)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_precisions_that_are_not_there(precision: str) -> None:
    asked = read_request(["--mixed_precision", precision, "train.py"])
    assert refusal(asked) == (
        f"accelerate launch --mixed_precision {precision} train.py ...:"
        f" mixed_precision {precision} is not supported; use 'no' or bf16"
    )


@pytest.mark.parametrize("precision", [None, "no", "bf16"])
def test_what_can_be_run_is_let_through(precision: str | None) -> None:
    for engine in (None, DistributedType.NO, DistributedType.MULTI_CPU):
        check_request(Asked("a.yaml", 2, 1, precision, engine))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("a.yaml", 2), "a.yaml: asks for 2 processes, 1 started"),
        (
            Asked("a.yaml", 2, engine=DistributedType.MULTI_CPU),
            (
                "a.yaml: asks for 2 processes, 1 started; MULTI_CPU starts more than one only through mpirun,"
                " accelerate_configs/multi_cpu.yaml shows the way"
            ),
        ),
        (Asked("a.yaml", 1, 2), "a.yaml: asks for 2 machines, this run has 1 process(es)"),
        (Asked("a.yaml", 1, 1, "bf16"), "a.yaml: asks for mixed_precision bf16, got no"),
    ],
)
def test_another_run_than_asked_for_is_refused(asked: Asked, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_given(asked, accelerator_here())
    assert str(error.value) == message


def test_the_run_that_was_asked_for_goes_on() -> None:
    check_given(Asked("a.yaml"), accelerator_here())
    check_given(Asked("a.yaml", 1, 1, "no", DistributedType.MULTI_CPU, cpu=True), accelerator_here())
    check_given(Asked("a.yaml", 1, 1, "bf16"), accelerator_here(precision="bf16"))


def test_bf16_is_hinted_at_where_the_cpu_has_it_and_the_run_does_not_use_it() -> None:
    assert bf16_hint(accelerator_here(precision="bf16")) is None
    hint = bf16_hint(accelerator_here())
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    if "amx_bf16" in flags or "avx512_bf16" in flags:
        assert hint is not None
        assert hint.startswith(f"this CPU has {'amx_bf16' if 'amx_bf16' in flags else 'avx512_bf16'}: ")
        assert hint.endswith("--mixed_precision bf16 to accelerate launch")
    else:
        assert hint is None
