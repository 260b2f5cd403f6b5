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

from mtl_dist.config.recipe import ModelConfig, Recipe, TrackingConfig
from mtl_dist.distributed import launch_check as launch_guard
from mtl_dist.distributed.launch_check import (
    LaunchRequest,
    bf16_hint,
    check_launched,
    check_request,
    launcher_command,
    read_request,
)
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.factory import engine_class_of
from mtl_dist.engines.fsdp2 import FullySharded
from mtl_dist.engines.zero import ZeroRedundancy
from mtl_dist.errors import UserError
from tests.utils.in_process import accelerator_here

ROOT = Path(__file__).parents[3]
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


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a launcher and without a file of the user's own."""
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch_guard, "default_config_file", str(tmp_path / "default_config.yaml"))


def written(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def refusal(asked: LaunchRequest) -> str:
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
    assert (asked.device == "cpu") == bool(resolved.cpu or resolved.use_cpu)
    assert (asked.engine == DistributedType.MULTI_GPU) == resolved.multi_gpu
    assert (asked.engine == DistributedType.FSDP) == resolved.use_fsdp
    assert (asked.engine == DistributedType.DEEPSPEED) == resolved.use_deepspeed
    for key, value in asked.settings.items():
        assert str(getattr(resolved, key)).lower() == str(value).lower()
    if asked.accumulation is not None:
        assert asked.accumulation == int(resolved.gradient_accumulation_steps)
    assert asked.source == (path or f"accelerate launch {' '.join(command[:4])} ...")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", FILES["fsdp"])
    flags = ["--num_processes", "3", "--num_machines", "2", "--mixed_precision", "no", "--multi_gpu"]
    engine = DistributedType.MULTI_GPU
    assert read_request(["--config_file", path, *SCRIPT]) == LaunchRequest(
        path, 2, 1, "bf16", DistributedType.FSDP, "gpu"
    )
    assert read_request(["--config_file", path, *flags, *SCRIPT]) == LaunchRequest(path, 3, 2, "no", engine, "gpu")


def test_an_engines_flags_win_over_its_section_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", FILES["deepspeed"])
    flags = ["--zero_stage", "3", "--fsdp_reshard_after_forward", "false"]  # the latter is no business of DeepSpeed's
    assert read_request(["--config_file", path, *flags, *SCRIPT]).settings == {"zero_stage": 3}
    assert read_request(["--config_file", path, *SCRIPT]).settings == {"zero_stage": 2}
    assert read_request(["--config_file", path, *SCRIPT]).accumulation == 4
    flags = ["--gradient_accumulation_steps", "2"]
    assert read_request(["--config_file", path, *flags, *SCRIPT]).accumulation == 2
    assert read_request([*flags, "train.py"]).accumulation == 2


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").iterdir()), ids=lambda path: path.stem)
def test_the_files_that_come_with_the_project(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for what its name says, Accelerate reads all of it, and it can be run."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    asked = read_request(["--config_file", str(path), *SCRIPT])
    check_request(asked)
    assert asked.machines == (2 if path.stem.startswith("multi_node") else 1)
    assert asked.processes == (1 if path.stem in ("cpu", "gpu") else 2 * (asked.machines or 0))
    assert asked.device == ("cpu" if path.stem.endswith("cpu") else "gpu")
    assert asked.precision == "no"
    engine = path.stem.removeprefix("multi_node_")
    if "zero" in engine:
        assert (asked.engine, asked.settings["zero_stage"]) == (DistributedType.DEEPSPEED, int(engine[-1]))
    elif engine == "fsdp2":
        assert (asked.engine, asked.settings["fsdp_version"]) == (DistributedType.FSDP, 2)
    else:
        assert asked.engine == (DistributedType.NO if path.stem in ("cpu", "gpu") else DistributedType.MULTI_GPU)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    if asked.device == "gpu" and not torch.cuda.is_available():
        override = "add --cpu to accelerate launch" if engine == "gpu" == path.stem else "set ACCELERATE_USE_CPU=true"
        assert refusal(asked) == f"{path}: asks for GPUs, this machine has none; {override} to run on CPUs"


def test_the_users_own_file_counts_unless_cpu_is_asked_for() -> None:
    path = written(Path(launch_guard.default_config_file), FILES["bf16"])
    assert read_request(SCRIPT) == LaunchRequest(path, 1, 1, "bf16", DistributedType.NO)
    assert read_request(["--cpu", *SCRIPT]) == LaunchRequest(
        "accelerate launch --cpu launch/train.py --config recipe.yaml ...", device="cpu"
    )


def test_what_flags_and_file_leave_open_is_not_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", {"distributed_type": "MULTI_CPU"})
    assert read_request(["--config_file", path, *SCRIPT]) == LaunchRequest(
        path, None, 1, None, DistributedType.MULTI_CPU
    )
    assert read_request(["train.py"]) == LaunchRequest("accelerate launch train.py ...")


def test_without_accelerates_launcher_only_the_world_size_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_request([]) == LaunchRequest("the environment")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert read_request([]) == LaunchRequest("the environment", processes=3)


@pytest.mark.parametrize(
    ("flag", "engine"),
    [("--use_megatron_lm", "MEGATRON_LM"), ("--tpu", "XLA")],
)
def test_engines_that_are_not_there(tmp_path: Path, flag: str, engine: str) -> None:
    path = written(tmp_path / "config.yaml", {"distributed_type": engine, "num_processes": 2, "use_cpu": True})
    ending = f": engine {engine} is not supported; use one process, DDP, FSDP2 or DeepSpeed"
    assert refusal(read_request(["--config_file", path, *SCRIPT])) == path + ending
    assert refusal(read_request([flag, "train.py"])) == f"accelerate launch {flag} train.py ..." + ending


def with_section(tmp_path: Path, engine: str, **settings: object) -> LaunchRequest:
    """The request of a config file with these settings of an engine."""
    file = {"distributed_type": engine, "num_processes": 2, "use_cpu": True, SECTIONS[engine]: settings}
    return read_request(["--config_file", written(tmp_path / "config.yaml", file), *SCRIPT])


SECTIONS = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}


def test_the_engine_follows_its_settings(tmp_path: Path) -> None:
    recipe = Recipe()
    asked = with_section(tmp_path, "FSDP", fsdp_version=2, fsdp_reshard_after_forward=False)
    check_request(asked)
    fsdp2: Any = engine_class_of(asked, recipe, "cpu")
    assert (fsdp2.func, fsdp2.keywords) == (FullySharded, {"reshard_after_forward": False})
    check_request(with_section(tmp_path, "FSDP", version=2))
    for stage in (1, 2, 3):
        asked = with_section(tmp_path, "DEEPSPEED", zero_stage=stage, offload_param_device="none")
        check_request(asked)
        zero: Any = engine_class_of(asked, recipe, "cpu")
        assert (zero.func, zero.keywords) == (ZeroRedundancy, {"stage": stage})
    assert engine_class_of(LaunchRequest("a.yaml"), recipe, "cpu") is DataParallel


def test_what_an_engine_cannot_run_is_refused(tmp_path: Path) -> None:
    asked = with_section(tmp_path, "DEEPSPEED", zero_stage=2)
    recipe = Recipe(model=ModelConfig(dtype="float64"))
    with pytest.raises(
        UserError, match=r"^model\.dtype: DeepSpeed keeps weights and optimizer state in float32, not float64; "
    ):
        engine_class_of(asked, recipe, "cpu")
    recipe = Recipe(tracking=TrackingConfig(gradient_cosine_every_steps=10))
    for sharded in (asked, with_section(tmp_path, "FSDP", fsdp_version=2)):
        with pytest.raises(UserError, match=r"^tracking\.gradient_cosine_every_steps: needs the whole of a block on "):
            engine_class_of(sharded, recipe, "cpu")
    assert engine_class_of(LaunchRequest("a.yaml"), recipe, "cpu") is DataParallel


FSDP_KEYS, DEEPSPEED_KEYS = (", ".join(settings) for settings in launch_guard.SETTINGS.values())


@pytest.mark.parametrize(
    ("engine", "settings", "ending"),
    [
        ("FSDP", {}, "fsdp_version: missing; use 2"),
        ("FSDP", {"fsdp_version": 1}, "fsdp_version: 1 is not supported; use 2"),
        (
            "FSDP",
            {"fsdp_version": 2, "fsdp_offload_params": True},
            "fsdp_offload_params: True is not supported; use False",
        ),
        (
            "FSDP",
            {"fsdp_version": 2, "min_num_params": 5},
            f"fsdp_min_num_params is not supported; leave only {FSDP_KEYS}",
        ),
        ("DEEPSPEED", {}, "zero_stage: missing; use 1 or 2 or 3"),
        ("DEEPSPEED", {"zero_stage": 0}, "zero_stage: 0 is not supported; use 1 or 2 or 3"),
        (
            "DEEPSPEED",
            {"zero_stage": 3, "offload_param_device": "cpu"},
            "offload_param_device: cpu is not supported; use none",
        ),
        (
            "DEEPSPEED",
            {"zero_stage": 3, "gradient_clipping": 1.0},
            f"gradient_clipping is not supported; leave only {DEEPSPEED_KEYS}",
        ),
        (
            "DEEPSPEED",
            {"zero_stage": 3, "deepspeed_config_file": "ds.json"},
            f"deepspeed_config_file is not supported; leave only {DEEPSPEED_KEYS}",
        ),
    ],
)
def test_settings_that_would_be_passed_over(
    tmp_path: Path, engine: str, settings: dict[str, object], ending: str
) -> None:
    asked = with_section(tmp_path, engine, **settings)
    assert refusal(asked) == f"{asked.source}: {ending}"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_that_only_the_environment_asks_for(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    engine = variable.rpartition("_")[2]
    ending = f"does not ask for {engine}; ask by accelerate launch and a file"
    assert refusal(read_request([])) == f"{variable}: the environment {ending}"


def test_gpus_of_another_make() -> None:
    asked = LaunchRequest("a.yaml", engine=DistributedType.MULTI_XPU)
    assert refusal(asked) == "a.yaml: engine MULTI_XPU is not supported; use one process, DDP, FSDP2 or DeepSpeed"


@without_gpu
def test_gpus_on_a_machine_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = LaunchRequest("a.yaml", 2, engine=DistributedType.MULTI_GPU, device="gpu")
    assert refusal(asked) == (
        "a.yaml: asks for GPUs, this machine has none; set ACCELERATE_USE_CPU=true to run on CPUs"
    )
    check_request(LaunchRequest("a.yaml", 2, engine=DistributedType.MULTI_GPU, device="cpu"))
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
        check_request(LaunchRequest("a.yaml", 2, 1, precision, engine))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (LaunchRequest("a.yaml", 2), "a.yaml: asks for 2 processes, 1 started"),
        (
            LaunchRequest("a.yaml", 2, engine=DistributedType.MULTI_CPU),
            (
                "a.yaml: asks for 2 processes, 1 started; MULTI_CPU starts more than one only through mpirun,"
                " accelerate_configs/multi_cpu.yaml shows the way"
            ),
        ),
        (LaunchRequest("a.yaml", 1, 2), "a.yaml: asks for 2 machines, this run has 1 process(es)"),
        (LaunchRequest("a.yaml", 1, 1, "bf16"), "a.yaml: asks for mixed_precision bf16, got no"),
        (LaunchRequest("a.yaml", accumulation=2), "a.yaml: asks for gradient_accumulation_steps 2, got 1"),
        (
            LaunchRequest("a.yaml", 1, engine=DistributedType.DEEPSPEED),
            "a.yaml: one process has nothing to share out; use at least 2, or a file for one",
        ),
    ],
)
def test_another_run_than_asked_for_is_refused(asked: LaunchRequest, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_launched(asked, accelerator_here())
    assert str(error.value) == message


def test_compilation_that_would_not_happen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")  # what `--dynamo_backend inductor` sets
    with pytest.raises(UserError, match=r"^a\.yaml: dynamo_backend is not supported; leave it out$"):
        check_launched(LaunchRequest("a.yaml"), accelerator_here())


def test_a_file_says_gpu_where_it_denies_the_cpu(tmp_path: Path) -> None:
    """Accelerate passes over `use_cpu: false` where there is no GPU."""
    for words, device in (({}, None), ({"use_cpu": False}, "gpu"), ({"use_cpu": True}, "cpu")):
        path = written(tmp_path / "config.yaml", {"distributed_type": "NO", "num_processes": 1, **words})
        assert read_request(["--config_file", path, *SCRIPT]).device == device


def test_the_run_that_was_asked_for_goes_on() -> None:
    check_launched(LaunchRequest("a.yaml"), accelerator_here())
    check_launched(LaunchRequest("a.yaml", 1, 1, "no", DistributedType.MULTI_CPU, device="cpu"), accelerator_here())
    check_launched(LaunchRequest("a.yaml", 1, 1, "bf16"), accelerator_here(precision="bf16"))


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
