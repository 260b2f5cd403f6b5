"""Requests and runs that the launch check accepts or refuses, with its messages."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from mtl_dist.config.recipe import ModelConfig, Recipe, TrackingConfig
from mtl_dist.distributed.launch_check import SETTINGS, bf16_hint, check_launched, check_request, start_accelerator
from mtl_dist.distributed.launch_request import LaunchRequest, read_request
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.factory import engine_class_of
from mtl_dist.engines.fsdp2 import FullySharded
from mtl_dist.engines.zero import ZeroRedundancy
from mtl_dist.errors import UserError
from tests.utils.in_process import accelerator_here
from tests.utils.launch_files import SCRIPT, write_config

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).parents[3]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def refusal(request: LaunchRequest) -> str:
    with pytest.raises(UserError) as error:
        check_request(request)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").iterdir()), ids=lambda path: path.stem)
def test_config_files_of_the_project(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each requests what its name says, and passes the check."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    request = read_request(["--config_file", str(path), *SCRIPT])
    check_request(request)
    assert request.machines == (2 if path.stem.startswith("multi_node") else 1)
    assert request.processes == (1 if path.stem in ("cpu", "gpu") else 2 * (request.machines or 0))
    assert request.device == ("cpu" if path.stem.endswith("cpu") else "gpu")
    assert request.precision == "no"
    engine = path.stem.removeprefix("multi_node_")
    if "zero" in engine:
        assert (request.engine, request.settings["zero_stage"]) == (DistributedType.DEEPSPEED, int(engine[-1]))
    elif engine == "fsdp2":
        assert (request.engine, request.settings["fsdp_version"]) == (DistributedType.FSDP, 2)
    else:
        assert request.engine == (DistributedType.NO if path.stem in ("cpu", "gpu") else DistributedType.MULTI_GPU)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    if request.device == "gpu" and not torch.cuda.is_available():
        override = "add --cpu to accelerate launch" if engine == "gpu" == path.stem else "set ACCELERATE_USE_CPU=true"
        assert refusal(request) == f"{path}: asks for GPUs, this machine has none; {override} to run on CPUs"


@pytest.mark.parametrize(
    ("flag", "engine"),
    [("--use_megatron_lm", "MEGATRON_LM"), ("--tpu", "XLA")],
)
def test_unsupported_engines_are_refused(tmp_path: Path, flag: str, engine: str) -> None:
    path = write_config(tmp_path / "config.yaml", {"distributed_type": engine, "num_processes": 2, "use_cpu": True})
    ending = f": engine {engine} is not supported; use one process, DDP, FSDP2 or DeepSpeed"
    assert refusal(read_request(["--config_file", path, *SCRIPT])) == path + ending
    assert refusal(read_request([flag, "train.py"])) == f"accelerate launch {flag} train.py ..." + ending


def with_section(tmp_path: Path, engine: str, **settings: object) -> LaunchRequest:
    """The request of a config file with these settings of an engine."""
    file = {"distributed_type": engine, "num_processes": 2, "use_cpu": True, SECTIONS[engine]: settings}
    return read_request(["--config_file", write_config(tmp_path / "config.yaml", file), *SCRIPT])


SECTIONS = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}


def test_engines_get_the_requested_settings(tmp_path: Path) -> None:
    recipe = Recipe()
    request = with_section(tmp_path, "FSDP", fsdp_version=2, fsdp_reshard_after_forward=False)
    check_request(request)
    fsdp2: Any = engine_class_of(request, recipe, "cpu")
    assert (fsdp2.func, fsdp2.keywords) == (FullySharded, {"reshard_after_forward": False})
    check_request(with_section(tmp_path, "FSDP", version=2))
    for stage in (1, 2, 3):
        request = with_section(tmp_path, "DEEPSPEED", zero_stage=stage, offload_param_device="none")
        check_request(request)
        zero: Any = engine_class_of(request, recipe, "cpu")
        assert (zero.func, zero.keywords) == (ZeroRedundancy, {"stage": stage})
    assert engine_class_of(LaunchRequest("a.yaml"), recipe, "cpu") is DataParallel


def test_recipes_that_an_engine_cannot_run_are_refused(tmp_path: Path) -> None:
    request = with_section(tmp_path, "DEEPSPEED", zero_stage=2)
    recipe = Recipe(model=ModelConfig(dtype="float64"))
    with pytest.raises(
        UserError, match=r"^model\.dtype: DeepSpeed keeps weights and optimizer state in float32, not float64; "
    ):
        engine_class_of(request, recipe, "cpu")
    recipe = Recipe(tracking=TrackingConfig(gradient_cosine_every_steps=10))
    for sharded in (request, with_section(tmp_path, "FSDP", fsdp_version=2)):
        with pytest.raises(UserError, match=r"^tracking\.gradient_cosine_every_steps: needs the whole of a block on "):
            engine_class_of(sharded, recipe, "cpu")
    assert engine_class_of(LaunchRequest("a.yaml"), recipe, "cpu") is DataParallel


FSDP_KEYS, DEEPSPEED_KEYS = (", ".join(settings) for settings in SETTINGS.values())


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
def test_settings_that_would_be_ignored_are_refused(
    tmp_path: Path, engine: str, settings: dict[str, object], ending: str
) -> None:
    request = with_section(tmp_path, engine, **settings)
    assert refusal(request) == f"{request.source}: {ending}"


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_from_the_environment_alone_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    engine = variable.rpartition("_")[2]
    ending = f"does not ask for {engine}; ask by accelerate launch and a file"
    assert refusal(read_request([])) == f"{variable}: the environment {ending}"


def environment_refusal(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Message about `variables` in the environment of a process that no launcher has started."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        start_accelerator()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


ADVICE = "unset them, or start with mtl-dist train, accelerate launch or torchrun"


@pytest.mark.parametrize(
    "left_over",
    [
        {"LOCAL_RANK": "0"},
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    ],
)
def test_left_over_variables_of_a_launcher_are_refused(
    left_over: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ", ".join(name for name in left_over if not name.startswith("MASTER"))
    message = environment_refusal(left_over, monkeypatch)
    assert message == f"{names}: set, and no launcher has started this process; {ADVICE}"


def test_variables_of_a_launcher_that_has_ended_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would look for the launcher's store for minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launcher = {"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    message = environment_refusal(rank | launcher, monkeypatch)
    assert message == f"MASTER_ADDR, MASTER_PORT: no launcher is at 127.0.0.1:{port} any more; {ADVICE}"


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MIXED_PRECISION", "fp16", "'fp16' is not supported; use no or bf16, or unset it"),
        ("MIXED_PRECISION", "BF16", "'BF16' is not supported; use no or bf16, or unset it"),
        ("MIXED_PRECISION", "", "'' is not supported; use no or bf16, or unset it"),
        ("DYNAMO_BACKEND", "inductor", "compilation is not supported; unset it"),
        ("DYNAMO_MODE", "max-autotune", "compilation is not supported; unset it"),
        (
            "TORCH_DEVICE",
            "meta",
            "is not supported; choose GPUs by CUDA_VISIBLE_DEVICES, or the CPU by ACCELERATE_USE_CPU=true",
        ),
        ("GRADIENT_CLIPPING", "1.0", "is not supported; the recipe has it as optimizer.max_grad_norm"),
        ("DEEPSPEED_CONFIG_FILE", "ds.json", "is not supported; give the settings in accelerate's own file"),
        ("USE_MEGATRON_LM", "true", "is not supported; unset it"),
        ("USE_PARALLELISM_CONFIG", "on", "is not supported; unset it"),
        ("USE_SAGEMAKER", "1", "is not supported; unset it"),
        ("USE_CPU", "junk", "'junk' is no truth value; use true or false, or unset it"),
        ("GRADIENT_ACCUMULATION_STEPS", "two", "'two' is not a whole number from 1 on; unset it"),
    ],
)
def test_settings_of_accelerate_in_the_environment_are_refused(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = environment_refusal({f"ACCELERATE_{variable}": value}, monkeypatch)
    assert message == f"ACCELERATE_{variable}: {reason}"


def test_settings_of_accelerate_in_the_environment_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` sets them for a run of one process."""
    variables = {
        "MIXED_PRECISION": "bf16",
        "USE_CPU": "on",
        "GRADIENT_ACCUMULATION_STEPS": "2",
        "DYNAMO_BACKEND": "NO",
        "DYNAMO_MODE": "default",
        "DYNAMO_USE_FULLGRAPH": "False",
        "DYNAMO_USE_DYNAMIC": "False",
        "DYNAMO_USE_REGIONAL_COMPILATION": "False",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    AcceleratorState._reset_state(True)
    accelerator, group, _ = start_accelerator()
    assert (accelerator.device.type, group.world_size) == ("cpu", 1)
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("bf16", 2)


def test_gpus_of_another_vendor_are_refused() -> None:
    request = LaunchRequest("a.yaml", engine=DistributedType.MULTI_XPU)
    assert refusal(request) == "a.yaml: engine MULTI_XPU is not supported; use one process, DDP, FSDP2 or DeepSpeed"


@without_gpu
def test_gpus_on_a_machine_without_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    request = LaunchRequest("a.yaml", 2, engine=DistributedType.MULTI_GPU, device="gpu")
    assert refusal(request) == (
        "a.yaml: asks for GPUs, this machine has none; set ACCELERATE_USE_CPU=true to run on CPUs"
    )
    check_request(LaunchRequest("a.yaml", 2, engine=DistributedType.MULTI_GPU, device="cpu"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_request(request)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_unsupported_precisions_are_refused(precision: str) -> None:
    request = read_request(["--mixed_precision", precision, "train.py"])
    assert refusal(request) == (
        f"accelerate launch --mixed_precision {precision} train.py ...:"
        f" mixed_precision {precision} is not supported; use 'no' or bf16"
    )


@pytest.mark.parametrize("precision", [None, "no", "bf16"])
def test_supported_requests_pass(precision: str | None) -> None:
    for engine in (None, DistributedType.NO, DistributedType.MULTI_CPU):
        check_request(LaunchRequest("a.yaml", 2, 1, precision, engine))


@pytest.mark.parametrize(
    ("launch_request", "message"),
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
def test_a_run_that_differs_from_the_request_is_refused(launch_request: LaunchRequest, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_launched(launch_request, accelerator_here())
    assert str(error.value) == message


def test_compilation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")  # what `--dynamo_backend inductor` sets
    with pytest.raises(UserError, match=r"^a\.yaml: dynamo_backend is not supported; leave it out$"):
        check_launched(LaunchRequest("a.yaml"), accelerator_here())


def test_a_run_as_requested_passes() -> None:
    check_launched(LaunchRequest("a.yaml"), accelerator_here())
    check_launched(LaunchRequest("a.yaml", 1, 1, "no", DistributedType.MULTI_CPU, device="cpu"), accelerator_here())
    check_launched(LaunchRequest("a.yaml", 1, 1, "bf16"), accelerator_here(precision="bf16"))


def test_bf16_hint_on_cpus_that_have_it_for_runs_that_do_not_use_it() -> None:
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
